"""The main job on Ray: the rows of the plain loop, bit for bit, and who is lost where workers die. One session."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline import flow
from pipeline.clips import Part, Unit
from pipeline.engine import OnRay, Stage, StageError
from pipeline.records import detections
from pipeline.schemas import detections_table
from pipeline.tables import read_run

Runs = Callable[..., int]
SameRows = Callable[[Path, Path], None]
FRAMES = 4  # of each video in which workers die


@pytest.mark.parametrize("fuse", [False, True], ids=["decode stage", "fused"])
def test_ray_equals_local(
    ray_session: None, videos: Path, start: Runs, undisturbed: Path, same_rows: SameRows, tmp_path: Path, fuse: bool
) -> None:
    assert start(videos, tmp_path / "run", clip_frames=8, local=False, fuse_decode=fuse) == 0
    same_rows(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("culprits", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_only_the_clips_that_kill_their_workers_are_lost(
    culprits: int,
    ray_session: None,
    start: Runs,
    film: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Among innocents that wait behind them; three are more deaths than a bounded pool would outlive."""
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    bad = [f"bad-{number}" for number in range(culprits)]
    for name in ("a", *bad, "c"):
        film(tmp_path / f"{name}.mp4", FRAMES, 1)
    monkeypatch.setattr("pipeline.planning.UNIT_FRAMES", 1)
    stages_of = flow.detect_stages
    monkeypatch.setattr(flow, "detect_stages", lambda *given: deadly(stages_of(*given)))
    assert start(tmp_path, tmp_path / "run", local=False, fuse_decode=True, workers=1) == 2
    rows = {row["video_id"]: row for row in read_run(str(tmp_path / "run")).table("videos").to_pylist()}
    statuses = {name: row["status"] for name, row in rows.items()}
    assert statuses == {"a": "ok", "c": "ok", **dict.fromkeys(bad, "failed")}
    assert "died both times" in rows["bad-0"]["error"]


def test_an_exception_in_a_worker_ends_the_run_with_what_it_said(ray_session: None) -> None:
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    for actors in (0, 1):
        stages = [Stage("write", lambda: refuses, "", "", actors=actors), Stage("next", lambda: passes, "", "")]
        with pytest.raises(StageError, match="stage write: PermissionError: 403 for 3"):
            list(OnRay().stream([1, 2, 3], stages))


def test_a_row_may_take_longer_than_ray_has_patience(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default that is half an hour, which a training is."""
    import ray.cloudpickle

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(ray.data.DataContext.get_current(), "execution_no_progress_timeout_s", 0.5)
    assert list(OnRay().stream([1], [Stage("ponder", lambda: ponders, "", "")])) == [1]


def ponders(number: int) -> list[int]:
    time.sleep(2)
    return [number]


def refuses(number: int) -> list[int]:
    """As an object store whose key is wrong."""
    if number == 3:
        raise PermissionError(f"403 for {number}")
    return [number]


def passes(number: int) -> list[int]:
    return [number]


def deadly(stages: list[Stage]) -> list[Stage]:
    """The same stages without the network: its libraries take seconds in each process that follows a dead one."""
    first, *rest = stages
    return [dataclasses.replace(first, make=lambda: blind), *rest]


def blind(unit: Unit) -> Iterator[Part]:
    """Sees that there is nothing in a clip's frames; a bad video kills its process."""
    for ref in unit.refs:
        if ref.video.video_id.startswith("bad"):
            os._exit(1)
        frames = [detections(index, timestamp_s=index / 25) for index in range(FRAMES)]
        table = detections_table(ref.video.video_id, ref.clip_id, frames, np.ones(FRAMES, np.bool_))
        yield Part(ref, table, frames=FRAMES, seconds={"decode_s": 0.0, "detect_s": 0.0})
