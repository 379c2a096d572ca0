"""All that can be wrong with a training is found here, before any work and before Ray starts."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jobs import prepare, train_folder
from jobs.papers import weights
from jobs.train_card import Made, made, steps_of
from jobs.train_judge import BEST_BY, LAST, scored_by
from pipeline.boxes import area
from pipeline.config import did_you_mean, load
from pipeline.frame_range import held
from pipeline.records import Resize, VideoInfo
from pipeline.tables import Store
from pipeline.training.holding import LOOKED_INTO, Holding, frame_size, holdings
from pipeline.training.labelled import Labelled, material_of
from pipeline.training.optimizing import Optimizing
from pipeline.training.settings import Stills, Training
from pipeline.training.work import Work, build, resize_of

# Networks of more parameters than SMALL are by custom trained by AdamW at rates below LARGE_RATE, around USUAL_RATE.
SMALL, LARGE_RATE, USUAL_RATE = 5_000_000, 1e-3, 1e-4
SMALLEST_SHARE = 0.5  # of the smallest anchor's side that most boxes should have


@dataclass(frozen=True)
class Job:
    """A training that nothing is known to stand against.

    identity: see `train_folder.identity_of`. model: untrained, on the CPU, to ask it things. held_out: the videos to
    score on. holdings: how the frames of each source are held.
    """

    work: Work
    made: Made
    identity: dict[str, Any]
    model: Any
    held_out: list[VideoInfo]
    holdings: list[Holding]
    device: str

    @property
    def training(self) -> Training:
        """What is trained, on what and how."""
        return self.work.training

    def says(self) -> list[str]:
        """What is trained on, what is trained and how, a line each."""
        chosen, videos, stills = self.training, self.work.material.videos, self.work.material.stills
        named = ", ".join(videos.classes[:8]) + (", ..." if videos.classes[8:] else "")
        of = f"of {len(videos.classes)} class{'es' * (len(videos.classes) != 1)}: {named}"
        lines = [f"{_counted(videos, 'video')} {of}", str(self.holdings[0])]
        if stills is not None and chosen.stills is not None:
            share = Stills.of(chosen.stills).share
            lines += [f"{_counted(stills, 'still')}, {share:.0%} of the clips", str(self.holdings[1])]
        every = [parameter.numel() for parameter in self.model.parameters()]
        learned = [parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad]
        some = "" if learned == every else f", {sum(learned):,} of them learned"
        is_half = chosen.precision == "bfloat16" or (chosen.precision == "auto" and self.device != "cpu")
        lines.append(f"{chosen.model}: {sum(every):,} parameters{some}, {'bfloat16' if is_half else 'float32'}")
        if chosen.start:
            begun = self.model.weights
            anew = f", {len(begun.anew):,} begin anew, such as {begun.anew[0]}" if begun.anew else ""
            lines.append(f"begins with {chosen.start}: {len(begun.loaded):,} tensors{anew}")
        where = self.device if chosen.workers == 1 else f"{chosen.workers} workers, {self.device}"
        lines.append(f"{steps_of(chosen)}, {chosen.optimizer} at {chosen.learning_rate:g}, on {where}")
        if chosen.validation is None:
            lines.append("no scores, since no videos are held out for them: --val and --val-frames name some")
        else:
            count = len(self.held_out)
            lines.append(f"scored on {count:,} video{'s' * (count != 1)} with linker {chosen.linker}")
        return lines

    def warnings(self) -> list[str]:
        """What is allowed and probably not meant, a line each."""
        found = []
        if empty := [name for name, count in self.work.material.videos.boxes.items() if not count]:
            found.append(f"no box of {', '.join(empty)} in the videos, so nothing teaches what it looks like")
        learned: dict[str, list[VideoInfo]] = {}
        for video in self.work.material.videos.videos:
            learned.setdefault(video.uri, []).append(video)
        shown = [video for video in self.held_out if any(_overlap(video, one) for one in learned.get(video.uri, []))]
        if shown:
            found.append(
                f"{len(shown)} of the {len(self.held_out)} videos for scores show frames that are trained on, such as "
                f"{shown[0].video_id}: scores say nothing of others then"
            )
        if small := self._too_small():
            found.append(small)
        chosen, learned_by = self.training, sum(each.numel() for each in self.model.parameters() if each.requires_grad)
        if learned_by > SMALL and chosen.optimizer == "adamw" and chosen.learning_rate >= LARGE_RATE:
            found.append(
                f"learning_rate is {chosen.learning_rate:g}, which suits small networks; of one of this size it tends "
                f"to destroy what it knows; --set learning_rate={USUAL_RATE:g} is usual"
            )
        return found

    def _too_small(self) -> str:
        """What is to be said where a network that knows nothing yet has no anchor near the size of most boxes, or "".

        Such a box has one anchor at most, which overlaps it by less than a quarter, and GIoU hardly tells where to go.
        """
        chosen, sides = self.training, getattr(self.model.network, "anchor_sides", None)
        begins_anew = not chosen.start and chosen.model_settings.get("weights", "random") == "random"
        if sides is None or not begins_anew:
            return ""
        side = median_side(self.work.material.videos, resize_of(chosen, self.model))
        if side >= SMALLEST_SHARE * min(sides):
            return ""
        return (
            f"half of the boxes are smaller than {side:.3g} px (the root of their area) as the network is shown them, "
            f"and its smallest anchor is {min(sides):g} px: from nothing it may not learn to find them; show larger "
            "frames (--set short_side=PIXELS) or begin with trained weights (--set start=FILE)"
        )


def median_side(videos: Labelled, resize: Resize) -> float:
    """The median of what the boxes to learn measure, the root of their area, in pixels as a network is shown them.

    Of `LOOKED_INTO` of the videos that have any, spread over all, as their frames' sizes may be known to files alone.
    """
    truth, sides = videos.truth, []
    video = np.searchsorted(truth.first, np.arange(len(truth.frame)), side="right") - 1  # of each box
    having = np.unique(video[~truth.ignore])
    for number in having[:: max(1, len(having) // LOOKED_INTO)].tolist():
        height, width = frame_size(videos.videos[number])
        shown = resize.target((height, width))
        scale = np.sqrt(shown[0] * shown[1] / (height * width))
        sides.append(scale * np.sqrt(area(truth.boxes[(video == number) & ~truth.ignore])))
    return float(np.median(np.concatenate(sides)))


def ready(chosen: Training, out: str, export: str | None, local: bool, gpu: bool, half: bool, overwrite: bool) -> Job:
    """The material listed and the network built; ValueError or OSError in one sentence where anything is wrong."""
    if out.startswith("memory://") and not local:
        raise ValueError(f"--out {out} is this process's memory, which Ray's workers do not see; add --local")
    if export is not None:
        _check_export(export)
    if local:
        prepare.check_gpu(gpu)
    train_folder.known(out)
    if chosen.best_by not in BEST_BY:
        raise ValueError(
            f"best_by is {chosen.best_by!r}{did_you_mean(chosen.best_by, BEST_BY)}; it must be a score, of which more "
            f"is better: {', '.join(name for name in BEST_BY if '_' not in name)}"
        )
    weights.check_start(chosen.name, chosen.start)
    _check_network(chosen)
    held_out = validation_videos(chosen)
    work = Work(chosen, material_of(chosen), out)
    _check_scorable(chosen, held_out, work.material.videos.classes)
    model: Any = build(chosen, work.material.videos.classes)
    Optimizing(chosen, model)  # says what it cannot freeze or learn
    identity = train_folder.identity_of(work, half)
    train_folder.check(out, identity, overwrite)
    resize = resize_of(chosen, model)
    return Job(
        work=work,
        made=made(work, half, None if resize == Resize(**model.resize) else resize),
        identity=identity,
        model=model,
        held_out=held_out,
        holdings=holdings(chosen, work.material, resize),
        device="cuda" if gpu else "cpu",
    )


def validation_videos(chosen: Training) -> list[VideoInfo]:
    """Those that the result is scored on, [] without validation; ValueError where there is nothing to score."""
    if chosen.validation is None:
        return []
    recipe = scored_by(chosen, LAST)
    prepare.check_model_and_linker(recipe)
    videos = prepare.listed(recipe, recipe.catalog, recipe.source)
    if not any(video.truth_uri for video in videos):
        raise ValueError(f"no video for scores, such as {videos[0].video_id}, has ground truth")
    return videos


def _check_network(chosen: Training) -> None:
    """Raises what building the network would, before datasets are listed and their truth read, which may take long."""
    if chosen.model_settings.get("weights", "random") == "random":  # else it must know the dataset's classes
        build(chosen, tuple(load("catalog", chosen.catalog).CLASSES) or ("object",))


def _check_scorable(chosen: Training, held_out: Sequence[VideoInfo], classes: Collection[str]) -> None:
    """Raises ValueError where the videos for scores show nothing to find, such as where their frames are past the end.

    Reads their truth up to the first box.
    """
    catalog = load("catalog", chosen.catalog)
    for video in held_out:
        table = held(catalog.truth(video), video) if video.truth_uri else None
        if table is not None and not set(table["class_name"].unique().to_pylist()).isdisjoint(classes):
            return
    if held_out:
        frames = (chosen.validation or {}).get("frames")
        where = f" in frames {frames}" if frames else ""
        raise ValueError(
            f"no video for scores, such as {held_out[0].video_id}, has a box of {', '.join(list(classes)[:9])}{where} "
            "to score on; name others with --val or --val-frames"
        )


def _check_export(export: str) -> None:
    if not export.endswith(".safetensors"):
        raise ValueError(f"--export is {export}; weights are written as .safetensors")
    store = Store(export)
    if store.is_local:
        there = next(folder for folder in Path(store.url_of()).parents if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise OSError(f"--export {export} cannot be written: {there} is no folder that may be written to")


def _counted(source: Labelled, what: str) -> str:
    count, boxes = len(source.videos), sum(source.boxes.values())
    return f"{count:,} {what}{'s' * (count != 1)}, {boxes:,} box{'es' * (boxes != 1)}"


def _overlap(one: VideoInfo, other: VideoInfo) -> bool:
    """Whether two ranges of a file share a frame."""
    ends_after = [a.stop is None or b.start < a.stop for a, b in ((one, other), (other, one))]
    return all(ends_after)
