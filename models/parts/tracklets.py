"""What tracklet-conditioned detection remembers: each tracklet's class probabilities, embeddings and last box.

"Integrated Object Detection and Tracking with Tracklet-Conditioned Detection": AssociateTracklet and RescoreTracklet of
Algorithm 2, and RescoreBox of Algorithm 1, the sequential baseline, which needs nothing else. What is remembered does
not grow with a tracklet's length.

Legend: N boxes of a frame, M tracklets, C foreground classes, E numbers of an embedding. Boxes are xyxy in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import normalize


@dataclass(frozen=True)
class Seen:
    """The boxes of one frame after non-maximum suppression, and what the network says of each; all float32.

    boxes: (N, 4). probabilities: (N, C + 1), background first, rows sum to 1; conditioned on the tracklets, or P_det
    for the sequential baseline. stage_1, stage_2: (N, E) each, E_s1 and E_s2; the two may differ in E.
    """

    boxes: Tensor
    probabilities: Tensor
    stage_1: Tensor
    stage_2: Tensor


@dataclass(frozen=True)
class Tracklets:
    """All tracklets after a frame, by rising id. All fields are tensors: `Tracklets(**state_dict())` is the same again.

    boxes: (M, 4), the last of each. probabilities: (M, C + 1), P_tr. stage_1, stage_2: (M, E) each, E_s1 and E_s2.
    ids: (M,), from 0 and never used twice. lengths: (M,), boxes so far. ages: (M,), frames since the last box, 0 if it
    is of this frame. next_id: (), of the next tracklet to start. The first four are float32, the others int64.
    """

    boxes: Tensor
    probabilities: Tensor
    stage_1: Tensor
    stage_2: Tensor
    ids: Tensor
    lengths: Tensor
    ages: Tensor
    next_id: Tensor

    @property
    def labels(self) -> Tensor:
        """The likeliest foreground class of each, int64 (M,), counted from 0 without the background."""
        return self.probabilities[:, 1:].argmax(dim=1)

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return dict(vars(self))

    def to(self, device: torch.device | str) -> Tracklets:
        """The same, on a device."""
        return Tracklets(**{name: value.to(device) for name, value in self.state_dict().items()})

    def where(self, keep: Tensor) -> Tracklets:
        """Those that a mask or an index chooses."""
        return Tracklets(
            **{name: value if name == "next_id" else value[keep] for name, value in self.state_dict().items()}
        )

    def foremost(self, count: int) -> Tracklets:
        """At most `count`: those seen last; of these the longest, then the oldest. In the order they have here."""
        by_length = self.lengths.argsort(descending=True, stable=True)
        order = by_length[self.ages[by_length].argsort(stable=True)]
        return self.where(order[:count].sort().values)


def no_tracklets(num_classes: int, stage_1_size: int = 128, stage_2_size: int = 128) -> Tracklets:
    """What there is before the first frame, for C foreground classes and embeddings of so many numbers."""
    none = torch.zeros(0, dtype=torch.long)
    return Tracklets(
        boxes=torch.zeros(0, 4),
        probabilities=torch.zeros(0, num_classes + 1),
        stage_1=torch.zeros(0, stage_1_size),
        stage_2=torch.zeros(0, stage_2_size),
        ids=none,
        lengths=none,
        ages=none,
        next_id=torch.tensor(0),
    )


def cosines(embeddings: Tensor, others: Tensor) -> Tensor:
    """Cosine of each of (N, E) with each of (M, E), in [-1, 1]: (N, M). An embedding of zeros has cosine 0 with all."""
    return normalize(embeddings) @ normalize(others).T


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Which of the boxes (N, 4) share area with which others (M, 4), IoU > 0: bool (N, M). All have area themselves."""
    left, top, right, bottom = boxes.unsqueeze(1).unbind(dim=2)  # (N, 1) each; box_iou takes seven times as long
    return (left < others[:, 2]) & (others[:, 0] < right) & (top < others[:, 3]) & (others[:, 1] < bottom)


def associate(seen: Seen, tracklets: Tracklets) -> Tensor:
    """AssociateTracklet: the tracklet that each box continues, an index int64 (N,), -1 for none.

    A box may continue a tracklet whose last box it overlaps; the cosine of their E_s2 says how well it would.
    """
    return match(cosines(seen.stage_2, tracklets.stage_2), overlaps(seen.boxes, tracklets.boxes))


def match(cosine: Tensor, edges: Tensor) -> Tensor:
    """The bipartite matching of greatest total weight: the column of each row, int64 (N,), -1 for none.

    cosine: (N, M), the weights of edges; edges: bool (N, M). Each row also has a pseudo column of its own, at weight 0,
    and so takes no column at 0 or less: what is no edge may as well weigh 0.
    """
    weight = torch.where(edges, cosine, 0).clamp(min=0)
    pairs = linear_sum_assignment(weight.detach().cpu().numpy(), maximize=True)
    row, column = (torch.from_numpy(index).to(weight.device) for index in pairs)
    column_of = torch.full((len(weight),), -1, device=weight.device)
    column_of[row] = torch.where(weight[row, column] > 0, column, -1)
    return column_of


def update(
    tracklets: Tracklets,
    seen: Seen,
    tracklet_of: Tensor,
    *,
    beta: float = 0.99,
    eta: float = 0.8,
    start_score: float = 0.2,
    max_age: int | None = None,
) -> tuple[Tracklets, Tensor]:
    """The tracklets after a frame, and the id of the tracklet that each box is in, int64 (N,), -1 for none.

    tracklet_of: int64 (N,), what `associate` gives; no tracklet twice.
    beta: decay of equation (3), 1 for the plain mean. eta: weight of the new box in equation (8).
    start_score: a box in no tracklet starts one if a foreground class has this probability or more. The paper starts
        one for every box; near-background boxes would then outnumber the null tracklet. .95 is its value for MOT.
    max_age: a tracklet with no box for so many frames in a row is closed; 10 for MOT. None: never, as for VID.
    """
    box = torch.nonzero(tracklet_of >= 0).squeeze(1)  # (K,)
    continued = tracklet_of[box]
    assert len(continued.unique()) == len(continued), "a tracklet has one box a frame"
    lengths = tracklets.lengths[continued]
    past = beta * lengths[:, None]
    now = {
        "boxes": seen.boxes[box],
        "probabilities": (seen.probabilities[box] + past * tracklets.probabilities[continued]) / (1 + past),  # (3)
        "stage_1": eta * seen.stage_1[box] + (1 - eta) * tracklets.stage_1[continued],  # (8)
        "stage_2": eta * seen.stage_2[box] + (1 - eta) * tracklets.stage_2[continued],  # (8)
        "lengths": lengths + 1,
        "ages": torch.zeros_like(lengths),
    }
    before = replace(tracklets, ages=tracklets.ages + 1).state_dict()
    known = {**before, **{name: before[name].index_copy(0, continued, value) for name, value in now.items()}}

    started = torch.nonzero((tracklet_of < 0) & (seen.probabilities[:, 1:].amax(dim=1) >= start_score)).squeeze(1)
    new_ids = tracklets.next_id + torch.arange(len(started), device=started.device)
    new = {
        **{name: value[started] for name, value in vars(seen).items()},
        "ids": new_ids,
        "lengths": torch.ones_like(new_ids),
        "ages": torch.zeros_like(new_ids),
    }
    after = Tracklets(
        **{name: torch.cat([known[name], value]) for name, value in new.items()},
        next_id=tracklets.next_id + len(started),
    )
    ids = torch.full_like(tracklet_of, -1).index_copy(0, box, tracklets.ids[continued]).index_copy(0, started, new_ids)
    return after if max_age is None else after.where(after.ages < max_age), ids


def rescore_boxes(probabilities: Tensor, ids: Tensor, tracklets: Tracklets) -> Tensor:
    """RescoreBox of Algorithm 1: a box in a tracklet gets its tracklet's mean, others stay as they are: (N, C + 1).

    probabilities: (N, C + 1), P_det; ids: int64 (N,), -1 for none; tracklets: after the frame, of a baseline that gives
    `update` beta 1 and P_det. Equation (3) is then the plain mean over all boxes of the tracklet, each as it was
    detected, not as it was rescored.
    """
    box, tracklet = torch.nonzero(ids[:, None] == tracklets.ids, as_tuple=True)
    return probabilities.index_copy(0, box, tracklets.probabilities[tracklet])
