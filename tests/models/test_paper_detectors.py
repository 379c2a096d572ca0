"""TCD's and Plug & Play's detectors at paper size: which maps their stages read, their anchors, limits and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from models.parts.deformable import DeformableConv2d
from models.parts.paper_detectors import BUILDERS, PaperDetector, RoiPool, hrnet_w32, resnext101_fpn_dcn, tcd
from models.parts.regression_tracker import merge_levels

SIZE = (100, 150)  # padded to 128 x 160
BOXES = torch.tensor([[10.0, 20.0, 90.0, 80.0], [0.0, 0.0, 150.0, 100.0], [70.0, 40.0, 71.0, 41.0]])


def some_frames(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, *SIZE), dtype=torch.uint8)


def sides_and_ratios(anchors: Tensor) -> set[tuple[float, float]]:
    """Of each anchor: sqrt(area) to 8 px, for torchvision rounds corners, and height / width to a half."""
    width, height = (anchors[:, 2:] - anchors[:, :2]).T
    sides, ratios = (width * height).sqrt() / 8, 2 * height / width
    return {(8.0 * round(float(s)), round(float(r)) / 2) for s, r in zip(sides, ratios, strict=True)}


@pytest.fixture(scope="module")
def resnet() -> PaperDetector:
    torch.manual_seed(0)
    return tcd("resnet50", 3).eval()


@pytest.fixture(scope="module")
def hrnet() -> PaperDetector:
    torch.manual_seed(1)
    return hrnet_w32(3).eval()


@torch.no_grad()
def test_tcd_proposes_on_conv4_and_classifies_on_conv5(resnet: PaperDetector) -> None:
    frames = some_frames(2)
    features = resnet.features(frames)
    network: Any = resnet.network
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = F.pad((frames / 255 - mean[:, None, None]) / std[:, None, None], (0, 10, 0, 28))
    maps = network.backbone.backbone(x)
    assert maps["conv4"].shape == (2, 1024, 8, 10)
    assert maps["conv5"].shape == (2, 2048, 8, 10)

    dense = resnet.dense(features, SIZE)
    convolution = network.rpn.head.conv[0][0]
    tower = F.relu(F.conv2d(maps["conv4"], convolution.weight, convolution.bias, padding=1))
    torch.testing.assert_close(dense.towers[0], tower, rtol=1e-4, atol=1e-4)
    assert dense.logits.shape == (2, 8 * 10 * 12)

    regions = resnet.head(features, [BOXES, BOXES[:1]], SIZE)[0]
    reduced = F.relu(F.conv2d(maps["conv5"], *network.backbone.reduce.parameters()))
    torch.testing.assert_close(regions.pooled, pooled_by_loops(reduced[0], BOXES, 7, 16), rtol=1e-4, atol=1e-4)
    assert regions.embeddings.shape == (3, 1024)
    assert regions.logits.shape == (3, 4)
    assert regions.deltas.shape == (3, 1, 4)  # one box for all classes
    assert regions.refined(SIZE).shape == (3, 3, 4)


@pytest.mark.parametrize(
    ("benchmark", "sides", "per_cell"), [("vid", (64, 128, 256, 512), 12), ("mot15", (32, 64, 128, 256, 512), 15)]
)
def test_tcds_numbers_are_those_of_appendix_a1(benchmark: Any, sides: tuple[int, ...], per_cell: int) -> None:
    detector = tcd("resnet50", 3, benchmark=benchmark, pooling="align")
    limits, training = detector.limits, detector.training_limits
    with torch.no_grad():
        dense = detector.dense((torch.zeros(1, 1024, 2, 2), torch.zeros(1, 256, 2, 2)), (32, 32))
    assert detector.per_cell == per_cell
    assert sides_and_ratios(dense.anchors) == {(side, ratio) for side in sides for ratio in (0.5, 1, 2)}
    assert limits.proposal_iou == training.proposal_iou == 0.7
    short, proposals, iou = {
        "vid": (600, (300, 300), 0.3),
        "mot15": (800, (512, 2000), 0.5),
    }[benchmark]
    assert detector.resize["short_side"] == short
    assert (training.num_proposals, limits.num_proposals) == proposals
    assert limits.max_iou == iou
    assert detector.hardest == 128


def test_tcd_learns_in_all_its_parts_and_its_offsets_too() -> None:
    torch.manual_seed(2)
    detector = tcd("resnet50", 3, deformable=True).train()
    assert sum(isinstance(module, DeformableConv2d) for module in detector.modules()) == 4 + 6 + 3
    none = torch.zeros(0, dtype=torch.long)
    targets = [
        {"boxes": torch.tensor([[20.0, 20.0, 90.0, 80.0]]), "labels": torch.tensor([2])},
        {"boxes": torch.zeros(0, 4), "labels": none},
    ]
    losses = detector.losses(some_frames(2), targets)
    assert losses.keys() == {"objectness", "anchor_box", "class", "box"}
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()  # type: ignore[union-attr]
    still = {
        name
        for name, parameter in detector.network.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    }
    assert still == set()


@torch.no_grad()
def test_hrnets_resolutions_become_the_one_map_of_both_stages_and_those_of_the_tracker(hrnet: PaperDetector) -> None:
    features = hrnet.features(some_frames(1))
    levels = hrnet.tracking_levels(features)
    assert [level.shape[1:] for level in levels] == [(32, 32, 40), (64, 16, 20), (128, 8, 10), (256, 4, 5)]
    merged = merge_levels(levels, hrnet.tracking_level)
    assert merged.shape == (1, 480, 16, 20)
    network: Any = hrnet.network
    read = F.relu(F.conv2d(merged, *network.backbone.reduce.parameters()))

    dense = hrnet.dense(features, SIZE)
    convolution = network.rpn.head.conv[0][0]
    tower = F.relu(F.conv2d(read, convolution.weight, convolution.bias, padding=1))
    torch.testing.assert_close(dense.towers[0], tower, rtol=1e-4, atol=1e-4)
    assert dense.logits.shape == (1, 16 * 20 * 15)
    assert sides_and_ratios(dense.anchors) == {
        (side, ratio) for side in (32, 64, 128, 256, 512) for ratio in (0.5, 1, 2)
    }

    (regions,) = hrnet.head(features, [BOXES], SIZE)
    torch.testing.assert_close(regions.pooled, roi_align(read, [BOXES], 7, 1 / 8, 2), rtol=1e-4, atol=1e-4)
    assert regions.embeddings.shape == (3, 1024)
    assert regions.deltas.shape == (3, 3, 4)


@pytest.mark.slow
def test_hrnet_takes_weights_of_imagenet_without_their_classifier(hrnet: PaperDetector, tmp_path: Path) -> None:
    stored = timm.create_model("hrnet_w32").state_dict()
    torch.save(stored, tmp_path / "hrnet.pth")
    network: Any = hrnet_w32(3, backbone_weights=str(tmp_path / "hrnet.pth")).network
    loaded = network.backbone.body.state_dict()
    assert len(loaded) > 1000
    assert all(torch.equal(tensor, stored[key]) for key, tensor in loaded.items())


def pooled_by_loops(features: Tensor, boxes: Tensor, bins: int, stride: int) -> Tensor:
    """RoI pooling as Fast R-CNN has it: corners rounded to cells, which both belong to the region; bins of whole cells,
    floor to ceil; the largest in each."""
    channels, rows, columns = features.shape
    pooled = torch.zeros(len(boxes), channels, bins, bins)
    for number, box in enumerate(boxes):
        left, top, right, bottom = ((box / stride + 0.5).floor().long()).tolist()
        width, height = max(right - left + 1, 1), max(bottom - top + 1, 1)
        for i in range(bins):
            for j in range(bins):
                y = slice(min(top + i * height // bins, rows), min(top - (-(i + 1) * height // bins), rows))
                x = slice(min(left + j * width // bins, columns), min(left - (-(j + 1) * width // bins), columns))
                cells = features[:, y, x].flatten(1)
                if cells.shape[1]:
                    pooled[number, :, i, j] = cells.max(dim=1).values
    return pooled


def test_roi_pooling_is_fast_rcnns() -> None:
    torch.manual_seed(3)
    features = torch.randn(2, 4, 8, 10)
    boxes = [BOXES, BOXES.flip(0)[:2]]
    pooled = RoiPool("conv5", (7, 7), stride=16)({"conv5": features}, boxes, [(128, 160)] * 2)
    expected = [pooled_by_loops(one, frame, 7, 16) for one, frame in zip(features, boxes, strict=True)]
    torch.testing.assert_close(pooled, torch.cat(expected))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "anchors"),
    [
        ("resnet50", {}, 38 * 64 * 12),
        ("resnet101", {}, 38 * 64 * 12),
        ("resnet101", {"deformable": True}, 38 * 64 * 12),
        ("resnet101", {"benchmark": "mot15"}, 38 * 64 * 15),
        ("hrnet_w32", {}, 76 * 128 * 15),
        ("resnext101_fpn_dcn", {}, (152 * 256 + 76 * 128 + 38 * 64 + 19 * 32 + 10 * 16) * 3),
        ("resnext101_fpn_dcn", {"offset_groups": 32}, (152 * 256 + 76 * 128 + 38 * 64 + 19 * 32 + 10 * 16) * 3),
    ],
    ids=str,
)
@torch.inference_mode()
def test_a_frame_of_paper_size_goes_through(name: str, options: dict[str, Any], anchors: int) -> None:
    torch.manual_seed(4)
    size = (600, 1000)
    detector = BUILDERS[name](30, **options).eval()
    features = detector.features(torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8))
    dense = detector.dense(features, size)
    assert dense.logits.shape == (1, anchors)
    (proposals,) = detector.proposals(dense)
    assert len(proposals) == detector.limits.num_proposals
    (regions,) = detector.head(features, [proposals], size)
    assert regions.pooled.shape == (len(proposals), 256, 7, 7)
    assert regions.logits.shape == (len(proposals), 31)
    assert regions.deltas.shape == (len(proposals), 1 if name.startswith("resnet") else 30, 4)
    assert regions.logits.isfinite().all()
    found, probabilities = detector.detected(regions, size)
    assert found.boxes.shape == (len(probabilities), 4)


@pytest.mark.slow
@torch.no_grad()
def test_resnext_has_a_pyramid_of_deformable_stages_whose_middle_the_tracker_reads() -> None:
    torch.manual_seed(5)
    detector = resnext101_fpn_dcn(3, offset_groups=32).eval()
    deformed = [module for module in detector.modules() if isinstance(module, DeformableConv2d)]
    assert len(deformed) == 4 + 23 + 3  # conv3 to conv5
    assert all(module.groups == 32 and module.num_masks == 9 * 32 for module in deformed)
    features = detector.features(some_frames(1))
    levels = detector.tracking_levels(features)
    assert [level.shape[1:] for level in levels] == [(256, 16, 20), (256, 8, 10), (256, 4, 5)]  # P3, P4, P5
    assert merge_levels(levels, detector.tracking_level).shape == (1, 768, 8, 10)
    dense = detector.dense(features, SIZE)
    for side, of_level in zip((32, 64, 128, 256, 512), torch.split(dense.anchors, list(dense.levels)), strict=True):
        assert sides_and_ratios(of_level) == {(side, ratio) for ratio in (0.5, 1, 2)}
