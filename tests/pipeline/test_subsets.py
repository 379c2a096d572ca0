"""Subsets hold what they say, by brute force, and predictions outside of them neither help nor hurt."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalogs.synthetic import FLAGS
from pipeline import scoring
from pipeline.schemas import TRACKS, TRUTH
from pipeline.subsets import SUBSETS, restrict

Row = dict[str, Any]


def table(schema: pa.Schema, rows: list[Row]) -> pa.Table:
    """Rows as a table, with the dictionaries that the schema has."""
    plain = [
        field.with_type(getattr(field.type, "value_type", field.type)) for field in schema if field.name != "flags"
    ]
    flags = [field for field in schema if field.name == "flags"]
    return pa.Table.from_pylist(rows, pa.schema([*plain, *flags])).cast(schema)


def true(frame: int, track: int | None, *flags: str, video: str = "a", at: float = 0.0, **more: Any) -> Row:
    corners = {"x1": at, "y1": 0.0, "x2": at + 10, "y2": 10.0}
    named = {"video_id": video, "frame_index": frame, "track_id": track, "class_id": 0, "class_name": "cat"}
    return {**named, **corners, "ignore": False, "flags": ["slow", *flags], **more}


def found(row: Row, **more: Any) -> Row:
    """A prediction that is where a row of truth is."""
    kept = {name: row[name] for name in ("video_id", "frame_index", "track_id", "class_name", "x1", "y1", "x2", "y2")}
    return {**kept, "score": 0.5, **more}


def scores(truth: list[Row], tracks: list[Row], name: str) -> dict[str, float]:
    sides = restrict(table(TRUTH, truth), table(TRACKS, tracks), name)
    return scoring.values(scoring.combine([scoring.score(*sides)]))[None, None]


def brute_force(truth: list[Row], tracks: list[Row], name: str) -> tuple[list[Row], list[Row]]:
    """What `restrict` says, row by row."""
    subset = SUBSETS[name]

    def has(row: Row) -> bool:
        return set(subset.flags) <= set(row["flags"] or ())

    if subset.of == "videos":
        videos = {row["video_id"] for row in truth if has(row)}
        return [row for row in truth if row["video_id"] in videos], [row for row in tracks if row["video_id"] in videos]

    def inside(row: Row) -> bool:
        if subset.of == "tracks":
            return not row["ignore"] and any(has(other) for other in truth if same_track(row, other))
        return not row["ignore"] and has(row) != (name == "clean")

    frames = {(row["video_id"], row["frame_index"]) for row in truth if inside(row)}
    nameless = {"ignore": True, "class_id": None, "class_name": None}
    known = [row if row["ignore"] or inside(row) else {**row, **nameless} for row in truth]
    kept, shown = ([row for row in s if (row["video_id"], row["frame_index"]) in frames] for s in (known, tracks))
    return kept, shown


def same_track(one: Row, other: Row) -> bool:
    return one["track_id"] is not None and all(one[name] == other[name] for name in ("video_id", "track_id"))


def scene(seed: int) -> tuple[list[Row], list[Row]]:
    """Truth of two videos in no order, of ignored rows some without id; tracks of three, of which truth has two."""
    random = np.random.default_rng(seed)
    words = ["burst", "concentric", "lookalike", "crossing", "jitter", "fast", "occluded"]
    truth = [true(0, 1, video="a")]
    for video, frame, track in random.permutation(list(itertools.product("ab", range(3), (1, 2)))):
        ignore = bool(random.random() < 0.3)
        own = None if ignore and random.random() < 0.5 else int(track)
        flags = random.choice(words, random.integers(4), replace=False).tolist()
        truth.append(true(int(frame), own, *flags, video=video, at=20.0 * int(track), ignore=ignore))
    truth = [row for row in truth if random.random() < 0.8 or row is truth[0]]
    tracks = [found(true(frame, 9, video=video)) for video in "abc" for frame in random.permutation(5).tolist()]
    return truth, tracks


@pytest.mark.parametrize("name", [name for name in SUBSETS if name != "all"], ids="only {}".format)
@settings(max_examples=20)
@given(st.integers(0, 10**6))
def test_it_is_what_one_finds_row_by_row(name: str, seed: int) -> None:
    sides = scene(seed)
    truth, tracks = (table(schema, rows) for schema, rows in zip((TRUTH, TRACKS), sides, strict=True))
    expected = [table(schema, rows) for schema, rows in zip((TRUTH, TRACKS), brute_force(*sides, name), strict=True)]
    got = restrict(truth, tracks, name)
    assert [side.schema for side in got] == [TRUTH, TRACKS]
    assert [side.to_pylist() for side in got] == [side.to_pylist() for side in expected]


def test_flags_are_those_of_the_synthetic_videos() -> None:
    assert {flag for subset in SUBSETS.values() for flag in subset.flags} <= set(FLAGS)


def test_all_is_all_of_any_truth() -> None:
    truth, tracks = table(TRUTH, [true(0, 1, flags=None)]), table(TRACKS, [found(true(3, 1, video="b"))])
    assert restrict(truth, tracks, "all") == (truth, tracks)


def test_a_wrong_class_beside_a_clean_box_is_not_the_clean_boxes_fault() -> None:
    """Two cats, one in a burst and taken for a dog: `clean` is perfect, `burst` misses one and makes one up."""
    truth = [true(0, 1), true(0, 2, "burst", at=50)]
    tracks = [found(truth[0], score=0.4), found(truth[1], class_name="dog", score=0.9)]
    clean, burst = (scores(truth, tracks, name) for name in ("clean", "burst"))
    assert (clean["mAP"], clean["IDF1"], clean["num_objects"], clean["num_false_positives"]) == (1, 1, 1, 0)
    assert (burst["mAP"], burst["IDF1"], burst["num_objects"], burst["num_false_positives"]) == (0, 0, 1, 1)


def test_what_is_made_up_counts_in_the_frames_of_the_subset_alone() -> None:
    truth = [true(0, 1, "burst"), true(1, 1)]
    made_up = [found(true(frame, 7, at=70)) for frame in range(3)]
    tracks = [*map(found, truth), *made_up]
    assert [scores(truth, tracks, name)["num_false_positives"] for name in ("all", "burst", "clean", "slow")] == [
        3,
        1,
        1,
        3,
    ]


def test_tracks_stay_whole() -> None:
    """Track 1 is concentric in frame 1 alone; its switch, between frames 3 and 4, is one of the subset, 2's is not."""
    truth = [true(frame, 1, *["concentric"] * (frame == 1)) for frame in range(6)]
    other = [true(frame, 2, at=50) for frame in range(4, 9)]
    tracks = [found(row, track_id=10 + (row["frame_index"] > 3)) for row in truth]
    tracks += [found(row, track_id=20 + (row["frame_index"] > 4)) for row in other]
    got = scores([*truth, *other], tracks, "concentric")
    assert (got["num_objects"], got["num_switches"], got["num_false_positives"]) == (6, 1, 0)
    assert got["mAP_track_50"] == 0.5  # 4 of 6 frames; the other track, of 2 of 6, is false: as in the whole dataset
    assert scores([*truth, *other], tracks, "all")["num_switches"] == 2


def test_tracks_take_both_flags_in_one_frame() -> None:
    apart = [true(0, 1, "lookalike"), true(1, 1, "crossing")]
    together = [true(0, 2, "lookalike", "crossing", at=50), true(1, 2, at=50)]
    truth, _ = restrict(table(TRUTH, [*apart, *together]), table(TRACKS, []), "lookalike_crossing")
    assert [(row["track_id"], row["ignore"]) for row in truth.to_pylist()] == [
        (1, True),
        (1, True),
        (2, False),
        (2, False),
    ]


REFUSED: dict[str, tuple[str, list[Row], str]] = {
    "another name": (
        "bursts",
        [true(0, 1)],
        r"unknown subset 'bursts' \(did you mean 'burst'\?\); it may be one of all",
    ),
    "no flags": ("burst", [true(0, 1, flags=None)], "the subset 'burst' needs truth with flags as synthetic-v1"),
    "flags of something else": ("clean", [true(0, 1, flags=["distractor"])], "this has none of burst, concentric"),
    "no ids": ("concentric", [true(0, 1), true(1, None)], "'concentric' is of whole tracks, .* without track_id"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_subsets_is_refused(name: str) -> None:
    subset, truth, said = REFUSED[name]
    with pytest.raises(ValueError, match=said):
        restrict(table(TRUTH, truth), table(TRACKS, []), subset)


def test_truth_without_the_column_is_refused_and_an_empty_one_is_not() -> None:
    tracks = table(TRACKS, [found(true(0, 1))])
    with pytest.raises(ValueError, match="needs truth with flags"):
        restrict(table(TRUTH, [true(0, 1)]).drop_columns("flags"), tracks, "fast")
    for name in SUBSETS:
        assert [len(side) for side in restrict(TRUTH.empty_table(), tracks, name)] == [0, int(name == "all")]
