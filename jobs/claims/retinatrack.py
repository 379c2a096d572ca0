"""RetinaTrack's claims (Figures 5, 7 and 8): embeddings of every anchor, learned jointly, track better.

What is tracked scores at least what was best on val, system by system (the paper does not say how high that was).
"""

from __future__ import annotations

from functools import partial

from jobs.claims.claim import Claim
from jobs.claims.system import System
from jobs.papers import retinatrack as rt

JOINT, OVERLAP, FEATURES, REID = "rt-joint", "rt-iou", "rt-no-triplet", "rt-reid"
STAR_SEPARATE, STAR_SHARED, ONE_SHAPE = "rt-star-separate", "rt-star-shared", "rt-k1-separate"
TRACKTOR, TRACKTOR_ECC, TRACKTOR_PLUS = "rt-tracktor", "rt-tracktor-ecc", "rt-tracktor-plus-plus"
SWITCHES, IDENTITY, ACCURACY, DETECTED = "num_switches", "IDF1", "MOTA", "mAP"
TRACKED = {"linker.min_score": (0.3, 0.4, 0.5, 0.6, 0.7)}
ALIVE = {"model.sigma_active": (0.01, 0.025, 0.05, 0.1, 0.2)}  # the released .5 is high for blurred objects


def systems() -> list[System]:
    """The lines of Figures 5, 7 and 8 that are of one network size; Tracktor also with compensation alone."""
    embedded = {
        JOINT: rt.joint(),
        OVERLAP: rt.by_overlap(),
        FEATURES: rt.by_features(),
        REID: rt.by_reid(),
        STAR_SEPARATE: rt.shared_by_cell("separate"),
        STAR_SHARED: rt.shared_by_cell("shared"),
        ONE_SHAPE: rt.joint("k1-separate"),
    }
    tracktor = System(TRACKTOR, rt.tracktor().small, ALIVE)
    return [
        *(System(name, run.small, TRACKED) for name, run in embedded.items()),
        tracktor,
        tracktor.changed(TRACKTOR_ECC, like=TRACKTOR, camera="ecc"),
        System(TRACKTOR_PLUS, rt.tracktor_plus_plus().small, like=TRACKTOR),
    ]


def claims() -> list[Claim]:
    """What the paper says of them; of switches and identities first, since these are what embeddings are for."""
    one = partial(Claim, rt.PAPER)
    in_8, in_5, in_7 = (partial(one, source=f"Figure {number}") for number in (8, 5, 7))
    crossing = "lookalike_crossing"
    return [
        in_8("joint-switches", "fewer switches than by overlap alone", JOINT, OVERLAP, SWITCHES),
        in_8("joint-identity", "identities kept better than by overlap alone", JOINT, OVERLAP, IDENTITY),
        in_8("joint-accuracy", "MOTA above that of overlap alone", JOINT, OVERLAP, ACCURACY),
        in_8("features-switches", "even untaught features have fewer switches than overlap", FEATURES, OVERLAP,
             SWITCHES),
        in_8("triplets-switches", "taught by triplets, fewer switches than by untaught features", JOINT, FEATURES,
             SWITCHES),
        in_8("triplets-identity", "taught by triplets, identities kept better than by untaught features", JOINT,
             FEATURES, IDENTITY),
        in_8("triplets-lookalike", "the same where look-alikes cross", JOINT, FEATURES, IDENTITY, subset=crossing),
        in_8("reid", "joint embeddings keep identities better than a ReID network", JOINT, REID, IDENTITY),
        in_8("joint-detects", "joint training detects no worse than without triplets, within a point", JOINT, FEATURES,
             DETECTED, margin=0.01, expected=False),
        in_5("star", "concentric objects keep their identities better than with embeddings that a cell's anchors share",
             JOINT, STAR_SEPARATE, IDENTITY, subset="concentric"),
        in_5("star-shared", "the same against one tower for both tasks", JOINT, STAR_SHARED, IDENTITY,
             subset="concentric"),
        in_5("star-accuracy", "MOTA above that of RetinaNet* with separate towers", JOINT, STAR_SEPARATE, ACCURACY),
        in_5("star-shared-accuracy", "MOTA above that of RetinaNet* with one tower", JOINT, STAR_SHARED, ACCURACY),
        in_5("shapes", "six anchor shapes track better than one (MOTA)", JOINT, ONE_SHAPE, ACCURACY),
        in_5("shapes-detects", "six anchor shapes detect better than one", JOINT, ONE_SHAPE, DETECTED),
        in_7("tracktor", "MOTA above Tracktor's", JOINT, TRACKTOR, ACCURACY),
        in_7("tracktor-switches", "fewer switches than Tracktor", JOINT, TRACKTOR, SWITCHES),
        in_7("tracktor-plus", "fewer switches than Tracktor++", JOINT, TRACKTOR_PLUS, SWITCHES),
        in_7("plus", "Tracktor++ has fewer switches than Tracktor", TRACKTOR_PLUS, TRACKTOR, SWITCHES),
        in_7("compensation", "camera motion compensation helps Tracktor where the camera shakes", TRACKTOR_ECC,
             TRACKTOR, IDENTITY, subset="jitter"),
        in_7("cost", "a frame takes less than Tracktor++'s time", JOINT, TRACKTOR_PLUS, "ms"),
        in_8("cost-embeddings", "embeddings cost less than a fifth of the detector", JOINT, OVERLAP, "ms",
             factor=1.2),
    ]  # fmt: skip
