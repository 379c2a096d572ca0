"""The committed results of the papers' benchmark are those of the shipped weights: two claims are computed anew."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pyarrow.compute as pc
import pytest

from jobs import benchmark_papers
from jobs.claims import papers, results, scores, trained, units
from jobs.claims.claim import Claim
from jobs.claims.system import System
from jobs.papers import weights
from pipeline import subsets
from pipeline.engine import Local

# One of networks that feed their boxes back, in which small faults grow; one of what links alone.
CLAIMS = [
    claim
    for claim in papers.claims()
    if (claim.paper, claim.name) in (("plug_and_play_tracker", "seq-track-nms"), ("detect_to_track", "offline"))
]
SYSTEMS = [papers.systems()[name] for claim in CLAIMS for name in (claim.better, claim.worse)]
KEPT = str(results.KEPT)
NEAR = 5e-3  # of scores, for machines that sum in another order
ALIKE = 0.1  # of what a video scores that another build of libx264 packed; .05 with the older encoding


def of_two(system: System) -> System:
    """The same on the first two videos."""
    settings = {**system.recipe.catalog_settings, "num_videos": 2}
    return replace(system, recipe=replace(system.recipe, catalog_settings=settings))


@cache
def committed() -> dict[tuple[str, int, str, str], float]:
    """By system, seed, video and metric what each video scored, on all boxes."""
    table = results.read_videos()
    rows = table.filter(pc.equal(table["subset"], subsets.ALL)).to_pylist()
    return {(row["system"], row["seed"], row["video_id"], row["metric"]): row["value"] for row in rows}


def test_shipped_weights_are_those_that_were_scored() -> None:
    digests = trained.read_digests(KEPT)
    found = {each.base for system in papers.systems().values() for each in trained.needed([system], [0])}
    assert digests.keys() == found
    for base, of_seeds in digests.items():
        assert of_seeds.keys() >= {"0", "1", "2"}, base
        for seed, of in of_seeds.items():
            each = trained.Trained(base, int(seed))
            content = (weights.SHIPPED / f"{each.name}{trained.SUFFIX}").read_bytes()
            assert hashlib.sha256(content).hexdigest() == of["sha256"], each.name


def test_every_claim_has_a_verdict_of_three_seeds_and_all_videos() -> None:
    rows = {(row["paper"], row["name"]): row for row in results.read_claims()}
    assert rows.keys() == {(claim.paper, claim.name) for claim in papers.claims()}
    for claim in papers.claims():
        row = rows[claim.paper, claim.name]
        assert (row["claim"], row["better"], row["worse"]) == (claim.text, claim.better, claim.worse)
        assert (len(row["seeds"]), row["videos"]) == (3, 48)
        assert row["commit"]
        assert "-dirty" not in row["commit"]
        low, high = row["interval"]
        assert row["holds"] == claim.verdict(low, high)
        assert low <= row["difference"] <= high


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_some_videos_score_what_is_committed(claim: Claim, tmp_path: Path) -> None:
    """The first two videos, of two seeds."""
    both = [papers.systems()[name] for name in (claim.better, claim.worse)]
    every = units.units([of_two(system) for system in both], [0, 1], str)
    assert units.run(every, str(tmp_path), Local()) == {}
    asked = {system.name: {subsets.ALL: (claim.metric,)} for system in both}
    assert scores.score(every, asked, str(tmp_path), Local()) == {}
    kept, files = committed(), json.loads(results.read_videos().schema.metadata[b"files"])
    for unit in every:
        same = results.files_of(str(tmp_path), unit).items() <= files.items()
        rows = scores.read(str(tmp_path), unit)[subsets.ALL]
        rows = rows.filter(pc.and_(pc.equal(rows["metric"], claim.metric), pc.is_null(rows["class_name"])))
        found = {row["video_id"]: row["value"] for row in rows.to_pylist() if row["video_id"]}
        assert len(found) == 2
        for video, value in found.items():
            there = kept[unit.system, unit.seed, video, claim.metric]
            assert value == pytest.approx(there, abs=NEAR if same else ALIKE, nan_ok=True)


@pytest.mark.slow
def test_two_claims_are_as_committed(tmp_path: Path) -> None:
    rows, errors = benchmark_papers.measured(SYSTEMS, CLAIMS, [0, 1, 2], {}, str, str(tmp_path), Local())
    assert errors == {}
    kept = {(row["paper"], row["name"]): row for row in results.read_claims()}
    assert len(rows) == 2
    for row in rows:
        other = kept[row["paper"], row["name"]]
        assert row["difference"] == pytest.approx(other["difference"], abs=NEAR)
        assert row["interval"] == pytest.approx(other["interval"], abs=NEAR)
        assert row["holds"] == other["holds"]
