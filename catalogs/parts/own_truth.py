"""Truth beside a user's own video (`beside` finds it) as rows of TRUTH: from text, json or XML.

Classes, where they are named beforehand, number those of the text (1 is the first) and are all that json and XML may
name; else boxes of the text are of class `object`, and the others name theirs.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from urllib.parse import quote, unquote

import fsspec
import numpy as np
import pyarrow as pa

from catalogs import coco
from catalogs.parts import imagenet
from catalogs.parts.files import IMAGES, VIDEOS, listed
from catalogs.parts.mot_text import line_of, read_text, rows_of
from catalogs.parts.tables import of_schema
from pipeline.records import VideoInfo, natural_key
from pipeline.schemas import TRUTH

UNNAMED = "object"
NAMED = "?classes="  # behind the place of truth, where its classes are named beforehand


def uri_of(place: str, classes: Sequence[str]) -> str:
    """What `read` takes: the place, and the names of the classes."""
    return f"{place}{NAMED}{quote(','.join(classes))}" if classes else place


def read(video: VideoInfo) -> pa.Table:
    """The truth of a video whose `truth_uri` is of `uri_of`; raises ValueError, by file, where it is damaged."""
    assert video.truth_uri is not None
    place, _, names = video.truth_uri.partition(NAMED)
    classes = tuple(unquote(names).split(",")) if names else ()
    if place.endswith(".txt"):
        return _read_text(place, video, classes)
    return _read_json(place, video, classes) if place.endswith(".json") else _read_xml(place, video, classes)


def _read_text(path: str, video: VideoInfo, classes: Sequence[str]) -> pa.Table:
    """MOTChallenge's text, in which column 8 of 8 or 9 numbers the class and column 7 is 0 for what does not count."""
    columns = read_text(path)
    number = columns[:, 7] if columns.shape[1] in (8, 9) else np.full(len(columns), -1.0)
    counts = columns[:, 6] != 0 if columns.shape[1] > 6 else np.ones(len(columns), np.bool_)
    if len(classes) <= 1:
        number = np.where((number == -1) | (not classes), 1, number)  # of the only class
    names = tuple(classes) or (UNNAMED,)
    unknown = ~np.isin(number, np.arange(1, len(names) + 1))
    if unknown.any():
        row = int(np.argmax(unknown))
        got = "the line names no class" if number[row] == -1 else f"the class is {number[row]:g}"
        raise ValueError(
            f"{path}:{line_of(path, row)}: {got} (column 8 of 8 or 9); it must be 1 to {len(names)}, "
            f"which folder.classes names {', '.join(names)}"
        )
    label = number.astype(np.int64) - 1
    # What does not count takes part in the matching and excuses nothing, as in MOTChallenge.
    flags = [[] if is_counted else ["unscored", names[index]] for is_counted, index in zip(counts, label, strict=True)]
    return rows_of(
        TRUTH,
        columns,
        video.video_id,
        class_id=pa.array(label, pa.int16(), mask=~counts),
        class_name=[names[index] if is_counted else None for is_counted, index in zip(counts, label, strict=True)],
        ignore=~counts,
        flags=flags,
    )


def _read_json(path: str, video: VideoInfo, classes: Sequence[str]) -> pa.Table:
    """COCO json of this video alone, or in which one of its name is; every frame must be listed."""
    dataset = coco.read_dataset(path, stills=False)
    name = posixpath.basename(video.video_id)
    found = [each for each in dataset.files if len(dataset.files) == 1 or _stem(each) == name]
    if len(found) != 1:
        names = ", ".join(list(dataset.files)[:5])
        raise ValueError(f"{path} is of {len(dataset.files)} videos ({names}), and not one of them is called {name}")
    count, numbers = len(dataset.files[found[0]]), dataset.frame_ids[found[0]]
    if video.kind == "images":
        images = len(_images(video))
        if images != count:
            raise ValueError(f"{video.uri} holds {images} images and {path} lists {count}; it must list them all")
    elif numbers and (numbers[0] > 1 or numbers[-1] - numbers[0] != count - 1):
        raise ValueError(
            f"{path} lists {count} frames, of frame_id {numbers[0]} to {numbers[-1]}; it must list every frame of the "
            "video, from 0 or 1 on, also those in which nothing is"
        )
    table = coco.read_truth(path, found[0], stills=False)
    columns = dict(zip(table.column_names, table.columns, strict=True))
    columns["video_id"] = pa.array([video.video_id] * len(table), pa.string()).cast(TRUTH.field("video_id").type)
    if classes:
        columns["class_id"] = pa.array(_labels(table["class_name"].to_pylist(), classes, path), pa.int16())
    return pa.table(columns, TRUTH)


def _read_xml(folder: str, video: VideoInfo, classes: Sequence[str]) -> pa.Table:
    """ImageNet VID's XML: 000000.xml is of frame 0, or of the image of that name; `trackid` may be left out."""
    files, root = fsspec.core.url_to_fs(folder)
    names_of = (posixpath.basename(str(path)) for path in files.ls(root, detail=False))
    stems = {posixpath.splitext(name)[0]: name for name in names_of if name.endswith(".xml")}
    if video.kind == "images":
        order = [posixpath.splitext(name)[0] for name in _images(video)]
        frames = {index: f"{root}/{stems[stem]}" for index, stem in enumerate(order) if stem in stems}
    else:
        frames = {int(stem): f"{root}/{name}" for stem, name in stems.items() if stem.isdigit()}
    frame_of, tracks, names, corners, labels = [], [], [], [], []
    for frame, path in sorted(frames.items()):
        things = list(imagenet.parsed(files, path).iter("object"))
        found = [imagenet.text(thing, "name", path) for thing in things]
        found = [imagenet.WORDNET_IDS.get(name, name) for name in found]
        labels += _labels(found, classes, path) if classes else []
        names += found
        frame_of += [frame] * len(things)
        for thing in things:
            has_track = thing.find("trackid") is not None
            tracks.append(imagenet.number(thing, "trackid", path) + 1 if has_track else None)
            corners.append(imagenet.corners(thing, path))
    every = sorted(set(names))
    return of_schema(
        TRUTH,
        imagenet.continuous(np.array(corners, np.float64).reshape(-1, 4)),
        video_id=video.video_id,
        frame_index=frame_of,
        track_id=tracks,
        class_id=labels if classes else [every.index(name) for name in names],
        class_name=names,
        ignore=np.zeros(len(names), np.bool_),
        flags=[[] for _ in names],
    )


def _labels(names: Sequence[str], classes: Sequence[str], path: str) -> list[int]:
    """The places of names among the classes; raises ValueError for one that is none of them."""
    unknown = next((name for name in names if name not in classes), None)
    if unknown is not None:
        raise ValueError(f"{path} has the class {unknown!r}, which is none of folder.classes: {', '.join(classes)}")
    return [classes.index(name) for name in names]


def _images(video: VideoInfo) -> list[str]:
    """The names of a video's images, in the order in which they are shown."""
    files, folder = fsspec.core.url_to_fs(video.uri)
    return sorted(listed(files, folder, IMAGES), key=natural_key)


def _stem(name: str) -> str:
    """What a video is called that a json has as a path, a file or a name."""
    base = posixpath.basename(name.rstrip("/"))
    return posixpath.splitext(base)[0] if base.lower().endswith(VIDEOS) else base
