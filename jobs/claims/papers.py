"""All systems and claims of the five papers."""

from __future__ import annotations

from functools import lru_cache

from jobs.claims import (
    detect_to_track,
    plug_and_play_tracker,
    retinatrack,
    smot,
    tracklet_conditioned_detection,
)
from jobs.claims.claim import Claim
from jobs.claims.system import System

PAPERS = (tracklet_conditioned_detection, detect_to_track, plug_and_play_tracker, retinatrack, smot)


@lru_cache(maxsize=1)
def systems() -> dict[str, System]:
    """Every system that a claim is about, by name."""
    return {system.name: system for paper in PAPERS for system in paper.systems()}


@lru_cache(maxsize=1)
def claims() -> list[Claim]:
    """Every claim, paper by paper."""
    return [claim for paper in PAPERS for claim in paper.claims()]
