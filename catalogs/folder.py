"""Any videos: a file, a folder and what lies below it, a quoted glob, a list file, or folders of images.

A folder whose files are images is one video; a folder above such folders is a dataset of them; an image named by
itself is a video of one frame. Everything may lie at any fsspec URL. A list is a `.txt` file with one path a line,
relative to it, or several sources with commas between.
Nothing is known of what the videos show: there is no truth.
"""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa

from catalogs.parts.files import IMAGES, VIDEOS, address, identity
from pipeline.records import Kind, VideoInfo, unique_ids

CLASSES: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """suffixes: of the files that are taken for videos in a folder; one named by itself or in a list always is.

    fps: frames a second of folders of images.
    """

    suffixes: tuple[str, ...] = VIDEOS
    fps: float | None = None

    def __post_init__(self) -> None:
        if self.fps is not None and not 0 < self.fps < 10_000:
            raise ValueError(f"folder.fps is {self.fps}; it must be above 0")


def videos(source: str | Sequence[str] | None, settings: Settings | None = None) -> list[VideoInfo]:
    """The videos of the source, sorted by id; opens none of them.

    video_id is the path below the source's root (the folder given, the fixed part of a glob, what the entries of a
    list share) without its suffix, with slashes. Raises FileNotFoundError where the source does not exist or
    holds no video, ValueError where two videos would share an id.
    """
    if not source:
        raise ValueError("the catalog folder needs videos: a file, folder, quoted glob, list file or folder of images")
    settings = settings or Settings()
    given = _separate(source)
    found = [pair for each in given for pair in _expand(each, settings)]
    if len(given) > 1:
        found = _below_shared_root(found)
    return unique_ids([video for _, video in found])


def truth(video: VideoInfo) -> pa.Table | None:
    """None: nothing is known of the user's own videos."""
    return None


Found = list[tuple[str, VideoInfo]]  # the video's full path, and the video


def _separate(source: str | Sequence[str]) -> list[str]:
    """One source a string; a path that exists is one, whatever commas are in it."""
    if not isinstance(source, str):
        return [str(each) for each in source]
    if "\n" in source:  # as the command line joins what it was given
        return [part for part in source.split("\n") if part]
    files, path = fsspec.core.url_to_fs(source)
    if "," not in source or files.exists(path):
        return [source]
    return [part.strip() for part in source.split(",") if part.strip()]


def _expand(source: str, settings: Settings) -> Found:
    files, path = fsspec.core.url_to_fs(source)
    if files.isdir(path):
        return _in_folder(files, path, source, settings)
    if files.exists(path):
        return _listed(files, path, settings) if path.endswith(".txt") else [_named(files, path, path)]
    if any(sign in path for sign in "*?["):
        return _in_glob(files, path, source, settings)
    raise FileNotFoundError(f"{source} does not exist{_near(files, path)}")


def _in_folder(files: Any, root: str, source: str, settings: Settings) -> Found:
    """All videos and folders of images at and below a folder, but for those that runs among them hold."""
    root = root.rstrip("/")
    entries = [entry for entry in files.find(root, detail=True).values() if not _is_hidden(entry["name"], root)]
    runs = tuple(entry["name"].removesuffix("run.json") for entry in entries if entry["name"].endswith("/run.json"))
    entries = [entry for entry in entries if not entry["name"].startswith(runs)]
    found = [_video(files, entry, root) for entry in entries if entry["name"].lower().endswith(settings.suffixes)]
    folders: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        if entry["name"].lower().endswith(IMAGES):
            folders.setdefault(posixpath.dirname(entry["name"]), []).append(entry)
    beside = {posixpath.dirname(path) for path, _ in found}  # a poster beside a video is no video
    found += [
        _images(files, folder, members, root, settings) for folder, members in folders.items() if folder not in beside
    ]
    if not found:
        raise FileNotFoundError(
            f"{source} holds no video among its {len(entries)} files{_suffixes(entries)}; looked for "
            f"{_some(settings.suffixes)} and folders of images ({', '.join(IMAGES)})"
        )
    return found


def _in_glob(files: Any, pattern: str, source: str, settings: Settings) -> Found:
    """What a pattern matches: files by their suffix, folders as folders of images or of videos."""
    fixed = pattern[: min(pattern.index(sign) for sign in "*?[" if sign in pattern)]
    root = posixpath.dirname(fixed)
    matches = files.glob(pattern, detail=True)
    found: Found = []
    for path, entry in sorted(matches.items()):
        if entry["type"] == "file" and path.lower().endswith(settings.suffixes):
            found.append(_video(files, entry, root))
        elif entry["type"] == "directory":
            images = [e for e in files.ls(path, detail=True) if e["name"].lower().endswith(IMAGES)]
            found += [_images(files, path, images, root, settings)] if images else []
    if not found:
        raise FileNotFoundError(
            f"{source} matches {len(matches)} files and folders, none of them a video{_suffixes(matches.values())}; "
            f"looked for {_some(settings.suffixes)} and folders of images"
        )
    return found


def _listed(files: Any, path: str, settings: Settings) -> Found:
    """The sources that a list file names, one a line; empty lines and those that start with # are left out."""
    lines = [line.strip() for line in files.cat_file(path).decode().splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise FileNotFoundError(f"{path} lists no video; it must hold one path a line")
    here = posixpath.dirname(path)
    found: Found = []
    for line in lines:
        target = line if "://" in line else files.unstrip_protocol(posixpath.normpath(posixpath.join(here, line)))
        try:
            found += _expand(target, settings)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path} lists {line}, but {error}") from None
    return _below_shared_root(found)


def _below_shared_root(found: Found) -> Found:
    """The same videos, named by their paths below the folder that all of them lie in."""
    if len({path for path, _ in found}) < len(found):
        found = list(dict(found).items())  # the same video named twice is one
    root = posixpath.commonpath([posixpath.dirname(path) for path, _ in found])
    return [
        (path, VideoInfo(**{**vars(video), "video_id": _id(path, root, video.kind != "images")}))
        for path, video in found
    ]


def _named(files: Any, path: str, name: str) -> tuple[str, VideoInfo]:
    """A file given by name, taken whatever its suffix."""
    return _video(files, {**files.info(path), "name": name}, posixpath.dirname(path))


def _video(files: Any, entry: dict[str, Any], root: str) -> tuple[str, VideoInfo]:
    path = entry["name"]
    uri = address(files, path)
    kind: Kind = "image" if path.lower().endswith(IMAGES) else "video"
    return path, VideoInfo(_id(path, root, True), uri, "folder", kind, identity=identity([entry]))


def _images(
    files: Any, folder: str, entries: list[dict[str, Any]], root: str, settings: Settings
) -> tuple[str, VideoInfo]:
    name = _id(folder, root, False) if folder.rstrip("/") != root else posixpath.basename(root)
    return folder, VideoInfo(
        name, address(files, folder), "folder", "images", identity=identity(entries), fps=settings.fps
    )


def _id(path: str, root: str, has_suffix: bool) -> str:
    below = posixpath.relpath(path, root or ".") if root else path.lstrip("/")
    return posixpath.splitext(below)[0] if has_suffix else below


def _is_hidden(path: str, root: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path[len(root) :].split("/"))


def _suffixes(entries: Any) -> str:
    """' (.csv, .json)': what was found instead, '' where nothing was."""
    kinds = sorted({posixpath.splitext(entry["name"])[1].lower() or "no suffix" for entry in entries})
    return f" ({_some(kinds)})" if kinds else ""


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _near(files: Any, path: str) -> str:
    """' (did you mean ...?)' where something beside it has nearly that name, else ''."""
    parent = posixpath.dirname(path.rstrip("/"))
    if not files.isdir(parent or "/"):
        return f"; neither does its folder {parent}" if parent else ""
    siblings = [posixpath.basename(str(name).rstrip("/")) for name in files.ls(parent or "/", detail=False)]
    near = difflib.get_close_matches(posixpath.basename(path.rstrip("/")), siblings, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
