"""The demo really detects: the shipped weights on the held-out test videos of synthetic-v1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.run import run
from jobs.summary import combined_scores
from pipeline.tables import read_run


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int | None], dict[str, float]]:
    """The demo's scores, with clips of so many frames."""
    found: dict[int | None, dict[str, float]] = {}

    def scores(clip_frames: int | None) -> dict[str, float]:
        if clip_frames not in found:
            output: Path = tmp_path_factory.mktemp("demo")
            assert run(recipe="demo", output=str(output), local=True, report=False, clip_frames=clip_frames) == 0
            found[clip_frames] = combined_scores(read_run(str(output)))
        return found[clip_frames]

    return scores


def test_shipped_weights_reach_what_the_readme_promises(demo: Callable[[int | None], dict[str, float]]) -> None:
    scores = demo(None)
    assert scores["mAP"] >= 0.75
    assert scores["HOTA"] >= 0.60


def test_cutting_videos_into_short_clips_costs_little(demo: Callable[[int | None], dict[str, float]]) -> None:
    assert demo(16)["HOTA"] >= demo(None)["HOTA"] - 0.03
