"""A folder of images read as a video, and where files lie: local, or at any fsspec URL."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import IO, Any

import cv2
import fsspec
import numpy as np

from pipeline.decoders import Frame, VideoError
from pipeline.records import Resize, natural_key

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


class ImageReader:
    """The images of a folder, in natural order of their names (2 before 10), as a video's frames.

    Read as 8-bit RGB as they are stored, whatever EXIF says of their orientation; shrunk by area, enlarged by cubic
    interpolation. The first image that can be read gives the size; one that differs is a problem, as are those
    that cannot be read. Raises VideoError where there is no readable image.
    """

    def __init__(self, uri: str, resize: Resize) -> None:
        self.problems: dict[int, str] = {}
        with _as_video_error(uri):
            self._files, folder = fsspec.core.url_to_fs(uri)
            listed = self._files.ls(folder, detail=True)
        found = [(entry["name"], entry.get("size") or 0) for entry in listed if entry["type"] == "file"]
        found = [(name, size) for name, size in found if name.lower().endswith(SUFFIXES)]
        if not found:
            raise VideoError(f"{uri} holds no images; looked for: {', '.join(SUFFIXES)}")
        self.names = sorted((name for name, _ in found), key=natural_key)
        self.bytes = sum(size for _, size in found)
        first = next((image for name in self.names if isinstance(image := self._read(name), np.ndarray)), None)
        if first is None:
            raise VideoError(f"{uri}: none of its {len(self.names)} images can be read")
        self.size: tuple[int, int] = first.shape[:2]
        self.target = resize.target(self.size)

    def frames(self, start: int, stop: int | None) -> Iterator[tuple[int, Frame]]:
        for index in range(start, len(self.names)):
            image = self._read(self.names[index])
            if isinstance(image, str):
                self.problems[index] = image
            elif image.shape[:2] != self.size:
                self.problems[index] = f"its size {image.shape[:2]} is not that of the first image, {self.size}"
            else:
                yield index, self._resized(image)

    def _read(self, name: str) -> Frame | str:
        """The image, or why there is none."""
        try:
            content = np.frombuffer(self._files.cat_file(name), np.uint8)
        except OSError as error:
            return f"{name} cannot be read: {error.strerror or error}"
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        try:
            image = cv2.imdecode(content, flags) if len(content) else None
        except cv2.error:  # more pixels than OpenCV takes
            image = None
        if image is None:
            return f"{name} is not a readable image"
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)

    def _resized(self, image: Frame) -> Frame:
        if self.target == self.size:
            return image
        shrinks = self.target[0] * self.target[1] < self.size[0] * self.size[1]
        method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(image, self.target[::-1], interpolation=method), np.uint8)


def file_size(uri: str) -> int:
    """Size in bytes; raises VideoError where it is no file, or an empty one."""
    with _as_video_error(uri):
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
    with _as_video_error(uri):
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
            with _as_video_error(uri):
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
def _as_video_error(uri: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise VideoError(f"{uri} does not exist") from None
    except OSError as error:
        raise VideoError(f"{uri} cannot be read: {error.strerror or error}") from None
