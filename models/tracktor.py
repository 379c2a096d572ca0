"""Tracktor and Tracktor++: a two-stage detector that tracks by what it does anyway, regressing boxes.

"Tracking without bells and whistles" (Bergmann et al., 2019), which RetinaTrack (figures 7 and 9) and SMOT (tables 1
and 4) compare with. The second stage is asked about the boxes of the last frame's tracks as if they were proposals: it
moves them to where the objects are now, and its scores say which are still there (section 2.2; the rules are those of
`parts.regressed_tracks`). Nothing is trained for it. Tracktor++ (section 2.3) adds two things: boxes are first moved
with the camera (`parts.camera_motion`), and a detection that looks like a track that ended takes it up again
(`parts.reid`).

Where this differs from the released tracker: there may be several classes, a track keeps its own; frames also give the
detections that no track stands for, so that detection can be scored; and the model of constant velocity for videos of
few frames a second is not here, which RetinaTrack's comparison does not name either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.parts import camera_motion, detectors, regressed_tracks, reid, weights
from models.parts.anchors import PlainDetections
from models.parts.lock_step import lock_step
from models.parts.regressed_tracks import Rules, State, no_tracks
from models.parts.regression_tracker import freeze
from models.parts.reid import Reid
from models.parts.two_stage import Features, TwoStage

GIVES = frozenset({"tracklet_id"})
LINKER = "keep"

UNIT = ("sigma_det", "sigma_active", "track_nms_iou", "max_new_iou", "reid_iou", "min_score", "nms_iou")  # in [0, 1]
LEAST = {"reid_frames": 1, "batch_frames": 1, "input_side": 32, "camera_side": 1}


@dataclass(frozen=True)
class Settings:
    """Which detector, what Tracktor++ adds, and the thresholds of the released tracker.

    weights: "default" is what the project ships for `small` and COCO_V1 for torchvision's; otherwise a published
    name, a path or a URL; "random" leaves the network untrained. classes: their names, for weights that do not say
    them (and for "random").
    reid_weights: "default" is what `weights` hold beside the detector; otherwise a name, a path or a URL of weights of
    that network, alone or beside a detector, or "random".
    """

    detector: Literal[
        "small",
        "fasterrcnn_resnet50_fpn",
        "fasterrcnn_resnet50_fpn_v2",
        "fasterrcnn_mobilenet_v3_large_fpn",
        "fasterrcnn_mobilenet_v3_large_320_fpn",
    ] = "small"
    weights: str = "default"
    classes: tuple[str, ...] = ()
    camera: Literal["none", "ecc"] = "none"  # Tracktor++: "ecc"
    camera_side: int | None = None  # px: larger frames are aligned at this short side; None: as they are (released)
    reid: Literal["none", "small", "resnet50"] = "none"  # Tracktor++: "resnet50"
    reid_weights: str = "default"
    sigma_det: float = 0.5  # a detection above it starts a track
    sigma_active: float = 0.5  # a track that scores no more than it ends
    track_nms_iou: float = 0.6  # lambda_active: among tracks; the better stays
    max_new_iou: float = 0.3  # lambda_new: a detection nearer to a track than this, or to a better one, starts none
    patience: int = 50  # frames that an ended track waits to be re-identified
    reid_iou: float = 0.2  # least overlap of a detection with where such a track was last, moved with the camera
    # In [0, 2]; 1 is a cosine of .5, what `track_store` asks for. The released 2.0 is of embeddings of any length. The
    # small network tells pairs apart best at .6, but where a track was lost hardly anyone else is: .8 and .6 gained
    # nothing on synthetic-v1's validation split.
    reid_distance: float = 1.0
    reid_frames: int = 10  # an appearance is the mean of so many last embeddings
    min_score: float | None = None  # of detections that are given out; None: the detector's own
    nms_iou: float | None = None  # among those of a class; None: the detector's own
    input_side: int | None = None  # px: frames as squares of this side, 1024 in figure 7 of RetinaTrack
    train: Literal["detector", "reid"] = "detector"  # what `losses` teaches; the other one is frozen
    batch_frames: int = 8  # frames that the detector sees at once

    def __post_init__(self) -> None:
        for name in UNIT:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"tracktor.{name} is {value}; it must be between 0 and 1")
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"tracktor.{name} is {value}; it must be at least {least}")
        if self.patience < 0:
            raise ValueError(f"tracktor.patience is {self.patience}; it must be at least 0")
        if not 0 <= self.reid_distance <= 2:
            raise ValueError(f"tracktor.reid_distance is {self.reid_distance}; it must be between 0 and 2")
        if self.reid == "none" and self.reid_weights != "default":
            raise ValueError(
                f"tracktor.reid is 'none', which has no use for tracktor.reid_weights {self.reid_weights!r}; "
                "it must be 'small' or 'resnet50'"
            )
        if self.train == "reid" and self.reid == "none":
            raise ValueError(
                "tracktor.train is 'reid', but tracktor.reid 'none' has nothing to learn; "
                "it must be 'small' or 'resnet50'"
            )


def build(settings: Settings) -> Model:
    """The model in eval mode, with its weights.

    Raises FileNotFoundError where the weights are not, ValueError where they do not fit the detector or the ReID
    network or nobody says what their classes are called.
    """
    built = detectors.build(settings.detector, settings.weights, settings.classes, "tracktor-synthetic-v1")
    beside = settings.reid_weights == "default"  # of the detector, in one file
    network = None
    if settings.reid != "none":
        network = reid.build(settings.reid, "random" if beside else settings.reid_weights)
    model = Model(settings, built.detector, built.classes, network).eval()
    if stored := built.stored:
        if network is None or not beside:  # a ReID network that the file holds too is of no use
            stored = stored.without(reid.PREFIX)
        elif any(name.startswith(reid.PREFIX) for name in stored.tensors):
            reid.own_tensors(network, stored)  # says so where it is of another kind
        model.weights = weights.load_weights(model.network, stored, extras=model.extras)
        if network is not None and beside:
            network.trained = not model.weights.missing
    return model


class Model(nn.Module):
    """A two-stage detector, the tracks that it follows, and a ReID network; see the package for the contract of models.

    classes: names of the labels; resize: how large it wants its frames, as keywords of `records.Resize`.
    weights: which were loaded, or None if random. reid: None where `settings.reid` is "none".
    """

    frames_before = 0
    frames_after = 0

    def __init__(self, settings: Settings, detector: TwoStage, classes: tuple[str, ...], network: Reid | None) -> None:
        super().__init__()
        self.settings = settings
        self.detector = detector
        self.reid = network
        self.classes = classes
        side = settings.input_side
        self.resize: dict[str, Any] = dict(detector.resize) if side is None else {"size": (side, side)}
        self.weights: weights.Report | None = None
        limits: dict[str, Any] = {"min_score": settings.min_score, "max_iou": settings.nms_iou}
        detector.limits = replace(detector.limits, **{name: one for name, one in limits.items() if one is not None})
        given = {field.name: getattr(settings, field.name) for field in fields(Rules) if hasattr(settings, field.name)}
        self.rules = Rules(**{**given, "covered_iou": detector.limits.max_iou})
        if network is None:
            self.rules = replace(self.rules, patience=None)
        else:
            network.requires_grad_(settings.train == "reid")
        self.to(memory_format=torch.channels_last)

    @property
    def network(self) -> nn.Module:
        """The module whose state dict is what weight files hold of the detector."""
        return self.detector.network

    @property
    def extras(self) -> Mapping[str, nn.Module]:
        """What weight files hold besides."""
        return {} if self.reid is None else {"reid": self.reid}

    @property
    def untrained(self) -> tuple[str, ...]:
        """The parts in use that no weights were loaded for."""
        return () if self.reid is None or self.reid.trained else ("reid",)

    def train(self, mode: bool = True) -> Model:
        """As of any module, but what `settings.train` does not name stays frozen, its batch norms too."""
        super().train(mode)
        if self.settings.train == "reid":
            freeze(self.detector)
        elif self.reid is not None:
            freeze(self.reid)
        return self

    @torch.no_grad()
    def detect(
        self, clips: Sequence[Tensor], memories: Sequence[object | None]
    ) -> tuple[list[list[dict[str, Tensor]]], list[object]]:
        """Detections and tracks of the next frames of some clips, and what to remember of each.

        clips: uint8 (T, 3, H, W); memories: what the clip's last call gave back, None at its start. Each frame is a
        dict of CPU tensors: boxes (N, 4) xyxy in the pixels given, scores (N,), labels (N,), tracklet_id (N,), -1 for
        those that no track stands for, tracked (N,), whether it was followed here. Tracks come first.

        The detector sees frames of all clips together; then its second stage is asked about all tracks of a frame at
        once, the ReID network about them and the new ones.
        """
        device = next(self.parameters()).device
        known = [(memory if isinstance(memory, Memory) else self.start()).to(device) for memory in memories]
        found: list[list[dict[str, Tensor]]] = [[] for _ in clips]
        for together in lock_step(clips, self.settings.batch_frames):
            looks = self.look(torch.cat(list(together.values())).to(device))
            for number, frames in together.items():
                for _ in frames:
                    row, known[number] = self.follow(known[number], next(looks))
                    found[number].append({name: value.cpu() for name, value in row.items()})
        return found, [memory.to("cpu") for memory in known]

    def losses(self, clips: Sequence[Tensor], targets: Sequence[Sequence[dict[str, Tensor]]]) -> dict[str, Tensor]:
        """The losses of what `settings.train` names, each a scalar, over all frames of all clips, which share one size.

        targets: for each frame of each clip boxes (M, 4), labels (M,), track_ids (M,), -1 where unknown, and optionally
        ignore (M,). The detector has no use for track_ids, the ReID network none for labels.
        """
        if self.settings.train == "reid":
            assert self.reid is not None
            losses: dict[str, Tensor] = self.reid.losses(clips, targets)
            return losses
        return self.detector.losses(torch.cat(list(clips)), [target for clip in targets for target in clip])

    def start(self) -> Memory:
        """What is known before a clip's first frame."""
        none = no_tracks(self.settings.reid_frames, 0 if self.reid is None else self.reid.embedding_size)
        return Memory(State(none, none, 0))

    def look(self, frames: Tensor) -> Iterator[Look]:
        """uint8 (N, 3, H, W) -> for each frame what the detector makes of it, alone."""
        size = (frames.shape[-2], frames.shape[-1])
        features = self.detector.features(frames)
        regions = self.detector.head(features, self.detector.proposals(self.detector.dense(features, size)), size)
        for number, of_frame in enumerate(regions):
            detections, _ = self.detector.detected(of_frame, size)
            own = tuple(level[number : number + 1] for level in features)
            yield Look(frames[number], size, own, detections)

    def follow(self, memory: Memory, look: Look) -> tuple[dict[str, Tensor], Memory]:
        """The rows of a frame, and what is remembered after it."""
        state, grey = memory.state, None
        if self.settings.camera == "ecc":
            grey = camera_motion.grey(look.frame, self.settings.camera_side)
            if memory.grey is not None and len(state.active.ids) + len(state.inactive.ids):
                state = state.moved(camera_motion.ecc(memory.grey, grey, look.size))

        def regress(boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            moved, probabilities = self.detector.regressed(look.features, boxes, look.size)
            row = torch.arange(len(boxes), device=boxes.device)
            return moved[row, labels], probabilities[row, labels + 1]

        def embed(boxes: Tensor) -> Tensor:
            return boxes.new_zeros(len(boxes), 0) if self.reid is None else self.reid.embed(look.frame, boxes)

        row, state = regressed_tracks.step(state, look.detections, regress, embed, self.rules)
        return row, Memory(state, grey)


@dataclass(frozen=True)
class Look:
    """A frame (3, H, W) of `size` (height, width), its features (1, D, h, w), and what the detector finds by itself."""

    frame: Tensor
    size: tuple[int, int]
    features: Features
    detections: PlainDetections


@dataclass(frozen=True)
class Memory:
    """All that is remembered: the tracks, and with camera motion the last frame as uint8 (h, w), on the CPU."""

    state: State
    grey: Tensor | None = None

    def to(self, device: torch.device | str) -> Memory:
        """The same with the tracks on a device."""
        return Memory(self.state.to(device), self.grey)
