"""The weights that recipes of the papers name, and what trains them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import models
from jobs.papers.retinatrack import HEADS
from jobs.trainings import DETECTOR
from pipeline.recipe import Recipe

SHIPPED = Path(models.__file__).parent / "weights"  # where models find weights by their name
SETTINGS = ("weights", "reid_weights")  # of models: what names a file
MOT17 = "MOT17/train --catalog mot --set catalog.detector=FRCNN"
WAYMO = "waymo --catalog waymo --set catalog.split=training --set catalog.classes=vehicle"
APART = {"frames_per_clip": "2", "min_gap": "8", "max_gap": "8"}  # RetinaTrack, section 3.4
ON_IMAGENET = {"model.backbone_weights": "IMAGENET1K_V1"}
# What papers begin with COCO begins otherwise here.
FROM_IMAGENET = ", but from weights of ImageNet: those of COCO are of other classes"
FROM_NOTHING = ", but from nothing: weights of COCO are of other classes"


@dataclass(frozen=True)
class Weights:
    """name: they are found as models/weights/<name>.safetensors, once somebody has put them there.

    what: the network, and what it learns on, in a few words. training: the arguments of `trackloom train` for both; how
    long, with which images and learning rates, is in the paper (`schedule`), or else in the named training.
    after: names the weights that the training begins with; start: the model's setting that takes them.
    """

    name: str
    what: str
    training: str
    schedule: str = ""
    after: str = ""
    start: str = "weights"

    @property
    def are_here(self) -> bool:
        """Whether the project holds them."""
        return (SHIPPED / f"{self.name}.safetensors").is_file()

    @property
    def command(self) -> str:
        """What trains them."""
        begins = f" --set model.{self.start}=models/weights/{self.after}.safetensors" if self.after else ""
        return f"trackloom train {self.training}{begins} --output models/weights/{self.name}.safetensors"


def needed_by(recipe: Recipe) -> dict[str, Weights]:
    """The weights that a recipe names, by the setting that names them; not the model's own, nor a user's file."""
    named = {setting: str(recipe.model_settings.get(setting)) for setting in SETTINGS}
    return {setting: known()[name] for setting, name in named.items() if name in known()}


def can_run(recipe: Recipe) -> bool:
    """Whether a recipe needs nothing but its videos: no weights that are still to be trained."""
    return all(needed.are_here for needed in needed_by(recipe).values())


@lru_cache(maxsize=1)
def known() -> dict[str, Weights]:
    """All weights of all papers, by name."""
    papers = (tracklet_rcnn(), detect_to_track(), plug_and_play(), retina_track(), smot(), tracktor())
    return {found.name: found for weights in papers for found in weights}


def tracklet_rcnn() -> list[Weights]:
    """TCD's: one network for most rows, others for what Tables 2 and 4 train anew, and for MOT15."""
    resnet = {"model.detector": "resnet101", **ON_IMAGENET, "frames_per_clip": "2"}
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
            "TCD on ResNet-101, MOT15",
            f"MOT15/train --catalog mot --model tracklet_rcnn{_set(mot)}",
            f"appendix A1{FROM_IMAGENET}",
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


def retina_track() -> list[Weights]:
    """RetinaTrack's: a network for each head, on COCO without embeddings, on Waymo and synthetic-v1 also with them."""
    head = {name: {f"model.{key}": str(value) for key, value in settings.items()} for name, settings in HEADS.items()}
    without, plain = {"model.embedding": "none"}, {"model.embedding": "instance"}
    variants: dict[str, tuple[str, dict[str, str]]] = {
        "": ("RetinaTrack", {}),
        "1-3": ("RetinaTrack with m1 = 1, m2 = 3", head["1-3"]),
        "2-2": ("RetinaTrack with m1 = 2, m2 = 2", head["2-2"]),
        "m3-0": ("RetinaTrack with m3 = 0", {"model.m3": "0"}),
        "m3-4": ("RetinaTrack with m3 = 4", {"model.m3": "4"}),
        "no-triplet": ("RetinaTrack without triplet loss", plain),
        "star-separate": ("RetinaNet* with separate task weights", head["separate"]),
        "star-shared": ("RetinaNet* with shared task weights", head["shared"]),
        "separate": ("RetinaNet with separate task weights", head["separate"] | without),
        "shared": ("RetinaNet with shared task weights", head["shared"] | without),
        "k1-separate": ("RetinaNet with separate task weights, K = 1", head["k1-separate"]),
        "k1-shared": ("RetinaNet with shared task weights, K = 1", head["k1-shared"]),
    }
    of_twins = {
        f"k1-plain-{name}": (f"{variants[f'k1-{name}'][0]}, no embeddings", head[f"k1-{name}"] | without)
        for name in ("separate", "shared")
    }
    resnet = {"model.network": "resnet50", **ON_IMAGENET}
    coco = "coco --catalog coco --set catalog.split=train2017 --model retina_track"
    found = [
        Weights(
            _ended("retina-track-resnet50-coco", name),
            f"{variants[name][0]}, no embeddings, on ResNet-50, COCO",
            coco + _set({**resnet, **settings, **without}),
            "section 4.1",
        )
        for name, settings in head.items()
    ]
    later = {name: variants[name] for name in ("", "no-triplet")}
    for release, section, of_release in (("", "section 3.4", variants), ("v1.1", "section 4.4", later)):
        found += [
            Weights(
                _ended(_ended("retina-track-resnet50-waymo", release), name),
                f"{text} on ResNet-50, {' '.join(['Waymo', release]).strip()}",
                _on_waymo("retina_track", {**resnet, **settings, **APART}),
                f"{section}{FROM_IMAGENET}",
            )
            for name, (text, settings) in of_release.items()
        ]
    return found + [
        Weights(
            _ended("retina-track-synthetic-v1", name),
            f"the small {text} on the body of SMOT's small detector, synthetic-v1",
            _on_synthetic("retina-track-synthetic", settings),
            after="smot-synthetic-v1",
            start="backbone_weights",
        )
        for name, (text, settings) in (variants | of_twins).items()
    ]


def smot() -> list[Weights]:
    """SMOT's detectors; what tracks by re-detection learns nothing."""
    network = {"model.detector": "resnet34_fpn_ssd", **ON_IMAGENET}
    return [
        Weights(
            "smot-resnet34-wider-face",
            "SSD on ResNet-34 with FPN, WIDER FACE",
            f"WIDER --catalog wider_face --set catalog.split=train --model smot{_set(network)}",
            "section 6.1",
        ),
        Weights(
            "smot-resnet34-mot17",
            "SSD on ResNet-34 with FPN, MOT17",
            f"{MOT17} --model smot{_set(network)}",
            f"section 6.4{FROM_IMAGENET}",
        ),
        Weights("smot-synthetic-v1", "the small detector of SMOT, synthetic-v1", _on_synthetic("small-synthetic", {})),
    ]


def tracktor() -> list[Weights]:
    """The detectors of Tracktor and, learned beside them, the ReID networks of Tracktor++, SMOT, and RetinaTrack's."""
    detector = {"model.detector": "fasterrcnn_resnet50_fpn"}
    reid = {**detector, "model.train": "reid", "model.reid": "resnet50", "model.reid_weights": "IMAGENET1K_V1"}
    clips = {"frames_per_clip": "4", "max_gap": "10"}
    mot = f"{MOT17} --model tracktor"
    found = []
    for release, text in (("waymo", "Waymo"), ("waymo-v1.1", "Waymo v1.1")):
        found += [
            Weights(
                f"tracktor-resnet50-{release}",
                f"Faster R-CNN on ResNet-50 with FPN, {text}",
                _on_waymo("tracktor", detector),
                "section 4.4",
            ),
            Weights(
                f"reid-resnet50-{release}",
                f"TriNet on ResNet-50, {text}",
                _on_waymo("tracktor", {**reid, **clips}),
                "section 4.3",
                after=f"tracktor-resnet50-{release}",
            ),
        ]
    return [
        *found,
        Weights(
            "tracktor-resnet50-wider-face",
            "Faster R-CNN on ResNet-50 with FPN, WIDER FACE",
            f"WIDER --catalog wider_face --set catalog.split=train --model tracktor{_set(detector)}",
            "section 6.4",
        ),
        Weights(
            "reid-resnet50-faces",
            "TriNet on ResNet-50, any videos of faces with identities",
            f"FACES.json --catalog coco --model tracktor{_set({**reid, **clips})}",
            "section 6.1, but that its own network learned on photographs",
            after="tracktor-resnet50-wider-face",
        ),
        Weights(
            "tracktor-resnet50-mot17",
            "Faster R-CNN on ResNet-50 with FPN, MOT17",
            f"{mot}{_set(detector)}",
            f"section 6.4{FROM_NOTHING}",
        ),
        Weights(
            "reid-resnet50-mot17",
            "TriNet on ResNet-50, MOT17",
            f"{mot}{_set({**reid, **clips})}",
            "section 6.4",
            after="tracktor-resnet50-mot17",
        ),
        Weights(
            "tracktor-synthetic-v1",
            "the small detector and the small ReID network beside it, synthetic-v1",
            _on_synthetic("tracktor-synthetic", {}),
            after=DETECTOR,
        ),
    ]


def _on_waymo(model: str, settings: dict[str, str]) -> str:
    return f"{WAYMO} --model {model}{_set(settings)}"


def _ended(name: str, ending: str) -> str:
    return f"{name}-{ending}" if ending else name


def _on_vid(model: str, settings: dict[str, str]) -> str:
    return f"ILSVRC2015 --catalog imagenet_vid --set catalog.split=train --model {model}{_set(settings)}"


def _on_synthetic(training: str, settings: dict[str, str]) -> str:
    return f"--recipe {training} --local --half{_set(settings)}"


def _set(settings: dict[str, str]) -> str:
    return "".join(f" --set {name}={value}" for name, value in settings.items())
