"""Trainings begun and gone on with, in this process and, but for Ray, on the workers of Ray Train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.exceptions import RayActorError
from ray.train import WorkerGroupError

from pipeline.engine import StageError
from pipeline.training import start, work
from pipeline.training.history import Row
from pipeline.training.labelled import Material
from pipeline.training.loop import Fitted
from pipeline.training.settings import Training
from pipeline.training.work import Work

Same = Callable[[Fitted, Fitted], None]


class TestHere:
    def test_a_finished_training_is_not_done_again(
        self,
        chosen: Training,
        material: Material,
        alone: Fitted,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        assert_same: Same,
    ) -> None:
        heard: list[int] = []
        wanted = Work(chosen, material, str(tmp_path))
        assert_same(start.here(wanted, hear=lambda rows: heard.append(len(rows))), alone)
        assert heard == [4, 8, 10]

        def nothing(*_: object) -> Any:
            raise AssertionError("it has been done")

        monkeypatch.setattr(work, "sources", nothing)
        again = start.here(wanted, hear=nothing)
        assert_same(again, alone)
        assert not again.model.training
        # Another folder has not, though all is called the same.
        with pytest.raises(AssertionError, match="it has been done"):
            start.here(replace(wanted, out=str(tmp_path / "other")))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"steps": 9}, None),
            ({"learning_rate": 0.1}, "training.learning_rate is 0.004 there and 0.1 here"),
            ({"model_settings": {"detector": "small", "sigma_det": 0.1}}, "training.model_settings.sigma_det is None"),
            ({"freeze": ("detector.stem",)}, r"training.freeze is \[\] there and \['detector.stem'\] here"),
        ],
    )
    def test_another_training_does_not_go_on_from_this_one_s(
        self, chosen: Training, material: Material, tmp_path: Path, changes: dict[str, Any], message: str | None
    ) -> None:
        few = replace(chosen, steps=2)
        start.here(Work(few, material, str(tmp_path)))
        message = message or "training.steps is 2 there and 9 here"
        with pytest.raises(ValueError, match=f"step-00000002.pt is of another training: {message}"):
            start.here(Work(replace(few, **changes), material, str(tmp_path)))

    def test_how_it_runs_may_differ(
        self, chosen: Training, material: Material, tmp_path: Path, assert_same: Same
    ) -> None:
        few = replace(chosen, steps=2)
        fitted = start.here(Work(few, material, str(tmp_path)))
        others = replace(few, name="x", workers=2, threads=2, checkpoint_every=7, max_failures=0, validate_every=1)
        assert_same(start.here(Work(others, material, str(tmp_path))), fitted)

    def test_data_may_move(self, chosen: Training, material: Material, tmp_path: Path, assert_same: Same) -> None:
        stills = {"catalog": "synthetic", "source": chosen.source}
        both = Material(material.videos, material.videos)
        few = replace(chosen, steps=1, stills=stills)
        fitted = start.here(Work(few, both, str(tmp_path)))
        moved = replace(few, source="/elsewhere", stills={**stills, "source": "/elsewhere"})
        assert_same(start.here(Work(moved, both, str(tmp_path))), fitted)
        with pytest.raises(ValueError, match=r"training.stills.catalog is 'synthetic' there and 'coco' here"):
            start.here(Work(replace(few, stills={"catalog": "coco"}), both, str(tmp_path)))

    def test_other_truth_is_other_data(self, material: Material, chosen: Training, tmp_path: Path) -> None:
        few = replace(chosen, steps=1)
        start.here(Work(few, material, str(tmp_path)))
        truth = material.videos.truth
        moved = replace(material.videos, truth=replace(truth, boxes=truth.boxes + np.float32(1)))
        with pytest.raises(ValueError, match=r"data.videos is '\w{16}' there and '\w{16}' here"):
            start.here(Work(few, Material(moved), str(tmp_path)))


class TestRefusals:
    @pytest.fixture(autouse=True)
    def small_cluster(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 2.0, "memory": 1e9})
        monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True}, {"Alive": True}, {"Alive": False}])

    @pytest.mark.parametrize(
        ("workers", "out", "gpu", "message"),
        [
            (
                3,
                None,
                False,
                "workers is 3, each with 1 CPU, and the cluster has 2 in all; give fewer workers or a larger",
            ),
            (1, None, True, "workers is 1, each with 1 GPU, and the cluster has 0 in all"),
            (2, None, False, "the cluster has 2 machines; give the training a folder that all of them reach"),
            (2, "memory://x", False, "memory://x is this process's own memory, which no worker reaches"),
        ],
    )
    def test_workers_that_would_wait_for_ever_are_not_started(
        self, material: Material, workers: int, out: str | None, gpu: bool, message: str, short: Training
    ) -> None:
        with pytest.raises(ValueError, match=message):
            start.on_ray(Work(replace(short, workers=workers, batch_size=6), material, out), gpu)


class Unwell(Exception):
    """As Ray says that a worker did not answer."""

    def __init__(self, health_check_failure: Exception) -> None:
        super().__init__("A worker health check failed.\nWorker info: ...")
        self.health_check_failure = health_check_failure


PEER = RuntimeError("[pair.cc:561] Connection closed by peer [127.0.0.1]:18841.")


class Dead(RayActorError):
    def __str__(self) -> str:
        return "The actor is dead. Worker exit type: NODE_OUT_OF_MEMORY Worker exit detail: long"


DIED = Unwell(Dead())


@pytest.mark.parametrize(
    ("failures", "said"),
    [
        ({0: PEER, 1: DIED}, "worker 1 of the training died (node out of memory)"),
        ({0: PEER, 2: KeyError("x")}, "worker 2 of the training failed: KeyError: 'x'"),
        (
            {1: PEER},
            "worker 1 of the training failed: RuntimeError: [pair.cc:561] Connection closed by peer [127.0.0.1]",
        ),
    ],
)
def test_a_failed_group_is_told_in_a_sentence(failures: dict[int, Exception], said: str) -> None:
    found = start._why(WorkerGroupError("long\nlines", failures))
    assert found.startswith(said)
    assert "\n" not in found


def test_what_no_trial_mends_is_raised() -> None:
    with pytest.raises(ValueError, match="the loss box is nan"):
        start._why(WorkerGroupError("long\nlines", {0: PEER, 1: ValueError("the loss box is nan"), 2: DIED}))


class TestTrials:
    """How often workers are begun again, without any."""

    @pytest.fixture(autouse=True)
    def cluster_of_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 1.0})
        monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True}])

    @pytest.mark.parametrize("out", [True, False])
    def test_what_died_goes_on_where_it_stopped(
        self,
        chosen: Training,
        material: Material,
        alone: Fitted,
        out: bool,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        assert_same: Same,
    ) -> None:
        def attempt(given: Work, use_gpu: bool, hear: Any) -> str | None:
            def listen(rows: Sequence[Row]) -> None:
                heard.append(len(rows))
                if len(heard) == 2:
                    raise Stopped

            try:
                start.here(given, hear=listen)
            except Stopped:
                return "worker 0 of the training died"
            return None

        heard: list[int] = []
        monkeypatch.setattr(start, "_attempt", attempt)
        wanted = Work(chosen, material, str(tmp_path) if out else None)
        assert_same(start.on_ray(wanted), alone)
        assert heard == [4, 8, 8, 10], "steps 5 to 8 were done, but not on record when it stopped"
        said = "worker 0 of the training died; all begin again from the last checkpoint, 1 of 1 times\n"
        assert capsys.readouterr().err == said
        if out:
            assert_same(start.on_ray(wanted), alone)
        assert heard == [4, 8, 8, 10], "what is done is not begun"

    def test_what_dies_each_time_ends(
        self, chosen: Training, material: Material, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(start, "_attempt", lambda *_: "worker 0 of the training died")
        with pytest.raises(StageError, match=r"^worker 0 of the training died; the training was begun 3 times$"):
            start.on_ray(Work(replace(chosen, max_failures=2), material))
        assert len(capsys.readouterr().err.splitlines()) == 2


class Silent:
    """A queue that nobody speaks into."""

    def __init__(self, **_: Any) -> None: ...

    def size(self) -> int:
        return 0

    def empty(self) -> bool:
        return True

    def get_nowait_batch(self, count: int) -> list[Any]:
        return []

    def shutdown(self) -> None: ...


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_ray_train_that_fails_in_a_way_of_its_own_is_not_taken_for_done(
    material: Material, monkeypatch: pytest.MonkeyPatch, short: Training
) -> None:
    class Failing:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def fit(self) -> None:
            raise KeyError("no controller")

    monkeypatch.setattr("ray.train.torch.TorchTrainer", Failing)
    monkeypatch.setattr("ray.util.queue.Queue", Silent)
    with pytest.raises(StageError, match=r"^Ray Train could not train; what it says of that is printed above$"):
        start._attempt(Work(short, material), False, None)


class Stopped(Exception):
    """A worker dies here."""
