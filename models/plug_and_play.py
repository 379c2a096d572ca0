"""Plug & Play: a tracker plugged into a two-stage detector that stays as it is.

"Plug & Play Convolutional Regression Tracker for Video Object Detection". The boxes of a frame are followed to the next
one by a small network on the detector's own features (section 4: `parts.regression_tracker`); where a followed box and
a detection show one object the followed one is taken (section 5, tracking-first detection: `parts.tracking_first`), so
that sequences have no holes. Linking and rescoring them (Seq-NMS, or Seq-Track-NMS by the moves given here) is a
linker's work.

Where the paper is silent: tracked boxes are proposals to the detector's second stage, which moves and classifies them
(its figure 8 shows "detection from the combined proposals", and its speed falls by more than the tracker's 3 ms);
`regress_tracked` off leaves them where the tracker put them, and what is carried far drifts. Both networks learn apart
(section 6.2), so `train` says which one does. Trackers that need no training are not the paper's; they are there for
detectors that come with weights while no tracker does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.parts import detectors, tracking_first, weights
from models.parts.anchors import clip
from models.parts.faster_rcnn import FasterRcnn
from models.parts.flow import Farneback, move_boxes
from models.parts.lock_step import lock_step
from models.parts.paper_detectors import PaperDetector
from models.parts.regression_tracker import (
    RegressionTracker,
    RoiIou,
    freeze,
    merge_levels,
    paired_iou,
    rois_and_goals,
)
from models.parts.tracking_first import Moves, Rows, Rules
from models.parts.two_stage import Features, TwoStage

GIVES = frozenset({"moves"})
LINKER = "seq_nms"

PAPERS = ("hrnet_w32", "resnext101_fpn_dcn")
MIN_SCORE, NMS_IOU = 0.03, 0.45  # of the papers' detectors (sections 6.2 and 6.4)
FLOW_SIDE = 256  # px, the size at which frames are compared; SMOT's


@dataclass(frozen=True)
class Settings:
    """Which detector and which tracker, what they are for, and the paper's thresholds (sections 5 and 6.2).

    weights: "default" is what the project ships for `small` and COCO_V1 for torchvision's; otherwise a published
    name, a path or a URL; "random" leaves the network untrained. classes: their names, for weights that do not say
    them (and for "random"). backbone_weights: of ImageNet, for the paper's detectors to begin a training with: a name
    that timm or torchvision has for them, a path or a URL.
    tracker: "learned" is the paper's. "regression" looks with the detector's second stage where the box was (Tracktor),
    "farneback" moves the box by optical flow; neither needs training.
    """

    detector: Literal[
        "small",
        "hrnet_w32",
        "resnext101_fpn_dcn",
        "fasterrcnn_resnet50_fpn",
        "fasterrcnn_resnet50_fpn_v2",
        "fasterrcnn_mobilenet_v3_large_fpn",
        "fasterrcnn_mobilenet_v3_large_320_fpn",
    ] = "small"
    weights: str = "default"
    classes: tuple[str, ...] = ()
    backbone_weights: str = "random"
    tracker: Literal["learned", "regression", "farneback"] = "learned"
    tracking_first: bool = True  # off: what the detector finds in each frame by itself
    moves: bool = True  # every box says where it goes, for Seq-Track-NMS; frames then come one late
    min_score: float | None = None  # of detections; None: .03 for the paper's detectors, others have their own
    nms_iou: float | None = None  # among detections of a class; None: .45 for the paper's detectors
    carry_score: float = 0.03  # boxes of a class score above it are tracked
    min_quality: float = 0.5  # least IoU that the tracker must expect of a box to keep it
    tracked_nms_iou: float = 0.7  # among tracked boxes; the surer stays
    merge_iou: float = 0.7  # T_nmsmerge: detections this near to a tracked box go; the paper also tried .3
    max_tracked: int = 100  # ours: tracked background would add up
    regress_tracked: bool = True  # the second stage moves what the learned tracker tracked, as it does proposals
    tracker_channels: int | None = None  # None: the paper's 256, 16 for small
    train: Literal["detector", "tracker"] = "detector"  # what `losses` teaches; the other one is frozen
    roi_iou: RoiIou = "mix"  # what the tracker learns on, see `regression_tracker.sample_rois`; the paper's is "lt"
    per_object: int | None = None  # RoIs of each object; None: the paper's 128, 16 for small
    batch_frames: int = 8  # frames that the detector sees at once

    def __post_init__(self) -> None:
        for name in ("min_score", "nms_iou", "carry_score", "min_quality", "tracked_nms_iou", "merge_iou"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"plug_and_play.{name} is {value}; it must be between 0 and 1")
        for name in ("max_tracked", "tracker_channels", "per_object", "batch_frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"plug_and_play.{name} is {value}; it must be at least 1")
        if self.backbone_weights != "random" and (self.detector not in PAPERS or self.weights != "random"):
            raise ValueError(
                f"plug_and_play.backbone_weights is {self.backbone_weights!r}; it is for weights 'random' and detector "
                f"{' or '.join(PAPERS)}, not for weights {self.weights!r} and detector {self.detector!r}"
            )
        if self.train == "tracker" and self.tracker != "learned":
            raise ValueError(
                f"plug_and_play.train is 'tracker', but plug_and_play.tracker {self.tracker!r} has nothing to learn; "
                "it must be 'learned'"
            )

    @property
    def gives(self) -> frozenset[str]:
        """What frames have by these settings."""
        return GIVES if self.moves else frozenset()


def build(settings: Settings) -> Model:
    """The model in eval mode, with its weights.

    Raises FileNotFoundError where the weights are not, ValueError where they do not fit the detector or the tracker or
    nobody says what their classes are called.
    """
    options = {"backbone_weights": settings.backbone_weights} if settings.detector in PAPERS else {}
    default = "plug-and-play-synthetic-v1"
    built = detectors.build(settings.detector, settings.weights, settings.classes, default, options)
    model = Model(settings, built.detector, built.classes).eval()
    if built.stored:
        model.weights = weights.load_weights(model.network, built.stored, extras=model.extras)
    return model


class Model(nn.Module):
    """A two-stage detector, the tracker, and what is made of both; see the package for the contract of all models.

    classes: names of the labels; resize: how large it wants its frames, as keywords of `records.Resize`.
    weights: which were loaded, or None if random. tracks: whether a tracker has anything to do at all.
    """

    frames_before = 0

    def __init__(self, settings: Settings, detector: TwoStage, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.settings = settings
        self.detector = detector
        self.classes = classes
        self.resize: dict[str, Any] = dict(detector.resize)
        self.frames_after = int(settings.moves)  # where a box goes is known once the next frame is seen
        self.tracks = settings.moves or settings.tracking_first
        self.weights: weights.Report | None = None
        self.per_object = settings.per_object or (16 if settings.detector == "small" else 128)
        if settings.detector in PAPERS:
            detector.limits = replace(detector.limits, min_score=MIN_SCORE, max_iou=NMS_IOU)
        if settings.min_score is not None:
            detector.limits = replace(detector.limits, min_score=settings.min_score)
        if settings.nms_iou is not None:
            detector.limits = replace(detector.limits, max_iou=settings.nms_iou)
        # Always there, whatever tracker is used, so that all files of weights have one form.
        inputs, stride = self.measured()
        channels = settings.tracker_channels or (16 if settings.detector == "small" else 256)
        self.tracker = RegressionTracker(inputs, stride, channels)
        self.flow = Farneback(FLOW_SIDE)
        self.rules = Rules(
            min_score=settings.carry_score,
            min_quality=settings.min_quality,
            nms_iou=settings.tracked_nms_iou,
            merge_iou=settings.merge_iou,
            max_tracked=settings.max_tracked if settings.tracking_first else 0,  # tracked for their moves alone
        )
        self.to(memory_format=torch.channels_last)

    @property
    def network(self) -> nn.Module:
        """The module whose state dict is what weight files hold of the detector."""
        return self.detector.network

    @property
    def extras(self) -> dict[str, nn.Module]:
        """What weight files hold besides."""
        return {"tracker": self.tracker}

    @property
    def untrained(self) -> tuple[str, ...]:
        """The parts in use that no weights were loaded for."""
        used = self.tracks and self.settings.tracker == "learned"
        return ("tracker",) if used and (self.weights is None or "tracker" in self.weights.missing) else ()

    def train(self, mode: bool = True) -> Model:
        """As of any module, but what `settings.train` does not name stays frozen, its batch norms too (section 6.2)."""
        super().train(mode)
        freeze(self.tracker if self.settings.train == "detector" else self.detector)
        return self

    @torch.no_grad()
    def detect(
        self, clips: Sequence[Tensor], memories: Sequence[object | None]
    ) -> tuple[list[list[dict[str, Any]]], list[object]]:
        """The frames of some clips that are ready, and what to remember of each clip.

        clips: uint8 (T, 3, H, W); memories: what the clip's last call gave back, None at its start. Each frame is a
        dict of CPU tensors: boxes (N, 4) xyxy in the pixels given, scores (N,), labels (N,), tracked (N,), the tracked
        ones first, the surest of them first. With `settings.moves` each frame waits for the next one and then has
        moves, one for each of its boxes (section 6.4), also those that the tracker is unsure of.

        The detector sees frames of all clips together, the tracker one frame of one clip at a time.
        """
        device = next(self.parameters()).device
        known = [memory.to(device) if isinstance(memory, Memory) else None for memory in memories]
        found: list[list[dict[str, Any]]] = [[] for _ in clips]
        for together in lock_step(clips, self.settings.batch_frames):
            looks = self.look(torch.cat(list(together.values())).to(device))
            for number, frames in together.items():
                for _ in frames:
                    look = next(looks)
                    before = known[number]
                    rows, moves = self.follow(before, look) if before else (look.detections, None)
                    if not self.settings.moves:
                        found[number].append(as_frame(rows))
                    elif before:
                        found[number].append(as_frame(before.rows, moves))
                    known[number] = Memory(rows, look.seen) if self.tracks else None
        return found, [memory.to("cpu") if memory else None for memory in known]

    def finish(self, memories: Sequence[object | None]) -> list[list[dict[str, Any]]]:
        """The last frame of each clip, whose boxes have no moves; none of a clip without frames."""
        return [
            [as_frame(memory.rows, no_moves(memory.rows))] if isinstance(memory, Memory) else [] for memory in memories
        ]

    def losses(self, clips: Sequence[Tensor], targets: Sequence[Sequence[dict[str, Tensor]]]) -> dict[str, Tensor]:
        """The losses of what `settings.train` names, each a scalar, over all clips, which share one size.

        The detector learns on every frame, the tracker to get from each clip's first frame to its last (how far apart,
        and which way round, is the sampler's choice); of a single frame it learns to find the object without motion.
        RoIs are drawn by torch's global generator. targets: for each frame of each clip boxes (M, 4), labels (M,),
        track_ids (M,), -1 where unknown, and optionally ignore (M,).
        """
        if self.settings.train == "detector":
            return self.detector.losses(torch.cat(list(clips)), [target for clip in targets for target in clip])
        pairs = torch.stack([frame for clip in clips for frame in (clip[0], clip[-1])])  # (2P, 3, H, W)
        with torch.no_grad():
            features = self.merged(self.detector.features(pairs))
        sampled = [
            rois_and_goals(clip[0], clip[-1], torch.default_generator, self.settings.roi_iou, self.per_object)
            for clip in targets
        ]
        rois, goals = zip(*sampled, strict=True)
        return self.tracker.losses(features[0::2], features[1::2], rois, goals, (pairs.shape[-2], pairs.shape[-1]))

    def merged(self, features: Features) -> Tensor:
        """The detector's features as the tracker wants them, (N, C, rows, columns)."""
        return merge_levels(*tracking_levels(self.detector, features))

    @torch.no_grad()
    def measured(self) -> tuple[int, int]:
        """C of `merged` and its stride, by trying it."""
        side = 64
        self.detector.eval()
        merged = self.merged(self.detector.features(torch.zeros((1, 3, side, side), dtype=torch.uint8)))
        return merged.shape[1], side // merged.shape[-1]

    def look(self, frames: Tensor) -> Iterator[Look]:
        """uint8 (N, 3, H, W) -> for each frame what the detector makes of it, alone."""
        size = (frames.shape[-2], frames.shape[-1])
        features = self.detector.features(frames)
        dense = self.detector.dense(features, size)
        regions = self.detector.head(features, self.detector.proposals(dense), size)
        if not self.tracks or self.settings.tracker == "regression":
            seen = frames.new_zeros(len(frames), 0)
        else:
            seen = frames if self.settings.tracker == "farneback" else self.merged(features)
        for number, of_frame in enumerate(regions):
            found, _ = self.detector.detected(of_frame, size)
            detections = Rows(found.boxes, found.scores, found.labels, torch.zeros_like(found.labels, dtype=torch.bool))
            own = tuple(level[number : number + 1] for level in features)
            yield Look(size, own, detections, seen[number])

    def follow(self, before: Memory, look: Look) -> tuple[Rows, Moves]:
        """The rows of a frame, and where those of the frame before have gone."""
        return tracking_first.step(
            before.rows,
            look.detections,
            partial(self.track, before.seen, look),
            partial(self.classify, look),
            self.rules,
        )

    def track(self, before: Tensor, look: Look, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Where boxes (U, 4) of the frame before are in this one, clipped to it (U, 4), and their expected IoU (U,)."""
        if self.settings.tracker == "learned":
            ends, quality = self.tracker.track(before, look.seen, boxes, look.size)
            return (self.regressed(look, ends)[0] if self.settings.regress_tracked else ends), quality
        if self.settings.tracker == "regression":
            # Tracktor (Bergmann et al., 2019): a box is regressed from where it was, for its best class, and lives by
            # its score for being any object, .5 there too, which tells less of the IoU than a tracker that learned it.
            return self.regressed(look, boxes)
        # The IoU of a box with itself after going there and back (the forward-backward error of Kalal et al., 2010).
        there, back = self.flow(before, look.seen), self.flow(look.seen, before)
        ends = move_boxes(boxes, there)
        return clip(ends, look.size), paired_iou(move_boxes(ends, back), boxes)

    def regressed(self, look: Look, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Where the second stage moves boxes (K, 4) of a frame for their best class, and 1 - P(background) (K,)."""
        moved, scores = self.detector.regressed(look.features, boxes, look.size)  # (K, C, 4), (K, C + 1)
        best = scores[:, 1:].argmax(dim=1)
        return moved[torch.arange(len(boxes), device=boxes.device), best], 1 - scores[:, 0]

    def classify(self, look: Look, boxes: Tensor) -> Tensor:
        """The detector's scores (K, C) of the classes of boxes (K, 4) of a frame."""
        return self.detector.regressed(look.features, boxes, look.size)[1][:, 1:]


def tracking_levels(detector: TwoStage, features: Features) -> tuple[Features, int]:
    """Those of the features that the tracker reads, finest first, and which of them gives the size to merge at.

    Of a pyramid that is the middle three levels (appendix), P3 to P5, at P4; torchvision's small one has but two. Of
    the small detector it is all that there are, at the coarsest.
    """
    if isinstance(detector, PaperDetector):
        return detector.tracking_levels(features), detector.tracking_level
    if isinstance(detector, FasterRcnn):
        maps = dict(zip(detector.map_names, features, strict=True))
        network: Any = detector.network
        names = [name for name in network.roi_heads.box_roi_pool.featmap_names if name in maps][-3:]
        return tuple(maps[name] for name in names), len(names) - 2
    return features, len(features) - 1


@dataclass(frozen=True)
class Look:
    """One frame of `size` (height, width): its features (1, D, h, w), what the detector finds by itself, and `seen`,

    what the tracker needs of it: merged features (C, rows, columns), the frame itself, or nothing (0,).
    """

    size: tuple[int, int]
    features: Features
    detections: Rows
    seen: Tensor


@dataclass(frozen=True)
class Memory:
    """All that is remembered: the last frame's rows, which may still wait for their moves, and `Look.seen` of it."""

    rows: Rows
    seen: Tensor

    def to(self, device: torch.device | str) -> Memory:
        """The same, on a device, and of nothing larger a part."""
        rows = (self.rows.boxes, self.rows.scores, self.rows.labels, self.rows.tracked)
        return Memory(Rows(*(each.to(device) for each in rows)), self.seen.to(device).clone())


def no_moves(rows: Rows) -> Moves:
    """Of a clip's last frame."""
    return Moves(rows.boxes[:0], rows.scores[:0])


def as_frame(rows: Rows, moves: Moves | None = None) -> dict[str, Any]:
    """A frame by the contract of all models. moves: of all rows, or of none."""
    frame: dict[str, Any] = {"boxes": rows.boxes, "scores": rows.scores, "labels": rows.labels, "tracked": rows.tracked}
    frame = {name: value.cpu() for name, value in frame.items()}
    if moves is not None:
        count = len(moves.ends)
        frame["moves"] = {
            "start": frame["boxes"][:count],
            "end": moves.ends.cpu(),
            "scores": moves.quality.cpu(),
            "box_id": torch.arange(count),
            "stride": 1,
        }
    return frame
