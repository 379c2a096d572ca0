"""The pixels of the report: an annotated video, crops of its longest tracks, and single frames."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from jobs.report_draw import EMPTY, Canvas, Picture, draw, size_of_picture
from jobs.report_scene import Boxes, Scene
from pipeline.records import DEFAULT_FPS, ClipRef, Resize, VideoInfo
from pipeline.video import VideoError, decode, kind_of, probe

MAX_FRAMES = 600  # of a video that are drawn
CROPPED_TRACKS = 12
CROP_SIDE = 112
_TIME_BASE = Fraction(1, 90_000)  # fine enough for any frame rate, and usual in containers
_ENCODING = {"crf": "21", "preset": "veryfast", "movflags": "+faststart"}


@dataclass(frozen=True)
class Crops:
    """The first, middle and last box of a track, cut out: (frame, image as a data URI) of each."""

    track_id: int
    name: str
    length: int
    pictures: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Drawn:
    """A video as drawn: the mp4, when each of its frames is shown (seconds), its size, and crops.

    note: why there are no pixels, or why they end early, in a sentence; has_pixels: whether there are any.
    """

    mp4: bytes
    times: tuple[float, ...]
    size: tuple[int, int]
    crops: tuple[Crops, ...]
    has_pixels: bool
    note: str | None = None


@dataclass(frozen=True)
class _Source:
    """Frames of a video as pictures: (frame index, time in seconds, picture), and how boxes come to lie on them."""

    canvas: Canvas
    fps: float
    pictures: Iterator[tuple[int, float, Picture]]
    problems: list[str]  # filled once the pictures are used up


def annotate(scene: Scene, max_frames: int = MAX_FRAMES) -> Drawn:
    """Draws the first frames of a video; on empty ones where it has no pixels (any more)."""
    stop = scene.start + max_frames
    try:
        source = _decoded(scene.video, scene.start, stop)
        first = next(source.pictures, None)
        why = None if first else (source.problems or ["not one frame of it could be decoded"])[0]
    except VideoError as error:
        first, why = None, str(error)
    if first is None:
        source = _empty(scene, stop)
        first = next(source.pictures)
    wanted = _crops_of(scene.tracks, stop) if why is None else {}
    cut: dict[tuple[int, int], str] = {}  # by track and frame
    times = []
    with tempfile.TemporaryDirectory(prefix="trackloom-") as folder:
        path = Path(folder) / "annotated.mp4"
        with _Writer(path, source.canvas.target, source.fps) as writer:
            for frame, time, picture in _chain(first, source.pictures):
                for row in wanted.get(frame, ()):
                    cut[int(scene.tracks.ids[row]), frame] = _crop(picture, scene.tracks.boxes[row], source.canvas)
                draw(picture, scene, frame, time, source.canvas)
                writer.add(picture, time)
                times.append(time)
        content = path.read_bytes()
    note = why or (source.problems[0] if source.problems else None)
    start = times[0]
    return Drawn(
        mp4=content,
        times=tuple(round(time - start, 4) for time in times),
        size=source.canvas.target,
        crops=_sheet(scene.tracks, cut),
        has_pixels=why is None,
        note=note,
    )


def still(scene: Scene, frame: int) -> str | None:
    """One frame with its boxes as a data URI; None where it cannot be decoded."""
    try:
        source = _decoded(scene.video, frame, frame + 1)
    except VideoError:
        return None
    for index, time, picture in source.pictures:
        draw(picture, scene, index, time, source.canvas)
        return data_uri(picture)
    return None


def data_uri(picture: Picture, quality: int = 82) -> str:
    """A picture as JPEG that a page can hold."""
    _, content = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return "data:image/jpeg;base64," + base64.b64encode(content.tobytes()).decode()


def _decoded(row: Mapping[str, Any], start: int, stop: int) -> _Source:
    """Frames [start, stop) of a video, as its row of `videos` describes it; VideoError where it cannot be opened."""
    if not row["uri"]:
        raise VideoError("the run was made from stored boxes, without a video")
    video = _video(row)
    size = probe(video).size
    canvas = Canvas(size, size_of_picture(size))
    problems: list[str] = []

    def pictures() -> Iterator[tuple[int, float, Picture]]:
        for clip in decode([ClipRef(video, start, stop)], Resize(size=canvas.target), chunk_frames=32):
            for index, time, frame in zip(clip.frame_index, clip.timestamp_s, clip.frames, strict=True):
                yield int(index), float(time), np.ascontiguousarray(frame.transpose(1, 2, 0))
            problems.extend([clip.error] if clip.error else [])

    return _Source(canvas, row["fps"] or video.fps or DEFAULT_FPS, pictures(), problems)


def _video(row: Mapping[str, Any]) -> VideoInfo:
    """The video that a row of `videos` describes."""
    start, stop = row.get("start") or 0, row.get("stop")  # which runs of old do not have
    return VideoInfo(
        row["video_id"], row["uri"], row["catalog"] or "", kind_of(row["uri"]), fps=row["fps"], start=start, stop=stop
    )  # fmt: skip


def _empty(scene: Scene, stop: int) -> _Source:
    """Empty pictures, as large as the video is known to be, else as its boxes need, at its rate."""
    row = scene.video
    size = (row["height"], row["width"])
    if not all(size):
        boxes = [side.boxes for side in (scene.tracks, scene.truth) if side is not None and len(side)]
        far = np.concatenate(boxes).max(axis=0) if boxes else np.array([0, 0, 640, 480])
        size = (max(1, round(float(far[3]))), max(1, round(float(far[2]))))
    canvas = Canvas(size, size_of_picture(size))
    fps = row["fps"] or DEFAULT_FPS
    pictures = (
        (frame, frame / fps, np.full((*canvas.target, 3), EMPTY, np.uint8))
        for frame in range(scene.start, min(scene.start + scene.length, stop))
    )
    return _Source(canvas, fps, pictures, [])


def _chain(
    first: tuple[int, float, Picture], rest: Iterator[tuple[int, float, Picture]]
) -> Iterator[tuple[int, float, Picture]]:
    yield first
    yield from rest


class _Writer:
    """An mp4 in H.264 yuv420p, which every browser plays; frames keep their true times."""

    def __init__(self, path: Path, size: tuple[int, int], fps: float) -> None:
        self.container = av.open(str(path), "w", format="mp4")
        rate = Fraction(fps).limit_denominator(1001)
        self.stream = self.container.add_stream("libx264", rate=rate, options=_ENCODING)
        self.stream.height, self.stream.width = size
        self.stream.pix_fmt = "yuv420p"
        self.stream.codec_context.time_base = _TIME_BASE
        self.start: float | None = None
        self.last = -1

    def __enter__(self) -> _Writer:
        return self

    def add(self, picture: Picture, time: float) -> None:
        self.start = time if self.start is None else self.start
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        self.last = max(self.last + 1, round((time - self.start) / _TIME_BASE))
        frame.pts, frame.time_base = self.last, _TIME_BASE
        self.container.mux(self.stream.encode(frame))

    def __exit__(self, *_: object) -> None:
        self.container.mux(self.stream.encode())
        self.container.close()


def _crops_of(boxes: Boxes, stop: int) -> dict[int, list[int]]:
    """The rows to be cut out of each frame: first, middle and last of each of the longest tracks."""
    shown = {track: rows[boxes.frame[rows] < stop] for track, rows in boxes.tracks().items()}
    longest = sorted(shown.values(), key=len, reverse=True)[:CROPPED_TRACKS]
    wanted: dict[int, list[int]] = {}
    for rows in longest:
        for row in sorted({rows[0], rows[len(rows) // 2], rows[-1]} if len(rows) else ()):
            wanted.setdefault(int(boxes.frame[row]), []).append(int(row))
    return wanted


def _sheet(boxes: Boxes, cut: dict[tuple[int, int], str]) -> tuple[Crops, ...]:
    """Crops by track, longest first."""
    tracks = boxes.tracks()
    found = {track: rows for track, rows in tracks.items() if any(key[0] == track for key in cut)}
    return tuple(
        Crops(
            track_id=track,
            name=boxes.names[rows[0]],
            length=len(rows),
            pictures=tuple((frame, uri) for (owner, frame), uri in sorted(cut.items()) if owner == track),
        )
        for track, rows in sorted(found.items(), key=lambda item: -len(item[1]))
    )


def _crop(picture: Picture, box: NDArray[np.float32], canvas: Canvas) -> str:
    """A square of the picture around a box, with a little of what surrounds it."""
    height, width = picture.shape[:2]
    x1, y1, x2, y2 = canvas.corners(box)
    side = min(max(8, round(1.25 * max(x2 - x1, y2 - y1))), height, width)
    left = min(max(0, round((x1 + x2 - side) / 2)), width - side)
    top = min(max(0, round((y1 + y2 - side) / 2)), height - side)
    method = cv2.INTER_AREA if side > CROP_SIDE else cv2.INTER_CUBIC
    cut = cv2.resize(picture[top : top + side, left : left + side], (CROP_SIDE, CROP_SIDE), interpolation=method)
    return data_uri(np.asarray(cut, np.uint8))
