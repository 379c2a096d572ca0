"""The second stage's losses: who is what, equation 1 by hand, and that only the hardest examples teach."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.parts.box_deltas import BoxDeltas
from models.parts.region_losses import BACKGROUND, IGNORED, assign, hardest, region_losses

PLAIN = BoxDeltas()


def target(boxes: list[list[float]], labels: list[int], ignore: list[bool] | None = None) -> dict[str, Tensor]:
    given = {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.long)}
    return given if ignore is None else {**given, "ignore": torch.tensor(ignore, dtype=torch.bool)}


@pytest.mark.parametrize(
    ("truth", "ignore", "outputs"),
    [
        pytest.param([], [], [BACKGROUND] * 3, id="nothing there"),
        pytest.param([[0.0, 0, 10, 10]], [False], [1, BACKGROUND, BACKGROUND], id="the box itself"),
        pytest.param([[0.0, 0, 10, 5]], [False], [1, BACKGROUND, BACKGROUND], id="IoU .5"),
        pytest.param([[0.0, 0, 10, 4.9]], [False], [BACKGROUND] * 3, id="IoU .49"),
        pytest.param([[0.0, 0, 10, 6], [0, 0, 10, 9]], [False] * 2, [2, BACKGROUND, BACKGROUND], id="the nearest"),
        pytest.param(
            [[-9.0, -9, 24, 40]], [True], [IGNORED, IGNORED, BACKGROUND], id="more than half in an ignored one"
        ),
        pytest.param([[0.0, 0, 10, 10]], [True], [IGNORED, BACKGROUND, BACKGROUND], id="an ignored one is no aim"),
        pytest.param(
            [[-9.0, -9, 40, 40], [0, 0, 10, 10]], [True, False], [2, IGNORED, IGNORED], id="truth in an ignored one"
        ),
    ],
)
def test_what_a_box_is(truth: list[list[float]], ignore: list[bool], outputs: list[int]) -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [20, 0, 30, 10]])
    found, nearest = assign(boxes, target(truth, list(range(len(truth))), ignore))
    assert found.tolist() == outputs
    assert all(truth[n] for n, output in zip(nearest.tolist(), outputs, strict=True) if output > BACKGROUND)


def test_equation_1_by_hand() -> None:
    """Two images: a box half a width off its object of class 1, and two that are background."""
    boxes = [torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])]
    targets = [target([[2.0, 0, 12, 10]], [1]), target([], [])]
    logits = torch.log(torch.tensor([[0.2, 0.3, 0.5], [0.8, 0.1, 0.1], [0.4, 0.4, 0.2]]))
    deltas = torch.tensor([[0.1, 0.0, 0.0, 2.0], [9.0, 9, 9, 9], [9, 9, 9, 9]])
    losses = region_losses(logits, deltas, boxes, targets, PLAIN)
    # The object is (.2, 0, 0, 0) away: errors .1 (quadratic: .005) and 2 (linear: 1.5), over one foreground box.
    assert losses["box"].item() == pytest.approx(0.005 + 1.5)
    assert losses["class"].item() == pytest.approx(-(math.log(0.5) + math.log(0.8) + math.log(0.4)) / 3)


def test_box_targets_are_the_coders() -> None:
    boxes, coder = torch.tensor([[0.0, 0, 10, 10]]), BoxDeltas((0.1, 0.0, 0.0, 0.0), (0.1, 0.1, 0.2, 0.2))
    truth = target([[2.0, 1, 12, 11]], [0])
    deltas = coder.encode(boxes, truth["boxes"])
    torch.testing.assert_close(deltas, torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
    assert region_losses(torch.zeros(1, 2), deltas, [boxes], [truth], coder)["box"].item() == 0


def test_of_the_boxes_of_all_classes_that_of_the_truth_learns() -> None:
    logits, deltas, boxes, targets = scene()
    of_each = deltas[:, None].repeat(1, 2, 1) + torch.tensor([0.0, 1.0])[:, None]  # class 1 says 1 more, (R, 2, 4)
    of_each.requires_grad_()
    outputs = torch.cat([assign(one, truth)[0] for one, truth in zip(boxes, targets, strict=True)])
    chosen = deltas + (outputs == 2)[:, None]
    losses = region_losses(logits, of_each, boxes, targets, PLAIN, None)
    assert losses == region_losses(logits, chosen, boxes, targets, PLAIN, None)
    losses["box"].backward()
    assert of_each.grad is not None
    taught = torch.nonzero(of_each.grad.any(dim=2))
    assert {tuple(row) for row in taught.tolist()} == {
        (i, out - 1) for i, out in enumerate(outputs.tolist()) if out > 0
    }
    one_box = region_losses(logits, deltas[:, None], boxes, targets, PLAIN)
    assert one_box == region_losses(logits, deltas, boxes, targets, PLAIN)


def scene() -> tuple[Tensor, Tensor, list[Tensor], list[dict[str, Tensor]]]:
    """Logits and deltas of 40 and 25 boxes of two images, about a third of them on an object, some ignored."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(65, 2, generator=generator) * 30
    boxes = torch.cat([corner, corner + 12], dim=1)
    truth = target([[5, 5, 17, 17], [20, 20, 32, 32], [5, 25, 20, 37]], [0, 1, 0], [False, False, True])
    logits, deltas = torch.randn(65, 3, generator=generator), torch.randn(65, 4, generator=generator)
    return logits, deltas, list(boxes.split([40, 25])), [truth, truth]


@pytest.mark.parametrize("count", [1, 10, 30, 40, None])
def test_only_the_hardest_of_each_image_teach(count: int | None) -> None:
    """Against a loop over the boxes of each image, sorted by their loss."""
    logits, deltas, boxes, targets = scene()
    logits.requires_grad_()
    rows = []
    for one, truth, first in zip(boxes, targets, (0, 40), strict=True):
        outputs, nearest = assign(one, truth)
        image = []
        for i, output in enumerate(outputs.tolist()):
            if output == IGNORED:
                continue
            of_class = -logits[first + i].log_softmax(0)[output].item()
            wanted = PLAIN.encode(one[i], truth["boxes"][nearest[i]])
            of_box = torch.nn.functional.smooth_l1_loss(deltas[first + i], wanted, reduction="sum").item()
            image.append((of_class + of_box * (output > 0), of_class, of_box if output > 0 else None, first + i))
        rows += sorted(image, reverse=True)[:count]
    losses = region_losses(logits, deltas, boxes, targets, PLAIN, count)
    of_boxes = [of_box for _, _, of_box, _ in rows if of_box is not None]
    assert losses["class"].item() == pytest.approx(sum(row[1] for row in rows) / len(rows), rel=1e-5)
    assert losses["box"].item() == pytest.approx(sum(of_boxes) / max(len(of_boxes), 1), rel=1e-5)
    losses["class"].backward()
    assert logits.grad is not None
    assert torch.nonzero(logits.grad.any(dim=1)).flatten().tolist() == sorted(row[3] for row in rows)


def test_hardest_counts_image_by_image() -> None:
    losses = torch.tensor([1.0, 3.0, 2.0, 0.1, 0.3, 0.2])
    assert hardest(losses, [3, 0, 2, 1], 1).tolist() == [False, True, False, False, True, True]
    assert hardest(losses, [3, 0, 2, 1], 9).all()


@pytest.mark.parametrize(
    ("boxes", "truth"),
    [
        pytest.param(torch.zeros(0, 4), target([[0, 0, 10, 10]], [0]), id="no boxes"),
        pytest.param(torch.tensor([[0.0, 0, 1, 1]]), target([], []), id="no truth"),
        pytest.param(torch.tensor([[0.0, 0, 1, 1]]), target([[0, 0, 9, 9]], [0], [True]), id="all ignored"),
        pytest.param(torch.tensor([[0.0, 0, 1, 1]]), target([[0, 0, 1, 1]], [0]), id="one pixel"),
    ],
)
def test_losses_and_gradients_are_finite(boxes: Tensor, truth: dict[str, Tensor]) -> None:
    logits = torch.zeros(len(boxes), 2, requires_grad=True)
    deltas = torch.zeros(len(boxes), 4, requires_grad=True)
    losses = region_losses(logits, deltas, [boxes], [truth], PLAIN)
    sum(losses.values(), start=torch.zeros(())).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    for given in (logits, deltas):
        assert given.grad is not None
        assert torch.isfinite(given.grad).all()
