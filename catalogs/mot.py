"""MOTChallenge: sequences as folders (img1/, gt/gt.txt, det/det.txt, seqinfo.ini), boxes as text.

    trackloom run --catalog mot MOT17 --set catalog.detector=FRCNN --set catalog.person=person

A line is `frame, id, left, top, width, height, confidence, ...`, separated by commas or white space, frames from 1.
Left, top, width and height are taken as they stand, as continuous pixels. Ids that count from 0 become ids from 1;
-1 is no id. Columns 8 and 9 of truth with 8 or 9 columns are the class and the visibility (MOT16 and later); of truth
with 10 columns they are a place in the world or -1 (MOT15), and the class is `object`, as it is of all results.
MOT17 has each of its sequences three times, for the detections of DPM, FRCNN and SDP, with the same images and truth.
Source of the format and of what its truth means: motchallenge.net and TrackEval 1.3.
"""

from __future__ import annotations

import configparser
import logging
from dataclasses import dataclass
from itertools import pairwise
from typing import Any
from urllib.parse import quote, unquote

import fsspec
import numpy as np
import pyarrow as pa

from catalogs.parts.files import IMAGES, VIDEOS, address, identity, listed
from catalogs.parts.mot_text import read_text, rows_of
from pipeline import records
from pipeline.boxes import from_xywh
from pipeline.records import VideoInfo
from pipeline.schemas import TRACKS, TRUTH

CLASSES: tuple[str, ...] = ()

CLASS_NAMES = {  # of MOT16, MOT17 and MOT20
    1: "pedestrian",
    2: "person_on_vehicle",
    3: "car",
    4: "bicycle",
    5: "motorbike",
    6: "non_mot_vehicle",
    7: "static_person",
    8: "distractor",
    9: "occluder",
    10: "occluder_on_ground",
    11: "occluder_full",
    12: "reflection",
    13: "crowd",
}
SCORED = 1
DISTRACTORS = (2, 7, 8, 12)  # predictions matched to them do not count
DISTRACTORS_OF_MOT20 = (*DISTRACTORS, 6)
UNNAMED = "object"
SPLITS = ("train", "test")
DETECTORS = ("DPM", "FRCNN", "SDP")  # of MOT17
PERSON = "?person="  # behind the place of truth, where those scored are called otherwise

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """split: the folder taken of a tree that has several; a folder that holds sequences itself is taken as it is.

    detector: of sequences that come once for each detector (MOT17-02-DPM, -FRCNN, -SDP), only this one's.
    given_detections: whether det/det.txt is offered to linkers where it is there; where not, nothing tells such
    sequences apart, and one of each is taken, called as the others (MOT17-02-DPM).
    person: what those who are scored are called in truth, to meet a network's names (COCO's `person`); None leaves
    `pedestrian`, or `object` where the files name no classes.
    """

    split: str = "train"
    detector: str | None = None
    given_detections: bool = True
    person: str | None = None

    def __post_init__(self) -> None:
        if self.person == "":
            raise ValueError("mot.person is empty; it must be a name, or none")


def videos(source: str | None, settings: Settings) -> list[VideoInfo]:
    """The sequences below a folder, or the one that it is.

    A sequence is a folder with any of img1/, a video file beside gt or det, gt/gt.txt (or gt.txt) and det/det.txt (or
    det.txt). Without images or video it is of kind `rows`. Raises FileNotFoundError where there is none.
    """
    if not source:
        raise ValueError("the catalog mot needs a folder: of sequences, or one sequence")
    fs, root = fsspec.core.url_to_fs(str(source))
    root = root.rstrip("/")
    if not fs.isdir(root):
        raise FileNotFoundError(
            f"{source} is not a folder; the catalog mot needs a folder of sequences, or one of them"
        )
    found = _sequences(fs, root, settings) or _sequences(fs, f"{root}/{settings.split}", settings)
    if not found:
        raise FileNotFoundError(
            f"{source} holds no MOTChallenge sequence; looked for img1/, gt/gt.txt, det/det.txt in it and its folders, "
            f"and in those of {settings.split}{_other_splits(fs, root)}"
        )
    if settings.detector is not None:
        ending = f"-{settings.detector}"
        detectors = sorted({video.video_id.rsplit("-", 1)[-1] for video in found})
        found = [video for video in found if video.video_id.endswith(ending)]
        if not found:
            raise ValueError(
                f"no sequence of {source} ends in {ending!r}; there is: {', '.join(detectors)} (mot.detector)"
            )
    elif not settings.given_detections:
        found = list({_without_detector(video.video_id): video for video in reversed(found)}.values())
    return records.unique_ids(found)


def truth(video: VideoInfo) -> pa.Table | None:
    """The truth of a video that `videos` listed, as rows of TRUTH; None where it has none.

    As in TrackEval's preprocessing: truth marked not to be considered (column 7 is 0) and classes other than
    pedestrian are ignored rows flagged `unscored`: they take part in the matching, but excuse nothing. Distractor
    classes are flagged `distractor`: predictions matched to them do not count. Ignored rows name no class, since they
    concern all; their own is among the flags.
    """
    if video.truth_uri is None:
        return None
    path, _, person = video.truth_uri.partition(PERSON)
    return read_truth(path, video.video_id, unquote(person) or None)


def detections(video: VideoInfo) -> list[records.Detections]:
    """The given detections of a video that `videos` listed: one record a frame, also where it has none, label 0."""
    if video.detections_uri is None:
        raise FileNotFoundError(f"{video.video_id} has no det/det.txt; its detections cannot be linked")
    return read_detections(video.detections_uri, fps=video.fps)


def read_truth(path: str, video_id: str, person: str | None = None) -> pa.Table:
    """A file of truth as rows of TRUTH; person: as in Settings."""
    columns = read_text(path)
    count = len(columns)
    class_id = np.full(count, SCORED)
    named = columns.shape[1] in (8, 9)
    if named:
        class_id = columns[:, 7].astype(np.int64)
        unknown = ~np.isin(class_id, [-1, *CLASS_NAMES])
        if unknown.any():
            raise ValueError(
                f"{path}: class {class_id[unknown][0]} (column 8) is not one of MOTChallenge's, 1 to 13; "
                "where there are no classes it is -1"
            )
        named = bool((class_id != -1).any())
    distractors = DISTRACTORS_OF_MOT20 if video_id.startswith("MOT20") else DISTRACTORS
    considered = columns[:, 6] != 0 if columns.shape[1] > 6 else np.ones(count, np.bool_)
    scored = considered & (np.isin(class_id, (SCORED, -1)))
    excusing = np.isin(class_id, distractors)
    name = person or (CLASS_NAMES[SCORED] if named else UNNAMED)
    flags: list[list[str]] = [[]] * count
    for row in np.flatnonzero(~scored).tolist():
        flags[row] = ["distractor" if excusing[row] else "unscored", CLASS_NAMES.get(int(class_id[row]), UNNAMED)]
    return rows_of(
        TRUTH,
        columns,
        video_id,
        class_id=pa.array(np.zeros(count, np.int16), mask=~scored),
        class_name=[name if is_scored else None for is_scored in scored],
        ignore=~scored,
        flags=flags,
    )


def read_tracks(path: str, video_id: str) -> pa.Table:
    """A file of results as rows of TRACKS, of class `object`.

    Where every confidence is -1 (MOTChallenge's for "not given") the scores are 1.
    """
    columns = read_text(path)
    count = len(columns)
    confidence = columns[:, 6] if columns.shape[1] > 6 else np.full(count, -1.0)
    score = (np.ones(count) if (confidence == -1).all() else confidence).astype(np.float32)
    return rows_of(
        TRACKS,
        columns,
        video_id,
        class_id=np.zeros(count, np.int16),
        class_name=UNNAMED,
        score=score,
        raw_score=score,
        origin="tracked",
    )


def read_detections(path: str, fps: float | None = None) -> list[records.Detections]:
    """A file of detections, one record for every frame from the first to the last named, best score first.

    Boxes of no size are left out, and how many is logged.
    """
    columns = read_text(path)
    boxes = from_xywh(columns[:, 2:6]).astype(np.float32)
    sized = (boxes[:, 0] < boxes[:, 2]) & (boxes[:, 1] < boxes[:, 3])
    if not sized.all():
        _log.warning("%s: %d boxes of no size are left out", path, int((~sized).sum()))
    columns, boxes = columns[sized], boxes[sized]
    frame = columns[:, 0].astype(np.int64) - 1
    score = columns[:, 6] if columns.shape[1] > 6 else np.ones(len(columns))
    order = np.lexsort((-score, frame))
    bounds = np.searchsorted(frame[order], np.arange(frame.max(initial=-1) + 2))
    return [
        records.detections(
            index, boxes[order[a:b]], score[order[a:b]], timestamp_s=index / (fps or records.DEFAULT_FPS)
        )
        for index, (a, b) in enumerate(pairwise(bounds.tolist()))
    ]


def _sequences(fs: Any, root: str, settings: Settings) -> list[VideoInfo]:
    """The sequence that a folder is, or those that its folders are; none where there is no such folder."""
    if not fs.isdir(root):
        return []
    own = _sequence(fs, root, settings)  # a sequence's own folders, gt and det, are none themselves
    if own:
        return [own]
    folders = sorted(path.rstrip("/") for path in fs.ls(root, detail=False) if fs.isdir(path))
    below = (_sequence(fs, folder, settings) for folder in folders)
    return [video for video in below if video is not None]


def _other_splits(fs: Any, root: str) -> str:
    """What else might have been meant."""
    there = [name for name in SPLITS if fs.isdir(f"{root}/{name}")]
    return f"; there is {' and '.join(there)} (mot.split)" if there else ""


def _without_detector(video_id: str) -> str:
    """MOT17-02 of MOT17-02-DPM."""
    name, _, detector = video_id.rpartition("-")
    return name if detector in DETECTORS else video_id


def _sequence(fs: Any, folder: str, settings: Settings) -> VideoInfo | None:
    """The sequence that a folder is, or None."""
    inside = {path.rstrip("/").rsplit("/", 1)[-1]: path for path in fs.ls(folder, detail=False)}
    gt = _first(fs, f"{folder}/gt/gt.txt", f"{folder}/gt.txt")
    det = _first(fs, f"{folder}/det/det.txt", f"{folder}/det.txt")
    timing = _first(fs, f"{folder}/seqinfo.ini")
    info = _seqinfo(fs, timing) if timing else {}
    frames = f"{folder}/{info.get('imdir', 'img1')}"
    files = sorted(path for name, path in inside.items() if name.lower().endswith(VIDEOS))
    texts = [path for path in (gt, det) if path]
    kind: records.Kind
    if fs.isdir(frames):
        kind, uri = "images", frames
        content = list(listed(fs, frames, IMAGES).values())
        promised = int(info.get("seqlength", len(content)))
        if len(content) != promised:  # an image left out moves all after it off their truth
            raise ValueError(
                f"{frames} holds {len(content)} images and {timing} says {promised}; it must hold them all"
            )
    elif files and texts:
        kind, uri, content = "video", files[0], [fs.info(files[0])]
    elif texts:
        kind, uri, content = "rows", "", []
    elif timing:
        raise FileNotFoundError(
            f"{folder} holds but seqinfo.ini; looked for {info.get('imdir', 'img1')}/, gt/gt.txt, det/det.txt in it"
        )
    else:
        return None
    if not settings.given_detections:
        det = None
    # Tables made of another truth, other detections or another frame rate are not this content's.
    content = [*content, *(fs.info(path) for path in (gt, det, timing) if path)]
    height, width = info.get("imheight"), info.get("imwidth")
    return VideoInfo(
        video_id=folder.rsplit("/", 1)[-1],
        uri=address(fs, uri) if uri else "",
        catalog="mot",
        kind=kind,
        identity=identity(content),
        truth_uri=address(fs, gt) + (PERSON + quote(settings.person) if settings.person else "") if gt else None,
        detections_uri=address(fs, det) if det else None,
        fps=float(info["framerate"]) if "framerate" in info else None,
        size=(int(height), int(width)) if height and width else None,
    )


def _first(fs: Any, *paths: str) -> str | None:
    """The first of these paths that is a file."""
    return next((path for path in paths if fs.isfile(path)), None)


def _seqinfo(fs: Any, path: str) -> dict[str, str]:
    """The section Sequence of seqinfo.ini, keys in lower case."""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(fs.cat_file(path).decode("utf-8-sig"))
        return dict(parser["Sequence"])
    except (configparser.Error, KeyError, UnicodeDecodeError):
        raise ValueError(f"{path} has no readable section [Sequence] with lines like imWidth=1920") from None


def classes(video: VideoInfo) -> tuple[str, ...]:
    """The names of the labels that `detections` gives."""
    return (UNNAMED,)
