"""Which anchors' embeddings are compared with which: RetinaTrack's triplet loss over clips.

"RetinaTrack: Online Single Stage Joint Detection and Tracking", section 3.4; the loss itself is `triplet`.

Legend: N frames, A anchors, A' = A or a share of it, E numbers of an embedding, M ground-truth boxes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from models.parts.retina_head import of_anchors
from models.parts.retina_network import assign
from models.parts.triplet import triplet_loss

SHARPNESS = 8.0  # length of embeddings that are compared at one length: at 1 the soft margin calls nothing far enough


def clips_triplet_loss(
    anchors: Tensor,
    embeddings: Tensor,
    lengths: Sequence[int],
    targets: Sequence[dict[str, Tensor]],
    *,
    min_iou: float,
    unit_length: bool,
) -> Tensor:
    """The mean over clips of their triplets' mean loss, a scalar; 64 of a clip are drawn by torch's global generator.

    No triplet is of two clips: workers that share a batch in equal parts have those that one would have.

    anchors: (A, 4); embeddings: (N, A', E), of all frames of clips of so many frames; targets: of each frame. min_iou:
    see `known`. unit_length: whether embeddings are first made equally long, so that cosines are what is taught.
    """
    shown = [known(anchors, *of_frame, min_iou) for of_frame in zip(embeddings, targets, strict=True)]
    losses = []
    for stop, length in zip(accumulate(lengths), lengths, strict=True):
        vectors, ids = (torch.cat(each) for each in zip(*shown[stop - length : stop], strict=True))
        vectors = vectors.float()  # though layers be of bfloat16: distances may be small beside lengths
        if unit_length:
            vectors = SHARPNESS * F.normalize(vectors, dim=-1)
        losses.append(triplet_loss(vectors, ids))
    return torch.stack(losses).mean()


def known(anchors: Tensor, embeddings: Tensor, target: dict[str, Tensor], min_iou: float) -> tuple[Tensor, Tensor]:
    """The embeddings (n, E) of a frame's anchors that show a known object, and which (n,): what triplets are made of.

    anchors: (A, 4); embeddings: (A', E), of the frame's anchors; target: boxes (M, 4), track_ids (M,), -1 where
    unknown, and optionally ignore (M,). An anchor shows the nearest box from `min_iou` on. "Similar" to what detection
    learns is taken to mean that here too each object has its nearest anchor, however far.
    """
    matched = assign(anchors, target, min_iou)
    chosen = torch.nonzero(matched >= 0).squeeze(1)
    ids = target["track_ids"][matched[chosen]]
    chosen, ids = chosen[ids >= 0], ids[ids >= 0]
    return of_anchors(embeddings, chosen, len(anchors)), ids
