"""KITTI tracking: truth and what it excuses, detections and their scores, trees that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from catalogs import kitti
from pipeline import scoring
from pipeline.records import VideoInfo, detections
from pipeline.schemas import TRUTH, tracks_table
from pipeline.tracks import tracks_of

LABELS = """\
0 -1 DontCare -1 -1 -10 200 0 300 100 -1000 -1000 -1000 -10 -1 -1 -1
0 0 Van 0 0 -1.79 100 0 140 40 2 1.8 4.4 -4.5 1.8 13.4 -2.1
0 1 Car 0 0 -1.79 0 0 40 40 2 1.8 4.4 -4.5 1.8 13.4 -2.1
0 2 Pedestrian 0 0 -1.79 50 0 60 40 2 1.8 4.4 -4.5 1.8 13.4 -2.1
0 3 Cyclist 0 0 -1.79 70 0 90 40 2 1.8 4.4 -4.5 1.8 13.4 -2.1
2 1 Car 1 3 -1.79 2 0 42 40 2 1.8 4.4 -4.5 1.8 13.4 -2.1
"""
CARS = """\
0,2,0,0,40,40,3.63,1.5,1.6,3.8,-6,2,23,1.5,1.8
2,2,2,0,42,40,6.07,1.5,1.6,3.8,-6,2,23,1.5,1.8
2,2,9,0,9,40,6.07,1.5,1.6,3.8,-6,2,23,1.5,1.8
"""
PEOPLE = "0,1,50,0,60,40,-1.25,1.5,1.6,3.8,-6,2,23,1.5,1.8\n"


def tree(root: Path, **files: str) -> str:
    """A tree of sequence 0007; file names with __ for /."""
    for name, text in files.items():
        path = root / name.replace("__", "/") / "0007.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


@pytest.fixture
def video(tmp_path: Path) -> VideoInfo:
    source = tree(tmp_path, label_02=LABELS, pointrcnn_Car=CARS, pointrcnn_Pedestrian=PEOPLE)
    (found,) = kitti.videos(source, kitti.Settings())
    return found


def test_a_sequence_is_listed_with_what_it_has(video: VideoInfo) -> None:
    assert (video.video_id, video.kind, video.fps, video.catalog) == ("0007", "rows", 10.0, "kitti")
    assert video.truth_uri is not None
    assert video.detections_uri is not None


def test_truth_knows_cars_and_pedestrians_and_excuses_their_neighbours(video: VideoInfo) -> None:
    table = kitti.truth(video)
    assert table is not None
    assert table.schema == TRUTH
    rows = table.to_pylist()
    assert [(r["frame_index"], r["track_id"], r["class_name"], r["ignore"], r["flags"]) for r in rows] == [
        (0, None, None, True, []),
        (0, 1, "car", True, ["distractor", "van"]),
        (0, 2, "car", False, []),
        (0, 3, "pedestrian", False, []),
        (2, 2, "car", False, []),
    ]
    assert [rows[2][corner] for corner in ("x1", "y1", "x2", "y2")] == [0, 0, 40, 40]


def test_detections_have_a_record_for_every_frame_and_scores_that_are_chances(video: VideoInfo) -> None:
    frames = kitti.detections(video)
    assert [len(frame) for frame in frames] == [2, 0, 1]  # a box without width is none
    assert frames[0].labels.tolist() == [0, 1]
    assert frames[0].scores == pytest.approx([0.5, 1 / (1 + np.exp(4))])
    assert frames[2].scores == pytest.approx([1 / (1 + np.exp(-2))])
    assert [frame.timestamp_s for frame in frames] == [0, 0.1, 0.2]


CASES = {  # boxes of class car in frame 0, how many of them count as false positives
    "a van is no mistake": ([[100, 0, 140, 40]], 0),
    "in a region nothing is": ([[210, 10, 250, 50]], 0),
    "half outside of it, it is": ([[150, 10, 250, 50]], 1),
    "a cyclist is one": ([[70, 0, 90, 40]], 1),
    "a pedestrian is one": ([[50, 0, 60, 40]], 1),
}


@pytest.mark.parametrize(("boxes", "false"), CASES.values(), ids=CASES)
def test_what_truth_excuses(video: VideoInfo, boxes: list, false: int) -> None:
    frames = [detections(0, boxes, [0.9] * len(boxes))]
    tracks = tracks_table("0007", frames, tracks_of(frames, [np.arange(len(boxes), dtype=np.int32)]), ["car"])
    found = scoring.values(scoring.score(kitti.truth(video), tracks))["0007", "car"]
    assert found["num_false_positives"] == false


def test_images_are_shown_where_they_are(tmp_path: Path) -> None:
    source = tree(tmp_path, label_02=LABELS)
    (tmp_path / "image_02" / "0007").mkdir(parents=True)
    (found,) = kitti.videos(source, kitti.Settings())
    assert (found.kind, found.uri.endswith("image_02/0007"), found.detections_uri) == ("images", True, None)
    with pytest.raises(FileNotFoundError, match="has no detections"):
        kitti.detections(found)


NOWHERE = "0 9 Car 0 0 0 nan 2 30 40 1 1 1 1 1 1 1\n"
WRONG = {
    "no tree": ({}, {}, "looked for label_02, image_02, pointrcnn_Car, pointrcnn_Pedestrian"),
    "truth cut short": ({"label_02": "0 1 Car 0 0\n"}, {}, r"0007.txt:1: 5 columns; it must have at least 17"),
    "truth that is none": ({"label_02": LABELS + "x" + LABELS}, {}, r"0007.txt:7: not a line of KITTI truth: x0 -1"),
    "a detector of unknown scores": (
        {"other_Car": CARS}, {"detector": "other"}, "scores outside 0 to 1, and what they mean is known of pointrcnn",
    ),
    "truth without end": ({"label_02": LABELS + NOWHERE}, {}, "0007.txt:7: not a line"),
    "truth before the first frame": ({"label_02": NOWHERE.replace("0 9", "-1 9").replace("nan", "1")}, {}, ":1: not"),
    "detections of half a frame": ({"pointrcnn_Car": "0.5" + CARS[1:]}, {}, "0007.txt:1: not a line of detections"),
    "detections without a score": ({"pointrcnn_Car": "0,2,1,2,30,40,nan\n"}, {}, "0007.txt:1: not a line of det"),
    "detections that are none": ({"pointrcnn_Car": CARS.replace("40,40", "40,a")}, {}, "0007.txt:1: not a line of det"),
}  # fmt: skip


@pytest.mark.parametrize(("files", "settings", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said(tmp_path: Path, files: dict, settings: dict, said: str) -> None:
    def read() -> None:
        for video in kitti.videos(tree(tmp_path, **files), kitti.Settings(**settings)):
            if video.truth_uri:
                kitti.truth(video)
            else:
                kitti.detections(video)

    with pytest.raises((ValueError, FileNotFoundError), match=said):
        read()


@pytest.mark.data
def test_the_real_tree(data: Path) -> None:
    videos = kitti.videos(str(data / "kitti"), kitti.Settings())
    assert [video.video_id for video in videos] == ["0000", "0001", "0006", "0010", "0012", "0014"]
    tables = [kitti.truth(video) for video in videos]
    scored = [row for table in tables if table is not None for row in table.to_pylist() if not row["ignore"]]
    assert sum(row["class_name"] == "car" for row in scored) == 4676
    assert sum(row["class_name"] == "pedestrian" for row in scored) == 350
    assert [len(kitti.detections(video)) for video in videos] == [154, 447, 270, 294, 78, 106]
