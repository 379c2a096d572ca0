"""MOTChallenge files: what is read, what is refused, and that truth means what TrackEval takes it to mean."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalogs import mot
from catalogs.parts.mot_text import read_text
from pipeline import scoring
from pipeline.boxes import from_xywh, iou
from pipeline.schemas import TRACKS, TRUTH

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import trackeval
    from trackeval.datasets import MotChallenge2DBox


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    "text",
    [
        "1,1,10,20,30,40,1,-1,-1,-1\n3,2,0.5,1,2,3,1,-1,-1,-1\n",
        "1 1 10 20 30 40 1 -1 -1 -1\n3\t2  0.5 1 2 3 1 -1 -1 -1",
        "\ufeff1, 1, 10, 20, 30, 40, 1, -1, -1, -1,\r\n\r\n3, 2, .5, 1, 2, 3, 1, -1, -1, -1,\r\n",
        "3,2,0.5,1,2,3,1,-1,-1,-1\n1,1,10,20,30,40,1,-1,-1,-1\n",
    ],
    ids=["commas", "white space", "windows, spaces, trailing commas", "out of order"],
)
def test_truth_is_read(tmp_path: Path, text: str) -> None:
    table = mot.read_truth(write(tmp_path / "gt.txt", text), "one")
    assert table.schema == TRUTH
    assert table.select(["video_id", "frame_index", "track_id", "class_name", "ignore"]).to_pylist() == [
        {"video_id": "one", "frame_index": 0, "track_id": 1, "class_name": "object", "ignore": False},
        {"video_id": "one", "frame_index": 2, "track_id": 2, "class_name": "object", "ignore": False},
    ]
    assert table.select(["x1", "y1", "x2", "y2"]).to_pylist()[0] == {"x1": 10, "y1": 20, "x2": 40, "y2": 60}


def test_classes_and_flags_of_truth(tmp_path: Path) -> None:
    lines = ["1,1,0,0,9,9,1,1,1", "1,2,0,0,9,9,0,1,1", "1,3,0,0,9,9,1,3,1", "1,4,0,0,9,9,0,8,1", "1,5,0,0,9,9,1,6,1"]
    path = write(tmp_path / "gt.txt", "\n".join(lines))
    rows = mot.read_truth(path, "MOT17-02").to_pylist()
    assert [(r["class_name"], r["ignore"], r["flags"]) for r in rows] == [
        ("pedestrian", False, []),
        (None, True, ["unscored", "pedestrian"]),
        (None, True, ["unscored", "car"]),
        (None, True, ["distractor", "distractor"]),
        (None, True, ["unscored", "non_mot_vehicle"]),
    ]
    assert mot.read_truth(path, "MOT20-01").to_pylist()[4]["flags"] == ["distractor", "non_mot_vehicle"]


def test_results_are_read(tmp_path: Path) -> None:
    table = mot.read_tracks(write(tmp_path / "a.txt", "1,0,0,0,9,9,.5\n1,-1,0,0,9,9,.25\n2,7,0,0,9,9,2\n"), "a")
    assert table.schema == TRACKS
    assert table["track_id"].to_pylist() == [None, 1, 8]  # ids from 0 become ids from 1, -1 is none
    assert table["score"].to_pylist() == [0.25, 0.5, 2]
    unknown = mot.read_tracks(write(tmp_path / "b.txt", "1,1,0,0,9,9,-1,-1,-1,-1\n"), "b")
    assert unknown["score"].to_pylist() == [1]


def test_detections_are_read_a_frame_a_record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "det.txt", "2,-1,0,0,9,9,.2\n4,-1,5,5,0,9,.9\n2,-1,0,0,8,8,.7\n4,-1,1,1,5,5,.6\n")
    frames = mot.read_detections(path, fps=10)
    assert [len(frame) for frame in frames] == [0, 2, 0, 1]
    assert [frame.frame_index for frame in frames] == [0, 1, 2, 3]
    assert [frame.timestamp_s for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert frames[1].scores.tolist() == pytest.approx([0.7, 0.2])
    assert frames[3].boxes.tolist() == [[1, 1, 6, 6]]
    assert "1 boxes of no size" in caplog.text


BAD = {
    "words": ("frame,id,x\n", ":1: column 1 is 'frame', not a number; is this a MOTChallenge file?"),
    "too few columns": ("1,2,3,4,5\n", ":1: 5 columns; a MOTChallenge file has at least 6"),
    "uneven": ("1,1,0,0,9,9,1\n\n1,2,0,0,9,9\n", ":3: 6 columns where the first line has 7"),
    "a missing number": ("1,1,0,0,9,9,1\n1,2,,0,9,9,1\n", ":2: column 3 is '', not a number"),
    "frame 0": ("0,1,0,0,9,9,1\n", ":1: the frame .column 1. must be a whole number from 1; got: 0,1,0"),
    "half a frame": ("1.5,1,0,0,9,9,1\n", ":1: the frame"),
    "a bad id": ("1,1,0,0,9,9,1\n1,-2,0,0,9,9,1\n", ":2: the id .column 2."),
    "not finite": ("1,1,nan,0,9,9,1\n", ":1: a number is not finite"),
    "negative size": ("1,1,0,0,-9,9,1\n", ":1: width and height"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_by_line(tmp_path: Path, name: str) -> None:
    text, message = BAD[name]
    path = write(tmp_path / "gt.txt", text)
    with pytest.raises(ValueError, match=f"^{re.escape(path)}.*{message}"):
        read_text(path)


def test_other_bad_files(tmp_path: Path) -> None:
    (tmp_path / "picture.txt").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ValueError, match="is not text"):
        read_text(str(tmp_path / "picture.txt"))
    with pytest.raises(FileNotFoundError):
        read_text(str(tmp_path / "none.txt"))
    with pytest.raises(ValueError, match=r"class 99 \(column 8\) is not one of MOTChallenge's"):
        mot.read_truth(write(tmp_path / "gt.txt", "1,1,0,0,9,9,1,99,1\n"), "a")


@pytest.mark.parametrize("text", ["", "\n \n"], ids=["no byte", "blank lines"])
def test_an_empty_file_among_sequences_has_no_box(tmp_path: Path, text: str) -> None:
    write(tmp_path / "full" / "gt" / "gt.txt", "1,1,0,0,9,9,1,-1,-1,-1\n")
    write(tmp_path / "full" / "det" / "det.txt", "1,-1,0,0,9,9,1\n")
    write(tmp_path / "still" / "gt" / "gt.txt", text)
    write(tmp_path / "still" / "det" / "det.txt", text)
    full, still = mot.videos(str(tmp_path), mot.Settings())
    assert [len(frame) for frame in mot.detections(full)] == [1]
    assert mot.detections(still) == []
    table = mot.truth(still)
    assert table is not None
    assert (len(table), table.schema) == (0, TRUTH)
    results = mot.read_tracks(write(tmp_path / "still.txt", text), "still")
    assert (len(results), results.schema) == (0, TRACKS)


def layout(root: Path) -> Path:
    """Sequences of every kind."""
    for name in ("MOT17-02-DPM", "MOT17-02-FRCNN"):
        write(root / name / "gt" / "gt.txt", "1,1,0,0,9,9,1,1,1\n")
        write(root / name / "det" / "det.txt", "1,-1,0,0,9,9,1\n")
        write(root / name / "img1" / "000001.jpg", "not read here")
        write(root / name / "seqinfo.ini", f"[Sequence]\nname={name}\nframeRate=30\nimWidth=1920\nimHeight=1080\n")
    write(root / "flies" / "gt.txt", "1,1,0,0,9,9,1\n")
    write(root / "flies" / "train.mp4", "not read here")
    write(root / "rows" / "det" / "det.txt", "1,-1,0,0,9,9,1\n")
    write(root / "notes" / "readme.md", "no sequence")
    return root


def test_sequences_are_listed(tmp_path: Path) -> None:
    found = mot.videos(str(layout(tmp_path)), mot.Settings())
    assert [(video.video_id, video.kind) for video in found] == [
        ("MOT17-02-DPM", "images"),
        ("MOT17-02-FRCNN", "images"),
        ("flies", "video"),
        ("rows", "rows"),
    ]
    first, _, flies, rows = found
    assert (first.size, first.fps, first.uri) == ((1080, 1920), 30, str(tmp_path / "MOT17-02-DPM" / "img1"))
    assert flies.uri == str(tmp_path / "flies" / "train.mp4")
    assert (rows.truth_uri, rows.uri) == (None, "")
    assert mot.truth(rows) is None
    assert [len(frame) for frame in mot.detections(rows)] == [1]
    with pytest.raises(FileNotFoundError, match=r"flies has no det/det\.txt"):
        mot.detections(flies)
    table = mot.truth(first)
    assert table is not None
    assert table["class_name"].to_pylist() == ["pedestrian"]


def test_a_sequence_alone_is_one_video_and_not_also_its_folders(tmp_path: Path) -> None:
    write(tmp_path / "A" / "gt" / "gt.txt", "1,1,0,0,9,9,1,-1,-1,-1")
    write(tmp_path / "A" / "det" / "det.txt", "1,-1,0,0,9,9,1,-1,-1,-1")
    assert [video.video_id for video in mot.videos(str(tmp_path / "A"), mot.Settings())] == ["A"]


def mot17(root: Path) -> Path:
    """MOT17's tree: each sequence three times, truth in `train` alone."""
    for split, numbers in (("train", ("02", "04")), ("test", ("01",))):
        for name in (f"MOT17-{number}-{detector}" for number in numbers for detector in ("DPM", "FRCNN", "SDP")):
            write(root / split / name / "det" / "det.txt", "1,-1,0,0,9,9,1\n")
            write(root / split / name / "img1" / "000001.jpg", "not read here")
            write(
                root / split / name / "seqinfo.ini", f"[Sequence]\nname={name}\nimDir=img1\nseqLength=1\nimExt=.jpg\n"
            )
            if split == "train":
                write(root / split / name / "gt" / "gt.txt", "1,1,0,0,9,9,1,1,1\n1,2,0,0,9,9,1,3,1\n")
    return root


def test_a_split_of_a_whole_tree(tmp_path: Path) -> None:
    def names(source: Path, **given: Any) -> list[str]:
        return [video.video_id for video in mot.videos(str(source), mot.Settings(**given))]

    root = mot17(tmp_path)
    assert names(root) == names(root / "train")
    assert len(names(root)) == 6
    assert names(root, split="test", detector="SDP") == names(root / "test", detector="SDP") == ["MOT17-01-SDP"]
    (video,) = mot.videos(str(root), mot.Settings(split="test", detector="SDP"))
    assert (video.truth_uri, mot.truth(video), len(mot.detections(video))) == (None, None, 1)
    with pytest.raises(FileNotFoundError, match=r"and in those of val; there is train and test \(mot\.split\)"):
        names(root, split="val")


def test_without_their_detections_sequences_of_mot17_come_once(tmp_path: Path) -> None:
    root = mot17(tmp_path)
    write(root / "train" / "ADL-Rundle-6" / "gt.txt", "1,1,0,0,9,9,1,-1,-1,-1\n")  # has a dash too
    found = mot.videos(str(root), mot.Settings(given_detections=False))
    assert [video.video_id for video in found] == ["ADL-Rundle-6", "MOT17-02-DPM", "MOT17-04-DPM"]
    assert {video.detections_uri for video in found} == {None}
    (one,) = mot.videos(str(root), mot.Settings(split="test", detector="SDP", given_detections=False))
    assert one.video_id == "MOT17-01-SDP"


def test_people_are_called_as_a_network_calls_them(tmp_path: Path) -> None:
    root = mot17(tmp_path)
    write(root / "train" / "TUD-Campus" / "gt.txt", "1,1,0,0,9,9,1,-1,-1,-1\n")
    for person, expected in (
        (None, {"MOT17-02-SDP": ["pedestrian", None], "TUD-Campus": ["object"]}),
        ("person & co", {"MOT17-02-SDP": ["person & co", None], "TUD-Campus": ["person & co"]}),
    ):
        for video in mot.videos(str(root), mot.Settings(person=person)):
            table = mot.truth(video)
            assert table is not None
            assert table["class_name"].to_pylist() == expected.get(video.video_id, expected["MOT17-02-SDP"])
    with pytest.raises(ValueError, match=r"mot\.person is empty"):
        mot.Settings(person="")


def test_a_sequence_of_which_nothing_is_there_is_refused(tmp_path: Path) -> None:
    root = mot17(tmp_path)
    write(root / "train" / "MOT17-05-DPM" / "seqinfo.ini", "[Sequence]\nimDir=frames\nseqLength=3\n")
    with pytest.raises(FileNotFoundError, match=r"MOT17-05-DPM holds but seqinfo\.ini; looked for frames/, gt/gt\.txt"):
        mot.videos(str(root), mot.Settings())


def test_a_missing_image_is_refused_since_truth_would_slip(tmp_path: Path) -> None:
    write(tmp_path / "A" / "seqinfo.ini", "[Sequence]\nseqLength=3\nframeRate=25\n")
    for number in (1, 3):
        write(tmp_path / "A" / "img1" / f"{number:06d}.jpg", "x")
    with pytest.raises(ValueError, match=r"img1 holds 2 images and .*seqinfo.ini says 3"):
        mot.videos(str(tmp_path), mot.Settings())


@pytest.mark.parametrize("name", ["gt/gt.txt", "det/det.txt", "img1/000001.jpg", "seqinfo.ini"])
def test_identity_changes_with_each_file(tmp_path: Path, name: str) -> None:
    def identities(settings: mot.Settings) -> list[str]:
        return [video.identity for video in mot.videos(str(tmp_path), settings)]

    layout(tmp_path)
    settings, without = mot.Settings(), mot.Settings(given_detections=False, detector="FRCNN")
    before, before_without = identities(settings), identities(without)
    assert identities(settings) == before
    path = tmp_path / "MOT17-02-FRCNN" / name
    path.write_text(path.read_text() + "\n")
    changed = [one != other for one, other in zip(before, identities(settings), strict=True)]
    assert changed == [False, True, False, False]
    assert (identities(without) != before_without) == (name != "det/det.txt")


def test_a_file_as_large_as_before_is_another_at_another_time(tmp_path: Path) -> None:
    layout(tmp_path)
    before = mot.videos(str(tmp_path / "rows"), mot.Settings())[0].identity
    os.utime(tmp_path / "rows" / "det" / "det.txt", (1, 1))
    assert mot.videos(str(tmp_path / "rows"), mot.Settings())[0].identity != before


def test_places_hold_in_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout(tmp_path)
    monkeypatch.chdir(tmp_path)
    dpm, _, flies, rows = mot.videos(".", mot.Settings())
    places = [dpm.uri, dpm.truth_uri, dpm.detections_uri, flies.uri, rows.detections_uri]
    assert all(place and Path(place).is_absolute() and Path(place).exists() for place in places)


def test_one_sequence_one_detector_and_what_is_refused(tmp_path: Path) -> None:
    layout(tmp_path)
    assert [v.video_id for v in mot.videos(str(tmp_path / "flies"), mot.Settings())] == ["flies"]
    assert [v.video_id for v in mot.videos(str(tmp_path), mot.Settings(detector="FRCNN"))] == ["MOT17-02-FRCNN"]
    assert mot.videos(str(tmp_path / "rows"), mot.Settings(given_detections=False))[0].detections_uri is None
    for source, settings, message in (
        (tmp_path, mot.Settings(detector="SDP"), "no sequence of .* ends in '-SDP'; there is: DPM, FRCNN"),
        (tmp_path / "notes", mot.Settings(), "holds no MOTChallenge sequence; looked for img1/"),
        (tmp_path / "nowhere", mot.Settings(), "is not a folder"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            mot.videos(str(source), settings)
    write(tmp_path / "rows" / "seqinfo.ini", "frameRate=30\n")
    with pytest.raises(ValueError, match=r"seqinfo\.ini has no readable section"):
        mot.videos(str(tmp_path / "rows"), mot.Settings())


def by_trackeval(truth: np.ndarray, found: np.ndarray, benchmark: str) -> dict[str, float]:
    """TrackEval's preprocessing of MOTChallenge and its metrics, on columns of numbers."""
    dataset = object.__new__(MotChallenge2DBox)  # its constructor wants a tree of files
    dataset.benchmark, dataset.do_preproc = benchmark, True
    dataset.class_name_to_class_id = {name: number for number, name in mot.CLASS_NAMES.items()}
    dataset.valid_class_numbers = list(mot.CLASS_NAMES)
    frames = range(1, int(max(truth[:, 0].max(), found[:, 0].max())) + 1)
    true, theirs = [truth[truth[:, 0] == f] for f in frames], [found[found[:, 0] == f] for f in frames]
    raw: dict[str, Any] = {
        "num_timesteps": len(frames),
        "seq": "one",
        "gt_ids": [rows[:, 1].astype(int) for rows in true],
        "gt_dets": [rows[:, 2:6] for rows in true],
        "gt_classes": [rows[:, 7].astype(int) for rows in true],
        "gt_extras": [{"zero_marked": rows[:, 6].astype(int)} for rows in true],
        "tracker_ids": [rows[:, 1].astype(int) for rows in theirs],
        "tracker_dets": [rows[:, 2:6] for rows in theirs],
        "tracker_classes": [np.ones(len(rows), int) for rows in theirs],
        "tracker_confidences": [rows[:, 6] for rows in theirs],
        "similarity_scores": [
            iou(from_xywh(a[:, 2:6]), from_xywh(b[:, 2:6])) for a, b in zip(true, theirs, strict=True)
        ],
    }
    data = dataset.get_preprocessed_seq_data(raw, "pedestrian")
    scores: dict[str, float] = {}
    for metric in (trackeval.metrics.HOTA(), trackeval.metrics.CLEAR({"PRINT_CONFIG": False})):
        scores.update((name, float(np.mean(value))) for name, value in metric.eval_sequence(data).items())
    return scores


@pytest.mark.parametrize("benchmark", ["MOT17", "MOT20"])
def test_truth_means_what_trackeval_takes_it_to_mean(tmp_path: Path, benchmark: str) -> None:
    """Distractors, other classes and boxes not to be considered, all among pedestrians."""
    random = np.random.default_rng(0)
    excused = 0
    for _ in range(8):
        count, frames = 12, 10
        start, size = random.integers(0, 160, (count, 2)), random.integers(20, 60, (count, 2))
        classes = random.choice([1, 1, 1, 3, 6, 7, 8, 12, 13], count)
        true, found = [], []
        for frame in range(1, frames + 1):
            for index in range(count):
                box = np.array([*(start[index] + 3 * frame), *size[index]], float)
                true.append([frame, index + 1, *box, int(random.random() < 0.8), classes[index], 1])
                if random.random() < 0.7:
                    noise = random.integers(-16, 17, 4) / 4  # exact in float32
                    found.append([frame, index + 1 + 20 * (frame > 5), *(box + noise), 1])
        gt, result = np.array(true), np.array(found)
        np.savetxt(tmp_path / "gt.txt", gt, delimiter=",", fmt="%.2f")
        np.savetxt(tmp_path / "result.txt", result, delimiter=",", fmt="%.2f")
        name = f"{benchmark}-01"
        rows = scoring.score(
            mot.read_truth(str(tmp_path / "gt.txt"), name), mot.read_tracks(str(tmp_path / "result.txt"), name)
        )
        ours, theirs = scoring.values(rows)[name, None], by_trackeval(gt, result, benchmark)
        for metric in ("HOTA", "DetA", "AssA", "IDSW"):
            assert ours[metric] == pytest.approx(theirs[metric], abs=1e-6), metric
        assert ours["num_predictions"] == theirs["CLR_TP"] + theirs["CLR_FP"]
        excused += len(result) - int(ours["num_predictions"])
    assert excused > 0


@pytest.mark.data
def test_all_of_the_real_files_are_read(data: Path) -> None:
    found = mot.videos(str(data / "mot15"), mot.Settings())
    assert len(found) == 9
    assert [video.video_id for video in found if video.truth_uri] == ["TUD-Campus", "TUD-Stadtmitte"]
    campus = next(video for video in found if video.video_id == "TUD-Campus")
    table = mot.truth(campus)
    assert table is not None
    assert len(table) == 359
    assert len(mot.detections(campus)) == 71
    flies = mot.videos(str(data / "flies"), mot.Settings())
    assert [(video.video_id, video.kind) for video in flies] == [("flies", "video")]
