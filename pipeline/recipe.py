"""A recipe: everything that decides what a run's tables hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """What to run: frozen, plain values only, so that it has a digest and can be compared.

    catalog, model, linker: names of modules; *_settings: what of their defaults is changed. refine_settings: what is
    done to the linker's tracks afterwards; nothing by default.
    source: what the catalog reads; frames: the range of each video that is taken, see `frame_range`; clip_frames: how
    long a clip is, None for whole videos (what the papers do).
    overlap: frames that neighbouring clips share on either side of a seam, for `stitch` (only where clips are cut).
    chunk_frames: frames that are decoded and shown to a network at once, which bounds memory.
    detection_threshold: boxes that score below are not given out in `tracks`.
    tracking_threshold: tracks that score below give their boxes out without an id.
    videos_per_shard: how many videos a file of a table holds, and one link task takes.
    """

    name: str = "custom"
    catalog: str = "folder"
    source: str = ""
    catalog_settings: Mapping[str, Any] = field(default_factory=dict)
    model: str = "smot"
    model_settings: Mapping[str, Any] = field(default_factory=dict)
    linker: str = "keep"
    linker_settings: Mapping[str, Any] = field(default_factory=dict)
    refine_settings: Mapping[str, Any] = field(default_factory=dict)
    frames: str = ""
    clip_frames: int | None = None
    overlap: int = 3
    chunk_frames: int = 32
    detection_threshold: float = 0.0
    tracking_threshold: float = 0.0
    videos_per_shard: int = 64

    def __post_init__(self) -> None:
        for name, lowest in (("clip_frames", 1), ("overlap", 0), ("chunk_frames", 1), ("videos_per_shard", 1)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ValueError(f"{name} is {value}; it must be at least {lowest}")
        for name in ("detection_threshold", "tracking_threshold"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it must lie between 0 and 1")
