"""The training job: a catalog's videos and their truth in, a weight file and its card out.

trackloom train --recipe small-synthetic --local --half --output models/weights/smot-synthetic-v1.safetensors
trackloom train VIDEOS --catalog mot --model smot --set model.detector=ssd300_vgg16 --output mine.safetensors --gpu
python -m jobs.train ...                          the same, from the project's root or as a Ray job
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from jobs import prepare
from jobs.command import main
from jobs.options import OF_DETECTION, Address, CatalogName, ModelName
from jobs.trainings import RECIPES
from models.parts.weights import write_weights
from pipeline import flow, scoring
from pipeline.config import did_you_mean, digest, plain
from pipeline.config import settings as checked
from pipeline.engine import Local, OnRay
from pipeline.recipe import Recipe
from pipeline.tables import Run, commit, versions
from pipeline.training import start
from pipeline.training.labelled import Labelled, labelled
from pipeline.training.loop import Fitted, Row, mean_losses
from pipeline.training.settings import Training

PARTS = {
    "model": "model_settings",
    "catalog": "catalog_settings",
    "validation": "validation",
    "linker": "linker_settings",
}
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
    output: Annotated[Path, typer.Option("--output", "-o", help="The weights to write.", metavar="FILE.safetensors")],
    recipe: Annotated[str | None, typer.Option(help=f"A named training: {', '.join(RECIPES)}.")] = None,
    catalog: CatalogName = None,
    model: ModelName = None,
    settings: Set = None,
    steps: Annotated[int | None, typer.Option(help="How many batches to learn from.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Of all that is random.", min=0)] = None,
    workers: Annotated[int | None, typer.Option(help="Ray workers that share every batch.", min=1)] = None,
    local: Annotated[bool, typer.Option("--local", help="In a plain loop in this process, without Ray.")] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="Train on GPUs, one a worker.")] = False,
    storage: Annotated[
        str | None, typer.Option(help="A folder that all workers reach, where there are machines.")
    ] = None,
    address: Address = None,
    half: Annotated[bool, typer.Option("--half", help="Store 16-bit floats: half the size.")] = False,
) -> int:
    """Trains a model and writes its weights, with a card beside them that says how they were made and score."""
    where = ",".join(source) if source else None
    chosen = training_of(
        recipe, settings or [], source=where, catalog=catalog, model=model, steps=steps, seed=seed, workers=workers
    )
    if output.suffix != ".safetensors":
        raise ValueError(f"--output is {output}; weights are written as .safetensors")
    if local:
        prepare.check_gpu(gpu)
    if chosen.validation is not None:
        prepare.check_model_and_linker(scored_by(chosen, output))
    material = labelled(chosen.catalog, chosen.source, chosen.catalog_settings)
    model_ = start.build(chosen, material.classes)  # whatever is wrong with it is said before any work
    boxes = sum(len(table) for table in material.truth)
    parameters = sum(parameter.numel() for parameter in model_.parameters())
    print(
        f"{len(material.videos)} videos, {boxes:,} boxes of {len(material.classes)} classes -> {output}: "
        f"{parameters:,} parameters, {steps_of(chosen)}",
        file=sys.stderr,
    )
    began = time.perf_counter()
    if local:
        fitted = start.here(start.Work(chosen, material), "cuda" if gpu else "cpu", Line(chosen.steps))
    else:
        OnRay(address).start()
        fitted = start.on_ray(start.Work(chosen, material, storage), gpu)
    facts = {
        "model": chosen.model,
        "classes": list(material.classes),
        "training": plain(chosen),
        "command": command(),
        "data": data_digest(material),
        "losses": {name: round(value, 4) for name, value in fitted.losses.items()},
        "cpu_minutes": round(fitted.cpu_s / 60, 1),
        "commit": commit(),
        "versions": versions(),
    }
    metadata = {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}
    network: Any = fitted.model
    write_weights(
        output,
        network.network,
        metadata,
        torch.float16 if half else torch.float32,
        extras=taught(network, model_),
    )
    scores = validate(chosen, output) if chosen.validation is not None else {}
    output.with_suffix(".md").write_text(card(output, chosen, fitted, facts, scores))
    shown = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
    typer.echo(
        f"{output}: {output.stat().st_size / 1e6:.1f} MB in {(time.perf_counter() - began) / 60:.1f} min. {shown}"
    )
    return 0


def training_of(name: str | None, given: Sequence[str], **changes: Any) -> Training:
    """The named training, or a plain one, with the changes that are not None and the `[section.]name=value` given."""
    if name is not None and name not in RECIPES:
        raise ValueError(f"unknown training {name!r}{did_you_mean(name, RECIPES)}; available: {', '.join(RECIPES)}")
    # Without a recipe the training split, never the one that is tested on.
    plain_training: dict[str, Any] = {
        "catalog": "synthetic",
        "catalog_settings": {"split": "train"},
    }
    values: dict[str, Any] = plain_training if name is None else dict(vars(RECIPES[name]()))
    for field, value in changes.items():
        if value is not None and value != values.get(field):
            values |= {field: value} | ({PARTS[field]: {}} if field in PARTS else {})
            values |= {"validation": None} if field == "catalog" else {}
    for text in given:
        key, equals, value = text.partition("=")
        section, dot, field = key.partition(".")
        if not equals or (dot and section not in PARTS):
            parts = " or ".join(f"{part}.NAME=VALUE" for part in PARTS)
            raise ValueError(f"--set {text!r} is no setting; write NAME=VALUE, {parts}")
        if dot:
            values[PARTS[section]] = {**(values.get(PARTS[section]) or {}), field: value}
        else:
            values[key] = value
    mappings = {field: values.pop(field) for field in PARTS.values() if field in values}
    return replace(checked(Training, values, "training"), **mappings)


def taught(model: Any, before: Any) -> dict[str, nn.Module]:
    """Those extras of a trained model that it learned something in, or its weights held; before: the model untrained.

    The others are left out of the file, so that nobody takes what nothing has trained for what was.
    """
    held = before.extras.keys() - before.weights.missing if before.weights else set()

    def learned(name: str) -> bool:
        # Biases tell: the weights of what nothing teaches still decay.
        pairs = zip(model.extras[name].parameters(), before.extras[name].parameters(), strict=True)
        return any(not torch.equal(now.cpu(), then.cpu()) for now, then in pairs if now.ndim <= 1)

    return {name: extra for name, extra in model.extras.items() if name in held or learned(name)}


def steps_of(chosen: Training) -> str:
    """How long a training is, in words."""
    shown = "frames" if chosen.frames_per_clip == 1 else f"clips of {chosen.frames_per_clip} frames"
    return f"{chosen.steps} steps of {chosen.batch_size} {shown}"


def scored_by(chosen: Training, weights: Path) -> Recipe:
    """The run of the main job that scores the written weights on the validation videos."""
    return Recipe(
        catalog=chosen.catalog,
        source=chosen.source,
        catalog_settings=chosen.validation or {},
        model=chosen.model,
        model_settings={**chosen.model_settings, "weights": str(weights)},
        linker=chosen.linker,
        linker_settings=chosen.linker_settings,
    )


def validate(chosen: Training, weights: Path) -> dict[str, float]:
    """Runs the main job with the written weights on the validation videos, and scores it; {} where it cannot run."""
    recipe = scored_by(chosen, weights)
    try:
        job = prepare.detection(recipe)
    except ValueError as error:  # a part that runs would use, and that this training left alone
        print(f"{weights} is not scored: {error}", file=sys.stderr)
        return {}
    print(f"scoring {weights} on {len(job.videos)} videos", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="trackloom-") as folder:
        run = Run(folder).claim(job.identity(OF_DETECTION), job.model.classes)
        flow.detect(run, recipe, job.videos, job.model, Local(), flow.Workers(fuse=True), quiet)
        flow.link(run, recipe, Local(), quiet)
        flow.know(run, recipe, job.videos, Local(), quiet)
        flow.score(run, Local(), quiet)
        found = scoring.values(scoring.combine([run.table("scores")]))[None, None]
    return {name: found[name] for name in ("mAP", "HOTA", "MOTA", "IDF1") if name in found}


def quiet(*_: object) -> None:
    """Says nothing of how far the validation is: it takes less than a minute."""


def command() -> str:
    """The command line that this process was started with, however it was."""
    return shlex.join(["trackloom", "train", *sys.argv[1 + (sys.argv[1:2] == ["train"]) :]])


def data_digest(material: Labelled) -> str:
    """A name for the videos: another content, another digest."""
    return digest([(video.video_id, video.identity) for video in material.videos])


def card(output: Path, chosen: Training, fitted: Fitted, facts: dict[str, Any], scores: dict[str, float]) -> str:
    """What a reader should know of the weights, as Markdown."""
    lines = [
        f"# {output.stem}",
        "",
        f"Weights of `{chosen.model}` {plain(chosen.model_settings)}, trained on catalog `{chosen.catalog}` "
        f"{plain(chosen.catalog_settings)}. Classes: {', '.join(facts['classes'])}.",
        "",
        f"- made by: `{facts['command']}` at commit {facts['commit'] or 'unknown'}",
        f"- data: digest {facts['data']}",
        f"- {steps_of(chosen)}, seed {chosen.seed}, "
        f"{facts['cpu_minutes']} CPU-minutes, {output.stat().st_size / 1e6:.1f} MB",
        "- loss, mean of the last hundred steps: " + ", ".join(f"{k} {v:.3f}" for k, v in fitted.losses.items()),
    ]
    if scores:
        lines += [
            f"- on {plain(chosen.validation)}, whole videos, linker `{chosen.linker}` {plain(chosen.linker_settings)}: "
            + ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        ]
    return "\n".join(lines) + "\n"


class Line:
    """One line that says how the training goes."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def __call__(self, rows: Sequence[Row]) -> None:
        recent, step = rows[-100:], int(rows[-1]["step"])
        losses, seconds = mean_losses(recent), sum(row["seconds"] for row in recent) / len(recent) * step
        left = seconds / step * (self.steps - step)
        text = (
            f"step {step}/{self.steps} | " + ", ".join(f"{name} {value:.3f}" for name, value in losses.items())
            + f" | {step / seconds:.1f} steps/s | {int(left // 60)}:{int(left % 60):02d} left"
        )  # fmt: skip
        last = "\n" if step == self.steps or not sys.stderr.isatty() else ""
        print(("\r\x1b[2K" if sys.stderr.isatty() else "") + text, end=last, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main("train")
