"""Tracking by re-detection: the known objects are looked for by the anchors nearest to where they are expected.

"SMOT: Single-Shot Multi Object Tracking" (Li et al., 2020), section 4. Knows what a single-shot detector says of every
anchor, and nothing of the detector. What the paper does not say is from its released code, or ours, and marked so.

Legend: A anchors, C classes, K tracking anchors of an object, M tracklets, N detections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from models.parts import anchors
from models.parts.anchors import AnchorOutputs, PlainDetections, has_area
from models.parts.flow import move_boxes

Weighting = Literal["max", "avg", "iou", "iou_score"]


@dataclass(frozen=True)
class Rules:
    """What the tracker goes by; `models.smot.Settings` says what each is."""

    sigma_det: float
    sigma_track: float
    min_score: float
    nms_iou: float
    top_k: int
    max_detections: int
    per: Literal["class", "level"]  # what `top_k` counts; see `anchors.detections`
    num_anchors: int = 1
    weighting: Weighting = "max"
    across_classes: bool = False
    looks: int = 1
    min_anchor_iou: float = 0.1
    track_nms_iou: float = 0.6
    max_new_iou: float = 0.3


@dataclass(frozen=True)
class Tracks:
    """The active tracklets after a frame.

    boxes: (M, 4) in the pixels given; labels, ids: int64 (M,); evidence: (M, C), class scores summed since birth;
    ages: int64 (M,), frames since birth; next_id: of the next tracklet to be born.
    """

    boxes: Tensor
    labels: Tensor
    ids: Tensor
    evidence: Tensor
    ages: Tensor
    next_id: int

    def where(self, keep: Tensor) -> Tracks:
        """Those that a mask or an index chooses."""
        return self._each(lambda tensor: tensor[keep])

    def to(self, device: torch.device | str) -> Tracks:
        """The same, on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Tracks:
        boxes, labels, ids, evidence, ages = map(change, (self.boxes, self.labels, self.ids, self.evidence, self.ages))
        return Tracks(boxes, labels, ids, evidence, ages, self.next_id)


def no_tracks(num_classes: int) -> Tracks:
    """What there is before the first frame."""
    none = torch.zeros(0, dtype=torch.long)
    return Tracks(torch.zeros(0, 4), none, none, torch.zeros(0, num_classes), none, 0)


def detect(outputs: AnchorOutputs, rules: Rules) -> PlainDetections:
    """What the detector finds in a frame by itself, best first."""
    return anchors.detections(
        outputs,
        min_score=rules.min_score,
        max_iou=rules.nms_iou,
        top_k=rules.top_k,
        max_detections=rules.max_detections,
        per=rules.per,
    )


def step(
    outputs: AnchorOutputs, tracks: Tracks, rules: Rules, flow: Tensor | None = None
) -> tuple[dict[str, Tensor], Tracks]:
    """One frame (section 4.1, workflow): follows the tracklets, starts new ones, gives out the rest as detections.

    flow: (2, H, W), from the last frame to this one; None where all is expected to stay (H is the identity). The rows
    of the active tracklets come first, in the order of the second result.
    """
    tracks, scores = follow(outputs, tracks, rules, flow)
    plain = detect(outputs, rules)
    overlap = box_iou(plain.boxes, tracks.boxes)  # (N, M)
    same_class = overlap * (plain.labels[:, None] == tracks.labels)
    nearest = largest(overlap if rules.across_classes else same_class)
    born = (plain.scores > rules.sigma_det) & (nearest <= rules.max_new_iou)
    new = plain.where(born)
    # A re-detection stands for the detections of its class that it covers, so it has the score of the best of them:
    # the mean of K anchors alone would rank it lower and cost .03 mAP on synthetic-v1's validation split.
    covers = same_class > rules.nms_iou
    scores = torch.maximum(scores, largest((covers * plain.scores[:, None]).T))
    rest = plain.where(~born & ~covers.any(dim=1))

    after = Tracks(
        boxes=torch.cat([tracks.boxes, new.boxes]),
        labels=torch.cat([tracks.labels, new.labels]),
        ids=torch.cat([tracks.ids, torch.arange(len(new.boxes), device=scores.device) + tracks.next_id]),
        evidence=torch.cat([tracks.evidence, outputs.scores[new.anchor]]),
        ages=torch.cat([tracks.ages, torch.zeros_like(new.labels)]),
        next_id=tracks.next_id + len(new.boxes),
    )
    count = len(after.boxes) + len(rest.boxes)
    row = {
        "boxes": torch.cat([after.boxes, rest.boxes]),
        "scores": torch.cat([scores, new.scores, rest.scores]),
        "labels": torch.cat([after.labels, rest.labels]),
        "tracklet_id": torch.cat([after.ids, torch.full_like(rest.labels, -1)]),
        "tracked": torch.arange(count, device=scores.device) < len(tracks.boxes),
    }
    return row, after


def follow(outputs: AnchorOutputs, tracks: Tracks, rules: Rules, flow: Tensor | None = None) -> tuple[Tracks, Tensor]:
    """The tracklets that are re-detected, oldest first, where they are now, and their scores (M,).

    The others are released and never looked for again.
    """
    boxes, class_scores, found = redetect(outputs, predict(tracks.boxes, flow), rules)
    for _ in range(rules.looks - 1):
        boxes, class_scores, again = redetect(outputs, boxes, rules)
        found &= again
    evidence = tracks.evidence + class_scores
    labels = evidence.argmax(dim=1) if rules.across_classes else tracks.labels
    scores = class_scores.gather(1, labels[:, None]).squeeze(1)
    # What a tracklet lives by, and with which others it may be mistaken for one object.
    life = class_scores.sum(dim=1) if rules.across_classes else scores
    group = torch.zeros_like(labels) if rules.across_classes else labels
    alive = torch.nonzero(found & (life >= rules.sigma_track) & has_area(boxes)).squeeze(1)
    alive = alive[batched_nms(boxes[alive], life[alive], group[alive], rules.track_nms_iou)].sort().values
    return Tracks(boxes, labels, tracks.ids, evidence, tracks.ages + 1, tracks.next_id).where(alive), scores[alive]


def predict(boxes: Tensor, flow: Tensor | None) -> Tensor:
    """H: where the boxes (M, 4) of the last frame are expected in this one.

    Where they were, or with flow (2, H, W) moved by its mean in them (equation 2); their sides stay.
    """
    return boxes if flow is None else move_boxes(boxes, flow)


def redetect(outputs: AnchorOutputs, expected: Tensor, rules: Rules) -> tuple[Tensor, Tensor, Tensor]:
    """Equation 1: boxes (M, 4) and scores (M, C) by the weighted mean of the K anchors nearest to each expected box.

    expected: (M, 4). The third result says of each (M,) whether an anchor was near enough to be asked.
    """
    count = 1 if rules.weighting == "max" else rules.num_anchors
    iou, index = box_iou(expected, outputs.anchors).topk(min(count, len(outputs.anchors)))  # (M, K), best first
    boxes, scores = outputs.boxes[index], outputs.scores[index]  # (M, K, 4), (M, K, C)
    weight = torch.ones_like(iou) if rules.weighting in ("max", "avg") else iou
    if rules.weighting == "iou_score":
        weight = weight * scores.sum(dim=2)
    weight = (weight / weight.sum(dim=1, keepdim=True).clamp(min=1e-9))[..., None]
    found = (iou >= rules.min_anchor_iou).any(dim=1)
    return (weight * boxes).sum(dim=1), (weight * scores).sum(dim=1), found


def largest(overlap: Tensor) -> Tensor:
    """The largest of each row of (N, M); 0 where M is 0."""
    return overlap.max(dim=1).values if overlap.shape[1] else overlap.new_zeros(len(overlap))
