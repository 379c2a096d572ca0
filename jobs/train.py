"""The training job: a catalog's videos and their truth in, a network's weights, their cards and curves out.

trackloom train --recipe small-synthetic --local --half --out runs/small-synthetic
trackloom train VIDEO --frames :80% --val-frames 80%: --model smot --set model.detector=small --out runs/mine
trackloom train ... --workers 4 --gpu --out s3://bucket/mine       on four of a Ray cluster's GPUs
python -m jobs.train ...                          the same, from the project's root or as a Ray job
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import typer

from jobs import train_folder
from jobs.command import main
from jobs.options import Address, CatalogName, Explain, Frames, ModelName
from jobs.train_card import card, figures
from jobs.train_folder import PAGE, Folder
from jobs.train_judge import BEST, LAST, Judge, best_of, settings_of, why_not_scored
from jobs.train_line import Follow, duration
from jobs.train_page import render
from jobs.train_prepare import Job, ready
from jobs.train_settings import training_of
from jobs.trainings import RECIPES
from pipeline.config import load
from pipeline.engine import OnRay
from pipeline.tables import Store
from pipeline.training import start
from pipeline.training.history import Row, mean_losses
from pipeline.training.loop import Fitted

SUFFIX = ".safetensors"


def _named(out: str) -> str:
    if not out.strip():
        raise ValueError("--out is empty; name a folder")
    return out.rstrip("/") or out


Out = Annotated[
    str,
    typer.Option(
        "--out", "--output", "-o", help="The training: a folder at any fsspec URL.", metavar="OUT", callback=_named
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A setting of the training, or (model.NAME, catalog.NAME ...) of its parts; may be repeated.",
        metavar="learning_rate=0.001",
    ),
]


def train(
    source: Annotated[list[str] | None, typer.Argument(help="Videos, as the catalog reads them.")] = None,
    *,
    out: Out,
    recipe: Annotated[str | None, typer.Option(help=f"A named training: {', '.join(RECIPES)}.")] = None,
    catalog: CatalogName = None,
    model: ModelName = None,
    settings: Set = None,
    frames: Frames = None,
    val: Annotated[str | None, typer.Option("--val", help="Videos to score on, of the same catalog.")] = None,
    val_frames: Annotated[
        str | None, typer.Option("--val-frames", help="Frames to score on, of each of those.", metavar="START:STOP")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="How many batches to learn from.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is random.", min=0)] = None,
    workers: Annotated[int | None, typer.Option(help="Ray workers that share every batch.", min=1)] = None,
    local: Annotated[bool, typer.Option("--local", help="In a plain loop in this process, without Ray.")] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="Train on GPUs, one a worker.")] = False,
    address: Address = None,
    half: Annotated[bool, typer.Option("--half", help="Store 16-bit floats: half the size.")] = False,
    export: Annotated[
        str | None, typer.Option(help="Write the best weights and their card here too.", metavar="FILE.safetensors")
    ] = None,
    explain: Explain = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Throw away the training that OUT holds.")] = False,
) -> int:
    """Trains a model: checkpoints, curves, and the best and the last weights, each with a card.

    A training that was stopped goes on from its last checkpoint.
    """
    chosen = training_of(
        recipe, settings or [], val, val_frames, source="\n".join(source) if source else None, catalog=catalog,
        model=model, frames=frames, steps=steps, seed=seed, workers=workers,
    )  # fmt: skip
    if local:
        if workers is not None and workers > 1:
            raise ValueError(f"--workers is {workers} and --local is one process; leave one of the two out")
        chosen = replace(chosen, workers=1)
    job = ready(chosen, out, export, local, gpu, half, overwrite)
    if explain:
        done = 0 if overwrite else train_folder.done(Store(out))
        going = f"goes on from step {done:,} of {chosen.steps:,}" if done else "begins"
        typer.echo("\n".join([*job.says(), *(f"warning: {text}" for text in job.warnings()), f"{going} -> {out}"]))
        return 0
    folder = train_folder.claim(out, job.identity, job.made, overwrite)
    for text in job.says():
        print(text, file=sys.stderr)
    for text in job.warnings():
        print(f"warning: {text}", file=sys.stderr)
    if done := train_folder.done(folder.store):
        print(f"goes on from step {done:,} of {chosen.steps:,}", file=sys.stderr)

    if not local:
        print("starting Ray and its workers", file=sys.stderr)  # which may take a minute
        OnRay(address).start()
    began = time.perf_counter()
    follow = Follow(chosen, lambda rows: write_curves(folder, job, rows, "running"))
    work = replace(job.work, out=folder.store.url_of(), judge=Judge(folder.store, job.made, gpu))
    try:
        fitted = start.here(work, job.device, follow) if local else start.on_ray(work, gpu, follow)
    finally:
        follow.stopped()
    best, last = best_of(fitted.scores, chosen.best_by), fitted.scores[-1]
    write_card(folder, job, fitted, LAST, last)
    text = write_card(folder, job, fitted, BEST, best)
    write_curves(folder, job, fitted.history, "finished")
    if export is not None:
        where, _, name = export.rpartition("/")
        stem = name.removesuffix(SUFFIX)
        Store(where or ".").write(folder.store.read(BEST), name)
        Store(where or ".").write(text.replace("# best\n", f"# {stem}\n", 1).encode(), f"{stem}.md")
    typer.echo(f"{out}: {chosen.steps - done:,} steps in {duration(time.perf_counter() - began)}")
    typer.echo(summary(out, job, best, last, export))
    return 0


def write_curves(folder: Folder, job: Job, rows: Sequence[Row], state: str) -> None:
    """Writes the table of all steps so far, the page, and how far the training is."""
    folder.write_about(state, int(rows[-1]["step"]))
    steps = train_folder.columns_of(rows)
    folder.write_losses(steps)
    page = render(folder, job.made, steps, folder.scores())
    folder.store.write(page.encode(), PAGE)


def write_card(folder: Folder, job: Job, fitted: Fitted, name: str, row: Mapping[str, float]) -> str:
    """Writes the card of weights beside them, and gives it. row: their validation."""
    step = int(row["step"])
    facts = {
        "losses": mean_losses(fitted.history[max(0, step - 100) : step]),
        "cpu_minutes": fitted.cpu_s / 60,
        "megabytes": len(folder.store.read(name)) / 1e6,
        "begun": folder.begun,
    }
    stem = name.removesuffix(SUFFIX)
    text = card(stem, job.made, step, scores_of(row), facts)
    folder.store.write(text.encode(), f"{stem}.md")
    return text


def scores_of(row: Mapping[str, float]) -> dict[str, float]:
    """A validation's scores alone."""
    return {name: value for name, value in row.items() if name != "step"}


def summary(out: str, job: Job, best: Mapping[str, float], last: Mapping[str, float], export: str | None) -> str:
    """What a finished training says: where the weights lie, how they score, and the command that uses them."""
    chosen, lines = job.training, []
    for name, row in (BEST, best), (LAST, last):
        scores = figures(scores_of(row)) or "no scores"
        lines.append(f"{name.removesuffix(SUFFIX):<8}{out}/{name}: step {int(row['step']):,}, {scores}")
    if export is not None:
        lines.append(f"{'export':<8}{export}")
    lines.append(f"{'curves':<8}{out}/{PAGE}")
    if chosen.validation is not None and not scores_of(last):
        lines.append(f"not scored: {why_not_scored(chosen, Store(out).url_of(LAST))}")
    given = {f"model.{name}": value for name, value in settings_of(chosen, f"{out}/{BEST}").items()}
    words = ["trackloom", "run", "VIDEO", "-o", "RUN", "--model", chosen.model]
    if chosen.linker != load("model", chosen.model).LINKER:
        words += ["--linker", chosen.linker]
    given |= {f"linker.{name}": value for name, value in chosen.linker_settings.items()}
    for name, value in given.items():
        words += ["--set", f"{name}={','.join(map(str, value)) if isinstance(value, list | tuple) else value}"]
    return "\n".join([*lines, "", shlex.join(words)])


if __name__ == "__main__":
    main("train")
