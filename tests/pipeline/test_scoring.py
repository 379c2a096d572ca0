"""Tables to scores: classes, identities that are missing, videos without rows, and rows that add up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import scoring
from pipeline.metrics import detection
from pipeline.schemas import SCORES, TRACKS, TRUTH

Row = tuple[str, int, int | None, str | None, float]  # video, frame, id, class, x


def table(schema: pa.Schema, rows: Sequence[Row], **extra: Any) -> pa.Table:
    """Boxes of 10 x 10 at these x, as rows of a schema."""
    return pa.Table.from_pylist(
        [
            {
                "video_id": video,
                "frame_index": frame,
                "track_id": track,
                "class_name": name,
                "x1": x,
                "y1": 0.0,
                "x2": x + 10,
                "y2": 10.0,
                "score": 1.0,
                **{key: values[index] for key, values in extra.items()},
            }
            for index, (video, frame, track, name, x) in enumerate(rows)
        ],
        schema=pa.schema({field.name: _plain(field.type) for field in schema}),
    ).cast(schema)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


TWO_CLASSES: list[Row] = [(v, f, i, c, 100.0 * i) for v in "ab" for f in range(4) for i, c in ((1, "cat"), (2, "dog"))]


def scores(truth: pa.Table, tracks: pa.Table, **options: Any) -> dict[tuple[str | None, str | None], dict[str, float]]:
    """Values by video and class, of the videos and of all together."""
    rows = scoring.score(truth, tracks, **options)
    assert rows.schema == SCORES
    return scoring.values(pa.concat_tables([rows, scoring.combine([rows])]))


def test_perfect_input_scores_one_in_every_group() -> None:
    found = scores(table(TRUTH, TWO_CLASSES), table(TRACKS, TWO_CLASSES))
    assert set(found) == {(v, c) for v in ("a", "b", None) for c in ("cat", "dog", None)}
    for group in found.values():
        assert [group[name] for name in ("HOTA", "MOTA", "IDF1", "mAP")] == pytest.approx([1] * 4)
    assert found[None, None]["num_objects"] == 16


def test_perfect_input_scores_one_in_every_split_that_has_truth() -> None:
    motion = [0.95 if name == "cat" else 0.2 for _, _, _, name, _ in TWO_CLASSES]
    found = scores(table(TRUTH, TWO_CLASSES, motion_iou=motion), table(TRACKS, TWO_CLASSES))
    one, no_truth = 1, pytest.approx(np.nan, nan_ok=True)
    splits = [f"mAP_{split}" for split in scoring.detection.SPLITS]  # tracks stand still
    assert [found[None, "cat"][name] for name in splits] == [one, no_truth, no_truth, one, no_truth, no_truth]
    assert [found[None, "dog"][name] for name in splits] == [no_truth, no_truth, one, one, no_truth, no_truth]
    assert [found[None, None][name] for name in splits] == [one, no_truth, one, one, no_truth, no_truth]


def test_classes_must_agree_unless_told_otherwise() -> None:
    swapped = [(v, f, i, "dog" if c == "cat" else "cat", x) for v, f, i, c, x in TWO_CLASSES]
    truth, tracks = table(TRUTH, TWO_CLASSES), table(TRACKS, swapped)
    assert scores(truth, tracks)[None, None]["num_misses"] == 16
    found = scores(truth, tracks, class_agnostic=True)
    assert found[None, None]["MOTA"] == found[None, "object"]["MOTA"] == 1


@pytest.mark.parametrize("name", ["object", None])
@pytest.mark.parametrize("side", ["truth", "tracks"])
def test_classes_are_one_where_a_side_names_none(side: str, name: str | None) -> None:
    unnamed = [(v, f, i, name, x) for v, f, i, _, x in TWO_CLASSES]
    truth = table(TRUTH, unnamed if side == "truth" else TWO_CLASSES)
    tracks = table(TRACKS, unnamed if side == "tracks" else TWO_CLASSES)
    assert scores(truth, tracks)[None, None]["MOTA"] == 1


def test_map_is_the_mean_over_classes_with_truth() -> None:
    """Dogs are found, cats are not; a bird is not in the truth of any video."""
    tracks = [row for row in TWO_CLASSES if row[3] == "dog"] + [("a", 0, 9, "bird", 0.0)]
    found = scores(table(TRUTH, TWO_CLASSES), table(TRACKS, tracks))
    assert found[None, None]["mAP"] == pytest.approx(0.5)
    assert np.isnan(found[None, "bird"]["mAP"])
    assert found[None, "bird"]["num_false_positives"] == found[None, None]["num_false_positives"] == 1


def test_rows_without_id_feed_map_alone() -> None:
    tracks = [(v, f, None, c, x) for v, f, _, c, x in TWO_CLASSES]
    found = scores(table(TRUTH, TWO_CLASSES), table(TRACKS, tracks))[None, None]
    assert (found["mAP"], found["num_predictions"], found["num_misses"]) == (1, 0, 16)


def test_truth_without_ids_has_map_only_and_refuses_the_rest_by_name() -> None:
    truth = table(TRUTH, [(v, f, None, c, x) for v, f, _, c, x in TWO_CLASSES])
    tracks = table(TRACKS, TWO_CLASSES)
    assert set(scores(truth, tracks)[None, None]) <= set(detection.FIELDS)
    with pytest.raises(ValueError, match="HOTA, IDF1 need identities, and the truth of video 'a'"):
        scoring.score(truth, tracks, metrics=["HOTA", "mAP", "IDF1"])


def test_metrics_that_a_video_lacks_are_left_out_of_the_whole() -> None:
    truth = table(TRUTH, [(v, f, None if v == "b" else i, c, x) for v, f, i, c, x in TWO_CLASSES])
    found = scores(truth, table(TRACKS, TWO_CLASSES))
    assert "HOTA" in found["a", None]
    assert "HOTA" not in found["b", None]
    assert set(found[None, None]) <= set(detection.FIELDS)


def test_ignored_boxes_that_may_lack_ids_excuse_their_class_or_all() -> None:
    truth = table(
        TRUTH,
        [("a", 0, 1, "cat", 0.0), ("a", 0, None, "dog", 100.0), ("a", 0, None, None, 200.0)],
        ignore=[False, True, True],
    )
    tracks = table(
        TRACKS,
        [
            ("a", 0, 1, "cat", 0.0),
            ("a", 0, 2, "dog", 100.0),  # excused
            ("a", 0, 3, "cat", 100.0),  # a cat where dogs are ignored
            ("a", 0, 4, "cat", 200.0),  # excused
            ("a", 0, 5, "dog", 200.0),  # excused
        ],
    )
    assert scores(truth, tracks)[None, None]["num_false_positives"] == 1


@pytest.mark.parametrize(
    ("truth", "tracks", "expected"),
    [
        ([], [], {"num_objects": 0, "MOTA": np.nan, "HOTA": np.nan, "mAP": np.nan}),
        ([("a", 0, 1, "cat", 0.0)], [], {"num_misses": 1, "MOTA": 0, "HOTA": 0, "mAP": 0}),
        ([], [("a", 0, 1, "cat", 0.0)], {"num_false_positives": 1, "HOTA": 0, "mAP": np.nan}),
        (
            [("a", 0, 1, "cat", 0.0)],
            [("a", 7, 1, "cat", 0.0)],
            {"num_false_positives": 1, "num_misses": 1, "num_frames": 2, "MOTA": -1},
        ),
    ],
    ids=["nothing", "no tracks", "no truth", "other frames"],
)
def test_empty_sides(truth: list[Row], tracks: list[Row], expected: dict[str, float]) -> None:
    found = scores(table(TRUTH, truth), table(TRACKS, tracks), videos=["a"])
    for group in (found["a", None], found[None, None]):
        assert {name: group[name] for name in expected} == pytest.approx(expected, nan_ok=True)


def test_no_video_gives_no_rows() -> None:
    rows = scoring.score(table(TRUTH, []), table(TRACKS, []))
    assert len(rows) == len(scoring.combine([rows])) == 0


def test_shards_combine_as_the_whole_does() -> None:
    random = np.random.default_rng(5)
    tracks = [(v, f, i, c, x + random.uniform(-6, 6)) for v, f, i, c, x in TWO_CLASSES if random.random() < 0.8]
    tracks += [(v, f, None, c, 500.0) for v in "ab" for f in (3, 8) for c in ("cat", "dog")]  # 8 has no truth
    truth = table(TRUTH, TWO_CLASSES, motion_iou=random.random(len(TWO_CLASSES)).tolist())
    found = table(TRACKS, tracks, score=random.random(len(tracks)).tolist())
    whole = scoring.score(truth, found, catalog="mine")
    shards = [scoring.score(truth, found, videos=[video], catalog="mine") for video in ("b", "a")]
    one, other = scoring.combine([whole]), scoring.combine(shards)
    assert one["catalog"].unique().to_pylist() == ["mine"]
    assert scoring.values(one).keys() == scoring.values(other).keys()
    for group, values in scoring.values(one).items():
        assert scoring.values(other)[group] == pytest.approx(values, abs=1e-12, nan_ok=True)
    assert 0 < scoring.values(one)[None, None]["mAP_fast_by_box"] < 1


def test_counts_are_read_as_they_were_written() -> None:
    rows = scoring.score(table(TRUTH, TWO_CLASSES), table(TRACKS, TWO_CLASSES[:3]))
    found = scoring.read_counts(pa.concat_tables([rows.slice(0, 5), rows.slice(5)]))
    assert set(found) == {(video, name) for video in "ab" for name in ("cat", "dog")}
    for counts in found.values():
        assert set(counts) == set(scoring.FAMILIES) - set(scoring.ON_REQUEST)
        assert counts["detection"]["num_truth"].shape == ()
        assert counts["detection"]["num_truth"] == 4
        assert counts["detection"]["num_truth_of_splits"].tolist() == [0, 0, 0, 4, 0, 0]
    assert found["a", "cat"]["detection"]["hit"].tolist() == [1, 1]
    assert found["a", "dog"]["detection"]["hit"].tolist() == [1]
    assert found["b", "dog"]["detection"]["hit"].tolist() == []


@pytest.mark.parametrize("side", ["truth", "tracks"])
def test_an_id_twice_in_a_frame_is_refused(side: str) -> None:
    twice: list[Row] = [*TWO_CLASSES, ("b", 2, 1, "dog", 50.0)]
    truth = table(TRUTH, twice if side == "truth" else TWO_CLASSES)
    tracks = table(TRACKS, twice if side == "tracks" else TWO_CLASSES)
    with pytest.raises(ValueError, match=f"the {side} of video 'b' has track 1 twice in frame 2"):
        scoring.score(truth, tracks)


def test_unknown_metrics_and_tables_are_refused() -> None:
    truth, tracks = table(TRUTH, TWO_CLASSES), table(TRACKS, TWO_CLASSES)
    with pytest.raises(ValueError, match=r"unknown metric 'MOTTA' \(did you mean 'MOTA'"):
        scoring.score(truth, tracks, metrics=["MOTTA"])
    with pytest.raises(ValueError, match="a table of tracks lacks the columns score"):
        scoring.score(truth, truth)
