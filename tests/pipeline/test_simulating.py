"""The detection simulator: that a detector errs as its settings say, and in nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pipeline.boxes import iou
from pipeline.records import EVIDENCE, Detections
from pipeline.schemas import TRUTH
from pipeline.simulating import Settings, simulate

CLASSES = ("ant", "bee", "cat", "dog")
SIZE = (480, 640)
NO, ONE = (0.0, 0.0), (1.0, 1.0)
FAULTLESS = Settings(
    jitter=NO,
    resize=NO,
    miss=NO,
    confusion=NO,
    certainty=(0.9, 0.9),
    spread=0,
    min_score=0.5,
    false_positives=0,
    clutter=0,
    move_jitter=NO,
    embedding_noise=NO,
)


def row(frame: int, track: int | None, label: int = 0, flags: Sequence[str] = (), **changes: object) -> dict:
    """One box of truth: each object has its own row of the frame and goes 4 pixels to the right a frame."""
    x, y = 10.0 + 4 * frame, 20.0 + 45 * ((track or 1) % 10)
    return {
        "video_id": "a",
        "frame_index": frame,
        "track_id": track,
        "class_id": label,
        "class_name": CLASSES[label],
        **{"x1": x, "y1": y, "x2": x + 40, "y2": y + 30},
        "ignore": False,
        "motion_iou": None,
        "flags": list(flags),
        **changes,
    }


def truth(rows: Sequence[dict]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), TRUTH)


def crowd(num_frames: int = 100, count: int = 9, flags: Sequence[str] = (), video: str = "a") -> pa.Table:
    """Objects 1 to count in every frame, of all classes in turn."""
    every = itertools.product(range(num_frames), range(1, count + 1))
    return truth([row(frame, track, track % len(CLASSES), flags, video_id=video) for frame, track in every])


def seen(table: pa.Table, settings: Settings = FAULTLESS, num_frames: int = 100, **changes: object) -> list[Detections]:
    return simulate(table, num_frames, CLASSES, replace(settings, **changes), size=SIZE)


def same(one: list[Detections], other: list[Detections], names: Sequence[str] = ("boxes", "scores", "labels")) -> bool:
    return all(
        np.array_equal(getattr(here, name), getattr(there, name))
        for here, there in zip(one, other, strict=True)
        for name in names
    )


def test_a_faultless_detector_sees_the_truth() -> None:
    table = crowd()
    frames = seen(table)
    assert [len(frame) for frame in frames] == [9] * 100
    assert [frame.frame_index for frame in frames] == list(range(100))
    for frame in frames:
        rows = [row(frame.frame_index, track) for track in range(1, 10)]
        np.testing.assert_allclose(frame.boxes, [[r["x1"], r["y1"], r["x2"], r["y2"]] for r in rows], rtol=1e-6)
        assert frame.labels.tolist() == [track % len(CLASSES) for track in range(1, 10)]
        np.testing.assert_allclose(frame.scores, 0.9, rtol=1e-6)
        assert not frame.evidence()


@pytest.mark.parametrize(("flags", "which"), [((), 0), (("burst", "noise"), 1)], ids=["clean", "in bursts"])
class TestFaultsAreAsStated:
    """900 boxes: a chance of .3 is found to .045, three standard errors."""

    def test_misses(self, flags: Sequence[str], which: int) -> None:
        chances = [0.6, 0.6]
        chances[which] = 0.3
        found = sum(map(len, seen(crowd(flags=flags), miss=tuple(chances))))
        assert found / 900 == pytest.approx(0.7, abs=0.045)

    @pytest.mark.parametrize("wrong_class", ["burst", "frame"])
    def test_confusion(self, flags: Sequence[str], which: int, wrong_class: str) -> None:
        chances = [0.6, 0.6]
        chances[which] = 0.3
        frames = seen(crowd(flags=flags), confusion=tuple(chances), wrong_class=wrong_class)
        own = np.arange(1, 10) % len(CLASSES)
        wrong = np.concatenate([frame.labels != own for frame in frames])
        assert wrong.mean() == pytest.approx(0.3, abs=0.045)
        taken = np.stack([frame.labels for frame in frames])[:, 0]  # of the first object
        kinds = len(set(taken[taken != own[0]].tolist()))
        assert kinds == (1 if wrong_class == "burst" and flags else len(CLASSES) - 1)

    def test_certainty(self, flags: Sequence[str], which: int) -> None:
        means = [0.2, 0.2]
        means[which] = 0.6
        scores = [frame.scores for frame in seen(crowd(flags=flags), certainty=tuple(means), spread=0.1, min_score=0.3)]
        assert np.concatenate(scores).mean() == pytest.approx(0.6, abs=0.01)
        assert np.concatenate(scores).std() == pytest.approx(0.1, abs=0.01)

    def test_jitter_and_size(self, flags: Sequence[str], which: int) -> None:
        shares = [0.5, 0.5]
        shares[which] = 0.1
        table = crowd(flags=flags)
        exact, shifted, resized = (
            np.concatenate([frame.boxes for frame in seen(table, **changes)])
            for changes in ({}, {"jitter": tuple(shares)}, {"resize": tuple(shares)})
        )
        whole = (shifted[:, 0] > 0) & (resized[:, 0] > 0)  # not cut at the frame
        assert ((shifted - exact)[whole, :2] / [40, 30]).std() == pytest.approx(0.1, rel=0.1)
        assert np.log((resized[:, 2:] - resized[:, :2]) / [40, 30])[whole].std() == pytest.approx(0.1, rel=0.1)


def test_another_burst_is_taken_for_another_class() -> None:
    """One object, deteriorated for 3 frames of every 5: the wrong class changes between bursts, not within."""
    rows = [row(frame, 1, 0, ["burst"] if frame % 5 < 3 else []) for frame in range(100)]
    labels = [int(frame.labels[0]) for frame in seen(truth(rows), confusion=(0.0, 1.0))]
    bursts = [labels[start : start + 3] for start in range(0, 100, 5)]
    assert all(len(set(burst)) == 1 and burst[0] != 0 for burst in bursts)
    assert {burst[0] for burst in bursts} == {1, 2, 3}
    assert {label for start in range(0, 100, 5) for label in labels[start + 3 : start + 5]} == {0}


def test_every_class_that_scores_enough_is_a_detection() -> None:
    for frame in seen(crowd(20), Settings(evidence=("class_scores",), min_score=0.1), 20):
        classes = frame.class_scores
        np.testing.assert_allclose(classes.sum(axis=1), 1, atol=1e-6)
        assert (classes >= 0).all()
        assert np.array_equal(classes[np.arange(len(frame)), 1 + frame.labels], frame.scores)
        assert (frame.scores >= 0.1).all()
        given = {(*box, label) for box, label in zip(frame.boxes.tolist(), frame.labels.tolist(), strict=True)}
        wanted = {
            (*box, label)
            for box, row in zip(frame.boxes.tolist(), classes, strict=True)
            for label in np.flatnonzero(row[1:] >= 0.1)
        }
        assert given == wanted
        assert len(given) == len(frame)


def test_what_a_burst_hides_is_the_second_guess() -> None:
    hidden = 0
    for frame in seen(crowd(), confusion=ONE, certainty=(0.5, 0.5), evidence=("class_scores",)):
        guesses = np.argsort(-frame.class_scores[:, 1:], axis=1)
        own = np.arange(1, 10) % len(CLASSES)
        hidden += int((guesses[:, 1] == own).sum())
        assert not (guesses[:, 0] == own).any()
    assert hidden == 900


def test_false_positives_come_as_often_and_last_as_long_as_stated() -> None:
    """1000 frames: 2 in each to .2, three standard errors of sums of runs of 1 to 3."""
    sure = {"false_certainty": (0.9, 0.0), "evidence": ("tracklet_id",), "num_frames": 1000}
    frames = seen(truth([]), false_positives=2.0, false_frames=(1, 3), **sure)
    assert sum(map(len, frames)) / 1000 == pytest.approx(2, abs=0.2)
    lengths = np.bincount(np.concatenate([frame.tracklet_id for frame in frames]))
    assert set(lengths.tolist()) == {1, 2, 3}
    assert np.mean(lengths[1:-1]) == pytest.approx(2, abs=0.1)

    lone = seen(truth([]), false_positives=2.0, false_frames=(1, 1), **sure)
    assert set(np.bincount(np.concatenate([frame.tracklet_id for frame in lone])).tolist()) == {1}


def test_clutter_is_weak_in_every_class() -> None:
    frames = seen(truth([]), clutter=5.0, min_score=0.02, num_frames=200)
    scores = np.concatenate([frame.scores for frame in frames])
    assert len(scores) / 200 == pytest.approx(5 * len(CLASSES), abs=0.1 * 5 * len(CLASSES))
    assert scores.max() < 0.2


def test_boxes_lie_in_the_frame() -> None:
    wild = {"jitter": (3.0, 3.0), "resize": (1.0, 1.0), "false_positives": 5.0, "min_score": 0.02}
    boxes = np.concatenate([frame.boxes for frame in seen(crowd(), **wild)])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= SIZE[::-1]).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 1 - 1e-4).all()


def test_ignored_truth_is_never_certain_and_regions_are_not_seen() -> None:
    rows = [row(frame, track, ignore=track == 2) for frame in range(100) for track in (1, 2)]
    rows += [row(frame, None, 1, ignore=True, class_name=None, class_id=None) for frame in range(100)]
    table = truth(rows)
    for frame in seen(table, min_score=0.2):
        np.testing.assert_allclose(frame.scores, [0.9, 0.45], rtol=1e-6)
    bad = {"jitter": (0.0, 0.2), "min_score": 0.2, "confusion": (0.0, 1.0)}  # it errs as boxes in a burst do
    for frame in seen(table, **bad):
        assert [label == 0 for label in frame.labels] == [True, False]


def test_moves_lead_where_truth_goes() -> None:
    """Objects of 10 frames: a move's end is the object's box a frame on; in the last there is nothing to lead to."""
    frames = seen(crowd(10, 3), num_frames=12, evidence=("moves",))
    for here, there in itertools.pairwise(frames[:10]):
        np.testing.assert_allclose(here.moves.end, there.boxes, rtol=1e-5)
    for frame in frames:
        assert np.array_equal(frame.moves.start, frame.boxes)
        assert np.array_equal(frame.moves.box_id, frame.box_id)
        assert frame.moves.stride == 1
    assert np.array_equal(frames[9].moves.end, frames[9].boxes)

    error = np.concatenate(
        [
            (erring.moves.end - exact.moves.end)[:, 0] / 40
            for erring, exact in zip(
                seen(crowd(), evidence=("moves",), move_jitter=(0.1, 0.1)),
                seen(crowd(), evidence=("moves",)),
                strict=True,
            )
        ]
    )
    assert error.std() == pytest.approx(np.hypot(0.1, 0.1 / 2), rel=0.1)  # of the centre, and of half the width


def test_a_miss_breaks_a_tracklet_and_nothing_else_does() -> None:
    rows = [row(frame, track) for frame in range(20) for track in (1, 2) if (frame, track) not in {(5, 1), (6, 1)}]
    frames = seen(truth(rows), num_frames=20, evidence=("tracklet_id",))
    ids = [dict(zip(frame.boxes[:, 1].tolist(), frame.tracklet_id.tolist(), strict=True)) for frame in frames]
    first, second = 20.0 + 45, 20.0 + 90
    assert len({of[second] for of in ids}) == 1
    assert len({of[first] for of in ids[:5]}) == len({of[first] for of in ids[7:]}) == 1
    assert ids[4][first] != ids[7][first]

    frames = seen(crowd(), Settings(evidence=("tracklet_id",)))
    for frame in frames:
        known = frame.tracklet_id[frame.tracklet_id >= 0]
        assert len(known) == len(set(known.tolist())), "one box of each tracklet, of one class"
    alone = [frame for frame in seen(truth([]), Settings(evidence=("tracklet_id",), false_positives=0))]
    assert max(frame.tracklet_id.max(initial=-1) for frame in alone) == -1


def test_lookalikes_of_a_class_are_near_and_others_are_not() -> None:
    rows = [row(0, track, track // 200, ["lookalike"] if track % 2 else []) for track in range(1, 400)]
    (frame,) = seen(truth(rows), num_frames=1, evidence=("embeddings",), likeness=0.6, embedding_size=1024)
    looks = frame.embeddings
    np.testing.assert_allclose(np.linalg.norm(looks[1::2], axis=1), 1, rtol=1e-5)
    cosine = looks @ looks.T / np.outer(*[np.linalg.norm(looks, axis=1)] * 2)
    pairs, alike = ~np.eye(len(rows), dtype=bool), np.array(["lookalike" in r["flags"] for r in rows])
    both, one_class = np.logical_and.outer(alike, alike), np.equal.outer(frame.labels, frame.labels)
    assert cosine[pairs & both & one_class].mean() == pytest.approx(0.6, abs=0.05)
    assert abs(cosine[pairs & both & ~one_class].mean()) < 0.15
    assert abs(cosine[pairs & ~both].mean()) < 0.02


def test_embeddings_are_noisy_as_stated() -> None:
    exact, noisy = (
        np.concatenate([frame.embeddings for frame in seen(crowd(), evidence=("embeddings",), embedding_noise=noise)])
        for noise in (NO, (0.5, 0.5))
    )
    assert len({tuple(look) for look in exact.round(5).tolist()}) == 9
    assert np.linalg.norm(noisy - exact, axis=1).mean() == pytest.approx(0.5, rel=0.05)


ROUGH = Settings()


class TestStreams:
    def test_the_same_seed_gives_the_same_and_another_does_not(self) -> None:
        assert same(seen(crowd(), ROUGH), seen(crowd(), ROUGH))
        assert not same(seen(crowd(), ROUGH), seen(crowd(), ROUGH, seed=1))

    def test_videos_do_not_share_streams(self) -> None:
        boxes = [seen(crowd(video=name), FAULTLESS, jitter=(0.1, 0.1))[0].boxes for name in ("a", "b")]
        assert not np.isclose(*boxes).any()

    def test_evidence_that_is_asked_for_changes_nothing_else(self) -> None:
        plain, full = seen(crowd(), ROUGH), seen(crowd(), ROUGH, evidence=EVIDENCE)
        assert same(plain, full)
        assert all(frame.evidence() == {*EVIDENCE} for frame in full)
        for name in EVIDENCE[:3]:
            assert same(seen(crowd(), ROUGH, evidence=(name,)), full, [name])

    def test_fewer_misses_leave_the_other_boxes_as_they_were(self) -> None:
        some, all_boxes = seen(crowd(), ROUGH, miss=(0.5, 0.5)), seen(crowd(), ROUGH, miss=NO)
        assert sum(map(len, some)) < 0.7 * sum(map(len, all_boxes))
        for few, many in zip(some, all_boxes, strict=True):
            assert {tuple(box) for box in few.boxes.tolist()} < {tuple(box) for box in many.boxes.tolist()}

    def test_order_of_rows_is_nothing(self) -> None:
        table = crowd()
        turned = table.take(np.random.default_rng(0).permutation(len(table)))
        assert same(seen(table, ROUGH), seen(turned, ROUGH))


def test_no_truth_and_a_single_class_are_fine() -> None:
    assert [len(frame) for frame in seen(truth([]), num_frames=3)] == [0, 0, 0]
    assert seen(truth([]), ROUGH, num_frames=0, evidence=EVIDENCE) == []
    one = simulate(crowd(20).filter(np.arange(180) % 9 == 3), 20, ["ant"], replace(ROUGH, confusion=ONE), size=SIZE)
    assert {int(label) for frame in one for label in frame.labels} == {0}
    assert any(iou(frame.boxes, frame.boxes).size for frame in one)


WRONG_TRUTH = {
    "two videos": ([row(0, 1), row(0, 2, video_id="b")], "is of 2 videos, a, b; it must be of one"),
    "no identity": ([row(3, None)], "frame 3 of a has a row without track_id, and it counts"),
    "no class": ([row(3, 1, class_name=None)], "frame 3 of a has a row without class_name"),
    "a class of others": ([row(0, 1, class_name="emu")], "the class 'emu'; it must be one of: ant, bee, cat, dog"),
    "a frame too many": ([row(100, 1)], "a has truth in frame 100; it has 100 frames"),
}


@pytest.mark.parametrize(("rows", "message"), WRONG_TRUTH.values(), ids=WRONG_TRUTH)
def test_wrong_truth_is_refused(rows: list[dict], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        seen(truth(rows))


WRONG_SETTINGS = [
    ({"miss": (0.1, 1.2)}, r"miss is \(0.1, 1.2\); it must be from 0 to 1"),
    ({"confusion": (float("nan"), 0.1)}, "confusion is"),
    ({"jitter": (-0.1, 0.1)}, "jitter is .*; it must be at least 0"),
    ({"clutter": float("inf")}, "clutter is inf; it must be at least 0 and finite"),
    ({"false_positives": -1.0}, "false_positives is -1.0; it must be at least 0"),
    ({"false_frames": (2, 1)}, "false_frames is"),
    ({"false_frames": (0, 1)}, "false_frames is"),
    ({"embedding_size": 0}, "embedding_size is 0"),
    ({"wrong_class": "video"}, "wrong_class is 'video'; it must be burst or frame"),
    ({"evidence": ("looks",)}, "evidence 'looks' is unknown; there is: class_scores, embeddings, tracklet_id, moves"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_SETTINGS, ids=lambda value: str(value)[:30])
def test_settings_out_of_range_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"^simulated {message}"):
        Settings(**changes)
