"""Raw outputs of single-shot detectors, one row an anchor, and how they become detections that know their anchor.

Legend: A anchors, C foreground classes, N detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import batched_nms

MIN_SIDE = 0.01  # px; boxes thinner than this (cut away at the frame's border) are no boxes


@dataclass(frozen=True)
class AnchorOutputs:
    """What a detector says of every anchor of one frame.

    anchors: (A, 4), where the anchors lie; boxes: (A, 4), what each regressed to, clipped to the frame; both xyxy in
    pixels of the frame given. scores: (A, C) in [0, 1]. levels: how many anchors each feature level has; sums to A.
    """

    anchors: Tensor
    boxes: Tensor
    scores: Tensor
    levels: tuple[int, ...]

    def __post_init__(self) -> None:
        assert self.anchors.shape == self.boxes.shape == (len(self.scores), 4)
        assert sum(self.levels) == len(self.scores)


@dataclass(frozen=True)
class PlainDetections:
    """Detections of one frame after non-maximum suppression, best first: boxes (N, 4), scores, labels, anchor (N,)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    anchor: Tensor

    def where(self, keep: Tensor) -> PlainDetections:
        """Those that a mask or an index chooses."""
        return PlainDetections(self.boxes[keep], self.scores[keep], self.labels[keep], self.anchor[keep])


def has_area(boxes: Tensor) -> Tensor:
    """Which boxes (N, 4) are wider and higher than MIN_SIDE: bool (N,)."""
    return ((boxes[:, 2:] - boxes[:, :2]) > MIN_SIDE).all(dim=1)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (..., 4) cut at a frame of `size` (height, width)."""
    height, width = size
    return torch.stack(
        [
            boxes[..., 0].clamp(0, width),
            boxes[..., 1].clamp(0, height),
            boxes[..., 2].clamp(0, width),
            boxes[..., 3].clamp(0, height),
        ],
        dim=-1,
    )


def detections(
    outputs: AnchorOutputs,
    *,
    min_score: float,
    max_iou: float,
    top_k: int,
    max_detections: int,
    per: Literal["class", "level"],
) -> PlainDetections:
    """The usual post-processing, class by class, with the index of the anchor carried through.

    min_score: kept above it. per, top_k: at most so many candidates of each class (SSD), or of each feature level
    over all classes (RetinaNet), enter the class-wise non-maximum suppression at `max_iou`.
    """
    choose = _top_of_each_class if per == "class" else _top_of_each_level
    scores, anchor, labels = choose(outputs.scores, outputs.levels, top_k)
    above = scores > min_score
    scores, anchor, labels = scores[above], anchor[above], labels[above]
    boxes = outputs.boxes[anchor]
    keep = batched_nms(boxes, scores, labels, max_iou)[:max_detections]
    found = PlainDetections(boxes[keep], scores[keep], labels[keep], anchor[keep])
    return found.where(has_area(found.boxes))


def _top_of_each_class(scores: Tensor, levels: Sequence[int], top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    best, anchor = scores.topk(min(top_k, len(scores)), dim=0)  # (k, C)
    labels = torch.arange(scores.shape[1], device=scores.device).expand_as(anchor)
    # class by class, so that equal scores keep the order that torchvision's SSD gives them
    return best.T.flatten(), anchor.T.flatten(), labels.T.flatten()


def _top_of_each_level(scores: Tensor, levels: Sequence[int], top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    num_classes = scores.shape[1]
    chosen, first = [], 0
    for count in levels:
        best, index = scores[first : first + count].flatten().topk(min(top_k, count * num_classes))
        chosen.append((best, index // num_classes + first, index % num_classes))
        first += count
    best, anchor, labels = (torch.cat(part) for part in zip(*chosen, strict=True))
    return best, anchor, labels
