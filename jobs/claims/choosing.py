"""Settings chosen on the validation split alone: of all that a system may have, those of the best mean HOTA over seeds.

    OUT/choices/                 detections, runs and scores on val, a run for each system, values and seed
    OUT/papers-settings.json     {system: {chosen, tried: [{settings, HOTA}], split, seeds}}

HOTA is over the whole split, as any of its metrics would be chosen by neither recall nor precision alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from jobs.claims import results, scores, units
from jobs.claims.system import System, WeightsFile
from pipeline import subsets
from pipeline.config import digest
from pipeline.engine import Engine
from pipeline.tables import Store

FILE, SPLIT, METRIC = "papers-settings.json", "val", "HOTA"

Chosen = Mapping[str, Mapping[str, Any]]
"""By system the chosen values of its settings."""


def choose(
    systems: Sequence[System], seeds: Sequence[int], file: WeightsFile, out: str, engine: Engine
) -> dict[str, str]:
    """Writes papers-settings.json, for those of the systems that have choices; gives the errors of what failed.

    A system with a run that failed is left as it was.
    """
    place = f"{out}/choices"
    tried = {system.name: variants(system) for system in systems if system.choices}
    of: dict[str, list[units.Unit]] = {name: [] for name in tried}
    for system in systems:
        for variant, values in tried.get(system.name, {}).items():
            one = replace(system, name=variant, choices={})
            of[system.name] += units.units([one], seeds, file, SPLIT, {variant: values})
    every = [unit for some in of.values() for unit in some]
    asked = {unit.system: {subsets.ALL: (METRIC,)} for unit in every}
    errors = units.run(every, place, engine)
    errors |= scores.score([unit for unit in every if unit.name not in errors], asked, place, engine)
    found = dict(read(out)) if Store(out).exists(FILE) else {}
    for name, some in of.items():
        if any(unit.name in errors for unit in some):
            continue
        lines: list[dict[str, Any]] = []
        for variant, values in tried[name].items():
            hota = [whole(place, unit) for unit in some if unit.system == variant]
            lines.append({"settings": dict(values), METRIC: math.fsum(hota) / len(hota)})
        best = max(lines, key=lambda line: line[METRIC])  # the first of those
        found[name] = {"chosen": best["settings"], "tried": lines, "split": SPLIT, "seeds": list(seeds)}
    Store(out).write((json.dumps(found, indent=1) + "\n").encode(), FILE)
    return errors


def variants(system: System) -> dict[str, dict[str, Any]]:
    """All values of a system's choices, by the name of the system that has them."""
    every = [dict(zip(system.choices, values, strict=True)) for values in product(*system.choices.values())]
    return {f"{system.name}-{digest(values)}": values for values in every}


def whole(place: str, unit: units.Unit) -> float:
    """What a unit scores over all videos."""
    (value,) = [
        row["value"]
        for row in scores.read(place, unit)[subsets.ALL].drop(["counts"]).to_pylist()
        if (row["video_id"], row["class_name"], row["metric"]) == (None, None, METRIC)
    ]
    return float(value)


def read(folder: str) -> dict[str, dict[str, Any]]:
    """What papers-settings.json says. Raises FileNotFoundError where there is none, ValueError where it is damaged."""
    try:
        found = json.loads(Store(folder).read(FILE))
    except ValueError:
        found = None
    fit = isinstance(found, dict) and all(isinstance(of, dict) and "chosen" in of for of in found.values())
    if not fit:
        raise ValueError(f"{folder}/{FILE} is not what trackloom benchmark papers --choose wrote")
    return dict(found)


def chosen(
    asked: Mapping[str, System], systems: Mapping[str, System], out: str
) -> tuple[dict[str, dict[str, Any]], str]:
    """The chosen values of the systems that are asked for, and the file that has them: OUT's own, else the project's.

    A system that is `like` another of all `systems` has that one's. Raises ValueError where nothing is chosen for a
    system that has choices, or what is none of them.
    """
    folder = next((folder for folder in (out, str(results.KEPT)) if Store(folder).exists(FILE)), None)
    found = read(folder) if folder else {}
    values = {}
    for name, system in asked.items():
        source = systems[system.like] if system.like else system
        if not source.choices:
            continue
        if source.name not in found:
            raise ValueError(f"no settings are chosen for system {source.name} yet; --choose does it, on {SPLIT}")
        values[name] = dict(found[source.name]["chosen"])
        if digest(values[name]) not in map(digest, variants(source).values()):
            raise ValueError(
                f"{folder}/{FILE} has for system {source.name} none of its choices; --choose makes it anew"
            )
    return values, f"{folder}/{FILE}"
