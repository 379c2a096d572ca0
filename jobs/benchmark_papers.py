"""What the five papers claim, held against small networks of their systems on the test split of synthetic-v1.

    trackloom benchmark papers --out runs/papers                         scores the shipped weights
    trackloom benchmark papers --out runs/papers --retrain --choose      trains all, chooses thresholds on val, scores

OUT holds all that is made, each part once: what was stopped goes on, and what is done is not done again, unless its
weights or settings are others by now. At its top lie the results (`jobs.claims.results`) and papers.html; the last full
ones are copied into jobs/results by hand and committed.

--choose tries each value of the settings that systems leave open, on val; without it the values are those that were
chosen in this OUT or, if none were, those of jobs/results/papers-settings.json. --retrain puts its weights into
OUT/weights; with them the systems are scored as long as --retrain is said.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from jobs import prepare
from jobs.claims import choosing, judging, page, results, retraining, scores, tables, trained, units
from jobs.claims.claim import Claim
from jobs.claims.papers import claims, systems
from jobs.claims.system import System, WeightsFile
from pipeline.config import did_you_mean
from pipeline.engine import Engine
from pipeline.tables import Store, read_run

SEEDS, PAGE = "0,1,2", "papers.html"


def papers(
    out: str, seeds: str = SEEDS, names: str | None = None, retrain: bool = False, choose: bool = False,
    local: bool = False, as_json: bool = False,
) -> int:  # fmt: skip
    """Runs, scores and judges; gives the exit code: 1 where something failed, whatever the verdicts.

    seeds, names: of trainings and of systems, separated by commas; None stands for all systems.
    Raises ValueError or OSError in one sentence for all that can be wrong before any work.
    """
    numbers, chosen = seeds_of(seeds), systems_of(names)
    if out.startswith("memory://") and not local:
        raise ValueError(f"--out {out} is this process's memory, which Ray's workers do not see; add --local")
    out = Store(out).url_of()
    engine, _ = prepare.engine(local, None)
    like = {system.like: systems()[system.like] for system in chosen.values() if system.like}
    wanted = list({**chosen, **like}.values()) if choose else list(chosen.values())
    if not choose:
        choosing.chosen(chosen, systems(), out)  # says what is not chosen yet before networks are trained
    file: WeightsFile = str
    if retrain:
        file = retraining.file_in(out)
        if errors := retraining.retrain(trained.needed(wanted, numbers, beginnings=True), out, engine):
            return said(errors)
    else:
        trained.check_shipped(trained.needed(wanted, numbers))
    if choose and (errors := choosing.choose(wanted, numbers, file, out, engine)):
        return said(errors)
    settings, where = choosing.chosen(chosen, systems(), out)
    if settings:
        print(f"settings that were chosen on {choosing.SPLIT}: {where}", file=sys.stderr)
    rows, errors = measured(list(chosen.values()), claims_of(chosen), numbers, settings, file, out, engine)
    if as_json:
        for row in rows:
            print(json.dumps(row), flush=True)
    else:
        tables.show(rows, Console(width=None if sys.stdout.isatty() else 140))
    return said(errors)


def measured(
    chosen: Sequence[System],
    of_them: Sequence[Claim],
    seeds: Sequence[int],
    settings: Mapping[str, Mapping[str, Any]],
    file: WeightsFile,
    out: str,
    engine: Engine,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The claims as papers.json has them, with all other results written into OUT; and the errors by unit.

    Only systems whose units are all scored have results, and only claims about such.
    """
    every = units.units(chosen, seeds, file, chosen=settings)
    by_claims = scores.asked_of(of_them)
    asked = {system.name: scores.with_reported(by_claims.get(system.name, {})) for system in chosen}
    errors = units.run(every, out, engine)
    errors |= scores.score([unit for unit in every if unit.name not in errors], asked, out, engine)
    lost = {unit.system for unit in every if unit.name in errors}
    whole = [unit for unit in every if unit.system not in lost]
    rows = []
    if whole:
        videos = read_run(f"{out}/{whole[0].folder}").table("videos")["video_id"].to_pylist()
        drawn = judging.draw(videos, len(seeds))
        found, failed = judging.resampled(whole, by_claims, drawn, out, engine)
        errors |= failed
        lost |= {unit.system for unit in whole if unit.name in failed}
        of_units = {
            system: [found[unit.name] for unit in whole if unit.system == system] for system in by_claims.keys() - lost
        }
        commits, on = results.commits_of(out, whole), results.machine()
        for claim in of_them:
            if not lost & {claim.better, claim.worse}:
                judged = judging.judged(claim, of_units, drawn, seeds)
                rows.append(results.of_judged(judged, [*commits[claim.better], *commits[claim.worse]], on))
    results.write_claims(out, rows)
    of_all = results.write_scores(out, whole, asked)
    trained.write_digests(out, trained.needed(chosen, seeds), file)
    Store(out).write(page.render(rows, of_all).encode(), PAGE)
    return rows, errors


def seeds_of(text: str) -> list[int]:
    """The seeds of `--seeds`; ValueError where they are not whole numbers of at least 0, each once."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(map(int, parts))) < len(parts):
        raise ValueError(f"--seeds is {text!r}; it must be whole numbers separated by commas, each once, as 0,1,2")
    return sorted(map(int, parts))


def systems_of(text: str | None) -> dict[str, System]:
    """The systems of `--systems`, all for None; ValueError with the nearest name for an unknown one."""
    known = systems()
    names = list(known) if text is None else [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise ValueError(f"unknown system {name!r}{did_you_mean(name, known)}; available: {', '.join(known)}")
    return {name: system for name, system in known.items() if name in names}


def claims_of(chosen: Mapping[str, System]) -> list[Claim]:
    """The claims about no other systems than these."""
    return [claim for claim in claims() if {claim.better, claim.worse} <= chosen.keys()]


def said(errors: Mapping[str, str]) -> int:
    """Says what failed, and gives the exit code."""
    for name, error in errors.items():
        print(f"failed: {name}: {error}", file=sys.stderr)
    if errors:
        print(f"{len(errors)} failed; all else is kept, and the same command tries these again", file=sys.stderr)
    return 1 if errors else 0
