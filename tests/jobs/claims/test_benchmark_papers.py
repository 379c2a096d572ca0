"""`trackloom benchmark papers`: what is done once stays, what is stopped goes on, what failed says so; its results."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs import benchmark_papers, command
from jobs.claims import choosing, judging, results, retraining, trained, units
from jobs.claims.claim import Claim
from jobs.claims.units import Unit
from pipeline import scoring, subsets
from pipeline.detect import Detect
from pipeline.recipe import Recipe
from pipeline.tables import read_run


def stages(error: str) -> dict[str, int]:
    """How many pieces of each kind of work were done, by what was said of them."""
    found: dict[str, int] = {}
    for what in re.findall(r"^(\w+) \d+/\d+: ", error, re.MULTILINE):
        found[what] = found.get(what, 0) + 1
    return found


def run_ids(out: Path) -> dict[str, str]:
    return {str(path.parent.relative_to(out)): json.loads(path.read_text())["run_id"] for path in out.rglob("run.json")}


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Claims without what differs from one run to the next: times, and when and at which commit it was."""
    return [
        {name: value for name, value in row.items() if name not in ("commit", "date")}
        for row in rows
        if row["metric"] != "ms"
    ]


class TestDone:
    def test_nothing_is_done_twice(self, finished: Any, capsys: pytest.CaptureFixture[str]) -> None:
        before, rows = run_ids(finished.out), results.read_claims(str(finished.out))
        assert finished.run(names=None, seeds="0,1") == 0
        assert stages(capsys.readouterr().err) == {"resample": 6}
        assert run_ids(finished.out) == before
        assert plain(results.read_claims(str(finished.out))) == plain(rows)

    def test_what_differs_in_linking_alone_shares_detections(self, finished: Any) -> None:
        of = {
            name: read_run(str(finished.out / f"runs/{name}/seed-0")).about["identity"]["recipe"]["linker"]
            for name in ("plain", "linked", "strict")
        }
        assert of == {"plain": "keep", "linked": "tracklets", "strict": "keep"}
        assert len(list((finished.out / "detections").iterdir())) == 4  # two of each of two seeds

    def test_changed_weights_make_their_units_anew(self, finished: Any, capsys: pytest.CaptureFixture[str]) -> None:
        before = run_ids(finished.out)
        finished.change("smot-synthetic-v1-seed-1")
        assert finished.run(seeds="0,1") == 0
        assert stages(capsys.readouterr().err) == {"detect": 2, "link": 2, "score": 2, "resample": 4}
        after = run_ids(finished.out)
        changed = {name for name in before if after[name] != before[name]}
        assert changed == {"runs/plain/seed-1", "runs/strict/seed-1"}

    def test_a_changed_setting_makes_its_units_anew(self, finished: Any, capsys: pytest.CaptureFixture[str]) -> None:
        path = finished.out / choosing.FILE
        found = json.loads(path.read_text())
        found["linked"]["chosen"] = {"linker.min_start_score": 0.99}
        path.write_text(json.dumps(found))
        assert finished.run(names="linked,plain") == 0
        said = capsys.readouterr()
        assert stages(said.err) == {"link": 1, "score": 1, "resample": 2}
        assert f"settings that were chosen on val: {path}" in said.err

    def test_a_new_claim_scores_what_it_needs(
        self, finished: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        claim = Claim("smot", "tracks", "whole tracks", "plain", "strict", "mAP_track", subset="burst")
        monkeypatch.setattr(benchmark_papers, "claims", lambda: [claim])
        assert finished.run() == 0
        assert stages(capsys.readouterr().err) == {"score": 2, "resample": 2}
        (row,) = results.read_claims(str(finished.out))
        assert row["difference"] is not None


class TestStopped:
    def test_what_is_stopped_goes_on(
        self, finished: Any, bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
    ) -> None:  # fmt: skip
        """The second of two networks stops at its second video; the first is not run again, nor that video."""
        stopping = type(bench)(tmp_path / "stopped", bench.shipped)
        seen, see = [], Detect.part

        def stops(self: Detect, ref: Any, *rest: Any) -> Any:
            seen.append(ref.video.video_id)
            if len(seen) == 4:
                raise KeyboardInterrupt
            return see(self, ref, *rest)

        monkeypatch.setattr(Detect, "part", stops)
        with pytest.raises(KeyboardInterrupt):
            stopping.run()
        assert not (stopping.out / results.CLAIMS).exists()
        assert stopping.run() == 0
        assert seen == ["test-0000", "test-0001"] * 2 + ["test-0001"]
        assert finished.run() == 0
        assert plain(results.read_claims(str(stopping.out))) == plain(results.read_claims(str(finished.out)))


class TestFailed:
    def test_a_unit_that_fails_leaves_the_others(
        self, finished: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shutil.rmtree(finished.out / "runs" / "strict")
        link = units.link

        def fails(out: str, unit: Unit) -> None:
            if unit.name == "strict, seed 1":
                raise ValueError("no luck")
            link(out, unit)

        with monkeypatch.context() as patch:
            patch.setattr(units, "link", fails)
            assert finished.run(seeds="0,1") == 1
        said = capsys.readouterr()
        assert "failed: strict, seed 1: no luck\n1 failed; all else is kept" in said.err
        assert results.read_claims(str(finished.out)) == []  # all claims are about it
        assert list(results.read_scores(str(finished.out))) == ["plain"]
        assert finished.run(seeds="0,1") == 0
        assert stages(capsys.readouterr().err) == {"link": 1, "score": 1, "resample": 4}
        assert len(results.read_claims(str(finished.out))) == 4

    def test_a_video_that_fails_fails_its_units_each_time(
        self, bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        see, is_broken = Detect.see, True

        def broken(self: Detect, clip: Any, memory: Any) -> Any:
            if is_broken and clip.ref.video.video_id == "test-0001":
                raise RuntimeError("no memory left")
            return see(self, clip, memory)

        monkeypatch.setattr(Detect, "see", broken)
        assert bench.run(names="plain") == 1
        assert "plain, seed 0: 1 videos failed or are partial, such as test-0001:" in capsys.readouterr().err
        is_broken = False
        assert bench.run(names="plain") == 0
        assert stages(capsys.readouterr().err)["detect"] == 1


class TestResults:
    def test_claims_are_of_the_scores_by_hand(self, finished: Any) -> None:
        rows = {row["name"]: row for row in results.read_claims(str(finished.out))}
        assert list(rows) == ["recall", "turned", "same", "time", "clean"]
        recall = {}
        for name in ("plain", "strict"):
            found = []
            for seed in (0, 1):
                run = read_run(str(finished.out / f"runs/{name}/seed-{seed}"))
                scored = scoring.score(run.table("truth"), run.table("tracks"), metrics=["clear"])
                found.append(scoring.values(scoring.combine([scored]))[None, None]["recall"])
            recall[name] = sum(found) / 2
        row = rows["recall"]
        assert (row["better_value"], row["worse_value"]) == pytest.approx((recall["plain"], recall["strict"]))
        assert row["difference"] == pytest.approx(recall["plain"] - recall["strict"])
        assert row["interval"][0] < row["difference"] < row["interval"][1]
        assert (row["holds"], rows["turned"]["holds"], rows["same"]["holds"]) == ("holds", "fails", "holds")
        assert rows["turned"]["interval"] == pytest.approx([-end for end in reversed(row["interval"])])
        assert (row["seeds"], row["videos"], row["source"], row["paper"]) == ([0, 1], 2, "Table 0", "smot")
        time = rows["time"]
        assert time["difference"] == pytest.approx(time["worse_value"] / 3 - time["better_value"])
        assert rows["clean"]["difference"] is not None

    def test_scores_are_of_all_seeds_videos_and_subsets(self, finished: Any) -> None:
        scores = results.read_scores(str(finished.out))
        row = next(row for row in results.read_claims(str(finished.out)) if row["name"] == "recall")
        assert sum(scores["plain"]["all"]["recall"]) / 2 == pytest.approx(row["better_value"], abs=1e-6)  # type: ignore[arg-type]
        assert {"all", "burst", "clean", "slow", "medium", "jitter"} <= scores["plain"].keys()
        assert {"mAP", "HOTA", "MOTA", "IDF1", "num_switches", "num_transfer", "ms"} <= scores["plain"]["all"].keys()
        videos = results.read_videos(str(finished.out)).to_pylist()
        one = [each for each in videos if (each["system"], each["seed"], each["metric"]) == ("plain", 1, "ms")]
        assert [each["video_id"] for each in one] == ["test-0000", "test-0001"]
        assert {each["subset"] for each in videos} == set(scores["plain"])

    def test_weights_say_what_they_are(self, finished: Any) -> None:
        found = trained.read_digests(str(finished.out))["smot-synthetic-v1"]
        assert found.keys() == {"0", "1"}
        content = (finished.shipped / "smot-synthetic-v1-seed-1.safetensors").read_bytes()
        assert found["1"]["sha256"] == hashlib.sha256(content).hexdigest()
        assert found["1"]["command"] == (
            "trackloom train --recipe small-synthetic --local --half --seed 1 --out runs/smot-synthetic-v1-seed-1 "
            "--export models/weights/smot-synthetic-v1-seed-1.safetensors"
        )

    def test_no_path_of_this_machine_is_in_what_is_committed(self, finished: Any) -> None:
        for path in finished.out.glob("papers*.*"):
            if path.suffix in (".json", ".html"):
                assert str(finished.out.parent) not in path.read_text(), path
            else:
                about = read_metadata(path)
                assert str(finished.out.parent) not in about
                assert os.uname().nodename not in about

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ("{}", "is no JSON list of claims"),
            ("[{", "is no JSON list of claims"),
            ("[1]", "is no JSON list of claims"),
            ({"videos": "48"}, "has in the claim 'recall' no fit videos"),
            ({"more": 1}, "has in the claim 'recall' no fit more"),
            ({"holds": "perhaps"}, "no fit verdict"),
            ({"interval": [1]}, "no fit verdict or interval"),
        ],
    )
    def test_damaged_results_are_refused(self, finished: Any, change: str | Mapping[str, Any], said: str) -> None:
        path = finished.out / results.CLAIMS
        if isinstance(change, str):
            path.write_text(change)
        else:
            rows = json.loads(path.read_text())
            rows[0].update(change)
            path.write_text(json.dumps(rows))
        with pytest.raises(ValueError, match=re.escape(said)):
            results.read_claims(str(finished.out))


def read_metadata(path: Path) -> str:
    return str(pq.read_schema(path).metadata)


def called(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["trackloom", *arguments])
    with pytest.raises(SystemExit) as end:
        command.main("benchmark")
    return int(end.value.code or 0)


def test_settings_are_chosen_on_val_by_the_scores_there(finished: Any) -> None:
    """On the real thing: two values, two seeds."""
    lines = choosing.read(str(finished.out))["linked"]["tried"]
    assert lines[0]["HOTA"] != lines[1]["HOTA"]
    for line in lines:
        (name,) = [
            name for name, values in choosing.variants(finished.systems["linked"]).items() if values == line["settings"]
        ]
        hota = []
        for seed in (0, 1):
            run = read_run(str(finished.out / f"choices/runs/{name}/seed-{seed}"))
            assert {video["video_id"][:4] for video in run.table("videos").to_pylist()} == {"val-"}
            assert (
                run.about["identity"]["recipe"]["linker_settings"]["min_start_score"]
                == line["settings"]["linker.min_start_score"]
            )
            rows = scoring.score(run.table("truth"), run.table("tracks"), metrics=["hota"])
            hota.append(scoring.values(scoring.combine([rows]))[None, None]["HOTA"])
        assert line["HOTA"] == pytest.approx(sum(hota) / 2)
    best = max(lines, key=lambda line: line["HOTA"])["settings"]
    run = read_run(str(finished.out / "runs/linked/seed-0"))
    assert run.about["identity"]["recipe"]["linker_settings"]["min_start_score"] == best["linker.min_start_score"]
    assert {video["video_id"][:4] for video in run.table("videos").to_pylist()} == {"test"}


def test_a_unit_is_resampled_as_its_videos_are_scored(finished: Any) -> None:
    """Recall on a subset and milliseconds, against the videos repeated by hand."""
    out = str(finished.out)
    unit = Unit("strict", 0, Recipe(), {}, "", "")
    weights = np.array([[1, 1], [2, 0], [0, 2], [3, 1]])
    drawn = judging.Drawn(("test-0000", "test-0001"), weights, np.ones((4, 1), int))
    found = judging.resample_unit(out, drawn, (unit, {"burst": ("recall",), "all": ("ms", "recall"), "fast": ("mAP",)}))
    assert np.isnan(found["fast", "mAP"]).all()  # no such video is there
    run = read_run(f"{out}/{unit.folder}")
    videos = {row["video_id"]: row for row in run.table("videos").to_pylist()}
    truth, tracks = subsets.restrict(run.table("truth"), run.table("tracks"), "burst")
    counted = scoring.values(scoring.score(truth, tracks, metrics=["clear"]))
    for row, (a, b) in enumerate(weights):
        times = {"test-0000": a, "test-0001": b}
        seen, there = (
            sum(n * counted[video, None][name] for video, n in times.items())
            for name in ("num_detections", "num_objects")
        )
        seconds = sum(n * videos[v]["detect_s"] for v, n in times.items())
        frames = sum(n * videos[v]["frames_decoded"] for v, n in times.items())
        assert found["burst", "recall"][row] == pytest.approx(seen / there)
        assert found["all", "ms"][row] == pytest.approx(1000 * seconds / frames)


@pytest.mark.slow
def test_ray_finds_the_same(finished: Any, ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By weights in OUT/weights, since workers know only where the project's own lie."""
    monkeypatch.setattr(retraining, "check", lambda *given: None)
    there = type(finished)(tmp_path / "ray", finished.shipped)
    shutil.copytree(finished.shipped, there.out / "weights")
    for path in (there.out / "weights").iterdir():
        path.with_suffix(".md").touch()
    assert there.run(seeds="0,1", retrain=True, local=False) == 0
    assert finished.run(seeds="0,1") == 0
    assert plain(results.read_claims(str(there.out))) == plain(results.read_claims(str(finished.out)))


class TestUse:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["papers"], "benchmark papers needs --out"),
            (["papers", "--out", " "], "benchmark papers needs --out"),
            (["linkers", "--choose"], "--choose is of benchmark papers alone; leave it out for benchmark linkers"),
            (["models", "--seeds", "0"], "--seeds is of benchmark papers alone"),
            (["papers", "--out", "x", "--slow-peers"], "--slow-peers is of the other benchmarks"),
            (["papers", "--out", "x", "--seeds", "0,a"], "--seeds is '0,a'; it must be whole numbers"),
            (["papers", "--out", "x", "--seeds", "1,1"], "--seeds is '1,1'; it must be whole numbers"),
            (["papers", "--out", "x", "--seeds", ""], "--seeds is ''; it must be whole numbers"),
            (["papers", "--out", "x", "--systems", "plan"], "unknown system 'plan' (did you mean 'plain'?); available"),
            (
                ["papers", "--out", "memory://x"],
                "is this process's memory, which Ray's workers do not see; add --local",
            ),
            (
                ["papers", "--out", "x", "--systems", "plain", "--seeds", "0,1,2", "--local"],
                "1 of the 3 weights that these systems and seeds need are not in models/weights, such as "
                "smot-synthetic-v1-seed-2; --retrain trains them",
            ),
            (
                ["papers", "--out", "x", "--systems", "plain,linked", "--seeds", "0", "--local"],
                "no settings are chosen for system linked yet; --choose does it, on val",
            ),
        ],
    )
    def test_wrong_use_is_one_sentence(
        self,
        bench: Any,
        arguments: list[str],
        said: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert called(arguments, monkeypatch) == 1
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
        assert not (tmp_path / "x").exists()

    def test_json_gives_the_rows(
        self, finished: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = [
            "papers",
            "--out",
            str(finished.out),
            "--systems",
            "plain,strict",
            "--seeds",
            "0",
            "--local",
            "--json",
        ]
        assert called(arguments, monkeypatch) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert rows == results.read_claims(str(finished.out))
        assert [row["name"] for row in rows] == ["recall", "turned", "time", "clean"]
