"""D&T's track branch: where boxes of one frame are in a later one, read off the maps of both and their correlations.

"Detect to Track and Track to Detect", section 3.2 (the layer), 3.3 (targets and loss), 4 (tracks for linking).

Legend: N pairs of frames, R boxes of all their first frames, k bins a side, C foreground classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parts.anchors import clip, has_area
from models.parts.box_deltas import BoxDeltas
from models.parts.position_sensitive import Pooling, vote
from models.parts.workers import over_workers


class TrackBranch(nn.Module):
    """RoI tracking: both frames' maps of box deltas and the correlations are mixed into maps of track deltas.

    correlation_channels: of all levels together. Each box is pooled where it is in the first frame, whatever the
    displacement; what moved where is in the correlations.
    """

    def __init__(self, correlation_channels: int, *, bins: int = 7, pooling: Pooling = "pool") -> None:
        super().__init__()
        self.bins = bins
        self.pooling: Pooling = pooling
        outputs = 4 * bins**2
        self.deltas = nn.Conv2d(2 * outputs + correlation_channels, outputs, 1)
        nn.init.normal_(self.deltas.weight, std=0.01)
        assert self.deltas.bias is not None
        nn.init.zeros_(self.deltas.bias)

    def maps(self, first: Tensor, second: Tensor, correlations: Sequence[Tensor]) -> Tensor:
        """The maps (N, 4 * k * k, H, W) of N pairs.

        first, second: the head's maps of deltas, (N, 4 * k * k, H, W) each; correlations: one or more (N, D * D, H, W),
        of the same size whatever level they are of.
        """
        stacked: Tensor = self.deltas(torch.cat([first, second, *correlations], dim=1))
        return stacked

    def forward(self, maps: Tensor, boxes: Sequence[Tensor], scale: float) -> Tensor:
        """Track deltas (R, 4) of the boxes, for each pair (its R, 4); see `vote`."""
        return vote(maps, boxes, scale, self.bins, self.pooling)


def in_both(first: dict[str, Tensor], second: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Where the objects that appear in both frames are in each: boxes (M, 4) and (M, 4).

    first, second: boxes (., 4), track_ids (.,), -1 where unknown, and optionally ignore (.,). Objects that are unknown
    or ignored in either frame are left out.
    """
    ids = [
        frame["track_ids"].masked_fill(frame["ignore"], -1) if "ignore" in frame else frame["track_ids"]
        for frame in (first, second)
    ]
    here, there = torch.nonzero((ids[0][:, None] == ids[1]) & (ids[1] >= 0), as_tuple=True)
    return first["boxes"][here], second["boxes"][there]


def track_loss(deltas: Tensor, start: Tensor, end: Tensor, coder: BoxDeltas) -> Tensor:
    """The third term of equation 1: smooth L1 of track deltas (R, 4), summed over the four, mean over the boxes.

    start, end: (R, 4), where each box is and where it should lead; start is what the branch was asked about. With no
    box it is 0.
    """
    wanted = coder.encode(start, end).to(deltas.dtype)
    num_boxes = over_workers(torch.tensor(len(deltas), device=deltas.device))
    return F.smooth_l1_loss(deltas, wanted, reduction="sum") / num_boxes


def moves(
    boxes: Tensor,
    deltas: Tensor,
    probabilities: Tensor,
    region: Tensor,
    size: tuple[int, int],
    coder: BoxDeltas,
    min_score: float = 0.01,
) -> dict[str, Tensor]:
    """The tracks of a pair as evidence for linkers: start (M, 4), end (M, 4), scores (M,), box_id (M,).

    boxes: (R, 4), what the branch was asked about (for the paper's object-centred tracks the regressed boxes); deltas:
    (R, 4), its answers. probabilities: (R, C + 1), background first; a track has the score of its best class and is
    given out above `min_score` (the release's .01), whether or not its box became a detection: psi (equation 6) is
    asked of all tracks. Ends are clipped to the frame of `size` (height, width); what leaves it leads nowhere.

    region: (D,), for each detection of the frame, best first, the row of `boxes` it comes from. box_id is the best
    detection of the track's box, -1 if there is none.
    """
    none = len(region)
    best = torch.full((len(boxes),), none, device=boxes.device)
    best = best.scatter_reduce(0, region, torch.arange(none, device=boxes.device), "amin")
    ends = clip(coder.decode(boxes, deltas), size)
    scores = probabilities[:, 1:].amax(dim=1)
    keep = (scores > min_score) & has_area(ends)
    return {
        "start": boxes[keep],
        "end": ends[keep],
        "scores": scores[keep],
        "box_id": torch.where(best == none, -1, best)[keep],
    }


class Tracks(NamedTuple):
    """What is said of the regions of a frame in another: where, as deltas (R, 4), and how they look there.

    inside: (R,), which are in the frame at all; probabilities: (R, C + 1), of those. None where nobody asks.
    """

    deltas: Tensor
    inside: Tensor | None
    probabilities: Tensor | None


def averaged(probabilities: Tensor, tracks: Sequence[Tracks]) -> Tensor:
    """The mean of probabilities (R, C + 1) in a frame and in those that the regions were tracked to (section 5.3).

    A region that left a frame is not asked there.
    """
    total, count = probabilities, torch.ones_like(probabilities[:, :1])
    for _, inside, there in tracks:
        assert inside is not None
        assert there is not None
        total = total + there * inside[:, None]
        count = count + inside[:, None]
    return total / count
