"""Two-stage detectors, opened up: what the first stage says of every anchor, and the second of any boxes it is given.

Faster R-CNN (Ren et al., 2015) in steps that can be called by themselves, so that what a system adds (scores
conditioned on tracklets, boxes from a tracker) comes between them. The steps that are the same for every network are
here; `small_two_stage` and `faster_rcnn` are networks.

Legend: N frames, A anchors, R regions of one frame, C foreground classes, D channels, E embedding, h x w cells.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from models.parts.anchors import PlainDetections, clip, has_area
from models.parts.box_deltas import BoxDeltas

Features = tuple[Tensor, ...]  # (N, D, h, w) each, of N frames


@dataclass(frozen=True)
class Dense:
    """The first stage: what it says of every anchor of N frames of one size.

    size: (height, width) of the frames. towers: (N, D, h, w) for each level, the last layer before logits and deltas,
    for embeddings of anchors. anchors: (A, 4) xyxy in pixels, level by level, cell by cell, row by row, those of a cell
    side by side. logits: (N, A), of objectness. deltas: (N, A, 4), by `coder`. levels: the anchors of each.
    Logits and deltas are float32, whatever the layers are of: losses and boxes need it.
    """

    size: tuple[int, int]
    towers: Features
    anchors: Tensor
    logits: Tensor
    deltas: Tensor
    coder: BoxDeltas
    levels: tuple[int, ...]

    def of(self, frames: slice | list[int]) -> Dense:
        """What it says of some of the frames."""
        towers = tuple(tower[frames] for tower in self.towers)
        return replace(self, towers=towers, logits=self.logits[frames], deltas=self.deltas[frames])


@dataclass(frozen=True)
class Regions:
    """The second stage: what it says of boxes (R, 4) of one frame.

    pooled: (R, D, k, k). embeddings: (R, E), the last layer before logits and deltas, not negative. logits: (R, C + 1),
    background first. deltas: (R, 1, 4), of one box for all classes, or (R, C, 4), of one for each; by `coder`. Both are
    float32, whatever the layers are of.
    """

    boxes: Tensor
    pooled: Tensor
    embeddings: Tensor
    logits: Tensor
    deltas: Tensor
    coder: BoxDeltas

    def where(self, keep: Tensor | slice) -> Regions:
        """Those that a mask, an index or a slice chooses."""
        names = ("boxes", "pooled", "embeddings", "logits", "deltas")
        return replace(self, **{name: getattr(self, name)[keep] for name in names})

    def refined(self, size: tuple[int, int]) -> Tensor:
        """Where the deltas move the boxes, cut at a frame of `size` (height, width): (R, C, 4), for each class."""
        num_classes = self.logits.shape[1] - 1
        moved = clip(self.coder.decode(self.boxes[:, None], self.deltas), size)
        return moved.expand(-1, num_classes, -1)


@dataclass(frozen=True)
class Limits:
    """How many boxes go from stage to stage, and what of them is suppressed.

    per_level: of the best anchors of a level enter the suppression at `proposal_iou`, of which num_proposals come out;
    min_objectness: what an anchor needs for it, in [0, 1]. min_score, max_iou, max_detections: of what the second stage
    gives out.
    """

    per_level: int = 1000
    proposal_iou: float = 0.7
    num_proposals: int = 1000
    min_objectness: float = 0.0
    min_score: float = 0.05
    max_iou: float = 0.5
    max_detections: int = 100


class TwoStage(nn.Module, ABC):
    """What all two-stage detectors have.

    num_classes: C. resize: how large it wants its frames, as keywords of `records.Resize`. tower_channels: D of
    `Dense.towers`; per_cell: anchors of a cell, the same on every level. pooled_channels, pooled_side: D and k of
    `Regions.pooled`; hidden: E of `Regions.embeddings`.
    """

    num_classes: int
    resize: Mapping[str, Any]
    tower_channels: int
    per_cell: int
    pooled_channels: int
    pooled_side: int
    hidden: int
    limits: Limits

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """The module whose state dict is what weight files hold."""

    @abstractmethod
    def features(self, frames: Tensor) -> Features:
        """uint8 (N, 3, H, W) -> what both stages work on."""

    @abstractmethod
    def dense(self, features: Features, size: tuple[int, int]) -> Dense:
        """The first stage on features of frames of `size` (height, width)."""

    @abstractmethod
    def head(self, features: Features, boxes: Sequence[Tensor], size: tuple[int, int]) -> list[Regions]:
        """The second stage on any boxes (R, 4) xyxy in pixels, a tensor for each of the frames of features."""

    @abstractmethod
    def training_boxes(self, dense: Dense, targets: Sequence[dict[str, Tensor]]) -> list[Tensor]:
        """Each frame's boxes (R, 4) that the second stage learns on; targets: see `losses`."""

    @abstractmethod
    def anchor_losses(self, dense: Dense, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The first stage's losses, each a scalar; targets: see `losses`."""

    @abstractmethod
    def region_losses(self, regions: Sequence[Regions], targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The second stage's losses, each a scalar; targets: see `losses`."""

    def losses(self, frames: Tensor, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Both stages' losses, each a scalar.

        frames: uint8 (N, 3, H, W); targets: a frame's boxes (M, 4), labels (M,) 0-based, and optionally ignore (M,).
        """
        features, size = self.features(frames), (frames.shape[-2], frames.shape[-1])
        dense = self.dense(features, size)
        regions = self.head(features, self.training_boxes(dense, targets), size)
        return self.anchor_losses(dense, targets) | self.region_losses(regions, targets)

    def proposals(self, dense: Dense, logits: Tensor | None = None) -> list[Tensor]:
        """Each frame's boxes (P, 4) for the second stage, best first; see `proposals`."""
        return proposals(dense, logits, self.limits)

    def detected(
        self, regions: Regions, size: tuple[int, int], probabilities: Tensor | None = None
    ) -> tuple[PlainDetections, Tensor]:
        """A frame's detections and the probabilities of each one's region; see `detected`."""
        return detected(regions, size, probabilities, self.limits)

    def regressed(self, features: Features, boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Where the second stage moves any boxes (K, 4) of a frame, for each class, and its scores of where they were.

        features: of that frame alone, of `size` (height, width). Gives (K, C, 4), cut at the frame, and probabilities
        (K, C + 1), background first.
        """
        (regions,) = self.head(features, [boxes], size)
        return regions.refined(size), regions.logits.softmax(dim=1)


def proposals(dense: Dense, logits: Tensor | None, limits: Limits) -> list[Tensor]:
    """Each frame's boxes (P, 4) for the second stage, best first, P <= num_proposals; they carry no gradient.

    logits: (N, A) of objectness in the place of the first stage's own, such as conditioned ones.
    """
    logits = (dense.logits if logits is None else logits).detach()
    found = []
    for frame_logits, frame_deltas in zip(logits, dense.deltas.detach(), strict=True):
        best, index, level, first = [], [], [], 0
        for number, count in enumerate(dense.levels):
            top, chosen = frame_logits[first : first + count].topk(min(limits.per_level, count))
            best.append(top)
            index.append(chosen + first)
            level.append(torch.full_like(chosen, number))
            first += count
        scores, anchor, group = torch.cat(best), torch.cat(index), torch.cat(level)
        boxes = clip(dense.coder.decode(dense.anchors[anchor], frame_deltas[anchor]), dense.size)
        kept = has_area(boxes) & (scores.sigmoid() >= limits.min_objectness)
        boxes, scores, group = boxes[kept], scores[kept], group[kept]
        found.append(boxes[batched_nms(boxes, scores, group, limits.proposal_iou)[: limits.num_proposals]])
    return found


def with_truth(boxes: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]) -> list[Tensor]:
    """Each frame's boxes (R, 4) and, after them, its true ones but for those to ignore; targets: see `losses`."""
    true = [target["boxes"][~target["ignore"]] if "ignore" in target else target["boxes"] for target in targets]
    return [torch.cat(pair) for pair in zip(boxes, true, strict=True)]


def detected(
    regions: Regions, size: tuple[int, int], probabilities: Tensor | None, limits: Limits
) -> tuple[PlainDetections, Tensor]:
    """A frame's detections after class-wise suppression, best first, and the probabilities (N, C + 1) of each's region.

    size: (height, width) of the frame. probabilities: (R, C + 1), background first, in the place of the softmax of the
    logits, such as conditioned ones. A region can be several detections, of one class each; `anchor` of the detections
    is its index.
    """
    if probabilities is None:
        probabilities = regions.logits.softmax(dim=1)
    boxes = regions.refined(size)  # (R, C, 4)
    region, labels = torch.nonzero(probabilities[:, 1:] > limits.min_score, as_tuple=True)
    found = PlainDetections(boxes[region, labels], probabilities[region, labels + 1], labels, region)
    found = found.where(has_area(found.boxes))
    found = found.where(batched_nms(found.boxes, found.scores, found.labels, limits.max_iou)[: limits.max_detections])
    return found, probabilities[found.anchor]
