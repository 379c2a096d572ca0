"""ImageNet VID: the dataset's folders, made on the spot, and the real truth of its validation videos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import scipy.io

from catalogs import imagenet_vid
from catalogs.imagenet_vid import BOXES, CLASSES, LIST, MOTION, Settings
from catalogs.parts.imagenet import WORDNET_IDS
from pipeline import scoring
from pipeline.boxes import iou
from pipeline.schemas import TRACKS, TRUTH

Thing = tuple[int, str, tuple[int, int, int, int]]  # trackid, WordNet id, xmin, ymin, xmax, ymax
DOG, FOX = "n02084071", "n02118333"


def annotate(path: Path, things: Sequence[Thing], occluded: int = 0) -> None:
    """An annotation as the dataset's are: 320 x 240 pixels."""
    objects = "".join(
        f"<object><trackid>{track}</trackid><name>{name}</name><bndbox><xmax>{x2}</xmax><xmin>{x1}</xmin>"
        f"<ymax>{y2}</ymax><ymin>{y1}</ymin></bndbox><occluded>{occluded}</occluded><generated>1</generated></object>"
        for track, name, (x1, y1, x2, y2) in things
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<annotation><filename>{path.stem}</filename><size><width>320</width><height>240</height></size>"
        f"{objects}</annotation>"
    )


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two videos of val, one of train and one of test; the second of val has a frame without objects."""
    root = tmp_path / "ILSVRC2015"
    for split, video, frames in (("val", "a", 3), ("val", "b", 2), ("train", "part/c", 1), ("test", "d", 1)):
        for frame in range(frames):
            image = root / "Data" / "VID" / split / video / f"{frame:06d}.JPEG"
            image.parent.mkdir(parents=True, exist_ok=True)
            image.write_bytes(b"not read here")
            dog = (0, DOG, (10 * frame, 0, 10 * frame + 19, 19))
            things = [] if (video, frame) == ("b", 1) else [dog] if frame else [dog, (1, FOX, (100, 5, 109, 14))]
            if split != "test":
                annotate(
                    root / "Annotations" / "VID" / split / video / f"{frame:06d}.xml", things, occluded=int(frame == 2)
                )
    return root


def test_the_dataset_is_listed(dataset: Path) -> None:
    a, b = imagenet_vid.videos(str(dataset), Settings())
    assert (a.video_id, b.video_id, a.kind, a.size) == ("a", "b", "images", (240, 320))
    assert (a.uri, a.truth_uri) == (str(dataset / "Data/VID/val/a"), str(dataset / "Annotations/VID/val/a"))
    (c,) = imagenet_vid.videos(str(dataset), Settings(split="train"))
    assert (c.video_id, c.uri) == ("part/c", str(dataset / "Data/VID/train/part/c"))
    table = imagenet_vid.truth(c)
    assert table is not None
    assert table.select(["video_id", "class_name", "track_id", "x2"]).to_pylist() == [
        {"video_id": "part/c", "class_name": "dog", "track_id": 1, "x2": 20},
        {"video_id": "part/c", "class_name": "fox", "track_id": 2, "x2": 110},
    ]
    (d,) = imagenet_vid.videos(str(dataset), Settings(split="test"))
    assert (d.truth_uri, imagenet_vid.truth(d)) == (None, None)


def test_its_truth_is_read(dataset: Path) -> None:
    a, b = imagenet_vid.videos(str(dataset), Settings())
    table = imagenet_vid.truth(a)
    assert table is not None
    assert table.schema == TRUTH
    rows = table.to_pylist()
    assert [(row["frame_index"], row["track_id"], row["class_name"], row["flags"]) for row in rows] == [
        (0, 1, "dog", ["generated"]),
        (0, 2, "fox", ["generated"]),
        (1, 1, "dog", ["generated"]),
        (2, 1, "dog", ["occluded", "generated"]),
    ]
    assert [CLASSES[row["class_id"]] for row in rows] == [row["class_name"] for row in rows]
    assert [[row[corner] for corner in ("x1", "y1", "x2", "y2")] for row in rows[:3]] == [
        [0, 0, 20, 20],  # the last pixel is one of it
        [100, 5, 110, 15],
        [10, 0, 30, 20],
    ]
    # One step of 10 pixels is an IoU of 1/3, two are none; the fox is alone.
    assert [row["motion_iou"] for row in rows] == pytest.approx([1 / 6, 1, 1 / 3, 1 / 6])
    other = imagenet_vid.truth(b)
    assert other is not None
    assert other["frame_index"].to_pylist() == [0, 0]


def test_without_images_the_truth_is_there(dataset: Path) -> None:
    (dataset / "Data").rename(dataset / "elsewhere")
    a, b = imagenet_vid.videos(str(dataset), Settings())
    assert (a.kind, a.uri, b.kind) == ("rows", "", "rows")
    table = imagenet_vid.truth(a)
    assert table is not None
    assert len(table) == 4


@pytest.mark.parametrize(
    ("split", "text", "expected"),
    [
        ("val", "b/000000 1\nb/000001 2\n", ["b"]),  # VID/val.txt
        ("val", "val/b 1 0 2\n", ["b"]),  # VID_val_videos.txt
        ("train", "part/c 1\n", ["part/c"]),  # VID/train_1.txt
        ("train", "train/part/c 1 0 1\n\n", ["part/c"]),  # VID_train_15frames.txt
    ],
)
def test_a_list_of_image_sets_chooses(dataset: Path, split: imagenet_vid.Split, text: str, expected: list[str]) -> None:
    (dataset / "ImageSets" / "VID").mkdir(parents=True)
    (dataset / "ImageSets" / "VID" / "some.txt").write_text(text)
    found = imagenet_vid.videos(str(dataset), Settings(split=split, image_set="VID/some"))
    assert [video.video_id for video in found] == expected


def test_identity_changes_with_an_annotation(dataset: Path) -> None:
    before = [video.identity for video in imagenet_vid.videos(str(dataset), Settings())]
    annotate(dataset / "Annotations/VID/val/b/000001.xml", [(0, DOG, (0, 0, 1, 1))])
    after = [video.identity for video in imagenet_vid.videos(str(dataset), Settings())]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False]


def test_what_is_wrong_is_said(dataset: Path, tmp_path: Path) -> None:
    def refused(message: str, source: Path | None = dataset, **settings: str) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            imagenet_vid.videos(str(source) if source else None, replace(Settings(), **settings))

    refused("needs a folder", source=None)
    refused("nowhere is not a folder", source=tmp_path / "nowhere")
    refused(rf"is no ImageNet VID; looked for Data/VID/val, Annotations/VID/val, {BOXES}", source=dataset / "Data")
    refused("split is 'vla'; it must be one of: train, val, test", split="vla")
    refused(r"there is no .*ImageSets/VID/none\.txt", image_set="VID/none")
    (dataset / "ImageSets").mkdir()
    (dataset / "ImageSets" / "more.txt").write_text("val/z 1 0 4\n")
    refused("Data/VID/val lacks the folder z; the dataset must be whole", image_set="more")
    (dataset / "Data/VID/val/a/000001.JPEG").unlink()
    refused("a holds 2 images and .*a 3 annotations; they must be of the same frames")
    (dataset / "Annotations/VID/val/b").rename(tmp_path / "b")
    (dataset / "Data/VID/val/a/000001.JPEG").touch()
    refused("Annotations/VID/val lacks the folder b")


BAD = {
    "cut short": ("<annotation><object>", "is not whole XML"),
    "no id": ("<annotation><object><name>n02084071</name></object></annotation>", "<object> lacks trackid"),
    "another class": ("<annotation><object><name>n00000001</name></object></annotation>", "none of ImageNet VID's 30"),
    "words": (
        "<annotation><object><name>n02084071</name><trackid>x</trackid></object></annotation>",
        "trackid is 'x'; it must be a whole number",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_annotations_are_refused_by_file(dataset: Path, name: str) -> None:
    text, message = BAD[name]
    a = imagenet_vid.videos(str(dataset), Settings())[0]
    (dataset / "Annotations/VID/val/a/000001.xml").write_text(text)
    with pytest.raises(ValueError, match=rf"a/000001\.xml.*{message}"):
        imagenet_vid.truth(a)


def test_motion_by_a_plain_loop() -> None:
    random = np.random.default_rng(3)
    chosen = random.permutation(3 * 40)[:70]
    track, frame = chosen // 40, chosen % 40
    place = random.uniform(0, 20, (len(chosen), 2))
    boxes = np.hstack([place, place + random.uniform(5, 20, (len(chosen), 2))])
    for row, motion in enumerate(imagenet_vid.motion_iou(frame, track, boxes)):
        apart = np.abs(frame - frame[row])
        others = (track == track[row]) & (apart > 0) & (apart <= 10)
        expected = iou(boxes[row : row + 1], boxes[others]).mean() if others.any() else 1
        assert motion == pytest.approx(expected, abs=1e-12)


def matlab(folder: Path, boxes: Sequence[object] = (), numbers: Sequence[int] = (1, 2)) -> Path:
    """The truth of one video of two frames, the second without objects, as the evaluation's files have it."""

    def cells(*arrays: object) -> np.ndarray:
        found = np.empty((1, len(arrays)), object)
        found[0] = [np.array(array) for array in arrays]
        return found

    folder.mkdir()
    some, none = np.array([[0, 30], [0, 30], [9, 39], [9, 39]]), np.zeros((0, 0))
    known = {"gt_obj_bboxes": cells(some, none), "gt_obj_labels": cells([[9, 12]], none)}
    scipy.io.savemat(folder / BOXES, {**known, "gt_img_ids": np.array(numbers)[:, None]})
    scipy.io.savemat(folder / MOTION, {"motion_iou": cells(*(boxes or ([[0.5], [0.9]], none))).T})
    (folder / LIST).write_text("val/ILSVRC2015_val_00000000 1 0 2\n")
    return folder


def test_the_validation_truth_is_read(tmp_path: Path) -> None:
    (video,) = imagenet_vid.videos(str(matlab(tmp_path / "truth")), Settings())
    assert (video.video_id, video.kind) == ("ILSVRC2015_val_00000000", "rows")
    table = imagenet_vid.truth(video)
    assert table is not None
    assert table.schema == TRUTH
    columns = ["frame_index", "track_id", "class_name", "x1", "x2", "ignore"]
    assert [list(row.values()) for row in table.select(columns).to_pylist()] == [
        [0, None, "dog", 0, 10, False],
        [0, None, "fox", 30, 40, False],
    ]
    assert table["motion_iou"].to_pylist() == pytest.approx([0.5, 0.9])


def test_partial_validation_truth_is_refused(tmp_path: Path) -> None:
    def refused(folder: Path, message: str, **settings: str) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            imagenet_vid.videos(str(folder), replace(Settings(), **settings))

    refused(matlab(tmp_path / "train"), "has the truth of val alone", split="train")
    refused(matlab(tmp_path / "other", boxes=([[0.5]], np.zeros((0, 0)))), f"{MOTION} has other boxes than {BOXES}")
    refused(matlab(tmp_path / "frames", numbers=(1, 3)), f"the frames of {BOXES} are not those of {LIST}")
    folder = matlab(tmp_path / "cut")
    (folder / BOXES).write_bytes((folder / BOXES).read_bytes()[:200])
    refused(folder, f"{BOXES} is not a whole MATLAB file")
    (folder / LIST).write_text("val/ILSVRC2015_val_00000000\n")
    refused(folder, "has lines like")
    (folder / MOTION).unlink()
    refused(folder, f"lacks {MOTION}; the truth is read from")


@pytest.fixture(scope="module")
def validation(data: Path) -> pa.Table:
    """The real truth of all validation videos."""
    found = imagenet_vid.videos(str(data / "imagenet_vid"), Settings())
    assert len(found) == 555
    return pa.concat_tables([imagenet_vid.truth(video) for video in found])


@pytest.mark.data
def test_the_real_validation_truth_has_its_numbers(data: Path, validation: pa.Table) -> None:
    read = imagenet_vid.read_validation(str(data / "imagenet_vid"))
    assert sum(stop - start for start, stop in read.spans.values()) == len(read.first) - 1 == 176_126
    assert len(validation) == 273_505
    assert len(pc.unique(validation["video_id"].cast(pa.string()))) == 555
    # The files say how many boxes of each class there are, and what IoU each box asks for.
    known = scipy.io.loadmat(data / "imagenet_vid" / BOXES, variable_names=("num_pos_per_class", "gt_obj_thr"))
    assert np.bincount(validation["class_id"].to_numpy()).tolist() == known["num_pos_per_class"].ravel().tolist()
    asked = np.concatenate([part.ravel() for part in known["gt_obj_thr"].ravel()])
    boxes = np.stack([validation[name].to_numpy() for name in ("x1", "y1", "x2", "y2")], axis=1).astype(np.float64)
    assert scoring.detection.min_iou(boxes, 10.0) == pytest.approx(asked, abs=1e-12)
    lines = [line.split() for line in (data / "imagenet_vid" / "map_vid.txt").read_text().splitlines()]
    assert {name: label for name, _, label in lines} == WORDNET_IDS
    assert [label for _, _, label in lines] == list(CLASSES)


@pytest.mark.data
def test_motion_is_fgfas_where_a_video_has_one_object(data: Path) -> None:
    """Without ids in the files, of the videos where each frame has one box at most, and none comes back as another."""
    read = imagenet_vid.read_validation(str(data / "imagenet_vid"))
    compared = 0
    for start, stop in read.spans.values():
        frame = np.flatnonzero(np.diff(read.first[start : stop + 1]))
        boxes = slice(read.first[start], read.first[stop])
        if np.diff(read.first[start : stop + 1]).max() > 1 or len(frame) != np.ptp(frame) + 1:
            continue
        ours = imagenet_vid.motion_iou(frame, np.ones(len(frame), np.int64), read.boxes[boxes])
        assert ours == pytest.approx(read.motion[boxes], abs=1e-9)
        compared += len(frame)
    assert compared > 50_000


@pytest.mark.data
def test_the_truth_itself_scores_one_in_every_split(validation: pa.Table) -> None:
    perfect = pa.table(
        [
            validation[field.name]
            if field.name in validation.column_names
            else pa.array(np.ones(len(validation)), pa.float32())
            if field.name == "score"
            else pa.nulls(len(validation), field.type)
            for field in TRACKS
        ],
        schema=TRACKS,
    )
    fields = scoring.detection.FIELDS[:4]
    rows = scoring.combine([scoring.score(validation, perfect, metrics=list(fields), tolerance=10)])
    found = scoring.values(rows)
    assert found[None, None] == pytest.approx(dict.fromkeys(fields, 1.0))
    assert len(found) == 31
