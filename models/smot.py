"""SMOT: tracking by re-detection with the anchors of a single-shot detector.

"SMOT: Single-Shot Multi Object Tracking", section 4. An object that was seen in the last frame is looked for by the
anchors that lie nearest to where it is expected: the weighted mean of what they say in this frame is its new box and
score (equation 1). What they no longer find is terminated. What the detector finds besides becomes a new tracklet.
Linking tracklets (section 5) is a linker's work.

Differences from the paper, which has one class: tracks keep the class they were born with, overlaps count within a
class, and frames also give the detections that no track claims, so that detection can be scored.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou

from models.parts import anchors, single_shot, weights
from models.parts.anchors import AnchorOutputs, has_area
from models.parts.single_shot import TorchvisionDetector
from models.parts.small_detector import SmallDetector

GIVES = frozenset({"tracklet_id"})


@dataclass(frozen=True)
class Settings:
    """Which detector, and the thresholds. None stands for the detector's own value, in `DEFAULTS`.

    weights: "default" is what the project ships for `small` and COCO_V1 for torchvision's; otherwise a published
    name, a path or a URL; "random" leaves the network untrained.
    classes: names of the classes, for weights that do not say them (and for "random").
    """

    detector: Literal[
        "small",
        "retinanet_resnet50_fpn",
        "retinanet_resnet50_fpn_v2",
        "ssd300_vgg16",
        "ssdlite320_mobilenet_v3_large",
    ] = "small"
    weights: str = "default"
    classes: tuple[str, ...] = ()
    sigma_det: float | None = None  # a detection above it starts a tracklet
    sigma_track: float | None = None  # a re-detection below it ends one
    num_anchors: int | None = None  # K; section 4.1
    weighting: Literal["max", "avg", "iou"] | None = None  # A(a, B) of equation 1; "max" is the paper's K = 1
    min_anchor_iou: float = 0.1  # no anchor nearer than this: the track ends (the released code)
    track_nms_iou: float = 0.6  # among re-detections; section 6.1
    max_new_iou: float = 0.3  # a detection nearer to a track than this starts none; section 6.1
    min_score: float | None = None  # of detections that are given out
    nms_iou: float | None = None
    top_k: int | None = None
    max_detections: int | None = None
    batch_frames: int = 8  # frames that the network sees at once

    def __post_init__(self) -> None:
        for name in (
            "sigma_det",
            "sigma_track",
            "min_anchor_iou",
            "track_nms_iou",
            "max_new_iou",
            "min_score",
            "nms_iou",
        ):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"smot.{name} is {value}; it must be between 0 and 1")
        for name in ("num_anchors", "top_k", "max_detections", "batch_frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"smot.{name} is {value}; it must be at least 1")


@dataclass(frozen=True)
class Rules:
    """Settings with every value filled in: what the tracker goes by."""

    sigma_det: float
    sigma_track: float
    min_score: float
    nms_iou: float
    top_k: int
    max_detections: int
    per: Literal["class", "level"]  # what `top_k` counts; see `anchors.detections`
    num_anchors: int = 1
    weighting: Literal["max", "avg", "iou"] = "max"
    min_anchor_iou: float = 0.1
    track_nms_iou: float = 0.6
    max_new_iou: float = 0.3


# min_score to max_detections are torchvision's; the sigmas the paper's (section 6.1) for softmax scores. A focal loss
# rarely gives .9: .5 and .2 are ours, untuned. The small detector's were chosen on synthetic-v1's validation split.
_SSD = Rules(0.9, 0.4, 0.01, 0.45, 400, 200, "class")
_RETINANET = Rules(0.5, 0.2, 0.05, 0.5, 1000, 300, "level")
DEFAULTS = {
    "small": Rules(0.5, 0.2, 0.02, 0.5, 100, 100, "class"),
    "retinanet_resnet50_fpn": _RETINANET,
    "retinanet_resnet50_fpn_v2": _RETINANET,
    "ssd300_vgg16": _SSD,
    "ssdlite320_mobilenet_v3_large": Rules(0.9, 0.4, 0.001, 0.55, 300, 300, "class"),
}
DEFAULT_WEIGHTS = {name: "smot-synthetic-v1" if name == "small" else "COCO_V1" for name in DEFAULTS}


def build(settings: Settings) -> Model:
    """The model in eval mode, with its weights.

    Raises FileNotFoundError where the weights are not, ValueError where they do not fit the detector or nobody says
    what their classes are called.
    """
    own = settings.detector == "small"
    published = {} if own else single_shot.published(settings.detector)
    stored = None
    if settings.weights != "random":
        name = DEFAULT_WEIGHTS[settings.detector] if settings.weights == "default" else settings.weights
        stored = weights.read_weights(name, published)
    classes = settings.classes or tuple(json.loads(stored.metadata.get("classes", "[]")) if stored else ())
    if own:
        if not classes:
            raise ValueError(
                f"weights {settings.weights!r} do not say what their classes are called; "
                "give the names, in order, with the setting classes"
            )
        detector: Detector = SmallDetector(len(classes))
    else:
        outputs = ["__background__", *classes] if classes else single_shot.coco_categories(settings.detector)
        columns = [i for i, name in enumerate(outputs) if name not in ("__background__", "N/A")]
        classes = tuple(outputs[column] for column in columns)
        detector = TorchvisionDetector(settings.detector, len(outputs), columns)
    model = Model(settings, detector, classes).eval()
    if stored:
        model.weights = weights.load_weights(model.network, stored)
    return model


Detector = SmallDetector | TorchvisionDetector


class Model(nn.Module):
    """A single-shot detector and the tracker on its anchors; see the module for the contract of all models.

    classes: names of the labels; resize: how large it wants its frames, as keywords of `records.Resize`.
    weights: which were loaded, or None if random.
    """

    frames_before = 0
    frames_after = 0

    def __init__(
        self,
        settings: Settings,
        detector: Detector,
        classes: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.settings = settings
        self.detector = detector
        self.classes = classes
        self.weights: weights.Report | None = None
        own = settings.detector == "small"
        self.resize: dict[str, Any] = {} if own else single_shot.ARCHITECTURES[settings.detector].resize
        self.rules = rules(settings)
        self.to(memory_format=torch.channels_last)

    @property
    def network(self) -> nn.Module:
        """The module whose state dict is what weight files hold."""
        return self.detector if isinstance(self.detector, SmallDetector) else self.detector.network

    @torch.no_grad()
    def detect(
        self, clips: Sequence[Tensor], memories: Sequence[object | None]
    ) -> tuple[list[list[dict[str, Tensor]]], list[object]]:
        """Detections and tracklets of the next frames of some clips, and what to remember of each.

        clips: uint8 (T, 3, H, W); memories: what the clip's last call gave back, None at its start. Each frame is a
        dict of CPU tensors: boxes (N, 4) xyxy in the pixels given, scores (N,), labels (N,), tracklet_id (N,), -1 for
        those no tracklet claims, tracked (N,), whether it was re-detected. Tracklets come first.

        The network sees frames of one clip at a time, `batch_frames` at once, so that a clip's rows do not depend on
        which clips came with it.
        """
        device = next(self.parameters()).device
        found: list[list[dict[str, Tensor]]] = []
        remembered: list[object] = []
        for frames, memory in zip(clips, memories, strict=True):
            tracks = NO_TRACKS if memory is None else memory
            assert isinstance(tracks, Tracks)
            rows = []
            for start in range(0, len(frames), self.settings.batch_frames):
                batch = frames[start : start + self.settings.batch_frames].to(device)
                for outputs in self.detector.outputs(batch):
                    row, tracks = step(outputs, tracks, self.rules)
                    rows.append(row)
            found.append(rows)
            remembered.append(tracks)
        return found, remembered

    def losses(self, clips: Sequence[Tensor], targets: Sequence[Sequence[dict[str, Tensor]]]) -> dict[str, Tensor]:
        """The detector's losses, each a scalar, over all frames of all clips, which share one size.

        targets: for each frame of each clip boxes (M, 4), labels (M,) and optionally ignore (M,).
        """
        frames = torch.cat(list(clips))
        losses: dict[str, Tensor] = self.detector.losses(frames, [frame for clip in targets for frame in clip])
        return losses


@dataclass(frozen=True)
class Tracks:
    """The active tracklets after a frame, which is all that SMOT remembers: numpy, so that it travels and is saved.

    boxes: float32 (M, 4) in the pixels given; labels, ids: int64 (M,); next_id: of the next tracklet to be born.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]
    next_id: int


NO_TRACKS = Tracks(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64), 0)


def step(outputs: AnchorOutputs, tracks: Tracks, rules: Rules) -> tuple[dict[str, Tensor], Tracks]:
    """One frame (section 4.1, workflow): re-detects the tracklets, ends those it lost, starts new ones.

    What is lost stays lost: a tracklet that is not re-detected is released and never looked for again.
    """
    device = outputs.boxes.device
    labels = torch.from_numpy(tracks.labels).to(device)
    ids = torch.from_numpy(tracks.ids).to(device)
    expected = predict(torch.from_numpy(tracks.boxes).to(device))
    boxes, scores, found = redetect(outputs, expected, labels, rules)

    alive = torch.nonzero(found & (scores >= rules.sigma_track) & has_area(boxes)).squeeze(1)
    alive = alive[batched_nms(boxes[alive], scores[alive], labels[alive], rules.track_nms_iou)]
    alive = alive.sort().values  # oldest first
    boxes, scores, labels, ids = boxes[alive], scores[alive], labels[alive], ids[alive]

    plain = anchors.detections(
        outputs,
        min_score=rules.min_score,
        max_iou=rules.nms_iou,
        top_k=rules.top_k,
        max_detections=rules.max_detections,
        per=rules.per,
    )
    overlap = box_iou(plain.boxes, boxes) * (plain.labels[:, None] == labels)  # (N, M), 0 across classes
    nearest = overlap.max(dim=1).values if len(boxes) else overlap.new_zeros(len(plain.boxes))
    born = (plain.scores > rules.sigma_det) & (nearest <= rules.max_new_iou)
    rest = plain.where(~born & (nearest <= rules.nms_iou))  # a re-detection stands for the detections it covers
    new = plain.where(born)
    new_ids = torch.arange(tracks.next_id, tracks.next_id + len(new.boxes), device=device)

    row = {
        "boxes": torch.cat([boxes, new.boxes, rest.boxes]),
        "scores": torch.cat([scores, new.scores, rest.scores]),
        "labels": torch.cat([labels, new.labels, rest.labels]),
        "tracklet_id": torch.cat([ids, new_ids, torch.full_like(rest.labels, -1)]),
        "tracked": torch.arange(len(boxes) + len(new.boxes) + len(rest.boxes), device=device) < len(boxes),
    }
    row = {name: value.cpu() for name, value in row.items()}
    active = len(boxes) + len(new.boxes)
    return row, Tracks(
        boxes=row["boxes"][:active].numpy().astype(np.float32),
        labels=row["labels"][:active].numpy(),
        ids=row["tracklet_id"][:active].numpy(),
        next_id=tracks.next_id + len(new.boxes),
    )


def predict(boxes: Tensor) -> Tensor:
    """H: where the boxes (M, 4) of the last frame are expected in this one: where they were. Flow is to come here."""
    return boxes


def redetect(outputs: AnchorOutputs, expected: Tensor, labels: Tensor, rules: Rules) -> tuple[Tensor, Tensor, Tensor]:
    """Equation 1: boxes (M, 4) and scores (M,) by the weighted mean of the K anchors nearest to each expected box.

    expected: (M, 4); labels: (M,), whose scores are read. Also (M,), whether an anchor is near enough to be asked.
    """
    if not len(expected):
        return expected, expected.new_zeros(0), torch.zeros(0, dtype=torch.bool, device=expected.device)
    count = 1 if rules.weighting == "max" else min(rules.num_anchors, len(outputs.anchors))
    iou, index = box_iou(expected, outputs.anchors).topk(count)  # (M, K), best first
    weight = iou if rules.weighting == "iou" else torch.ones_like(iou)
    weight = weight / weight.sum(dim=1, keepdim=True).clamp(min=1e-9)
    boxes = (weight[..., None] * outputs.boxes[index]).sum(dim=1)
    scores = (weight * outputs.scores[index, labels[:, None]]).sum(dim=1)
    return boxes, scores, iou[:, 0] >= rules.min_anchor_iou


def rules(settings: Settings) -> Rules:
    """The settings, with the detector's own value wherever they say None."""
    given = {
        field.name: value
        for field in dataclasses.fields(Rules)
        if (value := getattr(settings, field.name, None)) is not None
    }
    return dataclasses.replace(DEFAULTS[settings.detector], **given)
