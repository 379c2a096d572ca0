"""THE training loop: batches in, steps, and on the way checkpoints, scores and a record of every step.

All that is random in step n follows from the seed, n and the worker's rank; nothing else is carried from step to step
but what a checkpoint holds. So a training goes on from one as if it had never stopped, and its losses are equal.
"""

from __future__ import annotations

import copy
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pipeline.training.checkpoints import Checkpoints
from pipeline.training.loading import Batch, Batches
from pipeline.training.optimizing import Optimizing, rate
from pipeline.training.settings import Training

Row = dict[str, float]
Judge = Callable[[nn.Module, int, Sequence[Row]], Mapping[str, float]]
HEARD = 20  # steps whose losses come from the device at once

# Of a step's row, beside `step` and the losses by their names.
LEARNING_RATE, GRADIENT, SECONDS, WAITED, MEMORY = "learning_rate", "gradient", "seconds", "waited_s", "memory_mb"
MEASURES = (LEARNING_RATE, GRADIENT, SECONDS, WAITED, MEMORY)


@dataclass
class Fitted:
    """A trained network in eval mode on the CPU, and how it came about.

    history: a row a step: `step`, counted from 1, each loss by its name, mean over all workers, the learning rate, the
    gradient's norm before it was cut, the seconds the step took and waited for data, and the memory in use (of the
    GPU, else of the process), the most so far. scores: a row for each validation, with its `step`.
    """

    model: nn.Module
    history: list[Row]
    scores: list[Row] = field(default_factory=list)
    cpu_s: float = 0.0

    @property
    def losses(self) -> Row:
        """What each loss came to: the mean of the last hundred steps."""
        return mean_losses(self.history[-100:])


def fit(
    training: Training,
    model: nn.Module,
    batches: Batches,
    rank: int = 0,
    world: int = 1,
    device: str = "cpu",
    checkpoints: Checkpoints | None = None,
    judge: Judge | None = None,
    hear: Callable[[Sequence[Row]], None] | None = None,
) -> Fitted:
    """Trains the model in place for `training.steps`, and gives back its running average, ready to detect.

    rank, world: which of how many workers this is. checkpoints: where a stopped training goes on from, and leaves its
    own. judge: scores the network after so many steps, given the scores before; it is asked on the first worker.
    hear: is given all rows so far, every HEARD steps, on the first worker.
    Raises ValueError where a loss is no number any more.
    """
    torch.set_num_threads(training.threads)
    torch.manual_seed(training.seed)
    model = model.to(device)
    optimizing = Optimizing(training, model)
    optimizing.train()
    learner: nn.Module = _Losses(model)
    history: list[Row] = []
    scores: list[Row] = []
    cpu_before = 0.0
    done = _agreed(checkpoints.steps()[-1] if checkpoints and checkpoints.steps() else 0, world)
    if done:
        assert checkpoints is not None
        state = checkpoints.load(done)
        optimizing.restore(state["learned"])
        history, scores, cpu_before = state["history"], state["scores"], state["cpu_s"]
    if world > 1:
        # One worker's clips may have nothing that a part learns from, such as an object that both frames show.
        learner = DistributedDataParallel(learner, find_unused_parameters=True)
    half = training.precision == "bfloat16" or (training.precision == "auto" and device.startswith("cuda"))
    feed = batches.since(done, pin=device.startswith("cuda"))
    pending: list[tuple[Row, list[str], Tensor]] = []
    cpu, start = time.process_time(), time.perf_counter()
    for number in range(done, training.steps):
        batch, waited = _next(feed, device)
        torch.manual_seed(seed_of(training.seed, number, rank))
        with torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=half):
            losses: dict[str, Tensor] = learner(batch.clips, batch.targets)
        weighed = [loss * training.loss_weights.get(name, 1.0) for name, loss in losses.items()]
        norm = optimizing.step(number, torch.stack(weighed).sum())
        row = {"step": number + 1, LEARNING_RATE: rate(number, training), WAITED: waited}
        values = torch.stack([*(loss.detach().float() for loss in losses.values()), norm.detach().float()])
        pending.append((row, [*losses, GRADIENT], values))
        row[SECONDS], start = time.perf_counter() - start, time.perf_counter()
        judged = number + 1 == training.steps or (
            training.validate_every and not (number + 1) % training.validate_every
        )
        saved = checkpoints is not None and (judged or not (number + 1) % training.checkpoint_every)
        if len(pending) == HEARD or saved or judged:
            history += _fetched(pending, world, device)
            pending = []
            if hear and rank == 0:
                hear(history)
        if judged and judge and rank == 0:
            kept = copy.deepcopy(optimizing.kept).cpu().eval()
            scores = [*scores, {"step": number + 1, **judge(kept, number + 1, scores)}]
        if saved and checkpoints and rank == 0:
            spent = cpu_before + time.process_time() - cpu
            state = {"learned": optimizing.state(), "history": history, "scores": scores, "cpu_s": spent}
            checkpoints.save(number + 1, state)
    return Fitted(optimizing.kept.cpu().eval(), history, scores, cpu_before + time.process_time() - cpu)


def seed_of(seed: int, step: int, rank: int) -> int:
    """What the models' own chance begins with in a step, on a worker: 63 bits."""
    return int(np.random.SeedSequence([seed, 3, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def mean_losses(rows: Sequence[Row]) -> Row:
    """The mean of each loss over some rows; {} without any."""
    names = [name for name in rows[-1] if name != "step" and name not in MEASURES] if rows else []
    return {name: float(np.mean([row[name] for row in rows])) for name in names}


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


def _next(feed: Iterator[Batch], device: str) -> tuple[Batch, float]:
    """The next batch on the device, and the seconds that it was waited for."""
    start = time.perf_counter()
    batch = next(feed)
    waited = time.perf_counter() - start
    if device == "cpu":
        return batch, waited
    clips = [clip.to(device, non_blocking=True) for clip in batch.clips]
    targets = [
        [{name: value.to(device, non_blocking=True) for name, value in frame.items()} for frame in clip]
        for clip in batch.targets
    ]
    return Batch(clips, targets), waited


def _fetched(pending: list[tuple[Row, list[str], Tensor]], world: int, device: str) -> list[Row]:
    """The rows of some steps, whole: their losses fetched from the device, means over all workers."""
    if not pending:
        return []
    values = torch.stack([value for _, _, value in pending])  # (steps, losses and the gradient's norm)
    if world > 1:
        distributed.all_reduce(values)
        values /= world
    memory = _memory_mb(device)
    rows = []
    for (row, names, _), found in zip(pending, values.tolist(), strict=True):
        whole = row | dict(zip(names, found, strict=True)) | {MEMORY: memory}
        if not all(math.isfinite(value) for value in found[:-1]):
            bad = next(name for name in names if not math.isfinite(whole[name]))
            raise ValueError(
                f"the loss {bad} is {whole[bad]} at step {row['step']}; lower learning_rate or max_gradient"
            )
        rows.append(whole)
    return rows


def _agreed(step: int, world: int) -> int:
    """The first worker's checkpoint is everybody's."""
    if world == 1:
        return step
    shared: list[Any] = [step]
    distributed.broadcast_object_list(shared)
    return int(shared[0])


def _memory_mb(device: str) -> float:
    """The most memory so far: of the GPU, or of this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e6
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most / 1e3  # bytes there, kB elsewhere
