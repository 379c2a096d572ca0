"""The embeddings of tracklet-conditioned detection: which boxes of which frames show the same object.

"Integrated Object Detection and Tracking with Tracklet-Conditioned Detection", section 2.3. Every anchor has E_anchor,
which is compared with tracklets in the first stage; every region E_s2, compared with tracklets in the second, and E_s1,
which is only remembered, for the anchors of the frames to come. Table 2 has three ways to come by E_s1.

A pyramid's levels share one anchor branch, as they share the layers that it is a sibling of; the paper has one level.

Legend: N frames, A anchors of a level, R regions, D channels, h x w cells.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from models.parts.small_detector import per_anchor
from models.parts.two_stage import Regions, TwoStage

SIZE = 128  # section 2.2

Kind = Literal["separate_2fc", "shared_2fc", "fully_shared", "fc7"]


class Embeddings(nn.Module):
    """The branches on a detector, in the paper's terms and by Table 2.

    kind: where E_s1 comes from: separate_2fc: two more layers on the pooled region, as wide as the head's own, and one
    to E_s1; shared_2fc: one layer on what the head's two give; fully_shared: it is E_s2. Or fc7 (ours), with nothing to
    train and without anchors: E_s2 is what the head's second layer gives, less its mean over the frame's regions. It is
    not negative, so that any two regions resemble each other; less the mean, only some do.

    sizes: how many numbers E_s1 and E_s2 have.
    """

    def __init__(self, detector: TwoStage, kind: Kind = "separate_2fc", size: int = SIZE) -> None:
        super().__init__()
        self.kind = kind
        self.size = size
        self.sizes = (0, detector.hidden) if kind == "fc7" else (size, size)
        if kind == "fc7":
            return
        self.anchors = nn.Conv2d(detector.tower_channels, detector.per_cell * size, 1)
        self.stage_2 = nn.Linear(detector.hidden, size)
        if kind == "separate_2fc":
            self.stage_1: nn.Module = nn.Sequential(
                nn.Flatten(),
                nn.Linear(detector.pooled_channels * detector.pooled_side**2, detector.hidden),
                nn.ReLU(),
                nn.Linear(detector.hidden, detector.hidden),
                nn.ReLU(),
                nn.Linear(detector.hidden, size),
            )
        elif kind == "shared_2fc":
            self.stage_1 = nn.Linear(detector.hidden, size)

    def of_anchors(self, tower: Tensor) -> Tensor:
        """E_anchor of a level's anchors, in their order in `Dense`: tower (N, D, h, w) -> (N, A, size)."""
        assert self.kind != "fc7", "there is nothing that anchors and regions could be compared by"
        embeddings: Tensor = per_anchor(self.anchors(tower), self.size)
        return embeddings

    def stage_1_of(self, regions: Regions) -> Tensor:
        """E_s1 of a frame's regions: (R, sizes[0])."""
        if self.kind == "fc7":
            return regions.embeddings[:, :0]
        if self.kind == "fully_shared":
            return self.stage_2_of(regions)
        embeddings: Tensor = self.stage_1(regions.pooled if self.kind == "separate_2fc" else regions.embeddings)
        return embeddings

    def stage_2_of(self, regions: Regions) -> Tensor:
        """E_s2 of a frame's regions, for fc7 of all that it has: (R, sizes[1])."""
        if self.kind == "fc7":
            return regions.embeddings - (regions.embeddings.mean(dim=0) if len(regions.embeddings) else 0)
        embeddings: Tensor = self.stage_2(regions.embeddings)
        return embeddings

    def nothing(self) -> Tensor:
        """0 that depends on all branches, so that each has a gradient in a batch that teaches none."""
        return sum((weight.sum() * 0 for weight in self.parameters()), torch.zeros(()))
