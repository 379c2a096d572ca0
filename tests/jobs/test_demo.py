"""The demo really detects: the shipped weights on the held-out test videos of synthetic-v1."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.run import run
from jobs.summary import combined_scores
from pipeline.tables import read_run


@pytest.fixture
def demo(tmp_path: Path) -> Callable[..., dict[str, float]]:
    """The demo's scores, with clips of so many frames, on so many of its videos."""

    def scores(clip_frames: int | None = None, max_videos: int | None = None) -> dict[str, float]:
        output = str(tmp_path / f"clips-of-{clip_frames}")
        given = {"clip_frames": clip_frames, "max_videos": max_videos}
        assert run(recipe="demo", output=output, local=True, report=False, **given) == 0
        return combined_scores(read_run(output))

    return scores


def test_shipped_weights_reach_what_the_readme_promises(demo: Callable[..., dict[str, float]]) -> None:
    scores = demo()
    assert scores["mAP"] >= 0.75
    assert scores["HOTA"] >= 0.60


def test_cutting_videos_into_short_clips_costs_little(demo: Callable[..., dict[str, float]]) -> None:
    assert demo(16, max_videos=12)["HOTA"] >= demo(max_videos=12)["HOTA"] - 0.03
