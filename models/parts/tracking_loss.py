"""The loss that teaches embeddings to tell whether a box shows the object that a later frame shows.

"Integrated Object Detection and Tracking with Tracklet-Conditioned Detection", equation (10): boxes of frame t - 1
against ground-truth boxes of frame t. It serves both stages: anchors with E_anchor against E_s1, proposals with E_s2
against E_s2.

What the paper leaves open: the sum over boxes is here a mean over sampled pairs in which positives and negatives have
the same weight, since nearly all anchors are negatives. A box that overlaps no object is compared with the nearest one.

Legend: N boxes and M objects of frame t - 1, K objects of frame t, E numbers of an embedding. Boxes are xyxy in pixels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torchvision.ops import box_iou, generalized_box_iou

MIN_IOU = 0.5  # from here on a box captures an object (equation 10)
Negatives = Literal["paper", "other_objects"]


def tracking_loss(
    embeddings: Tensor,
    boxes: Tensor,
    truth_boxes: Tensor,
    truth_ids: Tensor,
    next_embeddings: Tensor,
    next_ids: Tensor,
    *,
    generator: torch.Generator,
    negatives: Negatives = "paper",
    num_pairs: int = 256,
) -> Tensor:
    """Equation (10), a scalar in [0, 2.5]: half the mean over positives and half the mean over negatives.

    embeddings: (N, E), of boxes (N, 4) in frame t - 1; truth_boxes: (M, 4) and truth_ids: int64 (M,), its objects;
    next_embeddings: (K, E) and next_ids: int64 (K,), of the ground-truth boxes of frame t.
    num_pairs: at most half of it positives and half negatives, drawn with `generator`. A kind without pairs adds
    nothing; with no pairs at all the loss is 0, and still has a gradient.
    """
    loss = (embeddings.sum() + next_embeddings.sum()) * 0
    for pairs, is_same in zip(
        track_pairs(boxes, truth_boxes, truth_ids, next_ids, negatives), (True, False), strict=True
    ):
        box, other = draw(pairs, num_pairs // 2, generator)
        if len(box):
            cosine = cosine_similarity(embeddings[box], next_embeddings[other])  # (P,)
            loss = loss + pair_losses(cosine, is_same).mean() / 2
    return loss


def pair_losses(cosine: Tensor, is_same: bool) -> Tensor:
    """Equation (10) for pairs of one kind, by their cosine: the same object's is drawn to 1, others' to 0 or below."""
    return (1 - cosine) ** 2 if is_same else cosine.clamp(min=0) ** 2


def track_pairs(
    boxes: Tensor, truth_boxes: Tensor, truth_ids: Tensor, next_ids: Tensor, negatives: Negatives
) -> tuple[Tensor, Tensor]:
    """Which pairs of a box and an object of frame t are positive, and which negative: bool (N, K) each.

    A box belongs to the object that it overlaps most, and is its positive if their IoU is at least .5. Negatives:
    "paper" has the boxes that belong to an object but lie worse, paired with it. So no two objects are ever told apart;
    "other_objects" (ours) pairs every box with every object of frame t that it does not capture.
    """
    same = truth_ids[:, None] == next_ids  # (M, K)
    if not len(truth_boxes):
        none = same.new_zeros(len(boxes), len(next_ids))
        return none, none if negatives == "paper" else ~none
    iou = box_iou(boxes, truth_boxes)  # (N, M)
    captured = iou >= MIN_IOU
    own = torch.where(iou > 0, iou, generalized_box_iou(boxes, truth_boxes)).argmax(dim=1, keepdim=True)  # (N, 1)
    belongs = same[own.squeeze(1)]  # (N, K)
    lies_well = captured.gather(1, own)  # (N, 1)
    if negatives == "paper":
        return belongs & lies_well, belongs & ~lies_well
    return belongs & lies_well, (captured.float() @ same.float()) == 0


def draw(pairs: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """At most `count` of the pairs that a mask (N, K) allows, at random: their rows and columns."""
    index = torch.nonzero(pairs)  # (P, 2)
    if len(index) > count:
        order = torch.randperm(len(index), generator=generator, device=generator.device)
        index = index[order[:count].to(index.device)]
    return index[:, 0], index[:, 1]
