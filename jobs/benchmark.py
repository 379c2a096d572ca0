"""How fast and how good the parts are, beside other people's programs in the same run.

    trackloom benchmark linkers [--json]
    trackloom benchmark metrics --data DATA [--json] [--slow-peers]
    trackloom benchmark real-detections --data DATA [--json]
    trackloom benchmark models [--json]
    trackloom benchmark papers --out OUT [--retrain] [--choose] [--seeds 0,1,2] [--systems A,B] [--local] [--json]

Figures are CPU time on synthetic input of the stated size, without compilation and imports: ours the median of three
rounds, a peer's of one after a first, and AP at ImageNet VID's size of one in a fresh process. Ratio is the peer's over
ours; `models` sets each network beside its own detector alone, and has no peers.
The peers: pip install -e '.[peers]'; without one its row is empty and the exit code is 1.
DATA is a folder of real data: imagenet_vid/, mot15/ and kitti/ in the layouts of their catalogs.
`papers` is no measurement of speed: see `jobs.benchmark_papers`.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console

from jobs.benchmark_rows import Row
from jobs.command import main
from pipeline.config import did_you_mean

# what DATA must hold
WANTED = {"linkers": "", "metrics": "imagenet_vid/", "real-detections": "mot15/ and kitti/", "models": "", "papers": ""}


def benchmark(
    what: Annotated[str, typer.Argument(help=f"What to measure: {', '.join(WANTED)}.")],
    *,
    data: Annotated[str, typer.Option(help="The folder of real data.", envvar="TRACKLOOM_DATA")] = "",
    slow_peers: Annotated[bool, typer.Option("--slow-peers", help="Also peers that take minutes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a row.")] = False,
    out: Annotated[str, typer.Option("--out", "-o", help="papers: where all that is made lies.", metavar="OUT")] = "",
    seeds: Annotated[str | None, typer.Option(help="papers: of the trainings; 0,1,2 if none are given.")] = None,
    systems: Annotated[str | None, typer.Option(help="papers: only these, and claims about no others.")] = None,
    retrain: Annotated[bool, typer.Option("--retrain", help="papers: train all anew, into OUT/weights.")] = False,
    choose: Annotated[bool, typer.Option("--choose", help="papers: choose thresholds on val anew.")] = False,
    local: Annotated[bool, typer.Option("--local", help="papers: in a plain loop in this process.")] = False,
) -> int:
    """Measure the linkers, the metrics or the networks, how well real detections are tracked, or what papers claim."""
    if what not in WANTED:
        raise ValueError(f"unknown benchmark {what!r}{did_you_mean(what, WANTED)}; available: {', '.join(WANTED)}")
    if WANTED[what] and not os.path.isdir(data):
        raise ValueError(
            f"--data is {data!r}; benchmark {what} needs a folder that holds {WANTED[what]}, "
            "given so or by TRACKLOOM_DATA"
        )
    own = {
        "--out": out,
        "--seeds": seeds is not None,
        "--systems": systems is not None,
        "--retrain": retrain,
        "--choose": choose,
        "--local": local,
    }
    given = [option for option, value in own.items() if value]
    if what == "papers":
        if slow_peers:
            raise ValueError("--slow-peers is of the other benchmarks; benchmark papers has no peers")
        if not out.strip():
            raise ValueError("benchmark papers needs --out; name a folder")
        from jobs.benchmark_papers import SEEDS, papers

        return papers(out, SEEDS if seeds is None else seeds, systems, retrain, choose, local, as_json)
    if given:
        raise ValueError(f"{given[0]} is of benchmark papers alone; leave it out for benchmark {what}")
    module = importlib.import_module(f"jobs.benchmark_{what.replace('-', '_')}")  # has `rows` and `table`
    missing: set[str] = set()
    rows = _noting(module.rows(data, slow_peers), missing)
    if as_json:
        for row in rows:
            print(json.dumps(row.as_json()), flush=True)
    else:
        Console(width=None if sys.stdout.isatty() else 140).print(module.table(rows))
    if missing:
        print(f"not installed: {', '.join(sorted(missing))}; pip install -e '.[peers]'", file=sys.stderr)
    return 1 if missing else 0


def _noting(rows: Iterator[Row], missing: set[str]) -> Iterator[Row]:
    """The rows; what is not installed is noted as they pass, and a terminal is shown that there is progress."""
    for row in rows:
        if sys.stderr.isatty():
            print(f"{row.name}, {row.size}, {row.peer_name or 'alone'}", file=sys.stderr)
        missing |= {row.missing} - {""}
        yield row


if __name__ == "__main__":
    main("benchmark")
