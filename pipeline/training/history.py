"""How a training went: a row of numbers for each step, and for each validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

Row = dict[str, float]

# Of a step's row, beside `step` and the losses by their names.
LEARNING_RATE, GRADIENT, SECONDS, WAITED, MEMORY = "learning_rate", "gradient", "seconds", "waited_s", "memory_mb"
MEASURES = (LEARNING_RATE, GRADIENT, SECONDS, WAITED, MEMORY)


@dataclass
class Record:
    """What is known of a training so far.

    steps: a row a step: `step`, counted from 1, each loss by its name, mean over all workers, the learning rate, the
    gradient's norm before it was cut, the seconds the step took and those of them waited for data, and the memory in
    use (of the GPU, else of the process), the most so far. scores: a row for each validation, with its `step`. cpu_s:
    CPU seconds of all workers, without the processes that load for them.
    """

    steps: list[Row] = field(default_factory=list)
    scores: list[Row] = field(default_factory=list)
    cpu_s: float = 0.0

    def state(self) -> dict[str, Any]:
        """What `of` makes the record of again, bit for bit: tensors and plain values, as a checkpoint has them."""
        return {"steps": columns(self.steps), "scores": self.scores, "cpu_s": self.cpu_s}

    @classmethod
    def of(cls, state: dict[str, Any]) -> Record:
        """The record that gave this state."""
        return cls(rows(state["steps"]), state["scores"], state["cpu_s"])


def columns(given: Sequence[Row]) -> dict[str, Tensor]:
    """Rows that have the same names, as a column float64 (N,) for each: read and written fast, however many."""
    return {
        name: torch.tensor([row[name] for row in given], dtype=torch.float64) for name in (given[0] if given else ())
    }


def rows(given: dict[str, Tensor]) -> list[Row]:
    """The rows that `columns` was given, whose first name is `step`."""
    assert next(iter(given), "step") == "step"
    values = zip(*(column.tolist() for column in given.values()), strict=True)
    return [dict(zip(given, row, strict=True)) | {"step": int(row[0])} for row in values]


def mean_losses(some: Sequence[Row]) -> Row:
    """The mean of each loss over some rows; {} without any."""
    names = [name for name in some[-1] if name != "step" and name not in MEASURES] if some else []
    return {name: float(np.mean([row[name] for row in some])) for name in names}
