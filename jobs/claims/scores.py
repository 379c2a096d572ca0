"""How units score: on which subsets by which metrics, as rows of SCORES with counts, from which all else follows.

    OUT/scores/<system>/seed-<n>.parquet    rows of each video and of all, with the subset; "ms" has its own counts

"ms" is what the network takes a frame, wall time of one thread; where others work on the machine it is more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from jobs.claims.claim import Claim
from jobs.claims.units import Unit
from jobs.claims.working import done
from pipeline import scoring, subsets
from pipeline.engine import Engine
from pipeline.schemas import SCORES
from pipeline.tables import Run, read_run

TIME = "ms"
REPORTED = ("mAP", "HOTA", "MOTA", "IDF1", "num_switches", "num_transfer", "recall")  # on every subset
ON_ALL = ("mAP_track", "stability_error", TIME)  # beside them, on all boxes

Asked = Mapping[str, tuple[str, ...]]
"""By subset the metrics that are asked for."""


def asked_of(claims: Sequence[Claim]) -> Mapping[str, Asked]:
    """By system and subset the metrics that claims are about."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for claim in claims:
        assert claim.metric != TIME or (claim.subset, claim.beyond) == (subsets.ALL, ""), f"{claim.name}: of all boxes"
        for system in (claim.better, claim.worse):
            for subset in filter(None, (claim.subset, claim.beyond)):
                of_system = found.setdefault(system, {})
                of_system[subset] = tuple(dict.fromkeys((*of_system.get(subset, ()), claim.metric)))
    return found


def with_reported(asked: Asked) -> Asked:
    """The same with all that is reported of every system, on every subset."""
    return {
        subset: tuple(dict.fromkeys((*REPORTED, *(ON_ALL if subset == subsets.ALL else ()), *asked.get(subset, ()))))
        for subset in subsets.SUBSETS
    }


def score(units: Sequence[Unit], asked: Mapping[str, Asked], out: str, engine: Engine) -> dict[str, str]:
    """Writes the scores of units that have none yet, or not all; gives the errors by name. asked: by system."""
    records = {unit.name: (unit, asked[unit.system]) for unit in units}
    todo = {name: record for name, record in records.items() if not is_scored(out, *record)}
    _, errors = done("score", todo, partial(score_unit, out), engine)
    return errors


def score_unit(out: str, record: tuple[Unit, Asked]) -> None:
    """Writes the scores of a unit."""
    unit, asked = record
    tables = read_run(f"{out}/{unit.folder}")
    truth, tracks = tables.table("truth"), tables.table("tracks")
    found = []
    for subset, metrics in asked.items():
        known, given = subsets.restrict(truth, tracks, subset)
        families = scoring.families(metrics)
        if len(known) and families:
            rows = scoring.score(known, given, metrics=families, catalog=unit.recipe.catalog)
            found.append(of_subset(pa.concat_tables([rows, scoring.combine([rows])]), subset))
    found.append(of_subset(times(tables.table("videos")), subsets.ALL))
    metadata = {"of": tables.about["run_id"], "asked": json.dumps(_families(asked))}
    Run(out, tables.about).write_table(pa.concat_tables(found), *place(unit), metadata=metadata)


def times(videos: pa.Table) -> pa.Table:
    """Rows of SCORES for "ms" from a run's `videos`: of each and of all, whose counts are seconds and frames."""
    lines = list(zip(*(videos[name].to_pylist() for name in ("video_id", "frames_decoded", "detect_s")), strict=True))
    lines.append((None, sum(line[1] for line in lines), sum(line[2] for line in lines)))
    rows = [
        {
            "catalog": videos["catalog"][0].as_py(),
            "video_id": video,
            "class_name": None,
            "metric": TIME,
            "value": 1000 * seconds / frames if frames else float("nan"),
            "counts": [("seconds", [seconds]), ("frames", [float(frames)])],
        }
        for video, frames, seconds in lines
    ]
    return pa.Table.from_pylist(rows, SCORES)


def read(out: str, unit: Unit) -> dict[str, pa.Table]:
    """Rows of SCORES by subset; FileNotFoundError where the unit is not scored."""
    table = Run(out).read_table(*place(unit)).replace_schema_metadata(None)
    names = pc.unique(table["subset"]).to_pylist()
    return {name: table.filter(pc.equal(table["subset"], name)).drop(["subset"]).cast(SCORES) for name in names}


def is_scored(out: str, unit: Unit, asked: Asked) -> bool:
    """Whether there are the scores of the unit's present tracks by all that is asked for."""
    tables = Run(out)
    if not tables.exists(*place(unit)):
        return False
    about = tables.read_table(*place(unit)).schema.metadata
    there = json.loads(about[b"asked"])
    whole = all(set(families) <= set(there.get(subset, ())) for subset, families in _families(asked).items())
    return whole and about[b"of"].decode() == read_run(f"{out}/{unit.folder}").about["run_id"]


def place(unit: Unit) -> tuple[str, str, str]:
    """Where the scores of a unit lie below OUT."""
    return "scores", unit.system, f"seed-{unit.seed}.parquet"


def of_subset(rows: pa.Table, subset: str) -> pa.Table:
    """The same rows, which say of which subset they are."""
    return rows.append_column("subset", pa.array([subset] * len(rows)).dictionary_encode())


def _families(asked: Asked) -> dict[str, list[str]]:
    return {subset: scoring.families(metrics) for subset, metrics in asked.items()}
