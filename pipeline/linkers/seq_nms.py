"""`seq_nms`: boxes linked over whole videos, rescored together, and what they overlap removed.

Seq-NMS (Han et al. 2016, arXiv 1602.08465) with the thresholds of FGFA's implementation, and Seq-Track-NMS (Lyu et
al. 2020, Plug & Play tracker, sections 5 and 6.4). Class by class, each box links to those boxes of the next frame that
overlap with it; the path along links with the greatest sum of scores is a sequence, of one box or more; its boxes
share one new score; other boxes of its frames that overlap with it are removed; and again, until the greatest sum is
below a floor. Links never jump over a frame: an object that is missed once is two sequences.

Seq-Track-NMS (`links="moves"`) links a box to those that overlap with where the tracker says that it goes, so that
objects faster than a third of their width a frame stay together. The tracker's word is `Detections.moves`, for the
frame `stride` on. Any move of a box may link it; a box without one ends its sequence.

Where FGFA differs: it takes the last pixel as part of a box (+1), its ties fall by position, and it stops when no link
of the class is left, so that single boxes suppress each other only as long as there are links elsewhere. Here they do
always.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.linkers.parts import sequences
from pipeline.linkers.parts.ranges import check
from pipeline.linkers.parts.selection import select
from pipeline.records import Detections, Track, VideoInfo
from pipeline.tracks import tracks_of

NEEDS: frozenset[str] = frozenset()  # moves too where the setting `links` asks for them; `link` says so


@dataclass(frozen=True)
class Settings:
    """links: what says where a box goes, its own place ("overlap", Seq-NMS) or its moves ("moves", Seq-Track-NMS).

    link_iou: least IoU of the place where a box is expected with the box that it links to. suppress_iou: boxes of a
    sequence's frames with at least this IoU with it are removed: they are not among the frames that come back.
    rescore: a sequence's score, the average of its boxes' or their maximum. min_sum: sequences end below this sum of
    scores; the boxes left then stay as they are. nms_iou: after all that, of two boxes of a frame and class with at
    least this IoU the one of the lower score is removed (Plug & Play: .45; None: none). Boxes in sequences are
    already further apart than suppress_iou, so above that it is for the boxes that were left.
    min_length: sequences of fewer boxes are rescored but not given out as tracks; a box seen once is a detection.
    """

    links: Literal["overlap", "moves"] = "overlap"
    link_iou: float = 0.5
    suppress_iou: float = 0.3
    rescore: Literal["average", "max"] = "average"
    min_sum: float = 0.01
    nms_iou: float | None = None
    min_length: int = 2

    @property
    def needs(self) -> frozenset[str]:
        """Evidence that these settings cannot do without, beside NEEDS."""
        return frozenset({"moves"} if self.links == "moves" else ())

    def __post_init__(self) -> None:
        ious = dict.fromkeys(("link_iou", "suppress_iou", "nms_iou"), (0, 1))
        check(self, {"min_sum": (0, np.inf), "min_length": (1, np.inf)}, above=ious)


def link(frames: Sequence[Detections], video: VideoInfo, settings: Settings) -> tuple[list[Detections], list[Track]]:
    """The frames without the suppressed boxes and with the sequences' scores, and the sequences as tracks.

    Raises ValueError where `settings.links` is "moves" and no frame has any, though there is something to link.
    """
    by_moves = settings.links == "moves"
    filled = [frame for frame in frames if len(frame)]
    if by_moves and len(filled) > 1 and all(frame.moves is None for frame in filled):
        raise ValueError(
            f"linker seq_nms.links is 'moves', but the detections of {video.video_id} have none; "
            "it must be 'overlap' for a model that gives no moves"
        )
    if not filled:
        return list(frames), []
    boxes = _Boxes(frames)
    expected, owner = boxes.moved() if by_moves else (boxes.boxes, np.arange(len(boxes.boxes)))
    target = boxes.target([frame.moves.stride if by_moves and frame.moves is not None else 1 for frame in frames])
    link_first, links = sequences.find_links(boxes.boxes, boxes.first, target, expected, owner, settings.link_iou)
    numbers = sequences.choose(
        boxes.boxes, boxes.scores, boxes.first, target, link_first, links, settings.suppress_iou, settings.min_sum
    )
    scores = _rescored(boxes.scores, numbers, settings.rescore)
    keep = numbers != sequences.SUPPRESSED
    if settings.nms_iou is not None:
        # Non-maximum suppression is Seq-NMS without links. What is removed already must not suppress.
        no_links = np.full_like(target, -1), np.zeros_like(link_first), links[:0]
        left = np.where(keep, scores, -np.inf)
        chosen = sequences.choose(boxes.boxes, left, boxes.first, *no_links, settings.nms_iou, -np.inf)
        keep &= chosen != sequences.SUPPRESSED
    member = keep & (numbers >= 0)
    member[member] = np.bincount(numbers[member])[numbers[member]] >= settings.min_length
    ids = np.where(member, numbers, -1).astype(np.int32)

    kept = boxes.by_frame(keep)
    before = [select(frame, mine) for frame, mine in zip(frames, kept, strict=True)]
    new_scores = [new[mine] for new, mine in zip(boxes.by_frame(scores.astype(np.float32)), kept, strict=True)]
    after = [replace(frame, scores=new) for frame, new in zip(before, new_scores, strict=True)]
    return after, tracks_of(before, [one[mine] for one, mine in zip(boxes.by_frame(ids), kept, strict=True)], after)


class _Boxes:
    """All boxes of a video by class, frame, falling score, and then place: no result hangs on the order they came in.

    boxes: float64 (N, 4); scores: float64 (N,); first: (G + 1,), where the boxes of each class and frame that has any
    begin, and the end of the last.
    """

    def __init__(self, frames: Sequence[Detections]) -> None:
        self._frames = frames
        self._counts = [len(frame) for frame in frames]
        boxes = np.concatenate([frame.boxes for frame in frames]).astype(np.float64)
        scores = np.concatenate([frame.scores for frame in frames]).astype(np.float64)
        labels = np.concatenate([frame.labels for frame in frames]).astype(np.int64)
        box_id = np.concatenate([frame.box_id for frame in frames]).astype(np.int64)
        position = np.repeat(np.arange(len(frames)), self._counts)  # of the frame

        order = np.lexsort((-scores, position, labels))
        same = np.ones(len(order) - 1, bool)
        for key in (labels, position, scores):
            same &= np.diff(key[order]) == 0
        tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
        among = order[tied]
        keys = (box_id, *boxes.T[::-1], -scores, position, labels)
        order[tied] = among[np.lexsort([key[among] for key in keys])]

        self._order = order
        self.boxes, self.scores = boxes[order], scores[order]
        self._name = (position * 2**32 + box_id)[order]
        labels, position = labels[order], position[order]
        begins = np.flatnonzero((np.diff(labels, prepend=-1) != 0) | (np.diff(position, prepend=-1) != 0))
        self.first = np.append(begins, len(order))
        self._group_label, self._group_position = labels[begins], position[begins]

    def target(self, strides: Sequence[int]) -> NDArray[np.int64]:
        """The group (G,) of each group's class as many frames on as its frame strides (T,); -1 where there is none."""
        frame_index = np.array([frame.frame_index for frame in self._frames], np.int64)
        span = frame_index[-1] + max(strides) + 1
        key = self._group_label * span + frame_index[self._group_position]
        wanted = key + np.array(strides)[self._group_position]
        found = np.minimum(np.searchsorted(key, wanted), len(key) - 1)
        return np.where(key[found] == wanted, found, -1)

    def moved(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Where boxes go: the ends (M, 4) of those moves that are of a box, and the box (M,), rising."""
        ends, wanted = [np.empty((0, 4))], [np.empty(0, np.int64)]
        for position, frame in enumerate(self._frames):
            if frame.moves is not None:
                ends.append(frame.moves.end.astype(np.float64))
                wanted.append(position * 2**32 + frame.moves.box_id.astype(np.int64))
        end, name = np.concatenate(ends), np.concatenate(wanted)
        by_name = np.argsort(self._name)
        box = by_name[np.minimum(np.searchsorted(self._name, name, sorter=by_name), len(by_name) - 1)]
        known = np.flatnonzero(self._name[box] == name)
        known = known[np.argsort(box[known])]
        return end[known], box[known]

    def by_frame(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """Values (N,) of these boxes, frame by frame, in the order that the boxes came in."""
        original = np.empty_like(values)
        original[self._order] = values
        return np.split(original, np.cumsum(self._counts)[:-1])


def _rescored(
    scores: NDArray[np.float64], numbers: NDArray[np.int64], rescore: Literal["average", "max"]
) -> NDArray[np.float64]:
    """The scores (N,) with each sequence's own for all its boxes; numbers: (N,), below 0 for boxes of none."""
    members = np.flatnonzero(numbers >= 0)
    sequence = numbers[members]
    if rescore == "average":
        new = np.bincount(sequence, scores[members]) / np.bincount(sequence)
    else:
        new = np.full(sequence.max(initial=-1) + 1, -np.inf)
        np.maximum.at(new, sequence, scores[members])
    after = scores.copy()
    after[members] = new[sequence]
    return after
