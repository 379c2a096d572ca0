"""The train verb: weights that the main job can use, their card, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from catalogs.synthetic import CLASSES
from jobs import prepare
from jobs.train import RECIPES, train, training_of
from models import smot
from models.parts.weights import read_weights
from pipeline import training
from pipeline.recipe import Recipe


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a training far too short, on two short videos, and their card."""
    folder = tmp_path_factory.mktemp("train")
    output = folder / "short.safetensors"
    few = ["catalog.num_videos=2", "validation.num_videos=2", "batch_size=2"]
    code = train([str(folder)], output=output, recipe="small-synthetic", settings=few, steps=3, local=True, half=True)
    assert code == 0
    return output


def test_the_file_says_what_it_is(written: Path) -> None:
    from catalogs import synthetic

    stored = read_weights(str(written))
    assert json.loads(stored.metadata["classes"]) == list(synthetic.CLASSES)
    assert json.loads(stored.metadata["training"])["steps"] == 3
    assert {"command", "data", "commit", "versions", "losses", "cpu_minutes"} <= stored.metadata.keys()
    assert written.stat().st_size < 1.2e6
    assert sorted(path.name for path in written.parent.glob("short*")) == ["short.md", "short.safetensors"]


def test_the_card_has_the_scores_of_the_main_job(written: Path) -> None:
    card = written.with_suffix(".md").read_text()
    assert card.startswith("# short\n")
    for part in ("3 steps of 2 frames, seed 0", "mAP 0.", "HOTA ", "data: digest "):
        assert part in card


def test_the_model_loads_it(written: Path) -> None:
    model = smot.build(smot.Settings(weights=str(written)))
    assert len(model.classes) == 6
    assert model.weights is not None
    assert not model.training


def test_settings_change_a_recipe() -> None:
    chosen = training_of("small-synthetic", ["learning_rate=0.5", "model.batch_frames=3", "flip=no"], steps=7)
    assert (chosen.steps, chosen.learning_rate, chosen.flip, chosen.permute_colours) == (7, 0.5, False, True)
    assert chosen.model_settings == {"detector": "small", "batch_frames": "3"}
    assert training_of("small-synthetic", []) == RECIPES["small-synthetic"]()
    other = training_of("small-synthetic", [], catalog="mot")
    assert other.catalog_settings == {}  # the recipe's were for its own catalog
    assert other.validation is None


def shortly(recipe: str, output: Path, *settings: str) -> dict[str, Tensor]:
    """The tensors that a named training writes, cut down to two steps on one video and scored on another."""
    few = ["catalog.num_videos=1", "validation.num_videos=1", "batch_size=2", *settings]
    assert train([str(output.parent)], output=output, recipe=recipe, settings=few, steps=2, local=True) == 0
    return read_weights(str(output)).tensors


@pytest.mark.parametrize("recipe", ["tracklet-rcnn-synthetic", "detect-to-track-synthetic"])
def test_what_learns_on_pairs_is_written_whole_and_scored(recipe: str, tmp_path: Path) -> None:
    chosen = training_of(recipe, [])
    chosen = replace(chosen, model_settings={**chosen.model_settings, "weights": "random"})
    tensors = shortly(recipe, tmp_path / "w.safetensors", "model.weights=random")
    (extra,) = training.build(chosen, CLASSES).extras  # type: ignore[misc]
    assert any(name.startswith(f"{extra}.") for name in tensors)
    card = (tmp_path / "w.md").read_text()
    assert "2 steps of 2 clips of 2 frames" in card
    assert f"linker `{chosen.linker}`" in card
    assert "mAP 0." in card


def test_the_tracker_is_taught_in_a_detector_that_stays_as_it_is(tmp_path: Path) -> None:
    """What the first training leaves alone is not in its file, and runs that would use it are refused."""
    first, second = tmp_path / "detector.safetensors", tmp_path / "both.safetensors"
    detector = shortly("plug-and-play-synthetic-detector", first)
    assert not any(name.startswith("tracker.") for name in detector)
    assert "mAP 0." in first.with_suffix(".md").read_text()
    recipe = Recipe(
        catalog="synthetic", source=str(tmp_path), catalog_settings={"num_videos": 1}, model="plug_and_play"
    )
    use = {"weights": str(first), "classes": CLASSES}
    with pytest.raises(
        ValueError, match=r"model plug_and_play uses tracker, which its weights '.*detector\.safetensors'"
    ):
        prepare.detection(replace(recipe, model_settings=use))
    prepare.detection(replace(recipe, model_settings={**use, "tracker": "regression"}))
    prepare.detection(replace(recipe, model_settings={**use, "weights": "random"}))

    both = shortly("plug-and-play-synthetic-tracker", second, f"model.weights={first}")
    assert any(name.startswith("tracker.") for name in both)
    assert all(torch.equal(tensor, both[name]) for name, tensor in detector.items())
    prepare.detection(replace(recipe, model_settings={"weights": str(second)}))


def test_d_alone_is_what_d_and_t_begins_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of single frames the track branch learns nothing: it is left out, and not scored."""
    first, second = tmp_path / "d.safetensors", tmp_path / "dt.safetensors"
    detector = shortly("detect-to-track-synthetic", first, "frames_per_clip=1")
    assert not any(name.startswith("track_branch.") for name in detector)
    assert "d.safetensors is not scored: model detect_to_track uses track_branch" in capsys.readouterr().err
    assert "mAP" not in first.with_suffix(".md").read_text()
    both = shortly("detect-to-track-synthetic", second, f"model.weights={first}")
    assert any(name.startswith("track_branch.") for name in both)


def test_embeddings_that_saw_no_pair_are_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weight decay changes them, and nothing else does."""
    output = tmp_path / "alone.safetensors"
    held = shortly("tracklet-rcnn-synthetic", output, "frames_per_clip=1", "model.weights=random")
    assert not any(name.startswith("embeddings.") for name in held)
    said = capsys.readouterr().err
    assert "alone.safetensors is not scored: model tracklet_rcnn uses embeddings" in said
    assert "train them as `trackloom train --recipe tracklet-rcnn-synthetic` does" in said


@pytest.mark.parametrize("name", RECIPES)
def test_a_named_training_says_how_it_is_started(name: str) -> None:
    assert f"trackloom train --recipe {name} " in str(RECIPES[name].__doc__)
    assert training_of(name, []).name == name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"recipe": "small-syntetic"}, r"unknown training 'small-syntetic' \(did you mean 'small-synthetic'\?\)"),
        ({"settings": ["stepz=3"]}, r"training has no setting 'stepz' \(did you mean 'steps'\?\)"),
        ({"settings": ["refine.x=3"]}, r"--set 'refine.x=3' is no setting"),
        ({"recipe": "small-synthetic", "settings": ["linker.x=3"]}, r"linker keep has no setting 'x'"),
        ({"recipe": "small-synthetic", "settings": ["linker=deepsort"]}, r"linker deepsort needs embeddings"),
        ({"settings": ["steps=many"]}, r"training.steps is 'many'; it must be a whole number"),
        ({"output": Path("weights.pth")}, r"--output is weights.pth; weights are written as .safetensors"),
        ({"catalog": "sintetic"}, r"unknown catalog 'sintetic' \(did you mean 'synthetic'\?\)"),
        ({"settings": ["model.detector=resnet"]}, r"model smot.detector is 'resnet'; it must be one of"),
    ],
)
def test_wrong_use_is_refused_before_any_work(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    settings = ["catalog.num_videos=1", *given.pop("settings", [])]
    arguments: dict[str, Any] = {"output": tmp_path / "w.safetensors", "local": True} | given
    with pytest.raises(ValueError, match=message):
        train([str(tmp_path)], settings=settings, **arguments)
    assert not list(tmp_path.glob("w.*"))
