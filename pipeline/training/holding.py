"""How labelled frames are held: decoded once where they fit, or when they are drawn.

Both ways give the same pixels, those that inference gives, so a training does not depend on which one it is.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.images import Folder
from pipeline.records import ClipRef, Resize, VideoInfo
from pipeline.training.frames import Frames, OfVideos
from pipeline.training.labelled import Labelled, Material
from pipeline.training.pictures import pictures
from pipeline.training.settings import Training
from pipeline.video import VideoError, decode, probe

CHUNK_FRAMES = 64  # decoded at once
LOOKED_INTO = 20  # videos whose frame size is asked of a file, where a catalog does not know it
FREE_SHARE = 0.9  # of the free disk that decoded frames may take
SAID_S = 30.0  # between two lines that say how far the decoding is before the first step


def sources(training: Training, material: Material, resize: Resize, folder: Path) -> list[Frames]:
    """The frames of the videos and of the stills, if there are any. folder: a worker's own, for as long as it trains.

    Raises ValueError where a video cannot be decoded, as far as that shows before its frames are wanted.
    """
    found: list[Frames] = []
    for source, holding in zip(material.sources, holdings(training, material, resize), strict=True):
        own = folder / f"source-{len(found)}"
        own.mkdir()
        found.append((Cached if holding.is_cached else OnDemand)(source, resize, own))
    return found


@dataclass(frozen=True)
class Holding:
    """How the frames of a source are held, and how large they are decoded; by headers, so nearly."""

    frames: int
    gigabytes: float
    is_cached: bool
    limit: float

    def __str__(self) -> str:
        if self.is_cached:
            return f"{self.frames:,} frames, decoded once ({self.gigabytes:.2g} GB)"
        return (
            f"{self.frames:,} frames, decoded when drawn, as their {self.gigabytes:,.2g} GB are more than the "
            f"{self.limit:.2g} that cache_gigabytes leaves"
        )


def holdings(training: Training, material: Material, resize: Resize) -> list[Holding]:
    """How each source of a training is held: decoded once where it fits, the videos before the stills.

    Video files are opened for their headers, folders of images listed; a still is not looked at. Raises ValueError
    where a video cannot be opened.
    """
    free = shutil.disk_usage(tempfile.gettempdir()).free * FREE_SHARE / 1e9
    left, found = min(training.cache_gigabytes, free), []
    for source in material.sources:
        frames, size = measured(source.videos, resize)
        found.append(Holding(frames, size / 1e9, size / 1e9 <= left, left))
        left -= size / 1e9 if found[-1].is_cached else 0
    return found


def measured(videos: Sequence[VideoInfo], resize: Resize) -> tuple[int, float]:
    """How many frames videos have by their headers, and how many bytes they take decoded.

    Where neither catalog nor header tells the size of a frame, it is that of some of the videos, on average.
    """
    counts, sizes = [], []
    for video in videos:
        count, size = _header(video)
        counts.append(max(0, min(count, count if video.stop is None else video.stop) - video.start))
        sizes.append(size)
    unknown = [video for video, size in zip(videos, sizes, strict=True) if size is None]
    step = max(1, len(unknown) // LOOKED_INTO)
    looked = [_area(resize.target(_probed(video)[1])) for video in unknown[::step]]
    mean = sum(looked) / max(1, len(looked))
    areas = [mean if size is None else _area(resize.target(size)) for size in sizes]
    return sum(counts), float(np.dot(counts, areas)) * 3


def frame_size(video: VideoInfo) -> tuple[int, int]:
    """The (height, width) of a video's frames, of the file where the catalog does not know it; ValueError as above."""
    return video.size or _probed(video)[1]


def _header(video: VideoInfo) -> tuple[int, tuple[int, int] | None]:
    """How many frames a file has, and their size if that can be told without decoding one."""
    if video.kind == "image":
        return 1, video.size
    if video.kind == "images":
        try:
            return len(Folder(video.uri).names), video.size
        except VideoError as error:
            raise _unfit(video, error) from None
    return _probed(video)


def _probed(video: VideoInfo) -> tuple[int, tuple[int, int]]:
    try:
        found = probe(video)
    except VideoError as error:
        raise _unfit(video, error) from None
    return found.frames_declared or 0, found.size


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


class Cached(OfVideos):
    """Frames decoded once, into a file that is read as if it were memory; how far that is goes to stderr."""

    def __init__(self, material: Labelled, resize: Resize, folder: Path) -> None:
        self.path = folder / "frames"
        self.sizes: list[tuple[tuple[int, int], tuple[int, int]]] = []  # of each video: of the frames, and before
        self.offsets: list[int] = []  # of each video in the file
        counts: list[int] = []
        said = time.monotonic()
        with self.path.open("wb") as file:
            for video in material.videos:
                self.offsets.append(file.tell())
                counts.append(0)
                for clip in decode([ClipRef(video, video.start, video.stop)], resize, CHUNK_FRAMES):
                    if clip.error:
                        raise _unfit(video, clip.error)
                    expected = video.start + counts[-1] + np.arange(len(clip.frames))
                    assert np.array_equal(clip.frame_index, expected), "frames are missing, and no error says so"
                    clip.frames.tofile(file)
                    counts[-1] += len(clip.frames)
                    height, width = clip.frames.shape[2:]
                    if time.monotonic() - said >= SAID_S:
                        said, done = time.monotonic(), f"{len(counts):,} of {len(material.videos):,} videos"
                        print(f"decoded {sum(counts):,} frames, {done}", file=sys.stderr, flush=True)
                self.sizes.append(((height, width), clip.size))
        super().__init__(material, counts)

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """The whole file."""
        return np.memmap(self.path, np.uint8, "r")

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "pixels"}  # opened anew elsewhere

    def read(self, video: int, places: list[int]) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        (height, width), before = self.sizes[video]
        count = int(self.first[video + 1] - self.first[video])
        stop = self.offsets[video] + count * 3 * height * width
        frames = self.pixels[self.offsets[video] : stop].reshape(count, 3, height, width)
        return np.asarray(frames[places]), before  # a copy already, as of all that is chosen by numbers


class OnDemand(OfVideos):
    """Frames decoded when they are asked for. Remote video files are fetched at first, as counting reads them whole."""

    def __init__(self, material: Labelled, resize: Resize, folder: Path) -> None:
        self.resize = resize
        self.pictures, counts = [], []
        for number, video in enumerate(material.videos):
            try:
                self.pictures.append(pictures(video, folder / f"video-{number}"))
            except VideoError as error:
                raise _unfit(video, error) from None
            there = len(self.pictures[-1])
            counts.append(min(there, there if video.stop is None else video.stop) - video.start)
            if counts[-1] <= 0:
                raise _unfit(video, f"it has {there} frames, and the range that is asked for begins after them")
        super().__init__(material, counts)

    def read(self, video: int, places: list[int]) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        start = self.infos[video].start
        try:
            frames, before = self.pictures[video].read([start + place for place in places], self.resize)
        except VideoError as error:
            raise _unfit(self.infos[video], error) from None
        return np.ascontiguousarray(np.stack(frames).transpose(0, 3, 1, 2)), before


def _unfit(video: VideoInfo, why: object) -> ValueError:
    return ValueError(f"video {video.video_id} cannot be trained on: {why}")
