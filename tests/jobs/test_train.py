"""The train verb: weights that the main job can use, their card, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.train import RECIPES, train, training_of
from models import smot
from models.parts.weights import read_weights


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


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"recipe": "small-syntetic"}, r"unknown training 'small-syntetic' \(did you mean 'small-synthetic'\?\)"),
        ({"settings": ["stepz=3"]}, r"training has no setting 'stepz' \(did you mean 'steps'\?\)"),
        ({"settings": ["linker.x=3"]}, r"--set 'linker.x=3' is no setting"),
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
