"""BatchHard triplets: what teaches embeddings which boxes show the same object.

"RetinaTrack: Online Single Stage Joint Detection and Tracking", equation (7), after Hermans, Beyer and Leibe, "In
Defense of the Triplet Loss for Person Re-Identification" (2017), section 2, with its soft margin. An anchor is an
embedding that is compared; its triplet is itself, the furthest of the same object and the nearest of any other.

Legend: A embeddings of E numbers, A' anchors.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn.functional import softplus

MARGIN = 0.1  # m of equation (7), section 3.4 of the paper
TRIPLETS = 64  # drawn for one loss (section 3.4)


def triplet_loss(
    embeddings: Tensor,
    ids: Tensor,
    *,
    margin: float = MARGIN,
    most: int | None = TRIPLETS,
    generator: Generator | None = None,
) -> Tensor:
    """The mean loss of at most `most` triplets, a scalar; 0, with a gradient of 0, where there is none.

    embeddings: (A, E); ids: int64 (A,), whom each shows; those below 0 take no part, neither as anchor nor beside one.
    most: so many anchors are drawn at random (None: all), compared with all embeddings. generator: where chance comes
    from.

    The paper prints a sum; a mean stands beside the detector's losses, which are normalised by their matches, whatever
    the number of objects.
    """
    embeddings, ids = embeddings[ids >= 0], ids[ids >= 0]
    anchors = with_negative(ids)
    if most is not None and len(anchors) > most:
        device = ids.device if generator is None else generator.device
        anchors = anchors[torch.randperm(len(anchors), generator=generator, device=device)[:most].to(ids.device)]
    losses = losses_of(anchors, embeddings, ids, margin)
    return losses.sum() / max(1, len(losses))


def batch_hard(embeddings: Tensor, ids: Tensor, margin: float = MARGIN) -> Tensor:
    """Equation (7) of every embedding that a triplet can be made of, in their order: (A',) of embeddings (A, E).

    ids: see `triplet_loss`.
    """
    embeddings, ids = embeddings[ids >= 0], ids[ids >= 0]
    return losses_of(with_negative(ids), embeddings, ids, margin)


def with_negative(ids: Tensor) -> Tensor:
    """Indices (A',) of those that have another object beside them: all or, of a single object, none."""
    return torch.arange(len(ids) if (ids != ids[:1]).any() else 0, device=ids.device)


def losses_of(anchors: Tensor, embeddings: Tensor, ids: Tensor, margin: float) -> Tensor:
    """SoftPlus(margin + d(furthest positive) - d(nearest negative)) of each anchor: (A',) of indices (A',).

    d is the Euclidean distance, not squared. An anchor is its own positive, at 0, where it has no other.
    """
    exact = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))  # float16 overflows at 65504
    if not len(anchors):
        return exact[:0].sum(dim=1)
    # By differences, not by a product of matrices: exact where embeddings are nearly equal. At a distance of 0, where
    # a root has none, its gradient is 0.
    distances = torch.cdist(exact[anchors], exact, compute_mode="donot_use_mm_for_euclid_dist")  # (A', A)
    same = ids[anchors, None] == ids
    # amax and amin share the gradient among equals, so that the order of the embeddings says nothing.
    furthest = distances.masked_fill(~same, -torch.inf).amax(dim=1)
    nearest = distances.masked_fill(same, torch.inf).amin(dim=1)
    return softplus(margin + furthest - nearest)
