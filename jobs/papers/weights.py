"""The weights that recipes of the papers name, and what trains them: a named training, and what is changed of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import models
from jobs.papers.retinatrack import HEADS
from jobs.papers.tracklet_conditioned_detection import SMALL_AGGREGATE
from jobs.trainings import DETECTOR
from pipeline.recipe import Recipe

SHIPPED = Path(models.__file__).parent / "weights"  # where models find weights by their name
FASTER_RCNN, TRINET = "Faster R-CNN on ResNet-50 with FPN", "TriNet on ResNet-50"
SETTINGS = ("weights", "reid_weights")  # of models: what names a file


@dataclass(frozen=True)
class Weights:
    """name: they are found as models/weights/<name>.safetensors, once somebody has put them there.

    what: the network, and what it learns on, in a few words. training: the arguments of `trackloom train` for both; how
    long, with which images and learning rates, is in the named training. after: names the weights that it begins with,
    where others of these; empty where it begins with published ones, or from nothing.
    """

    name: str
    what: str
    training: str
    after: str = ""

    @property
    def are_here(self) -> bool:
        """Whether the project holds them."""
        return (SHIPPED / f"{self.name}.safetensors").is_file()

    @property
    def command(self) -> str:
        """What trains them."""
        return f"trackloom train {self.training} --out runs/{self.name} --export models/weights/{self.name}.safetensors"


def needed_by(recipe: Recipe) -> dict[str, Weights]:
    """The weights that a recipe names, by the setting that names them; not the model's own, nor a user's file."""
    named = {setting: str(recipe.model_settings.get(setting)) for setting in SETTINGS}
    return {setting: known()[name] for setting, name in named.items() if name in known()}


def check_start(name: str, start: str) -> None:
    """Raises ValueError where the training of that name begins with weights of these that are not here; says how."""
    needed = known().get(start)
    if needed and not needed.are_here:
        raise ValueError(
            f"training {name} begins with the weights {start} ({needed.what}), and they are not here; give a file with "
            f"--set start=FILE, or train them (`{needed.command}`)"
        )


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
    # What the small network begins with, and its steps: what is added learns beside what is known already.
    before = {"-dcn": ("", "1500"), "-dcn-fgfa": ("-dcn", "1000")}
    small = "tracklet-rcnn-synthetic-v1"
    found = []
    for ending, (text, settings) in variants.items():
        aggregates = "model.aggregate" in settings
        flow = {"model.aggregate_flow": "raft_small"} if aggregates else {}
        fewer = {"model.aggregate": str(SMALL_AGGREGATE)} if aggregates else {}
        own, after = {**settings, **fewer}, DETECTOR
        if ending in before:
            earlier, steps = before[ending]
            after = f"{small}{earlier}"
            own |= {"model.weights": "random", "start": after, "steps": steps}
        found += [
            Weights(
                f"tracklet-rcnn-resnet101-vid{ending}",
                f"TCD on ResNet-101{text}, ImageNet VID and DET",
                _at_their_size("tcd-vid", "ILSVRC2015", {**settings, **flow}),
            ),
            Weights(
                f"{small}{ending}",
                f"the small TCD{text}, synthetic-v1",
                _on_synthetic("tracklet-rcnn-synthetic", own),
                after=after,
            ),
        ]
    mot15 = "tracklet-rcnn-resnet101-mot15"
    return [
        *found,
        Weights(
            f"{mot15}-coco", "TCD's detector on ResNet-101, for MOT15, COCO", _at_their_size("tcd-mot15-coco", "COCO")
        ),
        Weights(mot15, "TCD on ResNet-101, MOT15", _at_their_size("tcd-mot15", "MOT15"), after=f"{mot15}-coco"),
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
        vid = f"detect-to-track-{name}-vid"
        network = {"model.backbone": name.replace("-", "_")}
        begun, start = {"model.backbone_weights": on_imagenet}, {"start": f"{vid}-detector"}
        if name == "resnet101":  # the named training's own
            network = begun = start = {}
        found += [
            Weights(
                f"{vid}-detector",
                f"D (R-FCN) on {text}, ImageNet VID and DET",
                _at_their_size("dt-vid-detector", "ILSVRC2015", {**network, **begun}),
            ),
            Weights(
                vid,
                f"D&T on {text}, ImageNet VID and DET",
                _at_their_size("dt-vid", "ILSVRC2015", {**network, **start}),
                after=f"{vid}-detector",
            ),
        ]
    small, training = "detect-to-track-synthetic-v1", "detect-to-track-synthetic"
    return [
        *found,
        Weights(small, "the small D&T, synthetic-v1", _on_synthetic(training)),
        Weights(
            f"{small}-detector",
            "the small D (R-FCN), synthetic-v1",
            _on_synthetic(training, {"model.track": "false", "frames_per_clip": "1"}),
        ),
    ]


def plug_and_play() -> list[Weights]:
    """PnP's: for each detector itself, and with the tracker, which is trained in it while it stays as it is."""
    heavy = "plug-and-play-resnext101-fpn-dcn-vid"
    network = {"model.detector": "resnext101_fpn_dcn"}
    begun = {**network, "model.backbone_weights": "resnext101_32x4d.gluon_in1k"}
    detectors: dict[str, tuple[str, dict[str, str], dict[str, str]]] = {
        "plug-and-play-hrnet-w32-vid": ("HRNet-W32", {}, {}),
        heavy: ("ResNeXt-101 with FPN and DCNv2", begun, {**network, "start": f"{heavy}-detector"}),
    }
    found = []
    for vid, (text, alone, tracked) in detectors.items():
        found += [
            Weights(
                f"{vid}-detector",
                f"Faster R-CNN on {text}, ImageNet VID and DET",
                _at_their_size("pnp-vid-detector", "ILSVRC2015", alone),
            ),
            Weights(
                vid,
                f"Faster R-CNN on {text}, and the tracker in it, ImageNet VID",
                _at_their_size("pnp-vid-tracker", "ILSVRC2015", tracked),
                after=f"{vid}-detector",
            ),
        ]
    training = "plug-and-play-synthetic"
    return [
        *found,
        Weights(DETECTOR, "the small detector, synthetic-v1", _on_synthetic(f"{training}-detector")),
        Weights(
            "plug-and-play-synthetic-v1",
            "the small detector and the tracker in it, synthetic-v1",
            _on_synthetic(f"{training}-tracker"),
            after=DETECTOR,
        ),
    ]


def retina_track() -> list[Weights]:
    """RetinaTrack's: a network for each head, on COCO without embeddings, on Waymo and synthetic-v1 also with them."""
    head = {name: {f"model.{key}": str(value) for key, value in settings.items()} for name, settings in HEADS.items()}
    without, plain = {"model.embedding": "none"}, {"model.embedding": "instance"}
    # Which of COCO's it begins with, what it is, and its settings.
    variants: dict[str, tuple[str, str, dict[str, str]]] = {
        "": ("", "RetinaTrack", {}),
        "1-3": ("1-3", "RetinaTrack with m1 = 1, m2 = 3", head["1-3"]),
        "2-2": ("2-2", "RetinaTrack with m1 = 2, m2 = 2", head["2-2"]),
        "m3-0": ("", "RetinaTrack with m3 = 0", {"model.m3": "0"}),
        "m3-4": ("", "RetinaTrack with m3 = 4", {"model.m3": "4"}),
        "no-triplet": ("", "RetinaTrack without triplet loss", plain),
        "star-separate": ("separate", "RetinaNet* with separate task weights", head["separate"]),
        "star-shared": ("shared", "RetinaNet* with shared task weights", head["shared"]),
        "separate": ("separate", "RetinaNet with separate task weights", head["separate"] | without),
        "shared": ("shared", "RetinaNet with shared task weights", head["shared"] | without),
        "k1-separate": ("k1-separate", "RetinaNet with separate task weights, K = 1", head["k1-separate"]),
        "k1-shared": ("k1-shared", "RetinaNet with shared task weights, K = 1", head["k1-shared"]),
    }
    of_twins = {name: (text, settings) for name, (_, text, settings) in variants.items()} | {
        f"k1-plain-{name}": (f"{variants[f'k1-{name}'][1]}, no embeddings", head[f"k1-{name}"] | without)
        for name in ("separate", "shared")
    }
    coco, waymo = "retina-track-resnet50-coco", "retina-track-resnet50-waymo"
    found = [
        Weights(
            _ended(coco, name),
            f"{variants[name][1]}, no embeddings, on ResNet-50, COCO",
            _at_their_size("retina-track-coco", "COCO", settings),
        )
        for name, settings in head.items()
    ]
    later = {name: variants[name] for name in ("", "no-triplet")}
    for release, of_release in (("", variants), ("v1.1", later)):
        for name, (begun, text, settings) in of_release.items():
            start = {"start": _ended(coco, begun)} if begun else {}
            found.append(
                Weights(
                    _ended(_ended(waymo, release), name),
                    f"{text} on ResNet-50, {' '.join(['Waymo', release]).strip()}",
                    _at_their_size(_ended("retina-track-waymo", release), "WAYMO", {**settings, **start}),
                    after=_ended(coco, begun),
                )
            )
    return found + [
        Weights(
            _ended("retina-track-synthetic-v1", name),
            f"the small {text} on the body of SMOT's small detector, synthetic-v1",
            _on_synthetic("retina-track-synthetic", settings),
            after="smot-synthetic-v1",
        )
        for name, (text, settings) in of_twins.items()
    ]


def smot() -> list[Weights]:
    """SMOT's detectors; what tracks by re-detection learns nothing."""
    network, mot17 = "SSD on ResNet-34 with FPN", "smot-resnet34-mot17"
    return [
        Weights("smot-resnet34-wider-face", f"{network}, WIDER FACE", _at_their_size("smot-wider-face", "WIDER")),
        Weights(f"{mot17}-coco", f"{network}, for MOT17, COCO", _at_their_size("smot-mot17-coco", "COCO")),
        Weights(mot17, f"{network}, MOT17", _at_their_size("smot-mot17", "MOT17"), after=f"{mot17}-coco"),
        Weights("smot-synthetic-v1", "the small detector of SMOT, synthetic-v1", _on_synthetic("small-synthetic")),
    ]


def tracktor() -> list[Weights]:
    """The detectors of Tracktor and, learned beside them, the ReID networks of Tracktor++, SMOT, and RetinaTrack's."""
    found = []
    for release in ("waymo", "waymo-v1.1"):
        start = {"start": f"tracktor-resnet50-{release}"} if release != "waymo" else {}
        found += _with_reid(release, release.replace("waymo", "Waymo").replace("-", " "), "WAYMO", "waymo", start)
    found += _with_reid("mot17", "MOT17", "MOT17", "mot17")
    faces = "tracktor-resnet50-wider-face"
    found += [
        Weights(faces, f"{FASTER_RCNN}, WIDER FACE", _at_their_size("tracktor-wider-face", "WIDER")),
        Weights(
            "reid-resnet50-faces",
            f"{TRINET}, any videos of faces with identities",
            _at_their_size("reid-faces", "FACES.json"),
            after=faces,
        ),
    ]
    return [
        *found,
        Weights(
            "tracktor-synthetic-v1",
            "the small detector and the small ReID network beside it, synthetic-v1",
            _on_synthetic("tracktor-synthetic"),
            after=DETECTOR,
        ),
    ]


def _with_reid(
    name: str, text: str, source: str, training: str, start: Mapping[str, str] = MappingProxyType({})
) -> list[Weights]:
    """A detector of Tracktor's and the ReID network beside it, which learns on the same videos."""
    detector = f"tracktor-resnet50-{name}"
    return [
        Weights(detector, f"{FASTER_RCNN}, {text}", _at_their_size(f"tracktor-{training}", source)),
        Weights(
            f"reid-resnet50-{name}",
            f"{TRINET}, {text}",
            _at_their_size(f"reid-{training}", source, start),
            after=detector,
        ),
    ]


def _ended(name: str, ending: str) -> str:
    return f"{name}-{ending}" if ending else name


def _at_their_size(training: str, source: str, settings: Mapping[str, str] = MappingProxyType({})) -> str:
    return f"--recipe {training} {source} --gpu{_set(settings)}"


def _on_synthetic(training: str, settings: Mapping[str, str] = MappingProxyType({})) -> str:
    return f"--recipe {training} --local --half{_set(settings)}"


def _set(settings: Mapping[str, str]) -> str:
    return "".join(f" --set {name}={value}" for name, value in settings.items())
