"""All that can be wrong is found here, before any work and before Ray starts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from jobs.options import SECTIONS
from pipeline import flow, frame_range, refining
from pipeline.config import available, digest, load, plain, resize_of, settings
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

    def identity(self, takes: Sequence[str]) -> dict[str, Any]:
        """What makes the rows: another identity, other rows. takes: the parts of the recipe that do."""
        resize = resize_of(self.model)
        # Left out where weights do not change it: the recipe says it then.
        sizes = {} if resize == Resize(**self.model.resize) else {"resize": plain(resize)}
        return {
            "recipe": resolved(self.recipe, takes),
            "weights": weights_digest(self.model),
            "videos": videos_digest(self.videos),
            **sizes,
        }


def resolved(recipe: Recipe, takes: Sequence[str]) -> dict[str, Any]:
    """These parts of a recipe with every default filled in, so that what is the same looks the same.

    Where weights come from is left out: what counts is what is in them.
    """
    found: dict[str, Any] = {}
    for name in takes:
        if name == "refine":
            # Left out where nothing is refined: such a run is what it was before there was any refining.
            refinement = settings(refining.Settings, recipe.refine_settings, "refine")
            if refinement != refining.Settings():
                found["refine_settings"] = plain(refinement)
            continue
        if name == "frames":  # left out where all are taken, for the same reason
            if text := str(frame_range.FrameRange.parse(recipe.frames)):
                found["frames"] = text
            continue
        value = getattr(recipe, name)
        found[name] = value
        if name in SECTIONS:
            chosen = settings(load(name, value).Settings, getattr(recipe, SECTIONS[name]), f"{name} {value}")
            found[SECTIONS[name]] = {key: item for key, item in plain(chosen).items() if not key.endswith("weights")}
    return found


def videos_digest(videos: Sequence[VideoInfo]) -> dict[str, Any]:
    """How many videos, and a name for what is in them."""
    return {"count": len(videos), "digest": digest([(video.video_id, video.identity) for video in videos])}


def detection(recipe: Recipe, max_videos: int | None = None) -> Detection:
    """The videos listed and the network built; ValueError or OSError in one sentence where either cannot be."""
    return Detection(recipe, listed(recipe, recipe.catalog, recipe.source, max_videos), built(recipe))


def built(recipe: Recipe) -> Any:
    """The network on the CPU; ValueError or OSError in one sentence where it cannot be, or was never trained."""
    from pipeline.detect import build  # torch takes seconds to import, and linking needs none

    model = build(recipe.model, recipe.model_settings)
    check_trained(recipe, model)
    return model


def check_trained(recipe: Recipe, model: Any) -> None:
    """Raises ValueError where a part that is used was never trained, unless random weights are asked for by name.

    A part with a file of its own has a setting for it: the ReID network's is reid_weights.
    """
    own = {field.name for field in fields(load("model", recipe.model).Settings)}
    given = recipe.model_settings
    for part in model.untrained:
        setting = f"{part}_weights" if f"{part}_weights" in own else "weights"
        if "random" not in (given.get("weights"), given.get(setting)):
            raise ValueError(
                f"model {recipe.model} uses {part}, which its {setting} {given.get(setting, 'default')!r} do not hold: "
                f"give weights that do with --set model.{setting}=FILE, train them{how_trained(recipe.model, part)}, "
                f"or, where results do not matter, say --set model.{setting}=random"
            )


def how_trained(model: str, part: str) -> str:
    """' as ... does', the named training of this part by itself, or of all of the model, else ''."""
    from jobs.trainings import RECIPES  # brings torch

    trainings = {name: make() for name, make in RECIPES.items()}  # what begins with another comes later
    alone = [name for name, training in trainings.items() if training.model_settings.get("train") == part]
    whole = [name for name, training in trainings.items() if training.model == model]
    named = alone or whole
    return f" as `trackloom train --recipe {named[-1]}` does" if named else ""


def listed(recipe: Recipe, name: str, source: str, max_videos: int | None = None) -> list[VideoInfo]:
    """A catalog's videos, ids unique, of each the recipe's range of frames; ValueError where there is none."""
    frame_range.FrameRange.parse(recipe.frames)  # listing may take a while, and then it is found to be none
    catalog = load("catalog", name)
    chosen = settings(catalog.Settings, recipe.catalog_settings, f"catalog {name}")
    videos = catalog.videos(source or None, chosen)
    if not videos:
        raise ValueError(f"catalog {name} found no video in {source!r}")
    return frame_range.limited(unique_ids(videos)[:max_videos], recipe.frames)


def check_model_and_linker(recipe: Recipe) -> None:
    """Raises ValueError where either has no such settings, or the linker needs what the model does not give."""
    model = load("model", recipe.model)
    chosen = settings(model.Settings, recipe.model_settings, f"model {recipe.model}")
    gives = getattr(chosen, "gives", None)
    who = f"model {recipe.model}" if gives is None else f"model {recipe.model} with these settings"
    check_linker(recipe, model.GIVES if gives is None else gives, who)


def check_linker(recipe: Recipe, evidence: frozenset[str], who: str) -> None:
    """Raises ValueError where linker or refining have no such settings, or the linker needs more than this evidence.

    who: gives the evidence.
    """
    linker = load("linker", recipe.linker)
    chosen = settings(linker.Settings, recipe.linker_settings, f"linker {recipe.linker}")
    settings(refining.Settings, recipe.refine_settings, "refine")
    lacking = (linker.NEEDS | getattr(chosen, "needs", frozenset())) - evidence
    if lacking:
        given = ", ".join(sorted(evidence)) or "boxes, scores and labels only"
        by_settings = "" if linker.NEEDS - evidence else f"change the settings of linker {recipe.linker}, or "
        others = ", ".join(name for name in linkers_for(evidence) if name != recipe.linker)
        raise ValueError(
            f"linker {recipe.linker} needs {', '.join(sorted(lacking))}; {who} gives {given}; {by_settings}choose "
            f"another linker: {others}"
        )


def linkers_for(evidence: frozenset[str]) -> list[str]:
    """The linkers that, as they are, can build on this evidence."""
    found = {name: load("linker", name) for name in available("linker")}
    return [
        name
        for name, linker in found.items()
        if linker.NEEDS | getattr(linker.Settings(), "needs", frozenset()) <= evidence
    ]


def check_reads_detections(name: str) -> None:
    """Raises ValueError where a catalog has no detections to give."""
    if not hasattr(load("catalog", name), "detections"):
        able = [other for other in available("catalog") if hasattr(load("catalog", other), "detections")]
        raise ValueError(f"catalog {name} holds no detections; those that may are: {', '.join(able)}")


def engine(
    local: bool, address: str | None, actors: int | None = None, gpus: float = 0, fuse: bool = False
) -> tuple[Engine, flow.Workers]:
    """Where it runs and how wide; a session of this machine's own is not started yet, a cluster is asked what it has.

    Raises ValueError where more networks are asked for than there are CPUs for beside the decoders.
    """
    if local:
        check_gpu(gpus > 0)
        return Local(), flow.Workers(fuse=True, gpus=gpus)
    ray = OnRay(address)
    cpus, there = ray.resources()
    # Networks on CPUs share them with the decoders; on GPUs there are as many as GPUs.
    wanted = actors or int(max(1, there // gpus if gpus else cpus if fuse else cpus // 2))
    spare = 0.5 if fuse else min(1.0, cpus / 2)  # for the stages before and after, which must never starve
    each = min(1.0, (cpus - spare) / wanted)
    if each < 0.25:
        raise ValueError(f"--workers {wanted} is more than {cpus:g} CPUs can hold; at most {int((cpus - spare) * 4)}")
    return ray, flow.Workers(wanted, gpus, fuse, cpus=round(each, 2), decode_cpus=min(1.0, spare))


def check_gpu(is_wanted: bool) -> None:
    """Raises ValueError where this process is to use a GPU and torch finds none."""
    if is_wanted:
        import torch

        if not torch.cuda.is_available():
            raise ValueError("a GPU is asked for, and torch finds none here; without it the CPU does the work")


def claim(output: str, identity: dict[str, Any], classes: Sequence[str], overwrite: bool, engine: Engine) -> Run:
    """The run's folder, taken for this job; ValueError where something else made what is there."""
    if output.startswith("memory://") and engine.name != "local":
        raise ValueError(f"--output {output} is this process's memory, which Ray's workers do not see; add --local")
    try:
        return Run(output).claim(identity, classes, overwrite)
    except OSError as error:
        raise OSError(f"--output {output} cannot be written: {(error.strerror or str(error)).lower()}") from None


def plan(output: str, job: Detection, engine: Engine, workers: flow.Workers, then: Sequence[str]) -> str:
    """What `--explain` prints: the stages with their resources, and what goes in and out. then: `link`, `score`."""
    run, recipe = Run(output), job.recipe
    stages = [
        flow.plan_stage(recipe, (job.model.frames_before, job.model.frames_after)),
        *flow.detect_stages(run, recipe, resize_of(job.model), workers),
        flow.gather_stage(run),
        *([flow.link_stage(run, recipe)] if "link" in then else []),
        *([flow.know_stage(run), flow.score_stage(run)] if "score" in then else []),
    ]
    cut = f"clips of {recipe.clip_frames} frames" if recipe.clip_frames else "whole videos as clips"
    chosen = [f"catalog {recipe.catalog}", f"model {recipe.model}", f"linker {recipe.linker}"]
    part = f", frames {recipe.frames} of each" if recipe.frames else ""
    return "\n".join(
        [
            f"{len(job.videos)} videos{part} -> {output}, on {engine.name}, {cut}",
            f"{', '.join(chosen if then else chosen[:2])}, {len(job.model.classes)} classes",
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
