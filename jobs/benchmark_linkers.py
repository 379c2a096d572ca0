"""CPU milliseconds a frame of the linkers, records in and records out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs import benchmark_plain
from jobs.benchmark_rows import Row, against, cpu_s, peer, table
from pipeline.config import load
from pipeline.records import Detections, VideoInfo, detections

__all__ = ["rows", "table"]

VIDEO = VideoInfo("benchmark", "", "folder", kind="rows", fps=30.0)
CLASSES, BOXES, FRAMES = 30, 25, 300
ONLINE = ("online", "sort", "bytetrack", "tracklets", "track_store", "deepsort")


def rows(data: str, slow_peers: bool) -> Iterator[Row]:
    """The offline linkers of class-wise paths, then online association at 20, 100 and 300 detections a frame."""
    frames = many_classes()
    size = f"{FRAMES} frames x {CLASSES} classes x {BOXES} boxes"
    whole = 1000 / FRAMES
    peers = {"plain numpy, from one class": lambda: _plain("tubes", benchmark_plain.tubes, frames)}
    yield from against("tubes", size, "ms/frame", whole * cpu_s(_linking("tubes", frames)), peers, whole * CLASSES)
    peers = {"plain numpy, from one class": lambda: _plain("seq_nms", benchmark_plain.sequences, frames, min_length=1)}
    yield from against("seq_nms", size, "ms/frame", whole * cpu_s(_linking("seq_nms", frames)), peers, whole * CLASSES)
    for count, length in ((20, 150), (100, 150), (300, 60)):
        street = crowd(count, length)
        for name in ONLINE:
            peers = _online_peers(name, street, slow_peers)
            ours = 1000 / length * cpu_s(_linking(name, street))
            yield from against(name, f"{count} detections a frame", "ms/frame", ours, peers, 1000 / length)


def many_classes(seed: int = 0) -> list[Detections]:
    """Boxes that move and shake, of any score; as many of each class in each frame."""
    random = np.random.default_rng(seed)
    count = CLASSES * BOXES
    centre, step = random.uniform(0, 1000, (count, 2)), random.normal(0, 3, (count, 2))
    half = random.uniform(20, 80, (count, 2))
    labels = np.repeat(np.arange(CLASSES), BOXES)
    frames = []
    for index in range(FRAMES):
        middle = centre + index * step + random.normal(0, 3, (count, 2))
        boxes = np.concatenate([middle - half, middle + half], axis=1)
        frames.append(detections(index, boxes, random.uniform(0.05, 1, count), labels))
    return frames


def crowd(count: int, length: int, seed: int = 0) -> list[Detections]:
    """About `count` people a frame of a 1920 x 1080 street: one in ten missed, one in twenty false; with embeddings."""
    random = np.random.default_rng(seed)
    centre = random.uniform((0, 0), (1920, 1080), (count, 2))
    step = random.normal(0, 2, (count, 2))
    half = random.uniform(15, 40, count)[:, None] * [1, 2.5]
    faces = random.normal(size=(count, 32))
    frames = []
    for index in range(length):
        seen = random.random(count) > 0.1
        false = random.poisson(count / 20)
        middle = np.concatenate(
            [
                centre + index * step + random.normal(0, 1.5, (count, 2)),
                random.uniform((0, 0), (1920, 1080), (count, 2)),
            ]
        )
        chosen = np.concatenate([np.flatnonzero(seen), count + np.arange(min(false, count))])
        size = np.tile(half, (2, 1))[chosen]
        boxes = np.concatenate([middle[chosen] - size, middle[chosen] + size], axis=1)
        scores = np.where(chosen < count, random.uniform(0.5, 1, len(chosen)), random.uniform(0.1, 0.6, len(chosen)))
        looks = np.concatenate([faces, random.normal(size=(count, 32))])[chosen] + random.normal(
            0, 0.3, (len(chosen), 32)
        )
        frames.append(detections(index, boxes, scores, embeddings=looks))
    return frames


def _linking(name: str, frames: list[Detections]) -> Callable[[], object]:
    linker = load("linker", name)
    settings = linker.Settings()
    return lambda: linker.link(frames, VIDEO, settings)


def _online_peers(
    name: str, frames: list[Detections], slow_peers: bool
) -> dict[str, Callable[[], Callable[[], object]]]:
    """The programs that do what the linker does; `online` is held against all."""
    known = {
        "sort": {"roboflow SORT": lambda: _roboflow("SORTTracker", frames)},
        "bytetrack": {"roboflow ByteTrack": lambda: _roboflow("ByteTrackTracker", frames)},
    }
    if slow_peers:
        known["bytetrack"]["boxmot ByteTrack"] = lambda: _boxmot(frames)
    if name == "online":
        return {label: prepare for peers in known.values() for label, prepare in peers.items()}
    return known.get(name, {})


def _roboflow(tracker: str, frames: list[Detections]) -> Callable[[], object]:
    """Its tracker over all frames, its records made on the way as its users do."""
    make = getattr(peer("trackers", "trackers"), tracker)
    supervision = peer("supervision", "supervision")

    def work() -> None:
        running = make()
        for frame in frames:
            running.update(supervision.Detections(xyxy=frame.boxes, confidence=frame.scores, class_id=frame.labels))

    return work


def _boxmot(frames: list[Detections]) -> Callable[[], object]:
    make = peer("boxmot", "boxmot").ByteTrack
    picture = np.zeros((1080, 1920, 3), np.uint8)

    def work() -> None:
        running = make()
        for frame in frames:
            running.update(np.column_stack([frame.boxes, frame.scores, frame.labels]), picture)

    return work


def _plain(
    name: str, path: Callable[..., NDArray[np.float64]], frames: list[Detections], **settings: Any
) -> Callable[[], object]:
    """The plain version of a linker on the first class alone, which has to find the same paths."""
    mine = [np.flatnonzero(frame.labels == 0) for frame in frames]
    boxes = [frame.boxes[chosen].astype(np.float64) for frame, chosen in zip(frames, mine, strict=True)]
    scores = [frame.scores[chosen].astype(np.float64) for frame, chosen in zip(frames, mine, strict=True)]
    linker = load("linker", name)
    alone = [detections(index, *both) for index, both in enumerate(zip(boxes, scores, strict=True))]
    tracks = linker.link(alone, VIDEO, linker.Settings(**settings))[1]
    ours = np.sort([track.raw_scores.astype(np.float64).sum() for track in tracks])[::-1]

    def work() -> None:
        np.testing.assert_allclose(path(boxes, scores), ours, rtol=1e-6)

    return work
