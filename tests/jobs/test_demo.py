"""The demo really detects: the shipped weights on the held-out test videos of synthetic-v1."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from jobs.run import run
from jobs.summary import combined_scores
from pipeline.tables import read_run

FEW = 12  # of 48 videos; they hold all speeds
Demo = Callable[..., dict[str, float]]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The demo's scores, with clips of so many frames, on so many of its videos; each run is made once."""
    folder = tmp_path_factory.mktemp("demo")

    @cache
    def scores(max_videos: int | None = FEW, clip_frames: int | None = None) -> dict[str, float]:
        output = str(folder / f"{max_videos}-videos-clips-of-{clip_frames}")
        given = {"clip_frames": clip_frames, "max_videos": max_videos}
        assert run(recipe="demo", output=output, local=True, report=False, **given) == 0
        return combined_scores(read_run(output))

    return scores


@pytest.mark.parametrize("max_videos", [FEW, pytest.param(None, marks=pytest.mark.slow)])
def test_shipped_weights_reach_what_the_readme_promises(max_videos: int | None, demo: Demo) -> None:
    scores = demo(max_videos)
    assert scores["mAP"] >= 0.75
    assert scores["HOTA"] >= 0.60


def test_cutting_videos_into_short_clips_costs_little(demo: Demo) -> None:
    assert demo(clip_frames=16)["HOTA"] >= demo()["HOTA"] - 0.03
