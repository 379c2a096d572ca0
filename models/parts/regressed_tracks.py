"""Tracktor's rules, without networks: a detector's second stage moves each track, which lives by its score.

"Tracking without bells and whistles" (Bergmann et al., 2019), section 2.2, and the re-identification of Tracktor++
(section 2.3). The paper has one class. Here a track keeps the class that it was born with: it is moved and scored as of
that class, and overlaps and appearances count within a class.

Legend: M tracks, N detections, E embedding, F frames that an appearance is the mean of.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import batched_nms, box_iou

from models.parts.anchors import PlainDetections, has_area
from models.parts.camera_motion import move_boxes

IMPOSSIBLE = 1e4  # more than all distances of embeddings of unit length together

# boxes (M, 4), labels (M,) -> where the second stage moves each for its class (M, 4), and how it scores it (M,)
Regress = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Embed = Callable[[Tensor], Tensor]  # boxes (N, 4) -> (N, E) of unit length


@dataclass(frozen=True)
class Rules:
    """Thresholds, by default the paper's; those of appearance serve re-identification alone.

    sigma_det: a detection above it may start a track. sigma_active: a track not above it ends. track_nms_iou:
    lambda_active, among tracks. max_new_iou: lambda_new, among detections that may start a track, and between them and
    tracks. covered_iou: a detection nearer to a track is what it stands for, and no row of its own; the detector's own
    suppression. patience: frames that an ended track may be missed before it is forgotten; None: at once, so that none
    is re-identified. reid_iou: least overlap of a detection with where such a track was; 0 for anywhere.
    reid_distance: largest distance of their appearances.
    """

    sigma_det: float = 0.5
    sigma_active: float = 0.5
    track_nms_iou: float = 0.6
    max_new_iou: float = 0.3
    covered_iou: float = 0.5
    patience: int | None = 50
    reid_iou: float = 0.2
    reid_distance: float = 1.0


@dataclass(frozen=True)
class Tracks:
    """Some tracks: where they are or were last, boxes (M, 4), and their labels, ids, int64 (M,).

    missed: int64 (M,), frames since the last one. appearance: (M, F, E), their last embeddings, the newest first, and
    known: int64 (M,), how many of those there are.
    """

    boxes: Tensor
    labels: Tensor
    ids: Tensor
    missed: Tensor
    appearance: Tensor
    known: Tensor

    def where(self, keep: Tensor) -> Tracks:
        """Those that a mask or an index chooses."""
        return Tracks(**{name: value[keep] for name, value in self.columns().items()})

    def to(self, device: torch.device | str) -> Tracks:
        """The same, on a device."""
        return Tracks(**{name: value.to(device) for name, value in self.columns().items()})

    def columns(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def shown(self, embeddings: Tensor) -> Tracks:
        """The same, seen in this frame, where they look like this (M, E)."""
        held = self.appearance.shape[1]
        appearance = torch.cat([embeddings[:, None], self.appearance], dim=1)[:, :held]
        known = (self.known + 1).clamp(max=held)
        return replace(self, appearance=appearance, known=known, missed=torch.zeros_like(self.missed))

    def mean_appearance(self) -> Tensor:
        """(M, E), of the embeddings that are known."""
        return self.appearance.sum(dim=1) / self.known.clamp(min=1)[:, None]


@dataclass(frozen=True)
class State:
    """What is known after a frame: the active tracks, those that ended and may come back, and the next new id."""

    active: Tracks
    inactive: Tracks
    next_id: int

    def to(self, device: torch.device | str) -> State:
        """The same, on a device."""
        return State(self.active.to(device), self.inactive.to(device), self.next_id)

    def moved(self, motion: Tensor) -> State:
        """The same where a motion (2, 3) of the camera takes the tracks; see `camera_motion`."""
        active, inactive = (
            replace(tracks, boxes=move_boxes(tracks.boxes, motion)) for tracks in (self.active, self.inactive)
        )
        return State(active, inactive, self.next_id)


def no_tracks(frames: int, embedding_size: int) -> Tracks:
    """None, whose appearance would be of so many frames F and of that size E."""
    none = torch.zeros(0, dtype=torch.long)
    return Tracks(torch.zeros(0, 4), none, none, none, torch.zeros(0, frames, embedding_size), none)


def joined(*tracks: Tracks) -> Tracks:
    """The tracks of all, in order."""
    columns = [each.columns() for each in tracks]
    return Tracks(**{name: torch.cat([column[name] for column in columns]) for name in columns[0]})


def step(
    state: State, detections: PlainDetections, regress: Regress, embed: Embed, rules: Rules
) -> tuple[dict[str, Tensor], State]:
    """One frame: follows the tracks, ends some, takes ended ones up again, and starts new ones.

    state: after the frame before, its boxes moved with the camera. detections: the detector's own of this frame, best
    first. regress and embed are asked once each, maybe about no boxes.

    Gives boxes (N, 4), scores, labels, tracklet_id, -1 for none, and tracked, whether it was followed, each (N,): the
    followed tracks, those taken up again, new ones, and then the detections that no track stands for, so that detection
    can be scored.
    """
    followed, scores, ended = follow(state.active, regress, rules)
    remembered = state.inactive if rules.patience is None else joined(state.inactive, ended)

    same_class = detections.labels[:, None] == followed.labels
    overlap = box_iou(detections.boxes, followed.boxes) * same_class  # (N, M)
    free = starting(detections, overlap, rules)
    new = detections.where(free)
    embeddings = embed(torch.cat([followed.boxes, new.boxes]))
    of_followed, of_new = embeddings.split([len(followed.boxes), len(new.boxes)])

    track = same_object(remembered, new, of_new, rules)  # (N,), of each new one
    back = track >= 0
    returned = replace(remembered.where(track[back]), boxes=new.boxes[back])
    born = started(new.where(~back), state.next_id, remembered)
    active = joined(followed.shown(of_followed), returned.shown(of_new[back]), born.shown(of_new[~back]))

    # A track stands for the detections of its class that it covers, and has the score of the best of them.
    covers = overlap > rules.covered_iou
    scores = torch.cat([covers * detections.scores[:, None], scores[None]]).amax(dim=0)
    rest = detections.where(~free & ~covers.any(dim=1))
    row = {
        "boxes": torch.cat([active.boxes, rest.boxes]),
        "scores": torch.cat([scores, new.scores[back], new.scores[~back], rest.scores]),
        "labels": torch.cat([active.labels, rest.labels]),
        "tracklet_id": torch.cat([active.ids, torch.full_like(rest.labels, -1)]),
        "tracked": torch.arange(len(active.ids) + len(rest.labels), device=scores.device) < len(followed.ids),
    }
    away = torch.ones_like(remembered.ids, dtype=torch.bool)
    away[track[back]] = False
    inactive = replace(remembered, missed=remembered.missed + 1).where(
        away & (remembered.missed < (rules.patience or 0))
    )
    return row, State(active, inactive, state.next_id + len(born.ids))


def follow(tracks: Tracks, regress: Regress, rules: Rules) -> tuple[Tracks, Tensor, Tracks]:
    """The tracks that live, where they are now, their scores (M,), and those that end, where they were last seen."""
    boxes, scores = regress(tracks.boxes, tracks.labels)
    alive = torch.nonzero((scores > rules.sigma_active) & has_area(boxes)).squeeze(1)
    alive = alive[batched_nms(boxes[alive], scores[alive], tracks.labels[alive], rules.track_nms_iou)]
    lives = torch.zeros_like(scores, dtype=torch.bool)
    lives[alive] = True
    return replace(tracks, boxes=boxes).where(lives), scores[lives], tracks.where(~lives)


def starting(detections: PlainDetections, overlap: Tensor, rules: Rules) -> Tensor:
    """Which detections (N,) are sure of an object that is followed by no track; overlap: (N, M), with those."""
    sure = torch.nonzero(detections.scores > rules.sigma_det).squeeze(1)
    boxes, scores, labels = detections.boxes[sure], detections.scores[sure], detections.labels[sure]
    apart = sure[batched_nms(boxes, scores, labels, rules.max_new_iou)]
    chosen = torch.zeros_like(detections.scores, dtype=torch.bool)
    chosen[apart] = True
    return chosen & (overlap <= rules.max_new_iou).all(dim=1)


def same_object(ended: Tracks, new: PlainDetections, embeddings: Tensor, rules: Rules) -> Tensor:
    """Which of the ended tracks each new detection (N,) is, -1 for none; each track is one at most.

    As many are found as can be, at the least sum of distances (Hungarian). Pairs beyond a threshold are out before that
    (the released tracker leaves them out after it, and so may lose a pair within to one beyond).
    """
    distance = torch.cdist(embeddings, ended.mean_appearance(), compute_mode="donot_use_mm_for_euclid_dist")  # (N, M)
    possible = (distance <= rules.reid_distance) & (new.labels[:, None] == ended.labels)
    possible &= box_iou(new.boxes, ended.boxes) >= rules.reid_iou
    pairs = linear_sum_assignment(distance.where(possible, IMPOSSIBLE).cpu().numpy())
    detection, track = (torch.from_numpy(side).to(distance.device) for side in pairs)
    found = possible[detection, track]
    match = torch.full_like(new.labels, -1)
    match[detection[found]] = track[found]
    return match


def started(new: PlainDetections, next_id: int, like: Tracks) -> Tracks:
    """A track for each detection, not shown yet; appearances are of the same form as of `like`."""
    count = len(new.labels)
    zeros = torch.zeros_like(new.labels)
    ids = next_id + torch.arange(count, device=zeros.device)
    return Tracks(
        new.boxes, new.labels, ids, zeros, like.appearance.new_zeros(count, *like.appearance.shape[1:]), zeros
    )
