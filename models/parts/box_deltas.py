"""Boxes as deltas from other boxes: R-CNN's parametrisation of box regression, and D&T's of tracks.

"Detect to Track and Track to Detect", section 3.3, equations 2 and 3; Girshick et al., "Rich feature hierarchies",
2014, appendix C.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_LOG_SCALE = math.log(1000 / 16)  # no side grows more than this, as in torchvision

Four = tuple[float, float, float, float]


@dataclass(frozen=True)
class BoxDeltas:
    """Deltas (x, y, w, h), less their means and over their standard deviations.

    As it stands it is equations 2 and 3. Box regression learns faster with deltas of about unit size: R-FCN takes means
    and standard deviations of its training set; (.1, .1, .2, .2) are Faster R-CNN's.
    """

    means: Four = (0.0, 0.0, 0.0, 0.0)
    stds: Four = (1.0, 1.0, 1.0, 1.0)

    def encode(self, start: Tensor, end: Tensor) -> Tensor:
        """What leads from boxes (..., 4) to boxes (..., 4), both xyxy with sides above 0: deltas (..., 4).

        The centre moves in units of the start's width and height; the sides are the log of how much they grow.
        """
        start_side, end_side = start[..., 2:] - start[..., :2], end[..., 2:] - end[..., :2]
        centre = (end[..., :2] + end[..., 2:] - start[..., :2] - start[..., 2:]) / 2
        deltas = torch.cat([centre / start_side, (end_side / start_side).log()], dim=-1)
        return (deltas - deltas.new_tensor(self.means)) / deltas.new_tensor(self.stds)

    def decode(self, start: Tensor, deltas: Tensor) -> Tensor:
        """Where deltas (..., 4) lead from boxes (..., 4): boxes (..., 4)."""
        deltas = deltas * deltas.new_tensor(self.stds) + deltas.new_tensor(self.means)
        side = start[..., 2:] - start[..., :2]
        centre = start[..., :2] + side / 2 + deltas[..., :2] * side
        half = side * deltas[..., 2:].clamp(max=MAX_LOG_SCALE).exp() / 2
        return torch.cat([centre - half, centre + half], dim=-1)
