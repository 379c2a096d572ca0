"""SMOT's own detector: its levels and anchors, torchvision's SSD on it, its body's weights, and that it learns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import ResNet34_Weights, resnet34
from torchvision.ops import box_iou

from models import smot
from models.parts import redetection
from models.parts.anchors import has_area
from models.parts.resnet34_ssd import STRIDES
from models.parts.weights import write_weights

CLASSES = ("face", "person")


def built(side: int | None = 64, **settings: object) -> smot.Model:
    torch.manual_seed(0)
    return smot.build(
        smot.Settings(detector=smot.PAPER, weights="random", classes=CLASSES, input_side=side, **settings)  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def model() -> smot.Model:
    return built()


def frames(count: int, side: int = 64) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_anchors_are_four_strides_wide_and_for_faces_and_persons(model: smot.Model) -> None:
    with torch.no_grad():
        outputs = model.detector.outputs(frames(1))[0]
    cells = [math.ceil(64 / stride) for stride in STRIDES]
    assert outputs.levels == tuple(4 * count**2 for count in cells)
    first = torch.tensor([0, *outputs.levels[:-1]]).cumsum(0)  # of each level the anchors of its first cell
    for stride, start in zip(STRIDES, first.tolist(), strict=True):
        corners = outputs.anchors[start : start + 4]
        width, height = (corners[:, 2:] - corners[:, :2]).T
        torch.testing.assert_close(corners[:, :2], -corners[:, 2:])  # around the cell's first pixel
        torch.testing.assert_close(height / width, torch.tensor([1.0, 1, 2, 2]), atol=0.2, rtol=0)  # whole pixels
        areas = 16 * stride**2 * torch.tensor([1.0, 2, 1, 2])
        torch.testing.assert_close(width * height, areas, atol=0, rtol=0.13)
        if stride < 64:  # of larger ones there is but one cell
            following = outputs.anchors[start + 4] - corners[0]
            assert following.tolist() == [stride, 0, stride, 0]
    centres = (outputs.anchors[:, :2] + outputs.anchors[:, 2:]) / 2
    assert ((centres >= 0) & (centres < 64)).all()


def test_scores_are_a_softmax_over_background_and_classes(model: smot.Model) -> None:
    with torch.no_grad():
        heads, _, _ = model.detector(frames(1))
        scores = model.detector.outputs(frames(1))[0].scores
    assert heads["cls_logits"].shape[-1] == 3
    torch.testing.assert_close(scores, heads["cls_logits"][0].softmax(dim=-1)[:, 1:])


def test_raw_outputs_post_processed_are_what_torchvisions_class_finds() -> None:
    model, seen = built(), frames(2)
    network: Any = model.network
    network.transform.fixed_size = (64, 64)
    network.detections_per_img = model.rules.max_detections
    for parameter in network.head.parameters():
        torch.nn.init.normal_(parameter, 0, 0.002)  # else hundreds are as sure as can be
    with torch.no_grad():
        theirs = network(list(seen.float() / 255))
        ours = [redetection.detect(outputs, model.rules) for outputs in model.detector.outputs(seen)]
    for one, other in zip(ours, theirs, strict=True):
        kept = has_area(other["boxes"])
        assert kept.sum() > 20
        torch.testing.assert_close(one.boxes, other["boxes"][kept], atol=1e-4, rtol=0)
        torch.testing.assert_close(one.scores, other["scores"][kept], atol=1e-5, rtol=0)
        assert one.labels.tolist() == (other["labels"][kept] - 1).tolist()


def test_its_rules_are_the_papers() -> None:
    rules = smot.rules(smot.Settings(detector=smot.PAPER))
    assert (rules.sigma_det, rules.sigma_track) == (0.9, 0.4)  # section 6.1
    assert (rules.track_nms_iou, rules.max_new_iou) == (0.6, 0.3)
    assert (rules.num_anchors, rules.weighting, rules.looks) == (10, "iou", 1)  # SMOT's lines of Tables 1 to 3
    assert smot.rules(smot.Settings(detector=smot.PAPER, num_anchors=1, weighting="max")).num_anchors == 1


@pytest.mark.parametrize(("side", "size"), [(None, 1024), (1024, 1024), (768, 768), (512, 512), (256, 256)])
def test_input_sizes_of_table_4(side: int | None, size: int, model: smot.Model) -> None:
    settings = smot.Settings(detector=smot.PAPER, weights="random", classes=CLASSES, input_side=side)
    assert smot.Model(settings, model.detector, CLASSES).resize == {"size": (size, size)}


def truth(*boxes: list[float]) -> dict[str, Tensor]:
    return {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.arange(len(boxes))}


def test_losses_reach_every_part_and_nothing_is_lost_where_there_is_nothing() -> None:
    learner = built().train()
    losses = learner.losses([frames(2)], [[truth([5, 5, 25, 25], [30, 10, 50, 58]), truth()]])
    assert losses.keys() == {"bbox_regression", "classification"}
    total: Any = sum(losses.values(), start=torch.zeros(()))
    total.backward()
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad and not name.endswith("bias"):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    trained = {
        name.split(".")[3] for name, one in learner.named_parameters() if one.grad is not None and one.grad.any()
    }
    assert trained == {"body", "fpn", "classification_head", "regression_head"}
    empty = learner.losses([frames(1)], [[truth()]])
    assert [loss.item() for loss in empty.values()] == [0, 0]  # no positives, so no negatives for them


def test_its_body_begins_with_published_weights(tmp_path: Path, served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and shapes as published, random numbers in them, from a server in place of the real one."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    tensors = resnet34(weights=None).state_dict()
    torch.save(tensors, tmp_path / "body.pth")
    monkeypatch.setattr(ResNet34_Weights.IMAGENET1K_V1.value, "url", f"{served}/body.pth")
    for source in ("IMAGENET1K_V1", str(tmp_path / "body.pth")):
        held = built(backbone_weights=source).network.state_dict()
        for name, tensor in tensors.items():
            if not name.startswith("fc.") and not name.endswith("num_batches_tracked"):
                assert torch.equal(held[f"backbone.body.{name}"], tensor), name
    with pytest.raises(FileNotFoundError, match="did you mean 'IMAGENET1K_V1'"):
        built(backbone_weights="IMAGENET1K_V2")


def test_a_file_of_its_weights_is_loaded_and_says_its_classes(model: smot.Model, tmp_path: Path) -> None:
    path = tmp_path / "smot.safetensors"
    write_weights(path, model.network, {"classes": '["face", "person"]'}, torch.float32)
    loaded = smot.build(smot.Settings(detector=smot.PAPER, weights=str(path), input_side=64))
    assert loaded.classes == CLASSES
    held = loaded.network.state_dict()
    assert all(torch.equal(held[name], tensor) for name, tensor in model.network.state_dict().items())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {},
            r"no default weights of smot\.detector 'resnet34_fpn_ssd'; give smot\.weights a path or a URL, or 'random'",
        ),
        ({"weights": "random"}, "do not say what their classes are called"),
        ({"weights": "COCO_V1"}, "weights 'COCO_V1' are neither a file nor a known name"),
    ],
)
def test_what_cannot_be_built_is_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        smot.build(smot.Settings(detector=smot.PAPER, **given))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"backbone_weights": "IMAGENET1K_V1", "weights": "random"},
            r"smot\.backbone_weights is 'IMAGENET1K_V1'; it is for smot\.detector 'resnet34_fpn_ssd'",
        ),
        ({"backbone_weights": "x", "detector": smot.PAPER}, r"smot\.weights 'random', not for .* and 'default'"),
        ({"input_side": 31}, r"smot\.input_side is 31; it must be at least 32"),
        ({"input_side": 256, "detector": "ssd300_vgg16"}, r"smot\.input_side is 256; it must be at least 300"),
    ],
)
def test_impossible_settings_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        smot.Settings(**given)  # type: ignore[arg-type]


@pytest.mark.slow
def test_it_learns_two_frames_by_heart_and_follows_what_moved() -> None:
    def shown(by: int) -> tuple[Tensor, dict[str, Tensor]]:
        frame = torch.randint(60, 120, (3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        frame[:, 10:30, 8 + by : 28 + by] = torch.tensor([220, 40, 40], dtype=torch.uint8)[:, None, None]
        frame[:, 40:84, 50 + by : 72 + by] = torch.tensor([30, 200, 220], dtype=torch.uint8)[:, None, None]
        return frame, truth([8.0 + by, 10, 28 + by, 30], [50.0 + by, 40, 72 + by, 84])

    (first, before), (second, after) = shown(0), shown(4)
    clip, learner = torch.stack([first, second]), built(96)
    learner.train()
    optimizer = torch.optim.Adam([one for one in learner.parameters() if one.requires_grad], 3e-4)
    for _ in range(60):
        loss: Any = sum(learner.losses([clip], [[before, after]]).values(), start=torch.zeros(()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    (rows,), _ = learner.eval().detect([clip], [None])
    for row, wanted in zip(rows, (before, after), strict=True):
        sure = row["scores"] > 0.9
        assert sorted(row["labels"][sure].tolist()) == [0, 1]
        overlap = box_iou(wanted["boxes"], row["boxes"][sure][row["labels"][sure].argsort()]).diag()
        assert (overlap > 0.75).all()
    assert rows[1]["tracked"].any()


@pytest.mark.slow
def test_at_the_papers_size() -> None:
    (rows,), _ = built(None).detect([frames(1, 1024)], [None])
    assert len(rows) == 1
    with torch.no_grad():
        outputs = built(None).detector.outputs(frames(1, 1024))[0]
    assert len(outputs.anchors) == 4 * (256**2 + 128**2 + 64**2 + 32**2 + 16**2 + 8**2)
