"""Rescoring: every rule by hand, and what it leaves as it was."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.linkers.parts.rescoring import Rule, rescore, rescore_frames
from pipeline.records import Track, detections

BOX = [0, 0, 10, 10]


def track(scores: list[float], box_id: list[int] | None = None) -> Track:
    count = len(scores)
    return Track(
        track_id=1,
        label=0,
        score=0.25,
        frame_index=np.arange(count, dtype=np.int32),
        boxes=np.tile(np.float32(BOX), (count, 1)),
        scores=np.array(scores, np.float32),
        raw_scores=np.array(scores, np.float32),
        box_id=np.array(box_id or [0] * count, np.int32),
        tracked=np.zeros(count, bool),
    )


SCORES = [0.2, 0.8, 0.5, 0.1]
RULES: dict[str, tuple[Rule, dict[str, float], list[float]]] = {
    "none": ("none", {}, SCORES),
    "mean": ("mean", {}, [0.4] * 4),
    "max": ("max", {}, [0.8] * 4),
    "best half": ("top", {"share": 0.5}, [0.65] * 4),
    "best share rounds up": ("top", {"share": 0.51}, [0.5] * 4),
    "of a small share the best one": ("top", {"share": 0.01}, [0.8] * 4),
    "of all the mean": ("top", {"share": 1.0}, [0.4] * 4),
    # of 1, 2, 3, 4 scores so far the best 1, 1, 2, 2
    "causal": ("causal", {"share": 0.5}, [0.2, 0.8, 0.65, 0.65]),
    "causal of all is the mean so far": ("causal", {"share": 1.0}, [0.2, 0.5, 0.5, 0.4]),
    "running without decay is the mean so far": ("running", {"decay": 1.0}, [0.2, 0.5, 0.5, 0.4]),
    "running that forgets all": ("running", {"decay": 0.0}, SCORES),
    # (.8 + .5 * .2) / 1.5 = .6; (.5 + 1 * .6) / 2 = .55; (.1 + 1.5 * .55) / 2.5 = .37
    "running": ("running", {"decay": 0.5}, [0.2, 0.6, 0.55, 0.37]),
}


@pytest.mark.parametrize(("rule", "options", "expected"), RULES.values(), ids=RULES)
def test_known_answers(rule: Rule, options: dict[str, float], expected: list[float]) -> None:
    (rescored,) = rescore([track(SCORES)], rule, **options)
    assert rescored.scores == pytest.approx(expected)
    assert rescored.scores.dtype == np.float32
    assert rescored.raw_scores == pytest.approx(SCORES)
    assert rescored.score == 0.25


def test_a_rounding_error_adds_nobody_to_the_best() -> None:
    """.1 of 30 scores is 3.0000000000000004 of them: three, not four."""
    (rescored,) = rescore([track([0.9, 0.9, 0.9, *[0.0] * 27])], "top", share=0.1)
    assert rescored.scores == pytest.approx([0.9] * 30)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20), st.floats(0.05, 1))
def test_causal_is_top_of_what_there_is_so_far(scores: list[float], share: float) -> None:
    (causal,) = rescore([track(scores)], "causal", share=share)
    for length in range(1, len(scores) + 1):
        (top,) = rescore([track(scores[:length])], "top", share=share)
        assert causal.scores[length - 1] == pytest.approx(top.scores[-1], abs=1e-6)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20), st.sampled_from(list(RULES.values())))
def test_new_scores_lie_among_the_old_and_each_track_is_by_itself(scores: list[float], case: tuple) -> None:
    rule, options, _ = case
    alone, other = rescore([track(scores), track([0.5])], rule, **options)
    assert min(scores) - 1e-6 <= alone.scores.min() <= alone.scores.max() <= max(scores) + 1e-6
    assert other.scores.tolist() == [0.5]


def test_frames_get_the_tracks_scores_and_keep_the_rest() -> None:
    frames = [detections(t, [BOX, BOX, BOX], [0.1, 0.2, 0.3], box_id=[7, 8, 9]) for t in range(3)]
    given_ = [track([0.9, 0.8], box_id=[8, -1]), track([0.4], box_id=[9])]
    rescored = rescore_frames(frames, given_)
    assert [frame.scores.tolist() for frame in rescored] == [
        pytest.approx([0.1, 0.9, 0.4]),
        pytest.approx([0.1, 0.2, 0.3]),
        pytest.approx([0.1, 0.2, 0.3]),
    ]
    assert all(np.array_equal(one.box_id, other.box_id) for one, other in zip(frames, rescored, strict=True))
