"""How figures of claims are spelled: scores in points, counts, errors and milliseconds, each kind in its own unit.

Rows are objects of `papers.json`; null stands for what has no value.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.recipes import PAPERS
from pipeline import scoring
from pipeline.metrics import stability

Row = Mapping[str, Any]

VERDICTS = ("holds", "fails", "undecided")
SHAPES = {"holds": "●", "fails": "✕", "undecided": "○"}  # told apart without colours, as those of the plot are
NO_VALUE = "no value"
NAMES = {"num_transfer": "transfers", "ms": "ms a frame"}


@dataclass(frozen=True)
class Kind:
    """Metrics that share an axis. scale: from a value to what is shown, with so many digits, in `unit` if it has one.

    unit: of differences; values go without.
    """

    title: str
    unit: str
    scale: float
    digits: int


POINTS = Kind("Scores", "points", 100, 1)
COUNTS = Kind("Counts", "", 1, 1)  # whole numbers, but means over seeds
ERRORS = Kind("Stability errors", "", 1, 3)
TIMES = Kind("Milliseconds a frame", "ms", 1, 2)
KINDS = (POINTS, COUNTS, ERRORS, TIMES)


def kind(metric: str) -> Kind:
    """What a metric of `scoring.METRICS`, or "ms", is shown as; ratios are points, 100 of them 1."""
    if metric == "ms":
        return TIMES
    return COUNTS if metric in scoring.NUMBERS else ERRORS if metric in stability.FIELDS else POINTS


def number(row: Row, name: str) -> float:
    """A figure of a row; nan for null."""
    return math.nan if row[name] is None else float(row[name])


def interval(row: Row) -> tuple[float, float]:
    """The 95% interval of a row's difference; nan for null."""
    low, high = (math.nan if end is None else float(end) for end in row["interval"])
    return low, high


def value(metric: str, of: float) -> str:
    """A value as people read it: a mAP of .5 is "50.0"."""
    shown = kind(metric)
    return NO_VALUE if math.isnan(of) else f"{of * shown.scale:,.{shown.digits}f}".replace("-", "−")


def signed(metric: str, of: float) -> str:
    """A difference as people read it, its sign also where no digit shows it: "+1.5", "−0.0"; without unit."""
    shown = kind(metric)
    return NO_VALUE if math.isnan(of) else f"{of * shown.scale:+,.{shown.digits}f}".replace("-", "−")


def difference(row: Row) -> str:
    """The difference with its unit."""
    of = number(row, "difference")
    unit = kind(row["metric"]).unit
    return f"{signed(row['metric'], of)} {unit}".rstrip() if not math.isnan(of) else NO_VALUE


def ends(row: Row) -> str:
    """The interval without unit, as "[+1.2, +4.9]"."""
    low, high = interval(row)
    if math.isnan(low) and math.isnan(high):
        return NO_VALUE
    return f"[{signed(row['metric'], low)}, {signed(row['metric'], high)}]"


def called(metric: str) -> str:
    """A metric's name as people read it: scores have that of the field, "num_switches" is "switches"."""
    plain = metric if kind(metric) is POINTS else metric.removeprefix("num_").replace("_", " ")
    return NAMES.get(metric, plain)


def where(row: Row) -> str:
    """What is compared, on which boxes, and what is allowed: "mAP, fast more than slow"; "HOTA, within 1.0 points"."""
    subset = row["subset"] if row["subset"] != "all" or row["beyond"] else ""
    parts = [called(row["metric"]), f"{subset} more than {row['beyond']}" if row["beyond"] else subset]
    if row["margin"] or row["near"]:
        shown = kind(row["metric"])
        margin = f"{value(row['metric'], row['margin'])} {shown.unit}".rstrip()
        parts.append(f"within {margin}" if row["near"] else f"at most {margin} behind")
    return ", ".join(part for part in parts if part).replace("lookalike_crossing", "lookalike crossing")


def systems(row: Row) -> tuple[str, str]:
    """The two systems with their values: ("tubes 52.1", "causal 50.3"); what a cost is multiplied by goes with it."""
    better, worse = (
        f"{row[side]} {value(row['metric'], number(row, f'{side}_value'))}" for side in ("better", "worse")
    )
    return better, worse if row["factor"] == 1 else f"{row['factor']:.3g} × {worse}"


def by_paper(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by the stem of their paper, in the order of `PAPERS`; within a paper as they come."""
    found: dict[str, list[Row]] = {stem: [] for stem in PAPERS}
    for row in rows:
        found.setdefault(row["paper"], []).append(row)
    return {stem: some for stem, some in found.items() if some}


def title(stem: str) -> str:
    """A paper's title."""
    return PAPERS[stem].TITLE if stem in PAPERS else stem


def tally(rows: Sequence[Row]) -> str:
    """How many claims fell how: "35 claims: 21 hold, 6 fail, 8 undecided"."""
    counts = Counter(row["holds"] for row in rows)
    return (
        f"{len(rows)} claim{'s' * (len(rows) != 1)}: {counts['holds']} hold{'s' * (counts['holds'] == 1)}, "
        f"{counts['fails']} fail{'s' * (counts['fails'] == 1)}, {counts['undecided']} undecided"
    )


def made(rows: Sequence[Row]) -> dict[str, str]:
    """What made the rows: seeds, videos, commit, machine, date; where rows differ, all that there are."""
    return {
        "seeds": _all("; ", (", ".join(map(str, row["seeds"])) for row in rows)),
        "videos": _all(", ", (str(row["videos"]) for row in rows)),
        "commit": _all(", ", (commit for row in rows for commit in (row["commit"] or "unknown").split(", "))),
        "machine": _all("; ", (row["machine"] for row in rows)),
        "date": _all(", ", (row["date"] for row in rows)),
    }


def _all(between: str, texts: Iterable[str]) -> str:
    return between.join(dict.fromkeys(texts))
