"""A small two-stage detector: what trains on a CPU in minutes and runs in milliseconds.

Faster R-CNN (Ren et al., 2015) at the size of `small_detector`: the same body, its pyramid merged into one map of
stride 8 for the anchors and one of stride 4 for RoIAlign, one objectness an anchor, two fully connected layers, one of
C + 1 classes and one box for all of them. What differs from the paper: regions are pooled from a finer map than anchors
look at, for the patterns that tell classes apart are finer than boxes (classes come sooner), while the coarse map in it
sees beyond the region (boxes come out better); nothing is sampled, so nothing is random; all anchors and regions teach,
for they are few, or the hardest regions (OHEM). Losses are those of `small_detector`, focal for objectness, GIoU for
boxes, summed by the number that find a box.

Legend: N frames, A anchors, R regions of one frame, C foreground classes, D channels, E embedding, h x w cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss, roi_align, sigmoid_focal_loss

from models.parts.region_losses import BACKGROUND, IGNORED
from models.parts.region_losses import assign as assign_regions
from models.parts.region_losses import hardest as hardest_of
from models.parts.small_detector import (
    ASPECTS,
    DELTAS,
    NEGATIVE,
    PRIOR,
    Residual,
    assign,
    convolution,
    grid_anchors,
    per_anchor,
)
from models.parts.two_stage import Dense, Features, Limits, Regions, TwoStage, with_truth
from models.parts.workers import over_workers

FINE, STRIDE, COARSEST = 4, 8, 16  # px a cell: of what regions are pooled from, what anchors look at, the padding
ANCHOR_SIDES = (24.0, 40.0)  # px, each at every aspect of `small_detector`
POOLED = 4  # cells of a region's side
SAMPLES = 2  # of RoIAlign in a cell, along each axis: objects of some 33 px are 8 cells of the fine map wide
# 16 proposals find as much as 100 on synthetic-v1 (mAP within .01). As many teach as are asked about: background that
# the second stage never saw is lifted by whatever tracklet it looks like.
LIMITS = Limits(per_level=256, num_proposals=32, min_score=0.02)


class SmallTwoStage(TwoStage):
    """Frames of any size in, regions out.

    num_classes: C, foreground only. widths: of the body's stages. channels: D. hidden: E. hardest: of each
    frame's regions only so many of the largest loss teach (OHEM, see `region_losses`); None for all.
    anchor_sides: in px.
    """

    anchor_sides = ANCHOR_SIDES

    def __init__(
        self,
        num_classes: int,
        widths: tuple[int, int, int, int] = (16, 32, 64, 128),
        channels: int = 64,
        hidden: int = 256,
        hardest: int | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.resize = {}
        self.tower_channels = self.pooled_channels = channels
        self.per_cell = len(ANCHOR_SIDES) * len(ASPECTS)
        self.pooled_side = POOLED
        self.hidden = hidden
        self.hardest = hardest
        self.limits = limits
        self.body = nn.Sequential(
            convolution(3, widths[0], 2),
            Residual(widths[0], widths[0], 1),
            Residual(widths[0], widths[1], 2),  # stride 4
            Residual(widths[1], widths[2], 2),  # stride 8
        )
        self.coarse = Residual(widths[2], widths[3], 2)  # stride 16
        self.lateral = nn.ModuleList([nn.Conv2d(width, channels, 1) for width in widths[1:]])
        self.smooth = convolution(channels, channels, 1)
        self.tower = convolution(channels, channels, 1)
        self.objectness = nn.Conv2d(channels, self.per_cell, 1)
        self.anchor_deltas = nn.Conv2d(channels, self.per_cell * 4, 1)
        self.to_pool = convolution(channels, channels, 1)
        self.fc1 = nn.Linear(channels * POOLED**2, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.classes = nn.Linear(hidden, num_classes + 1)
        self.deltas = nn.Linear(hidden, 4)
        for layer in (self.objectness, self.anchor_deltas, self.classes, self.deltas):
            nn.init.normal_(layer.weight, std=0.01 if layer is not self.deltas else 0.001)
            assert layer.bias is not None
            nn.init.constant_(layer.bias, PRIOR if layer is self.objectness else 0.0)

    @property
    def network(self) -> nn.Module:
        return self

    def features(self, frames: Tensor) -> Features:
        """uint8 (N, 3, H, W), padded to multiples of 16 -> (N, D, 2h, 2w) at stride 4 and (N, D, h, w) at stride 8."""
        height, width = frames.shape[-2:]
        x = (frames.float() / 255 - 0.45) / 0.225
        x = F.pad(x, (0, -width % COARSEST, 0, -height % COARSEST))
        fine = self.body[:-1](x.contiguous(memory_format=torch.channels_last))
        middle = self.body[-1](fine)
        merged = self.smooth(self.lateral[1](middle) + doubled(self.lateral[2](self.coarse(middle))))
        return self.lateral[0](fine) + doubled(merged), merged

    def dense(self, features: Features, size: tuple[int, int]) -> Dense:
        tower = self.tower(features[-1])
        cells = features[-1].shape[-2:]
        of_sides = [grid_anchors(cells, STRIDE, side).view(-1, len(ASPECTS), 4) for side in ANCHOR_SIDES]
        anchors = torch.cat(of_sides, dim=1).view(-1, 4).to(tower.device)
        return Dense(
            size=size,
            towers=(tower,),
            anchors=anchors,
            logits=per_anchor(self.objectness(tower), 1).squeeze(-1).float(),  # (N, A)
            deltas=per_anchor(self.anchor_deltas(tower), 4).float(),  # (N, A, 4)
            coder=DELTAS,
            levels=(len(anchors),),
        )

    def head(self, features: Features, boxes: Sequence[Tensor], size: tuple[int, int]) -> list[Regions]:
        counts = [len(of_frame) for of_frame in boxes]
        # of all frames' regions: (R, D, 4, 4)
        pooled = roi_align(self.to_pool(features[0]), list(boxes), POOLED, 1 / FINE, SAMPLES, aligned=True)
        embeddings = F.relu(self.fc2(F.relu(self.fc1(pooled.flatten(1)))))
        logits, deltas = self.classes(embeddings).float(), self.deltas(embeddings)[:, None].float()
        rows = zip(boxes, *(each.split(counts) for each in (pooled, embeddings, logits, deltas)), strict=True)
        return [Regions(box, pool, embedding, logit, delta, DELTAS) for box, pool, embedding, logit, delta in rows]

    def training_boxes(self, dense: Dense, targets: Sequence[dict[str, Tensor]]) -> list[Tensor]:
        """Each frame's proposals and, after them, its true boxes but for those to ignore."""
        return with_truth(self.proposals(dense), targets)

    def anchor_losses(self, dense: Dense, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """See `anchor_losses`."""
        return anchor_losses(dense, targets)

    def region_losses(self, regions: Sequence[Regions], targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """See `region_losses`."""
        return region_losses(regions, targets, self.hardest)


def doubled(level: Tensor) -> Tensor:
    """(N, D, h, w) -> (N, D, 2h, 2w), each cell four times."""
    return F.interpolate(level, scale_factor=2.0, mode="nearest")


def anchor_losses(dense: Dense, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The first stage's `objectness` and `anchor_box`, each a sum over anchors by the number of those that find a box.

    targets: see `TwoStage.losses`.
    """
    matched = torch.stack([assign(dense.anchors, target) for target in targets])  # (N, A)
    positive, counted = matched >= 0, matched >= NEGATIVE
    num_positive = over_workers(positive.sum())
    focal = sigmoid_focal_loss(dense.logits, positive.float(), alpha=0.5, gamma=1.5)
    decoded = DELTAS.decode(dense.anchors.expand_as(dense.deltas)[positive], dense.deltas[positive])
    boxes = torch.cat([t["boxes"][m[m >= 0]] for t, m in zip(targets, matched, strict=True)])
    return {
        "objectness": focal[counted].sum() / num_positive,
        "anchor_box": 2 * generalized_box_iou_loss(decoded, boxes, reduction="sum") / num_positive,
    }


def region_losses(
    regions: Sequence[Regions], targets: Sequence[dict[str, Tensor]], hardest: int | None = None
) -> dict[str, Tensor]:
    """The second stage's `class` and `box`, each a sum over regions by the number of those that find a box.

    targets: see `TwoStage.losses`; hardest: see `SmallTwoStage`.
    """
    boxes, deltas, logits = (
        torch.cat([getattr(of_frame, name) for of_frame in regions]) for name in ("boxes", "deltas", "logits")
    )
    assigned = [assign_regions(of_frame.boxes, target) for of_frame, target in zip(regions, targets, strict=True)]
    outputs = torch.cat([of_frame for of_frame, _ in assigned])  # (R,)
    positive = outputs > BACKGROUND
    truth = torch.cat([t["boxes"][near[out > BACKGROUND]] for t, (out, near) in zip(targets, assigned, strict=True)])
    class_loss = F.cross_entropy(logits, outputs, ignore_index=IGNORED, reduction="none")
    box_loss = torch.zeros_like(class_loss)
    box_loss[positive] = 2 * generalized_box_iou_loss(DELTAS.decode(boxes[positive], deltas[positive, 0]), truth)
    if hardest is not None:
        chosen = hardest_of(class_loss + box_loss, [len(of_frame.boxes) for of_frame in regions], hardest)
        class_loss, box_loss, positive = class_loss[chosen], box_loss[chosen], positive[chosen]
    num_positive = over_workers(positive.sum())
    return {"class": class_loss.sum() / num_positive, "box": box_loss.sum() / num_positive}
