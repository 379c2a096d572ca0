"""Trainings from their material to their network, in this process and on Ray: the same, whatever dies on the way."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.exceptions import RayActorError
from ray.train import WorkerGroupError
from torch import Tensor, nn

from models.parts.weights import write_weights
from pipeline.engine import OnRay, StageError
from pipeline.records import Resize
from pipeline.training import start, work
from pipeline.training.history import Row
from pipeline.training.labelled import Material, material_of
from pipeline.training.loop import Fitted
from pipeline.training.settings import Training
from pipeline.training.work import Work

SHORT = Training(
    model_settings={"detector": "small"}, catalog_settings={"split": "train", "num_videos": 2}, steps=10, batch_size=2,
    warmup=1, checkpoint_every=4, max_failures=1,
)  # fmt: skip
# Norms that measure nothing: what a worker's own clips have in common is then no part of what is learned.
BODY = ("stem", "stage_1", "stage_2", "stage_3", "stage_4", "lateral", "smooth", "tower.1", "class_tower.1")
STILL = tuple(f"detector.{part}" for part in BODY)
CLASSES = ("a", "b")


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Training:
    return replace(SHORT, source=str(tmp_path_factory.mktemp("videos")))


@pytest.fixture(scope="module")
def material(chosen: Training) -> Material:
    return material_of(chosen)


@pytest.fixture(scope="module")
def alone(chosen: Training, material: Material) -> Fitted:
    return start.here(Work(chosen, material))


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


def numbers(rows: Sequence[Row]) -> list[Row]:
    """Rows without what a clock says."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "waited_s", "memory_mb")} for row in rows]


def assert_same(one: Fitted, other: Fitted) -> None:
    assert numbers(one.history) == numbers(other.history)
    theirs = other.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in one.model.state_dict().items())


class TestHere:
    def test_a_finished_training_is_not_done_again(
        self, chosen: Training, material: Material, alone: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
            ({"freeze": STILL[:1]}, r"training.freeze is \[\] there and \['detector.stem'\] here"),
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

    def test_how_it_runs_may_differ(self, chosen: Training, material: Material, tmp_path: Path) -> None:
        few = replace(chosen, steps=2)
        fitted = start.here(Work(few, material, str(tmp_path)))
        others = replace(few, name="x", workers=2, threads=2, checkpoint_every=7, max_failures=0, validate_every=1)
        assert_same(start.here(Work(others, material, str(tmp_path))), fitted)

    def test_data_may_move(self, chosen: Training, material: Material, tmp_path: Path) -> None:
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

    def test_a_digest_is_of_the_videos_and_all_that_is_known(self, material: Material) -> None:
        videos = material.videos
        later = [replace(video, start=1) for video in videos.videos]
        touched = [replace(video, identity="other") for video in videos.videos]
        names = {
            work.digest_of(each) for each in (videos, replace(videos, videos=later), replace(videos, videos=touched))
        }
        assert len(names) == 3
        assert work.digest_of(replace(videos, videos=list(videos.videos))) in names


class TestBuild:
    def test_a_seed_is_a_network(self) -> None:
        one, same, other = (build(seed=seed) for seed in (0, 0, 1))
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
        assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))

    def test_weights_go_on_where_classes_are_the_same(self, weights: str) -> None:
        settings = {"detector": "small", "weights": weights}
        model = build(model_settings=settings)
        assert torch.equal(model.state_dict()["detector.stem.0.weight"], torch.full((16, 3, 3, 3), 0.5))
        for others in (("b", "a"), ("a", "b", "c")):
            with pytest.raises(ValueError, match=r"are of 2 classes a, b; the catalog has, in this order"):
                work.build(replace(SHORT, model_settings=settings), others)

    def test_a_start_fills_what_fits(self, weights: str) -> None:
        chosen = replace(SHORT, start=weights)
        model: Any = work.build(chosen, ("x", "y", "z"))
        fresh = work.build(replace(SHORT), ("x", "y", "z")).state_dict()
        assert torch.equal(model.state_dict()["detector.stem.0.weight"], torch.full((16, 3, 3, 3), 0.5))
        assert torch.equal(model.state_dict()["detector.classes.bias"], fresh["detector.classes.bias"])
        assert model.weights.anew == ("classes.bias", "classes.weight")
        with pytest.raises(ValueError, match=r"start is .* and model.weights .*; a training begins with one of them"):
            build(start=weights, model_settings={"detector": "small", "weights": weights})

    def test_frames_are_as_large_as_the_training_says(self) -> None:
        model = build()
        assert work.resize_of(SHORT, model) == Resize()
        assert work.resize_of(replace(SHORT, short_side=96), model) == Resize(short_side=96)
        sized = {"detector": "small", "input_side": 64}
        assert work.resize_of(SHORT, build(model_settings=sized)) == Resize((64, 64))
        with pytest.raises(ValueError, match=r"short_side is 96, and model smot takes frames of \(64, 64\) only"):
            work.resize_of(replace(SHORT, short_side=96), build(model_settings=sized))


def build(**changes: Any) -> nn.Module:
    return work.build(replace(SHORT, **changes), CLASSES)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the small network, all halves."""
    model: Any = build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    path = tmp_path_factory.mktemp("weights") / "before.safetensors"
    write_weights(path, model.network, {"classes": '["a", "b"]'}, torch.float32)
    return str(path)


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
        self, material: Material, workers: int, out: str | None, gpu: bool, message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            start.on_ray(Work(replace(SHORT, workers=workers, batch_size=6), material, out), gpu)


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
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def fit(self) -> None:
            raise KeyError("no controller")

    monkeypatch.setattr("ray.train.torch.TorchTrainer", Failing)
    monkeypatch.setattr("ray.util.queue.Queue", Silent)
    with pytest.raises(StageError, match=r"^Ray Train could not train; what it says of that is printed above$"):
        start._attempt(Work(SHORT, material), False, None)


class Stopped(Exception):
    """A worker dies here."""


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


class TestOnRay:
    @pytest.mark.slow
    def test_workers_that_die_are_begun_again_and_learn_what_they_would_have(
        self,
        chosen: Training,
        material: Material,
        cluster: None,
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

    @pytest.mark.slow
    def test_one_worker_learns_what_this_process_does(
        self, chosen: Training, material: Material, alone: Fitted, cluster: None
    ) -> None:
        assert_same(start.on_ray(Work(chosen, material)), alone)

    @pytest.mark.slow
    def test_two_workers_learn_nearly_what_one_does(self, chosen: Training, material: Material, cluster: None) -> None:
        still = replace(chosen, freeze=STILL, average=0)
        one = start.here(Work(still, material))
        two = start.on_ray(Work(replace(still, workers=2), material))
        for row, other in zip(one.history, two.history, strict=True):
            for name in row.keys() - {"seconds", "waited_s", "memory_mb"}:
                assert other[name] == pytest.approx(row[name], rel=1e-3), (name, row["step"])

    @pytest.mark.slow
    def test_workers_that_die_each_time_end_the_training_and_leave_what_was_done(
        self, chosen: Training, material: Material, cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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

    @pytest.mark.slow
    def test_what_is_wrong_is_not_tried_again(
        self, chosen: Training, material: Material, cluster: None, capsys: pytest.CaptureFixture[str]
    ) -> None:
        work = Mortal(replace(chosen, workers=2), material, step=2, wrong="the loss box is nan")
        with pytest.raises(ValueError, match=r"^the loss box is nan$"):
            start.on_ray(work)
        assert capsys.readouterr().err == ""
