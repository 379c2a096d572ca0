"""COCO json: a dataset of images that are frames of videos, or stills, and detectors' results on it.

    trackloom run --catalog coco COCO --output RUN            # COCO/annotations/instances_val2017.json and COCO/val2017
    trackloom link annotations.json --set catalog.results=results.json --output RUN

An image's video is what its `video_id` says (CocoVID), else the folder of its file name; its frame is its place in
the video, by `frame_id` where there is one, else by file name. Boxes are left, top, width, height.

Where nothing tells of videos (no `video_id`, `frame_id`, `track_id`, no folder in a file name) the images are stills,
as in COCO's own files: each is a video of one frame, called by its file name.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa

from catalogs.parts.files import IMAGES, absolute, address, identity, listed
from catalogs.parts.tables import of_schema
from pipeline import records
from pipeline.boxes import from_xywh
from pipeline.records import VideoInfo
from pipeline.schemas import TRACKS, TRUTH

CLASSES: tuple[str, ...] = ()
KEPT = ("image_id", "category_id", "bbox", "score", "track_id", "instance_id", "iscrowd", "ignore")  # of a row
STILLS = "?stills="  # behind the place of a dataset whose images are said to be stills, or not
FOUND = Mapping[str, Mapping[str, Mapping[str, Any]]]  # entries of images, by folder and name


@dataclass(frozen=True)
class Settings:
    """split: of a folder of COCO's, the annotations/instances_SPLIT.json that is taken.

    images: the folder that file names start from; where None it is looked for beside the json and where COCO has it.
    stills: whether each image is a video of its own; None finds out. results: a detector's results json.
    """

    split: str = "val2017"
    images: str | None = None
    stills: bool | None = None
    results: str | None = None


@dataclass(frozen=True)
class Dataset:
    """place: image id -> (video_id, frame index); files: video_id -> its file names, in order; sizes: its frames'.

    frame_ids: video_id -> what its frames are numbered by, in order; nothing where a number is missing.
    categories: category id -> (label, name), labels from 0 in the order of the ids.
    annotations: video_id -> its rows; None where the file has no annotations at all.
    """

    is_stills: bool
    place: Mapping[int, tuple[str, int]]
    files: Mapping[str, Sequence[str]]
    sizes: Mapping[str, tuple[int, int] | None]
    frame_ids: Mapping[str, Sequence[int]]
    categories: Mapping[int, tuple[int, str]]
    annotations: Mapping[str, Sequence[Mapping[str, Any]]] | None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names in the order of the labels."""
        return tuple(name for _, name in sorted(self.categories.values()))

    @property
    def lengths(self) -> Mapping[str, int]:
        """How many frames each video has."""
        return {video: len(files) for video, files in self.files.items()}


def videos(source: str | None, settings: Settings) -> list[VideoInfo]:
    """The videos of a dataset's json, or of a folder of COCO's: each folder of images is listed once.

    They are of kind `rows` where no image is there; a video also where its images are not alone in their folder, or not
    all there. Raises FileNotFoundError where there is no json, some of the stills are missing, or all that `images`
    should hold.
    """
    if not source:
        raise ValueError("the catalog coco needs a json file of a dataset in COCO's format, or the folder of COCO")
    source, results = _json(absolute(str(source)), settings.split), settings.results
    results = absolute(results) if results else None
    dataset = read_dataset(source, settings.stills)
    fs, found = _images(source, dataset, settings.images)
    described = [_info(uri) for uri in (source, results) if uri]
    found_videos = []
    for video_id, names in dataset.files.items():
        folder = posixpath.dirname(names[0])
        there = found.get(folder, {})
        if dataset.is_stills:
            entry = there.get(posixpath.basename(names[0]))
            images, uri = ([entry], entry["name"]) if entry else ([], "")
        else:  # all of them and no other, or frames would not meet their annotations
            is_whole = sorted(there, key=records.natural_key) == [posixpath.basename(name) for name in names]
            images = list(there.values()) if is_whole else []
            uri = posixpath.dirname(images[0]["name"]) if images else ""
        found_videos.append(
            VideoInfo(
                video_id=video_id,
                uri=address(fs, uri) if uri else "",
                catalog="coco",
                kind="rows" if not uri else "image" if dataset.is_stills else "images",
                identity=identity([*described, *images]),
                truth_uri=source if settings.stills is None else f"{source}{STILLS}{settings.stills}",
                detections_uri=results,
                size=dataset.sizes[video_id],
            )
        )
    lacking = [info.video_id for info in found_videos if dataset.is_stills and not info.uri]
    if found and lacking:
        raise FileNotFoundError(
            f"{len(lacking)} of the {len(found_videos)} images of {source} are not there, the first "
            f"{dataset.files[lacking[0]][0]}; looked for in {_folder_of(found)}, another is set as coco.images"
        )
    return records.unique_ids(found_videos)


def truth(video: VideoInfo) -> pa.Table | None:
    """The truth of a video that `videos` listed, as rows of TRUTH; None where the file has no annotations at all."""
    path, stills = _dataset_of(video)
    has_truth = read_dataset(path, stills).annotations is not None
    return read_truth(path, video.video_id, stills) if has_truth else None


def detections(video: VideoInfo) -> list[records.Detections]:
    """A detector's results (`coco.results`) on a video that `videos` listed: one record a frame, best score first."""
    if video.detections_uri is None:
        raise ValueError("the catalog coco was given no detections; name a results json as coco.results")
    path, stills = _dataset_of(video)
    table = read_tracks(video.detections_uri, path, video.video_id, stills)
    frame = table["frame_index"].to_numpy()
    boxes = np.stack([table[name].to_numpy() for name in ("x1", "y1", "x2", "y2")], axis=1)
    score, label = table["score"].to_numpy(), table["class_id"].to_numpy()
    sized = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
    order = np.lexsort((-score, frame))
    order = order[sized[order]]
    length = len(read_dataset(path, stills).files[video.video_id])
    bounds = np.searchsorted(frame[order], np.arange(length + 1))
    return [
        records.detections(index, boxes[chosen], score[chosen], label[chosen], timestamp_s=index / records.DEFAULT_FPS)
        for index in range(length)
        for chosen in [order[bounds[index] : bounds[index + 1]]]
    ]


def classes(video: VideoInfo) -> tuple[str, ...]:
    """The names of the labels that `detections` gives: the dataset's categories."""
    return read_dataset(*_dataset_of(video)).class_names


def read_truth(path: str, video_id: str | None = None, stills: bool | None = None) -> pa.Table:
    """Annotations as rows of TRUTH, of one video or all; crowds (`iscrowd`) and `ignore` are ignored rows."""
    dataset = read_dataset(path, stills)
    rows = _of(video_id, dataset.annotations or {})
    ignored = [bool(row.get("iscrowd") or row.get("ignore")) for row in rows]
    return _table(TRUTH, dataset, rows, ignore=ignored)


def read_tracks(path: str, dataset_path: str, video_id: str | None = None, stills: bool | None = None) -> pa.Table:
    """A results json as rows of TRACKS, of one video or all; rows without `track_id` have no identity."""
    rows = _of(video_id, _results(path, dataset_path, stills))
    score = [float(_field(row, "score", path)) for row in rows]
    return _table(TRACKS, read_dataset(dataset_path, stills), rows, score=score, raw_score=score)


def read_dataset(path: str, stills: bool | None = None) -> Dataset:
    """A dataset's json, `stills` as in Settings; raises FileNotFoundError, or ValueError where it is not one.

    It is read once a process: videos are asked for one by one.
    """
    return _read_dataset(path, stills)


@lru_cache(maxsize=2)
def _read_dataset(path: str, stills: bool | None) -> Dataset:
    content = _load(path)
    if not isinstance(content, dict) or not {"images", "categories"} <= set(content):
        hint = ""
        if isinstance(content, list):
            hint = f"; a list is a results json: give the dataset's, and say --set catalog.results={path}"
        raise ValueError(f"{path} is not a dataset json of COCO: it needs images, categories and annotations{hint}")
    images, rows = content["images"], content.get("annotations", [])
    is_stills = _are_stills(images, rows) if stills is None else stills
    names = {video["id"]: str(video["name"]) for video in content.get("videos", [])}
    fallback = posixpath.splitext(posixpath.basename(path))[0]
    members: dict[str, list[dict[str, Any]]] = {}
    for image in images:
        name = str(image.get("file_name", ""))
        if is_stills:
            video_id = posixpath.splitext(name)[0] or str(image["id"])
        else:
            video_id = names.get(image.get("video_id"), posixpath.dirname(name) or fallback)
        members.setdefault(video_id, []).append(image)
    for video_id, frames in members.items():
        if is_stills and len(frames) > 1:
            raise ValueError(f"{path}: {len(frames)} images are called {video_id}; stills need a name each")
        frames.sort(key=_place_in_time)
    place = {image["id"]: (video, index) for video, frames in members.items() for index, image in enumerate(frames)}
    categories = {
        category["id"]: (label, str(category["name"]))
        for label, category in enumerate(sorted(content["categories"], key=lambda category: category["id"]))
    }
    return Dataset(
        is_stills=is_stills,
        place=place,
        files={video: [str(image.get("file_name", "")) for image in frames] for video, frames in members.items()},
        sizes={
            video: (int(first["height"]), int(first["width"])) if "height" in first and "width" in first else None
            for video, (first, *_) in members.items()
        },
        frame_ids={
            video: [image["frame_id"] for image in frames] if all("frame_id" in image for image in frames) else []
            for video, frames in members.items()
        },
        categories=categories,
        annotations=_by_video(rows, place, categories, path) if rows else None,
    )


def _are_stills(images: Sequence[Mapping[str, Any]], rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether nothing tells of videos."""
    return not any(
        "video_id" in image or "frame_id" in image or "/" in str(image.get("file_name", "")) for image in images
    ) and all(_track(row) is None for row in rows)


def _place_in_time(image: Mapping[str, Any]) -> tuple[Any, ...]:
    """By frame_id where there is one, else as a folder of images is shown."""
    return image.get("frame_id", 0), records.natural_key(str(image.get("file_name", ""))), image["id"]


def _dataset_of(video: VideoInfo) -> tuple[str, bool | None]:
    """The json that a listed video is of, and what was said of stills."""
    assert video.truth_uri is not None, "videos() names the dataset"
    path, _, stills = video.truth_uri.partition(STILLS)
    return path, {"": None, "True": True, "False": False}[stills]


def _json(source: str, split: str) -> str:
    """The json of a dataset: the source, or that of a split of the folder that it is."""
    fs, path = fsspec.core.url_to_fs(source)
    if not fs.isdir(path):
        if not fs.exists(path):
            raise FileNotFoundError(
                f"{source} is not there; the catalog coco needs a dataset's json, or the folder of COCO"
            )
        return source
    name = f"annotations/instances_{split}.json"
    if not fs.isfile(f"{path}/{name}"):
        others = sorted(str(each).rsplit("/", 1)[-1] for each in fs.glob(f"{path}/annotations/instances_*.json"))
        raise FileNotFoundError(
            f"{source} is no folder of COCO; looked for {name} in it"
            + (f", and found {', '.join(others)} (coco.split)" if others else "")
        )
    return f"{source}/{name}"


def _images(source: str, dataset: Dataset, given: str | None) -> tuple[Any, FOUND]:
    """The images by folder and name, of the first place that has any: the one given, else the json's or COCO's."""
    here = posixpath.dirname(source)
    if given is not None:
        roots = [given]
    elif posixpath.basename(here) == "annotations":
        above = posixpath.dirname(here)
        split = posixpath.splitext(source)[0].rpartition("_")[2].replace("test-dev", "test")
        roots = [here, f"{above}/{split}", f"{above}/images/{split}", f"{above}/images", above]
    else:
        roots = [here]
    named: dict[str, set[str]] = {}  # by folder
    for name in (name for names in dataset.files.values() for name in names):
        named.setdefault(posixpath.dirname(name), set()).add(posixpath.basename(name))
    for root in roots:
        fs, path = fsspec.core.url_to_fs(root)
        found = {folder: listed(fs, f"{path}/{folder}".rstrip("/"), IMAGES) for folder in named}
        found = {folder: entries for folder, entries in found.items() if named[folder] & entries.keys()}
        if found:
            break
    if given is not None and named and not found:
        first = next(iter(dataset.files.values()))[0]
        raise FileNotFoundError(f"{given} holds none of the images of {source}; looked for {first} in it (coco.images)")
    return fs, found


def _folder_of(found: FOUND) -> str:
    """A folder in which images were found."""
    return posixpath.dirname(str(next(iter(next(iter(found.values())).values()))["name"]))


def _info(uri: str) -> dict[str, Any]:
    """What a file system tells of a file."""
    fs, path = fsspec.core.url_to_fs(uri)
    return dict(fs.info(path))


@lru_cache(maxsize=2)
def _results(path: str, dataset_path: str, stills: bool | None) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """The rows of a results json by video."""
    results = _load(path)
    if isinstance(results, dict):  # some write the whole dataset, with the results as its annotations
        results = results.get("annotations")
    if not isinstance(results, list) or not all(isinstance(row, dict) for row in results):
        raise ValueError(f"{path} is not a results json of COCO: a list of image_id, category_id, bbox, score")
    dataset = read_dataset(dataset_path, stills)
    return _by_video(results, dataset.place, dataset.categories, path)


def _load(path: str) -> Any:
    with fsspec.open(path, "rb") as file:
        content = file.read()
    try:
        return json.loads(content)
    except UnicodeDecodeError:  # other bytes, of which the error says nothing that helps
        raise ValueError(f"{path} is not JSON; it must be a json file in COCO's format") from None
    except ValueError as error:
        raise ValueError(f"{path} is not whole JSON: {error}") from None


def _field(row: Mapping[str, Any], name: str, path: str) -> Any:
    if name not in row:
        raise ValueError(f"{path}: a row lacks {name!r}; it has: {', '.join(row)}")
    return row[name]


def _by_video(
    rows: Sequence[Mapping[str, Any]],
    place: Mapping[int, tuple[str, int]],
    categories: Mapping[int, tuple[int, str]],
    path: str,
) -> dict[str, list[dict[str, Any]]]:
    """The rows of each video, checked, in order of frame and track, without what is not read (outlines are large)."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        image, category = _field(row, "image_id", path), _field(row, "category_id", path)
        if image not in place:
            raise ValueError(f"{path}: image_id {image} is not in the dataset's images")
        if category not in categories:
            raise ValueError(f"{path}: category_id {category} is not in the dataset's categories")
        if len(_field(row, "bbox", path)) != 4:
            raise ValueError(f"{path}: the bbox of image {image} is {row['bbox']}; it must be left, top, width, height")
        found.setdefault(place[image][0], []).append({name: row[name] for name in KEPT if name in row})
    for each in found.values():
        each.sort(key=lambda row: (place[row["image_id"]][1], _track(row) or 0))
    return found


def _of(video_id: str | None, rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> Sequence[Mapping[str, Any]]:
    """The rows of a video, or of all in order of their names."""
    return rows.get(video_id, []) if video_id is not None else [row for name in sorted(rows) for row in rows[name]]


def _track(row: Mapping[str, Any]) -> int | None:
    """A row's identity, under either of the names that are in use; None where it has none."""
    track = row.get("track_id", row.get("instance_id"))
    return None if track is None or int(track) < 0 else int(track)


def _table(schema: pa.Schema, dataset: Dataset, rows: Sequence[Mapping[str, Any]], **given: Any) -> pa.Table:
    """Rows of a schema; what is not given is null."""
    corners = from_xywh(np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)).astype(np.float32)
    places = [dataset.place[row["image_id"]] for row in rows]
    labels = [dataset.categories[row["category_id"]] for row in rows]
    tracks = [_track(row) for row in rows]
    shift = 1 if 0 in tracks else 0  # ours count from 1
    return of_schema(
        schema,
        corners,
        video_id=[video_id for video_id, _ in places],
        frame_index=[frame for _, frame in places],
        track_id=[None if track is None else track + shift for track in tracks],
        class_id=[label for label, _ in labels],
        class_name=[name for _, name in labels],
        **given,
    )
