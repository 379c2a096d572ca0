"""Any frames of a video in any order, the same pixels as inference decodes: what whole datasets are drawn from.

Nothing is kept open from one clip to the next. A video file is decoded from the key frame before the frames that are
wanted; PyAV alone does it, with the index of the file kept here: decord, whose readers would have to stay open, is as
fast or less than a third faster, holds what it read ahead, and can end the process on a damaged file. Where a file has
a key frame every 250, half of them are decoded for each clip on average: it is the codec that makes that slow.
"""

from __future__ import annotations

import posixpath
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline import decoders
from pipeline.decoders import Frame, Header, Index, VideoError
from pipeline.images import Folder, Images, Single, as_video_error, decoded, file_size, opened, resized
from pipeline.parquet_images import ParquetImages
from pipeline.records import Resize, VideoInfo
from pipeline.video import SPARE_FRAMES, promised

SMALL = (16, 16)  # of frames that are only counted


class Pictures(Protocol):
    """A video's frames by number; it can be pickled, and then opens what it needs anew."""

    def __len__(self) -> int:
        """How many frames the file has."""
        ...

    def read(self, indices: Sequence[int], resize: Resize) -> tuple[list[Frame], tuple[int, int]]:
        """These frames, each once, rising: (H, W, 3), and the size of all of them before resizing; VideoError."""
        ...


def pictures(video: VideoInfo, copy: Path) -> Pictures:
    """A video of any kind; raises VideoError where there is none.

    copy: where a remote file is fetched to, to be read from there as often as need be.
    """
    if video.kind == "images":
        return Listed.of(video.uri)
    if video.kind == "image":
        return Still(video.uri)
    if video.kind == "parquet":
        return Rows(ParquetImages(video.uri))
    if video.kind == "rows":
        raise VideoError(f"{video.video_id} has no frames to look at, only rows")
    file_size(video.uri)
    with opened(video.uri) as source:
        if not isinstance(source, str):
            with as_video_error(video.uri), copy.open("wb") as file:
                shutil.copyfileobj(source, file, 2**22)
            source = str(copy)
    return File.of(source, video)


@dataclass(frozen=True)
class File:
    """A local video file, its header and its index. count: of its frames."""

    path: str
    header: Header
    index: Index
    count: int

    @classmethod
    def of(cls, path: str, video: VideoInfo) -> File:
        """Raises VideoError where it is no video, or ends before its header says and the video does.

        Without true presentation times (AVI with B-frames) packets are no count of frames and no clip can be sought:
        the file is then decoded here once, and for each clip from its first frame on.
        """
        header, index = decoders.read_header(path, video.uri), decoders.read_index(path, video.uri)
        if index.is_exact:
            count, declared = len(index), promised(header, index)
            wanted = declared if video.stop is None else min(declared, video.stop)
            if count < wanted - SPARE_FRAMES:
                raise VideoError(f"frame {count} and all after it are missing, of {declared} that the header declares")
            return cls(path, header, index, count)
        reader = decoders.AvReader(path, header, index, SMALL, 1)
        count = sum(1 for _ in reader.frames(0, None))
        for frame, problem in reader.problems.items():
            raise VideoError(f"frame {frame} could not be decoded: {problem}")
        return cls(path, header, index, count)

    def __len__(self) -> int:
        return self.count

    def read(self, indices: Sequence[int], resize: Resize) -> tuple[list[Frame], tuple[int, int]]:
        target = resize.target(self.header.size)
        reader = decoders.AvReader(self.path, self.header, self.index, target, 1)
        found: dict[int, Frame] = {}
        for run in self._runs(indices):
            for index, frame in reader.frames(run[0], run[-1] + 1, only=run):
                found[index] = frame
                if index == run[-1]:
                    break
            for index in run:
                if index not in found:
                    problem = next(iter(reader.problems.values()), "the decoder gave no frame for it")
                    raise VideoError(f"frame {index} could not be decoded: {problem}")
        return [found[index] for index in indices], self.header.size

    def _runs(self, indices: Sequence[int]) -> list[list[int]]:
        """The frames cut where a key frame lies between two of them, to begin at it instead of decoding up to it."""
        key = np.searchsorted(self.index.keys, indices, side="right")
        return [run.tolist() for run in np.split(np.asarray(indices), np.flatnonzero(np.diff(key)) + 1)]


@dataclass(frozen=True)
class Listed:
    """The images of a folder, listed once; a name takes some 20 bytes, as a dataset has millions."""

    uri: str
    names: NDArray[np.bytes_]

    @classmethod
    def of(cls, uri: str) -> Listed:
        """Raises VideoError where it is no folder of images."""
        return cls(uri, np.array([posixpath.basename(name).encode() for name in Folder(uri).names]))

    def __len__(self) -> int:
        return len(self.names)

    def read(self, indices: Sequence[int], resize: Resize) -> tuple[list[Frame], tuple[int, int]]:
        folder = self.uri.rstrip("/")
        return _resized([(index, Single(f"{folder}/{self.names[index].decode()}"), 0) for index in indices], resize)


@dataclass(frozen=True)
class Still:
    """One image, which is not looked at before it is wanted: a dataset has hundreds of thousands."""

    uri: str

    def __len__(self) -> int:
        return 1

    def read(self, indices: Sequence[int], resize: Resize) -> tuple[list[Frame], tuple[int, int]]:
        return _resized([(index, Single(self.uri), 0) for index in indices], resize)


@dataclass(frozen=True)
class Rows:
    """Images in a Parquet file."""

    images: ParquetImages

    def __len__(self) -> int:
        return len(self.images.names)

    def read(self, indices: Sequence[int], resize: Resize) -> tuple[list[Frame], tuple[int, int]]:
        return _resized([(index, self.images, index) for index in indices], resize)


def _resized(wanted: Sequence[tuple[int, Images, int]], resize: Resize) -> tuple[list[Frame], tuple[int, int]]:
    """Frames that are images, by their numbers: each is one of some images, and which of them."""
    found: list[Frame] = []
    for index, images, place in wanted:
        image = decoded(next(images.contents(place)), images.names[place])
        if isinstance(image, str):
            raise VideoError(f"frame {index} could not be decoded: {image}")
        if found and image.shape != found[0].shape:
            one, other = found[0].shape[:2], image.shape[:2]
            raise VideoError(f"frame {wanted[0][0]} is of size {one}, frame {index} of {other}; all must be of one")
        found.append(image)
    height, width = found[0].shape[:2]
    target = resize.target((height, width))
    return [resized(image, target) for image in found], (height, width)
