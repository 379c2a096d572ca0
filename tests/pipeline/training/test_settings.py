"""Settings that make no sense are refused, with what, got and allowed."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.training.settings import Stills, Training


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"loaders": -1}, "loaders is -1; it must be at least 0"),
        ({"learning_rate": 0.0}, r"learning_rate is 0.0; it must be above 0"),
        ({"batch_size": 9, "workers": 2}, "batch_size is 9, which 2 workers cannot share"),
        ({"average": 1.0}, "average is 1.0; it must be at least 0 and below 1"),
        ({"frames_per_clip": 0}, "frames_per_clip is 0; it must be at least 1"),
        ({"frames_per_clip": 2, "min_gap": 0}, "min_gap is 0 and max_gap 1; they must be at least 1"),
        ({"frames_per_clip": 2, "min_gap": 3, "max_gap": 2}, "min_gap is 3 and max_gap 2; .* no smaller than min_gap"),
        ({"max_gap": 2}, "min_gap, max_gap and reverse are of several frames; give frames_per_clip=2 or more"),
        ({"reverse": True}, "min_gap, max_gap and reverse are of several frames; give frames_per_clip=2 or more"),
        ({"schedule": "steps"}, r"schedule is 'steps' and drops \(\); drops are the steps at which schedule 'steps'"),
        ({"drops": (5,)}, r"schedule is 'cosine' and drops \(5,\); drops are the steps at which schedule 'steps'"),
        ({"stills": {}}, "stills are {}; they must name a catalog"),
        ({"stills": {"catalog": "x", "share": "1"}}, "stills.share is 1.0; it must lie between 0 and 1"),
        ({"stills": {"catalog": "x", "share": "half"}}, "stills.share is 'half'; it must be a number"),
    ],
)
def test_impossible_settings_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Training(**given)


def test_stills_are_a_catalog_and_its_settings() -> None:
    found = Stills.of({"catalog": "coco", "source": "there", "share": "0.25", "split": "val"})
    assert found == Stills("coco", "there", 0.25, {"split": "val"})
