"""The two sides of a comparison, truth and tracks: Arrow tables as arrays, taken apart by video and class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.metrics.ignoring import FLAGS, REGION, SCORED
from pipeline.metrics.pairs import Rows, in_order, rows

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
        return in_order(self.rows[wanted])

    def check_ids(self, what: str) -> None:
        """Raises ValueError where an identity comes twice in a frame."""
        identified = np.flatnonzero((self.rows.ids >= 0) & (self.rows.kind == SCORED))
        frame, track = self.rows.frame[identified], self.rows.ids[identified]
        order = np.lexsort((track, frame))
        again = (np.diff(frame[order]) == 0) & (np.diff(track[order]) == 0)
        if again.any():
            first = order[np.argmax(again)]
            raise ValueError(
                f"{what} has track {track[first]} twice in frame {frame[first]}; a track has one box a frame"
            )


@dataclass(frozen=True)
class Gathered:
    """Boxes of all videos together (N,), so that counting is array work over all of them.

    rows: in the order of `pairs.rows`; `frame` is a number that boxes share which share video, frame and class, and
    that rises with these. moment: the same of video and frame; of a frame and the next they differ by 1, of different
    videos by more. group: the same of video and class. of_all: ignored boxes that concern every class.
    """

    rows: Rows
    moment: NDArray[np.int64]
    group: NDArray[np.int64]
    of_all: NDArray[np.bool_]

    def __getitem__(self, chosen: NDArray[np.bool_]) -> Gathered:
        return Gathered(self.rows[chosen], self.moment[chosen], self.group[chosen], self.of_all[chosen])

    def by_moment(self) -> Rows:
        """The rows with moments as their frames: boxes meet whatever their classes."""
        return replace(self.rows, frame=self.moment)


def gather(
    truth: Mapping[str, Side], predicted: Mapping[str, Side], groups: Sequence[tuple[str, str]]
) -> tuple[Gathered, Gathered, NDArray[np.int64]]:
    """The two sides of the same videos, and the numbers that pairs of video and class have as `Gathered.group`."""
    sides = [*truth.values(), *predicted.values()]
    names = {UNNAMED, *(name for side in sides for name in side.names), *(name for _, name in groups)}
    label_of = {name: number for number, name in enumerate(sorted(names), 1)}  # 0 is every class
    video_of = {video: number for number, video in enumerate(truth)}
    width = len(label_of) + 1
    span = 2 + max((int(side.rows.frame.max(initial=-1)) for side in sides), default=-1)

    def together(by_name: Mapping[str, Side]) -> Gathered:
        parts = [rows([], [])]
        for video, side in by_name.items():
            label = np.array([*(label_of[name] for name in side.names), label_of[UNNAMED]])[side.label]
            label[(side.label < 0) & (side.rows.kind != SCORED)] = 0
            frame = (video_of[video] * span + side.rows.frame) * width + label
            parts.append(in_order(replace(side.rows, frame=frame)))
        whole = Rows(
            **{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Rows)}
        )
        moment, label = np.divmod(whole.frame, width)
        return Gathered(whole, moment, moment // span * width + label, label == 0)

    numbers = np.array([video_of[video] * width + label_of[name] for video, name in groups], np.int64)
    return together(truth), together(predicted), numbers


def by_video(table: pa.Table, *, is_truth: bool) -> dict[str, Side]:
    """A table of schema TRUTH or TRACKS, by video id, in the order of first appearance.

    Raises ValueError where a column is missing, or a row has no video, frame, corner or score.
    """
    what = f"a table of {'truth' if is_truth else 'tracks'}"
    numbers = ["frame_index", *_CORNERS, *([] if is_truth else ["score"])]
    missing = [name for name in ("video_id", "track_id", "class_name", *numbers) if name not in table.column_names]
    if missing:
        raise ValueError(f"{what} lacks the columns {', '.join(missing)}; it has: {', '.join(table.column_names)}")
    number = {name: _numbers(table[name].cast(pa.float64()), np.nan).astype(np.float64) for name in numbers}
    for name, there in (
        ("video_id", pc.is_valid(table["video_id"]).to_numpy()),
        ("frame_index", number["frame_index"] >= 0),
        *((name, np.isfinite(number[name])) for name in numbers),
    ):
        if not there.all():
            row = int(np.argmin(there))
            raise ValueError(
                f"{what} has {table[name][row].as_py()} for {name} in row {row}; "
                f"every row must have a video_id, and numbers for {', '.join(numbers)}, frames from 0"
            )
    label, names = _coded(table["class_name"])
    video, videos = _coded(table["video_id"])
    whole = Rows(
        frame=number["frame_index"].astype(np.int64),
        boxes=np.stack([number[corner] for corner in _CORNERS], axis=1),
        ids=_numbers(table["track_id"], -1).astype(np.int64),
        scores=np.ones(len(table)) if is_truth else number["score"],
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
    """A column as an array, `null` in place of nulls and of what is not a number."""
    if pa.types.is_null(column.type):
        column = column.cast(pa.float64())
    column = pc.fill_null(column, pa.scalar(null, column.type))
    array: NDArray[np.generic] = column.to_numpy(zero_copy_only=False)
    return np.where(np.isnan(array), null, array) if array.dtype.kind == "f" else array
