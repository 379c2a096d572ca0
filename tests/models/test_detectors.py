"""Two-stage detectors by name: which there are, whose weights they take, and what their classes are called."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.parts import detectors, faster_rcnn
from models.parts.faster_rcnn import FasterRcnn
from models.parts.small_two_stage import SmallTwoStage
from models.parts.weights import load_weights, write_weights

SMALLEST = "fasterrcnn_mobilenet_v3_large_320_fpn"
TORCHVISIONS = (SMALLEST, pytest.param("fasterrcnn_resnet50_fpn", marks=pytest.mark.slow))


@cache
def coco(name: str) -> Mapping[str, Tensor]:
    """A state dict as torchvision publishes it, with random numbers in it: 91 outputs, no counters."""
    network = faster_rcnn.ARCHITECTURES[name].builder(weights=None, weights_backbone=None)
    return {key: value for key, value in network.state_dict().items() if not key.endswith("num_batches_tracked")}


def holds(network: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    own = network.state_dict()
    return all(torch.equal(own[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("place", ["name", "http URL", "path"])
@pytest.mark.parametrize("name", TORCHVISIONS)
def test_weights_trained_on_coco_are_loaded(
    name: str, place: str, tmp_path: Path, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Into a detector that has parts which they know nothing of."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    tensors = dict(coco(name))
    torch.save(tensors, tmp_path / "new.pth")
    digest = hashlib.sha256((tmp_path / "new.pth").read_bytes()).hexdigest()
    file = f"coco-{digest[:8]}.pth"
    (tmp_path / "new.pth").rename(tmp_path / file)
    monkeypatch.setattr(faster_rcnn.ARCHITECTURES[name].weights.COCO_V1.value, "url", f"{served}/{file}")
    where = {"name": "default", "http URL": f"{served}/{file}", "path": str(tmp_path / file)}

    built = detectors.build(name, where[place], ())
    assert built.stored is not None
    embeddings = nn.Linear(8, 4)
    before = embeddings.weight.clone()
    report = load_weights(built.detector.network, built.stored, extras={"embeddings": embeddings})
    assert report.missing == ("embeddings",)
    assert report.num_tensors == len(tensors)
    assert report.digest == digest
    assert report.source == ("COCO_V1" if place == "name" else where[place])
    assert holds(built.detector.network, tensors)
    assert torch.equal(embeddings.weight, before)
    assert len(built.classes) == built.detector.num_classes == 80
    assert (tmp_path / "hub").exists() == (place == "name")


class Runs:
    """A pickle of it would run code."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (exec, ("raise AssertionError('code was run')",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda t: t.pop("roi_heads.box_head.fc6.bias"), "lack 'roi_heads.box_head.fc6.bias' of", id="one missing"
        ),
        pytest.param(
            lambda t: t.update({"embeddings.bias": torch.zeros(4)}), "lack 'embeddings.weight' of", id="extra in part"
        ),
        pytest.param(
            lambda t: t.update({"rpn.head.bbox_pred.bias": torch.zeros(7)}),
            r"hold 'rpn.head.bbox_pred.bias' of shape \(7,\), the network's is \(60,\)",
            id="another shape",
        ),
        pytest.param(lambda t: t.update({"mask.bias": torch.zeros(7)}), "hold 'mask.bias' that", id="one over"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    change: Callable[[dict[str, Tensor]], object], message: str, tmp_path: Path
) -> None:
    tensors = dict(coco(SMALLEST))
    change(tensors)
    torch.save(tensors, tmp_path / "coco.pth")
    built = detectors.build(SMALLEST, str(tmp_path / "coco.pth"), ())
    assert built.stored is not None
    with pytest.raises(ValueError, match=message):
        load_weights(built.detector.network, built.stored, extras={"embeddings": nn.Linear(8, 4)})


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"roi_heads": Runs()}, tmp_path / "coco.pth")
    with pytest.raises(ValueError, match="would run code, so they are refused"):
        detectors.build(SMALLEST, str(tmp_path / "coco.pth"), ())


@pytest.mark.parametrize("name", ["small", SMALLEST])
def test_classes_are_those_given_or_those_of_the_file(name: str, tmp_path: Path) -> None:
    first = detectors.build(name, "random", ("cat", "dog"))
    assert first.stored is None
    assert first.classes == ("cat", "dog")
    assert first.detector.num_classes == 2
    path = tmp_path / "own.safetensors"
    write_weights(path, first.detector.network, {"classes": json.dumps(first.classes)}, torch.float32)
    second = detectors.build(name, str(path), ())
    assert second.classes == ("cat", "dog")
    assert second.stored is not None
    load_weights(second.detector.network, second.stored)
    assert holds(second.detector.network, dict(first.detector.network.named_parameters()))
    assert detectors.build(name, str(path), ("cat", "dog")).classes == ("cat", "dog")
    with pytest.raises(
        ValueError, match=r"classes are dog, cat, and those of weights .*own.safetensors, in their order"
    ):
        detectors.build(name, str(path), ("dog", "cat"))


def test_the_small_ones_default_is_the_callers(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    write_weights(path, SmallTwoStage(1), {"classes": '["cat"]'}, torch.float32)
    built = detectors.build("small", "default", (), default=str(path))
    assert isinstance(built.detector, SmallTwoStage)
    assert built.classes == ("cat",)


def test_coco_has_80_classes_in_91_outputs() -> None:
    built = detectors.build(SMALLEST, "random", ())
    detector: Any = built.detector
    assert (len(built.classes), built.classes[0], built.classes[-1]) == (80, "person", "toothbrush")
    assert "N/A" not in built.classes
    assert detector.columns.tolist()[:12] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13]  # output 12 stands for nothing
    assert len(detector.others) == 11
    assert detector.network.roi_heads.box_predictor.cls_score.out_features == 91


def test_options_are_the_detectors() -> None:
    small = detectors.build("small", "random", ("cat",), options={"hidden": 32, "hardest": 4}).detector
    assert (small.hidden, small.hardest) == (32, 4)
    other = detectors.build(SMALLEST, "random", ("cat",), options={"hardest": 128}).detector
    assert isinstance(other, FasterRcnn)
    assert other.hardest == 128


@pytest.mark.parametrize("name", sorted(faster_rcnn.ARCHITECTURES))
def test_published_weights_are_known_by_name(name: str) -> None:
    assert name in detectors.NAMES
    urls = detectors.published(name)
    assert list(urls) == ["COCO_V1"]
    assert urls["COCO_V1"].startswith("https://")


def test_nobody_published_weights_of_the_others() -> None:
    assert all(detectors.published(name) == {} for name in detectors.BUILDERS)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param(
            ("smal", "random", ("cat",)), ValueError, r"'smal' is not known \(did you mean 'small'", id="name"
        ),
        pytest.param(("yolo", "random", ("cat",)), ValueError, "'yolo' is not known; detectors: small, ", id="unlike"),
        pytest.param(
            ("small", "random", ()), ValueError, "'random' do not say what their classes are", id="no classes"
        ),
        pytest.param(
            ("small", "default", ("cat",)), ValueError, "no default weights of detector 'small'", id="default"
        ),
        pytest.param(("small", "here.pth", ()), FileNotFoundError, "'here.pth' are neither a file nor", id="no file"),
        pytest.param((SMALLEST, "COCO_V2", ()), FileNotFoundError, "did you mean 'COCO_V1'", id="no such weights"),
    ],
)
def test_what_cannot_be_is_said(arguments: tuple[Any, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        detectors.build(*arguments)
    assert "\n" not in str(caught.value)
