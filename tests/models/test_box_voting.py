"""Detections by class-wise suppression and box voting: by hand, and against a loop over classes and boxes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from models.parts.box_voting import Voted, vote_boxes

NEAR = [[0.0, 0, 10, 10], [1, 0, 11, 10], [5, 0, 15, 10], [40, 40, 60, 60]]  # IoU with the first: 1, .82, .33, 0


def probabilities(*foreground: list[float]) -> Tensor:
    scores = torch.tensor(foreground)
    return torch.cat([1 - scores.sum(dim=1, keepdim=True), scores], dim=1)


def test_neighbours_vote_by_their_score_for_the_class() -> None:
    found = vote_boxes(torch.tensor(NEAR), probabilities([0.6, 0.0], [0.2, 0.0], [0.1, 0.0], [0.1, 0.7]))
    # Class 0: the first box suppresses the second, which draws it .25 to the right; the third, at IoU .33, remains, and
    # the second does not reach it (.43).
    torch.testing.assert_close(
        found.boxes, torch.tensor([[40.0, 40, 60, 60], [0.25, 0, 10.25, 10], [5, 0, 15, 10], [40, 40, 60, 60]])
    )
    torch.testing.assert_close(found.scores, torch.tensor([0.7, 0.6, 0.1, 0.1]))
    assert found.labels.tolist() == [1, 0, 0, 0]
    assert found.region.tolist() == [3, 0, 2, 3]


@pytest.mark.parametrize(
    ("options", "regions"),
    [
        pytest.param({"max_iou": 0.3}, [[0, 3], [3]], id="the third overlaps by .33"),
        pytest.param({"max_iou": 0.9}, [[0, 1, 2, 3], [3]], id="nothing is suppressed"),
        pytest.param({"top_k": 1}, [[0], [3]], id="the best of each class"),
        pytest.param({"min_score": 0.15}, [[0], [3]], id="above .15"),
        pytest.param({"min_score": 0.65}, [[], [3]], id="a class with none"),
        pytest.param({"min_score": 1.0}, [[], []], id="none at all"),
    ],
)
def test_who_stays(options: dict[str, float], regions: list[list[int]]) -> None:
    given = probabilities([0.6, 0.0], [0.2, 0.0], [0.11, 0.0], [0.1, 0.7])
    found = vote_boxes(torch.tensor(NEAR), given, **options)  # type: ignore[arg-type]
    assert [found.region[found.labels == label].tolist() for label in range(2)] == regions


def by_loops(boxes: Tensor, given: Tensor, max_iou: float, min_vote_iou: float, top_k: int) -> list[tuple[float, ...]]:
    """(label, region, score, box) of all detections, sorted by label and falling score."""
    iou, found = box_iou(boxes, boxes), []
    for label in range(given.shape[1] - 1):
        kept: list[int] = []
        for i in given[:, label + 1].argsort(descending=True, stable=True).tolist():
            if given[i, label + 1] > 0 and all(iou[i, j] <= max_iou for j in kept):
                kept.append(i)
        for i in kept[:top_k]:
            voters = [j for j in range(len(boxes)) if iou[i, j] >= min_vote_iou]
            weight = sum(float(given[j, label + 1]) for j in voters)
            box = [sum(float(given[j, label + 1] * boxes[j, side]) for j in voters) / weight for side in range(4)]
            found.append((label, i, float(given[i, label + 1]), *box))
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("top_k", [3, 25])
def test_it_is_a_loop_over_classes_and_boxes(seed: int, top_k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(40, 2, generator=generator) * 40
    boxes = torch.cat([corner, corner + 8 + torch.rand(40, 2, generator=generator) * 30], dim=1)
    given = torch.randn(40, 5, generator=generator).softmax(dim=1)
    found = vote_boxes(boxes, given, top_k=top_k)
    assert (found.scores.diff() <= 0).all()
    order = found.labels.argsort(stable=True)
    ours = torch.cat([torch.stack([found.labels, found.region, found.scores], dim=1), found.boxes], dim=1)[order]
    expected = torch.tensor(by_loops(boxes, given, 0.4, 0.5, top_k))
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_without_votes_boxes_are_as_they_were() -> None:
    boxes, given = torch.tensor(NEAR), probabilities([0.6, 0.0], [0.2, 0.0], [0.1, 0.0], [0.1, 0.7])
    found, voted = vote_boxes(boxes, given, min_vote_iou=None), vote_boxes(boxes, given)
    assert torch.equal(found.boxes, boxes[found.region])
    assert torch.equal(found.region, voted.region)


@pytest.mark.parametrize(
    ("boxes", "count"),
    [
        pytest.param([], 0, id="no boxes"),
        pytest.param([[3.0, 3, 4, 4]], 1, id="one pixel"),
        pytest.param([[3.0, 3, 3, 9]], 0, id="no area"),
    ],
)
def test_few_and_tiny_boxes(boxes: list[list[float]], count: int) -> None:
    given = torch.tensor(boxes).reshape(-1, 4)
    found = vote_boxes(given, torch.full((len(boxes), 2), 0.5))
    assert isinstance(found, Voted)
    assert [len(part) for part in found] == [count] * 4
    assert torch.equal(found.boxes, given[found.region])
