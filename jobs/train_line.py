"""How far a training is: one line, redrawn on a terminal, now and then a new one elsewhere; and its curves."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from pipeline.training.history import MEMORY, SECONDS, WAITED, Row, mean_losses
from pipeline.training.settings import Training

RECENT = 100  # steps that losses and speed are those of
EVERY_S = 30.0  # between lines where nothing can be redrawn
REFRESHED_S = 60.0  # between the curves that are written while a training goes on


@dataclass
class Follow:
    """Hears the rows of all steps so far, as `start.here` and `start.on_ray` tell them.

    write: writes them down with their curves; asked for now and then, and where the training ends early.
    """

    training: Training
    write: Callable[[Sequence[Row]], None]
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    rows: Sequence[Row] = ()
    said: float = -EVERY_S
    written: float = field(default_factory=time.monotonic)

    def __call__(self, rows: Sequence[Row]) -> None:
        now, self.rows = time.monotonic(), rows
        is_last = rows[-1]["step"] == self.training.steps
        if self.stream.isatty():
            width = shutil.get_terminal_size().columns - 1
            self.stream.write(f"\r\x1b[2K{text(self.training, rows)[:width]}" + ("\n" if is_last else ""))
            self.stream.flush()
        elif is_last or now - self.said >= EVERY_S:
            self.said = now
            print(text(self.training, rows), file=self.stream, flush=True)
        if not is_last and now - self.written >= REFRESHED_S:
            self.write(rows)
            self.written = time.monotonic()

    def stopped(self) -> None:
        """Leaves the line, so that what is said next has one of its own, and writes what was heard until then."""
        if self.rows and self.rows[-1]["step"] < self.training.steps:
            if self.stream.isatty():
                print(file=self.stream, flush=True)
            self.write(self.rows)


def text(training: Training, rows: Sequence[Row]) -> str:
    """Losses, speed, what is left, the share of time that data is waited for, and memory: of the last steps."""
    recent, step = rows[-RECENT:], int(rows[-1]["step"])
    spent = max(sum(row[SECONDS] for row in recent), 1e-9)
    waited = sum(row[WAITED] for row in recent) / spent
    rate = len(recent) / spent
    left = (training.steps - step) / rate
    losses = ", ".join(f"{name} {value:.3f}" for name, value in mean_losses(recent).items())
    return (
        f"step {step}/{training.steps} | {duration(left)} left | {rate:.1f} steps/s, "
        f"{rate * training.batch_size:.0f} clips/s | {losses} | {waited:.0%} waiting for data | "
        f"{rows[-1][MEMORY] / 1000:.1f} GB"
    )


def duration(seconds: float) -> str:
    """m:ss, or h:mm:ss from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
