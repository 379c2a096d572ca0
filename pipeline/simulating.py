"""What a detector of stated faults would have seen of a video of known truth: linkers are tried without a network.

Deterioration acts as it does on networks: in a burst (rows of truth that are flagged so) a box is still mostly found,
but its class is a guess, and mostly the same wrong guess for as long as the burst lasts. Every class of a box that
scores enough is a detection of its own, as networks give them out, so that what a burst hides is weak, not lost.

All numbers come from streams that are named by seed, video and purpose: no video depends on others, and what is asked
for besides, or a change of one fault, leaves the rest as it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.random import RandomState
from numpy.typing import NDArray

from pipeline.boxes import clip
from pipeline.records import EVIDENCE, Detections, Moves, detections

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Mask = NDArray[np.bool_]
Pair = tuple[float, float]  # of clean boxes, and of boxes in a burst
WrongClass = Literal["burst", "frame"]

_IGNORED = 0.5  # of the score, for what truth does not count: it is seen, but never for certain
_LEAST, _MOST = 0.05, 0.99  # that the likeliest class may score
_CLUTTER_CERTAINTY = 0.08, 0.02
_FALSE_SIDES = 0.12, 0.32  # of false positives, shares of the frame's shorter side
_CORNERS = ("x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class Settings:
    """How good the detector is. Pairs are (clean boxes, boxes in a burst); shares are of a box's width or height.

    jitter: standard deviation of a box's centre, a share; resize: of the logarithm of its sides.
    miss: chance that a box is not found. confusion: that another class than its own looks likeliest; wrong_class: that
    class is drawn once a `burst`, or for each `frame` anew. certainty: mean score of the likeliest class; spread: its
    standard deviation. A class that scores less than min_score is no detection.

    false_positives: mean number in a frame; false_frames: how many frames one lasts, from least to most, all alike;
    false_certainty: mean and standard deviation of its score. clutter: mean number in a frame of weak boxes that score
    some .08 in every class, as networks keep them that give out all that they have.

    evidence: names of `records.EVIDENCE` to give besides. class_scores, of the box. moves, one a detection: to where
    truth has the object in the next frame, or to where it is if that is nowhere; move_jitter: standard deviation of the
    centre there and of the logarithm of the sides, a share; false_move: of the centre to which the move of a false
    positive leads. tracklet_id: one for each unbroken run of an object's boxes and for each false positive; -1 for all
    but the likeliest class of a box, and for clutter. embeddings: a direction an object, of `embedding_size`; likeness:
    cosine of those that are flagged as look-alikes and of one class; embedding_noise: length of what is added to them.
    """

    seed: int = 0
    jitter: Pair = (0.03, 0.06)
    resize: Pair = (0.03, 0.06)
    miss: Pair = (0.03, 0.1)
    confusion: Pair = (0.08, 0.6)
    wrong_class: WrongClass = "burst"
    certainty: Pair = (0.7, 0.4)
    spread: float = 0.2
    min_score: float = 0.02
    false_positives: float = 1.0
    false_frames: tuple[int, int] = (1, 2)
    false_certainty: tuple[float, float] = (0.4, 0.2)
    clutter: float = 4.0
    evidence: tuple[str, ...] = ()
    move_jitter: Pair = (0.04, 0.1)
    false_move: float = 0.3
    embedding_size: int = 32
    embedding_noise: Pair = (0.4, 0.8)
    likeness: float = 0.6

    def __post_init__(self) -> None:
        chances = ("miss", "confusion", "certainty", "min_score", "likeness")
        for field in fields(self):
            value = getattr(self, field.name)
            numbers = [one for one in (value if isinstance(value, tuple) else (value,)) if not isinstance(one, str)]
            most = 1 if field.name in chances else np.inf
            if field.name != "seed" and not all(0 <= number <= most and np.isfinite(number) for number in numbers):
                allowed = "from 0 to 1" if most == 1 else "at least 0 and finite"
                raise ValueError(f"simulated {field.name} is {value}; it must be {allowed}")
        if not 1 <= self.false_frames[0] <= self.false_frames[1]:
            raise ValueError(f"simulated false_frames is {self.false_frames}; it must be two rising numbers above 0")
        if self.embedding_size < 1:
            raise ValueError(f"simulated embedding_size is {self.embedding_size}; it must be at least 1")
        if self.wrong_class not in get_args(WrongClass):
            raise ValueError(f"simulated wrong_class is {self.wrong_class!r}; it must be burst or frame")
        if unknown := [name for name in self.evidence if name not in EVIDENCE]:
            raise ValueError(f"simulated evidence {unknown[0]!r} is unknown; there is: {', '.join(EVIDENCE)}")


def simulate(
    truth: pa.Table,
    num_frames: int,
    classes: Sequence[str],
    settings: Settings | None = None,
    *,
    size: tuple[int, int],
) -> list[Detections]:
    """Detections of frames 0 to num_frames - 1 of one video, from its rows of `schemas.TRUTH`.

    classes: names, by label. size: (height, width) of the frames, at which boxes are cut. Of the flags, `burst` and
    `lookalike` count. Ignored rows are found as in a burst and score half of that; those without identity or class
    (regions) are not there at all. Raises ValueError where the rows are of several videos, and where one has a class
    that is not among `classes`, a frame beyond num_frames, or, though it counts, no identity or class.
    """
    settings = settings or Settings()
    objects = _Objects.of(truth, num_frames, classes)
    nothing_there = [
        _Nothing("false", settings.false_positives, settings.false_frames, settings.false_certainty, tracked=True),
        _Nothing("clutter", settings.clutter, (1, 1), _CLUTTER_CERTAINTY, tracked=False),
    ]
    seen = _joined(
        [
            _true(objects, len(classes), settings),
            *(_false(kind, objects.video, num_frames, len(classes), size, settings) for kind in nothing_there),
        ]
    )
    boxes = _proper(seen.boxes, size)
    frames = []
    for time in range(num_frames):
        here = np.flatnonzero(seen.frame == time)
        row, label = np.nonzero(seen.class_scores[here, 1:] >= settings.min_score)
        of = here[row]  # (N,), the box that each detection is of
        class_scores = seen.class_scores[of]
        likeliest = class_scores[:, 1:].argmax(axis=1) == label
        evidence = {
            "class_scores": class_scores,
            "embeddings": seen.looks[of],
            "tracklet_id": np.where(likeliest, seen.tracklet[of], -1),
            "moves": _moves(boxes[of], seen.end[of]),
        }
        scores = class_scores[np.arange(len(of)), 1 + label]
        asked = {name: evidence[name] for name in settings.evidence}
        frames.append(detections(time, boxes[of], scores, label, **asked))
    return frames


@dataclass(frozen=True)
class _Objects:
    """Rows of truth (N,), by object and frame.

    boxes: (N, 4); label, identity, frame: (N,); burst, lookalike, ignore: bool (N,); in_turn: bool (N,), it is the same
    object as the row before, one frame on.
    """

    video: str
    boxes: Floats
    label: Indices
    identity: Indices
    frame: Indices
    burst: Mask
    lookalike: Mask
    ignore: Mask
    in_turn: Mask

    @staticmethod
    def of(truth: pa.Table, num_frames: int, classes: Sequence[str]) -> _Objects:
        rows = truth.to_pylist()
        names = sorted({str(row["video_id"]) for row in rows})
        video = names[0] if names else ""
        if len(names) > 1:
            raise ValueError(f"the truth to simulate is of {len(names)} videos, {', '.join(names)}; it must be of one")
        for row in rows:
            lacks = [name for name in ("track_id", "class_name") if row[name] is None and not row["ignore"]]
            if lacks:
                raise ValueError(f"frame {row['frame_index']} of {video} has a row without {lacks[0]}, and it counts")
            if row["class_name"] not in (None, *classes):
                raise ValueError(
                    f"the truth of {video} has the class {row['class_name']!r}; it must be one of: {', '.join(classes)}"
                )
            if not 0 <= row["frame_index"] < num_frames:
                raise ValueError(f"{video} has truth in frame {row['frame_index']}; it has {num_frames} frames")
        rows = [row for row in rows if row["track_id"] is not None and row["class_name"] is not None]
        rows.sort(key=lambda row: (row["track_id"], row["frame_index"]))
        flags = [row["flags"] or () for row in rows]
        identity = np.array([row["track_id"] for row in rows], np.intp)
        frame = np.array([row["frame_index"] for row in rows], np.intp)
        return _Objects(
            video=video,
            boxes=np.array([[row[side] for side in _CORNERS] for row in rows], np.float64).reshape(-1, 4),
            label=np.array([classes.index(row["class_name"]) for row in rows], np.intp),
            identity=identity,
            frame=frame,
            burst=np.array(["burst" in its for its in flags], np.bool_),
            lookalike=np.array(["lookalike" in its for its in flags], np.bool_),
            ignore=np.array([bool(row["ignore"]) for row in rows], np.bool_),
            in_turn=_in_turn(identity, frame),
        )

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True)
class _Seen:
    """Boxes that the detector sees, (K,) of all frames: boxes, end: (K, 4), where it is and where its move leads;
    class_scores: (K, C + 1); looks: (K, E); frame, tracklet: (K,)."""

    frame: Indices
    boxes: Floats
    class_scores: Floats
    looks: Floats
    end: Floats
    tracklet: Indices


def _true(objects: _Objects, num_classes: int, settings: Settings) -> _Seen:
    """The objects as they are found. Numbers are drawn for all rows of truth, found or not."""
    count, bad = len(objects), (objects.burst | objects.ignore).astype(np.intp)
    random = _stream(settings, objects.video, "boxes")
    boxes = _jittered(random, objects.boxes, np.array(settings.jitter)[bad], np.array(settings.resize)[bad])
    found = _stream(settings, objects.video, "found").random_sample(count) >= np.array(settings.miss)[bad]

    random = _stream(settings, objects.video, "classes")
    confused = random.random_sample(count) < np.array(settings.confusion)[bad]
    other = (objects.label + random.randint(1, max(num_classes, 2), count)) % num_classes
    if settings.wrong_class == "burst":
        goes_on = objects.in_turn & objects.burst & np.roll(objects.burst, 1)
        other = other[_first(goes_on)]
    confused &= other != objects.label  # a single class cannot be taken for another
    top = np.array(settings.certainty)[bad] + settings.spread * random.standard_normal(count)
    likeliest = np.where(confused, other, objects.label)
    scores = _class_scores(random, num_classes, likeliest, np.clip(top, _LEAST, _MOST), objects.label)
    scores[objects.ignore, 1:] *= _IGNORED
    scores[:, 0] = 1 - scores[:, 1:].sum(axis=1)

    to = np.arange(count) + np.roll(objects.in_turn, -1)  # the row of the object's next frame
    random = _stream(settings, objects.video, "moves")
    error = np.array(settings.move_jitter)[bad]
    end = _jittered(random, objects.boxes[to], error, error)

    runs = objects.frame[found], objects.identity[found]
    return _Seen(
        frame=objects.frame[found],
        boxes=boxes[found],
        class_scores=scores[found],
        looks=_looks(objects, bad, settings)[found],
        end=end[found],
        tracklet=np.cumsum(~_in_turn(runs[1], runs[0])) - 1,
    )


def _looks(objects: _Objects, bad: Indices, settings: Settings) -> Floats:
    """Embeddings (N, E): of each object its own direction, that of look-alikes partly their class's; and noise."""
    random, width = _stream(settings, objects.video, "looks"), settings.embedding_size

    def directions(count: int) -> Floats:
        vectors = random.standard_normal((count, width))
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    own = directions(int(objects.identity.max(initial=0)) + 1)[objects.identity]
    of_class = directions(int(objects.label.max(initial=0)) + 1)[objects.label]
    share = np.where(objects.lookalike, settings.likeness, 0.0)[:, None]
    looks = np.sqrt(share) * of_class + np.sqrt(1 - share) * own
    noise = np.array(settings.embedding_noise)[bad, None] / np.sqrt(width)
    return looks + noise * random.standard_normal((len(objects), width))


@dataclass(frozen=True)
class _Nothing:
    """A kind of boxes where no object is: mean number in a frame, how many frames one lasts, mean and deviation of its
    score, and whether it gets a tracklet."""

    name: str
    number: float
    frames: tuple[int, int]
    certainty: tuple[float, float]
    tracked: bool


def _false(
    kind: _Nothing, video: str, num_frames: int, num_classes: int, size: tuple[int, int], settings: Settings
) -> _Seen:
    """False positives: each at a place of its own, for as long as it lasts."""
    random = _stream(settings, video, kind.name)
    least, most = kind.frames
    begin = np.arange(1 - most, num_frames)  # those that began before the video are seen too
    begin = np.repeat(begin, random.poisson(2 * kind.number / (least + most), len(begin)))
    length = random.randint(least, most + 1, len(begin))
    which = np.repeat(np.arange(len(begin)), length)
    frame = begin[which] + np.arange(len(which)) - (np.cumsum(length) - length)[which]

    middle = random.random_sample((len(begin), 2)) * size[::-1]
    half = random.uniform(*_FALSE_SIDES, (len(begin), 2)) / 2 * min(size)
    clean = np.zeros(len(which), np.intp)
    places = np.concatenate([middle - half, middle + half], axis=1)[which]
    boxes = _jittered(random, places, np.array(settings.jitter)[clean], np.array(settings.resize)[clean])
    label = random.randint(num_classes, size=len(begin))[which]
    mean, spread = kind.certainty
    top = np.clip(mean + spread * random.standard_normal(len(which)), _LEAST, _MOST)
    seen = _Seen(
        frame=frame,
        boxes=boxes,
        class_scores=_class_scores(random, num_classes, label, top, label),
        looks=random.standard_normal((len(begin), settings.embedding_size))[which] / np.sqrt(settings.embedding_size),
        end=_jittered(random, boxes, np.full(len(which), settings.false_move), np.zeros(len(which))),
        tracklet=which if kind.tracked else np.full_like(which, -1),
    )
    return _chosen(seen, (frame >= 0) & (frame < num_frames))


def _class_scores(random: RandomState, num_classes: int, likeliest: Indices, top: Floats, own: Indices) -> Floats:
    """Scores (N, C + 1), background first, that sum to 1. likeliest: (N,), the class that scores top (N,), above all
    others; own: (N,), the class that comes second where it is not the likeliest."""
    every = np.arange(len(top))
    rest = random.random_sample((len(top), num_classes + 1)) + 0.5
    rest[every, 1 + own] += 2
    rest[every, 0] += 2
    rest[every, 1 + likeliest] = 0
    scores = rest / rest.sum(axis=1, keepdims=True) * (1 - top[:, None])
    scores = np.minimum(scores, 0.9 * top[:, None])
    scores[every, 1 + likeliest] = top
    scores[:, 0] = 1 - scores[:, 1:].sum(axis=1)
    return scores


def _jittered(random: RandomState, boxes: Floats, shift: Floats, resize: Floats) -> Floats:
    """Boxes (N, 4) with errors of their centres, as shares (N,) of the sides, and of the logarithms of these."""
    side = boxes[:, 2:] - boxes[:, :2]
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2 + random.standard_normal(side.shape) * side * shift[:, None]
    half = side / 2 * np.exp(random.standard_normal(side.shape) * resize[:, None])
    return np.concatenate([middle - half, middle + half], axis=1)


def _in_turn(identity: Indices, frame: Indices) -> Mask:
    """Which rows (N,), by identity and frame, are the frame after the row before."""
    turn = np.zeros(len(frame), np.bool_)
    turn[1:] = (np.diff(identity) == 0) & (np.diff(frame) == 1)
    return turn


def _first(goes_on: Mask) -> Indices:
    """The first row (N,) of the run that each row is in; goes_on: (N,), it is in that of the row before."""
    return np.maximum.accumulate(np.where(goes_on, 0, np.arange(len(goes_on))))


def _moves(start: Floats, end: Floats) -> Moves:
    """Of each detection (N, 4) one move, for certain."""
    count = len(start)
    return Moves(
        start.astype(np.float32), end.astype(np.float32), np.ones(count, np.float32), np.arange(count, dtype=np.int32)
    )


def _joined(parts: Sequence[_Seen]) -> _Seen:
    """All of them, and no tracklet of one is that of another."""
    starts = np.cumsum([0, *(1 + int(part.tracklet.max(initial=-1)) for part in parts)])
    tracklets = [
        np.where(part.tracklet < 0, -1, start + part.tracklet) for start, part in zip(starts, parts, strict=False)
    ]
    parts = [replace(part, tracklet=tracklet) for part, tracklet in zip(parts, tracklets, strict=True)]
    return _Seen(**{name.name: np.concatenate([getattr(part, name.name) for part in parts]) for name in fields(_Seen)})


def _chosen(seen: _Seen, chosen: Mask) -> _Seen:
    return _Seen(**{field.name: getattr(seen, field.name)[chosen] for field in fields(_Seen)})


def _proper(boxes: Floats, size: tuple[int, int]) -> Floats:
    """Boxes cut at the frame, at least a pixel wide and high."""
    inside = clip(boxes, size)
    low = np.minimum(inside[:, :2], np.array(size[::-1]) - 1)
    return np.concatenate([low, np.maximum(inside[:, 2:], low + 1)], axis=1)


def _stream(settings: Settings, *names: str) -> RandomState:
    """Random numbers for these names alone. RandomState's stream is frozen for ever (NEP 19), Generator's is not."""
    seed = hashlib.sha256("/".join((str(settings.seed), *names)).encode()).digest()
    return RandomState(np.frombuffer(seed, "<u4"))
