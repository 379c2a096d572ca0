"""The points that a stopped training goes on from: files at any URL, each whole or not there at all."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

import torch

from pipeline.tables import Store

FOLDER = "checkpoints"
NAME = re.compile(r"step-(\d+)\.pt")


@dataclass(frozen=True)
class Checkpoints:
    """A training's checkpoints below its folder. keep: how many of the last ones."""

    store: Store
    keep: int = 2

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Writes the state after so many steps, and removes those before the last `keep`."""
        content = io.BytesIO()
        torch.save(state, content)
        self.store.write(content.getvalue(), FOLDER, f"step-{step:08d}.pt")
        for old in self.steps()[: -self.keep]:
            self.store.remove(FOLDER, f"step-{old:08d}.pt")

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, in order."""
        return sorted(int(found[1]) for name in self.store.names(FOLDER) if (found := NAME.fullmatch(name)))

    def load(self, step: int) -> dict[str, Any]:
        """The state after so many steps, on the CPU; tensors and plain values only."""
        content = self.store.read(FOLDER, f"step-{step:08d}.pt")
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return state
