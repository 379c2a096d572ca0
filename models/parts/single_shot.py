"""Single-shot detectors of torchvision's classes, opened up: what every anchor says, before non-maximum suppression."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.ops import FrozenBatchNorm2d, box_iou

from models.parts import resnet34_ssd
from models.parts.anchors import AnchorOutputs, clip
from models.parts.workers import over_workers


@dataclass(frozen=True)
class Architecture:
    """How a detector is built, its published weights, and how large it wants its frames."""

    builder: Callable[..., nn.Module]
    weights: Any  # the enum of its published weights, empty where there are none
    resize: dict[str, Any]


ARCHITECTURES = {
    "retinanet_resnet50_fpn": Architecture(
        detection.retinanet_resnet50_fpn,
        detection.RetinaNet_ResNet50_FPN_Weights,
        {"short_side": 800, "long_side": 1333},
    ),
    "retinanet_resnet50_fpn_v2": Architecture(
        detection.retinanet_resnet50_fpn_v2,
        detection.RetinaNet_ResNet50_FPN_V2_Weights,
        {"short_side": 800, "long_side": 1333},
    ),
    "ssd300_vgg16": Architecture(detection.ssd300_vgg16, detection.SSD300_VGG16_Weights, {"size": (300, 300)}),
    "ssdlite320_mobilenet_v3_large": Architecture(
        detection.ssdlite320_mobilenet_v3_large,
        detection.SSDLite320_MobileNet_V3_Large_Weights,
        {"size": (320, 320)},
    ),
    "resnet34_fpn_ssd": Architecture(resnet34_ssd.build, (), {"size": (resnet34_ssd.SIDE,) * 2}),
}
NO_CLASS = ("__background__", "N/A")  # what COCO's 91 outputs call those that are no class
PADDING = 32  # RetinaNet's frames are padded to a multiple of it, as torchvision does


def published(name: str) -> dict[str, str]:
    """Names of a detector's published weights, and their URLs."""
    return {weights.name: weights.url for weights in ARCHITECTURES[name].weights}


def coco_categories(name: str) -> list[str]:
    """The names of the 91 outputs of a detector trained on COCO: `__background__` first, `N/A` where there is none."""
    return list(ARCHITECTURES[name].weights.COCO_V1.meta["categories"])


def build(
    name: str, classes: tuple[str, ...] = (), weights_backbone: str | None = None
) -> tuple[TorchvisionDetector, tuple[str, ...]]:
    """One of `ARCHITECTURES` with random weights, and what its labels are called: the classes given, or COCO's.

    weights_backbone: see `TorchvisionDetector`.
    """
    outputs = ["__background__", *classes] if classes else coco_categories(name)
    columns = [i for i, output in enumerate(outputs) if output not in NO_CLASS]
    detector = TorchvisionDetector(name, len(outputs), columns, weights_backbone)
    return detector, tuple(outputs[column] for column in columns)


class TorchvisionDetector(nn.Module):
    """One of `ARCHITECTURES`, with random weights; `network` is torchvision's own module, with its own keys.

    columns: the outputs that are classes, in the order of the labels. COCO's 91 outputs include the background and
    ten that stand for nothing; those are never given out.
    weights_backbone: of ImageNet, for resnet34_fpn_ssd only.
    """

    def __init__(self, name: str, num_outputs: int, columns: list[int], weights_backbone: str | None = None) -> None:
        super().__init__()
        self.network: Any = ARCHITECTURES[name].builder(
            weights=None, weights_backbone=weights_backbone, num_classes=num_outputs
        )
        self.columns: Tensor
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.is_retinanet = isinstance(self.network, RetinaNet)
        if name == "retinanet_resnet50_fpn":
            freeze_batch_norms(self.network.backbone)  # as its published weights were trained

    def forward(self, frames: Tensor) -> tuple[dict[str, Tensor], list[Tensor], tuple[int, ...]]:
        """uint8 (N, 3, H, W) -> the heads' outputs, each frame's anchors (A, 4), and the anchors of each level."""
        transform = self.network.transform
        mean = torch.tensor(transform.image_mean, device=frames.device)[:, None, None]
        std = torch.tensor(transform.image_std, device=frames.device)[:, None, None]
        x = (frames.float() / 255 - mean) / std
        height, width = x.shape[-2:]
        if self.is_retinanet:
            x = F.pad(x, (0, -width % PADDING, 0, -height % PADDING))
        features = list(self.network.backbone(x).values())
        heads = {name: output.float() for name, output in self.network.head(features).items()}  # for losses and boxes
        anchors = self.network.anchor_generator(ImageList(x, [(height, width)] * len(x)), features)
        per_cell = self.network.anchor_generator.num_anchors_per_location()
        levels = tuple(
            feature.shape[-2] * feature.shape[-1] * count for feature, count in zip(features, per_cell, strict=True)
        )
        return heads, anchors, levels

    def outputs(self, frames: Tensor) -> list[AnchorOutputs]:
        """What it says of every anchor of each of the frames uint8 (N, 3, H, W)."""
        heads, anchors, levels = self(frames)
        size = (frames.shape[-2], frames.shape[-1])
        rows = []
        for deltas, logits, frame_anchors in zip(heads["bbox_regression"], heads["cls_logits"], anchors, strict=True):
            boxes = clip(self.network.box_coder.decode_single(deltas, frame_anchors), size)  # (A, 4)
            scores = logits.sigmoid() if self.is_retinanet else logits.softmax(-1)  # (A, outputs)
            rows.append(AnchorOutputs(frame_anchors, boxes, scores[:, self.columns], levels))
        return rows

    def losses(self, frames: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Torchvision's own losses. Ignored boxes are left out: these networks have no word for 'do not care'.

        RetinaNet's are means over frames, of which every worker has as many; SSD's are by the number of the batch's
        anchors that find a box, which torchvision counts on each worker by itself (see `workers`).
        """
        heads, anchors, _ = self(frames)
        own = []
        for target in targets:
            keep = ~target.get("ignore", torch.zeros(len(target["boxes"]), dtype=torch.bool))
            own.append({"boxes": target["boxes"][keep], "labels": self.columns[target["labels"][keep]]})
        if self.is_retinanet:
            losses: dict[str, Tensor] = self.network.compute_loss(own, heads, anchors)
            return losses
        matched = [
            self.network.proposal_matcher(box_iou(target["boxes"], frame_anchors))
            if len(target["boxes"])
            else torch.full((len(frame_anchors),), -1, device=frames.device)
            for target, frame_anchors in zip(own, anchors, strict=True)
        ]
        losses = self.network.compute_loss(own, heads, anchors, matched)
        num_positive = (torch.stack(matched) >= 0).sum()
        of_all = num_positive.clamp(min=1) / over_workers(num_positive)
        return {name: loss * of_all for name, loss in losses.items()}


def freeze_batch_norms(module: Any, eps: float = 0.0) -> None:
    """Puts batch norms that never learn, and add `eps` to variances, in the place of all others in the module."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features, eps))
        else:
            freeze_batch_norms(child, eps)
