"""Trainings on the workers of Ray Train: what this process would learn, whatever dies on the way."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from pipeline.engine import OnRay, StageError
from pipeline.training import start, work
from pipeline.training.history import Row
from pipeline.training.labelled import Material
from pipeline.training.loop import Fitted
from pipeline.training.settings import Training
from pipeline.training.work import Work

pytestmark = pytest.mark.slow  # a session, and some ten starts of two workers
Numbers = Callable[[Sequence[Row]], list[Row]]
Same = Callable[[Fitted, Fitted], None]

# Norms that measure nothing: what a worker's own clips have in common is then no part of what is learned.
BODY = ("stem", "stage_1", "stage_2", "stage_3", "stage_4", "lateral", "smooth", "tower.1", "class_tower.1")
STILL = tuple(f"detector.{part}" for part in BODY)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray session of our own, where nobody else's actors hold the CPUs that workers wait for."""
    import ray
    import ray.cloudpickle

    ray.shutdown()
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]
    OnRay("local").start()
    yield
    ray.shutdown()


@dataclass(frozen=True)
class Mortal(Work):
    """Its second worker dies in the middle of a step, once or each time, or says that something is wrong."""

    step: int = 7
    once: Path | None = None
    wrong: str = ""

    def do(self, rank: int = 0, world: int = 1, device: str = "cpu", hear: Any = None) -> Fitted:
        if rank == 1:
            # Their own, in a process of their own.
            work.build = self.built
        return super().do(rank, world, device, hear)

    def built(self, training: Training, classes: tuple[str, ...]) -> nn.Module:
        model: Any = build_(training, classes)
        learn, steps = model.losses, []

        def losses(clips: list[Tensor], targets: Any) -> dict[str, Tensor]:
            steps.append(1)
            found: dict[str, Tensor] = learn(clips, targets)
            if len(steps) == self.step and not (self.once and self.once.exists()):
                if self.wrong:
                    raise ValueError(self.wrong)
                if self.once:
                    self.once.touch()
                os._exit(1)
            return found

        model.losses = losses
        return model


build_ = work.build


def test_workers_that_die_are_begun_again_and_learn_what_they_would_have(
    chosen: Training,
    material: Material,
    cluster: None,
    numbers: Numbers,
    assert_same: Same,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two trainings of one name, one of them disturbed: both really train."""
    two = replace(chosen, workers=2)
    heard: list[Sequence[Row]] = []
    undisturbed = start.on_ray(Work(two, material), hear=heard.append)
    assert [len(rows) for rows in heard] == [4, 8, 10]
    assert numbers(heard[-1]) == numbers(undisturbed.history)
    assert undisturbed.cpu_s > 0
    assert capsys.readouterr().err == ""

    heard.clear()
    work = Mortal(two, material, str(tmp_path / "out"), once=tmp_path / "died")
    assert_same(start.on_ray(work, hear=heard.append), undisturbed)
    assert (tmp_path / "died").exists()
    assert [len(rows) for rows in heard] == [4, 8, 10]
    said = "worker 1 of the training died (system error); all begin again from the last checkpoint, 1 of 1 times\n"
    assert capsys.readouterr().err == said
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == [
        "checkpoints",
        "step-00000008.pt",
        "step-00000010.pt",
    ]


def test_one_worker_learns_what_this_process_does(
    chosen: Training, material: Material, alone: Fitted, cluster: None, assert_same: Same
) -> None:
    assert_same(start.on_ray(Work(chosen, material)), alone)


def test_two_workers_learn_nearly_what_one_does(chosen: Training, material: Material, cluster: None) -> None:
    still = replace(chosen, freeze=STILL, average=0)
    one = start.here(Work(still, material))
    two = start.on_ray(Work(replace(still, workers=2), material))
    for row, other in zip(one.history, two.history, strict=True):
        for name in row.keys() - {"seconds", "waited_s", "memory_mb"}:
            assert other[name] == pytest.approx(row[name], rel=1e-3), (name, row["step"])


def test_workers_that_die_each_time_end_the_training_and_leave_what_was_done(
    chosen: Training, material: Material, cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = Mortal(replace(chosen, workers=2), material, str(tmp_path), step=6)
    with pytest.raises(
        StageError, match=re.escape("worker 1 of the training died (system error); the training was begun 2 times")
    ):
        start.on_ray(work)
    # Five steps to a checkpoint after the fourth, and then five more to one after the eighth.
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000004.pt",
        "step-00000008.pt",
    ]
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_is_wrong_is_not_tried_again(
    chosen: Training, material: Material, cluster: None, capsys: pytest.CaptureFixture[str]
) -> None:
    work = Mortal(replace(chosen, workers=2), material, step=2, wrong="the loss box is nan")
    with pytest.raises(ValueError, match=r"^the loss box is nan$"):
        start.on_ray(work)
    assert capsys.readouterr().err == ""
