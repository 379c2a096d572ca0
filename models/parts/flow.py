"""Motion between two frames as optical flow, and what is moved by it: boxes and features.

A flow (2, H, W), float32, says how many pixels of the frame given what is at a pixel of the first frame has moved
right and down in the second. Boxes of the first frame are moved by it to the second (SMOT, equation 2; one frame of
T-CNN's motion-guided propagation, which tracklet-conditioned detection is compared with). Features of the second are
warped by it to the first (flow-guided feature aggregation, Zhu et al., 2017).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.optical_flow import Raft_Small_Weights, raft_small
from torchvision.transforms.functional import rgb_to_grayscale

from models.parts import weights as stored_weights
from models.parts.sampling import bilinear

Method = Literal["none", "farneback", "raft_small"]
RAFT_MULTIPLE, RAFT_LEAST = 8, 128  # px; what its pyramid of correlations needs of a frame's sides


def build(method: Method, weights: str | None = None, short_side: int | None = None) -> Flow:
    """The estimator of a name.

    weights: of raft_small, and of nothing else: a published name (C_T_V1, C_T_V2), a path or a URL. short_side: in px,
    the size at which larger frames are compared; None for their own.
    Raises ValueError where weights are missing, out of place or of another network; FileNotFoundError where there is no
    such file.
    """
    estimators: dict[str, type[Flow]] = {"none": NoFlow, "farneback": Farneback, "raft_small": Raft}
    if method not in estimators:
        raise ValueError(f"flow is {method!r}; it must be one of: {', '.join(estimators)}")
    if (weights is not None) != (method == "raft_small"):
        published = ", ".join(one.name for one in Raft_Small_Weights)
        raise ValueError(
            f"flow raft_small is learned and has no weights; give a name ({published}), a path or a URL"
            if weights is None
            else f"flow {method} has no weights to fill with {weights!r}; only raft_small has"
        )
    estimator = estimators[method](short_side)
    if isinstance(estimator, Raft) and weights is not None:
        estimator.load(weights)
    return estimator.eval()


class Flow(nn.Module, ABC):
    """Two frames in, the flow from the first to the second out.

    short_side: in px, at least 1: frames whose shorter side is longer are reduced to it before they are compared, and
    the flow is enlarged again; None for never.
    """

    def __init__(self, short_side: int | None = None) -> None:
        super().__init__()
        if short_side is not None and short_side < 1:
            raise ValueError(f"flow.short_side is {short_side}; it must be at least 1")
        self.short_side = short_side

    @torch.no_grad()
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """uint8 (3, H, W) and (3, H, W), RGB -> float32 (2, H, W), finite, on their device."""
        assert first.shape == second.shape == (3, *first.shape[-2:])
        assert first.dtype == second.dtype == torch.uint8
        height, width = first.shape[-2:]
        scale = min(1.0, (self.short_side or math.inf) / min(height, width))
        size = self.working_size(max(1, round(height * scale)), max(1, round(width * scale)))
        with torch.autocast(first.device.type, enabled=False):  # a share of a pixel is more than bfloat16 tells
            flow = self.estimate(*(_resized(frame[None].float(), size)[0] for frame in (first, second)))  # (2, *size)
        stretch = flow.new_tensor([width / size[1], height / size[0]])[:, None, None]
        return _resized(flow[None], (height, width))[0] * stretch

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) nearest to the wished ones at which it can work."""
        return height, width

    @abstractmethod
    def estimate(self, first: Tensor, second: Tensor) -> Tensor:
        """float32 (3, h, w) in [0, 255], twice -> (2, h, w) in pixels of that size."""


class NoFlow(Flow):
    """Everything stays where it is."""

    def estimate(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.zeros((2, *first.shape[-2:]), device=first.device)


class Farneback(Flow):
    """Farneback's polynomial expansion, by OpenCV, on grey frames; nothing is learned. SMOT compares 256 x 256 px."""

    def estimate(self, first: Tensor, second: Tensor) -> Tensor:
        before, after = (rgb_to_grayscale(frame)[0].round().byte().cpu().numpy() for frame in (first, second))
        # Values of OpenCV's own example, for no paper says which it took: a pyramid of 3 levels, each half the one
        # below, windows of 15 px, 3 iterations, neighbourhoods of 5 px smoothed by 1.2.
        flow = cv2.calcOpticalFlowFarneback(
            before, after, np.zeros((*before.shape, 2), np.float32), 0.5, 3, 15, 3, 5, 1.2, 0
        )
        return torch.from_numpy(flow).permute(2, 0, 1).contiguous().to(first.device)


class Raft(Flow):
    """RAFT (Teed and Deng, 2020), torchvision's small one, with random weights until `load`; the learned flow here."""

    def __init__(self, short_side: int | None = None) -> None:
        super().__init__(short_side)
        self.network = raft_small(weights=None)

    def load(self, weights: str) -> stored_weights.Report:
        """Fills the network; see `build`."""
        return stored_weights.load_weights(self.network, weights, {one.name: one.url for one in Raft_Small_Weights})

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        height, width = (max(RAFT_LEAST, -(-side // RAFT_MULTIPLE) * RAFT_MULTIPLE) for side in (height, width))
        return height, width

    def estimate(self, first: Tensor, second: Tensor) -> Tensor:
        before, after = (frame[None] / 127.5 - 1 for frame in (first, second))  # [-1, 1], as it was trained
        flow: Tensor = self.network(before, after)[-1][0]  # the last of its refinements
        return flow


def move_boxes(boxes: Tensor, flow: Tensor) -> Tensor:
    """Boxes (N, 4) xyxy of the first frame, each moved by the mean flow (2, H, W) of the pixels that it touches.

    Of a box that reaches out of the frame the pixels inside count; one that touches none, or none whose flow is finite,
    stays. Nothing is cut at the border: what leaves the frame is to have left it.
    """
    height, width = flow.shape[-2:]
    known = flow.isfinite().all(dim=0, keepdim=True)  # (1, H, W)
    values = torch.cat([flow.where(known, 0), known]).double()
    sums = F.pad(values.cumsum(1).cumsum(2), (1, 0, 1, 0))  # (3, H + 1, W + 1), over all above and to the left
    x1, x2 = (side.clamp(0, width).long() for side in (boxes[:, 0].floor(), boxes[:, 2].ceil()))
    y1, y2 = (side.clamp(0, height).long() for side in (boxes[:, 1].floor(), boxes[:, 3].ceil()))
    inside = sums[:, y2, x2] - sums[:, y1, x2] - sums[:, y2, x1] + sums[:, y1, x1]  # (3, N)
    mean = (inside[:2] / inside[2].clamp(min=1)).to(boxes.dtype)  # (2, N)
    return boxes + mean.T.repeat(1, 2)


def warp(features: Tensor, flow: Tensor, stride: int) -> Tensor:
    """Features (N, C, h, w) of second frames, drawn to where their first frames have the same: (N, C, h, w).

    flow: (N, 2, H, W), from the first frames to the second, in pixels. stride: of the features, in pixels; a cell moves
    by the mean flow of the pixels that it stands for, and those that padding added move like the nearest of the frame.
    Values between cells are bilinear, those outside the map 0.
    """
    rows, columns = features.shape[-2:]
    height, width = flow.shape[-2:]
    below, right = rows * stride - height, columns * stride - width
    assert min(below, right) >= 0
    padded = F.pad(flow, (0, right, 0, below), mode="replicate")
    shift = F.avg_pool2d(padded, stride) / stride  # (N, 2, h, w), in cells
    y, x = torch.meshgrid(
        torch.arange(rows, device=flow.device), torch.arange(columns, device=flow.device), indexing="ij"
    )
    where = (torch.stack([x, y]) + shift).permute(0, 2, 3, 1)  # (N, h, w, 2), in cells, x then y
    return bilinear(features, where)


def aggregate(features: Tensor, embeddings: Tensor, reference: int) -> Tensor:
    """The mean (C, h, w) over frames of warped features (T, C, h, w), at each cell weighted by likeness to `reference`.

    embeddings: (T, E, h, w), warped alike. A weight is exp(cosine to the reference's embedding), and those of all
    frames sum to 1 (flow-guided feature aggregation, equations 2 and 3).
    """
    unit = F.normalize(embeddings, dim=1)  # F.cosine_similarity gives the same, more slowly
    cosine = (unit * unit[reference]).sum(dim=1)  # (T, h, w)
    return (cosine.softmax(dim=0)[:, None] * features).sum(dim=0)


def _resized(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, H, W) at another (height, width), bilinear and without aliasing; itself where it has that size."""
    if tuple(pictures.shape[-2:]) == size:
        return pictures
    return F.interpolate(pictures, size, mode="bilinear", antialias=True)
