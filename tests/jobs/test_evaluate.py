"""`trackloom evaluate`, as it is called: published answers, every form of file, and what is refused."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalogs import mot
from jobs.command import main
from jobs.evaluate import DEFINITIONS, SHOWN
from pipeline import scoring
from pipeline.metrics import coco, detection, identity
from pipeline.schemas import SCORES, VIDEOS
from pipeline.schemas import TRACKS as TRACKS_SCHEMA
from pipeline.tables import Run

TRUTH = "".join(f"{frame},{track},{100 * track},0,10,10,1,-1,-1,-1\n" for frame in (1, 2, 3) for track in (1, 2))
TRACKS = "".join(f"{frame},{track},{100 * track},0,10,9,0.5\n" for frame in (1, 2, 3) for track in (1, 2))


class Evaluate:
    """The command line; what it printed and its exit code."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch, self.capsys = monkeypatch, capsys

    def __call__(self, *words: object) -> tuple[int, str, str]:
        self.monkeypatch.setattr("sys.argv", ["evaluate", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main("evaluate")
        out, err = self.capsys.readouterr()
        return int(ended.value.code or 0), out, err

    def json(self, *words: object) -> dict[str, Any]:
        """What --json prints, of a call that goes well."""
        code, out, err = self(*words, "--json")
        assert code == 0, err
        return dict(json.loads(out))


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Evaluate:
    return Evaluate(monkeypatch, capsys)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """truth/NAME/gt/gt.txt and results/NAME.txt of the videos one and two."""
    for name in ("one", "two"):
        (tmp_path / "truth" / name / "gt").mkdir(parents=True)
        (tmp_path / "truth" / name / "gt" / "gt.txt").write_text(TRUTH)
        (tmp_path / "results").mkdir(exist_ok=True)
        (tmp_path / "results" / f"{name}.txt").write_text(TRACKS)
    return tmp_path


@pytest.mark.data
@pytest.mark.parametrize(
    ("video", "expected"),
    [
        ("TUD-Campus", {"IDF1": 0.558, "MOTA": 0.526, "num_switches": 7}),
        ("TUD-Stadtmitte", {"IDF1": 0.645, "MOTA": 0.564, "num_switches": 7}),
    ],
)
def test_published_results_score_as_published(
    data: Path, evaluate: Evaluate, video: str, expected: dict[str, float]
) -> None:
    """The figures of MOTChallenge's own evaluation, in percent with one digit."""
    folder = data / "mot15" / video
    found = evaluate.json(folder / "published_result" / f"{video}.txt", "--truth", folder / "gt" / "gt.txt")
    assert list(found["videos"]) == [video]
    for scores in (found["combined"], found["videos"][video]):
        assert {name: round(scores[name], 3) for name in expected} == expected


@pytest.mark.data
def test_published_results_together(data: Path, evaluate: Evaluate, tmp_path: Path) -> None:
    """TrackEval's figures of both."""
    for video in ("TUD-Campus", "TUD-Stadtmitte"):
        shutil.copy(data / "mot15" / video / "published_result" / f"{video}.txt", tmp_path)
    found = evaluate.json(tmp_path, "--truth", data / "mot15")
    expected = {
        "HOTA": 0.4,
        "MOTA": 0.5551,
        "IDF1": 0.6243,
        "IDSW": 14,
        "num_switches": 14,
        "num_false_positives": 58,
        "num_misses": 602,
    }
    assert {name: round(found["combined"][name], 4) for name in expected} == expected
    assert list(found["videos"]) == ["TUD-Campus", "TUD-Stadtmitte"]


def test_folders_meet_by_name(evaluate: Evaluate, files: Path) -> None:
    (files / "results" / "pedestrian_summary.txt").write_text("HOTA DetA AssA\n1 2 3\n")  # as TrackEval leaves there
    found = evaluate.json(files / "results", "--truth", files / "truth")
    assert list(found["videos"]) == ["one", "two"]
    assert found["combined"]["MOTA"] == 1
    assert found["combined"]["num_objects"] == 12
    assert found["combined"]["MOTP"] == pytest.approx(0.1)
    assert isinstance(found["combined"]["num_objects"], int)


def test_one_file_meets_one_file_whatever_their_names(evaluate: Evaluate, files: Path) -> None:
    other = files / "mine.txt"
    other.write_text(TRACKS)
    truth = files / "truth" / "one" / "gt" / "gt.txt"
    assert evaluate.json(other, "--truth", truth)["videos"]["one"]["MOTA"] == 1
    _, _, err = evaluate(other, "--truth", truth)
    assert err.startswith("note: mine of ")


def test_one_file_of_a_dataset_is_scored_alone(evaluate: Evaluate, files: Path) -> None:
    found = evaluate.json(files / "results" / "two.txt", "--truth", files / "truth")
    assert list(found["videos"]) == ["two"]


def test_one_file_of_a_dataset_says_what_it_leaves_out(evaluate: Evaluate, files: Path) -> None:
    _, _, err = evaluate(files / "results" / "two.txt", "--truth", files / "truth")
    assert err == f"note: {files}/results/two.txt is of two alone: one of {files}/truth is not scored\n"


def test_an_empty_file_among_others_is_a_video_in_which_nothing_is(evaluate: Evaluate, files: Path) -> None:
    (files / "results" / "two.txt").write_text("")
    found = evaluate.json(files / "results", "--truth", files / "truth")
    assert found["videos"]["one"]["MOTA"] == 1
    assert found["videos"]["two"]["num_misses"] == found["combined"]["num_misses"] == 6
    (files / "results" / "two.txt").write_text(TRACKS)
    (files / "truth" / "two" / "gt" / "gt.txt").write_text("\n \n")
    found = evaluate.json(files / "results", "--truth", files / "truth")
    assert found["videos"]["one"]["MOTA"] == 1
    assert found["videos"]["two"]["num_false_positives"] == found["combined"]["num_false_positives"] == 6


def run_of(folder: Path, rows: dict[str, str], **statuses: str) -> Path:
    """A run given videos of these statuses, with these tracks (text by video) in one shard."""
    run = Run(str(folder))
    tables = [TRACKS_SCHEMA.empty_table()]
    for name, text in rows.items():
        (folder.parent / "rows.txt").write_text(text)
        tables.append(mot.read_tracks(str(folder.parent / "rows.txt"), name))
    run.write_table(pa.concat_tables(tables).unify_dictionaries(), "tracks", "shard-00000.parquet")
    given = [{"video_id": name, "status": status} for name, status in statuses.items()]
    run.write_table(pa.Table.from_pylist(given, VIDEOS), "videos", "shard-00000.parquet")
    return folder


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("ok", ""),
        ("failed", "note: two failed in {}: all of their truth counts as missed\n"),
        ("partial", "note: two partial in {}: the truth of frames that they lack counts as missed\n"),
    ],
)
def test_a_runs_video_without_a_row_counts_as_missed(evaluate: Evaluate, files: Path, status: str, said: str) -> None:
    run = run_of(files / "run", {"one": TRACKS}, one="ok", two=status, unknown="failed")
    code, out, err = evaluate(run, "--truth", files / "truth", "--json")
    assert code == 0
    assert err == said.format(run) + f"note: no truth of unknown in {files}/truth: these tracks are not scored\n"
    found = json.loads(out)
    assert list(found["videos"]) == ["one", "two"]
    assert (found["videos"]["one"]["MOTA"], found["videos"]["two"]["MOTA"], found["combined"]["MOTA"]) == (1, 0, 0.5)


def test_a_run_of_one_video_misses_the_rest_of_the_dataset(evaluate: Evaluate, files: Path) -> None:
    run = run_of(files / "run", {"one": TRACKS}, one="ok")
    _, out, err = evaluate(run, "--truth", files / "truth", "--json")
    assert "no tracks of two in" in err
    assert json.loads(out)["combined"]["num_misses"] == 6
    assert evaluate.json(run / "tracks", "--truth", files / "truth")["combined"]["num_misses"] == 6


def test_a_run_without_any_row_is_scored_nought(evaluate: Evaluate, files: Path) -> None:
    run = run_of(files / "run", {}, one="ok", two="ok")
    found = evaluate.json(run, "--truth", files / "truth")
    assert (found["combined"]["MOTA"], found["combined"]["num_misses"]) == (0, 12)
    other = run_of(files / "other", {}, mine="ok", yours="ok")
    code, _, err = evaluate(other, "--truth", files / "truth")
    assert (code, "no video is in both: the truth has one, two, the tracks have mine, yours" in err) == (1, True)


def test_a_run_of_one_video_meets_one_file_of_truth_whatever_their_names(evaluate: Evaluate, files: Path) -> None:
    run = run_of(files / "run", {"mine": TRACKS}, mine="ok")
    truth = files / "truth" / "one" / "gt" / "gt.txt"
    assert evaluate.json(run, "--truth", truth)["videos"]["one"]["MOTA"] == 1
    both = run_of(files / "both", {"mine": TRACKS}, mine="ok", yours="ok")
    code, _, err = evaluate(both, "--truth", truth)
    assert (code, "no video is in both" in err) == (1, True)


def test_a_runs_truth_names_also_videos_in_which_nothing_is(evaluate: Evaluate, files: Path) -> None:
    run = run_of(files / "run", {"one": TRACKS, "two": TRACKS, "unknown": TRACKS}, one="ok", two="ok", unknown="ok")
    truth = mot.read_truth(str(files / "truth" / "one" / "gt" / "gt.txt"), "one")
    metadata = {"videos": '["one", "two"]'}
    Run(str(run)).write_table(truth, "truth", "shard-00000.parquet", metadata=metadata)
    found = evaluate.json(run, "--truth", run)
    assert list(found["videos"]) == ["one", "two"]
    assert (found["videos"]["one"]["MOTA"], found["videos"]["two"]["num_false_positives"]) == (1, 6)


def test_a_video_without_tracks_counts_as_missed_and_is_named(evaluate: Evaluate, files: Path) -> None:
    (files / "results" / "two.txt").rename(files / "results" / "three.txt")
    code, out, err = evaluate(files / "results", "--truth", files / "truth", "--json")
    assert code == 0
    assert "no tracks of two in" in err
    assert "no truth of three in" in err
    found = json.loads(out)
    assert list(found["videos"]) == ["one", "two"]
    assert found["combined"]["num_misses"] == found["videos"]["two"]["num_misses"] == 6
    assert found["videos"]["two"]["MOTP"] is None


def test_runs_and_parquet_are_read_and_written(evaluate: Evaluate, files: Path) -> None:
    run = files / "run"
    for side, read, text in (
        ("truth", mot.read_truth, "truth/{}/gt/gt.txt"),
        ("tracks", mot.read_tracks, "results/{}.txt"),
    ):
        (run / side).mkdir(parents=True)
        for index, name in enumerate(("one", "two")):
            pq.write_table(read(str(files / text.format(name)), name), run / side / f"shard-0000{index}.parquet")
    whole = evaluate.json(run, "--truth", run)
    assert whole["combined"]["MOTA"] == 1
    assert list(whole["videos"]) == ["one", "two"]
    assert evaluate.json(run / "tracks", "--truth", files / "truth") == whole
    alone = evaluate.json(run / "tracks" / "shard-00001.parquet", "--truth", run)
    assert alone["videos"] == {"two": whole["videos"]["two"]}

    for name in ("scores.json", "scores.parquet"):
        assert evaluate(run, "--truth", run, "--output", files / "new" / name)[0] == 0
    assert json.loads((files / "new" / "scores.json").read_text()) == whole
    rows = pq.read_table(files / "new" / "scores.parquet")
    assert rows.schema.remove_metadata() == SCORES
    assert rows.filter(pa.compute.is_null(rows["video_id"])).num_rows > 0


def test_coco_results(evaluate: Evaluate, tmp_path: Path) -> None:
    images = [{"id": frame, "file_name": f"walk/{frame}.jpg"} for frame in (1, 2)]
    boxes = [{"image_id": frame, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 1, "track_id": 4} for frame in (1, 2)]
    dataset = {"images": images, "categories": [{"id": 1, "name": "cat"}], "annotations": boxes}
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    (tmp_path / "results.json").write_text(json.dumps(boxes[:1]))
    found = evaluate.json(tmp_path / "results.json", "--truth", tmp_path / "dataset.json")
    assert found["videos"]["walk"]["MOTA"] == found["videos"]["walk"]["mAP"] == 0.5


def test_detections_alone_have_map_alone(evaluate: Evaluate, files: Path) -> None:
    detections = files / "det.txt"
    detections.write_text(TRACKS.replace(",1,100", ",-1,100").replace(",2,200", ",-1,200"))
    truth = files / "truth" / "one" / "gt" / "gt.txt"
    found = evaluate.json(detections, "--truth", truth)["combined"]
    assert found["mAP"] == 1
    assert set(found) <= set(detection.FIELDS)
    code, _, err = evaluate(detections, "--truth", truth, "--metrics", "HOTA,mAP")
    assert (code, "HOTA need identities" in err) == (1, True)


def test_the_table_names_its_definitions(evaluate: Evaluate, files: Path) -> None:
    code, out, err = evaluate(files / "results", "--truth", files / "truth")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[1].split() == ["video", *SHOWN]
    assert [line.split()[0] for line in lines if "1.0000" in line] == ["one", "two", "combined"]
    assert "HOTA, DetA, AssA: TrackEval 1.3. MOTA: py-motmetrics 1.4" in lines[-1]
    assert set(DEFINITIONS) == set(scoring.FAMILIES)


@pytest.mark.parametrize(
    ("asked", "shown", "defined"),
    [
        ("num_transfer,HOTA", ["num_transfer", "HOTA"], "HOTA: TrackEval 1.3. num_transfer: py-motmetrics 1.4"),
        ("coco", list(coco.FIELDS), "coco: pycocotools 2.0."),
        ("identity, IDSW", [*identity.FIELDS, "IDSW"], "IDSW: TrackEval 1.3. identity: py-motmetrics 1.4 and"),
    ],
    ids=["metrics", "a family", "both"],
)
def test_what_is_asked_for_is_shown(
    evaluate: Evaluate, files: Path, asked: str, shown: list[str], defined: str
) -> None:
    words = (files / "results", "--truth", files / "truth", "--metrics", asked)
    code, out, _ = evaluate(*words)
    assert code == 0
    assert out.splitlines()[1].split() == ["video", *shown]
    assert out.splitlines()[-1].startswith(defined)
    assert set(evaluate.json(*words)["combined"]) == set(shown)


def test_groups_by_motion_are_shown_where_truth_knows_motion(evaluate: Evaluate, files: Path) -> None:
    truth = mot.read_truth(str(files / "truth" / "one" / "gt" / "gt.txt"), "one")
    motion = pa.array([0.95] * len(truth), pa.float32())
    truth = truth.set_column(truth.column_names.index("motion_iou"), "motion_iou", motion)
    pq.write_table(truth, files / "truth.parquet")
    _, out, _ = evaluate(files / "results" / "one.txt", "--truth", files / "truth.parquet")
    shown = dict(zip(out.splitlines()[1].split(), out.splitlines()[-3].split(), strict=True))
    assert (shown["mAP_slow_by_box"], shown["mAP_medium_by_box"]) == ("1.0000", "-")


def test_help_names_every_metric(evaluate: Evaluate) -> None:
    _, out, _ = evaluate("--help")
    assert set(scoring.METRICS) | set(scoring.FAMILIES) <= set(re.findall(r"\w+", out))


def test_rows_written_for_some_metrics_still_add_up(evaluate: Evaluate, files: Path) -> None:
    """The counts of a family stand beside its first metric."""
    words = (files / "results", "--truth", files / "truth", "--metrics", "IDP")
    assert evaluate(*words, "--output", files / "scores.parquet")[0] == 0
    rows = pq.read_table(files / "scores.parquet")
    of_videos = rows.filter(pa.compute.is_valid(rows["video_id"]))
    assert scoring.values(scoring.combine([of_videos]))[None, None]["IDP"] == 1
    assert evaluate(*words, "--output", files / "scores.json")[0] == 0
    assert json.loads((files / "scores.json").read_text())["combined"] == {"IDP": 1}


def test_classes_without_any_in_common_are_refused_unless_lumped(evaluate: Evaluate, files: Path) -> None:
    for name, read, text in (("cats", mot.read_truth, TRUTH), ("dogs", mot.read_tracks, TRACKS)):
        (files / "rows.txt").write_text(text)
        table = read(str(files / "rows.txt"), "one")
        index = table.column_names.index("class_name")
        table = table.set_column(index, "class_name", pa.array([name] * len(table)).dictionary_encode())
        pq.write_table(table, files / f"{name}.parquet")
    code, _, err = evaluate(files / "dogs.parquet", "--truth", files / "cats.parquet")
    assert code == 1
    assert "no class is in both: the truth has cats, the tracks have dogs" in err
    lumped = evaluate.json(files / "dogs.parquet", "--truth", files / "cats.parquet", "--class-agnostic")
    assert lumped["combined"]["MOTA"] == 1


REFUSED: dict[str, tuple[list[str], str]] = {
    "tracks that are not there": (["nothing.txt", "--truth", "truth"], "the tracks {}/nothing.txt is not there"),
    "truth that is not there": (["results", "--truth", "nothing"], "the truth {}/nothing is not there"),
    "an empty file": (["empty.txt", "--truth", "truth/one/gt/gt.txt"], "{}/empty.txt is empty"),
    "an empty file of truth": (["results/one.txt", "--truth", "empty.txt"], "{}/empty.txt is empty"),
    "truth of nothing": (["results", "--truth", "still"], "the truth {}/still has nothing; tracks without truth"),
    "not a MOTChallenge file": (["words.txt", "--truth", "truth"], "{}/words.txt:1: column 1 is 'once upon'"),
    "an empty folder": (
        ["results", "--truth", "void"],
        "the truth {}/void is a folder with no *.txt or *.parquet right in it",
    ),
    "no video in common": (["others", "--truth", "truth"], "no video is in both: the truth has one, two"),
    "one file of no known video": (["others/x.txt", "--truth", "truth"], "has nothing of x"),
    "a folder that is not a run": (["results", "--truth", "halfrun"], "halfrun has no truth table; it has: no table"),
    "a misspelt metric": (
        ["results", "--truth", "truth", "--metrics", "IDF"],
        "unknown metric 'IDF' (did you mean 'IDF1'?); it may be",
    ),
    "a number that is none": (["nan.parquet", "--truth", "truth/one/gt/gt.txt"], "tracks has nan for score in row 1"),
    "an unknown output": (["results", "--truth", "truth", "--output", "scores.xls"], "must end in .json or .parquet"),
    "not Parquet": (["fake.parquet", "--truth", "truth"], "fake.parquet is not a whole Parquet file"),
    "a bad tolerance": (["results", "--truth", "truth", "--tolerance", "-1"], "--tolerance is -1.0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_ends_in_a_sentence(evaluate: Evaluate, files: Path, name: str) -> None:
    (files / "empty.txt").write_text("")
    (files / "words.txt").write_text("once upon, a time\n")
    (files / "fake.parquet").write_text("no")
    table = mot.read_tracks(str(files / "results" / "one.txt"), "one").slice(0, 2)
    score = pa.array([0.5, math.nan], pa.float32())
    pq.write_table(table.set_column(table.column_names.index("score"), "score", score), files / "nan.parquet")
    for folder in ("void", "others", "halfrun"):
        (files / folder).mkdir()
    (files / "halfrun" / "run.json").write_text("{}")
    (files / "still" / "one" / "gt").mkdir(parents=True)
    (files / "still" / "one" / "gt" / "gt.txt").write_text("")
    for video in ("x", "y"):
        (files / "others" / f"{video}.txt").write_text(TRACKS)
    words, message = REFUSED[name]
    places = [str(files / word) if word[0] != "-" and (index in (0, 2)) else word for index, word in enumerate(words)]
    code, out, err = evaluate(*places)
    assert (code, out) == (1, "")
    assert message.format(files) in err
    assert err.startswith("trackloom: ")
    assert "Traceback" not in err
    assert err.count("\n") == 1


def test_parquet_as_pandas_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whole numbers for corners, and no track_id at all: detections are scored as detections."""
    import pandas as pd

    from jobs.evaluate import evaluate as score

    rows = pd.DataFrame({"video_id": "v", "frame_index": [0, 1], "x1": 0, "y1": 0, "x2": 9, "y2": 9, "class_name": "a"})
    rows.assign(score=0.5).to_parquet(tmp_path / "found.parquet")
    rows.assign(track_id=1).to_parquet(tmp_path / "truth.parquet")
    score(str(tmp_path / "found.parquet"), str(tmp_path / "truth.parquet"), as_json=True)
    said = capsys.readouterr()
    assert json.loads(said.out)["combined"]["mAP"] == 1.0
    assert "only metrics of detection are scored" in said.err
