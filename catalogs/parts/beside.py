"""Truth that lies beside a user's own video: where it is looked for, and what is taken for it.

Of a video NAME.mp4 (or any suffix), or a folder of images NAME/:

    NAME.txt, NAME/gt.txt, NAME/gt/gt.txt     MOTChallenge's text, frames from 1
    NAME.json                                 COCO json (CocoVID)
    NAME/*.xml, Annotations/NAME/*.xml        ImageNet VID's XML, a file a frame, 000000.xml or as the image is called
    gt.txt, gt/gt.txt                         text too, where NAME is the only video of its folder

What has such a name and is something else stays what it is: a .txt whose lines are no numbers (a list of paths, notes),
a .json without images and categories, .xml files that no frame is called by. Truth in two of these places is refused.
Nothing is found in folders that cannot be listed, as on the web.
"""

from __future__ import annotations

import contextlib
import posixpath
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from catalogs.parts.files import IMAGES

Entry = Mapping[str, Any]  # of a file, as `fs.info` has it
NUMBERS = 6  # at the least, of a line of MOTChallenge's text
FIRST_LINES = 20  # that tell what a text is


class Beside:
    """What lies beside the videos of a file system; suffixes: of the files that are videos."""

    def __init__(self, files: Any, suffixes: Sequence[str]) -> None:
        self._files, self._suffixes = files, tuple(suffixes)
        self._listed = lru_cache(maxsize=16)(self._list)

    def find(self, path: str, is_file: bool) -> tuple[str, list[Entry]] | None:
        """Place and files of a video's truth, None where there is none; is_file: it is no folder of images.

        The place is a .txt, a .json, or a folder of .xml. Raises ValueError where there are two.
        """
        protocol = self._files.protocol
        if {"http", "https"} & {*((protocol,) if isinstance(protocol, str) else protocol)}:
            return None
        stem = posixpath.splitext(path)[0] if is_file else path
        parent, name = posixpath.split(stem)
        beside, inside = self._entries(parent), self._entries(parent, name)
        found: list[tuple[str, list[Entry]]] = []
        for entries, file, is_truth in (
            (beside, f"{name}.txt", self._is_text),
            (beside, f"{name}.json", self._is_json),
            (inside, "gt.txt", self._is_there),
            (self._entries(parent, name, "gt"), "gt.txt", self._is_there),
        ):
            if is_truth(entries.get(file)):
                found.append((str(entries[file]["name"]), [entries[file]]))
        images = {posixpath.splitext(each)[0] for each in inside if each.lower().endswith(IMAGES)}
        for entries in (inside, self._entries(parent, "Annotations", name)):
            xml = [entries[each] for each in sorted(entries) if _is_of_frame(each, None if is_file else images)]
            if xml:
                found.append((posixpath.dirname(str(xml[0]["name"])), xml))
        if not found:
            shared = [entries.get("gt.txt") for entries in (beside, self._entries(parent, "gt"))]
            there = [entry for entry in shared if entry and self._is_there(entry)]
            found = [(str(entry["name"]), [entry]) for entry in there if self._is_alone(parent, path)]
        if len(found) > 1:
            places = " and ".join(place for place, _ in found[:2])
            raise ValueError(f"{path} has truth in two places, {places}; keep one, or set catalog.truth=false for none")
        return found[0] if found else None

    def _entries(self, folder: str, *below: str) -> Mapping[str, Entry]:
        """What a folder, or one below it, holds, by name; nothing where there is no such folder."""
        for name in below:
            if self._listed(folder).get(name, {}).get("type") != "directory":
                return {}
            folder = f"{folder}/{name}"
        return self._listed(folder)

    def _list(self, folder: str) -> Mapping[str, Entry]:
        try:
            entries = self._files.ls(folder, detail=True)
        except OSError:  # who may read a video need not be allowed to list its folder
            return {}
        named = {posixpath.basename(str(entry["name"]).rstrip("/")): self._followed(entry) for entry in entries}
        return {name: entry for name, entry in named.items() if not name.startswith(".")}

    def _followed(self, entry: Entry) -> Entry:
        """A link's entry as that of what it leads to, if anywhere."""
        with contextlib.suppress(OSError):
            return dict(self._files.info(entry["name"])) if entry["type"] == "other" else entry
        return entry

    def _is_there(self, entry: Entry | None) -> bool:
        return entry is not None and entry["type"] == "file"

    def _is_text(self, entry: Entry | None) -> bool:
        """Whether a .txt is MOTChallenge's; an empty one says that there is nothing in the video."""
        return entry is not None and self._is_there(entry) and looks_like_text(self._files.cat_file(entry["name"]))

    def _is_json(self, entry: Entry | None) -> bool:
        """Whether a .json is a dataset's, or was before it was damaged; others have been put there by other tools."""
        if entry is None or not self._is_there(entry):
            return False
        content: bytes = self._files.cat_file(entry["name"])
        return b'"images"' in content and b'"categories"' in content

    def _is_alone(self, folder: str, path: str) -> bool:
        """Whether no other video, or folder of images, is in a video's folder."""
        others = {name: entry for name, entry in self._listed(folder).items() if name != posixpath.basename(path)}
        return not any(
            any(each.lower().endswith(IMAGES) for each in self._entries(folder, name))
            if entry["type"] == "directory"
            else name.lower().endswith(self._suffixes)
            for name, entry in others.items()
        )


def looks_like_text(content: bytes) -> bool:
    """Whether a file is MOTChallenge's text, whole or damaged: empty, or one of its first lines has six numbers."""
    lines = [line for line in content.decode("utf-8", "replace").splitlines() if line.strip()]
    return not lines or any(_has_numbers(line) for line in lines[:FIRST_LINES])


def _has_numbers(line: str) -> bool:
    fields = re.split(r"[,\s]+", line.strip())
    try:
        return len([float(field) for field in fields[:NUMBERS]]) == NUMBERS
    except ValueError:
        return False


def _is_of_frame(name: str, images: set[str] | None) -> bool:
    """Whether a file is the .xml of one of these images, or (None) of a frame by its number."""
    stem, suffix = posixpath.splitext(name)
    return suffix == ".xml" and (stem.isdigit() if images is None else stem in images)
