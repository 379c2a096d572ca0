"""THE training loop: batches in, steps, and on the way checkpoints, scores and a record of every step.

All that is random in step n follows from the seed, n and the worker's rank; nothing else is carried from step to step
but what a checkpoint holds. So a training goes on from one as if it had never stopped, and its losses are equal: to the
bit on CPUs, and on a GPU as far as its kernels add up in the same order.
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

from pipeline.training.checkpoints import Checkpoints, Damaged
from pipeline.training.history import GRADIENT, LEARNING_RATE, MEMORY, SECONDS, WAITED, Record, Row, mean_losses
from pipeline.training.loading import Batch, Batches
from pipeline.training.optimizing import Optimizing, rate
from pipeline.training.settings import Training

Judge = Callable[[nn.Module, int, Sequence[Row]], Mapping[str, float]]
Hear = Callable[[Sequence[Row]], None]
HEARD = 20  # steps whose losses come from the device at once


@dataclass
class Fitted:
    """A trained network in eval mode on the CPU, and how it came about: see `Record`, whose steps are the history."""

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
    hear: Hear | None = None,
) -> Fitted:
    """Trains the model in place for `training.steps`, and gives back its running average, ready to detect.

    rank, world: which of how many workers this is. checkpoints: where a stopped training goes on from, and leaves its
    own. judge: scores the network after so many steps, given the scores before; it is asked on the first worker, of a
    copy of the network. hear: is given all rows so far, every HEARD steps, on the first worker.
    Batch norms that learn measure each worker's own clips, and what the first one's come to is kept. They are not
    synchronised on GPUs either: that would stop the forward pass until all workers are there, also in parts that one
    without objects never enters. The papers' large networks freeze theirs.
    Raises ValueError where a loss or the gradient is no number any more, the model has not what the training names, or
    the checkpoints are of another training.
    """
    torch.set_num_threads(training.threads)
    model = model.to(device)
    optimizing = Optimizing(training, model)
    record, done = Record(), 0
    if (found := _last(checkpoints, rank, world)) is not None:
        done, state = found
        optimizing.restore(state["learned"])
        record = Record.of(state["record"])
    optimizing.train()
    learner: nn.Module = _Losses(model)
    if world > 1:
        # One worker's clips may have nothing that a part learns from, such as an object that both frames show.
        learner = DistributedDataParallel(learner, find_unused_parameters=True)
    half = training.precision == "bfloat16" or (training.precision == "auto" and device.startswith("cuda"))
    feed = batches.since(done, pin=device.startswith("cuda"))
    pending: list[_Step] = []
    cpu, start = time.process_time(), time.perf_counter()
    for number in range(done, training.steps):
        batch, waited = _next(feed, device)
        torch.manual_seed(seed_of(training.seed, number, rank))
        with torch.autocast(device.partition(":")[0], torch.bfloat16, enabled=half):
            losses: dict[str, Tensor] = learner(batch.clips, batch.targets)
        norm = optimizing.step(number, total(losses, training.loss_weights))
        row = {"step": number + 1, LEARNING_RATE: rate(number, training), WAITED: waited}
        row[SECONDS], start = time.perf_counter() - start, time.perf_counter()
        pending.append(_Step(row, {name: loss.detach() for name, loss in losses.items()} | {GRADIENT: norm}))

        is_last = number + 1 == training.steps
        judged = is_last or bool(training.validate_every and not (number + 1) % training.validate_every)
        saved = judged or (checkpoints is not None and not (number + 1) % training.checkpoint_every)
        if len(pending) == HEARD or saved:
            record.steps += _fetched(pending, world, device)
            pending = []
            if hear and rank == 0:
                hear(record.steps)
        if saved:
            pause = time.perf_counter()
            if judged and judge and rank == 0:
                scores = judge(copy.deepcopy(optimizing.kept).cpu().eval(), number + 1, record.scores)
                record.scores = [*record.scores, {"step": number + 1, **{k: float(v) for k, v in scores.items()}}]
                torch.set_num_threads(training.threads)  # who judges may have set others, and their number changes sums
            if checkpoints is not None or is_last:
                record.cpu_s += _over_workers(time.process_time() - cpu, world, device)
                cpu = time.process_time()
            if checkpoints is not None and rank == 0:
                checkpoints.save(number + 1, {"learned": optimizing.state(), "record": record.state()})
            start += time.perf_counter() - pause  # no step's time
    return Fitted(optimizing.kept.cpu().eval(), record.steps, record.scores, record.cpu_s)


def finished(training: Training, model: nn.Module, checkpoints: Checkpoints) -> Fitted | None:
    """What a training that was done gave, from its last checkpoint; None where that is damaged.

    Raises FileNotFoundError where there is none of the last step, ValueError where it is of another training.
    """
    try:
        state = checkpoints.load(training.steps)
    except Damaged:
        return None
    optimizing = Optimizing(training, model)
    optimizing.restore(state["learned"])
    record = Record.of(state["record"])
    return Fitted(optimizing.kept.eval(), record.steps, record.scores, record.cpu_s)


def seed_of(seed: int, step: int, rank: int) -> int:
    """What the models' own chance begins with in a step, on a worker: 63 bits."""
    return int(np.random.SeedSequence([seed, 3, step, rank]).generate_state(1, np.uint64)[0] >> 1)


def total(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The sum of the losses, each times its weight, 1 where none is given; ValueError where one is of no loss."""
    if unknown := sorted(weights.keys() - losses.keys()):
        raise ValueError(f"loss_weights names {unknown[0]!r}, which the model has not; its losses: {', '.join(losses)}")
    return torch.stack([loss.float() * weights.get(name, 1.0) for name, loss in losses.items()]).sum()


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


@dataclass(frozen=True)
class _Step:
    """A step whose losses and gradient are still on the device, so that nobody waits for them there."""

    row: Row
    values: dict[str, Tensor]


def _fetched(pending: Sequence[_Step], world: int, device: str) -> list[Row]:
    """The rows of some steps, whole: their losses fetched from the device, means over all workers."""
    values = torch.stack([torch.stack([value.float() for value in step.values.values()]) for step in pending])
    if world > 1:  # (steps, losses and the gradient's norm)
        distributed.all_reduce(values)
        values /= world
    memory = _memory_mb(device)
    rows = []
    for step, found in zip(pending, values.tolist(), strict=True):
        fetched = dict(zip(step.values, found, strict=True))
        assert not fetched.keys() & step.row.keys(), "a loss is called as a measure is"
        for name, value in fetched.items():
            if not math.isfinite(value):
                what = "gradient" if name == GRADIENT else f"loss {name}"
                raise ValueError(
                    f"the {what} is {value} at step {step.row['step']}; lower learning_rate or max_gradient"
                )
        rows.append(step.row | fetched | {MEMORY: memory})
    return rows


def _last(checkpoints: Checkpoints | None, rank: int, world: int) -> tuple[int, dict[str, Any]] | None:
    """The checkpoint to go on from: the last that the first worker can read is everybody's."""
    if checkpoints is None:
        return None
    if world == 1:
        return checkpoints.last()
    found = checkpoints.last() if rank == 0 else None
    shared = [found and found[0]]
    distributed.broadcast_object_list(shared)
    if found or shared[0] is None:
        return found
    try:
        return shared[0], checkpoints.load(shared[0])
    except FileNotFoundError:
        raise ValueError(
            f"worker {rank} does not find the checkpoint of step {shared[0]} in {checkpoints.store.url}, which the "
            "first worker reads there; give a folder that all machines reach"
        ) from None


def _over_workers(value: float, world: int, device: str) -> float:
    """The sum over all workers."""
    summed = torch.tensor(value, dtype=torch.float64, device=device)
    if world > 1:
        distributed.all_reduce(summed)
    return float(summed)


def _memory_mb(device: str) -> float:
    """The most memory so far: of the GPU, or of this process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 1e6
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most / 1e3  # bytes there, kB elsewhere
