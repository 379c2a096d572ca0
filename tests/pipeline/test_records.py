"""Records refuse what they must not hold."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.records import Moves, Track

GOOD_TRACK = {
    "track_id": 1,
    "label": 0,
    "score": 0.5,
    "frame_index": np.array([3, 5], np.int32),
    "boxes": np.array([[0, 0, 2, 2], [1, 0, 3, 2]], np.float32),
    "scores": np.array([0.5, 0.5], np.float32),
    "raw_scores": np.array([0.5, 0.5], np.float32),
    "box_id": np.array([0, -1], np.int32),
    "tracked": np.array([False, False]),
}

BAD_TRACKS = {
    "an id of 0": ({"track_id": 0}, r"Track\.track_id is 0; ids start at 1"),
    "one score too many": ({"scores": np.ones(3, np.float32)}, "Track 1: lengths differ"),
    "the same frame twice": ({"frame_index": np.array([3, 3], np.int32)}, "Track 1 does not rise strictly in time"),
    "back in time": ({"frame_index": np.array([5, 3], np.int32)}, "Track 1 does not rise strictly in time"),
    "boxes of three numbers": ({"boxes": np.ones((2, 3), np.float32)}, r"boxes have shape \(2, 3\)"),
    **{
        f"a box {name}": ({"boxes": np.array([[0, 0, 2, 2], box], np.float32)}, "Track 1: box 1 is")
        for name, box in {
            "of no width": [1, 0, 1, 2],
            "of no height": [1, 2, 3, 2],
            "turned over": [3, 0, 1, 2],
            "of unknown place": [np.nan, 0, 1, 2],
            "without end": [0, 0, np.inf, 2],
            "without beginning": [0, -np.inf, 1, 2],
        }.items()
    },
}


@pytest.mark.parametrize(("changes", "message"), BAD_TRACKS.values(), ids=BAD_TRACKS.keys())
def test_bad_tracks_are_refused(changes: dict, message: str) -> None:
    assert len(Track(**GOOD_TRACK)) == 2
    with pytest.raises(ValueError, match=message):
        Track(**{**GOOD_TRACK, **changes})


@pytest.mark.parametrize("stride", [0, -1])
def test_moves_lead_forward(stride: int) -> None:
    nothing = np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32)
    assert Moves(*nothing).stride == 1
    with pytest.raises(ValueError, match=rf"Moves\.stride is {stride}; it must be at least 1"):
        Moves(*nothing, stride)
