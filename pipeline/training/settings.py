"""What to train, on what, and how: frozen plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

AT_LEAST_ONE = (
    "steps", "batch_size", "frames_per_clip", "frames_per_video", "workers", "threads", "checkpoint_every",
)  # fmt: skip
AT_LEAST_ZERO = ("seed", "warmup", "validate_every", "loaders", "max_failures", "cache_gigabytes")


@dataclass(frozen=True)
class Training:
    """What to train, on what, and how: frozen plain values, as a `Recipe` is.

    What: model and its settings; start: weights to begin with, whose tensors of another shape (of other classes) begin
    anew; freeze: beginnings of the names of parameters that are not learned, whose batch norms stay as they are too.
    On what: catalog, source and catalog_settings; frames: the range of each video, as `frame_range` reads it; stills: a
    second source, see `Stills`; short_side: of the frames in pixels, None for the size that the model wants.
    validation: the videos that the result is scored on, None for no score: `source` and `frames` say which, by default
    all of the training's own source, and all else is a setting of the catalog. linker: what makes tracks for that,
    every `validate_every` steps, 0 for only at the end; best_by: the score that says which network was the best.

    batch_size: clips a step, over all workers. frames_per_clip: of one video, each min_gap to max_gap frames after the
    one before; 1 for single frames, 2 for pairs. reverse: gives clips backward at random. frames_per_video: clips begin
    with so many frames of a video, evenly spread; None: with any.
    flip: mirrors clips at random, left to right; flip_vertical: also upside down; permute_colours: exchanges the
    colour channels. The latter two only where they leave the class what it is. All frames of a clip alike.

    optimizer: AdamW or SGD with momentum. The learning rate rises over `warmup` steps, but no more than a tenth of
    all; then it falls to nothing by a cosine, or, with schedule "steps", to a tenth at each step of `drops`.
    loss_weights: factors of single losses by their names, 1 without. max_gradient: norm to which gradients are cut.
    average: share of the old weights in the running average that is kept, less at first (0: the last weights).
    precision: "auto" is bfloat16 with float32 weights on a GPU, float32 elsewhere.
    seed: of all that is random.

    checkpoint_every: steps between the points that a stopped training goes on from. max_failures: how often workers
    that die are started again. loaders: processes of each worker that decode beside it. threads: of a worker; one is
    fastest for a small network where other work shares the machine. cache_gigabytes: decoded frames that fit in so much
    disk, of each worker, are decoded once, others when they are drawn.
    """

    name: str = "custom"
    model: str = "smot"
    model_settings: Mapping[str, Any] = field(default_factory=dict)
    start: str = ""
    freeze: tuple[str, ...] = ()
    catalog: str = "synthetic"
    source: str = ""
    catalog_settings: Mapping[str, Any] = field(default_factory=dict)
    frames: str = ""
    stills: Mapping[str, Any] | None = None
    short_side: int | None = None
    validation: Mapping[str, Any] | None = None
    linker: str = "keep"
    linker_settings: Mapping[str, Any] = field(default_factory=dict)
    validate_every: int = 0
    best_by: str = "mAP"

    steps: int = 5000
    batch_size: int = 8
    frames_per_clip: int = 1
    min_gap: int = 1
    max_gap: int = 1
    reverse: bool = False
    frames_per_video: int | None = None
    flip: bool = True
    flip_vertical: bool = False
    permute_colours: bool = False

    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 4e-3
    momentum: float = 0.9
    weight_decay: float = 0.02
    schedule: Literal["cosine", "steps"] = "cosine"
    drops: tuple[int, ...] = ()
    warmup: int = 100
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    max_gradient: float = 5.0
    average: float = 0.998
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0

    checkpoint_every: int = 500
    max_failures: int = 3
    workers: int = 1
    loaders: int = 0
    threads: int = 1
    cache_gigabytes: float = 8.0

    def __post_init__(self) -> None:
        for names, lowest in ((AT_LEAST_ONE, 1), (AT_LEAST_ZERO, 0)):
            for name in names:
                value = getattr(self, name)
                if value is not None and value < lowest:
                    raise ValueError(f"{name} is {value}; it must be at least {lowest}")
        for name in ("average", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        for name in ("learning_rate", "max_gradient"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if self.batch_size % self.workers:
            raise ValueError(
                f"batch_size is {self.batch_size}, which {self.workers} workers cannot share; give a multiple of it"
            )
        if not 1 <= self.min_gap <= self.max_gap:
            raise ValueError(
                f"min_gap is {self.min_gap} and max_gap {self.max_gap}; "
                "they must be at least 1, and max_gap no smaller than min_gap"
            )
        if self.frames_per_clip == 1 and (self.max_gap > 1 or self.reverse):
            raise ValueError(
                "min_gap, max_gap and reverse are of several frames; give frames_per_clip=2 or more with them"
            )
        if (self.schedule == "steps") != bool(self.drops):
            raise ValueError(
                f"schedule is {self.schedule!r} and drops {self.drops}; drops are the steps at which schedule 'steps' "
                "divides the learning rate by 10, and no other schedule has them"
            )
        if self.stills is not None:
            Stills.of(self.stills)


@dataclass(frozen=True)
class Stills:
    """Single images that clips are made of beside those of videos, each `frames_per_clip` times the same frame.

    share: of the clips that are stills, .5 for as many as of videos. catalog_settings: of the catalog. source: "" for
    the training's own. Boxes of classes that the videos do not have teach nothing.
    """

    catalog: str
    source: str = ""
    share: float = 0.5
    catalog_settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"stills.share is {self.share}; it must lie between 0 and 1")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Stills:
        """From a training's `stills`: the fields by their names, all else a setting of the catalog."""
        if "catalog" not in given:
            raise ValueError(f"stills are {dict(given)}; they must name a catalog")
        rest = {name: value for name, value in given.items() if name not in ("catalog", "source", "share")}
        try:
            share = float(given.get("share", 0.5))
        except ValueError:
            raise ValueError(f"stills.share is {given['share']!r}; it must be a number") from None
        return cls(str(given["catalog"]), str(given.get("source", "")), share, rest)
