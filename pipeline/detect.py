"""The worker that holds a network: frames in, rows out. With `pipeline.training` the only place that touches torch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from pipeline import boxes as box_ops
from pipeline.clips import Decoded, Part, Unit, chunked, clips_of
from pipeline.config import load, settings
from pipeline.records import Clip, ClipRef, Detections, Resize, detections
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
            start = time.perf_counter()
            for ref, chunks in clips_of(item, self.resize, self.chunk_frames):
                yield self.part(ref, chunks, time.perf_counter() - start)  # a clip comes with its first chunk decoded
                start = time.perf_counter()

    def part(self, ref: ClipRef, chunks: Iterable[Clip], decode_s: float) -> Part:
        """All that the network sees in one clip. An exception here is the clip's: what was seen before it is kept."""
        frames: list[Detections] = []
        stage, error, memory, detect_s = None, None, None, 0.0
        start = time.perf_counter()
        try:
            for chunk in chunks:
                if chunk.error is not None:
                    stage, error = "decode", chunk.error
                before = time.perf_counter()
                seen, memory = self.see(chunk, memory)
                frames += seen
                detect_s += time.perf_counter() - before
        except Exception as exception:
            stage, error = "detect", why(exception)
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
    def see(self, clip: Clip, memory: object) -> tuple[list[Detections], object]:
        """Detections of a chunk's frames in source pixels, and the memory after it."""
        if not len(clip.frames):
            return [], memory
        # Decoded frames are channels last in memory; those that travelled are made so again, for the same sums.
        frames = torch.from_numpy(clip.frames).contiguous(memory_format=torch.channels_last).to(self.device)
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
