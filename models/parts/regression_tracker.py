"""The regression tracker of Plug & Play: where a detector's box is in a later frame, read from the detector's features.

"Plug & Play Convolutional Regression Tracker for Video Object Detection", section 4. The features in a box of frame t
are slid over those of three times the box in frame t + tau, channel by channel; the map of how well they fit gives the
move and the size of the box (equations 1 and 2) and the IoU that the result will have with the object. As both are
pooled at one scale, the box's own, the same weights follow objects of any size. The detector stays as it is: `freeze`.

The paper leaves open, and here is chosen: kernels (one 1x1 and one 3x3 block for each of the two patches, with weights
of their own, one 3x3 block after the correlation), the fully connected layers read the whole 15x15 map, boxes move by
their centres, both losses weigh the same.

Legend: P pairs of frames, N boxes of all pairs, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from models.parts.anchors import clip
from models.parts.box_deltas import BoxDeltas
from models.parts.track_branch import in_both
from models.parts.workers import over_workers

TEMPLATE_BINS = 7
SEARCH_SCALE = 3  # k: one box's room to each side
SEARCH_BINS = SEARCH_SCALE * TEMPLATE_BINS  # the same scale as the template
FIT_BINS = SEARCH_BINS - TEMPLATE_BINS + 1  # 15
DELTAS = BoxDeltas()  # equations 1 and 2

RoiIou = Literal["lt", "gt", "mix"]


class RegressionTracker(nn.Module):
    """Boxes of one frame to boxes of another.

    inputs: channels of the features (`merge_levels`: 480 of HRNet-W32, 768 of a pyramid's middle three levels).
    stride: pixels a cell of them. channels: of every layer; 256 in the paper, 16 learn on a CPU.
    """

    def __init__(self, inputs: int, stride: int, channels: int = 256) -> None:
        super().__init__()
        self.stride = stride
        self.template = nn.Sequential(conv_block(inputs, channels, 1), conv_block(channels, channels, 3))
        self.search = nn.Sequential(conv_block(inputs, channels, 1), conv_block(channels, channels, 3))
        self.fit = conv_block(channels, channels, 3)
        self.shared = nn.Conv2d(channels, channels, 3, padding=1)
        self.deltas = nn.Linear(channels * FIT_BINS**2, 4)
        self.quality = nn.Linear(channels * FIT_BINS**2, 1)
        for layer in (self.deltas, self.quality):  # untrained, boxes stay about where they are
            nn.init.normal_(layer.weight, std=0.001)
            nn.init.zeros_(layer.bias)

    def forward(
        self, features: Tensor, later: Tensor, boxes: Sequence[Tensor], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Deltas (N, 4) of equation 1 and the expected IoU (N,) in [0, 1] of the boxes (., 4) of each pair, in order.

        features, later: (P, C, rows, columns) of frames t and t + tau; size: (height, width) of the frames without
        padding. There must be a box. Both are float32, though layers be of bfloat16.
        """
        template = self.look(self.template, features, boxes, TEMPLATE_BINS, size)  # (N, channels, 7, 7)
        around = [expand(own, SEARCH_SCALE) for own in boxes]
        search = self.look(self.search, later, around, SEARCH_BINS, size)  # (N, channels, 21, 21)
        fit = self.fit(correlate(search, template))  # (N, channels, 15, 15)
        shared = F.relu(self.shared(fit)).flatten(1)
        return self.deltas(shared).float(), self.quality(shared).squeeze(1).float().sigmoid()

    def look(
        self, layers: nn.Sequential, features: Tensor, boxes: Sequence[Tensor], bins: int, size: tuple[int, int]
    ) -> Tensor:
        """What layers, of which the first has 1x1 convolutions, make of pooled features: (N, channels, bins, bins).

        A 1x1 convolution without bias may come before RoIAlign as well as after it: both are linear, one over channels
        and the other over cells. Before it is cheaper, asked once a cell and not for all parts of all boxes.
        """
        convolution, *others = (layer for layer in layers.modules() if not isinstance(layer, nn.Sequential))
        x = pool(convolution(features), boxes, bins, self.stride, size)
        for layer in others:
            x = layer(x)
        return x

    def track(self, features: Tensor, later: Tensor, boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Where boxes (N, 4) of a frame are in a later one, clipped to it (N, 4), and their expected IoU (N,).

        features, later: (C, rows, columns). What has left the frame comes back without area.
        """
        if not len(boxes):
            return boxes, boxes.new_zeros(0)
        deltas, quality = self(features[None], later[None], [boxes], size)
        return clip(DELTAS.decode(boxes, deltas), size), quality

    def losses(
        self,
        features: Tensor,
        later: Tensor,
        rois: Sequence[Tensor],
        goals: Sequence[Tensor],
        size: tuple[int, int],
    ) -> dict[str, Tensor]:
        """Smooth L1 of the deltas, summed over the four, and of the IoU, each the mean over RoIs.

        rois, goals: for each pair, what `rois_and_goals` gives. The IoU's aim is that of the predicted box, which it
        does not teach. Without any RoI both losses are 0, with gradients of 0.
        """
        start, goal = torch.cat(list(rois)), torch.cat(list(goals))
        num_rois = over_workers(torch.tensor(len(start), device=start.device))
        if not len(start):
            nothing = sum((p.sum() for p in self.parameters()), start=features.new_zeros(())) * 0
            return {"move": nothing, "quality": nothing}
        deltas, quality = self(features, later, rois, size)
        reached = paired_iou(DELTAS.decode(start, deltas.detach()), goal)
        return {
            "move": F.smooth_l1_loss(deltas, DELTAS.encode(start, goal), reduction="sum") / num_rois,
            "quality": F.smooth_l1_loss(quality, reached, reduction="sum") / num_rois,
        }


def conv_block(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Convolution, batch norm, ReLU; the size stays."""
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


def merge_levels(levels: Sequence[Tensor], at: int = 1) -> Tensor:
    """Levels (P, C_i, rows_i, columns_i) at the size of level `at`, concatenated: (P, sum of C_i, rows, columns).

    Finer ones are max-pooled, coarser ones take their nearest cell, as in Libra R-CNN. The second level is what the
    paper's appendix takes, of HRNet's four (stride 8) and of a pyramid's middle three (P4, stride 16).
    """
    rows, columns = levels[at].shape[-2:]
    return torch.cat(
        [
            F.adaptive_max_pool2d(level, (rows, columns))
            if level.shape[-1] > columns
            else F.interpolate(level, (rows, columns), mode="nearest")
            for level in levels
        ],
        dim=1,
    )


def pool(features: Tensor, boxes: Sequence[Tensor], bins: int, stride: int, size: tuple[int, int]) -> Tensor:
    """RoIAlign: features (P, C, rows, columns) averaged over bins x bins parts of each box, (N, C, bins, bins).

    Parts whose centre lies outside the frame of `size` (height, width) are 0, also where it was padded and just past
    the map's edge, where RoIAlign repeats the last cell.
    """
    pooled = roi_align(features, list(boxes), bins, 1 / stride, sampling_ratio=0, aligned=True)
    height, width = size
    box = torch.cat(list(boxes))
    part = (torch.arange(bins, device=box.device) + 0.5) / bins
    centres = box[:, :2, None] + (box[:, 2:] - box[:, :2])[..., None] * part  # (N, 2, bins)
    x, y = centres.unbind(1)
    inside = ((y > 0) & (y < height))[:, :, None] & ((x > 0) & (x < width))[:, None, :]  # (N, bins, bins)
    return pooled * inside[:, None]


def correlate(search: Tensor, template: Tensor) -> Tensor:
    """Each template slid over its own search patch, channel by channel.

    (N, C, H, W), (N, C, h, w) -> (N, C, H - h + 1, W - w + 1); a sum of products, not a mean.
    """
    count, channels, height, width = search.shape
    fit = F.conv2d(
        search.reshape(1, count * channels, height, width),
        template.reshape(count * channels, 1, *template.shape[-2:]),
        groups=count * channels,
    )
    return fit.reshape(count, channels, *fit.shape[-2:])


def expand(boxes: Tensor, factor: float) -> Tensor:
    """Boxes (N, 4) made `factor` times as wide and as high around their centres."""
    centre, side = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return torch.cat([centre - side * factor / 2, centre + side * factor / 2], dim=1)


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU (N,) of each of boxes (N, 4) with the one of others (N, 4) in its row."""
    low, high = torch.maximum(boxes[:, :2], others[:, :2]), torch.minimum(boxes[:, 2:], others[:, 2:])
    shared = (high - low).clamp(min=0).prod(dim=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) + (others[:, 2:] - others[:, :2]).prod(dim=1)
    return shared / (areas - shared)


def rois_and_goals(
    target: dict[str, Tensor],
    later: dict[str, Tensor],
    generator: torch.Generator,
    roi_iou: RoiIou = "mix",
    per_object: int = 128,
) -> tuple[Tensor, Tensor]:
    """RoIs (K, 4) in frame t and where each should lead in frame t + tau (K, 4), for objects that are in both.

    target, later: a frame's boxes (M, 4), track_ids (M,), -1 where unknown, and optionally ignore (M,). See
    `sample_rois`.
    """
    starts, goals = in_both(target, later)
    rois, index = sample_rois(starts, generator, roi_iou, per_object)
    return rois, goals[index]


def sample_rois(
    boxes: Tensor, generator: torch.Generator, roi_iou: RoiIou = "mix", per_object: int = 128
) -> tuple[Tensor, Tensor]:
    """RoIs (K, 4) around boxes (M, 4), and which box each is of (K,), as training boxes to track from.

    "lt" is the paper (equation 3): twice as many as wanted, moved by up to a whole side, .5 to 1.5 times as large; of
    those whose IoU with the box is below .5 a random `per_object`. That is nearly all of them (96 %), so the opposite
    reading of the constraint could not give the number that the paper states. Detections lie tighter than that, so
    "gt" has them moved by up to .15 and .85 to 1.15 times as large, all of IoU above .5, and "mix" is half of each.
    RoIs may leave the frame; a small `per_object` may get fewer. generator: of the CPU, wherever the boxes are.
    """
    tight = {"lt": 0, "mix": per_object // 2, "gt": per_object}[roi_iou]
    far = per_object - tight
    candidates = jitter(boxes, 2 * far, 1.0, 0.5, generator)  # (M, 2 far, 4)
    apart = paired_iou(candidates.flatten(0, 1), boxes.repeat_interleave(2 * far, 0)) < 0.5
    apart = apart.reshape(len(boxes), 2 * far)
    first = apart & (apart.cumsum(dim=1) <= far)  # drawn independently, so the first are as random as any
    rois = torch.cat([candidates, jitter(boxes, tight, 0.15, 0.15, generator)], dim=1)
    chosen = torch.cat([first, first.new_ones(len(boxes), tight)], dim=1)
    return rois[chosen], chosen.nonzero()[:, 0]


def jitter(boxes: Tensor, count: int, move: float, scale: float, generator: torch.Generator) -> Tensor:
    """Equation 3 (M, count, 4): centres moved by up to `move` sides, sides 1 - scale to 1 + scale times as long."""
    uniform = torch.rand(len(boxes), count, 4, generator=generator).to(boxes) * 2 - 1  # in [-1, 1)
    centre, side = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2, boxes[:, None, 2:] - boxes[:, None, :2]
    centre = centre + move * uniform[..., :2] * side
    half = (1 + scale * uniform[..., 2:]) * side / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def freeze(module: nn.Module) -> None:
    """No gradients, and batch norms (and dropout) that keep to what they know, so that training leaves it as it was.

    A parent's `train()` wakes the batch norms again: call this at the end of it.
    """
    module.requires_grad_(False).eval()
