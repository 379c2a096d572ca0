"""Training: a catalog's frames and their truth in, a network's weights out.

The training split is decoded once into a file that is mapped into memory; batches of single frames, or of pairs of one
video, are drawn from it.
One loop serves both ways: `fit` in this process, or in the workers of Ray Train, which share every batch among them.
Equal settings give equal weights, bit for bit, here and on one worker of Ray's on a machine of the same kind.
"""

from __future__ import annotations

import math
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.config import load, settings
from pipeline.labelled import Frames, Labelled, read_frames
from pipeline.records import Resize

Progress = Callable[[int, dict[str, float], float], None]


@dataclass(frozen=True)
class Training:
    """What to train, on what, and how: frozen plain values, as a `Recipe` is.

    validation: settings of the catalog for the videos that the result is scored on, None for no score; linker: what
    makes tracks for that.
    batch_size: clips a step, over all workers. frames_per_clip: of one video, each min_gap to max_gap frames after the
    one before; 1 for single frames, 2 for pairs. reverse: gives clips backward at random.
    The learning rate rises over `warmup` steps and falls to nothing by a cosine. average: share of the old weights in
    the running average that is kept (0: the last weights themselves).
    flip: mirrors clips at random, left to right; flip_vertical: also upside down; permute_colours: exchanges the
    colour channels. The latter two only where they leave the class what it is. All frames of a clip alike.
    """

    name: str = "custom"
    model: str = "smot"
    model_settings: Mapping[str, Any] = field(default_factory=dict)
    catalog: str = "synthetic"
    source: str = ""
    catalog_settings: Mapping[str, Any] = field(default_factory=dict)
    validation: Mapping[str, Any] | None = None
    linker: str = "keep"
    linker_settings: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 5000
    batch_size: int = 8
    frames_per_clip: int = 1
    min_gap: int = 1
    max_gap: int = 1
    reverse: bool = False
    learning_rate: float = 4e-3
    weight_decay: float = 0.02
    warmup: int = 100
    max_gradient: float = 5.0
    average: float = 0.998
    flip: bool = True
    flip_vertical: bool = False
    permute_colours: bool = False
    seed: int = 0
    workers: int = 1
    threads: int = 1  # of a worker: one is fastest for a small network where other work shares the machine

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "frames_per_clip", "workers", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.batch_size % self.workers:
            raise ValueError(
                f"batch_size is {self.batch_size}, which {self.workers} workers cannot share; give a multiple of it"
            )
        if not 0 <= self.average < 1:
            raise ValueError(f"average is {self.average}; it must be at least 0 and below 1")
        if not 1 <= self.min_gap <= self.max_gap:
            raise ValueError(
                f"min_gap is {self.min_gap} and max_gap {self.max_gap}; "
                "they must be at least 1, and max_gap no smaller than min_gap"
            )
        if self.frames_per_clip == 1 and (self.max_gap > 1 or self.reverse):
            raise ValueError(
                "min_gap, max_gap and reverse are of several frames; give frames_per_clip=2 or more with them"
            )


@dataclass(frozen=True)
class Fitted:
    """A trained network in eval mode, what the loss came to (mean of the last hundred steps), and CPU-seconds."""

    model: nn.Module
    losses: dict[str, float]
    cpu_s: float


def build(training: Training, classes: tuple[str, ...]) -> nn.Module:
    """The network to train; from random weights, drawn with the seed, unless its settings say which.

    Raises ValueError where those are of other classes than these.
    """
    module = load("model", training.model)
    torch.manual_seed(training.seed)
    given = dict(training.model_settings)
    if given.setdefault("weights", "random") == "random":
        given = {"classes": classes, **given}
    model: nn.Module = module.build(settings(module.Settings, given, f"model {training.model}"))
    if (known := tuple(model.classes)) != classes:  # type: ignore[arg-type]
        theirs, ours = (f"{len(names)} classes {', '.join(names[:9])}" for names in (known, classes))
        raise ValueError(f"weights {given['weights']!r} are of {theirs}; the catalog has, in this order, {ours}")
    return model


def fit(
    training: Training,
    model: nn.Module,
    frames: Frames,
    rank: int = 0,
    world: int = 1,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Fitted:
    """Trains the model in place for `training.steps`, and gives back its running average, ready to detect.

    rank, world: this worker's share of every batch. progress: is called every 100 steps with the step, the mean of
    each loss since the last call, and the seconds since the start.
    """
    torch.set_num_threads(training.threads)
    cpu, start = time.process_time(), time.perf_counter()
    model = model.to(device).train()
    learner: nn.Module = _Losses(model)
    if world > 1:
        # One worker's clips may have nothing that a part learns from, such as an object that both frames show.
        learner = DistributedDataParallel(learner, find_unused_parameters=True)
    learned = [p for p in model.parameters() if p.requires_grad]
    if not learned:
        raise ValueError(
            f"model {training.model} has nothing to learn with the settings {dict(training.model_settings)}"
        )
    decayed = [p for p in learned if p.ndim > 1]
    plain = [p for p in learned if p.ndim <= 1]  # biases and batch norms
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": training.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=training.learning_rate,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, training))
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(training.average), use_buffers=True)
    random = torch.Generator().manual_seed(training.seed)
    firsts = starts(frames, training)
    recent: list[dict[str, float]] = []
    order: list[int] = []
    for number in range(training.steps):
        while len(order) < training.batch_size:
            order += firsts[torch.randperm(len(firsts), generator=random)].tolist()
        batch, order = order[: training.batch_size], order[training.batch_size :]
        clips, targets = draw(frames, batch, training, random)
        mine = slice(rank, None, world)
        losses = learner(
            [clip.to(device) for clip in clips[mine]],
            [[{name: value.to(device) for name, value in frame.items()} for frame in clip] for clip in targets[mine]],
        )
        total: Tensor = sum(losses.values(), start=torch.zeros((), device=device))
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(learned, training.max_gradient)
        optimizer.step()
        schedule.step()
        averaged.update_parameters(model)
        recent = [*recent[-99:], {name: value.item() for name, value in losses.items()}]
        if not math.isfinite(total.item()):
            raise ValueError(f"the loss is {total.item()} at step {number + 1}; lower learning_rate or max_gradient")
        if progress and ((number + 1) % 100 == 0 or number + 1 == training.steps):
            progress(number + 1, _mean(recent), time.perf_counter() - start)
    kept = averaged.module if training.average else model
    return Fitted(kept.cpu().eval(), _mean(recent), time.process_time() - cpu)


def starts(frames: Frames, training: Training) -> Tensor:
    """Indices of the frames that a clip can begin with: those whose video goes on for as long as a clip must.

    Raises ValueError where there is none.
    """
    shortest = training.min_gap * (training.frames_per_clip - 1)
    video = torch.from_numpy(frames.video)
    found = torch.nonzero(video[: len(video) - shortest] == video[shortest:]).squeeze(1)
    if not len(found):
        longest = int(torch.bincount(video).max())
        raise ValueError(
            f"a clip of {training.frames_per_clip} frames, min_gap {training.min_gap}, needs {shortest + 1} frames, "
            f"and the longest video has {longest}; give a smaller min_gap or frames_per_clip"
        )
    return found


def draw(
    frames: Frames, batch: list[int], training: Training, random: torch.Generator
) -> tuple[list[Tensor], list[list[dict[str, Tensor]]]]:
    """Clips uint8 (T, 3, H, W), mirrored, recoloured and reversed at random, and the targets of each one's frames.

    batch: the index of each clip's first frame; see `starts`.
    """
    clips, targets = [], []
    for first in batch:
        indices = clip_from(first, frames, training, random)
        chances = torch.rand(2, generator=random)
        colours = torch.randperm(3, generator=random)
        clip = torch.from_numpy(np.array(frames.pixels[indices]))
        found = [dict(frames.targets[index]) for index in indices]
        if training.permute_colours:
            clip = clip.index_select(1, colours)
        if training.flip and chances[0] < 0.5:
            clip, found = mirrored(clip, found, 3)
        if training.flip_vertical and chances[1] < 0.5:
            clip, found = mirrored(clip, found, 2)
        clips.append(clip)
        targets.append(found)
    return clips, targets


def clip_from(first: int, frames: Frames, training: Training, random: torch.Generator) -> list[int]:
    """Indices of the frames of a clip that begins with `first`, in the order they are shown in."""
    end = first + int(np.searchsorted(frames.video[first:], frames.video[first], side="right"))  # of its video
    indices = [first]
    for still in range(training.frames_per_clip - 2, -1, -1):  # frames that are to come after this one
        last = min(indices[-1] + training.max_gap, end - 1 - still * training.min_gap)
        indices.append(int(torch.randint(indices[-1] + training.min_gap, last + 1, (), generator=random)))
    if training.reverse and torch.rand((), generator=random) < 0.5:
        indices.reverse()
    return indices


def mirrored(
    clip: Tensor, targets: list[dict[str, Tensor]], axis: Literal[2, 3]
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """A clip (T, 3, H, W) and its boxes upside down (axis 2) or left to right (axis 3)."""
    length = clip.shape[axis]
    low, high = (1, 3) if axis == 2 else (0, 2)
    turned = []
    for target in targets:
        boxes = target["boxes"].clone()
        boxes[:, low], boxes[:, high] = length - target["boxes"][:, high], length - target["boxes"][:, low]
        turned.append({**target, "boxes": boxes})
    return clip.flip(axis), turned


class _Losses(nn.Module):
    """Makes `losses` the forward pass, which is where torch's data parallelism hooks in."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, clips: list[Tensor], targets: list[list[dict[str, Tensor]]]) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.model.losses(clips, targets)  # type: ignore[operator]
        if any(loss.requires_grad for loss in losses.values()):
            return losses
        # Nothing to learn from here: a gradient of 0 for one parameter, so that the other workers do not wait for ever.
        nothing = 0 * next(p for p in self.parameters() if p.requires_grad).sum()
        return {name: loss + nothing for name, loss in losses.items()}


def _rate(step: int, training: Training) -> float:
    warmup = min(training.warmup, training.steps // 10)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, training.steps - warmup))


def _mean(losses: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in losses])) for name in losses[0]}


def train_here(training: Training, material: Labelled, progress: Progress | None = None, device: str = "cpu") -> Fitted:
    """Trains in this process, without Ray."""
    model = build(training, material.classes)
    with tempfile.TemporaryDirectory(prefix="trackloom-") as folder:
        frames = read_frames(material, Resize(**model.resize), Path(folder))  # type: ignore[arg-type]
        return fit(training, model, frames, device=device, progress=progress)


def train_on_ray(training: Training, material: Labelled, storage: str | None = None, use_gpu: bool = False) -> Fitted:
    """Trains on `training.workers` workers of the Ray cluster that this process is connected to.

    Each decodes the videos for itself and takes its share of every batch. storage: a folder that all of them and this
    process can write to, at any URL that pyarrow knows; by default a temporary one, which serves a single machine.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    with tempfile.TemporaryDirectory(prefix="trackloom-") as folder:
        result = TorchTrainer(
            _ray_worker,
            train_loop_config={"training": training, "material": material},
            scaling_config=ScalingConfig(num_workers=training.workers, use_gpu=use_gpu),
            run_config=RunConfig(
                name=f"train-{uuid.uuid4().hex}",  # a name used before would give that run's result
                storage_path=storage or folder,
                failure_config=FailureConfig(max_failures=1),
            ),
        ).fit()
        assert result.checkpoint is not None
        model = build(training, material.classes)
        with result.checkpoint.as_directory() as saved:
            stored = torch.load(Path(saved) / "fitted.pt", weights_only=True)
    model.load_state_dict(stored["weights"])
    return Fitted(model.eval(), stored["losses"], stored["cpu_s"])


def _ray_worker(config: dict[str, Any]) -> None:
    """What each of Ray Train's workers does; the first gives the network back, as a checkpoint."""
    import ray.train
    import ray.train.torch

    training, material = config["training"], config["material"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    model = build(training, material.classes)
    with tempfile.TemporaryDirectory(prefix="trackloom-") as folder:
        frames = read_frames(material, Resize(**model.resize), Path(folder))  # type: ignore[arg-type]
        fitted = fit(training, model, frames, rank, world, str(ray.train.torch.get_device()))
    with tempfile.TemporaryDirectory(prefix="trackloom-") as folder:
        checkpoint = None
        if rank == 0:
            stored = {"weights": fitted.model.state_dict(), "losses": fitted.losses, "cpu_s": fitted.cpu_s * world}
            torch.save(stored, Path(folder) / "fitted.pt")
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(fitted.losses, checkpoint=checkpoint)
