"""Refining: the steps in their order, the frames in step with the tracks, and settings that cannot be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.linkers import tracklets
from pipeline.records import Detections, Track, VideoInfo, detections
from pipeline.refining import Settings, refine
from pipeline.schemas import tracks_table

VIDEO = VideoInfo("a", "a.mp4", "folder")


def scene(seed: int = 0, frames: int = 24) -> tuple[list[Detections], list[Track]]:
    """Two objects and one that is seen in three frames only, all jittery and now and then missed; linked."""
    random = np.random.default_rng(seed)
    seen = []
    for t in range(frames):
        true = [[4 * t, 0, 4 * t + 40, 30], [200 - 3 * t, 80, 230 - 3 * t, 120]]
        true += [[300, 300, 340, 340]] if t < 3 else []
        there = [box for box in true if random.random() > 0.15]
        boxes = np.reshape(there, (-1, 4)) + random.normal(0, 1, (len(there), 4))
        seen.append(detections(t, boxes, random.uniform(0.6, 1, len(there)), timestamp_s=t / 25))
    return tracklets.link(seen, VIDEO, tracklets.Settings(min_length=1))


def test_by_default_nothing_changes() -> None:
    frames, tracks = scene()
    same_frames, same_tracks = refine(frames, tracks, Settings())
    assert all(one is other for one, other in zip(frames, same_frames, strict=True))
    assert all(one is other for one, other in zip(tracks, same_tracks, strict=True))


def test_empty_videos() -> None:
    every = Settings(min_length=2, rescore="mean", fill=9, smooth="all")
    assert refine([], [], every) == ([], [])
    frames, tracks = refine([detections(0), detections(1)], [], every)
    assert [len(frame) for frame in frames] == [0, 0]
    assert tracks == []


def test_filled_boxes_have_the_new_scores_and_lie_on_the_smooth_course() -> None:
    frames, tracks = scene()
    _, refined = refine(frames, tracks, Settings(min_length=4, rescore="mean", fill=9, smooth="all"))
    assert len(refined) == 2
    for track in refined:
        assert np.array_equal(track.frame_index, np.arange(track.frame_index[0], track.frame_index[-1] + 1))
        assert np.ptp(track.scores) < 1e-6 < np.ptp(track.raw_scores)
        bend = np.diff(track.boxes, n=2, axis=0)  # 1.7 pixels where the jitter of 1 pixel is still there
        assert np.abs(bend).max() < 0.5
    assert any((track.box_id < 0).any() for track in refined)


def test_only_the_filled_are_moved() -> None:
    frames, tracks = scene()
    _, line = refine(frames, tracks, Settings(fill=9))
    _, curve = refine(frames, tracks, Settings(fill=9, smooth="filled"))
    moved = [np.abs(one.boxes - other.boxes).max(axis=1) for one, other in zip(line, curve, strict=True)]
    made = [track.box_id < 0 for track in line]
    assert max(step[~new].max(initial=0) for step, new in zip(moved, made, strict=True)) == 0
    assert max(step[new].max(initial=0) for step, new in zip(moved, made, strict=True)) > 0


def test_boxes_of_short_tracks_lose_their_id_and_keep_their_scores() -> None:
    frames, tracks = scene()
    assert any(len(track) < 4 for track in tracks)
    rescored, refined = refine(frames, tracks, Settings(min_length=4, rescore="max"))
    table = tracks_table("a", rescored, refined, ["thing"]).to_pandas()
    loose = table[table.track_id.isna()]
    assert len(loose) == sum(len(track) for track in tracks if len(track) < 4)
    assert (loose.score == loose.raw_score).all()
    assert (table[table.track_id.notna()].groupby("track_id").score.nunique() == 1).all()


@given(
    st.integers(0, 1000),
    st.sampled_from(["none", "mean", "top", "max", "causal", "running"]),
    st.integers(0, 8),
    st.sampled_from(["none", "filled", "all"]),
)
def test_every_detection_is_given_out_once_whatever_is_done(seed: int, rescore: str, fill: int, smooth: str) -> None:
    frames, tracks = scene(seed)
    rescored, refined = refine(frames, tracks, Settings(2, rescore, fill=fill, smooth=smooth))  # type: ignore[arg-type]
    table = tracks_table("a", rescored, refined, ["thing"]).to_pandas()
    assert (table.origin != "interpolated").sum() == sum(map(len, frames))
    assert not table.duplicated(["frame_index", "track_id"])[table.track_id.notna()].any()
    # What tracks say about a box and what its frame says is the same.
    said = {}
    for frame in rescored:
        said |= {(frame.frame_index, int(box)): frame.scores[row] for row, box in enumerate(frame.box_id)}
    for track in refined:
        for key, score in zip(zip(track.frame_index, track.box_id, strict=True), track.scores, strict=True):
            assert key[1] < 0 or said[key] == score


WRONG = [
    ({"min_length": 0}, r"refine\.min_length is 0; it must be at least 1"),
    ({"share": 0}, r"refine\.share is 0; it must be above 0 and at most 1"),
    ({"share": 1.5}, r"refine\.share is 1\.5; it must be above 0 and at most 1"),
    ({"decay": -0.1}, r"refine\.decay is -0\.1; it must be from 0 to 1"),
    ({"fill": -1}, r"refine\.fill is -1; it must be at least 0"),
    ({"strength": 0}, r"refine\.strength is 0; it must be above 0 and at most 1000"),
    ({"strength": float("inf")}, r"refine\.strength is inf; it must be above 0 and at most 1000"),
    ({"strength": float("nan")}, r"refine\.strength is nan; it must be above 0 and at most 1000"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=str)
def test_settings_out_of_range_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**changes)
