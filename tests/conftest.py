"""Fixtures that all tests share, and the count of how many of each mark ran."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples every run, and no deadline: a first call may import or compile.
settings.register_profile("trackloom", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("trackloom")


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real data; skips where TRACKLOOM_DATA is unset, fails where it is set but incomplete."""
    given = os.environ.get("TRACKLOOM_DATA")
    if not given:
        pytest.skip("TRACKLOOM_DATA is unset: it names the folder of real videos, detections and ground truth")
    folder = Path(given)
    missing = [
        name
        for name in ("mot15", "kitti", "imagenet_vid", "coco_eval", "sequences", "flies", "videos", "decode")
        if not (folder / name).is_dir()
    ]
    assert not missing, f"TRACKLOOM_DATA={given} is incomplete: it lacks {', '.join(missing)}"
    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many tests of each mark ran and were skipped, so that a green run cannot hide that none did."""
    for outcome in ("passed", "skipped"):
        reports = [r for r in terminalreporter.stats.get(outcome, []) if r.when != "teardown"]
        marks = Counter(mark for r in reports for mark in ("data", "gpu", "slow") if mark in r.keywords)
        terminalreporter.write_line(
            f"{outcome}: {len(reports)} in all, " + ", ".join(f"{marks[m]} {m}" for m in ("data", "gpu", "slow"))
        )
