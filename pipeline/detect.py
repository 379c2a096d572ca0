"""The worker that holds a network: frames in, rows out. With `pipeline.training` the only place that touches torch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from pipeline import boxes as box_ops
from pipeline.config import load, settings
from pipeline.records import Clip, ClipRef, Detections, Resize, detections
from pipeline.schemas import DETECTIONS, detections_table
from pipeline.video import decode


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


def build(model: str, model_settings: Mapping[str, Any]) -> torch.nn.Module:
    """The network of that name, weights loaded, in evaluation mode; ValueError or OSError in one sentence."""
    module = load("model", model)
    network: torch.nn.Module = module.build(settings(module.Settings, model_settings, f"model {model}"))
    return network.eval()


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
        for _, chunks in clips_of(unit, self.resize, self.chunk_frames):
            start = time.perf_counter()
            clip = joined(list(chunks))
            yield Decoded(clip, time.perf_counter() - start)


class Detect:
    """The detect stage: decoded clips, or units still to decode, -> parts.

    One network, held for life. A clip runs in chunks of `chunk_frames`, memory carried from one to the next, so its
    rows do not depend on which clips came before, on the worker, or on where it was decoded.
    """

    def __init__(self, model: str, model_settings: Mapping[str, Any], chunk_frames: int, device: str = "cpu") -> None:
        # One thread: the same sums in the same order wherever it runs, and one core a worker.
        if device == "cpu":
            torch.set_num_threads(1)
        self.device = torch.device(device)
        self.model = build(model, model_settings).to(self.device)
        self.resize = Resize(**self.model.resize)  # type: ignore[arg-type]
        self.chunk_frames = chunk_frames

    def __call__(self, item: Unit | Decoded) -> Iterator[Part]:
        if isinstance(item, Decoded):
            yield self.part(item.clip.ref, chunked(item.clip, self.chunk_frames), item.seconds)
        else:
            for ref, chunks in clips_of(item, self.resize, self.chunk_frames):
                yield self.part(ref, chunks, 0.0)

    def part(self, ref: ClipRef, chunks: Iterable[Clip], decode_s: float) -> Part:
        """All that the network sees in one clip. The one place that turns an exception into a failed clip."""
        frames: list[Detections] = []
        error, memory, detect_s = None, None, 0.0
        start = time.perf_counter()
        try:
            for chunk in chunks:
                error = chunk.error
                before = time.perf_counter()
                seen, memory = self.see(chunk, memory)
                frames += seen
                detect_s += time.perf_counter() - before
        except Exception as exception:
            return failed(ref, "detect", f"{type(exception).__name__}: {' '.join(str(exception).split())}")
        decode_s += time.perf_counter() - start - detect_s
        owned = ref.owns(np.array([frame.frame_index for frame in frames], np.int32))
        return Part(
            ref,
            detections_table(ref.video.video_id, ref.clip_id, frames, owned),
            frames=int(owned.sum()),
            boxes=sum(len(frame) for frame, mine in zip(frames, owned, strict=True) if mine),
            status="ok" if error is None else "partial" if owned.any() else "failed",
            stage=None if error is None else "decode",
            error=error,
            seconds={"decode_s": decode_s, "detect_s": detect_s},
        )

    @torch.inference_mode()
    def see(self, clip: Clip, memory: object) -> tuple[list[Detections], object]:
        """Detections of a chunk's frames in source pixels, and the memory after it."""
        if not len(clip.frames):
            return [], memory
        frames = torch.from_numpy(np.ascontiguousarray(clip.frames)).to(self.device)
        (seen,), (memory,) = self.model.detect([frames], [memory])  # type: ignore[operator]
        height, width = clip.frames.shape[2:]
        scale = np.tile(np.array(clip.size[::-1], np.float32) / np.array([width, height], np.float32), 2)
        return [
            mapped_back(frame, int(index), float(seconds), scale, clip.size)
            for frame, index, seconds in zip(seen, clip.frame_index, clip.timestamp_s, strict=True)
        ], memory


def mapped_back(
    frame: Mapping[str, torch.Tensor], index: int, seconds: float, scale: np.ndarray, size: tuple[int, int]
) -> Detections:
    """A frame's tensors as Detections in source pixels: scaled by (x, y, x, y), cut at the frame; empty boxes go."""
    arrays = {name: value.cpu().numpy() for name, value in frame.items()}
    boxes = box_ops.clip(arrays.pop("boxes") * scale, size).astype(np.float32)
    solid = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
    evidence = {name: value[solid] for name, value in arrays.items()}
    return detections(index, boxes[solid], timestamp_s=seconds, **evidence)


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
    return Clip(
        chunks[0].ref,
        np.concatenate([chunk.frames for chunk in chunks]),
        np.concatenate([chunk.frame_index for chunk in chunks]),
        np.concatenate([chunk.timestamp_s for chunk in chunks]),
        chunks[-1].size,
        chunks[-1].error,
    )
