"""Which of a frame's regions are detections, and which of those continue tracklets.

Suppression is by class, but a box that a tracklet remembers has one distribution over all classes ("Integrated Object
Detection and Tracking with Tracklet-Conditioned Detection" leaves open how both can be). So there are two suppressions
of the same regions: one by class gives the detections, as usual (`TwoStage.detected`); one over all classes, by the
likeliest of each region, gives the boxes that continue tracklets. A tracklet's box is a detection of the tracklet's
class, the likeliest of its P_tr, which may not be that of the newest box, and it carries the tracklet's id; what else
is said of its region is detections without an id.

Legend: R regions, N detections, K boxes of tracklets, C foreground classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms

from models.parts.anchors import PlainDetections, has_area
from models.parts.two_stage import Limits, Regions


def distinct(regions: Regions, size: tuple[int, int], probabilities: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
    """Suppression over all classes: boxes (K, 4) of each region's likeliest class, best first, and whose they are (K,).

    size: (height, width) of the frame; probabilities: (R, C + 1), background first.
    """
    scores, labels = probabilities[:, 1:].max(dim=1)
    boxes = regions.refined(size)[torch.arange(len(labels), device=labels.device), labels]  # (R, 4)
    able = torch.nonzero((scores > limits.min_score) & has_area(boxes)).squeeze(1)
    kept = able[nms(boxes[able], scores[able], limits.max_iou)[: limits.max_detections]]
    return boxes[kept], kept


def given_out(
    found: PlainDetections, boxes: Tensor, region: Tensor, labels: Tensor, ids: Tensor, probabilities: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """A frame's row, best detection first, and the region (N,) of each detection.

    found: the detections by class; boxes (K, 4), region, labels, ids (K,): boxes in tracklets, and the tracklets'
    classes and ids; probabilities: (R, C + 1), of all regions, which scores are taken from. A tracklet's box is the
    detection of its region and class, or one more where there is none.
    """
    same = (found.anchor[:, None] == region) & (found.labels[:, None] == labels)  # (N, K), at most one a column
    new = ~same.any(dim=0)
    regions = torch.cat([found.anchor, region[new]])
    classes = torch.cat([found.labels, labels[new]])
    scores = probabilities[regions, classes + 1]
    best = scores.argsort(descending=True, stable=True)
    of_found = (same * (ids + 1)).sum(dim=1) - 1  # -1 where none is the same
    row = {
        "boxes": torch.cat([found.boxes, boxes[new]]),
        "scores": scores,
        "labels": classes,
        "class_scores": probabilities[regions],
        "tracklet_id": torch.cat([of_found, ids[new]]),
    }
    return {name: value[best] for name, value in row.items()}, regions[best]
