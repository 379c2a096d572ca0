"""Identity scores (Ristani et al., ECCV workshops 2016): IDF1, IDP, IDR, as py-motmetrics and TrackEval define them.

One assignment of whole trajectories to whole trajectories, such that as many boxes as possible agree (IoU >= .5).
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from pipeline.metrics.counts import Counts, ratio
from pipeline.metrics.pairs import Pairs

NEEDS_IDS = True
OF_PAIRS = True
OVER_CLASSES = "sum"
JOINED: tuple[str, ...] = ()
MIN_IOU = 0.5
NUMBERS = ("idtp", "idfp", "idfn")
FIELDS = ("IDF1", "IDP", "IDR", *NUMBERS)


def count(pairs: Pairs) -> Counts:
    """Counts of one video and class: boxes that agree in identity (idtp), predictions (idfp) and truth (idfn) left."""
    close = pairs.where(pairs.iou >= MIN_IOU)
    agree = np.zeros((close.num_truth_ids, close.num_predicted_ids), np.int64)  # (truth ids, predicted ids)
    np.add.at(agree, (close.truth_id[close.truth], close.predicted_id[close.predicted]), 1)
    # A trajectory left alone costs its boxes either way, so the cheapest assignment is that which agrees most.
    idtp = int(agree[linear_sum_assignment(agree, maximize=True)].sum())
    values = {"idtp": idtp, "idfp": len(pairs.predicted_frame) - idtp, "idfn": len(pairs.truth_frame) - idtp}
    return {name: np.array(value, np.float64) for name, value in values.items()}


def scores(counts: Counts) -> dict[str, float]:
    """IDF1, IDP, IDR in [0, 1], nan where undefined, and the counts."""
    idtp, idfp, idfn = (float(counts[name]) for name in NUMBERS)
    return {
        "IDF1": ratio(2 * idtp, 2 * idtp + idfp + idfn),
        "IDP": ratio(idtp, idtp + idfp),
        "IDR": ratio(idtp, idtp + idfn),
        "idtp": idtp,
        "idfp": idfp,
        "idfn": idfn,
    }
