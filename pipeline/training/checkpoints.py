"""The points that a stopped training goes on from: files at any URL, each whole or not there at all."""

from __future__ import annotations

import hashlib
import io
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline.tables import Store, differences

FOLDER = "checkpoints"
NAME = re.compile(r"step-(\d+)\.pt")
CHECK = hashlib.sha256().digest_size  # bytes at a file's end that say whether all before it is as it was written


class Damaged(ValueError):
    """A checkpoint that is not as it was written."""


@dataclass(frozen=True)
class Checkpoints:
    """A training's checkpoints below its folder.

    made_by: nested plain values of all that the losses follow from. What was made by others is refused, since half a
    training of these and half of those is neither. keep: how many of the last ones.
    """

    store: Store
    made_by: Mapping[str, Any] = field(default_factory=dict)
    keep: int = 2

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Writes the state after so many steps; of those before it the last `keep` - 1 stay, and none after it."""
        content = io.BytesIO()
        torch.save({"made_by": self.made_by, "state": state}, content)
        content.write(hashlib.sha256(content.getbuffer()).digest())
        self.store.write(content.getvalue(), *_names(step))
        there = self.steps()
        before = [other for other in there if other <= step]
        for old in set(there) - set(before[-self.keep :]):
            self.store.remove(*_names(old))

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, in order."""
        return sorted(int(found[1]) for name in self.store.names(FOLDER) if (found := NAME.fullmatch(name)))

    def last(self) -> tuple[int, dict[str, Any]] | None:
        """The last step that there is a whole checkpoint of, and the state after it; None where there is none.

        What is damaged is passed over, with a sentence on stderr. Raises ValueError as `load` does.
        """
        for step in reversed(self.steps()):
            try:
                return step, self.load(step)
            except Damaged as error:
                print(f"{error}; the training goes on from what is whole before it", file=sys.stderr, flush=True)
        return None

    def load(self, step: int) -> dict[str, Any]:
        """The state after so many steps, on the CPU; tensors and plain values only.

        Raises FileNotFoundError where there is none, Damaged where it is not as it was written, and ValueError where
        another training made it.
        """
        place = self.store.url_of(*_names(step))
        content = memoryview(self.store.read(*_names(step)))
        if len(content) <= CHECK or hashlib.sha256(content[:-CHECK]).digest() != content[-CHECK:]:
            raise Damaged(f"checkpoint {place} is damaged")
        stored = torch.load(io.BytesIO(content[:-CHECK]), map_location="cpu", weights_only=True)
        if found := list(differences(stored["made_by"], self.made_by)):
            raise ValueError(
                f"checkpoint {place} is of another training: {'; '.join(found[:3])}{'; ...' if found[3:] else ''}. "
                "Go on with the same, or choose another folder"
            )
        state: dict[str, Any] = stored["state"]
        return state


def _names(step: int) -> tuple[str, str]:
    return FOLDER, f"step-{step:08d}.pt"
