"""A detector of half a million parameters that a CPU trains in minutes and runs in milliseconds.

A residual body of width 16, a two-level feature pyramid and one-convolution heads. An anchor's score for a class is
its objectness times its class softmax: at this size one focal objectness and a softmax on the positives learn several
times faster than a focal sigmoid for each class.

Legend: N frames, A anchors, C foreground classes, M ground-truth boxes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from models.parts.anchors import AnchorOutputs, clip
from models.parts.box_deltas import BoxDeltas
from models.parts.workers import over_workers

STRIDES = (8, 16)
ANCHOR_SIDES = (24.0, 40.0)  # px, the side of each level's square anchor
ASPECTS = (0.5, 1.0, 2.0)  # height / width, at equal area
POSITIVE_IOU, NEGATIVE_IOU = 0.4, 0.3  # lower than usual: an anchor that an object has left should still find it
IGNORED_SHARE = 0.5  # an anchor that lies so far inside an ignored box teaches nothing
PRIOR = -math.log((1 - 0.01) / 0.01)  # objectness starts at .01 everywhere (RetinaNet, section 4.1)
DELTAS = BoxDeltas()


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut (He et al., 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs, stride)
        self.second = convolution(outputs, outputs, 1, activation=False)
        self.shortcut = (
            nn.Identity()
            if inputs == outputs and stride == 1
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.shortcut(x))


def convolution(inputs: int, outputs: int, stride: int, activation: bool = True) -> nn.Sequential:
    """3x3 convolution, batch norm and, unless told otherwise, ReLU."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([nn.ReLU()] if activation else []))


class SmallDetector(nn.Module):
    """Frames of any size in, objectness, class and box of every anchor out.

    num_classes: C, foreground only. width: channels after the stem. channels: of the pyramid and the heads.
    anchor_sides: in px.
    """

    anchor_sides = ANCHOR_SIDES

    def __init__(
        self, num_classes: int, widths: tuple[int, int, int, int] = (16, 32, 64, 128), channels: int = 64
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem = convolution(3, widths[0], 2)
        self.stage_1 = Residual(widths[0], widths[0], 1)
        self.stage_2 = Residual(widths[0], widths[1], 2)
        self.stage_3 = Residual(widths[1], widths[2], 2)  # stride 8
        self.stage_4 = Residual(widths[2], widths[3], 2)  # stride 16
        self.lateral = nn.ModuleList([nn.Conv2d(width, channels, 1) for width in widths[2:]])
        self.smooth = nn.ModuleList([convolution(channels, channels, 1) for _ in STRIDES])
        self.tower = convolution(channels, channels, 1)
        self.class_tower = convolution(channels, channels, 1)
        anchors = len(ASPECTS)
        self.objectness = nn.Conv2d(channels, anchors, 3, padding=1)
        self.classes = nn.Conv2d(channels, anchors * num_classes, 3, padding=1)
        self.deltas = nn.Conv2d(channels, anchors * 4, 3, padding=1)
        for layer in (self.objectness, self.classes, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.constant_(layer.bias, PRIOR if layer is self.objectness else 0.0)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[int, ...]]:
        """uint8 (N, 3, H, W) -> objectness logits (N, A), class logits (N, A, C), deltas (N, A, 4), anchors (A, 4),
        and the anchors of each level; all float32, though layers be of bfloat16.
        """
        height, width = frames.shape[-2:]
        coarsest = STRIDES[-1]
        x = (frames.float() / 255 - 0.45) / 0.225
        x = F.pad(x, (0, -width % coarsest, 0, -height % coarsest))
        x = x.contiguous(memory_format=torch.channels_last)
        fine = self.stage_3(self.stage_2(self.stage_1(self.stem(x))))
        coarse = self.stage_4(fine)
        top = self.lateral[1](coarse)
        merged = self.lateral[0](fine) + F.interpolate(top, scale_factor=2.0, mode="nearest")
        shared = [smooth(level) for smooth, level in zip(self.smooth, (merged, top), strict=True)]
        levels = [self.tower(level) for level in shared]
        class_levels = [self.class_tower(level) for level in shared]
        anchors = [
            grid_anchors(level.shape[-2:], stride, side).to(frames.device)
            for level, stride, side in zip(levels, STRIDES, ANCHOR_SIDES, strict=True)
        ]
        return (
            torch.cat([per_anchor(self.objectness(level), 1) for level in levels], dim=1).squeeze(-1).float(),  # (N, A)
            torch.cat(
                [per_anchor(self.classes(level), self.num_classes) for level in class_levels], dim=1
            ).float(),  # (N, A, C)
            torch.cat([per_anchor(self.deltas(level), 4) for level in levels], dim=1).float(),  # (N, A, 4)
            torch.cat(anchors),
            tuple(len(level) for level in anchors),
        )

    def outputs(self, frames: Tensor) -> list[AnchorOutputs]:
        """What it says of every anchor of each of the frames uint8 (N, 3, H, W)."""
        objectness, classes, deltas, anchors, levels = self(frames)
        scores = objectness.sigmoid()[..., None] * classes.softmax(-1)  # (N, A, C)
        boxes = clip(DELTAS.decode(anchors, deltas), (frames.shape[-2], frames.shape[-1]))
        return [
            AnchorOutputs(anchors, frame_boxes, frame_scores, levels)
            for frame_boxes, frame_scores in zip(boxes, scores, strict=True)
        ]

    def losses(self, frames: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Objectness (focal, alpha .5, gamma 1.5), class (cross-entropy on positives) and box (GIoU) losses.

        frames: uint8 (N, 3, H, W); targets: a frame's boxes (M, 4), labels (M,) 0-based, and optionally ignore (M,).
        """
        objectness, classes, deltas, anchors, _ = self(frames)
        matched = torch.stack([assign(anchors, target) for target in targets])  # (N, A)
        positive, counted = matched >= 0, matched >= NEGATIVE
        num_positive = over_workers(positive.sum())
        focal = sigmoid_focal_loss(objectness, positive.float(), alpha=0.5, gamma=1.5)
        boxes = torch.cat([t["boxes"][m[m >= 0]] for t, m in zip(targets, matched, strict=True)])
        labels = torch.cat([t["labels"][m[m >= 0]] for t, m in zip(targets, matched, strict=True)])
        decoded = DELTAS.decode(anchors.expand_as(deltas)[positive], deltas[positive])
        return {
            "objectness": focal[counted].sum() / num_positive,
            "class": F.cross_entropy(classes[positive], labels, reduction="sum") / num_positive,
            "box": 2 * generalized_box_iou_loss(decoded, boxes, reduction="sum") / num_positive,
        }


NEGATIVE, IGNORED = -1, -2


def assign(anchors: Tensor, target: dict[str, Tensor]) -> Tensor:
    """The box that each anchor (A, 4) is to find: its index (A,), or NEGATIVE, or IGNORED.

    A box that no anchor overlaps well has the nearest that finds no other box, however far. Boxes with `ignore` set are
    nobody's aim, and what lies in them is no mistake.
    """
    boxes = target["boxes"]
    ignore = target.get("ignore", torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device))
    matched = torch.full((len(anchors),), NEGATIVE, dtype=torch.long, device=anchors.device)
    if ignore.any():
        overlap = torch.minimum(anchors[:, None, 2:], boxes[None, ignore, 2:]) - torch.maximum(
            anchors[:, None, :2], boxes[None, ignore, :2]
        )
        side = anchors[:, 2:] - anchors[:, :2]
        share = overlap.clamp(min=0).prod(-1) / side.prod(-1, keepdim=True)  # (A, ignored)
        matched[(share > IGNORED_SHARE).any(dim=1)] = IGNORED
    wanted = torch.nonzero(~ignore).squeeze(1)
    if len(wanted):
        iou = box_iou(anchors, boxes[wanted])  # (A, M)
        best, index = iou.max(dim=1)
        matched[best >= NEGATIVE_IOU] = IGNORED
        matched[best >= POSITIVE_IOU] = wanted[index[best >= POSITIVE_IOU]]
        taken = matched >= 0
        lonely = ~torch.isin(wanted, matched)
        matched[iou[:, lonely].masked_fill(taken[:, None], -1).argmax(dim=0)] = wanted[lonely]
    return matched


def grid_anchors(cells: torch.Size | tuple[int, int], stride: int, side: float) -> Tensor:
    """Anchors (rows * columns * len(ASPECTS), 4) of a level of `cells` (rows, columns), centred in its cells."""
    rows, columns = cells
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    centres = (torch.stack([x, y], dim=-1).reshape(-1, 1, 2) + 0.5) * stride  # (cells, 1, 2)
    aspects = torch.tensor(ASPECTS).sqrt()
    half = torch.stack([side / aspects, side * aspects], dim=-1) / 2  # (aspects, 2), width and height
    return torch.cat([centres - half, centres + half], dim=-1).reshape(-1, 4)


def per_anchor(level: Tensor, values: int) -> Tensor:
    """(N, anchors * values, rows, columns) -> (N, rows * columns * anchors, values)."""
    return level.permute(0, 2, 3, 1).reshape(len(level), -1, values)
