"""R-FCN in steps that can be called by themselves: features, proposals, position-sensitive maps, boxes asked of them.

"R-FCN: Object Detection via Region-based Fully Convolutional Networks" (Dai et al., 2016), as it is in "Detect to Track
and Track to Detect" (Feichtenhofer, Pinz and Zisserman, 2017), sections 3.2, 3.3 and 5.2. One code serves the paper's
networks and one that trains on a CPU in minutes; `PAPER` and `SMALL` are all that differs.

Legend: N frames, A anchors, R regions of one frame, C foreground classes, D channels, k bins a side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from models.parts import region_proposals, small_two_stage
from models.parts.backbones import Backbone
from models.parts.box_deltas import BoxDeltas
from models.parts.position_sensitive import Maps, Pooling, PositionSensitiveHead
from models.parts.region_losses import region_losses
from models.parts.small_backbone import SmallBackbone
from models.parts.small_detector import ASPECTS, DELTAS, PRIOR
from models.parts.two_stage import Dense, Features, Limits, Regions, proposals, with_truth

Targets = Sequence[dict[str, Tensor]]
LEVELS = ("conv3", "conv4", "conv5")


@dataclass(frozen=True)
class Configuration:
    """What differs between the paper's networks and the small one.

    resize: how large frames are wanted. stride: of conv4 and conv5, in pixels; conv3's is half of it. multiple: frames
    are padded to it. anchor_sides: in pixels, each at three aspects. proposals_from: the level the RPN looks at.
    channels, dilation, bins, pooling: of the head. training_proposals: regions of a frame that teach, besides its true
    boxes. hardest: of a frame's regions only so many of the largest loss teach (OHEM). coder: of the second stage's
    deltas. small_losses: focal objectness and GIoU as in `small_two_stage`, instead of the paper's.
    """

    resize: Mapping[str, Any]
    stride: int
    multiple: int
    anchor_sides: tuple[int, ...]
    proposals_from: str
    channels: int
    dilation: int
    bins: int
    pooling: Pooling
    limits: Limits
    training_proposals: int
    hardest: int | None
    coder: BoxDeltas
    small_losses: bool


# Section 5.2. The paper is silent on: the level of the RPN, for which R-FCN takes conv4; the sizes of the 5 scales, for
# which those of Faster R-CNN are extended by 64 and 32 px; the long side, where the release has 1000; the scaling of
# deltas, where Faster R-CNN's is taken. 6000 anchors before suppression are Faster R-CNN's.
PAPER = Configuration(
    resize={"short_side": 600, "long_side": 1000},
    stride=16,
    multiple=32,
    anchor_sides=(32, 64, 128, 256, 512),
    proposals_from="conv4",
    channels=512,
    dilation=6,
    bins=7,
    pooling="pool",
    limits=Limits(per_level=6000, proposal_iou=0.7, num_proposals=300),
    training_proposals=300,
    hardest=128,
    coder=BoxDeltas(stds=(0.1, 0.1, 0.2, 0.2)),
    small_losses=False,
)
# Objects are 20 to 50 px, some 4 cells of conv5: fewer bins, read between the cells.
SMALL = Configuration(
    resize={},
    stride=8,
    multiple=8,
    anchor_sides=(24, 40),
    proposals_from="conv5",
    channels=128,
    dilation=2,
    bins=4,
    pooling="align",
    limits=Limits(per_level=256, proposal_iou=0.7, num_proposals=32),
    training_proposals=16,
    hardest=None,
    coder=DELTAS,
    small_losses=True,
)


@dataclass(frozen=True)
class Seen:
    """What the network computed of one frame: all that the frame's rows need, and those of its neighbours.

    size: (height, width). levels: conv3, conv4 and conv5, (1, ., ., .) each. maps: (1, ., h, w) each. proposals:
    (R, 4); boxes: (R, 4), where they were regressed to; probabilities: (R, C + 1), background first.
    """

    size: tuple[int, int]
    levels: Features
    maps: Maps
    proposals: Tensor
    boxes: Tensor
    probabilities: Tensor

    def to(self, device: torch.device | str) -> Seen:
        """The same on a device, in memory of its own: parts of a batch would keep, and be pickled with, all of it."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device) if tensor.device != torch.device(device) else tensor.clone()

        return Seen(
            self.size,
            tuple(moved(level) for level in self.levels),
            Maps(*(moved(one) for one in self.maps)),
            moved(self.proposals),
            moved(self.boxes),
            moved(self.probabilities),
        )


class Rfcn(nn.Module):
    """Frames of any size in, regions out.

    backbone: gives conv3, conv4 and conv5 by name; num_classes: C; pooling: in the place of the configuration's.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone | SmallBackbone,
        num_classes: int,
        configuration: Configuration = PAPER,
        pooling: Pooling | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.num_classes = num_classes
        self.configuration = configuration
        self.register_buffer("mean", torch.tensor(backbone.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(3, 1, 1), persistent=False)
        channels, limits, sides = backbone.channels, configuration.limits, configuration.anchor_sides
        self.anchor_sides = sides  # px
        self.rpn = RegionProposalNetwork(
            AnchorGenerator((sides,), (ASPECTS,)),
            RPNHead(channels[configuration.proposals_from], len(sides) * len(ASPECTS)),
            # Ren et al., section 3.1.2 and 3.1.3: anchors teach from IoU .7 and to .3, 256 of an image, half of each.
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n=dict.fromkeys(("training", "testing"), limits.per_level),
            post_nms_top_n=dict.fromkeys(("training", "testing"), limits.num_proposals),
            nms_thresh=limits.proposal_iou,
        )
        self.head = PositionSensitiveHead(
            channels["conv5"],
            num_classes,
            channels=configuration.channels,
            dilation=configuration.dilation,
            bins=configuration.bins,
            pooling=pooling or configuration.pooling,
        )
        if configuration.small_losses:
            nn.init.constant_(self.rpn.head.cls_logits.bias, PRIOR)

    def features(self, frames: Tensor) -> Features:
        """uint8 (N, 3, H, W) -> conv3 (N, D3, 2h, 2w), conv4 (N, D4, h, w), conv5 (N, D5, h, w), of padded frames."""
        multiple = self.configuration.multiple
        x = (frames.float() / 255 - self.mean) / self.std
        x = F.pad(x, (0, -x.shape[-1] % multiple, 0, -x.shape[-2] % multiple))
        levels = self.backbone(x.contiguous(memory_format=torch.channels_last))
        return tuple(levels[name] for name in LEVELS)

    def dense(self, features: Features, size: tuple[int, int]) -> Dense:
        """The first stage on features of frames of `size` (height, width)."""
        level = features[LEVELS.index(self.configuration.proposals_from)]
        return region_proposals.dense(self.rpn, [level], size, self.configuration.multiple)

    def proposals(self, dense: Dense) -> list[Tensor]:
        """Each frame's boxes (R, 4) for the second stage, best first."""
        return proposals(dense, None, self.configuration.limits)

    def maps(self, features: Features) -> Maps:
        """The maps of N frames: scores (N, (C + 1) * k * k, h, w), deltas (N, 4 * k * k, h, w)."""
        return self.head.maps(features[2])

    def regions(self, maps: Maps, boxes: Sequence[Tensor]) -> list[Regions]:
        """The second stage on any boxes (R, 4) xyxy in pixels, a tensor for each of the frames of the maps.

        R-FCN has no layer of its own for a region: `pooled` and `embeddings` are empty.
        """
        counts = [len(of_frame) for of_frame in boxes]
        logits, deltas = self.head(maps, boxes, 1 / self.configuration.stride)
        rows = zip(boxes, logits.split(counts), deltas[:, None].split(counts), strict=True)
        return [
            Regions(box, box.new_zeros(len(box), 0), box.new_zeros(len(box), 0), logit, delta, self.configuration.coder)
            for box, logit, delta in rows
        ]

    def see(self, frames: Tensor) -> list[Seen]:
        """Both stages on frames uint8 (N, 3, H, W)."""
        size = (frames.shape[-2], frames.shape[-1])
        levels = self.features(frames)
        maps = self.maps(levels)
        regions = self.regions(maps, self.proposals(self.dense(levels, size)))
        return [
            Seen(
                size,
                tuple(level[i : i + 1] for level in levels),
                Maps(maps.scores[i : i + 1], maps.deltas[i : i + 1]),
                found.boxes,
                found.refined(size)[:, 0],  # the same for all classes
                found.logits.softmax(dim=1),
            )
            for i, found in enumerate(regions)
        ]

    def training_boxes(self, dense: Dense, targets: Targets) -> list[Tensor]:
        """Each frame's boxes (R, 4) that the second stage learns on: its best proposals, and the truth not to ignore.

        The paper does not say whether true boxes are among them; in R-FCN's code they are.
        """
        best = [boxes[: self.configuration.training_proposals] for boxes in self.proposals(dense)]
        return with_truth(best, targets)

    def losses(self, features: Features, maps: Maps, size: tuple[int, int], targets: Targets) -> dict[str, Tensor]:
        """Both stages' losses on frames of `size`, each a scalar: objectness, anchor_box, class, box (equation 1).

        targets: a frame's boxes (M, 4), labels (M,) 0-based, and optionally ignore (M,).
        """
        dense = self.dense(features, size)
        regions = self.regions(maps, self.training_boxes(dense, targets))
        if self.configuration.small_losses:
            return small_two_stage.anchor_losses(dense, targets) | small_two_stage.region_losses(regions, targets)
        return region_proposals.anchor_losses(self.rpn, dense, targets) | region_losses(
            torch.cat([of_frame.logits for of_frame in regions]),
            torch.cat([of_frame.deltas[:, 0] for of_frame in regions]),
            [of_frame.boxes for of_frame in regions],
            targets,
            self.configuration.coder,
            self.configuration.hardest,
        )


def joined(frames: Sequence[Seen]) -> tuple[Features, Maps]:
    """Levels and maps of some frames as a batch."""
    levels = tuple(torch.cat(level) for level in zip(*(seen.levels for seen in frames), strict=True))
    return levels, Maps(*(torch.cat(one) for one in zip(*(seen.maps for seen in frames), strict=True)))


def chosen(levels: Features, maps: Maps, index: Tensor) -> tuple[Features, Maps]:
    """Those of a batch that an index (P,) chooses."""
    return tuple(level[index] for level in levels), Maps(*(one[index] for one in maps))
