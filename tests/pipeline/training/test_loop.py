"""The training loop: repeatable, stopped and resumed to the bit, and refusing what makes no sense."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from pipeline.tables import Store
from pipeline.training import loop
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.history import MEASURES, Record, Row
from pipeline.training.loading import Batches
from pipeline.training.loop import Fitted, fit
from pipeline.training.settings import Training

SHORT = Training(steps=12, batch_size=2, warmup=2, average=0.9, checkpoint_every=5, learning_rate=0.05)
CLOCK = ("seconds", "waited_s", "memory_mb")


class Noise:
    """Six frames of two videos, each with a box; what is to be learned is how bright they are."""

    video = np.array([0, 0, 0, 0, 1, 1])

    def clip(self, indices: Sequence[int]) -> tuple[Tensor, list[dict[str, Tensor]]]:
        frames = [
            torch.from_numpy(np.random.default_rng(i).integers(0, 40 * i + 9, (3, 6, 6), np.uint8)) for i in indices
        ]
        target = {
            "boxes": torch.tensor([[0.0, 0.0, 3.0, 3.0]]), "labels": torch.zeros(1, dtype=torch.long),
            "track_ids": torch.ones(1, dtype=torch.long), "ignore": torch.zeros(1, dtype=torch.bool),
        }  # fmt: skip
        return torch.stack(frames), [target for _ in indices]


class Tiny(nn.Module):
    """A convolution, a batch norm, chance and two losses: all that a stop could disturb."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 1)

    def losses(self, clips: list[Tensor], targets: Any) -> dict[str, Tensor]:
        frames = torch.cat(clips).float() / 255  # (T, 3, H, W)
        found = self.head(F.dropout(self.body(frames).relu(), 0.3).amax((2, 3)))[:, 0]
        return {
            "brightness": F.mse_loss(found.float(), frames.mean((1, 2, 3))),
            "size": found.float().square().mean() * 0.1,
        }


class Killed(BaseException):
    """The process ends here."""


class Mortal(Tiny):
    """Is killed in a step after so many."""

    def __init__(self, lives: int) -> None:
        super().__init__()
        self.lives = lives

    def losses(self, clips: list[Tensor], targets: Any) -> dict[str, Tensor]:
        self.lives -= 1
        if self.lives < 0:
            raise Killed
        return super().losses(clips, targets)


def brightness(model: nn.Module, step: int, earlier: Sequence[Row]) -> Mapping[str, float]:
    """A score of the network, which moves all that a careless judge could: chance, threads, modes and the network."""
    assert not model.training
    score = float(sum(value.double().sum() for value in model.state_dict().values()))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    model.train()
    torch.rand(7)
    torch.set_num_threads(2)
    return {"mAP": score + len(earlier)}


def trained(chosen: Training, model: nn.Module | None = None, **given: Any) -> Fitted:
    return fit(chosen, Tiny() if model is None else model, Batches(chosen, [Noise()]), **given)


def plain(rows: Sequence[Row]) -> list[Row]:
    """Rows without what a clock says."""
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in rows]


def assert_same(one: Fitted, other: Fitted) -> None:
    assert plain(one.history) == plain(other.history)
    assert one.scores == other.scores
    theirs = other.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in one.model.state_dict().items())


@pytest.mark.parametrize(
    ("optimizer", "average", "kills"),
    [("adamw", 0.9, range(13)), ("adamw", 0.0, (6,)), ("sgd", 0.9, (6,)), ("sgd", 0.0, (6, 9))],
)
def test_a_training_that_is_killed_goes_on_as_if_it_had_not_been(
    tmp_path: Path, optimizer: Any, average: float, kills: Sequence[int]
) -> None:
    chosen = replace(SHORT, optimizer=optimizer, average=average, validate_every=4, learning_rate=0.01)
    whole = trained(chosen, judge=brightness)
    assert [row["step"] for row in whole.history] == list(range(1, 13))
    assert [row["step"] for row in whole.scores] == [4, 8, 12]
    for killed in kills:
        checkpoints = Checkpoints(Store(str(tmp_path / str(killed))))
        if killed < 12:
            with pytest.raises(Killed):
                trained(chosen, Mortal(killed), judge=brightness, checkpoints=checkpoints)
        else:
            trained(chosen, judge=brightness, checkpoints=checkpoints)
        before = [step for step in (4, 5, 8, 10, 12) if step <= killed]
        assert checkpoints.steps() == before[-2:]
        steps = Mortal(12 - max(before, default=0))  # it may not do a step twice that is on record
        assert_same(trained(chosen, steps, judge=brightness, checkpoints=checkpoints), whole)


def test_a_judge_changes_nothing_and_is_asked_on_time() -> None:
    asked: list[tuple[int, list[float]]] = []

    def judge(model: nn.Module, step: int, earlier: Sequence[Row]) -> Mapping[str, float]:
        asked.append((step, [row["step"] for row in earlier]))
        return brightness(model, step, earlier)

    judged = trained(replace(SHORT, validate_every=5), judge=judge)
    assert asked == [(5, []), (10, [5]), (12, [5, 10])]
    alone = trained(SHORT)
    assert judged.history[-1]["brightness"] == alone.history[-1]["brightness"]
    assert alone.scores == []
    assert torch.get_num_threads() == SHORT.threads


def test_a_seed_is_a_training() -> None:
    assert_same(trained(SHORT), trained(SHORT))
    assert plain(trained(replace(SHORT, seed=1)).history) != plain(trained(SHORT).history)


def test_it_learns() -> None:
    fitted = trained(replace(SHORT, steps=150, average=0))
    first, last = (sum(row["brightness"] for row in rows) for rows in (fitted.history[:20], fitted.history[-20:]))
    assert last < 0.3 * first
    assert not fitted.model.training
    assert fitted.cpu_s > 0
    assert fitted.losses == pytest.approx(
        {name: np.mean([row[name] for row in fitted.history[50:]]) for name in ("brightness", "size")}
    )


def test_every_step_is_on_record_and_heard_of() -> None:
    heard: list[int] = []
    fitted = trained(replace(SHORT, steps=50), hear=lambda rows: heard.append(len(rows)))
    assert heard == [20, 40, 50]
    for row in fitted.history:
        assert row.keys() == {"step", "brightness", "size", *MEASURES}
        assert 0 <= row["waited_s"] < row["seconds"]
        assert row["gradient"] > 0
        assert row["memory_mb"] > 10
    assert fitted.history[0]["learning_rate"] == pytest.approx(0.05 / 3)  # the first of two steps of warmup


def test_workers_are_heard_of_by_the_first_alone(one_process: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "DistributedDataParallel", lambda module, **given: module)

    def never(*_: object) -> Any:
        raise AssertionError

    second = trained(SHORT, rank=1, world=2, hear=never, judge=never)
    assert len(second.history) == 12


def test_a_weight_of_a_loss_changes_what_is_learned_not_what_is_told() -> None:
    one, other = (trained(replace(SHORT, loss_weights=weights)) for weights in ({}, {"size": 0.0}))
    assert one.history[0]["size"] == other.history[0]["size"] > 0
    assert one.history[0]["gradient"] != other.history[0]["gradient"]
    assert other.history[-1]["size"] > one.history[-1]["size"]
    with pytest.raises(
        ValueError, match="loss_weights names 'sizes', which the model has not; its losses: brightness,"
    ):
        trained(replace(SHORT, loss_weights={"sizes": 1.0}))


def test_half_precision_learns_nearly_the_same() -> None:
    whole, half, auto = (trained(replace(SHORT, precision=each)) for each in ("float32", "bfloat16", "auto"))
    first = [fitted.history[0]["brightness"] for fitted in (whole, half, auto)]
    assert first[1] != first[0]
    assert first[1] == pytest.approx(first[0], rel=0.05)
    assert first[2] == first[0]  # a CPU's
    assert all(parameter.dtype == torch.float32 for parameter in half.model.parameters())


def test_what_is_no_number_stops_the_training_and_leaves_no_checkpoint(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Store(str(tmp_path)))
    model = Tiny()
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="the loss brightness is nan at step 1; lower learning_rate or max_gradient"):
        trained(replace(SHORT, checkpoint_every=1), model, checkpoints=checkpoints)

    class Steep(Tiny):
        def losses(self, clips: list[Tensor], targets: Any) -> dict[str, Tensor]:
            return {"root": self.head.weight.sub(self.head.weight.detach()).sum().abs().sqrt()}  # 0, its slope infinite

    with pytest.raises(ValueError, match="the gradient is nan at step 1; lower learning_rate or max_gradient"):
        trained(replace(SHORT, checkpoint_every=1), Steep(), checkpoints=checkpoints)
    assert checkpoints.steps() == []


class Halves(nn.Module):
    """Two numbers, one of them frozen; a batch teaches the other only if `teaches`."""

    def __init__(self, teaches: bool) -> None:
        super().__init__()
        self.frozen, self.learned = nn.Parameter(torch.ones(2, 2), requires_grad=False), nn.Parameter(torch.ones(2, 2))
        self.unused = nn.Parameter(torch.ones(2, 2))
        self.teaches = teaches

    def losses(self, clips: list[Tensor], targets: Any) -> dict[str, Tensor]:
        lost = (self.learned * self.frozen).square().sum()
        return {"some": lost if self.teaches else lost.detach() * 0, "none": torch.zeros(())}


@pytest.fixture
def one_process() -> Iterator[None]:
    """A process group of this process alone, for data parallelism."""
    store = distributed.HashStore()  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("teaches", [True, False])
@pytest.mark.usefixtures("one_process")
def test_what_is_frozen_stays_and_a_batch_may_teach_nothing(world: int, teaches: bool) -> None:
    chosen = replace(SHORT, steps=4, average=0, weight_decay=0.01, learning_rate=0.1)
    found = trained(chosen, Halves(teaches), world=world).model.state_dict()
    assert (found["frozen"] == 1).all()
    assert (found["unused"] == 1).all()
    assert (found["learned"] < 0.9).all() if teaches else (found["learned"] > 0.99).all()


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path) -> None:
    trained(SHORT, checkpoints=Checkpoints(Store(str(tmp_path)), {"seed": 0}))
    with pytest.raises(ValueError, match="is of another training: seed is 0 there and 1 here"):
        trained(SHORT, checkpoints=Checkpoints(Store(str(tmp_path)), {"seed": 1}))


def test_two_workers_of_which_one_dies_learn_to_the_bit_what_they_would_have(tmp_path: Path) -> None:
    """The first is this process; the second, which dies in the middle of a step, and who comes for it are others."""
    trials = "whole,stopped", "resumed"
    others = subprocess.Popen([sys.executable, __file__, str(tmp_path), *trials], stderr=subprocess.PIPE, text=True)
    whole = together(tmp_path, "whole", 0)
    with pytest.raises(RuntimeError, match=r"peer|reset"):
        together(tmp_path, "stopped", 0)
    stopped = Checkpoints(Store(str(tmp_path / "stopped")))
    assert stopped.steps() == [5, 6]
    done = Record.of(stopped.load(6)["record"]).steps
    (tmp_path / "stopped").rename(tmp_path / "resumed")
    resumed = together(tmp_path, "resumed", 0)
    assert_same(resumed, whole)
    assert resumed.history[:6] == done, "also by the clock: they were not done again"
    assert plain(whole.history) != plain(trained(TWO).history), "two workers' batch norms measure their own clips"
    _, said = others.communicate()
    assert others.returncode == 0, said


DEATH = 9  # the code that a worker dies with here
TWO = replace(SHORT, workers=2, batch_size=4, average=0, validate_every=6)


class Exiting(Mortal):
    """Ends its process in the middle of a step, when other workers wait for its gradients."""

    def losses(self, clips: list[Tensor], targets: Any) -> dict[str, Tensor]:
        found = Tiny.losses(self, clips, targets)
        self.lives -= 1
        if self.lives < 0:
            os._exit(DEATH)
        return found


def together(folder: Path, trial: str, rank: int) -> Fitted:
    """A training by two processes, as one of them."""
    store = distributed.FileStore(str(folder / f"{trial}.store"), 2)  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(minutes=5))
    try:
        model = Exiting(7) if rank and trial == "stopped" else Tiny()
        checkpoints = Checkpoints(Store(str(folder / trial)))
        return trained(TWO, model, rank=rank, world=2, checkpoints=checkpoints, judge=brightness)
    finally:
        distributed.destroy_process_group()


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = Checkpoints(Store(str(tmp_path)))
    whole = trained(SHORT, checkpoints=checkpoints)
    assert checkpoints.steps() == [10, 12]
    path = tmp_path / "checkpoints" / "step-00000012.pt"
    path.write_bytes(path.read_bytes()[:-100])
    assert_same(trained(SHORT, Mortal(2), checkpoints=checkpoints), whole)
    (said,) = capsys.readouterr().err.splitlines()
    assert said == f"checkpoint {path} is damaged; the training goes on from what is whole before it"


def test_the_time_of_judging_is_no_step_s(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, late = time.perf_counter, [0.0]

    def slow(model: nn.Module, step: int, earlier: Sequence[Row]) -> Mapping[str, float]:
        late[0] += 1000
        return {}

    monkeypatch.setattr(time, "perf_counter", lambda: clock() + late[0])
    fitted = trained(replace(SHORT, validate_every=6), judge=slow)
    assert late == [2000]
    assert 0 < sum(row["seconds"] for row in fitted.history) < 500


def test_the_second_worker_must_reach_the_first_s_checkpoints(
    one_process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def heard(shared: list[Any]) -> None:
        shared[0] = 10  # what the first worker says

    monkeypatch.setattr(distributed, "broadcast_object_list", heard)
    with pytest.raises(ValueError, match=r"worker 1 does not find the checkpoint of step 10 in .*; give a folder that"):
        trained(SHORT, rank=1, world=2, checkpoints=Checkpoints(Store(str(tmp_path))))


def second_workers(folder: Path, *trials: str) -> None:
    """Those who train together with this test, a process for each list of trials; forked, as importing takes seconds.

    Exits with 0 where the first ended by DEATH and the second well.
    """
    importlib.import_module("torch._dynamo")  # as the first optimizer does, which takes as long as importing torch
    workers = []
    for names in trials:
        workers.append(os.fork())
        if not workers[-1]:
            for each in names.split(","):
                together(folder, each, 1)
            return
    codes = [os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) for worker in workers]
    sys.exit(0 if codes == [DEATH, 0] else f"the second workers ended with {codes}")


if __name__ == "__main__":
    second_workers(Path(sys.argv[1]), *sys.argv[2:])
