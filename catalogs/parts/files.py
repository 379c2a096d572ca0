"""Files at any fsspec URL, as a catalog names them: addresses that hold anywhere, and what tells that they changed."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

VIDEOS = (  # endings of files, whatever their case
    ".3gp", ".asf", ".avi", ".flv", ".h264", ".hevc", ".ivf", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
    ".mts", ".mxf", ".nut", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m",
)  # fmt: skip
IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_CHANGED = ("ETag", "etag", "mtime", "LastModified", "created")  # what file systems call it


def address(files: Any, path: str) -> str:
    """A path of a file system as it can be opened from any folder: absolute on a local disk, else a URL."""
    return path if isinstance(files, LocalFileSystem) else str(files.unstrip_protocol(path))


def absolute(uri: str) -> str:
    """What the user wrote, as it can be opened from any folder: workers may have another working directory."""
    return address(*fsspec.core.url_to_fs(uri))


def folder_of(source: str | None, catalog: str, holds: str) -> tuple[Any, str]:
    """The file system of the folder that a catalog reads, and its path there, without a slash at the end.

    holds: what the folder has to hold, for errors. Raises ValueError where no source is given, FileNotFoundError where
    it is no folder.
    """
    if not source:
        raise ValueError(f"the catalog {catalog} needs a folder: the one that holds {holds}")
    files, root = fsspec.core.url_to_fs(str(source))
    if not files.isdir(root):
        raise FileNotFoundError(f"{source} is not a folder; the catalog {catalog} needs the one that holds {holds}")
    return files, str(root).rstrip("/")


def listed(files: Any, folder: str, endings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The entries (`fs.info`) of a folder's files with such endings, by name; none where there is no such folder."""
    entries = files.ls(folder, detail=True) if files.isdir(folder) else []
    named = {posixpath.basename(str(entry["name"])): entry for entry in entries if entry["type"] == "file"}
    return {name: entry for name, entry in named.items() if name.lower().endswith(tuple(endings))}


def identity(entries: Sequence[Mapping[str, Any]]) -> str:
    """What changes when the content of files does, from their entries (`fs.info`): names, sizes, times of change.

    Etags stand for the times where a store has them. The name of a single file does not count.
    """
    entries = sorted(entries, key=lambda entry: str(entry["name"]))
    marks = [f"{entry.get('size')}-{next((entry[key] for key in _CHANGED if key in entry), '')}" for entry in entries]
    if len(marks) == 1:
        return marks[0]
    names = [posixpath.basename(str(entry["name"])) for entry in entries]
    return hashlib.sha256("|".join([*names, *marks]).encode()).hexdigest()[:20]
