"""The track branch: whose deltas it learns, what its loss says, the moves it gives out, and that it sees motion."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from models.parts.box_deltas import BoxDeltas
from models.parts.correlation import correlation, num_channels
from models.parts.position_sensitive import PositionSensitiveHead, vote
from models.parts.track_branch import TrackBranch, in_both, moves, track_loss

PLAIN = BoxDeltas()
NONE = torch.zeros(0, dtype=torch.long)


def frame(boxes: list[list[float]], ids: list[int], ignore: list[bool] | None = None) -> dict[str, Tensor]:
    given = {"boxes": torch.tensor(boxes).reshape(-1, 4), "track_ids": torch.tensor(ids, dtype=torch.long)}
    return given if ignore is None else {**given, "ignore": torch.tensor(ignore, dtype=torch.bool)}


A, B, C = [0.0, 0, 9, 9], [20.0, 0, 29, 9], [40.0, 0, 49, 9]


@pytest.mark.parametrize(
    ("first", "second", "start", "end"),
    [
        pytest.param(frame([A, B], [4, 7]), frame([C, A], [7, 4]), [A, B], [A, C], id="in another order"),
        pytest.param(frame([A, B], [4, 7]), frame([C], [9]), [], [], id="one left, another came"),
        pytest.param(frame([A, B], [-1, 7]), frame([A, C], [-1, 7]), [B], [C], id="unknown is not the same"),
        pytest.param(frame([A, B], [1, 2], [True, False]), frame([A, B], [1, 2]), [B], [B], id="ignored at first"),
        pytest.param(frame([A, B], [1, 2]), frame([A, B], [1, 2], [False, True]), [A], [A], id="ignored later"),
        pytest.param(frame([], []), frame([A], [1]), [], [], id="nothing at first"),
        pytest.param(frame([A], [1], [False]), frame([], [], []), [], [], id="nothing later"),
    ],
)
def test_objects_that_appear_in_both_frames(
    first: dict[str, Tensor], second: dict[str, Tensor], start: list[list[float]], end: list[list[float]]
) -> None:
    found = in_both(first, second)
    assert [boxes.tolist() for boxes in found] == [start, end]
    assert [boxes.shape[1] for boxes in found] == [4, 4]


def test_track_loss_by_hand() -> None:
    start, end = torch.tensor([[40.0, 35, 60, 45], [0, 0, 8, 8]]), torch.tensor([[44.0, 36, 64, 46], [0, 0, 8, 8]])
    deltas = torch.tensor([[0.2, 0.1, 0.0, 0.0], [0.4, 0.0, 0.0, 3.0]])  # the first is right
    assert track_loss(deltas, start, end, PLAIN).item() == pytest.approx((0.4**2 / 2 + 2.5) / 2)
    scaled = BoxDeltas(stds=(0.1, 0.1, 0.2, 0.2))
    assert track_loss(torch.tensor([[2.0, 1.0, 0.0, 0.0]]), start[:1], end[:1], scaled).item() == pytest.approx(0)


def test_the_branch_is_a_vote_on_the_mix_of_what_it_is_given() -> None:
    torch.manual_seed(0)
    branch = TrackBranch(9 + 25, bins=3)
    first, second = torch.randn(2, 36, 6, 7), torch.randn(2, 36, 6, 7)
    near, far = torch.randn(2, 9, 6, 7), torch.randn(2, 25, 6, 7)
    boxes = [torch.tensor([[0.0, 0, 30, 40]]), torch.tensor([[8.0, 8, 50, 30], [0, 0, 1, 1]])]
    weight, bias = branch.deltas.weight[:, :, 0, 0], branch.deltas.bias
    assert bias is not None
    mixed = torch.einsum("oc,nchw->nohw", weight, torch.cat([first, second, near, far], dim=1)) + bias[:, None, None]
    found = branch(branch.maps(first, second, [near, far]), boxes, 1 / 8)
    assert found.shape == (3, 4)
    torch.testing.assert_close(found, vote(mixed, boxes, 1 / 8, 3), atol=1e-6, rtol=1e-4)


def test_channels_of_the_paper() -> None:
    """392 of both frames, 659 of the correlations at conv3, conv4 and conv5."""
    with torch.device("meta"):
        branch = TrackBranch(num_channels(8, 2) + 2 * num_channels(8))
    assert branch.deltas.weight.shape == (196, 392 + 659, 1, 1)


def test_no_object_in_both_frames_is_no_loss_and_no_gradient() -> None:
    branch = TrackBranch(9, bins=3)
    maps = branch.maps(torch.ones(1, 36, 5, 5), torch.ones(1, 36, 5, 5), [torch.ones(1, 9, 5, 5)])
    none = torch.zeros(0, 4)
    loss = track_loss(branch(maps, [none], 1 / 8), none, none, PLAIN)
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in branch.parameters())


SIZE = (60, 100)
REGIONS = torch.tensor([[10.0, 10, 20, 20], [30, 10, 40, 20], [80, 10, 98, 20], [50, 50, 51, 51]])


def test_moves_of_all_boxes_that_may_be_something() -> None:
    deltas = torch.tensor([[0.5, 0, 0, 0], [0, 0, 0, 0], [0.5, 0, 0, 0], [0, 0, 0, 0]])
    probabilities = torch.tensor([[0.1, 0.3, 0.6], [0.985, 0.006, 0.009], [0.2, 0.7, 0.1], [0.98, 0.015, 0.005]])
    detected = torch.tensor([2, 0, 2])  # the last box is no detection, the third is two
    found = moves(REGIONS, deltas, probabilities, detected, SIZE, PLAIN)
    assert torch.equal(found["start"], REGIONS[[0, 2, 3]])
    torch.testing.assert_close(found["end"], torch.tensor([[15.0, 10, 25, 20], [89, 10, 100, 20], [50, 50, 51, 51]]))
    torch.testing.assert_close(found["scores"], torch.tensor([0.6, 0.7, 0.015]))
    assert found["box_id"].tolist() == [1, 0, -1]


@pytest.mark.parametrize(
    ("delta", "probability", "count"),
    [
        pytest.param([0.0, 0, 0, 0], 0.02, 1, id="stays"),
        pytest.param([4.5, 0, 0, 0], 0.9, 1, id="half of it leaves"),
        pytest.param([9.0, 0, 0, 0], 0.9, 0, id="leaves the frame"),
        pytest.param([0.0, 0, 0, 0], 0.01, 0, id="no more than .01"),
    ],
)
def test_which_moves_are_given_out(delta: list[float], probability: float, count: int) -> None:
    box = torch.tensor([[50.0, 10, 60, 20]])
    given = torch.tensor([[1 - probability, probability]], dtype=torch.float64)
    found = moves(box, torch.tensor([delta]), given, NONE, SIZE, PLAIN)
    assert [len(column) for column in found.values()] == [count] * 4
    assert (found["box_id"] == -1).all()


def test_no_boxes_are_no_moves() -> None:
    none = torch.zeros(0, 4)
    found = moves(none, none, torch.zeros(0, 3), NONE, SIZE, PLAIN)
    assert [tuple(column.shape) for column in found.values()] == [(0, 4), (0, 4), (0,), (0,)]


STRIDE, REACH, CHANNELS = 8, 3, 16


@dataclass(frozen=True)
class Pairs:
    """Feature maps of two frames (N, C, 12, 14), and the box of one object in each (N, 4)."""

    first: Tensor
    second: Tensor
    start: Tensor
    end: Tensor


def moved_textures(count: int, seed: int) -> Pairs:
    """Noise, but for 5 x 5 cells of it that move by up to REACH cells."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(count, CHANNELS, 12, 14, generator=generator) for _ in range(2))
    start, end = torch.zeros(count, 4), torch.zeros(count, 4)
    for n in range(count):
        y, x = (int(torch.randint(REACH, side - 5 - REACH + 1, (), generator=generator)) for side in (12, 14))
        down, along = torch.randint(-REACH, REACH + 1, (2,), generator=generator).tolist()
        second[n, :, y + down : y + down + 5, x + along : x + along + 5] = first[n, :, y : y + 5, x : x + 5]
        start[n] = torch.tensor([x, y, x + 5, y + 5]) * STRIDE
        end[n] = start[n] + torch.tensor([along, down, along, down]) * STRIDE
    return Pairs(first, second, start, end)


class Tracker(nn.Module):
    """Head and branch on given features, as a model has them."""

    def __init__(self, reach: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.reach = reach
        self.head = PositionSensitiveHead(CHANNELS, 1, channels=4, dilation=1, bins=3, pooling="align")
        self.branch = TrackBranch(num_channels(reach), bins=3, pooling="align")

    def forward(self, pairs: Pairs) -> Tensor:
        """Track deltas (N, 4)."""
        deltas = [self.head.maps(features).deltas for features in (pairs.first, pairs.second)]
        maps = self.branch.maps(*deltas, [correlation(pairs.first, pairs.second, self.reach)])
        found: Tensor = self.branch(maps, list(pairs.start[:, None]), 1 / STRIDE)
        return found

    def learn(self, batches: Iterable[Pairs]) -> None:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        for pairs in batches:
            optimizer.zero_grad()
            track_loss(self(pairs), pairs.start, pairs.end, PLAIN).backward()
            optimizer.step()

    @torch.no_grad()
    def mean_iou(self, pairs: Pairs) -> float:
        """Of where it takes the boxes with where they are."""
        return float(box_iou(PLAIN.decode(pairs.start, self(pairs)), pairs.end).diagonal().mean())


def test_it_learns_moves_and_sizes_by_heart() -> None:
    pairs = moved_textures(4, 0)
    growth = torch.tensor([[0.0, 0, 8, -4], [-8, -8, 8, 8], [4, 4, 0, 0], [0, 0, 0, 16]])
    pairs = replace(pairs, end=pairs.end + growth)
    tracker = Tracker(REACH)
    tracker.learn([pairs] * 80)
    assert tracker.mean_iou(pairs) > 0.95


def test_it_learns_to_read_motion_off_the_correlations() -> None:
    """Objects that it never saw: .59, where boxes that stay have .31; without displacements, no better."""
    unseen = moved_textures(100, 1000)
    stay = float(box_iou(unseen.start, unseen.end).diagonal().mean())
    with_correlation, without = Tracker(REACH), Tracker(0)
    for tracker in (with_correlation, without):
        tracker.learn(moved_textures(16, seed) for seed in range(100))
    assert with_correlation.mean_iou(unseen) > 0.5
    assert without.mean_iou(unseen) < stay + 0.05
