"""Records become rows and rows the same records."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import Detections, Moves, Track, detections
from pipeline.schemas import TRACKS, detections_frames, detections_table, tracks_table
from pipeline.tracks import tracks_of


def assert_same(one: Detections, other: Detections) -> None:
    assert one.frame_index == other.frame_index
    assert one.timestamp_s == other.timestamp_s
    assert one.evidence() == other.evidence()
    for name in (
        "boxes",
        "scores",
        "labels",
        "box_id",
        "class_scores",
        "embeddings",
        "tracklet_id",
        "tracked",
    ):
        first, second = getattr(one, name), getattr(other, name)
        if first is None:
            assert second is None, name
        elif len(first) == 0:
            assert len(second) == 0, name  # the width of no rows is not kept
        else:
            np.testing.assert_array_equal(first, second, err_msg=name)
            assert first.dtype == second.dtype, name
    if one.moves is not None and other.moves is not None:
        for name in ("start", "end", "scores", "box_id", "stride"):
            np.testing.assert_array_equal(getattr(one.moves, name), getattr(other.moves, name), err_msg=name)


def frame(index: int, count: int, seed: int, with_evidence: bool) -> Detections:
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 100, (count, 2)).astype(np.float32)
    boxes = np.concatenate([corners, corners + random.uniform(1, 20, (count, 2)).astype(np.float32)], axis=1)
    evidence = (
        {
            "class_scores": random.uniform(size=(count, 4)),
            "embeddings": random.integers(-8, 8, (count, 3)) / 8,  # exact in float16
            "tracklet_id": random.integers(-1, 5, count),
            "tracked": random.uniform(size=count) > 0.5,
            "moves": Moves(
                boxes,
                boxes + 1,
                random.uniform(size=count).astype(np.float32),
                np.arange(count, dtype=np.int32),
            ),
        }
        if with_evidence
        else {}
    )
    return detections(
        index,
        boxes,
        random.uniform(size=count),
        random.integers(0, 3, count),
        timestamp_s=index / 25,
        **evidence,
    )


@given(st.lists(st.integers(0, 4), max_size=5), st.booleans(), st.integers(0, 1000))
def test_detections_survive_the_table(counts: list[int], with_evidence: bool, seed: int) -> None:
    frames = [frame(index, count, seed + index, with_evidence) for index, count in enumerate(counts)]
    table = detections_table("a", "clip", frames, np.ones(len(frames), bool))
    for one, other in zip(frames, detections_frames(table), strict=True):
        assert_same(one, other)


def test_a_slice_of_the_table_reads_as_those_frames() -> None:
    frames = [frame(index, index, index, True) for index in range(5)]
    table = detections_table("a", "clip", frames, np.ones(5, bool))
    for one, other in zip(frames[2:4], detections_frames(table.slice(2, 2)), strict=True):
        assert_same(one, other)


def test_evidence_may_be_missing_in_some_frames() -> None:
    frames = [frame(0, 2, 0, True), frame(1, 2, 1, False)]
    for one, other in zip(frames, detections_frames(detections_table("a", "c", frames, np.ones(2, bool))), strict=True):
        assert_same(one, other)


def test_tracks_table_gives_every_box_once_sorted_with_untracked_last() -> None:
    frames = [
        detections(0, [[0, 0, 4, 4], [9, 9, 12, 12]], [0.9, 0.2], [1, 0], timestamp_s=0.0, tracked=[False, False]),
        detections(1, timestamp_s=0.5),
        detections(2, [[2, 0, 6, 4]], [0.7], [1], timestamp_s=0.75, tracked=[True]),
    ]
    track = Track(
        track_id=1,
        label=1,
        score=0.8,
        frame_index=np.array([0, 1, 2], np.int32),
        boxes=np.array([[0, 0, 4, 4], [1, 0, 5, 4], [2, 0, 6, 4]], np.float32),
        scores=np.array([1.8, 1.6, 1.4], np.float32),
        raw_scores=np.array([0.9, 0.8, 0.7], np.float32),
        box_id=np.array([0, -1, 0], np.int32),
        tracked=np.array([False, False, True]),
    )
    table = tracks_table("a", frames, [track], ["cat", "dog"])
    assert table.schema.equals(TRACKS)
    rows = table.select(["frame_index", "timestamp_s", "track_id", "class_name", "origin", "x1"]).to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        (0, 0.0, 1, "dog", "detected", 0.0),
        (0, 0.0, None, "cat", "detected", 9.0),
        (1, 0.5, 1, "dog", "interpolated", 1.0),
        (2, 0.75, 1, "dog", "tracked", 2.0),
    ]
    assert table["score"].to_pylist() == pytest.approx([1.8, 0.2, 1.6, 1.4])
    assert table["raw_score"].to_pylist() == pytest.approx([0.9, 0.2, 0.8, 0.7])
    assert table["track_score"].to_pylist() == [
        pytest.approx(0.8),
        None,
        pytest.approx(0.8),
        pytest.approx(0.8),
    ]


def test_raw_scores_are_those_before_linking_whatever_is_in_a_track() -> None:
    """Of five boxes one was removed by the linker, one is in a track, and the others have a new score."""
    places = [[10 * i, 0, 10 * i + 5, 5] for i in range(5)]
    raw = [detections(3, places[:3], [0.1, 0.2, 0.3]), detections(7, places[3:], [0.4, 0.5])]
    frames = [
        detections(3, places[1:3], [1.2, 1.3], box_id=[1, 2]),
        detections(7, places[:2:-1], [1.5, 1.4], box_id=[1, 0]),
    ]
    tracks = tracks_of(raw, [np.array([-1, -1, 4]), np.array([-1, -1])])
    rows = tracks_table("a", frames, tracks, ["cat"], raw).sort_by("x1")
    assert rows["x1"].to_pylist() == [10, 20, 30, 40]
    assert rows["track_id"].to_pylist() == [None, 1, None, None]
    assert rows["raw_score"].to_pylist() == pytest.approx([0.2, 0.3, 0.4, 0.5])
    assert rows["score"].to_pylist() == pytest.approx([1.2, 0.3, 1.4, 1.5])


def test_tracks_table_of_nothing_has_no_rows() -> None:
    assert len(tracks_table("a", [], [], [])) == 0
    assert len(tracks_table("a", [detections(0)], [], ["cat"])) == 0
