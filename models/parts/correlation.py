"""Correlation of two feature maps within a square neighbourhood.

"Detect to Track and Track to Detect" (Feichtenhofer, Pinz and Zisserman, 2017), section 3.4, equation 4; the layer is
FlowNet's with a kernel of one cell. Computed tile by tile: all displacements of a tile of positions are one matrix
product with the window around it. That computes twice what is wanted, at the speed of matrix products.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

TILE = 8  # positions a side; at 1024x38x63 and d = 8 on one core .08 s, with 4 or 16 .17 and .11 s


def num_channels(max_displacement: int, displacement_stride: int = 1) -> int:
    """How many channels `correlation` gives: one a displacement."""
    return (2 * (max_displacement // displacement_stride) + 1) ** 2


def correlation(
    first: Tensor, second: Tensor, max_displacement: int, stride: int = 1, displacement_stride: int = 1
) -> Tensor:
    """How alike each cell of the first map is to the cells around it in the second (equation 4).

    first, second: (N, C, H, W). max_displacement: d, in cells. Of the positions i, j every `stride`-th is looked at, of
    the displacements p, q every `displacement_stride`-th, 0 included: D = 2 * (d // displacement_stride) + 1 a side.

    Gives (N, D * D, ceil(H / stride), ceil(W / stride)): the inner product of `first` at (i, j) and `second` at
    (i + p, j + q), 0 where that is outside, divided by C; p down, q along, channels in rows of equal p.

    Two things are the released code's, not the paper's: the division, and that the stride of 2 at conv3 is one of
    displacements too (81 channels; conv4 and conv5, without strides, have 289).
    """
    assert first.shape == second.shape
    steps = max_displacement // displacement_stride
    cell = math.gcd(stride, displacement_stride)  # what lies between is never looked at
    first, second = first[..., ::stride, ::stride], second[..., ::cell, ::cell]
    step, hop = stride // cell, displacement_stride // cell  # from position to position, displacement to displacement
    reach = steps * hop

    batch, channels, height, width = first.shape
    rows, columns = math.ceil(height / TILE), math.ceil(width / TILE)
    bottom = (rows * TILE - 1) * step + 1 + reach - second.shape[2]
    right = (columns * TILE - 1) * step + 1 + reach - second.shape[3]
    first = F.pad(first, (0, columns * TILE - width, 0, rows * TILE - height))
    second = F.pad(second, (reach, right, reach, bottom))

    window = (TILE - 1) * step + 1 + 2 * reach
    tiles = first.unfold(2, TILE, TILE).unfold(3, TILE, TILE)  # (N, C, rows, columns, TILE, TILE)
    tiles = tiles.permute(0, 2, 3, 4, 5, 1).reshape(batch, rows, columns, TILE**2, channels)
    windows = second.unfold(2, window, TILE * step).unfold(3, window, TILE * step)
    windows = windows.permute(0, 2, 3, 1, 4, 5).reshape(batch, rows, columns, channels, window**2)
    products = (tiles @ windows).view(batch, rows, columns, TILE, TILE, window, window)

    # In the window, the displacements of the next position lie one step further: a diagonal, so a matter of strides.
    *tile, down, along, window_down, window_along = products.stride()
    side = 2 * steps + 1  # D
    size = (batch, rows, columns, TILE, TILE, side, side)
    diagonal = (down + step * window_down, along + step * window_along, hop * window_down, hop * window_along)
    wanted = products.as_strided(size, (*tile, *diagonal)).permute(0, 5, 6, 1, 3, 2, 4)
    return wanted.reshape(batch, side**2, rows * TILE, columns * TILE)[..., :height, :width] / channels
