"""What RetinaNet puts on its pyramid, in two wirings: one tower for each task, or one for each anchor shape.

"RetinaTrack: Online Single Stage Joint Detection and Tracking", section 3. RetinaNet tells the K anchors of a cell
apart only in its last layer (equations 1 and 2: `TaskTowers`), so that two objects whose anchors share a cell would
share an embedding. RetinaTrack splits the shapes first (equation 3: `PerAnchorHead`), so that every anchor has a
feature F_ik of its own, of which the tasks and the embedding are then one function (equations 4 to 6).

All layers are shared by the levels i of the pyramid; batch norms are shared by nothing (section 3.4): each level has
its own, and in it each shape.

Legend: N frames, K anchor shapes of a cell, K' features of a cell (K, or 1 that its anchors share), A anchors, A' = A *
K' / K, C classes, D channels, E embedding, h x w cells of a level. Features are (N, K', D, h, w).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PRIOR = -math.log((1 - 0.01) / 0.01)  # a score starts at .01 everywhere (RetinaNet, section 4.1)


@dataclass(frozen=True)
class HeadOutputs:
    """What a head says of every anchor of N frames, level by level, cell by cell, row by row, shape by shape.

    classes: (N, A, C), logits; deltas: (N, A, 4); objectness: (N, A), logits, or None. instances: of each level
    (N, K', D, h, w), what embeddings are made of.
    """

    classes: Tensor
    deltas: Tensor
    objectness: Tensor | None
    instances: tuple[Tensor, ...]


class Layer(nn.Module):
    """A convolution that is the same on every level, a batch norm of each level's own, and ReLU.

    (N, K' or 1, inputs, h, w) -> (N, K', outputs, h, w). own: each of the shapes has weights of its own, which is one
    grouped convolution; else all share them, the shapes beside the frames in the batch.
    """

    def __init__(self, inputs: int, outputs: int, shapes: int, levels: int, *, kernel: int = 3, own: bool = False):
        super().__init__()
        self.shapes, self.own = shapes, own
        # (shapes * outputs, inputs, 3, 3) or (outputs, inputs, 3, 3); `forward` groups it
        self.convolution = nn.Conv2d(inputs, outputs * (shapes if own else 1), kernel, padding=kernel // 2, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(shapes * outputs) for _ in range(levels)])

    def forward(self, x: Tensor, level: int) -> Tensor:
        weight, padding = self.convolution.weight, self.convolution.padding
        if self.own:  # a group for each shape of the input, which is one before the shapes are split
            y = F.conv2d(x.flatten(1, 2), weight, padding=padding, groups=x.shape[1])
        else:
            y = F.conv2d(x.flatten(0, 1), weight, padding=padding)
            y = y.unflatten(0, x.shape[:2]).flatten(1, 2)
        return F.relu(self.norms[level](y)).unflatten(1, (self.shapes, -1))


class Head(nn.Module):
    """What both wirings have: the last layers, of `num_classes` logits and four deltas an anchor.

    shapes: K. apart: whether a cell has a feature for each shape. objectness: says also, beside the box, whether there
    is any object, for networks that score by it.
    """

    def __init__(self, num_classes: int, channels: int, shapes: int, *, apart: bool, objectness: bool) -> None:
        super().__init__()
        self.num_classes, self.channels, self.shapes = num_classes, channels, shapes
        self.instances = shapes if apart else 1  # K'
        of_one = shapes // self.instances  # anchors that one feature speaks for
        self.classes = nn.Conv2d(channels, of_one * num_classes, 3, padding=1)
        self.deltas = nn.Conv2d(channels, of_one * 4, 3, padding=1)
        self.objectness = nn.Conv2d(channels, of_one, 3, padding=1) if objectness else None
        scores = self.objectness if self.objectness is not None else self.classes
        for layer in (self.classes, self.deltas, scores):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.constant_(layer.bias, PRIOR if layer is scores else 0.0)

    def features(self, x: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """(N, D, h, w) of a level -> features for embeddings, classes and boxes, (N, K', D, h, w) each."""
        raise NotImplementedError

    def forward(self, levels: Sequence[Tensor]) -> HeadOutputs:
        """The levels of a pyramid, (N, D, h, w) each, finest first -> what they say of every anchor."""
        instances, of_classes, of_boxes = zip(
            *(self.features(x, number) for number, x in enumerate(levels)), strict=True
        )
        objectness = None if self.objectness is None else predicted(self.objectness, of_boxes, 1).squeeze(-1)
        classes = predicted(self.classes, of_classes, self.num_classes)
        return HeadOutputs(classes, predicted(self.deltas, of_boxes, 4), objectness, instances)


class PerAnchorHead(Head):
    """RetinaTrack's: m1 layers for each shape, which are F_ik, then m2 for each task, the same for all shapes."""

    def __init__(
        self, num_classes: int, channels: int, shapes: int, levels: int, m1: int, m2: int, *, objectness: bool = False
    ) -> None:
        super().__init__(num_classes, channels, shapes, apart=True, objectness=objectness)
        assert m1 > 0, "without layers of its own no shape has features of its own"

        def tower(depth: int, own: bool) -> nn.ModuleList:
            return nn.ModuleList([Layer(channels, channels, shapes, levels, own=own) for _ in range(depth)])

        self.task_shared, self.class_tower, self.box_tower = tower(m1, True), tower(m2, False), tower(m2, False)

    def features(self, x: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        instances = through(self.task_shared, x[:, None], level)  # equation 3
        return instances, through(self.class_tower, instances, level), through(self.box_tower, instances, level)


class TaskTowers(Head):
    """RetinaNet's: a tower of `depth` layers for each task, or one for both; anchors of a cell part in the last layer.

    What embeddings are made of is the class tower's last layer, so that anchors that collide share them: RetinaNet*,
    of which the paper does not say where it takes them.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int,
        shapes: int,
        levels: int,
        depth: int,
        *,
        shared: bool,
        objectness: bool = False,
    ) -> None:
        super().__init__(num_classes, channels, shapes, apart=False, objectness=objectness)
        self.class_tower = nn.ModuleList([Layer(channels, channels, 1, levels) for _ in range(depth)])
        self.box_tower = None if shared else nn.ModuleList([Layer(channels, channels, 1, levels) for _ in range(depth)])

    def features(self, x: Tensor, level: int) -> tuple[Tensor, Tensor, Tensor]:
        of_classes = through(self.class_tower, x[:, None], level)
        of_boxes = of_classes if self.box_tower is None else through(self.box_tower, x[:, None], level)
        return of_classes, of_classes, of_boxes


class EmbeddingBranch(nn.Module):
    """Equation 6: m3 1x1 convolutions from features to embeddings, the same for all levels and shapes.

    Each has `size` outputs (256 in the paper), batch norm and ReLU after each but the last. Without any the features
    are the embeddings, of `channels`.
    """

    def __init__(self, channels: int, size: int, instances: int, levels: int, m3: int) -> None:
        super().__init__()
        widths = [channels, *[size] * (m3 - 1)]
        self.layers = nn.ModuleList(
            [Layer(before, after, instances, levels, kernel=1) for before, after in pairwise(widths)]
        )
        self.last = nn.Conv2d(widths[-1], size, 1) if m3 else None

    def forward(self, instances: Sequence[Tensor]) -> Tensor:
        """Features (N, K', D, h, w) of each level -> embeddings (N, A', E); see `of_anchors`."""
        if self.last is None:
            return rows(instances)
        inner = [through(self.layers, x, level) for level, x in enumerate(instances)]
        return rows([self.last(x.flatten(0, 1)).unflatten(0, x.shape[:2]) for x in inner])


def of_anchors(embeddings: Tensor, anchors: Tensor, num_anchors: int) -> Tensor:
    """The embeddings (n, E) of some anchors (n,), by index, of a frame's (A', E); A' is `num_anchors` or a share of it.

    As anchors lie cell by cell, those that share an embedding lie side by side.
    """
    return embeddings[anchors // (num_anchors // len(embeddings))]


def through(layers: nn.ModuleList, x: Tensor, level: int) -> Tensor:
    """x (N, K', D, h, w) of a level after some layers."""
    for layer in layers:
        x = layer(x, level)
    return x


def predicted(layer: nn.Conv2d, features: Sequence[Tensor], values: int) -> Tensor:
    """What a last layer says of each anchor, level by level: (N, A, values), float32 though layers be of bfloat16."""
    maps = [layer(x.flatten(0, 1)).unflatten(0, x.shape[:2]).flatten(1, 2) for x in features]  # (N, K * values, h, w)
    return rows([x.unflatten(1, (-1, values)) for x in maps]).float()


def rows(levels: Sequence[Tensor]) -> Tensor:
    """(N, k, values, h, w) of each level -> (N, the sum of h * w * k, values)."""
    return torch.cat([x.permute(0, 3, 4, 1, 2).flatten(1, 3) for x in levels], dim=1)
