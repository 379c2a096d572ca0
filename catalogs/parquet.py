"""Detections in Parquet, one row a box, from whatever made them: a file, or a folder and what lies below it.

Columns: video_id, frame_index, x1, y1, x2, y2 and score; class_name (or class_id), timestamp_s and embedding (a list of
as many numbers for every box: what `deepsort` and others tell objects apart by) where there are any.
`tracks` tables of ours have them, and so has what DuckDB or pandas writes with those names.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from catalogs.parts.files import absolute, identity
from pipeline import records
from pipeline.records import VideoInfo, unique_ids

CLASSES: tuple[str, ...] = ()
UNNAMED = "object"
CORNERS = ("x1", "y1", "x2", "y2")
NEEDED = {
    "video_id": pa.string(),
    "frame_index": pa.int32(),
    **dict.fromkeys(CORNERS, pa.float32()),
    "score": pa.float32(),
}
LOOKS = pa.list_(pa.float32())

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """fps: frames a second, where the rows have no timestamp_s."""

    fps: float = 30.0

    def __post_init__(self) -> None:
        if not 0 < self.fps < np.inf:
            raise ValueError(f"catalog parquet.fps is {self.fps}; it must be more than 0")


def videos(source: str | None, settings: Settings) -> list[VideoInfo]:
    """The videos that the rows name.

    Raises FileNotFoundError, or ValueError where columns are missing or hold what they must not.
    """
    if not source:
        raise ValueError("the catalog parquet needs a Parquet file, or a folder of them")
    uri = absolute(str(source))
    content = f"{identity(_files(uri))}|{settings.fps} fps"
    table = _read(uri, content)
    if not len(table):
        raise ValueError(f"{source} has no row, so it names no video; one row is one box")
    return unique_ids(
        [
            VideoInfo(name, "", "parquet", "rows", identity=content, detections_uri=uri, fps=settings.fps)
            for name in sorted(pc.unique(table["video_id"]).to_pylist())
        ]
    )


def truth(video: VideoInfo) -> pa.Table | None:
    """None: these are what a detector says."""
    return None


def classes(video: VideoInfo) -> tuple[str, ...]:
    """The names of the labels that `detections` gives, of all videos of the source."""
    assert video.detections_uri is not None, "videos() names the file"
    return tuple(sorted(pc.unique(_read(video.detections_uri, video.identity)["class_name"]).to_pylist()))


def evidence(video: VideoInfo) -> frozenset[str]:
    """The optional evidence that `detections` gives."""
    assert video.detections_uri is not None, "videos() names the file"
    has_looks = "embedding" in _read(video.detections_uri, video.identity).column_names
    return frozenset({"embeddings"} if has_looks else ())


def detections(video: VideoInfo) -> list[records.Detections]:
    """One record a frame from 0 to the last that has a box, best score first.

    Boxes of no size are left out, and how many is logged.
    """
    assert video.detections_uri is not None, "videos() names the file"
    table = _read(video.detections_uri, video.identity)
    table = table.filter(pc.equal(table["video_id"], video.video_id))
    boxes = np.stack([table[name].to_numpy() for name in CORNERS], axis=1)
    sized = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
    if not sized.all():
        _log.warning("%s: %d boxes of %s have no size; left out", video.detections_uri, sum(~sized), video.video_id)
    label = pc.index_in(table["class_name"], pa.array(classes(video))).to_numpy()
    frame, score = table["frame_index"].to_numpy(), table["score"].to_numpy()
    looks = np.stack(table["embedding"].to_numpy()) if "embedding" in table.column_names else None
    seconds = _seconds(frame, table["timestamp_s"].to_numpy(), video.fps or 1.0)
    order = np.lexsort((-score, frame))
    order = order[sized[order]]
    bounds = np.searchsorted(frame[order], np.arange(len(seconds) + 1))
    return [
        records.detections(
            index,
            boxes[rows],
            score[rows],
            label[rows],
            timestamp_s=float(seconds[index]),
            **({} if looks is None else {"embeddings": looks[rows]}),
        )
        for index, rows in enumerate(order[a:b] for a, b in pairwise(bounds.tolist()))
    ]


def _seconds(frame: NDArray[Any], given: NDArray[Any], fps: float) -> NDArray[np.float64]:
    """The time of every frame from 0 to the last; given: a row's own, nan for none.

    A frame without a row lies between its neighbours in proportion; before and after all that are known, fps counts.
    """
    known, first = np.unique(frame[np.isfinite(given)], return_index=True)
    every = np.arange(frame.max(initial=-1) + 1)
    if not len(known):
        return every / fps
    times = given[np.isfinite(given)][first]
    outside = np.minimum(every - known[0], 0) + np.maximum(every - known[-1], 0)
    return np.interp(every, known, times) + outside / fps


def _files(uri: str) -> list[dict[str, Any]]:
    """The entries of a Parquet file, or of all at and below a folder; hidden ones and those that start with _ are not.

    Raises FileNotFoundError where there is none.
    """
    fs, path = fsspec.core.url_to_fs(uri)
    if fs.isfile(path):
        return [fs.info(path)]
    root = path.rstrip("/")
    found = [
        entry
        for name, entry in sorted(fs.find(root, detail=True).items())
        if name.endswith(".parquet")
        and not any(part.startswith((".", "_")) for part in name[len(root) + 1 :].split("/"))
    ]
    if not found:
        there = "holds no .parquet file" if fs.exists(root) else "is not there"
        raise FileNotFoundError(f"{uri} {there}; the catalog parquet needs a Parquet file, or a folder of them")
    return found


@lru_cache(maxsize=2)
def _read(uri: str, content: str) -> pa.Table:
    """The checked rows of a source, of this content: NEEDED, class_name and timestamp_s (null where unknown).

    And embedding, where all files have it.
    """
    fs, _ = fsspec.core.url_to_fs(uri)
    tables = [_read_file(fs, entry["name"]) for entry in _files(uri)]
    shared = [name for name in tables[0].column_names if all(name in table.column_names for table in tables)]
    table = pa.concat_tables([table.select(shared) for table in tables])
    if "embedding" in shared:
        lengths = pc.unique(pc.list_value_length(table["embedding"])).to_pylist()
        if len(lengths) > 1:
            raise ValueError(
                f"{uri}: embedding has {' and '.join(map(str, lengths[:2]))} numbers; all must have as many"
            )
    return table


def _read_file(fs: Any, path: str) -> pa.Table:
    """The rows of one file; class_name is the class_id where there is no other name, `object` where there is neither.

    Raises ValueError that names the file and the column.
    """
    try:
        with fs.open(path, "rb") as file:
            table = pq.ParquetFile(file).read(use_threads=False)  # as in `tables`
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not Parquet: {error}") from None
    lacking = [name for name in NEEDED if name not in table.column_names]
    if lacking:
        raise ValueError(f"{path} lacks the column{'s' * (len(lacking) > 1)} {', '.join(lacking)}; one row is one box")
    columns = {name: _column(table, name, kind, path) for name, kind in NEEDED.items()}
    for name in (*CORNERS, "score"):
        _refuse(pc.invert(pc.is_finite(columns[name])), path, f"{name} is not a finite number")
    _refuse(pc.less(columns["frame_index"], 0), path, "frame_index is negative; frames count from 0")
    _refuse(pc.equal(columns["video_id"], ""), path, "video_id is empty; every video needs a name")
    named = next((name for name in ("class_name", "class_id") if name in table.column_names), None)
    classes = _column(table, named, pa.string(), path) if named else pa.array([UNNAMED] * len(table), pa.string())
    seconds = (
        _column(table, "timestamp_s", pa.float64(), path, may_be_null=True)
        if "timestamp_s" in table.column_names
        else pa.nulls(len(table), pa.float64())
    )
    looks = next((name for name in ("embedding", "embeddings") if name in table.column_names), None)
    if looks:
        columns["embedding"] = _column(table, looks, LOOKS, path)
        wrong = pc.fill_null(pc.invert(pc.is_finite(pc.list_flatten(columns["embedding"]))), True)
        _refuse(wrong, path, f"{looks} holds what is not a finite number")
    return pa.table({**columns, "class_name": classes, "timestamp_s": seconds})


def _column(table: pa.Table, name: str, kind: pa.DataType, path: str, may_be_null: bool = False) -> pa.ChunkedArray:
    """A column as this type; ValueError where it cannot be, or is null where it must not."""
    column = table[name]
    if not may_be_null:
        _refuse(pc.is_null(column), path, f"{name} is null")
    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{path}: {name} is {column.type}; it must be {kind}: {error}") from None


def _refuse(wrong: pa.ChunkedArray, path: str, what: str) -> None:
    """Raises ValueError where a row is wrong, naming the first."""
    row = pc.index(wrong, True).as_py()
    if row >= 0:
        raise ValueError(f"{path}: {what} (row {row}, of {pc.sum(wrong).as_py()} such rows)")
