"""A small two-stage detector, opened up: what it says of every anchor, and of any boxes it is given.

Faster R-CNN (Ren et al., 2015) at the size of `small_detector`: the same body, its pyramid merged into one map of
stride 8, one objectness an anchor, RoIAlign, two fully connected layers, one of C + 1 classes and one box for all of
them. What differs from the paper: nothing is sampled, so nothing is random; all anchors and regions teach, for they are
few, or the hardest regions (OHEM). Losses are those of `small_detector`, focal for objectness, GIoU for boxes, summed
by the number that find a box.

Legend: N frames, A anchors, R regions of one frame, C foreground classes, D channels, E embedding, h x w cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou, generalized_box_iou_loss, nms, roi_align, sigmoid_focal_loss

from models.parts.anchors import AnchorOutputs, PlainDetections, clip, detections, has_area
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

STRIDE, COARSEST = 8, 16
ANCHOR_SIDES = (24.0, 40.0)  # px, each at every aspect of `small_detector`
POOLED = 4  # cells of a region's side: objects of some 33 px are 4 cells of the features wide
SAMPLES = 2  # of RoIAlign in a cell, along each axis
REGION_IOU = 0.5  # a region that overlaps a true box so far is to find it, any other is background


@dataclass(frozen=True)
class Dense:
    """The first stage: what it says of every anchor of N frames of one size.

    size: (height, width) of the frames. features: (N, D, h, w), what the head pools from. tower: (N, D, h, w), the last
    layer before logits and deltas, for embeddings of anchors. anchors: (A, 4) xyxy in pixels, cell by cell, row by row,
    those of a cell side by side. logits: (N, A), of objectness. deltas: (N, A, 4), see `BoxDeltas`.
    """

    size: tuple[int, int]
    features: Tensor
    tower: Tensor
    anchors: Tensor
    logits: Tensor
    deltas: Tensor


@dataclass(frozen=True)
class Regions:
    """The second stage: what it says of boxes (R, 4) of one frame.

    pooled: (R, D, 4, 4). embeddings: (R, E), the last layer before logits and deltas, not negative. logits: (R, C + 1),
    background first. deltas: (R, 4), of one box for all classes.
    """

    boxes: Tensor
    pooled: Tensor
    embeddings: Tensor
    logits: Tensor
    deltas: Tensor

    def refined(self, size: tuple[int, int]) -> Tensor:
        """Where the deltas move the boxes, cut at a frame of `size` (height, width): (R, 4)."""
        return clip(DELTAS.decode(self.boxes, self.deltas), size)


class SmallTwoStage(nn.Module):
    """Frames of any size in, regions out; each step can be called by itself.

    num_classes: C, foreground only. widths: of the body's stages. channels: D. hidden: E.
    """

    def __init__(
        self,
        num_classes: int,
        widths: tuple[int, int, int, int] = (16, 32, 64, 128),
        channels: int = 64,
        hidden: int = 256,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.body = nn.Sequential(
            convolution(3, widths[0], 2),
            Residual(widths[0], widths[0], 1),
            Residual(widths[0], widths[1], 2),
            Residual(widths[1], widths[2], 2),  # stride 8
        )
        self.coarse = Residual(widths[2], widths[3], 2)  # stride 16
        self.lateral = nn.ModuleList([nn.Conv2d(width, channels, 1) for width in widths[2:]])
        self.smooth = convolution(channels, channels, 1)
        self.tower = convolution(channels, channels, 1)
        per_cell = len(ANCHOR_SIDES) * len(ASPECTS)
        self.objectness = nn.Conv2d(channels, per_cell, 1)
        self.anchor_deltas = nn.Conv2d(channels, per_cell * 4, 1)
        self.to_pool = convolution(channels, channels, 1)
        self.fc1 = nn.Linear(channels * POOLED**2, hidden)
        self.fc2 = nn.Linear(hidden, hidden)
        self.classes = nn.Linear(hidden, num_classes + 1)
        self.deltas = nn.Linear(hidden, 4)
        for layer in (self.objectness, self.anchor_deltas, self.classes, self.deltas):
            nn.init.normal_(layer.weight, std=0.01 if layer is not self.deltas else 0.001)
            assert layer.bias is not None
            nn.init.constant_(layer.bias, PRIOR if layer is self.objectness else 0.0)

    def features(self, frames: Tensor) -> Tensor:
        """uint8 (N, 3, H, W) -> (N, D, h, w) at stride 8, of frames padded to a multiple of 16."""
        height, width = frames.shape[-2:]
        x = (frames.float() / 255 - 0.45) / 0.225
        x = F.pad(x, (0, -width % COARSEST, 0, -height % COARSEST))
        fine = self.body(x.contiguous(memory_format=torch.channels_last))
        top = self.lateral[1](self.coarse(fine))
        return self.smooth(self.lateral[0](fine) + F.interpolate(top, scale_factor=2.0, mode="nearest"))

    def dense(self, features: Tensor, size: tuple[int, int]) -> Dense:
        """The first stage on features (N, D, h, w) of frames of `size` (height, width)."""
        tower = self.tower(features)
        cells = features.shape[-2:]
        of_sides = [grid_anchors(cells, STRIDE, side).view(-1, len(ASPECTS), 4) for side in ANCHOR_SIDES]
        return Dense(
            size=size,
            features=features,
            tower=tower,
            anchors=torch.cat(of_sides, dim=1).view(-1, 4).to(features.device),
            logits=per_anchor(self.objectness(tower), 1).squeeze(-1),  # (N, A)
            deltas=per_anchor(self.anchor_deltas(tower), 4),  # (N, A, 4)
        )

    def head(self, features: Tensor, boxes: Sequence[Tensor]) -> list[Regions]:
        """The second stage on any boxes (R, 4) xyxy in pixels, a tensor for each of the frames of features."""
        counts = [len(of_frame) for of_frame in boxes]
        # of all frames' regions: (R, D, 4, 4)
        pooled = roi_align(self.to_pool(features), list(boxes), POOLED, 1 / STRIDE, SAMPLES, aligned=True)
        embeddings = F.relu(self.fc2(F.relu(self.fc1(pooled.flatten(1)))))
        outputs = (pooled, embeddings, self.classes(embeddings), self.deltas(embeddings))
        split = zip(boxes, *(output.split(counts) for output in outputs), strict=True)
        return [Regions(*of_frame) for of_frame in split]

    def losses(
        self,
        frames: Tensor,
        targets: Sequence[dict[str, Tensor]],
        *,
        num_proposals: int = 16,
        hardest: int | None = None,
    ) -> dict[str, Tensor]:
        """Of anchors: `objectness` (focal) and `anchor_box` (GIoU); of regions: `class` (cross-entropy), `box` (GIoU).

        frames: uint8 (N, 3, H, W); targets: a frame's boxes (M, 4), labels (M,) 0-based, and optionally ignore (M,).
        num_proposals: each frame's regions are so many proposals, and its true boxes. hardest: of all frames' regions
        only so many of the largest loss teach (OHEM, Shrivastava et al., 2016; proposals overlap by .7 at most, and no
        further suppression is done); None for all.
        """
        dense = self.dense(self.features(frames), (frames.shape[-2], frames.shape[-1]))
        regions = self.head(dense.features, training_boxes(dense, targets, num_proposals))
        return anchor_losses(dense, targets) | region_losses(regions, targets, hardest)


def proposals(
    dense: Dense,
    logits: Tensor | None = None,
    *,
    num_proposals: int = 32,
    top_k: int = 256,
    max_iou: float = 0.7,
) -> list[Tensor]:
    """Each frame's boxes (P, 4) for the second stage, best first, P <= num_proposals; they carry no gradient.

    logits: (N, A) of objectness in the place of the first stage's own, such as conditioned ones. num_proposals: on
    synthetic-v1 16 find as much as 100 (mAP within .01).
    top_k: of the best anchors enter the non-maximum suppression at `max_iou`.
    """
    logits = (dense.logits if logits is None else logits).detach()
    best, index = logits.topk(min(top_k, logits.shape[1]), dim=1)  # (N, k), best first
    boxes = DELTAS.decode(dense.anchors[index], dense.deltas.detach().gather(1, index[..., None].expand(-1, -1, 4)))
    found = []
    for frame_boxes, frame_logits in zip(clip(boxes, dense.size), best, strict=True):
        sized = has_area(frame_boxes)
        frame_boxes, frame_logits = frame_boxes[sized], frame_logits[sized]
        found.append(frame_boxes[nms(frame_boxes, frame_logits, max_iou)[:num_proposals]])
    return found


def training_boxes(dense: Dense, targets: Sequence[dict[str, Tensor]], num_proposals: int) -> list[Tensor]:
    """Each frame's proposals and, after them, its true boxes but for those to ignore: what the second stage learns on.

    targets: see `SmallTwoStage.losses`.
    """
    wanted = [target["boxes"][~target["ignore"]] if "ignore" in target else target["boxes"] for target in targets]
    found = proposals(dense, num_proposals=num_proposals)
    return [torch.cat(boxes) for boxes in zip(found, wanted, strict=True)]


def detected(
    regions: Regions,
    size: tuple[int, int],
    probabilities: Tensor | None = None,
    *,
    min_score: float = 0.02,
    max_iou: float = 0.5,
    top_k: int = 100,
    max_detections: int = 100,
) -> tuple[PlainDetections, Tensor]:
    """A frame's detections after class-wise suppression, and the probabilities (N, C + 1) of the region of each.

    probabilities: (R, C + 1), background first, in the place of the softmax of the logits, such as conditioned ones.
    A region can be several detections, of one class each; `anchor` of the detections is its index.
    """
    if probabilities is None:
        probabilities = regions.logits.softmax(dim=1)
    outputs = AnchorOutputs(regions.boxes, regions.refined(size), probabilities[:, 1:], (len(regions.boxes),))
    found = detections(
        outputs, min_score=min_score, max_iou=max_iou, top_k=top_k, max_detections=max_detections, per="class"
    )
    return found, probabilities[found.anchor]


def anchor_losses(dense: Dense, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The first stage's `objectness` and `anchor_box`, each a sum over anchors by the number of those that find a box.

    targets: see `SmallTwoStage.losses`.
    """
    matched = torch.stack([assign(dense.anchors, target) for target in targets])  # (N, A)
    positive, counted = matched >= 0, matched >= NEGATIVE
    num_positive = positive.sum().clamp(min=1)
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

    targets, hardest: see `SmallTwoStage.losses`.
    """
    boxes, deltas, logits = (
        torch.cat([getattr(of_frame, name) for of_frame in regions]) for name in ("boxes", "deltas", "logits")
    )
    matched = [match(of_frame.boxes, target) for of_frame, target in zip(regions, targets, strict=True)]
    truth = torch.cat([t["boxes"][m[m >= 0]] for m, t in zip(matched, targets, strict=True)])
    labels = torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)  # background
    positive = torch.cat(matched) >= 0
    labels[positive] = 1 + torch.cat([t["labels"][m[m >= 0]] for m, t in zip(matched, targets, strict=True)])
    class_loss = F.cross_entropy(logits, labels, reduction="none") * (torch.cat(matched) >= NEGATIVE)
    box_loss = torch.zeros_like(class_loss)
    box_loss[positive] = 2 * generalized_box_iou_loss(DELTAS.decode(boxes[positive], deltas[positive]), truth)
    if hardest is not None:
        chosen = (class_loss + box_loss).detach().topk(min(hardest, len(labels))).indices
        class_loss, box_loss, positive = class_loss[chosen], box_loss[chosen], positive[chosen]
    num_positive = positive.sum().clamp(min=1)
    return {"class": class_loss.sum() / num_positive, "box": box_loss.sum() / num_positive}


def match(boxes: Tensor, target: dict[str, Tensor]) -> Tensor:
    """The true box that each region (R, 4) is to find: the index (R,) of the nearest, or NEGATIVE, or IGNORED.

    What lies in boxes to ignore is no mistake, by the rule of anchors (`small_detector.assign`).
    """
    truth = target["boxes"]
    ignore = target.get("ignore", torch.zeros(len(truth), dtype=torch.bool, device=truth.device))
    matched = assign(boxes, {"boxes": truth[ignore], "ignore": ignore[ignore]})  # NEGATIVE or IGNORED
    wanted = torch.nonzero(~ignore).squeeze(1)
    if len(wanted):
        best, index = box_iou(boxes, truth[wanted]).max(dim=1)
        matched = torch.where(best >= REGION_IOU, wanted[index], matched)
    return matched
