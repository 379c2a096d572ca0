"""D&T: detection and tracking in one network, for two frames at a time.

"Detect to Track and Track to Detect" (Feichtenhofer, Pinz and Zisserman, 2017), sections 3 and 5. R-FCN finds objects
in frames t and t + tau; a track branch, on the maps of box deltas of both and the correlations of their features, says
where each region of t is in t + tau. Linking detections to tubes by these tracks (section 4) is a linker's work.

Legend: N frames, P pairs of frames, R regions of one frame, D detections, C foreground classes, k bins a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from models.parts import backbones, track_branch, weights
from models.parts.anchors import clip, has_area
from models.parts.box_deltas import BoxDeltas
from models.parts.box_voting import vote_boxes
from models.parts.correlation import correlation, num_channels
from models.parts.lock_step import lock_step
from models.parts.position_sensitive import Maps, Pooling
from models.parts.rfcn import PAPER, SMALL, Rfcn, Seen, chosen, joined
from models.parts.small_backbone import SmallBackbone
from models.parts.track_branch import TrackBranch, Tracks, averaged, in_both, track_loss
from models.parts.two_stage import Features

GIVES = frozenset({"class_scores", "moves"})
LINKER = "tubes"

Backbone = Literal["small", "resnet50", "resnet101", "resnext101_32x4d", "inception_v4"]
Frame = dict[str, "Tensor | dict[str, Tensor | int]"]

# The paper does not say how deltas of tracks are scaled; those of boxes are in Faster R-CNN's way, and so are these.
# A motion of a tenth of a box's width is 1.
TRACKS = BoxDeltas(stds=(0.1, 0.1, 0.2, 0.2))
SHIPPED = "detect-to-track-synthetic-v1"


@dataclass(frozen=True)
class Settings:
    """Which network, and how it is tested. The paper's own numbers unless said.

    weights: "default" is what the project ships for `small`; otherwise a path or a URL; "random" leaves the network
    untrained, but for the backbone if backbone_weights names weights of ImageNet, a path or a URL.
    classes: names of the classes, for weights that do not say them (and for "random").
    """

    backbone: Backbone = "small"
    weights: str = "default"
    backbone_weights: str = ""
    classes: tuple[str, ...] = ()
    track: bool = True  # False: D alone, without the track branch; it gives no moves and waits for no frame
    stride: int = 1  # tau; only every tau-th frame of a clip is looked at, the others are given without boxes
    average: bool = False  # "D&T, average": scores are the mean of those in t and, where it was tracked to, in t + tau
    bidirectional: bool = False  # the same with t - tau as well (section 5.3)
    tracks_from: Literal["regressed", "proposals"] = "regressed"  # what is tracked; "object-centred" is regressed
    pooling: Pooling | None = None  # None: "align" for small, "pool" for the others; see `position_sensitive.vote`
    min_score: float = 0.0  # of detections that are given out
    min_track_score: float = 0.01  # of a track's best class; the release
    nms_iou: float = 0.4  # the release, before linking; .3 where frames are scored by themselves (section 5.2)
    vote_iou: float | None = 0.5  # box voting; None: boxes stay as they are
    top_k: int = 25  # detections of a frame and class
    batch_frames: int = 8  # frames that the network sees at once

    def __post_init__(self) -> None:
        for name, known in (("backbone", Backbone), ("tracks_from", Literal["regressed", "proposals"])):
            if (value := getattr(self, name)) not in get_args(known):
                raise ValueError(
                    f"detect_to_track.{name} is {value!r}; it must be one of: {', '.join(get_args(known))}"
                )
        if self.pooling not in (None, *get_args(Pooling)):
            raise ValueError(f"detect_to_track.pooling is {self.pooling!r}; it must be one of: pool, align")
        for name in ("min_score", "min_track_score", "nms_iou", "vote_iou"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"detect_to_track.{name} is {value}; it must be between 0 and 1")
        for name in ("stride", "top_k", "batch_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"detect_to_track.{name} is {getattr(self, name)}; it must be at least 1")
        if self.average and not self.track:
            raise ValueError("detect_to_track.average is true; it needs detect_to_track.track, whose boxes it scores")
        if self.bidirectional and not self.average:
            raise ValueError(
                "detect_to_track.bidirectional is true; it needs detect_to_track.average, which then looks both ways"
            )
        if self.backbone_weights and (self.backbone == "small" or self.weights != "random"):
            raise ValueError(
                f"detect_to_track.backbone_weights is {self.backbone_weights!r}; it is for weights 'random' and a "
                f"backbone of the paper's, not for weights {self.weights!r} and backbone {self.backbone!r}"
            )

    @property
    def gives(self) -> frozenset[str]:
        """What frames have by these settings."""
        return GIVES if self.track else GIVES - {"moves"}


class Correlation(NamedTuple):
    """Of one level: the largest displacement d in cells, the stride of positions, the stride of displacements."""

    max_displacement: int
    stride: int = 1
    displacement_stride: int = 1


# Of conv3, conv4, conv5. Section 5.2; that conv3's displacements have a stride too is the release's.
PAPER_CORRELATIONS = (Correlation(8, 2, 2), Correlation(8), Correlation(8))  # 81 + 289 + 289 = 659 channels
# Ours reach 16 px, for objects that move by up to some 10 px a frame: at strides 4, 8, 8.
SMALL_CORRELATIONS = (Correlation(4, 2), Correlation(2), Correlation(2))  # 81 + 25 + 25 = 131 channels


def build(settings: Settings) -> Model:
    """The model in eval mode, with its weights.

    Raises FileNotFoundError where the weights are not, ValueError where they do not fit the network or nobody says what
    their classes are called.
    """
    small = settings.backbone == "small"
    if settings.weights == "default" and not small:
        raise ValueError(
            f"detect_to_track.weights is 'default'; there are none for backbone {settings.backbone}: give a file of "
            "trained weights, or 'random' for a network that is still to be trained"
        )
    stored = None
    if settings.weights != "random":
        stored = weights.read_weights(SHIPPED if settings.weights == "default" else settings.weights)
    classes = weights.class_names(settings.classes, stored)
    backbone = SmallBackbone() if small else backbones.build(settings.backbone, settings.backbone_weights or "random")
    detector = Rfcn(backbone, len(classes), SMALL if small else PAPER, settings.pooling)
    model = Model(settings, detector, classes, SMALL_CORRELATIONS if small else PAPER_CORRELATIONS).eval()
    if stored:
        if not settings.track:  # D alone has no use for the track branch that the weights of D&T hold
            stored = stored.without("track_branch.")
        model.weights = weights.load_weights(model.network, stored, extras=model.extras)
        model.untrained = model.weights.missing
    return model


@dataclass(frozen=True)
class Memory:
    """What is remembered of a clip: how many of its frames were given, and the last of those that were looked at.

    held: the one whose rows still wait for the next and, where rows depend on it, the one before.
    """

    num_frames: int = 0
    held: tuple[Seen, ...] = ()


class Window(NamedTuple):
    """A frame whose rows are to be given, and its neighbours tau frames away, where there are any that matter."""

    before: Seen | None
    here: Seen
    after: Seen | None


class Model(nn.Module):
    """R-FCN and the track branch; see the package for the contract of all models."""

    def __init__(
        self,
        settings: Settings,
        detector: Rfcn,
        classes: tuple[str, ...],
        correlations: tuple[Correlation, Correlation, Correlation],
    ) -> None:
        super().__init__()
        self.settings = settings
        self.classes = classes
        self.detector = detector
        self.correlations = correlations
        self.resize = dict(detector.configuration.resize)
        self.frames_before = settings.stride if settings.bidirectional else 0
        self.frames_after = settings.stride if settings.track else 0
        self.weights: weights.Report | None = None
        self.extras: dict[str, nn.Module] = {}
        if settings.track:
            self.track_branch = TrackBranch(
                sum(num_channels(one.max_displacement, one.displacement_stride) for one in correlations),
                bins=detector.head.bins,
                pooling=detector.head.pooling,
            )
            self.extras = {"track_branch": self.track_branch}
        self.untrained = tuple(self.extras)
        self.to(memory_format=torch.channels_last)

    @property
    def network(self) -> Rfcn:
        """The module whose tensors weight files hold by their own names."""
        return self.detector

    @torch.no_grad()
    def detect(
        self, clips: Sequence[Tensor], memories: Sequence[object | None]
    ) -> tuple[list[list[Frame]], list[object]]:
        """The frames of each clip that are ready, and what to remember of it.

        clips: uint8 (T, 3, H, W); memories: what the clip's last call gave back, None at its start. Each frame is a
        dict of CPU tensors: boxes (D, 4) xyxy in the pixels given, scores (D,), labels (D,), class_scores (D, C + 1),
        background first, and, where the frame tau on was seen, moves: see `track_branch.moves`, and stride. With
        tracks, a frame is ready once the next one that is looked at was.
        """
        device = next(self.parameters()).device
        known = [memory_of(memory) for memory in memories]
        held = [[seen.to(device) for seen in memory.held] for memory in known]
        stride = self.settings.stride
        looked_at = [frames[-memory.num_frames % stride :: stride] for frames, memory in zip(clips, known, strict=True)]
        rows: list[list[Frame]] = [[] for _ in clips]
        for batch in lock_step(looked_at, self.settings.batch_frames):
            new = self.detector.see(torch.cat(list(batch.values())).to(device))
            windows: list[tuple[int, Window]] = []
            for number, frames in batch.items():
                line, new = [*held[number], *new[: len(frames)]], new[len(frames) :]
                if self.settings.track:
                    windows += [(number, window) for window in self.windows(line, len(held[number]))]
                    held[number] = line[-2:] if self.settings.bidirectional else line[-1:]
                else:
                    windows += [(number, Window(None, seen, None)) for seen in line]
            for (number, _), row in zip(windows, self.rows([window for _, window in windows]), strict=True):
                rows[number].append(row)
        given = []
        for frames, memory, found in zip(clips, known, rows, strict=True):
            if self.settings.track:  # what lies between two that are looked at follows the first
                given.append([frame for row in found for frame in (row, *self.passed_over(stride - 1))])
            else:
                ready = iter(found)
                places = range(memory.num_frames, memory.num_frames + len(frames))
                given.append([next(ready) if place % stride == 0 else self.passed_over(1)[0] for place in places])
        remembered = [
            Memory(memory.num_frames + len(frames), tuple(seen.to("cpu") for seen in last))
            for frames, memory, last in zip(clips, known, held, strict=True)
        ]
        return given, list(remembered)

    @torch.no_grad()
    def finish(self, memories: Sequence[object | None]) -> list[list[Frame]]:
        """The frames of each clip that still wait; they have no moves."""
        device = next(self.parameters()).device
        given: list[list[Frame]] = []
        for memory in map(memory_of, memories):
            held = [seen.to(device) for seen in memory.held]
            last = [Window(held[0] if len(held) > 1 else None, held[-1], None)] if held else []
            between = (memory.num_frames - 1) % self.settings.stride if held else 0
            given.append([*self.rows(last), *self.passed_over(between)])
        return given

    def windows(self, line: list[Seen], num_held: int) -> list[Window]:
        """Those that became complete. line: what follows each other; num_held: how many of it are not new."""
        first = max(num_held - 1, 0)
        before = [None, *line] if self.settings.bidirectional else [None] * len(line)
        return [Window(before[i], line[i], line[i + 1]) for i in range(first, len(line) - 1)]

    def passed_over(self, count: int) -> list[Frame]:
        """What is given of frames that the network does not look at."""
        return [
            {
                "boxes": torch.zeros(0, 4),
                "scores": torch.zeros(0),
                "labels": torch.zeros(0, dtype=torch.long),
                "class_scores": torch.zeros(0, len(self.classes) + 1),
            }
            for _ in range(count)
        ]

    def rows(self, windows: Sequence[Window]) -> list[Frame]:
        """What is given of each frame: its detections and, where it has a frame after it, its moves."""
        pairs = [(here, there) for before, here, after in windows for there in (after, before) if there]
        found = iter(self.tracks(pairs))
        rows: list[Frame] = []
        for before, here, after in windows:
            tracks = [next(found) for there in (after, before) if there]
            probabilities = here.probabilities
            if self.settings.average:
                probabilities = averaged(probabilities, tracks)
            voted = vote_boxes(
                here.boxes,
                probabilities,
                max_iou=self.settings.nms_iou,
                min_vote_iou=self.settings.vote_iou,
                top_k=self.settings.top_k,
                min_score=self.settings.min_score,
            )
            row: Frame = {
                "boxes": voted.boxes.cpu(),
                "scores": voted.scores.cpu(),
                "labels": voted.labels.cpu(),
                "class_scores": probabilities[voted.region].cpu(),
            }
            if after:
                moves = track_branch.moves(
                    self.start(here),
                    tracks[0].deltas,
                    probabilities,
                    voted.region,
                    here.size,
                    TRACKS,
                    self.settings.min_track_score,
                )
                row["moves"] = {name: value.cpu() for name, value in moves.items()} | {"stride": self.settings.stride}
            rows.append(row)
        return rows

    def start(self, seen: Seen) -> Tensor:
        """The boxes (R, 4) of a frame that are tracked, one for each of its regions."""
        return seen.boxes if self.settings.tracks_from == "regressed" else seen.proposals

    def tracks(self, pairs: Sequence[tuple[Seen, Seen]]) -> list[Tracks]:
        """Where the regions of the first frame of each pair are in the second."""
        if not pairs:
            return []
        starts = [self.start(first) for first, _ in pairs]
        first, second = (joined([pair[i] for pair in pairs]) for i in range(2))
        scale = 1 / self.detector.configuration.stride
        deltas = self.track_branch(self.track_maps(*first, *second), starts, scale).split([len(box) for box in starts])
        if not self.settings.average:
            return [Tracks(one, None, None) for one in deltas]
        ends = [
            clip(TRACKS.decode(start, delta), seen.size)
            for start, delta, (seen, _) in zip(starts, deltas, pairs, strict=True)
        ]
        regions = self.detector.regions(second[1], ends)
        return [
            Tracks(delta, has_area(end), found.logits.softmax(dim=1))
            for delta, end, found in zip(deltas, ends, regions, strict=True)
        ]

    def track_maps(self, levels: Features, maps: Maps, later_levels: Features, later_maps: Maps) -> Tensor:
        """The maps of track deltas (P, 4 * k * k, h, w) of pairs of frames (section 3.4, Figure 3).

        At the paper's sizes 196 channels are made of 2 x 196 of box deltas and 659 of correlations (1443 in the
        release, which has box deltas for the background too).
        """
        pairs = zip(levels, later_levels, self.correlations, strict=True)
        correlations = [correlation(level, later, *how) for level, later, how in pairs]
        return self.track_branch.maps(maps.deltas, later_maps.deltas, correlations)

    def losses(self, clips: Sequence[Tensor], targets: Sequence[Sequence[dict[str, Tensor]]]) -> dict[str, Tensor]:
        """Equation 1 and the RPN's losses, each a scalar, over all frames of all clips, which share one size.

        clips: uint8 (T, 3, H, W) each; targets: for each frame of each clip boxes (M, 4), labels (M,), track_ids (M,),
        -1 where unknown, and optionally ignore (M,). `track` is the loss of every two frames that follow each other in
        a clip (a still image is sent as a clip of itself twice; section 5.2), on objects that are in both; with clips
        of one frame alone it is 0.
        """
        frames, wanted = torch.cat(list(clips)), [target for of_clip in targets for target in of_clip]
        levels = self.detector.features(frames)
        maps = self.detector.maps(levels)
        losses = self.detector.losses(levels, maps, (frames.shape[-2], frames.shape[-1]), wanted)
        last, first = -1, []
        for clip_frames in clips:
            first += list(range(last + 1, last + len(clip_frames)))
            last += len(clip_frames)
        if not self.settings.track:
            return losses
        start = end = deltas = maps.deltas.new_zeros(0, 4)
        if first:
            here, there = torch.tensor(first, device=frames.device), torch.tensor(first, device=frames.device) + 1
            track_maps = self.track_maps(*chosen(levels, maps, here), *chosen(levels, maps, there))
            starts, ends = zip(*(in_both(wanted[i], wanted[i + 1]) for i in first), strict=True)
            start, end = torch.cat(starts), torch.cat(ends)
            deltas = self.track_branch(track_maps, starts, 1 / self.detector.configuration.stride)
        losses["track"] = track_loss(deltas, start, end, TRACKS)  # asked even of nothing: see `workers`
        return losses


def memory_of(memory: object | None) -> Memory:
    """What is known of a clip before its next frames."""
    known = Memory() if memory is None else memory
    assert isinstance(known, Memory)
    return known
