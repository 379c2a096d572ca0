"""The weights that recipes of the papers name, and what trains them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import models
from jobs.trainings import DETECTOR
from pipeline.recipe import Recipe

SHIPPED = Path(models.__file__).parent / "weights"  # where models find weights by their name


@dataclass(frozen=True)
class Weights:
    """name: they are found as models/weights/<name>.safetensors, once somebody has put them there.

    what: the network, and what it learns on, in a few words. training: the arguments of `trackloom train` for both; how
    long, with which images and learning rates, is in the paper (`schedule`), or else in the named training.
    after: names the weights that the training begins with.
    """

    name: str
    what: str
    training: str
    schedule: str = ""
    after: str = ""

    @property
    def are_here(self) -> bool:
        """Whether the project holds them."""
        return (SHIPPED / f"{self.name}.safetensors").is_file()

    @property
    def command(self) -> str:
        """What trains them."""
        start = f" --set model.weights=models/weights/{self.after}.safetensors" if self.after else ""
        return f"trackloom train {self.training}{start} --output models/weights/{self.name}.safetensors"


def needed_by(recipe: Recipe) -> Weights | None:
    """The weights that a recipe names; None where it names none of these, but the model's own or a user's file."""
    return known().get(str(recipe.model_settings.get("weights")))


def can_run(recipe: Recipe) -> bool:
    """Whether a recipe needs nothing but its videos: no weights that are still to be trained."""
    needed = needed_by(recipe)
    return needed is None or needed.are_here


@lru_cache(maxsize=1)
def known() -> dict[str, Weights]:
    """All weights of all papers, by name."""
    return {found.name: found for found in (*tracklet_rcnn(), *detect_to_track(), *plug_and_play())}


def tracklet_rcnn() -> list[Weights]:
    """TCD's: one network for most rows, others for what Tables 2 and 4 train anew, and for MOT15."""
    resnet = {"model.detector": "resnet101", "model.backbone_weights": "IMAGENET1K_V1", "frames_per_clip": "2"}
    variants: dict[str, tuple[str, dict[str, str]]] = {
        "": ("", {}),
        "-shared-2fc": (", embeddings by a last layer of their own", {"model.embedding": "shared_2fc"}),
        "-fully-shared": (", embeddings fully shared", {"model.embedding": "fully_shared"}),
        "-dcn": (" with DCNv2", {"model.deformable": "true"}),
        # The first frame of a clip has none before it, and the last teaches no detection.
        "-dcn-fgfa": (
            " with DCNv2 and FGFA",
            {"model.deformable": "true", "model.aggregate": "10", "frames_per_clip": "3"},
        ),
    }
    found = []
    for ending, (text, settings) in variants.items():
        flow = {"model.aggregate_flow": "raft_small"} if "model.aggregate" in settings else {}
        # Deformable convolutions have tensors that the small detector's weights lack.
        anew = "model.deformable" in settings
        start = {"model.weights": "random", "steps": "9000", "learning_rate": "0.003"} if anew else {}
        found += [
            Weights(
                f"tracklet-rcnn-resnet101-vid{ending}",
                f"TCD on ResNet-101{text}, ImageNet VID and DET",
                _on_vid("tracklet_rcnn", {**resnet, **settings, **flow}),
                "appendix A1",
            ),
            Weights(
                f"tracklet-rcnn-synthetic-v1{ending}",
                f"the small TCD{text}, synthetic-v1",
                _on_synthetic("tracklet-rcnn-synthetic", {**settings, **start}),
                after="" if anew else DETECTOR,
            ),
        ]
    mot = {**resnet, "model.benchmark": "mot15"}
    return [
        *found,
        Weights(
            "tracklet-rcnn-resnet101-mot15",
            "TCD on ResNet-101, COCO, then MOT15",
            f"MOT15/train --catalog mot --model tracklet_rcnn{_set(mot)}",
            "appendix A1",
        ),
    ]


def detect_to_track() -> list[Weights]:
    """D&T's: for each backbone D, and D&T, which begins with D."""
    bodies = {
        "resnet50": ("ResNet-50", "IMAGENET1K_V1"),
        "resnet101": ("ResNet-101", "IMAGENET1K_V1"),
        "resnext101-32x4d": ("ResNeXt-101-32x4d", "resnext101_32x4d.gluon_in1k"),
        "inception-v4": ("Inception-v4", "inception_v4.tf_in1k"),
    }
    found = []
    for name, (text, on_imagenet) in bodies.items():
        backbone = {"model.backbone": name.replace("-", "_")}
        alone = {"model.backbone_weights": on_imagenet, "model.track": "false"}
        vid = f"detect-to-track-{name}-vid"
        found += [
            Weights(
                f"{vid}-detector",
                f"D (R-FCN) on {text}, ImageNet VID and DET",
                _on_vid("detect_to_track", {**backbone, **alone}),
                "section 5.2",
            ),
            Weights(
                vid,
                f"D&T on {text}, ImageNet VID and DET",
                _on_vid("detect_to_track", {**backbone, "frames_per_clip": "2"}),
                "section 5.2",
                after=f"{vid}-detector",
            ),
        ]
    small, training = "detect-to-track-synthetic-v1", "detect-to-track-synthetic"
    return [
        *found,
        Weights(small, "the small D&T, synthetic-v1", _on_synthetic(training, {})),
        Weights(
            f"{small}-detector",
            "the small D (R-FCN), synthetic-v1",
            _on_synthetic(training, {"model.track": "false", "frames_per_clip": "1"}),
        ),
    ]


def plug_and_play() -> list[Weights]:
    """PnP's: for each detector itself, and with the tracker, which is trained in it while it stays as it is."""
    detectors = {"hrnet-w32": "HRNet-W32", "resnext101-fpn-dcn": "ResNeXt-101 with FPN and DCNv2"}
    found = []
    for name, text in detectors.items():
        network, vid = {"model.detector": name.replace("-", "_")}, f"plug-and-play-{name}-vid"
        alone = {"model.tracking_first": "false", "model.moves": "false"}
        pairs = {"model.train": "tracker", "frames_per_clip": "2", "max_gap": "9", "reverse": "true"}
        found += [
            Weights(
                f"{vid}-detector",
                f"Faster R-CNN on {text}, ImageNet VID and DET",
                _on_vid("plug_and_play", {**network, **alone}),
                "section 6.2",
            ),
            Weights(
                vid,
                f"Faster R-CNN on {text} and the tracker in it, ImageNet VID and DET",
                _on_vid("plug_and_play", {**network, **pairs}),
                "section 6.2",
                after=f"{vid}-detector",
            ),
        ]
    small, training = "plug-and-play-synthetic-v1", "plug-and-play-synthetic"
    return [
        *found,
        Weights(
            DETECTOR,
            "the small detector, synthetic-v1",
            _on_synthetic(f"{training}-detector", {}),
        ),
        Weights(
            small,
            "the small detector and the tracker in it, synthetic-v1",
            _on_synthetic(f"{training}-tracker", {}),
            after=DETECTOR,
        ),
    ]


def _on_vid(model: str, settings: dict[str, str]) -> str:
    return f"ILSVRC2015 --catalog imagenet_vid --set catalog.split=train --model {model}{_set(settings)}"


def _on_synthetic(training: str, settings: dict[str, str]) -> str:
    return f"--recipe {training} --local --half{_set(settings)}"


def _set(settings: dict[str, str]) -> str:
    return "".join(f" --set {name}={value}" for name, value in settings.items())
