"""What changes in a step: the parameters, by AdamW or SGD at a rate of that step, and their running average."""

from __future__ import annotations

import copy
import math
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pipeline.training.settings import Training


class Optimizing:
    """The optimizer of a model's parameters and the running average of the model.

    Raises ValueError where the model has nothing to learn, or `freeze` names what it does not have.
    """

    def __init__(self, training: Training, model: nn.Module) -> None:
        self.training, self.model = training, model
        self.frozen = freeze(model, training.freeze)
        self.learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self.learned:
            raise ValueError(
                f"model {training.model} has nothing to learn with the settings {dict(training.model_settings)}"
            )
        groups = [
            {"params": [p for p in self.learned if p.ndim > 1], "weight_decay": training.weight_decay},
            {"params": [p for p in self.learned if p.ndim <= 1], "weight_decay": 0.0},  # biases and norms
        ]
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(groups, lr=training.learning_rate, fused=True)
            if training.optimizer == "adamw"
            else torch.optim.SGD(groups, lr=training.learning_rate, momentum=training.momentum, fused=True)
        )
        self.averaged = copy.deepcopy(model) if training.average else None

    def train(self) -> None:
        """Puts the model into training mode, all but the norms of what is frozen."""
        self.model.train()
        for module in self.frozen:
            module.eval()

    def step(self, number: int, total: Tensor) -> Tensor:
        """Learns from a loss, as step `number`; gives the norm of its gradient, before it was cut."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate(number, self.training)
        self.optimizer.zero_grad()
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.learned, self.training.max_gradient)
        self.optimizer.step()
        if self.averaged is not None:
            # Less of the old at first, so that a short training's result is not what it began with.
            kept = min(self.training.average, (1 + number) / (10 + number)) if number else 0.0
            average(self.averaged, self.model, kept)
        return norm

    @property
    def kept(self) -> nn.Module:
        """The network that is the training's result: the running average, or the model where none is kept."""
        return self.model if self.averaged is None else self.averaged

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged is not None else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Takes up what `state` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])


def average(averaged: nn.Module, current: nn.Module, kept: float) -> None:
    """Moves the tensors of a network towards those of another that is built alike; kept: share of the old.

    Integers are taken as they are: torch's `AveragedModel` would round a mean of them down, indices too; and its count
    of steps, which `kept` depends on, waits for the GPU.
    """
    olds, news = (list(chain(each.parameters(), each.buffers())) for each in (averaged, current))
    pairs = [(old.detach(), new.detach()) for old, new in zip(olds, news, strict=True)]
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    get_ema_multi_avg_fn(kept)([old for old, _ in floats], [new for _, new in floats], None)
    for old, new in pairs:
        if not old.is_floating_point():
            old.copy_(new)


def rate(step: int, training: Training) -> float:
    """The learning rate of a step, counted from 0."""
    warmup = min(training.warmup, training.steps // 10)
    if step < warmup:
        share = (step + 1) / (warmup + 1)
    elif training.schedule == "steps":
        share = 0.1 ** sum(step >= drop for drop in training.drops)
    else:
        share = 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, training.steps - warmup))
    return training.learning_rate * share


def freeze(model: nn.Module, beginnings: tuple[str, ...]) -> list[nn.Module]:
    """Sets what is not learned; gives the modules that stay as they are.

    beginnings: of the names of parameters, as "detector.body" of "detector.body.conv1.weight". Raises ValueError where
    the model has none that begins so.
    """
    for beginning in beginnings:
        named = [parameter for name, parameter in model.named_parameters() if begins(name, beginning)]
        if not named:
            parts = sorted({".".join(name.split(".")[:2]) for name, _ in model.named_parameters()})
            raise ValueError(f"freeze names {beginning!r}, which the model does not have; it has {', '.join(parts)}")
        for parameter in named:
            parameter.requires_grad = False
    return [module for name, module in model.named_modules() if any(begins(name, each) for each in beginnings)]


def begins(name: str, beginning: str) -> bool:
    """Whether a dotted name begins with the parts of another."""
    return name == beginning or name.startswith(f"{beginning}.")
