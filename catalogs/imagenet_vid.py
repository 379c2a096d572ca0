"""ImageNet VID (ILSVRC 2015): the dataset's own folders, or the truth of its validation videos alone, without pixels.

    trackloom run --catalog imagenet_vid ILSVRC2015 --set catalog.split=val

The dataset is Data/VID/<split>/<video>/000000.JPEG with Annotations/VID/<split>/<video>/000000.xml; the videos of
train lie a folder deeper. The truth alone is what the evaluation of FGFA (Zhu et al., Flow-Guided Feature Aggregation)
reads beside it: the boxes of all validation frames and their motion IoU as MATLAB files, and the list of videos. It
has no track ids.

Corners are whole pixels, the last one included: 1 is added to x2 and y2. Ids count from 0 there, from 1 here.
`motion_iou` is FGFA's: a box's mean IoU with the boxes of its object up to 10 frames away, 1 where there is none.
"""

from __future__ import annotations

import io
import posixpath
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import fsspec
import numpy as np
import pyarrow as pa
import scipy.io
from numpy.typing import NDArray
from scipy.io.matlab import MatReadError

from catalogs.parts import imagenet
from catalogs.parts.files import absolute, address, identity
from catalogs.parts.tables import of_schema
from pipeline import records
from pipeline.boxes import area
from pipeline.records import VideoInfo
from pipeline.schemas import TRUTH

CLASSES = imagenet.CLASSES
FLAGS = ("occluded", "generated")  # of the annotations: behind something; put there between frames that a person saw
NEAR = 10  # frames either side whose boxes motion_iou looks at

BOXES = "ILSVRC2015_vid_validation_ground_truth_whole.mat"
MOTION = "imagenet_vid_groundtruth_motion_iou.mat"
LIST = "VID_val_videos.txt"

Split = Literal["train", "val", "test"]
Array = NDArray[Any]


@dataclass(frozen=True)
class Settings:
    """split: of the dataset. image_set: a list of ImageSets, as VID/train_1, whose videos alone are taken."""

    split: Split = "val"
    image_set: str | None = None

    def __post_init__(self) -> None:
        if self.split not in get_args(Split):
            raise ValueError(f"split is {self.split!r}; it must be one of: {', '.join(get_args(Split))}")


def videos(source: str | None, settings: Settings) -> list[VideoInfo]:
    """The videos of a split; of kind `rows` where only truth is there.

    Raises FileNotFoundError or ValueError where a folder is not, or only in part, what the top of this file says.
    """
    if not source:
        raise ValueError("the catalog imagenet_vid needs a folder: ILSVRC2015, or that of the validation truth")
    source = absolute(str(source)).rstrip("/")
    fs, root = fsspec.core.url_to_fs(source)
    if not fs.isdir(root):
        raise FileNotFoundError(f"{source} is not a folder; the catalog imagenet_vid needs ILSVRC2015 or the like")
    if any(fs.isdir(f"{root}/{part}/VID/{settings.split}") for part in ("Data", "Annotations")):
        return records.unique_ids(list(_dataset(fs, root, settings)))
    missing = [name for name in (BOXES, MOTION, LIST) if not fs.isfile(f"{root}/{name}")]
    if len(missing) == 3:
        raise FileNotFoundError(
            f"{source} is no ImageNet VID; looked for Data/VID/{settings.split}, Annotations/VID/{settings.split}, "
            f"{BOXES}, {MOTION}, {LIST}"
        )
    if missing:
        raise FileNotFoundError(
            f"{source} lacks {', '.join(missing)}; the truth is read from {BOXES}, {MOTION}, {LIST}"
        )
    if settings.split != "val" or settings.image_set:
        raise ValueError(f"{source} has the truth of val alone; split {settings.split} and image_set need the dataset")
    made_of = identity([fs.info(f"{root}/{name}") for name in (BOXES, MOTION, LIST)])
    return records.unique_ids(
        [
            VideoInfo(name, uri="", catalog="imagenet_vid", kind="rows", identity=made_of, truth_uri=source)
            for name in read_validation(source).spans
        ]
    )


def truth(video: VideoInfo) -> pa.Table | None:
    """The truth of a video that `videos` listed, as rows of TRUTH; None where it has none (test)."""
    if video.truth_uri is None:
        return None
    fs, path = fsspec.core.url_to_fs(video.truth_uri)
    if fs.isfile(f"{path}/{BOXES}"):
        return read_validation(video.truth_uri).truth(video.video_id)
    return read_annotations(video.truth_uri, video.video_id)


@dataclass(frozen=True)
class Validation:
    """The truth of the validation videos. spans: of each video its first frame among all and the one after its last.

    first: the first box of each frame (176,127,). boxes: (273,505, 4) xyxy float32; labels, motion: (273,505,).
    """

    spans: Mapping[str, tuple[int, int]]
    first: Array
    boxes: Array
    labels: Array
    motion: Array

    def truth(self, video_id: str) -> pa.Table:
        """The rows of a video."""
        start, stop = self.spans[video_id]
        chosen = slice(self.first[start], self.first[stop])
        frame = np.repeat(np.arange(stop - start), np.diff(self.first[start : stop + 1]))
        return _table(video_id, frame, self.labels[chosen], self.boxes[chosen], self.motion[chosen])


@lru_cache(maxsize=1)
def read_validation(folder: str) -> Validation:
    """The truth of the validation videos from its three files, read once a process."""
    fs, root = fsspec.core.url_to_fs(folder)
    lines = [line.split() for line in fs.cat_file(f"{root}/{LIST}").decode().splitlines() if line.strip()]
    spans = {}
    for words in lines:  # path of the video, number of its first frame from 1, of its first among its own, how many
        if len(words) != 4 or not all(word.isdigit() for word in words[1:]):
            raise ValueError(
                f"{folder}/{LIST} has lines like 'val/ILSVRC2015_val_00000000 1 0 464'; got: {' '.join(words)}"
            )
        start, length = int(words[1]) - 1, int(words[3])
        spans[words[0].rpartition("/")[2]] = (start, start + length)
    known = _matlab(fs, f"{root}/{BOXES}", ("gt_obj_bboxes", "gt_obj_labels", "gt_img_ids"))
    motion = _matlab(fs, f"{root}/{MOTION}", ("motion_iou",))["motion_iou"].ravel()
    boxes, labels = known["gt_obj_bboxes"].ravel(), known["gt_obj_labels"].ravel()
    numbers = known["gt_img_ids"].ravel()
    order = np.argsort(numbers)
    if not np.array_equal(numbers[order], np.arange(1, sum(b - a for a, b in spans.values()) + 1)):
        raise ValueError(f"{folder}: the frames of {BOXES} are not those of {LIST}; both must be of all of val")
    sizes = np.array([part.size for part in labels[order]])
    if len(motion) != len(labels) or any(part.size != size for part, size in zip(motion[order], sizes, strict=True)):
        raise ValueError(f"{folder}: {MOTION} has other boxes than {BOXES}; it must have one number for each")
    return Validation(
        spans=spans,
        first=np.concatenate([[0], np.cumsum(sizes)]),
        boxes=imagenet.continuous(np.concatenate([part.reshape(4, -1).T for part in boxes[order]])),
        labels=np.concatenate([part.ravel() for part in labels[order]]).astype(np.int64) - 1,
        motion=np.concatenate([part.ravel() for part in motion[order]]),
    )


def read_annotations(folder: str, video_id: str) -> pa.Table:
    """The truth of a video from its folder of XML files, a file a frame, with track ids; raises ValueError by file."""
    fs, root = fsspec.core.url_to_fs(folder)
    frames = sorted((path for path in fs.ls(root, detail=False) if path.endswith(".xml")), key=records.natural_key)
    rows: list[tuple[int, int, int]] = []  # frame, track, label
    corners, flags = [], []
    for frame, path in enumerate(frames):
        for thing in imagenet.parsed(fs, path).iter("object"):
            name = imagenet.text(thing, "name", path)
            if name not in imagenet.WORDNET_IDS:
                raise ValueError(f"{path} has an object {name!r}, which is none of ImageNet VID's 30 classes")
            rows.append((frame, imagenet.number(thing, "trackid", path) + 1, CLASSES.index(imagenet.WORDNET_IDS[name])))
            corners.append(imagenet.corners(thing, path))
            flags.append([flag for flag in FLAGS if thing.findtext(flag) == "1"])
    frame_of, track, label_of = np.array(rows, np.int64).reshape(-1, 3).T
    boxes = imagenet.continuous(np.array(corners, np.float64).reshape(-1, 4))
    motion = motion_iou(frame_of, track, boxes)
    return _table(video_id, frame_of, label_of, boxes, motion, track, flags)


def motion_iou(frame: Array, track: Array, boxes: Array) -> Array:
    """The mean IoU (N,) of each box (N, 4) with the boxes of its track up to 10 frames away; 1 where there is none.

    This is the number that FGFA publishes for the validation videos.
    """
    place = track * (int(frame.max(initial=0)) + NEAR + 1) + frame  # tracks are too far apart to meet
    order = np.argsort(place)
    place, boxes = place[order], np.asarray(boxes, np.float64)[order]
    total, number = np.zeros(len(place)), np.zeros(len(place))
    for distance in range(1, NEAR + 1):
        after = np.searchsorted(place, place + distance)
        before = np.flatnonzero(np.append(place, -1)[after] == place + distance)
        after = after[before]
        corner = np.maximum(boxes[before, :2], boxes[after, :2]), np.minimum(boxes[before, 2:], boxes[after, 2:])
        shared = np.maximum(corner[1] - corner[0], 0).prod(axis=1)
        overlap = shared / (area(boxes[before]) + area(boxes[after]) - shared)
        for row in (before, after):  # each at most once
            total[row] += overlap
            number[row] += 1
    mean = np.ones(len(place))
    mean[order] = np.divide(total, number, out=np.ones(len(place)), where=number > 0)
    return mean


def _dataset(fs: Any, root: str, settings: Settings) -> Iterator[VideoInfo]:
    """The videos of the dataset's folders, or those of a list of ImageSets."""
    data, annotations = (f"{root}/{part}/VID/{settings.split}" for part in ("Data", "Annotations"))
    images, texts = _folders(fs, data), _folders(fs, annotations)
    wanted = sorted(images or texts)
    if settings.image_set:
        wanted = _listed(fs, f"{root}/ImageSets/{settings.image_set}.txt", settings.split)
    for name in wanted:
        for there, folder in ((images, data), (texts, annotations)):
            if there and name not in there:
                raise FileNotFoundError(f"{folder} lacks the folder {name}; the dataset must be whole")
        shown, known = _stems(images.get(name, [])), _stems(texts.get(name, []))
        if images and texts and shown != known:  # truth would slip off its frames
            raise ValueError(
                f"{data}/{name} holds {len(shown)} images and {annotations}/{name} {len(known)} annotations; "
                "they must be of the same frames"
            )
        yield VideoInfo(
            video_id=name,
            uri=address(fs, f"{data}/{name}") if images else "",
            catalog="imagenet_vid",
            kind="images" if images else "rows",
            identity=identity([*images.get(name, []), *texts.get(name, [])]),
            truth_uri=address(fs, f"{annotations}/{name}") if texts else None,
            size=imagenet.size(fs, str(texts[name][0]["name"])) if texts else None,
        )


def _folders(fs: Any, root: str) -> dict[str, list[dict[str, Any]]]:
    """The folders with files somewhere below a folder: path below it -> entries of its images or annotations."""
    found: dict[str, list[dict[str, Any]]] = {}
    for folder, _, files in fs.walk(root, detail=True):
        entries = [files[name] for name in sorted(files) if name.lower().endswith((".jpeg", ".jpg", ".xml"))]
        if entries:
            found[str(folder).rstrip("/")[len(root) + 1 :]] = entries
    return found


def _stems(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of files without their folder and suffix."""
    return [posixpath.splitext(posixpath.basename(str(entry["name"])))[0] for entry in entries]


def _listed(fs: Any, path: str, split: str) -> list[str]:
    """The videos of a list: lines that start with a video or a frame of one, with or without the split before it."""
    if not fs.isfile(path):
        raise FileNotFoundError(f"there is no {path} (imagenet_vid.image_set)")
    first = [
        line.split()[0].removeprefix(f"{split}/") for line in fs.cat_file(path).decode().splitlines() if line.strip()
    ]
    names = (name.rpartition("/") for name in first)
    return sorted({folder if last.isdigit() else f"{folder}{slash}{last}" for folder, slash, last in names})


def _matlab(fs: Any, path: str, names: tuple[str, ...]) -> dict[str, Array]:
    """The arrays of a MATLAB file; raises ValueError where it is none, or lacks one."""
    file: Any = io.BytesIO(fs.cat_file(path))
    try:
        found: dict[str, Array] = scipy.io.loadmat(file, variable_names=names)
    except (ValueError, TypeError, IndexError, OSError, NotImplementedError, zlib.error, MatReadError) as error:
        raise ValueError(f"{path} is not a whole MATLAB file of version 5 to 7: {error}") from None
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; it must be the file of that name of FGFA's evaluation")
    return found


def _table(
    video_id: str,
    frame: Array,
    label: Array,
    boxes: Array,
    motion: Array,
    track: Array | None = None,
    flags: Sequence[Sequence[str]] | None = None,
) -> pa.Table:
    """Rows of TRUTH, in the order given."""
    return of_schema(
        TRUTH,
        boxes,
        video_id=video_id,
        frame_index=frame,
        track_id=track,
        class_id=label,
        class_name=pa.DictionaryArray.from_arrays(pa.array(label, pa.int32()), pa.array(CLASSES)),
        ignore=np.zeros(len(frame), np.bool_),
        motion_iou=motion,
        flags=flags,
    )
