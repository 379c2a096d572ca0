"""Tracklet-conditioned detection: what a detector says of a box, given the tracklets of the frames before.

"Integrated Object Detection and Tracking with Tracklet-Conditioned Detection", sections 2.2 and 2.3. A box that looks
like a tracklet (equation 4) is more likely to be of the tracklet's class (equation 2); one that looks like none is what
the detector says, by way of the null tracklet (equations 5, 7).

Equations (1) and (2), written out, are P(c|b, {d}) = P_det(c|b) f(c, b) with

    f(c, b) = w_0 + sum_j w_j P_tr(c|d_j)^alpha / z_j,    z_j = sum_c P_det(c|b) P_tr(c|d_j)^alpha,

since what is uniform cancels from the null tracklet's term. So two matrix products do for all boxes and tracklets, and
nothing has more than N x M numbers: 30,000 anchors and 100 tracklets take 37 ms of one CPU core and 44 MB (2026-11-21).
P_tr is bounded from below, P_det is not, so that without tracklets it comes out as it went in.

Legend: N boxes, M tracklets, C foreground classes, E numbers of an embedding. Boxes are xyxy in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.parts.tracklets import Tracklets, cosines, overlaps

MIN_PROBABILITY = 1e-6  # of a class in a tracklet: at 0, a tracklet of a wrong class could never be put right
MAX_ALPHA = 6.0  # MIN_PROBABILITY to this power is still a normal float32


@dataclass(frozen=True)
class Conditioning:
    """The two stages, with the paper's constants; raises ValueError for values that make no sense.

    alpha: how much a tracklet's classes count against the detector's, 0 to 6. gamma: how sharply the cosine tells
    tracklets apart, at least 0. null: R, the null tracklet's log weight; it has half of the weight against one tracklet
    of cosine R / gamma.

    The null tracklet has little weight against many: with M tracklets at cosine 0 it has 1.35 / (1.35 + M), and a new
    object among them is taken for one of theirs. And where embeddings do not tell objects apart, as equation (10) never
    asks them to (see `tracking_loss`), all objects vote on each one's class. The paper has no remedy; ours, both off by
    default: gate "overlap" lets only those tracklets count whose last box, grown `gate_scale` times about its centre,
    overlaps the box; max_tracklets lets only those count that were seen last.
    """

    alpha: float = 1.0
    gamma: float = 8.0
    null: float = 0.3
    gate: Literal["none", "overlap"] = "none"
    gate_scale: float = 2.0
    max_tracklets: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= MAX_ALPHA:
            raise ValueError(f"alpha is {self.alpha}; it must be between 0 and {MAX_ALPHA:g}")
        for name in ("gamma", "gate_scale"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}; it must be finite and not negative")
        if not math.isfinite(self.null):
            raise ValueError(f"null is {self.null}; it must be finite")
        if self.gate not in ("none", "overlap"):
            raise ValueError(f"gate is {self.gate!r}; it must be 'none' or 'overlap'")
        if self.max_tracklets is not None and self.max_tracklets < 0:
            raise ValueError(f"max_tracklets is {self.max_tracklets}; it must not be negative")

    def classes(self, probabilities: Tensor, embeddings: Tensor, boxes: Tensor, tracklets: Tracklets) -> Tensor:
        """Second stage: class probabilities (N, C + 1) of boxes, background first, given the tracklets.

        probabilities: (N, C + 1), P_det; embeddings: (N, E), E_s2 of the boxes (N, 4).
        """
        tracklets = self.considered(tracklets)
        weights = self.weights(embeddings, tracklets.stage_2, boxes, tracklets.boxes)
        return condition(probabilities, weights, tracklets.probabilities, self.alpha)

    def objectness(self, logits: Tensor, embeddings: Tensor, boxes: Tensor, tracklets: Tracklets) -> Tensor:
        """First stage: objectness logits (N,) of anchors, given the tracklets.

        logits: (N,), of one foreground score, as torchvision's region proposal network has it; embeddings: (N, E),
        E_anchor of the anchors (N, 4).
        """
        tracklets = self.considered(tracklets)
        weights = self.weights(embeddings, tracklets.stage_1, boxes, tracklets.boxes)
        return condition_objectness(logits, weights, tracklets.probabilities, self.alpha)

    def considered(self, tracklets: Tracklets) -> Tracklets:
        """The tracklets that count at all."""
        return tracklets if self.max_tracklets is None else tracklets.foremost(self.max_tracklets)

    def weights(self, embeddings: Tensor, tracklet_embeddings: Tensor, boxes: Tensor, last_boxes: Tensor) -> Tensor:
        """Association weights of boxes and tracklets, gated: (N, 1 + M), see `association_weights`."""
        gate = overlaps(boxes, grow(last_boxes, self.gate_scale)) if self.gate == "overlap" else None
        return association_weights(cosines(embeddings, tracklet_embeddings), self.gamma, self.null, gate)


def association_weights(cosine: Tensor, gamma: float, null: float, gate: Tensor | None = None) -> Tensor:
    """Equations (4) to (6): how likely a box belongs to each tracklet: (N, 1 + M), the null tracklet first.

    cosine: (N, M); gate: bool (N, M), which tracklets count for a box, None for all. Rows sum to 1.
    """
    log_weights = gamma * cosine
    if gate is not None:
        log_weights = log_weights.masked_fill(~gate, -math.inf)
    null_log_weight = log_weights.new_full((len(log_weights), 1), null)
    return torch.cat([null_log_weight, log_weights], dim=1).softmax(dim=1)


def condition(probabilities: Tensor, weights: Tensor, tracklet_probabilities: Tensor, alpha: float) -> Tensor:
    """Equations (1) and (2): class probabilities (N, C + 1), background first; rows sum to 1 as those given do.

    probabilities: (N, C + 1), P_det; weights: (N, 1 + M), null tracklet first;
    tracklet_probabilities: (M, C + 1), P_tr.
    """
    return probabilities * factors(probabilities, weights, tracklet_probabilities, alpha)


def condition_objectness(logits: Tensor, weights: Tensor, tracklet_probabilities: Tensor, alpha: float) -> Tensor:
    """The same with two classes and P_tr(foreground) of equation (9): logits (N,) in, logits (N,) out.

    weights: (N, 1 + M), null tracklet first; tracklet_probabilities: (M, C + 1), background first. The null tracklet is
    uniform over the two classes, which is equation (7) for C = 1: by equation (9) it would be foreground to
    C / (C + 1) and lift every anchor. Log odds have no bounds, so that sure anchors keep their order.
    """
    foreground = tracklet_probabilities[:, 1:].sum(dim=1)  # (9)
    two = torch.stack([tracklet_probabilities[:, 0], foreground], dim=1)  # (M, 2)
    detected = torch.stack([-logits, logits], dim=1).sigmoid()  # (N, 2)
    background, foreground = factors(detected, weights, two, alpha).log().unbind(dim=1)
    return logits + foreground - background


def factors(probabilities: Tensor, weights: Tensor, tracklet_probabilities: Tensor, alpha: float) -> Tensor:
    """f(c, b) of the module's equation, (N, C + 1): what the tracklets multiply P_det by."""
    power = tracklet_probabilities.clamp(min=MIN_PROBABILITY) ** alpha  # (M, C + 1)
    return weights[:, :1] + (weights[:, 1:] / (probabilities @ power.T)) @ power


def grow(boxes: Tensor, scale: float) -> Tensor:
    """Boxes (M, 4) `scale` times as wide and as high about their centres."""
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return torch.cat([centre - size * scale / 2, centre + size * scale / 2], dim=1)
