"""D&T's claims (Tables 1 and 2, section 5.3): tubes, linked by what the network tracks, detect better than frames."""

from __future__ import annotations

from functools import partial

from jobs.claims.claim import Claim
from jobs.claims.system import System
from jobs.papers import detect_to_track as dt

ALONE, OF_BOTH, TUBES = "dt-detector", "dt-t-loss", "dt"
CAUSAL, UNTRACKED, AVERAGE, STRIDE = "dt-online", "dt-without-psi", "dt-average", "dt-stride-10"
DETECTED = "mAP"


def systems() -> list[System]:
    """D before and after the tracking loss, D&T, and what its ablations change."""
    runs = {
        ALONE: dt.detector("resnet101"),
        OF_BOTH: dt.detector_of_both(),
        TUBES: dt.tracked("resnet101"),
        CAUSAL: dt.online(),
        UNTRACKED: dt.configuration(UNTRACKED, linker={"evidence": "none"}),
        AVERAGE: dt.averaged("resnet101"),
        STRIDE: dt.strided(),
    }
    return [System(name, run.small) for name, run in runs.items()]


def claims() -> list[Claim]:
    """What the paper says of them."""
    one = partial(Claim, dt.PAPER, metric=DETECTED)
    return [
        one("tubes", "D&T detects better than D", TUBES, ALONE, source="Table 1"),
        one("tubes-same", "tubes detect better than the same network's frames", TUBES, OF_BOTH, source="Table 1"),
        one("causal", "rescoring by the past alone is better than none", CAUSAL, OF_BOTH, source="Section 5.3"),
        one("offline", "rescoring by whole tubes is better than by the past", TUBES, CAUSAL, source="Section 5.3"),
        one("in-bursts", "tubes gain most where the pattern cannot be read", TUBES, OF_BOTH, subset="burst",
            beyond="clean", source="Table 1"),
        one("loss", "the tracking loss alone betters the detector", OF_BOTH, ALONE, source="Table 1", expected=False),
        one("stride", "a frame in ten costs no more than two points", STRIDE, TUBES, margin=0.02, source="Table 1"),
        one("psi", "tracks help to link: with psi no worse than without", TUBES, UNTRACKED, margin=0.005,
            source="equation 6"),
        one("psi-lookalike", "tracks help where look-alikes cross", TUBES, UNTRACKED, subset="lookalike_crossing",
            source="equation 6"),
        Claim(dt.PAPER, "psi-tracks", "with psi tracks are better", TUBES, UNTRACKED, "mAP_track", source="equation 6"),
        one("average", "classifying tracked regions too is no worse", AVERAGE, TUBES, margin=0.005, source="Table 2"),
        Claim(dt.PAPER, "cost", "correlation and tracks cost less than a quarter of the detector", TUBES, ALONE, "ms",
              factor=1.25, source="Section 5.3"),
    ]  # fmt: skip
