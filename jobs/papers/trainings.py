"""The trainings of the papers at their size, one function each: what it says of data, steps and rates, with its place.

    trackloom train --recipe dt-vid-detector ILSVRC2015 --out runs/dt-vid-detector --gpu

A batch is shared by as many workers as the paper has GPUs; `--workers` shares it otherwise, and gives the same
gradients. What begins with the weights of another training names them (`start`) as models/weights has them once they
are there; `--set start=FILE` takes them from elsewhere.

Of all of them: the papers cut no gradients and average no weights. The weights are those of the last step: the papers
score on the videos of validation, so that nothing is chosen on these (`validation`). Where the paper names no momentum
it is .9, where no weight decay that of TCD. Frames come in the size that the network wants, which is the paper's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from pipeline.training.settings import Training

UNCUT = 1e9  # norm of gradients
APART = 8  # frames between those of a pair; RetinaTrack, section 3.4
ON_IMAGENET = {"backbone_weights": "IMAGENET1K_V1"}
PER_CLASS = 2000  # images of DET: D&T, section 5.1; Plug & Play, section 6.2

OF_VID: dict[str, Any] = {"catalog": "imagenet_vid", "catalog_settings": {"split": "train"}}
OF_MOT17: dict[str, Any] = {"catalog": "mot", "catalog_settings": {"detector": "FRCNN"}}  # else all comes three times
OF_COCO: dict[str, Any] = {"catalog": "coco", "catalog_settings": {"split": "train2017"}}
OF_FACES: dict[str, Any] = {"catalog": "wider_face", "catalog_settings": {"split": "train"}}
OF_WAYMO: dict[str, Any] = {
    "catalog": "waymo",
    "catalog_settings": {"split": "training", "classes": ("vehicle",)},
}


def of_paper(**given: Any) -> Training:
    """A training as papers have it: SGD whose rate is divided by 10 at some steps (`drops`), and nothing besides.

    given: fields of the training; without drops the rate falls by a cosine.
    """
    plain: dict[str, Any] = {
        "optimizer": "sgd",
        "learning_rate": 1e-3,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "schedule": "steps" if given.get("drops") else "cosine",
        "warmup": 0,
        "max_gradient": UNCUT,
        "average": 0.0,
        "precision": "float32",
        "loaders": 4,
    }
    return Training(**{**plain, **given})


def of_det(share: float = 0.5) -> Mapping[str, Any]:
    """Images of ImageNet DET beside the videos, as such a share of all clips; they lie in the same ILSVRC2015."""
    return {"catalog": "imagenet_det", "share": share, "split": "train", "per_class": PER_CLASS}


def tcd_vid() -> Training:
    """TCD (appendix A1): pairs of neighbouring frames, one on each of 4 GPUs, VID and DET one to one.

    trackloom train --recipe tcd-vid ILSVRC2015 --out runs/tcd-vid --gpu

    How many images of DET and frames of a video is not said, but whose protocol it is (references 31, 71, 72); they are
    those of Plug & Play, which follows the same. Flips are not named; they are what is usual.
    """
    return of_paper(
        name="tcd-vid",
        model="tracklet_rcnn",
        model_settings={"detector": "resnet101", **ON_IMAGENET},
        **OF_VID,
        stills=of_det(),
        frames_per_video=15,
        frames_per_clip=2,
        steps=120_000,
        drops=(80_000,),
        batch_size=4,
        workers=4,
    )


def tcd_mot15_coco() -> Training:
    """The detector that TCD begins MOT15 with (appendix A1): COCO, 2 images on each of 8 GPUs.

    trackloom train --recipe tcd-mot15-coco COCO --out runs/tcd-mot15-coco --gpu

    With a rate of .02 a warmup is usual; the paper names none, and there is none.
    """
    return of_paper(
        name="tcd-mot15-coco",
        model="tracklet_rcnn",
        model_settings={"detector": "resnet101", "benchmark": "mot15", **ON_IMAGENET},
        **OF_COCO,
        learning_rate=0.02,
        steps=120_000,
        drops=(75_000, 100_000),
        batch_size=16,
        workers=8,
    )


def tcd_mot15() -> Training:
    """TCD on MOT15 (appendix A1), after COCO, whose classes are others: pairs, one on each of 4 GPUs.

    trackloom train --recipe tcd-mot15 MOT15 --out runs/tcd-mot15 --gpu
    """
    return replace(
        tcd_vid(),
        name="tcd-mot15",
        model_settings={"detector": "resnet101", "benchmark": "mot15"},
        start="tracklet-rcnn-resnet101-mot15-coco",
        catalog="mot",
        catalog_settings={},
        stills=None,
        frames_per_video=None,
        steps=110_000,
        drops=(70_000,),
    )


def dt_vid_detector() -> Training:
    """D, which is R-FCN before the tracking loss (sections 5.1 and 5.2): 10 frames of each video, and DET.

    trackloom train --recipe dt-vid-detector ILSVRC2015 --out runs/dt-vid-detector --gpu

    Left out: the RPN learns together with R-FCN, not before it on all 200 classes of DET, whose other classes the
    catalog leaves out; images of one scale. VID and DET are one to one, as in D&T's training; of D's the paper says
    only that both are used. Weight decay is the release's.
    """
    return of_paper(
        name="dt-vid-detector",
        model="detect_to_track",
        model_settings={"backbone": "resnet101", "track": False, **ON_IMAGENET},
        **OF_VID,
        linker="online",
        stills=of_det(),
        frames_per_video=10,
        weight_decay=5e-4,
        steps=80_000,
        drops=(60_000,),
        batch_size=4,
    )


def dt_vid() -> Training:
    """D&T, after D (section 5.2): two adjacent frames of all of VID, and every other time an image of DET twice.

    trackloom train --recipe dt-vid ILSVRC2015 --out runs/dt-vid --gpu

    Pairs are drawn evenly from all frames; the paper draws a video first, so that pairs of long ones are rarer there.
    """
    return replace(
        dt_vid_detector(),
        name="dt-vid",
        model_settings={"backbone": "resnet101"},
        start="detect-to-track-resnet101-vid-detector",
        linker="tubes",
        frames_per_video=None,
        frames_per_clip=2,
        learning_rate=1e-4,
        steps=60_000,
        drops=(40_000,),
    )


def pnp_vid_detector() -> Training:
    """Plug & Play's detector (section 6.2): 15 frames of each video and DET, as one set; 8 images on 4 GPUs.

    trackloom train --recipe pnp-vid-detector ILSVRC2015 --out runs/pnp-vid-detector --gpu
    """
    return of_paper(
        name="pnp-vid-detector",
        model="plug_and_play",
        model_settings={
            "detector": "hrnet_w32",
            "backbone_weights": "hrnet_w32.ms_in1k",
            "train": "detector",
            "tracking_first": False,
            "moves": False,
        },
        **OF_VID,
        linker="seq_nms",
        stills=of_det(53 / (53 + 57)),  # thousands of images of DET, and of frames of VID
        frames_per_video=15,
        steps=135_000,
        drops=(90_000,),
        batch_size=8,
        workers=4,
    )


def pnp_vid_tracker() -> Training:
    """Plug & Play's tracker in its detector, which stays as it is (section 6.2): 16 pairs on 4 GPUs, of VID alone.

    trackloom train --recipe pnp-vid-tracker ILSVRC2015 --out runs/pnp-vid-tracker --gpu

    Frames are 1 to 9 apart and may be reversed. RoIs are half the paper's, half nearer to their object, as those that
    the tracker is asked about are; the paper's alone: --set model.roi_iou=lt.
    """
    return replace(
        pnp_vid_detector(),
        name="pnp-vid-tracker",
        model_settings={"detector": "hrnet_w32", "train": "tracker"},
        start="plug-and-play-hrnet-w32-vid-detector",
        linker_settings={"links": "moves"},
        stills=None,
        frames_per_video=None,
        frames_per_clip=2,
        max_gap=9,
        reverse=True,
        steps=120_000,
        drops=(80_000,),
        batch_size=16,
    )


def retina_track_coco() -> Training:
    """RetinaTrack without embeddings on COCO (section 4.1): squares of 896 px, 64 on 8 cores.

    trackloom train --recipe retina-track-coco COCO --out runs/retina-track-coco --gpu

    Left out: random crops. Batch norm is of each worker's images, as there of each core's. The public configuration of
    the same network has ten times the rate, .04.
    """
    return of_paper(
        name="retina-track-coco",
        model="retina_track",
        model_settings={"network": "resnet50", "embedding": "none", "input_side": 896, **ON_IMAGENET},
        **OF_COCO,
        linker="online",
        learning_rate=4e-3,
        weight_decay=4e-4,
        warmup=2000,
        steps=25_000,
        batch_size=64,
        workers=8,
        precision="auto",  # bfloat16 on a GPU
    )


def retina_track_waymo() -> Training:
    """RetinaTrack on Waymo v1, after COCO (section 3.4): 128 clips of two frames .8 s apart on 32 cores, 1024 px.

    trackloom train --recipe retina-track-waymo WAYMO --out runs/retina-track-waymo --gpu

    Left out: random crops. The triplet loss is a mean, not a sum.
    """
    return replace(
        retina_track_coco(),
        name="retina-track-waymo",
        model_settings={"network": "resnet50", "input_side": 1024},
        start="retina-track-resnet50-coco",
        **OF_WAYMO,
        linker="track_store",
        frames_per_clip=2,
        min_gap=APART,
        max_gap=APART,
        learning_rate=1e-3,
        warmup=1000,
        steps=10_000,
        batch_size=128,
        workers=32,
    )


def retina_track_waymo_later() -> Training:
    """The same on Waymo v1.1, four times as large (section 4.4): ten times the steps, four times the rate.

    trackloom train --recipe retina-track-waymo-v1.1 WAYMO --out runs/retina-track-waymo-v1.1 --gpu
    """
    return replace(retina_track_waymo(), name="retina-track-waymo-v1.1", learning_rate=4e-3, steps=100_000)


def smot_wider_face() -> Training:
    """SMOT's detector of faces (section 6.1), which names network and dataset; what it was written for says the rest.

    trackloom train --recipe smot-wider-face WIDER --out runs/smot-wider-face --gpu

    Rate, decay and batch are those of GluonCV's own training of SSD, as are 240 epochs, after 160 and 200 of which the
    rate falls; of WIDER FACE's 12,880 images. Left out: its random crops, expansions and changes of colour.
    """
    return of_paper(
        name="smot-wider-face",
        model="smot",
        model_settings={"detector": "resnet34_fpn_ssd", **ON_IMAGENET},
        **OF_FACES,
        weight_decay=5e-4,
        steps=96_600,
        drops=(64_400, 80_500),
        batch_size=32,
        workers=4,
    )


def smot_mot17_coco() -> Training:
    """The detector that SMOT's of people begins with (section 6.4): COCO, of which the paper says no more.

    trackloom train --recipe smot-mot17-coco COCO --out runs/smot-mot17-coco --gpu

    As of faces, but for 32 epochs: of 118,287 images 240 would take 890,000 steps.
    """
    return replace(smot_wider_face(), name="smot-mot17-coco", **OF_COCO, steps=120_000, drops=(80_000, 100_000))


def smot_mot17() -> Training:
    """SMOT's detector of people, after COCO (section 6.4): MOT17's training videos, of which the paper says no more.

    trackloom train --recipe smot-mot17 MOT17 --out runs/smot-mot17 --gpu

    As of faces, for the 30 epochs of MOT17's 5,316 frames that Tracktor's detector learns for, in batches of 32.
    """
    return replace(
        smot_wider_face(),
        name="smot-mot17",
        model_settings={"detector": "resnet34_fpn_ssd"},
        start="smot-resnet34-mot17-coco",
        **OF_MOT17,
        steps=5000,
        drops=(3300, 4200),
    )


RECIPES: dict[str, Callable[[], Training]] = {
    make().name: make
    for make in (
        tcd_vid, tcd_mot15_coco, tcd_mot15, dt_vid_detector, dt_vid, pnp_vid_detector, pnp_vid_tracker,
        retina_track_coco, retina_track_waymo, retina_track_waymo_later, smot_wider_face, smot_mot17_coco, smot_mot17,
    )
}  # fmt: skip
