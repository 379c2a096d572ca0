"""The tracking loss: equation (10) by hand, which pairs it has, and what it teaches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from models.parts.tracking_loss import Negatives, draw, pair_losses, track_pairs, tracking_loss

BOX = [10.0, 10.0, 30.0, 30.0]
FAR = [60.0, 60.0, 80.0, 80.0]
NEAR = [10.0, 20.0, 30.0, 40.0]  # IoU 1/3 with BOX
TRUTH = torch.tensor([BOX, FAR])


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("cosine", "iou", "loss"), [(0.9, 0.6, 0.01), (0.9, 0.4, 0.81), (-0.3, 0.4, 0.0), (-0.3, 0.6, 1.69)]
)
def test_equation_10_by_hand(cosine: float, iou: float, loss: float) -> None:
    assert float(pair_losses(torch.tensor(cosine), iou >= 0.5)) == pytest.approx(loss)
    boxes = torch.tensor([[10.0, 10.0, 30.0, 10 + 20 * iou]])  # inside the object's box, so that its share is the IoU
    embeddings = torch.tensor([[cosine, (1 - cosine**2) ** 0.5]])
    ids = torch.tensor([5])
    given = tracking_loss(3 * embeddings, boxes, TRUTH[:1], ids, torch.tensor([[2.0, 0.0]]), ids, generator=seeded())
    assert float(given) == pytest.approx(loss / 2, abs=1e-6)  # one kind of pairs alone counts half


@pytest.mark.parametrize(
    ("box", "next_ids", "positive", "negative", "other"),
    [
        pytest.param(BOX, [7, 8], [1, 0], [0, 0], [0, 1], id="on an object"),
        pytest.param([10, 10, 30, 20], [7, 8], [1, 0], [0, 0], [0, 1], id="on half of it: IoU .5 is enough"),
        pytest.param(NEAR, [7, 8], [0, 0], [1, 0], [1, 1], id="badly on an object"),
        pytest.param([40, 40, 59, 59], [7, 8], [0, 0], [0, 1], [1, 1], id="on none: the nearest"),
        pytest.param([0, 0, 1, 1], [7, 8], [0, 0], [1, 0], [1, 1], id="one pixel"),
        pytest.param(BOX, [8, 9], [0, 0], [0, 0], [1, 1], id="on an object that is gone; another is new"),
        pytest.param(BOX, [8, 7], [0, 1], [0, 0], [1, 0], id="the next frame has another order"),
        pytest.param(BOX, [], [], [], [], id="the next frame is empty"),
    ],
)
def test_pairs_of_a_box(
    box: list[float], next_ids: list[int], positive: list[int], negative: list[int], other: list[int]
) -> None:
    boxes, ids = torch.tensor([box], dtype=torch.float32), torch.tensor([7, 8])
    for negatives, expected in (("paper", negative), ("other_objects", other)):
        known: Negatives = "paper" if negatives == "paper" else "other_objects"
        pairs = track_pairs(boxes, TRUTH, ids, torch.tensor(next_ids, dtype=torch.long), known)
        assert [kind.int().tolist() for kind in pairs] == [[positive], [expected]]


def test_a_box_on_two_objects_is_no_negative_of_either() -> None:
    truth = torch.tensor([BOX, [10, 10, 30, 28]])
    boxes, ids = torch.tensor([[10.0, 10, 30, 29]]), torch.tensor([0, 1])
    positive, negative = track_pairs(boxes, truth, ids, ids, "other_objects")
    assert positive.int().tolist() == [[1, 0]]  # IoU .95 and .947
    assert not negative.any()


@pytest.mark.parametrize("negatives", ["paper", "other_objects"])
def test_a_frame_without_objects(negatives: Negatives) -> None:
    boxes, none = torch.tensor([BOX, FAR]), torch.zeros(0, dtype=torch.long)
    positive, negative = track_pairs(boxes, TRUTH[:0], none, torch.tensor([3]), negatives)
    assert not positive.any()
    assert negative.tolist() == [[negatives == "other_objects"]] * 2


@pytest.mark.parametrize(
    ("num_boxes", "num_objects", "num_next"), [(0, 0, 0), (0, 2, 2), (3, 0, 0), (3, 2, 0), (3, 0, 1)]
)
def test_nothing_to_compare_is_no_loss(num_boxes: int, num_objects: int, num_next: int) -> None:
    embeddings = torch.randn(num_boxes, 4, generator=seeded(), requires_grad=True)
    later = torch.randn(num_next, 4, generator=seeded(), requires_grad=True)
    boxes = torch.tensor(BOX).repeat(num_boxes, 1)
    loss = tracking_loss(
        embeddings,
        boxes,
        TRUTH[:num_objects],
        torch.arange(num_objects),
        later,
        torch.arange(num_next),
        generator=seeded(),
    )
    loss.backward()
    assert float(loss.detach()) == 0
    assert embeddings.grad is not None
    assert not embeddings.grad.any()
    assert later.grad is not None


def test_each_kind_of_pairs_counts_half() -> None:
    """Two boxes on the object, five beside it: a literal mean of each kind."""
    random = seeded()
    boxes = torch.tensor([BOX] * 2 + [NEAR] * 5)
    embeddings, later = torch.randn(7, 6, generator=random), torch.randn(1, 6, generator=random)
    cosine = (normalize(embeddings) @ normalize(later).T).flatten()
    expected = ((1 - cosine[:2]) ** 2).mean() / 2 + (cosine[2:].clamp(min=0) ** 2).mean() / 2
    ids = torch.tensor([4])
    given = tracking_loss(embeddings, boxes, TRUTH[:1], ids, later, ids, generator=random)
    torch.testing.assert_close(given, expected)


def test_half_of_the_pairs_are_positive() -> None:
    """Of two pairs one is on the object, at cosine .9 or .8, and one beside it, at cosine .6 or .1."""
    cosine = torch.tensor([0.9, 0.8, 0.6, 0.1])
    embeddings, later = torch.stack([cosine, (1 - cosine**2).sqrt()], dim=1), torch.tensor([[1.0, 0.0]])
    boxes, ids, random = torch.tensor([BOX, BOX, NEAR, NEAR]), torch.tensor([4]), seeded()
    losses = {
        round(float(tracking_loss(embeddings, boxes, TRUTH[:1], ids, later, ids, generator=random, num_pairs=2)), 4)
        for _ in range(40)
    }
    assert losses == {0.185, 0.2, 0.01, 0.025}


def test_at_most_so_many_pairs_are_drawn() -> None:
    mask = torch.rand(50, 4, generator=seeded()) < 0.5
    rows, columns = draw(mask, 20, seeded())
    assert len(set(zip(rows.tolist(), columns.tolist(), strict=True))) == 20
    assert mask[rows, columns].all()
    assert [index.tolist() for index in draw(mask, 20, seeded())] == [rows.tolist(), columns.tolist()]
    assert not torch.equal(draw(mask, 20, torch.Generator().manual_seed(1))[0], rows)
    everything = draw(mask, 200, seeded())
    assert torch.equal(torch.stack(everything, dim=1), torch.nonzero(mask))


def test_no_global_randomness() -> None:
    before = torch.get_rng_state()
    draw(torch.ones(30, 2, dtype=torch.bool), 5, seeded())
    assert torch.equal(torch.get_rng_state(), before)


def trained(negatives: Negatives) -> Tensor:
    """Cosines between two objects' embeddings (2, 2), rows of frame t - 1, learned from an almost common start."""
    looks = (torch.ones(4, 8) + 0.1 * torch.randn(4, 8, generator=seeded())).requires_grad_()
    optimizer = torch.optim.SGD([looks], lr=1.0)
    boxes, ids, random = torch.cat([TRUTH, torch.tensor([NEAR])]), torch.tensor([0, 1]), seeded()
    background = -torch.ones(1, 8)
    for _ in range(150):
        embeddings = torch.cat([looks[:2], background])
        loss = tracking_loss(embeddings, boxes, TRUTH, ids, looks[2:], ids, generator=random, negatives=negatives)
        optimizer.zero_grad()
        loss.backward()
        assert looks.grad is not None
        assert looks.grad.isfinite().all()
        optimizer.step()
    with torch.no_grad():
        return normalize(looks[:2]) @ normalize(looks[2:]).T


def test_only_other_objects_as_negatives_tell_objects_apart() -> None:
    paper, ours = trained("paper"), trained("other_objects")
    off_diagonal = ~torch.eye(2, dtype=torch.bool)
    assert (paper.diagonal() > 0.99).all()
    assert (paper[off_diagonal] > 0.9).all()
    assert (ours.diagonal() > 0.9).all()
    assert (ours[off_diagonal] < 0.1).all()


def test_gradients_are_finite_at_embeddings_of_zero() -> None:
    embeddings = torch.zeros(2, 4, requires_grad=True)
    ids = torch.tensor([0, 1])
    tracking_loss(embeddings, TRUTH, TRUTH, ids, torch.ones(2, 4), ids, generator=seeded()).backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()
