"""The papers' systems and claims fit together, and what they name is there."""

from collections import Counter

import pytest
import torch

from jobs import prepare
from jobs.claims import units
from jobs.claims.claim import Claim, Judged
from jobs.claims.papers import PAPERS, claims, systems
from jobs.claims.system import of_seed
from jobs.papers.weights import known
from jobs.recipes import PAPERS as STEMS
from pipeline import scoring
from pipeline.subsets import SUBSETS


@pytest.mark.parametrize("claim", claims(), ids=lambda claim: f"{claim.paper}/{claim.name}")
def test_claim_names_what_there_is(claim: Claim) -> None:
    assert claim.paper in STEMS
    assert {claim.better, claim.worse} <= systems().keys()
    assert claim.better != claim.worse
    assert claim.metric in (*scoring.METRICS, "ms")
    assert {claim.subset, claim.beyond or "all"} <= SUBSETS.keys()
    assert claim.subset != claim.beyond
    assert claim.source
    assert claim.margin or not claim.near


def test_claims_are_told_apart() -> None:
    names = Counter((claim.paper, claim.name) for claim in claims())
    orderings = Counter((c.better, c.worse, c.metric, c.subset, c.beyond, c.factor, c.margin) for c in claims())
    assert set(names.values()) == set(orderings.values()) == {1}


def test_every_paper_has_claims_and_no_system_is_idle() -> None:
    assert {claim.paper for claim in claims()} == set(STEMS)
    assert systems().keys() == {name for claim in claims() for name in (claim.better, claim.worse)}
    assert len(systems()) == sum(len(paper.systems()) for paper in PAPERS)


@pytest.mark.parametrize("name", systems())
def test_system_can_run_with_any_seed(name: str) -> None:
    system = systems()[name]
    for seed in (0, 2):
        recipe = system.at(seed, "val", {setting: values[0] for setting, values in system.choices.items()})
        prepare.check_model_and_linker(recipe)
        assert recipe.catalog_settings == {"split": "val"}
    assert system.weights()
    for setting, weights in system.weights().items():
        assert recipe.model_settings[setting] == of_seed(weights, 2) == f"{weights}-seed-2"
        assert weights in known()
    assert not system.like or systems()[system.like].choices


def test_nothing_of_a_network_is_random() -> None:
    """Built twice it is the same: weights leave no part of it as it was drawn, and no run is made twice."""
    both = []
    for draw in (1, 2):
        torch.manual_seed(draw)
        both.append({unit.name: unit.detections for unit in units.units(list(systems().values()), [0], str)})
    assert both[0] == both[1]
    assert len(both[0]) == len(systems())


def test_chosen_values_go_where_they_belong() -> None:
    recipe = systems()["smot-dfs"].at(0, chosen={"linker.min_confidence": 0.3, "model.nms_iou": 0.4})
    assert recipe.linker_settings == {"min_confidence": 0.3}
    assert recipe.model_settings["nms_iou"] == 0.4
    assert "nms_iou" not in systems()["smot-dfs"].recipe.model_settings


@pytest.mark.parametrize(
    ("margin", "near", "low", "high", "verdict"),
    [
        (0.0, False, 0.01, 0.05, "holds"),
        (0.0, False, -0.05, -0.01, "fails"),
        (0.0, False, -0.01, 0.05, "undecided"),
        (0.0, False, 0.0, 0.0, "undecided"),  # the same system twice
        (0.02, False, -0.01, 0.05, "holds"),
        (0.02, False, -0.03, 0.05, "undecided"),
        (0.02, False, -0.05, -0.03, "fails"),
        (0.02, True, -0.01, 0.01, "holds"),
        (0.02, True, -0.01, 0.05, "undecided"),
        (0.02, True, 0.03, 0.05, "fails"),
        (0.02, True, -0.05, -0.03, "fails"),
        (0.02, False, float("nan"), float("nan"), "undecided"),
    ],
)
def test_verdict_is_what_the_whole_interval_says(
    margin: float, near: bool, low: float, high: float, verdict: str
) -> None:
    claim = Claim("paper", "name", "text", "one", "other", "mAP", margin=margin, near=near)
    assert Judged(claim, 0.5, 0.4, 0.1, low, high, (0, 1, 2), 48).verdict == verdict
