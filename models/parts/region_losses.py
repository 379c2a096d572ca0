"""Losses of a second stage on proposals, on the hardest of them: the first two terms of D&T's objective.

"Detect to Track and Track to Detect", section 3.3, equation 1; online hard example mining: Shrivastava et al.,
"Training Region-based Object Detectors with Online Hard Example Mining", 2016, in R-FCN's form.

Legend: R boxes of all images, C foreground classes, M ground-truth boxes of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from models.parts.box_deltas import BoxDeltas
from models.parts.workers import over_workers

FOREGROUND_IOU = 0.5  # section 3.3
IGNORED_SHARE = 0.5  # a box that lies so far inside an ignored one teaches nothing
BACKGROUND, IGNORED = 0, -1


def assign(boxes: Tensor, target: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What boxes (R, 4) are: outputs (R,), 1 + class, BACKGROUND or IGNORED; and the truth nearest to each, (R,).

    target: boxes (M, 4), labels (M,) 0-based, and optionally ignore (M,). A box is what the truth of largest IoU is,
    from FOREGROUND_IOU on. Ignored truth is nobody's aim; the second result is 0 where there is no truth.
    """
    ignore = target.get("ignore", torch.zeros_like(target["labels"], dtype=torch.bool))
    outputs = torch.full((len(boxes),), BACKGROUND, device=boxes.device)
    nearest = torch.zeros_like(outputs)
    outputs[mostly_inside(boxes, target["boxes"][ignore])] = IGNORED
    if not ignore.all():
        iou, nearest = box_iou(boxes, target["boxes"]).masked_fill(ignore, -1).max(dim=1)
        found = iou >= FOREGROUND_IOU
        outputs[found] = target["labels"][nearest[found]] + 1
    return outputs, nearest


def mostly_inside(boxes: Tensor, others: Tensor) -> Tensor:
    """Which of the boxes (R, 4) lie by more than IGNORED_SHARE of their area inside one of others (I, 4): bool (R,)."""
    corners = torch.maximum(boxes[:, None, :2], others[:, :2]), torch.minimum(boxes[:, None, 2:], others[:, 2:])
    shared = (corners[1] - corners[0]).clamp(min=0).prod(dim=2)  # (R, I)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1, keepdim=True)
    return (shared > IGNORED_SHARE * area).any(dim=1)


def region_losses(
    logits: Tensor,
    deltas: Tensor,
    boxes: Sequence[Tensor],
    targets: Sequence[dict[str, Tensor]],
    coder: BoxDeltas,
    num_hardest: int | None = 128,
) -> dict[str, Tensor]:
    """The class (cross-entropy) and the box (smooth L1) loss of equation 1, each a scalar, 0 where nothing counts.

    logits: (R, C + 1), background first; deltas: (R, 4), or (R, 1, 4), of one box for all classes, or (R, C, 4), of one
    for each, of which that of the truth's class learns; by `coder`, from boxes: for each image (its R, 4), no part of
    the graph. targets: for each image as in `assign`.

    Only the `num_hardest` boxes of each image with the largest sum of both losses count; None: all. Mining removes no
    duplicates first, as R-FCN's does not: proposals have been through non-maximum suppression at .7, so doing it again
    would find none. The class loss is the mean over the boxes that count, the box loss over those of them that are
    foreground; the release divides the latter by 256 always.
    """
    assigned = [assign(one, target) for one, target in zip(boxes, targets, strict=True)]
    outputs = torch.cat([found for found, _ in assigned])
    foreground = outputs > BACKGROUND
    if deltas.ndim == 3:
        deltas = deltas[torch.arange(len(deltas)), (outputs - 1).clamp(0, deltas.shape[1] - 1)]  # (R, 4)
    wanted = torch.zeros_like(deltas)  # (R, 4)
    wanted[foreground] = torch.cat(
        [
            coder.encode(one[found > BACKGROUND], target["boxes"][nearest[found > BACKGROUND]])
            for one, target, (found, nearest) in zip(boxes, targets, assigned, strict=True)
        ]
    ).to(deltas.dtype)
    of_class = F.cross_entropy(logits, outputs, ignore_index=IGNORED, reduction="none")  # (R,)
    of_box = F.smooth_l1_loss(deltas, wanted, reduction="none").sum(dim=1) * foreground  # (R,)
    counts = outputs != IGNORED
    if num_hardest is not None:
        counts &= hardest(of_class + of_box, [len(one) for one in boxes], num_hardest)
    num_counted, num_foreground = over_workers(torch.stack([counts.sum(), (counts & foreground).sum()]))
    return {"class": of_class[counts].sum() / num_counted, "box": of_box[counts].sum() / num_foreground}


def hardest(losses: Tensor, sizes: Sequence[int], count: int) -> Tensor:
    """Which of the losses (R,) are among the `count` largest of their image: bool (R,). sizes: R of each image."""
    chosen = torch.zeros_like(losses, dtype=torch.bool)
    for mask, image in zip(chosen.split(list(sizes)), losses.detach().split(list(sizes)), strict=True):
        mask[image.topk(min(count, len(image))).indices] = True
    return chosen
