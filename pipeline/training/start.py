"""Begins a training: builds the network, reads the frames, and runs the loop, here or on the workers of Ray Train."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.config import load, settings
from pipeline.records import Resize
from pipeline.tables import Store
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.labelled import Labelled, read_frames
from pipeline.training.loading import Batches
from pipeline.training.loop import Fitted, Judge, Row, fit
from pipeline.training.settings import Training

Hear = Callable[[Sequence[Row]], None]


@dataclass(frozen=True)
class Work:
    """A training with all that its workers need, as it travels to them.

    out: the folder that all of them reach, at any URL, which checkpoints go to; None for none.
    """

    training: Training
    material: Labelled
    out: str | None = None
    judge: Judge | None = None


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


def here(work: Work, device: str = "cpu", hear: Hear | None = None) -> Fitted:
    """Trains in this process, without Ray."""
    return _worker(work, 0, 1, device, hear)


def on_ray(work: Work, use_gpu: bool = False) -> Fitted:
    """Trains on `training.workers` workers of the Ray cluster that this process is connected to."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    with tempfile.TemporaryDirectory(prefix="trackloom-") as folder:
        result = TorchTrainer(
            _ray_worker,
            train_loop_config={"work": work},
            scaling_config=ScalingConfig(num_workers=work.training.workers, use_gpu=use_gpu),
            run_config=RunConfig(
                name=f"train-{uuid.uuid4().hex}",  # a name used before would give that run's result
                storage_path=work.out or folder,
                failure_config=FailureConfig(max_failures=work.training.max_failures),
            ),
        ).fit()
        assert result.checkpoint is not None
        model = build(work.training, work.material.classes)
        with result.checkpoint.as_directory() as saved:
            stored = torch.load(Path(saved) / "fitted.pt", weights_only=True)
    model.load_state_dict(stored.pop("model"))
    return Fitted(model.eval(), **stored)


def _worker(work: Work, rank: int, world: int, device: str, hear: Hear | None) -> Fitted:
    """What each worker does, wherever it is."""
    training, material = work.training, work.material
    model = build(training, material.classes)
    checkpoints = Checkpoints(Store(work.out)) if work.out else None
    with tempfile.TemporaryDirectory(prefix="trackloom-") as folder:
        frames = read_frames(material, Resize(**model.resize), Path(folder))  # type: ignore[arg-type]
        batches = Batches(training, [frames], rank, world)
        return fit(training, model, batches, rank, world, device, checkpoints, work.judge, hear)


def _ray_worker(config: dict[str, Any]) -> None:
    """What each of Ray Train's workers does; the first gives the network back, as a checkpoint of Ray's."""
    import ray.train
    import ray.train.torch

    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    fitted = _worker(config["work"], rank, world, str(ray.train.torch.get_device()), None)
    with tempfile.TemporaryDirectory(prefix="trackloom-") as folder:
        checkpoint = None
        if rank == 0:
            stored = {**vars(fitted), "model": fitted.model.state_dict(), "cpu_s": fitted.cpu_s * world}
            torch.save(stored, Path(folder) / "fitted.pt")
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(fitted.losses, checkpoint=checkpoint)
