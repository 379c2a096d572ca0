"""TCD and Plug & Play take torchvision's COCO weights for their detector, and say what of theirs is still untrained."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import ModuleType

import pytest
import torch

from models import plug_and_play, tracklet_rcnn
from models.parts import faster_rcnn

DETECTOR = "fasterrcnn_mobilenet_v3_large_320_fpn"


@pytest.mark.parametrize(("module", "own"), [(tracklet_rcnn, "embeddings"), (plug_and_play, "tracker")])
def test_coco_weights_are_loaded(
    module: ModuleType, own: str, tmp_path: Path, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names and shapes as published, random numbers in them, from a server in place of the real one.

    Files and other URLs are `test_detectors`' to try.
    """
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    architecture = faster_rcnn.ARCHITECTURES[DETECTOR]
    whole = architecture.builder(weights=None, weights_backbone=None).state_dict()
    tensors = {key: tensor for key, tensor in whole.items() if not key.endswith("num_batches_tracked")}
    torch.save(tensors, tmp_path / "new.pth")
    name = f"coco-{hashlib.sha256((tmp_path / 'new.pth').read_bytes()).hexdigest()[:8]}.pth"
    (tmp_path / "new.pth").rename(tmp_path / name)
    monkeypatch.setattr(architecture.weights.COCO_V1.value, "url", f"{served}/{name}")

    model = module.build(module.Settings(detector=DETECTOR, weights="default"))
    held = model.network.state_dict()
    assert all(torch.equal(held[key], tensor) for key, tensor in tensors.items())
    assert (len(model.classes), model.classes[0]) == (80, "person")
    assert model.weights.missing == model.untrained == (own,)
    assert model.weights.source == "COCO_V1"

    incomplete = {key: tensor for key, tensor in tensors.items() if key != "roi_heads.box_head.fc6.bias"}
    torch.save(incomplete, tmp_path / "incomplete.pth")
    with pytest.raises(ValueError, match=r"lack 'roi_heads.box_head.fc6.bias'"):
        module.build(module.Settings(detector=DETECTOR, weights=str(tmp_path / "incomplete.pth")))
