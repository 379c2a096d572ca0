"""SMOT's rules on hand-made anchors: what re-detection gives, who ends, who begins, and what is given out."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import pytest
import torch
from torch import Tensor

from models.parts import anchors as anchor_boxes
from models.parts.anchors import AnchorOutputs
from models.parts.redetection import Rules, Tracks, no_tracks, redetect, step
from models.smot import Memory, Model, Settings, build, rules

RULES = Rules(
    sigma_det=0.6,
    sigma_track=0.4,
    min_score=0.05,
    nms_iou=0.5,
    top_k=100,
    max_detections=100,
    per="class",
)
BOX = [10.0, 10.0, 30.0, 30.0]


def outputs(
    anchors: Sequence[Sequence[float]], scores: list[list[float]], boxes: Sequence[Sequence[float]] | None = None
) -> AnchorOutputs:
    """A frame in which each anchor says these scores and boxes, by default its own box."""
    grid = torch.tensor(anchors, dtype=torch.float32).reshape(-1, 4)
    said = grid if boxes is None else torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return AnchorOutputs(
        grid, said, torch.tensor(scores).reshape(len(grid), len(scores[0]) if scores else 1), (len(grid),)
    )


def tracks(boxes: list[list[float]], labels: list[int] | None = None, num_classes: int = 2) -> Tracks:
    """Active tracklets with ids 0, 1, ..."""
    count = len(boxes)
    known = torch.tensor(labels or [0] * count)
    evidence = torch.nn.functional.one_hot(known, num_classes).float()
    return Tracks(torch.tensor(boxes), known, torch.arange(count), evidence, torch.zeros_like(known), count)


def tracklets(row: dict[str, Tensor]) -> dict[int, tuple[list[float], float, int, bool]]:
    """id -> box, score, label, whether re-detected; of the rows that have an id."""
    return {
        int(row["tracklet_id"][i]): (
            row["boxes"][i].tolist(),
            round(float(row["scores"][i]), 5),
            int(row["labels"][i]),
            bool(row["tracked"][i]),
        )
        for i in torch.nonzero(row["tracklet_id"] >= 0).flatten().tolist()
    }


def test_equation_1_by_hand() -> None:
    # Three anchors whose IoU with the track's box [0, 0, 10, 10] is .7, .5 and .3.
    near = [[0, 0, 10, 7], [0, 0, 10, 5], [0, 0, 10, 3]]
    said = [[0, 0, 10, 10], [2, 0, 12, 10], [0, 4, 10, 14]]
    frame = outputs(near, [[0.9], [0.6], [0.2]], said)
    ours = replace(RULES, num_anchors=3, weighting="iou")
    boxes, scores, found = redetect(frame, torch.tensor([[0.0, 0, 10, 10]]), ours)
    torch.testing.assert_close(boxes, torch.tensor([[2 / 3, 0.8, 32 / 3, 10.8]]))
    torch.testing.assert_close(scores, torch.tensor([[0.66]]))
    assert found.tolist() == [True]


@pytest.mark.parametrize(
    ("weighting", "count", "box", "score"),
    [
        pytest.param("max", 3, [0, 0, 10, 10], 0.9, id="max: the nearest anchor alone, whatever K"),
        pytest.param("iou", 1, [0, 0, 10, 10], 0.9, id="iou: K = 1 is the nearest anchor"),
        pytest.param("avg", 2, [1, 0, 11, 10], 0.75, id="avg: the plain mean of K"),
        pytest.param("avg", 9, [2 / 3, 4 / 3, 32 / 3, 34 / 3], 1.7 / 3, id="avg: K above the anchors there are"),
        pytest.param("iou", 2, [10 / 12, 0, 130 / 12, 10], 0.775, id="iou: weights .7 and .5"),
        pytest.param("iou_score", 2, [60 / 93, 0, 990 / 93, 10], 0.747 / 0.93, id="iou_score: weights .63 and .3"),
    ],
)
def test_weights_of_the_anchors(weighting: str, count: int, box: list[float], score: float) -> None:
    near = [[0, 0, 10, 7], [0, 0, 10, 5], [0, 0, 10, 3]]
    said = [[0, 0, 10, 10], [2, 0, 12, 10], [0, 4, 10, 14]]
    ours = replace(RULES, num_anchors=count, weighting=weighting)  # type: ignore[arg-type]
    expected = torch.tensor([[0.0, 0, 10, 10]])
    boxes, scores, _ = redetect(outputs(near, [[0.9], [0.6], [0.2]], said), expected, ours)
    torch.testing.assert_close(boxes, torch.tensor([box], dtype=torch.float32))
    torch.testing.assert_close(scores, torch.tensor([[score]]))


def test_one_anchor_that_is_the_tracks_box_gives_what_the_detector_says() -> None:
    said = [11.0, 12.0, 33.0, 34.0]
    row, _ = step(outputs([BOX], [[0.1, 0.7]], [said]), tracks([BOX], [1]), RULES)
    assert tracklets(row) == {0: (said, 0.7, 1, True)}  # the score of the track's own class


@pytest.mark.parametrize(
    ("frame", "survives"),
    [
        pytest.param(outputs([BOX], [[0.4]]), True, id="score at sigma_track"),
        pytest.param(outputs([BOX], [[0.39]]), False, id="score below it"),
        pytest.param(outputs([[26, 10, 46, 30]], [[0.9]]), True, id="nearest anchor at IoU .111"),
        pytest.param(outputs([[28, 10, 48, 30]], [[0.9]]), False, id="nearest anchor at IoU .053"),
        pytest.param(outputs([BOX], [[0.9]], [[0, 5, 0, 25]]), False, id="it has left the frame"),
    ],
)
def test_what_ends_a_track(frame: AnchorOutputs, survives: bool) -> None:
    row, after = step(frame, tracks([BOX], num_classes=1), RULES)
    assert (0 in tracklets(row)) == survives
    assert (0 in after.ids) == survives


def test_what_ended_never_comes_back() -> None:
    seen, unseen = outputs([BOX], [[0.9]]), outputs([BOX], [[0.1]])
    memory, ids = no_tracks(1), []
    for frame in (seen, seen, unseen, seen, seen):
        row, memory = step(frame, memory, RULES)
        ids.append(sorted(tracklets(row)))
    assert ids == [[0], [0], [], [1], [1]]


@pytest.mark.parametrize(
    ("labels", "second", "left"),
    [
        pytest.param([0, 0], [10, 10, 30, 29], {0}, id="one class, IoU .95: the lower score goes"),
        pytest.param([0, 1], [10, 10, 30, 29], {0, 1}, id="two classes: both stay"),
        pytest.param([0, 0], [10, 20, 30, 40], {0, 1}, id="one class, IoU .33: both stay"),
    ],
)
def test_suppression_among_tracks(labels: list[int], second: list[float], left: set[int]) -> None:
    frame = outputs([BOX, second], [[0.9, 0.8], [0.8, 0.8]])
    _, after = step(frame, tracks([BOX, second], labels), RULES)
    assert set(after.ids.tolist()) & {0, 1} == left


@pytest.mark.parametrize(
    ("box", "scores", "ids"),
    [
        # The track lies at BOX. The IoU with it of a box moved down by d is (20 - d) / (20 + d).
        pytest.param([10, 20, 30, 40], [0.9, 0.0], {0}, id="IoU .33 with the track: no new one"),
        pytest.param([10, 22, 30, 42], [0.9, 0.0], {0, 1}, id="IoU .25: a new one"),
        pytest.param([10, 20, 30, 40], [0.0, 0.9], {0, 1}, id="IoU .33, another class: a new one"),
        pytest.param([60, 60, 80, 80], [0.6, 0.0], {0}, id="score not above sigma_det: no new one"),
        pytest.param([60, 60, 80, 80], [0.61, 0.0], {0, 1}, id="score above it: a new one"),
    ],
)
def test_what_starts_a_track(box: list[float], scores: list[float], ids: set[int]) -> None:
    row, after = step(outputs([BOX, box], [[0.8, 0.0], scores]), tracks([BOX]), RULES)
    assert set(tracklets(row)) == ids
    assert after.next_id == max(ids) + 1
    assert all(tracked == (number == 0) for number, (*_, tracked) in tracklets(row).items())


def test_a_frame_gives_every_detection_once() -> None:
    """A re-detection stands for the detections of its class that it covers, in the best one's score."""
    frame = outputs(
        [BOX, [10, 11, 30, 31], [60, 60, 80, 80], [90, 60, 110, 80]],
        [[0.7, 0.3], [0.8, 0.0], [0.3, 0.2], [0.04, 0.0]],
    )
    row, _ = step(frame, tracks([BOX]), RULES)
    rows = zip(row["labels"].tolist(), row["scores"].tolist(), row["tracklet_id"].tolist(), strict=True)
    assert [(label, round(score, 2), number) for label, score, number in rows] == [
        (0, 0.8, 0),  # the re-detection, .7 at the first anchor; the second, of .8, is covered by it
        (0, 0.3, -1),
        (1, 0.3, -1),
        (1, 0.2, -1),
    ]


def test_a_second_look_starts_from_where_the_first_found_it() -> None:
    """The object has moved by 12: the old anchor points at it roughly, the anchor there sees it well."""
    near = [BOX, [22.0, 10.0, 42.0, 30.0]]
    frame = outputs(near, [[0.5], [0.9]], [[20, 10, 40, 30], [22, 11, 42, 31]])
    once, _ = step(frame, tracks([BOX], num_classes=1), RULES)
    twice, _ = step(frame, tracks([BOX], num_classes=1), replace(RULES, looks=2))
    assert tracklets(once)[0][0] == [20, 10, 40, 30]
    assert tracklets(twice)[0][0] == [22, 11, 42, 31]
    lost = outputs(near, [[0.5], [0.9]], [[60, 10, 80, 30], [22, 11, 42, 31]])  # no anchor where it points
    _, after = step(lost, tracks([BOX], num_classes=1), replace(RULES, looks=2))
    assert 0 not in after.ids
    off = outputs([[28, 10, 48, 30]], [[0.9]])  # IoU .053 at first, though it lies where it points
    _, after = step(off, tracks([BOX], num_classes=1), replace(RULES, looks=2))
    assert 0 not in after.ids


@pytest.mark.parametrize(
    ("across", "labels"),
    [
        pytest.param(False, [[0], [0], [0, 1], [1]], id="within a class: it ends, and another class begins"),
        pytest.param(True, [[0], [0], [0], [1]], id="across classes: it lives on, by what was seen of it so far"),
    ],
)
def test_an_object_whose_class_is_seen_otherwise(across: bool, labels: list[list[int]]) -> None:
    frames = [outputs([BOX], [scores]) for scores in ([0.7, 0.1], [0.6, 0.2], [0.41, 0.7], [0.1, 0.85])]
    memory, found, ids = no_tracks(2), [], []
    for frame in frames:
        row, memory = step(frame, memory, replace(RULES, across_classes=across))
        found.append(sorted(label for _, _, label, _ in tracklets(row).values()))
        ids.append(sorted(tracklets(row)))
    assert found == labels
    assert ids == ([[0]] * 4 if across else [[0], [0], [0, 1], [1]])


def test_what_speaks_for_a_class_at_birth_is_what_the_detections_own_anchor_said() -> None:
    """Its index is carried through suppression: the third anchor is the best of one object, the second of the other."""
    frame = outputs(
        [[11, 10, 31, 30], [60, 60, 80, 80], BOX, [60, 10, 80, 30]],
        [[0.7, 0.2], [0.1, 0.8], [0.9, 0.05], [0.3, 0.1]],
    )
    row, born = step(frame, no_tracks(2), RULES)
    torch.testing.assert_close(born.evidence, torch.tensor([[0.9, 0.05], [0.1, 0.8]]))
    assert row["boxes"][:2].tolist() == [BOX, [60, 60, 80, 80]]


def test_tracks_of_two_classes_on_one_object_become_one_across_classes() -> None:
    frame = outputs([BOX, [10, 10, 30, 29]], [[0.5, 0.1], [0.1, 0.7]])
    _, apart = step(frame, tracks([BOX, [10, 10, 30, 29]], [0, 1]), RULES)
    _, together = step(frame, tracks([BOX, [10, 10, 30, 29]], [0, 1]), replace(RULES, across_classes=True))
    assert apart.ids.tolist() == [0, 1]
    assert together.ids.tolist() == [1]


@pytest.fixture(scope="module")
def small() -> Model:
    """The small network, untrained, its heads made bold, so that it finds and tracks something in noise."""
    torch.manual_seed(3)
    model = build(Settings(weights="random", classes=("a", "b"), sigma_det=0.3, sigma_track=0.1, batch_frames=4))
    for name, parameter in model.detector.named_parameters():
        if name.startswith(("objectness", "classes")):
            parameter.data.normal_(0, 0.4)
    return model


def test_a_clip_in_chunks_is_the_clip(small: Model) -> None:
    clip = torch.randint(0, 256, (20, 3, 70, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))
    (whole,), (end,) = small.detect([clip], [None])
    parts, memory = [], None
    for start in range(0, 20, 7):
        (rows,), (memory,) = small.detect([clip[start : start + 7]], [memory])
        memory = pickle.loads(pickle.dumps(memory))
        parts += rows
    assert any((row["tracked"]).any() for row in whole)
    for one, other in zip(whole, parts, strict=True):
        assert one["tracklet_id"].tolist() == other["tracklet_id"].tolist()
        assert one["labels"].tolist() == other["labels"].tolist()
        torch.testing.assert_close(one["boxes"], other["boxes"], atol=1e-3, rtol=0)
        torch.testing.assert_close(one["scores"], other["scores"], atol=1e-4, rtol=0)
    assert isinstance(end, Memory)
    assert isinstance(memory, Memory)
    assert end.tracks.next_id == memory.tracks.next_id


def test_clips_together_are_as_clips_alone(small: Model) -> None:
    random = torch.Generator().manual_seed(6)
    clips = [torch.randint(0, 256, (n, 3, 64, 96), dtype=torch.uint8, generator=random) for n in (5, 3, 0)]
    together, _ = small.detect(clips, [None] * 3)
    alone = [small.detect([clip], [None])[0][0] for clip in clips]
    assert [len(rows) for rows in together] == [5, 3, 0]
    for one, other in zip(chain(*together), chain(*alone), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (33, 17)])
def test_frames_of_any_size(small: Model, size: tuple[int, int]) -> None:
    (rows,), _ = small.detect([torch.zeros(2, 3, *size, dtype=torch.uint8)], [None])
    for row in rows:
        assert anchor_boxes.has_area(row["boxes"]).all()
        assert (row["boxes"] >= 0).all()
        assert (row["boxes"] <= torch.tensor([size[1], size[0]] * 2)).all()
        assert {name: value.dtype for name, value in row.items()} == {
            "boxes": torch.float32,
            "scores": torch.float32,
            "labels": torch.int64,
            "tracklet_id": torch.int64,
            "tracked": torch.bool,
        }


def test_an_empty_frame_and_a_pixel_sized_track() -> None:
    nothing = outputs([], [])
    row, after = step(nothing, no_tracks(1), RULES)
    assert len(row["boxes"]) == len(after.boxes) == 0
    pixel = [4.0, 4.0, 5.0, 5.0]
    _, after = step(outputs([pixel], [[0.9]]), no_tracks(1), RULES)
    row, _ = step(outputs([pixel], [[0.9]]), after, RULES)
    assert tracklets(row) == {0: (pixel, 0.9, 0, True)}


def test_settings_replace_the_detectors_own() -> None:
    assert rules(Settings(detector="ssd300_vgg16")).sigma_det == 0.9  # section 6.1
    ours = rules(Settings(detector="ssd300_vgg16", sigma_det=0.8, num_anchors=5))
    assert (ours.sigma_det, ours.sigma_track, ours.num_anchors) == (0.8, 0.4, 5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sigma_det": 1.5}, r"smot\.sigma_det is 1\.5; it must be between 0 and 1"),
        ({"num_anchors": 0}, r"smot\.num_anchors is 0; it must be at least 1"),
        ({"batch_frames": -1}, r"smot\.batch_frames is -1; it must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**given)  # type: ignore[arg-type]


def test_classes_must_be_known() -> None:
    with pytest.raises(ValueError, match="do not say what their classes are called"):
        build(Settings(weights="random"))


def test_more_anchors_than_one_are_really_asked() -> None:
    """K alone chooses the paper's multi-assignment; asking for K of the nearest only is refused."""
    assert rules(Settings(detector="ssd300_vgg16", num_anchors=10)).weighting == "iou"
    assert rules(Settings(detector="ssd300_vgg16")).weighting == "max"
    with pytest.raises(ValueError, match=r"smot\.num_anchors is 10; with smot\.weighting 'max', .* it must be 1"):
        Settings(num_anchors=10, weighting="max")
