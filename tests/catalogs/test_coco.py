"""COCO json: images as frames of videos, annotations as truth, results as tracks and detections."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from catalogs import coco
from pipeline.schemas import TRACKS, TRUTH

IMAGES = [
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
    with pytest.raises(ValueError, match="is not a dataset json of COCO"):
        coco.read_dataset(written(tmp_path / "list.json", []))
    with pytest.raises(FileNotFoundError):
        coco.read_dataset(str(tmp_path / "none.json"))


def test_images_are_the_frames_that_the_annotations_mean(tmp_path: Path) -> None:
    """Names are ordered as a folder of images is shown, 2 before 10; where that is not so there are only rows."""
    numbers = [1, 2, 10]
    for number in numbers:
        (tmp_path / f"{number}.png").write_bytes(b"x")
    dataset = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 8, "width": 8} for n in numbers],
        "annotations": [{"id": n, "image_id": n, "category_id": 1, "bbox": [n, 0, 5, 5]} for n in numbers],
        "categories": [{"id": 1, "name": "thing"}],
    }
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(dataset))
    (video,) = coco.videos(str(path), coco.Settings())
    assert video.kind == "images"
    truth = coco.truth(video)
    assert truth is not None
    assert dict(zip(truth["frame_index"].to_pylist(), truth["x1"].to_pylist(), strict=True)) == {0: 1, 1: 2, 2: 10}
    for image in dataset["images"]:
        image["frame_id"] = 10 - image["id"]  # backwards
    path.write_text(json.dumps(dataset))
    coco.read_dataset.cache_clear()
    (video,) = coco.videos(str(path), coco.Settings())
    assert video.kind == "rows"
