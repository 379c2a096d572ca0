"""Torchvision's region proposal network opened up: it says and loses what torchvision's own does."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from models.parts.anchors import MIN_SIDE
from models.parts.region_proposals import anchor_losses, dense
from models.parts.two_stage import Limits, proposals

SIZE, PADDED = (90, 120), (96, 128)
KEPT = Limits(per_level=60, proposal_iou=0.6, num_proposals=40)


def region_proposal_network(depth: int = 1) -> RegionProposalNetwork:
    """One of 8 channels, with 6 anchors a cell on each of two levels, whose answers differ from anchor to anchor."""
    torch.manual_seed(depth)
    anchors = AnchorGenerator(((16, 32), (48, 64)), ((0.5, 1.0, 2.0),) * 2)
    head = RPNHead(8, 6, conv_depth=depth)
    for layer in (*(block[0] for block in head.conv), head.cls_logits, head.bbox_pred):
        torch.nn.init.normal_(layer.weight, std=0.2)
    before = {"training": KEPT.per_level, "testing": KEPT.per_level}
    after = {"training": KEPT.num_proposals, "testing": KEPT.num_proposals}
    return RegionProposalNetwork(anchors, head, 0.5, 0.3, 64, 0.5, before, after, KEPT.proposal_iou)


def maps(count: int = 2) -> list[Tensor]:
    random = torch.Generator().manual_seed(count)
    return [torch.randn((count, 8, PADDED[0] // stride, PADDED[1] // stride), generator=random) for stride in (8, 16)]


def target(boxes: list[list[float]], ignore: list[bool] | None = None) -> dict[str, Tensor]:
    given = {"boxes": torch.tensor(boxes).reshape(-1, 4)}
    return given if ignore is None else {**given, "ignore": torch.tensor(ignore)}


OBJECTS: list[list[float]] = [[10.0, 12, 40, 50], [60, 20, 100, 70]]


@pytest.mark.parametrize(("depth", "least"), [(1, 0.0), (2, 0.0), (1, 0.8)])
@torch.no_grad()
def test_proposals_are_torchvisions(depth: int, least: float) -> None:
    rpn = region_proposal_network(depth).eval()
    rpn.score_thresh, rpn.min_size = least, MIN_SIDE  # its own is .001 px
    frames = ImageList(torch.zeros(2, 3, *PADDED), [SIZE] * 2)
    theirs, _ = rpn(frames, OrderedDict(enumerate(maps())))
    ours = proposals(dense(rpn, maps(), SIZE), None, replace(KEPT, min_objectness=least))
    for one, other in zip(ours, theirs, strict=True):
        assert len(one) == KEPT.num_proposals if least == 0 else 3 < len(one) < KEPT.num_proposals
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@torch.no_grad()
def test_rows_are_anchors_level_by_level_cell_by_cell() -> None:
    rpn = region_proposal_network()
    said = dense(rpn, maps(), SIZE)
    assert said.levels == (12 * 16 * 6, 6 * 8 * 6)
    assert len(said.anchors) == sum(said.levels)
    assert [tower.shape for tower in said.towers] == [(2, 8, 12, 16), (2, 8, 6, 8)]
    row = 12 * 16 * 6 + (3 * 8 + 5) * 6  # of the second level, the cell in row 3, column 5
    assert torch.equal(said.logits[1, row : row + 6], rpn.head.cls_logits(said.towers[1])[1, :, 3, 5])
    deltas = rpn.head.bbox_pred(said.towers[1])[1, :, 3, 5]
    assert torch.equal(said.deltas[1, row : row + 6], deltas.view(6, 4))
    centres = (said.anchors[row : row + 6, :2] + said.anchors[row : row + 6, 2:]) / 2
    assert torch.equal(centres, torch.tensor([[80.0, 48.0]]).expand(6, 2))  # torchvision's lie on the cells' corners


@torch.no_grad()
def test_anchors_are_placed_by_the_padded_frame() -> None:
    rpn = region_proposal_network()
    odd = [torch.zeros(1, 8, 5, 6), torch.zeros(1, 8, 3, 3)]  # of 35 x 48 px, padded to 40 x 48
    first = dense(rpn, odd, (35, 48), multiple=8)
    centres = (first.anchors[:, :2] + first.anchors[:, 2:])[: 5 * 6 * 6 : 6] / 2
    assert centres.max(dim=0).values.tolist() == [40, 32]


@pytest.mark.parametrize("boxes", [OBJECTS, OBJECTS[:1], []])
def test_losses_and_gradients_are_torchvisions(boxes: list[list[float]]) -> None:
    rpn = region_proposal_network().train()
    truth = [target(boxes), target(OBJECTS)]
    torch.manual_seed(4)
    _, theirs = rpn(ImageList(torch.zeros(2, 3, *PADDED), [SIZE] * 2), OrderedDict(enumerate(maps())), truth)
    (theirs["loss_objectness"] + theirs["loss_rpn_box_reg"]).backward()
    gradients = [parameter.grad for parameter in rpn.parameters()]
    rpn.zero_grad()
    torch.manual_seed(4)
    ours = anchor_losses(rpn, dense(rpn, maps(), SIZE), truth)
    sum(ours.values(), start=torch.zeros(())).backward()
    torch.testing.assert_close(ours["objectness"], theirs["loss_objectness"])
    torch.testing.assert_close(ours["anchor_box"], theirs["loss_rpn_box_reg"])
    assert ours["anchor_box"] > 0
    for parameter, gradient in zip(rpn.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_background_inside_ignored_truth_teaches_nothing() -> None:
    rpn = region_proposal_network()
    rpn.fg_bg_sampler.batch_size_per_image = 10**6  # all anchors count: nothing is drawn
    said = dense(rpn, maps(1), SIZE)
    said.logits.retain_grad()
    anchor_losses(rpn, said, [target([*OBJECTS, [50.0, 10, 118, 80]], [False, False, True])])["objectness"].backward()
    taught = said.logits.grad[0] != 0  # type: ignore[index]
    corners = said.anchors.clamp(min=torch.tensor([50.0, 10, 50, 10]), max=torch.tensor([118.0, 80, 118, 80]))
    area, within = ((box[:, 2:] - box[:, :2]).prod(dim=1) for box in (said.anchors, corners))
    (labels,), _ = rpn.assign_targets_to_anchors([said.anchors], [target(OBJECTS)])
    expected = (labels == 1) | ((labels == 0) & (within <= area / 2))
    assert torch.equal(taught, expected)
    assert ((labels == 1) & (within > area / 2)).any()  # the second object lies in the ignored box, and is learned
    assert ((labels == 0) & ~expected).sum() > 10


@pytest.mark.parametrize(
    "truth",
    [
        pytest.param([target([]), target([])], id="nothing anywhere"),
        pytest.param([target([[-999.0, -999, 999, 999]], [True])] * 2, id="all to be ignored"),
        pytest.param([target([[0.0, 0, 1, 1]]), target([])], id="one pixel"),
    ],
)
def test_losses_and_gradients_are_finite(truth: list[dict[str, Tensor]]) -> None:
    rpn = region_proposal_network()
    losses = anchor_losses(rpn, dense(rpn, maps(), SIZE), truth)
    sum(losses.values(), start=torch.zeros(())).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in rpn.parameters())
