"""Tracktor's rules by hand: tracks are born, followed, ended and taken up again; tables play the networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.parts.anchors import PlainDetections
from models.parts.regressed_tracks import Rules, State, Tracks, no_tracks, same_object, step

Box = tuple[float, float, float, float]

# Boxes of 20 x 20 px; the number is by how many px they lie right of A. IoU: 2 .82, 4 .67, 6 .54, 8 .43, 12 .25.
A, A2, A4, A6, A8, A12 = ((10.0 + d, 10.0, 30.0 + d, 30.0) for d in (0, 2, 4, 6, 8, 12))
FAR, FAR2 = (60.0, 10.0, 80.0, 30.0), (62.0, 10.0, 82.0, 30.0)
NOWHERE = (40.0, 0.0, 40.0, 20.0)  # cut away at a border

RED, PINK, BLUE = (1.0, 0.0, 0.0), (0.8, 0.6, 0.0), (0.0, 0.0, 1.0)  # RED to PINK .63, to BLUE 1.41

ONCE = Rules(patience=None)  # Tracktor
AGAIN = Rules(patience=2)  # Tracktor++
Row = tuple[Box, int, int, float, bool]  # box, label, id, score, tracked


class Film:
    """Plays frames to the rules: what the second stage says of each box and what is in it is given by tables."""

    def __init__(self, rules: Rules, frames: int = 10) -> None:
        self.rules = rules
        self.state = State(no_tracks(frames, 3), no_tracks(frames, 3), 0)
        self.asked: list[list[tuple[Box, int]]] = []

    def play(
        self,
        found: Sequence[tuple[Box, int, float]] = (),
        moves: Mapping[Box, tuple[Box, float]] | None = None,
        looks: Mapping[Box, tuple[float, float, float]] | None = None,
    ) -> list[Row]:
        """One frame. found: the detections: box, label, score. moves: where the second stage takes boxes, and scores;
        the others are background. looks: of boxes; the others look RED."""

        def regress(boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            self.asked.append(list(zip(map(tuple, boxes.tolist()), labels.tolist(), strict=True)))
            ends = [(moves or {}).get(tuple(box), (tuple(box), 0.1)) for box in boxes.tolist()]
            return as_boxes([end for end, _ in ends]), torch.tensor([score for _, score in ends])

        def embed(boxes: Tensor) -> Tensor:
            return torch.tensor([(looks or {}).get(tuple(box), RED) for box in boxes.tolist()]).reshape(-1, 3)

        best_first = sorted(found, key=lambda each: -each[2])
        detections = PlainDetections(
            as_boxes([box for box, _, _ in best_first]),
            torch.tensor([score for *_, score in best_first]),
            torch.tensor([label for _, label, _ in best_first], dtype=torch.long),
            torch.arange(len(best_first)),
        )
        row, self.state = step(self.state, detections, regress, embed, self.rules)
        names = ("boxes", "labels", "tracklet_id", "scores", "tracked")
        columns = [row[name].tolist() for name in names]
        return [
            (tuple(box), label, track, round(score, 4), tracked)
            for box, label, track, score, tracked in zip(*columns, strict=True)
        ]


def as_boxes(boxes: Sequence[Box]) -> Tensor:
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def test_nothing_comes_of_nothing() -> None:
    film = Film(ONCE)
    assert film.play() == film.play() == []


def test_a_sure_detection_is_born_and_others_are_given_out() -> None:
    film = Film(ONCE)
    assert film.play([(A, 0, 0.6), (FAR, 0, 0.5)]) == [(A, 0, 0, 0.6, False), (FAR, 0, -1, 0.5, False)]


def test_a_track_goes_where_the_second_stage_takes_it() -> None:
    film = Film(ONCE)
    film.play([(A, 0, 0.9)])
    assert film.play(moves={A: (A4, 0.7)}) == [(A4, 0, 0, 0.7, True)]
    assert film.play(moves={A4: (FAR, 0.6)}) == [(FAR, 0, 0, 0.6, True)], "the detector need not find it"
    assert film.asked == [[], [(A, 0)], [(A4, 0)]]


@pytest.mark.parametrize(("score", "lives"), [(0.51, True), (0.5, False), (0.1, False)])
def test_a_track_lives_by_its_score(score: float, lives: bool) -> None:
    film = Film(ONCE)
    film.play([(A, 0, 0.9)])
    assert bool(film.play(moves={A: (A2, score)})) == lives
    assert bool(film.play(moves={A2: (A4, 0.9)})) == lives, "what ended is not looked for again"


def test_a_track_that_leaves_the_frame_ends() -> None:
    film = Film(ONCE)
    film.play([(A, 0, 0.9)])
    assert film.play(moves={A: (NOWHERE, 0.9)}) == []


def test_of_two_tracks_on_one_object_the_better_lives() -> None:
    film = Film(ONCE)
    film.play([(A, 0, 0.9), (FAR, 0, 0.8)])
    assert film.play(moves={A: (A, 0.7), FAR: (A4, 0.8)}) == [(A4, 0, 1, 0.8, True)]  # IoU .67


@pytest.mark.parametrize(("where", "labels"), [(A6, (0, 0)), (A2, (0, 1))], ids=["IoU .54", "other class"])
def test_two_tracks_that_are_two_objects_live(where: Box, labels: tuple[int, int]) -> None:
    film = Film(ONCE)
    film.play([(A, labels[0], 0.9), (FAR, labels[1], 0.8)])
    assert [row[2] for row in film.play(moves={A: (A, 0.7), FAR: (where, 0.8)})] == [0, 1]


def test_a_track_keeps_its_class_and_is_asked_for_it() -> None:
    film = Film(ONCE)
    film.play([(A, 1, 0.9)])
    (track, other) = film.play([(A2, 0, 0.95)], moves={A: (A2, 0.6)})
    assert track == (A2, 1, 0, 0.6, True)
    assert other == (A2, 0, 1, 0.95, False), "an object of another class may be in the same place"
    film.play(moves={A2: (A4, 0.6)})
    assert film.asked[1:] == [[(A, 1)], [(A2, 1), (A2, 0)]]


@pytest.mark.parametrize(
    ("where", "score", "expected"),
    [
        (A2, 0.8, [(A, 0, 0, 0.8, True)]),  # the track stands for it, and is as sure
        (A2, 0.6, [(A, 0, 0, 0.7, True)]),
        (A8, 0.8, [(A, 0, 0, 0.7, True), (A8, 0, -1, 0.8, False)]),  # IoU .43: no new track, but maybe an object
        (A12, 0.8, [(A, 0, 0, 0.7, True), (A12, 0, 1, 0.8, False)]),  # IoU .25
        (A12, 0.5, [(A, 0, 0, 0.7, True), (A12, 0, -1, 0.5, False)]),
    ],
)
def test_a_detection_near_a_track_is_no_new_one(where: Box, score: float, expected: list[Row]) -> None:
    film = Film(ONCE)
    film.play([(A, 0, 0.9)])
    assert film.play([(where, 0, score)], moves={A: (A, 0.7)}) == expected


def test_of_detections_on_one_object_the_best_is_born() -> None:
    assert Film(ONCE).play([(A, 0, 0.8), (A8, 0, 0.7), (A8, 1, 0.6)]) == [
        (A, 0, 0, 0.8, False),
        (A8, 1, 1, 0.6, False),
        (A8, 0, -1, 0.7, False),
    ]


def test_without_appearances_what_is_lost_comes_back_as_another() -> None:
    film = Film(ONCE)
    film.play([(A, 0, 0.9)])
    film.play()
    assert len(film.state.inactive.ids) == 0
    assert film.play([(A, 0, 0.9)]) == [(A, 0, 1, 0.9, False)]


@pytest.mark.parametrize(("absent", "expected"), [(0, 0), (1, 0), (2, 0), (3, 1)])
def test_a_track_waits_as_long_as_patience_goes(absent: int, expected: int) -> None:
    """Of 0 frames: it ends in the frame in which it is found again."""
    film = Film(AGAIN)
    film.play([(A, 0, 0.9)])
    for _ in range(absent):
        assert film.play() == []
    assert film.play([(A4, 0, 0.8)]) == [(A4, 0, expected, 0.8, False)]
    assert film.play(moves={A4: (A6, 0.8)}) == [(A6, 0, expected, 0.8, True)]
    assert len(film.state.inactive.ids) == 0, "what came back waits no more"


@pytest.mark.parametrize(
    ("where", "label", "looks", "rules", "expected"),
    [
        (A4, 0, RED, AGAIN, 0),
        (A4, 0, PINK, AGAIN, 0),
        (A4, 0, BLUE, AGAIN, 1),  # looks like another
        (A4, 0, PINK, replace(AGAIN, reid_distance=0.6), 1),
        (A4, 1, RED, AGAIN, 1),  # is of another class
        (FAR, 0, RED, AGAIN, 1),  # is somewhere else
        (FAR, 0, RED, replace(AGAIN, reid_iou=0.0), 0),
        (A12, 0, RED, replace(AGAIN, reid_iou=0.26), 1),
    ],
)
def test_who_is_the_same_object(
    where: Box, label: int, looks: tuple[float, float, float], rules: Rules, expected: int
) -> None:
    film = Film(rules)
    film.play([(A, 0, 0.9)])
    film.play()
    assert [row[2] for row in film.play([(where, label, 0.9)], looks={where: looks})] == [expected]


def test_a_lost_track_waits_where_it_was_last_seen() -> None:
    """Not where the second stage went astray when it lost it; and it moves with the camera."""
    film = Film(AGAIN)
    film.play([(A, 0, 0.9)])
    film.play(moves={A: (FAR, 0.2)})
    assert film.state.inactive.boxes.tolist() == [list(A)]
    film.state = film.state.moved(torch.tensor([[1.0, 0, 50], [0, 1, 0]]))
    assert film.play([(FAR2, 0, 0.9)]) == [(FAR2, 0, 0, 0.9, False)]


def test_what_comes_back_stands_before_what_is_new_each_with_its_own_score() -> None:
    film = Film(AGAIN)
    film.play([(A, 0, 0.9)])
    film.play()
    assert film.play([(FAR, 0, 0.8), (A4, 0, 0.6)]) == [(A4, 0, 0, 0.6, False), (FAR, 0, 1, 0.8, False)]


def test_a_track_lost_to_another_comes_back_beside_it() -> None:
    film = Film(AGAIN)
    film.play([(A, 0, 0.9), (A12, 0, 0.8)])
    covered = film.play(moves={A: (A8, 0.9), A12: (A8, 0.8)})
    assert [row[2] for row in covered] == [0]
    apart = film.play([(FAR, 0, 0.9), (A8, 0, 0.9)], moves={A8: (A, 0.9)})
    assert [(row[0], row[2]) for row in apart] == [(A, 0), (FAR, 2), (A8, -1)]  # A8 is too near A to be apart
    apart = film.play([(A12, 0, 0.9)], moves={A: (A, 0.9), FAR: (FAR, 0.9)})
    assert [(row[0], row[2]) for row in apart] == [(A, 0), (FAR, 2), (A12, 1)]


@pytest.mark.parametrize(("frames", "expected"), [(10, 1), (2, 0), (1, 0)])
def test_an_appearance_is_the_mean_of_the_last_ones(frames: int, expected: int) -> None:
    """BLUE for four frames, then RED for two: of all six it is nearer to BLUE, of the last two it is RED."""
    film = Film(replace(AGAIN, reid_distance=0.8), frames)
    film.play([(A, 0, 0.9)], looks={A: BLUE})
    for look in (BLUE, BLUE, BLUE, RED, RED):
        film.play(moves={A: (A, 0.9)}, looks={A: look})
    (mean,) = film.state.active.mean_appearance()
    blue = max(0, min(frames, 6) - 2) / min(frames, 6)
    torch.testing.assert_close(mean, torch.tensor([1 - blue, 0, blue]))
    film.play()
    assert [row[2] for row in film.play([(A, 0, 0.9)], looks={A: RED})] == [expected]


def ended(embeddings: Tensor) -> Tracks:
    """Tracks of class 0 at A that looked like these (M, E) when they were last seen."""
    count = len(embeddings)
    zeros = torch.zeros(count, dtype=torch.long)
    one = torch.ones(count, dtype=torch.long)
    return Tracks(as_boxes([A] * count), zeros, torch.arange(count), zeros, embeddings[:, None], one)


def matched(ours: Tensor, theirs: Tensor, rules: Rules = AGAIN) -> list[int]:
    count = len(ours)
    zeros = torch.zeros(count, dtype=torch.long)
    new = PlainDetections(as_boxes([A] * count), torch.ones(count), zeros, zeros)
    return same_object(ended(theirs), new, ours, rules).tolist()


def on_a_line(*places: float) -> Tensor:
    return torch.tensor(places)[:, None]


def test_objects_are_told_apart_together() -> None:
    """The nearest pair first would leave the other two 1.5 or 1.9 apart, which is too far."""
    assert matched(on_a_line(0.0, 0.9), on_a_line(-0.6, 0.3)) == [0, 1]
    assert matched(on_a_line(0.0, 0.9), on_a_line(0.3, -1.0)) == [1, 0]
    assert matched(on_a_line(0.0), on_a_line(0.3, -0.2)) == [1]
    assert matched(on_a_line(0.0, 0.1, 5.0), on_a_line(0.2)) == [-1, 0, -1]
    assert matched(on_a_line(0.0), on_a_line()) == [-1]
    assert matched(on_a_line(), on_a_line(0.0)) == []


def test_a_pair_too_far_apart_does_not_part_another() -> None:
    """1.0 + 1.1 is less than 0.1 + 2.2, but only one pair of either is near enough."""
    assert matched(on_a_line(0.0, 1.2), on_a_line(0.1, -1.0)) == [0, -1]


places = st.lists(st.floats(-2, 2, width=16), max_size=4)


@given(places, places)
def test_as_many_as_can_be_at_the_least_sum(ours: list[float], theirs: list[float]) -> None:
    """Against all ways to match them."""
    found = matched(on_a_line(*ours), on_a_line(*theirs))
    distance = [[abs(one - other) for other in theirs] for one in ours]

    def value(match: Sequence[int]) -> tuple[int, float]:
        pairs = [distance[i][j] for i, j in enumerate(match) if j >= 0]
        return -len(pairs), sum(pairs)

    taken = [j for j in found if j >= 0]
    assert len(taken) == len(set(taken))
    assert all(distance[i][j] <= 1.0 for i, j in enumerate(found) if j >= 0)
    choices = [*range(len(theirs)), *[-1] * len(ours)]
    best = min(
        value(match)
        for match in permutations(choices, len(ours))
        if all(j < 0 or distance[i][j] <= 1.0 for i, j in enumerate(match))
    )
    assert value(found) == pytest.approx(best, abs=1e-4)


spots = st.sampled_from([A, A2, A4, A6, A8, A12, FAR, FAR2])
scores = st.sampled_from([0.1, 0.4, 0.55, 0.7, 0.9])
frames = st.lists(
    st.tuples(
        st.lists(st.tuples(spots, st.integers(0, 1), scores), max_size=5),
        st.dictionaries(spots, st.tuples(spots, scores)),
        st.dictionaries(spots, st.sampled_from([RED, PINK, BLUE])),
    ),
    max_size=6,
)


@given(frames, st.sampled_from([ONCE, AGAIN]))
def test_whatever_is_played(
    played: list[tuple[list[tuple[Box, int, float]], dict[Box, tuple[Box, float]], dict[Box, tuple[float, ...]]]],
    rules: Rules,
) -> None:
    """Ids are unique in a frame, of one class for ever, and new ones follow one another; tracks stay in the rows."""
    film = Film(rules)
    classes: dict[int, int] = {}
    for found, moves, looks in played:
        rows = film.play(found, moves, looks)  # type: ignore[arg-type]
        tracks = [row for row in rows if row[2] >= 0]
        assert rows[: len(tracks)] == tracks, "tracks come first"
        ids = [row[2] for row in tracks]
        assert len(set(ids)) == len(ids)
        assert all(classes.setdefault(row[2], row[1]) == row[1] for row in tracks)
        assert film.state.active.ids.tolist() == ids
        assert not set(ids) & set(film.state.inactive.ids.tolist())
        assert len(classes) == film.state.next_id
        assert all(score > 0.5 for _, _, track, score, _ in rows if track >= 0)
        assert (film.state.inactive.missed <= 2).all()
        assert rules.patience is not None or not len(film.state.inactive.ids)
