"""KITTI tracking: label_02/SEQUENCE.txt, image_02/SEQUENCE/, and detections as DETECTOR_Car/SEQUENCE.txt and so on.

    trackloom link KITTI/training --catalog kitti --output runs/cars

A line of truth has 17 columns, blanks between: frame, id, type, truncated, occluded, alpha, left, top, right, bottom,
and the box in space; frames and ids count from 0. What it means to an evaluation follows KITTI's development kit and
TrackEval 1.3: predictions matched to vans (beside cars) or to sitting people (beside pedestrians) do not count, nor do
such as match nothing and lie in a DontCare region; other types are not looked at. Unlike there, all cars and
pedestrians are scored, however small or hidden.

A line of detections is AB3DMOT's, separated by commas: frame, number of the type, left, top, right, bottom, score, and
the box in space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import expit

from catalogs.parts.files import address, folder_of, identity
from pipeline import records
from pipeline.records import VideoInfo
from pipeline.schemas import TRUTH

CLASSES = ("car", "pedestrian")
NEIGHBOURS = {"van": "car", "person_sitting": "pedestrian"}
FPS = 10.0
# Detectors whose scores have no bounds: s becomes 1 / (1 + exp(-(s - centre) / scale)). Fitted to which of PointRCNN's
# boxes are true.
CALIBRATION = {"pointrcnn": (3.63, 1.22)}


@dataclass(frozen=True)
class Settings:
    """detector: the folders DETECTOR_Car and DETECTOR_Pedestrian whose detections are offered to linkers."""

    detector: str = "pointrcnn"


def videos(source: str | None, settings: Settings) -> list[VideoInfo]:
    """The sequences of a folder that holds label_02, image_02 or detections (`training` of KITTI's own tree).

    Raises FileNotFoundError where it holds none of them.
    """
    fs, root = folder_of(source, "kitti", "label_02")
    looked = ["label_02", "image_02", *(f"{settings.detector}_{name.capitalize()}" for name in CLASSES)]
    inside = [
        path.rstrip("/").rsplit("/", 1)[-1]
        for folder in looked
        if fs.isdir(f"{root}/{folder}")
        for path in fs.ls(f"{root}/{folder}", detail=False)
    ]
    names = {name.removesuffix(".txt") for name in inside if name.removesuffix(".txt").isdigit()}
    if not names:
        raise FileNotFoundError(f"{source} holds no KITTI sequence; looked for {', '.join(looked)} in it")
    return records.unique_ids([_sequence(fs, root, name, settings.detector) for name in names])


def classes(video: VideoInfo) -> tuple[str, ...]:
    """The names of the labels that `detections` gives."""
    return CLASSES


def truth(video: VideoInfo) -> pa.Table | None:
    """The truth of a video that `videos` listed, as rows of TRUTH; None where it has none."""
    if video.truth_uri is None:
        return None
    rows = []
    for number, fields in _lines(video.truth_uri, None, 17):
        try:
            frame, (x1, y1, x2, y2) = _checked(fields[0], fields[6:10])
            track = int(fields[1])
        except ValueError:
            raise ValueError(
                f"{video.truth_uri}:{number}: not a line of KITTI truth: {' '.join(fields)[:80]}"
            ) from None
        kind = fields[2].lower()
        name = None if kind == "dontcare" else NEIGHBOURS.get(kind, kind)
        if name is not None and name not in CLASSES:
            continue
        rows.append(
            {
                "video_id": video.video_id,
                "frame_index": frame,
                "track_id": track + 1 if track >= 0 else None,
                "class_id": None if name is None else CLASSES.index(name),
                "class_name": name,
                **{"x1": x1, "y1": y1, "x2": x2, "y2": y2},
                "ignore": kind != name,
                "flags": [] if kind in (name, "dontcare") else ["distractor", kind],
            }
        )
    rows.sort(key=lambda row: (row["frame_index"], row["track_id"] or 0))
    return pa.Table.from_pylist(rows, TRUTH)


def detections(video: VideoInfo) -> list[records.Detections]:
    """The given detections of a video, one record for every frame up to the last named; boxes of no size left out."""
    if video.detections_uri is None:
        raise FileNotFoundError(
            f"{video.video_id} has no detections; they are looked for in DETECTOR_Car beside label_02"
        )
    fs, folder = fsspec.core.url_to_fs(video.detections_uri)
    root, detector = folder.rsplit("/", 1)
    found = [
        _detections(fs, f"{root}/{detector}_{name.capitalize()}/{video.video_id}.txt", detector) for name in CLASSES
    ]
    label = np.repeat(np.arange(len(CLASSES)), [len(rows) for rows in found])
    rows = np.concatenate(found)
    order = np.lexsort((label, -rows[:, 5], rows[:, 0]))
    bounds = np.searchsorted(rows[order, 0], np.arange(rows[:, 0].max(initial=-1) + 2))
    return [
        records.detections(index, rows[chosen, 1:5], rows[chosen, 5], label[chosen], timestamp_s=index / FPS)
        for index, (a, b) in enumerate(pairwise(bounds.tolist()))
        for chosen in [order[a:b]]
    ]


def _detections(fs: Any, path: str, detector: str) -> NDArray[np.float64]:
    """A file's frames, corners and scores (N, 6); empty where there is no file."""
    if not fs.exists(path):
        return np.empty((0, 6))
    rows = []
    for number, fields in _lines(address(fs, path), ",", 7):
        try:
            frame, numbers = _checked(fields[0], fields[2:7])
        except ValueError:
            raise ValueError(f"{path}:{number}: not a line of detections: {','.join(fields)[:80]}") from None
        rows.append([frame, *numbers])
    table = np.array(rows).reshape(-1, 6)
    if detector in CALIBRATION:
        centre, scale = CALIBRATION[detector]
        table[:, 5] = expit((table[:, 5] - centre) / scale)
    elif ((table[:, 5] < 0) | (table[:, 5] > 1)).any():
        raise ValueError(
            f"{path} has scores outside 0 to 1, and what they mean is known of {', '.join(CALIBRATION)} only"
        )
    return table[(table[:, 1] < table[:, 3]) & (table[:, 2] < table[:, 4])]


def _checked(frame: str, numbers: Sequence[str]) -> tuple[int, list[float]]:
    """A frame from 0, and numbers that are finite; ValueError where they are not."""
    index, values = int(frame), [float(number) for number in numbers]
    if index < 0 or not all(map(math.isfinite, values)):
        raise ValueError(f"{frame}, {numbers}")
    return index, values


def _lines(path: str, delimiter: str | None, columns: int) -> list[tuple[int, list[str]]]:
    """The number and the fields of each line of a text; ValueError where one has too few."""
    with fsspec.open(path, "rt") as file:
        lines = [(number, line.split(delimiter)) for number, line in enumerate(file, 1) if line.strip()]
    for number, fields in lines:
        if len(fields) < columns:
            raise ValueError(f"{path}:{number}: {len(fields)} columns; it must have at least {columns}")
    return lines


def _sequence(fs: Any, root: str, name: str, detector: str) -> VideoInfo:
    truth_path, images = f"{root}/label_02/{name}.txt", f"{root}/image_02/{name}"
    given = [f"{root}/{detector}_{kind.capitalize()}/{name}.txt" for kind in CLASSES]
    texts = [path for path in (truth_path, *given) if fs.isfile(path)]
    has_images = fs.isdir(images)
    return VideoInfo(
        video_id=name,
        uri=address(fs, images) if has_images else "",
        catalog="kitti",
        kind="images" if has_images else "rows",
        identity=identity([*(fs.ls(images, detail=True) if has_images else []), *(fs.info(path) for path in texts)]),
        truth_uri=address(fs, truth_path) if truth_path in texts else None,
        detections_uri=address(fs, f"{root}/{detector}") if any(path in texts for path in given) else None,
        fps=FPS,
    )
