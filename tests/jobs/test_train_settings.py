"""What the command line of `train` says: settings of a named training changed, and what is refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs import train_prepare
from jobs.train import train
from jobs.train_prepare import median_side, ready
from jobs.train_settings import training_of
from jobs.trainings import RECIPES
from pipeline.records import Resize, VideoInfo
from pipeline.training.labelled import Labelled, Truth


@pytest.mark.parametrize("name", RECIPES)
def test_a_named_training_says_how_it_is_started(name: str) -> None:
    assert f"trackloom train --recipe {name} " in str(RECIPES[name].__doc__)
    assert training_of(name, []).name == name


class TestSettings:
    def test_they_change_a_recipe(self) -> None:
        given = ["learning_rate=0.5", "model.batch_frames=3", "flip=no", "loss_weights.box=2", "freeze=a.b,c"]
        chosen = training_of("small-synthetic", given, steps=7, frames=":80%")
        assert (chosen.steps, chosen.learning_rate, chosen.flip, chosen.permute_colours) == (7, 0.5, False, True)
        assert (chosen.frames, chosen.freeze, chosen.loss_weights) == (":80%", ("a.b", "c"), {"box": 2.0})
        assert chosen.model_settings == {"detector": "small", "batch_frames": "3"}
        assert training_of("small-synthetic", []) == RECIPES["small-synthetic"]()

    def test_another_part_drops_the_settings_of_the_one_before(self) -> None:
        for other in (
            training_of("small-synthetic", [], catalog="mot"),
            training_of("small-synthetic", ["catalog=mot"]),
        ):
            assert other.catalog_settings == {}
            assert other.validation is None
        assert training_of("small-synthetic", [], catalog="synthetic").validation == {"split": "val"}
        assert training_of("plug-and-play-synthetic-tracker", ["linker=keep"]).linker_settings == {}

    def test_without_a_recipe_it_is_the_user_s_videos_and_the_model_s_own_linker(self) -> None:
        assert training_of(None, [], source="mine.mp4").catalog == "folder"
        assert training_of(None, []).catalog_settings == {"split": "train"}
        assert training_of(None, [], model="retina_track").linker == "track_store"

    def test_what_is_scored_on_is_read_as_the_training_s_videos_are(self) -> None:
        chosen = training_of(None, ["catalog.fps=5"], val_frames="80%:", source="mine.mp4")
        assert chosen.validation == {"fps": "5", "frames": "80%:"}
        assert training_of(None, [], "b.mp4", "9:", source="a.mp4").validation == {"source": "b.mp4", "frames": "9:"}
        assert training_of("small-synthetic", [], val="x").validation == {"split": "val", "source": "x"}
        assert training_of("small-synthetic", ["validation=none"]).validation is None

    def test_stills_are_named_with_their_catalog(self) -> None:
        chosen = training_of("small-synthetic", ["stills.catalog=coco", "stills.share=0.2"])
        assert chosen.stills == {"catalog": "coco", "share": "0.2"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"recipe": "small-syntetic"}, r"unknown training 'small-syntetic' \(did you mean 'small-synthetic'\?\)"),
        ({"settings": ["stepz=3"]}, r"training has no setting 'stepz' \(did you mean 'steps'\?\)"),
        ({"settings": ["refine.x=3"]}, r"--set 'refine.x=3' is no setting"),
        (
            {"settings": ["validation=val"]},
            r"--set 'validation=val' is no setting; it may be validation=none or valida",
        ),
        ({"settings": ["stills.share=0.5"]}, r"stills are .*; they must name a catalog"),
        ({"settings": ["loss_weights.box=much"]}, r"loss_weights.box is 'much'; it must be a number"),
        ({"recipe": "small-synthetic", "settings": ["linker.x=3"]}, r"linker keep has no setting 'x'"),
        ({"recipe": "small-synthetic", "settings": ["linker=deepsort"]}, r"linker deepsort needs embeddings"),
        (
            {"recipe": "small-synthetic", "settings": ["best_by=MAP"]},
            r"best_by is 'MAP' \(did you mean 'mAP'\?\); it m",
        ),
        ({"recipe": "small-synthetic", "settings": ["best_by=IDSW"]}, r"best_by is 'IDSW'.*of which more is better"),
        ({"settings": ["steps=many"]}, r"training.steps is 'many'; it must be a whole number"),
        ({"settings": ["freeze=detector.tail"]}, r"freeze names 'detector.tail', which the model does not have"),
        ({"settings": ["model.detector=resnet"]}, r"model smot.detector is 'resnet'; it must be one of"),
        ({"export": "weights.pth"}, r"--export is weights.pth; weights are written as .safetensors"),
        ({"catalog": "sintetic"}, r"unknown catalog 'sintetic' \(did you mean 'synthetic'\?\)"),
        ({"frames": "9:3"}, r"frames is '9:3', which holds no frame"),
        ({"val_frames": "9:3"}, r"frames is '9:3', which holds no frame"),
        ({"workers": 2}, r"--workers is 2 and --local is one process"),
        ({"workers": 3, "local": False}, r"batch_size is 8, which 3 workers cannot share"),
        (
            {"out": "memory://x", "local": False},
            r"--out memory://x is this process's memory, which Ray's workers do no",
        ),
        ({"gpu": True}, r"a GPU is asked for, and torch finds none"),
    ],
)
def test_wrong_use_is_refused_before_any_work(
    given: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    settings = ["catalog.num_videos=1", *given.pop("settings", [])]
    arguments: dict[str, Any] = {"out": str(tmp_path / "out"), "local": True, "catalog": "synthetic"} | given
    if "recipe" in given:
        del arguments["catalog"]
    with pytest.raises(ValueError, match=message):
        train(None, settings=settings, **arguments)
    assert not list(tmp_path.iterdir())


def test_an_export_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"--export .*file/w.safetensors cannot be written: .*file is no folder that may"):
        train(None, out=str(tmp_path / "out"), export=str(tmp_path / "file" / "w.safetensors"), local=True)
    assert not (tmp_path / "out").exists()


def test_what_nothing_could_be_scored_on_is_refused(tmp_path: Path) -> None:
    """Else hours of training would end with no number."""
    one = ["catalog.num_videos=1"]
    with pytest.raises(ValueError, match=r"no video for scores, such as .*-0000, has a box of .* in frames 9000: to"):
        train(None, out=str(tmp_path / "out"), catalog="synthetic", settings=one, val_frames="9000:", local=True)
    assert not (tmp_path / "out").exists()


def test_a_rate_for_small_networks_is_warned_of_where_the_network_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rates(*given: str) -> list[str]:
        chosen = training_of(None, ["catalog.num_videos=1", *given])
        job = ready(chosen, str(tmp_path / "out"), None, True, False, False, False)
        return [text.split(",")[0] for text in job.warnings() if "learning_rate" in text]

    assert not rates()
    monkeypatch.setattr(train_prepare, "SMALL", 100_000)
    assert rates() == ["learning_rate is 0.004"]
    assert rates("learning_rate=0.0002") == rates("optimizer=sgd") == []


SHIPPED = {
    "smot": "smot-synthetic-v1",
    "plug_and_play": "plug-and-play-synthetic-v1-detector",
    "detect_to_track": "detect-to-track-synthetic-v1-detector",
    "retina_track": "retina-track-synthetic-v1",
}


@pytest.mark.parametrize(
    ("model", "anchor"), [("smot", 24), ("plug_and_play", 24), ("detect_to_track", 24), ("retina_track", 21)]
)
def test_boxes_far_smaller_than_all_anchors_are_warned_of(model: str, anchor: int, tmp_path: Path) -> None:
    """Videos are of 160 x 128 px, their boxes of some 30: at a quarter of that most are below half of an anchor."""

    def warned(*given: str) -> list[str]:
        chosen = training_of(None, ["catalog.num_videos=1", *given], model=model, catalog="synthetic")
        job = ready(chosen, str(tmp_path / "out"), None, True, False, False, False)
        return [text for text in job.warnings() if "smallest anchor" in text]

    assert warned() == warned("short_side=128") == []
    (said,) = warned("short_side=32")
    assert f"its smallest anchor is {anchor} px" in said
    assert "--set short_side=PIXELS" in said
    assert not warned("short_side=32", f"start={SHIPPED[model]}"), "what knows sizes can go on to others"


@pytest.mark.parametrize(("shown", "expected"), [(Resize(), 16), (Resize(short_side=20), 8), (Resize((80, 120)), 32)])
def test_the_size_of_boxes_is_the_median_of_those_to_learn(shown: Resize, expected: float) -> None:
    videos = [
        VideoInfo("v", "", "x", size=(40, 60)),
        VideoInfo("empty", "", "x"),
        VideoInfo("w", "", "x", size=(40, 60)),
    ]
    sides = np.array([[4, 64], [16, 16], [20, 20], [1, 1]], np.float32)  # (width, height); the last is ignored
    truth = Truth(
        first=np.array([0, 1, 1, 4]),
        frame=np.zeros(4, np.int32),
        boxes=np.concatenate([np.zeros((4, 2), np.float32), sides], 1),
        labels=np.zeros(4, np.int16),
        track_ids=np.zeros(4, np.int32),
        ignore=np.array([False, False, False, True]),
    )
    assert median_side(Labelled(videos, truth, ("a",)), shown) == pytest.approx(expected)


def test_what_is_probably_not_meant_is_said(tmp_path: Path) -> None:
    few = ["catalog.num_videos=1", "validation.split=train", "validation.num_videos=1"]
    job = ready(training_of("small-synthetic", few), str(tmp_path / "out"), None, True, False, False, False)
    lacking, shown = job.warnings()
    assert lacking.startswith("no box of ")
    assert shown.startswith("1 of the 1 videos for scores show frames that are trained on, such as train-0000")
    apart = ["catalog.num_videos=1", "validation.split=val", "validation.num_videos=1"]
    job = ready(training_of("small-synthetic", apart), str(tmp_path / "out"), None, True, False, False, False)
    assert len(job.warnings()) == 1
