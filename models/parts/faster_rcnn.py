"""Any Faster R-CNN of torchvision's class, opened up: with its own keys, so that published weights fit.

Ren et al., "Faster R-CNN", 2015; with a feature pyramid: Lin et al., "Feature Pyramid Networks", 2017. What it is told
to learn differs from torchvision: the second stage's losses are those of `region_losses`, on the hardest regions if so
wished, and truth to ignore teaches nothing.

Legend: N frames, A anchors, R regions, C foreground classes, D channels, h x w cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import detection

from models.parts import region_losses, region_proposals
from models.parts.box_deltas import BoxDeltas
from models.parts.single_shot import freeze_batch_norms
from models.parts.two_stage import Dense, Features, Limits, Regions, TwoStage, proposals, with_truth


class FasterRcnn(TwoStage):
    """Torchvision's FasterRCNN in steps.

    network: the module. Its transform's mean, deviation and padding are used, its size is not; its box_predictor gives
    deltas (R, outputs * 4), or (R, 4) of one box for all classes; its box_roi_pool, where it is not torchvision's, is
    called as that is, and has its featmap_names and output_size. columns: the outputs
    that are classes, in the order of the labels; what the others say (the background, and outputs that stand for
    nothing) is background. rpn_maps: names of the backbone's maps that the first stage reads. resize: see `TwoStage`.
    hardest: of each frame's regions only so many of the largest loss teach (OHEM, Shrivastava et al., 2016); None: all
    of those that torchvision's sampler draws.
    """

    def __init__(
        self,
        network: Any,
        columns: Sequence[int],
        rpn_maps: Sequence[str],
        resize: Mapping[str, Any],
        *,
        hardest: int | None = None,
    ) -> None:
        super().__init__()
        self._network = network
        self.num_classes = len(columns)
        self.resize = resize
        self.rpn_maps = tuple(rpn_maps)
        self.hardest = hardest
        rpn, heads = network.rpn, network.roi_heads
        maps, self.hidden, num_outputs = _measured(network)
        self.columns: Tensor
        self.others: Tensor  # the outputs that are no classes
        others = sorted(set(range(num_outputs)) - set(columns))
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.register_buffer("others", torch.tensor(others), persistent=False)
        self.map_names = tuple(maps)
        assert set(self.rpn_maps) <= set(self.map_names), f"the backbone has maps {self.map_names}"
        self.tower_channels, self.per_cell = rpn.head.cls_logits.in_channels, rpn.head.cls_logits.out_channels
        self.pooled_channels = maps[heads.box_roi_pool.featmap_names[0]]
        self.pooled_side = heads.box_roi_pool.output_size[0]
        stds = tuple(1 / weight for weight in heads.box_coder.weights)
        self.coder = BoxDeltas(stds=stds)
        self.limits = _limits(network, "testing")
        self.training_limits = _limits(network, "training")
        self.multiple = network.transform.size_divisible  # frames are padded to a multiple of it

    @property
    def network(self) -> nn.Module:
        return self._network

    def features(self, frames: Tensor) -> Features:
        """uint8 (N, 3, H, W) -> the backbone's maps (N, D, h, w), in its order, of frames padded to `multiple`."""
        transform = self._network.transform
        mean, std = (
            torch.tensor(values, device=frames.device)[:, None, None]
            for values in (transform.image_mean, transform.image_std)
        )
        x = (frames.float() / 255 - mean) / std
        height, width = x.shape[-2:]
        x = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple))
        return tuple(self._network.backbone(x).values())

    def dense(self, features: Features, size: tuple[int, int]) -> Dense:
        maps = dict(zip(self.map_names, features, strict=True))
        return region_proposals.dense(
            self._network.rpn, [maps[name] for name in self.rpn_maps], size, multiple=self.multiple
        )

    def head(self, features: Features, boxes: Sequence[Tensor], size: tuple[int, int]) -> list[Regions]:
        counts = [len(of_frame) for of_frame in boxes]
        heads = self._network.roi_heads
        # Torchvision's pooling settles the scales of its maps by the first frame that it sees, and rounds them: by a
        # padded one they are exact.
        padded = (size[0] + -size[0] % self.multiple, size[1] + -size[1] % self.multiple)
        maps = dict(zip(self.map_names, features, strict=True))
        pooled = heads.box_roi_pool(maps, list(boxes), [padded] * len(boxes))  # of all frames' regions: (R, D, k, k)
        embeddings = heads.box_head(pooled)  # (R, E)
        outputs, deltas = (each.float() for each in heads.box_predictor(embeddings))
        deltas = deltas.unflatten(1, (-1, 4))  # (R, outputs, 4) or (R, 1, 4)
        if deltas.shape[1] > 1:
            deltas = deltas[:, self.columns]  # (R, C, 4)
        background = outputs[:, self.others].logsumexp(dim=1, keepdim=True)
        logits = torch.cat([background, outputs[:, self.columns]], dim=1)  # (R, C + 1); their softmax is the network's
        rows = zip(boxes, *(each.split(counts) for each in (pooled, embeddings, logits, deltas)), strict=True)
        return [Regions(box, pool, embedding, logit, delta, self.coder) for box, pool, embedding, logit, delta in rows]

    def training_boxes(self, dense: Dense, targets: Sequence[dict[str, Tensor]]) -> list[Tensor]:
        """Each frame's proposals and, after them, its true boxes but for those to ignore.

        All of them if the hardest are to be found among them, otherwise those that torchvision's sampler draws by
        torch's global generator.
        """
        boxes = with_truth(proposals(dense, None, self.training_limits), targets)
        if self.hardest is not None:
            return boxes
        outputs = [region_losses.assign(one, target)[0] for one, target in zip(boxes, targets, strict=True)]
        positive, negative = self._network.roi_heads.fg_bg_sampler(outputs)  # masks (R,)
        return [one[(p | n).bool()] for one, p, n in zip(boxes, positive, negative, strict=True)]

    def anchor_losses(self, dense: Dense, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """See `region_proposals.anchor_losses`."""
        return region_proposals.anchor_losses(self._network.rpn, dense, targets)

    def region_losses(self, regions: Sequence[Regions], targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """See `region_losses.region_losses`."""
        logits, deltas = (torch.cat([getattr(one, name) for one in regions]) for name in ("logits", "deltas"))
        boxes = [one.boxes for one in regions]
        return region_losses.region_losses(logits, deltas, boxes, targets, self.coder, self.hardest)


def _limits(network: Any, phase: str) -> Limits:
    """The network's own, of "training" or "testing"."""
    rpn, heads = network.rpn, network.roi_heads
    return Limits(
        per_level=rpn._pre_nms_top_n[phase],
        proposal_iou=rpn.nms_thresh,
        num_proposals=rpn._post_nms_top_n[phase],
        min_objectness=rpn.score_thresh,
        min_score=heads.score_thresh,
        max_iou=heads.nms_thresh,
        max_detections=heads.detections_per_img,
    )


@torch.no_grad()
def _measured(network: Any) -> tuple[dict[str, int], int, int]:
    """Channels of the backbone's maps by name, E of the second stage, and how many outputs it has; by trying it."""
    was_training = network.training
    network.eval()
    maps = network.backbone(torch.zeros(1, 3, 64, 64))
    channels = {name: one.shape[1] for name, one in maps.items()}
    heads = network.roi_heads
    side = heads.box_roi_pool.output_size
    embedding = heads.box_head(torch.zeros(1, channels[heads.box_roi_pool.featmap_names[0]], *side))
    outputs, _ = heads.box_predictor(embedding)
    network.train(was_training)
    return channels, embedding.shape[1], outputs.shape[1]


@dataclass(frozen=True)
class Architecture:
    """How torchvision builds a Faster R-CNN, its published weights, and how large it wants its frames.

    norm_eps: what the batch norms of its backbone, which its published weights were trained with frozen, add to
    variances; None where they were not frozen.
    """

    builder: Callable[..., nn.Module]
    weights: Any  # the enum of its published weights
    resize: dict[str, Any]
    rpn_maps: tuple[str, ...]
    norm_eps: float | None


_LARGE, _SMALL = {"short_side": 800, "long_side": 1333}, {"short_side": 320, "long_side": 640}
ARCHITECTURES = {
    "fasterrcnn_resnet50_fpn": Architecture(
        detection.fasterrcnn_resnet50_fpn,
        detection.FasterRCNN_ResNet50_FPN_Weights,
        _LARGE,
        ("0", "1", "2", "3", "pool"),
        norm_eps=0.0,
    ),
    "fasterrcnn_resnet50_fpn_v2": Architecture(
        detection.fasterrcnn_resnet50_fpn_v2,
        detection.FasterRCNN_ResNet50_FPN_V2_Weights,
        _LARGE,
        ("0", "1", "2", "3", "pool"),
        norm_eps=None,
    ),
    "fasterrcnn_mobilenet_v3_large_fpn": Architecture(
        detection.fasterrcnn_mobilenet_v3_large_fpn,
        detection.FasterRCNN_MobileNet_V3_Large_FPN_Weights,
        _LARGE,
        ("0", "1", "pool"),
        norm_eps=1e-5,
    ),
    "fasterrcnn_mobilenet_v3_large_320_fpn": Architecture(
        detection.fasterrcnn_mobilenet_v3_large_320_fpn,
        detection.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights,
        _SMALL,
        ("0", "1", "pool"),
        norm_eps=1e-5,
    ),
}


def build(name: str, num_outputs: int, columns: Sequence[int], hardest: int | None = None) -> FasterRcnn:
    """One of `ARCHITECTURES` with random weights; see `FasterRcnn`. num_outputs: its classes, background included."""
    architecture = ARCHITECTURES[name]
    network: Any = architecture.builder(weights=None, weights_backbone=None, num_classes=num_outputs)
    if architecture.norm_eps is not None:
        freeze_batch_norms(network.backbone, architecture.norm_eps)
    return FasterRcnn(network, columns, architecture.rpn_maps, architecture.resize, hardest=hardest)
