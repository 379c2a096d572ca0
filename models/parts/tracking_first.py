"""Tracking-first detection: where a tracked box and a detection show the same object, the tracked box is taken.

"Plug & Play Convolutional Regression Tracker for Video Object Detection", section 5, the logic of it without networks.
The boxes of a frame are tracked to the next; those that the tracker is sure of stay there, with new class scores, and
the detector adds what lies apart from them. What comes of it is tracked on, so that frames follow one another.

Beyond the paper: tracked boxes are capped (`max_tracked`), as the background among them would add up; each keeps its
best class however low it scores, so that a sequence has no hole where an object cannot be told for a frame, but a box
below `min_score` is not carried on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import box_iou, nms

from models.parts.anchors import has_area


@dataclass(frozen=True)
class Rules:
    """Thresholds, by default the paper's.

    min_score: a box whose class score is above it is carried to the next frame. min_quality: the least IoU that the
    tracker must expect. nms_iou: among tracked boxes, whatever their class. merge_iou: a detection stays if its IoU
    with every tracked box is below it (the paper tried .3 too). max_tracked: tracked boxes of a frame.
    """

    min_score: float = 0.03
    min_quality: float = 0.5
    nms_iou: float = 0.7
    merge_iou: float = 0.7
    max_tracked: int = 100


@dataclass(frozen=True)
class Rows:
    """Boxes (N, 4) of one frame with a score (N,) and a label (N,) each, and whether they were tracked (N,).

    A box that may be of several classes has a row for each.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    tracked: Tensor

    def where(self, keep: Tensor) -> Rows:
        """Those that a mask or an index chooses."""
        return Rows(self.boxes[keep], self.scores[keep], self.labels[keep], self.tracked[keep])


@dataclass(frozen=True)
class Moves:
    """Where the tracker takes each row of a frame: boxes of the next frame (N, 4) and the expected IoU (N,)."""

    ends: Tensor
    quality: Tensor


def step(
    previous: Rows,
    detections: Rows,
    track: Callable[[Tensor], tuple[Tensor, Tensor]],
    classify: Callable[[Tensor], Tensor],
    rules: Rules,
) -> tuple[Rows, Moves]:
    """The rows of a frame, tracked ones first, and the moves of all rows of the frame before, also those that ended.

    previous: what the frame before came to (no rows at a clip's start); detections: the detector's own of this frame.
    track: boxes (U, 4) of the frame before -> where they are in this one, clipped to it (U, 4), and their expected IoU
    (U,). classify: boxes (K, 4) of this frame -> scores of the foreground classes (K, C). Neither is asked about no
    boxes.
    """
    if not len(previous.boxes):
        return detections, Moves(previous.boxes, previous.scores)
    # A box of several classes is tracked once.
    boxes, box_of_row = previous.boxes.unique(dim=0, return_inverse=True)  # (U, 4), (N,)
    ends, quality = track(boxes)
    moves = Moves(ends[box_of_row], quality[box_of_row])
    scores = torch.zeros_like(quality).scatter_reduce(0, box_of_row, previous.scores, "amax")
    kept = accept(ends, quality, scores, rules)
    if not len(kept):
        return detections, moves
    tracked = rows(ends[kept], classify(ends[kept]), rules.min_score)
    new = detections.where((box_iou(detections.boxes, ends[kept]) < rules.merge_iou).all(dim=1))
    return joined(tracked, new), moves


def accept(ends: Tensor, quality: Tensor, scores: Tensor, rules: Rules) -> Tensor:
    """Which tracked boxes (U, 4) stay, the surest first: an index (K,).

    quality: (U,), the IoU that the tracker expects; scores: (U,), the best class score where they come from.
    """
    sure = torch.nonzero((scores > rules.min_score) & (quality >= rules.min_quality) & has_area(ends)).squeeze(1)
    return sure[nms(ends[sure], quality[sure], rules.nms_iou)[: rules.max_tracked]]


def rows(boxes: Tensor, class_scores: Tensor, min_score: float) -> Rows:
    """A row for each class of tracked boxes (K, 4) that scores (K, C) above `min_score`, and for each box's best."""
    best = class_scores.argmax(dim=1, keepdim=True)  # (K, 1)
    box, label = (class_scores > min_score).scatter(1, best, True).nonzero(as_tuple=True)
    return Rows(boxes[box], class_scores[box, label], label, torch.ones_like(label, dtype=torch.bool))


def joined(first: Rows, second: Rows) -> Rows:
    """The rows of one and then of the other."""
    return Rows(
        torch.cat([first.boxes, second.boxes]),
        torch.cat([first.scores, second.scores]),
        torch.cat([first.labels, second.labels]),
        torch.cat([first.tracked, second.tracked]),
    )
