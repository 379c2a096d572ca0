"""CPU milliseconds a frame of the linkers, records in and records out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from jobs.benchmark_rows import Row, against, cpu_s, peer
from pipeline.boxes import iou
from pipeline.config import load
from pipeline.records import Detections, VideoInfo, detections

VIDEO = VideoInfo("benchmark", "", "folder", kind="rows", fps=30.0)
CLASSES, BOXES, FRAMES = 30, 25, 300
ONLINE = ("online", "sort", "bytetrack", "tracklets", "track_store", "deepsort")


def rows(data: str, slow_peers: bool) -> Iterator[Row]:
    """The offline linkers of class-wise paths, then online association at 20, 100 and 300 detections a frame."""
    frames = many_classes()
    size = f"{FRAMES} frames x {CLASSES} classes x {BOXES} boxes"
    per_frame = 1000 / FRAMES
    yield from against(
        "tubes",
        size,
        "ms/frame",
        per_frame * cpu_s(_linking("tubes", frames)),
        {"plain numpy": lambda: _plain_tubes(frames)},
        per_frame,
    )
    yield from against("seq_nms", size, "ms/frame", per_frame * cpu_s(_linking("seq_nms", frames)), {}, per_frame)
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
    """Its tracker over all frames, its own records made beforehand? No: as its users do, a record a frame."""
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


def _plain_tubes(frames: list[Detections]) -> Callable[[], object]:
    """The K best disjoint paths of each class by Viterbi in plain numpy, with the IoU of neighbours as evidence."""

    def work() -> None:
        for label in range(CLASSES):
            mine = [frame.labels == label for frame in frames]
            boxes = [frame.boxes[chosen] for frame, chosen in zip(frames, mine, strict=True)]
            scores = [frame.scores[chosen].astype(float) for frame, chosen in zip(frames, mine, strict=True)]
            links = [(iou(a, b) >= 0.5).astype(float) for a, b in pairwise(boxes)]
            for _ in range(BOXES):
                best, back = scores[0], []
                for link, score in zip(links, scores[1:], strict=True):
                    total = best[:, None] + link
                    back.append(total.argmax(axis=0))
                    best = total.max(axis=0) + score
                at = int(best.argmax())
                scores[-1][at] = -np.inf
                for index in range(len(back) - 1, -1, -1):
                    at = int(back[index][at])
                    scores[index][at] = -np.inf

    return work
