"""What flows: small frozen records of numpy arrays, checked when made. `schemas` says what tables they become.

Geometry, everywhere: boxes are float32 `xyxy` in pixels of the upright source frame, continuous (width = x2 - x1),
finite, x1 < x2, y1 < y2. Frames are 0-based, ranges half-open, `size = (height, width)`. Labels are 0-based
foreground classes.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Float = NDArray[np.float32]
Int = NDArray[np.int32]

Kind = Literal["video", "images", "image", "parquet", "rows"]

DEFAULT_FPS = 30.0  # where neither a container nor a catalog knows

ORIGINS = ("detected", "tracked", "interpolated")  # of a row of `tracks`: the detector, a re-detection, a linker


@dataclass(frozen=True)
class VideoInfo:
    """One video of a catalog: where it lies and what is known of it before it is opened.

    video_id: path relative to the source's root without suffix, or the sequence's name; unique in a run.
    uri: as `kind` says, at any fsspec URL: a video file (`video`), a folder of images (`images`), a single image, which
        is a video of one frame (`image`), or images in a Parquet file (`parquet`: see `ImageRows`); empty where only
        rows exist (`rows`).
    catalog: the module that listed it, which can read its truth.
    identity: changes when the content does (size and time of change, an etag, a digest).
    truth_uri, detections_uri: where its ground truth and its given detections lie, if anywhere.
    fps: frames a second where the container cannot say (images).
    size: (height, width) where it is known without opening the video.
    start, stop: frames [start, stop) of the file are the video, none else is ever shown; stop None: to its end, and so
        does one beyond it. Frames keep the numbers that they have in the file.
    """

    video_id: str
    uri: str
    catalog: str
    kind: Kind = "video"
    identity: str = ""
    truth_uri: str | None = None
    detections_uri: str | None = None
    fps: float | None = None
    size: tuple[int, int] | None = None
    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        _check(bool(self.video_id), "VideoInfo.video_id is empty; every video needs a name")
        _check(
            self.start >= 0 and (self.stop is None or self.start < self.stop),
            f"VideoInfo [{self.start}, {self.stop}) holds no frame; start must be >= 0, stop above it",
        )

    def holds(self, frame_index: Array) -> NDArray[np.bool_]:
        """Which of these frames of the file (T,) are of the video, as booleans (T,)."""
        return _within(frame_index, self.start, self.stop)


@dataclass(frozen=True)
class ImageRows:
    """The rows of a Parquet file that are a video's frames: those where the column `by` is `value`, in order of time.

    file: its place; image: the column of encoded images (JPEG and the like); time: that of when each was taken, in
    microseconds. As a uri: FILE?image=COLUMN&time=COLUMN&by=COLUMN&value=VALUE.
    """

    file: str
    image: str
    time: str
    by: str
    value: int

    @property
    def uri(self) -> str:
        """What `parse` reads."""
        columns = {"image": self.image, "time": self.time, "by": self.by, "value": self.value}
        return f"{self.file}?{urlencode(columns, safe='[].')}"

    @classmethod
    def parse(cls, uri: str) -> ImageRows:
        """The rows that a uri names; raises ValueError where it names none."""
        file, _, query = uri.rpartition("?")
        given = dict(parse_qsl(query))
        _check(
            bool(file) and set(given) == {"image", "time", "by", "value"},
            f"{uri} names no images in a Parquet file; it must be FILE?image=COLUMN&time=COLUMN&by=COLUMN&value=VALUE",
        )
        return cls(file, given["image"], given["time"], given["by"], int(given["value"]))


@dataclass(frozen=True)
class ClipRef:
    """Frames [start, stop) of a video, which this clip owns, and the neighbours it is shown besides.

    The owned ranges of a video's clips partition it. `stop` None is the video's end, whatever the header promised:
    the last clip of every video. before, after: frames shown in addition, so that a network has its context and
    `stitch` has frames that two clips share; they are cut at the video's ends, also where the file goes on.
    """

    video: VideoInfo
    start: int = 0
    stop: int | None = None
    before: int = 0
    after: int = 0

    def __post_init__(self) -> None:
        _check(self.start >= 0, f"ClipRef.start is {self.start}; it must be >= 0")
        _check(
            self.stop is None or self.stop > self.start,
            f"ClipRef [{self.start}, {self.stop}) owns no frame; stop must be above start",
        )

    @property
    def first_shown(self) -> int:
        """Index of the first frame decoded for this clip."""
        return max(self.video.start, self.start - self.before)

    @property
    def end_shown(self) -> int | None:
        """Index after the last frame decoded for this clip; None for the video's end."""
        if self.stop is None or self.video.stop is None:
            return self.video.stop if self.stop is None else self.stop + self.after
        return min(self.stop + self.after, self.video.stop)

    def owns(self, frame_index: Array) -> NDArray[np.bool_]:
        """Which of these frame indices (T,) the clip owns, as booleans (T,)."""
        return _within(frame_index, self.start, self.stop) & self.video.holds(frame_index)

    @property
    def clip_id(self) -> str:
        """A name that is the same for the same frames of the same content, and fit for a file name."""
        video = self.video
        key = f"{video.video_id}|{video.identity}|{video.start}|{video.stop}|"
        key += f"{self.start}|{self.stop}|{self.before}|{self.after}"
        return hashlib.sha256(key.encode()).hexdigest()[:20]


@dataclass(frozen=True)
class Resize:
    """How large a network wants its frames. At most one of the two ways is given; neither leaves them as they are.

    size: exactly (height, width), whatever the aspect (SSD).
    short_side, long_side: scaled, aspect kept, until the short side is short_side or the long one long_side
    (Faster R-CNN); enlarges too.
    """

    size: tuple[int, int] | None = None
    short_side: int | None = None
    long_side: int | None = None

    def __post_init__(self) -> None:
        _check(
            self.size is None or (self.short_side is None and self.long_side is None),
            "Resize has both size and short_side/long_side; give one of the two",
        )

    def target(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) that a frame of `size` is given."""
        if self.size is not None:
            return self.size
        height, width = size
        limits = [
            limit / side
            for limit, side in ((self.short_side, min(size)), (self.long_side, max(size)))
            if limit is not None
        ]
        scale = min(limits, default=1.0)
        return max(1, round(height * scale)), max(1, round(width * scale))


@dataclass(frozen=True)
class Clip:
    """Decoded frames of (a chunk of) a clip.

    frames: uint8 (T, 3, H, W), RGB, resized and upright; frame_index: int32 (T,), display order;
    timestamp_s: float64 (T,), true presentation times; size: (height, width) of the upright source frame.
    error: why the clip ended before its stop, in one sentence; only on its last chunk (which may hold no frame).
    """

    ref: ClipRef
    frames: NDArray[np.uint8]
    frame_index: Int
    timestamp_s: NDArray[np.float64]
    size: tuple[int, int]
    error: str | None = None

    def __post_init__(self) -> None:
        count = len(self.frame_index)
        _check(
            self.frames.ndim == 4 and self.frames.shape[1] == 3 and self.frames.dtype == np.uint8,
            f"Clip.frames are {self.frames.dtype} {self.frames.shape}; they must be uint8 (T, 3, H, W)",
        )
        _check(
            len(self.frames) == count == len(self.timestamp_s),
            f"Clip has {len(self.frames)} frames, {count} indices and {len(self.timestamp_s)} times; "
            "there must be one of each a frame",
        )


@dataclass(frozen=True)
class Moves:
    """Where boxes of one frame are `stride` frames on: evidence for linkers (D&T's tracks, PnP's predictions).

    start, end: float32 (M, 4); scores: float32 (M,); box_id: int32 (M,), the detection that moved, -1 if none;
    stride: at least 1.
    """

    start: Float
    end: Float
    scores: Float
    box_id: Int
    stride: int = 1

    def __post_init__(self) -> None:
        _same_length("Moves", start=self.start, end=self.end, scores=self.scores, box_id=self.box_id)
        _check(self.stride >= 1, f"Moves.stride is {self.stride}; it must be at least 1: moves lead forward in time")


@dataclass(frozen=True)
class Detections:
    """What a network saw in one frame.

    boxes: float32 (N, 4) xyxy; scores: float32 (N,) in [0, 1] (linkers may rescore above 1); labels: int16 (N,);
    box_id: int32 (N,), unique in the frame. The rest is optional evidence:
    class_scores: float32 (N, C + 1), background first; embeddings: float32 (N, E); tracklet_id: int32 (N,), the
    model's own identity of each box, -1 where it has none; tracked: bool (N,), the box is a track's re-detection;
    moves: where boxes go next.
    """

    frame_index: int
    boxes: Float
    scores: Float
    labels: NDArray[np.int16]
    box_id: Int
    timestamp_s: float = 0.0
    class_scores: Float | None = None
    embeddings: Float | None = None
    tracklet_id: Int | None = None
    tracked: NDArray[np.bool_] | None = None
    moves: Moves | None = None

    def __post_init__(self) -> None:
        check_boxes(self.boxes, f"Detections of frame {self.frame_index}")
        given = {
            name: value
            for name in ("scores", "labels", "box_id", "class_scores", "embeddings", "tracklet_id", "tracked")
            if (value := getattr(self, name)) is not None
        }
        _same_length(f"Detections of frame {self.frame_index}", boxes=self.boxes, **given)

    def __len__(self) -> int:
        return len(self.boxes)

    def evidence(self) -> frozenset[str]:
        """The names of the optional evidence that is here."""
        return frozenset(name for name in EVIDENCE if getattr(self, name) is not None)


EVIDENCE = ("class_scores", "embeddings", "tracklet_id", "moves")


def detections(
    frame_index: int,
    boxes: object = (),
    scores: object = (),
    labels: object = None,
    **evidence: object,
) -> Detections:
    """Makes `Detections` from anything array-like; labels default to 0, box_id to 0..N-1."""
    box_array = np.asarray(boxes, np.float32).reshape(-1, 4)
    count = len(box_array)
    types = {
        "class_scores": np.float32,
        "embeddings": np.float32,
        "tracklet_id": np.int32,
        "tracked": np.bool_,
    }
    given = {name: np.asarray(value, types.get(name)) if name in types else value for name, value in evidence.items()}
    return Detections(
        frame_index=frame_index,
        boxes=box_array,
        scores=np.asarray(scores, np.float32).reshape(-1),
        labels=np.zeros(count, np.int16) if labels is None else np.asarray(labels, np.int16).reshape(-1),
        box_id=np.asarray(given.pop("box_id", np.arange(count)), np.int32),
        **given,  # type: ignore[arg-type]
    )


@dataclass(frozen=True)
class Track:
    """One object through a video.

    track_id: >= 1, unique in its video; label: its class; score: of the track as a whole.
    frame_index: int32 (T,), strictly rising; boxes: float32 (T, 4); scores, raw_scores: float32 (T,), after and
    before rescoring; box_id: int32 (T,), the detection each box is, -1 for one that the linker made;
    tracked: bool (T,), the box is a re-detection.
    """

    track_id: int
    label: int
    score: float
    frame_index: Int
    boxes: Float
    scores: Float
    raw_scores: Float
    box_id: Int
    tracked: NDArray[np.bool_]

    def __post_init__(self) -> None:
        what = f"Track {self.track_id}"
        _check(self.track_id >= 1, f"Track.track_id is {self.track_id}; ids start at 1")
        _same_length(
            what,
            frame_index=self.frame_index,
            boxes=self.boxes,
            scores=self.scores,
            raw_scores=self.raw_scores,
            box_id=self.box_id,
            tracked=self.tracked,
        )
        _check(
            bool((self.frame_index[1:] > self.frame_index[:-1]).all()),
            f"{what} does not rise strictly in time; a track has one box a frame",
        )
        check_boxes(self.boxes, what)

    def __len__(self) -> int:
        return len(self.frame_index)


def check_boxes(boxes: Array, what: str) -> None:
    """Raises ValueError unless boxes are (N, 4), finite, with x1 < x2 and y1 < y2."""
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{what}: boxes have shape {boxes.shape}; it must be (N, 4)")
    good = np.isfinite(boxes)
    good[:, :2] &= boxes[:, :2] < boxes[:, 2:]
    if not good.all():
        worst = int(np.argmin(good.all(axis=1)))
        raise ValueError(
            f"{what}: box {worst} is {boxes[worst].tolist()}; boxes are finite xyxy with x1 < x2 and y1 < y2"
        )


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts digits by their value: frame2 before frame10. The order of the images of a folder."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def unique_ids(videos: Sequence[VideoInfo]) -> list[VideoInfo]:
    """The videos, sorted by id; raises ValueError where two share one."""
    ordered = sorted(videos, key=lambda video: video.video_id)
    for one, other in itertools.pairwise(ordered):
        if one.video_id == other.video_id:
            raise ValueError(
                f"two videos are both called {one.video_id!r}: {one.uri} and {other.uri}; rename one or run them apart"
            )
    return ordered


def _within(frame_index: Array, start: int, stop: int | None) -> NDArray[np.bool_]:
    """Which of these (T,) lie in [start, stop)."""
    within: NDArray[np.bool_] = frame_index >= start
    return within if stop is None else within & (frame_index < stop)


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def _same_length(what: str, **arrays: Array) -> None:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{what}: lengths differ, {lengths}; there must be one row a box")
