"""Detections of a second stage, class by class: non-maximum suppression, box voting, the best of each class.

Box voting: Gidaris and Komodakis, "Object detection via a multi-region and semantic segmentation-aware CNN model",
2015, section 5; with D&T's numbers ("Detect to Track and Track to Detect", section 5.2, and its released code).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from models.parts.anchors import has_area


class Voted(NamedTuple):
    """Detections of one frame, best first: boxes (D, 4), scores (D,), labels (D,), region (D,): the row each is of."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    region: Tensor


def vote_boxes(
    boxes: Tensor,
    probabilities: Tensor,
    *,
    max_iou: float = 0.4,
    min_vote_iou: float | None = 0.5,
    top_k: int = 25,
    min_score: float = 0.0,
) -> Voted:
    """The detections among boxes (R, 4), the same for all classes, with probabilities (R, C + 1), background first.

    Of each class, those above `min_score` go through non-maximum suppression at `max_iou`; at most `top_k` stay. A box
    that stays becomes the mean of all boxes (R) with an IoU of at least `min_vote_iou` with it, itself among them,
    weighted by their probability of its class; None: it remains as it is. Its score is its own. Boxes without area are
    none, and have no vote.

    The paper suppresses at .3 where frames are scored by themselves; .4 is the released code's before linking.
    """
    scores = probabilities[:, 1:] * has_area(boxes)[:, None]  # (R, C)
    region, labels = torch.nonzero(scores > min_score, as_tuple=True)
    kept = batched_nms(boxes[region], scores[region, labels], labels, max_iou)
    region, labels = region[kept], labels[kept]
    of_class = labels[:, None] == torch.arange(scores.shape[1], device=labels.device)  # (D, C)
    rank = of_class.cumsum(dim=0).gather(1, labels[:, None]).squeeze(1)  # 1 is the best of its class
    region, labels = region[rank <= top_k], labels[rank <= top_k]
    found = boxes[region]
    if min_vote_iou is not None:
        weights = (box_iou(found, boxes) >= min_vote_iou) * scores[:, labels].T  # (D, R)
        found = weights @ boxes / weights.sum(dim=1, keepdim=True)
    return Voted(found, scores[region, labels], labels, region)
