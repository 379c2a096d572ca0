"""SMOT: tracking by re-detection with the anchors of a single-shot detector.

"SMOT: Single-Shot Multi Object Tracking", section 4. An object that was seen in the last frame is looked for by the
anchors that lie nearest to where it is expected: the weighted mean of what they say in this frame is its new box and
score (equation 1). What they no longer find is terminated. What the detector finds besides becomes a new tracklet.
Linking tracklets (section 5) is a linker's work.

The paper has one class. Here a tracklet keeps the class it was born with, lives by its score for it, and overlaps count
within a class; or, `across_classes`, an object that for some frames cannot be told is still followed. Frames also give
the detections that no tracklet stands for, so that detection can be scored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
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
    # A(a, B) of equation 1: "max" is the paper's K = 1, "iou" its K > 1; "iou_score" (ours) also trusts anchors more
    # that see something
    weighting: Literal["max", "avg", "iou", "iou_score"] | None = None
    across_classes: bool | None = None  # tracks live by the sum of their class scores, and overlap whatever their class
    looks: int | None = None  # times that equation 1 is applied in a frame: 2 looks again from where 1 found it (ours)
    min_anchor_iou: float = 0.1  # no anchor nearer than this: the track ends (the released code)
    track_nms_iou: float | None = None  # among re-detections; .6 in section 6.1
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
        if self.weighting == "max" and (self.num_anchors or 1) > 1:
            raise ValueError(
                f"smot.num_anchors is {self.num_anchors}; with smot.weighting max only the nearest one counts"
            )
        for name in ("num_anchors", "looks", "top_k", "max_detections", "batch_frames"):
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
    weighting: Literal["max", "avg", "iou", "iou_score"] = "max"
    across_classes: bool = False
    looks: int = 1
    min_anchor_iou: float = 0.1
    track_nms_iou: float = 0.6
    max_new_iou: float = 0.3


# min_score to max_detections are torchvision's; the sigmas the paper's (section 6.1) for softmax scores. A focal loss
# rarely gives .9: .5 and .2 are ours, untuned.
_SSD = Rules(sigma_det=0.9, sigma_track=0.4, min_score=0.01, nms_iou=0.45, top_k=400, max_detections=200, per="class")
_RETINANET = Rules(
    sigma_det=0.5, sigma_track=0.2, min_score=0.05, nms_iou=0.5, top_k=1000, max_detections=300, per="level"
)
DEFAULTS = {
    # Chosen on synthetic-v1's validation split, for HOTA of the model's own ids at an mAP no lower than without tracks.
    "small": Rules(
        sigma_det=0.8,
        sigma_track=0.1,
        min_score=0.02,
        nms_iou=0.5,
        top_k=100,
        max_detections=100,
        per="class",
        num_anchors=9,
        weighting="iou_score",
        across_classes=True,
        looks=2,
        track_nms_iou=0.4,
    ),
    "retinanet_resnet50_fpn": _RETINANET,
    "retinanet_resnet50_fpn_v2": _RETINANET,
    "ssd300_vgg16": _SSD,
    "ssdlite320_mobilenet_v3_large": replace(_SSD, min_score=0.001, nms_iou=0.55, top_k=300, max_detections=300),
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
    extras: Mapping[str, nn.Module] = MappingProxyType({})
    untrained: tuple[str, ...] = ()

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
            tracks = no_tracks(len(self.classes)) if memory is None else memory
            assert isinstance(tracks, Tracks)
            tracks = tracks.to(device)
            rows = []
            for start in range(0, len(frames), self.settings.batch_frames):
                batch = frames[start : start + self.settings.batch_frames].to(device)
                for outputs in self.detector.outputs(batch):
                    row, tracks = step(outputs, tracks, self.rules)
                    rows.append(row)
            found.append(rows)
            remembered.append(tracks.to("cpu"))
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
    """The active tracklets after a frame, which is all that SMOT remembers.

    boxes: (M, 4) in the pixels given; labels, ids: int64 (M,); evidence: (M, C), class scores summed since birth;
    next_id: of the next tracklet to be born.
    """

    boxes: Tensor
    labels: Tensor
    ids: Tensor
    evidence: Tensor
    next_id: int

    def where(self, keep: Tensor) -> Tracks:
        """Those that a mask or an index chooses."""
        return Tracks(self.boxes[keep], self.labels[keep], self.ids[keep], self.evidence[keep], self.next_id)

    def to(self, device: torch.device | str) -> Tracks:
        """The same, on a device."""
        boxes, labels, ids, evidence = (t.to(device) for t in (self.boxes, self.labels, self.ids, self.evidence))
        return Tracks(boxes, labels, ids, evidence, self.next_id)


def no_tracks(num_classes: int) -> Tracks:
    """What there is before the first frame."""
    none = torch.zeros(0, dtype=torch.long)
    return Tracks(torch.zeros(0, 4), none, none, torch.zeros(0, num_classes), 0)


def step(outputs: AnchorOutputs, tracks: Tracks, rules: Rules) -> tuple[dict[str, Tensor], Tracks]:
    """One frame (section 4.1, workflow): follows the tracklets, starts new ones, gives out the rest as detections."""
    tracks, scores = follow(outputs, tracks, rules)
    plain = anchors.detections(
        outputs,
        min_score=rules.min_score,
        max_iou=rules.nms_iou,
        top_k=rules.top_k,
        max_detections=rules.max_detections,
        per=rules.per,
    )
    overlap = box_iou(plain.boxes, tracks.boxes)  # (N, M)
    same_class = overlap * (plain.labels[:, None] == tracks.labels)
    nearest = largest(overlap if rules.across_classes else same_class)
    born = (plain.scores > rules.sigma_det) & (nearest <= rules.max_new_iou)
    new = plain.where(born)
    # A re-detection stands for the detections of its class that it covers, so it has the score of the best of them:
    # the mean of K anchors alone would rank it lower and cost .03 mAP on synthetic-v1's validation split.
    covers = same_class > rules.nms_iou
    scores = torch.maximum(scores, largest((covers * plain.scores[:, None]).T))
    rest = plain.where(~born & ~covers.any(dim=1))

    after = Tracks(
        boxes=torch.cat([tracks.boxes, new.boxes]),
        labels=torch.cat([tracks.labels, new.labels]),
        ids=torch.cat([tracks.ids, torch.arange(len(new.boxes), device=scores.device) + tracks.next_id]),
        evidence=torch.cat([tracks.evidence, outputs.scores[new.anchor]]),
        next_id=tracks.next_id + len(new.boxes),
    )
    count = len(after.boxes) + len(rest.boxes)
    row = {
        "boxes": torch.cat([after.boxes, rest.boxes]),
        "scores": torch.cat([scores, new.scores, rest.scores]),
        "labels": torch.cat([after.labels, rest.labels]),
        "tracklet_id": torch.cat([after.ids, torch.full_like(rest.labels, -1)]),
        "tracked": torch.arange(count, device=scores.device) < len(tracks.boxes),
    }
    return {name: value.cpu() for name, value in row.items()}, after


def follow(outputs: AnchorOutputs, tracks: Tracks, rules: Rules) -> tuple[Tracks, Tensor]:
    """The tracklets that are re-detected, oldest first, where they are now, and their scores (M,).

    The others are released and never looked for again.
    """
    boxes, class_scores, found = redetect(outputs, predict(tracks.boxes), rules)
    for _ in range(rules.looks - 1):
        boxes, class_scores, again = redetect(outputs, boxes, rules)
        found &= again
    evidence = tracks.evidence + class_scores
    labels = evidence.argmax(dim=1) if rules.across_classes else tracks.labels
    scores = class_scores.gather(1, labels[:, None]).squeeze(1)
    # What a tracklet lives by, and with which others it may be mistaken for one object.
    life = class_scores.sum(dim=1) if rules.across_classes else scores
    group = torch.zeros_like(labels) if rules.across_classes else labels
    alive = torch.nonzero(found & (life >= rules.sigma_track) & has_area(boxes)).squeeze(1)
    alive = alive[batched_nms(boxes[alive], life[alive], group[alive], rules.track_nms_iou)].sort().values
    return Tracks(boxes, labels, tracks.ids, evidence, tracks.next_id).where(alive), scores[alive]


def predict(boxes: Tensor) -> Tensor:
    """H: where the boxes (M, 4) of the last frame are expected in this one: where they were. Flow is to come here."""
    return boxes


def largest(overlap: Tensor) -> Tensor:
    """The largest of each row of (N, M); 0 where M is 0."""
    return overlap.max(dim=1).values if overlap.shape[1] else overlap.new_zeros(len(overlap))


def redetect(outputs: AnchorOutputs, expected: Tensor, rules: Rules) -> tuple[Tensor, Tensor, Tensor]:
    """Equation 1: boxes (M, 4) and scores (M, C) by the weighted mean of the K anchors nearest to each expected box.

    expected: (M, 4). The third result says of each (M,) whether an anchor was near enough to be asked.
    """
    count = 1 if rules.weighting == "max" else rules.num_anchors
    iou, index = box_iou(expected, outputs.anchors).topk(min(count, len(outputs.anchors)))  # (M, K), best first
    boxes, scores = outputs.boxes[index], outputs.scores[index]  # (M, K, 4), (M, K, C)
    weight = torch.ones_like(iou) if rules.weighting in ("max", "avg") else iou
    if rules.weighting == "iou_score":
        weight = weight * scores.sum(dim=2)
    weight = (weight / weight.sum(dim=1, keepdim=True).clamp(min=1e-9))[..., None]
    found = (iou >= rules.min_anchor_iou).any(dim=1)
    return (weight * boxes).sum(dim=1), (weight * scores).sum(dim=1), found


def rules(settings: Settings) -> Rules:
    """The settings, with the detector's own value wherever they say None."""
    given = {field.name: value for field in fields(Rules) if (value := getattr(settings, field.name, None)) is not None}
    if given.get("num_anchors", 1) > 1 and "weighting" not in given and DEFAULTS[settings.detector].weighting == "max":
        given["weighting"] = "iou"  # section 4.1: K > 1 is the multi-assignment
    return replace(DEFAULTS[settings.detector], **given)
