"""Waymo Open Dataset v2, on trees of the published shape: one camera of one segment is a video, from Parquet rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalogs import waymo
from pipeline.config import settings
from pipeline.records import ClipRef, Resize
from pipeline.schemas import TRUTH
from pipeline.video import decode, probe

SEGMENT, OTHER = "10203656353524179475_7625_000_7645_000", "1024360143612057520_3580_000_3600_000"
START_US, FRAMES = 1_522_688_014_970_187, 4
SIZES = {1: (24, 36), 4: (16, 36)}  # front and side cameras have other sizes, as in the dataset

# camera, frame, object, left, top, width, height, type, difficulty
BOXES = [
    (1, 2, "b9f0", 8.0, 4.0, 6.0, 8.0, 2, None),
    (1, 0, "b9f0", 10.0, 4.0, 6.0, 8.0, 2, None),
    (1, 0, "0c3a", 1.5, 2.5, 10.0, 5.0, 1, 2),
    (1, 1, "0c3a", 2.0, 2.5, 10.0, 5.0, 1, 1),
    (4, 0, "0c3a", 0.0, 0.0, 3.0, 3.0, 4, 1),
    (1, 3, "77aa", 0.0, 0.0, 3.0, 3.0, 0, None),
]


def image_table(segment: str, cameras: tuple[int, ...] = (1, 4)) -> pa.Table:
    """Frame i of camera c is grey 20 i + c; the rows of a camera lie in order of time, those of a frame together."""
    frame, camera = (each.ravel() for each in np.meshgrid(range(FRAMES), cameras, indexing="ij"))
    images = [
        cv2.imencode(".jpg", np.full((*SIZES[c], 3), 20 * i + c, np.uint8))[1].tobytes()
        for i, c in zip(frame.tolist(), camera.tolist(), strict=True)
    ]
    return pa.table(
        {
            "key.segment_context_name": [segment] * len(frame),
            "key.frame_timestamp_micros": START_US + 100_000 * frame,
            "key.camera_name": pa.array(camera.astype(np.int8)),
            "[CameraImageComponent].image": pa.array(images, pa.binary()),
            "[CameraImageComponent].pose_timestamp": np.zeros(len(frame)),
        }
    )


def box_table(segment: str, boxes: list[tuple[Any, ...]] = BOXES) -> pa.Table:
    camera, frame, name, left, top, width, height, kind, level = zip(*boxes, strict=True)
    half_width, half_height = np.array(width) / 2, np.array(height) / 2
    return pa.table(
        {
            "key.segment_context_name": [segment] * len(boxes),
            "key.frame_timestamp_micros": START_US + 100_000 * np.array(frame),
            "key.camera_name": pa.array(camera, pa.int8()),
            "key.camera_object_id": list(name),
            "[CameraBoxComponent].box.center.x": np.array(left) + half_width,
            "[CameraBoxComponent].box.center.y": np.array(top) + half_height,
            "[CameraBoxComponent].box.size.x": np.array(width),
            "[CameraBoxComponent].box.size.y": np.array(height),
            "[CameraBoxComponent].type": pa.array(kind, pa.int8()),
            "[CameraBoxComponent].difficulty_level.detection": pa.array([1] * len(boxes), pa.int8()),
            "[CameraBoxComponent].difficulty_level.tracking": pa.array(level, pa.int8()),
        }
    )


def put(folder: str, component: str, segment: str, table: pa.Table) -> None:
    files, path = fsspec.core.url_to_fs(f"{folder}/{component}")
    files.makedirs(path, exist_ok=True)
    with files.open(f"{path}/{segment}.parquet", "wb") as file:
        pq.write_table(table, file, row_group_size=3)


def tree(root: object) -> str:
    for split, segments in (("training", [OTHER]), ("validation", [SEGMENT, OTHER])):
        for segment in segments:
            put(f"{root}/{split}", "camera_image", segment, image_table(segment))
            put(f"{root}/{split}", "camera_box", segment, box_table(segment))
            put(f"{root}/{split}", "lidar", segment, pa.table({"not": ["read"]}))
    return str(root)


TWO = waymo.Settings(cameras=("FRONT", "SIDE_LEFT"))


@pytest.mark.parametrize("place", ["local", "memory://waymo-v2"])
def test_a_video_is_a_camera_of_a_segment(tmp_path: Path, place: str) -> None:
    source = tree(tmp_path if place == "local" else place)
    found = waymo.videos(source, TWO)
    assert [video.video_id for video in found] == [
        f"{segment}/{camera}" for segment in (SEGMENT, OTHER) for camera in ("FRONT", "SIDE_LEFT")
    ]
    front, side, *_ = found
    assert {(v.catalog, v.kind, v.fps) for v in found} == {("waymo", "parquet", 10.0)}
    assert "/validation/camera_image/" in front.uri
    for video, camera in ((front, 1), (side, 4)):
        facts = probe(video)
        assert (facts.size, facts.codec, facts.frames_declared) == (SIZES[camera], "jpeg", FRAMES)
        (clip,) = decode([ClipRef(video)], Resize(), 100)
        assert clip.error is None
        np.testing.assert_allclose(clip.timestamp_s, [0, 0.1, 0.2, 0.3], atol=1e-9)
        assert np.abs(clip.frames[:, 0, 0, 0] - (20.0 * np.arange(FRAMES) + camera)).max() <= 2


def test_truth_is_the_boxes_of_the_camera(tmp_path: Path) -> None:
    front, side = waymo.videos(tree(tmp_path), TWO)[:2]
    table = waymo.truth(front)
    assert table is not None
    assert table.schema == TRUTH
    columns = ["frame_index", "track_id", "class_id", "class_name", "x1", "y1", "x2", "y2", "ignore", "flags"]
    assert [tuple(row.values()) for row in table.select(columns).to_pylist()] == [
        (0, 1, 0, "vehicle", 1.5, 2.5, 11.5, 7.5, False, ["level_2"]),
        (0, 3, 1, "pedestrian", 10, 4, 16, 12, False, []),
        (1, 1, 0, "vehicle", 2, 2.5, 12, 7.5, False, []),
        (2, 3, 1, "pedestrian", 8, 4, 14, 12, False, []),
        (3, 2, None, None, 0, 0, 3, 3, True, ["distractor"]),
    ]
    assert set(table["video_id"].to_pylist()) == {front.video_id}
    other = waymo.truth(side)
    assert other is not None
    assert other.select(columns[:4]).to_pylist() == [
        {"frame_index": 0, "track_id": 1, "class_id": 2, "class_name": "cyclist"}
    ]


def test_vehicles_alone_and_the_easier_ones(tmp_path: Path) -> None:
    given = settings(waymo.Settings, {"classes": "vehicle", "cameras": "FRONT", "difficulty": "1"}, "catalog waymo")
    assert given == waymo.Settings(classes=("vehicle",), cameras=("FRONT",), difficulty=1)
    video, _ = waymo.videos(tree(tmp_path), given)
    table = waymo.truth(video)
    assert table is not None
    assert table.select(["frame_index", "track_id", "class_name", "ignore", "flags"]).to_pylist() == [
        {"frame_index": 0, "track_id": 1, "class_name": "vehicle", "ignore": True, "flags": ["distractor", "level_2"]},
        {"frame_index": 1, "track_id": 1, "class_name": "vehicle", "ignore": False, "flags": []},
        {"frame_index": 3, "track_id": 2, "class_name": None, "ignore": True, "flags": ["distractor"]},
    ]


def test_difficulty_need_not_be_said_and_a_camera_may_see_nothing(tmp_path: Path) -> None:
    plain = box_table(SEGMENT, BOXES[:4])
    plain = plain.drop_columns([name for name in plain.column_names if "difficulty" in name])
    put(str(tmp_path), "camera_image", SEGMENT, image_table(SEGMENT))
    put(str(tmp_path), "camera_box", SEGMENT, plain)
    front, side = waymo.videos(str(tmp_path), waymo.Settings(cameras=("FRONT", "SIDE_LEFT"), difficulty=1))
    table, nothing = waymo.truth(front), waymo.truth(side)
    assert table is not None
    assert not any(table["ignore"].to_pylist())
    assert nothing is not None
    assert (len(nothing), nothing.schema) == (0, TRUTH)


def test_identity_changes_with_either_file(tmp_path: Path) -> None:
    source = tree(tmp_path)
    before = [video.identity for video in waymo.videos(source, TWO)]
    assert [video.identity for video in waymo.videos(source, TWO)] == before
    for component, table in (("camera_image", image_table(OTHER, (1,))), ("camera_box", box_table(OTHER, BOXES[:2]))):
        put(f"{source}/validation", component, OTHER, table)
        after = [video.identity for video in waymo.videos(source, TWO)]
        assert [one != other for one, other in zip(before, after, strict=True)] == [False, False, True, True]
        before = after


def test_which_folder_is_taken(tmp_path: Path) -> None:
    source = tree(tmp_path)
    assert len(waymo.videos(source, waymo.Settings())) == 2 * 5
    (training,) = waymo.videos(source, waymo.Settings(split="training", cameras=("FRONT",)))
    assert "/training/" in training.uri
    assert [v.uri for v in waymo.videos(f"{source}/training", waymo.Settings(cameras=("FRONT",)))] == [training.uri]


def test_images_alone_have_no_truth(tmp_path: Path) -> None:
    put(f"{tmp_path}/testing", "camera_image", SEGMENT, image_table(SEGMENT))
    (video,) = waymo.videos(str(tmp_path), waymo.Settings(split="testing", cameras=("FRONT",)))
    assert video.truth_uri is None
    assert waymo.truth(video) is None


def test_wrong_and_partial_trees_are_refused(tmp_path: Path) -> None:
    def said(source: object, given: waymo.Settings = TWO) -> str:
        with pytest.raises(FileNotFoundError) as error:
            waymo.videos(str(source), given)
        return str(error.value)

    assert said(tmp_path) == (
        f"{tmp_path} is no tree of the Waymo Open Dataset v2; looked for camera_image in it and in validation"
    )
    source = tree(tmp_path)
    assert said(source, waymo.Settings(split="testing")).endswith(
        "in testing, and found it in training, validation (waymo.split)"
    )
    (tmp_path / "validation" / "camera_box" / f"{SEGMENT}.parquet").unlink()
    assert said(source) == (
        f"{source}/validation/camera_box lacks 1 of the 2 segments of camera_image, the first {SEGMENT}; "
        f"looked for {SEGMENT}.parquet"
    )
    (tmp_path / "empty" / "camera_image").mkdir(parents=True)
    assert said(tmp_path / "empty").endswith("camera_image holds no segment; looked for SEGMENT.parquet in it")
    assert said(tmp_path / "gone") == (
        f"{tmp_path}/gone is not a folder; the catalog waymo needs the one that holds the splits, or camera_image"
    )
    with pytest.raises(ValueError, match="needs a folder"):
        waymo.videos(None, TWO)


def test_bad_settings_are_refused() -> None:
    for given, message in (
        ({"cameras": ("REAR",)}, "waymo.cameras is REAR; it must be one or more of: FRONT, FRONT_LEFT"),
        ({"classes": ()}, "waymo.classes is empty; it must be one or more of: vehicle, pedestrian, cyclist"),
        ({"classes": ("vehicle", "vehicle")}, "waymo.classes is vehicle, vehicle"),
    ):
        with pytest.raises(ValueError, match=message):
            waymo.Settings(**given)


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def said(table: pa.Table, segment: str) -> str:
        put(str(tmp_path), "camera_image", segment, image_table(segment))
        put(str(tmp_path), "camera_box", segment, table)
        video = next(v for v in waymo.videos(str(tmp_path), TWO) if v.video_id == f"{segment}/FRONT")
        with pytest.raises(ValueError, match=f"{segment}.parquet") as error:
            waymo.truth(video)
        return str(error.value).removeprefix(f"{tmp_path}/camera_box/{segment}.parquet")

    assert said(box_table("a").drop_columns(["key.camera_object_id"]), "a").startswith(
        " has no column 'key.camera_object_id'; it has: key.segment_context_name"
    )
    assert said(box_table("b", [(1, 9, "x", 0.0, 0.0, 1.0, 1.0, 1, 1)]), "b").startswith(
        f" has boxes of camera 1 at {START_US + 900_000} us, of which {tmp_path}/camera_image/b.parquet has no image"
    )
    assert said(box_table("c", [(1, 0, "x", 0.0, 0.0, 1.0, 1.0, 5, 1)]), "c") == (
        ": [CameraBoxComponent].type is 5; the types of Waymo are 0 to 4"
    )
