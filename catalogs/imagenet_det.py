"""ImageNet DET (ILSVRC 2015): stills of VID's 30 classes, which detectors of VID also learn on.

    trackloom train ILSVRC2015 --catalog imagenet_det --model smot --out RUN

The dataset is Data/DET/<split>/<image>.JPEG with Annotations/DET/<split>/<image>.xml; the images of train lie a folder
or two deeper (ILSVRC2013_train/<WordNet id>, ILSVRC2014_train_0000). Each image is a video of one frame. Of DET's 200
classes only those that VID has are taken: images that show none of them are left out, and so are other boxes.

Which images of train show a class is what ImageSets/DET/train_1.txt to train_200.txt say, so that hundreds of thousands
of annotations need not be opened: a line is an image and 1 where it does. The dataset does not say which class has
which number; a list is that of the class in whose folder of ILSVRC2013_train most of its images lie. Where the 30 lists
cannot be told so, and of val, all annotations are read instead.

Objects have no ids; each is another one, so that its place among those of its image is its id, from 1. A clip of one
still shown twice then says that all of them stand still (D&T, section 5.2).
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import fsspec
import numpy as np
import pyarrow as pa

from catalogs.parts import imagenet
from catalogs.parts.files import IMAGES, address, folder_of, identity, listed
from catalogs.parts.tables import of_schema
from pipeline import records
from pipeline.records import VideoInfo
from pipeline.schemas import TRUTH

CLASSES = imagenet.CLASSES

LIST = re.compile(r"train_\d+\.txt")
POSITIVE = re.compile(rb"^(\S+)[ \t]+1[ \t]*\r?$", re.MULTILINE)  # else -1, or 0 where it is not certain

Split = Literal["train", "val"]
Shown = Mapping[str, Collection[str]]  # the WordNet ids of the classes that an image shows, by the image's name


@dataclass(frozen=True)
class Settings:
    """split: of the dataset. per_class: at most so many images of a class, drawn by `seed`; None for all of them."""

    split: Split = "train"
    per_class: int | None = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.split not in get_args(Split):
            raise ValueError(f"split is {self.split!r}; it must be one of: {', '.join(get_args(Split))}")
        if self.per_class is not None and self.per_class < 1:
            raise ValueError(f"per_class is {self.per_class}; it must be at least 1, or none")


def videos(source: str | None, settings: Settings) -> list[VideoInfo]:
    """The images of a split that show one of the classes, called by their path below the split.

    Raises FileNotFoundError or ValueError where a folder is not, or only in part, what the top of this file says.
    """
    fs, root = folder_of(source, "imagenet_det", "Data/DET and Annotations/DET: ILSVRC2015")
    data, annotations = (f"{root}/{part}/DET/{settings.split}" for part in ("Data", "Annotations"))
    missing = [folder for folder in (data, annotations) if not fs.isdir(folder)]
    if missing:
        raise FileNotFoundError(f"{source} is no ImageNet DET; there is no {', '.join(missing)}")
    shown = by_lists(fs, f"{root}/ImageSets/DET") if settings.split == "train" else None
    if shown is None:
        shown = by_annotations(fs, annotations)
    wanted = choose(shown, settings.per_class, settings.seed)
    if not wanted:
        raise FileNotFoundError(f"{annotations} has no image of ImageNet VID's 30 classes; looked in all of its .xml")
    folders = sorted({posixpath.dirname(name) for name in wanted})
    images, texts = (_entries(fs, data, folders, IMAGES), _entries(fs, annotations, folders, (".xml",)))
    for there, folder in ((images, data), (texts, annotations)):
        lacking = [name for name in wanted if name not in there]
        if lacking:
            raise FileNotFoundError(
                f"{folder} lacks {len(lacking)} of the {len(wanted)} images that are wanted, the first {lacking[0]}; "
                "the dataset must be whole"
            )
    return records.unique_ids(
        [
            VideoInfo(
                video_id=name,
                uri=address(fs, images[name]["name"]),
                catalog="imagenet_det",
                kind="image",
                identity=identity([images[name], texts[name]]),
                truth_uri=address(fs, texts[name]["name"]),
            )
            for name in wanted
        ]
    )


def truth(video: VideoInfo) -> pa.Table:
    """The boxes of an image that `videos` listed, as rows of TRUTH; raises ValueError where its XML is damaged."""
    assert video.truth_uri is not None, "videos() names the annotation"
    fs, path = fsspec.core.url_to_fs(video.truth_uri)
    things = [
        (imagenet.CLASSES.index(imagenet.WORDNET_IDS[name]), imagenet.corners(thing, path))
        for thing in imagenet.parsed(fs, path).iter("object")
        if (name := imagenet.text(thing, "name", path)) in imagenet.WORDNET_IDS
    ]
    label = [class_id for class_id, _ in things]
    return of_schema(
        TRUTH,
        imagenet.continuous(np.array([corners for _, corners in things], np.float64).reshape(-1, 4)),
        video_id=video.video_id,
        frame_index=np.zeros(len(things), np.int32),
        track_id=np.arange(1, len(things) + 1),
        class_id=label,
        class_name=[CLASSES[class_id] for class_id in label],
        ignore=np.zeros(len(things), np.bool_),
    )


def choose(shown: Shown, per_class: int | None, seed: int) -> list[str]:
    """The names of images, sorted, such that no class is shown by more than `per_class` of them.

    An image of two classes counts for both. Images come in an order that the seed and their names give, whatever order
    they were listed in; rare classes choose before the others, which would take up what both show. No image could be
    added without a class having too many.
    """
    if per_class is None:
        return sorted(shown)
    of_class: dict[str, list[str]] = {}
    for name in sorted(shown, key=lambda name: hashlib.sha256(f"{seed}|{name}".encode()).digest()):
        for wordnet_id in shown[name]:
            of_class.setdefault(wordnet_id, []).append(name)
    taken: set[str] = set()
    counts: Counter[str] = Counter()
    for wordnet_id in sorted(of_class, key=lambda each: (len(of_class[each]), each)):
        for name in of_class[wordnet_id]:
            if name not in taken and all(counts[each] < per_class for each in shown[name]):
                taken.add(name)
                counts.update(shown[name])
    return sorted(taken)


def by_lists(fs: Any, folder: str) -> Shown | None:
    """What the images of train show, by the lists of ImageSets; None where these do not say of which class they are."""
    positives: dict[str, list[str]] = {}  # by WordNet id
    for name, entry in sorted(listed(fs, folder, (".txt",)).items()):
        if LIST.fullmatch(name):
            names = [found.decode() for found in POSITIVE.findall(fs.cat_file(entry["name"]))]
            homes = Counter(posixpath.basename(posixpath.dirname(each)) for each in names if "_train/n" in each)
            for wordnet_id, _ in homes.most_common(1):
                if wordnet_id in positives:
                    return None
                positives[wordnet_id] = names
    if not imagenet.WORDNET_IDS.keys() <= positives.keys():
        return None
    shown: dict[str, set[str]] = {}
    for wordnet_id in imagenet.WORDNET_IDS:
        for name in positives[wordnet_id]:
            shown.setdefault(name, set()).add(wordnet_id)
    return shown


def by_annotations(fs: Any, folder: str) -> Shown:
    """What the images of a split show, by their annotations; raises ValueError where one is damaged."""
    shown = {}
    for path in fs.find(folder):
        if path.endswith(".xml"):
            things = imagenet.parsed(fs, path).iter("object")
            classes = {imagenet.text(thing, "name", path) for thing in things} & imagenet.WORDNET_IDS.keys()
            if classes:
                shown[posixpath.splitext(path[len(folder) + 1 :])[0]] = classes
    return shown


def _entries(fs: Any, root: str, folders: Collection[str], endings: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """The files of folders below a root, by their path below it without the suffix."""
    return {
        posixpath.join(folder, posixpath.splitext(name)[0]): entry
        for folder in folders
        for name, entry in listed(fs, f"{root}/{folder}".rstrip("/"), endings).items()
    }
