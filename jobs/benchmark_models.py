"""What tracking costs beside detection: milliseconds a frame of each system, and of its own detector alone.

RetinaTrack is held against RetinaNet without embeddings, Tracktor++ against Tracktor, SMOT with flow against SMOT.

The small networks with the project's weights on a video of synthetic-v1; those of the papers' sizes with random
weights on noise of 600 x 1000 px, every box they may keep kept, so that trackers are as busy as they can be. On a GPU
where there is one, with the peak of its memory beside; else on one CPU thread.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jobs.benchmark_rows import Row, table
from pipeline.config import load, settings
from pipeline.records import ClipRef, Resize
from pipeline.video import decode

__all__ = ["rows", "table"]

FRAMES, ROUNDS = {"small": 24, "paper": 2}, {"small": 3, "paper": 1}  # a frame of paper size is seconds on a CPU
PAPER_SIZE = (600, 1000)
BUSY: dict[str, dict[str, float]] = {
    "tracklet_rcnn": {"min_score": 0.0, "start_score": 0.0},
    "plug_and_play": {"min_score": 0.0, "carry_score": 0.0, "min_quality": 0.0},
    "detect_to_track": {},
    "retina_track": {"min_score": 0.0},
    "tracktor": {"min_score": 0.0, "sigma_det": 0.0, "sigma_active": 0.0},
    "smot": {"min_score": 0.0, "sigma_det": 0.0, "sigma_track": 0.0},
}
DETECTOR_ALONE = "its detector alone"


@dataclass(frozen=True)
class System:
    """A network, what makes it the peer that it is held against, and its parts whose time is of interest, by name.

    parts: methods of the model and of its modules, or functions of the modules that its file imports.
    """

    name: str
    model: str
    network: Mapping[str, Any]
    alone: Mapping[str, Any]
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    size: str = "paper"
    peer: str = DETECTOR_ALONE


TRACKLET_ALONE = {"condition": "none"}
PAIRS_ALONE = {"track": False}
FIRST_ALONE = {"tracking_first": False, "moves": False}
COMPONENTS = {  # Table 3 of Plug & Play
    "backbone": ("detector.features",),
    "RPN": ("detector.dense", "detector.proposals"),
    "R-CNN": ("detector.head",),
    "tracker": ("tracker.forward",),
}
NO_EMBEDDINGS = {"head": "separate", "embedding": "none"}
NO_TRACKS = {"sigma_det": 1.0}  # no detection is sure enough to be followed
TRACKTOR = {"camera": "none", "reid": "none", "reid_weights": "default"}
ADDED = {"ECC": ("camera_motion.grey", "camera_motion.ecc"), "ReID": ("reid.embed",)}  # by Tracktor++
FRAME_BY_FRAME = {"tracking": False}
NO_MOTION, FLOW = {"motion": "none"}, {"flow": ("flow.forward",)}
SMALL, SMALL_PLUS = {"detector": "small"}, {"detector": "small", "camera": "ecc", "reid": "small"}
RESNET = {"detector": "fasterrcnn_resnet50_fpn"}
RESNET_PLUS = {**RESNET, "camera": "ecc", "reid": "resnet50", "reid_weights": "random"}
SSD = {"detector": "resnet34_fpn_ssd"}
MOVING = {"motion": "farneback"}
SYSTEMS = (
    System("TCD", "tracklet_rcnn", {"detector": "small"}, TRACKLET_ALONE, size="small"),
    System("D&T", "detect_to_track", {"backbone": "small"}, PAIRS_ALONE, size="small"),
    System("Plug & Play", "plug_and_play", {"detector": "small"}, FIRST_ALONE, COMPONENTS, "small"),
    System("RetinaTrack", "retina_track", {"network": "small"}, NO_EMBEDDINGS, {}, "small", "RetinaNet"),
    System("Tracktor", "tracktor", SMALL, NO_TRACKS, {}, "small"),
    System("Tracktor++", "tracktor", SMALL_PLUS, TRACKTOR, ADDED, "small", "Tracktor"),
    System("SMOT", "smot", SMALL, FRAME_BY_FRAME, {}, "small"),
    System("SMOT, Farneback", "smot", {**SMALL, **MOVING}, NO_MOTION, FLOW, "small", "SMOT"),
    System("TCD ResNet-101", "tracklet_rcnn", {"detector": "resnet101"}, TRACKLET_ALONE),
    System("D&T ResNet-101", "detect_to_track", {"backbone": "resnet101"}, PAIRS_ALONE),
    System("Plug & Play HRNet-W32", "plug_and_play", {"detector": "hrnet_w32"}, FIRST_ALONE, COMPONENTS),
    System("Plug & Play ResNeXt-101*", "plug_and_play", {"detector": "resnext101_fpn_dcn"}, FIRST_ALONE, COMPONENTS),
    System("RetinaTrack ResNet-50", "retina_track", {"network": "resnet50"}, NO_EMBEDDINGS, {}, peer="RetinaNet"),
    System("Tracktor ResNet-50", "tracktor", RESNET, NO_TRACKS),
    System("Tracktor++ ResNet-50", "tracktor", RESNET_PLUS, TRACKTOR, ADDED, peer="Tracktor"),
    System("SMOT ResNet-34", "smot", SSD, FRAME_BY_FRAME),
    System("SMOT ResNet-34, Farneback", "smot", {**SSD, **MOVING}, NO_MOTION, FLOW, peer="SMOT"),
)


def rows(data: str, slow_peers: bool) -> Iterator[Row]:
    """Of each system its time beside its peer's, the memory of both on a GPU, and the times of its parts."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for system in SYSTEMS:
            frames = video(FRAMES["small"]) if system.size == "small" else noise(FRAMES["paper"])
            size = f"{frames.shape[3]} x {frames.shape[2]} px, {device}"
            alone, whole = (Timed(system, more, frames.to(device)) for more in (system.alone, {}))
            yield Row(system.name, size, whole.milliseconds, system.peer, alone.milliseconds, "ms/frame")
            if device == "cuda":
                yield Row(system.name, size, whole.gigabytes, system.peer, alone.gigabytes, "GB")
            for name, milliseconds in whole.parts.items():
                yield Row(f"{system.name}: {name}", size, milliseconds, "all", whole.milliseconds, "ms/frame")
    finally:
        torch.set_num_threads(threads)


class Timed:
    """A network's milliseconds a frame (median of the rounds after a first), those of its parts, and its peak memory.

    On a CPU they are of CPU time; gigabytes is 0 there.
    """

    def __init__(self, system: System, more: Mapping[str, Any], frames: Tensor) -> None:
        module = load("model", system.model)
        given = {**system.network, **more}
        if system.size == "paper":
            classes = tuple(f"class {i}" for i in range(30))
            given = {"weights": "random", "classes": classes, **BUSY[system.model], **given}
        torch.manual_seed(0)  # so that what is random is the same with and without
        model = module.build(settings(module.Settings, given, f"model {system.model}")).to(frames.device)
        spent = {name: 0.0 for name in system.parts}
        self.gigabytes = 0.0
        rounds, taken = ROUNDS[system.size], []
        with ExitStack() as timers:
            for name, methods in system.parts.items():
                for method in methods:
                    timers.enter_context(timed(model, method, frames.device, spent, name))
            for number in range(rounds + 1):
                if number == 1:
                    spent.update(dict.fromkeys(spent, 0.0))
                start = clock(frames.device)
                _, memories = model.detect([frames], [None])
                if model.frames_after:
                    model.finish(memories)
                taken.append(clock(frames.device) - start)
        if frames.is_cuda:
            self.gigabytes = torch.cuda.max_memory_allocated() / 1e9
            torch.cuda.reset_peak_memory_stats()
        self.milliseconds = 1000 * float(np.median(taken[1:])) / len(frames)
        self.parts = {name: 1000 * seconds / rounds / len(frames) for name, seconds in spent.items()}


def clock(device: torch.device) -> float:
    """Seconds of CPU time, or on a GPU of time, all work that was asked for done."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@contextmanager
def timed(model: Any, path: str, device: torch.device, spent: dict[str, float], name: str) -> Iterator[None]:
    """Adds to spent[name] what a part of the model takes whenever it is called, if the model has such a part."""
    *owners, method = path.split(".")
    owner = model if hasattr(model, owners[0]) else sys.modules[type(model).__module__]
    for step in owners:
        owner = getattr(owner, step)
    if owner is None:  # a part that these settings do without
        yield
        return
    called: Callable[..., Any] = getattr(owner, method)

    def measured(*given: Any, **named: Any) -> Any:
        start = clock(device)
        found = called(*given, **named)
        spent[name] += clock(device) - start
        return found

    of_its_own = vars(owner).get(method)
    vars(owner)[method] = measured
    try:
        yield
    finally:
        if of_its_own is None:
            del vars(owner)[method]
        else:
            vars(owner)[method] = of_its_own


def video(count: int) -> Tensor:
    """The first frames of the first test video of synthetic-v1: uint8 (count, 3, 128, 160)."""
    catalog = load("catalog", "synthetic")
    first = catalog.videos(None, settings(catalog.Settings, {"split": "test"}, "catalog synthetic"))[0]
    clip = next(iter(decode([ClipRef(first)], Resize(), count)))
    return torch.from_numpy(clip.frames)


def noise(count: int) -> Tensor:
    """uint8 (count, 3, 600, 1000)."""
    random = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, *PAPER_SIZE), dtype=torch.uint8, generator=random)
