"""COCO json: images as frames of videos, annotations as truth, results as tracks and detections."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from catalogs import coco
from pipeline.records import ClipRef, Resize
from pipeline.schemas import TRACKS, TRUTH
from pipeline.video import decode

IMAGES: list[dict[str, Any]] = [
    {"id": 7, "file_name": "b/002.jpg", "height": 48, "width": 64},
    {"id": 9, "file_name": "b/001.jpg", "height": 48, "width": 64},
    {"id": 8, "file_name": "a/000.jpg", "height": 20, "width": 30},
]
CATEGORIES = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}]
BOX = [1, 2, 10, 20]


def dataset(folder: Path, **changes: Any) -> str:
    """A dataset's json with two annotations."""
    content = {
        "images": IMAGES,
        "categories": CATEGORIES,
        "annotations": [
            {"image_id": 7, "category_id": 18, "bbox": BOX, "track_id": 0},
            {"image_id": 9, "category_id": 1, "bbox": BOX, "track_id": 3, "iscrowd": 1},
        ],
        **changes,
    }
    return written(folder / "dataset.json", content)


def written(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def test_truth_is_read(tmp_path: Path) -> None:
    table = coco.read_truth(dataset(tmp_path))
    assert table.schema == TRUTH
    columns = ["video_id", "frame_index", "track_id", "class_id", "class_name", "x1", "y1", "x2", "y2", "ignore"]
    assert [tuple(row.values()) for row in table.select(columns).to_pylist()] == [
        ("b", 0, 4, 0, "person", 1, 2, 11, 22, True),
        ("b", 1, 1, 1, "dog", 1, 2, 11, 22, False),
    ]


def test_videos_by_folder_and_their_detections(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "000.jpg").write_bytes(b"not read here")
    results = written(
        tmp_path / "results.json",
        [
            {"image_id": 9, "category_id": 1, "bbox": BOX, "score": 0.2},
            {"image_id": 9, "category_id": 18, "bbox": BOX, "score": 0.7},
            {"image_id": 9, "category_id": 18, "bbox": [0, 0, 0, 5], "score": 0.9},  # of no size
        ],
    )
    a, b = coco.videos(dataset(tmp_path), coco.Settings(results=results))
    assert [(v.video_id, v.kind, v.size) for v in (a, b)] == [("a", "images", (20, 30)), ("b", "rows", (48, 64))]
    assert [len(frame) for frame in coco.detections(a)] == [0]
    first, second = coco.detections(b)
    assert first.scores.tolist() == pytest.approx([0.7, 0.2])
    assert first.labels.tolist() == [1, 0]
    assert len(second) == 0
    assert coco.read_tracks(results, dataset(tmp_path)).schema == TRACKS
    table = coco.truth(a)
    assert table is not None
    assert len(table) == 0


def test_videos_that_the_file_names(tmp_path: Path) -> None:
    images = [{**image, "video_id": 5, "frame_id": 10 - image["id"]} for image in IMAGES]
    path = dataset(tmp_path, images=images, videos=[{"id": 5, "name": "walk"}])
    assert [video.video_id for video in coco.videos(path, coco.Settings())] == ["walk"]
    assert coco.read_truth(path)["frame_index"].to_pylist() == [0, 2]


def test_identity_changes_with_the_dataset_its_images_and_the_results(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    files = [Path(dataset(tmp_path)), tmp_path / "results.json", tmp_path / "a" / "000.jpg"]
    for file in files[1:]:
        file.write_text("[]")

    def identities() -> list[str]:
        return [video.identity for video in coco.videos(str(files[0]), coco.Settings(results=str(files[1])))]

    before = identities()
    assert identities() == before
    for file, expected in zip(files, ([True, True], [True, True], [True, False]), strict=True):
        os.utime(file, (1, 1))
        assert [one != other for one, other in zip(before, identities(), strict=True)] == expected, file
        before = identities()


def test_places_hold_in_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "000.jpg").write_bytes(b"not read here")
    dataset(tmp_path)
    written(tmp_path / "results.json", [])
    monkeypatch.chdir(tmp_path)
    for settings in (coco.Settings(results="results.json"), coco.Settings(images=".", results="results.json")):
        first, _ = coco.videos("dataset.json", settings)
        places = [first.uri, first.truth_uri, first.detections_uri]
        assert places == [str(tmp_path / name) for name in ("a", "dataset.json", "results.json")]


BAD: dict[str, tuple[Any, str]] = {
    "not results": ([1, 2], "is not a results json of COCO"),
    "unknown image": ([{"image_id": 1, "category_id": 1, "bbox": BOX, "score": 1}], "image_id 1 is not in"),
    "unknown class": ([{"image_id": 7, "category_id": 2, "bbox": BOX, "score": 1}], "category_id 2 is not in"),
    "no score": ([{"image_id": 7, "category_id": 1, "bbox": BOX}], "a row lacks 'score'; it has: image_id"),
    "half a box": ([{"image_id": 7, "category_id": 1, "bbox": [1, 2], "score": 1}], "must be left, top, width, height"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_results_are_refused(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        coco.read_tracks(written(tmp_path / "results.json", content), dataset(tmp_path))


def test_bad_datasets_are_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"cut\.json is not whole JSON"):
        coco.read_dataset(str(tmp_path / "cut.json"))
    (tmp_path / "video.mp4").write_bytes(b"\x00\x00\x00\x20ftypisom\xff")
    with pytest.raises(ValueError, match=r"video\.mp4 is not JSON; it must be a json file in COCO's format$"):
        coco.read_dataset(str(tmp_path / "video.mp4"))
    with pytest.raises(ValueError, match="is not a dataset json of COCO"):
        coco.read_dataset(written(tmp_path / "list.json", []))
    with pytest.raises(FileNotFoundError):
        coco.read_dataset(str(tmp_path / "none.json"))


def test_images_are_the_frames_that_the_annotations_mean(tmp_path: Path) -> None:
    """Names are ordered as a folder of images is shown, 2 before 10; where that is not so there are only rows."""
    numbers = [1, 2, 10]
    for number in numbers:
        (tmp_path / f"{number}.png").write_bytes(b"x")
    dataset: dict[str, Any] = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 8, "width": 8} for n in numbers],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, "bbox": [n, 0, 5, 5]} for n in numbers],
        "categories": [{"id": 1, "name": "thing"}],
    }
    as_video = coco.Settings(stills=False)
    (video,) = coco.videos(written(tmp_path / "dataset.json", dataset), as_video)
    assert (video.kind, video.video_id) == ("images", "dataset")
    truth = coco.truth(video)
    assert truth is not None
    assert dict(zip(truth["frame_index"].to_pylist(), truth["x1"].to_pylist(), strict=True)) == {0: 1, 1: 2, 2: 10}
    for image in dataset["images"]:
        image["frame_id"] = 10 - image["id"]  # backwards
    (video,) = coco.videos(written(tmp_path / "backwards.json", dataset), as_video)
    assert video.kind == "rows"


def stills(*names: str, **changes: Any) -> dict[str, Any]:
    """A dataset of images of 10 x 20 pixels and more, each with a box of one class and a crowd of another."""
    return {
        "images": [
            {"id": number, "file_name": name, "height": 10 + number, "width": 20} for number, name in enumerate(names)
        ],
        "categories": CATEGORIES,
        "annotations": [
            {"image_id": number, "category_id": kind, "bbox": [number, 0, 5, 5], "iscrowd": kind == 1, "area": 25.0}
            for number in range(len(names))
            for kind in (1, 18)
        ],
        **changes,
    }


def coco_tree(root: Path, folder: str = "val2017") -> Path:
    """COCO's own tree, with two images; image 1 is red."""
    (root / "annotations").mkdir(parents=True)
    (root / folder).mkdir(parents=True, exist_ok=True)
    written(root / "annotations" / "instances_val2017.json", stills("000000000139.jpg", "000000000285.jpg"))
    for number, name in enumerate(("000000000139.jpg", "000000000285.jpg")):
        cv2.imwrite(str(root / folder / name), np.full((10 + number, 20, 3), (0, 0, 200 * number), np.uint8))  # BGR
    return root


@pytest.mark.parametrize("folder", ["val2017", "images/val2017", "images", "."])
@pytest.mark.parametrize("named", ["", "annotations/instances_val2017.json"])
def test_stills_are_videos_of_one_frame(tmp_path: Path, folder: str, named: str) -> None:
    root = coco_tree(tmp_path, folder)
    found = coco.videos(str(root / named), coco.Settings())
    assert [(v.video_id, v.kind, v.size) for v in found] == [
        ("000000000139", "image", (10, 20)),
        ("000000000285", "image", (11, 20)),
    ]
    (clip,) = decode([ClipRef(found[1])], Resize(), 8)
    assert (clip.error, clip.frames.shape) == (None, (1, 3, 11, 20))
    assert clip.frames[0, 0].mean() > 190
    tables = [coco.truth(video) for video in found]
    assert [table.select(["frame_index", "class_name", "x1", "ignore"]).to_pylist() for table in tables if table] == [
        [
            {"frame_index": 0, "class_name": "person", "x1": number, "ignore": True},
            {"frame_index": 0, "class_name": "dog", "x1": number, "ignore": False},
        ]
        for number in (0, 1)
    ]
    assert coco.read_truth(str(root / "annotations" / "instances_val2017.json"))["video_id"].to_pylist() == [
        video.video_id for video in found for _ in range(2)
    ]


def test_results_on_stills(tmp_path: Path) -> None:
    path = written(tmp_path / "dataset.json", stills("a.jpg", "b.jpg", annotations=[]))
    results = [{"image_id": 1, "category_id": 18, "bbox": BOX, "score": score} for score in (0.25, 0.5)]
    a, b = coco.videos(path, coco.Settings(results=written(tmp_path / "results.json", results)))
    assert (a.kind, a.uri) == ("rows", "")
    assert [[frame.scores.tolist() for frame in coco.detections(video)] for video in (a, b)] == [[[]], [[0.5, 0.25]]]
    assert coco.classes(b) == ("person", "dog")
    assert coco.truth(b) is None


IDENTIFIED = [{"image_id": 0, "category_id": 1, "bbox": BOX, "track_id": 3}]
WHAT_TELLS_OF_VIDEOS = {
    "nothing": (stills("1.jpg", "2.jpg"), True),
    "folders": (stills("a/1.jpg", "a/2.jpg"), False),
    "identities": (stills("1.jpg", "2.jpg", annotations=IDENTIFIED), False),
    "frames": (stills(images=[{"id": 1, "file_name": "1.jpg", "frame_id": 0}], annotations=[]), False),
    "videos": (stills(images=[{"id": 1, "file_name": "1.jpg", "video_id": 2}], annotations=[]), False),
    "no names": (stills(images=[{"id": 1}, {"id": 2}], annotations=[]), True),
}


@pytest.mark.parametrize("name", WHAT_TELLS_OF_VIDEOS)
def test_what_tells_stills_from_videos(tmp_path: Path, name: str) -> None:
    content, expected = WHAT_TELLS_OF_VIDEOS[name]
    path = written(tmp_path / "dataset.json", content)
    assert coco.read_dataset(path).is_stills == expected
    for said in (True, False):
        found = coco.videos(path, coco.Settings(stills=said))
        assert len(found) == (len(content["images"]) if said else 1)
        assert sum(len(coco.truth(video) or ()) for video in found) == len(content["annotations"])


def test_a_folder_is_listed_once_and_no_image_is_looked_at_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    for name in ("ls", "info"):
        whole = getattr(MemoryFileSystem, name)

        def counted(self: Any, path: str, *given: Any, whole: Any = whole, **more: Any) -> Any:
            asked.append(path)
            return whole(self, path, *given, **more)

        monkeypatch.setattr(MemoryFileSystem, name, counted)
    files = fsspec.filesystem("memory")
    names = [f"{number:012d}.jpg" for number in range(200)]
    for name in names:
        files.pipe_file(f"/coco/val2017/{name}", b"not read here")
    files.pipe_file("/coco/annotations/instances_val2017.json", json.dumps(stills(*names)).encode())
    asked.clear()
    found = coco.videos("memory://coco", coco.Settings())
    assert [video.uri for video in found] == [f"memory:///coco/val2017/{name}" for name in names]
    assert len({video.identity for video in found}) == 200
    assert len(asked) < 30


def test_wrong_and_partial_trees_are_refused(tmp_path: Path) -> None:
    def said(source: Path, **given: Any) -> str:
        with pytest.raises(FileNotFoundError) as error:
            coco.videos(str(source), coco.Settings(**given))
        return str(error.value)

    assert said(tmp_path / "gone").startswith(f"{tmp_path}/gone is not there; the catalog coco needs ")
    (tmp_path / "empty").mkdir()
    assert said(tmp_path / "empty") == (
        f"{tmp_path}/empty is no folder of COCO; looked for annotations/instances_val2017.json in it"
    )
    root = coco_tree(tmp_path / "coco")
    assert said(root, split="train2017").endswith("in it, and found instances_val2017.json (coco.split)")
    (root / "val2017" / "000000000285.jpg").unlink()
    assert said(root) == (
        f"1 of the 2 images of {root}/annotations/instances_val2017.json are not there, the first 000000000285.jpg; "
        f"looked for in {root}/val2017, another is set as coco.images"
    )
    (root / "val2017" / "000000000139.jpg").unlink()
    (root / "annotations" / "poster.jpg").touch()  # one that is nothing of the dataset's
    assert said(root, images=str(root)) == (
        f"{root} holds none of the images of {root}/annotations/instances_val2017.json; "
        "looked for 000000000139.jpg in it (coco.images)"
    )
    assert [video.kind for video in coco.videos(str(root), coco.Settings())] == ["rows", "rows"]
    with pytest.raises(ValueError, match="2 images are called a; stills need a name each"):
        coco.videos(written(tmp_path / "twice.json", stills("a.jpg", "a.jpg")), coco.Settings())
