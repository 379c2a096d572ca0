"""Claims held against scores: differences of systems, and what resampling the videos and the seeds makes of them.

What a system scores in every resampling is found once for each unit and shared by all claims about it. The first of
them is no resampling: it has each video and each seed once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.claims import scores
from jobs.claims.claim import Claim, Judged
from jobs.claims.scores import TIME, Asked
from jobs.claims.units import Unit
from jobs.claims.working import done
from pipeline import resampling
from pipeline.engine import Engine

Floats = NDArray[np.float64]
Key = tuple[str, str]  # subset and metric

ROUNDS, SEED = 2000, 0


@dataclass(frozen=True)
class Drawn:
    """How often each video (R + 1, V) and each seed (R + 1, S) is drawn; the first row has each once."""

    videos: tuple[str, ...]
    weights: NDArray[np.int64]
    seeds: NDArray[np.int64]


def draw(videos: Sequence[str], num_seeds: int) -> Drawn:
    """The same for all systems, and always the same."""
    weights, seeds = resampling.draws(len(videos), num_seeds, ROUNDS, SEED)
    return Drawn(tuple(videos), *(np.vstack([np.ones_like(of[:1]), of]) for of in (weights, seeds)))


def resampled(
    units: Sequence[Unit], asked: Mapping[str, Asked], drawn: Drawn, out: str, engine: Engine
) -> tuple[dict[str, dict[Key, Floats]], dict[str, str]]:
    """By unit's name what it scores in every resampling of the videos (R + 1,), and the errors of those that failed."""
    records = {unit.name: (unit, asked[unit.system]) for unit in units if unit.system in asked}
    return done("resample", records, partial(resample_unit, out, drawn), engine)


def resample_unit(out: str, drawn: Drawn, record: tuple[Unit, Asked]) -> dict[Key, Floats]:
    """What a unit scores in every resampling (R + 1,), by subset and metric; nan where a subset has nothing."""
    unit, asked = record
    tables = scores.read(out, unit)
    found: dict[Key, Floats] = {}
    for subset, metrics in asked.items():
        if TIME in metrics:
            rows = tables[subset].filter(pc.equal(tables[subset]["metric"], TIME))
            of = {
                name: dict(counts)
                for name, counts in zip(*(rows[c].to_pylist() for c in ("video_id", "counts")), strict=True)
            }
            parts, wholes = (
                [1000 * of[v]["seconds"][0] for v in drawn.videos],
                [of[v]["frames"][0] for v in drawn.videos],
            )
            found[subset, TIME] = resampling.ratios(parts, wholes, drawn.weights)
        others = [metric for metric in metrics if metric != TIME]
        if others and subset in tables:
            rows = tables[subset]
            rows = rows.filter(pc.not_equal(rows["metric"], TIME))
            values = resampling.values(rows, others, drawn.videos, drawn.weights)
            found.update({(subset, metric): values[metric] for metric in others})
    nothing = np.full(len(drawn.weights), np.nan)
    return {(subset, metric): found.get((subset, metric), nothing) for subset in asked for metric in asked[subset]}


def judged(
    claim: Claim, of_units: Mapping[str, Sequence[Mapping[Key, Floats]]], drawn: Drawn, seeds: Sequence[int]
) -> Judged:
    """How a claim fell. of_units: by system what each of its seeds scores in every resampling."""

    def side(system: str, subset: str) -> Floats:
        of_each = [of_seed[subset, claim.metric] for of_seed in of_units[system]]
        return resampling.mean_of_seeds(of_each, drawn.seeds)

    def ahead(subset: str) -> Floats:
        return claim.sign * (side(claim.better, subset) - claim.factor * side(claim.worse, subset))

    differences = ahead(claim.subset) - (ahead(claim.beyond) if claim.beyond else 0)
    low, high = resampling.interval(differences[1:])
    return Judged(
        claim,
        better=float(side(claim.better, claim.subset)[0]),
        worse=float(side(claim.worse, claim.subset)[0]),
        difference=float(differences[0]),
        low=low,
        high=high,
        seeds=tuple(seeds),
        num_videos=len(drawn.videos),
    )
