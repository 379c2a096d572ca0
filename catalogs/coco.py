"""COCO json: a dataset of images that are frames of videos, and detectors' results on it.

    trackloom link annotations.json --set catalog.results=results.json --output RUN

An image's video is what its `video_id` says (CocoVID), else the folder of its file name; its frame is its place in
the video, by `frame_id` where there is one, else by file name. Boxes are left, top, width, height.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa

from catalogs.parts.files import absolute, address, identity
from pipeline import records
from pipeline.boxes import from_xywh
from pipeline.records import VideoInfo
from pipeline.schemas import TRACKS, TRUTH

CLASSES: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """images: the folder that file names start from, the json's own where None. results: a detector's results json."""

    images: str | None = None
    results: str | None = None


@dataclass(frozen=True)
class Dataset:
    """place: image id -> (video_id, frame index); folders: video_id -> folder of its file names; files: these in order;
    sizes: its frames'.

    categories: category id -> (label, name), labels from 0 in the order of the ids; annotations: as in the file.
    """

    place: Mapping[int, tuple[str, int]]
    folders: Mapping[str, str]
    lengths: Mapping[str, int]
    files: Mapping[str, Sequence[str]]
    sizes: Mapping[str, tuple[int, int] | None]
    categories: Mapping[int, tuple[int, str]]
    annotations: Sequence[Mapping[str, Any]]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names in the order of the labels."""
        return tuple(name for _, name in sorted(self.categories.values()))


def videos(source: str | None, settings: Settings) -> list[VideoInfo]:
    """The videos of a dataset's json; of kind `rows` where the images are not all there and alone in their folder."""
    if not source:
        raise ValueError("the catalog coco needs a json file of a dataset in COCO's format")
    source, results = absolute(str(source)), absolute(settings.results) if settings.results else None
    dataset = read_dataset(source)
    fs, path = fsspec.core.url_to_fs(settings.images or source.rpartition("/")[0])
    described = [_info(uri) for uri in (source, results) if uri]
    found = []
    for video_id, folder in dataset.folders.items():
        frames = f"{path}/{folder}".rstrip("/")
        images = _images(fs, frames)
        there = sorted((posixpath.basename(str(image["name"])) for image in images), key=records.natural_key)
        is_there = there == list(dataset.files[video_id])  # else frames would not meet their annotations
        found.append(
            VideoInfo(
                video_id=video_id,
                uri=address(fs, frames) if is_there else "",
                catalog="coco",
                kind="images" if is_there else "rows",
                identity=identity([*described, *(images if is_there else [])]),
                truth_uri=source,
                detections_uri=results,
                size=dataset.sizes[video_id],
            )
        )
    return records.unique_ids(found)


def truth(video: VideoInfo) -> pa.Table | None:
    """The truth of a video that `videos` listed, as rows of TRUTH; None where the file has no annotations at all."""
    assert video.truth_uri is not None, "videos() names the dataset"
    dataset = read_dataset(video.truth_uri)
    return read_truth(video.truth_uri, video.video_id) if dataset.annotations else None


def detections(video: VideoInfo) -> list[records.Detections]:
    """A detector's results (`coco.results`) on a video that `videos` listed: one record a frame, best score first."""
    if video.detections_uri is None:
        raise ValueError("the catalog coco was given no detections; name a results json as coco.results")
    assert video.truth_uri is not None, "videos() names the dataset"
    table = read_tracks(video.detections_uri, video.truth_uri, video.video_id)
    frame = table["frame_index"].to_numpy()
    boxes = np.stack([table[name].to_numpy() for name in ("x1", "y1", "x2", "y2")], axis=1)
    score, label = table["score"].to_numpy(), table["class_id"].to_numpy()
    sized = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
    order = np.lexsort((-score, frame))
    order = order[sized[order]]
    bounds = np.searchsorted(frame[order], np.arange(read_dataset(video.truth_uri).lengths[video.video_id] + 1))
    return [
        records.detections(index, boxes[chosen], score[chosen], label[chosen], timestamp_s=index / records.DEFAULT_FPS)
        for index in range(len(bounds) - 1)
        for chosen in [order[bounds[index] : bounds[index + 1]]]
    ]


def read_truth(path: str, video_id: str | None = None) -> pa.Table:
    """Annotations as rows of TRUTH, of one video or all; crowds (`iscrowd`) and `ignore` are ignored rows."""
    dataset = read_dataset(path)
    rows = _placed(dataset, dataset.annotations, path, video_id)
    ignored = [bool(row.get("iscrowd") or row.get("ignore")) for row in rows]
    return _table(TRUTH, dataset, rows, ignore=pa.array(ignored, pa.bool_()))


def read_tracks(path: str, dataset_path: str, video_id: str | None = None) -> pa.Table:
    """A results json as rows of TRACKS, of one video or all; rows without `track_id` have no identity."""
    dataset = read_dataset(dataset_path)
    results = _load(path)
    if isinstance(results, dict):  # some write the whole dataset, with the results as its annotations
        results = results.get("annotations")
    if not isinstance(results, list) or not all(isinstance(row, dict) for row in results):
        raise ValueError(f"{path} is not a results json of COCO: a list of image_id, category_id, bbox, score")
    rows = _placed(dataset, results, path, video_id)
    score = pa.array([float(_field(row, "score", path)) for row in rows], pa.float32())
    return _table(TRACKS, dataset, rows, score=score, raw_score=score)


def _place_in_time(image: Mapping[str, Any]) -> tuple[Any, ...]:
    """By frame_id where there is one, else as a folder of images is shown."""
    return image.get("frame_id", 0), records.natural_key(str(image.get("file_name", ""))), image["id"]


@lru_cache(maxsize=2)
def read_dataset(path: str) -> Dataset:
    """A dataset's json; raises FileNotFoundError, or ValueError where it is not one."""
    content = _load(path)
    if not isinstance(content, dict) or not {"images", "categories"} <= set(content):
        hint = ""
        if isinstance(content, list):
            hint = f"; a list is a results json: give the dataset's, and say --set catalog.results={path}"
        raise ValueError(f"{path} is not a dataset json of COCO: it needs images, categories and annotations{hint}")
    names = {video["id"]: str(video["name"]) for video in content.get("videos", [])}
    members: dict[str, list[dict[str, Any]]] = {}
    for image in content["images"]:
        folder = str(image.get("file_name", "")).rpartition("/")[0]
        video_id = names.get(image.get("video_id"), folder or path.rsplit("/", 1)[-1].rsplit(".", 1)[0])
        members.setdefault(video_id, []).append(image)
    for images in members.values():
        images.sort(
            key=lambda image: (
                image.get("frame_id", 0),
                records.natural_key(str(image.get("file_name", ""))),
                image["id"],
            )
        )
    first = {video_id: images[0] for video_id, images in members.items()}
    return Dataset(
        place={image["id"]: (video, index) for video, images in members.items() for index, image in enumerate(images)},
        folders={video: str(image.get("file_name", "")).rpartition("/")[0] for video, image in first.items()},
        lengths={video: len(images) for video, images in members.items()},
        files={
            video: [posixpath.basename(str(image.get("file_name", ""))) for image in images]
            for video, images in members.items()
        },
        sizes={
            video: (int(image["height"]), int(image["width"])) if "height" in image and "width" in image else None
            for video, image in first.items()
        },
        categories={
            category["id"]: (label, str(category["name"]))
            for label, category in enumerate(sorted(content["categories"], key=lambda category: category["id"]))
        },
        annotations=content.get("annotations", []),
    )


def _info(uri: str) -> dict[str, Any]:
    """What a file system tells of a file."""
    fs, path = fsspec.core.url_to_fs(uri)
    return dict(fs.info(path))


def _images(fs: Any, folder: str) -> list[dict[str, Any]]:
    """The entries of the images in a folder; none where there is no such folder."""
    entries = fs.ls(folder, detail=True) if fs.isdir(folder) else []
    return [entry for entry in entries if str(entry["name"]).lower().endswith((".jpg", ".jpeg", ".png"))]


def _load(path: str) -> Any:
    with fsspec.open(path, "rb") as file:
        content = file.read()
    try:
        return json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} is not whole JSON: {error}") from None


def _field(row: Mapping[str, Any], name: str, path: str) -> Any:
    if name not in row:
        raise ValueError(f"{path}: a row lacks {name!r}; it has: {', '.join(row)}")
    return row[name]


def _placed(
    dataset: Dataset, rows: Sequence[Mapping[str, Any]], path: str, video_id: str | None
) -> list[Mapping[str, Any]]:
    """The rows of a video, or all, checked and in order of video, frame and track."""
    for row in rows:
        image, category = _field(row, "image_id", path), _field(row, "category_id", path)
        if image not in dataset.place:
            raise ValueError(f"{path}: image_id {image} is not in the dataset's images")
        if category not in dataset.categories:
            raise ValueError(f"{path}: category_id {category} is not in the dataset's categories")
        if len(_field(row, "bbox", path)) != 4:
            raise ValueError(f"{path}: the bbox of image {image} is {row['bbox']}; it must be left, top, width, height")
    chosen = [row for row in rows if video_id is None or dataset.place[row["image_id"]][0] == video_id]
    return sorted(chosen, key=lambda row: (*dataset.place[row["image_id"]], _track(row) or 0))


def _track(row: Mapping[str, Any]) -> int | None:
    """A row's identity, under either of the names that are in use; None where it has none."""
    track = row.get("track_id", row.get("instance_id"))
    return None if track is None or int(track) < 0 else int(track)


def _table(schema: pa.Schema, dataset: Dataset, rows: Sequence[Mapping[str, Any]], **given: pa.Array) -> pa.Table:
    """Rows of a schema; what is not given is null."""
    corners = from_xywh(np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)).astype(np.float32)
    labels = [dataset.categories[row["category_id"]] for row in rows]
    tracks = [_track(row) for row in rows]
    shift = 1 if 0 in tracks else 0  # ours count from 1
    values = {
        "video_id": pa.array([dataset.place[row["image_id"]][0] for row in rows], pa.string()),
        "frame_index": pa.array([dataset.place[row["image_id"]][1] for row in rows], pa.int32()),
        "track_id": pa.array([None if track is None else track + shift for track in tracks], pa.int32()),
        "class_id": pa.array([label for label, _ in labels], pa.int16()),
        "class_name": pa.array([name for _, name in labels], pa.string()),
        **{name: pa.array(corners[:, index]) for index, name in enumerate(("x1", "y1", "x2", "y2"))},
        **given,
    }
    return pa.table(
        [
            values[field.name].cast(field.type) if field.name in values else pa.nulls(len(rows), field.type)
            for field in schema
        ],
        schema=schema,
    )


def classes(video: VideoInfo) -> tuple[str, ...]:
    """The names of the labels that `detections` gives: the dataset's categories."""
    assert video.truth_uri is not None, "videos() names the dataset"
    return read_dataset(video.truth_uri).class_names
