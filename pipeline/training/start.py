"""Begins a training: in this process, or on the workers of Ray Train."""

from __future__ import annotations

import functools
import os
import re
import sys
import tempfile
import threading
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from pipeline.engine import StageError
from pipeline.tables import Store
from pipeline.training.history import Row
from pipeline.training.loop import Fitted, Hear
from pipeline.training.settings import Training
from pipeline.training.work import Work

# Seconds that a worker may wait for the others: long enough for the first to judge on a whole dataset. One that died is
# noticed at once all the same.
PATIENCE = 6 * 3600
POLL = 0.2  # seconds between two looks at what was said


def here(work: Work, device: str = "cpu", hear: Hear | None = None) -> Fitted:
    """Trains in this process, without Ray."""
    return work.do(device=device, hear=hear)


def on_ray(work: Work, use_gpu: bool = False, hear: Hear | None = None) -> Fitted:
    """Trains on `training.workers` workers of the Ray cluster that this process is connected to.

    Where one dies, all begin again from the last checkpoint, up to `max_failures` times. hear: as `fit` has it, called
    in this process. Raises ValueError where the cluster has no room for the workers, they cannot all reach `out`, or
    `fit` raises it, and StageError where workers died too often; the checkpoints stay where `out` is given.
    """
    import ray

    _check_room(work.training, use_gpu)
    machines = sum(node["Alive"] for node in ray.nodes())
    if work.out is None and machines > 1:
        raise ValueError(f"the cluster has {machines} machines; give the training a folder that all of them reach")
    if work.out is not None and work.out.startswith("memory:"):
        raise ValueError(f"{work.out} is this process's own memory, which no worker reaches; give another folder")
    with tempfile.TemporaryDirectory(prefix="trackloom-") as folder:
        work = replace(work, out=folder if work.out is None else Store(work.out).url_of())  # workers' folder is another
        if (done := work.finished()) is not None:
            return done
        tries = 1 + work.training.max_failures
        for tried in range(1, tries + 1):
            why = _attempt(work, use_gpu, hear)
            if why is None:
                break
            if tried == tries:
                raise StageError(f"{why}; the training was begun {tries} times")
            more = f"all begin again from the last checkpoint, {tried} of {tries - 1} times"
            print(f"{why}; {more}", file=sys.stderr, flush=True)
        done = work.finished()
    assert done is not None, "workers that are done leave the last checkpoint"
    return done


def _attempt(work: Work, use_gpu: bool, hear: Hear | None) -> str | None:
    """One start of the workers to their end; gives None, or why they did not reach it; raises their ValueErrors."""
    from ray.train import FailureConfig, Result, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError
    from ray.util.queue import Queue

    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # or relative paths of videos would lead nowhere
    said = Queue(actor_options={"num_cpus": 0})
    ended: list[Result | TrainingFailedError] = []
    with tempfile.TemporaryDirectory(prefix="trackloom-") as folder:  # for what Ray leaves
        trainer = TorchTrainer(
            functools.partial(_on_worker, work, said),
            torch_config=TorchConfig(timeout_s=PATIENCE),
            scaling_config=ScalingConfig(
                num_workers=work.training.workers, use_gpu=use_gpu, resources_per_worker=_needs(use_gpu)
            ),
            run_config=RunConfig(
                name=f"train-{uuid.uuid4().hex}",  # a name used before would give that run's result
                storage_path=folder,
                failure_config=FailureConfig(max_failures=0),  # Ray would try again what no trial mends
            ),
        )

        def run() -> None:
            try:
                ended.append(trainer.fit())
            except TrainingFailedError as error:
                ended.append(error)

        # Not in this thread, which listens; nor does Ray then take Ctrl-C to itself.
        running = threading.Thread(target=run, daemon=True)
        running.start()
        rows: list[Row] = []
        while running.is_alive() or not said.empty():
            running.join(POLL)
            for first, new in said.get_nowait_batch(said.size()):
                rows = rows[:first] + new
                if hear:
                    hear(rows)
    said.shutdown()
    if not ended:
        raise StageError("Ray Train could not train; what it says of that is printed above")
    return _why(ended[0]) if isinstance(ended[0], TrainingFailedError) else None


def _on_worker(work: Work, said: Any) -> None:
    """What each of Ray Train's workers does; the last checkpoint is what comes of it."""
    import ray.train
    import ray.train.torch

    context, device = ray.train.get_context(), ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)  # where NCCL puts what is no tensor of ours
    heard = 0

    def tell(rows: Sequence[Row]) -> None:
        nonlocal heard
        said.put((heard, list(rows[heard:])))  # all that there are would be ever more
        heard = len(rows)

    work.do(context.get_world_rank(), context.get_world_size(), str(device), tell)


def _needs(use_gpu: bool) -> dict[str, float]:
    """What a worker reserves."""
    return {"CPU": 1, **({"GPU": 1} if use_gpu else {})}


def _check_room(training: Training, use_gpu: bool) -> None:
    """Refuses workers that would wait for ever: the cluster has not what they reserve."""
    import ray

    there = ray.cluster_resources()
    for name, needed in _needs(use_gpu).items():
        if training.workers * needed > (has := there.get(name, 0)):
            raise ValueError(
                f"workers is {training.workers}, each with {needed:g} {name}, and the cluster has {has:g} in all; "
                "give fewer workers or a larger cluster"
            )


def _why(error: Any) -> str:
    """A failed run of Ray Train in a sentence; raises the ValueError of a worker, which no other trial would mend.

    error: a TrainingFailedError. Of a group's failures that of who died says most, those of who waited for it least.
    """
    from ray.exceptions import RayActorError

    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    for failure in failures.values():
        if isinstance(failure, ValueError):
            raise failure from None
    for rank, failure in failures.items():
        failure = getattr(failure, "health_check_failure", failure)
        if isinstance(failure, RayActorError):
            kind = re.search(r"exit type: (\w+)", str(failure))
            return f"worker {rank} of the training died" + (f" ({kind[1].replace('_', ' ').lower()})" if kind else "")
    for rank, failure in sorted(failures.items(), key=lambda item: "closed by peer" in str(item[1])):
        return f"worker {rank} of the training failed: {type(failure).__name__}: {' '.join(str(failure).split())}"
    return f"the training failed: {' '.join(str(error).split())}"
