"""Detections in Parquet: our own tracks table, other people's columns, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalogs import parquet
from catalogs.parquet import Settings
from pipeline import records
from pipeline.schemas import tracks_table
from pipeline.tables import Run
from pipeline.tracks import tracks_of

ROWS: dict[str, list[Any]] = {
    "video_id": ["b", "b", "a", "b"],
    "frame_index": [2, 0, 1, 2],
    "x1": [1.0, 2.0, 3.0, 4.0],
    "y1": [0.0] * 4,
    "x2": [9.0] * 4,
    "y2": [8.0] * 4,
    "score": [0.25, 0.5, 0.75, 1.0],
}


def written(path: Path, **changes: Any) -> str:
    """A file of ROWS with these columns changed, added, or (None) left out."""
    columns = {name: column for name, column in {**ROWS, **changes}.items() if column is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


def read(source: str, settings: Settings | None = None) -> dict[str, list[records.Detections]]:
    return {video.video_id: parquet.detections(video) for video in parquet.videos(source, settings or Settings())}


def test_our_own_tracks_come_back_as_the_boxes_they_are(tmp_path: Path) -> None:
    frames = {
        name: [
            records.detections(0, [[0, 0, 5, 5], [4, 4, 9, 9]], [0.75, 0.5], [1, 0], timestamp_s=shift),
            records.detections(1, timestamp_s=shift + 0.1),
            records.detections(2, [[1, 0, 6, 5]], [0.25], [1], timestamp_s=shift + 0.4),
        ]
        for name, shift in (("deeper/a", 0.0), ("b", 7.0))
    }
    run = Run(str(tmp_path / "run"))
    for number, (name, given) in enumerate(frames.items()):
        ids = [np.array([0, -1], np.int32), np.array([], np.int32), np.array([0], np.int32)]
        table = tracks_table(name, given, tracks_of(given, ids), ["zebra", "bird"])
        run.write_table(table, "tracks", f"shard-{number:05d}.parquet")
    found = parquet.videos(str(tmp_path / "run" / "tracks"), Settings())
    assert [(video.video_id, video.kind) for video in found] == [("b", "rows"), ("deeper/a", "rows")]
    for video in found:
        assert parquet.classes(video) == ("bird", "zebra")
        for got, frame in zip(parquet.detections(video), frames[video.video_id], strict=True):
            assert got.frame_index == frame.frame_index
            assert np.array_equal(got.boxes, frame.boxes)
            assert np.array_equal(got.scores, frame.scores)
            assert np.array_equal(got.labels, 1 - frame.labels)  # by name: the source's own order is not kept
            if len(frame):
                assert got.timestamp_s == frame.timestamp_s
        assert parquet.truth(video) is None


def test_the_least_there_may_be(tmp_path: Path) -> None:
    found = read(written(tmp_path / "d.parquet"), Settings(fps=10))
    assert {name: [len(frame) for frame in frames] for name, frames in found.items()} == {"a": [0, 1], "b": [1, 0, 2]}
    assert [frame.timestamp_s for frame in found["b"]] == pytest.approx([0, 0.1, 0.2])
    assert found["b"][2].scores.tolist() == [1, 0.25]
    assert found["b"][2].boxes.tolist() == [[4, 0, 9, 8], [1, 0, 9, 8]]
    assert parquet.classes(parquet.videos(str(tmp_path / "d.parquet"), Settings())[0]) == ("object",)


def test_class_ids_alone_are_the_names(tmp_path: Path) -> None:
    source = written(tmp_path / "d.parquet", class_id=[7, 3, 3, 3])
    assert parquet.classes(parquet.videos(source, Settings())[0]) == ("3", "7")
    assert [frame.labels.tolist() for frame in read(source)["b"]] == [[0], [], [0, 1]]


@pytest.mark.parametrize(
    ("frames", "given", "expected"),
    [
        ([0, 4], [5.0, 5.4], [5.0, 5.1, 5.2, 5.3, 5.4]),
        ([2, 4], [1.0, 1.2], [0.8, 0.9, 1.0, 1.1, 1.2]),
        ([1, 3], [1.0, None], [0.9, 1.0, 1.1, 1.2]),
        ([0, 2], [None, None], [0, 0.1, 0.2]),
        ([1, 1], [None, 1.0], [0.9, 1.0]),
    ],
    ids=["between", "before", "after", "nowhere", "one of two rows"],
)
def test_frames_without_a_time_get_one(tmp_path: Path, frames: list[int], given: list[Any], expected: list) -> None:
    columns = {name: column[:2] for name, column in ROWS.items()}
    source = written(tmp_path / "d.parquet", **{**columns, "frame_index": frames, "timestamp_s": given})
    assert [frame.timestamp_s for frame in read(source, Settings(fps=10))["b"]] == pytest.approx(expected)


def test_a_folder_of_files(tmp_path: Path) -> None:
    written(tmp_path / "set" / "1.parquet", video_id=["a"] * 4, class_name=["cat"] * 4)
    written(tmp_path / "set" / "deeper" / "2.parquet", video_id=pa.array(["b"] * 4).dictionary_encode())
    written(tmp_path / "set" / "_parts" / "3.parquet", video_id=["unfinished"] * 4)
    (tmp_path / "set" / ".4.parquet").write_text("unfinished")
    (tmp_path / "set" / "readme.md").write_text("not read")
    found = parquet.videos(str(tmp_path / "set"), Settings())
    assert [video.video_id for video in found] == ["a", "b"]
    assert parquet.classes(found[0]) == ("cat", "object")
    assert [frame.labels.tolist() for frame in parquet.detections(found[1])] == [[1], [1], [1, 1]]


def test_boxes_of_no_size_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = read(written(tmp_path / "d.parquet", x1=[9.0, 2.0, 10.0, 4.0]))
    assert {name: [len(frame) for frame in frames] for name, frames in found.items()} == {"a": [0, 0], "b": [1, 0, 1]}
    assert [message for message in caplog.messages if "1 boxes of b have no size" in message]


def test_identity_changes_with_the_files_and_the_frame_rate(tmp_path: Path) -> None:
    def identity(**settings: float) -> str:
        (video,) = {video.identity for video in parquet.videos(str(tmp_path), Settings(**settings))}
        return video

    one, other = Path(written(tmp_path / "1.parquet")), written(tmp_path / "2.parquet")
    before = identity()
    assert identity() == before
    assert identity(fps=25) != before
    os.utime(other, (1, 1))
    touched = identity()
    assert touched != before
    written(one, score=[0.5, 0.5, 0.5, 0.5])  # as many rows as before
    assert identity() not in (before, touched)
    video = parquet.videos(str(one), Settings())[0]
    assert parquet.detections(video)[1].scores.tolist() == [0.5]  # and the new rows are read


def test_places_hold_in_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "d.parquet")
    monkeypatch.chdir(tmp_path)
    assert {video.detections_uri for video in parquet.videos("d.parquet", Settings())} == {str(tmp_path / "d.parquet")}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a missing column": ({"score": None}, "lacks the column score; one row is one box"),
    "missing columns": ({"x1": None, "score": None}, "lacks the columns x1, score"),
    "no row": ({name: pa.array([], pa.float64()) for name in ROWS}, "has no row, so it names no video"),
    "no video": ({"video_id": ["a", None, None, "b"]}, r"video_id is null \(row 1, of 2 such rows\)"),
    "an unnamed video": ({"video_id": ["a", "b", "", "b"]}, r"video_id is empty; .* \(row 2, of 1 such"),
    "no class name": ({"class_name": ["cat", "cat", None, "cat"]}, r"class_name is null \(row 2"),
    "no class name at all": ({"class_name": pa.nulls(4)}, r"class_name is null \(row 0, of 4 such rows\)"),
    "no class id": ({"class_id": [1, None, 1, 1]}, r"class_id is null \(row 1"),
    "no frame": ({"frame_index": [0, 1, 2, None]}, r"frame_index is null \(row 3"),
    "no score": ({"score": [None, 1.0, 1.0, 1.0]}, r"score is null \(row 0"),
    "a negative frame": ({"frame_index": [0, -1, 2, 3]}, r"frame_index is negative; frames count from 0 \(row 1"),
    "half a frame": ({"frame_index": [0, 1.5, 2, 3]}, "frame_index is double; it must be int32"),
    "words for numbers": ({"x1": ["left"] * 4}, "x1 is string; it must be float"),
    "a list for a number": ({"y2": [[1.0]] * 4}, "y2 is list.*; it must be float"),
    "not finite": ({"x2": [9.0, float("nan"), 9.0, 9.0]}, r"x2 is not a finite number \(row 1"),
    "no finite score": ({"score": [1.0, 1.0, 1.0, float("inf")]}, r"score is not a finite number \(row 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_rows_are_refused_by_column_and_row(tmp_path: Path, name: str) -> None:
    changes, message = REFUSED[name]
    source = written(tmp_path / "d.parquet", **changes)
    with pytest.raises(ValueError, match=rf"^{source}:? {message}"):
        parquet.videos(source, Settings())


def test_what_is_not_there_and_what_is_not_parquet(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a Parquet file, or a folder of them"):
        parquet.videos(None, Settings())
    with pytest.raises(FileNotFoundError, match=r"none\.parquet is not there; the catalog parquet needs"):
        parquet.videos(str(tmp_path / "none.parquet"), Settings())
    (tmp_path / "notes.md").write_text("not read")
    with pytest.raises(FileNotFoundError, match=r"holds no \.parquet file"):
        parquet.videos(str(tmp_path), Settings())
    for name, content in (("words.parquet", "no"), ("empty.parquet", "")):
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=rf"{name} is not Parquet"):
            parquet.videos(str(tmp_path / name), Settings())
    with pytest.raises(ValueError, match=r"parquet\.fps is 0; it must be more than 0"):
        Settings(fps=0)


def test_embeddings_are_evidence_where_every_box_has_one(tmp_path: Path) -> None:
    looks = [[0.0, 1.0], [1.0, 0.0], [0.5, 0.5], [1.0, 1.0]]
    source = written(tmp_path / "a.parquet", embedding=looks)
    for video in parquet.videos(source, Settings()):
        assert parquet.evidence(video) == {"embeddings"}
    frames = read(source)["b"]
    assert [frame.embeddings is not None and frame.embeddings.tolist() for frame in frames] == [
        [[1.0, 0.0]],
        [],
        [[1.0, 1.0], [0.0, 1.0]],  # as the boxes: best score first
    ]
    assert parquet.evidence(parquet.videos(written(tmp_path / "c" / "d.parquet", embeddings=looks), Settings())[0])
    written(tmp_path / "b.parquet")
    assert {e for video in parquet.videos(str(tmp_path), Settings()) for e in parquet.evidence(video)} == set()


@pytest.mark.parametrize(
    ("looks", "said"),
    [
        ([[0.0, 1.0], [1.0], [0.5, 0.5], [1.0, 1.0]], "embedding has 2 and 1 numbers; all must have as many"),
        ([[0.0], [1.0], None, [1.0]], "embedding is null"),
        ([[0.0], [1.0], [float("nan")], [1.0]], "embedding holds what is not a finite number"),
        (["a", "b", "c", "d"], "embedding is string; it must be list"),
    ],
)
def test_embeddings_that_are_none_are_refused(tmp_path: Path, looks: list, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parquet.videos(written(tmp_path / "a.parquet", embedding=looks), Settings())
