"""Flow between frames that moved by a known amount, and boxes and features that are moved by flows that are known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.parts.flow import Farneback, Flow, Raft, aggregate, build, move_boxes, warp
from models.parts.weights import write_weights


def textured(height: int, width: int) -> Tensor:
    """A picture uint8 (3, H, W) of soft blobs that repeats beyond its borders."""
    noise = torch.rand((1, 3, height, width), generator=torch.Generator().manual_seed(0))
    blurred = F.avg_pool2d(F.pad(noise, (3, 3, 3, 3), mode="circular"), 7, stride=1)
    low, high = blurred.min(), blurred.max()
    return ((blurred - low) / (high - low) * 255)[0].byte()


def constant(dx: float, dy: float, height: int = 20, width: int = 30) -> Tensor:
    return torch.tensor([dx, dy], dtype=torch.float32)[:, None, None].expand(2, height, width).clone()


class Shift(Flow):
    """Says that all moves by 2 px right and 1 px down of the size it is asked at, and remembers that size."""

    def estimate(self, first: Tensor, second: Tensor) -> Tensor:
        self.asked = tuple(first.shape)
        return constant(2.0, 1.0, *first.shape[-2:])


def test_farneback_sees_a_picture_move_by_what_it_moved() -> None:
    """Methods, section 8, item 10: rolled by (2, 3) in rows and columns, it is found to have moved by (2.99, 1.99)."""
    first = textured(96, 128)
    flow = build("farneback")(first, first.roll((2, 3), dims=(1, 2)))
    assert flow.shape == (2, 96, 128)
    assert flow.dtype == torch.float32
    torch.testing.assert_close(flow[:, 16:-16, 16:-16].mean(dim=(1, 2)), torch.tensor([3.0, 2.0]), atol=0.05, rtol=0)


def test_farneback_at_half_the_size_still_answers_in_pixels_of_the_frame() -> None:
    first = textured(200, 256)
    flow = Farneback(short_side=100)(first, first.roll((4, -6), dims=(1, 2)))
    assert flow.shape == (2, 200, 256)
    torch.testing.assert_close(flow[:, 32:-32, 32:-32].mean(dim=(1, 2)), torch.tensor([-6.0, 4.0]), atol=0.2, rtol=0)


@pytest.mark.parametrize(
    ("short_side", "size", "asked", "expected"),
    [
        pytest.param(None, (30, 60), (30, 60), (2, 1), id="its own size"),
        pytest.param(10, (30, 60), (10, 20), (6, 3), id="a third"),
        pytest.param(90, (30, 60), (30, 60), (2, 1), id="never enlarged"),
        pytest.param(10, (33, 99), (10, 30), (6.6, 3.3), id="each axis by its own scale"),
        pytest.param(1, (3, 300), (1, 100), (6, 3), id="one pixel high"),
        pytest.param(1, (1, 1), (1, 1), (2, 1), id="a frame of one pixel"),
    ],
)
def test_flow_is_scaled_to_the_frame(
    short_side: int | None, size: tuple[int, int], asked: tuple[int, int], expected: tuple[float, float]
) -> None:
    estimator = Shift(short_side)
    frame = torch.zeros((3, *size), dtype=torch.uint8)
    torch.testing.assert_close(estimator(frame, frame), constant(*expected, *size))
    assert estimator.asked == (3, *asked)


def test_no_flow_is_zero() -> None:
    frame = textured(20, 30)
    assert torch.equal(build("none")(frame, frame.flip(1)), torch.zeros(2, 20, 30))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (9, 40)])
def test_frames_too_small_or_too_plain_to_compare_have_a_finite_flow(size: tuple[int, int]) -> None:
    plain = torch.zeros((3, *size), dtype=torch.uint8)
    for first, second in ((plain, plain), (plain, textured(40, 40)[:, : size[0], : size[1]])):
        assert build("farneback")(first, second).isfinite().all()


def test_flow_does_not_depend_on_what_was_asked_before() -> None:
    first, second = textured(64, 80), textured(64, 80).roll(1, dims=2)
    estimator = build("farneback")
    before = estimator(first, second)
    estimator(second, first)
    assert torch.equal(estimator(first, second), before)


def test_raft_takes_frames_of_any_size_and_weights_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = Raft().eval()
    write_weights(tmp_path / "raft.safetensors", trained.network, {}, torch.float32)
    loaded = build("raft_small", str(tmp_path / "raft.safetensors"))
    first = textured(100, 141)
    second = first.roll(2, dims=2)
    flow = loaded(first, second)
    assert flow.shape == (2, 100, 141)
    assert flow.isfinite().all()
    assert torch.equal(flow, trained(first, second))
    assert not torch.equal(flow, trained(second, first))


def test_raft_is_as_exact_where_all_else_is_of_bfloat16() -> None:
    torch.manual_seed(0)
    raft, first = Raft().eval(), textured(128, 128)
    second = first.roll(3, dims=2)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = raft(first, second)
    assert torch.equal(mixed, raft(first, second))
    assert mixed.any()


def test_raft_works_at_sizes_that_its_pyramid_can_halve() -> None:
    raft = Raft()
    assert raft.working_size(100, 141) == (128, 144)
    assert raft.working_size(256, 128) == (256, 128)


@pytest.mark.parametrize(
    ("method", "weights", "short_side", "message"),
    [
        ("raft_small", None, None, "raft_small is learned and has no weights; give a name .C_T_V1, C_T_V2."),
        ("farneback", "C_T_V2", None, "farneback has no weights to fill with 'C_T_V2'"),
        ("none", "C_T_V2", None, "only raft_small has"),
        ("pwc", None, None, "flow is 'pwc'; it must be one of: none, farneback, raft_small"),
        ("farneback", None, 0, "short_side is 0; it must be at least 1"),
    ],
)
def test_wrong_wishes_are_refused(method: str, weights: str | None, short_side: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(method, weights, short_side)  # type: ignore[arg-type]


def test_raft_weights_that_are_nowhere_are_missed() -> None:
    with pytest.raises(FileNotFoundError, match="did you mean 'C_T_V2'"):
        build("raft_small", "C_T_V3")


@pytest.mark.parametrize(
    "box",
    [
        pytest.param([3.0, 4.0, 17.0, 12.0], id="inside"),
        pytest.param([5.3, 6.4, 5.4, 6.5], id="within one pixel"),
        pytest.param([-8.0, -9.5, 6.0, 7.0], id="over a corner"),
        pytest.param([29.5, 19.5, 80.0, 90.0], id="on the last pixel"),
        pytest.param([-50.0, -50.0, 90.0, 90.0], id="larger than the frame"),
    ],
)
def test_a_constant_flow_moves_a_box_exactly(box: list[float]) -> None:
    boxes = torch.tensor([box])
    assert torch.equal(move_boxes(boxes, constant(2.5, -1.25)), boxes + torch.tensor([2.5, -1.25, 2.5, -1.25]))
    assert torch.equal(move_boxes(boxes, constant(0, 0)), boxes)


@pytest.mark.parametrize(
    "box",
    [
        pytest.param([-9.0, 2.0, -1.0, 8.0], id="left of the frame"),
        pytest.param([-9.0, 2.0, 0.0, 8.0], id="touching it from the left"),
        pytest.param([30.0, 2.0, 40.0, 8.0], id="touching it from the right"),
        pytest.param([3.0, 20.0, 9.0, 30.0], id="touching it from below"),
        pytest.param([40.0, 50.0, 60.0, 70.0], id="off its corner"),
        pytest.param([11.0, 11.0, 14.0, 14.0], id="where nothing is known"),
    ],
)
def test_a_box_that_no_flow_is_known_for_stays(box: list[float]) -> None:
    flow = constant(3, 3)
    flow[0, 10:15, 10:15] = math.nan
    flow[1, 12, 12] = math.inf
    boxes = torch.tensor([box])
    assert torch.equal(move_boxes(boxes, flow), boxes)


def test_boxes_move_by_the_mean_of_the_pixels_they_touch() -> None:
    random = torch.Generator().manual_seed(1)
    flow = torch.randn((2, 20, 30), generator=random) * 5
    flow[:, torch.rand((20, 30), generator=random) < 0.1] = math.nan
    corners = torch.rand((50, 2, 2), generator=random) * 60 - 15
    boxes = torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
    for box, moved in zip(boxes, move_boxes(boxes, flow), strict=True):
        x1, y1, x2, y2 = box.tolist()
        touched = [
            flow[:, row, column]
            for row in range(20)
            for column in range(30)
            if row < y2 and row + 1 > y1 and column < x2 and column + 1 > x1 and flow[:, row, column].isfinite().all()
        ]
        mean = torch.stack(touched).mean(dim=0) if touched else torch.zeros(2)
        torch.testing.assert_close(moved, box + mean.repeat(2), atol=1e-4, rtol=0)


def test_no_boxes_move_to_no_boxes() -> None:
    assert move_boxes(torch.zeros(0, 4), constant(1, 1)).shape == (0, 4)


def test_boxes_follow_what_they_hold() -> None:
    """A square that moves over a picture that stands still; its box goes along, one beside it stays."""
    first = textured(96, 128)
    second = first.clone()
    square = textured(32, 32).flip(0)
    first[:, 30:62, 40:72], second[:, 33:65, 44:76] = square, square
    moved = move_boxes(torch.tensor([[40.0, 30, 72, 62], [90, 5, 115, 25]]), build("farneback")(first, second))
    torch.testing.assert_close(moved[0], torch.tensor([44.0, 33, 76, 65]), atol=0.75, rtol=0)
    torch.testing.assert_close(moved[1], torch.tensor([90.0, 5, 115, 25]), atol=0.25, rtol=0)


def test_no_flow_warps_nothing() -> None:
    features = torch.randn((2, 5, 7, 9), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(warp(features, torch.zeros(2, 2, 50, 70), 8), features, atol=1e-5, rtol=0)
    torch.testing.assert_close(warp(features[..., :1, :1], torch.zeros(2, 2, 8, 8), 8), features[..., :1, :1])


def test_warp_is_bilinear_between_cells_and_zero_outside() -> None:
    random = torch.Generator().manual_seed(2)
    features = torch.randn((1, 3, 5, 6), generator=random)
    flow = torch.randn((1, 2, 19, 23), generator=random) * 6  # 4 px a cell; the last row and column are padding's
    warped = warp(features, flow, 4)[0]
    for row in range(5):
        for column in range(6):
            cell = [
                flow[0, :, min(y, 18), min(x, 22)]
                for y in range(row * 4, row * 4 + 4)
                for x in range(column * 4, column * 4 + 4)
            ]
            dx, dy = (torch.stack(cell).mean(dim=0) / 4).tolist()
            expected = torch.zeros(3)
            for y in range(5):
                for x in range(6):
                    near = max(0.0, 1 - abs(row + dy - y)) * max(0.0, 1 - abs(column + dx - x))
                    expected += near * features[0, :, y, x]
            torch.testing.assert_close(warped[:, row, column], expected, atol=1e-5, rtol=0)


def test_a_moved_picture_is_warped_back() -> None:
    """Features of the second frame come to lie where the first frame has them."""
    first = textured(64, 80)
    second = first.roll((8, 16), dims=(1, 2))
    features = [F.avg_pool2d(frame[None].float(), 8) for frame in (first, second)]
    warped = warp(features[1], constant(16, 8, 64, 80)[None], 8)
    torch.testing.assert_close(warped[..., :7, :8], features[0][..., :7, :8], atol=1e-3, rtol=0)
    assert warped[..., 7, :].abs().max() < 1e-3  # what was there has left the second frame


def test_gradients_reach_warped_features_and_the_flow() -> None:
    features = torch.randn((1, 2, 4, 4), generator=torch.Generator().manual_seed(0), requires_grad=True)
    flow = torch.full((1, 2, 16, 16), 1.5, requires_grad=True)
    warp(features, flow, 4).square().sum().backward()
    for given in (features, flow):
        assert given.grad is not None
        assert given.grad.isfinite().all()
        assert given.grad.abs().sum() > 0


def test_frames_count_by_how_like_the_reference_they_are() -> None:
    features = torch.tensor([1.0, 10.0, 100.0]).reshape(3, 1, 1, 1).expand(3, 2, 1, 2)
    like = torch.tensor([[1.0, 0], [0, 3], [-2, 0]]).reshape(3, 2, 1, 1).expand(3, 2, 1, 2)
    mean = aggregate(features, like, reference=0)
    weights = np.exp([1.0, 0.0, -1.0])
    torch.testing.assert_close(mean, torch.full((2, 1, 2), float(weights @ [1, 10, 100] / weights.sum())))


def test_frames_that_are_all_alike_give_the_plain_mean_and_one_frame_itself() -> None:
    features = torch.randn((4, 3, 2, 2), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(aggregate(features, torch.ones(4, 6, 2, 2), 2), features.mean(dim=0))
    torch.testing.assert_close(aggregate(features[:1], torch.zeros(1, 6, 2, 2), 0), features[0])
