"""The single-shot network around a RetinaNet head: pyramid, anchors, who learns what, and the losses.

"RetinaTrack: Online Single Stage Joint Detection and Tracking", sections 3.1 and 3.4. Two pyramids: the paper's
ResNet-50 with levels P3 to P7, scored by a focal sigmoid for each class; and a small one for objects of 20 to 50 px
that a CPU trains in minutes, scored by objectness times class softmax and regressed by GIoU, as `small_detector`, whose
body it is: at this size a focal sigmoid for each class learns several times more slowly.

Legend: N frames, A anchors, K anchor shapes, C classes, D channels, M ground-truth boxes, h x w cells of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import box_iou, generalized_box_iou_loss, sigmoid_focal_loss
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from models.parts.anchors import AnchorOutputs, clip
from models.parts.backbones import IMAGENET_MEAN, IMAGENET_STD
from models.parts.box_deltas import BoxDeltas
from models.parts.region_losses import mostly_inside
from models.parts.retina_head import Head, HeadOutputs
from models.parts.small_detector import ASPECTS, Residual, convolution, grid_anchors
from models.parts.workers import over_workers

SCALES = 2  # of anchors in an octave
POSITIVE_IOU = 0.5  # from which on an anchor is to find a box (section 3.4)
NEGATIVE, IGNORED = -1, -2


class SmallBody(nn.Module):
    """`small_detector`'s body, with its keys: normalised frames -> maps at strides 8 and 16."""

    def __init__(self, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.stem = convolution(3, widths[0], 2)
        self.stage_1 = Residual(widths[0], widths[0], 1)
        self.stage_2 = Residual(widths[0], widths[1], 2)
        self.stage_3 = Residual(widths[1], widths[2], 2)
        self.stage_4 = Residual(widths[2], widths[3], 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.stage_3(self.stage_2(self.stage_1(self.stem(x))))
        return fine, self.stage_4(fine)


class SmallPyramid(nn.Module):
    """`small_detector`'s body and pyramid: uint8 (N, 3, H, W) -> (N, D, h, w) at strides 8 and 16.

    anchor_sides: of the smaller of each level's two square anchors, in px: 21 and 30, 42 and 59.
    """

    strides = (8, 16)
    anchor_sides = (21.0, 42.0)

    def __init__(self, channels: int = 32, widths: tuple[int, int, int, int] = (16, 32, 64, 128)) -> None:
        super().__init__()
        self.channels = channels
        self.body = SmallBody(widths)
        self.lateral = nn.ModuleList([nn.Conv2d(width, channels, 1) for width in widths[2:]])
        self.smooth = nn.ModuleList([convolution(channels, channels, 1) for _ in self.strides])

    def forward(self, frames: Tensor) -> list[Tensor]:
        x = padded((frames.float() / 255 - 0.45) / 0.225, self.strides[-1])
        fine, coarse = self.body(x.contiguous(memory_format=torch.channels_last))
        top = self.lateral[1](coarse)
        merged = self.lateral[0](fine) + F.interpolate(top, scale_factor=2.0, mode="nearest")
        return [smooth(x) for smooth, x in zip(self.smooth, (merged, top), strict=True)]


class ResNetPyramid(nn.Module):
    """The paper's: torchvision's ResNet-50 and P3 to P7, uint8 (N, 3, H, W) -> (N, 256, h, w) at strides 8 to 128.

    anchor_sides: four times the strides, as in RetinaNet. `backbone` is as in torchvision's RetinaNet, with its
    keys. Batch norms learn.
    """

    strides = (8, 16, 32, 64, 128)
    anchor_sides = (32.0, 64.0, 128.0, 256.0, 512.0)
    channels = 256

    def __init__(self) -> None:
        super().__init__()
        self.backbone = resnet_fpn_backbone(
            backbone_name="resnet50",
            weights=None,
            norm_layer=nn.BatchNorm2d,
            trainable_layers=5,
            returned_layers=[2, 3, 4],
            extra_blocks=LastLevelP6P7(256, 256),
        )

    @property
    def body(self) -> nn.Module:
        """ResNet-50 itself, with the keys of ImageNet's weights."""
        body: nn.Module = self.backbone.body
        return body

    def forward(self, frames: Tensor) -> list[Tensor]:
        mean, std = (
            frames.new_tensor(three, dtype=torch.float32)[:, None, None] for three in (IMAGENET_MEAN, IMAGENET_STD)
        )
        return list(self.backbone(padded((frames.float() / 255 - mean) / std, 32)).values())


@dataclass(frozen=True)
class Raw:
    """What the network says of frames of `size` (height, width): of all anchors (A, 4), `levels` of them a level."""

    size: tuple[int, int]
    anchors: Tensor
    levels: tuple[int, ...]
    head: HeadOutputs


class RetinaNetwork(nn.Module):
    """A pyramid and a head on it.

    Where the head gives an objectness, scores are that times the softmax of the classes, else the sigmoid of each.
    """

    def __init__(self, pyramid: SmallPyramid | ResNetPyramid, head: Head) -> None:
        super().__init__()
        self.pyramid = pyramid.to(memory_format=torch.channels_last)
        self.anchor_sides = pyramid.anchor_sides  # px
        self.head = head
        # Faster R-CNN's deltas for the Huber loss; GIoU does not ask for their size.
        self.coder = BoxDeltas() if head.objectness is not None else BoxDeltas(stds=(0.1, 0.1, 0.2, 0.2))

    def forward(self, frames: Tensor) -> Raw:
        """uint8 (N, 3, H, W), of any size."""
        levels = [x.contiguous() for x in self.pyramid(frames)]  # laying shapes beside frames is then free
        anchors = [
            level_anchors((x.shape[-2], x.shape[-1]), stride, side, self.head.shapes).to(frames.device)
            for x, stride, side in zip(levels, self.pyramid.strides, self.pyramid.anchor_sides, strict=True)
        ]
        size = (frames.shape[-2], frames.shape[-1])
        return Raw(size, torch.cat(anchors), tuple(map(len, anchors)), self.head(levels))

    def outputs(self, raw: Raw) -> list[AnchorOutputs]:
        """What it says of every anchor of each frame."""
        head = raw.head
        boxes = clip(self.coder.decode(raw.anchors, head.deltas), raw.size)
        scores = head.classes.sigmoid() if head.objectness is None else head.classes.softmax(-1)  # (N, A, C)
        if head.objectness is not None:
            scores = scores * head.objectness.sigmoid()[..., None]
        return [AnchorOutputs(raw.anchors, *of_frame, raw.levels) for of_frame in zip(boxes, scores, strict=True)]

    def losses(self, raw: Raw, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The detector's losses (section 3.4), each a sum over anchors by the number of those that find a box.

        The paper's network: focal (alpha .25, gamma 2), and Huber of each box's mean delta. The small one: focal
        objectness (.5, 1.5), cross-entropy and twice the GIoU loss, as `small_detector`. targets: a frame's boxes
        (M, 4), labels (M,) 0-based, and optionally ignore (M,).
        """
        head = raw.head
        matched = torch.stack([assign(raw.anchors, target, POSITIVE_IOU) for target in targets])  # (N, A)
        positive, counted = matched >= 0, matched != IGNORED
        count = over_workers(positive.sum())
        boxes = torch.cat([t["boxes"][m[m >= 0]] for t, m in zip(targets, matched, strict=True)])
        labels = torch.cat([t["labels"][m[m >= 0]] for t, m in zip(targets, matched, strict=True)])
        anchors = raw.anchors.expand_as(head.deltas)[positive]
        if head.objectness is not None:
            focal = sigmoid_focal_loss(head.objectness, positive.float(), alpha=0.5, gamma=1.5)
            decoded = self.coder.decode(anchors, head.deltas[positive])
            return {
                "objectness": focal[counted].sum() / count,
                "class": F.cross_entropy(head.classes[positive], labels, reduction="sum") / count,
                "box": 2 * generalized_box_iou_loss(decoded, boxes, reduction="sum") / count,
            }
        wanted = torch.zeros_like(head.classes)
        wanted[positive] = F.one_hot(labels, wanted.shape[-1]).to(wanted.dtype)
        focal = sigmoid_focal_loss(head.classes, wanted, alpha=0.25, gamma=2)
        deltas = self.coder.encode(anchors, boxes)
        return {
            "class": focal[counted].sum() / count,
            "box": F.smooth_l1_loss(head.deltas[positive], deltas, reduction="sum") / (4 * count),
        }


def assign(anchors: Tensor, target: dict[str, Tensor], min_iou: float) -> Tensor:
    """The box that each anchor (A, 4) is to find: its index (A,), or NEGATIVE, or IGNORED (section 3.4).

    An anchor is to find the nearest box, from `min_iou` on; and each box has its nearest anchor, however far, so long
    as they meet. Boxes with `ignore` set are nobody's aim, and what lies in them by more than half teaches nothing.
    """
    boxes = target["boxes"]
    ignore = target.get("ignore", torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device))
    matched = torch.full((len(anchors),), NEGATIVE, dtype=torch.long, device=anchors.device)
    if ignore.any():
        matched[mostly_inside(anchors, boxes[ignore])] = IGNORED
    wanted = torch.nonzero(~ignore).squeeze(1)
    if len(wanted):
        iou = box_iou(anchors, boxes[wanted])  # (A, M)
        nearest = torch.zeros_like(iou).scatter(0, iou.argmax(dim=0, keepdim=True), 1.0)  # 1 at each box's own anchor
        best, index = (iou + 2 * nearest * (iou > 0)).max(dim=1)  # own anchors before all others
        matched[best >= min_iou] = wanted[index[best >= min_iou]]
    return matched


def level_anchors(cells: tuple[int, int], stride: int, side: float, shapes: int) -> Tensor:
    """Anchors (rows * columns * shapes, 4) of a level of `cells` (rows, columns), centred in its cells.

    Six shapes: two scales an octave from `side` px on, each at three aspects. One: a square between both scales.
    """
    assert shapes in (1, SCALES * len(ASPECTS))
    if shapes == 1:
        return grid_anchors(cells, stride, side * 2**0.25).view(-1, len(ASPECTS), 4)[:, ASPECTS.index(1.0)]
    sides = [side * 2 ** (scale / SCALES) for scale in range(SCALES)]
    of_sides = [grid_anchors(cells, stride, each).view(-1, len(ASPECTS), 4) for each in sides]
    return torch.cat(of_sides, dim=1).view(-1, 4)


def padded(x: Tensor, multiple: int) -> Tensor:
    """Frames (N, 3, H, W) with zeros below and on the right, up to multiples of so many px."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple))
