"""What a step changes: rates by hand, frozen parts, decay of weights alone, the running average."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.training.optimizing import Optimizing, average, begins, freeze, rate
from pipeline.training.settings import Training

PLAIN = Training(steps=100, learning_rate=1.0, warmup=0, weight_decay=0.0, average=0.0, max_gradient=1e9)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
        self.body2 = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body2(self.body(x).mean((2, 3)))


def rates(training: Training, *steps: int) -> list[float]:
    return [rate(step, training) for step in steps]


def test_the_rate_rises_then_falls_by_a_cosine() -> None:
    chosen = replace(PLAIN, warmup=3)
    assert rates(chosen, 0, 1, 2, 3) == [0.25, 0.5, 0.75, 1.0]
    assert rate(3 + 97 // 2, chosen) == pytest.approx(0.5, abs=0.02)
    assert 0 < rate(99, chosen) < 0.001
    falling = rates(chosen, *range(3, 100))
    assert falling == sorted(falling, reverse=True)


def test_a_warmup_takes_no_more_than_a_tenth() -> None:
    assert rates(replace(PLAIN, steps=20, warmup=100), 0, 1, 2) == pytest.approx([1 / 3, 2 / 3, 1])


def test_the_rate_drops_to_a_tenth_at_each_of_the_steps() -> None:
    chosen = replace(PLAIN, schedule="steps", drops=(50, 80), warmup=2)
    assert rates(chosen, 0, 2, 49, 50, 79, 80, 99) == pytest.approx([1 / 3, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_sgd_by_hand() -> None:
    """Momentum .9, decay .1 of the weights alone: v <- .9 v + g + .1 w, w <- w - lr v."""
    net = nn.Linear(1, 1)
    nn.init.ones_(net.weight), nn.init.ones_(net.bias)
    chosen = replace(PLAIN, optimizer="sgd", weight_decay=0.1, schedule="steps", drops=(1,), warmup=0)
    optimizing = Optimizing(chosen, net)
    weight, bias, velocity = 1.0, 1.0, [0.0, 0.0]
    for step, learning_rate in ((0, 1.0), (1, 0.1)):
        norm = optimizing.step(step, 2 * net.weight.sum() + 3 * net.bias.sum())
        assert float(norm) == pytest.approx(math.hypot(2, 3))
        velocity = [0.9 * velocity[0] + 2 + 0.1 * weight, 0.9 * velocity[1] + 3]
        weight, bias = weight - learning_rate * velocity[0], bias - learning_rate * velocity[1]
        assert [net.weight.item(), net.bias.item()] == pytest.approx([weight, bias])


def test_gradients_are_cut_to_a_norm() -> None:
    net = nn.Linear(1, 1)
    before = torch.cat([p.detach().flatten() for p in net.parameters()])
    chosen = replace(PLAIN, optimizer="sgd", momentum=0.0, max_gradient=1.0)
    norm = Optimizing(chosen, net).step(0, 30 * net.weight.sum() + 40 * net.bias.sum())
    moved = before - torch.cat([p.detach().flatten() for p in net.parameters()])
    assert float(norm) == pytest.approx(50)
    assert moved.tolist() == pytest.approx([0.6, 0.8], rel=1e-4)


def test_the_average_keeps_its_share_of_the_old_and_norms_too() -> None:
    """Of the first it keeps all, then 2/11 of the old, 3/12 and so on up to its share."""
    net = Net()
    optimizing = Optimizing(replace(PLAIN, average=0.2, optimizer="sgd", learning_rate=0.1), net)
    optimizing.train()
    wanted: dict[str, torch.Tensor] = {}
    for step, kept in enumerate((0, 2 / 11, 0.2, 0.2)):
        optimizing.step(
            step, net(torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(step))).square().sum()
        )
        now = {name: value.clone() for name, value in net.state_dict().items() if value.is_floating_point()}
        wanted = {name: kept * wanted[name] + (1 - kept) * now[name] for name in now} if wanted else now
    found = optimizing.kept.state_dict()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)
    assert optimizing.kept is not net
    assert Optimizing(PLAIN, net).kept is net


def test_integers_have_no_average() -> None:
    """Indices of columns, say: .9 and .1 of 3 are 2.9999, and that rounded down is another column."""
    one, other = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    for norm in (one, other):
        norm.register_buffer("columns", torch.arange(100))
    other.get_buffer("num_batches_tracked").add_(5)
    average(one, other, 0.9)
    assert torch.equal(one.get_buffer("columns"), torch.arange(100))
    assert one.num_batches_tracked == 5


def test_what_is_frozen_is_not_learned_and_its_norms_stay() -> None:
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizing = Optimizing(replace(PLAIN, freeze=("body",), weight_decay=0.5), net)
    optimizing.train()
    optimizing.step(0, net(torch.randn(3, 1, 4, 4)).square().sum())
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"body2.weight", "body2.bias"}, "body2 only begins as body does"
    assert net.training
    assert not net.body[1].training


@pytest.mark.parametrize(
    ("name", "beginning", "does"),
    [("a.b.c", "a", True), ("a.b.c", "a.b", True), ("a.b", "a.b", True), ("ab.c", "a", False), ("", "a", False)],
)
def test_a_name_begins_by_whole_parts(name: str, beginning: str, does: bool) -> None:
    assert begins(name, beginning) is does


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": ("boddy",)}, "freeze names 'boddy', which the model does not have; it has body.0, body.1, body2.b"),
        ({"freeze": ("body", "body2")}, "model smot has nothing to learn with the settings {}"),
    ],
)
def test_nothing_to_freeze_or_to_learn_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Optimizing(replace(PLAIN, **changes), Net())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_what_is_restored_goes_on_alike(optimizer: Any) -> None:
    def step(optimizing: Optimizing, number: int) -> None:
        generator = torch.Generator().manual_seed(number)
        optimizing.step(number, optimizing.model(torch.randn(3, 1, 4, 4, generator=generator)).square().sum())

    chosen = replace(PLAIN, optimizer=optimizer, average=0.5, learning_rate=0.01)
    one = Optimizing(chosen, Net())
    step(one, 0)
    other = Optimizing(chosen, Net())
    other.restore(copy.deepcopy(one.state()))
    for number in (1, 2):
        step(one, number)
        step(other, number)
    for module in ("model", "kept"):
        theirs = getattr(other, module).state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in getattr(one, module).state_dict().items())


def test_no_beginning_freezes_nothing() -> None:
    assert freeze(Net(), ()) == []
