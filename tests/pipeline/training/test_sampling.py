"""Which frames are in which batch: all clips of an epoch once, stills in their share, the same from any step on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training.sampling import STILLS, VIDEOS, Draw, Sampler, starts
from pipeline.training.settings import Training

TWO = np.array([0, 0, 0, 0, 1, 1])  # videos of 4 and 2 frames
PHOTOS = {"catalog": "coco"}
PAIRS = Training(frames_per_clip=2)


def clips(training: Training, count: int, video: Any = TWO) -> list[Draw]:
    sampler = Sampler(training, [video])
    return [sampler.clip(place) for place in range(count)]


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    batch_size=st.integers(1, 7),
    seed=st.integers(0, 9),
)
def test_every_clip_comes_once_an_epoch(lengths: list[int], batch_size: int, seed: int) -> None:
    """In another order each time, however the batches lie."""
    sampler = Sampler(
        Training(batch_size=batch_size, seed=seed, frames_per_clip=1), [np.repeat(np.arange(len(lengths)), lengths)]
    )
    total = sum(lengths)
    drawn = [draw.frames for number in range(3 * total) for draw in sampler.batch(number)][: 3 * total]
    for epoch in range(3):
        assert sorted(drawn[epoch * total : (epoch + 1) * total]) == [(frame,) for frame in range(total)]
    if total > 10:
        assert drawn[:total] != drawn[total : 2 * total]


@pytest.mark.parametrize("share", [0.5, 0.25, 0.3, 0.9])
def test_stills_have_their_share_in_any_run_of_batches(share: float) -> None:
    chosen = Training(stills={**PHOTOS, "share": share}, frames_per_clip=3, batch_size=10)
    sampler = Sampler(chosen, [np.zeros(50, int), np.arange(7)])
    draws = [draw for number in range(100) for draw in sampler.batch(number)]
    is_still = np.array([draw.source == STILLS for draw in draws])
    assert is_still.sum() == round(1000 * share)
    for start in range(0, 1000, 13):
        assert abs(is_still[: start + 1].sum() - (start + 1) * share) <= 1, "spread evenly"
    shown = [draw.frames for draw in draws if draw.source == STILLS]
    assert set(shown) == {(frame,) * 3 for frame in range(7)}, "the same frame three times"
    assert sorted(shown[:7]) == [(frame,) * 3 for frame in range(7)], "an epoch of its own"
    films = [draw.frames[0] for draw in draws if draw.source == VIDEOS]
    assert sorted(films[:48]) == list(range(48)), "and so have the videos"


def test_a_batch_depends_on_the_seed_and_its_number_alone() -> None:
    """So that a stopped training goes on as if it had not been, on any worker."""
    chosen = Training(
        frames_per_clip=2, max_gap=3, reverse=True, flip_vertical=True, permute_colours=True, stills=PHOTOS
    )
    sources = [np.repeat([0, 1, 2], 30), np.arange(20)]
    sampler = Sampler(chosen, sources)
    batches = [sampler.batch(number) for number in range(40)]
    for number in (39, 3, 17, 3):  # epochs back and forth
        assert Sampler(chosen, sources).batch(number) == batches[number]
        assert sampler.batch(number) == batches[number]
    others = Sampler(replace(chosen, seed=1), sources)
    assert all(others.batch(number) != batches[number] for number in range(40))


def test_how_clips_are_turned() -> None:
    """Evenly in all the ways that are wanted, and in no other."""
    chosen = Training(frames_per_clip=1, flip_vertical=True, permute_colours=True)
    ways = Counter((draw.flip, draw.flip_vertical, draw.colours) for draw in clips(chosen, 2400))
    assert len(ways) == 2 * 2 * 6
    assert all(60 < count < 140 for count in ways.values())
    upright = clips(replace(chosen, flip_vertical=False, permute_colours=False), 99)
    assert {(draw.flip, draw.flip_vertical, draw.colours) for draw in upright} == {
        (flip, False, (0, 1, 2)) for flip in (False, True)
    }
    plain = clips(Training(flip=False), 99)
    assert {(draw.flip, draw.flip_vertical, draw.colours) for draw in plain} == {(False, False, (0, 1, 2))}


@pytest.mark.parametrize(
    ("changes", "pairs"),
    [
        pytest.param({}, {(0, 1), (1, 2), (2, 3), (4, 5)}, id="neighbours"),
        pytest.param({"max_gap": 9}, {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3), (4, 5)}, id="any"),
        pytest.param({"min_gap": 2, "max_gap": 3}, {(0, 2), (0, 3), (1, 3)}, id="the short video is left out"),
        pytest.param(
            {"reverse": True}, {(0, 1), (1, 2), (2, 3), (4, 5), (1, 0), (2, 1), (3, 2), (5, 4)}, id="reversed"
        ),
        pytest.param(
            {"frames_per_clip": 3}, {(0, 1, 2), (1, 2, 3)}, id="three neighbours"
        ),
        pytest.param(
            {"frames_per_clip": 3, "max_gap": 9}, {(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)}, id="room for the last"
        ),
        pytest.param(
            {"frames_per_clip": 4, "max_gap": 2, "reverse": True}, {(0, 1, 2, 3), (3, 2, 1, 0)}, id="all of a video"
        ),
    ],
)  # fmt: skip
def test_clips_are_of_one_video(changes: dict[str, Any], pairs: set[tuple[int, ...]]) -> None:
    assert {draw.frames for draw in clips(replace(PAIRS, **changes), 200)} == pairs


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    frames=st.integers(1, 4),
    low=st.integers(1, 4),
    more=st.integers(0, 4),
)
def test_gaps_are_within_their_bounds_and_no_clip_is_lost(lengths: list[int], frames: int, low: int, more: int) -> None:
    video = np.repeat(np.arange(len(lengths)), lengths)
    low, more = (low, more) if frames > 1 else (1, 0)
    chosen = Training(frames_per_clip=frames, min_gap=low, max_gap=low + more)
    needed = (frames - 1) * low + 1
    if max(lengths) < needed:
        with pytest.raises(ValueError, match=f"needs {needed} frames, and the longest video has {max(lengths)}"):
            starts(video, chosen)
        return
    found = starts(video, chosen)
    first = np.cumsum([0, *lengths])
    assert found.tolist() == [
        int(start) + place
        for start, length in zip(first, lengths, strict=False)
        for place in range(length - needed + 1)
    ]
    for draw in clips(chosen, 40, video):
        assert len({int(video[frame]) for frame in draw.frames}) == 1
        assert all(low <= gap <= low + more for gap in np.diff(draw.frames))


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        pytest.param(1, [50, 105, 110], id="the middle"),
        pytest.param(2, [25, 75, 102, 107, 110], id="of each half"),
        pytest.param(10, [*range(5, 100, 10), *range(100, 110), 110], id="D&T: 10 of each video, or all there are"),
    ],
)
def test_clips_begin_with_few_frames_of_a_video_evenly_spread(count: int, expected: list[int]) -> None:
    video = np.repeat([0, 1, 2], [100, 10, 1])
    assert starts(video, Training(frames_per_video=count)).tolist() == expected
    drawn = [draw.frames[0] for draw in clips(Training(frames_per_video=count), len(expected), video)]
    assert sorted(drawn) == expected


def test_clips_need_a_video_as_long_as_their_gap() -> None:
    for length in (4, 5, 7):
        with pytest.raises(
            ValueError,
            match=f"a clip of 2 frames, min_gap 9, needs 10 frames, and the longest video has {length}; give",
        ):
            starts(np.zeros(length, int), replace(PAIRS, min_gap=9, max_gap=9))
