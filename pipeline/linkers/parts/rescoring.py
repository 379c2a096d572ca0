"""Rescoring: a box's score becomes what its track as a whole, or the track so far, says about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.records import Detections, Track

Rule = Literal["none", "mean", "top", "max", "causal", "running"]


def rescore(tracks: Sequence[Track], rule: Rule, share: float = 0.5, decay: float = 0.99) -> list[Track]:
    """The tracks with new `scores`, each made of the track's own `scores`; `raw_scores` and `score` stay.

    mean, max: of all scores of the track. top: the mean of the best `share` of them (what Feichtenhofer et al.,
    "Detect to Track and Track to Detect", 2017, section 4, add to a score stands in its place here).
    What may be known online, of the scores up to each box: causal, the mean of the best `share`; running, an average
    in which the boxes before together count `decay` times their number (Zhang et al., "Integrated Object Detection
    and Tracking with Tracklet-Conditioned Detection", 2018, equation 3). Box rescoring as that paper's section 2.1 has
    it, online, is causal with a share of 1; offline it is mean.
    """
    if rule == "none":
        return list(tracks)
    new: dict[str, Callable[[NDArray[np.float64]], Any]] = {
        "mean": np.mean,
        "max": np.max,
        "top": lambda scores: np.mean(np.sort(scores)[-best_count(share, len(scores)) :]),
        "causal": lambda scores: causal_means(scores[None], share)[0],
        "running": lambda scores: _running(scores, decay),
    }
    return [
        replace(track, scores=np.full(len(track), new[rule](track.scores.astype(np.float64)), np.float32))
        for track in tracks
    ]


def rescore_frames(frames: Sequence[Detections], tracks: Sequence[Track]) -> list[Detections]:
    """The frames with the scores that their boxes have in the tracks; boxes of no track keep their own."""
    of_frame: dict[int, dict[int, float]] = {}
    for track in tracks:
        columns = (track.frame_index.tolist(), track.box_id.tolist(), track.scores.tolist())
        for frame_index, box_id, score in zip(*columns, strict=True):
            of_frame.setdefault(frame_index, {})[box_id] = score
    rescored = []
    for frame in frames:
        of_box = of_frame.get(frame.frame_index, {})
        scores = [of_box.get(*one) for one in zip(frame.box_id.tolist(), frame.scores.tolist(), strict=True)]
        rescored.append(replace(frame, scores=np.array(scores, np.float32)))
    return rescored


@numba.njit(cache=True)
def best_count(share: float, length: int) -> int:
    """How many make up the best share, at least 1: rounded up, but .55 of 100 are 55."""
    return max(1, int(np.ceil(share * length - 1e-9)))


@numba.njit(cache=True)
def causal_means(scores: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """(K, T): at each of the scores (K, T) the mean of the best share of its row up to there."""
    means = np.empty_like(scores)
    best = np.empty(scores.shape[1])
    for row in range(len(scores)):
        for t in range(scores.shape[1]):
            place = t
            while place > 0 and best[place - 1] < scores[row, t]:
                best[place] = best[place - 1]
                place -= 1
            best[place] = scores[row, t]
            means[row, t] = best[: best_count(share, t + 1)].mean()
    return means


def _running(scores: NDArray[np.float64], decay: float) -> list[float]:
    average = 0.0
    averages = []
    for length, score in enumerate(scores.tolist()):
        weight = decay * length
        average = (score + weight * average) / (1 + weight)
        averages.append(average)
    return averages
