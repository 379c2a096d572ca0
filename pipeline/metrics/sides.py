"""The two sides of a comparison, truth and tracks: Arrow tables as arrays, taken apart by video and class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.metrics.ignoring import FLAGS, REGION, SCORED
from pipeline.metrics.pairs import Rows, rows

UNNAMED = "object"  # the class of files that know no classes
_CORNERS = ("x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class Side:
    """Boxes of one video: rows (N, in no order) and label (N,), an index into names, -1 where no class is named."""

    rows: Rows
    label: NDArray[np.int64]
    names: tuple[str, ...]

    def without_classes(self) -> Side:
        """The same boxes, all of the class `object`."""
        return replace(self, label=np.zeros_like(self.label), names=(UNNAMED,))

    @property
    def lacks_ids(self) -> bool:
        """Whether some box that is scored has no identity."""
        return bool((self.rows.ids[self.rows.kind == SCORED] < 0).any())

    def classes(self) -> set[str]:
        """The classes of boxes that are scored; `object` for those that name none."""
        labels = np.unique(self.label[self.rows.kind == SCORED])
        return {self.names[label] if label >= 0 else UNNAMED for label in labels}

    def of_class(self, name: str) -> Rows:
        """The boxes of a class, in order, and ignored ones that concern every class."""
        wanted = self.label == (self.names.index(name) if name in self.names else -2)
        scored = self.rows.kind == SCORED
        wanted |= (self.label < 0) & (~scored | (name == UNNAMED))
        chosen = self.rows[wanted]
        return rows(**{field.name: getattr(chosen, field.name) for field in fields(chosen)})

    def check_ids(self, what: str) -> None:
        """Raises ValueError where an identity comes twice in a frame."""
        identified = self.rows[(self.rows.ids >= 0) & (self.rows.kind == SCORED)]
        both = np.stack([identified.frame, identified.ids], axis=1)
        found, times = np.unique(both, axis=0, return_counts=True)
        if (times > 1).any():
            frame, track = found[np.argmax(times > 1)].tolist()
            raise ValueError(f"{what} has track {track} twice in frame {frame}; a track has one box a frame")


def by_video(table: pa.Table, *, is_truth: bool) -> dict[str, Side]:
    """A table of schema TRUTH or TRACKS, by video id, in the order of first appearance."""
    needed = ["video_id", "frame_index", "track_id", "class_name", *_CORNERS, *([] if is_truth else ["score"])]
    missing = [name for name in needed if name not in table.column_names]
    if missing:
        raise ValueError(
            f"a table of {'truth' if is_truth else 'tracks'} lacks the columns {', '.join(missing)}; "
            f"it has: {', '.join(table.column_names)}"
        )
    label, names = _coded(table["class_name"])
    video, videos = _coded(table["video_id"])
    whole = Rows(
        frame=_numbers(table["frame_index"], -1).astype(np.int64),
        boxes=np.stack([_numbers(table[corner].cast(pa.float64()), np.nan) for corner in _CORNERS], axis=1),
        ids=_numbers(table["track_id"], -1).astype(np.int64),
        scores=np.ones(len(table)) if is_truth else _numbers(table["score"], 0.0).astype(np.float64),
        kind=_kinds(table) if is_truth else np.zeros(len(table), np.int8),
        motion=_optional(table, "motion_iou" if is_truth else None),
        track_scores=_optional(table, None if is_truth else "track_score"),
    )
    order = np.argsort(video, kind="stable")
    bounds = np.searchsorted(video[order], np.arange(len(videos) + 1))
    return {
        name: Side(whole[chosen], label[chosen], names)
        for index, name in enumerate(videos)
        for chosen in [order[bounds[index] : bounds[index + 1]]]
    }


def is_unnamed(sides: Mapping[str, Side]) -> bool:
    """Whether there are boxes to be scored, and none of any video names its class."""
    named = set().union(*(side.classes() for side in sides.values()))
    return named == {UNNAMED}


def nothing() -> Side:
    """A side without boxes."""
    return Side(rows((), ()), np.zeros(0, np.int64), ())


def _kinds(table: pa.Table) -> NDArray[np.int8]:
    """What each row of truth does (`metrics.ignoring`), from its `ignore` and `flags`."""
    kinds = np.zeros(len(table), np.int8)
    if "ignore" not in table.column_names:
        return kinds
    ignored = np.flatnonzero(_numbers(table["ignore"], False))
    flags = table["flags"].take(pa.array(ignored)).to_pylist() if "flags" in table.column_names else []
    kinds[ignored] = REGION
    for row, words in zip(ignored, flags, strict=False):
        kinds[row] = next((FLAGS[word] for word in words or () if word in FLAGS), REGION)
    return kinds


def _optional(table: pa.Table, name: str | None) -> NDArray[np.float64]:
    """A column of numbers (N,), nan where it is null or not there."""
    if name not in table.column_names:
        return np.full(len(table), np.nan)
    return _numbers(table[name], np.nan).astype(np.float64)


def _coded(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Strings as indices (N,) into the distinct ones, -1 where null."""
    coded = pc.dictionary_encode(column.cast(pa.string()).combine_chunks())
    return _numbers(coded.indices, -1).astype(np.int64), tuple(coded.dictionary.to_pylist())


def _numbers(column: pa.ChunkedArray | pa.Array, null: float) -> NDArray[np.generic]:
    """A column as an array, `null` in place of nulls."""
    filled = pc.fill_null(column, pa.scalar(null, column.type))
    array: NDArray[np.generic] = (
        filled.to_numpy(zero_copy_only=False) if isinstance(filled, pa.Array) else filled.to_numpy()
    )
    return array
