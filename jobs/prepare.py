"""All that can be wrong is found here, before any work and before Ray starts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import flow
from pipeline.config import digest, load, plain, settings
from pipeline.detect import build
from pipeline.engine import Engine, Local, OnRay
from pipeline.recipe import Recipe
from pipeline.records import Resize, VideoInfo, unique_ids
from pipeline.tables import Run


@dataclass(frozen=True)
class Detection:
    """What a detection needs: the recipe, the catalog's videos, and the network (on the CPU, to ask it things)."""

    recipe: Recipe
    videos: list[VideoInfo]
    model: Any

    def identity(self) -> dict[str, Any]:
        """What makes the rows: another identity, other rows."""
        recipe = plain(self.recipe)
        return {
            "recipe": recipe,
            "weights": weights_digest(self.model),
            "videos": {
                "count": len(self.videos),
                "digest": digest([(video.video_id, video.identity) for video in self.videos]),
            },
        }


def joined(source: Sequence[str] | None) -> str | None:
    """Several sources as one, separated by commas, as catalogs read them."""
    return ",".join(source) if source else None


def detection(recipe: Recipe, max_videos: int | None = None) -> Detection:
    """The videos listed and the network built; ValueError or OSError in one sentence where either cannot be."""
    return Detection(recipe, listed(recipe, max_videos), build(recipe.model, recipe.model_settings))


def listed(recipe: Recipe, max_videos: int | None = None) -> list[VideoInfo]:
    """The catalog's videos, ids unique; ValueError where there is none."""
    catalog = load("catalog", recipe.catalog)
    videos = catalog.videos(
        recipe.source, settings(catalog.Settings, recipe.catalog_settings, f"catalog {recipe.catalog}")
    )
    if not videos:
        raise ValueError(f"catalog {recipe.catalog} found no video in {recipe.source!r}")
    return unique_ids(videos)[:max_videos]


def check_pair(recipe: Recipe, gives: frozenset[str] | None = None) -> None:
    """Raises ValueError where the linker has no such settings or needs evidence that the model does not give."""
    linker = load("linker", recipe.linker)
    settings(linker.Settings, recipe.linker_settings, f"linker {recipe.linker}")
    who = f"model {recipe.model}" if gives is None else "the detections table"
    gives = load("model", recipe.model).GIVES if gives is None else gives
    lacking = linker.NEEDS - gives
    if lacking:
        raise ValueError(
            f"linker {recipe.linker} needs {', '.join(sorted(lacking))}, which {who} does not give "
            f"(it gives {', '.join(sorted(gives)) or 'boxes, scores and labels only'}); choose another --linker"
        )


def engine(
    local: bool, address: str | None, actors: int | None, gpus: float, fuse: bool
) -> tuple[Engine, flow.Workers]:
    """Where it runs and how wide. Ray is not started yet."""
    if local:
        return Local(), flow.Workers(fuse=True, gpus=gpus)
    cpus = os.cpu_count() or 1
    if actors is None:
        # Networks on CPUs share them with the decoders; a GPU's network leaves them all of the CPUs.
        actors = 1 if gpus else max(1, cpus if fuse else cpus // 2)
    # Where CPUs are scarce, halves, so that the stages before and after an actor are never starved by it.
    return OnRay(address), flow.Workers(actors, gpus, fuse, cpus=1 if cpus > actors else 0.5)


def claim(output: str, job: Detection, overwrite: bool, local: bool) -> Run:
    """The run's folder, taken for this job; ValueError where something else made what is there."""
    if output.startswith("memory://") and not local:
        raise ValueError(
            f"--output {output} lies in this process's memory, which Ray's workers do not see; add --local"
        )
    return Run(output).claim(job.identity(), job.model.classes, overwrite)


def plan(output: str, job: Detection, engine: Engine, workers: flow.Workers) -> str:
    """What `--explain` prints: the stages with their resources, and what goes in and out."""
    run, recipe = Run(output), job.recipe
    context = job.model.frames_before, job.model.frames_after
    resize = Resize(**job.model.resize)
    stages = [
        flow.plan_stage(recipe, context),
        *flow.detect_stages(run, recipe, resize, workers),
        flow.gather_stage(run),
        flow.link_stage(run, recipe, run),
        *([flow.score_stage(run, recipe.catalog)] if any(video.truth_uri for video in job.videos) else []),
    ]
    cut = f"clips of {recipe.clip_frames} frames" if recipe.clip_frames else "whole videos as clips"
    return "\n".join(
        [
            f"{len(job.videos)} videos of catalog {recipe.catalog} -> {output}, on {engine.name}, {cut}",
            f"model {recipe.model} {plain(recipe.model_settings) or ''}, linker {recipe.linker} "
            f"{plain(recipe.linker_settings) or ''}, {len(job.model.classes)} classes",
            "",
            *(stage.describe() for stage in stages),
        ]
    )


def weights_digest(model: Any) -> str:
    """A short name of a network's parameters and buffers, wherever and however they were stored."""
    content = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        content.update(name.encode())
        content.update(tensor.contiguous().cpu().numpy().tobytes())
    return content.hexdigest()[:16]
