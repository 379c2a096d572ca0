"""`trackloom benchmark`: its rows, that both sides did the same work, and what is said where a peer is missing."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs import benchmark_linkers, benchmark_metrics, benchmark_models, benchmark_plain, benchmark_rows, command
from jobs.benchmark_rows import Missing, against
from jobs.trainings import DETECTOR
from models.parts import camera_motion
from models.tracktor import Settings
from pipeline.config import load


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both benchmarks at a size that takes no time."""
    for module, sizes in (
        (benchmark_linkers, {"CLASSES": 2, "BOXES": 4, "FRAMES": 12, "ONLINE": ("online", "sort")}),
        (benchmark_metrics, {"FRAMES": 40, "OBJECTS": 5, "SEQUENCES": ["S-00", "S-01"]}),
    ):
        for name, value in sizes.items():
            monkeypatch.setattr(module, name, value)


def without_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("trackers", "supervision", "boxmot"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize(
    ("name", "plain", "changes"),
    [("tubes", benchmark_plain.tubes, {}), ("seq_nms", benchmark_plain.sequences, {"min_length": 1})],
)
@pytest.mark.parametrize("seed", range(3))
def test_plain_numpy_finds_the_same_paths(
    small: None, name: str, plain: object, changes: dict[str, Any], seed: int
) -> None:
    benchmark_linkers._plain(name, plain, benchmark_linkers.many_classes(seed), **changes)()  # type: ignore[arg-type]


def test_other_programs_score_crowds_as_we_do(small: None, tmp_path: Path) -> None:
    benchmark_metrics.write_crowds(tmp_path)
    scores = benchmark_metrics.score_crowds(str(tmp_path))
    assert 0.2 < scores["HOTA"] < 0.9
    benchmark_metrics._trackeval(str(tmp_path), scores)()
    benchmark_metrics._motmetrics(str(tmp_path), scores)()
    with pytest.raises(AssertionError, match="HOTA"):
        benchmark_metrics._trackeval(str(tmp_path), {**scores, "HOTA": scores["HOTA"] + 1e-5})()


def test_a_row_says_how_many_times_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_rows, "cpu_s", lambda work, repeats: 0.003)

    def absent() -> object:
        raise Missing("nowhere")

    found, lost = against("a", "big", "ms", 1.5, {"one": lambda: lambda: None, "other": absent}, 1000.0)  # type: ignore[dict-item]
    assert (found.peer, found.ratio, found.missing) == (3.0, 2.0, "")
    assert (lost.missing, math.isnan(lost.ratio)) == ("nowhere", True)
    (alone,) = against("a", "big", "ms", 1.5, {})
    assert alone.peer_name == ""


def called(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["trackloom", *arguments])
    with pytest.raises(SystemExit) as end:
        command.main("benchmark")
    return int(end.value.code or 0)


def test_a_missing_peer_is_said_and_is_a_failure(
    small: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_peers(monkeypatch)
    assert called(["linkers", "--json"], monkeypatch) == 1
    said = capsys.readouterr()
    assert "not installed: trackers; pip install -e '.[peers]'" in said.err
    rows = [json.loads(line) for line in said.out.splitlines()]
    assert {row["name"] for row in rows} == {"tubes", "seq_nms", "online", "sort"}
    assert all(set(row) == {"name", "size", "ours", "peer_name", "peer", "ratio", "unit"} for row in rows)
    tubes = next(row for row in rows if row["name"] == "tubes")
    assert tubes["ratio"] == pytest.approx(tubes["peer"] / tubes["ours"])
    assert next(row for row in rows if row["peer_name"] == "roboflow SORT")["peer"] is None


def test_the_table_says_so_too(
    small: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_peers(monkeypatch)
    assert called(["linkers"], monkeypatch) == 1
    assert "not installed" in capsys.readouterr().out


def test_networks_are_measured_beside_their_peers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of those that learned to track, with a trained detector alone: what is measured does the same work."""
    given: dict[str, dict[str, Any]] = {
        "retina_track": {"weights": "random", "classes": ("one", "two")},
        "tracktor": {"weights": DETECTOR},
    }
    small = []
    for system in benchmark_models.SYSTEMS:
        reid = {"reid_weights": "random"} if "reid" in system.network else {}
        network = {**system.network, **given.get(system.model, {}), **reid}
        small += [replace(system, network=network)] if system.size == "small" else []
    monkeypatch.setattr(benchmark_models, "SYSTEMS", small)
    monkeypatch.setattr(benchmark_models, "FRAMES", {"small": 6, "paper": 1})
    assert called(["models", "--json"], monkeypatch) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    whole = [row for row in rows if row["unit"] == "ms/frame" and ":" not in row["name"]]
    alone = "its detector alone"
    assert {row["name"]: row["peer_name"] for row in whole} == {
        **dict.fromkeys(("TCD", "D&T", "Plug & Play", "Tracktor", "SMOT"), alone),
        "RetinaTrack": "RetinaNet",
        "Tracktor++": "Tracktor",
        "SMOT, Farneback": "SMOT",
    }
    assert all(row["ours"] > 0 for row in whole)
    parts = {row["name"]: row["ours"] for row in rows if ":" in row["name"]}
    assert set(parts) == {
        *(f"Plug & Play: {name}" for name in benchmark_models.COMPONENTS),
        "Tracktor++: ECC",
        "Tracktor++: ReID",
        "SMOT, Farneback: flow",
    }
    assert min(parts.values()) > 0
    for system in whole:
        own = [time for name, time in parts.items() if name.startswith(f"{system['name']}: ")]
        assert sum(own) < 3 * system["ours"]  # each is counted once


def test_timers_leave_what_they_time_as_it_was() -> None:
    """Also a function of a module, which other networks call too."""
    model = load("model", "tracktor").build(
        Settings(weights=DETECTOR, camera="ecc", reid="small", reid_weights="random")
    )
    spent = {"ECC": 0.0, "ReID": 0.0}
    before = camera_motion.ecc
    cpu = torch.device("cpu")
    with (
        benchmark_models.timed(model, "camera_motion.ecc", cpu, spent, "ECC"),
        benchmark_models.timed(model, "reid.embed", cpu, spent, "ReID"),
    ):
        assert camera_motion.ecc is not before
        model.detect([benchmark_models.video(2)], [None])
    assert camera_motion.ecc is before
    assert "embed" not in vars(model.reid)
    assert spent["ECC"] > 0 < spent["ReID"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["metrics", "--data", "nowhere"],
            "--data is 'nowhere'; benchmark metrics needs a folder that holds imagenet_vid/, given so or by",
        ),
        (
            ["linker"],
            "unknown benchmark 'linker' (did you mean 'linkers'?); available: linkers, metrics, real-detections",
        ),
    ],
)
def test_wrong_use_is_one_sentence(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(arguments, monkeypatch) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
