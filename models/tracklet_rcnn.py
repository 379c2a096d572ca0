"""TCD: a two-stage detector whose scores are conditioned on the tracklets of the frames before.

"Integrated Object Detection and Tracking with Tracklet-Conditioned Detection", Algorithm 2: an anchor, and then a
region, that looks like a tracklet is likely to be of the tracklet's class (`parts.conditioning`, equations 1 to 7); the
boxes left after non-maximum suppression continue tracklets or start some (`parts.tracklets`), and each tracklet's
classes and embeddings follow its boxes (equations 3 and 8). Conditioned in neither stage it is Algorithm 1, sequential
detection and tracking, to which PropagateBox and RescoreBox may be added.

Where the paper is silent:
- Suppression is by class, but a tracklet's box has one distribution over all: see `parts.tracklet_boxes`.
- A box starts a tracklet only if it is an object to `start_score`; see `parts.tracklets.update`.
- Algorithm 1 has no P_tr; here it is the plain mean (beta 1), which is also RescoreBox.
- PropagateBox moves what was in the last frame, and copies P_tr (section 2.5). A box that looks like its tracklet, as
  background may, would be copied for ever; so it ends `propagate_frames` after the last box that was not a copy, which
  is how far the implementation that the paper follows looks to each side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.parts import detectors, flow, pair_training, weights
from models.parts.aggregation import Aggregation
from models.parts.anchors import clip, has_area
from models.parts.conditioning import Conditioning
from models.parts.deformable import deform
from models.parts.embeddings import Embeddings, Kind
from models.parts.lock_step import lock_step
from models.parts.tracking_loss import Negatives
from models.parts.tracklet_boxes import distinct, given_out
from models.parts.tracklets import Seen, Tracklets, associate, no_tracklets, rescore_boxes, update
from models.parts.two_stage import Dense, Features, Regions, TwoStage

GIVES = frozenset({"tracklet_id", "class_scores"})
LINKER = "keep"
DEFAULT_WEIGHTS = "tracklet-rcnn-synthetic-v1"  # of the small detector
PAPER_DETECTORS = ("resnet50", "resnet101")
# The small network's counterparts of conv3 to conv5, and of FGFA's embedding network.
SMALL_STAGES = ("body.3", "coarse")
SMALL_WIDTHS = (64, 64, 128)


@dataclass(frozen=True)
class Settings:
    """Which detector, how it is conditioned, and the constants; None stands for the detector's own value.

    weights: "default" is what the project ships for `small` and COCO_V1 for torchvision's; otherwise a published
    name, a path or a URL; "random" leaves the network untrained. classes: names, for weights that do not say them.
    condition: in which stages (Table 1); "none" is Algorithm 1, and only it has propagate, the flow that moves boxes,
    and rescore. embedding: see `parts.embeddings`; fc7 needs no training, for weights that have no embeddings, and
    stage 1 cannot be conditioned by it. negatives: see `parts.tracking_loss`. gate, gate_scale, max_tracklets: see
    `parts.conditioning`; start_score, max_age: see `parts.tracklets.update`.
    """

    detector: Literal[
        "small",
        "resnet50",
        "resnet101",
        "fasterrcnn_resnet50_fpn",
        "fasterrcnn_resnet50_fpn_v2",
        "fasterrcnn_mobilenet_v3_large_fpn",
        "fasterrcnn_mobilenet_v3_large_320_fpn",
    ] = "small"
    weights: str = "default"
    classes: tuple[str, ...] = ()
    condition: Literal["both", "stage_1", "stage_2", "none"] = "both"
    alpha: float = 1.0  # equation 2
    beta: float = 0.99  # equation 3
    gamma: float = 8.0  # equation 4
    eta: float = 0.8  # equation 8
    null: float = 0.3  # R of equation 5
    embedding: Kind = "separate_2fc"
    negatives: Negatives = "paper"
    deformable: bool = False  # DCNv2 (Table 4), not of torchvision's detectors
    aggregate: int = 0  # frames before this one whose features are averaged with its own: FGFA (Table 4)
    aggregate_flow: flow.Method = "farneback"
    benchmark: Literal["vid", "mot15"] = "vid"  # whose sizes and anchors resnet50 and resnet101 have (appendix A1)
    backbone_weights: str = "random"  # of resnet50 and resnet101, to begin a training with
    gate: Literal["none", "overlap"] = "none"
    gate_scale: float = 2.0
    max_tracklets: int | None = None
    start_score: float = 0.2
    max_age: int | None = None
    propagate: flow.Method = "none"
    propagate_frames: int = 3
    rescore: bool = False
    flow_weights: str = "C_T_V2"  # of raft_small: a published name, a path or a URL
    flow_short_side: int | None = None  # px, at which frames are compared
    num_proposals: int | None = None
    nms_iou: float | None = None
    min_score: float | None = None  # of detections that are given out, and of boxes that continue tracklets
    max_detections: int | None = None
    batch_frames: int = 8  # frames that the network sees at once

    def __post_init__(self) -> None:
        try:
            self.rule()
        except ValueError as error:
            raise ValueError(f"tracklet_rcnn.{error}") from None
        for name in ("beta", "eta", "start_score", "nms_iou", "min_score"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"tracklet_rcnn.{name} is {value}; it must be between 0 and 1")
        for name in (
            "max_age",
            "propagate_frames",
            "flow_short_side",
            "num_proposals",
            "max_detections",
            "batch_frames",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"tracklet_rcnn.{name} is {value}; it must be at least 1")
        if self.aggregate < 0:
            raise ValueError(f"tracklet_rcnn.aggregate is {self.aggregate}; it must not be negative")
        for name, off, able in (
            ("deformable", False, ("small", *PAPER_DETECTORS)),
            ("benchmark", "vid", PAPER_DETECTORS),
            ("backbone_weights", "random", PAPER_DETECTORS),
        ):
            if getattr(self, name) != off and self.detector not in able:
                raise ValueError(
                    f"tracklet_rcnn.{name} is {getattr(self, name)!r}, which detector {self.detector} does not have; "
                    f"with it tracklet_rcnn.detector must be one of: {', '.join(able)}"
                )
        for name, off in (("propagate", "none"), ("rescore", False)):
            if getattr(self, name) != off and self.condition != "none":
                raise ValueError(
                    f"tracklet_rcnn.{name} is {getattr(self, name)!r}; it belongs to the sequential baseline: "
                    f"tracklet_rcnn.condition must be 'none', not {self.condition!r}"
                )
        if self.embedding == "fc7" and self.condition in ("both", "stage_1"):
            raise ValueError(
                f"tracklet_rcnn.condition is {self.condition!r}; with tracklet_rcnn.embedding fc7, which anchors lack, "
                "it must be 'stage_2' or 'none'"
            )

    def rule(self) -> Conditioning:
        """The constants of conditioning."""
        return Conditioning(self.alpha, self.gamma, self.null, self.gate, self.gate_scale, self.max_tracklets)


def build(settings: Settings) -> Model:
    """The model in eval mode, with its weights.

    Raises FileNotFoundError where weights are not, ValueError where they cannot be read or do not fit, or nobody says
    what the classes are called.
    """
    names = ("deformable", "benchmark", "backbone_weights") if settings.detector in PAPER_DETECTORS else ()
    options = {name: getattr(settings, name) for name in names}
    built = detectors.build(settings.detector, settings.weights, settings.classes, DEFAULT_WEIGHTS, options)
    if settings.deformable and settings.detector == "small":
        deform(built.detector, SMALL_STAGES)
    model = Model(settings, built.detector, built.classes).eval()
    if built.stored:
        off = [f"{name}." for name in ("embeddings", "aggregation") if name not in model.extras]
        model.weights = weights.load_weights(model.network, built.stored.without(*off), extras=model.extras)
        model.untrained = model.weights.missing
    return model


@dataclass(frozen=True)
class Memory:
    """What is known after a frame.

    carried: int64 (M,), for how many frames in a row flow alone has moved each tracklet's box. frame: uint8 (3, H, W),
    the last, where boxes are propagated. aggregated: what `Aggregation` remembers, where there is one.
    """

    tracklets: Tracklets
    carried: Tensor
    frame: Tensor | None = None
    aggregated: object | None = None

    def to(self, device: torch.device | str) -> Memory:
        """The same, on a device, with no storage but its own."""
        frame = None if self.frame is None else self.frame.to(device).clone()
        return Memory(self.tracklets.to(device), self.carried.to(device), frame, self.aggregated)


@dataclass(frozen=True)
class Propagated:
    """Boxes (K, 4) that flow moved into a frame, their tracklets' P_tr (K, C + 1), and for how many frames it has."""

    boxes: Tensor
    probabilities: Tensor
    carried: Tensor


class Model(nn.Module):
    """A two-stage detector, its embeddings, and the tracklets; see the package for the contract of all models."""

    frames_before = 0
    frames_after = 0

    def __init__(self, settings: Settings, detector: TwoStage, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.settings = settings
        given = {name: getattr(settings, name) for name in ("num_proposals", "min_score", "max_detections")}
        given["max_iou"] = settings.nms_iou
        detector.limits = replace(detector.limits, **{k: v for k, v in given.items() if v is not None})
        self.detector = detector
        self.embeddings = Embeddings(detector, settings.embedding)
        self.flow = built_flow(settings.propagate, settings)
        self.classes = classes
        self.resize: Mapping[str, Any] = detector.resize
        self.weights: weights.Report | None = None
        self.extras: dict[str, nn.Module] = {} if settings.embedding == "fc7" else {"embeddings": self.embeddings}
        self.aggregation: Aggregation | None = None
        if settings.aggregate:
            channels, strides = measured(detector)
            widths = {"widths": SMALL_WIDTHS} if settings.detector == "small" else {}
            moving = built_flow(settings.aggregate_flow, settings)
            self.aggregation = Aggregation(moving, channels, strides, settings.aggregate, **widths)
            self.extras["aggregation"] = self.aggregation.embedding
        self.untrained = tuple(self.extras)
        self.rule = settings.rule()
        self.in_stage_1 = settings.condition in ("both", "stage_1")
        self.in_stage_2 = settings.condition in ("both", "stage_2")
        self.to(memory_format=torch.channels_last)

    @property
    def network(self) -> nn.Module:
        """The detector's module, whose state dict is what weight files hold."""
        return self.detector.network

    @torch.no_grad()
    def detect(
        self, clips: Sequence[Tensor], memories: Sequence[object | None]
    ) -> tuple[list[list[dict[str, Tensor]]], list[object]]:
        """Algorithm 2, or 1: detections of the next frames of some clips, and what to remember of each.

        clips: uint8 (T, 3, H, W); memories: what the clip's last call gave back, None at its start. Each frame is a
        dict of CPU tensors, best detections first: boxes (N, 4) xyxy in the pixels given, scores (N,), labels (N,),
        class_scores (N, C + 1), all that is said of the box's region, background first, tracklet_id (N,), -1 for none,
        tracked (N,), whether flow moved it here.

        Both the features and the first stage are of `batch_frames` frames at once, whatever clips they are of; the rest
        goes frame by frame, of all clips together.
        """
        device = next(self.parameters()).device
        found: list[list[dict[str, Tensor]]] = [[] for _ in clips]
        states = [self.remembered(memory).to(device) for memory in memories]
        for parts in lock_step(clips, self.settings.batch_frames):
            count = len(next(iter(parts.values())))
            frames = torch.cat(list(parts.values())).to(device)  # (clips * count, 3, H, W), clip by clip
            features = self.detector.features(frames)
            before = [states[number].aggregated for number in parts]
            features, seen = self.aggregate(features, frames, [count] * len(parts), before)
            dense = self.detector.dense(features, (frames.shape[-2], frames.shape[-1]))
            for position in range(count):
                now = slice(position, None, count)  # this frame of each clip
                rows = self.step(
                    frames[now],
                    tuple(level[now] for level in features),
                    dense.of(now),
                    [states[number] for number in parts],
                )
                for number, (row, state) in zip(parts, rows, strict=True):
                    found[number].append({name: value.cpu() for name, value in row.items()})
                    states[number] = state
            for number, aggregated in zip(parts, seen, strict=True):
                states[number] = replace(states[number], aggregated=aggregated)
        return found, [state.to("cpu") for state in states]

    def remembered(self, memory: object | None) -> Memory:
        """The memory, or what there is before the first frame."""
        if memory is None:
            stage_1, stage_2 = self.embeddings.sizes
            start = no_tracklets(self.detector.num_classes, stage_1 if self.in_stage_1 else 0, stage_2)
            return Memory(start, start.ids)
        assert isinstance(memory, Memory)
        return memory

    def aggregate(
        self, features: Features, frames: Tensor, lengths: Sequence[int], memories: Sequence[object | None]
    ) -> tuple[Features, Sequence[object | None]]:
        """Features of some clips of these lengths, one after the other, aggregated clip by clip, and its memories."""
        if self.aggregation is None:
            return features, memories
        levels = zip(*(level.split(list(lengths)) for level in features), strict=True)
        clips = zip(levels, frames.split(list(lengths)), memories, strict=True)
        done = [self.aggregation(*clip) for clip in clips]
        return tuple(torch.cat(level) for level in zip(*(clip for clip, _ in done), strict=True)), [m for _, m in done]

    def step(
        self, frames: Tensor, features: Features, dense: Dense, memories: Sequence[Memory]
    ) -> list[tuple[dict[str, Tensor], Memory]]:
        """One frame of each of N clips; frames: uint8 (N, 3, H, W), and what is known of them."""
        logits = self.objectness(dense, [memory.tracklets for memory in memories])
        proposals = self.detector.proposals(dense, logits)
        moved = [self.propagated(memory, frame) for memory, frame in zip(memories, frames, strict=True)]
        boxes = [torch.cat([own, of_tracklets.boxes]) for own, of_tracklets in zip(proposals, moved, strict=True)]
        regions = self.detector.head(features, boxes, dense.size)
        of_clips = zip(regions, moved, memories, frames, strict=True)
        return [self.track(*of_clip, dense.size) for of_clip in of_clips]

    def objectness(self, dense: Dense, tracklets: Sequence[Tracklets]) -> Tensor:
        """First stage: logits (N, A), conditioned on each frame's tracklets, level by level."""
        if not self.in_stage_1 or not any(len(each.ids) for each in tracklets):
            return dense.logits
        conditioned = []
        for tower, logits, anchors in zip(
            dense.towers, dense.logits.split(dense.levels, dim=1), dense.anchors.split(dense.levels), strict=True
        ):
            embeddings = self.embeddings.of_anchors(tower)  # (N, anchors of the level, 128)
            rows = zip(logits, embeddings, tracklets, strict=True)
            conditioned.append(torch.stack([self.rule.objectness(one, e, anchors, d) for one, e, d in rows]))
        return torch.cat(conditioned, dim=1)

    def propagated(self, memory: Memory, frame: Tensor) -> Propagated:
        """PropagateBox of Algorithm 1: the boxes of the last frame's tracklets where flow leads them in this one."""
        able = (memory.tracklets.ages == 0) & (memory.carried < self.settings.propagate_frames)
        if self.settings.propagate == "none" or memory.frame is None:
            able = torch.zeros_like(able)
        tracklets, boxes = memory.tracklets.where(able), memory.tracklets.boxes[able]
        if len(boxes):
            assert memory.frame is not None
            boxes = clip(flow.move_boxes(boxes, self.flow(memory.frame, frame)), (frame.shape[-2], frame.shape[-1]))
        there = has_area(boxes)  # the others have left the frame
        return Propagated(boxes[there], tracklets.probabilities[there], memory.carried[able][there] + 1)

    def track(
        self, regions: Regions, moved: Propagated, memory: Memory, frame: Tensor, size: tuple[int, int]
    ) -> tuple[dict[str, Tensor], Memory]:
        """Second stage, suppression, AssociateTracklet and RescoreTracklet for one frame; moved: the last regions."""
        own = len(regions.boxes) - len(moved.boxes)
        probabilities = regions.logits.softmax(dim=1)  # (R, C + 1), P_det
        stage_2 = self.embeddings.stage_2_of(regions)
        if self.in_stage_2:
            probabilities = self.rule.classes(probabilities, stage_2, regions.boxes, memory.tracklets).clamp(max=1)
        if len(moved.boxes):  # they keep their place and their scores
            still = regions.coder.encode(moved.boxes, moved.boxes)[:, None].expand_as(regions.deltas[own:])
            regions = replace(regions, deltas=torch.cat([regions.deltas[:own], still]))
            probabilities = torch.cat([probabilities[:own], moved.probabilities])
        found, _ = self.detector.detected(regions, size, probabilities)
        boxes, kept = distinct(regions, size, probabilities, self.detector.limits)
        stage_1 = self.embeddings.stage_1_of(regions.where(kept)) if self.in_stage_1 else stage_2[kept, :0]
        seen = Seen(boxes, probabilities[kept], stage_1, stage_2[kept])
        tracklets, ids = update(
            memory.tracklets,
            seen,
            associate(seen, memory.tracklets),
            beta=1.0 if self.settings.condition == "none" else self.settings.beta,
            eta=self.settings.eta,
            start_score=self.settings.start_score,
            max_age=self.settings.max_age,
        )
        if self.settings.rescore:
            rescored = rescore_boxes(seen.probabilities, ids, tracklets)
            probabilities = probabilities.index_copy(0, kept, rescored)
        boxes, kept, ids = (each[ids >= 0] for each in (boxes, kept, ids))
        place = torch.searchsorted(tracklets.ids, ids)  # of each box's tracklet
        carried = torch.cat([moved.carried.new_zeros(own), moved.carried])  # (R,)
        after = torch.zeros_like(tracklets.ids).index_copy(0, place, carried[kept])  # (M,)
        row, region = given_out(found, boxes, kept, tracklets.labels[place], ids, probabilities)
        row["tracked"] = region >= own
        return row, Memory(tracklets, after, frame if self.settings.propagate != "none" else None)

    def losses(self, clips: Sequence[Tensor], targets: Sequence[Sequence[dict[str, Tensor]]]) -> dict[str, Tensor]:
        """The detector's losses, and equation (10) for both stages, over clips that share one size; each a scalar.

        clips: uint8 (T, 3, H, W), of which consecutive frames are pairs (t - 1, t); the paper has two frames. targets:
        for each frame of each clip boxes (M, 4), labels (M,), track_ids (M,), -1 where unknown, and optionally ignore
        (M,). See `parts.pair_training`; what is sampled is drawn from torch's global generator on the CPU.
        """
        frames, size = torch.cat(list(clips)), (clips[0].shape[-2], clips[0].shape[-1])
        lengths = [len(clip) for clip in clips]
        features, _ = self.aggregate(self.detector.features(frames), frames, lengths, [None] * len(clips))
        flat = [target for of_clip in targets for target in of_clip]
        branches = self.embeddings if "embeddings" in self.extras else None  # fc7 has nothing to learn
        return pair_training.losses(self.detector, branches, features, size, lengths, flat, self.settings.negatives)


def built_flow(method: flow.Method, settings: Settings) -> flow.Flow:
    """The flow of that name, by these settings; nothing is learned of it here."""
    weights = settings.flow_weights if method == "raft_small" else None
    return flow.build(method, weights, settings.flow_short_side).requires_grad_(False)


def measured(detector: TwoStage) -> tuple[list[int], list[int]]:
    """Channels and strides of each level of a detector's features."""
    side = 128  # px, of which the coarsest level still has two cells
    with torch.no_grad():
        levels = detector.eval().features(torch.zeros((1, 3, side, side), dtype=torch.uint8))
    return [level.shape[1] for level in levels], [side // level.shape[3] for level in levels]
