"""SMOT: tracking by re-detection with the anchors of a single-shot detector.

"SMOT: Single-Shot Multi Object Tracking", section 4. An object that was seen in the last frame is looked for by the
anchors that lie nearest to where it is expected, which is where it was, or where optical flow takes it (section 4.2):
the weighted mean of what they say in this frame is its new box and score (`parts.redetection`). What they no longer
find is terminated. What the detector finds besides becomes a new tracklet. Linking tracklets (section 5) is a linker's
work; the appearance that it goes by is given here.

The paper has one class. Here a tracklet keeps the class it was born with, lives by its score for it, and overlaps count
within a class; or, `across_classes`, an object that for some frames cannot be told is still followed. Frames also give
the detections that no tracklet stands for, so that detection can be scored, and a tracklet's row has the score of the
best detection that it stands for where that is higher than its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from models.parts import flow, redetection, reid, single_shot, weights
from models.parts.anchors import AnchorOutputs
from models.parts.redetection import Rules, Tracks, Weighting, no_tracks
from models.parts.single_shot import TorchvisionDetector
from models.parts.small_detector import SmallDetector

GIVES = frozenset({"tracklet_id"})
LINKER = "keep"
PAPER: Final = "resnet34_fpn_ssd"
FLOW_SIDES = {"farneback": 256, "raft_small": 1024}  # px (section 6.1), where RAFT has the place of PWC-Net

UNIT = (  # in [0, 1]
    "sigma_det",
    "sigma_track",
    "min_anchor_iou",
    "track_nms_iou",
    "max_new_iou",
    "min_score",
    "nms_iou",
    "reid_score",
)
COUNTS = (  # at least 1, an input_side more: see `LEAST_SIDES`
    "input_side",
    "num_anchors",
    "looks",
    "top_k",
    "max_detections",
    "motion_side",
    "reid_every",
    "batch_frames",
)
LEAST_SIDES = {"ssd300_vgg16": 300}  # px; of less nothing is left for its last map; 32 of the others


@dataclass(frozen=True)
class Settings:
    """Which detector, and the thresholds. None stands for the detector's own value, in `DEFAULTS`.

    weights: "default" is what the project ships for `small` and COCO_V1 for torchvision's; the paper's detector has
    none. Otherwise a published name, a path or a URL; "random" leaves the network untrained. backbone_weights: of
    ImageNet, for the paper's detector to begin a training with: IMAGENET1K_V1, a path or a URL.
    classes: names of the classes, for weights that do not say them (and for "random").
    tracking: off, the detector's own findings frame by frame, which "DFS" of Table 1 gives to DeepSORT.
    reid: the network that gives boxes an appearance; reid_weights: as `parts.reid` says. It sees boxes of at least
    reid_score: those of a tracklet at its birth and every `reid_every` frames of its life, which is all that linker
    `tracklets` asks for (section 5: it need not run on each frame); with 1, or without tracking, all boxes of each
    frame, as DeepSORT needs them. Others have zeros, which stand for an unknown appearance.
    """

    detector: Literal[
        "small",
        "resnet34_fpn_ssd",
        "retinanet_resnet50_fpn",
        "retinanet_resnet50_fpn_v2",
        "ssd300_vgg16",
        "ssdlite320_mobilenet_v3_large",
    ] = "small"
    weights: str = "default"
    classes: tuple[str, ...] = ()
    backbone_weights: str = "random"
    input_side: int | None = None  # px, of the square that frames become (Table 4); None: what the detector wants
    tracking: bool = True
    sigma_det: float | None = None  # a detection above it starts a tracklet
    sigma_track: float | None = None  # a re-detection below it ends one
    num_anchors: int | None = None  # K; section 4.1
    # A(a, B) of equation 1: "max" is the paper's K = 1, "iou" its K > 1; "iou_score" (ours) also trusts anchors more
    # that see something
    weighting: Weighting | None = None
    across_classes: bool | None = None  # tracks live by the sum of their class scores, and overlap whatever their class
    looks: int | None = None  # times that equation 1 is applied in a frame: 2 looks again from where 1 found it (ours)
    min_anchor_iou: float = 0.1  # no anchor nearer than this: the track ends (the released code)
    track_nms_iou: float | None = None  # among re-detections; .6 in section 6.1
    max_new_iou: float = 0.3  # a detection nearer to a track than this starts none; section 6.1
    min_score: float | None = None  # of detections that are given out
    nms_iou: float | None = None
    top_k: int | None = None
    max_detections: int | None = None
    motion: flow.Method = "none"  # H of section 4.2
    # px, the short side at which frames are compared, a square's where frames are squares; None: that of `FLOW_SIDES`
    motion_side: int | None = None
    motion_weights: str = "C_T_V2"  # of raft_small: a published name, a path or a URL
    reid: Literal["none", "small", "resnet50"] = "none"
    reid_weights: str = "default"
    reid_score: float = 0.5
    reid_every: int = 10
    batch_frames: int = 8  # frames that the network sees at once

    def __post_init__(self) -> None:
        for name in UNIT:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"smot.{name} is {value}; it must be between 0 and 1")
        for name in COUNTS:
            value = getattr(self, name)
            least = LEAST_SIDES.get(self.detector, 32) if name == "input_side" else 1
            if value is not None and value < least:
                raise ValueError(f"smot.{name} is {value}; it must be at least {least}")
        if self.weighting == "max" and (self.num_anchors or 1) > 1:
            raise ValueError(
                f"smot.num_anchors is {self.num_anchors}; with smot.weighting 'max', by which the nearest alone "
                "counts, it must be 1"
            )
        if self.backbone_weights != "random" and (self.detector != PAPER or self.weights != "random"):
            raise ValueError(
                f"smot.backbone_weights is {self.backbone_weights!r}; it is for smot.detector {PAPER!r} and "
                f"smot.weights 'random', not for {self.detector!r} and {self.weights!r}"
            )
        if self.reid == "none" and self.reid_weights != "default":
            raise ValueError(
                f"smot.reid is 'none', which has no use for smot.reid_weights {self.reid_weights!r}; "
                "it must be 'small' or 'resnet50'"
            )
        if self.motion != "none" and not self.tracking:
            raise ValueError(f"smot.motion is {self.motion!r}; without smot.tracking nothing is moved, use 'none'")

    @property
    def gives(self) -> frozenset[str]:
        """What frames have by these settings."""
        tracklets = GIVES if self.tracking else frozenset()
        return tracklets | ({"embeddings"} if self.reid != "none" else frozenset())


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
    # Ten anchors are those of the paper's SMOT in all its tables; at most a hundred detections its released code's.
    PAPER: replace(_SSD, max_detections=100, num_anchors=10, weighting="iou"),
    "retinanet_resnet50_fpn": _RETINANET,
    "retinanet_resnet50_fpn_v2": _RETINANET,
    "ssd300_vgg16": _SSD,
    "ssdlite320_mobilenet_v3_large": replace(_SSD, min_score=0.001, nms_iou=0.55, top_k=300, max_detections=300),
}
DEFAULT_WEIGHTS = {name: "smot-synthetic-v1" if name == "small" else "COCO_V1" for name in DEFAULTS if name != PAPER}


def build(settings: Settings) -> Model:
    """The model in eval mode, with its weights.

    Raises FileNotFoundError where the weights are not, ValueError where they do not fit the detector or nobody says
    what their classes are called, or where there are none.
    """
    own = settings.detector in ("small", PAPER)
    stored = None
    if settings.weights != "random":
        if settings.weights == "default" and settings.detector not in DEFAULT_WEIGHTS:
            raise ValueError(
                f"there are no default weights of smot.detector {settings.detector!r}; give smot.weights a path or a "
                "URL, or 'random' to train it"
            )
        name = DEFAULT_WEIGHTS[settings.detector] if settings.weights == "default" else settings.weights
        stored = weights.read_weights(name, {} if own else single_shot.published(settings.detector))
    classes = weights.class_names(settings.classes, stored, needed=own)
    if settings.detector == "small":
        detector: Detector = SmallDetector(len(classes))
    else:
        begun = None if settings.backbone_weights == "random" else settings.backbone_weights
        detector, classes = single_shot.build(settings.detector, classes, begun)
    model = Model(settings, detector, classes).eval()
    if stored:
        model.weights = weights.load_weights(model.network, stored)
    return model


Detector = SmallDetector | TorchvisionDetector


class Model(nn.Module):
    """A single-shot detector and the tracker on its anchors; see the package for the contract of all models.

    classes: names of the labels; resize: how large it wants its frames, as keywords of `records.Resize`.
    weights: which were loaded, or None if random.
    """

    frames_before = 0
    frames_after = 0
    extras: Mapping[str, nn.Module] = MappingProxyType({})  # flow and appearance come with weights of their own

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
        self.resize: dict[str, Any] = {}
        if settings.input_side is not None:
            self.resize = {"size": (settings.input_side, settings.input_side)}
        elif settings.detector != "small":
            self.resize = single_shot.ARCHITECTURES[settings.detector].resize
        self.rules = rules(settings)
        self.flow = built_flow(settings)
        self.reid = None if settings.reid == "none" else reid.build(settings.reid, settings.reid_weights)
        self.untrained: tuple[str, ...] = () if self.reid is None or self.reid.trained else ("reid",)
        self.to(memory_format=torch.channels_last)

    @property
    def network(self) -> nn.Module:
        """The module whose state dict is what weight files hold."""
        return self.detector if isinstance(self.detector, SmallDetector) else self.detector.network

    def train(self, mode: bool = True) -> Model:
        """As of any module, but what comes with weights of its own stays as it was trained."""
        super().train(mode)
        for given in (self.flow, self.reid):
            if given is not None:
                given.eval()
        return self

    @torch.no_grad()
    def detect(
        self, clips: Sequence[Tensor], memories: Sequence[object | None]
    ) -> tuple[list[list[dict[str, Tensor]]], list[object]]:
        """Detections and tracklets of the next frames of some clips, and what to remember of each.

        clips: uint8 (T, 3, H, W); memories: what the clip's last call gave back, None at its start. Each frame is a
        dict of CPU tensors: boxes (N, 4) xyxy in the pixels given, scores (N,), labels (N,), and, with tracking,
        tracklet_id (N,), -1 for those no tracklet claims, and tracked (N,), whether it was re-detected; tracklets come
        first. With a ReID network also embeddings (N, E), of unit length or zeros.

        The network sees frames of one clip at a time, `batch_frames` at once, so that a clip's rows do not depend on
        which clips came with it.
        """
        device = next(self.parameters()).device
        found: list[list[dict[str, Tensor]]] = []
        remembered: list[object] = []
        for frames, memory in zip(clips, memories, strict=True):
            known = Memory(no_tracks(len(self.classes)), None) if memory is None else memory
            assert isinstance(known, Memory)
            known = known.to(device)
            rows = []
            for start in range(0, len(frames), self.settings.batch_frames):
                batch = frames[start : start + self.settings.batch_frames].to(device)
                for frame, outputs in zip(batch, self.detector.outputs(batch), strict=True):
                    row, known = self.step(frame, outputs, known)
                    rows.append({name: value.cpu() for name, value in row.items()})
            found.append(rows)
            remembered.append(known.to("cpu"))
        return found, remembered

    def step(self, frame: Tensor, outputs: AnchorOutputs, known: Memory) -> tuple[dict[str, Tensor], Memory]:
        """One frame uint8 (3, H, W), of which the detector says `outputs`, after those that are remembered."""
        if not self.settings.tracking:
            plain = redetection.detect(outputs, self.rules)
            row = {"boxes": plain.boxes, "scores": plain.scores, "labels": plain.labels}
            return self.with_looks(row, frame, known.tracks), known
        moved = None
        if self.flow is not None and known.frame is not None and len(known.tracks.boxes):
            moved = self.flow(known.frame, frame)  # (2, H, W)
        row, tracks = redetection.step(outputs, known.tracks, self.rules, moved)
        return self.with_looks(row, frame, tracks), Memory(tracks, None if self.flow is None else frame)

    def with_looks(self, row: dict[str, Tensor], frame: Tensor, tracks: Tracks) -> dict[str, Tensor]:
        """A frame's row, with embeddings where they are asked for. tracks: the active ones, whose boxes come first."""
        if self.reid is None:
            return row
        due = row["scores"] >= self.settings.reid_score
        if self.settings.tracking and self.settings.reid_every > 1:
            due &= torch.arange(len(due), device=due.device) < len(tracks.boxes)
            due[: len(tracks.boxes)] &= tracks.ages % self.settings.reid_every == 0
        embeddings = row["boxes"].new_zeros(len(due), self.reid.embedding_size)
        if due.any():
            embeddings[due] = self.reid.embed(frame, row["boxes"][due])
        return {**row, "embeddings": embeddings}

    def losses(self, clips: Sequence[Tensor], targets: Sequence[Sequence[dict[str, Tensor]]]) -> dict[str, Tensor]:
        """The detector's losses, each a scalar, over all frames of all clips, which share one size.

        targets: for each frame of each clip boxes (M, 4), labels (M,) and optionally ignore (M,).
        """
        frames = torch.cat(list(clips))
        losses: dict[str, Tensor] = self.detector.losses(frames, [frame for clip in targets for frame in clip])
        return losses


@dataclass(frozen=True)
class Memory:
    """What SMOT remembers: the active tracklets and, where motion is looked for, the last frame uint8 (3, H, W)."""

    tracks: Tracks
    frame: Tensor | None

    def to(self, device: torch.device | str) -> Memory:
        """The same, on a device, and of nothing larger a part."""
        return Memory(self.tracks.to(device), None if self.frame is None else self.frame.to(device).clone())


def built_flow(settings: Settings) -> flow.Flow | None:
    """What motion is seen by, None for nothing; it learns nothing here."""
    if settings.motion == "none":
        return None
    stored = settings.motion_weights if settings.motion == "raft_small" else None
    side = settings.motion_side or FLOW_SIDES[settings.motion]
    return flow.build(settings.motion, stored, side).requires_grad_(False)


def rules(settings: Settings) -> Rules:
    """The settings, with the detector's own value wherever they say None."""
    given = {field.name: value for field in fields(Rules) if (value := getattr(settings, field.name, None)) is not None}
    if given.get("num_anchors", 1) > 1 and "weighting" not in given and DEFAULTS[settings.detector].weighting == "max":
        given["weighting"] = "iou"  # section 4.1: K > 1 is the multi-assignment
    return replace(DEFAULTS[settings.detector], **given)
