"""Two workers that share a batch learn what one learns of the whole batch: gradients are equal, system by system.

This process first learns alone, from whole batches; then it shares them with another one over gloo, and both average
their gradients as a training does. Batch norms keep to what they know, and chance is taken out of what draws.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from models import detect_to_track, plug_and_play, retina_track, smot, tracklet_rcnn, tracktor
from models.parts.faster_rcnn import FasterRcnn
from models.parts.workers import over_workers

SIZE = (64, 96)
PATIENCE_S = 120  # two workers that wait for each other fail after it
CLASSES = ("one", "two", "three")
UNTRAINED: Any = {"weights": "random", "classes": CLASSES}


def built(module: Any, **settings: Any) -> Any:
    return module.build(module.Settings(**UNTRAINED, **settings))


def with_the_papers_losses() -> Any:
    """D&T's small network with the losses of the large ones: sampled anchors, the hardest regions."""
    model = built(detect_to_track)
    model.detector.configuration = replace(model.detector.configuration, small_losses=False, hardest=14)
    return model


class Body(nn.Module):
    """One layer of stride 8 where torchvision has a backbone."""

    out_channels = 16

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, self.out_channels, 7, stride=8, padding=3)

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        return {"0": self.layer(frames).relu()}


def faster_rcnn() -> Any:
    """One of torchvision's class, very small: sampled anchors, sampled regions."""
    network = FasterRCNN(
        Body(),
        rpn_anchor_generator=AnchorGenerator(((24, 40),), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 4, 2),
        box_head=TwoMLPHead(16 * 4**2, 32),
        box_predictor=FastRCNNPredictor(32, len(CLASSES) + 1),
        rpn_batch_size_per_image=32,
        rpn_post_nms_top_n_train=40,
        box_batch_size_per_image=16,
    )
    detector = FasterRcnn(network, range(1, len(CLASSES) + 1), ("0",), {})
    return tracktor.Model(tracktor.Settings(**UNTRAINED), detector, CLASSES, None)


SYSTEMS: dict[str, Callable[[], Any]] = {
    "smot": lambda: built(smot),
    "smot, an SSD": lambda: built(smot, detector="ssdlite320_mobilenet_v3_large"),
    "retina_track": lambda: built(retina_track),
    "tracklet_rcnn": lambda: built(tracklet_rcnn),
    "detect_to_track": lambda: built(detect_to_track),
    "detect_to_track, the paper's losses": with_the_papers_losses,
    "plug_and_play, detector": lambda: built(plug_and_play),
    "plug_and_play, tracker": lambda: built(plug_and_play, train="tracker"),
    "tracktor, detector": lambda: built(tracktor),
    "tracktor, a Faster R-CNN": faster_rcnn,
    "tracktor, reid": lambda: built(tracktor, train="reid", reid="small", reid_weights="random"),
}
BATCHES = {  # how many objects the four clips have, of which each worker has two
    "more objects here than there": (3, 2, 2, 0),
    "none on one worker": (3, 2, 0, 0),
    "none anywhere": (0, 0, 0, 0),
}
LEARN_FROM_NOTHING = tuple(name for name in SYSTEMS if name.rpartition(", ")[2] not in ("an SSD", "tracker", "reid"))
PLACES = ((8.0, 6.0, 38.0, 40.0), (50.0, 10.0, 84.0, 36.0), (40.0, 34.0, 66.0, 62.0))
Batch = tuple[list[Tensor], list[list[dict[str, Tensor]]]]
Found = dict[str, dict[str, dict[str, Tensor]]]  # gradients by system, batch and parameter


def seen(counts: tuple[int, ...], num_frames: int = 2) -> Batch:
    """Clips of noise with rectangles in it that move, and their truth."""
    random = torch.Generator().manual_seed(len(counts))
    clips, targets = [], []
    for count in counts:
        clip = torch.randint(60, 120, (num_frames, 3, *SIZE), generator=random, dtype=torch.uint8)
        boxes = [torch.tensor(PLACES[:count]).reshape(-1, 4) + 2 * t for t in range(num_frames)]
        for frame, found in zip(clip, boxes, strict=True):
            for number, (left, top, right, bottom) in enumerate(found.int().tolist()):
                frame[number, top:bottom, left:right] = 250
        clips.append(clip)
        objects = {"labels": torch.arange(count), "track_ids": torch.arange(count)}
        targets.append([{"boxes": found, **objects, "ignore": torch.zeros(count).bool()} for found in boxes])
    return clips, targets


def part(batch: Batch, rank: int) -> Batch:
    """The half that one of two workers has."""
    mine = slice(2 * rank, 2 * rank + 2)
    return batch[0][mine], batch[1][mine]


@contextmanager
def without_chance() -> Iterator[None]:
    """Draws that do not depend on what was drawn before: the first ones; for each row the same numbers."""
    drawn = torch.rand(64, 4, generator=torch.Generator().manual_seed(0))
    with (
        mock.patch.object(torch, "randperm", lambda n, *, device=None, **_: torch.arange(n, device=device)),
        mock.patch.object(torch, "rand", lambda rows, count, _, **__: drawn[:count].expand(rows, count, 4)),
    ):
        yield


def total(model: Any, batch: Batch) -> Tensor:
    return sum(model.losses(*batch).values(), start=torch.zeros(()))


def prepared(name: str) -> Any:
    """A system in eval mode, so that its batch norms do not measure what is on this worker.

    Its weights say something different of every anchor, so that the order of what is ranked is no matter of rounding.
    """
    torch.manual_seed(0)
    model = SYSTEMS[name]().eval()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model


class Total(nn.Module):
    """The sum of the losses as a forward pass, where data parallelism hooks in; it depends on something always."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return total(self.model, batch) + 0 * next(p for p in self.parameters() if p.requires_grad).sum()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def together(rank: int, folder: Path) -> Found:
    """What two processes come to, each of which calls this: all systems, each on its half of all batches."""
    distributed.init_process_group(
        "gloo", f"file://{folder / 'meeting'}", timedelta(seconds=PATIENCE_S), world_size=2, rank=rank
    )
    try:
        found: Found = {}
        for name in SYSTEMS:
            model = prepared(name)
            learner = DistributedDataParallel(Total(model), find_unused_parameters=True)
            found[name] = {}
            for batch, counts in BATCHES.items():
                model.zero_grad()
                with without_chance():
                    learner(part(seen(counts), rank)).backward()
                found[name][batch] = gradients(model)
        return found
    finally:
        distributed.destroy_process_group()


def alone(name: str, model: Any, batch: Batch) -> Tensor:
    """What one worker's total is of the whole batch."""
    if name != "tracktor, reid":
        return total(model, batch)
    # Who is on the other worker is nobody's negative: the triplets are those of each half, their mean that of both.
    halves = [part(batch, rank) for rank in range(2)]
    boxes = [sum(len(frame["boxes"]) for clip in targets for frame in clip) for _, targets in halves]
    means = [total(model, half) * count for half, count in zip(halves, boxes, strict=True)]
    return sum(means, start=torch.zeros(())) / max(1, sum(boxes))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Found, Found]:
    """The gradients of two workers and of one, of all systems and batches."""
    folder, threads = tmp_path_factory.mktemp("workers"), torch.get_num_threads()
    torch.set_num_threads(1)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, __file__, str(folder)], env=environment, stderr=subprocess.PIPE, text=True
    ) as other:
        try:
            one: Found = {}
            for name in SYSTEMS:
                model = prepared(name)
                one[name] = {}
                for batch, counts in BATCHES.items():
                    model.zero_grad()
                    with without_chance():
                        alone(name, model, seen(counts)).backward()  # type: ignore[no-untyped-call]
                    one[name][batch] = gradients(model)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of torch: that more could be gained by less generality
                two = together(0, folder)
            _, said = other.communicate(timeout=PATIENCE_S)
            assert other.returncode == 0, said
        finally:
            other.kill()
            torch.set_num_threads(threads)
    return two, one


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", SYSTEMS)
def test_two_workers_learn_what_one_does(name: str, batch: str, found: tuple[Found, Found]) -> None:
    two, one = (each[name][batch] for each in found)
    largest = max(gradient.abs().max() for gradient in one.values())
    if sum(BATCHES[batch]) or name in LEARN_FROM_NOTHING:
        assert largest > 0
    for parameter in one.keys() | two.keys():
        zero = torch.zeros(())
        difference = (two.get(parameter, zero) - one.get(parameter, zero)).abs().max()
        assert difference <= 1e-5 * largest, f"{parameter}: {difference / largest:.1e} of the largest"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of what is added up over two workers that hold the same."""
    shapes = []

    def double(numbers: Tensor) -> None:
        assert not numbers.requires_grad
        assert numbers.dtype == torch.float32
        shapes.append(tuple(numbers.shape))
        numbers *= 2

    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", double)
    return shapes


@pytest.mark.parametrize("num_frames", [1, 2])
@pytest.mark.parametrize("name", SYSTEMS)
def test_all_workers_ask_as_often_whatever_they_see(name: str, num_frames: int, asked: list[tuple[int, ...]]) -> None:
    model = prepared(name)
    orders = set()
    for counts in ((3, 1), (1, 0), (0, 0)):
        for changed in ({}, {"ignore": True}, {"track_ids": -1}):
            clips, targets = seen(counts, num_frames)
            for frame in (frame for clip in targets for frame in clip):
                frame.update({key: torch.full_like(frame[key], value) for key, value in changed.items()})
            asked.clear()
            model.losses(clips, targets)
            orders.add(tuple(asked))
    assert len(orders) == 1, f"{name} asks the others in these ways: {orders}"
    assert orders != {()}


def test_alone_a_count_is_itself_and_at_least_1() -> None:
    counts = torch.tensor([0, 1, 7])
    assert over_workers(counts).tolist() == [1, 1, 7]
    assert over_workers(torch.tensor(3)).dtype == torch.float32
    assert counts.tolist() == [0, 1, 7]


@pytest.mark.parametrize(("mine", "expected"), [(0, 0.5), (1, 1), (4, 4), (0.25, 0.5)])
@pytest.mark.usefixtures("asked")
def test_the_average_of_two_workers_is_by_the_number_of_both(mine: float, expected: float) -> None:
    given = torch.tensor(float(mine), requires_grad=True)
    assert over_workers(given).item() == expected
    assert given.item() == mine, "what was given stays"


if __name__ == "__main__":
    torch.set_num_threads(1)
    together(1, Path(sys.argv[1]))
