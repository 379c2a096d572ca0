"""SMOT's claims (Tables 1 to 3): to look again with a detector's own anchors makes tracklets that linkers can trust.

The thresholds of tracklets and of DeepSORT are those that were best on val; what is added to SMOT has SMOT's.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from jobs.claims.claim import Claim
from jobs.claims.system import System
from jobs.papers import smot

PLAIN, FLOW, LINKED, SORTED = "smot", "smot-farneback", "smot-linking", "smot-dfs"
ONE_ANCHOR = "smot-anchors-1"
BY_DETECTION, OF_TABLE_2, BY_TRACK = "smot-0.8-0.2", "smot-0.9-0.2", "smot-0.9-0.4"  # sigma_det, sigma_tk
TRANSFERS, SWITCHES, IDENTITY, ACCURACY = "num_transfer", "num_switches", "IDF1", "MOTA"
DATA = "hannah"  # whose table has all systems; their twins are the same runs as those of the other datasets
THRESHOLDS: dict[str, tuple[Any, ...]] = {
    "model.sigma_det": (0.5, 0.7, 0.9),
    "model.sigma_track": (0.05, 0.1, 0.2),
}
CONFIDENCE = {"linker.min_confidence": (0.3, 0.5, 0.7)}


def systems() -> list[System]:
    """Table 1's; of Tables 2 and 3 the ends of what they vary."""
    plain = System(PLAIN, smot.redetection(DATA).small, THRESHOLDS)
    return [
        plain,
        System(FLOW, smot.farneback(DATA).small, like=PLAIN),
        System(LINKED, smot.linking(DATA).small, like=PLAIN),
        System(SORTED, smot.deep_face_sort(DATA).small, CONFIDENCE),
        plain.changed(ONE_ANCHOR, like=PLAIN, num_anchors=1, weighting="max"),
        plain.changed(BY_DETECTION, sigma_det=0.8, sigma_track=0.2),
        plain.changed(OF_TABLE_2, sigma_det=0.9, sigma_track=0.2),
        plain.changed(BY_TRACK, sigma_det=0.9, sigma_track=0.4),
    ]


def claims() -> list[Claim]:
    """What the paper says of them."""
    one = partial(Claim, smot.PAPER, source="Table 1")
    in_2 = partial(Claim, smot.PAPER, source="Table 2")
    return [
        one("transfers", "fewer transfers than DeepSORT", PLAIN, SORTED, TRANSFERS),
        one("flow-transfers", "with flow too", FLOW, SORTED, TRANSFERS),
        one("recall", "a higher recall than DeepSORT", FLOW, SORTED, "recall"),
        one("flow", "flow raises MOTA", FLOW, PLAIN, ACCURACY),
        one("flow-switches", "flow lowers switches", FLOW, PLAIN, SWITCHES),
        one("flow-fast", "flow helps fast objects more than slow ones", FLOW, PLAIN, ACCURACY, subset="fast",
            beyond="slow"),
        one("linking-identity", "linking raises IDF1", LINKED, FLOW, IDENTITY),
        one("linking-switches", "linking lowers switches", LINKED, FLOW, SWITCHES),
        one("linking-transfers", "linking raises transfers: what it joins is sometimes wrong", FLOW, LINKED, TRANSFERS),
        one("linked-dfs", "linked tracklets keep identities no worse than DeepSORT, within two points", LINKED, SORTED,
            IDENTITY, margin=0.02),
        one("linked-dfs-accuracy", "and MOTA is above DeepSORT's", LINKED, SORTED, ACCURACY),
        one("anchors", "ten anchors or one: MOTA is the same within two points", PLAIN, ONE_ANCHOR, ACCURACY,
            margin=0.02, near=True, source="Table 3"),
        one("anchors-transfers", "one anchor has fewer transfers than ten", ONE_ANCHOR, PLAIN, TRANSFERS,
            source="Table 3", expected=False),
        in_2("sigma-det", "a higher sigma_det raises MOTA", OF_TABLE_2, BY_DETECTION, ACCURACY),
        in_2("sigma-track", "a higher sigma_tk lowers transfers", BY_TRACK, OF_TABLE_2, TRANSFERS),
        in_2("sigma-track-switches", "and raises switches", OF_TABLE_2, BY_TRACK, SWITCHES),
    ]  # fmt: skip
