"""Training tracklet-conditioned detection on pairs of consecutive frames: detection in the first, looks in both.

"Integrated Object Detection and Tracking with Tracklet-Conditioned Detection", section 2.4. Frame t - 1 teaches
detection, from its pixels alone. E_anchor of its anchors is held against E_s1 of the true boxes of frame t, and E_s2 of
the boxes that its second stage learns on against their E_s2 (equation 10).

Where the paper is silent: the tracking losses are means over pairs of frames, of means over pairs of boxes
(`tracking_loss`), and weigh 1; boxes of frame t - 1 are the proposals, which the embeddings are pooled from, not what
they are refined to; a frame without a successor teaches detection only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from models.parts.embeddings import Embeddings
from models.parts.tracking_loss import Negatives, tracking_loss
from models.parts.two_stage import Dense, Features, Regions, TwoStage
from models.parts.workers import over_workers


def losses(
    detector: TwoStage,
    embeddings: Embeddings | None,
    features: Features,
    size: tuple[int, int],
    lengths: Sequence[int],
    targets: Sequence[dict[str, Tensor]],
    negatives: Negatives,
) -> dict[str, Tensor]:
    """The detector's losses and, where there are branches to teach, `track_anchor` and `track_region`; each a scalar.

    features: of all frames of some clips of so many frames, of one size (height, width); targets: of each frame boxes
    (M, 4), labels (M,), track_ids (M,), -1 where unknown, and optionally ignore (M,).
    """
    taught, pairs = taught_and_pairs(lengths)
    later = [second for _, second in pairs] if embeddings else []
    of_taught = [targets[frame] for frame in taught]
    known = [known_tracks(target) for target in targets]
    dense = detector.dense(tuple(level[taught] for level in features), size)
    learnt = dict(zip(taught, detector.training_boxes(dense, of_taught), strict=True))
    # One pass through the head: of each frame first what it learns on, then its true boxes.
    none = dense.anchors[:0]
    own = [learnt.get(frame, none) for frame in range(len(targets))]
    true = [known[frame][0] if frame in later else none for frame in range(len(targets))]
    regions = detector.head(features, [torch.cat(boxes) for boxes in zip(own, true, strict=True)], size)
    proposed = [each.where(slice(len(boxes))) for each, boxes in zip(regions, own, strict=True)]
    truth = [each.where(slice(len(boxes), None)) for each, boxes in zip(regions, own, strict=True)]

    found = detector.anchor_losses(dense, of_taught)
    found |= detector.region_losses([proposed[frame] for frame in taught], of_taught)
    if embeddings:
        found |= {"track_anchor": embeddings.nothing(), "track_region": embeddings.nothing()}
        num_pairs = over_workers(torch.tensor(len(pairs), device=dense.anchors.device))
        for first, second in pairs:
            of_pair = tracking_losses(
                embeddings,
                dense.of([taught.index(first)]),
                proposed[first],
                known[first],
                truth[second],
                known[second][1],
                negatives,
            )
            for name, loss in of_pair.items():
                found[name] = found[name] + loss / num_pairs
    return found


def taught_and_pairs(lengths: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """Of clips of so many frames, numbered through: which frames teach detection, and the pairs (t - 1, t)."""
    starts = list(accumulate(lengths, initial=0))[:-1]
    taught = [first + t for first, length in zip(starts, lengths, strict=True) for t in range(length - 1 or length)]
    pairs = [(first + t, first + t + 1) for first, n in zip(starts, lengths, strict=True) for t in range(n - 1)]
    return taught, pairs


def known_tracks(target: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Boxes (M, 4) and ids (M,) of a frame's objects of which it is known which they are."""
    known = target["track_ids"] >= 0
    if "ignore" in target:
        known = known & ~target["ignore"]
    return target["boxes"][known], target["track_ids"][known]


def tracking_losses(
    embeddings: Embeddings,
    dense: Dense,
    proposed: Regions,
    known: tuple[Tensor, Tensor],
    truth: Regions,
    ids: Tensor,
    negatives: Negatives,
) -> dict[str, Tensor]:
    """Equation (10) of one pair, in float32: first stage, second stage.

    dense, proposed: of frame t - 1, alone; known: its objects' boxes (M, 4) and ids (M,). truth, ids: of the true boxes
    of frame t.
    """
    anchors = torch.cat([embeddings.of_anchors(tower)[0] for tower in dense.towers])  # (A, 128)
    stages = {
        "track_anchor": (anchors, dense.anchors, embeddings.stage_1_of(truth)),
        "track_region": (embeddings.stage_2_of(proposed), proposed.boxes, embeddings.stage_2_of(truth)),
    }
    return {
        name: tracking_loss(
            looks.float(),
            boxes,
            *known,
            next_embeddings=later.float(),
            next_ids=ids,
            generator=torch.default_generator,
            negatives=negatives,
        )
        for name, (looks, boxes, later) in stages.items()
    }
