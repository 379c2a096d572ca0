"""One line that says how far a job is: redrawn on a terminal, now and then a new one elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from pipeline.clips import Part

UNITS = {"plan": "videos", "detect": "clips"}
EVERY_S = 5.0  # between lines where nothing can be redrawn


class Line:
    """Called with (stage, count, total, newest result), as `flow.Progress` says."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.redraws = self.stream.isatty()
        self.stage = ""
        self.start, self.last = time.monotonic(), 0.0
        self.latest = self.start  # when anything was last heard of: a new stage began then
        self.first = self.frames = self.failed = 0

    def __call__(self, stage: str, count: int, total: int, result: Any) -> None:
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.start, self.last = stage, self.latest, 0.0
            self.first, self.frames, self.failed = count - 1, 0, 0
        self.latest = now
        if isinstance(result, Part):
            self.frames += result.frames
            self.failed += result.status != "ok"
        if count == total or now - self.last > (0.1 if self.redraws else EVERY_S):
            self.last = now
            self._draw(self._text(count, total, max(now - self.start, 1e-6)), count == total)

    def _text(self, count: int, total: int, elapsed: float) -> str:
        text = f"{self.stage} {count}/{total} {UNITS.get(self.stage, 'shards')}"
        if self.stage == "detect":
            text += f" | {self.frames:,} frame{'s' * (self.frames != 1)} | {self.frames / elapsed:,.0f} fps"
            if count < total:
                left = elapsed / max(count - self.first, 1) * (total - count)
                text += f" | {int(left // 60)}:{int(left % 60):02d} left"
            if self.failed:
                text += f" | {self.failed} failed or partial"
        return text

    def _draw(self, text: str, is_last: bool) -> None:
        if self.redraws:
            self.stream.write(f"\r\x1b[2K{text}" + ("\n" if is_last else ""))
        else:
            self.stream.write(text + "\n")
        self.stream.flush()
