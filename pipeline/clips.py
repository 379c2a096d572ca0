"""Clips on their way to a network: units that one task decodes, decoded clips, and the parts that come of them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

import numpy as np
import pyarrow as pa

from pipeline.records import Clip, ClipRef, Resize
from pipeline.schemas import DETECTIONS
from pipeline.video import decode


@dataclass(frozen=True)
class Unit:
    """Clips that one decode task takes, in order; travels: their frames are few enough to leave the task."""

    refs: tuple[ClipRef, ...]
    travels: bool = True


@dataclass(frozen=True)
class Decoded:
    """A clip with all its frames, on its way to a network; seconds: what decoding it took."""

    clip: Clip
    seconds: float


class Decode:
    """The decode stage: a unit -> its clips with their frames, or the unit itself where those must not travel."""

    def __init__(self, resize: Resize, chunk_frames: int) -> None:
        self.resize = resize
        self.chunk_frames = chunk_frames

    def __call__(self, unit: Unit) -> Iterator[Decoded | Unit]:
        if not unit.travels:
            yield unit
            return
        start = time.perf_counter()
        for _, chunks in clips_of(unit, self.resize, self.chunk_frames):
            clip = joined(list(chunks))
            yield Decoded(clip, time.perf_counter() - start)
            start = time.perf_counter()


def clips_of(unit: Unit, resize: Resize, chunk_frames: int) -> Iterator[tuple[ClipRef, Iterator[Clip]]]:
    """Each clip of a unit with its chunks as they are decoded; clips of one video share an open decoder."""
    for _, refs in groupby(unit.refs, key=lambda ref: ref.video.video_id):
        yield from groupby(decode(list(refs), resize, chunk_frames), key=lambda clip: clip.ref)


def chunked(clip: Clip, chunk_frames: int) -> Iterator[Clip]:
    """A whole clip in the chunks that `decode` would have given."""
    count = len(clip.frames)
    for start in range(0, max(count, 1), chunk_frames):
        part = slice(start, start + chunk_frames)
        yield Clip(
            clip.ref,
            clip.frames[part],
            clip.frame_index[part],
            clip.timestamp_s[part],
            clip.size,
            clip.error if start + chunk_frames >= count else None,
        )


def joined(chunks: Sequence[Clip]) -> Clip:
    """Chunks of one clip as a whole."""
    seen = [chunk for chunk in chunks if len(chunk.frames)] or chunks[:1]  # after a fault: no frames, of no size
    return Clip(
        chunks[0].ref,
        np.concatenate([chunk.frames for chunk in seen]),
        np.concatenate([chunk.frame_index for chunk in seen]),
        np.concatenate([chunk.timestamp_s for chunk in seen]),
        seen[0].size,
        chunks[-1].error,
    )


@dataclass(frozen=True)
class Part:
    """What is known of one clip once it was seen: rows of `detections`, and how it went.

    frames, boxes: how many of them the clip owns; seconds: spent decoding and detecting.
    error: one sentence where the clip ended early (partial) or gave nothing (failed).
    """

    ref: ClipRef
    table: pa.Table
    frames: int = 0
    boxes: int = 0
    status: Literal["ok", "partial", "failed"] = "ok"
    stage: str | None = None
    error: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


def failed(ref: ClipRef, stage: str, error: str) -> Part:
    """The part of a clip that gave nothing."""
    return Part(ref, DETECTIONS.empty_table(), status="failed", stage=stage, error=error)


def lost_part(ref: ClipRef) -> Part:
    """What is said of a clip whose worker died each time."""
    return failed(ref, "detect", "its worker's process died both times that it was tried alone")
