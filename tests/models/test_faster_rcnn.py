"""Torchvision's Faster R-CNN opened up: its steps, one after the other, find what torchvision finds; and it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models._api import WeightsEnum
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign, box_iou

from models.parts import faster_rcnn
from models.parts.anchors import MIN_SIDE
from models.parts.faster_rcnn import ARCHITECTURES, FasterRcnn
from models.parts.small_detector import convolution
from models.parts.two_stage import Dense, Features
from models.parts.weights import load_weights

SIZE = (96, 128)
SMALLEST = "fasterrcnn_mobilenet_v3_large_320_fpn"


def frames(count: int = 2, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))


def target(boxes: list[list[float]], labels: list[int], ignore: list[bool] | None = None) -> dict[str, Tensor]:
    given = {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.long)}
    return given if ignore is None else {**given, "ignore": torch.tensor(ignore, dtype=torch.bool)}


def scatter(network: Any) -> None:
    """Gives batch norms the statistics of some frames, and the last layers such weights that their outputs differ."""

    def settle(module: nn.Module, inputs: tuple[Tensor]) -> None:
        module.running_mean.copy_(inputs[0].mean(dim=(0, 2, 3)))  # type: ignore[union-attr,operator]
        module.running_var.copy_(inputs[0].var(dim=(0, 2, 3)) + 0.01)  # type: ignore[union-attr,operator]

    def spread(layer: nn.Module, _: object, outputs: Tensor) -> Tensor:
        scale = wanted[layer] / outputs.std()
        layer.weight.mul_(scale)  # type: ignore[union-attr,operator]
        return outputs * scale

    predictor, head = network.roi_heads.box_predictor, network.rpn.head
    wanted = {head.cls_logits: 2.0, head.bbox_pred: 0.3, predictor.cls_score: 2.0, predictor.bbox_pred: 2.0}
    norms = [module for module in network.modules() if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d))]
    hooks = [norm.register_forward_pre_hook(settle) for norm in norms]
    hooks += [layer.register_forward_hook(spread) for layer in wanted]
    with torch.no_grad():
        for layer in wanted:
            layer.bias.zero_()
        network.eval()(list(frames() / 255))
    for hook in hooks:
        hook.remove()


def scattered(name: str = SMALLEST, num_outputs: int = 4, columns: tuple[int, ...] = (1, 2, 3)) -> FasterRcnn:
    """An untrained detector whose anchors and regions differ in what they say; few of them, to be quick."""
    torch.manual_seed(2)
    detector = faster_rcnn.build(name, num_outputs, columns).eval()
    network: Any = detector.network
    network.transform.min_size, network.transform.max_size = (SIZE[0],), SIZE[1]
    network.rpn._post_nms_top_n["testing"] = 60
    network.rpn.score_thresh = 0.9
    network.rpn.min_size = MIN_SIDE  # its own, .001 px, proposes slivers that we call no boxes
    scatter(network)
    return FasterRcnn(network, columns, detector.rpn_maps, detector.resize).eval()


class TinyBody(nn.Module):
    """Maps of stride 8 and 16, of 16 channels, and one that only others read."""

    out_channels = 16

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(convolution(3, 8, 2), convolution(8, 16, 2), convolution(16, 16, 2))
        self.coarse = convolution(16, 16, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.body(x)
        return {"stem": x[:, :2], "fine": fine, "coarse": self.coarse(fine)}


def tiny(hardest: int | None = None) -> FasterRcnn:
    """Torchvision's class around next to nothing: what trains in a moment."""
    torch.manual_seed(2)
    network = detection.FasterRCNN(
        TinyBody(),
        rpn_anchor_generator=AnchorGenerator(((32,), (64,)), ((0.5, 1.0, 2.0),) * 2),
        box_roi_pool=MultiScaleRoIAlign(["fine", "coarse"], 5, 2),
        box_head=TwoMLPHead(16 * 5 * 5, 64),
        box_predictor=FastRCNNPredictor(64, 4),
        rpn_pre_nms_top_n_train=100,
        rpn_post_nms_top_n_train=40,
        rpn_post_nms_top_n_test=40,
        min_size=SIZE[0],
        max_size=SIZE[1],
    )
    return FasterRcnn(network, (1, 2, 3), ("fine", "coarse"), {}, hardest=hardest)


@pytest.fixture(scope="module")
def smallest() -> FasterRcnn:
    """For tests that change nothing of it."""
    return scattered()


def first_stage(detector: FasterRcnn, of: Tensor) -> tuple[Features, Dense]:
    features = detector.features(of)
    return features, detector.dense(features, (of.shape[-2], of.shape[-1]))


@pytest.mark.parametrize(
    "name",
    [
        SMALLEST,
        "fasterrcnn_resnet50_fpn",
        pytest.param("fasterrcnn_mobilenet_v3_large_fpn", marks=pytest.mark.slow),
        pytest.param("fasterrcnn_resnet50_fpn_v2", marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_the_steps_find_what_torchvision_finds(name: str) -> None:
    detector = scattered(name)
    theirs = detector.network(list(frames() / 255))
    features, dense = first_stage(detector, frames())
    boxes = detector.proposals(dense)
    assert name != SMALLEST or 20 < len(boxes[0]) < 60  # its score_thresh counts
    for regions, other in zip(detector.head(features, boxes, SIZE), theirs, strict=True):
        found, class_scores = detector.detected(regions, SIZE)
        assert len(other["boxes"]) > 20
        assert other["labels"].unique().tolist() == [1, 2, 3]
        torch.testing.assert_close(found.boxes, other["boxes"], atol=1e-3, rtol=0)
        torch.testing.assert_close(found.scores, other["scores"], atol=1e-4, rtol=0)
        assert found.labels.tolist() == (other["labels"] - 1).tolist()  # theirs count the background
        assert torch.equal(class_scores.gather(1, found.labels[:, None] + 1)[:, 0], found.scores)


@pytest.mark.parametrize(
    "name",
    [
        SMALLEST,
        pytest.param("fasterrcnn_mobilenet_v3_large_fpn", marks=pytest.mark.slow),
        pytest.param("fasterrcnn_resnet50_fpn", marks=pytest.mark.slow),
        pytest.param("fasterrcnn_resnet50_fpn_v2", marks=pytest.mark.slow),
    ],
)
def test_it_is_the_network_that_torchvision_builds_for_its_published_weights(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch norms frozen where theirs are, adding what theirs add; tensors of the same names and shapes."""
    architecture = ARCHITECTURES[name]
    stored = architecture.builder(weights=None, weights_backbone=None).state_dict()
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: stored)
    theirs: Any = architecture.builder(weights=architecture.weights.COCO_V1)
    torch.save(theirs.state_dict(), tmp_path / "coco.pth")
    detector = faster_rcnn.build(name, 91, range(1, 91))
    load_weights(detector.network, str(tmp_path / "coco.pth"))
    ours: Any = detector.network
    assert torch.equal(
        ours.roi_heads.box_predictor.cls_score.weight, stored["roi_heads.box_predictor.cls_score.weight"]
    )
    norms = [
        [(key, type(m), m.eps) for key, m in net.named_modules() if isinstance(m, (nn.BatchNorm2d, FrozenBatchNorm2d))]
        for net in (ours, theirs)
    ]
    assert norms[0] == norms[1]
    assert len(norms[0]) > 40
    transform = theirs.transform
    assert detector.resize == {"short_side": transform.min_size[0], "long_side": transform.max_size}


@torch.no_grad()
def test_outputs_that_stand_for_nothing_are_background() -> None:
    detector = scattered(num_outputs=6, columns=(4, 1, 3))
    features, dense = first_stage(detector, frames(1))
    heads: Any = detector.network.roi_heads
    (regions,) = detector.head(features, detector.proposals(dense), SIZE)
    outputs, deltas = heads.box_predictor(regions.embeddings)
    own = outputs.softmax(dim=1)
    ours = regions.logits.softmax(dim=1)
    torch.testing.assert_close(ours[:, 1:], own[:, [4, 1, 3]])
    torch.testing.assert_close(ours[:, 0], own[:, [0, 2, 5]].sum(dim=1))
    assert torch.equal(regions.deltas, deltas.view(-1, 6, 4)[:, [4, 1, 3]])
    decoded = heads.box_coder.decode(deltas, [regions.boxes])[:, [4, 1, 3]]
    torch.testing.assert_close(regions.refined((9999, 9999)), decoded.clamp(min=0), atol=1e-3, rtol=1e-5)


@torch.no_grad()
def test_one_box_for_all_classes() -> None:
    detector = scattered()
    predictor: Any = detector.network.roi_heads.box_predictor  # type: ignore[union-attr]
    predictor.bbox_pred = nn.Linear(detector.hidden, 4)
    features, dense = first_stage(detector, frames())
    regions = detector.head(features, detector.proposals(dense), SIZE)[0]
    assert torch.equal(regions.deltas[:, 0], predictor.bbox_pred(regions.embeddings))
    assert regions.refined(SIZE).shape == (len(regions.boxes), 3, 4)
    assert torch.equal(regions.refined(SIZE)[:, 0], regions.refined(SIZE)[:, 2])


@pytest.mark.parametrize("size", [(96, 128), (61, 83), (33, 40), (1, 1)])
@torch.no_grad()
def test_shapes_are_as_promised_for_frames_of_any_size(size: tuple[int, int], smallest: FasterRcnn) -> None:
    features, dense = first_stage(smallest, frames(2, size))
    assert [tower.shape[1] for tower in dense.towers] == [smallest.tower_channels] * 3
    cells = sum(tower.shape[2] * tower.shape[3] for tower in dense.towers)
    assert dense.anchors.shape == (cells * smallest.per_cell, 4) == (sum(dense.levels), 4)
    boxes = smallest.proposals(dense)
    for regions, given in zip(smallest.head(features, boxes, size), boxes, strict=True):
        assert regions.boxes is given
        assert regions.pooled.shape == (len(given), smallest.pooled_channels, *[smallest.pooled_side] * 2)
        assert regions.embeddings.shape == (len(given), smallest.hidden)
        assert (regions.embeddings >= 0).all()
        assert regions.logits.shape == (len(given), 4)
        assert regions.deltas.shape == (len(given), 3, 4)
        found, _ = smallest.detected(regions, size)
        assert len(found.boxes) == 0 or found.boxes.amax(dim=0)[2:].tolist() <= [size[1], size[0]]


@torch.no_grad()
def test_what_is_pooled_depends_on_no_earlier_frame(smallest: FasterRcnn) -> None:
    """Torchvision settles the scale of each map by the first frame that it sees."""
    boxes = [torch.tensor([[10.0, 10, 60, 70]])] * 2
    features = smallest.features(frames())
    before = smallest.head(features, boxes, SIZE)[1]
    pool: Any = smallest.network.roi_heads.box_roi_pool  # type: ignore[union-attr]
    pool.scales = None  # as if it had seen none
    smallest.head(smallest.features(frames(1, (1, 64))), [torch.tensor([[0.0, 0, 9, 1]])], (1, 64))
    assert torch.equal(before.pooled, smallest.head(features, boxes, SIZE)[1].pooled)


@torch.no_grad()
def test_a_batch_says_what_its_frames_say_one_by_one_and_frames_may_have_no_boxes(smallest: FasterRcnn) -> None:
    features, dense = first_stage(smallest, frames(3))
    boxes = smallest.proposals(dense)
    boxes[1] = boxes[1][:0]
    together = smallest.head(features, boxes, SIZE)
    for frame, given, of_batch in zip(frames(3), boxes, together, strict=True):
        (alone,) = smallest.head(smallest.features(frame[None]), [given], SIZE)
        for name in ("pooled", "embeddings", "logits", "deltas"):
            torch.testing.assert_close(getattr(of_batch, name), getattr(alone, name), atol=1e-3, rtol=1e-4)
    assert len(smallest.detected(together[1], SIZE)[0].boxes) == 0


TRUTH = [target([[10, 12, 60, 70], [70, 20, 120, 90]], [2, 0], [False, True]), target([], [])]


@torch.no_grad()
def test_regions_to_learn_on_are_drawn_or_all_of_them() -> None:
    detector = tiny(hardest=8)
    _, dense = first_stage(detector, frames())
    first, second = detector.training_boxes(dense, TRUTH)
    assert [len(first), len(second)] == [41, 40]
    assert first[-1].tolist() == [10, 12, 60, 70]
    detector.hardest = None
    heads: Any = detector.network.roi_heads
    heads.fg_bg_sampler.batch_size_per_image = 16
    first, second = detector.training_boxes(dense, TRUTH)
    assert len(second) == 16
    found = box_iou(first, TRUTH[0]["boxes"][:1])[:, 0] >= 0.5
    assert 0 < found.sum() <= 4  # a quarter at most
    assert box_iou(first[~found], TRUTH[0]["boxes"]).amax() < 1
    everything = target([[-999, -999, 999, 999]], [0], [True])
    assert [len(one) for one in detector.training_boxes(dense, [everything] * 2)] == [0, 0]


@pytest.mark.parametrize("hardest", [None, 4])
@pytest.mark.parametrize(
    "truth",
    [
        pytest.param(TRUTH, id="something, to be ignored, and nothing"),
        pytest.param([target([], []), target([], [])], id="nothing anywhere"),
        pytest.param([target([[-999, -999, 999, 999]], [0], [True])] * 2, id="all to be ignored"),
        pytest.param([target([[30, 20, 31, 21]], [1])] * 2, id="one pixel"),
    ],
)
def test_losses_and_gradients_are_finite(truth: list[dict[str, Tensor]], hardest: int | None) -> None:
    detector = tiny(hardest)
    losses = detector.losses(frames(), truth)
    sum(losses.values(), start=torch.zeros(())).backward()
    assert set(losses) == {"objectness", "anchor_box", "class", "box"}
    assert all(loss.isfinite() for loss in losses.values())
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in detector.parameters())


def test_every_layer_learns() -> None:
    """Of the names in a published file none is left out."""
    detector = scattered().train()
    detector.hardest = 16
    detector.training_limits = replace(detector.training_limits, num_proposals=8)
    sum(detector.losses(frames(), [TRUTH[0]] * 2).values(), start=torch.zeros(())).backward()
    for name, parameter in detector.network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_only_the_hardest_regions_of_each_frame_teach() -> None:
    detector = tiny(hardest=4)
    features, dense = first_stage(detector, frames())
    regions = detector.head(features, detector.training_boxes(dense, [TRUTH[0]] * 2), SIZE)
    for one in regions:
        one.logits.retain_grad()
    detector.region_losses(regions, [TRUTH[0]] * 2)["class"].backward()
    assert [int(one.logits.grad.any(dim=1).sum()) for one in regions] == [4, 4]  # type: ignore[union-attr]


def test_it_learns_two_frames_by_heart() -> None:
    detector = tiny(hardest=16).train()
    pictures = torch.randint(90, 110, (2, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pictures[0, :, 16:64, 16:64] = 250
    pictures[1, :, 32:80, 64:112] = torch.tensor([20, 200, 20], dtype=torch.uint8)[:, None, None]
    truth = [target([[16, 16, 64, 64]], [0]), target([[64, 32, 112, 80]], [2])]
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3)
    for _ in range(80):
        total = sum(detector.losses(pictures, truth).values(), start=torch.zeros(()))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    with torch.no_grad():  # two frames are too few for running statistics; those of the batch are right here
        features, dense = first_stage(detector, pictures)
        regions = detector.head(features, detector.proposals(dense), SIZE)
    for one, wanted in zip(regions, truth, strict=True):
        found, _ = detector.detected(one, SIZE)
        assert found.labels[0] == wanted["labels"][0]
        assert found.scores[0] > 0.6
        assert box_iou(found.boxes[:1], wanted["boxes"]) > 0.6
