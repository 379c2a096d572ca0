"""BatchHard triplets: equation (7) by hand and by loops, its edges, and what it teaches."""

from __future__ import annotations

import math
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.parts.triplet import batch_hard, triplet_loss

POINTS = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0], [0.0, 1.0]])
IDS = torch.tensor([0, 0, 1, 1])
SINGLE = [4.1164, 1.2110, 4.3328, 8.3198]


def by_loops(points: list[list[float]], ids: list[int], margin: float) -> list[float]:
    losses = []
    for anchor, own in zip(points, ids, strict=True):
        positives = [math.dist(anchor, p) for p, i in zip(points, ids, strict=True) if i == own]
        negatives = [math.dist(anchor, p) for p, i in zip(points, ids, strict=True) if i not in (own, -1)]
        if own >= 0 and negatives:
            losses.append(math.log1p(math.exp(margin + max(positives) - min(negatives))))
    return losses


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[list[float]], list[int]]:
    count = draw(st.integers(0, 7))
    number = st.floats(-4, 4, width=32)
    points = draw(st.lists(st.tuples(number, number, number).map(list), min_size=count, max_size=count))
    return points, draw(st.lists(st.integers(-1, 2), min_size=count, max_size=count))


def as_tensors(points: list[list[float]], ids: list[int]) -> tuple[Tensor, Tensor]:
    return torch.tensor(points, dtype=torch.float64).reshape(-1, 3), torch.tensor(ids, dtype=torch.long)


def test_equation_7_by_hand() -> None:
    losses = batch_hard(POINTS, IDS, margin=0.1)
    assert losses.tolist() == pytest.approx(SINGLE, abs=5e-5)
    assert float(losses.sum()) == pytest.approx(17.98, abs=5e-5)
    assert float(triplet_loss(POINTS, IDS)) == pytest.approx(17.98 / 4, abs=5e-5)


@given(batches(), st.sampled_from([0.0, 0.1, 1.0]))
def test_equation_7_by_loops(batch: tuple[list[list[float]], list[int]], margin: float) -> None:
    embeddings, ids = as_tensors(*batch)
    expected = by_loops(*batch, margin)
    assert batch_hard(embeddings, ids, margin).tolist() == pytest.approx(expected, abs=1e-9)
    mean = sum(expected) / max(1, len(expected))
    assert float(triplet_loss(embeddings, ids, margin=margin, most=None)) == pytest.approx(mean, abs=1e-9)


@given(batches(), st.randoms(use_true_random=False))
def test_the_order_says_nothing(batch: tuple[list[list[float]], list[int]], random: Random) -> None:
    embeddings, ids = as_tensors(*batch)
    order = torch.tensor(random.sample(range(len(ids)), len(ids)), dtype=torch.long)
    plain, mixed = embeddings.clone().requires_grad_(), embeddings[order].clone().requires_grad_()
    losses = [triplet_loss(plain, ids, most=None), triplet_loss(mixed, ids[order], most=None)]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-9)
    for loss in losses:
        loss.backward()  # type: ignore[no-untyped-call]
    assert plain.grad is not None
    assert mixed.grad is not None
    torch.testing.assert_close(plain.grad[order], mixed.grad, atol=1e-9, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("embeddings", "ids", "loss"),
    [
        pytest.param([], [], 0, id="nothing"),
        pytest.param([[1, 2]], [3], 0, id="one embedding"),
        pytest.param([[1, 2], [3, 4], [5, 6]], [3, 3, 3], 0, id="one object"),
        pytest.param([[1, 2], [3, 4]], [-1, -1], 0, id="nobody known"),
        pytest.param([[1, 2], [3, 4]], [-1, 3], 0, id="one known"),
        pytest.param([[1, 2], [1, 2], [1, 2]], [0, 0, 1], math.log1p(math.exp(0.1)), id="all equal"),
        pytest.param([[0, 0], [0, 0], [3, 4]], [0, 0, 1], math.log1p(math.exp(0.1 - 5)), id="equal positives"),
        pytest.param([[600, 0], [-600, 0]], [0, 1], 0, id="whose squares float16 cannot hold"),
    ],
)
def test_edges_have_a_finite_gradient(
    embeddings: list[list[float]], ids: list[int], loss: float, dtype: torch.dtype
) -> None:
    given = torch.tensor(embeddings, dtype=dtype).reshape(-1, 2).requires_grad_()
    found = triplet_loss(given, torch.tensor(ids, dtype=torch.long))
    assert found.shape == ()
    assert found.item() == pytest.approx(loss, abs=1e-6)
    found.backward()  # type: ignore[no-untyped-call]
    assert given.grad is not None
    assert given.grad.isfinite().all()


def test_unknown_objects_take_no_part() -> None:
    beside = torch.cat([POINTS, torch.tensor([[0.0, 0.1], [3.0, 3.9]])])
    ids = torch.cat([IDS, torch.tensor([-1, -2])])
    assert batch_hard(beside, ids).tolist() == pytest.approx(SINGLE, abs=5e-5)


def test_gradient_by_differences() -> None:
    """Moved along its gradient's other way, every embedding makes the loss smaller as fast as the gradient says."""
    points = POINTS.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda embeddings: triplet_loss(embeddings, IDS, most=None), (points,))


def test_drawn_triplets_are_some_of_all_and_chance_is_the_generators() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(40, 8, generator=generator)
    ids = torch.arange(40) % 5
    single = set(batch_hard(embeddings, ids).tolist())
    drawn = [float(triplet_loss(embeddings, ids, most=1, generator=generator)) for _ in range(60)]
    assert all(any(abs(loss - other) < 1e-6 for other in single) for loss in drawn)
    assert len({round(loss, 5) for loss in drawn}) > 20  # 60 draws of 40 are about 31 of them
    again = [float(triplet_loss(embeddings, ids, most=3, generator=torch.Generator().manual_seed(7))) for _ in range(2)]
    assert again[0] == again[1]
    assert float(triplet_loss(embeddings, ids, most=40)) == pytest.approx(sum(single) / 40, abs=1e-5)


def test_it_pulls_objects_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(12, 4, generator=generator).requires_grad_()
    ids = torch.arange(12) % 3
    optimizer = torch.optim.Adam([embeddings], lr=0.1)
    for _ in range(100):
        loss = triplet_loss(embeddings, ids)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    distances = torch.cdist(embeddings, embeddings).detach()
    same = ids[:, None] == ids
    assert 3 * float(distances[same].max()) < float(distances[~same].min())
