"""Clips and their boxes, mirrored and recoloured alike: what a network is to see no difference in."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from pipeline.training.sampling import Draw

Targets = list[dict[str, Tensor]]  # of each frame, as `labelled.target_of` makes them


def turned(clip: Tensor, targets: Targets, draw: Draw) -> tuple[Tensor, Targets]:
    """A clip uint8 (T, 3, H, W) and the targets of its frames as a draw wants them."""
    if draw.colours != (0, 1, 2):
        clip = clip[:, list(draw.colours)]
    if draw.flip:
        clip, targets = mirrored(clip, targets, 3)
    if draw.flip_vertical:
        clip, targets = mirrored(clip, targets, 2)
    return clip, targets


def mirrored(clip: Tensor, targets: Targets, axis: Literal[2, 3]) -> tuple[Tensor, Targets]:
    """A clip (T, 3, H, W) and its boxes upside down (axis 2) or left to right (axis 3)."""
    length = clip.shape[axis]
    low, high = (1, 3) if axis == 2 else (0, 2)
    found = []
    for target in targets:
        boxes = target["boxes"].clone()
        boxes[:, low], boxes[:, high] = length - target["boxes"][:, high], length - target["boxes"][:, low]
        found.append({**target, "boxes": boxes})
    return clip.flip(axis), found
