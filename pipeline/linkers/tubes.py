"""`tubes`: detections become class-wise tubes by Viterbi linking (Feichtenhofer, Pinz and Zisserman, "Detect to Track
and Track to Detect", 2017, section 4), and a tube's best scores lift all of its boxes.

A tube has a box in every frame that has a box of its class; frames without one are jumped over. The step from box i to
box j of the next such frame is worth s_i + s_j + psi(i, j) (equations 5 and 6), where psi is 1 if some move leads from
where i is to where j is, else 0. The best tube of a class is found exactly, its boxes are taken away, and so on until a
frame has no box left. So tubes span the video: right for a few objects that stay, as in ImageNet VID, and for detectors
that keep many weak boxes; people who walk in and out are better left to other linkers.

Where it follows the authors' code rather than the paper: psi asks for an IoU of at least .5, not above; moves count for
all classes, and for steps that jump over frames; boxes that no tube took are dropped. Ours: without moves the overlap
of the boxes themselves is the evidence, and frames that a stride leaves out get interpolated boxes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.linkers.parts.filling import fill
from pipeline.linkers.parts.ranges import ANY, check
from pipeline.linkers.parts.rescoring import best_count, causal_means
from pipeline.linkers.parts.selection import select
from pipeline.linkers.parts.viterbi import best_paths
from pipeline.records import Detections, Moves, Track, VideoInfo

NEEDS: frozenset[str] = frozenset()

Array = NDArray[Any]


@dataclass(frozen=True)
class Settings:
    """evidence: what makes psi 1. moves: a move k of the earlier frame with IoU(i, start_k) and IoU(j, end_k) both at
    least min_iou, and nothing after a frame without moves; overlap: IoU(i, j) of at least min_iou; moves_else_overlap:
    overlap where there are no moves; none: nothing ever, so that tubes go where scores are highest, to tell what psi is
    worth. Moves pay where objects leave half of their box from one frame that is looked at to the next; of slow objects
    the overlap says as much, and more where ends err by a fifth of a side.

    rescore: tube adds to each score of a tube the mean of its ceil(alpha * n) highest; causal, at each box, of those
    up to there (the paper's online version); none leaves scores as they are.
    keep_unlinked: boxes that no tube took are given out as they came, else they are dropped.
    min_score: boxes below it take no part. max_gap: most frames, beyond the stride of moves, that a tube may jump
    over; at a longer gap the class is linked before and after it by itself. None: no bound.
    interpolate_jumps: frames that a tube jumps over get a box too, as those do that a stride leaves out.
    """

    evidence: Literal["moves_else_overlap", "moves", "overlap", "none"] = "moves_else_overlap"
    min_iou: float = 0.5
    rescore: Literal["tube", "causal", "none"] = "tube"
    alpha: float = 0.5
    keep_unlinked: bool = False
    min_score: float | None = None
    max_gap: int | None = None
    interpolate_jumps: bool = False

    @property
    def needs(self) -> frozenset[str]:
        """Evidence that these settings cannot do without, beside NEEDS."""
        return frozenset({"moves"} if self.evidence == "moves" else ())

    def __post_init__(self) -> None:
        check(self, {"min_score": ANY, "max_gap": (0, np.inf)}, above={"min_iou": (0, 1), "alpha": (0, 1)})


def link(frames: Sequence[Detections], video: VideoInfo, settings: Settings) -> tuple[list[Detections], list[Track]]:
    """Tubes of one video, class by class, best first; the frames come back with the tubes' scores (mostly above 1).

    A track's score is the mean of its boxes' scores before rescoring. Interpolated boxes are in frames that are on
    record only; their scores are interpolated too.
    """
    if not frames:
        return [], []
    boxes, moves = _Boxes.of(frames), _Moves.of(frames)
    frame_index = np.array([frame.frame_index for frame in frames], np.int32)
    rescored = boxes.scores.copy()
    linked = np.zeros(len(rescored), np.bool_)
    tracks: list[Track] = []
    for rows, first in _runs(boxes, frame_index, moves.stride, settings):
        visited = boxes.frame[rows[first[:-1]]]
        by_overlap, begin, end = _evidence(visited, frame_index, moves, settings)
        links = _links(
            boxes.boxes[rows],
            first,
            by_overlap,
            begin,
            end,
            moves.start,
            moves.end,
            moves.move_of_end,
            settings.min_iou,
        )
        scores = boxes.scores[rows].astype(np.float64)
        paths = best_paths(scores, first, *links)
        tubes = rows[paths]  # (K, T)
        rescored[tubes] = scores[paths] + _bonus(scores[paths], settings)
        linked[tubes] = True
        tracks += [
            _track(number, tube, frame_index[visited], boxes, rescored)
            for number, tube in enumerate(tubes, len(tracks) + 1)
        ]
    longest = int(np.ptp(frame_index)) if settings.interpolate_jumps else moves.stride - 1
    if longest > 0:
        tracks = fill(tracks, frame_index, longest)
    bounds = np.cumsum([len(frame) for frame in frames])[:-1]
    given_out = [dataclasses.replace(f, scores=new) for f, new in zip(frames, np.split(rescored, bounds), strict=True)]
    if not settings.keep_unlinked:
        given_out = [select(frame, taken) for frame, taken in zip(given_out, np.split(linked, bounds), strict=True)]
    return given_out, tracks


@dataclass(frozen=True)
class _Boxes:
    """All boxes of a video, frame after frame, one row each; frame: which of the frames a row is of."""

    frame: Array
    boxes: Array
    scores: Array
    labels: Array
    box_id: Array
    tracked: Array
    best_first: Array  # the rows, frame after frame still, in each from the highest score to the lowest

    @staticmethod
    def of(frames: Sequence[Detections]) -> _Boxes:
        counts = [len(frame) for frame in frames]
        starts = np.cumsum([0, *counts])
        return _Boxes(
            frame=np.repeat(np.arange(len(frames)), counts),
            boxes=np.concatenate([frame.boxes for frame in frames]).astype(np.float64),
            scores=np.concatenate([frame.scores for frame in frames]),
            labels=np.concatenate([frame.labels for frame in frames]),
            box_id=np.concatenate([frame.box_id for frame in frames]),
            tracked=np.concatenate([np.zeros(len(f), np.bool_) if f.tracked is None else f.tracked for f in frames]),
            best_first=np.concatenate(
                [start + _best_first(frame) for start, frame in zip(starts, frames, strict=False)]
            ),
        )


def _best_first(frame: Detections) -> Array:
    """The boxes by score; equal ones by place, so that the order in which they are given never counts."""
    order = np.argsort(-frame.scores, kind="stable")
    if (np.diff(frame.scores[order]) == 0).any():  # rare in raw scores, and the sort below costs eight times as much
        order = np.lexsort((frame.box_id, *frame.boxes.T, -frame.scores))
    return order


@dataclass(frozen=True)
class _Moves:
    """All moves of a video, frame after frame: those of frame t are the rows first[t]:first[t + 1].

    given: (T,), whether the frame says anything of moves; stride: how many frames on they lead, 1 where none says.
    start, end: float64 (M, 4); a frame's ends are in order of x1, so that few need be held against a box; move_of_end:
    (M,), which of the frame's moves each of them belongs to.
    """

    first: Array
    given: Array
    start: Array
    end: Array
    move_of_end: Array
    stride: int

    @staticmethod
    def of(frames: Sequence[Detections]) -> _Moves:
        moves = [_NO_MOVES if frame.moves is None else frame.moves for frame in frames]
        by_end = [np.argsort(move.end[:, 0], kind="stable") for move in moves]
        return _Moves(
            first=np.cumsum([0, *map(len, by_end)]),
            given=np.array([frame.moves is not None for frame in frames]),
            start=np.concatenate([move.start for move in moves]).astype(np.float64),
            end=np.concatenate([move.end[order] for move, order in zip(moves, by_end, strict=True)]).astype(np.float64),
            move_of_end=np.concatenate(by_end),
            stride=max(move.stride for move in moves),
        )


_NO_MOVES = Moves(
    np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32)
)


def _runs(boxes: _Boxes, frame_index: Array, stride: int, settings: Settings) -> Iterator[tuple[Array, Array]]:
    """What is linked by itself: each class, or each part of it between gaps that are too long.

    Yields rows (N,), by frame and in a frame best first, and first (T + 1,): rows[first[t]:first[t + 1]] are of one
    frame, and none of these is empty.
    """
    rows = boxes.best_first
    if settings.min_score is not None:
        rows = rows[boxes.scores[rows] >= settings.min_score]
    rows = rows[np.argsort(boxes.labels[rows], kind="stable")]
    label, frame = boxes.labels[rows], boxes.frame[rows]
    begins = np.flatnonzero((np.diff(label, prepend=-1) != 0) | (np.diff(frame, prepend=-1) != 0))
    if len(begins) == 0:
        return
    label, frame = label[begins], frame[begins]  # of every frame of every class
    cut = np.diff(label) != 0
    if settings.max_gap is not None:
        cut |= np.diff(frame_index[frame]) - stride > settings.max_gap
    bounds = np.append(begins, len(rows))
    for part in np.split(np.arange(len(begins)), np.flatnonzero(cut) + 1):
        first = bounds[part[0] : part[-1] + 2]
        yield rows[first[0] : first[-1]], first - first[0]


def _evidence(visited: Array, frame_index: Array, moves: _Moves, settings: Settings) -> tuple[Array, Array, Array]:
    """What judges the steps between the visited frames (T,): by_overlap, move_begin, move_end (T - 1,) of `_links`."""
    before = visited[:-1]
    # Where a clip begins, the next visited frame may come before the one that the moves lead to.
    by_moves = moves.given[before] & (np.diff(frame_index[visited]) >= moves.stride)
    by_moves &= settings.evidence in ("moves", "moves_else_overlap")
    begin = moves.first[before]
    end = np.where(by_moves, moves.first[before + 1], begin)
    return ~by_moves & (settings.evidence in ("overlap", "moves_else_overlap")), begin, end


@numba.njit(cache=True)
def _links(
    boxes: Array,
    first: Array,
    by_overlap: Array,
    move_begin: Array,
    move_end: Array,
    start: Array,
    end: Array,
    move_of_end: Array,
    min_iou: float,
) -> tuple[Array, Array]:
    """The pairs of boxes with psi = 1 (equation 6), as `best_paths` takes them: first_link (N + 1,) and links (L,).

    boxes: float64 (N, 4), those of frame t are first[t]:first[t + 1]. The step from frame t to t + 1 is judged by the
    overlap of boxes where by_overlap[t], else by the moves move_begin[t]:move_end[t] of `_Moves`.
    """
    widest = most_moves = 0  # loops: np.diff(first).max() takes seconds to compile
    for t in range(len(first) - 1):
        widest = max(widest, first[t + 1] - first[t])
    for t in range(len(move_begin)):
        most_moves = max(most_moves, move_end[t] - move_begin[t])
    linked = np.empty((widest, widest), np.bool_)  # of one step, box by box
    reached = np.empty((most_moves, widest), np.bool_)  # of one step, move by box at its end
    is_reached = np.empty(most_moves, np.bool_)
    first_link = np.zeros(len(boxes) + 1, np.int64)
    links = np.empty(len(boxes), np.int64)
    count = 0
    for t in range(len(first) - 2):
        here, there = boxes[first[t] : first[t + 1]], boxes[first[t + 1] : first[t + 2]]
        if by_overlap[t]:
            for i in range(len(here)):
                for j in range(len(there)):
                    linked[i, j] = _overlap(here[i], there[j], min_iou)
        else:
            mine = slice(move_begin[t], move_end[t])
            starts, ends, moves = start[mine], end[mine], move_of_end[mine]
            is_reached[: len(moves)] = False
            reached[: len(moves), : len(there)] = False
            for j in range(len(there)):
                for row in _near(there[j], ends[:, 0], min_iou):
                    if _overlap(there[j], ends[row], min_iou):
                        is_reached[moves[row]] = reached[moves[row], j] = True
            linked[: len(here), : len(there)] = False
            for move in range(len(moves)):
                if not is_reached[move]:
                    continue
                for i in range(len(here)):
                    if _overlap(here[i], starts[move], min_iou):
                        for j in range(len(there)):
                            linked[i, j] |= reached[move, j]
        if count + len(here) * len(there) > len(links):
            links = np.concatenate((links, np.empty(len(links) + len(here) * len(there), np.int64)))
        for j in range(len(there)):
            for i in range(len(here)):
                if linked[i, j]:
                    links[count] = first[t] + i
                    count += 1
            first_link[first[t + 1] + j + 1] = count
    return first_link, links[:count]


@numba.njit(cache=True)
def _near(box: Array, lefts: Array, min_iou: float) -> range:
    """Those of the boxes with these x1, in rising order, that can have the IoU: their spans along x must have it."""
    width = (box[2] - box[0]) * (1 + 1e-9)  # rounding must lose none
    leftmost, rightmost = box[0] - width * (1 / min_iou - 1), box[0] + width * (1 - min_iou)
    return range(np.searchsorted(lefts, leftmost), np.searchsorted(lefts, rightmost, side="right"))


@numba.njit(cache=True)
def _overlap(one: Array, other: Array, min_iou: float) -> bool:
    """Whether two boxes have at least this IoU. Without branches: four times as fast here as with early exits."""
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    shared = width * height
    both = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1])
    return (shared > 0) & (shared >= min_iou * (both - shared))


def _bonus(scores: Array, settings: Settings) -> Array:
    """What is added to the scores (K, T) of K tubes: the mean of the best ceil(alpha * n) of each, (K, 1) or (K, T)."""
    if settings.rescore == "none":
        return np.zeros((len(scores), 1))
    if settings.rescore == "causal":
        return causal_means(scores, settings.alpha)
    return np.sort(scores, axis=1)[:, -best_count(settings.alpha, scores.shape[1]) :].mean(axis=1, keepdims=True)


def _track(number: int, tube: Array, frame_index: Array, boxes: _Boxes, rescored: Array) -> Track:
    raw = boxes.scores[tube]
    return Track(
        track_id=number,
        label=int(boxes.labels[tube[0]]),
        score=float(raw.mean()),
        frame_index=frame_index,
        boxes=boxes.boxes[tube].astype(np.float32),
        scores=rescored[tube],
        raw_scores=raw,
        box_id=boxes.box_id[tube],
        tracked=boxes.tracked[tube],
    )
