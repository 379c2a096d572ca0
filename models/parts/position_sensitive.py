"""Position-sensitive maps: R-FCN's way to say what is in a box from maps that are computed once for a whole image.

"R-FCN: Object Detection via Region-based Fully Convolutional Networks" (Dai et al., 2016), section 2; "Detect to Track
and Track to Detect", section 3.2. Each output has k x k maps, one for each part of an object: top left, ..., bottom
right. A box asks each of its k x k bins only at the map of that part; the bins vote.

Legend: N images, R boxes of all of them, C foreground classes, k bins a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import ps_roi_align, ps_roi_pool

Pooling = Literal["pool", "align"]


def vote(maps: Tensor, boxes: Sequence[Tensor], scale: float, bins: int = 7, pooling: Pooling = "pool") -> Tensor:
    """Asks the maps about boxes: (R, outputs), the mean over the bins of each box.

    maps: (N, outputs * k * k, H, W), the k x k maps of an output side by side, row by row. boxes: for each image
    (its R, 4) xyxy in pixels of the image. scale: of the maps to the image, 1 / 16 for a stride of 16.

    pool: the paper's mean over the cells that a bin touches, once the box's borders are rounded to cells (the release
    rounds to pixels instead; torchvision's rule is taken). Cells outside the maps do not count; a bin of none is 0.
    align: the mean of bilinear samples at the exact place, which small boxes and small motions need; ours. Samples
    outside count as 0. Maps of fewer bits, such as bfloat16, are read as what boxes are: places need it, and so do
    losses.
    """
    maps = maps.to(boxes[0].dtype)
    if pooling == "align":
        pooled = ps_roi_align(maps, list(boxes), bins, scale, sampling_ratio=2)
    else:
        # torchvision never reads the last row and column of a map, as if they were its border: so here is a border.
        pooled = ps_roi_pool(F.pad(maps, (0, 1, 0, 1)), list(boxes), bins, scale)
    return pooled.mean(dim=(2, 3))  # (R, outputs, k, k) -> (R, outputs)


class Maps(NamedTuple):
    """What the head computes of whole images: scores (N, (C + 1) * k * k, H, W), deltas (N, 4 * k * k, H, W)."""

    scores: Tensor
    deltas: Tensor


class PositionSensitiveHead(nn.Module):
    """R-FCN's head: maps of a feature map once, then what they say of any boxes.

    inputs: channels of the feature map. channels, dilation: of the 3x3 convolution that reduces it; D&T's section 5.2.
    Box regression is the same for all classes: 4 outputs, as in the paper (the release has 8, of which it uses 4).
    """

    def __init__(
        self,
        inputs: int,
        num_classes: int,
        *,
        channels: int = 512,
        dilation: int = 6,
        bins: int = 7,
        pooling: Pooling = "pool",
    ) -> None:
        super().__init__()
        self.bins = bins
        self.pooling: Pooling = pooling
        self.reduce = nn.Conv2d(inputs, channels, 3, padding=dilation, dilation=dilation)
        self.scores = nn.Conv2d(channels, (num_classes + 1) * bins**2, 1)
        self.deltas = nn.Conv2d(channels, 4 * bins**2, 1)
        for layer in (self.reduce, self.scores, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def maps(self, features: Tensor) -> Maps:
        """(N, inputs, H, W) -> the maps of N images."""
        x = F.relu(self.reduce(features))
        return Maps(self.scores(x), self.deltas(x))

    def forward(self, maps: Maps, boxes: Sequence[Tensor], scale: float) -> tuple[Tensor, Tensor]:
        """Class logits (R, C + 1), background first, and deltas (R, 4) of the boxes; see `vote`."""
        return (
            vote(maps.scores, boxes, scale, self.bins, self.pooling),
            vote(maps.deltas, boxes, scale, self.bins, self.pooling),
        )
