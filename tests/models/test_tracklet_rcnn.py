"""TCD: scripted detectors for what is given out, scattered networks for what must be equal, and that it learns."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from catalogs import synthetic
from models.parts import flow, pair_training, weights
from models.parts.box_deltas import BoxDeltas
from models.parts.small_two_stage import SmallTwoStage
from models.parts.two_stage import Dense, Features, Limits, Regions, TwoStage
from models.tracklet_rcnn import Memory, Model, Settings, build
from pipeline import scoring
from pipeline.labelled import target_of
from pipeline.schemas import TRACKS

CLASSES = ("a", "b", "c")
ONE, TWO = (10.0, 10.0, 30.0, 30.0), (60.0, 20.0, 90.0, 50.0)
Row = dict[str, Tensor]


# What is given out and remembered, by hand.

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


# Scattered networks: what must be equal is equal.


def scattered(**settings: Any) -> Model:
    """An untrained network that says something, the same whatever the settings."""
    torch.manual_seed(3)
    given = {"weights": "random", "classes": CLASSES, **settings}
    model = build(Settings(**given))
    random = torch.Generator().manual_seed(4)
    detector: Any = model.detector
    with torch.no_grad():
        for layer in (detector.objectness, detector.anchor_deltas, detector.classes, detector.deltas):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=random) * 0.15)
        for parameter in model.embeddings.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.1)
    return model


def video(num_frames: int, seed: int = 0) -> Tensor:
    """A blurred pattern that drifts: uint8 (T, 3, 64, 96)."""
    coarse = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(seed))
    picture = (torch.nn.functional.interpolate(coarse, (64, 96), mode="bilinear")[0] * 255).byte()
    return torch.stack([picture.roll((t, 2 * t), (1, 2)) for t in range(num_frames)])


def detected(model: Model, clip: Tensor, memory: object | None = None) -> list[Row]:
    return model.detect([clip], [memory])[0][0]


def assert_same(rows: Sequence[Row], others: Sequence[Row], names: Sequence[str] = ()) -> None:
    """The design's tolerance: 1e-3 px, 1e-4 of score."""
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        for name in names or row:
            assert row[name].shape == other[name].shape, name
            torch.testing.assert_close(row[name], other[name], atol=1e-3 if name == "boxes" else 1e-4, rtol=0)


@pytest.fixture(scope="module")
def sequential() -> list[Row]:
    rows = detected(scattered(condition="none"), video(5))
    assert all(len(row["boxes"]) > 10 for row in rows)
    assert max(int(row["tracklet_id"].max()) for row in rows[1:]) > int(rows[0]["tracklet_id"].max())
    assert len(set(rows[0]["tracklet_id"].tolist()) & set(rows[4]["tracklet_id"].tolist()) - {-1}) > 1
    return rows


@pytest.mark.parametrize("condition", ["both", "stage_1", "stage_2"])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"null": 80.0}, id="the null tracklet has all the weight"),
        pytest.param({"alpha": 0.0}, id="P_tr to the power 0 is uniform"),
        pytest.param({"max_tracklets": 0}, id="no tracklet counts"),
    ],
)
def test_without_weight_it_is_the_sequential_baseline(
    condition: str, settings: dict[str, Any], sequential: list[Row]
) -> None:
    assert_same(detected(scattered(condition=condition, beta=1.0, **settings), video(5)), sequential)


@pytest.mark.parametrize("condition", ["both", "stage_1", "stage_2"])
def test_conditioning_changes_what_is_detected(condition: str, sequential: list[Row]) -> None:
    rows = detected(scattered(condition=condition), video(5))
    assert_same(rows[:1], sequential[:1])  # nothing is known yet
    assert any(
        row["scores"].shape != other["scores"].shape or (row["scores"] - other["scores"]).abs().max() > 0.01
        for row, other in zip(rows[1:], sequential[1:], strict=True)
    )


def test_tracklets_of_no_class_change_nothing() -> None:
    """P_tr uniform over C + 1 in the second stage; a memory in mid-video, with embeddings and all."""
    model, plain = scattered(condition="stage_2", beta=1.0), scattered(condition="none")
    _, (memory,) = model.detect([video(3)], [None])
    assert isinstance(memory, Memory)
    assert len(memory.tracklets.ids) > 3
    uniform = torch.full_like(memory.tracklets.probabilities, 1 / 4)
    memory = replace(memory, tracklets=replace(memory.tracklets, probabilities=uniform))
    assert_same(detected(model, video(4)[3:], memory), detected(plain, video(4)[3:], memory))


def test_with_nothing_known_it_is_the_detector() -> None:
    model, frame = scattered(), video(1)
    detector = model.detector
    with torch.no_grad():
        features = detector.features(frame)
        dense = detector.dense(features, (64, 96))
        (regions,) = detector.head(features, detector.proposals(dense), (64, 96))
        plain, probabilities = detector.detected(regions, (64, 96))
    (row,) = detected(model, frame)
    own = {(tuple(box), label): score for box, label, score, _ in listed(row)}
    theirs = list(zip(map(tuple, plain.boxes.tolist()), plain.labels.tolist(), plain.scores.tolist(), strict=True))
    assert len(theirs) > 10
    assert all(own[box, label] == pytest.approx(score, abs=1e-4) for box, label, score in theirs)
    assert int((row["tracklet_id"] < 0).sum()) <= len(theirs)
    assert len(row["boxes"]) - len(theirs) <= int((row["tracklet_id"] >= 0).sum())
    assert probabilities.shape == (len(theirs), 4)
    torch.testing.assert_close(row["class_scores"].sum(dim=1), torch.ones(len(row["boxes"])))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"gate": "overlap", "max_age": 2}, id="both stages"),
        pytest.param({"condition": "none", "propagate": "farneback", "rescore": True}, id="late integration"),
        pytest.param({"aggregate": 2}, id="aggregated features"),
        pytest.param({"condition": "stage_2", "embedding": "fc7", "deformable": True}, id="fc7, deformable"),
    ],
)
def test_neither_chunks_nor_company_nor_a_stay_on_disk_change_anything(settings: dict[str, Any]) -> None:
    model = scattered(**settings)
    clips = [video(5, seed=1), video(3, seed=2)]
    alone = [detected(model, clip) for clip in clips]
    together, _ = model.detect(clips, [None, None])
    for rows, others in zip(together, alone, strict=True):
        assert_same(rows, others)
    rows, memory = [], None
    for start in range(0, 5, 2):
        (some,), (memory,) = model.detect([clips[0][start : start + 2]], [memory])
        rows += some
        stored = pickle.dumps(memory)
        assert len(stored) < 2_000_000
        memory = pickle.loads(stored)
    assert_same(rows, alone[0])
    (none,), (kept,) = model.detect([clips[0][:0]], [memory])
    assert none == []
    assert isinstance(kept, Memory)
    assert isinstance(memory, Memory)
    assert torch.equal(kept.tracklets.boxes, memory.tracklets.boxes)


def test_frames_in_which_nothing_is() -> None:
    model = scattered(min_score=1.0)
    (one, *others), memory = detected(model, video(3)), model.detect([video(3)], [None])[1][0]
    assert {name: tuple(value.shape) for name, value in one.items()} == {
        "boxes": (0, 4),
        "scores": (0,),
        "labels": (0,),
        "class_scores": (0, 4),
        "tracklet_id": (0,),
        "tracked": (0,),
    }
    assert all(len(row["boxes"]) == 0 for row in others)
    assert isinstance(memory, Memory)
    assert len(memory.tracklets.ids) == 0


def test_a_pyramid_is_conditioned_level_by_level() -> None:
    """Torchvision's smallest detector with one: 3 levels that share the branch."""
    name: Any = "fasterrcnn_mobilenet_v3_large_320_fpn"
    given: dict[str, Any] = {"detector": name, "weights": "random", "classes": CLASSES, "min_score": 0.05, "beta": 1.0}
    models = {}
    variants: dict[str, dict[str, Any]] = {"none": {"condition": "none"}, "null": {"null": 80.0}, "both": {}}
    for which, settings in variants.items():
        torch.manual_seed(0)
        models[which] = build(Settings(**given, num_proposals=40, **settings)).eval()
    rows = {which: detected(model, video(3)) for which, model in models.items()}
    assert len(models["both"].detector.dense(models["both"].detector.features(video(1)), (64, 96)).levels) > 1
    assert all(len(row["boxes"]) for row in rows["none"])
    assert_same(rows["null"], rows["none"])
    assert_same(rows["both"][:1], rows["none"][:1])
    assert not torch.equal(rows["both"][1]["scores"][:5], rows["none"][1]["scores"][:5])


# Settings and weights.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 9.0}, "tracklet_rcnn.alpha is 9.0; it must be between 0 and 6"),
        ({"beta": 1.5}, "tracklet_rcnn.beta is 1.5; it must be between 0 and 1"),
        ({"max_age": 0}, "tracklet_rcnn.max_age is 0; it must be at least 1"),
        ({"aggregate": -1}, "tracklet_rcnn.aggregate is -1; it must not be negative"),
        ({"rescore": True}, "tracklet_rcnn.condition must be 'none', not 'both'"),
        ({"propagate": "farneback", "condition": "stage_1"}, "tracklet_rcnn.condition must be 'none', not 'stage_1'"),
        ({"embedding": "fc7"}, "it must be 'stage_2' or 'none'"),
        ({"detector": "fasterrcnn_resnet50_fpn", "deformable": True}, "must be one of: small, resnet50, resnet101"),
        ({"benchmark": "mot15"}, "tracklet_rcnn.benchmark is 'mot15', which detector small does not have"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        Settings(**settings)


def test_weights_with_and_without_embeddings(tmp_path: Path) -> None:
    model = scattered()
    whole, bare = tmp_path / "whole.safetensors", tmp_path / "bare.safetensors"
    about = {"classes": '["a", "b", "c"]'}
    weights.write_weights(whole, model.network, about, torch.float32, extras=model.extras)
    weights.write_weights(bare, model.network, about, torch.float32)
    assert model.untrained == ("embeddings",)
    loaded = build(Settings(weights=str(whole)))
    assert (loaded.untrained, loaded.classes) == ((), CLASSES)
    assert_same(detected(loaded, video(3)), detected(model, video(3)))
    assert build(Settings(weights=str(bare))).untrained == ("embeddings",)
    assert build(Settings(weights=str(bare), aggregate=1)).untrained == ("embeddings", "aggregation")
    for path in (whole, bare):  # fc7 needs none, and does not mind any
        assert build(Settings(weights=str(path), embedding="fc7", condition="stage_2")).untrained == ()
    with pytest.raises(ValueError, match="embeddings"):
        build(Settings(weights=str(whole), embedding="shared_2fc"))


# Training.


def target(boxes: list[list[float]], ids: list[int], **more: Any) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.zeros(len(ids), dtype=torch.long),
        "track_ids": torch.tensor(ids, dtype=torch.long),
        **more,
    }


PAIR = [target([[8, 8, 40, 40], [50, 20, 90, 60]], [1, 2]), target([[10, 9, 42, 41], [52, 22, 92, 62]], [1, 2])]


def losses(model: Model, clips: list[Tensor], targets: list[list[dict[str, Tensor]]]) -> dict[str, float]:
    torch.manual_seed(5)
    return {name: loss.item() for name, loss in model.losses(clips, targets).items()}


def test_which_frames_teach_and_which_are_pairs() -> None:
    assert pair_training.taught_and_pairs([2, 1, 4, 0]) == ([0, 2, 3, 4, 5], [(0, 1), (3, 4), (4, 5), (5, 6)])


def test_detection_learns_on_the_first_frame_alone() -> None:
    model, clip = scattered(), video(2)
    found = losses(model, [clip], [PAIR])
    alone = {name: loss.item() for name, loss in model.detector.losses(clip[:1], PAIR[:1]).items()}
    assert {name: found[name] for name in alone} == pytest.approx(alone, rel=1e-4)
    assert set(found) == {*alone, "track_anchor", "track_region"}
    other = losses(model, [clip], [[PAIR[0], PAIR[1] | {"labels": torch.tensor([2, 2])}]])
    assert other == pytest.approx(found)


def test_tracking_losses_are_means_over_pairs_and_need_known_tracks() -> None:
    model, clip = scattered(negatives="other_objects"), video(3)
    targets = [*PAIR, target([[12, 10, 44, 42]], [1])]
    both = losses(model, [clip], [targets])
    first, second = losses(model, [clip[:2]], [targets[:2]]), losses(model, [clip[1:]], [targets[1:]])
    for name in ("track_anchor", "track_region"):  # what is drawn differs
        assert both[name] == pytest.approx((first[name] + second[name]) / 2, rel=0.25)
        assert first[name] > 0.05
    for unknown in ({"track_ids": torch.tensor([-1, -1])}, {"ignore": torch.tensor([True, True])}):
        hidden = losses(model, [clip[:2]], [[PAIR[0] | unknown, PAIR[1] | unknown]])
        assert hidden["track_anchor"] == hidden["track_region"] == 0
    single = losses(model, [clip[:1]], [PAIR[:1]])
    assert single["track_anchor"] == single["track_region"] == 0


@pytest.mark.parametrize("embedding", ["separate_2fc", "shared_2fc", "fully_shared"])
@pytest.mark.parametrize(
    "targets",
    [
        pytest.param(PAIR, id="two objects"),
        pytest.param([target([], []), target([], [])], id="none"),
        pytest.param([target([[5, 5, 6, 6]], [1]), target([[95, 63, 96, 64]], [1])], id="one pixel"),
    ],
)
def test_every_parameter_has_a_finite_gradient(embedding: Any, targets: list[dict[str, Tensor]]) -> None:
    model = scattered(embedding=embedding).train()
    torch.autograd.backward(list(model.losses([video(2), video(1)], [targets, targets[:1]]).values()))
    lacking = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert not lacking or not len(targets[0]["boxes"])
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)
    assert all(weight.grad is not None for weight in model.embeddings.parameters())


def test_aggregation_learns_from_detection_and_fc7_has_nothing_to_learn() -> None:
    model = scattered(aggregate=1).train()
    assert set(model.extras) == {"embeddings", "aggregation"}
    torch.autograd.backward(list(model.losses([video(3)], [[*PAIR, PAIR[1]]]).values()))
    assert all(weight.grad is not None for weight in model.extras["aggregation"].parameters())
    bare = scattered(embedding="fc7", condition="stage_2")
    assert set(bare.losses([video(2)], [PAIR])) == {"objectness", "anchor_box", "class", "box"}


# What it is for.


def whole(index: int, num_frames: int) -> tuple[Tensor, list[dict[str, Tensor]], pa.Table]:
    """The first frames of a training video: grey pixels, targets that also say who is in a burst, and the truth."""
    frames, table = synthetic.render("train", index)
    table = table.filter(pc.less(table["frame_index"], num_frames))
    targets = []
    for number in range(num_frames):
        rows = table.filter(pc.equal(table["frame_index"], number))
        burst = torch.tensor(["burst" in flags for flags in rows["flags"].to_pylist()], dtype=torch.bool)
        targets.append(target_of(rows, synthetic.CLASSES, np.ones(4, np.float32)) | {"burst": burst})
    grey = torch.from_numpy(frames[:num_frames]).float().mean(dim=3).round().byte()  # colours say who, not what
    return grey[:, None].expand(-1, 3, -1, -1).contiguous(), targets, table


def mean_precision(model: Model, clips: Sequence[Tensor], truth: pa.Table) -> float:
    """mAP_det at IoU .5."""
    rows = []
    videos = sorted(set(truth["video_id"].to_pylist()))
    for name, frames in zip(videos, model.detect(clips, [None] * len(clips))[0], strict=True):
        for number, frame in enumerate(frames):
            for (x1, y1, x2, y2), label, score, _ in listed(frame):
                where = {"video_id": name, "frame_index": number, "x1": x1, "y1": y1, "x2": x2, "y2": y2}
                rows.append(where | {"class_name": synthetic.CLASSES[label], "score": score})
    scores = scoring.score(truth, pa.Table.from_pylist(rows, TRACKS), metrics=["mAP"])
    return scoring.values(scoring.combine([scores]))[None, None]["mAP"]


STEPS = 200


@pytest.mark.slow
def test_conditioning_tells_what_a_burst_hides() -> None:
    """Learned on two videos, in whose bursts the class is random: over many videos it cannot be told there.

    Without colours, since an object's colour would tell its class where only two videos are known.

    2026-11-21, with seeds 0 and 1: mAP of what is in a burst .772 and .743 without conditioning, .889 and .859 with it;
    of all boxes .984 and .952, and .992 and .956. With half the steps or fewer all of this depends on the seed.
    """
    torch.set_num_threads(1)
    clips, targets, tables = zip(*(whole(index, 20) for index in (3, 6)), strict=True)
    present = torch.tensor(sorted({int(label) for clip in targets for each in clip for label in each["labels"]}))
    settings = Settings(weights="random", classes=synthetic.CLASSES, negatives="other_objects")

    def network(condition: Any) -> Model:
        small = SmallTwoStage(len(synthetic.CLASSES), widths=(16, 24, 32, 48), channels=32, hidden=128)
        return Model(replace(settings, condition=condition), small, synthetic.CLASSES)

    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    model = network("both").train()
    optimizer = torch.optim.AdamW(model.parameters(), 6e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=STEPS, pct_start=0.1)
    pairs = [(clip, first) for clip in range(2) for first in range(19)]
    for _ in range(STEPS):
        chosen = [pairs[index] for index in torch.randperm(len(pairs), generator=random)[:4].tolist()]
        taught = []
        for clip, first in chosen:
            for each in targets[clip][first : first + 2]:
                drawn = present[torch.randint(len(present), each["labels"].shape, generator=random)]
                taught.append(each | {"labels": torch.where(each["burst"], drawn, each["labels"])})
        found = model.losses(
            [clips[clip][first : first + 2] for clip, first in chosen],
            [taught[start : start + 2] for start in range(0, 8, 2)],
        )
        optimizer.zero_grad()
        torch.autograd.backward(list(found.values()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()

    truth = pa.concat_tables(tables)
    clear = pa.array(["burst" not in flags for flags in truth["flags"].to_pylist()])
    hidden = truth.set_column(truth.schema.get_field_index("ignore"), "ignore", clear)
    scores = {}
    for condition in ("both", "none"):
        same = network(condition).eval()
        same.load_state_dict(model.state_dict())
        scores[condition] = mean_precision(same, clips, hidden), mean_precision(same, clips, truth)
    assert scores["none"][1] > 0.85, scores  # it has learned these videos
    assert scores["both"][0] > scores["none"][0] + 0.04, scores
