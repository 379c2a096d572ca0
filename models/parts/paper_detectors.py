"""The two-stage detectors that TCD and Plug & Play were run with, at their size, on torchvision's FasterRCNN class.

"Integrated Object Detection and Tracking with Tracklet-Conditioned Detection", section 2.3 and appendix A1; "Plug &
Play Convolutional Regression Tracker for Video Object Detection", section 6 and appendix. No weights of theirs are
published: backbones can begin with those of ImageNet. Both want a short side of 600 px; a long one of at most 1000 is
what is usual with it (neither says). OHEM chooses 128 regions of each frame, as R-FCN does (neither says).

Outputs: background first, then C classes. Deltas are those of one box for all classes in TCD, whose tracklets are of no
class yet where they are conditioned on (the paper is silent), and of one box for each class in Plug & Play.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign, roi_pool

from models.parts import backbones
from models.parts.deformable import deform
from models.parts.faster_rcnn import FasterRcnn
from models.parts.regression_tracker import merge_levels
from models.parts.two_stage import Features

RATIOS = (0.5, 1.0, 2.0)  # height / width of anchors
CHANNELS, HIDDEN, POOLED = 256, 1024, 7
HARDEST = 128
PYRAMID_STAGES = {"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"}
HRNET_CLASSIFIER = ("incre_modules.", "downsamp_modules.", "final_layer.", "classifier.")


class PaperDetector(FasterRcnn):
    """Faster R-CNN that knows which of its maps Plug & Play's tracker reads, of none if it was not run with it.

    tracking_maps: their names, finest first; tracking_level: the one of them at whose size they are merged (appendix,
    Figures 9 and 10).
    """

    def __init__(
        self,
        network: FasterRCNN,
        num_classes: int,
        rpn_maps: Sequence[str],
        short_side: int,
        tracking_maps: Sequence[str] = (),
    ) -> None:
        resize = {"short_side": short_side, "long_side": short_side * 5 // 3}
        super().__init__(network, range(1, num_classes + 1), rpn_maps, resize, hardest=HARDEST)
        self.tracking_maps = tuple(tracking_maps)
        self.tracking_level = 1

    def tracking_levels(self, features: Features) -> Features:
        """Of the detector's features (N, D, h, w) those that the tracker reads."""
        maps = dict(zip(self.map_names, features, strict=True))
        return tuple(maps[name] for name in self.tracking_maps)


@dataclass(frozen=True)
class Benchmark:
    """What TCD's appendix A1 says for each data set: sides in px, proposals when training and when testing."""

    short_side: int
    anchor_sides: tuple[int, ...]
    training_proposals: int
    proposals: int
    max_iou: float


BENCHMARKS: Mapping[str, Benchmark] = {
    "vid": Benchmark(600, (64, 128, 256, 512), 300, 300, 0.3),
    "mot15": Benchmark(800, (32, 64, 128, 256, 512), 512, 2000, 0.5),
}


def tcd(
    backbone: str,
    num_classes: int,
    *,
    backbone_weights: str = "random",
    benchmark: Literal["vid", "mot15"] = "vid",
    pooling: Literal["pool", "align"] = "pool",
    deformable: bool = False,
) -> PaperDetector:
    """TCD's detector: the first stage on conv4, the second on conv5, both of stride 16.

    backbone: "resnet50" or "resnet101" (the paper's), see `backbones`. benchmark: see `BENCHMARKS`. pooling: the
    paper's RoI pooling rounds boxes to cells of 16 px; RoIAlign does not. deformable: the 3 x 3 convolutions of conv3
    to conv5 (Table 4), in one group.
    """
    setting = BENCHMARKS[benchmark]
    dilated = Reduced(backbones.build(backbone, backbone_weights))
    if deformable:
        deform(dilated.backbone.body, ("layer2", "layer3", "layer4"))
    network = faster_rcnn(
        dilated,
        num_classes,
        in_channels=dilated.backbone.channels["conv4"],
        anchor_sides=(setting.anchor_sides,),
        pooled_maps=("conv5",),
        box_predictor=OneBoxPredictor(HIDDEN, num_classes + 1),
        image_mean=list(dilated.backbone.mean),
        image_std=list(dilated.backbone.std),
        rpn_post_nms_top_n_train=setting.training_proposals,
        rpn_post_nms_top_n_test=setting.proposals,
        box_nms_thresh=setting.max_iou,
    )
    if pooling == "pool":
        network.roi_heads.box_roi_pool = RoiPool("conv5", (POOLED, POOLED), stride=16)
    return PaperDetector(network, num_classes, ("conv4",), setting.short_side)


def hrnet_w32(num_classes: int, *, backbone_weights: str = "random") -> PaperDetector:
    """Plug & Play's light detector: HRNet-W32, its four resolutions merged into one map that both stages read.

    The paper says that there is no pyramid and that all 15 anchors share a map, but not which. Here it is what HRNet
    calls its representation, all resolutions side by side, at the size and by the resizing that the tracker's features
    have (Figure 9), then 256 channels by a 1 x 1 convolution.
    """
    network = faster_rcnn(
        Merged(backbone_weights),
        num_classes,
        in_channels=CHANNELS,
        anchor_sides=((32, 64, 128, 256, 512),),
        pooled_maps=("merged",),
    )
    return PaperDetector(network, num_classes, ("merged",), 600, Merged.BRANCHES)


def resnext101_fpn_dcn(num_classes: int, *, backbone_weights: str = "random", offset_groups: int = 1) -> PaperDetector:
    """Plug & Play's heavy detector: ResNeXt-101-32x4d with deformable conv3 to conv5, and a feature pyramid.

    offset_groups: parts of the channels that sample at places of their own. "The DCN with 32 groups" (appendix) is read
    as the 32 groups that this network's convolutions have anyway: with 32 groups of offsets these alone would be 120
    million parameters, and the detector 4.8 times as slow as the light one, where the paper's is 2.2 times. The
    tracker reads P3, P4 and P5.
    """
    published = backbones.published("resnext101_32x4d")
    body = backbones.begun(backbones.resnext101_32x4d(dilated=False), backbone_weights, published, ("fc.",))
    deform(body, ("layer2", "layer3", "layer4"), offset_groups)
    pyramid = BackboneWithFPN(body, PYRAMID_STAGES, [256, 512, 1024, 2048], CHANNELS)
    network = faster_rcnn(
        pyramid,
        num_classes,
        in_channels=CHANNELS,
        anchor_sides=((32,), (64,), (128,), (256,), (512,)),
        pooled_maps=("0", "1", "2", "3"),
    )
    maps = ("0", "1", "2", "3", "pool")
    return PaperDetector(network, num_classes, maps, 600, ("1", "2", "3"))


BUILDERS: Mapping[str, Callable[..., PaperDetector]] = {
    "resnet50": partial(tcd, "resnet50"),
    "resnet101": partial(tcd, "resnet101"),
    "hrnet_w32": hrnet_w32,
    "resnext101_fpn_dcn": resnext101_fpn_dcn,
}


def faster_rcnn(
    backbone: nn.Module,
    num_classes: int,
    *,
    in_channels: int,
    anchor_sides: tuple[tuple[int, ...], ...],
    pooled_maps: Sequence[str],
    box_predictor: nn.Module | None = None,
    **limits: Any,
) -> FasterRCNN:
    """What all have: 3 aspects an anchor, 7 x 7 cells a region, two hidden layers of 1024, 300 proposals at IoU .7.

    in_channels: of the first stage's maps. anchor_sides: px, for each of those maps. pooled_maps: of CHANNELS channels,
    what the second stage reads, by RoIAlign with the mean of 4 samples a cell (Plug & Play, appendix). limits: other
    keywords of torchvision's class.
    """
    anchors = AnchorGenerator(anchor_sides, (RATIOS,) * len(anchor_sides))
    backbone.out_channels = CHANNELS  # type: ignore[assignment]  # torchvision's class asks for it
    return FasterRCNN(
        backbone,
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(in_channels, anchors.num_anchors_per_location()[0]),
        box_roi_pool=MultiScaleRoIAlign(list(pooled_maps), POOLED, sampling_ratio=2),
        box_head=TwoMLPHead(CHANNELS * POOLED**2, HIDDEN),
        box_predictor=box_predictor or FastRCNNPredictor(HIDDEN, num_classes + 1),
        size_divisible=32,
        **{
            # Before suppression, of each map: Faster R-CNN's own number, and torchvision's for pyramids.
            "rpn_pre_nms_top_n_train": 6000 if len(anchor_sides) == 1 else 2000,
            "rpn_pre_nms_top_n_test": 6000 if len(anchor_sides) == 1 else 1000,
            "rpn_post_nms_top_n_train": 300,
            "rpn_post_nms_top_n_test": 300,
            "rpn_nms_thresh": 0.7,
            "box_nms_thresh": 0.5,
            **limits,
        },
    )


class Reduced(nn.Module):
    """A dilated backbone: conv4 as it is, and conv5 in 256 channels by a 1 x 1 convolution, as in TCD's [12]."""

    def __init__(self, backbone: backbones.Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.reduce = nn.Conv2d(backbone.channels["conv5"], CHANNELS, 1)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        maps = self.backbone(x)
        return OrderedDict(conv4=maps["conv4"], conv5=F.relu(self.reduce(maps["conv5"])))


class Merged(nn.Module):
    """HRNet-W32: its four resolutions, and all of them in one map of stride 8 and 256 channels."""

    BRANCHES = ("stride4", "stride8", "stride16", "stride32")  # of 32, 64, 128 and 256 channels

    def __init__(self, weights: str) -> None:
        import timm  # takes seconds, which no small network should wait for

        super().__init__()
        body = timm.create_model("hrnet_w32", features_only=True, feature_location="", out_indices=(1, 2, 3, 4))
        self.body = backbones.begun(body, weights, backbones.published_by_timm("hrnet_w32"), HRNET_CLASSIFIER)
        self.reduce = nn.Conv2d(32 + 64 + 128 + 256, CHANNELS, 1)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        maps = OrderedDict(zip(self.BRANCHES, self.body(x), strict=True))
        maps["merged"] = F.relu(
            self.reduce(merge_levels(list(maps.values()), at=1))
        )  # (N, 480, h, w) -> (N, 256, h, w)
        return maps


class RoiPool(nn.Module):
    """RoI pooling by the largest, called as torchvision calls its `MultiScaleRoIAlign`, on one map."""

    def __init__(self, name: str, output_size: tuple[int, int], stride: int) -> None:
        super().__init__()
        self.featmap_names = [name]
        self.output_size = output_size
        self.stride = stride

    def forward(self, maps: Mapping[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        """maps (N, D, h, w) by name, boxes (R, 4) xyxy in pixels for each frame -> (sum of R, D, *output_size)."""
        pooled: Tensor = roi_pool(maps[self.featmap_names[0]], boxes, self.output_size, 1 / self.stride)
        return pooled


class OneBoxPredictor(nn.Module):
    """Torchvision's FastRCNNPredictor with one box for all classes."""

    def __init__(self, in_channels: int, num_outputs: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_channels, num_outputs)
        self.bbox_pred = nn.Linear(in_channels, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, E) -> logits (R, outputs), deltas (R, 4)."""
        return self.cls_score(x), self.bbox_pred(x)
