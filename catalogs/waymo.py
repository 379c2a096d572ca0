"""Waymo Open Dataset (perception, v2): camera_image and camera_box, each with SEGMENT.parquet, in folders of splits.

    trackloom run --catalog waymo gs://waymo_open_dataset_v_2_0_1 --set catalog.cameras=FRONT

A video is what one camera saw of one segment: 20 s at 10 Hz, called SEGMENT/CAMERA. Its frames are JPEG images in rows
of Parquet and are read from there. An object's name (`camera_object_id`) becomes a number from 1, in the order of the
names in its video: the same whenever the file is the same.

Names of folders and columns: v2.0.1 of the dataset as `waymo_open_dataset/v2/perception` (base.py, box.py,
camera_image.py) of github.com/waymo-research/waymo-open-dataset defines them. Boxes are centre and size in pixels.
Signs are labelled in lidar only. Where no difficulty is said, it is 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal
from urllib.parse import parse_qs, urlencode

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from catalogs.parts.files import address, folder_of, identity, listed
from catalogs.parts.tables import of_schema
from pipeline import records
from pipeline.records import ImageRows, VideoInfo
from pipeline.schemas import TRUTH

CLASSES: tuple[str, ...] = ()  # those of `Settings.classes`
TYPES = {"vehicle": 1, "pedestrian": 2, "cyclist": 4}  # BoxType; 0 is unknown
UNKNOWN = 0
CAMERAS = {"FRONT": 1, "FRONT_LEFT": 2, "FRONT_RIGHT": 3, "SIDE_LEFT": 4, "SIDE_RIGHT": 5}  # CameraName
SPLITS = ("training", "validation", "testing")
FPS = 10.0

TIME, CAMERA, OBJECT = "key.frame_timestamp_micros", "key.camera_name", "key.camera_object_id"
IMAGE = "[CameraImageComponent].image"
BOX = "[CameraBoxComponent].box"
SIDES = (f"{BOX}.center.x", f"{BOX}.center.y", f"{BOX}.size.x", f"{BOX}.size.y")
TYPE = "[CameraBoxComponent].type"
DIFFICULTY = ("[CameraBoxComponent].difficulty_level.detection", "[CameraBoxComponent].difficulty_level.tracking")


@dataclass(frozen=True)
class Settings:
    """split: the folder taken of a tree that has several; a folder that holds camera_image itself is taken as it is.

    cameras: of FRONT, FRONT_LEFT, FRONT_RIGHT, SIDE_LEFT, SIDE_RIGHT. classes: of vehicle, pedestrian, cyclist (the
    authors of RetinaTrack take vehicle alone); truth of others is left out. difficulty: 2 scores all boxes, 1 the
    easier: harder ones, of LEVEL_2 for detection or for tracking, then neither count nor does what is matched to them.
    """

    split: Literal["training", "validation", "testing"] = "validation"
    cameras: tuple[str, ...] = tuple(CAMERAS)
    classes: tuple[str, ...] = tuple(TYPES)
    difficulty: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        for name, given, known in (("cameras", self.cameras, CAMERAS), ("classes", self.classes, TYPES)):
            if not given or len(set(given)) < len(given) or not set(given) <= set(known):
                raise ValueError(
                    f"waymo.{name} is {', '.join(given) or 'empty'}; it must be one or more of: {', '.join(known)}"
                )


def videos(source: str | None, settings: Settings) -> list[VideoInfo]:
    """The videos of a split: of every segment that has images, one for each camera; opens none of them.

    Raises FileNotFoundError where there is no camera_image, or where camera_box, if it is there, lacks a segment.
    """
    fs, root = folder_of(source, "waymo", "the splits, or camera_image")
    split = _split(fs, root, str(source), settings.split)
    images = _segments(fs, f"{split}/camera_image")
    boxes = _segments(fs, f"{split}/camera_box")
    if not images:
        raise FileNotFoundError(f"{split}/camera_image holds no segment; looked for SEGMENT.parquet in it")
    lacking = sorted(set(images) - set(boxes))
    if boxes and lacking:
        raise FileNotFoundError(
            f"{split}/camera_box lacks {len(lacking)} of the {len(images)} segments of camera_image, the first "
            f"{lacking[0]}; looked for {lacking[0]}.parquet"
        )
    return records.unique_ids(
        [
            VideoInfo(
                video_id=f"{segment}/{camera}",
                uri=ImageRows(address(fs, entry["name"]), IMAGE, TIME, CAMERA, CAMERAS[camera]).uri,
                catalog="waymo",
                kind="parquet",
                identity=identity([entry, *([boxes[segment]] if boxes else [])]),
                truth_uri=_truth_uri(address(fs, boxes[segment]["name"]), settings) if boxes else None,
                fps=FPS,
            )
            for segment, entry in images.items()
            for camera in settings.cameras
        ]
    )


def truth(video: VideoInfo) -> pa.Table | None:
    """The truth of a video that `videos` listed, as rows of TRUTH; None where there is no camera_box.

    `flags` say `level_2` of a harder box, whether it counts or not. Objects of unknown type are ignored rows of no
    class: what is matched to them does not count.
    """
    if video.truth_uri is None:
        return None
    path, _, query = video.truth_uri.rpartition("?")
    given = parse_qs(query)
    wanted, difficulty = given["class"], int(given["difficulty"][0])
    images = ImageRows.parse(video.uri)
    table = _boxes(path)
    table = table.filter(pa.array(table[CAMERA].to_numpy() == images.value))
    time, kind, level = (table[name].to_numpy() for name in (TIME, TYPE, "level"))
    shown = _times(images.file)[images.value]
    frame = np.searchsorted(shown, time)
    strange = frame == len(shown)
    strange[~strange] = shown[frame[~strange]] != time[~strange]
    if strange.any():
        raise ValueError(
            f"{path} has boxes of camera {images.value} at {time[strange][0]} us, of which {images.file} has no image"
        )
    taken = np.isin(kind, [UNKNOWN, *(TYPES[name] for name in wanted)])
    order = np.lexsort((table[OBJECT].to_numpy(zero_copy_only=False).astype(str), frame))
    order = order[taken[order]]
    names = {number: name for name, number in TYPES.items()}
    named = [names.get(number) for number in kind[order].tolist()]
    is_hard, is_unknown = level[order] == 2, kind[order] == UNKNOWN
    ignore = is_unknown | (is_hard & (difficulty == 1))
    x, y, width, height = (table[name].to_numpy()[order] for name in SIDES)
    tracks = np.unique(table[OBJECT].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)[1] + 1
    return of_schema(
        TRUTH,
        np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=1),
        video_id=video.video_id,
        frame_index=frame[order],
        track_id=tracks[order],
        class_id=[None if name is None else wanted.index(name) for name in named],
        class_name=named,
        ignore=ignore,
        flags=[
            [flag for flag, holds in zip(("distractor", "level_2"), pair, strict=True) if holds]
            for pair in zip(ignore.tolist(), is_hard.tolist(), strict=True)
        ],
    )


def _truth_uri(path: str, settings: Settings) -> str:
    """Where the boxes lie, and what of them is truth: `truth` is given the video alone."""
    return f"{path}?{urlencode({'class': settings.classes, 'difficulty': settings.difficulty}, doseq=True)}"


def _split(fs: Any, root: str, source: str, split: str) -> str:
    """The folder that holds camera_image: the source, or its split."""
    for folder in (root, f"{root}/{split}"):
        if fs.isdir(f"{folder}/camera_image"):
            return folder
    others = [name for name in SPLITS if fs.isdir(f"{root}/{name}/camera_image")]
    raise FileNotFoundError(
        f"{source} is no tree of the Waymo Open Dataset v2; looked for camera_image in it and in {split}"
        + (f", and found it in {', '.join(others)} (waymo.split)" if others else "")
    )


def _segments(fs: Any, folder: str) -> dict[str, dict[str, Any]]:
    """The Parquet files of a folder by segment; none where there is no such folder."""
    return {name.removesuffix(".parquet"): entry for name, entry in listed(fs, folder, (".parquet",)).items()}


@lru_cache(maxsize=2)  # the five cameras of a segment share its files
def _boxes(path: str) -> pa.Table:
    """The boxes of a segment, with `level`: 2 where either difficulty is, else 1."""
    table = _columns(path, (TIME, CAMERA, OBJECT, *SIDES, TYPE), DIFFICULTY)
    kinds = set(table[TYPE].to_pylist())
    if not kinds <= {UNKNOWN, 3, *TYPES.values()}:
        raise ValueError(f"{path}: {TYPE} is {max(kinds, key=str)}; the types of Waymo are 0 to 4")
    levels: list[NDArray[np.bool_]] = [
        np.asarray([level == 2 for level in table[name].to_pylist()], np.bool_)
        for name in DIFFICULTY
        if name in table.column_names
    ]
    hard = np.any(levels, axis=0) if levels else np.zeros(len(table), np.bool_)
    return table.append_column("level", pa.array(np.where(hard, 2, 1)))


@lru_cache(maxsize=2)
def _times(path: str) -> dict[int, NDArray[np.int64]]:
    """When each camera's images were taken, rising: what frame a box is of."""
    table = _columns(path, (TIME, CAMERA))
    time, camera = table[TIME].to_numpy(), table[CAMERA].to_numpy()
    return {number: np.sort(time[camera == number]) for number in CAMERAS.values()}


def _columns(path: str, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> pa.Table:
    """Columns of a Parquet file, those optional where it has them; ValueError where it is none, or lacks one."""
    with fsspec.open(path, "rb") as file:
        try:
            parquet = pq.ParquetFile(file)
            there = parquet.schema_arrow.names
            lacking = [name for name in needed if name not in there]
            if lacking:
                raise ValueError(f"{path} has no column {lacking[0]!r}; it has: {', '.join(there)}")
            return parquet.read([*needed, *(name for name in optional if name in there)], use_threads=False)
        except pa.ArrowException as error:
            raise ValueError(f"{path} is not a whole Parquet file: {error}") from None
