"""The train verb: a folder of weights, cards and curves that a stopped training goes on in; and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from catalogs.synthetic import CLASSES
from jobs import prepare, train_judge
from jobs.train import train
from jobs.train_card import made
from jobs.train_folder import ALL, claim, identity_of
from jobs.train_judge import Judge, best_of
from jobs.train_settings import training_of
from models import smot
from models.parts.weights import read_weights
from pipeline.recipe import Recipe
from pipeline.tables import Store
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.labelled import material_of
from pipeline.training.work import Work, build

SCORED = ["validation.num_videos=1", "validation.frames=:8"]  # scoring takes most of the time
FEW = ["catalog.num_videos=2", *SCORED, "batch_size=2", "validate_every=2"]


def short(folder: Path, name: str, **changes: Any) -> int:
    """A training far too short, of 4 steps, that saves and scores after every other."""
    options: dict[str, Any] = {"recipe": "small-synthetic", "steps": 4, "local": True, "half": True, "settings": FEW}
    return train([str(folder)], out=str(folder / name), **{**options, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of such a training; what is exported lies beside it."""
    folder = tmp_path_factory.mktemp("train")
    assert short(folder, "out", export=str(folder / "weights" / "mine.safetensors")) == 0
    return folder / "out"


class TestFolder:
    def test_it_holds_what_a_training_writes_and_nothing_else(self, trained: Path) -> None:
        assert sorted(path.name for path in trained.iterdir()) == sorted(ALL)
        about = json.loads((trained / "training.json").read_text())
        assert (about["state"], about["step"]) == ("finished", 4)
        assert [start["step"] for start in about["starts"]] == [0]
        assert about["identity"]["training"]["steps"] == 4

    def test_tables_have_a_row_for_each_step_and_score(self, trained: Path) -> None:
        losses = pq.read_table(trained / "losses.parquet").to_pydict()
        assert losses["step"] == [1, 2, 3, 4]
        assert {"objectness", "class", "box", "learning_rate", "gradient", "seconds"} <= losses.keys()
        assert all(value > 0 for value in losses["objectness"])
        scores = pq.read_table(trained / "scores.parquet").to_pylist()
        assert [(row["step"], row["metric"]) for row in scores] == [
            (step, name) for step in (2, 4) for name in ("mAP", "HOTA", "MOTA", "IDF1")
        ]

    def test_weights_say_what_they_are(self, trained: Path) -> None:
        for name in ("best", "last", "../weights/mine"):
            stored = read_weights(str(trained / f"{name}.safetensors"))
            assert json.loads(stored.metadata["classes"]) == list(CLASSES)
            assert json.loads(stored.metadata["training"])["steps"] == 4
            assert {"command", "data", "commit", "versions", "step"} <= stored.metadata.keys()
            assert "resize" not in stored.metadata
        assert (trained / "last.safetensors").stat().st_size < 1.2e6

    def test_the_cards_have_the_scores_of_the_main_job(self, trained: Path) -> None:
        card = (trained / "last.md").read_text()
        assert card.startswith("# last\n")
        (steps,) = {row["step"] for row in pq.read_table(trained / "scores.parquet").to_pylist()} - {2}
        assert steps == 4
        (score,) = pq.read_table(
            trained / "scores.parquet", filters=[("step", "=", 4), ("metric", "=", "MOTA")]
        ).to_pydict()["value"]
        for part in ("4 steps of 2 frames, seed 0", f"MOTA {score:.3f}", "data: digest ", "`detector=small`"):
            assert part in card

    def test_what_is_exported_is_the_best(self, trained: Path) -> None:
        exported = trained.parent / "weights"
        assert (exported / "mine.safetensors").read_bytes() == (trained / "best.safetensors").read_bytes()
        assert (exported / "mine.md").read_text() == (trained / "best.md").read_text().replace("# best", "# mine", 1)

    def test_nothing_in_it_names_a_place_of_this_machine(self, trained: Path) -> None:
        home = str(trained.parent.parent)
        assert home not in (trained / "best.md").read_text()
        assert home not in str(read_weights(str(trained / "best.safetensors")).metadata)

    def test_the_model_loads_it(self, trained: Path) -> None:
        model = smot.build(smot.Settings(weights=str(trained / "best.safetensors")))
        assert model.classes == CLASSES
        assert model.weights is not None
        assert not model.training

    def test_any_url_will_do_and_without_scores_the_last_is_the_best(self, capsys: pytest.CaptureFixture[str]) -> None:
        few = ["catalog.num_videos=1", "validation=none", "batch_size=2"]
        assert train(None, out="memory://here/it", recipe="small-synthetic", settings=few, steps=1, local=True) == 0
        store = Store("memory://here/it")
        assert store.read("best.safetensors") == store.read("last.safetensors")
        assert "no scores" in capsys.readouterr().err
        assert "linker" not in store.read("best.md").decode()


class TestGoingOn:
    def test_a_stopped_training_goes_on_to_the_same_weights(
        self, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        save = Checkpoints.save

        def stopped(self: Checkpoints, step: int, state: dict[str, Any]) -> None:
            save(self, step, state)
            raise KeyboardInterrupt

        monkeypatch.setattr(Checkpoints, "save", stopped)
        with pytest.raises(KeyboardInterrupt):
            short(trained.parent, "again")
        monkeypatch.setattr(Checkpoints, "save", save)
        again = trained.parent / "again"
        assert json.loads((again / "training.json").read_text())["state"] == "running"
        assert pq.read_table(again / "losses.parquet").num_rows == 2
        assert not (again / "last.md").exists()
        capsys.readouterr()

        assert short(trained.parent, "again", settings=[*FEW, "checkpoint_every=3"]) == 0  # that may differ
        assert "goes on from step 2 of 4" in capsys.readouterr().err
        assert [s["step"] for s in json.loads((again / "training.json").read_text())["starts"]] == [0, 2]
        there, here = (read_weights(str(out / "last.safetensors")).tensors for out in (trained, again))
        assert all(torch.equal(tensor, here[name]) for name, tensor in there.items())
        losses = [pq.read_table(out / "losses.parquet", columns=["objectness", "box"]) for out in (trained, again)]
        assert losses[0].equals(losses[1])

    def test_stopped_after_its_last_step_it_only_finishes(self, trained: Path) -> None:
        late = shutil.copytree(trained, trained.parent / "late")
        about = json.loads((late / "training.json").read_text())
        (late / "training.json").write_text(json.dumps({**about, "state": "running"}))
        (late / "best.md").unlink()
        assert short(trained.parent, "late") == 0
        assert (late / "best.md").read_text() == (trained / "best.md").read_text()
        assert (late / "best.safetensors").read_bytes() == (trained / "best.safetensors").read_bytes()
        assert json.loads((late / "training.json").read_text())["state"] == "finished"

    def test_what_is_finished_is_never_reused(self, trained: Path) -> None:
        before = (trained / "training.json").read_bytes()
        with pytest.raises(
            ValueError, match=r"out holds a finished training of these settings; give another --out, or"
        ):
            short(trained.parent, "out")
        with pytest.raises(ValueError, match=r"of another training \(training.flip is True there and False here\)"):
            short(trained.parent, "out", settings=[*FEW, "flip=no"])
        assert (trained / "training.json").read_bytes() == before

    def test_overwriting_takes_only_what_a_training_wrote(self, tmp_path: Path) -> None:
        chosen = training_of("small-synthetic", ["catalog.num_videos=1"])
        work = Work(chosen, material_of(chosen))
        ours = made(work, False, None)
        other = replace(work, training=replace(chosen, seed=1))
        claim(str(tmp_path), identity_of(work, False), ours, False)
        (tmp_path / "checkpoints").mkdir()
        for name in ("notes.txt", "best.md", "checkpoints/step-00000002.pt"):
            (tmp_path / name).write_text("")
        with pytest.raises(ValueError, match=r"training.seed is 0 there and 1 here"):
            claim(str(tmp_path), identity_of(other, False), ours, False)
        claim(str(tmp_path), identity_of(other, False), ours, True)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "training.json"]

    @pytest.mark.parametrize("name", ["run.json", "holiday.mp4"])
    def test_a_folder_of_other_things_is_refused(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / name).write_text("{}")
        for overwrite in (False, True):
            with pytest.raises(ValueError, match=rf"out holds {name} and no training.json, so it is no training's"):
                short(tmp_path, "out", overwrite=overwrite)

    def test_training_json_of_others_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "training.json").write_text('{"epochs": 3}')
        with pytest.raises(ValueError, match=r"training.json is not what a training of ours wrote"):
            short(tmp_path.parent, tmp_path.name)

    def test_where_nothing_can_be_written_nothing_is_begun(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(OSError, match=r"--out .*file/out cannot be written"):
            short(tmp_path, "file/out", settings=[*FEW, "validation=none"])

    def test_explaining_writes_nothing(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert short(tmp_path, "out", explain=True) == 0
        assert not (tmp_path / "out").exists()
        said = capsys.readouterr().out
        for part in ("2 videos, ", "frames, decoded once", "smot: 486,961 parameters", "4 steps of 2 frames", "keep"):
            assert part in said


class TestJudge:
    def test_the_best_is_the_one_of_the_best_score(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        scores = iter([0.2, 0.5, 0.3, 0.5, 0.4])
        monkeypatch.setattr(train_judge, "validated", lambda *_: {"mAP": next(scores)})
        chosen = training_of("small-synthetic", ["catalog.num_videos=1"])
        work = Work(chosen, material_of(chosen))
        judge = Judge(Store(str(tmp_path)), made(work, False, None))
        model = build(chosen, CLASSES)
        rows: list[Mapping[str, float]] = []
        bests = []
        for step in range(1, 6):
            rows.append({"step": step, **judge(model, step, rows)})
            bests.append(int(read_weights(str(tmp_path / "best.safetensors")).metadata["step"]))
            assert read_weights(str(tmp_path / "last.safetensors")).metadata["step"] == str(step)
        assert bests == [1, 2, 2, 4, 4]
        assert best_of(rows, "mAP") == {"step": 4, "mAP": 0.5}

    @pytest.mark.parametrize(
        ("scores", "best"),
        [
            ([], None),
            ([{}, {}], 1),
            ([{"mAP": float("nan")}, {}], 1),
            ([{"mAP": 0.5}, {}, {"mAP": float("nan")}], 0),
            ([{"HOTA": 0.9}, {"HOTA": 0.8}], 1),
            ([{}, {"mAP": 0.0}, {"mAP": -1.0}], 1),
        ],
    )
    def test_without_the_score_the_last_is_the_best(self, scores: Sequence[dict[str, float]], best: int | None) -> None:
        rows = [{"step": float(step), **row} for step, row in enumerate(scores)]
        if best is not None:
            assert best_of(rows, "mAP")["step"] == best

    def test_validation_says_which_videos_and_how_they_are_read(self) -> None:
        chosen = training_of(None, ["catalog.classes=fly"], val_frames="80%:", source="a.mp4", frames=":80%")
        recipe = train_judge.scored_by(chosen, "w.safetensors")
        assert (recipe.catalog, recipe.source, recipe.frames) == ("folder", "a.mp4", "80%:")
        assert recipe.catalog_settings == {"classes": "fly"}
        assert recipe.model_settings == {"weights": "w.safetensors"}
        assert train_judge.scored_by(training_of(None, [], "b.mp4", source="a.mp4"), "").source == "b.mp4"


def tensors_of(recipe: str, out: Path, *settings: str) -> dict[str, Tensor]:
    """What a named training writes, cut down to two steps on one video and scored on another."""
    few = ["catalog.num_videos=1", *SCORED, "frames=:20", "batch_size=2", *settings]
    assert train([str(out.parent)], out=str(out), recipe=recipe, settings=few, steps=2, local=True) == 0
    return read_weights(str(out / "last.safetensors")).tensors


class TestParts:
    """Parts beside the network, such as a tracker, are in the file where something was learned in them."""

    @pytest.mark.parametrize("recipe", ["tracklet-rcnn-synthetic", "detect-to-track-synthetic"])
    def test_what_learns_on_pairs_is_written_whole_and_scored(self, recipe: str, tmp_path: Path) -> None:
        chosen = training_of(recipe, [])
        chosen = replace(chosen, model_settings={**chosen.model_settings, "weights": "random"})
        tensors = tensors_of(recipe, tmp_path / "out", "model.weights=random")
        (extra,) = build(chosen, CLASSES).extras  # type: ignore[misc]
        assert any(name.startswith(f"{extra}.") for name in tensors)
        card = (tmp_path / "out" / "last.md").read_text()
        assert "2 steps of 2 clips of 2 frames" in card
        assert f"linker `{chosen.linker}`" in card
        assert "mAP 0." in card

    def test_the_tracker_is_taught_in_a_detector_that_stays_as_it_is(self, tmp_path: Path) -> None:
        """What the first training leaves alone is not in its file, and runs that would use it are refused."""
        detector = tensors_of("plug-and-play-synthetic-detector", tmp_path / "detector")
        first, second = (str(tmp_path / name / "best.safetensors") for name in ("detector", "both"))
        assert not any(name.startswith("tracker.") for name in detector)
        assert "mAP 0." in (tmp_path / "detector" / "best.md").read_text()
        recipe = Recipe(
            catalog="synthetic", source=str(tmp_path), catalog_settings={"num_videos": 1}, model="plug_and_play"
        )
        use = {"weights": first, "classes": CLASSES}
        with pytest.raises(ValueError, match=r"model plug_and_play uses tracker, which its weights '.*best\.safetens"):
            prepare.detection(replace(recipe, model_settings=use))
        prepare.detection(replace(recipe, model_settings={**use, "tracker": "regression"}))
        prepare.detection(replace(recipe, model_settings={**use, "weights": "random"}))

        both = tensors_of(
            "plug-and-play-synthetic-tracker", tmp_path / "both", f"model.weights={first}", "validation=none"
        )
        assert any(name.startswith("tracker.") for name in both)
        assert all(torch.equal(tensor, both[name]) for name, tensor in detector.items())
        prepare.detection(replace(recipe, model_settings={"weights": second}))

    @pytest.mark.parametrize(
        ("recipe", "part"),
        [("detect-to-track-synthetic", "track_branch"), ("tracklet-rcnn-synthetic", "embeddings")],
    )
    def test_what_saw_no_pair_is_left_out_and_not_scored(
        self, recipe: str, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Weight decay changes it, and nothing else does."""
        tensors = tensors_of(recipe, tmp_path / "out", "frames_per_clip=1", "model.weights=random")
        assert not any(name.startswith(f"{part}.") for name in tensors)
        said = capsys.readouterr().out
        assert f"not scored: model {recipe.removesuffix('-synthetic').replace('-', '_')} uses {part}, which" in said
        assert f"train them as `trackloom train --recipe {recipe}` does" in said
        assert "mAP" not in (tmp_path / "out" / "best.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_on_ray_the_same_weights_and_scores(trained: Path) -> None:
    assert short(trained.parent, "ray", local=False, workers=1) == 0
    there, here = (read_weights(str(trained.parent / out / "best.safetensors")).tensors for out in ("out", "ray"))
    assert all(torch.equal(tensor, here[name]) for name, tensor in there.items())
    one, other = (pq.read_table(trained.parent / out / "scores.parquet") for out in ("out", "ray"))
    assert one.equals(other)
    assert sorted(path.name for path in (trained.parent / "ray").iterdir()) == sorted(ALL)
