"""TCD's claims (Tables 1, 3 and 4): to condition detection on tracklets is better than to mend it with tracks later."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from jobs.claims.claim import Claim
from jobs.claims.system import System
from jobs.papers import tracklet_conditioned_detection as tcd

SEQUENTIAL, PROPAGATE, LATE = "tcd-sequential", "tcd-propagate", "tcd-late"
FIRST, SECOND, INTEGRATED = "tcd-first-stage", "tcd-second-stage", "tcd-integrated"
DETECTED, TRACKED = "mAP", "mAP_track"


def systems() -> list[System]:
    """Table 1's lines; late integration and the integrated system on stronger features (Table 4).

    For how long flow alone may move a box is chosen for PropagateBox, and the same wherever it is at work.
    """
    dcn, fgfa = tcd.DEFORMABLE, tcd.AGGREGATED
    runs = {
        SEQUENTIAL: tcd.configuration(SEQUENTIAL, condition="none"),
        PROPAGATE: tcd.configuration(PROPAGATE, condition="none", propagate="raft_small"),
        LATE: tcd.configuration(LATE, **tcd.LATE),
        FIRST: tcd.configuration(FIRST, condition="stage_1"),
        SECOND: tcd.configuration(SECOND, condition="stage_2"),
        INTEGRATED: tcd.integrated(),
        "tcd-dcn-late": tcd.configuration("tcd-dcn-late", "dcn", **dcn, **tcd.LATE),
        "tcd-dcn-integrated": tcd.configuration("tcd-dcn-integrated", "dcn", **dcn),
        "tcd-dcn-fgfa-late": tcd.configuration("tcd-dcn-fgfa-late", "dcn-fgfa", **fgfa, **tcd.LATE),
        "tcd-dcn-fgfa-integrated": tcd.configuration("tcd-dcn-fgfa-integrated", "dcn-fgfa", **fgfa),
    }
    found = {name: System(name, run.small) for name, run in runs.items()}
    found[PROPAGATE] = replace(found[PROPAGATE], choices={"model.propagate_frames": (1, 3)})
    return [replace(system, like=PROPAGATE) if name.endswith("-late") else system for name, system in found.items()]


def claims() -> list[Claim]:
    """What the paper says of them, first of all that the integrated system is above each other line."""
    one = partial(Claim, tcd.PAPER)
    in_table_1 = partial(one, source="Table 1")
    in_table_3 = partial(one, source="Table 3", better=INTEGRATED, worse=LATE)
    found = [
        in_table_1("integrated-detects", "integrated detects better than sequential", INTEGRATED, SEQUENTIAL, DETECTED),
        in_table_1("integrated-tracks", "integrated tracks better than sequential", INTEGRATED, SEQUENTIAL, TRACKED),
        in_table_1("integrated-detects-late", "integrated detects better than late integration", INTEGRATED, LATE,
                   DETECTED),
        in_table_1("integrated-tracks-late", "integrated tracks better than late integration", INTEGRATED, LATE,
                   TRACKED),
        in_table_1("integrated-in-bursts", "integrated gains most where the pattern cannot be read", INTEGRATED,
                   SEQUENTIAL, DETECTED, subset="burst", beyond="clean"),
        in_table_1("propagate-fast", "PropagateBox tracks fast objects better", PROPAGATE, SEQUENTIAL, TRACKED,
                   subset="fast"),
        in_table_1("propagate-detects", "PropagateBox detects better", PROPAGATE, SEQUENTIAL, DETECTED),
        in_table_1("rescore-detects", "RescoreBox detects better still", LATE, PROPAGATE, DETECTED),
        in_table_1("rescore-tracks", "RescoreBox leaves tracks as they are", LATE, PROPAGATE, TRACKED, margin=0.01,
                   near=True),
        in_table_1("first-stage", "conditioning the first stage alone tracks better", FIRST, SEQUENTIAL, TRACKED),
        in_table_1("second-stage", "conditioning the second stage alone detects better", SECOND, SEQUENTIAL, DETECTED),
        in_table_1("both-first", "both stages detect better than the first", INTEGRATED, FIRST, DETECTED),
        in_table_1("both-second", "both stages track better than the second", INTEGRATED, SECOND, TRACKED,
                   expected=False),
    ]  # fmt: skip
    found += [
        in_table_1(f"integrated-{speed}",
                   f"of {speed} objects integrated tracks more ahead of sequential than of slow ones",
                   INTEGRATED, SEQUENTIAL, TRACKED, subset=speed, beyond="slow")
        for speed in ("medium", "fast")
    ]  # fmt: skip
    found += [
        in_table_3(f"stable-{error}", f"integrated has a lower {error} error", metric=f"{error}_error")
        for error in ("fragment", "center", "aspect")
    ]
    found += [
        one(f"{features}-{verb}", f"on {text} integrated {verb} better than late integration",
            f"tcd-{features}-integrated", f"tcd-{features}-late", metric, source="Table 4")
        for features, text in (("dcn", "DCNv2"), ("dcn-fgfa", "DCNv2 and FGFA"))
        for metric, verb in ((DETECTED, "detects"), (TRACKED, "tracks"))
    ]  # fmt: skip
    return found
