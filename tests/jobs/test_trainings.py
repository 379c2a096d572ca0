"""The papers' trainings: what they print of steps, rates and data is what the named ones have; all can begin."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from jobs import prepare
from jobs.papers import weights
from jobs.papers.tracktor_trainings import RECIPES as OF_TRACKTOR
from jobs.papers.trainings import RECIPES as OF_PAPERS
from jobs.train import train
from jobs.train_judge import scored_by
from jobs.trainings import RECIPES
from models.parts.weights import StoredWeights, begin_with
from pipeline.config import load, settings
from pipeline.training.optimizing import rate
from pipeline.training.settings import Stills, Training

AT_THEIR_SIZE = {**OF_PAPERS, **OF_TRACKTOR}


def of_catalog(name: str, given: Any) -> Any:
    return settings(load("catalog", name).Settings, given, f"catalog {name}")


@pytest.mark.parametrize("name", RECIPES)
def test_every_named_training_fits_together(name: str) -> None:
    """Model, catalog, stills and linker have the settings that it gives them, and go together."""
    training = RECIPES[name]()
    assert training.name == name
    of_catalog(training.catalog, training.catalog_settings)
    given = {"weights": "random", **training.model_settings}
    settings(load("model", training.model).Settings, given, f"model {training.model}")
    prepare.check_model_and_linker(scored_by(training, "trained.safetensors"))
    if training.stills:
        stills = Stills.of(training.stills)
        of_catalog(stills.catalog, stills.catalog_settings)
    if name in AT_THEIR_SIZE:
        assert "--gpu" in str(RECIPES[name].__doc__)
        assert (training.average, training.validation) == (0, None)
        assert not training.start or training.start in weights.known() or "_Weights." in training.start


def test_what_a_training_began_with_is_not_what_its_result_runs_with() -> None:
    """Else the published network would be asked, not the trained one, or settings would not go together."""
    run = scored_by(AT_THEIR_SIZE["reid-mot17"](), "w").model_settings
    assert (run["weights"], run["reid"], "reid_weights" in run) == ("w", "resnet50", False)
    for name in ("tcd-vid", "dt-vid-detector", "pnp-vid-detector", "retina-track-coco", "smot-wider-face"):
        assert "backbone_weights" in AT_THEIR_SIZE[name]().model_settings
        assert "backbone_weights" not in scored_by(AT_THEIR_SIZE[name](), "w").model_settings


# As printed: batch, GPUs; after how many steps which rate is the one, to the last; weight decay.
PRINTED: dict[str, tuple[tuple[int, int], dict[int, float], float]] = {
    "tcd-vid": ((4, 4), {80_000: 1e-3, 120_000: 1e-4}, 1e-4),
    "tcd-mot15-coco": ((16, 8), {75_000: 0.02, 100_000: 0.002, 120_000: 0.0002}, 1e-4),
    "tcd-mot15": ((4, 4), {70_000: 1e-3, 110_000: 1e-4}, 1e-4),
    "dt-vid-detector": ((4, 1), {60_000: 1e-3, 80_000: 1e-4}, 5e-4),
    "dt-vid": ((4, 1), {40_000: 1e-4, 60_000: 1e-5}, 5e-4),
    "pnp-vid-detector": ((8, 4), {90_000: 1e-3, 135_000: 1e-4}, 1e-4),
    "pnp-vid-tracker": ((16, 4), {80_000: 1e-3, 120_000: 1e-4}, 1e-4),
}


@pytest.mark.parametrize("name", PRINTED)
def test_steps_and_rates_are_the_paper_s(name: str) -> None:
    batch, until, decay = PRINTED[name]
    training = OF_PAPERS[name]()
    assert (training.batch_size, training.workers) == batch
    assert (training.optimizer, training.momentum, training.weight_decay) == ("sgd", 0.9, decay)
    assert training.steps == max(until)
    first = 0
    for stop, printed in until.items():
        assert rate(first, training) == pytest.approx(printed)
        assert rate(stop - 1, training) == pytest.approx(printed)
        first = stop


@pytest.mark.parametrize(
    ("name", "warmup", "highest", "steps", "clips"),
    [
        ("retina-track-coco", 2000, 0.004, 25_000, 64 // 8),
        ("retina-track-waymo", 1000, 0.001, 10_000, 128 // 32),
        ("retina-track-waymo-v1.1", 1000, 0.004, 100_000, 128 // 32),
    ],
)
def test_retinatrack_s_rate_rises_and_falls_by_a_cosine(
    name: str, warmup: int, highest: float, steps: int, clips: int
) -> None:
    training = OF_PAPERS[name]()
    assert (training.steps, training.momentum, training.weight_decay) == (steps, 0.9, 4e-4)
    assert training.batch_size // training.workers == clips
    assert rate(warmup // 2, training) == pytest.approx(highest / 2, rel=0.01)
    assert rate(warmup, training) == pytest.approx(highest)
    assert rate((warmup + steps) // 2, training) == pytest.approx(highest / 2)
    assert rate(steps - 1, training) < 1e-6


def test_what_is_learned_on_is_the_paper_s() -> None:
    def shown(name: str) -> tuple[Any, ...]:
        training = OF_PAPERS[name]()
        share = Stills.of(training.stills).share if training.stills else 0
        pair = (training.frames_per_clip, training.min_gap, training.max_gap, training.reverse)
        return pair, training.frames_per_video, round(share, 2)

    assert shown("tcd-vid") == ((2, 1, 1, False), 15, 0.5)
    assert shown("tcd-mot15") == ((2, 1, 1, False), None, 0)
    assert shown("dt-vid-detector") == ((1, 1, 1, False), 10, 0.5)
    assert shown("dt-vid") == ((2, 1, 1, False), None, 0.5)
    assert shown("pnp-vid-detector") == ((1, 1, 1, False), 15, 0.48)  # 53k images, 57k frames
    assert shown("pnp-vid-tracker") == ((2, 1, 9, True), None, 0)
    assert shown("retina-track-waymo") == ((2, 8, 8, False), None, 0)
    for name in ("tcd-vid", "dt-vid-detector", "dt-vid", "pnp-vid-detector"):
        stills = Stills.of(OF_PAPERS[name]().stills or {})
        chosen = of_catalog(stills.catalog, stills.catalog_settings)
        assert (stills.catalog, stills.source, chosen.split, chosen.per_class) == ("imagenet_det", "", "train", 2000)
    for training in (make() for make in AT_THEIR_SIZE.values()):
        assert training.flip
        assert not training.flip_vertical
        assert not training.permute_colours


def test_a_batch_of_reid_never_has_two_clips_of_one_of_few_videos() -> None:
    """Two would make an object its own negative."""
    for name in ("reid-mot17", "reid-faces"):
        training = OF_TRACKTOR[name]()
        assert training.batch_size == training.workers == 1
        assert training.frames_per_clip >= 8


def annotated(path: Path, size: tuple[int, int], objects: Mapping[str, tuple[int, int, int, int]], ids: bool) -> None:
    """An image of noise and its XML, as ImageNet has them. objects: corners by WordNet id."""
    image, text = path.with_suffix(".JPEG"), Path(str(path).replace("Data", "Annotations")).with_suffix(".xml")
    for file in (image, text):
        file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(str(path))).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(noise).save(image, "JPEG")
    things = "".join(
        f"<object>{f'<trackid>{number}</trackid>' if ids else ''}<name>{name}</name><bndbox><xmin>{x1}</xmin>"
        f"<ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>"
        for number, (name, (x1, y1, x2, y2)) in enumerate(objects.items())
    )
    text.write_text(f"<annotation><size><width>{size[1]}</width><height>{size[0]}</height></size>{things}</annotation>")


@pytest.fixture(scope="module")
def ilsvrc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of 12 frames, upright and lying, and three stills of other sizes; dogs in all, foxes in videos."""
    root = tmp_path_factory.mktemp("imagenet") / "ILSVRC2015"
    dog, fox = "n02084071", "n02118333"
    for video, size in (("a", (64, 96)), ("b", (96, 64))):
        for frame in range(12):
            objects = {dog: (2 + frame, 4, 30 + frame, 40), fox: (30, 30, 59, 60)}
            annotated(root / f"Data/VID/train/part/{video}/{frame:06d}", size, objects, ids=True)
    for number in range(3):
        name = f"Data/DET/train/ILSVRC2013_train/{dog}/{dog}_{number}"
        annotated(root / name, (70 + 8 * number, 64), {dog: (5, 5, 50, 50)}, ids=False)
    return root


@pytest.mark.parametrize(
    ("name", "small", "losses"),
    [
        ("dt-vid", {"model.backbone": "small"}, {"class", "box", "track"}),
        ("tcd-vid", {"model.detector": "small", "model.backbone_weights": "random"}, {"track_anchor", "track_region"}),
        ("pnp-vid-tracker", {"model.detector": "small"}, {"move", "quality"}),
    ],
)
def test_those_of_vid_run_on_the_datasets_folders(
    name: str,
    small: dict[str, str],
    losses: set[str],
    ilsvrc: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """All but the network's size: videos of two shapes, stills beside them, SGD whose rate falls."""
    given = [f"{key}={value}" for key, value in {**small, "start": "", "drops": "1", "loaders": "0"}.items()]
    out = tmp_path / "out"
    assert train([str(ilsvrc)], out=str(out), recipe=name, settings=given, steps=2, local=True) == 0
    said = capsys.readouterr().err
    assert "2 videos, 48 boxes of 30 classes" in said
    assert ("3 stills, 3 boxes, 50% of the clips" in said) == (AT_THEIR_SIZE[name]().stills is not None)
    curves = pq.read_table(out / "losses.parquet").to_pydict()
    assert losses <= curves.keys()
    assert all(value > 0 for loss in losses for value in curves[loss])
    assert curves["learning_rate"][0] == pytest.approx(10 * curves["learning_rate"][1])


def test_what_it_begins_with_is_asked_for_before_any_dataset_is_listed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="training dt-vid begins with the weights detect-to-track-") as error:
        train([str(tmp_path / "nowhere")], out=str(tmp_path / "out"), recipe="dt-vid", local=True)
    said = str(error.value)
    assert "--set start=FILE, or train them (`trackloom train --recipe dt-vid-detector ILSVRC2015 --gpu " in said
    assert "\n" not in said


def test_the_network_is_built_before_any_dataset_is_listed(tmp_path: Path) -> None:
    """To read the truth of ImageNet's million annotations and then find that a setting is wrong takes an hour."""

    def begun(*settings: str) -> None:
        train(
            [str(tmp_path / "nowhere")], out=str(tmp_path / "out"), recipe="tcd-vid", settings=[*settings], local=True
        )

    small = ["model.detector=small", "model.backbone_weights=random"]
    with pytest.raises(ValueError, match="'anchor_sides'"):
        begun(*small, "model.anchor_sides=8")
    with pytest.raises(FileNotFoundError, match="'no-such-weights' are neither a file nor a known name"):
        begun(*small, "start=no-such-weights")
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        begun(*small)


def built(training: Training, classes: tuple[str, ...]) -> Any:
    """The network at its size, but for the published weights that it would begin with."""
    given = {key: value for key, value in training.model_settings.items() if not key.endswith("_weights")}
    given |= {"reid_weights": "random"} if "reid" in given else {}
    module = load("model", training.model)
    return module.build(settings(module.Settings, {**given, "weights": "random", "classes": classes}, training.name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then", "anew"),
    [
        ("tcd-mot15-coco", "tcd-mot15", {"cls_score", "embeddings."}),
        ("dt-vid-detector", "dt-vid", {"track_branch."}),
        ("pnp-vid-detector", "pnp-vid-tracker", {"tracker."}),
        ("retina-track-coco", "retina-track-waymo", {"head.classes", "embedding."}),
        ("smot-mot17-coco", "smot-mot17", {"classification_head"}),
        ("tracktor-mot17", "reid-mot17", {"reid."}),
    ],
)
def test_a_training_can_begin_with_the_one_before_it(first: str, then: str, anew: set[str]) -> None:
    """At their size: all begins as the first ended, but for outputs of other classes and what it did not teach."""
    before, after = AT_THEIR_SIZE[first](), AT_THEIR_SIZE[then]()
    others = before.catalog != after.catalog
    torch.manual_seed(0)
    theirs = built(before, ("one", "two", "three") if others else ("one", "two"))
    ours = built(after, ("one", "two"))
    begun = begin_with(ours.network, StoredWeights(first, theirs.network.state_dict(), {}, ""), ours.extras)
    assert {part for name in begun.anew for part in anew if part in name} == anew
    assert all(any(part in name for part in anew) for name in begun.anew)
