"""`--frames`: a run over a range has what a run over the whole video has of it, and nothing of the rest."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from jobs.evaluate import score_files
from jobs.link import link
from jobs.summary import classes_apart
from pipeline import scoring
from pipeline.frame_range import held, limited
from pipeline.records import VideoInfo
from pipeline.tables import read_run

Runs = Callable[..., int]
Table = Callable[[Path, str], pa.Table]

MEMORYLESS = ["model.sigma_det=1"]  # no box starts a tracklet
RANGE, INSIDE = "40%:70%", range(12, 21)  # of 30 frames


@pytest.fixture(scope="module")
def labelled(videos: Path, start: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 30 frames, and truth beside it: of each frame a box of those that the network finds, a little off."""
    folder = tmp_path_factory.mktemp("labelled")
    shutil.copy(videos / "a.mp4", folder / "a.mp4")
    assert start(folder / "a.mp4", folder / "found", settings=MEMORYLESS) == 0
    rows = read_run(str(folder / "found")).table("detections").to_pylist()
    boxes = [(row["frame_index"], row["boxes"][len(row["boxes"]) // 3]) for row in rows]
    (folder / "a.txt").write_text(
        "".join(f"{t + 1},1,{x1 + 0.25:.3f},{y1:.3f},{x2 - x1:.3f},{y2 - y1:.3f}\n" for t, (x1, y1, x2, y2) in boxes)
    )
    shutil.rmtree(folder / "found")
    return folder


@pytest.fixture(scope="module")
def whole(labelled: Path, start: Runs) -> Path:
    assert start(labelled / "a.mp4", labelled / "runs" / "whole", settings=MEMORYLESS) == 0
    return labelled / "runs" / "whole"


@pytest.fixture(scope="module")
def part(labelled: Path, start: Runs) -> Path:
    assert start(labelled / "a.mp4", labelled / "runs" / "part", settings=MEMORYLESS, frames=RANGE) == 0
    return labelled / "runs" / "part"


def test_rows_are_those_of_the_range_and_the_same(table: Table, whole: Path, part: Path) -> None:
    (video,) = table(part, "videos").to_pylist()
    assert [video[name] for name in ("start", "stop", "frames_declared", "frames_decoded")] == [12, 21, 30, 9]
    assert video["status"] == "ok"
    for name in ("detections", "tracks", "truth"):
        assert {*table(part, name)["frame_index"].to_pylist()} == {*INSIDE}, name
    found = table(part, "detections").to_pylist()
    every = [row for row in table(whole, "detections").to_pylist() if row["frame_index"] in INSIDE]
    for one, other in zip(found, every, strict=True):
        assert one["timestamp_s"] == pytest.approx(other["timestamp_s"])
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-4)
        for box, same in zip(one["boxes"], other["boxes"], strict=True):
            assert box == pytest.approx(same, abs=1e-3)


def test_scores_are_those_of_the_whole_where_only_the_range_counts(table: Table, whole: Path, part: Path) -> None:
    (video,) = limited([VideoInfo("a", "", "folder")], "12:21")
    sides = [held(table(whole, name), video) for name in ("truth", "tracks")]
    wanted = scoring.values(scoring.score(*sides, metrics=["detection"]))["a", None]["mAP"]
    scores = {place: scoring.values(table(place, "scores"))["a", None]["mAP"] for place in (whole, part)}
    assert scores[part] == pytest.approx(wanted, abs=1e-3)
    assert 0.01 < wanted < 0.99
    assert abs(scores[whole] - wanted) > 1e-3, "the range is no easier or harder than the rest: this test says nothing"


def test_evaluate_leaves_out_the_truth_of_other_frames(
    table: Table, labelled: Path, part: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where truth comes from elsewhere, under another name."""
    wanted = scoring.values(table(part, "scores"))["a", None]["mAP"]
    shutil.copy(labelled / "a.txt", labelled / "another.txt")
    for truth in (labelled / "another.txt", part):
        found = scoring.values(score_files(str(part), str(truth), metrics=["detection"]))[None, None]
        assert found["mAP"] == pytest.approx(wanted)
        said = capsys.readouterr().err
        assert ("is of a range of the frames of another: the truth of other frames is left out" in said) == (
            truth != part
        )


def test_another_range_is_another_recipe(labelled: Path, start: Runs, part: Path, whole: Path) -> None:
    again = {"settings": MEMORYLESS}
    with pytest.raises(ValueError, match=r"recipe\.frames is '40%:70%' there and '12:21' here"):
        start(labelled / "a.mp4", part, frames="12:21", **again)
    assert start(labelled / "a.mp4", part, frames="40.0% : 70%", **again) == 0
    assert start(labelled / "a.mp4", whole, frames="0:", **again) == 0
    assert "frames" not in read_run(str(whole)).about["identity"]["recipe"], "runs of old would be others now"
    assert start(labelled / "a.mp4", part, settings=[*MEMORYLESS, f"frames={RANGE}"]) == 0


def test_clips_of_a_range_are_those_of_the_range(
    table: Table, labelled: Path, start: Runs, part: Path, tmp_path: Path
) -> None:
    """What neighbours show each other is never from outside."""
    assert start(labelled / "a.mp4", tmp_path / "cut", settings=MEMORYLESS, frames=RANGE, clip_frames=4) == 0
    rows = table(tmp_path / "cut", "detections").to_pandas()
    assert {*rows.frame_index} == {*INSIDE}
    assert rows[rows.owned].frame_index.tolist() == [*INSIDE]
    assert len(rows) > len(INSIDE)


def test_each_video_has_its_own_share_and_one_without_says_so(
    table: Table, videos: Path, start: Runs, tmp_path: Path
) -> None:
    """Of 30, 21 and 12 frames."""
    shares = {"a": [15, 30], "b": [10, 21], "deeper/c": [6, 12]}
    assert start(videos, tmp_path / "half", frames="50%:") == 0
    rows = table(tmp_path / "half", "detections").to_pandas()
    for name, (first, stop) in shares.items():
        assert rows[rows.video_id == name].frame_index.tolist() == list(range(first, stop))
    assert start(videos, tmp_path / "late", frames="15:25") == 2
    found = {row["video_id"]: row for row in table(tmp_path / "late", "videos").to_pylist()}
    assert [found[name]["frames_decoded"] for name in shares] == [10, 6, 0]
    assert found["deeper/c"]["status"] == "failed"
    assert found["deeper/c"]["error"].endswith("has 12 frames, and the range that is asked for begins after them")


def test_given_detections_are_linked_in_the_range(table: Table, tmp_path: Path) -> None:
    for name, track in (("det", -1), ("gt", 1)):
        lines = [f"{frame},{track},{10 + frame},20,30,40,0.9,-1,-1,-1\n" for frame in range(1, 11)]
        (tmp_path / "set" / "one" / name).mkdir(parents=True)
        (tmp_path / "set" / "one" / name / f"{name}.txt").write_text("".join(lines))
    output = tmp_path / "run"
    assert link(str(tmp_path / "set"), output=str(output), frames="4:7", local=True, linker="sort") == 0
    for name in ("detections", "tracks", "truth"):
        assert sorted({*table(output, name)["frame_index"].to_pylist()}) == [4, 5, 6], name
    assert scoring.values(table(output, "scores"))["one", None]["num_misses"] == 0
    text = str(tmp_path / "set" / "one" / "det" / "det.txt")
    assert link(text, output=str(tmp_path / "text"), frames="4:7", local=True, linker="sort") == 0
    assert table(tmp_path / "text", "tracks")["frame_index"].to_pylist() == [4, 5, 6]
    with pytest.raises(ValueError, match=r"'50%:', and of one no frames are there to take a share of"):
        link(str(tmp_path / "set"), output=str(tmp_path / "half"), frames="50%:", local=True)
    with pytest.raises(ValueError, match="which has the frames that it was made of"):
        link(str(output), output=str(tmp_path / "again"), frames="4:7", local=True)


def test_truth_of_other_classes_is_said_beside_the_scores(
    labelled: Path, start: Runs, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert classes_apart(read_run(str(whole))) is None  # boxes of truth without a class match any
    settings = [*MEMORYLESS, "catalog.classes=fly"]
    assert start(labelled / "a.mp4", tmp_path / "run", settings=settings, frames=":3") == 0
    says = "note: no class is in both, so nothing can match: the truth has fly; this run looks for one, two, three"
    said = capsys.readouterr()
    assert says in said.err
    assert says in said.out
