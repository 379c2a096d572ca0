"""The network around the head: its anchors, who is to find what, its scores and losses."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from models.parts.retina_head import HeadOutputs, PerAnchorHead, TaskTowers
from models.parts.retina_network import (
    IGNORED,
    NEGATIVE,
    Raw,
    ResNetPyramid,
    RetinaNetwork,
    SmallPyramid,
    assign,
    level_anchors,
)

CLASSES = 3


def target(*boxes: list[float], labels: list[int] | None = None, ignore: list[bool] | None = None) -> dict[str, Tensor]:
    count = len(boxes)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels or [0] * count, dtype=torch.long),
        "ignore": torch.tensor(ignore or [False] * count, dtype=torch.bool),
    }


def small_network() -> RetinaNetwork:
    torch.manual_seed(0)
    return RetinaNetwork(SmallPyramid(), PerAnchorHead(CLASSES, 32, 6, 2, 1, 1, objectness=True)).eval()


def test_six_anchors_of_a_cell_are_two_scales_of_three_aspects() -> None:
    anchors = level_anchors((2, 3), 8, 20.0, 6)
    assert anchors.shape == (2 * 3 * 6, 4)
    cells = anchors.view(2, 3, 6, 4)
    centres = (cells[..., :2] + cells[..., 2:]) / 2
    assert centres[1, 2].tolist() == [[20, 12]] * 6, "x of the third column, y of the second row"
    sides = cells[0, 0, :, 2:] - cells[0, 0, :, :2]
    areas = [20.0**2] * 3 + [20.0**2 * 2] * 3
    torch.testing.assert_close(sides.prod(dim=1), torch.tensor(areas), atol=1e-3, rtol=0)
    torch.testing.assert_close(sides[:, 1] / sides[:, 0], torch.tensor([0.5, 1, 2, 0.5, 1, 2]))


def test_a_single_anchor_is_a_square_between_the_scales() -> None:
    anchors = level_anchors((1, 1), 16, 20.0, 1)
    side = 20 * 2**0.25
    torch.testing.assert_close(anchors, torch.tensor([[8 - side / 2] * 2 + [8 + side / 2] * 2]))


ANCHORS = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [0, 10, 10, 20], [40, 40, 50, 50]])


@pytest.mark.parametrize(
    ("found", "min_iou", "wanted"),
    [
        pytest.param(target(), 0.5, [NEGATIVE] * 4, id="nothing"),
        pytest.param(target([0, 0, 10, 10]), 0.5, [0, NEGATIVE, NEGATIVE, NEGATIVE], id="one, exactly"),
        pytest.param(target([0, 0, 10, 20]), 0.5, [0, NEGATIVE, 0, NEGATIVE], id="half of it is enough for both"),
        pytest.param(target([0, 0, 10, 20]), 0.7, [0, NEGATIVE, NEGATIVE, NEGATIVE], id="the first of two as near"),
        pytest.param(target([42, 42, 43, 43]), 0.5, [NEGATIVE, NEGATIVE, NEGATIVE, 0], id="however far"),
        pytest.param(target([70, 70, 80, 80]), 0.5, [NEGATIVE] * 4, id="but not where they do not meet"),
        pytest.param(
            target([0, 0, 10, 10], [0, 0, 4, 4]),
            0.5,
            [0, NEGATIVE, NEGATIVE, NEGATIVE],
            id="the nearer of two that ask",
        ),
        pytest.param(
            target([0, 0, 10, 10], [0, 4, 10, 18]), 0.3, [0, NEGATIVE, 1, NEGATIVE], id="its own before a better one"
        ),
        pytest.param(
            target([0, 0, 10, 10], [30, 30, 60, 60], ignore=[True, True]),
            0.5,
            [IGNORED, NEGATIVE, NEGATIVE, IGNORED],
            id="to be ignored",
        ),
        pytest.param(
            target([0, 0, 10, 10], [0, 0, 20, 20], ignore=[False, True]),
            0.5,
            [0, IGNORED, IGNORED, NEGATIVE],
            id="an object in what is to be ignored",
        ),
    ],
)
def test_who_is_to_find_what(found: dict[str, Tensor], min_iou: float, wanted: list[int]) -> None:
    assert assign(ANCHORS, found, min_iou).tolist() == wanted


corner, side = st.integers(0, 40), st.integers(1, 30)
boxes = st.lists(st.tuples(corner, corner, side, side), max_size=6)


@settings(max_examples=60, deadline=None)
@given(boxes, boxes.filter(bool), st.sampled_from([0.5, 0.7]))
def test_assignment_is_the_papers_by_brute_force(
    truth: list[tuple[int, ...]], anchors: list[tuple[int, ...]], min_iou: float
) -> None:
    wanted, given_ = (
        torch.tensor([[x, y, x + w, y + h] for x, y, w, h in rows], dtype=torch.float32).reshape(-1, 4)
        for rows in (truth, anchors)
    )
    iou = box_iou(given_, wanted)
    found = assign(given_, target(*wanted.tolist()), min_iou).tolist()
    asking = {m: int(iou[:, m].argmax()) for m in range(len(truth)) if iou[:, m].max() > 0}
    for anchor, matched in enumerate(found):
        asked_by = [m for m, nearest in asking.items() if nearest == anchor]
        if asked_by:
            assert matched in asked_by
            assert iou[anchor, matched] == max(iou[anchor, m] for m in asked_by)
        elif truth and iou[anchor].max() >= min_iou:
            assert iou[anchor, matched] == iou[anchor].max()
        else:
            assert matched == NEGATIVE


def raw_of(network: RetinaNetwork, anchors: Tensor, classes: Tensor, deltas: Tensor, objectness: Tensor | None) -> Raw:
    return Raw((64, 64), anchors, (len(anchors),), HeadOutputs(classes, deltas, objectness, ()))


def test_the_small_one_scores_by_objectness_and_class_and_the_papers_by_a_sigmoid_each() -> None:
    classes, deltas = torch.tensor([[[0.0, 0, math.log(2)]]]), torch.zeros(1, 1, 4)
    small = small_network()
    (found,) = small.outputs(raw_of(small, ANCHORS[:1], classes, deltas, torch.zeros(1, 1)))
    torch.testing.assert_close(found.scores, torch.tensor([[0.125, 0.125, 0.25]]))
    paper = RetinaNetwork(SmallPyramid(), TaskTowers(CLASSES, 32, 6, 2, 1, shared=True))
    (found,) = paper.outputs(raw_of(paper, ANCHORS[:1], classes, deltas, None))
    torch.testing.assert_close(found.scores, torch.tensor([[0.5, 0.5, 2 / 3]]))
    assert torch.equal(found.boxes, ANCHORS[:1])


def test_the_papers_losses_by_hand() -> None:
    """Focal (alpha .25, gamma 2) over all anchors, Huber of the mean delta (coder 10, 10, 5, 5), both by matches."""
    paper = RetinaNetwork(SmallPyramid(), TaskTowers(CLASSES, 32, 6, 2, 1, shared=True))
    # Two anchors: the first finds the box, 1 px to the right of it, the second nothing; every score is .5.
    raw = raw_of(paper, ANCHORS[[0, 3]], torch.zeros(1, 2, CLASSES), torch.zeros(1, 2, 4), None)
    found = paper.losses(raw, [target([1, 0, 11, 10], labels=[2])])
    cross_entropy = 0.25 * math.log(2)  # (1 - .5)^2
    assert float(found["class"]) == pytest.approx((0.25 + 5 * 0.75) * cross_entropy, rel=1e-5)
    assert float(found["box"]) == pytest.approx((10 / 10 - 0.5) / 4, rel=1e-5)  # |1| - .5 of four deltas
    (nothing,) = ({name: float(loss) for name, loss in paper.losses(raw, [target()]).items()},)
    assert nothing == {"class": pytest.approx(6 * 0.75 * cross_entropy, rel=1e-5), "box": 0}


def test_the_small_ones_losses_are_nothing_where_all_is_found() -> None:
    small = small_network()
    logits = torch.tensor([[[30.0, 0, 0], [0, 0, 0]]])
    raw = raw_of(small, ANCHORS[[0, 3]], logits, torch.zeros(1, 2, 4), torch.tensor([[20.0, -20]]))
    right = small.losses(raw, [target([0, 0, 10, 10])])
    assert right.keys() == {"objectness", "class", "box"}
    assert sum(map(float, right.values())) < 1e-6
    assert float(small.losses(raw, [target([0, 0, 10, 10], labels=[1])])["class"]) == pytest.approx(30, rel=1e-4)
    assert float(small.losses(raw, [target([0, 0, 10, 5])])["box"]) == pytest.approx(2 * 0.5, rel=1e-4)
    assert float(small.losses(raw, [target()])["objectness"]) == pytest.approx(10, rel=1e-4)  # .5 * 20, count 1


@pytest.mark.parametrize("objectness", [True, False])
def test_what_is_to_be_ignored_teaches_nothing(objectness: bool) -> None:
    network = small_network() if objectness else RetinaNetwork(SmallPyramid(), TaskTowers(3, 32, 6, 2, 1, shared=True))
    classes, deltas = torch.zeros(1, 2, CLASSES, requires_grad=True), torch.zeros(1, 2, 4, requires_grad=True)
    scores = torch.zeros(1, 2, requires_grad=True) if objectness else None
    raw = raw_of(network, ANCHORS[[0, 3]], classes, deltas, scores)
    losses = network.losses(raw, [target([0, 0, 12, 12], ignore=[True])])
    sum(losses.values(), start=torch.zeros(())).backward()
    taught = scores if scores is not None else classes
    assert taught.grad is not None
    assert not taught.grad[0, 0].any()
    assert taught.grad[0, 1].any()


@pytest.mark.parametrize("size", [(128, 160), (50, 71), (16, 16), (1, 9)])
def test_frames_of_any_size_have_anchors_on_every_cell(size: tuple[int, int]) -> None:
    raw = small_network()(torch.zeros(2, 3, *size, dtype=torch.uint8))
    rows, columns = (16 * math.ceil(pixels / 16) for pixels in size)
    assert raw.levels == (rows * columns // 64 * 6, rows * columns // 256 * 6)
    assert raw.head.classes.shape == (2, len(raw.anchors), CLASSES)
    (first, _) = small_network().outputs(raw)
    assert (first.boxes >= 0).all()
    assert (first.boxes <= torch.tensor([size[1], size[0]] * 2)).all()


def test_the_papers_pyramid_has_five_levels() -> None:
    pyramid = ResNetPyramid().eval()
    with torch.no_grad():
        levels = pyramid(torch.zeros(1, 3, 100, 130, dtype=torch.uint8))  # padded to 128 x 160
    assert [tuple(x.shape[1:]) for x in levels] == [(256, 16, 20), (256, 8, 10), (256, 4, 5), (256, 2, 3), (256, 1, 2)]
    assert all(parameter.requires_grad for parameter in pyramid.parameters())
