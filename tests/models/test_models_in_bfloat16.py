"""Losses under autocast, as GPUs train by them, asked of all models: layers in bfloat16, what they say float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.config import available, load

CLASSES = ("one", "two", "three")
SIZE = (64, 96)
CHANGES: dict[str, list[dict[str, Any]]] = {  # of settings, for what else learns
    "smot": [{"detector": "ssdlite320_mobilenet_v3_large"}],
    "retina_track": [{"head": "shared"}, {"embedding": "instance", "triplet": True, "unit_length": False}],
    "tracklet_rcnn": [
        {"aggregate": 1},
        {"deformable": True},
        {"embedding": "fully_shared", "negatives": "other_objects"},
        {"detector": "fasterrcnn_mobilenet_v3_large_320_fpn"},
    ],
    "detect_to_track": [{"pooling": "pool"}],
    "plug_and_play": [{"train": "tracker"}],
    "tracktor": [{"train": "reid", "reid": "small", "reid_weights": "random"}],
}
CASES = [
    pytest.param(
        name,
        changes,
        id=" ".join([name, *(f"{key}={value}" for key, value in changes.items())]),
        marks=[pytest.mark.slow] if changes else [],
    )
    for name in available("model")
    for changes in ({}, *CHANGES.get(name, []))
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """With two, torch's gradient of a depthwise convolution of 1x1 maps in bfloat16 is now and then no number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def learner(name: str, changes: dict[str, Any]) -> Any:
    """The model, untrained, with weights that say something different of every anchor."""
    torch.manual_seed(0)
    module = load("model", name)
    model = module.build(module.Settings(weights="random", classes=CLASSES, **changes))
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model


def batch() -> tuple[list[Tensor], list[list[dict[str, Tensor]]]]:
    """Two clips of two frames of noise in which two objects and one move."""
    random = torch.Generator().manual_seed(0)
    clips, targets = [], []
    for count in (2, 1):
        clip = torch.randint(60, 120, (2, 3, *SIZE), generator=random, dtype=torch.uint8)
        frames = []
        for t, frame in enumerate(clip):
            boxes = torch.tensor([[8.0, 6, 38, 40], [50, 10, 84, 36]])[:count] + 2 * t
            for number, (left, top, right, bottom) in enumerate(boxes.int().tolist()):
                frame[number, top:bottom, left:right] = 250
            objects = {"labels": torch.arange(count), "track_ids": torch.arange(count)}
            frames.append({"boxes": boxes, **objects, "ignore": torch.zeros(count).bool()})
        clips.append(clip)
        targets.append(frames)
    return clips, targets


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_losses_are_nearly_those_of_float32_and_teach(name: str, changes: dict[str, Any]) -> None:
    model, shown = learner(name, changes), batch()
    exact, mixed = losses(model, shown, half=False), losses(model, shown, half=True)
    assert mixed.keys() == exact.keys()
    for each, loss in mixed.items():
        assert loss.dtype == torch.float32, each
        assert loss.item() == pytest.approx(exact[each].item(), rel=0.05, abs=0.005), each
    # Batch norms that measure few cells make of rounding another ranking of proposals: then losses differ by more.
    taught = losses(model.train(), shown, half=True)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in taught.values())
    torch.autograd.backward(list(taught.values()))
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert all(gradient.dtype == torch.float32 and gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients)


def losses(model: Any, shown: Any, half: bool) -> dict[str, Tensor]:
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        found: dict[str, Tensor] = model.losses(*shown)
    return found
