"""The contract that every linker keeps."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import available, load
from pipeline.linkers import keep
from pipeline.records import EVIDENCE, Detections, Track, VideoInfo, detections
from pipeline.schemas import tracks_table

VIDEO = VideoInfo("a", "a.mp4", "folder")
LINKERS = available("linker")


def moving(num_frames: int = 12, gap: tuple[int, int] = (0, 0), speed: float = 3.0) -> list[Detections]:
    """Two objects of different looks on parallel lines; frames in the gap lack the first, whose tracklet ends there."""
    frames = []
    for t in range(num_frames):
        seen = [not gap[0] <= t < gap[1], True]
        frames.append(
            detections(
                t,
                np.array([[speed * t, y, speed * t + 20, y + 20] for y in (0, 50)])[seen],
                np.array([0.9, 0.9])[seen],
                np.array([0, 1])[seen],
                class_scores=np.array([[0.05, 0.9, 0.05], [0.05, 0.05, 0.9]])[seen],
                embeddings=np.eye(2)[seen],
                tracklet_id=np.array([0 if t < gap[1] else 5, 1])[seen],
                timestamp_s=t / 25,
            )
        )
    return frames


def with_only(frames: list[Detections], evidence: frozenset[str]) -> list[Detections]:
    return [dataclasses.replace(frame, **dict.fromkeys({*EVIDENCE} - evidence)) for frame in frames]


def turned(frame: Detections) -> Detections:
    """The same boxes in the opposite order."""
    rows = {field.name: getattr(frame, field.name) for field in dataclasses.fields(frame)}
    return Detections(**{name: row[::-1] if isinstance(row, np.ndarray) else row for name, row in rows.items()})


def spans(tracks: list[Track]) -> list[tuple[int, int, int]]:
    """(label, first frame, number of detected boxes) of each track."""
    return sorted((track.label, int(track.frame_index[0]), int((track.box_id >= 0).sum())) for track in tracks)


def detected(tracks: list[Track]) -> list[list[tuple[int, int]]]:
    """(frame, box) of each track, without what the linker made."""
    return sorted(
        [(int(f), int(b)) for f, b in zip(track.frame_index, track.box_id, strict=True) if b >= 0] for track in tracks
    )


@pytest.mark.parametrize("name", LINKERS)
class TestContract:
    def test_empty_videos_and_frames_give_no_tracks(self, name: str) -> None:
        linker = load("linker", name)
        assert linker.link([], VIDEO, linker.Settings()) == ([], [])
        frames, tracks = linker.link([detections(0), detections(1)], VIDEO, linker.Settings())
        assert [len(frame) for frame in frames] == [0, 0]
        assert tracks == []

    def test_every_box_is_given_out_once_and_ids_start_at_one(self, name: str) -> None:
        linker = load("linker", name)
        frames, tracks = linker.link(with_only(moving(), linker.NEEDS), VIDEO, linker.Settings())
        table = tracks_table("a", frames, tracks, ["one", "two"])
        assert len(table) == sum(map(len, frames))
        assert sorted(track.track_id for track in tracks) == list(range(1, len(tracks) + 1))

    @pytest.mark.parametrize("more", [frozenset(), frozenset(EVIDENCE)], ids=["what it needs", "all evidence"])
    def test_two_plain_objects_are_two_tracks(self, name: str, more: frozenset[str]) -> None:
        linker = load("linker", name)
        _, tracks = linker.link(with_only(moving(), linker.NEEDS | more), VIDEO, linker.Settings())
        assert [label for label, _, _ in spans(tracks)] == [0, 1]
        # DeepSORT gives no track out before its third box.
        assert all(start <= 2 and start + length == 12 for _, start, length in spans(tracks))

    @pytest.mark.parametrize("more", [frozenset(), frozenset(EVIDENCE)], ids=["what it needs", "all evidence"])
    def test_order_of_boxes_does_not_matter(self, name: str, more: frozenset[str]) -> None:
        linker = load("linker", name)
        frames = with_only(moving(gap=(4, 7)), linker.NEEDS | more)
        one, other = (
            linker.link(given, VIDEO, linker.Settings())[1] for given in (frames, [turned(frame) for frame in frames])
        )
        assert spans(one) == spans(other)

    def test_linking_again_gives_the_same(self, name: str) -> None:
        linker = load("linker", name)
        one, other = (linker.link(moving(gap=(3, 5)), VIDEO, linker.Settings()) for _ in range(2))
        assert pickle.dumps(one) == pickle.dumps(other)

    def test_a_frame_index_that_is_missing_is_a_frame_without_boxes(self, name: str) -> None:
        linker = load("linker", name)
        frames = with_only(moving(), linker.NEEDS)
        emptied = [detections(4) if frame.frame_index == 4 else frame for frame in frames]
        one, other = (linker.link(given, VIDEO, linker.Settings())[1] for given in (frames[:4] + frames[5:], emptied))
        assert spans(one) == spans(other)
        assert all(4 not in track.frame_index for track in one)

    @given(seed=st.integers(0, 10_000))
    @settings(max_examples=10)
    def test_no_box_is_in_two_tracks(self, name: str, seed: int) -> None:
        linker = load("linker", name)
        random = np.random.default_rng(seed)
        frames = []
        for t in range(8):
            count = int(random.integers(0, 5))
            corners = random.uniform(0, 30, (count, 2))
            frames.append(
                detections(
                    t,
                    np.concatenate([corners, corners + random.uniform(5, 20, (count, 2))], axis=1),
                    random.uniform(0.3, 1, count),
                    random.integers(0, 2, count),
                    embeddings=random.standard_normal((count, 3)),
                    tracklet_id=random.permutation(5)[:count],
                )
            )
        _, tracks = linker.link(with_only(frames, linker.NEEDS), VIDEO, linker.Settings())
        taken = [box for boxes in detected(tracks) for box in boxes]
        assert len(taken) == len(set(taken))

    def test_names_the_evidence_it_needs(self, name: str) -> None:
        assert load("linker", name).NEEDS.issubset(EVIDENCE)


def test_keep_takes_the_models_ids_as_they_are() -> None:
    _, tracks = keep.link(moving(gap=(4, 7)), VIDEO, keep.Settings())
    assert spans(tracks) == [(0, 0, 4), (0, 7, 5), (1, 0, 12)]
    _, long_ones = keep.link(moving(gap=(4, 7)), VIDEO, keep.Settings(min_length=5))
    assert spans(long_ones) == [(0, 7, 5), (1, 0, 12)]


def test_keep_refuses_a_length_of_no_box() -> None:
    with pytest.raises(ValueError, match=r"linker keep\.min_length is 0; it must be at least 1"):
        keep.Settings(min_length=0)
