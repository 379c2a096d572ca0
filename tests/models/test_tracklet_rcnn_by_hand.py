"""TCD on scripted detectors: what is given out and remembered, worked by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from models.parts import flow
from models.parts.box_deltas import BoxDeltas
from models.parts.two_stage import Dense, Features, Limits, Regions, TwoStage
from models.tracklet_rcnn import Memory, Model, Settings

CLASSES = ("a", "b", "c")
ONE, TWO = (10.0, 10.0, 30.0, 30.0), (60.0, 20.0, 90.0, 50.0)
Row = dict[str, Tensor]

Said = tuple[tuple[float, ...], tuple[float, ...], int]  # a box, its P_det, and which of 128 looks it has


class Scripted(TwoStage):
    """Frame t, whose pixels are t, holds the boxes of `script[t]`; whatever else it is asked about is background."""

    def __init__(self, script: Sequence[Sequence[Said]]) -> None:
        super().__init__()
        self.script = script
        self.num_classes, self.resize = len(script[0][0][1]) - 1, {}
        self.tower_channels = self.per_cell = self.pooled_channels = self.pooled_side = 1
        self.hidden = 128
        self.limits = Limits(min_score=0.05)
        self.nothing = torch.nn.Linear(1, 1)

    @property
    def network(self) -> torch.nn.Module:
        return self.nothing

    def features(self, frames: Tensor) -> Features:
        return (frames[:, :1, :1, :1].float(),)

    def dense(self, features: Features, size: tuple[int, int]) -> Dense:
        anchors = torch.tensor(sorted({box for frame in self.script for box, _, _ in frame}))
        logits = torch.zeros(len(features[0]), len(anchors))
        return Dense(size, features, anchors, logits, torch.zeros(*logits.shape, 4), BoxDeltas(), (len(anchors),))

    def head(self, features: Features, boxes: Sequence[Tensor], size: tuple[int, int]) -> list[Regions]:
        found = []
        for number, of_frame in zip(features[0].flatten().tolist(), boxes, strict=True):
            logits = torch.full((len(of_frame), self.num_classes + 1), -20.0)
            logits[:, 0] = 0
            looks = torch.zeros(len(of_frame), 128)
            for box, probabilities, look in self.script[int(number)]:
                same = box_iou(of_frame, torch.tensor([box]))[:, 0] > 0.9
                logits[same] = torch.tensor(probabilities).log()
                looks[same, look] = 1
            empty = torch.zeros(len(of_frame), 1, 1, 1)
            found.append(Regions(of_frame, empty, looks, logits, torch.zeros(len(of_frame), 1, 4), BoxDeltas()))
        return found

    def training_boxes(self, dense: Dense, targets: Sequence[dict[str, Tensor]]) -> list[Tensor]:
        raise NotImplementedError

    def anchor_losses(self, dense: Dense, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        raise NotImplementedError

    def region_losses(self, regions: Sequence[Regions], targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        raise NotImplementedError


def played(script: Sequence[Sequence[Said]], moving: flow.Flow | None = None, **settings: Any) -> list[Row]:
    """The rows of a scripted video; E_s2 is the look itself."""
    model = Model(
        Settings(embedding="fully_shared", weights="random", **settings),
        Scripted(script),
        CLASSES[: len(script[0][0][1]) - 1],
    ).eval()
    with torch.no_grad():
        model.embeddings.stage_2.weight.copy_(torch.eye(128))
        model.embeddings.stage_2.bias.zero_()
    if moving is not None:
        model.flow = moving
    frames = torch.arange(len(script), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 64, 96)
    (rows,), _ = model.detect([frames], [None])
    return rows


def listed(row: Row) -> list[tuple[tuple[float, ...], int, float, int]]:
    """Box, label, score and tracklet of each detection, best first."""
    columns = (row["boxes"].tolist(), row["labels"].tolist(), row["scores"].tolist(), row["tracklet_id"].tolist())
    return [
        (tuple(box), label, round(score, 4), tracklet) for box, label, score, tracklet in zip(*columns, strict=True)
    ]


def test_a_tracklets_box_is_of_the_tracklets_class_and_what_else_its_region_is_has_no_id() -> None:
    script = [[(ONE, (0.05, 0.9, 0.05), 0)], [(ONE, (0.1, 0.3, 0.6), 0)]]
    first, second = played(script, condition="none")
    assert listed(first) == [(ONE, 0, 0.9, 0)]  # .05 is not above min_score
    assert listed(second) == [(ONE, 1, 0.6, -1), (ONE, 0, 0.3, 0)]  # P_tr is (.075, .6, .325)
    torch.testing.assert_close(second["class_scores"], torch.tensor([[0.1, 0.3, 0.6]] * 2))
    assert not second["tracked"].any()


def test_a_tracklets_box_is_given_out_even_where_its_class_has_no_detection() -> None:
    script = [[(ONE, (0.05, 0.9, 0.05), 0)], [(ONE, (0.48, 0.02, 0.5), 0)]]
    assert listed(played(script, condition="none")[1]) == [(ONE, 1, 0.5, -1), (ONE, 0, 0.02, 0)]


def test_rescore_box_gives_the_mean_of_the_tracklets_boxes() -> None:
    script = [[(ONE, (0.1, 0.9), 0)], [(ONE, (0.4, 0.6), 0)], [(ONE, (0.7, 0.3), 0), (TWO, (0.2, 0.8), 1)]]
    rows = played(script, condition="none", rescore=True)
    assert [listed(row) for row in rows] == [
        [(ONE, 0, 0.9, 0)],
        [(ONE, 0, 0.75, 0)],
        [(TWO, 0, 0.8, 1), (ONE, 0, 0.6, 0)],  # (.9 + .6 + .3) / 3, of boxes as they were detected
    ]
    torch.testing.assert_close(rows[2]["class_scores"], torch.tensor([[0.2, 0.8], [0.4, 0.6]]))


def test_propagate_box_carries_what_is_not_detected_for_as_many_frames_as_it_may() -> None:
    unseen = (ONE, (0.99, 0.01), 0)  # it looks like what it is, and its class cannot be told
    script = [[(ONE, (0.1, 0.9), 0)], *[[unseen]] * 5]
    rows = played(script, flow.build("none"), condition="none", propagate="farneback", propagate_frames=3)
    assert [listed(row) for row in rows] == [[(ONE, 0, 0.9, 0)]] * 4 + [[], []]
    assert [row["tracked"].tolist() for row in rows[:4]] == [[False], [True], [True], [True]]
    seen_again = [*script[:3], [(ONE, (0.05, 0.95), 0)], *script[3:]]
    again = played(seen_again, flow.build("none"), condition="none", propagate="farneback")
    assert [row["tracked"].tolist() for row in again] == [[False], [True], [True], [False], [True], [True], [True]]
    off = played(script, condition="none")
    assert [len(row["boxes"]) for row in off] == [1, 0, 0, 0, 0, 0]


class Shift(flow.Flow):
    """Everything goes 6 px right and 4 px up."""

    def estimate(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.tensor([6.0, -4.0])[:, None, None].expand(2, *first.shape[-2:])


def test_propagated_boxes_move_with_the_flow_and_leave_with_it() -> None:
    model = Model(
        Settings(embedding="fully_shared", condition="none", propagate="farneback"),
        Scripted([[(ONE, (0.1, 0.9), 0), ((90.0, 0.0, 96.0, 4.0), (0.1, 0.9), 1)]]),
        ("a",),
    )
    frame = torch.zeros(3, 64, 96, dtype=torch.uint8)
    _, (memory,) = model.detect([frame[None]], [None])
    assert isinstance(memory, Memory)
    assert len(memory.tracklets.ids) == 2
    for moving, wanted in ((Shift(), [(16.0, 6.0, 36.0, 26.0)]), (flow.build("none"), memory.tracklets.boxes.tolist())):
        model.flow = moving
        moved = model.propagated(memory, frame)
        torch.testing.assert_close(moved.boxes, torch.tensor(wanted))
        assert moved.carried.tolist() == [1] * len(wanted)
        assert torch.equal(moved.probabilities, memory.tracklets.probabilities[: len(wanted)])


def test_the_second_stage_by_hand() -> None:
    """One tracklet of cosine 1: w = e^8 / (e^8 + e^.3), P(c|b, d) = P_det P_tr / sum, equations 1 to 6."""
    script = [[(ONE, (0.1, 0.8, 0.1), 0)], [(ONE, (0.2, 0.3, 0.5), 0), (TWO, (0.2, 0.7, 0.1), 1)]]
    row = played(script, condition="stage_2")[1]
    w = math.exp(8) / (math.exp(8) + math.exp(0.3))
    total = 0.2 * 0.1 + 0.3 * 0.8 + 0.5 * 0.1
    one = [(1 - w) * p + w * p * q / total for p, q in ((0.2, 0.1), (0.3, 0.8), (0.5, 0.1))]
    v = 1 / (1 + math.exp(0.3))  # of cosine 0
    total = 0.2 * 0.1 + 0.7 * 0.8 + 0.1 * 0.1
    two = [(1 - v) * p + v * p * q / total for p, q in ((0.2, 0.1), (0.7, 0.8), (0.1, 0.1))]
    found = {tuple(box): scores for box, scores in zip(row["boxes"].tolist(), row["class_scores"], strict=True)}
    torch.testing.assert_close(found[ONE], torch.tensor(one))
    torch.testing.assert_close(found[TWO], torch.tensor(two))
    assert {(box, label, tracklet) for box, label, _, tracklet in listed(row)} >= {(ONE, 0, 0), (TWO, 0, 1)}


@pytest.mark.parametrize(
    ("settings", "ids"),
    [
        pytest.param({}, [0, None, None, 0], id="never closed, as for VID"),
        pytest.param({"max_age": 2}, [0, None, None, 1], id="closed after two frames without a box"),
        pytest.param({"start_score": 0.95}, [-1, None, None, -1], id="not sure enough to start one"),
    ],
)
def test_who_starts_and_who_is_closed(settings: dict[str, Any], ids: list[int | None]) -> None:
    there, gone = [(ONE, (0.1, 0.9), 0)], [(ONE, (0.999, 0.001), 0)]
    rows = played([there, gone, gone, there], condition="stage_2", **settings)
    assert [row["tracklet_id"].tolist() for row in rows] == [[] if each is None else [each] for each in ids]
