"""A benchmark's rows, and how their figures are taken: CPU time, compilation and imports left out."""

from __future__ import annotations

import importlib
import math
import time
import types
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from statistics import median

from rich.table import Table


@dataclass(frozen=True)
class Row:
    """ours beside one peer's figure for the same work; smaller is better, unless the unit is a score's (%).

    peer is nan where there is none, or where it is not installed (`missing` then says what to install).
    """

    name: str
    size: str
    ours: float
    peer_name: str
    peer: float
    unit: str
    missing: str = ""

    @property
    def ratio(self) -> float:
        """peer / ours: above 1 ours is the smaller figure."""
        return self.peer / self.ours if self.ours else math.nan

    def as_json(self) -> dict[str, float | str | None]:
        """What `--json` prints; null for what there is not."""
        found = {**asdict(self), "ratio": self.ratio}
        del found["missing"]
        return {name: None if value != value else value for name, value in found.items()}


def table(rows: Iterable[Row]) -> Table:
    """The rows as people read them."""
    shown = Table("name", "size", "ours", "peer", "theirs", "ratio", "unit")
    for row in rows:
        theirs = "not installed" if row.missing else _figure(row.peer)
        shown.add_row(row.name, row.size, _figure(row.ours), row.peer_name, theirs, _figure(row.ratio), row.unit)
    return shown


def _figure(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3g}" if value < 1000 else f"{value:.0f}"


class Missing(ImportError):
    """A peer that is not installed; its message names the package."""


def peer(module: str, package: str) -> types.ModuleType:
    """A peer's module, or Missing."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Missing(package) from error


def cpu_s(work: Callable[[], object], repeats: int = 3) -> float:
    """Median CPU seconds of this process for the work, after one round that compiles and fills caches."""
    work()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return median(taken)


def against(
    name: str,
    size: str,
    unit: str,
    ours: float,
    peers: dict[str, Callable[[], Callable[[], object]]],
    scale: float = 1.0,
) -> list[Row]:
    """A row for each peer, timed once after a first round; peers: name -> what prepares it and returns the work.

    What prepares a peer may raise Missing. scale: of a peer's seconds to the unit; ours is in it already.
    """
    if not peers:
        return [Row(name, size, ours, "", math.nan, unit)]
    rows = []
    for peer_name, prepare in peers.items():
        try:
            rows.append(Row(name, size, ours, peer_name, cpu_s(prepare(), repeats=1) * scale, unit))
        except Missing as error:
            rows.append(Row(name, size, ours, peer_name, math.nan, unit, missing=str(error)))
    return rows
