"""What a training learns from: a catalog's videos, and stills beside them, with all that is known to be in them."""

from __future__ import annotations

import hashlib
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import load, settings
from pipeline.frame_range import limited
from pipeline.records import VideoInfo
from pipeline.training.settings import Stills, Training

CORNERS = ("x1", "y1", "x2", "y2")
COLUMNS = ("frame_index", "track_id", "class_name", "ignore", *CORNERS)  # of `schemas.TRUTH`
READ_AT_ONCE = 1000  # videos whose tables are held beside the arrays made of them; a still's takes 10 kB


@dataclass(frozen=True)
class Truth:
    """The boxes of many videos as arrays, those of a video together, in order of time.

    first: int64 (V + 1,), which row of the others is a video's first, and the one after the last. frame: int32 (N,), of
    the file. boxes: float32 (N, 4) xyxy in pixels of the file. labels: int16 (N,), 0 where ignored for its class.
    track_ids: int32 (N,), -1 where unknown. ignore: bool (N,), what is no object and no mistake.
    """

    first: NDArray[np.int64]
    frame: NDArray[np.int32]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int16]
    track_ids: NDArray[np.int32]
    ignore: NDArray[np.bool_]

    def target(self, video: int, frame: int, scale: NDArray[np.float32]) -> dict[str, Tensor]:
        """What is known of one frame, as a model's `losses` are given it.

        scale: (4,), of the pixels that the network is given to those of the file. Boxes float32 (M, 4), labels int64
        (M,), track_ids int64 (M,) and ignore bool (M,).
        """
        start, stop = self.first[video], self.first[video + 1]
        rows = slice(*(start + np.searchsorted(self.frame[start:stop], [frame, frame + 1])))
        return {
            "boxes": torch.from_numpy(self.boxes[rows] * scale),
            "labels": torch.from_numpy(self.labels[rows].astype(np.int64)),
            "track_ids": torch.from_numpy(self.track_ids[rows].astype(np.int64)),
            "ignore": torch.from_numpy(self.ignore[rows].copy()),
        }


@dataclass(frozen=True)
class Labelled:
    """Videos, what is known to be in them, and the names of the classes, in the order of the labels."""

    videos: list[VideoInfo]
    truth: Truth
    classes: tuple[str, ...]

    @property
    def boxes(self) -> dict[str, int]:
        """How many boxes there are to learn of each class, in the order of the labels."""
        counts = np.bincount(self.truth.labels[~self.truth.ignore], minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    @cached_property
    def digest(self) -> str:
        """A name for the videos and all that is known to be in them: another content, another digest.

        Made once and then carried along, also to other processes: it reads all boxes, some 40 MB a million.
        """
        found = hashlib.sha256()
        for video in self.videos:
            found.update(repr((video.video_id, video.identity, video.start, video.stop)).encode())
        for column in vars(self.truth).values():
            found.update(column.tobytes())
        return found.hexdigest()[:16]


@dataclass(frozen=True)
class Material:
    """All that a training learns from. The stills' classes are the videos'."""

    videos: Labelled
    stills: Labelled | None = None

    @property
    def sources(self) -> list[Labelled]:
        """The videos and, where there are any, the stills, in the order that `sampling` counts them in."""
        return [self.videos] if self.stills is None else [self.videos, self.stills]


def material_of(training: Training) -> Material:
    """What a training learns from, as its settings say; no video is opened but for a range in percent.

    Raises ValueError where there is nothing to learn: no video, no truth of one, no box of a class.
    """
    videos = labelled(training.catalog, training.source, training.catalog_settings, training.frames)
    if training.stills is None:
        return Material(videos)
    stills = Stills.of(training.stills)
    source = stills.source or training.source
    return Material(videos, labelled(stills.catalog, source, stills.catalog_settings, stills_of=videos.classes))


def labelled(
    catalog: str,
    source: str,
    given: Mapping[str, Any],
    frames: str = "",
    stills_of: tuple[str, ...] | None = None,
) -> Labelled:
    """A catalog's videos with their truth. frames: the range of each, as `frame_range` reads it.

    The classes are those of the catalog's setting `classes`, else the catalog's own, else, where it leaves them to its
    files, those of the truth in alphabetical order. Boxes of other classes, those that the truth says to ignore and
    those of no size are ignored.
    stills_of: the classes that boxes are of, by name, where each frame is learned from by itself. Objects are then
    numbered from 1 in each frame, whatever ids they have: a still shown twice teaches that they stay where they are.
    Raises ValueError where there is no video, one without frames or truth, or no box to learn.
    """
    module, what = load("catalog", catalog), f"catalog {catalog}"
    chosen = settings(module.Settings, given, what)
    videos: list[VideoInfo] = limited(module.videos(source or None, chosen), frames)
    if not videos:
        raise ValueError(f"{what} found no video in {source!r} to train on")
    unseen = next((video.video_id for video in videos if video.kind == "rows"), None)
    if unseen is not None:
        raise ValueError(f"video {unseen} of {what} has no frames to train on, only rows")
    rows = [_read(module, videos[at : at + READ_AT_ONCE]) for at in range(0, len(videos), READ_AT_ONCE)]
    table, counts = pa.concat_tables(table for table, _ in rows), np.concatenate([count for _, count in rows])
    names = table["class_name"].unify_dictionaries().combine_chunks()  # codes of names; null where there is none
    code, known = names.indices.fill_null(-1).to_numpy(), names.dictionary.to_pylist()
    ignore = table["ignore"].fill_null(False).to_numpy()
    found = sorted({known[i] for i in np.unique(code[~ignore]) if i >= 0 and known[i]})
    classes = stills_of or tuple(getattr(chosen, "classes", ())) or tuple(module.CLASSES) or tuple(found)
    label_of = np.array([classes.index(name) if name in classes else -1 for name in known] + [-1], np.int16)
    truth = _truth(videos, table, counts, label_of[code], ignore, stills_of is not None)
    if truth.ignore.all():
        of_which = f" of the classes {', '.join(classes[:9])}" if classes else ""
        theirs = f"; those of its truth are {', '.join(found[:9])}" if found and not set(found) & set(classes) else ""
        where = f" in frames {frames}" if frames else ""
        raise ValueError(f"{what} holds no labelled box{of_which} to train on{where}{theirs}")
    return Labelled(videos, truth, classes)


def _read(module: types.ModuleType, videos: Sequence[VideoInfo]) -> tuple[pa.Table, NDArray[np.int64]]:
    """The truth of some videos as one table, and how many rows are of each; ValueError where one has none."""
    tables = []
    for video in videos:
        table = module.truth(video)
        if table is None:
            raise ValueError(f"video {video.video_id} of catalog {video.catalog} has no ground truth to train on")
        tables.append(table.select(COLUMNS))
    return pa.concat_tables(tables).combine_chunks(), np.array([len(table) for table in tables], np.int64)


def _truth(
    videos: Sequence[VideoInfo],
    table: pa.Table,
    counts: NDArray[np.int64],
    labels: NDArray[np.int16],
    ignore: NDArray[np.bool_],
    are_stills: bool,
) -> Truth:
    """The rows that are of the videos' frames, in order. labels: (N,), -1 where of no class that is learned."""
    frame = table["frame_index"].to_numpy()
    video = np.repeat(np.arange(len(videos)), counts)
    start = np.array([each.start for each in videos])[video]
    stop = np.array([np.iinfo(np.int64).max if each.stop is None else each.stop for each in videos])[video]
    within = np.flatnonzero((start <= frame) & (frame < stop))
    order = within[np.lexsort((frame[within], video[within]))]  # stable: rows of a frame stay in their order
    boxes = np.stack([table[side].to_numpy() for side in CORNERS], 1, dtype=np.float32)[order]
    sized = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])  # truth of others may hold boxes of no size
    track_ids = table["track_id"].fill_null(-1).to_numpy()[order]
    video, frame, labels = video[order], frame[order], labels[order]
    if are_stills:
        is_first = np.append(True, (np.diff(video) != 0) | (np.diff(frame) != 0))[: len(order)]  # of its frame
        row = np.arange(len(order))
        track_ids = (row - np.maximum.accumulate(np.where(is_first, row, 0)) + 1).astype(np.int32)
    return Truth(
        first=np.searchsorted(video, np.arange(len(videos) + 1)),
        frame=frame,
        boxes=boxes,
        labels=np.maximum(labels, 0),
        track_ids=track_ids,
        ignore=ignore[order] | (labels < 0) | ~sized,
    )
