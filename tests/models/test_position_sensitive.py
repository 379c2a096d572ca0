"""Position-sensitive maps: pooling against its definition, at the border too, the order of maps, and the head."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import ps_roi_align, ps_roi_pool

from models.parts.position_sensitive import Maps, Pooling, PositionSensitiveHead, vote


def by_definition(maps: Tensor, boxes: Tensor, scale: float, bins: int) -> Tensor:
    """The vote about boxes (R, 4) of one image's maps (outputs * k * k, H, W), bin by bin."""
    channels, height, width = maps.shape
    outputs = channels // bins**2
    found = torch.zeros(len(boxes), outputs)
    for r, box in enumerate(boxes.tolist()):
        left, top, right, bottom = (rounded(side * scale) for side in box)
        bin_width, bin_height = max(right - left, 1) / bins, max(bottom - top, 1) / bins
        for output in range(outputs):
            for i in range(bins):
                for j in range(bins):
                    rows = range(top + math.floor(i * bin_height), top + math.ceil((i + 1) * bin_height))
                    columns = range(left + math.floor(j * bin_width), left + math.ceil((j + 1) * bin_width))
                    cells = [(y, x) for y in rows for x in columns if 0 <= y < height and 0 <= x < width]
                    part = maps[(output * bins + i) * bins + j]
                    if cells:
                        found[r, output] += sum(float(part[y, x]) for y, x in cells) / len(cells) / bins**2
    return found


def rounded(number: float) -> int:
    """To the nearest integer, halves away from 0."""
    return int(math.copysign(math.floor(abs(number) + 0.5), number))


def random_maps(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


BOXES = torch.tensor(
    [
        [3.0, 5.0, 60.0, 40.0],
        [0.0, 0.0, 88.0, 72.0],  # the whole image of 11 x 9 cells
        [80.0, 64.0, 88.0, 72.0],  # its last cell
        [41.0, 30.0, 42.0, 31.0],  # one pixel
        [10.0, 60.0, 87.0, 71.9],  # along the bottom
        [-30.0, -20.0, 30.0, 25.0],  # partly outside
        [200.0, 200.0, 230.0, 260.0],  # wholly outside
    ]
)


@pytest.mark.parametrize("bins", [1, 3, 7])
def test_a_vote_is_the_mean_over_bins_of_means_over_cells(bins: int) -> None:
    maps = random_maps(2, 3 * bins**2, 9, 11)
    found = vote(maps, [BOXES, BOXES[:2]], 1 / 8, bins)
    expected = torch.cat([by_definition(maps[0], BOXES, 1 / 8, bins), by_definition(maps[1], BOXES[:2], 1 / 8, bins)])
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert (found[6] == 0).all()


def test_the_last_row_and_column_count() -> None:
    """torchvision by itself takes them for a border: of a box in the last cell it says 0."""
    maps, last = torch.full((1, 1, 9, 11), 5.0), BOXES[2:3]
    assert ps_roi_pool(maps, [last], 1, 1 / 8).item() == 0
    assert vote(maps, [last], 1 / 8, 1).item() == 5


@pytest.mark.parametrize("pooling", ["pool", "align"])
def test_each_bin_asks_the_map_of_its_part(pooling: Pooling) -> None:
    """Maps that are constant: output c says the mean of its own k x k of them; torchvision agrees on which is which."""
    constants = torch.arange(2.0 * 9)
    maps = constants[None, :, None, None].expand(1, -1, 9, 11).contiguous()
    pool = {"pool": ps_roi_pool, "align": ps_roi_align}[pooling]
    torch.testing.assert_close(pool(maps, [BOXES[:1]], 3, 1 / 8)[0], constants.view(2, 3, 3))
    torch.testing.assert_close(vote(maps, [BOXES[:1]], 1 / 8, 3, pooling), torch.tensor([[4.0, 13.0]]))


def test_align_feels_what_pool_rounds_away() -> None:
    ramp = torch.arange(11.0).expand(1, 1, 9, 11)  # a cell says its column
    steps = torch.tensor([0.0, 1.0, 2.0, 3.0])
    boxes = torch.tensor([16.0, 16.0, 48.0, 48.0]) + steps[:, None] * torch.tensor([1.0, 0.0, 1.0, 0.0])
    align = vote(ramp, [boxes], 1 / 8, 1, "align")[:, 0]
    torch.testing.assert_close(align, 3.5 + steps / 8)  # the centre, at (32 + step) / 8 columns, less half a cell
    assert vote(ramp, [boxes], 1 / 8, 1, "pool")[:, 0].tolist() == [3.5] * 4


@pytest.mark.parametrize("pooling", ["pool", "align"])
def test_images_are_asked_about_their_own_boxes_only(pooling: Pooling) -> None:
    head = small_head(pooling)
    features = random_maps(3, 4, 9, 11)
    boxes = [BOXES[:3], BOXES[:0], BOXES[1:5]]
    maps = head.maps(features)
    logits, deltas = head(maps, boxes, 1 / 8)
    assert (logits.shape, deltas.shape) == ((7, 3), (7, 4))
    alone = [head(head.maps(features[n : n + 1]), boxes[n : n + 1], 1 / 8) for n in range(3)]
    torch.testing.assert_close(logits, torch.cat([one[0] for one in alone]))
    torch.testing.assert_close(deltas, torch.cat([one[1] for one in alone]))


@pytest.mark.parametrize("pooling", ["pool", "align"])
def test_no_boxes_at_all_are_no_rows_and_no_gradient(pooling: Pooling) -> None:
    head = small_head(pooling)
    logits, deltas = head(head.maps(random_maps(2, 4, 9, 11)), [BOXES[:0], BOXES[:0]], 1 / 8)
    assert (logits.shape, deltas.shape) == ((0, 3), (0, 4))
    (logits.sum() + deltas.sum()).backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in head.parameters())


def test_channels_of_the_paper() -> None:
    with torch.device("meta"):
        head = PositionSensitiveHead(2048, 30)
        maps = head.maps(torch.zeros(1, 2048, 38, 63))
    assert head.reduce.weight.shape == (512, 2048, 3, 3)
    assert (maps.scores.shape, maps.deltas.shape) == ((1, 49 * 31, 38, 63), (1, 49 * 4, 38, 63))


@pytest.mark.parametrize("pooling", ["pool", "align"])
def test_the_maps_learn_where_the_parts_of_an_object_are(pooling: Pooling) -> None:
    """Two objects that differ only by which half is bright: one map for the whole box could not tell them apart."""
    features = torch.zeros(1, 1, 12, 24)
    features[0, 0, 2:10, 2:6] = 1  # bright on the left
    features[0, 0, 2:10, 18:22] = 1  # bright on the right
    boxes = torch.tensor([[16.0, 16, 80, 80], [112.0, 16, 176, 80]])
    torch.manual_seed(0)
    head = PositionSensitiveHead(1, 1, channels=8, dilation=1, bins=3, pooling=pooling)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(60):
        logits, _ = head(head.maps(features), [boxes], 1 / 8)
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def small_head(pooling: Pooling) -> PositionSensitiveHead:
    torch.manual_seed(0)
    return PositionSensitiveHead(4, 2, channels=6, dilation=2, bins=3, pooling=pooling)


def test_the_heads_answers_are_votes_on_its_maps() -> None:
    head = small_head("pool")
    maps = Maps(random_maps(1, 3 * 9, 9, 11), random_maps(1, 4 * 9, 9, 11))
    logits, deltas = head(maps, [BOXES], 1 / 8)
    torch.testing.assert_close(logits, by_definition(maps.scores[0], BOXES, 1 / 8, 3), atol=1e-6, rtol=0)
    torch.testing.assert_close(deltas, by_definition(maps.deltas[0], BOXES, 1 / 8, 3), atol=1e-6, rtol=0)
