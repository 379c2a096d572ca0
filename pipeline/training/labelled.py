"""Labelled frames: a catalog's videos decoded once into one file, with the truth of every frame as tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.config import load, settings
from pipeline.records import ClipRef, Resize, VideoInfo
from pipeline.video import decode

CHUNK_FRAMES = 64  # decoded at once


@dataclass(frozen=True)
class Labelled:
    """Videos and what is known to be in them: one truth table a video, and the names of the classes."""

    videos: list[VideoInfo]
    truth: list[pa.Table]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Frames:
    """Labelled frames, all of one size.

    pixels: uint8 (N, 3, H, W); targets: for each of them boxes float32 (M, 4), labels int64 (M,), track_ids int64
    (M,), -1 where unknown, and ignore bool (M,). video: int (N,), which video each is of; those of one stand together,
    in order of time.
    """

    pixels: NDArray[np.uint8]
    targets: list[dict[str, Tensor]]
    video: NDArray[np.int64]

    def clip(self, indices: Sequence[int]) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """The frames of these numbers uint8 (T, 3, H, W), and their targets."""
        return torch.from_numpy(np.array(self.pixels[list(indices)])), [self.targets[index] for index in indices]


def labelled(catalog: str, source: str, given: Mapping[str, Any]) -> Labelled:
    """A catalog's videos with their truth.

    The classes are the catalog's or, where it leaves them to its files, those of the truth in alphabetical order.
    Raises ValueError where there is no video, no truth of one, or no labelled box at all.
    """
    module = load("catalog", catalog)
    videos = module.videos(source or None, settings(module.Settings, given, f"catalog {catalog}"))
    if not videos:
        raise ValueError(f"catalog {catalog} found no video in {source!r} to train on")
    tables = [module.truth(video) for video in videos]
    for video, table in zip(videos, tables, strict=True):
        if table is None:
            raise ValueError(f"video {video.video_id} of catalog {catalog} has no ground truth to train on")
    wanted = [table.filter(pc.invert(pc.fill_null(table["ignore"], False))) for table in tables]
    found = sorted({name for table in wanted for name in table["class_name"].unique().to_pylist() if name})
    if not found:
        raise ValueError(f"catalog {catalog} holds no labelled box to train on")
    return Labelled(videos, tables, tuple(module.CLASSES) or tuple(found))


def read_frames(material: Labelled, resize: Resize, folder: Path) -> Frames:
    """Decodes every frame of the videos once, into a file of the folder, and puts its truth beside it.

    Raises ValueError where a video cannot be decoded to its end, or the frames differ in size.
    """
    path, size = folder / "frames", None
    targets: list[dict[str, Tensor]] = []
    counts: list[int] = []
    with path.open("wb") as file:
        for video, table in zip(material.videos, material.truth, strict=True):
            before = len(targets)
            rows = _rows_by_frame(table)
            for clip in decode([ClipRef(video)], resize, CHUNK_FRAMES):
                if clip.error:
                    raise ValueError(f"video {video.video_id} cannot be trained on: {clip.error}")
                size = size or clip.frames.shape[2:]
                if clip.frames.shape[2:] != size:
                    raise ValueError(
                        f"video {video.video_id} has frames of {clip.frames.shape[2:]}, those before of {size}; "
                        "training needs one size, which a model that resizes to `size` gives"
                    )
                clip.frames.tofile(file)
                scale = np.array([size[1] / clip.size[1], size[0] / clip.size[0]] * 2, np.float32)
                targets += [target_of(rows.get(int(index)), material.classes, scale) for index in clip.frame_index]
            counts.append(len(targets) - before)
    if size is None:
        raise ValueError("the videos hold no frame to train on")
    pixels = np.memmap(path, np.uint8, "r", shape=(len(targets), 3, *size))
    return Frames(pixels, targets, np.repeat(np.arange(len(counts)), counts))


def _rows_by_frame(table: pa.Table) -> dict[int, pa.Table]:
    frame = table["frame_index"].to_numpy()
    order = np.argsort(frame, kind="stable")
    table, frame = table.take(order), frame[order]
    indices, first, counts = np.unique(frame, return_index=True, return_counts=True)
    return {int(i): table.slice(start, count) for i, start, count in zip(indices, first, counts, strict=True)}


def target_of(rows: pa.Table | None, classes: tuple[str, ...], scale: NDArray[np.float32]) -> dict[str, Tensor]:
    """The truth rows of one frame as tensors, in pixels of the frame that the network is given."""
    rows = rows.to_pydict() if rows else {}
    names = rows.get("class_name", [])
    boxes = np.array([rows[side] for side in ("x1", "y1", "x2", "y2")] if rows else np.zeros((4, 0)), np.float32)
    sized = (boxes[0] < boxes[2]) & (boxes[1] < boxes[3])  # truth of others may hold boxes of no size
    return {
        "boxes": torch.from_numpy(boxes.T * scale),
        "labels": torch.tensor([classes.index(name) if name in classes else 0 for name in names], dtype=torch.long),
        "track_ids": torch.tensor([-1 if i is None else i for i in rows.get("track_id", [])], dtype=torch.long),
        "ignore": torch.tensor(
            [
                bool(ignore) or name not in classes or not is_sized
                for ignore, name, is_sized in zip(rows.get("ignore", []), names, sized, strict=True)
            ],
            dtype=torch.bool,
        ),
    }
