"""The papers' claims and how they fell, as one page that opens anywhere, without a network."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import jinja2
from markupsafe import Markup

from jobs.claims import figures, forest
from jobs.claims.figures import Row

Scores = Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]
"""{system: {subset: {metric: values by seed}}}, of all videos of the subset; nan or None where there is no value."""


@dataclass(frozen=True)
class Drawn:
    """A claim with its picture and what stands beside it."""

    row: Row
    picture: Markup
    where: str
    better: str
    worse: str
    difference: str
    interval: str


@dataclass(frozen=True)
class Plot:
    """Claims of one paper that share an axis. has_allowed: some have a margin; is_cut: some go on beyond the axis."""

    kind: figures.Kind
    claims: Sequence[Drawn]
    scale: Markup
    has_allowed: bool
    is_cut: bool


@dataclass(frozen=True)
class Cell:
    """A system's value of a metric: mean over seeds, their spread (as "0.4"; "" for one seed), and each of them."""

    mean: str
    spread: str
    each: str
    number: float | None


@dataclass(frozen=True)
class ScoreTable:
    """What systems score on a subset: a row a system, of which a metric may have no cell (None)."""

    subset: str
    metrics: Mapping[str, str]
    rows: Mapping[str, Sequence[Cell | None]]


def render(rows: Sequence[Row], scores: Scores | None = None) -> str:
    """The page. rows: objects of `papers.json`; scores: of all systems, for the tables at its end."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jobs"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    papers = figures.by_paper(rows)
    return environment.get_template("papers.html").render(
        total=len(rows),
        counts=counts(rows),
        without_value=sum(math.isnan(figures.number(row, "difference")) for row in rows),
        fragile=counts([row for row in rows if not row["expected"]]),
        systems=len({row[side] for row in rows for side in ("better", "worse")}),
        made=figures.made(rows),
        keys={verdict: forest.key(verdict) for verdict in figures.VERDICTS},
        papers={stem: (figures.title(stem), counts(some), plots(some)) for stem, some in papers.items()},
        tables=tables(scores or {}),
    )


def counts(rows: Sequence[Row]) -> dict[str, int]:
    """How many claims fell how."""
    found = Counter(row["holds"] for row in rows)
    return {verdict: found[verdict] for verdict in figures.VERDICTS}


def plots(rows: Sequence[Row]) -> list[Plot]:
    """A plot for each kind of metric that these claims are of."""
    found = []
    for kind in figures.KINDS:
        some = [row for row in rows if figures.kind(row["metric"]) is kind]
        if some:
            lines = [_line(row) for row in some]
            axis = forest.axis_of(lines)
            drawn = [_drawn(row, line, axis) for row, line in zip(some, lines, strict=True)]
            has_allowed = any(line.allowed[0] < line.allowed[1] for line in lines)
            is_cut = any(forest.is_cut(line, axis) for line in lines)
            found.append(Plot(kind, drawn, forest.scale(axis, kind.unit), has_allowed, is_cut))
    return found


def tables(scores: Scores) -> list[ScoreTable]:
    """A table a subset, in the order in which systems name them; metrics likewise."""
    subsets = dict.fromkeys(subset for of in scores.values() for subset in of)
    found = []
    for subset in subsets:
        some = {system: of[subset] for system, of in scores.items() if subset in of}
        metrics = dict.fromkeys(metric for of in some.values() for metric in of)
        cells = {
            system: [cell(metric, of[metric]) if metric in of else None for metric in metrics]
            for system, of in some.items()
        }
        found.append(ScoreTable(subset, {name: figures.called(name) for name in metrics}, cells))
    return found


def cell(metric: str, values: Sequence[float | None]) -> Cell:
    """A metric's values by seed in short. The mean is of the seeds that have a value."""
    given = [math.nan if value is None else float(value) for value in values]
    known = [value for value in given if not math.isnan(value)]
    mean = fmean(known) if known else math.nan
    spread = figures.value(metric, stdev(known)) if len(known) > 1 else ""
    each = ", ".join(figures.value(metric, value) for value in given)
    return Cell(figures.value(metric, mean), spread, each, None if math.isnan(mean) else mean)


def _line(row: Row) -> forest.Line:
    """A claim in the unit of its plot."""
    times = figures.kind(row["metric"]).scale
    low, high = figures.interval(row)
    margin = row["margin"] * times
    label = f"Difference {figures.difference(row)}, 95% interval {figures.ends(row)}: {row['holds']}"
    return forest.Line(
        difference=figures.number(row, "difference") * times,
        low=low * times,
        high=high * times,
        verdict=row["holds"],
        label=label,
        allowed=(-margin, margin if row["near"] else 0.0),
    )


def _drawn(row: Row, line: forest.Line, axis: forest.Axis) -> Drawn:
    return Drawn(
        row,
        forest.picture(line, axis),
        figures.where(row),
        *figures.systems(row),
        figures.difference(row),
        figures.ends(row),
    )
