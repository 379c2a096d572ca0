"""The worker that holds a network: frames in, rows out. With `pipeline.training` the only place that touches torch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import boxes as box_ops
from pipeline.clips import Decoded, Part, Unit, chunked, clips_of
from pipeline.config import load, resize_of, settings
from pipeline.records import Clip, ClipRef, Detections, Moves, detections
from pipeline.schemas import detections_table
from pipeline.video import why


def build(model: str, model_settings: Mapping[str, Any]) -> torch.nn.Module:
    """The network of that name, weights loaded, in evaluation mode; ValueError or OSError in one sentence."""
    module = load("model", model)
    network: torch.nn.Module = module.build(settings(module.Settings, model_settings, f"model {model}"))
    return network.eval()


class Detect:
    """The detect stage: decoded clips, or units still to decode, -> parts.

    One network, held for life. A clip runs in chunks of `chunk_frames`, memory carried from one to the next, so its
    rows do not depend on which clips came before, on the worker, or on where it was decoded. A network may give a
    frame's rows late, when it has seen what comes after.
    """

    def __init__(self, model: str, model_settings: Mapping[str, Any], chunk_frames: int, device: str = "cpu") -> None:
        # One thread: the same sums in the same order wherever it runs, and one core a worker.
        if device == "cpu":
            torch.set_num_threads(1)
        self.device = torch.device(device)
        self.model = build(model, model_settings).to(self.device)
        self.resize = resize_of(self.model)
        self.chunk_frames = chunk_frames

    def __call__(self, item: Unit | Decoded) -> Iterator[Part]:
        if isinstance(item, Decoded):
            yield self.part(item.clip.ref, chunked(item.clip, self.chunk_frames), item.seconds)
        else:
            start = time.perf_counter()
            for ref, chunks in clips_of(item, self.resize, self.chunk_frames):
                yield self.part(ref, chunks, time.perf_counter() - start)  # a clip comes with its first chunk decoded
                start = time.perf_counter()

    def part(self, ref: ClipRef, chunks: Iterable[Clip], decode_s: float) -> Part:
        """All that the network sees in one clip. An exception here is the clip's: what was seen before it is kept."""
        frames: list[Detections] = []
        waiting: list[Shown] = []  # frames that were shown and whose rows the network still owes, oldest first
        stage, error, memory, detect_s = None, None, None, 0.0
        start = time.perf_counter()
        try:
            for chunk in chunks:
                if chunk.error is not None:
                    stage, error = "decode", chunk.error
                before = time.perf_counter()
                rows, memory = self.see(chunk, memory)
                waiting += shown(chunk)
                frames += taken(rows, waiting)
                detect_s += time.perf_counter() - before
        except Exception as exception:
            stage, error = "detect", why(exception)
        before = time.perf_counter()
        try:
            frames += self.finish(waiting, memory)
        except Exception as exception:
            if error is None:
                stage, error = "detect", why(exception)
        detect_s += time.perf_counter() - before
        decode_s += time.perf_counter() - start - detect_s
        owned = ref.owns(np.array([frame.frame_index for frame in frames], np.int32))
        return Part(
            ref,
            detections_table(ref.video.video_id, ref.clip_id, frames, owned),
            frames=int(owned.sum()),
            boxes=sum(len(frame) for frame, mine in zip(frames, owned, strict=True) if mine),
            status="ok" if error is None else "partial" if owned.any() else "failed",
            stage=stage,
            error=error,
            seconds={"decode_s": decode_s, "detect_s": detect_s},
        )

    @torch.inference_mode()
    def see(self, clip: Clip, memory: object) -> tuple[list[Row], object]:
        """What the network has ready once it has seen a chunk, oldest frame first, and the memory after it."""
        if not len(clip.frames):
            return [], memory
        # Decoded frames are channels last in memory; those that travelled are made so again, for the same sums.
        frames = torch.from_numpy(clip.frames).contiguous(memory_format=torch.channels_last).to(self.device)
        (rows,), (memory,) = self.model.detect([frames], [memory])  # type: ignore[operator]
        return rows, memory

    @torch.inference_mode()
    def finish(self, waiting: list[Shown], memory: object) -> list[Detections]:
        """The frames that still wait at a clip's end for others that do not come."""
        found: list[Detections] = []
        if waiting and self.model.frames_after:
            (rows,) = self.model.finish([memory])  # type: ignore[operator]
            found = taken(rows, waiting)
        assert not waiting, f"the model owes the rows of {len(waiting)} frames"
        return found


Row = Mapping[str, Any]  # a frame as a model gives it; see `models`


@dataclass(frozen=True)
class Shown:
    """A frame that the network was shown: its index and time, its size before resizing, and x, y scales to that."""

    index: int
    seconds: float
    size: tuple[int, int]
    scale: NDArray[np.float32]  # (4,), for xyxy


def shown(clip: Clip) -> list[Shown]:
    """The frames of a chunk."""
    height, width = clip.frames.shape[2:]
    scale = (np.tile(clip.size[::-1], 2) / np.tile([width, height], 2)).astype(np.float32)
    pairs = zip(clip.frame_index, clip.timestamp_s, strict=True)
    return [Shown(int(index), float(seconds), clip.size, scale) for index, seconds in pairs]


def taken(rows: Sequence[Row], waiting: list[Shown]) -> list[Detections]:
    """The rows of the frames that waited longest, which then wait no more."""
    assert len(rows) <= len(waiting), f"the model gave {len(rows)} frames, and {len(waiting)} were to come"
    ready, waiting[:] = waiting[: len(rows)], waiting[len(rows) :]
    return [mapped_back(row, frame) for row, frame in zip(rows, ready, strict=True)]


def mapped_back(row: Row, frame: Shown) -> Detections:
    """A frame's tensors as Detections in source pixels: scaled, cut at the frame; boxes without area go."""
    arrays = {name: value.cpu().numpy() for name, value in row.items() if name != "moves"}
    boxes = box_ops.clip(arrays.pop("boxes") * frame.scale, frame.size).astype(np.float32)
    solid = has_area(boxes)
    evidence = {name: value[solid] for name, value in arrays.items()}
    if (moves := row.get("moves")) is not None:
        evidence["moves"] = moves_back(moves, frame, solid)
    return detections(frame.index, boxes[solid], timestamp_s=frame.seconds, **evidence)


def moves_back(moves: Row, frame: Shown, solid: NDArray[np.bool_]) -> Moves:
    """Moves in source pixels. They start in the frame, so are cut at it there; where they end may lie outside.

    solid: (N,), which of the frame's boxes are kept. Moves from or to a box without area go, and so does a move's
    tie to a box that went.
    """
    start, end, scores, box_id = (moves[name].cpu().numpy() for name in ("start", "end", "scores", "box_id"))
    start = box_ops.clip(start * frame.scale, frame.size).astype(np.float32)
    end = (end * frame.scale).astype(np.float32)
    new_id = np.append(np.where(solid, np.cumsum(solid) - 1, -1), -1)  # (N + 1,): the last for a box_id of -1
    kept = has_area(start) & has_area(end)
    return Moves(
        start[kept],
        end[kept],
        scores[kept].astype(np.float32),
        new_id[box_id[kept]].astype(np.int32),
        int(moves["stride"]),
    )


def has_area(boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which of the boxes (N, 4) have one: (N,)."""
    positive: NDArray[np.bool_] = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
    return positive
