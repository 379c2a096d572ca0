"""The trainings of what RetinaTrack and SMOT compare with: Tracktor's detectors, and networks for re-identification.

    trackloom train --recipe reid-mot17 MOT17 --out runs/reid-mot17 --gpu

Of these the papers name little more than network and dataset; each says whose numbers it has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from jobs.papers.trainings import OF_FACES, OF_MOT17, OF_WAYMO, of_paper
from pipeline.training.settings import Training

ON_COCO = "FasterRCNN_ResNet50_FPN_Weights.COCO_V1"  # torchvision's


def tracktor_mot17() -> Training:
    """Tracktor's detector of people (SMOT, section 6.4): torchvision's of COCO, then MOT17, as its release learns.

    trackloom train --recipe tracktor-mot17 MOT17 --out runs/tracktor-mot17 --gpu

    Of the release (tracking_wo_bnw, its notebook): 30 epochs of 5,316 frames, 2 at a time, and a rate of 1e-5, which
    falls after each 10.
    """
    return of_paper(
        name="tracktor-mot17",
        model="tracktor",
        model_settings={"detector": "fasterrcnn_resnet50_fpn"},
        start=ON_COCO,
        **OF_MOT17,
        learning_rate=1e-5,
        weight_decay=5e-4,
        steps=79_740,
        drops=(26_580, 53_160),
        batch_size=2,
    )


def tracktor_wider_face() -> Training:
    """Tracktor's detector of faces (SMOT, section 6.4), which names network and dataset: 12 epochs are ours.

    trackloom train --recipe tracktor-wider-face WIDER --out runs/tracktor-wider-face --gpu

    Begins with COCO's weights. Batch, rate and the steps where it falls are what is usual for Faster R-CNN with FPN:
    16 images, .02, after 8 and 11 of 12 epochs.
    """
    return replace(
        tracktor_mot17(),
        name="tracktor-wider-face",
        **OF_FACES,
        learning_rate=0.02,
        weight_decay=1e-4,
        warmup=500,
        steps=9660,
        drops=(6440, 8855),
        batch_size=16,
        workers=4,
    )


def tracktor_waymo() -> Training:
    """Tracktor's detector of vehicles (RetinaTrack, section 4.4), which names backbone, size and dataset.

    trackloom train --recipe tracktor-waymo WAYMO --out runs/tracktor-waymo --gpu

    As of faces, but on squares of 1024 px, and for 50,000 steps, in which v1's 200,000 frames come four times; that is
    ours. The authors' has no FPN, ours has.
    """
    return replace(
        tracktor_wider_face(),
        name="tracktor-waymo",
        model_settings={"detector": "fasterrcnn_resnet50_fpn", "input_side": 1024},
        **OF_WAYMO,
        steps=50_000,
        drops=(33_000, 45_000),
    )


def reid_mot17() -> Training:
    """The ReID network of Tracktor++ for people (SMOT, section 6.4): TriNet, by the schedule of its own paper.

    trackloom train --recipe reid-mot17 MOT17 --out runs/reid-mot17 --gpu

    Hermans et al. (2017), section 4: Adam at 3e-4, 25,000 steps, which falls from step 15,000 on; here AdamW, by a
    cosine. They show 18 people 4 times each. MOT17 has seven videos, and two clips of one would make people their own
    negatives: a batch is one clip, of 8 frames up to 10 apart, in which all people are.
    """
    return of_paper(
        name="reid-mot17",
        model="tracktor",
        model_settings={
            "detector": "fasterrcnn_resnet50_fpn",
            "train": "reid",
            "reid": "resnet50",
            "reid_weights": "IMAGENET1K_V1",
        },
        start="tracktor-resnet50-mot17",
        **OF_MOT17,
        frames_per_clip=8,
        max_gap=10,
        optimizer="adamw",
        learning_rate=3e-4,
        weight_decay=0.0,
        steps=25_000,
        batch_size=1,
    )


def reid_waymo() -> Training:
    """The same for vehicles (RetinaTrack, section 4.3): 4 clips of 4 frames, which of 3,990 videos are hardly ever one.

    trackloom train --recipe reid-waymo WAYMO --out runs/reid-waymo --gpu
    """
    settings = {**reid_mot17().model_settings, "input_side": 1024}
    return replace(
        reid_mot17(),
        name="reid-waymo",
        model_settings=settings,
        start="tracktor-resnet50-waymo",
        **OF_WAYMO,
        frames_per_clip=4,
        batch_size=4,
    )


def reid_faces() -> Training:
    """The same for faces, on videos of yours with identities in COCO's format (SMOT, section 6.1).

    trackloom train --recipe reid-faces FACES.json --out runs/reid-faces --gpu

    The authors' network learned on photographs, without videos. As there may be few videos, a batch is one clip, of 16
    frames, in which there must be two faces or more.
    """
    return replace(
        reid_mot17(),
        name="reid-faces",
        start="tracktor-resnet50-wider-face",
        catalog="coco",
        catalog_settings={},
        frames_per_clip=16,
    )


RECIPES: dict[str, Callable[[], Training]] = {
    make().name: make
    for make in (tracktor_mot17, tracktor_wider_face, tracktor_waymo, reid_mot17, reid_waymo, reid_faces)
}
