"""Images read as a video's frames, a folder of them or a single one, and files: local, or at any fsspec URL."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any, Protocol

import cv2
import fsspec
import numpy as np
from numpy.typing import NDArray

from pipeline.decoders import Frame, VideoError
from pipeline.records import Resize, natural_key

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
SIGNATURES = {b"\xff\xd8": "jpeg", b"\x89PNG": "png", b"BM": "bmp", b"RIFF": "webp", b"II*\0": "tiff", b"MM\0*": "tiff"}


class Images(Protocol):
    """Encoded images, in the order in which they are shown.

    names: what each is called where something is wrong with it; total_bytes: of all together.
    times_us: int64 (N,), rising, when each is shown; None where only their order is known.
    """

    names: Sequence[str]
    total_bytes: int
    times_us: NDArray[np.int64] | None

    def contents(self, start: int) -> Iterator[bytes | str]:
        """The images from `start` on as they are stored; for one that cannot be read, why."""
        ...


class Folder:
    """The images of a folder, in natural order of their names (2 before 10)."""

    times_us: NDArray[np.int64] | None = None

    def __init__(self, uri: str) -> None:
        with as_video_error(uri):
            self._files, folder = fsspec.core.url_to_fs(uri)
            listed = self._files.ls(folder, detail=True)
        found = [(entry["name"], entry.get("size") or 0) for entry in listed if entry["type"] == "file"]
        found = [(name, size) for name, size in found if name.lower().endswith(SUFFIXES)]
        if not found:
            raise VideoError(f"{uri} holds no images; looked for: {', '.join(SUFFIXES)}")
        self.names: Sequence[str] = sorted((name for name, _ in found), key=natural_key)
        self.total_bytes = sum(size for _, size in found)

    def contents(self, start: int) -> Iterator[bytes | str]:
        for name in self.names[start:]:
            try:
                yield self._files.cat_file(name)
            except OSError as error:
                yield f"{name} cannot be read: {error.strerror or error}"


class Single:
    """One image file: a video of one frame."""

    times_us: NDArray[np.int64] | None = None

    def __init__(self, uri: str) -> None:
        with as_video_error(uri):
            files, path = fsspec.core.url_to_fs(uri)
            self._content: bytes = files.cat_file(path)
        self.names: Sequence[str] = [uri]
        self.total_bytes = len(self._content)

    def contents(self, start: int) -> Iterator[bytes | str]:
        yield from [self._content][start:]


class ImageReader:
    """Images as a video's frames.

    Read as 8-bit RGB as they are stored, whatever EXIF says of their orientation; shrunk by area, enlarged by cubic
    interpolation. The first image that can be read gives the size; one that differs is a problem, as are those
    that cannot be read. Raises VideoError where there is no readable image.
    """

    def __init__(self, images: Images, resize: Resize) -> None:
        self.problems: dict[int, str] = {}
        self.images = images
        why = ""
        for index, content in enumerate(images.contents(0)):
            image = decoded(content, images.names[index])
            if not isinstance(image, str):
                break
            why = why or image
        else:
            many = len(images.names) > 1
            raise VideoError(f"none of its {len(images.names)} images can be read; {why}" if many else why)
        assert not isinstance(content, str)
        self.codec = next((name for sign, name in SIGNATURES.items() if content.startswith(sign)), "image")
        self._first = (index, image)  # a single image is decoded once
        self.size: tuple[int, int] = image.shape[:2]
        self.target = resize.target(self.size)

    def frames(self, start: int, stop: int | None) -> Iterator[tuple[int, Frame]]:
        for index, content in enumerate(self.images.contents(start), start):
            image = self._first[1] if index == self._first[0] else decoded(content, self.images.names[index])
            if isinstance(image, str):
                self.problems[index] = image
            elif image.shape[:2] != self.size:
                self.problems[index] = f"its size {image.shape[:2]} is not that of the first image, {self.size}"
            else:
                yield index, resized(image, self.target)


def decoded(content: bytes | str, name: str) -> Frame | str:
    """The image in its own size, or why there is none. content: as `Images` gives it; name: as it is called there."""
    if isinstance(content, str):
        return content
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if content else None
    except cv2.error:  # more pixels than OpenCV takes
        image = None
    if image is None:
        return f"{name} is not a readable image"
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def resized(image: Frame, size: tuple[int, int]) -> Frame:
    """The image as large as this, (height, width)."""
    if size == image.shape[:2]:
        return image
    shrinks = size[0] * size[1] < image.shape[0] * image.shape[1]
    return np.asarray(
        cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC), np.uint8
    )


def file_size(uri: str) -> int:
    """Size in bytes; raises VideoError where it is no file, or an empty one."""
    with as_video_error(uri):
        files, path = fsspec.core.url_to_fs(uri)
        entry = files.info(path)
    if entry["type"] != "file":
        raise VideoError(f"{uri} is a folder, not a video file")
    size = entry.get("size")
    if size == 0:
        raise VideoError(f"{uri} is empty: it has 0 bytes")
    return int(size or 0)


@contextlib.contextmanager
def opened(uri: str) -> Iterator[str | IO[bytes]]:
    """A local file's path, or a remote file open for reading, of which only what is read is fetched."""
    with as_video_error(uri):
        files, path = fsspec.core.url_to_fs(uri)
        file = None if _is_local(files) else files.open(path, "rb")
    if file is None:
        yield path
    else:
        with file:
            yield file


@contextlib.contextmanager
def local_copy(uri: str) -> Iterator[str]:
    """A local file's path, or that of a temporary copy of a remote one, deleted afterwards."""
    with opened(uri) as source:
        if isinstance(source, str):
            yield source
            return
        with tempfile.NamedTemporaryFile(prefix="trackloom-", suffix=_suffix(uri)) as copy:
            with as_video_error(uri):
                shutil.copyfileobj(source, copy, 2**22)
                copy.flush()
            yield copy.name


def _is_local(files: Any) -> bool:
    protocol = files.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def _suffix(uri: str) -> str:
    """The file's suffix, from which a container may be guessed; '' where it has none."""
    found = re.search(r"\.\w{1,8}$", uri)
    return found[0] if found else ""


@contextlib.contextmanager
def as_video_error(uri: str) -> Iterator[None]:
    """What a file system says is wrong with a place, as VideoError in one sentence."""
    try:
        yield
    except FileNotFoundError:
        raise VideoError(f"{uri} does not exist") from None
    except OSError as error:
        raise VideoError(f"{uri} cannot be read: {error.strerror or error}") from None
