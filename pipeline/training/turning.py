"""Clips and their boxes, mirrored and recoloured alike: what a network is to see no difference in. And padded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from pipeline.training.frames import Targets
from pipeline.training.sampling import Draw

PADDING = (124, 116, 104)  # ImageNet's mean colour, R, G, B: which networks make about 0 of


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


def padded(clips: Sequence[Tensor]) -> list[Tensor]:
    """Clips uint8 (T, 3, H, W) made as large as the largest, to the right and below, so that boxes stay what they are.

    Of videos of several sizes; the padding is background, which objects are told from there too.
    """
    height, width = (max(clip.shape[axis] for clip in clips) for axis in (2, 3))
    found = []
    for clip in clips:
        if clip.shape[2:] != (height, width):
            canvas = torch.tensor(PADDING, dtype=torch.uint8).view(1, 3, 1, 1).repeat(len(clip), 1, height, width)
            canvas[:, :, : clip.shape[2], : clip.shape[3]] = clip
            clip = canvas
        found.append(clip)
    return found
