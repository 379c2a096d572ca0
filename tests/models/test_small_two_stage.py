"""The small two-stage detector: each of its steps by itself, against torchvision's or plain loops; and it learns."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import box_iou, generalized_box_iou

from models.parts.anchors import has_area
from models.parts.small_detector import DELTAS, IGNORED, assign
from models.parts.small_two_stage import LIMITS, SmallTwoStage, anchor_losses, region_losses
from models.parts.two_stage import Dense, Features, Limits, Regions, detected, proposals

SIZE = (64, 96)


def target(boxes: list[list[float]], labels: list[int], ignore: list[bool] | None = None) -> dict[str, Tensor]:
    given = {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.long)}
    return given if ignore is None else {**given, "ignore": torch.tensor(ignore, dtype=torch.bool)}


def scattered(num_classes: int = 2) -> SmallTwoStage:
    """An untrained network whose anchors and regions differ in what they say."""
    torch.manual_seed(3)
    network = SmallTwoStage(num_classes).eval()
    with torch.no_grad():
        for layer in (network.objectness, network.anchor_deltas, network.classes, network.deltas):
            layer.weight.normal_(0, 0.2)
    return network


def pictures(count: int, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))


def first_stage(network: SmallTwoStage, frames: Tensor) -> tuple[Features, Dense]:
    features = network.features(frames)
    return features, network.dense(features, (frames.shape[-2], frames.shape[-1]))


def some_regions(count: int, num_classes: int = 2) -> Regions:
    """Regions of boxes near (20, 20, 44, 44), with classes and deltas at random."""
    random = torch.Generator().manual_seed(count)
    boxes = torch.tensor([20.0, 20, 44, 44]) + torch.randn((count, 4), generator=random) * 8
    return Regions(
        boxes=boxes,
        pooled=torch.zeros(count, 4, 4, 4),
        embeddings=torch.zeros(count, 8),
        logits=torch.randn((count, num_classes + 1), generator=random),
        deltas=torch.randn((count, 1, 4), generator=random) * 0.1,
        coder=DELTAS,
    )


@pytest.mark.parametrize("size", [(64, 96), (61, 83), (1, 1)])
@torch.no_grad()
def test_frames_of_any_size_are_padded_to_whole_cells(size: tuple[int, int]) -> None:
    network = SmallTwoStage(2).eval()
    features, dense = first_stage(network, pictures(2, size))
    rows, columns = (-(-side // 16) * 2 for side in size)
    assert features[0].shape == (2, 64, rows * 2, columns * 2)
    assert features[1].shape == dense.towers[0].shape == (2, 64, rows, columns)
    assert dense.anchors.shape == (rows * columns * 6, 4)
    assert dense.logits.shape == (2, len(dense.anchors))
    assert dense.deltas.shape == (2, len(dense.anchors), 4)
    for boxes, regions in zip(
        proposals(dense, None, LIMITS), network.head(features, proposals(dense, None, LIMITS), SIZE), strict=True
    ):
        assert boxes.min() >= 0
        assert boxes[:, 2].max() <= size[1]
        assert boxes[:, 3].max() <= size[0]
        assert regions.pooled.shape == (len(boxes), 64, 4, 4)
        assert regions.embeddings.shape == (len(boxes), 256)
        assert regions.logits.shape == (len(boxes), 3)
        assert regions.refined(size).shape == (len(boxes), 2, 4)


@torch.no_grad()
def test_logits_and_deltas_are_those_of_the_anchor_in_their_row() -> None:
    """A change of one cell of the features moves what is said of anchors around it, and of no others."""
    network = scattered()
    features = torch.zeros(2, 64, 12, 16)
    features[1, :, 9, 3] = 5.0  # the cell about (28, 76)
    dense = network.dense((features,), (96, 128))
    centres = (dense.anchors[:, :2] + dense.anchors[:, 2:]) / 2
    near = ((centres - torch.tensor([28.0, 76.0])).abs() <= 8).all(dim=1)  # the tower sees 3 x 3 cells
    for said in (dense.logits[..., None], dense.deltas):
        moved = (said[0] - said[1]).abs().sum(dim=1) > 0
        assert torch.equal(moved, near)
    # and in a cell, an anchor is one channel of the outputs
    cell = (9 * 16 + 3) * 6
    assert torch.equal(dense.logits[1, cell : cell + 6], network.objectness(dense.towers[0])[1, :, 9, 3])
    sides = dense.anchors[cell : cell + 6, 2:] - dense.anchors[cell : cell + 6, :2]
    torch.testing.assert_close(sides.prod(dim=1).sqrt(), torch.tensor([24.0, 24, 24, 40, 40, 40]))
    assert torch.equal(centres[cell : cell + 6], torch.tensor([[28.0, 76.0]]).expand(6, 2))


@torch.no_grad()
def test_regions_are_pooled_from_the_fine_map_at_their_place() -> None:
    """A change of one cell of the fine map moves what is pooled of a region around it, and of no other."""
    network = scattered()
    features = network.features(pictures(2))
    features[0][1] = features[0][0]
    features[1][1] = features[1][0]
    features[0][1, :, 5, 10] += 5.0  # the cell about (42, 22)
    boxes = [torch.tensor([[26.0, 6, 58, 38], [60, 30, 90, 60]])] * 2
    first, second = (regions.pooled for regions in network.head(features, boxes, SIZE))
    moved = (first - second).abs().sum(dim=1) > 0  # (2, 4, 4)
    # the cell and its neighbours, since `to_pool` sees 3 x 3 cells, and those that bilinear samples reach from
    assert moved[0].tolist() == [[False] * 4, [False, True, True, False], [False, True, True, False], [False] * 4]
    assert not moved[1].any()


@torch.no_grad()
def test_proposals_are_those_of_torchvision() -> None:
    _features, dense = first_stage(scattered(), pictures(3))
    counts = {"training": 100, "testing": 100}
    kept = {"training": 30, "testing": 30}
    rpn = RegionProposalNetwork(AnchorGenerator(), RPNHead(64, 3), 0.5, 0.3, 8, 0.5, counts, kept, 0.6)
    rpn.min_size = 0.01
    decoded = rpn.box_coder.decode(dense.deltas.reshape(-1, 4), [dense.anchors] * 3).reshape(3, -1, 4)
    theirs, _ = rpn.filter_proposals(decoded, dense.logits, [SIZE] * 3, [len(dense.anchors)])
    for one, other in zip(
        proposals(dense, None, Limits(per_level=100, proposal_iou=0.6, num_proposals=30)), theirs, strict=True
    ):
        assert len(one) > 10
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@torch.no_grad()
def test_other_logits_choose_other_proposals() -> None:
    _features, dense = first_stage(scattered(), pictures(2))
    conditioned = dense.logits.clone()
    inside = torch.nonzero(((dense.anchors[:, :2] > 8) & (dense.anchors[:, 2:] < 56)).all(dim=1)).squeeze(1)
    chosen = inside[7]
    conditioned[1, chosen] = 20.0
    before, after, same = (proposals(dense, logits, LIMITS) for logits in (None, conditioned, dense.logits))
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])
    torch.testing.assert_close(after[1][0], DELTAS.decode(dense.anchors[chosen], dense.deltas[1, chosen]))
    assert all(torch.equal(one, other) for one, other in zip(before, same, strict=True))


@torch.no_grad()
def test_where_nothing_is_proposed_nothing_is_found() -> None:
    network = scattered()
    features, dense = first_stage(network, pictures(2))
    gone = torch.tensor([-9.0, 0, 0, 0]).expand_as(dense.deltas[:1])  # all moved out of the first frame
    dense = replace(dense, deltas=torch.cat([gone, dense.deltas[1:]]))
    nothing, something = network.head(features, proposals(dense, None, LIMITS), SIZE)
    assert nothing.boxes.shape == (0, 4)
    assert nothing.embeddings.shape == (0, 256)
    found, class_scores = detected(nothing, SIZE, None, LIMITS)
    assert found.boxes.shape == (0, 4)
    assert class_scores.shape == (0, 3)
    alone = network.head(tuple(level[1:] for level in features), proposals(dense, None, LIMITS)[1:], SIZE)[0]
    torch.testing.assert_close(something.logits, alone.logits)
    assert [len(regions.boxes) for regions in network.head(features, [torch.zeros(0, 4)] * 2, SIZE)] == [0, 0]


@torch.no_grad()
def test_a_batch_says_what_its_frames_say_one_by_one() -> None:
    network, frames = scattered(), pictures(3)
    features, dense = first_stage(network, frames)
    together = network.head(features, proposals(dense, None, LIMITS), SIZE)
    for frame, of_batch in zip(frames, together, strict=True):
        features, dense = first_stage(network, frame[None])
        alone = network.head(features, proposals(dense, None, LIMITS), SIZE)[0]
        for name in ("boxes", "pooled", "embeddings", "logits", "deltas"):
            torch.testing.assert_close(getattr(of_batch, name), getattr(alone, name), atol=1e-3, rtol=1e-4)


@torch.no_grad()
def test_the_head_says_of_given_boxes_what_it_says_of_its_own() -> None:
    network = scattered()
    features, dense = first_stage(network, pictures(2))
    own = network.head(features, proposals(dense, None, LIMITS), SIZE)
    mixed = [regions.boxes.flip(0)[: 5 + i] for i, regions in enumerate(own)]
    for given, regions in zip(network.head(features, mixed, SIZE), own, strict=True):
        count = len(given.boxes)
        for name in ("pooled", "embeddings", "logits", "deltas"):
            torch.testing.assert_close(getattr(given, name), getattr(regions, name).flip(0)[:count])


@pytest.mark.parametrize(
    "box",
    [
        pytest.param([30.0, 20.0, 31.0, 21.0], id="one pixel"),
        pytest.param([30.0, 20.0, 30.02, 20.02], id="far less"),
        pytest.param([-40.0, -30.0, -10.0, -5.0], id="outside"),
        pytest.param([-500.0, -500.0, 900.0, 900.0], id="larger than the frame"),
    ],
)
def test_odd_boxes_have_finite_answers_and_gradients(box: list[float]) -> None:
    network = scattered()
    features = network.features(pictures(1))
    regions = network.head(features, [torch.tensor([box])], SIZE)[0]
    assert all(getattr(regions, name).isfinite().all() for name in ("embeddings", "logits", "deltas"))
    losses = region_losses([regions], [target([box], [1])])
    sum(losses.values(), start=torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in network.parameters())


def test_detections_keep_the_whole_distribution_of_their_region() -> None:
    """Two regions on one object and one elsewhere; suppression is by class, so each may be found as one of two."""
    boxes = torch.tensor([[10.0, 10, 30, 30], [11, 10, 31, 30], [50, 10, 70, 30]])
    nothing = torch.zeros(3, 0)
    regions = Regions(boxes, nothing, nothing, torch.zeros(3, 3), torch.zeros(3, 1, 4), DELTAS)
    probabilities = torch.tensor([[0.1, 0.6, 0.3], [0.2, 0.7, 0.1], [0.995, 0.001, 0.004]])
    found, class_scores = detected(regions, SIZE, probabilities, LIMITS)
    assert found.anchor.tolist() == [1, 0]
    assert found.labels.tolist() == [0, 1]
    torch.testing.assert_close(found.scores, torch.tensor([0.7, 0.3]))
    torch.testing.assert_close(found.boxes, boxes[[1, 0]])
    assert torch.equal(class_scores, probabilities[[1, 0]])


def test_without_other_probabilities_they_are_the_softmax_and_boxes_move_by_the_deltas() -> None:
    regions = some_regions(12)
    found, class_scores = detected(regions, SIZE, None, LIMITS)
    assert len(found.scores) > 2
    softmax = regions.logits.softmax(dim=1)
    assert torch.equal(class_scores, softmax[found.anchor])
    assert torch.equal(found.scores, softmax[found.anchor, found.labels + 1])
    assert torch.equal(found.boxes, regions.refined(SIZE)[found.anchor, found.labels])
    moved = DELTAS.decode(regions.boxes, regions.deltas[:, 0]).clamp(min=0)
    torch.testing.assert_close(regions.refined((999, 999)), moved[:, None].expand(-1, 2, -1))


@torch.no_grad()
def test_anchor_losses_are_sums_over_those_that_count() -> None:
    _features, dense = first_stage(scattered(), pictures(2))
    truths = [target([[8, 10, 32, 34], [40, 5, 90, 60]], [0, 1], [False, True]), target([], [])]
    found, focal, away = 0, 0.0, 0.0
    for logits, deltas, truth in zip(dense.logits, dense.deltas, truths, strict=True):
        matched = assign(dense.anchors, truth)
        for i in torch.nonzero(matched != IGNORED).squeeze(1):
            finds = bool(matched[i] >= 0)
            right = float((logits[i] if finds else -logits[i]).sigmoid())
            focal -= 0.5 * (1 - right) ** 1.5 * math.log(right)
            if finds:
                box = DELTAS.decode(dense.anchors[i], deltas[i])[None]
                away += 2 - 2 * float(generalized_box_iou(box, truth["boxes"][matched[i]][None]))
                found += 1
    assert found > 1
    losses = anchor_losses(dense, truths)
    assert losses["objectness"].item() == pytest.approx(focal / found, rel=1e-4)
    assert losses["anchor_box"].item() == pytest.approx(away / found, rel=1e-4)


def naive_region_losses(regions: Regions, truth: dict[str, Tensor]) -> list[tuple[float, float, bool]]:
    """Of each region that counts: its class loss, its box loss, whether it finds a box."""
    losses = []
    overlap = box_iou(regions.boxes, truth["boxes"])
    for i in range(len(regions.boxes)):
        best = int(overlap[i].argmax())
        finds = bool(overlap[i, best] >= 0.5)
        label = int(truth["labels"][best]) + 1 if finds else 0
        box = DELTAS.decode(regions.boxes[i : i + 1], regions.deltas[i : i + 1, 0])
        away = 1 - float(generalized_box_iou(box, truth["boxes"][best : best + 1]))
        losses.append((-float(regions.logits[i].log_softmax(0)[label]), 2 * away if finds else 0.0, finds))
    return losses


@pytest.mark.parametrize("hardest", [None, 6, 1000])
def test_region_losses_are_sums_over_those_that_count(hardest: int | None) -> None:
    frames = [some_regions(20), some_regions(15)]
    truths = [target([[20, 20, 44, 44]], [1]), target([[18, 22, 40, 44], [60, 60, 90, 90]], [0, 1])]
    of_frames = [naive_region_losses(regions, truth) for regions, truth in zip(frames, truths, strict=True)]
    assert 5 < sum(finds for rows in of_frames for *_, finds in rows) < 30
    naive = [row for rows in of_frames for row in sorted(rows, key=lambda row: -row[0] - row[1])[:hardest]]
    losses = region_losses(frames, truths, hardest)
    found = max(1, sum(finds for *_, finds in naive))
    assert losses["class"].item() == pytest.approx(sum(row[0] for row in naive) / found, rel=1e-5)
    assert losses["box"].item() == pytest.approx(sum(row[1] for row in naive) / found, rel=1e-5)


def test_true_boxes_are_learned_on_but_for_those_to_ignore() -> None:
    network = scattered()
    _, dense = first_stage(network, pictures(2))
    truth = [target([[1, 2, 30, 40], [5, 5, 9, 9]], [0, 1], [False, True]), target([], [])]
    first, second = network.training_boxes(dense, truth)
    assert [len(first), len(second)] == [LIMITS.num_proposals + 1, LIMITS.num_proposals]
    assert first[-1].tolist() == [1, 2, 30, 40]
    assert not first.requires_grad
    assert has_area(first).all()


@pytest.mark.parametrize("hardest", [None, 4])
@pytest.mark.parametrize(
    "truth",
    [
        pytest.param([target([], []), target([], [])], id="nothing anywhere"),
        pytest.param([target([], []), target([[8, 10, 32, 34]], [1])], id="nothing in one frame"),
        pytest.param([target([[0, 0, 96, 64]], [0], [True])] * 2, id="all to be ignored"),
        pytest.param([target([[30, 20, 31, 21]], [1])] * 2, id="one pixel"),
    ],
)
def test_losses_and_gradients_are_finite(truth: list[dict[str, Tensor]], hardest: int | None) -> None:
    torch.manual_seed(0)
    network = SmallTwoStage(2, hardest=hardest)
    losses = network.losses(pictures(2), truth)
    sum(losses.values(), start=torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    assert set(losses) == {"objectness", "anchor_box", "class", "box"}
    assert all(loss.isfinite() for loss in losses.values())
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in network.parameters())


def test_every_layer_learns_and_nothing_is_left_to_chance() -> None:
    torch.manual_seed(0)
    network = SmallTwoStage(2)
    truth = [target([[8, 10, 32, 34]], [1])] * 2
    first, second = (network.losses(pictures(2), truth) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    sum(first.values(), start=torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_it_learns_two_frames_by_heart() -> None:
    torch.manual_seed(1)
    frames = torch.randint(90, 110, (2, 3, *SIZE), dtype=torch.uint8)
    frames[0, :, 10:34, 8:32] = 250
    frames[0, :, 30:50, 50:90] = torch.tensor([20, 200, 20], dtype=torch.uint8)[:, None, None]
    frames[1, :, 20:44, 60:84] = 250
    truth = [target([[8, 10, 32, 34], [50, 30, 90, 50]], [0, 1]), target([[60, 20, 84, 44]], [0])]
    network = SmallTwoStage(2, widths=(8, 16, 32, 64), channels=32, hidden=64).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    totals = []
    for _ in range(200):
        total = sum(network.losses(frames, truth).values(), start=torch.zeros(()))
        optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        totals.append(total.item())
    assert sum(totals[-5:]) < sum(totals[:5]) / 5
    # Two frames are too few for running statistics; those of the batch are right here.
    with torch.no_grad():
        features, dense = first_stage(network, frames)
        for regions, wanted in zip(network.head(features, proposals(dense, None, LIMITS), SIZE), truth, strict=True):
            found, class_scores = detected(regions, SIZE, None, replace(LIMITS, min_score=0.5, max_iou=0.4))
            assert sorted(found.labels.tolist()) == sorted(wanted["labels"].tolist())
            order = found.labels.argsort()
            assert box_iou(found.boxes[order], wanted["boxes"]).diagonal().min() > 0.7
            torch.testing.assert_close(class_scores.sum(dim=1), torch.ones(len(order)))
