"""What a training's network is built of, and how large its frames are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from models.parts.weights import write_weights
from pipeline.records import Resize
from pipeline.training import work
from pipeline.training.settings import Training

SMALL = Training(model_settings={"detector": "small"})
CLASSES = ("a", "b")


def build(**changes: Any) -> nn.Module:
    return work.build(replace(SMALL, **changes), CLASSES)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the small network, all halves."""
    model: Any = build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    path = tmp_path_factory.mktemp("weights") / "before.safetensors"
    write_weights(path, model.network, {"classes": '["a", "b"]'}, torch.float32)
    return str(path)


def test_a_seed_is_a_network() -> None:
    one, same, other = (build(seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_weights_go_on_where_classes_are_the_same(weights: str) -> None:
    settings = {"detector": "small", "weights": weights}
    model = build(model_settings=settings)
    assert torch.equal(model.state_dict()["detector.stem.0.weight"], torch.full((16, 3, 3, 3), 0.5))
    for others in (("b", "a"), ("a", "b", "c")):
        with pytest.raises(ValueError, match=r"are of 2 classes a, b; the catalog has, in this order"):
            work.build(replace(SMALL, model_settings=settings), others)


def test_a_start_fills_what_fits(weights: str) -> None:
    chosen = replace(SMALL, start=weights)
    model: Any = work.build(chosen, ("x", "y", "z"))
    fresh = work.build(replace(SMALL), ("x", "y", "z")).state_dict()
    assert torch.equal(model.state_dict()["detector.stem.0.weight"], torch.full((16, 3, 3, 3), 0.5))
    assert torch.equal(model.state_dict()["detector.classes.bias"], fresh["detector.classes.bias"])
    assert model.weights.anew == ("classes.bias", "classes.weight")
    with pytest.raises(ValueError, match=r"start is .* and model.weights .*; a training begins with one of them"):
        build(start=weights, model_settings={"detector": "small", "weights": weights})


def test_frames_are_as_large_as_the_training_says() -> None:
    model = build()
    assert work.resize_of(SMALL, model) == Resize()
    assert work.resize_of(replace(SMALL, short_side=96), model) == Resize(short_side=96)
    sized = {"detector": "small", "input_side": 64}
    assert work.resize_of(SMALL, build(model_settings=sized)) == Resize((64, 64))
    with pytest.raises(ValueError, match=r"short_side is 96, and model smot takes frames of \(64, 64\) only"):
        work.resize_of(replace(SMALL, short_side=96), build(model_settings=sized))
