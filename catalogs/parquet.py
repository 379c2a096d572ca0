"""Detections in Parquet, one row a box, from whatever made them.

Columns: video_id, frame_index, x1, y1, x2, y2 and score; class_name (or class_id) and timestamp_s where there are any.
`tracks` tables of ours have them, and so has what DuckDB or pandas writes with those names.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import records
from pipeline.records import VideoInfo, unique_ids

CLASSES: tuple[str, ...] = ()
UNNAMED = "object"
NEEDED = ("video_id", "frame_index", "x1", "y1", "x2", "y2", "score")


@dataclass(frozen=True)
class Settings:
    """fps: frames a second, where the rows have no timestamp_s."""

    fps: float = 30.0


def videos(source: str | None, settings: Settings) -> list[VideoInfo]:
    """The videos that the rows name. Raises FileNotFoundError, or ValueError where columns are missing."""
    if not source:
        raise ValueError("the catalog parquet needs a Parquet file, or a folder of them")
    table = _read(source)
    found = sorted(pc.unique(table["video_id"]).to_pylist())
    digest = f"{len(table)} rows"
    return unique_ids(
        [
            VideoInfo(name, "", "parquet", "rows", identity=digest, detections_uri=source, fps=settings.fps)
            for name in found
        ]
    )


def truth(video: VideoInfo) -> pa.Table | None:
    """None: these are what a detector says."""
    return None


def classes(video: VideoInfo) -> tuple[str, ...]:
    """The names of the labels that `detections` gives."""
    assert video.detections_uri is not None, "videos() names the file"
    return tuple(sorted(pc.unique(_read(video.detections_uri)["class_name"]).to_pylist()))


def detections(video: VideoInfo) -> list[records.Detections]:
    """One record a frame from 0 to the last that has a box, best score first."""
    assert video.detections_uri is not None, "videos() names the file"
    table = _read(video.detections_uri)
    table = table.filter(pc.equal(table["video_id"], video.video_id))
    boxes = np.stack([table[name].to_numpy() for name in NEEDED[2:6]], axis=1).astype(np.float32)
    label = pc.index_in(table["class_name"], pa.array(classes(video))).to_numpy()
    frame, score = table["frame_index"].to_numpy(), table["score"].to_numpy()
    seconds = table["timestamp_s"].to_numpy()
    order = np.lexsort((-score, frame))
    bounds = np.searchsorted(frame[order], np.arange(frame.max(initial=-1) + 2))
    return [
        records.detections(
            index,
            boxes[rows],
            score[rows],
            label[rows],
            timestamp_s=float(seconds[rows[0]]) if len(rows) and seconds[rows[0]] >= 0 else index / (video.fps or 1),
        )
        for index, rows in enumerate(order[a:b] for a, b in pairwise(bounds.tolist()))
    ]


@lru_cache(maxsize=2)
def _read(source: str) -> pa.Table:
    """The rows with the columns above; class_name `object` and timestamp_s -1 where the files have none."""
    fs, path = fsspec.core.url_to_fs(source)
    if not fs.exists(path):
        raise FileNotFoundError(f"{source} is not there; the catalog parquet needs a Parquet file, or a folder of them")
    try:
        table = pq.read_table(path, filesystem=fs)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{source} is not Parquet: {error}") from None
    lacking = [name for name in NEEDED if name not in table.column_names]
    if lacking:
        raise ValueError(
            f"{source} lacks the column{'s' * (len(lacking) > 1)} {', '.join(lacking)}; one row is one box"
        )
    count = len(table)
    if "class_name" not in table.column_names:
        names = table["class_id"].cast(pa.string()) if "class_id" in table.column_names else pa.array([UNNAMED] * count)
        table = table.append_column("class_name", names)
    if "timestamp_s" not in table.column_names:
        table = table.append_column("timestamp_s", pa.array(np.full(count, -1.0)))
    columns = [*NEEDED, "class_name", "timestamp_s"]
    kinds = [pa.string(), pa.int32(), *[pa.float32()] * 5, pa.string(), pa.float64()]
    return pa.table({name: table[name].cast(kind) for name, kind in zip(columns, kinds, strict=True)})
