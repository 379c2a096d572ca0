"""HOTA (Luiten et al., IJCV 2021), as TrackEval 1.3 defines it: detection and association in even shares.

One assignment a frame serves all 19 localisation thresholds: it prefers pairs of trajectories that overlap much over
the whole video.
"""

from __future__ import annotations

import numpy as np

from pipeline.metrics.counts import Counts
from pipeline.metrics.pairs import EPSILON, Booleans, Floats, Ints, Pairs, assigned

NEEDS_IDS = True
OF_PAIRS = True
OVER_CLASSES = "sum"
JOINED: tuple[str, ...] = ()
ALPHAS = np.arange(0.05, 0.99, 0.05)  # (19,) .05 to .95
FIELDS = ("HOTA", "DetA", "AssA", "LocA", "DetRe", "DetPr", "AssRe", "AssPr")


def count(pairs: Pairs) -> Counts:
    """Counts of one video and class, each (19,), one a threshold.

    tp, fn, fp: boxes; iou: the sum over matches; assa, assre, asspr: the sum over matches of how well the two
    trajectories agree (A(c), equations 10 to 12 of the paper).
    """
    truth_id, predicted_id = pairs.truth_id[pairs.truth], pairs.predicted_id[pairs.predicted]
    key = truth_id * max(pairs.num_predicted_ids, 1) + predicted_id
    meetings, meeting = np.unique(key, return_inverse=True)  # (K,) trajectories that ever overlap; (P,) which one
    meeting = meeting.reshape(-1)
    truth_length = np.bincount(pairs.truth_id)[meetings // max(pairs.num_predicted_ids, 1)]  # (K,)
    predicted_length = np.bincount(pairs.predicted_id)[meetings % max(pairs.num_predicted_ids, 1)]  # (K,)

    matched = _match(pairs, meeting, truth_length + predicted_length)
    # The thresholds that a match passes are the first few; counting from the top gives all of them at once.
    passed = np.searchsorted(ALPHAS - EPSILON, pairs.iou[matched], "right")  # (matches,) 0 to 19
    tp = _from_the_top(np.bincount(passed, minlength=len(ALPHAS) + 1))
    iou = _from_the_top(np.bincount(passed, pairs.iou[matched], minlength=len(ALPHAS) + 1))
    cells = np.bincount(meeting[matched] * (len(ALPHAS) + 1) + passed, minlength=len(meetings) * (len(ALPHAS) + 1))
    together = _from_the_top(cells.reshape(-1, len(ALPHAS) + 1))  # (K, 19) matches of each two trajectories
    either = (truth_length + predicted_length)[:, None] - together
    return {
        "tp": tp,
        "fn": len(pairs.truth_frame) - tp,
        "fp": len(pairs.predicted_frame) - tp,
        "iou": iou,
        "assa": (together * together / np.maximum(1, either)).sum(axis=0),
        "assre": (together * together / np.maximum(1, truth_length)[:, None]).sum(axis=0),
        "asspr": (together * together / np.maximum(1, predicted_length)[:, None]).sum(axis=0),
    }


def scores(counts: Counts) -> dict[str, float]:
    """Means over the thresholds, in [0, 1]; all nan where there is neither truth nor prediction."""
    if not (counts["tp"] + counts["fn"] + counts["fp"]).any():
        return dict.fromkeys(FIELDS, float("nan"))
    return {name: float(curve.mean()) for name, curve in curves(counts).items()}


def curves(counts: Counts) -> dict[str, Floats]:
    """FIELDS at each of ALPHAS, (19,). As TrackEval has it, LocA is 1 at a threshold that nothing passes."""
    tp, fn, fp = counts["tp"], counts["fn"], counts["fp"]
    deta = tp / np.maximum(1, tp + fn + fp)
    assa = counts["assa"] / np.maximum(1, tp)
    return {
        "HOTA": np.sqrt(deta * assa),
        "DetA": deta,
        "AssA": assa,
        "LocA": np.where(tp > 0, counts["iou"] / np.maximum(1, tp), 1.0),
        "DetRe": tp / np.maximum(1, tp + fn),
        "DetPr": tp / np.maximum(1, tp + fp),
        "AssRe": counts["assre"] / np.maximum(1, tp),
        "AssPr": counts["asspr"] / np.maximum(1, tp),
    }


def _match(pairs: Pairs, meeting: Ints, lengths: Ints) -> Booleans:
    """Which pairs (P,) are matched: in each frame, those of the greatest sum of IoU times global alignment."""
    # A pair's similarity in its frame: its IoU over all IoUs that involve either box.
    involved = np.bincount(pairs.truth, pairs.iou)[pairs.truth] if len(pairs.iou) else pairs.iou
    involved = involved + (np.bincount(pairs.predicted, pairs.iou)[pairs.predicted] if len(pairs.iou) else 0)
    together = np.bincount(meeting, pairs.iou / (involved - pairs.iou), minlength=len(lengths))  # (K,)
    alignment = together / (lengths - together)
    return assigned(pairs, alignment[meeting] * pairs.iou)


def _from_the_top(histogram: Floats | Ints) -> Floats:
    """(..., 20) counts by how many thresholds are passed -> (..., 19) counts that pass each threshold."""
    return np.cumsum(histogram[..., ::-1], axis=-1, dtype=np.float64)[..., -2::-1]
