"""Seq-NMS and Seq-Track-NMS: known answers, a plain version straight from the definition, and what must always hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.boxes import iou
from pipeline.linkers import seq_nms
from pipeline.linkers.parts import sequences
from pipeline.linkers.parts.selection import select
from pipeline.linkers.seq_nms import Settings
from pipeline.records import Detections, Moves, Track, VideoInfo, detections

VIDEO = VideoInfo("a", "a.mp4", "folder")
SEEDS = st.integers(0, 100_000)


def link(frames: Sequence[Detections], **changes: object) -> tuple[list[Detections], list[Track]]:
    """Linked with tracks of any length, so that every sequence can be seen."""
    return seq_nms.link(frames, VIDEO, Settings(**{"min_length": 1, **changes}))


def members(tracks: Sequence[Track]) -> set[tuple[tuple[int, int], ...]]:
    """Each track as its (frame_index, box_id)."""
    return {tuple(zip(track.frame_index.tolist(), track.box_id.tolist(), strict=True)) for track in tracks}


def scores_left(frames: Sequence[Detections]) -> dict[tuple[int, int], float]:
    """(frame_index, box_id) -> score of every box that is there."""
    return {
        (frame.frame_index, int(box)): float(score)
        for frame in frames
        for box, score in zip(frame.box_id, frame.scores, strict=True)
    }


def box(left: float, width: float = 10) -> list[float]:
    return [left, 0, left + width, 10]


# Methods, section 8 item 5: A and its double A', B below A, Z apart, C below B.
KNOWN = [
    detections(0, [box(0), box(1)], [0.9, 0.4]),
    detections(1, [box(1), [30, 30, 40, 40]], [0.1, 0.8]),
    detections(2, [box(2)], [0.8]),
]


@pytest.mark.parametrize(("rescore", "expected"), [("average", 0.6), ("max", 0.9)])
def test_known_answer(rescore: str, expected: float) -> None:
    frames, tracks = link(KNOWN, rescore=rescore)
    assert members(tracks) == {((0, 0), (1, 0), (2, 0)), ((1, 1),)}
    assert scores_left(frames) == pytest.approx({(0, 0): expected, (1, 0): expected, (2, 0): expected, (1, 1): 0.8})
    path = next(track for track in tracks if len(track) == 3)
    assert path.scores == pytest.approx([expected] * 3)
    assert path.raw_scores == pytest.approx([0.9, 0.1, 0.8])


CASES = {
    "the sum decides: three weak ones beat a strong one": (
        [detections(t, [box(0), box(2)], [0.5, 0.9 if t == 0 else 0.01], box_id=[0, 1]) for t in range(3)],
        {"link_iou": 0.9},
        {((0, 0), (1, 0), (2, 0))},
        3,
    ),
    "an IoU of just link_iou links": (
        [detections(0, [box(0, 30)], [0.5]), detections(1, [box(10, 30)], [0.5])], {}, {((0, 0), (1, 0))}, 2,
    ),
    "one below does not": (
        [detections(0, [box(0, 30)], [0.5]), detections(1, [box(11, 30)], [0.5])], {}, {((0, 0),), ((1, 0),)}, 2,
    ),
    "no link over a missing frame": (
        [detections(0, [box(0)], [0.5]), detections(2, [box(0)], [0.5])], {}, {((0, 0),), ((2, 0),)}, 2,
    ),
    "nor over an empty one": (
        [detections(0, [box(0)], [0.5]), detections(1), detections(2, [box(0)], [0.5])],
        {}, {((0, 0),), ((2, 0),)}, 2,
    ),
    "classes neither link nor suppress each other": (
        [detections(0, [box(0), box(0)], [0.5, 0.4], [0, 1]), detections(1, [box(0)], [0.5], [1])],
        {}, {((0, 0),), ((0, 1), (1, 0))}, 3,
    ),
    "an IoU of just suppress_iou suppresses": (
        [detections(0, [box(0, 20), box(10, 20)], [0.5, 0.4])], {"suppress_iou": 1 / 3}, {((0, 0),)}, 1,
    ),
    "one below does not suppress": (
        [detections(0, [box(0, 20), box(10, 20)], [0.5, 0.4])], {"suppress_iou": 0.34}, {((0, 0),), ((0, 1),)}, 2,
    ),
    "what is below the floor stays, in no sequence": (
        [detections(0, [box(0), box(1)], [0.005, 0.004])], {}, set(), 2,
    ),
    "and non-maximum suppression reaches it": (
        [detections(0, [box(0), box(1)], [0.005, 0.004])], {"nms_iou": 0.45}, set(), 1,
    ),
    "which takes boxes out of sequences where it is the stricter, and shortens them": (
        [detections(0, [box(0), box(5)], [0.5, 0.4]), detections(1, [box(0), box(9)], [0.5, 0.4])],
        {"link_iou": 0.4, "suppress_iou": 0.9, "nms_iou": 0.3, "min_length": 2}, {((0, 0), (1, 0))}, 3,
    ),
    "zeros lengthen no sequence": (
        [detections(0, [box(0)], [0.5]), detections(1, [box(0)], [0.0])], {}, {((0, 0),)}, 2,
    ),
    "sequences shorter than min_length are no tracks": (
        [detections(0, [box(0), box(50)], [0.5, 0.5]), detections(1, [box(0)], [0.5])],
        {"min_length": 2}, {((0, 0), (1, 0))}, 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("frames", "changes", "expected", "left"), CASES.values(), ids=CASES)
def test_cases(frames: list[Detections], changes: dict, expected: set, left: int) -> None:
    after, tracks = link(frames, **changes)
    assert members(tracks) == expected
    assert sum(map(len, after)) == left


def test_evidence_goes_with_its_box() -> None:
    frame = detections(
        0,
        [box(1), box(0), box(50)],
        [0.4, 0.9, 0.7],
        class_scores=[[0.6, 0.4], [0.1, 0.9], [0.3, 0.7]],
        embeddings=[[1, 0], [2, 0], [3, 0]],
        tracklet_id=[4, 5, 6],
        tracked=[False, True, False],
    )
    ((after,), tracks) = link([frame])
    assert after.box_id.tolist() == [1, 2]
    assert after.tracklet_id.tolist() == [5, 6]
    assert after.embeddings.tolist() == [[2, 0], [3, 0]]
    assert after.class_scores == pytest.approx(np.array([[0.1, 0.9], [0.3, 0.7]]))
    assert after.tracked.tolist() == [True, False]
    assert [track.tracked.tolist() for track in tracks] == [[True], [False]]


# The plain version: every path there is, from the definition.


def plainly(frames: Sequence[Detections], config: Settings) -> tuple[dict, set]:
    """What is left, (frame_index, box_id) -> score, and the sequences as tuples of those."""
    boxes = sorted(
        (int(f.labels[i]), f.frame_index, -float(f.scores[i]), *map(float, f.boxes[i]), int(f.box_id[i]))
        for f in frames
        for i in range(len(f))
    )
    score = [-one[2] for one in boxes]
    moves = {frame.frame_index: frame.moves for frame in frames if frame.moves is not None}
    overlap = [iou([one[3:7]], [other[3:7] for other in boxes])[0] for one in boxes]
    same_frame = [[one[:2] == other[:2] for other in boxes] for one in boxes]

    def linked(i: int, j: int) -> bool:
        (label, frame, *_, box_id), (other_label, other_frame) = boxes[i], boxes[j][:2]
        if label != other_label:
            return False
        if config.links == "overlap":
            return other_frame == frame + 1 and overlap[i][j] >= config.link_iou
        if frame not in moves or other_frame != frame + moves[frame].stride:
            return False
        ends = moves[frame].end[moves[frame].box_id == box_id]
        return bool((iou(ends, [boxes[j][3:7]]) >= config.link_iou).any())

    links = [[j for j in range(len(boxes)) if linked(i, j)] for i in range(len(boxes))]
    free = set(range(len(boxes)))

    def paths(path: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        yield path
        for j in links[path[-1]]:
            if j in free:
                yield from paths((*path, j))

    after, chosen, removed = dict(enumerate(score)), [], set()
    while free:
        total, best = min((-sum(score[i] for i in path), path) for start in free for path in paths((start,)))
        if -total < config.min_sum:
            break
        chosen.append(best)
        for i in best:
            after[i] = -total / len(best) if config.rescore == "average" else max(score[k] for k in best)
            over = {j for j in free if same_frame[i][j] and overlap[i][j] >= config.suppress_iou and j != i}
            removed |= over
            free -= over | {i}
    if config.nms_iou is not None:
        for i in sorted(after, key=lambda i: (-after[i], i)):
            if i not in removed:
                removed |= {j for j in after if j != i and same_frame[i][j] and overlap[i][j] >= config.nms_iou}
    named = {i: (boxes[i][1], boxes[i][-1]) for i in after}
    left = {named[i]: np.float32(value) for i, value in after.items() if i not in removed}
    kept = (tuple(named[i] for i in path if i not in removed) for path in chosen)
    return left, {path for path in kept if path}


def crowd(random: np.random.Generator) -> list[Detections]:
    """Up to five frames, some missing or without moves, of up to four boxes on a coarse grid: many ties."""
    frames = []
    for t in np.flatnonzero(random.random(5) < 0.9):
        count = int(random.integers(0, 5))
        left = random.integers(0, 6, count) * 4.0
        boxes = np.stack([left, np.zeros(count), left + 20, np.full(count, 10.0)], axis=1)
        scores = random.integers(0, 5, count) / 8  # exact in binary, so that equal sums are equal
        box_id = random.permutation(count)
        moves = None
        if random.random() < 0.9:
            num_moves = int(random.integers(0, 8))
            start = random.integers(0, 6, num_moves)[:, None] * np.array([4.0, 0, 4, 0]) + np.array([0, 0, 20, 10.0])
            end = start + random.integers(-3, 4, num_moves)[:, None] * np.array([4.0, 0, 4, 0])
            moves = Moves(
                *(np.asarray(value, np.float32) for value in (start, end, np.ones(num_moves))),
                random.integers(-1, 5, num_moves).astype(np.int32),
                int(random.integers(1, 3)),
            )
        labels = random.integers(0, 2, count)
        frames.append(detections(int(t), boxes, scores, labels, box_id=box_id, moves=moves))
    return frames


@pytest.mark.parametrize("links", ["overlap", "moves"])
@settings(max_examples=150)
@given(SEEDS)
def test_equals_the_plain_version(links: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    frames = crowd(random)
    if links == "moves" and all(frame.moves is None for frame in frames):
        return
    config = Settings(
        links=links,
        link_iou=float(random.choice([0.25, 0.5, 0.6])),
        suppress_iou=float(random.choice([0.3, 0.7, 1])),
        rescore=str(random.choice(["average", "max"])),
        min_sum=float(random.choice([0, 0.01, 0.5])),
        nms_iou=random.choice([None, 0.2, 0.45]),
        min_length=1,
    )
    after, tracks = seq_nms.link(frames, VIDEO, config)
    left, chosen = plainly(frames, config)
    assert members(tracks) == chosen
    assert scores_left(after) == left


def scene(random: np.random.Generator, num_frames: int = 30, num_objects: int = 8) -> list[Detections]:
    """Objects of two classes on jittered paths, seen in several boxes each, with perfect moves."""
    centre, velocity = random.uniform(0, 120, (num_objects, 2)), random.normal(0, 4, (num_objects, 2))
    places, frames = [], []
    for t in range(num_frames + 1):
        of = np.repeat(np.arange(num_objects), 3)
        middle = (centre + velocity * t)[of] + random.normal(0, 3, (len(of), 2))
        places.append(np.concatenate([middle - 12, middle + 12], axis=1).astype(np.float32))
    for t in range(num_frames):
        frames.append(
            detections(
                t,
                places[t],
                random.integers(1, 9, len(of)) / 8,
                of % 2,
                moves=Moves(places[t], places[t + 1], np.ones(len(of), np.float32), np.arange(len(of), dtype=np.int32)),
            )
        )
    return frames


@pytest.mark.parametrize("links", ["overlap", "moves"])
@settings(max_examples=15)
@given(SEEDS)
def test_order_of_boxes_does_not_matter_and_no_box_is_used_twice(links: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    frames = scene(random)
    turned = []
    for frame in frames:
        order, order_of_moves = random.permutation(len(frame)), random.permutation(len(frame))
        moves = Moves(*(getattr(frame.moves, name)[order_of_moves] for name in ("start", "end", "scores", "box_id")))
        turned.append(select(replace(frame, moves=moves), order))
    (after, tracks), (after_turned, tracks_turned) = link(frames, links=links), link(turned, links=links)
    assert members(tracks) == members(tracks_turned)
    assert scores_left(after) == scores_left(after_turned)
    taken = [one for path in members(tracks) for one in path]
    assert len(taken) == len(set(taken))
    for frame in after:
        overlaps = np.where(frame.labels[:, None] == frame.labels, iou(frame.boxes, frame.boxes), 0)
        assert (overlaps - np.eye(len(frame)) < 0.3).all(), "boxes of a class and frame do not overlap any more"


@settings(max_examples=30)
@given(SEEDS)
def test_sums_do_not_rise_from_choice_to_choice(seed: int) -> None:
    random = np.random.default_rng(seed)
    left = np.sort(random.uniform(0, 40, (6, 5)), axis=0).reshape(-1)
    boxes = np.stack([left, np.zeros(30), left + 20, np.full(30, 10.0)], axis=1)
    scores, first, target = random.random(30), np.arange(0, 31, 5), np.array([1, 2, 3, 4, 5, -1])
    links = sequences.find_links(boxes, first, target, boxes, np.arange(30), 0.5)
    numbers = sequences.choose(boxes, scores, first, target, *links, 0.6, 0.01)
    sums = np.bincount(numbers[numbers >= 0], scores[numbers >= 0])
    assert len(sums) > 1
    assert (np.diff(sums) <= 1e-12).all()


# Seq-Track-NMS


def fast(num_frames: int = 6, with_moves: bool = True, stride: int = 1) -> list[Detections]:
    """A box of width 20 that is 15 further in each frame: IoU 1/7 with where it was."""
    frames = []
    for t in range(num_frames):
        now, then = ([[15.0 * when, 0, 15.0 * when + 20, 20]] for when in (t, t + stride))
        moves = Moves(*(np.array(v, np.float32) for v in (now, then, [1])), np.array([7], np.int32), stride)
        frames.append(detections(t, now, [0.3 + 0.1 * t], box_id=[7], moves=moves if with_moves else None))
    return frames


def test_the_fast_one_stays_together_by_its_moves_only() -> None:
    _, alone = link(fast())
    assert [len(track) for track in alone] == [1] * 6
    after, (track,) = link(fast(), links="moves")
    assert track.frame_index.tolist() == list(range(6))
    assert [float(frame.scores[0]) for frame in after] == pytest.approx([0.55] * 6)


def test_moves_of_a_longer_stride_link_that_far() -> None:
    _, tracks = link(fast(stride=2), links="moves")
    assert members(tracks) == {((0, 7), (2, 7), (4, 7)), ((1, 7), (3, 7), (5, 7))}
    _, every_other = link(fast(stride=2)[::2], links="moves")
    assert members(every_other) == {((0, 7), (2, 7), (4, 7))}


def going(*to: float, stride: int = 1) -> Moves:
    """Moves of box 0 to these places."""
    end = np.array([box(left) for left in to], np.float32)
    return Moves(end, end, np.ones(len(to), np.float32), np.zeros(len(to), np.int32), stride)


MOVES_CASES = {
    "of two moves to equals the first in place counts, not the first in the list": (
        [detections(0, [box(0)], [0.5], moves=going(50, 20)), detections(1, [box(20), box(50)], [0.5, 0.5])],
        {((0, 0), (1, 0)), ((1, 1),)},
    ),
    "a way through a suppressed box is given up, over frames where nothing links": (
        [
            detections(0, [box(0)], [0.2], moves=going(4, stride=3)),
            detections(1, [box(90)], [0.1]),
            detections(3, [box(0), box(4)], [0.9, 0.1]),
        ],
        {((0, 0),), ((1, 0),), ((3, 0),)},
    ),
    "and all the way back, so that a better one wins there": (
        [
            detections(0, [box(0), box(1)], [0.25, 0.6], moves=going(40)),
            detections(1, [box(40)], [0.25], moves=going(4)),
            detections(2, [box(0), box(4)], [0.9, 0.25]),
        ],
        {((0, 1),), ((1, 0),), ((2, 0),)},
    ),
}


@pytest.mark.parametrize(("frames", "expected"), MOVES_CASES.values(), ids=MOVES_CASES)
def test_cases_of_moves(frames: list[Detections], expected: set) -> None:
    assert members(link(frames, links="moves")[1]) == expected
    assert plainly(frames, Settings(links="moves"))[1] == expected


def test_a_box_without_a_move_ends_its_sequence() -> None:
    frames = fast()
    frames[2] = replace(frames[2], moves=None)
    of_no_box = replace(frames[4].moves, box_id=np.array([-1], np.int32))
    frames[4] = replace(frames[4], moves=of_no_box)
    _, tracks = link(frames, links="moves")
    assert sorted(len(track) for track in tracks) == [1, 2, 3]


def test_moves_that_are_not_there_are_refused_unless_there_is_nothing_to_link() -> None:
    with pytest.raises(ValueError, match=r"seq_nms\.links is 'moves', but the detections of a have none"):
        link(fast(with_moves=False), links="moves")
    assert members(link(fast(1, with_moves=False), links="moves")[1]) == {((0, 7),)}
    assert link([detections(0), detections(1)], links="moves")[1] == []


def test_shuffled_moves_make_identities_and_scores_worse() -> None:
    """Strong and weak objects swap places, two by two, faster than overlap can follow."""
    random = np.random.default_rng(0)
    num_frames, num_objects = 20, 6
    strength = np.array([0.9, 0.3] * 3)
    left = np.array([0.0, 190] * 3)[None] + np.arange(num_frames + 1)[:, None] * np.array([10.0, -10] * 3)
    top = np.repeat([0.0, 40, 80], 2)
    places = np.stack([left, np.tile(top, (num_frames + 1, 1)), left + 16, np.tile(top + 16, (num_frames + 1, 1))], -1)
    frames, shuffled = [], []
    for t in range(num_frames):
        start, end = places[t].astype(np.float32), places[t + 1].astype(np.float32)
        scores = strength + random.uniform(-0.1, 0.1, num_objects)
        moves = Moves(start, end, np.ones(num_objects, np.float32), np.arange(num_objects, dtype=np.int32))
        frames.append(detections(t, start, scores, moves=moves))
        lies = replace(moves, end=end[random.permutation(num_objects)])
        shuffled.append(replace(frames[-1], moves=lies))

    def found(given: Sequence[Detections]) -> tuple[float, float]:
        """Share of an object's boxes in its longest one-object track, and mean error of the new scores."""
        after, tracks = link(given, links="moves")
        pure = [np.bincount(track.box_id, minlength=num_objects).max() for track in tracks if len(track) > 1]
        wrong = [abs(score - strength[box_id]) for (_, box_id), score in scores_left(after).items()]
        return sum(sorted(pure)[-num_objects:]) / (num_frames * num_objects), float(np.mean(wrong))

    (purity, error), (purity_of_lies, error_of_lies) = found(frames), found(shuffled)
    assert (purity, len(link(frames, links="moves")[1])) == (1, num_objects)
    assert error < 0.03
    assert purity_of_lies < 0.5
    assert error_of_lies > 3 * error


WRONG_SETTINGS = [
    ({"links": "flow"}, "links is 'flow'; it must be one of: overlap, moves"),
    ({"rescore": "mean"}, "rescore is 'mean'; it must be one of: average, max"),
    ({"link_iou": 0}, "link_iou is 0; it must be above 0 and at most 1"),
    ({"suppress_iou": 1.5}, "suppress_iou is 1.5; it must be above 0"),
    ({"nms_iou": float("nan")}, "nms_iou is nan; it must be none or above 0"),
    ({"min_sum": -1}, "min_sum is -1; it must be at least 0"),
    ({"min_length": 0}, "min_length is 0; it must be at least 1"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_SETTINGS, ids=lambda value: str(value)[:30])
def test_settings_out_of_range_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"linker seq_nms.{message}"):
        Settings(**changes)
