"""Plug & Play's claims (Tables 2, 3 and 5): tracking comes first, linking by tracks follows, and neither costs much."""

from __future__ import annotations

from functools import partial

from jobs.claims.claim import Claim
from jobs.claims.system import System
from jobs.papers import plug_and_play_tracker as pnp

FRAMES, SEQ_NMS = "pnp-frames", "pnp-seq-nms"
FIRST, FIRST_SEQ_NMS, SEQ_TRACK_NMS = "pnp-tfd", "pnp-tfd-seq-nms", "pnp-tfd-seq-track-nms"
WIDER = "pnp-tfd-0.3-seq-nms"  # T_nmsmerge
DETECTED = "mAP"


def systems() -> list[System]:
    """Table 2's lines, all with one tracker in one detector; tracking-first by itself from Table 5."""
    runs = {
        FRAMES: pnp.detector(pnp.HRNET),
        SEQ_NMS: pnp.detector(pnp.HRNET, linked=True),
        FIRST: pnp.tracking_first(pnp.HRNET, linked=False),
        FIRST_SEQ_NMS: pnp.tracking_first(pnp.HRNET),
        WIDER: pnp.tracking_first(pnp.HRNET, merge_iou=0.3),
        SEQ_TRACK_NMS: pnp.seq_track_nms(),
    }
    return [System(name, run.small) for name, run in runs.items()]


def claims() -> list[Claim]:
    """What the paper says of them."""
    one = partial(Claim, pnp.PAPER, metric=DETECTED, source="Table 2")
    cost = partial(Claim, pnp.PAPER, better=FIRST, worse=FRAMES, metric="ms")
    return [
        one("seq-nms", "Seq-NMS detects better than frames", SEQ_NMS, FRAMES),
        one("tracking-first", "tracking first, with Seq-NMS, is better still", FIRST_SEQ_NMS, SEQ_NMS),
        one("seq-track-nms", "to link by tracks is no worse than by overlap", SEQ_TRACK_NMS, FIRST_SEQ_NMS,
            margin=0.005),
        one("seq-track-nms-seq-nms", "the whole is better than Seq-NMS alone", SEQ_TRACK_NMS, SEQ_NMS),
        one("whole", "the whole is better than frames", SEQ_TRACK_NMS, FRAMES),
        one("in-bursts", "the whole gains most where the pattern cannot be read", SEQ_TRACK_NMS, FRAMES,
            subset="burst", beyond="clean"),
        one("fast", "of fast objects tracks link more ahead of overlap than of slow ones", SEQ_TRACK_NMS,
            FIRST_SEQ_NMS, subset="fast", beyond="slow"),
        one("merge", "merging at .7 is better than at .3", FIRST_SEQ_NMS, WIDER),
        cost("cost", "tracking first costs less than half of the detector", factor=1.5, source="Table 5"),
        cost("cost-quarter", "tracking first costs no more than a quarter of the detector, as on the paper's GPU",
             factor=1.25, source="Table 5", expected=False),
    ]  # fmt: skip
