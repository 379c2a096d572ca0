"""Tubes: the paths against brute force, the linker against the same in plain numpy, and what each setting does."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.boxes import from_xywh, iou
from pipeline.linkers import tubes
from pipeline.linkers.parts.viterbi import best_paths
from pipeline.records import Detections, Moves, Track, VideoInfo, detections

VIDEO = VideoInfo("a", "a.mp4", "folder")
SIDE = 20.0

Matrix = NDArray[np.float64]


def worth(path: Sequence[int], scores: list[Matrix], psi: list[Matrix]) -> float:
    """Equation 5 summed over a path's steps; psi[t] is (boxes of t, boxes of t + 1)."""
    steps = zip(itertools.pairwise(path), itertools.pairwise(scores), psi, strict=True)
    return sum(float(here[i] + there[j] + links[i, j]) for (i, j), (here, there), links in steps)


def best_by_trying_all(scores: list[Matrix], psi: list[Matrix]) -> tuple[int, ...]:
    return max(itertools.product(*(range(len(s)) for s in scores)), key=lambda path: worth(path, scores, psi))


def best_by_viterbi(scores: list[Matrix], psi: list[Matrix]) -> tuple[int, ...]:
    """Forward, one matrix a step; of equals the first."""
    total, origins = np.zeros(len(scores[0])), []
    for here, there, links in zip(scores, scores[1:], psi, strict=False):
        steps = (total + here)[:, None] + links
        origins.append(steps.argmax(axis=0))
        total = steps.max(axis=0) + there
    path = [int(total.argmax())]
    for origin in reversed(origins):
        path.append(int(origin[path[-1]]))
    return tuple(reversed(path))


def repeated(find, scores: list[Matrix], psi: list[Matrix]) -> list[tuple[int, ...]]:
    """The best path, then the best of what is left, until a frame has nothing left."""
    left = [list(range(len(s))) for s in scores]
    paths = []
    while all(left):
        some_scores = [s[rows] for s, rows in zip(scores, left, strict=True)]
        some_psi = [links[np.ix_(*rows)] for links, rows in zip(psi, itertools.pairwise(left), strict=True)]
        path = tuple(rows[i] for rows, i in zip(left, find(some_scores, some_psi), strict=True))
        paths.append(path)
        left = [[row for row in rows if row != taken] for rows, taken in zip(left, path, strict=True)]
    return paths


def best_first(frame: Detections, label: int) -> list[int]:
    return sorted(np.flatnonzero(frame.labels == label), key=lambda i: (-frame.scores[i], *frame.boxes[i][::-1]))


def reference(frames: list[Detections], settings: tubes.Settings) -> list[list[tuple[int, int]]]:
    """Tubes, class by class and best first, as (frame_index, box_id) of each box."""
    stride = max([frame.moves.stride for frame in frames if frame.moves is not None], default=1)

    def psi_between(here: Detections, i: list[int], there: Detections, j: list[int]) -> Matrix:
        moves, least = here.moves, settings.min_iou
        if settings.evidence == "none":
            return np.zeros((len(i), len(j)))
        if settings.evidence != "overlap" and moves is not None and there.frame_index - here.frame_index >= stride:
            starts, ends = iou(here.boxes[i], moves.start) >= least, iou(there.boxes[j], moves.end) >= least
            return (starts[:, None] & ends[None]).any(axis=2).astype(float)
        return ((iou(here.boxes[i], there.boxes[j]) >= least) & (settings.evidence != "moves")).astype(float)

    found = []
    for label in sorted({int(label) for frame in frames for label in frame.labels}):
        own = [(frame, rows) for frame in frames if (rows := best_first(frame, label))]
        scores = [frame.scores[rows].astype(float) for frame, rows in own]
        psi = [psi_between(*here, *there) for here, there in itertools.pairwise(own)]
        for path in repeated(best_by_viterbi, scores, psi):
            found.append([(f.frame_index, int(f.box_id[rows[i]])) for (f, rows), i in zip(own, path, strict=True)])
    return found


def members(tracks: list[Track]) -> list[list[tuple[int, int]]]:
    return [list(zip(t.frame_index.tolist(), t.box_id.tolist(), strict=True)) for t in tracks]


def paths_of(scores: list[Matrix], psi: list[Matrix]) -> list[tuple[int, ...]]:
    """`best_paths` of a graph that is given as matrices."""
    first = np.cumsum([0, *map(len, scores)])
    rows = [start + np.flatnonzero(link) for start, links in zip(first, psi, strict=False) for link in links.T]
    first_link = np.cumsum([0] * (len(scores[0]) + 1) + [len(row) for row in rows])
    links = np.concatenate([*rows, np.zeros(0, np.int64)]).astype(np.int64)
    found = best_paths(np.concatenate(scores), first, first_link, links)
    return [tuple(path) for path in (found - first[:-1]).tolist()]


HAND_SCORES = [np.array([0.9, 0.6]), np.array([0.2, 0.7]), np.array([0.8, 0.5])]
LINKED, UNLINKED = np.array([[1.0, 0], [0, 0]]), np.zeros((2, 2))


@pytest.mark.parametrize(("psi", "path", "total"), [(LINKED, (0, 0, 0), 4.1), (UNLINKED, (0, 1, 0), 3.1)])
def test_best_path_by_hand(psi: Matrix, path: tuple[int, ...], total: float) -> None:
    """Evidence carries a path through a weak box; without it the best scores win."""
    assert paths_of(HAND_SCORES, [psi, psi]) == [path, tuple(1 - i for i in path)]
    assert worth(path, HAND_SCORES, [psi, psi]) == pytest.approx(total)


def test_paths_equal_those_of_trying_all() -> None:
    random = np.random.default_rng(0)
    for _ in range(300):
        sizes = random.integers(1, 5, random.integers(1, 6))
        scores = [random.random(size) for size in sizes]
        psi = [(random.random(pair) < random.random()).astype(float) for pair in itertools.pairwise(sizes)]
        expected = repeated(best_by_trying_all, scores, psi)
        assert paths_of(scores, psi) == repeated(best_by_viterbi, scores, psi) == expected
        totals = [worth(path, scores, psi) for path in expected]
        assert len(totals) == min(sizes)
        assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(totals))


def random_video(seed: int, stride: int = 1) -> list[Detections]:
    """Boxes of three classes on a coarse grid with few scores, so that ties abound; moves in some frames."""
    random = np.random.default_rng(seed)
    times = stride * np.sort(random.choice(10, random.integers(1, 9), replace=False))
    frames = []
    for t in times.tolist():
        count = int(random.integers(0, 9))
        corners = random.integers(0, 5, (count, 2)) * 6.0
        boxes = np.concatenate([corners, corners + 15 + 3 * random.integers(0, 3, (count, 2))], axis=1)
        moves = None
        if random.random() < 0.6:
            start = boxes[random.permutation(count)[: count // 2 + 1]] + random.integers(-2, 3)
            end = start + 6 * random.integers(-1, 2, (len(start), 1))
            moves = moving(start, end, stride)
        scores, labels = random.integers(1, 5, count) / 4, random.integers(0, 3, count)
        frames.append(detections(t, boxes, scores, labels, moves=moves))
    return frames


def moving(start: object, end: object, stride: int = 1) -> Moves:
    start, end = (np.asarray(boxes, np.float32).reshape(-1, 4) for boxes in (start, end))
    return Moves(start, end, np.ones(len(start), np.float32), np.full(len(start), -1, np.int32), stride)


SETTINGS = st.builds(
    tubes.Settings,
    evidence=st.sampled_from(["moves_else_overlap", "moves", "overlap", "none"]),
    min_iou=st.sampled_from([0.3, 0.5, 0.8]),
)


@given(st.integers(0, 10_000), SETTINGS, st.sampled_from([1, 3]))
@examples(max_examples=80)
def test_linker_equals_plain_numpy(seed: int, settings: tubes.Settings, stride: int) -> None:
    frames = random_video(seed, stride)
    assert members(tubes.link(frames, VIDEO, settings)[1]) == reference(frames, settings)


@given(st.integers(0, 10_000))
@examples(max_examples=30)
def test_invariants(seed: int) -> None:
    """The order of boxes is nothing; no box is in two tubes; frames and tracks tell the same scores."""
    frames = random_video(seed)
    given_out, tracks = tubes.link(frames, VIDEO, tubes.Settings())
    random = np.random.default_rng(seed)
    turned = []
    for frame in frames:
        order = random.permutation(len(frame))
        fields = {name: getattr(frame, name)[order] for name in ("boxes", "scores", "labels", "box_id")}
        turned.append(dataclasses.replace(frame, **fields))
    assert members(tubes.link(turned, VIDEO, tubes.Settings())[1]) == members(tracks)

    taken = [box for track in members(tracks) for box in track]
    assert len(taken) == len(set(taken))
    assert {(f.frame_index, int(box)) for f in given_out for box in f.box_id} == set(taken)
    scores = {(f.frame_index, int(box)): s for f in given_out for box, s in zip(f.box_id, f.scores, strict=True)}
    for track, its in zip(tracks, members(tracks), strict=True):
        assert [scores[box] for box in its] == track.scores.tolist()


def row(*where: float, scores: Sequence[float] = (), labels: Sequence[int] | None = None) -> tuple[Matrix, list, list]:
    """Boxes side by side with their left edges at these places, their scores and labels."""
    boxes = from_xywh(np.array([[x, 0, SIDE, SIDE] for x in where]).reshape(-1, 4))
    return boxes, list(scores) or [0.9 - 0.1 * i for i in range(len(where))], list(labels or [0] * len(where))


def video(*frames: tuple[float, ...]) -> list[Detections]:
    return [detections(t, *row(*where)) for t, where in enumerate(frames)]


def test_hand_case_through_the_linker() -> None:
    """Two places, moves that stay at the first of them; the weak box of the better tube is lifted most."""
    frames = [
        detections(t, *row(0, 100, scores=scores), moves=moving([0, 0, SIDE, SIDE], [0, 0, SIDE, SIDE]))
        for t, scores in enumerate(HAND_SCORES)
    ]
    given_out, tracks = tubes.link(frames, VIDEO, tubes.Settings())
    assert members(tracks) == [[(0, 0), (1, 0), (2, 0)], [(0, 1), (1, 1), (2, 1)]]
    np.testing.assert_allclose(tracks[0].scores, [1.75, 1.05, 1.65])
    np.testing.assert_allclose(tracks[0].raw_scores, [0.9, 0.2, 0.8])
    assert tracks[0].score == pytest.approx(1.9 / 3)
    np.testing.assert_allclose(given_out[1].scores, [1.05, 1.35])

    without = [dataclasses.replace(frame, moves=None) for frame in frames]
    for unlinked, evidence in ((without, "moves"), (frames, "none")):
        _, tracks = tubes.link(unlinked, VIDEO, tubes.Settings(evidence=evidence))
        assert members(tracks)[0] == [(0, 0), (1, 1), (2, 0)]


RESCORED = {
    "the mean of the best half": ({}, [1.75, 1.05, 1.65]),
    "of all": ({"alpha": 1.0}, [0.9 + 1.9 / 3, 0.2 + 1.9 / 3, 0.8 + 1.9 / 3]),
    "of the best third": ({"alpha": 1 / 3}, [1.8, 1.1, 1.7]),
    "at least one": ({"alpha": 0.01}, [1.8, 1.1, 1.7]),
    "of what is known so far": ({"rescore": "causal"}, [1.8, 1.1, 1.65]),
    "of all so far": ({"rescore": "causal", "alpha": 1.0}, [1.8, 0.75, 0.8 + 1.9 / 3]),
    "nothing": ({"rescore": "none"}, [0.9, 0.2, 0.8]),
}


@pytest.mark.parametrize(("changes", "expected"), RESCORED.values(), ids=RESCORED)
def test_rescoring_by_hand(changes: dict, expected: list[float]) -> None:
    frames = [detections(t, *row(0, scores=[score])) for t, score in enumerate([0.9, 0.2, 0.8])]
    given_out, tracks = tubes.link(frames, VIDEO, tubes.Settings(**changes))
    np.testing.assert_allclose(tracks[0].scores, expected, rtol=1e-6)
    np.testing.assert_allclose(np.concatenate([frame.scores for frame in given_out]), expected, rtol=1e-6)


def test_share_of_the_best_is_not_rounded_up_by_an_ulp() -> None:
    frames = [detections(t, *row(0, scores=[float(t < 55)])) for t in range(100)]
    assert tubes.link(frames, VIDEO, tubes.Settings(alpha=0.55))[1][0].scores[-1] == 1  # 0.55 * 100 > 55 in floats


@given(st.lists(st.integers(0, 20), min_size=1, max_size=12), st.floats(0.05, 1))
@examples(max_examples=30)
def test_causal_rescoring_ends_where_that_of_whole_tubes_does(scores: list[int], alpha: float) -> None:
    frames = [detections(t, *row(0, scores=[score / 20])) for t, score in enumerate(scores)]

    def last(rescore: str, frames: list[Detections]) -> float:
        return tubes.link(frames, VIDEO, tubes.Settings(rescore=rescore, alpha=alpha))[1][0].scores[-1]

    _, tracks = tubes.link(frames, VIDEO, tubes.Settings(rescore="causal", alpha=alpha))
    expected = [last("tube", frames[: t + 1]) for t in range(len(frames))]
    np.testing.assert_allclose(tracks[0].scores, expected, rtol=1e-6)


def jump(moves: Moves | None, when: int = 1) -> list[Detections]:
    """Two objects change places."""
    return [detections(0, *row(0, 60), moves=moves), detections(when, *row(60, 0))]


HERE, FAR, INSIDE_OUT = [0, 0, SIDE, SIDE], [60, 0, 60 + SIDE, SIDE], [60, SIDE, 60 + SIDE, 0]
EVIDENCE_CASES = {  # the box of the second frame that follows the second, weaker one of the first: 1 without evidence
    "overlap where there are no moves": (jump(None), "moves_else_overlap", 0),
    "nothing where there are no moves": (jump(None), "moves", 1),
    "moves over overlap": (jump(moving(FAR, HERE)), "moves_else_overlap", 1),
    "overlap over moves": (jump(moving(HERE, FAR)), "overlap", 0),
    "no evidence, whatever there is": (jump(moving(FAR, FAR)), "none", 1),
    "no evidence where there are no moves": (jump(None), "none", 1),
    "an empty list of moves is an answer": (jump(moving([], [])), "moves_else_overlap", 1),
    "moves alone": (jump(moving(FAR, FAR)), "moves", 0),
    "a box inside out is nowhere": (jump(moving(FAR, INSIDE_OUT)), "moves", 1),
    "moves that lead too far say nothing": (jump(moving(HERE, FAR, stride=2)), "moves_else_overlap", 0),
    "moves count for a step that jumps": (jump(moving(FAR, FAR), when=4), "moves", 0),
}


@pytest.mark.parametrize(("frames", "evidence", "follows"), EVIDENCE_CASES.values(), ids=EVIDENCE_CASES)
def test_evidence(frames: list[Detections], evidence: str, follows: int) -> None:
    _, tracks = tubes.link(frames, VIDEO, tubes.Settings(evidence=evidence))
    assert {int(track.box_id[0]): int(track.box_id[1]) for track in tracks}[1] == follows


def test_moves_need_both_ends_and_exactly_half_is_enough() -> None:
    """The IoU of squares a third apart is .5. Without evidence box 0, which scores more, would follow."""
    third = SIDE / 3
    for shift, follows in ((third - 0.01, 1), (third + 0.01, 0)):
        moved = moving([shift, 0, shift + SIDE, SIDE], [100, 0, 100 + SIDE, SIDE])
        frames = [detections(0, *row(0), moves=moved), detections(1, *row(50, 100, scores=[0.9, 0.5]))]
        assert tubes.link(frames, VIDEO, tubes.Settings())[1][0].box_id[1] == follows
    for wide in ([10, 0, 20, 20], [-20, 0, 20, 20]):  # the furthest to the right and left that can have .5 of box 1
        frames = [detections(0, *row(60), moves=moving(FAR, wide)), detections(1, *row(80, 0))]
        assert tubes.link(frames, VIDEO, tubes.Settings())[1][0].box_id[1] == 1


LENGTH_CASES = {
    "a tube has a box in every frame of its class": (video((0, 50), (0, 50), (0, 50)), {}, [(0, 3), (0, 3)]),
    "the emptiest frame bounds their number": (video((0, 50, 90), (0,), (0, 50)), {}, [(0, 3)]),
    "frames without a box are jumped over": (video((0,), (), (), (0,)), {}, [(0, 2)]),
    "but not too many of them": (video((0,), (0,), (), (), (0,)), {"max_gap": 1}, [(0, 2), (4, 1)]),
    "as many as allowed": (video((0,), (0,), (), (), (0,)), {"max_gap": 2}, [(0, 3)]),
    "each side of a long gap has its own number": (video((0, 50), (), (0,)), {"max_gap": 0}, [(0, 1), (0, 1), (2, 1)]),
    "weak boxes take no part": (video((0, 50), (0, 50), (0,)), {"min_score": 0.85}, [(0, 3)]),
    "nothing is left above the floor": (video((0,), (0,)), {"min_score": 0.95}, []),
}


@pytest.mark.parametrize(("frames", "changes", "expected"), LENGTH_CASES.values(), ids=LENGTH_CASES)
def test_where_tubes_begin_and_how_long_they_are(frames: list[Detections], changes: dict, expected: list) -> None:
    _, tracks = tubes.link(frames, VIDEO, tubes.Settings(**changes))
    assert [(int(track.frame_index[0]), len(track)) for track in tracks] == expected


def test_classes_are_linked_apart() -> None:
    frames = [detections(t, *row(0, 0, 50, labels=[2, 1, 1])) for t in range(3)]
    _, tracks = tubes.link(frames, VIDEO, tubes.Settings())
    assert [track.label for track in tracks] == [1, 1, 2]
    assert [set(track.box_id.tolist()) for track in tracks] == [{1}, {2}, {0}]


def test_unlinked_boxes_are_dropped_with_all_that_belongs_to_them_or_kept_as_they_came() -> None:
    evidence = {"embeddings": [[1, 2], [3, 4]], "tracklet_id": [7, 8], "class_scores": [[0.1, 0.9], [0.2, 0.8]]}
    frames = [detections(0, *row(0, 50), **evidence, tracked=[True, False]), detections(1, *row(50))]
    given_out, tracks = tubes.link(frames, VIDEO, tubes.Settings())
    assert given_out[0].box_id.tolist() == [1]
    assert given_out[0].embeddings.tolist() == [[3, 4]]
    assert given_out[0].tracklet_id.tolist() == [8]
    assert not tracks[0].tracked.any()
    given_out, _ = tubes.link(frames, VIDEO, tubes.Settings(keep_unlinked=True))
    np.testing.assert_allclose(given_out[0].scores, [0.9, 0.8 + 0.9])


def strided(last: int, stride: int) -> list[Detections]:
    """A box that moves 3 pixels a frame, seen every `stride` frames; all frames are on record."""
    frames = [detections(t) for t in range(last + 1)]
    for t in range(0, last + 1, stride):
        here, there = (from_xywh([[3.0 * x, 0, SIDE, SIDE]]) for x in (t, t + stride))
        frames[t] = detections(t, here, [0.5 + 0.01 * t], moves=moving(here, there, stride))
    return frames


def test_frames_that_a_stride_leaves_out_get_boxes_if_they_are_on_record() -> None:
    frames = [frame for frame in strided(20, stride=10) if frame.frame_index != 7]
    (track,) = tubes.link(frames, VIDEO, tubes.Settings(rescore="none"))[1]
    when = np.delete(np.arange(21), 7)
    assert track.frame_index.tolist() == when.tolist()
    assert track.box_id.tolist() == np.where(when % 10 == 0, 0, -1).tolist()
    np.testing.assert_allclose(track.boxes[:, 0], 3.0 * when, rtol=1e-6)
    np.testing.assert_allclose(track.scores, 0.5 + 0.01 * when, rtol=1e-6)


def test_a_stride_is_no_gap_and_jumps_are_filled_only_when_asked() -> None:
    frames = strided(30, stride=10)
    frames[10] = detections(10)  # looked at, and nothing was seen
    (track,) = tubes.link(frames, VIDEO, tubes.Settings(max_gap=10))[1]
    assert track.frame_index.tolist() == [0, *range(20, 31)]
    assert [len(track) for track in tubes.link(frames, VIDEO, tubes.Settings(max_gap=9))[1]] == [1, 11]
    (track,) = tubes.link(frames, VIDEO, tubes.Settings(interpolate_jumps=True))[1]
    assert track.frame_index.tolist() == list(range(31))


def identity_switches(evidence: str, shuffled: bool, seed: int) -> int:
    """Steps of tubes from one object to another, where six fast objects of one class cross a frame."""
    random = np.random.default_rng(seed)
    start, speed = random.uniform(0, 600, (6, 2)), random.uniform(12, 25, (6, 2)) * random.choice([-1, 1], (6, 2))
    true = [from_xywh(np.c_[start + speed * t, np.full((6, 2), SIDE)]) for t in range(16)]
    frames = []
    for t in range(15):
        ends = true[t + 1][random.permutation(6)] if shuffled else true[t + 1]
        boxes = true[t] + random.normal(0, 1, (6, 4))
        frames.append(detections(t, boxes, random.uniform(0.6, 0.9, 6), moves=moving(true[t], ends)))
    _, tracks = tubes.link(frames, VIDEO, tubes.Settings(evidence=evidence))
    return sum(int(np.count_nonzero(np.diff(track.box_id))) for track in tracks)


def test_moves_keep_identities_and_shuffled_moves_lose_them() -> None:
    def total(evidence: str, shuffled: bool) -> int:
        return sum(identity_switches(evidence, shuffled, seed) for seed in range(5))

    of_moves, of_overlap, of_shuffled = total("moves", False), total("overlap", False), total("moves", True)
    assert 20 * of_moves < min(of_overlap, of_shuffled)


@pytest.mark.data
@pytest.mark.parametrize("name", ["TUD-Campus", "TUD-Stadtmitte"])
def test_real_detections_are_linked_as_by_plain_numpy(data: Path, name: str) -> None:
    rows = np.loadtxt(data / "mot15" / name / "det" / "det.txt", delimiter=",")
    frames = [
        detections(int(t), from_xywh(rows[rows[:, 0] == t, 2:6]), rows[rows[:, 0] == t, 6])
        for t in np.unique(rows[:, 0])
    ]
    given_out, tracks = tubes.link(frames, VIDEO, tubes.Settings())
    assert members(tracks) == reference(frames, tubes.Settings())
    assert {len(frame) for frame in given_out} == {len(tracks)} == {min(map(len, frames))}


WRONG_SETTINGS = [
    ({"min_iou": 0}, "linker tubes.min_iou is 0; it must be above 0 and at most 1"),
    ({"alpha": 1.5}, "linker tubes.alpha is 1.5; it must be above 0 and at most 1"),
    ({"max_gap": -1}, "linker tubes.max_gap is -1; it must be none or at least 0"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_SETTINGS)
def test_settings_out_of_range_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tubes.Settings(**changes)
