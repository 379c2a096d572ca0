"""WIDER FACE: stills of faces in crowds; each image is a video of one frame, and faces have no identities.

    trackloom run --catalog wider_face WIDER --set catalog.split=val

The published tree is wider_face_split/wider_face_<split>_bbx_gt.txt with WIDER_<split>/images/<event>/<image>.jpg, of
train, val and test; test has a list of its images (wider_face_test_filelist.txt) and no truth. The text says of each
image its file below `images`, a line with the number of its faces, and a line a face: left, top, width, height, then
blur, expression, illumination, invalid, occlusion, pose. (torchvision's WIDERFace calls the last three occlusion, pose,
invalid; only the fifth of the six is ever 2, and occlusion alone of those three has three degrees.) An image without
faces has the number 0 and one line of zeros. Left, top, width and height are taken as continuous pixels.

Faces marked invalid are ignored as the dataset's own evaluation ignores: predictions matched to them do not count.
Its lists of easy, medium and hard faces (MATLAB files beside the text) are not read: all other faces are scored.

Boxes are tight round the face, from the forehead to the chin. Not all datasets draw faces so: see `catalogs/hannah.py`
before a detector trained here is scored there.
Source: Yang et al., WIDER FACE: A Face Detection Benchmark, CVPR 2016, and the readme of wider_face_split.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import fsspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from catalogs.parts import faces
from catalogs.parts.files import address, folder_of, identity
from pipeline import records
from pipeline.records import VideoInfo

CLASSES = faces.CLASSES

FLAGS = (  # what the values 1 and 2 of columns 5 to 10 mean; 0 is nothing out of the ordinary
    ("blur_normal", "blur_heavy"),
    ("expression_exaggerated",),
    ("illumination_extreme",),
    ("invalid",),
    ("occlusion_partial", "occlusion_heavy"),
    ("pose_atypical",),
)
INVALID = 7  # column of the mark, from 0
COLUMNS = 4 + len(FLAGS)

Split = Literal["train", "val", "test"]
Int = NDArray[np.int64]


@dataclass(frozen=True)
class Settings:
    """split: train (12,880 images), val (3,226) or test (16,097, without truth)."""

    split: Split = "val"

    def __post_init__(self) -> None:
        if self.split not in get_args(Split):
            raise ValueError(f"wider_face.split is {self.split!r}; it must be one of: {', '.join(get_args(Split))}")


def videos(source: str | None, settings: Settings) -> list[VideoInfo]:
    """The images of a split, called by their event and name; of kind `rows` where only the truth is there.

    Raises FileNotFoundError or ValueError where a folder is not, or only in part, what the top of this file says.
    """
    fs, root = folder_of(source, "wider_face", f"wider_face_split and WIDER_{settings.split}")
    has_truth = settings.split != "test"
    ending = "bbx_gt.txt" if has_truth else "filelist.txt"
    text = f"{root}/wider_face_split/wider_face_{settings.split}_{ending}"
    images = f"{root}/WIDER_{settings.split}/images"
    if not fs.isfile(text):
        raise FileNotFoundError(
            f"{source} holds no WIDER FACE of split {settings.split}; looked for {text[len(root) + 1 :]} in it"
        )
    names = list(read_faces(address(fs, text))) if has_truth else fs.cat_file(text).decode().split()
    found = {path[len(images) + 1 :]: entry for path, entry in fs.find(images, detail=True).items()}
    missing = [name for name in names if name not in found]
    if missing and (found or not has_truth):
        raise FileNotFoundError(
            f"{images} lacks {len(missing)} of the {len(names)} images of {text[len(root) + 1 :]}, "
            f"the first of them {missing[0]}; the split must be whole"
        )
    described = fs.info(text)
    return records.unique_ids(
        [
            VideoInfo(
                video_id=name.rpartition(".")[0],
                uri=address(fs, f"{images}/{name}") if found else "",
                catalog="wider_face",
                kind="image" if found else "rows",
                identity=identity([described, found[name]] if found else [described]),
                truth_uri=address(fs, text) if has_truth else None,
            )
            for name in names
        ]
    )


def truth(video: VideoInfo) -> pa.Table | None:
    """The faces of an image that `videos` listed, as rows of TRUTH without track ids; None of test.

    flags: what `FLAGS` calls blur, expression and so on; invalid faces are ignored and also `distractor`.
    """
    if video.truth_uri is None:
        return None
    rows = read_faces(video.truth_uri)[f"{video.video_id}.jpg"]
    invalid = rows[:, INVALID] > 0
    flags = [
        (["distractor"] if is_invalid else [])
        + [names[value - 1] for names, value in zip(FLAGS, row, strict=True) if value > 0]
        for is_invalid, row in zip(invalid, rows[:, 4:].tolist(), strict=True)
    ]
    return faces.table(video.video_id, np.zeros(len(rows), np.int32), rows[:, :4], ignore=invalid, flags=flags)


@lru_cache(maxsize=2)
def read_faces(path: str) -> dict[str, Int]:
    """A file of truth: image -> its faces (N, 10), N >= 0, columns as in the file.

    Raises ValueError that names the line where the file is not what the top of this module says, or is cut short.
    """
    with fsspec.open(path, "rt") as file:
        lines = [line.split() for line in file.read().splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    found: dict[str, Int] = {}
    place = 0
    while place < len(lines):
        (name, count), number = _head(lines, place, path), place + 2
        rows = lines[number : number + max(count, 1)]  # one line of zeros stands for none
        values = [_face(fields, path, number + offset) for offset, fields in enumerate(rows, 1)]
        if len(values) < max(count, 1):
            raise ValueError(f"{path} ends after {len(values)} of the {count} faces of {name}; it must be whole")
        if name in found:
            raise ValueError(f"{path}:{place + 1}: {name} is listed twice")
        found[name] = np.array(values[:count], np.int64).reshape(-1, COLUMNS)
        place = number + len(rows)
    if not found:
        raise ValueError(f"{path} is empty; it must list images and their faces")
    return found


def _head(lines: list[list[str]], place: int, path: str) -> tuple[str, int]:
    """The file and the number of faces that an image's first two lines say."""
    name, count = " ".join(lines[place]), lines[place + 1] if place + 1 < len(lines) else []
    if not name.endswith(".jpg"):
        raise ValueError(f"{path}:{place + 1}: {name[:80]!r} where the file of an image (.jpg) must stand")
    if len(count) != 1 or not count[0].isdecimal():
        raise ValueError(f"{path}:{place + 2}: {' '.join(count)[:80]!r} where the number of faces of {name} must stand")
    return name, int(count[0])


def _face(fields: list[str], path: str, number: int) -> list[int]:
    """The ten numbers of a face; ValueError where they are not ten, or none of the marks' meanings."""
    try:
        values = [int(field) for field in fields]
    except ValueError:
        values = []
    if len(values) != COLUMNS:
        raise ValueError(f"{path}:{number}: not the {COLUMNS} whole numbers of a face: {' '.join(fields)[:80]}")
    for column, (names, value) in enumerate(zip(FLAGS, values[4:], strict=True), 5):
        if not 0 <= value <= len(names):
            raise ValueError(f"{path}:{number}: column {column} is {value}; it must be 0 to {len(names)}")
    return values
