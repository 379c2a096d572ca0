"""Values of feature maps between their cells, where other modules ask for them: warping, deformable convolutions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bilinear(features: Tensor, places: Tensor) -> Tensor:
    """Features (N, C, H, W) at places (N, h, w, 2), x before y, in cells from 0: (N, C, h, w); 0 outside the map."""
    height, width = features.shape[-2:]
    grid = (2 * places + 1) / places.new_tensor([width, height]) - 1  # grid_sample: -1 and 1 at the map's outer edges
    return F.grid_sample(features, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
