"""The results, as they are kept: what the project last found lies in jobs/results, copied there from OUT by hand.

cp OUT/papers*.json OUT/papers*.parquet jobs/results/

papers.json             a claim each, see CLAIM
papers-scores.json      {system: {subset: {metric: [value of each seed]}}}, of all videos; null for no value
papers-videos.parquet   system, seed, subset, video_id, metric, value; in its metadata "files", the videos' SHA-256
papers-weights.json     {weights: {seed: {sha256, command}}}, of all that the systems needed
papers-settings.json    what was chosen on val, see `choosing`
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import jobs
from jobs.claims import scores
from jobs.claims.claim import Judged, Verdict
from jobs.claims.scores import Asked
from jobs.claims.units import Unit
from pipeline.tables import Run, Store, commit, read_run

KEPT = Path(jobs.__file__).parent / "results"
CLAIMS, SCORES, VIDEOS, WEIGHTS = "papers.json", "papers-scores.json", "papers-videos.parquet", "papers-weights.json"
CLAIM: dict[str, tuple[type, ...]] = {
    "paper": (str,),
    "name": (str,),
    "claim": (str,),  # what is claimed
    "better": (str,),
    "worse": (str,),
    "metric": (str,),
    "subset": (str,),
    "beyond": (str,),
    "margin": (float, int),
    "near": (bool,),
    "factor": (float, int),
    "source": (str,),
    "expected": (bool,),
    "difference": (float, int, type(None)),
    "interval": (list,),  # low and high, null where there is none
    "better_value": (float, int, type(None)),
    "worse_value": (float, int, type(None)),
    "holds": (str,),  # "holds", "fails" or "undecided"
    "seeds": (list,),
    "videos": (int,),
    "machine": (str,),
    "commit": (str, type(None)),  # of the runs and of who judged, where they are several
    "date": (str,),
}


def of_judged(found: Judged, commits: Sequence[str | None], on: str) -> dict[str, Any]:
    """A claim as papers.json has it. on: the machine."""
    claim = found.claim
    return {
        "paper": claim.paper,
        "name": claim.name,
        "claim": claim.text,
        "better": claim.better,
        "worse": claim.worse,
        "metric": claim.metric,
        "subset": claim.subset,
        "beyond": claim.beyond,
        "margin": claim.margin,
        "near": claim.near,
        "factor": claim.factor,
        "source": claim.source,
        "expected": claim.expected,
        "difference": _known(found.difference),
        "interval": [_known(found.low), _known(found.high)],
        "better_value": _known(found.better),
        "worse_value": _known(found.worse),
        "holds": found.verdict,
        "seeds": list(found.seeds),
        "videos": found.num_videos,
        "machine": on,
        "commit": ", ".join(sorted({each for each in commits if each})) or None,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def commits_of(out: str, units: Sequence[Unit]) -> dict[str, list[str | None]]:
    """By system the commits that its runs were made at, and the present one."""
    found: dict[str, list[str | None]] = {}
    now = commit()
    for unit in units:
        made = [read_run(f"{out}/{folder}").about["commit"] for folder in (unit.folder, unit.detections)]
        found.setdefault(unit.system, [now]).extend(made)
    return found


def write_claims(out: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes papers.json: a line a claim, so that changes to it can be read."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    Store(out).write(f"[\n{lines}\n]\n".encode(), CLAIMS)


def read_claims(folder: str = str(KEPT)) -> list[dict[str, Any]]:
    """The rows of papers.json in a folder: each has what CLAIM says, and a verdict.

    Raises FileNotFoundError where there is none, ValueError where it is damaged.
    """
    try:
        rows = json.loads(Store(folder).read(CLAIMS))
    except ValueError:
        rows = None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{folder}/{CLAIMS} is no JSON list of claims; trackloom benchmark papers writes it")
    for row in rows:
        wrong = sorted(name for name in CLAIM.keys() | row.keys() if not isinstance(row.get(name), CLAIM.get(name, ())))
        if wrong:
            raise ValueError(f"{folder}/{CLAIMS} has in the claim {row.get('name')!r} no fit {', '.join(wrong)}")
        if row["holds"] not in get_args(Verdict) or len(row["interval"]) != 2:
            raise ValueError(f"{folder}/{CLAIMS} has in the claim {row['name']!r} no fit verdict or interval")
    return rows


def write_scores(out: str, units: Sequence[Unit], asked: Mapping[str, Asked]) -> dict[str, Any]:
    """Writes papers-scores.json and papers-videos.parquet; gives what is in the former. asked: by system."""
    whole: dict[str, dict[str, dict[str, list[float | None]]]] = {}
    columns: dict[str, list[Any]] = {name: [] for name in ("system", "seed", "subset", "video_id", "metric", "value")}
    for unit in units:
        of_system = whole.setdefault(unit.system, {})
        for subset, table in scores.read(out, unit).items():
            table = table.filter(pc.is_null(table["class_name"]))
            of_subset = of_system.setdefault(subset, {})
            for metric in asked[unit.system][subset]:
                rows = table.filter(pc.equal(table["metric"], metric))
                of = dict(zip(rows["video_id"].to_pylist(), rows["value"].to_pylist(), strict=True))
                of_subset.setdefault(metric, []).append(_known(of.pop(None, math.nan)))
                columns["video_id"] += of
                columns["value"] += of.values()
                for name, value in ("system", unit.system), ("seed", unit.seed), ("subset", subset), ("metric", metric):
                    columns[name] += [value] * len(of)
    Store(out).write((json.dumps(whole) + "\n").encode(), SCORES)
    columns["value"] = np.round(np.array(columns["value"], np.float32), 4)  # type: ignore[assignment]
    columns["seed"] = pa.array(columns["seed"], pa.int16())
    files = files_of(out, units[0]) if units else {}
    Run(out).write_table(pa.table(columns), VIDEOS, metadata={"files": json.dumps(files)})
    return whole


def files_of(out: str, unit: Unit) -> dict[str, str]:
    """The SHA-256 of each local file that a unit saw, by video: another build of an encoder may pack them otherwise."""
    rows = read_run(f"{out}/{unit.folder}").table("videos").to_pylist()
    return {row["video_id"]: hashlib.sha256(Path(row["uri"]).read_bytes()).hexdigest() for row in rows}


def read_scores(folder: str = str(KEPT)) -> dict[str, dict[str, dict[str, list[float | None]]]]:
    """What papers-scores.json says, see above; FileNotFoundError where there is none."""
    found: dict[str, dict[str, dict[str, list[float | None]]]] = json.loads(Store(folder).read(SCORES))
    return found


def read_videos(folder: str = str(KEPT)) -> pa.Table:
    """The scores of single videos; FileNotFoundError where there are none."""
    return Run(folder).read_table(VIDEOS)


def machine() -> str:
    """How many cores this machine has, and which."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores, {names[0] if names else platform.processor() or platform.machine()}"


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
