"""The tables: their Arrow schemas, and how records become rows and rows records again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from pipeline.records import ORIGINS, Detections, Moves, Track

SCHEMA_VERSION = 1

_NAME = pa.dictionary(pa.int32(), pa.string())
_BOX = pa.list_(pa.float32(), 4)

VIDEOS = pa.schema(
    {
        "video_id": pa.string(),
        "catalog": pa.string(),
        "uri": pa.string(),
        "start": pa.int32(),  # frames [start, stop) of the file are the video
        "stop": pa.int32(),  # null: to its end
        "bytes": pa.int64(),
        "codec": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "rotation": pa.int16(),
        "fps": pa.float64(),
        "is_vfr": pa.bool_(),
        "frames_declared": pa.int32(),
        "frames_decoded": pa.int32(),
        "duration_s": pa.float64(),
        "status": pa.string(),  # ok | partial | failed
        "stage": pa.string(),
        "error": pa.string(),
        "boxes": pa.int64(),
        "tracks": pa.int64(),
        "decode_s": pa.float64(),
        "detect_s": pa.float64(),
        "link_s": pa.float64(),
    }
)

DETECTIONS = pa.schema(
    {
        "video_id": _NAME,
        "clip_id": _NAME,
        "frame_index": pa.int32(),
        "owned": pa.bool_(),
        "timestamp_s": pa.float64(),
        "boxes": pa.list_(_BOX),
        "scores": pa.list_(pa.float32()),
        "labels": pa.list_(pa.int16()),
        "box_id": pa.list_(pa.int32()),
        "class_scores": pa.list_(pa.list_(pa.float32())),
        "embeddings": pa.list_(pa.list_(pa.float16())),
        "tracklet_id": pa.list_(pa.int32()),
        "tracked": pa.list_(pa.bool_()),
        "moves": pa.struct(
            {
                "start": pa.list_(_BOX),
                "end": pa.list_(_BOX),
                "scores": pa.list_(pa.float32()),
                "box_id": pa.list_(pa.int32()),
                "stride": pa.int32(),
            }
        ),
    }
)

TRACKS = pa.schema(
    {
        "video_id": _NAME,
        "frame_index": pa.int32(),
        "timestamp_s": pa.float64(),
        "track_id": pa.int32(),  # null where untracked
        "class_id": pa.int16(),
        "class_name": _NAME,
        "score": pa.float32(),
        "raw_score": pa.float32(),
        "track_score": pa.float32(),
        "x1": pa.float32(),
        "y1": pa.float32(),
        "x2": pa.float32(),
        "y2": pa.float32(),
        "origin": _NAME,
    }
)

TRUTH = pa.schema(
    {
        "video_id": _NAME,
        "frame_index": pa.int32(),
        "track_id": pa.int32(),  # null where the source has no identities
        "class_id": pa.int16(),
        "class_name": _NAME,
        "x1": pa.float32(),
        "y1": pa.float32(),
        "x2": pa.float32(),
        "y2": pa.float32(),
        "ignore": pa.bool_(),
        "motion_iou": pa.float32(),
        "flags": pa.list_(pa.string()),
    }
)

SCORES = pa.schema(
    {
        "catalog": pa.string(),
        "video_id": pa.string(),  # null: all videos together
        "class_name": pa.string(),  # null: all classes together
        "metric": pa.string(),
        "value": pa.float64(),
        "counts": pa.map_(pa.string(), pa.list_(pa.float64())),  # what adds up; on the first metric of a family
    }
)


def detections_table(video_id: str, clip_id: str, frames: Sequence[Detections], owned: NDArray[np.bool_]) -> pa.Table:
    """Frames of one clip as rows of DETECTIONS, one a frame; owned: (T,), which of them the clip answers for."""
    count = len(frames)
    columns: dict[str, pa.Array] = {
        "video_id": _constant(video_id, count),
        "clip_id": _constant(clip_id, count),
        "frame_index": pa.array([frame.frame_index for frame in frames], pa.int32()),
        "owned": pa.array(owned, pa.bool_()),
        "timestamp_s": pa.array([frame.timestamp_s for frame in frames], pa.float64()),
    }
    for name in _DETECTION_LISTS:
        columns[name] = _lists([getattr(frame, name) for frame in frames], DETECTIONS.field(name).type)
    columns["moves"] = _moves_column([frame.moves for frame in frames])
    return pa.table(columns, schema=DETECTIONS)


def detections_frames(table: pa.Table) -> list[Detections]:
    """Rows of DETECTIONS as records, in the table's order."""
    columns = {name: _arrays(table[name]) for name in _DETECTION_LISTS}
    return [
        Detections(
            frame_index=frame_index,
            timestamp_s=timestamp_s,
            moves=moves,
            **{name: arrays[row] for name, arrays in columns.items()},  # type: ignore[arg-type]
        )
        for row, (frame_index, timestamp_s, moves) in enumerate(
            zip(
                table["frame_index"].to_pylist(),
                table["timestamp_s"].to_pylist(),
                _moves(table["moves"]),
                strict=True,
            )
        )
    ]


def tracks_table(
    video_id: str,
    frames: Sequence[Detections],
    tracks: Sequence[Track],
    classes: Sequence[str],
    raw: Sequence[Detections] | None = None,
) -> pa.Table:
    """Rows of TRACKS: every box of every track, and every detection that no track took (track_id null).

    frames: the detections that the linker gave back; a track's box is a detection where its box_id is >= 0. raw: the
    detections that the linker was given, if it changed scores or may have removed boxes. Sorted by frame, then track,
    untracked boxes last.
    """
    time = {frame.frame_index: frame.timestamp_s for frame in frames}
    pieces = [_rows_of_track(track) for track in tracks]
    if frames:
        pieces.append(_rows_untracked(frames, frames if raw is None else raw, tracks))
    rows = {
        name: np.concatenate([piece[name] for piece in pieces]) if pieces else np.empty(0, kind)
        for name, kind in _TRACK_ROW.items()
    }
    untracked = rows["track_id"] == 0
    order = np.lexsort((rows["track_id"], untracked, rows["frame_index"]))
    rows = {name: column[order] for name, column in rows.items()}
    untracked = untracked[order]
    return pa.table(
        {
            "video_id": _constant(video_id, len(order)),
            "frame_index": rows["frame_index"],
            "timestamp_s": np.array([time[int(index)] for index in rows["frame_index"]], np.float64),
            "track_id": pa.array(rows["track_id"], mask=untracked),
            "class_id": rows["label"],
            "class_name": pa.DictionaryArray.from_arrays(
                rows["label"].astype(np.int32), pa.array(classes, pa.string())
            ),
            "score": rows["score"],
            "raw_score": rows["raw_score"],
            "track_score": pa.array(rows["track_score"], mask=untracked),
            **{name: np.ascontiguousarray(rows["box"].reshape(-1, 4)[:, i]) for i, name in enumerate(_CORNERS)},
            "origin": pa.DictionaryArray.from_arrays(rows["origin"], pa.array(ORIGINS)),
        },
        schema=TRACKS,
    )


_CORNERS = ("x1", "y1", "x2", "y2")
_TRACK_ROW = {
    "frame_index": np.int32,
    "track_id": np.int32,
    "label": np.int16,
    "score": np.float32,
    "raw_score": np.float32,
    "track_score": np.float32,
    "box": np.float32,
    "origin": np.int32,
}


def _rows_of_track(track: Track) -> dict[str, NDArray[Any]]:
    return {
        "frame_index": track.frame_index,
        "track_id": np.full(len(track), track.track_id, np.int32),
        "label": np.full(len(track), track.label, np.int16),
        "score": track.scores,
        "raw_score": track.raw_scores,
        "track_score": np.full(len(track), track.score, np.float32),
        "box": track.boxes,
        "origin": np.where(track.box_id < 0, _INTERPOLATED, track.tracked).astype(np.int32),
    }


def _rows_untracked(
    frames: Sequence[Detections], raw: Sequence[Detections], tracks: Sequence[Track]
) -> dict[str, NDArray[Any]]:
    """The detections that are in no track; for the arguments see tracks_table."""
    name, raw_name = (np.concatenate([_names(f.frame_index, f.box_id) for f in given]) for given in (frames, raw))
    taken = [np.empty(0, np.int64), *(_names(track.frame_index, track.box_id) for track in tracks)]
    free = ~np.isin(name, np.concatenate(taken))
    order = np.argsort(raw_name)
    before = order[np.searchsorted(raw_name, name, sorter=order)]
    assert (raw_name[before] == name).all(), "a linker gives out no detection that it was not given"
    tracked = [np.zeros(len(frame), bool) if frame.tracked is None else frame.tracked for frame in frames]
    count = int(free.sum())
    return {
        "frame_index": (name[free] >> 32).astype(np.int32),
        "track_id": np.zeros(count, np.int32),
        "label": np.concatenate([frame.labels for frame in frames])[free],
        "score": np.concatenate([frame.scores for frame in frames])[free],
        "raw_score": np.concatenate([frame.scores for frame in raw])[before[free]],
        "track_score": np.zeros(count, np.float32),
        "box": np.concatenate([frame.boxes for frame in frames])[free],
        "origin": np.concatenate(tracked)[free].astype(np.int32),
    }


def _names(frame_index: ArrayLike, box_id: NDArray[np.int32]) -> NDArray[np.int64]:
    """One number (N,) a detection of a video: its frame above 32 bits of its box_id."""
    return np.asarray(frame_index, np.int64) * 2**32 + box_id


_INTERPOLATED = ORIGINS.index("interpolated")
_DETECTION_LISTS = (
    "boxes",
    "scores",
    "labels",
    "box_id",
    "class_scores",
    "embeddings",
    "tracklet_id",
    "tracked",
)


def _constant(value: str, count: int) -> pa.DictionaryArray:
    """The same string `count` times, stored once."""
    return pa.DictionaryArray.from_arrays(np.zeros(count, np.int32), pa.array([value]))


def _lists(rows: Sequence[NDArray[Any] | None], kind: pa.ListType) -> pa.Array:
    """One list a row, null where there is no array."""
    present = [row for row in rows if row is not None]
    if not present:
        return pa.nulls(len(rows), kind)
    offsets = np.cumsum([0] + [0 if row is None else len(row) for row in rows]).astype(np.int32)
    missing = pa.array([row is None for row in rows])
    return pa.ListArray.from_arrays(offsets, _flat(np.concatenate(present), kind.value_type), mask=missing)


def _flat(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """(N,) or (N, D) values as an Arrow array of N scalars or lists."""
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(_flat(values.reshape(-1), kind.value_type), kind.list_size)
    if pa.types.is_list(kind):
        offsets = np.arange(0, values.size + 1, max(values.shape[1], 1), dtype=np.int32)
        return pa.ListArray.from_arrays(offsets[: len(values) + 1], _flat(values.reshape(-1), kind.value_type))
    return pa.array(values.astype(kind.to_pandas_dtype(), copy=False), kind)


def _arrays(column: pa.ChunkedArray | pa.Array) -> list[NDArray[Any] | None]:
    """The inverse of _lists: one numpy array a row, None where null."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if column.null_count == len(column):
        return [None] * len(column)
    values = _unflat(column.values)
    bounds = column.offsets.to_numpy()
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    return [
        values[start:stop] if there else None for start, stop, there in zip(bounds, bounds[1:], valid, strict=False)
    ]


def _unflat(values: pa.Array) -> NDArray[Any]:
    if pa.types.is_fixed_size_list(values.type):
        return _unflat(values.values).reshape(-1, values.type.list_size)
    if pa.types.is_list(values.type):
        width = len(values.values) // len(values) if len(values) else 0
        return _unflat(values.values).reshape(len(values), width)
    flat: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return flat.astype(np.float32) if flat.dtype == np.float16 else flat


def _moves_column(moves: Sequence[Moves | None]) -> pa.Array:
    kind = DETECTIONS.field("moves").type
    if all(move is None for move in moves):
        return pa.nulls(len(moves), kind)
    fields = [
        _lists([None if move is None else getattr(move, field.name) for move in moves], field.type)
        if pa.types.is_list(field.type)
        else pa.array([None if move is None else move.stride for move in moves], field.type)
        for field in kind
    ]
    return pa.StructArray.from_arrays(fields, fields=list(kind), mask=pa.array([move is None for move in moves]))


def _moves(column: pa.ChunkedArray) -> list[Moves | None]:
    if column.null_count == len(column):
        return [None] * len(column)
    struct = column.combine_chunks()
    lists = [_arrays(struct.field(name)) for name in ("start", "end", "scores", "box_id")]
    return [
        Moves(start, end, scores, box_id, stride) if there else None
        for start, end, scores, box_id, stride, there in zip(
            *lists, struct.field("stride").to_pylist(), struct.is_valid().to_pylist(), strict=True
        )
    ]
