"""What holds for every family of metrics, from tables to scores: shards add up, order is nothing, truth is perfect."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import scoring
from pipeline.metrics import coco, hota, identity, stability
from pipeline.schemas import TRACKS, TRUTH

Row = dict[str, Any]
VIDEOS = ("c", "a", "b")
ZERO = {"MOTP", "num_false_positives", "num_misses", "num_switches", "CLR_PTR", "CLR_MLR", *stability.FIELDS}  # at best
BEST = {name: float(name not in ZERO) for name in scoring.METRICS if name in ZERO or name not in scoring.NUMBERS}


def table(schema: pa.Schema, rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, pa.schema({name: _plain(schema.field(name).type) for name in schema.names}))


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def row(video: str, frame: int, track: int | None, name: str | None, corner: Any, size: Any, **more: Any) -> Row:
    x, y, width, height = (float(value) for value in (*corner, *size))
    box = {"x1": x, "y1": y, "x2": x + width, "y2": y + height}
    return {"video_id": video, "frame_index": frame, "track_id": track, "class_name": name, **box, **more}


def scene(seed: int, *, with_ignored: bool = True) -> tuple[list[Row], list[Row]]:
    """Truth and tracks of up to three videos: crossing objects, doubles, false classes, ties; sides may be empty."""
    random = np.random.default_rng(seed)
    names = ("cat", "dog", None if seed % 2 else "owl")
    kinds = ([], None, ["distractor"], ["unscored"])
    truth: list[Row] = []
    found: list[Row] = []
    for video, track in itertools.product(VIDEOS, range(1, 5)):
        if random.random() < 0.3:
            continue
        name, corner, size = names[random.integers(3)], random.integers(0, 40, 2), random.integers(5, 40, 2)
        speed = random.integers(-6, 7, 2)
        for frame in range(random.integers(1, 8)):
            place = corner + frame * speed
            ignore = with_ignored and random.random() < 0.15
            motion = None if random.random() < 0.2 else round(random.random(), 1)
            if random.random() < 0.8:
                flags = kinds[random.integers(4)] if ignore else None
                own = None if ignore and random.random() < 0.5 else track
                truth.append(row(video, frame, own, name, place, size, ignore=ignore, flags=flags, motion_iou=motion))
            for copy in range(random.integers(0, 3)):
                guess = name if random.random() < 0.8 else names[random.integers(3)]
                own = None if random.random() < 0.2 else 10 * track + copy
                of_track = None if random.random() < 0.5 else 0.5
                near = place + random.integers(-4, 5, 2)
                score = round(2 * random.random(), 1)  # rescoring may give up to 2
                found.append(row(video, frame, own, guess, near, size + copy, score=score, track_score=of_track))
    return [] if seed % 7 == 0 else truth, [] if seed % 11 == 0 else found


def values(*shards: pa.Table) -> dict[Any, dict[str, float]]:
    return scoring.values(pa.concat_tables([*shards, scoring.combine(shards)]))


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([0.0, 10.0]))
def test_shards_add_up_and_no_order_matters_to_the_last_digit(seed: int, lumped: bool, tolerance: float) -> None:
    rows = scene(seed)
    truth, tracks = table(TRUTH, rows[0]), table(TRACKS, rows[1])
    options: dict[str, Any] = {"metrics": scoring.METRICS, "class_agnostic": lumped, "tolerance": tolerance}
    whole = values(scoring.score(truth, tracks, videos=VIDEOS, **options))
    assert set(whole[None, None]) <= set(scoring.METRICS)

    shards = [scoring.score(truth, tracks, videos=[video], **options) for video in sorted(VIDEOS)]
    np.testing.assert_equal(values(*shards), whole)

    random = np.random.default_rng(seed)
    truth, tracks = (side.take(random.permutation(len(side))) for side in (truth, tracks))
    np.testing.assert_equal(values(scoring.score(truth, tracks, videos=VIDEOS[::-1], **options)), whole)


@settings(max_examples=15)
@given(st.integers(0, 10**6))
def test_truth_as_its_own_tracks_is_perfect(seed: int) -> None:
    """In each metric that has a value; AR1 and AR10 have less where a frame has more boxes."""
    rows, _ = scene(seed, with_ignored=False)
    found = [{name: each[name] for name in TRACKS.names if name in each} | {"score": 0.5} for each in rows]
    options: dict[str, Any] = {"metrics": scoring.METRICS, "videos": VIDEOS}
    scores = values(scoring.score(table(TRUTH, rows), table(TRACKS, found), **options))
    for group, of_group in scores.items():
        expected = {name: of_group[name] for name in BEST if name in of_group and not np.isnan(of_group[name])}
        for name, value in expected.items():
            if name not in ("AR1", "AR10"):
                assert value == pytest.approx(BEST[name], abs=1e-9), (group, name)
    if rows:
        assert {"HOTA", "MOTA", "CLR_MOTA", "IDF1", "mAP", "mAP_track", "stability_error", "AP"} <= set(expected)


NEEDED = {
    "truth": ("video_id", "frame_index", "track_id", "class_name", "x1", "y1", "x2", "y2"),
    "tracks": ("video_id", "frame_index", "track_id", "class_name", "x1", "y1", "x2", "y2", "score"),
}


def test_columns_that_need_not_be_there_change_nothing_but_what_they_say() -> None:
    """Without motion_iou no splits by box, without track_score the mean score; tables may be as pandas writes them."""
    truth, tracks = scene(1, with_ignored=False)
    slim = [
        pa.Table.from_pylist([{name: each[name] for name in NEEDED[side]} for each in rows])
        for side, rows in (("truth", truth), ("tracks", tracks))
    ]
    found = values(scoring.score(*slim, metrics=scoring.METRICS))
    unknown = [{**each, "motion_iou": None} for each in truth], [{**each, "track_score": None} for each in tracks]
    expected = values(scoring.score(table(TRUTH, unknown[0]), table(TRACKS, unknown[1]), metrics=scoring.METRICS))
    np.testing.assert_equal(found, expected)
    assert "mAP_slow_by_box" not in found[None, None]


NO_NUMBERS: dict[str, tuple[str, str, Any, str]] = {  # side, column, value, what is said
    "no video": ("truth", "video_id", None, "a table of truth has None for video_id in row 1"),
    "no frame": ("tracks", "frame_index", None, "a table of tracks has None for frame_index in row 1"),
    "a frame before the first": ("truth", "frame_index", -1, "a table of truth has -1 for frame_index in row 1"),
    "a corner that is no number": ("truth", "x1", np.nan, "a table of truth has nan for x1 in row 1"),
    "a corner without end": ("tracks", "y2", np.inf, "a table of tracks has inf for y2 in row 1"),
    "no score": ("tracks", "score", None, "a table of tracks has None for score in row 1"),
    "a score that is no number": ("tracks", "score", np.nan, "a table of tracks has nan for score in row 1"),
}


@pytest.mark.parametrize("name", NO_NUMBERS)
def test_what_is_no_number_is_refused(name: str) -> None:
    side, column, value, said = NO_NUMBERS[name]
    rows = {"truth": scene(1)[0], "tracks": scene(1)[1]}
    rows[side][1] = {**rows[side][1], column: value}
    with pytest.raises(ValueError, match=said):
        scoring.score(table(TRUTH, rows["truth"]), table(TRACKS, rows["tracks"]))


@pytest.mark.parametrize("ids", [pa.nulls(3), pa.array([np.nan] * 3), pa.array([-1] * 3), pa.array([None] * 3, "int8")])
def test_no_id_may_be_said_in_many_ways(ids: pa.Array) -> None:
    rows = [row("a", frame, frame, "cat", (0, 0), (9, 9), score=1.0) for frame in range(3)]
    truth, tracks = table(TRUTH, rows), table(TRACKS, rows)
    tracks = tracks.set_column(tracks.column_names.index("track_id"), "track_id", ids)
    found = values(scoring.score(truth, tracks))[None, None]
    assert (found["mAP"], found["num_predictions"]) == (1, 0)
    truth = truth.set_column(truth.column_names.index("track_id"), "track_id", ids)
    assert "HOTA" not in values(scoring.score(truth, tracks))[None, None]


def test_boxes_without_area_are_never_found() -> None:
    rows = [row("a", 0, 1, "cat", (0, 0), (0, 9), score=1.0), row("a", 0, 2, "cat", (50, 0), (9, 9), score=1.0)]
    for tolerance in (0.0, 10.0):
        found = values(
            scoring.score(table(TRUTH, rows), table(TRACKS, rows), metrics=scoring.METRICS, tolerance=tolerance)
        )[None, None]
        assert (found["num_misses"], found["num_false_positives"], found["CLR_TP"], found["idtp"]) == (1, 1, 1, 1)
        assert (found["mAP"], found["mAP_track"], found["stability_error"]) == (0.25, 0.25, 0)


def test_a_family_stands_for_its_metrics() -> None:
    assert scoring.named(["hota", "mAP", "coco"]) == [*hota.FIELDS, "mAP", *coco.FIELDS]
    rows = [row("a", 0, 1, "cat", (0, 0), (9, 9), score=1.0)]
    found = values(scoring.score(table(TRUTH, rows), table(TRACKS, rows), metrics=["coco", "IDF1"]))[None, None]
    assert set(found) == {*coco.FIELDS, *identity.FIELDS}
    names = [*scoring.METRICS, *scoring.FAMILIES]
    assert len(names) == len(set(names))
