"""Identities of boxes become tracks."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.records import Detections, detections
from pipeline.tracks import tracks_of

Rows = list[tuple[float, int, int]]  # score, class, identity; a box's place is its row and frame


def video(*frames: Rows) -> tuple[list[Detections], list[np.ndarray]]:
    given = [
        detections(
            t,
            [[9 * row, t, 9 * row + 5, t + 5] for row in range(len(rows))],
            [r[0] for r in rows],
            [r[1] for r in rows],
        )
        for t, rows in enumerate(frames)
    ]
    return given, [np.array([row[2] for row in rows], np.int32) for rows in frames]


CASES = {
    "no frame": ([], {}, []),
    "no box": ([[], []], {}, []),
    "boxes of nobody": ([[(0.9, 0, -1)], [(0.9, 0, -2)]], {}, []),
    "one box": ([[(0.5, 3, 7)]], {}, [(3, 0.5, [(0, 0)])]),
    "numbered as they appear": (
        [[(0.5, 0, 9)], [(0.5, 0, 4), (0.5, 0, 2)]],
        {},
        [(0, 0.5, [(0, 0)]), (0, 0.5, [(1, 0)]), (0, 0.5, [(1, 1)])],
    ),
    "the class of most evidence": (
        [[(0.9, 2, 1)], [(0.5, 1, 1)], [(0.5, 1, 1)]],
        {},
        [(1, 1.9 / 3, [(0, 0), (1, 0), (2, 0)])],
    ),
    "of two boxes the better": ([[(0.5, 0, 1), (0.7, 1, 1)]], {}, [(1, 0.7, [(0, 1)])]),
    "too short, and numbers without a gap": (
        [[(0.5, 0, 1), (0.5, 0, 2)], [(0.5, 0, 2)]],
        {"min_length": 2},
        [(0, 0.5, [(0, 1), (1, 0)])],
    ),
}


@pytest.mark.parametrize(("frames", "options", "expected"), CASES.values(), ids=CASES.keys())
def test_known_answers(frames: list[Rows], options: dict, expected: list) -> None:
    tracks = tracks_of(*video(*frames), **options)
    assert [track.track_id for track in tracks] == [*range(1, len(expected) + 1)]
    for track, (label, score, boxes) in zip(tracks, expected, strict=True):
        assert (track.label, track.score) == (label, pytest.approx(score))
        assert [*zip(track.frame_index.tolist(), track.box_id.tolist(), strict=True)] == boxes


def test_new_scores_and_old_ones() -> None:
    frames, ids = video([(0.5, 0, 1), (0.6, 0, -1)], [(0.7, 0, 1)])
    rescored = [dataclasses.replace(frame, scores=frame.scores + 1) for frame in frames]
    (track,) = tracks_of(frames, ids, rescored)
    np.testing.assert_allclose(track.raw_scores, [0.5, 0.7], rtol=1e-6)
    np.testing.assert_allclose(track.scores, [1.5, 1.7], rtol=1e-6)
    assert track.score == pytest.approx(0.6)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30)
def test_the_order_of_boxes_says_nothing(seed: int) -> None:
    """Scores of few values and identities that come twice in a frame, so that there are ties."""
    random = np.random.default_rng(seed)
    counts = random.integers(0, 5, 4)
    frames, ids = video(
        *[
            [*zip(random.choice([0.5, 0.75], n), random.integers(0, 2, n), random.integers(-1, 3, n), strict=True)]
            for n in counts
        ]
    )
    orders = [random.permutation(n) for n in counts]
    turned = [
        dataclasses.replace(
            f, boxes=f.boxes[order], scores=f.scores[order], labels=f.labels[order], box_id=f.box_id[order]
        )
        for f, order in zip(frames, orders, strict=True)
    ]
    one = tracks_of(frames, ids)
    other = tracks_of(turned, [mine[order] for mine, order in zip(ids, orders, strict=True)])
    for first, second in zip(one, other, strict=True):
        for name in (field.name for field in dataclasses.fields(first)):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)
