"""Tracklet-conditioned probabilities: worked examples, the equations taken literally, and what must hold for any."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.parts.conditioning import Conditioning, association_weights, condition, condition_objectness, grow
from models.parts.tracklets import Tracklets, no_tracklets

DETECTED = torch.tensor([[0.5, 0.3, 0.2]])
TRACKED = torch.tensor([[0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
COSINE = torch.tensor([[0.9, 0.1]])
BOX = [10.0, 10.0, 30.0, 30.0]


def memory(
    probabilities: Tensor, embeddings: Tensor, boxes: Tensor | None = None, lengths: list[int] | None = None
) -> Tracklets:
    """Tracklets that were all seen in the last frame; both stages have the same embeddings."""
    count = len(probabilities)
    return Tracklets(
        boxes=torch.tensor([BOX]).repeat(count, 1) if boxes is None else boxes,
        probabilities=probabilities,
        stage_1=embeddings,
        stage_2=embeddings,
        ids=torch.arange(count),
        lengths=torch.tensor(lengths or [1] * count),
        ages=torch.zeros(count, dtype=torch.long),
        next_id=torch.tensor(count),
    )


def random_case(num_boxes: int, num_tracklets: int, num_classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """P_det (N, C + 1), cosines (N, M) and P_tr (M, C + 1)."""
    random = torch.Generator().manual_seed(num_boxes + 31 * num_tracklets)
    detected = (3 * torch.randn(num_boxes, num_classes + 1, generator=random)).softmax(dim=1)
    tracked = (3 * torch.randn(num_tracklets, num_classes + 1, generator=random)).softmax(dim=1)
    return detected, torch.rand(num_boxes, num_tracklets, generator=random) * 2 - 1, tracked


def literal(detected: Tensor, cosine: Tensor, tracked: Tensor, alpha: float, gamma: float, null: float) -> Tensor:
    """Equations (1) to (7) as they are printed, one box and one tracklet after the other."""
    rows = []
    for p_det, cos in zip(detected.double(), cosine.double(), strict=True):
        uniform = torch.full_like(p_det, 1 / len(p_det))  # (7)
        weights = [math.exp(null)] + [math.exp(gamma * float(c)) for c in cos]  # (5), (4)
        row = torch.zeros_like(p_det)
        for weight, p_tr in zip(weights, [uniform, *tracked.double()], strict=True):
            unnormalised = torch.exp(p_det.log() + alpha * p_tr.log())  # (2)
            row += weight / sum(weights) * unnormalised / unnormalised.sum()  # (6), (1)
        rows.append(row)
    return torch.stack(rows)


def test_weights_by_hand() -> None:
    weights = association_weights(COSINE, gamma=8, null=0.3)
    torch.testing.assert_close(weights, torch.tensor([[0.001005, 0.997338, 0.001657]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [(1.0, [0.161955, 0.772789, 0.065256]), (0.5, [0.323253, 0.547234, 0.129513])],
)
def test_classes_by_hand(alpha: float, expected: list[float]) -> None:
    weights = association_weights(COSINE, gamma=8, null=0.3)
    given = condition(DETECTED, weights, TRACKED, alpha)
    torch.testing.assert_close(given, torch.tensor([expected]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        pytest.param([1, 0, 0], [0.5, 0.3, 0.2], id="the null tracklet alone"),
        pytest.param([0, 1, 0], [0.161290, 0.774194, 0.064516], id="the first alone"),
        pytest.param([0, 0, 1], [0.357143, 0.214286, 0.428571], id="the second alone"),
    ],
)
def test_given_one_tracklet_by_hand(weights: list[int], expected: list[float]) -> None:
    given = condition(DETECTED, torch.tensor([weights], dtype=torch.float32), TRACKED, alpha=1)
    torch.testing.assert_close(given, torch.tensor([expected]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("num_boxes", "num_tracklets"), [(1, 1), (7, 3), (5, 20), (3, 0), (0, 3), (0, 0)])
@pytest.mark.parametrize(("alpha", "gamma", "null"), [(1.0, 8.0, 0.3), (0.5, 16.0, -1.0), (2.0, 0.0, 2.0)])
def test_equals_the_equations_taken_literally(
    num_boxes: int, num_tracklets: int, alpha: float, gamma: float, null: float
) -> None:
    detected, cosine, tracked = random_case(num_boxes, num_tracklets)
    given = condition(detected, association_weights(cosine, gamma, null), tracked, alpha)
    assert given.shape == detected.shape
    if num_boxes:
        expected = literal(detected, cosine, tracked, alpha, gamma, null)
        torch.testing.assert_close(given.double(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(given.sum(dim=1), torch.ones(num_boxes))


@pytest.mark.parametrize(
    ("count", "null_weight"),
    [pytest.param(m, w, id=f"{m}") for m, w in ((1, 0.574), (5, 0.213), (20, 0.063), (100, 0.013))],
)
def test_unrelated_tracklets_dilute_the_null_tracklet(count: int, null_weight: float) -> None:
    weights = association_weights(torch.zeros(1, count), gamma=8, null=0.3)
    assert float(weights[0, 0]) == pytest.approx(null_weight, abs=5e-4)


def test_one_tracklet_of_cosine_null_over_gamma_has_half_of_the_weight() -> None:
    weights = association_weights(torch.tensor([[0.0375]]), gamma=8, null=0.3)
    torch.testing.assert_close(weights, torch.tensor([[0.5, 0.5]]))


def test_the_order_of_tracklets_does_not_matter() -> None:
    detected, cosine, tracked = random_case(6, 9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    one = condition(detected, association_weights(cosine, 8, 0.3), tracked, alpha=1)
    other = condition(detected, association_weights(cosine[:, order], 8, 0.3), tracked[order], alpha=1)
    torch.testing.assert_close(one, other)


def test_what_leaves_the_detector_alone() -> None:
    detected, cosine, tracked = random_case(6, 4)
    logits = torch.linspace(-30, 30, 6)
    for weights in (
        association_weights(cosine, 8, null=1e4),  # R -> infinity
        association_weights(cosine[:, :0], 8, 0.3),  # no tracklets
        association_weights(cosine, 8, 0.3, gate=torch.zeros(6, 4, dtype=torch.bool)),  # all gated out
    ):
        known = tracked[: weights.shape[1] - 1]
        torch.testing.assert_close(condition(detected, weights, known, alpha=1), detected, atol=0, rtol=0)
        torch.testing.assert_close(condition_objectness(logits, weights, known, alpha=1), logits, atol=0, rtol=0)
    weights = association_weights(cosine, 8, 0.3)
    torch.testing.assert_close(condition(detected, weights, torch.full_like(tracked, 0.2), alpha=1), detected)
    torch.testing.assert_close(condition(detected, weights, tracked, alpha=0), detected)


def test_a_gate_is_as_if_the_other_tracklets_were_not() -> None:
    _, cosine, _ = random_case(5, 4)
    gate = torch.tensor([True, False, True, False]).expand(5, 4)
    gated = association_weights(cosine, 8, 0.3, gate)
    torch.testing.assert_close(gated[:, [0, 1, 3]], association_weights(cosine[:, [0, 2]], 8, 0.3))
    assert (gated[:, [2, 4]] == 0).all()


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0, 6.0])
def test_a_class_that_a_tracklet_excludes_can_come_back(alpha: float) -> None:
    """Also where the detector is as sure of another class as the tracklet is of its own."""
    sure = torch.eye(3)
    given = condition(sure[[1]], torch.tensor([[1e-3, 0.999]]), sure[[2]], alpha)
    torch.testing.assert_close(given, sure[[1]])
    logits = torch.tensor([-100.0, 0.0, 100.0])
    for tracked in (sure[[0]], sure[[2]]):
        assert condition_objectness(logits, torch.tensor([[1e-3, 0.999]]), tracked, alpha).isfinite().all()


def test_stage_1_equals_the_equations_taken_literally_with_two_classes() -> None:
    _, cosine, tracked = random_case(40, 6)
    logits = torch.linspace(-8, 8, 40)
    detected = torch.stack([(-logits).sigmoid(), logits.sigmoid()], dim=1)
    two = torch.stack([tracked[:, 0], tracked[:, 1:].sum(dim=1)], dim=1)
    given = condition_objectness(logits, association_weights(cosine, 8, 0.3), tracked, alpha=1)
    torch.testing.assert_close(
        given.sigmoid().double(), literal(detected, cosine, two, 1, 8, 0.3)[:, 1], atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("null_weight", "expected"),
    [
        pytest.param(1.0, 0.3, id="the null tracklet is uniform over two classes and changes nothing"),
        pytest.param(0.0, 0.928, id="a tracklet that is uniform over 31 is foreground to 30/31"),
    ],
)
def test_uniform_in_stage_1(null_weight: float, expected: float) -> None:
    logit = torch.tensor([0.3]).logit()
    weights = torch.tensor([[null_weight, 1 - null_weight]])
    given = condition_objectness(logit, weights, torch.full((1, 31), 1 / 31), alpha=1)
    assert float(given.sigmoid()) == pytest.approx(expected, abs=5e-4)


def test_sure_anchors_keep_their_order() -> None:
    logits = torch.tensor([30.0, 40.0, 50.0])
    given = condition_objectness(logits, torch.tensor([[0.5, 0.5]]).expand(3, 2), TRACKED[:1], alpha=1)
    assert (given.diff() > 5).all()


def test_dense_anchors() -> None:
    """30,000 anchors and 100 tracklets at once are as each anchor alone."""
    random = torch.Generator().manual_seed(2)
    embeddings = torch.randn(30_000, 32, generator=random)
    logits = torch.randn(30_000, generator=random)
    corners = torch.rand(30_000, 2, generator=random) * 600
    boxes = torch.cat([corners, corners + 40], dim=1)
    tracklets = memory(random_case(1, 100, 30)[2], embeddings[:100], boxes[:100])
    rule = Conditioning(gate="overlap")
    whole = rule.objectness(logits, embeddings, boxes, tracklets)
    for i in (0, 99, 12_345, 29_999):
        one = rule.objectness(logits[[i]], embeddings[[i]], boxes[[i]], tracklets)
        torch.testing.assert_close(whole[[i]], one, atol=1e-4, rtol=1e-4)
    assert (whole - logits).abs().max() > 1


def test_each_stage_has_its_own_embeddings() -> None:
    tracklets = Tracklets(**{**memory(TRACKED[:1], torch.eye(2)[[0]]).state_dict(), "stage_1": torch.eye(2)[[1]]})
    rule, boxes = Conditioning(null=-1e3), torch.tensor([BOX, BOX])
    logits = rule.objectness(torch.zeros(2), torch.eye(2), boxes, tracklets)
    torch.testing.assert_close(logits, torch.full((2,), math.log(9)))  # one tracklet and no null: its own .9 to .1
    weak = Conditioning(null=4.0)  # exp(4) against exp(8) and exp(0)
    raised = weak.objectness(torch.zeros(2), torch.eye(2), boxes, tracklets) > 1
    assert raised.tolist() == [False, True]
    classes = weak.classes(DETECTED.repeat(2, 1), torch.eye(2), boxes, tracklets)
    assert (classes[:, 1] > 0.5).tolist() == [True, False]


@pytest.mark.parametrize(
    ("box", "raised"),
    [
        pytest.param(BOX, True, id="on the last box"),
        pytest.param([39, 10, 59, 30], True, id="9 px beside it: the box grown twice reaches 10 further"),
        pytest.param([41, 10, 61, 30], False, id="11 px beside it"),
        pytest.param([0, 39, 20, 40], True, id="one pixel high, within reach below"),
        pytest.param([90, 90, 91, 91], False, id="one pixel, far off"),
    ],
)
def test_gate(box: list[float], raised: bool) -> None:
    boxes, embeddings = torch.tensor([box], dtype=torch.float32), torch.ones(1, 4)
    tracklets = memory(TRACKED[:1], embeddings)
    given = Conditioning(gate="overlap").classes(DETECTED, embeddings, boxes, tracklets)
    assert (given[0, 1] > 0.7) == raised
    assert raised or torch.equal(given, DETECTED)
    assert Conditioning().classes(DETECTED, embeddings, boxes, tracklets)[0, 1] > 0.7


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        pytest.param("none", [0.049, 0.073, 0.878], id="it is taken for one of them"),
        pytest.param("overlap", [0.05, 0.9, 0.05], id="gated, it is what the detector says"),
    ],
)
def test_a_new_object_among_twenty_of_another_class(gate: str, expected: list[float]) -> None:
    """None looks like it, but the null tracklet is outvoted."""
    detected, embeddings = torch.tensor([[0.05, 0.9, 0.05]]), torch.tensor([[1.0, 0.0]])
    others = memory(torch.tensor([[0.049, 0.001, 0.95]] * 20), torch.tensor([[0.0, 1.0]] * 20))
    rule = Conditioning(gate=gate)  # type: ignore[arg-type]
    given = rule.classes(detected, embeddings, torch.tensor([[90.0, 90.0, 99.0, 99.0]]), others)
    torch.testing.assert_close(given, torch.tensor([expected]), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        pytest.param("none", [0.0150, 0.7402, 0.2448], id="the other votes on its class"),
        pytest.param("overlap", [0.0031, 0.9938, 0.0031], id="gated, its own tracklet alone"),
    ],
)
def test_two_objects_that_embeddings_do_not_tell_apart(gate: str, expected: list[float]) -> None:
    """One of class 1 and, elsewhere, one of class 2, all of cosine 1: the mean of what each tracklet makes of it."""
    looks = torch.ones(2, 4)
    both = torch.tensor([[0.05, 0.9, 0.05], [0.05, 0.05, 0.9]])
    tracklets = memory(both, looks, torch.tensor([BOX, [90.0, 90.0, 99.0, 99.0]]))
    rule = Conditioning(gate=gate)  # type: ignore[arg-type]
    given = rule.classes(both[:1], looks[:1], torch.tensor([BOX]), tracklets)
    torch.testing.assert_close(given, torch.tensor([expected]), atol=5e-4, rtol=0)


def test_at_most_so_many_tracklets() -> None:
    """Of two that were seen last the longer one counts."""
    embeddings, boxes = torch.ones(1, 4), torch.tensor([BOX])
    tracklets = memory(TRACKED, embeddings.repeat(2, 1), lengths=[3, 5])
    one = Conditioning(max_tracklets=1).classes(DETECTED, embeddings, boxes, tracklets)
    alone = Conditioning().classes(DETECTED, embeddings, boxes, tracklets.where(torch.tensor([1])))
    torch.testing.assert_close(one, alone)
    none = Conditioning(max_tracklets=0).classes(DETECTED, embeddings, boxes, tracklets)
    torch.testing.assert_close(none, DETECTED, atol=0, rtol=0)


def test_before_the_first_frame() -> None:
    empty = no_tracklets(num_classes=2, stage_1_size=4, stage_2_size=4)
    boxes = torch.tensor([BOX])
    for rule in (Conditioning(), Conditioning(gate="overlap", max_tracklets=5)):
        given = rule.classes(DETECTED, torch.ones(1, 4), boxes, empty)
        torch.testing.assert_close(given, DETECTED, atol=0, rtol=0)
        assert rule.objectness(torch.zeros(0), torch.ones(0, 4), boxes[:0], empty).shape == (0,)


def test_gradients() -> None:
    detected, cosine, tracked = (tensor.double().requires_grad_() for tensor in random_case(3, 2))
    logits = torch.tensor([-2.0, 0.1, 3.0], dtype=torch.float64, requires_grad=True)

    def both(detected: Tensor, cosine: Tensor, tracked: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        weights = association_weights(cosine, 8, 0.3)
        return condition(detected, weights, tracked, 1), condition_objectness(logits, weights, tracked, 1)

    assert torch.autograd.gradcheck(both, (detected, cosine, tracked, logits))


def test_grow() -> None:
    boxes = torch.tensor([[10.0, 10, 30, 20]])
    torch.testing.assert_close(grow(boxes, 2), torch.tensor([[0.0, 5, 40, 25]]))
    torch.testing.assert_close(grow(boxes, 1), boxes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": -1}, r"alpha is -1; it must be between 0 and 6"),
        ({"alpha": 7}, r"alpha is 7; it must be between 0 and 6"),
        ({"gamma": -8}, r"gamma is -8; it must be finite and not negative"),
        ({"null": math.inf}, r"null is inf; it must be finite"),
        ({"gate": "iou"}, r"gate is 'iou'; it must be 'none' or 'overlap'"),
        ({"gate_scale": math.nan}, r"gate_scale is nan; it must be finite and not negative"),
        ({"max_tracklets": -1}, r"max_tracklets is -1; it must not be negative"),
    ],
)
def test_impossible_values_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Conditioning(**given)  # type: ignore[arg-type]
