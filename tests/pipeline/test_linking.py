"""One video through the link stage."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.linking import Link
from pipeline.recipe import Recipe
from pipeline.records import detections
from pipeline.schemas import detections_table


def test_boxes_of_tracks_that_are_too_weak_come_out_rescored_with_their_raw_scores() -> None:
    frames = [detections(t, [[t, 0, t + 9, 9]], [0.2 + 0.1 * t]) for t in range(3)]
    recipe = Recipe("test", linker="tubes", tracking_threshold=0.9)
    run = SimpleNamespace(about={"classes": ["thing"]})
    row = {"video_id": "a", "uri": "", "catalog": "", "fps": 30.0, "height": 9, "width": 9}
    rows = Link(run, recipe, run).tracks(row, detections_table("a", "clip", frames, np.ones(3, bool)))
    assert rows["track_id"].to_pylist() == [None] * 3
    assert rows["raw_score"].to_pylist() == pytest.approx([0.2, 0.3, 0.4])
    assert rows["score"].to_pylist() == pytest.approx([0.55, 0.65, 0.75])  # with the mean of the two best
