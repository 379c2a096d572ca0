"""Deltas between boxes: the numbers of equations 2 and 3, the way back, and torchvision's own coder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from models.parts.box_deltas import MAX_LOG_SCALE, BoxDeltas


def random_boxes(count: int, seed: int) -> Tensor:
    values = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed))
    corner = values[:, :2] * 100 - 20
    return torch.cat([corner, corner + 1 + values[:, 2:] * 60], dim=1)


def test_a_track_by_hand() -> None:
    start = torch.tensor([[40.0, 35.0, 60.0, 45.0]])  # centre (50, 40), 20 x 10
    end = torch.tensor([[42.0, 36.0, 66.0, 46.0]])  # centre (54, 41), 24 x 10
    torch.testing.assert_close(BoxDeltas().encode(start, end), torch.tensor([[0.2, 0.1, 0.1823216, 0.0]]))


CODERS = [
    pytest.param(BoxDeltas(), id="equations 2 and 3"),
    pytest.param(BoxDeltas((0.01, -0.02, 0.1, 0.0), (0.1, 0.1, 0.2, 0.2)), id="means and standard deviations"),
]


@pytest.mark.parametrize("coder", CODERS)
def test_decoding_is_the_way_back(coder: BoxDeltas) -> None:
    start, end = random_boxes(50, 0), random_boxes(50, 1)
    torch.testing.assert_close(coder.decode(start, coder.encode(start, end)), end, atol=1e-4, rtol=0)
    point = torch.tensor([[3.0, 4.0, 4.0, 5.0]])  # one pixel
    torch.testing.assert_close(coder.decode(point, coder.encode(point, end[:1])), end[:1], atol=1e-4, rtol=0)
    assert coder.encode(start[:0], end[:0]).shape == coder.decode(start[:0], end[:0]).shape == (0, 4)


def test_standard_deviations_are_torchvisions_weights() -> None:
    theirs, ours = BoxCoder((10.0, 10.0, 5.0, 5.0)), BoxDeltas(stds=(0.1, 0.1, 0.2, 0.2))
    start, end = random_boxes(50, 2), random_boxes(50, 3)
    deltas = theirs.encode_single(end, start)
    torch.testing.assert_close(ours.encode(start, end), deltas, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.decode(start, deltas), theirs.decode_single(deltas, start), atol=1e-4, rtol=0)


def test_deltas_of_a_set_of_boxes_are_of_unit_size_with_its_own_means_and_deviations() -> None:
    start, end = random_boxes(400, 4), random_boxes(400, 5)
    plain = BoxDeltas().encode(start, end)
    means, stds = plain.mean(dim=0), plain.std(dim=0)
    coder = BoxDeltas(tuple(means.tolist()), tuple(stds.tolist()))  # type: ignore[arg-type]
    deltas = coder.encode(start, end)
    torch.testing.assert_close(deltas.mean(dim=0), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(deltas.std(dim=0), torch.ones(4), atol=1e-4, rtol=0)


def test_an_untrained_network_gives_no_infinite_box() -> None:
    grown = BoxDeltas().decode(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 1e4, -1e4]]))
    assert torch.isfinite(grown).all()
    torch.testing.assert_close(grown[0, 2] - grown[0, 0], 2 * torch.tensor(MAX_LOG_SCALE).exp())
