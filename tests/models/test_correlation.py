"""Correlation: the matrix form against the definition read off the page, its gradients, and what it says of motion."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.parts.correlation import correlation, num_channels


def maps(*shape: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def by_definition(first: Tensor, second: Tensor, reach: int, stride: int, hop: int) -> Tensor:
    """Equation 4, one number at a time."""
    batch, channels, height, width = first.shape
    displacements = range(-(reach // hop) * hop, reach + 1, hop)
    rows, columns = range(0, height, stride), range(0, width, stride)
    found = torch.zeros(batch, len(displacements) ** 2, len(rows), len(columns))
    for n in range(batch):
        for y, i in enumerate(rows):
            for x, j in enumerate(columns):
                for channel, (p, q) in enumerate((p, q) for p in displacements for q in displacements):
                    if 0 <= i + p < height and 0 <= j + q < width:
                        found[n, channel, y, x] = first[n, :, i, j] @ second[n, :, i + p, j + q] / channels
    return found


@pytest.mark.parametrize(
    ("shape", "reach", "stride", "hop"),
    [
        pytest.param((2, 5, 6, 7), 2, 1, 1, id="conv4 and conv5: every position and displacement"),
        pytest.param((1, 3, 11, 10), 4, 2, 2, id="conv3: every other of both"),
        pytest.param((1, 3, 9, 18), 3, 2, 1, id="every other position"),
        pytest.param((1, 3, 10, 9), 4, 1, 2, id="every other displacement"),
        pytest.param((1, 3, 19, 7), 5, 3, 2, id="strides that share no factor; d no multiple of its stride"),
        pytest.param((1, 2, 3, 4), 6, 1, 1, id="displacements that leave the map from everywhere"),
        pytest.param((1, 2, 1, 1), 2, 1, 1, id="a map of one cell"),
        pytest.param((1, 2, 8, 17), 0, 1, 1, id="no displacement"),
        pytest.param((1, 2, 8, 17), 1, 1, 2, id="none but 0 at this stride"),
    ],
)
def test_it_is_equation_4(shape: tuple[int, ...], reach: int, stride: int, hop: int) -> None:
    first, second = maps(*shape)
    found = correlation(first, second, reach, stride, hop)
    assert found.shape[1] == num_channels(reach, hop)
    torch.testing.assert_close(found, by_definition(first, second, reach, stride, hop), atol=1e-6, rtol=0)


def test_it_is_a_sum_of_products_of_shifted_maps() -> None:
    """The form of optical flow networks, over maps of more tiles than one a side."""
    first, second = maps(2, 16, 19, 22)
    shifted = torch.nn.functional.pad(second, (4, 4, 4, 4))
    expected = [(first * shifted[..., p : p + 19, q : q + 22]).mean(dim=1) for p in range(9) for q in range(9)]
    torch.testing.assert_close(correlation(first, second, 4), torch.stack(expected, dim=1), atol=1e-6, rtol=0)


def test_channels_of_the_paper() -> None:
    assert [num_channels(8, 2), num_channels(8), num_channels(8)] == [81, 289, 289]
    conv3, conv4 = torch.zeros(1, 2, 75, 125), torch.zeros(1, 4, 38, 63)  # of a frame of 600 x 1000
    assert correlation(conv3, conv3, 8, 2, 2).shape == (1, 81, 38, 63)
    assert correlation(conv4, conv4, 8).shape == (1, 289, 38, 63)


@pytest.mark.parametrize(("down", "along"), [(2, 3), (-1, 3), (0, 0), (-3, -2)])
def test_the_strongest_response_is_where_everything_went(down: int, along: int) -> None:
    first, _ = maps(1, 64, 12, 12)
    first = torch.nn.functional.normalize(first, dim=1)
    found = correlation(first, first.roll((down, along), dims=(2, 3)), 3)
    inner = found[0, :, 3:-3, 3:-3]  # where nothing came in over the border
    assert (inner.argmax(dim=0) == (down + 3) * 7 + along + 3).all()
    torch.testing.assert_close(inner.amax(dim=0), torch.full((6, 6), 1 / 64))


def test_gradients_of_both_maps_are_those_of_the_definition() -> None:
    given = maps(1, 3, 9, 10)
    ours = [x.clone().requires_grad_() for x in given]
    theirs = [x.clone().requires_grad_() for x in given]
    found, expected = correlation(*ours, 2, 2, 1), by_definition(*theirs, 2, 2, 1)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_pairs_of_a_batch_do_not_meet() -> None:
    first, second = maps(3, 4, 9, 9)
    together = correlation(first, second, 2)
    alone = [correlation(first[n : n + 1], second[n : n + 1], 2) for n in range(3)]
    torch.testing.assert_close(together, torch.cat(alone))
    assert correlation(first[:0], second[:0], 2).shape == (0, 25, 9, 9)
