"""Tracking-first detection: who is carried on, who is removed, and that nothing tracked is the detector alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from models.parts.tracking_first import Moves, Rows, Rules, accept, rows, step

RULES = Rules()
A, B, C = [0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [40.0, 0.0, 50.0, 10.0]


def frame(boxes: list[list[float]], scores: list[float], labels: list[int] | None = None) -> Rows:
    """Detections of a frame; label 0 unless told otherwise."""
    return Rows(
        torch.tensor(boxes).reshape(-1, 4),
        torch.tensor(scores),
        torch.tensor(labels or [0] * len(scores), dtype=torch.long),
        torch.zeros(len(scores), dtype=torch.bool),
    )


EMPTY = frame([], [])


class Tracker:
    """Moves what it is asked about by (dx, dy) and is as sure as told of the box whose left edge is `x`."""

    def __init__(self, dx: float = 0.0, dy: float = 0.0, quality: dict[float, float] | None = None) -> None:
        self.move = torch.tensor([dx, dy, dx, dy])
        self.quality = quality or {}
        self.asked: list[list[float]] = []

    def __call__(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        assert len(boxes)
        self.asked = boxes.tolist()
        return boxes + self.move, torch.tensor([self.quality.get(x, 0.9) for x in boxes[:, 0].tolist()])


def classify(boxes: Tensor) -> Tensor:
    """Two classes: .6 and .02 for every box."""
    assert len(boxes)
    return torch.tensor([[0.6, 0.02]]).repeat(len(boxes), 1)


def never(boxes: Tensor) -> Tensor:
    raise AssertionError(f"asked about {len(boxes)} boxes")


def same(one: Rows, other: Rows) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("boxes", "scores", "labels", "tracked")
    )


@pytest.mark.parametrize("detections", [EMPTY, frame([A, B, B], [0.9, 0.01, 0.4], [1, 0, 2])])
@pytest.mark.parametrize(
    ("previous", "quality"),
    [
        pytest.param(EMPTY, {}, id="a clip's start"),
        pytest.param(frame([A], [0.03]), {}, id="no score above .03"),
        pytest.param(frame([B, A, B], [0.9, 0.9, 0.9]), {0.0: 0.49, 20.0: 0.1}, id="the tracker unsure"),
    ],
)
def test_nothing_tracked_is_the_detector_alone(previous: Rows, quality: dict[float, float], detections: Rows) -> None:
    found, moves = step(previous, detections, Tracker(quality=quality), never, RULES)
    assert same(found, detections)
    assert (len(moves.ends), len(moves.quality)) == (len(previous.boxes), len(previous.boxes))


def test_tracked_boxes_come_first_with_new_scores() -> None:
    found, moves = step(
        frame([B, A], [0.2, 0.9], [1, 1]),
        frame([A, C], [0.8, 0.7], [1, 1]),
        Tracker(1, 2, {20.0: 0.95}),
        classify,
        RULES,
    )
    # The detection A has an IoU of .56 with A moved by (1, 2), so at T_merge .7 both stay.
    assert found.boxes.tolist() == [[21, 2, 31, 12], [1, 2, 11, 12], A, C]
    assert found.labels.tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(found.scores, torch.tensor([0.6, 0.6, 0.8, 0.7]))
    assert found.tracked.tolist() == [True, True, False, False]
    assert moves.ends.tolist() == [[21, 2, 31, 12], [1, 2, 11, 12]]
    torch.testing.assert_close(moves.quality, torch.tensor([0.95, 0.9]))


@pytest.mark.parametrize(
    ("merge_iou", "left"),
    [
        pytest.param(0.3, [C], id="T_merge .3: detections well apart"),
        pytest.param(0.7, [[0, 0, 10, 5], C], id="T_merge .7: also close ones"),
        pytest.param(0.5, [C], id="an IoU equal to T_merge is removed"),
        pytest.param(1.0, [[0, 0, 10, 5], C], id="only the same box is removed"),
    ],
)
def test_detections_stay_where_no_tracked_box_is(merge_iou: float, left: list[list[float]]) -> None:
    """Of any class: the detection that is removed may have another label."""
    detections = frame([A, [0, 0, 10, 5], C], [0.9, 0.8, 0.7], [3, 4, 5])
    found, _ = step(frame([A], [0.9]), detections, Tracker(), classify, replace(RULES, merge_iou=merge_iou))
    assert found.boxes[~found.tracked].tolist() == left


@pytest.mark.parametrize(
    ("ends", "quality", "scores", "expected"),
    [
        pytest.param([A, B], [0.5, 0.499], [0.9, 0.9], [0], id="an IoU of .5 must be expected"),
        pytest.param([A, B, C], [0.6, 0.9, 0.8], [0.9] * 3, [1, 2, 0], id="surest first"),
        pytest.param([A, B], [0.9, 0.9], [0.031, 0.03], [0], id="class score above .03"),
        pytest.param([A, [0, 0, 10, 8], B], [0.6, 0.9, 0.5], [0.9] * 3, [1, 2], id="of two at IoU .8 the surer"),
        pytest.param([A, [0, 0, 10, 6]], [0.6, 0.9], [0.9] * 2, [1, 0], id="both at IoU .6"),
        pytest.param([A, [0, 0, 10, 8]], [0.6, 0.9], [0.9, 0.01], [0], id="a weak box suppresses nothing"),
        pytest.param([[10, 5, 10, 9], A], [0.9, 0.9], [0.9] * 2, [1], id="one that has left the frame"),
        pytest.param([], [], [], [], id="none"),
    ],
)
def test_who_is_carried_on(
    ends: list[list[float]], quality: list[float], scores: list[float], expected: list[int]
) -> None:
    kept = accept(torch.tensor(ends).reshape(-1, 4), torch.tensor(quality), torch.tensor(scores), RULES)
    assert kept.tolist() == expected


def test_no_more_than_so_many() -> None:
    kept = accept(torch.tensor([A, B, C]), torch.tensor([0.6, 0.9, 0.8]), torch.ones(3), replace(RULES, max_tracked=2))
    assert kept.tolist() == [1, 2]


def test_a_row_for_each_class_above_the_floor_and_for_the_best() -> None:
    scores = torch.tensor([[0.5, 0.02, 0.4], [0.01, 0.02, 0.0], [0.0, 0.03, 0.9]])
    found = rows(torch.tensor([A, B, C]), scores, 0.03)
    assert found.boxes.tolist() == [A, A, B, C]
    assert found.labels.tolist() == [0, 2, 1, 2]
    torch.testing.assert_close(found.scores, torch.tensor([0.5, 0.4, 0.02, 0.9]))
    assert rows(torch.zeros(0, 4), torch.zeros(0, 3), 0.03).boxes.shape == (0, 4)


def test_a_box_of_several_classes_is_tracked_once_and_every_row_has_its_move() -> None:
    """Also rows below the floor, of boxes that the filter rejected, and of one that left the frame."""
    tracker = Tracker(3, 0, {20.0: 0.2})
    previous = frame([B, A, B, C, A, C], [0.9, 0.01, 0.3, 0.02, 0.8, 0.02], [0, 0, 1, 0, 1, 1])
    found, moves = step(previous, EMPTY, tracker, classify, RULES)
    assert sorted(tracker.asked) == [A, B, C]
    assert moves.ends.tolist() == (previous.boxes + torch.tensor([3.0, 0, 3, 0])).tolist()
    torch.testing.assert_close(moves.quality, torch.tensor([0.2, 0.9, 0.2, 0.9, 0.9, 0.9]))
    # B is rejected by the tracker, C by its scores, which do not add up; A lives by its better row.
    assert found.boxes.tolist() == [[3, 0, 13, 10]]


def test_a_clip_by_hand() -> None:
    """A moves on 4 px a frame; the detector sees it once and something else later; the tracked box has no gap."""
    tracker = Tracker(4, 0)
    detections = [frame([A], [0.9]), EMPTY, frame([[8, 0, 18, 9], C], [0.99, 0.5]), EMPTY]
    seen, memory = [], EMPTY
    for own in detections:
        memory, _ = step(memory, own, tracker, classify, RULES)
        seen.append([(box, bool(tracked)) for box, tracked in zip(memory.boxes.tolist(), memory.tracked, strict=True)])
    assert seen == [
        [(A, False)],
        [([4, 0, 14, 10], True)],
        [([8, 0, 18, 10], True), (C, False)],  # the tracked box over the detection, though that scores higher
        [([12, 0, 22, 10], True), ([44, 0, 54, 10], True)],
    ]


def step_in_loops(
    previous: Rows, detections: Rows, move: Tensor, quality: list[float], rules: Rules
) -> list[list[float]]:
    """The boxes that `step` should give, as a set, one box at a time."""
    carried: list[list[float]] = []
    order = sorted(range(len(quality)), key=lambda i: -quality[i])
    for i in order:
        end = (previous.boxes[i] + move).tolist()
        apart = all(box_iou(torch.tensor([end]), torch.tensor([c])).item() <= rules.nms_iou for c in carried)
        if previous.scores[i] > rules.min_score and quality[i] >= rules.min_quality and apart:
            carried.append(end)
    carried = carried[: rules.max_tracked]
    new = [
        own
        for own in detections.boxes.tolist()
        if all(box_iou(torch.tensor([own]), torch.tensor([c])).item() < rules.merge_iou for c in carried)
    ]
    return sorted(carried) + sorted(new)


@pytest.mark.parametrize("seed", range(6))
def test_equals_one_box_at_a_time(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def crowd(count: int) -> Rows:
        corner = torch.rand(count, 2, generator=generator) * 20
        side = 5 + 10 * torch.rand(count, 2, generator=generator)
        return replace(
            frame([[0.0] * 4] * count, torch.rand(count, generator=generator).pow(3).tolist()),
            boxes=torch.cat([corner, corner + side], dim=1),
        )

    previous, detections = crowd(30), crowd(20)
    quality = torch.rand(30, generator=generator).tolist()
    by_left = dict(zip(previous.boxes[:, 0].tolist(), quality, strict=True))
    rules = replace(RULES, nms_iou=0.3, merge_iou=0.3, max_tracked=5)
    found, moves = step(previous, detections, Tracker(2, 1, by_left), classify, rules)
    expected = step_in_loops(previous, detections, torch.tensor([2.0, 1, 2, 1]), quality, rules)
    tracked, new = found.boxes[found.tracked].tolist(), found.boxes[~found.tracked].tolist()
    torch.testing.assert_close(torch.tensor(sorted(tracked) + sorted(new)), torch.tensor(expected))
    assert len(tracked) > 0
    assert 0 < len(new) < 20
    torch.testing.assert_close(moves.quality, torch.tensor(quality))
    assert isinstance(moves, Moves)
