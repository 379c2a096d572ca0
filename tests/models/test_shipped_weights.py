"""The weights in models/weights: they load by default, say what they are, and find what they were trained for."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.ops import box_iou

from catalogs import synthetic
from models import smot
from models.parts.weights import SHIPPED, read_weights


def test_every_weight_file_has_its_card_and_says_how_it_was_made() -> None:
    files = sorted(SHIPPED.glob("*.safetensors"))
    assert files
    for file in files:
        assert file.with_suffix(".md").read_text().startswith(f"# {file.stem}\n")
        assert file.stat().st_size < 10e6
        assert {"model", "classes", "training", "command", "data", "commit"} <= read_weights(file.stem).metadata.keys()


def test_the_default_model_sees_and_follows_a_test_video() -> None:
    model = smot.build(smot.Settings())
    assert model.classes == synthetic.CLASSES
    frames, truth = synthetic.render("test", 0)
    clip = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))
    (rows,), _ = model.detect([clip], [None])
    found, wanted = 0, 0
    for box in truth.to_pylist():
        if box["ignore"] or "burst" in box["flags"]:
            continue
        row = rows[box["frame_index"]]
        likely = (row["labels"] == box["class_id"]) & (row["scores"] > 0.3)
        corners = torch.tensor([[box[side] for side in ("x1", "y1", "x2", "y2")]])
        wanted += 1
        found += bool((box_iou(corners, row["boxes"][likely]) > 0.5).any())
    assert wanted > 30
    assert found > 0.8 * wanted
    lengths = torch.bincount(torch.cat([row["tracklet_id"][row["tracklet_id"] >= 0] for row in rows]))
    assert lengths.max() > len(rows) / 3  # a tracklet that lives
