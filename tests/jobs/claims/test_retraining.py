"""Networks trained again: what they begin with is first, what was stopped goes on; and the commands that train them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from jobs.claims import papers, retraining, trained, working
from jobs.claims.retraining import file_in, retrain
from jobs.claims.trained import Trained, needed
from jobs.papers import weights
from jobs.papers.weights import Weights
from jobs.train_settings import training_of
from models.parts.weights import read_weights
from pipeline.engine import Local
from pipeline.training.checkpoints import Checkpoints

SHORT = "--local --half --set validation=none --set catalog.num_videos=2 --set batch_size=1 --set checkpoint_every=1"
DETECTOR, REID = "plug-and-play-synthetic-v1-detector", "tracktor-synthetic-v1"
FIRST, SECOND = Trained(DETECTOR, 1), Trained(REID, 1)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector of 2 steps, and one of 3 that begins with it."""
    known = {
        DETECTOR: Weights(DETECTOR, "", f"--recipe plug-and-play-synthetic-detector {SHORT} --set steps=2"),
        REID: Weights(REID, "", f"--recipe tracktor-synthetic {SHORT} --set steps=3 --set frames_per_clip=2", DETECTOR),
    }
    monkeypatch.setattr(weights, "known", lambda: known)


def same(one: Path, other: Path) -> bool:
    tensors = [read_weights(str(path)).tensors for path in (one, other)]
    return all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0].keys() | tensors[1].keys())


def test_a_stopped_training_goes_on_and_gives_the_same(
    short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert retrain([FIRST, SECOND], str(tmp_path / "whole"), Local()) == {}
    out, save = tmp_path / "stopped", Checkpoints.save

    def stops(self: Checkpoints, step: int, state: dict[str, Any]) -> None:
        save(self, step, state)
        if "tracktor" in self.store.url and step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", stops)
        with pytest.raises(KeyboardInterrupt):
            retrain([FIRST, SECOND], str(out), Local())
    assert not retraining.is_trained(SECOND, str(out))
    when = Path(file_in(str(out))(FIRST.name)).stat().st_mtime_ns
    capsys.readouterr()
    assert retrain([FIRST, SECOND], str(out), Local()) == {}
    assert "train 1/1: tracktor-synthetic-v1-seed-1" in capsys.readouterr().err
    assert Path(file_in(str(out))(FIRST.name)).stat().st_mtime_ns == when
    starts = json.loads((out / "training" / SECOND.name / "training.json").read_text())["starts"]
    assert [start["step"] for start in starts] == [0, 2]
    for each in (FIRST, SECOND):
        assert same(*(Path(file_in(str(folder))(each.name)) for folder in (out, tmp_path / "whole")))

    # They begin with those of the same seed, trained here, and say how by a command without any path of this machine.
    stored = read_weights(file_in(str(out))(SECOND.name))
    assert json.loads(stored.metadata["training"])["seed"] == 1
    assert json.loads(stored.metadata["training"])["model_settings"]["weights"] == f"{DETECTOR}-seed-1.safetensors"
    for text in (stored.metadata["command"], (out / "weights" / f"{SECOND.name}.md").read_text()):
        assert f"--set model.weights={DETECTOR}-seed-1 --seed 1 --out runs/{REID}-seed-1 --export models/" in text
        assert str(tmp_path) not in text
    detector = read_weights(file_in(str(out))(FIRST.name)).tensors
    assert all(torch.equal(stored.tensors[name], tensor) for name, tensor in detector.items())  # it learns reid alone

    # Stopped after its last step, before its weights were where they belong: nothing is trained, they are put there.
    before = (out / "weights" / f"{SECOND.name}.md").read_text()
    for path in (out / "weights").glob(f"{SECOND.name}.*"):
        path.unlink()
    assert retrain([FIRST, SECOND], str(out), Local()) == {}
    assert (out / "weights" / f"{SECOND.name}.md").read_text() == before
    assert same(*(Path(file_in(str(folder))(SECOND.name)) for folder in (out, tmp_path / "whole")))

    # Trained by hand from shipped weights, which have no path but a name, they are the same.
    by_name = {**stored.metadata, "training": stored.metadata["training"].replace('.safetensors"', '"')}
    assert by_name != stored.metadata
    save_file(stored.tensors, file_in(str(out))(SECOND.name), by_name)
    assert retrain([FIRST, SECOND], str(out), Local()) == {}

    # Of another training there are weights already: nobody may take them for these.
    known = weights.known()
    longer = Weights(DETECTOR, "", known[DETECTOR].training.replace("steps=2", "steps=9"))
    monkeypatch.setattr(weights, "known", lambda: {**known, DETECTOR: longer})
    with pytest.raises(ValueError, match=r"is of another training \(steps is 2 there and 9 here\)"):
        retrain([FIRST, SECOND], str(out), Local())


def test_what_begins_with_a_failed_one_is_not_trained(
    short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def fails(out: str, each: Trained) -> None:
        tried.append(each)
        if each == FIRST:
            raise ValueError("no luck")

    monkeypatch.setattr(retraining, "train_one", fails)
    wanted = [FIRST, SECOND, Trained(DETECTOR, 2), Trained(REID, 2)]
    assert retrain(wanted, str(tmp_path), Local()) == {
        FIRST.name: "no luck",
        SECOND.name: f"it begins with {FIRST.name}, whose training failed",
    }
    assert tried == [FIRST, Trained(DETECTOR, 2), Trained(REID, 2)]


class TestNeeded:
    def test_what_is_begun_with_comes_first(self) -> None:
        every = needed(list(papers.systems().values()), [0, 1, 2], beginnings=True)
        assert len(set(every)) == len(every)
        for place, each in enumerate(every):
            assert each.after is None or each.after in every[:place]
        assert {each.base for each in needed(list(papers.systems().values()), [0])} <= {each.base for each in every}

    def test_their_training_is_the_shipped_ones_but_for_seed_and_beginning(self) -> None:
        """Seed 0 says what the project's own command does; another seed begins with that seed's, and nothing else."""
        for each in needed(list(papers.systems().values()), [0, 2], beginnings=True):
            command = " ".join(["trackloom", "train", *each.words()])
            if each.seed == 0:
                assert command == weights.known()[each.base].command
            training = each.training(str)
            own = training_of(*each.given(), seed=each.seed)
            if each.after is None:
                assert training == own
            else:
                begun = [training.start, *map(str, training.model_settings.values())]
                assert each.after.name in begun
                assert each.seed == 0 or each.after.base not in begun
                assert (training.steps, training.model, training.seed) == (own.steps, own.model, each.seed)

    def test_shipped_weights_of_all_seeds_must_be_here(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(weights, "SHIPPED", tmp_path)
        (tmp_path / f"{FIRST.name}.safetensors").touch()
        trained.check_shipped([FIRST])
        with pytest.raises(FileNotFoundError, match=f"1 of the 2 weights .* such as {SECOND.name}; --retrain"):
            trained.check_shipped([FIRST, SECOND])


class TestPieces:
    def test_values_and_errors_are_told_apart(self, capsys: pytest.CaptureFixture[str]) -> None:
        def halved(number: int) -> float:
            if number == 0:
                raise OSError("nothing\n to halve")
            return number / 2

        values, errors = working.done("halve", {"one": 1, "none": 0, "four": 4}, halved, Local())
        assert (values, errors) == ({"one": 0.5, "four": 2.0}, {"none": "nothing to halve"})
        assert [line.partition(" |")[0] for line in capsys.readouterr().err.splitlines()] == [
            "halve 0/3", "halve 1/3: one", "halve 2/3: none failed", "halve 3/3: four",
        ]  # fmt: skip

    def test_a_bug_is_no_failure_of_a_piece(self) -> None:
        with pytest.raises(KeyError):
            working.done("look", {"one": 1}, {}.__getitem__, Local())

    def test_what_never_came_back_failed(self) -> None:
        class Loses:
            name = "loses"

            def stream(self, records: Sequence[Any], stages: Sequence[Any]) -> Any:
                return Local().stream(records[:1], stages)

        values, errors = working.done("keep", {"one": 1, "two": 2}, float, Loses())
        assert values == {"one": 1.0}
        assert errors == {"two": "its process died each time that it was tried"}


def test_systems_run_on_what_was_trained_again(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """--retrain scores OUT/weights, not the shipped ones; here the training is a copy of others."""

    def copied(out: str, each: Trained) -> None:
        (Path(out) / "weights").mkdir(parents=True, exist_ok=True)
        shutil.copy(bench.shipped / f"{each.base}-seed-1.safetensors", file_in(out)(each.name))
        (Path(out) / "weights" / f"{each.name}.md").touch()

    monkeypatch.setattr(retraining, "train_one", copied)
    monkeypatch.setattr(retraining, "check", lambda *given: None)
    assert bench.run(names="plain", retrain=True) == 0
    about = trained.read_digests(str(bench.out))
    assert bench.run(names="plain", seeds="1") == 0
    assert (
        about["smot-synthetic-v1"]["0"]["sha256"]
        == trained.read_digests(str(bench.out))["smot-synthetic-v1"]["1"]["sha256"]
    )
    one, other = ((bench.out / f"runs/plain/seed-{seed}/run.json").read_text() for seed in (0, 1))
    assert json.loads(one)["identity"] == json.loads(other)["identity"]


def test_a_failed_training_ends_before_any_score(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(out: str, each: Trained) -> None:
        raise ValueError("no luck")

    monkeypatch.setattr(retraining, "train_one", fails)
    assert bench.run(names="plain", retrain=True) == 1
    assert "failed: smot-synthetic-v1: no luck" in capsys.readouterr().err
    assert not (bench.out / "runs").exists()
