"""Named trainings: those of the papers (`jobs/papers`), and of the small networks on synthetic-v1.

Each says its command. The project ships the small networks' weights; `models/weights/<name>.md`, written by it, says
what it took and how they score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from jobs.papers import tracktor_trainings, trainings
from pipeline.training.settings import Training

DETECTOR = "plug-and-play-synthetic-v1-detector"  # the small two-stage detector, which others begin with


def small_synthetic() -> Training:
    """SMOT's small detector on the training split of synthetic-v1: the weights that the demo runs on.

    trackloom train --recipe small-synthetic --local --half --out runs/smot-synthetic-v1
        --export models/weights/smot-synthetic-v1.safetensors
    """
    return Training(
        name="small-synthetic",
        model_settings={"detector": "small"},
        catalog_settings={"split": "train"},
        validation={"split": "val"},
        steps=9000,
        learning_rate=3e-3,
        flip_vertical=True,  # a pattern upside down or in other colours is the same pattern
        permute_colours=True,
    )


def plug_and_play_synthetic_detector() -> Training:
    """The small two-stage detector: PnP's tracker is plugged into it, TCD begins with it.

    trackloom train --recipe plug-and-play-synthetic-detector --local --half
        --out runs/plug-and-play-synthetic-v1-detector
        --export models/weights/plug-and-play-synthetic-v1-detector.safetensors
    """
    return replace(
        small_synthetic(),
        name="plug-and-play-synthetic-detector",
        model="plug_and_play",
        model_settings={"detector": "small", "train": "detector", "tracking_first": False, "moves": False},
        linker="seq_nms",
        steps=4000,
    )


def plug_and_play_synthetic_tracker() -> Training:
    """PnP's tracker in the small detector, which stays as it is; on frames up to 9 apart, either way (section 6.2).

    trackloom train --recipe plug-and-play-synthetic-tracker --local --half --out runs/plug-and-play-synthetic-v1
        --export models/weights/plug-and-play-synthetic-v1.safetensors
    """
    return replace(
        small_synthetic(),
        name="plug-and-play-synthetic-tracker",
        model="plug_and_play",
        model_settings={"detector": "small", "train": "tracker", "weights": DETECTOR},
        linker="seq_nms",
        linker_settings={"links": "moves"},
        frames_per_clip=2,
        max_gap=9,
        reverse=True,
        batch_size=4,
        steps=3000,
        learning_rate=2e-3,
    )


def tracklet_rcnn_synthetic() -> Training:
    """TCD on the small detector, trained before, both stages conditioned; on neighbouring frames (appendix A1).

    Objects of one frame are told apart too (`negatives`): the paper's loss leaves their embeddings alike.

    trackloom train --recipe tracklet-rcnn-synthetic --local --half --out runs/tracklet-rcnn-synthetic-v1
        --export models/weights/tracklet-rcnn-synthetic-v1.safetensors
    """
    return replace(
        small_synthetic(),
        name="tracklet-rcnn-synthetic",
        model="tracklet_rcnn",
        model_settings={"detector": "small", "negatives": "other_objects", "weights": DETECTOR},
        frames_per_clip=2,
        batch_size=4,
        steps=3000,
        learning_rate=1e-3,
    )


def detect_to_track_synthetic() -> Training:
    """D&T on the small backbone; on neighbouring frames (section 5.2).

    trackloom train --recipe detect-to-track-synthetic --local --half --out runs/detect-to-track-synthetic-v1
        --export models/weights/detect-to-track-synthetic-v1.safetensors
    """
    return replace(
        small_synthetic(),
        name="detect-to-track-synthetic",
        model="detect_to_track",
        model_settings={"backbone": "small"},
        linker="tubes",
        frames_per_clip=2,
        batch_size=4,
    )


def retina_track_synthetic() -> Training:
    """RetinaTrack on SMOT's small body, detection and embeddings together; on frames 8 apart (section 3.4).

    As the paper's begins with COCO's weights, it begins with what has learned the patterns: from nothing about 2,000
    steps pass before the first class is told from another.

    trackloom train --recipe retina-track-synthetic --local --half --out runs/retina-track-synthetic-v1
        --export models/weights/retina-track-synthetic-v1.safetensors
    """
    return replace(
        small_synthetic(),
        name="retina-track-synthetic",
        model="retina_track",
        model_settings={"network": "small", "backbone_weights": "smot-synthetic-v1"},
        linker="track_store",
        frames_per_clip=2,
        min_gap=trainings.APART,
        max_gap=trainings.APART,
        batch_size=4,
        steps=3000,
        learning_rate=3e-3,
    )


def tracktor_synthetic() -> Training:
    """The ReID network of Tracktor++, beside the small detector, trained before; clips tell identities apart.

    trackloom train --recipe tracktor-synthetic --local --half --out runs/tracktor-synthetic-v1
        --export models/weights/tracktor-synthetic-v1.safetensors
    """
    return replace(
        small_synthetic(),
        name="tracktor-synthetic",
        model="tracktor",
        model_settings={"detector": "small", "train": "reid", "reid": "small", "weights": DETECTOR},
        linker="keep",
        frames_per_clip=4,
        max_gap=10,
        batch_size=8,
        steps=2000,
        learning_rate=2e-3,
    )


RECIPES: dict[str, Callable[[], Training]] = {  # ours last: what they teach is what is proposed where it lacks
    **trainings.RECIPES,
    **tracktor_trainings.RECIPES,
    "small-synthetic": small_synthetic,
    "plug-and-play-synthetic-detector": plug_and_play_synthetic_detector,
    "plug-and-play-synthetic-tracker": plug_and_play_synthetic_tracker,
    "tracklet-rcnn-synthetic": tracklet_rcnn_synthetic,
    "detect-to-track-synthetic": detect_to_track_synthetic,
    "retina-track-synthetic": retina_track_synthetic,
    "tracktor-synthetic": tracktor_synthetic,
}
