"""A training with all that its workers need, and what each of them does."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, fields

import torch
from torch import nn

from pipeline.config import load, plain, settings
from pipeline.config import resize_of as resize_of_model
from pipeline.records import Resize
from pipeline.tables import Store
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.holding import sources
from pipeline.training.labelled import Material
from pipeline.training.loading import Batches
from pipeline.training.loop import Fitted, Hear, Judge, finished, fit
from pipeline.training.scratch import scratch
from pipeline.training.settings import Training

# Settings that a stopped training may go on with another value of: they say how it runs or what is told of it, not what
# is learned. workers and threads change what the numbers are rounded to, and workers what chance each of them has.
# source, also that of stills, is where the data lies, which is told by its digest.
MAY_DIFFER = (
    "name", "source", "validate_every", "checkpoint_every", "max_failures", "workers", "loaders", "threads",
    "cache_gigabytes",
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """A training with all that its workers need, as it travels to them.

    out: the folder that all of them reach, at any URL, which checkpoints go to; None for none. judge: see `fit`.
    """

    training: Training
    material: Material
    out: str | None = None
    judge: Judge | None = None

    @property
    def checkpoints(self) -> Checkpoints | None:
        """Where the training goes on from, and whose those must be."""
        if self.out is None:
            return None
        chosen = {each.name: plain(getattr(self.training, each.name)) for each in fields(self.training)}
        if chosen["stills"] is not None:
            chosen["stills"].pop("source", None)
        made_by = {
            "training": {name: value for name, value in chosen.items() if name not in MAY_DIFFER},
            "classes": list(self.material.videos.classes),
            "data": {name: source.digest for name, source in vars(self.material).items() if source is not None},
        }
        return Checkpoints(Store(self.out), made_by)

    def finished(self) -> Fitted | None:
        """What it gave, where it has been done already and its last checkpoint is there."""
        checkpoints = self.checkpoints
        if checkpoints is None or self.training.steps not in checkpoints.steps():
            return None
        return finished(self.training, build(self.training, self.material.videos.classes), checkpoints)

    def do(self, rank: int = 0, world: int = 1, device: str = "cpu", hear: Hear | None = None) -> Fitted:
        """What each worker does, wherever it is; arguments as of `fit`."""
        if (done := self.finished()) is not None:
            return done
        model = build(self.training, self.material.videos.classes)
        with scratch() as folder:
            frames = sources(self.training, self.material, resize_of(self.training, model), folder)
            batches = Batches(self.training, frames, rank, world)
            return fit(self.training, model, batches, rank, world, device, self.checkpoints, self.judge, hear)


def build(training: Training, classes: tuple[str, ...]) -> nn.Module:
    """The network to train; random weights are drawn with the seed.

    With `training.start` it begins with what fits of other weights, and says in its `weights` what did. Raises
    ValueError where its settings name weights of other classes than these.
    """
    module = load("model", training.model)
    torch.manual_seed(training.seed)
    given = dict(training.model_settings)
    if given.setdefault("weights", "random") == "random":
        given = {"classes": classes, **given}
    elif training.start:
        raise ValueError(
            f"start is {training.start!r} and model.weights {given['weights']!r}; a training begins with one of them"
        )
    model: nn.Module = module.build(settings(module.Settings, given, f"model {training.model}"))
    if (known := tuple(model.classes)) != classes:  # type: ignore[arg-type]
        theirs, ours = (f"{len(names)} classes {', '.join(names[:9])}" for names in (known, classes))
        raise ValueError(f"weights {given['weights']!r} are of {theirs}; the catalog has, in this order, {ours}")
    if training.start:
        weights = importlib.import_module("models.parts.weights")
        model.weights = weights.begin_with(model.network, training.start, model.extras)
    return model


def resize_of(training: Training, model: nn.Module) -> Resize:
    """How large the frames are that a model is trained on; ValueError where it takes no other size than its own."""
    wanted = resize_of_model(model)
    if training.short_side is None:
        return wanted
    if wanted.size is not None:
        raise ValueError(
            f"short_side is {training.short_side}, and model {training.model} takes frames of {wanted.size} only; "
            "leave short_side out, or use the model's own setting"
        )
    return Resize(short_side=training.short_side)
