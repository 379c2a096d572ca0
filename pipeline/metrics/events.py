"""The event log of CLEAR MOT: where a tracker finds, misses, invents, switches; py-motmetrics 1.4's, without RAW rows.

`pandas.DataFrame(events(pair(truth, predicted)))` is the log as a table.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.clear import matches
from pipeline.metrics.pairs import Pairs

TYPES = ("ASCEND", "MIGRATE", "TRANSFER", "SWITCH", "MATCH", "MISS", "FP")


def events(pairs: Pairs) -> dict[str, NDArray[Any]]:
    """Columns (E,): frame, type (of TYPES), truth_id and predicted_id (-1 where none), distance (1 - IoU, else nan).

    A match is MATCH or, where the object was matched to another prediction before, SWITCH; what else there is to say
    of it stands before it (see `clear.Matches`). Ids are those of the pairs: 0 is the smallest of the rows' ids.
    Ordered by frame; in a frame, matches that go on, new matches, misses, false positives; among these as the rows.
    """
    found = matches(pairs)
    of_matches = (found.ascend, found.migrate, found.transfer, found.switch, ~found.switch)
    each = [np.flatnonzero(chosen) for chosen in of_matches]
    which = np.concatenate(each)  # the match that each event is of
    missed = np.flatnonzero(np.bincount(found.pairs.truth, minlength=len(pairs.truth_frame)) == 0)
    invented = np.flatnonzero(np.bincount(found.pairs.predicted, minlength=len(pairs.predicted_frame)) == 0)
    kind = np.repeat(np.arange(len(TYPES)), [len(rows) for rows in (*each, missed, invented)])

    # Rows of each event, -1 where none: the -1 that is appended to each column below.
    truth = np.concatenate([found.pairs.truth[which], missed, np.full(len(invented), -1)])
    predicted = np.concatenate([found.pairs.predicted[which], np.full(len(missed), -1), invented])
    frame = np.maximum(np.append(pairs.truth_frame, -1)[truth], np.append(pairs.predicted_frame, -1)[predicted])
    distance = np.full(len(kind), np.nan)
    distance[: len(which)] = 1 - found.pairs.iou[which]

    stage = kind.copy()  # what comes first in a frame
    stage[: len(which)] = ~found.continued[which]
    order = np.lexsort((kind, np.where(truth >= 0, truth, predicted), stage, frame))
    return {
        "frame": frame[order],
        "type": np.array(TYPES)[kind[order]],
        "truth_id": np.append(pairs.truth_id, -1)[truth[order]],
        "predicted_id": np.append(pairs.predicted_id, -1)[predicted[order]],
        "distance": distance[order],
    }
