"""Torchvision's detectors opened up: our post-processing of their anchors is their own result."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import FrozenBatchNorm2d

from models import smot
from models.parts import single_shot
from models.parts.anchors import detections, has_area


def untrained(detector: str, classes: tuple[str, ...]) -> smot.Model:
    """A network of random weights whose outputs differ from anchor to anchor."""
    torch.manual_seed(2)
    model = smot.build(smot.Settings(detector=detector, weights="random", classes=classes))  # type: ignore[arg-type]
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_var.fill_(4.0)  # else random residuals grow without bound
    spread = {"retinanet_resnet50_fpn": 0.05, "retinanet_resnet50_fpn_v2": 0.05, "ssd300_vgg16": 0.002}
    with torch.no_grad():
        for name, parameter in model.network.head.named_parameters():  # type: ignore[union-attr]
            if parameter.ndim > 1:
                parameter.normal_(0, spread.get(detector, 0.02))
            elif "cls_logits" in name:
                parameter.fill_(-1.0)
                if "retinanet" in detector:  # theirs gives out its unused output 0 too
                    parameter[:: len(classes) + 1] = -20.0
    return model


@pytest.mark.parametrize(
    "detector",
    [
        "ssdlite320_mobilenet_v3_large",
        "retinanet_resnet50_fpn",
        "retinanet_resnet50_fpn_v2",
        pytest.param("ssd300_vgg16", marks=pytest.mark.slow),
    ],
)
def test_raw_outputs_post_processed_are_torchvisions_detections(detector: str) -> None:
    model = untrained(detector, ("a", "b", "c"))
    network, rules = model.network, model.rules
    height, width = model.resize.get("size", (88, 120))
    network.transform.min_size, network.transform.max_size = (height,), width  # type: ignore[union-attr]
    frames = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    with torch.no_grad():
        theirs = network(list(frames.float() / 255))
        said = model.detector.outputs(frames)
        ours = [
            detections(
                outputs,
                min_score=rules.min_score,
                max_iou=rules.nms_iou,
                top_k=rules.top_k,
                max_detections=rules.max_detections,
                per=rules.per,
            )
            for outputs in said
        ]
    for one, other, outputs in zip(ours, theirs, said, strict=True):
        kept = has_area(other["boxes"])
        assert kept.sum() > 50
        torch.testing.assert_close(one.boxes, other["boxes"][kept], atol=1e-4, rtol=0)
        torch.testing.assert_close(one.scores, other["scores"][kept], atol=1e-4, rtol=0)
        assert one.labels.tolist() == (other["labels"][kept] - 1).tolist()  # theirs count the background
        assert torch.equal(outputs.boxes[one.anchor], one.boxes)  # through levels, top k and suppression
        assert torch.equal(outputs.scores[one.anchor, one.labels], one.scores)


def test_coco_has_80_classes_and_91_outputs() -> None:
    detector, classes = single_shot.build("ssdlite320_mobilenet_v3_large")
    assert len(classes) == 80
    assert (classes[0], classes[-1]) == ("person", "toothbrush")
    assert "N/A" not in classes
    columns = detector.columns.tolist()
    assert columns[:12] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13]  # output 12 stands for nothing
    assert columns[-1] == 90


@pytest.mark.parametrize("name", sorted(set(single_shot.ARCHITECTURES) - {smot.PAPER}))
def test_published_weights_are_known_by_name(name: str) -> None:
    urls = single_shot.published(name)
    assert list(urls) == ["COCO_V1"]
    assert urls["COCO_V1"].startswith("https://")


@pytest.mark.parametrize("detector", ["ssdlite320_mobilenet_v3_large", "retinanet_resnet50_fpn"])
def test_losses_are_finite_and_reach_the_heads(detector: str) -> None:
    model = untrained(detector, ("a", "b")).train()
    height, width = model.resize.get("size", (64, 64))
    clips = [torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8) for _ in range(2)]
    box = torch.tensor([[5.0, 5, 60, 50], [20, 10, 40, 40]])
    here = {"boxes": box, "labels": torch.tensor([1, 0]), "ignore": torch.tensor([False, True])}
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
    losses = model.losses(clips, [[here], [empty]])
    total = sum(losses.values(), start=torch.zeros(()))
    total.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(total)
    assert all(parameter.grad is not None for parameter in model.network.head.parameters())  # type: ignore[union-attr]
