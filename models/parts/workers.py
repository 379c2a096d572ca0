"""What a loss divides by where workers share a batch, so that N workers learn what one would learn of the whole batch.

Data parallelism averages gradients over the workers. A sum over what a worker's own clips hold (anchors that find a
box, triplets, tracks), divided by how many of it there are *here*, would weigh an object by which others happen to be
on its worker. Divided by `over_workers` of that number, the average is the sum over all workers by the number of all.
A mean over what every worker has as many of (clips and frames, where their shares are equal) is right as it is.

All workers must ask as often and in the same order, or the others wait for ever: a loss counts before it looks whether
there is anything to learn. So `losses` is for all workers together, never for one of them alone.

What stays another where workers share a batch:
- batch norms that learn, and are not frozen, measure a worker's own clips;
- padding: where videos differ in size, a worker's clips are as large as its own largest, not as the batch's;
- triplets are made of what a worker has. RetinaTrack's are of one clip, and hence the same; ReID's are not: who is on
  another worker is nobody's negative;
- chance: samplers of anchors, regions, pairs and triplets draw as many as alone, but not the same ones.
Hard examples are mined frame by frame, and hence are the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed


def over_workers(counts: Tensor) -> Tensor:
    """What to divide sums by: float32, at least 1 over all workers; alone it is the counts themselves.

    counts: of what a loss sums up here, of any shape and number type: several are added up in one call.
    """
    totals = counts.detach().to(torch.float32, copy=True)
    if not (distributed.is_available() and distributed.is_initialized()):
        return totals.clamp(min=1)
    distributed.all_reduce(totals)
    return totals.clamp(min=1) / distributed.get_world_size()
