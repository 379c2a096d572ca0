"""Torchvision's region proposal network, opened up: what it says of every anchor, and its losses on that.

Ren et al., "Faster R-CNN", 2015, section 3.1. The module stays torchvision's own, with its own keys, so that published
weights fit.

Legend: N frames, A anchors, D channels, h x w cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers

from models.parts.box_deltas import BoxDeltas
from models.parts.region_losses import mostly_inside
from models.parts.two_stage import Dense
from models.parts.workers import over_workers

BACKGROUND, UNCOUNTED = 0.0, -1.0  # torchvision's labels of anchors; 1 is an object
BETA = 1 / 9  # torchvision's, where smooth L1 of a delta turns from a square into a line


def dense(rpn: RegionProposalNetwork, maps: Sequence[Tensor], size: tuple[int, int], multiple: int = 32) -> Dense:
    """The first stage on maps (N, D, h, w), one for each level of its anchors.

    size: (height, width) of the frames, which were padded to a multiple of `multiple` px: torchvision places anchors by
    how often a map's cells go into the padded frame.
    """
    padded = [side + -side % multiple for side in size]
    (anchors,) = rpn.anchor_generator(ImageList(torch.empty((1, 3, *padded), device="meta"), [size]), list(maps))
    head: Any = rpn.head
    towers = tuple(head.conv(one) for one in maps)
    logits = [head.cls_logits(tower) for tower in towers]  # (N, per cell, h, w)
    deltas = [head.bbox_pred(tower) for tower in towers]  # (N, per cell * 4, h, w)
    levels = tuple(one[0].numel() for one in logits)
    flat_logits, flat_deltas = concat_box_prediction_layers(logits, deltas)  # frame by frame, level by level
    return Dense(
        size=size,
        towers=towers,
        anchors=anchors,
        logits=flat_logits.view(len(maps[0]), -1).float(),  # (N, A)
        deltas=flat_deltas.view(len(maps[0]), -1, 4).float(),  # (N, A, 4)
        coder=BoxDeltas(),
        levels=levels,
    )


def anchor_losses(rpn: RegionProposalNetwork, dense: Dense, targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Torchvision's losses `objectness` and `anchor_box`, each a scalar, on anchors drawn by torch's global generator.

    Each is a sum over the drawn anchors by their number, which torchvision counts on each worker by itself; workers
    draw as many as one would, but others (see `workers`).

    targets: a frame's boxes (M, 4), and optionally ignore (M,). Truth to ignore is no aim, and background anchors that
    lie mostly inside it teach nothing. Both losses are 0 where no anchor counts.
    """
    aims, labels = [], []
    for target in targets:
        ignore = target.get("ignore", torch.zeros(len(target["boxes"]), dtype=torch.bool)).to(dense.anchors.device)
        own = [{"boxes": target["boxes"][~ignore]}]
        (label,), (aim,) = rpn.assign_targets_to_anchors([dense.anchors], own)  # (A,), (A, 4)
        label[mostly_inside(dense.anchors, target["boxes"][ignore]) & (label == BACKGROUND)] = UNCOUNTED
        labels.append(label)
        aims.append(dense.coder.encode(dense.anchors, aim))  # of use only where the label is 1
    positive, negative = (torch.stack(masks).bool() for masks in rpn.fg_bg_sampler(labels))  # (N, A)
    drawn, wanted = positive | negative, torch.stack(labels)
    num_drawn = over_workers(drawn.sum())
    objectness = F.binary_cross_entropy_with_logits(dense.logits[drawn], wanted[drawn], reduction="sum")
    anchor_box = F.smooth_l1_loss(dense.deltas[positive], torch.stack(aims)[positive], beta=BETA, reduction="sum")
    return {"objectness": objectness / num_drawn, "anchor_box": anchor_box / num_drawn}
