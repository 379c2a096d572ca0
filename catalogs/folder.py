"""Any videos: a file, a folder and what lies below it, a quoted glob, a list file, or folders of images.

A folder whose files are images is one video; a folder above such folders is a dataset of them; an image named by
itself is a video of one frame. Everything may lie at any fsspec URL. A list is a `.txt` file with one path a line,
relative to it, or several sources with commas between.

Truth is what lies beside a video: MOTChallenge's text, COCO json or ImageNet VID's XML; `parts.beside` says where. With
it `run` scores and `train` learns:

    trackloom train fly.mp4 --catalog folder --set catalog.classes=fly --frames :80% ...       fly.txt beside it
"""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa

from catalogs.parts.beside import Beside, looks_like_text
from catalogs.parts.files import IMAGES, VIDEOS, address, identity
from catalogs.parts.own_truth import read, uri_of
from pipeline.records import Kind, VideoInfo, unique_ids

CLASSES: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """suffixes: of the files that are taken for videos in a folder; one named by itself or in a list always is.

    fps: frames a second of folders of images.
    classes: the names of the classes, in the order of their labels: text numbers them from 1, or has boxes of the only
    one; json and XML may name no others. None of them: text has boxes of class `object`, the others name theirs.
    truth: whether what lies beside the videos is taken for their truth.
    """

    suffixes: tuple[str, ...] = VIDEOS
    fps: float | None = None
    classes: tuple[str, ...] = ()
    truth: bool = True

    def __post_init__(self) -> None:
        if len({*self.classes, ""}) <= len(self.classes):
            raise ValueError(f"folder.classes is {','.join(self.classes)!r}; it must be different names, none empty")
        if self.fps is not None and not 0 < self.fps < 10_000:
            raise ValueError(f"folder.fps is {self.fps}; it must be above 0")


def videos(source: str | Sequence[str] | None, settings: Settings | None = None) -> list[VideoInfo]:
    """The videos of the source, sorted by id; opens none of them.

    video_id is the path below the source's root (the folder given, the fixed part of a glob, what the entries of a
    list share) without its suffix, with slashes. Raises FileNotFoundError where the source does not exist or
    holds no video, ValueError where two videos would share an id, and where one has truth in two places.
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
    """What lies beside a video, as rows of TRUTH; None where nothing does.

    Raises ValueError that names the file, and the line where it has lines, of what is damaged.
    """
    return None if video.truth_uri is None else read(video)


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
        return _listed(files, path, settings) if path.endswith(".txt") else [_named(files, path, settings)]
    if any(sign in path for sign in "*?["):
        return _in_glob(files, path, source, settings)
    raise FileNotFoundError(f"{source} does not exist{_near(files, path)}")


def _in_folder(files: Any, root: str, source: str, settings: Settings) -> Found:
    """All videos and folders of images at and below a folder, but for those that runs among them hold."""
    root = root.rstrip("/")
    entries = [entry for entry in files.find(root, detail=True).values() if not _is_hidden(entry["name"], root)]
    runs = tuple(entry["name"].removesuffix("run.json") for entry in entries if entry["name"].endswith("/run.json"))
    entries = [entry for entry in entries if not entry["name"].startswith(runs)]
    about = _About(files, root, settings)
    found = [about.video(entry) for entry in entries if entry["name"].lower().endswith(settings.suffixes)]
    folders: dict[str, list[dict[str, Any]]] = {}
    for entry in entries:
        if entry["name"].lower().endswith(IMAGES):
            folders.setdefault(posixpath.dirname(entry["name"]), []).append(entry)
    beside = {posixpath.dirname(path) for path, _ in found}  # a poster beside a video is no video
    found += [about.images(folder, members) for folder, members in folders.items() if folder not in beside]
    if not found:
        raise FileNotFoundError(
            f"{source} holds no video among its {len(entries)} files{_suffixes(entries)}; looked for "
            f"{_some(settings.suffixes)} and folders of images ({', '.join(IMAGES)})"
        )
    return found


def _in_glob(files: Any, pattern: str, source: str, settings: Settings) -> Found:
    """What a pattern matches: files by their suffix, folders as folders of images or of videos."""
    fixed = pattern[: min(pattern.index(sign) for sign in "*?[" if sign in pattern)]
    about = _About(files, posixpath.dirname(fixed), settings)
    matches = files.glob(pattern, detail=True)
    found: Found = []
    for path, entry in sorted(matches.items()):
        if entry["type"] == "file" and path.lower().endswith(settings.suffixes):
            found.append(about.video(entry))
        elif entry["type"] == "directory":
            images = [e for e in files.ls(path, detail=True) if e["name"].lower().endswith(IMAGES)]
            found += [about.images(path, images)] if images else []
    if not found:
        raise FileNotFoundError(
            f"{source} matches {len(matches)} files and folders, none of them a video{_suffixes(matches.values())}; "
            f"looked for {_some(settings.suffixes)} and folders of images"
        )
    return found


def _listed(files: Any, path: str, settings: Settings) -> Found:
    """The sources that a list file names, one a line; empty lines and those that start with # are left out."""
    content = files.cat_file(path)
    lines = [line.strip() for line in content.decode().splitlines()]
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
            if looks_like_text(content):
                raise ValueError(
                    f"{path} is no list of videos: it holds MOTChallenge's numbers; name the video that they are of"
                ) from None
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


def _named(files: Any, path: str, settings: Settings) -> tuple[str, VideoInfo]:
    """A file given by name, taken whatever its suffix."""
    return _About(files, posixpath.dirname(path), settings).video({**files.info(path), "name": path})


class _About:
    """What is known of videos, from their files and what lies beside them; root: their ids are paths below it."""

    def __init__(self, files: Any, root: str, settings: Settings) -> None:
        self._files, self._root, self._settings = files, root, settings
        self._beside = Beside(files, settings.suffixes)

    def video(self, entry: dict[str, Any]) -> tuple[str, VideoInfo]:
        """A file's path and what is known of it."""
        path = entry["name"]
        kind: Kind = "image" if path.lower().endswith(IMAGES) else "video"
        return path, self._info(_id(path, self._root, True), path, kind, [entry])

    def images(self, folder: str, entries: list[dict[str, Any]]) -> tuple[str, VideoInfo]:
        """A folder's path and what is known of it as a video; entries: of its images."""
        is_root = folder.rstrip("/") == self._root
        name = posixpath.basename(self._root) if is_root else _id(folder, self._root, False)
        return folder, self._info(name, folder, "images", entries)

    def _info(self, name: str, path: str, kind: Kind, entries: list[dict[str, Any]]) -> VideoInfo:
        settings, truth = self._settings, None
        if settings.truth and kind != "image":
            truth = self._beside.find(path.rstrip("/"), kind == "video")
        return VideoInfo(
            name,
            address(self._files, path),
            "folder",
            kind,
            identity=identity([*entries, *(truth[1] if truth else ())]),
            truth_uri=uri_of(address(self._files, truth[0]), settings.classes) if truth else None,
            fps=settings.fps if kind == "images" else None,
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
