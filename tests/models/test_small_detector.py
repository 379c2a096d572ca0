"""The small detector: geometry of its anchors, who is to find what, its losses, and that it learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from models.parts.anchors import detections
from models.parts.small_detector import DELTAS, IGNORED, NEGATIVE, SmallDetector, assign, grid_anchors


def target(boxes: list[list[float]], labels: list[int], ignore: list[bool] | None = None) -> dict[str, Tensor]:
    given = {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.long)}
    return given if ignore is None else {**given, "ignore": torch.tensor(ignore, dtype=torch.bool)}


def test_anchors_lie_in_their_cells_and_have_the_area_of_the_square() -> None:
    anchors = grid_anchors((2, 3), 8, 24.0)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    sides = anchors[:, 2:] - anchors[:, :2]
    assert centres[::3].tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]
    torch.testing.assert_close(sides.prod(dim=1), torch.full((18,), 576.0))
    torch.testing.assert_close(sides[:3, 1] / sides[:3, 0], torch.tensor([0.5, 1.0, 2.0]))


def test_outputs_are_one_row_an_anchor_in_the_order_of_the_anchors() -> None:
    """A change of the picture near one anchor moves the scores of anchors near it, and of no others."""
    torch.manual_seed(0)
    detector = SmallDetector(2).eval()
    frames = torch.zeros(2, 3, 256, 256, dtype=torch.uint8)
    frames[1, :, 216:240, 16:40] = 255  # about (28, 228)
    with torch.no_grad():
        before, after = detector.outputs(frames)
    moved = (before.scores - after.scores).abs().sum(dim=1)
    centres = (before.anchors[:, :2] + before.anchors[:, 2:]) / 2
    assert len(before.scores) == sum(before.levels) == 3 * (32 * 32 + 16 * 16)
    near = (centres - torch.tensor([28.0, 228.0])).norm(dim=1)
    assert near[moved.topk(20).indices].max() < 80
    assert moved[near > 180].max() < 1e-6


def test_no_change_is_the_anchor_and_deltas_move_it() -> None:
    anchor = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    torch.testing.assert_close(DELTAS.decode(anchor, torch.zeros(1, 4)), anchor)
    moved = DELTAS.decode(
        anchor, torch.tensor([[0.5, -0.25, 0.0, 0.6931472]])
    )  # half a width on, a quarter up, twice as high
    torch.testing.assert_close(moved, torch.tensor([[20.0, -10.0, 40.0, 70.0]]))


@pytest.mark.parametrize(
    ("boxes", "ignore", "expected"),
    [
        pytest.param([], [], [NEGATIVE] * 3, id="nothing there"),
        pytest.param([[0, 0, 10, 10]], [False], [0, NEGATIVE, NEGATIVE], id="the anchor that fits"),
        pytest.param([[0, 0, 10, 3]], [False], [0, NEGATIVE, NEGATIVE], id="the nearest, at IoU .3"),
        pytest.param([[13, 0, 23, 10]], [False], [NEGATIVE, 0, NEGATIVE], id="IoU .54"),
        pytest.param([[10, 0, 20, 10], [14.6, 0, 24.6, 10]], [False] * 2, [NEGATIVE, 0, 1], id="each has one"),
        pytest.param([[0, 0, 12, 10]], [True], [IGNORED, NEGATIVE, NEGATIVE], id="lies in an ignored box"),
        pytest.param([[-9, -9, 40, 40], [0, 0, 10, 10]], [True, False], [1, IGNORED, IGNORED], id="truth in ignored"),
    ],
)
def test_who_finds_what(boxes: list[list[float]], ignore: list[bool], expected: list[int]) -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [20, 0, 30, 10]])
    assert assign(anchors, target(boxes, [0] * len(boxes), ignore)).tolist() == expected


def test_losses_of_frames_with_nothing_in_them_are_finite() -> None:
    detector = SmallDetector(2)
    frames = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    everything = target([[0, 0, 64, 64]], [0], [True])
    for targets in ([target([], [])] * 2, [everything] * 2):
        losses = detector.losses(frames, targets)
        sum(losses.values(), start=torch.zeros(())).backward()
        assert all(torch.isfinite(loss) for loss in losses.values())
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in detector.parameters())


def test_it_learns_two_frames_by_heart() -> None:
    torch.manual_seed(1)
    frames = torch.randint(90, 110, (2, 3, 64, 96), dtype=torch.uint8)
    frames[0, :, 10:34, 8:32] = 250
    frames[0, :, 30:50, 50:90] = torch.tensor([20, 200, 20], dtype=torch.uint8)[:, None, None]
    frames[1, :, 20:44, 60:84] = 250
    targets = [target([[8, 10, 32, 34], [50, 30, 90, 50]], [0, 1]), target([[60, 20, 84, 44]], [0])]
    detector = SmallDetector(2).train()
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3)
    for _ in range(80):
        optimizer.zero_grad()
        sum(detector.losses(frames, targets).values(), start=torch.zeros(())).backward()
        optimizer.step()
    # Two frames are too few for running statistics; those of the batch are right here.
    with torch.no_grad():
        for outputs, wanted in zip(detector.outputs(frames), targets, strict=True):
            found = detections(outputs, min_score=0.5, max_iou=0.5, top_k=50, max_detections=50, per="class")
            assert sorted(found.labels.tolist()) == sorted(wanted["labels"].tolist())
            order = found.labels.argsort()
            assert box_iou(found.boxes[order], wanted["boxes"]).diagonal().min() > 0.75
