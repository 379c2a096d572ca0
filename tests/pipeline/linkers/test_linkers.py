"""The contract that every linker keeps."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Literal, get_origin, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import available, load
from pipeline.linkers import keep
from pipeline.linkers.parts.selection import select
from pipeline.records import EVIDENCE, Detections, Moves, Track, VideoInfo, detections
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

    def test_a_video_that_begins_later_in_its_file_has_the_same_tracks(self, name: str) -> None:
        linker = load("linker", name)
        frames = with_only(moving(gap=(5, 7)), linker.NEEDS)
        later = [dataclasses.replace(frame, frame_index=frame.frame_index + 600) for frame in frames]
        begun = dataclasses.replace(VIDEO, start=600)
        _, one = linker.link(frames, VIDEO, linker.Settings())
        _, other = linker.link(later, begun, linker.Settings())
        assert detected(other) == [[(frame + 600, box) for frame, box in track] for track in detected(one)]
        assert one

    @pytest.mark.parametrize("more", [frozenset(), frozenset(EVIDENCE)], ids=["what it needs", "all evidence"])
    @given(seed=st.integers(0, 10_000))
    @settings(max_examples=10)
    def test_order_of_boxes_does_not_matter(self, name: str, more: frozenset[str], seed: int) -> None:
        """On places, scores and looks of few values, so that many choices are equally good."""
        linker, random = load("linker", name), np.random.default_rng(seed)
        frames = []
        for t in range(6):
            count = int(random.integers(0, 6))
            corners = random.integers(0, 3, (count, 2)) * 10
            frames.append(
                detections(
                    t,
                    np.concatenate([corners, corners + 20], axis=1),
                    random.choice([0.75, 0.875], count),
                    random.integers(0, 2, count),
                    embeddings=np.eye(2)[random.integers(0, 2, count)],
                    tracklet_id=random.integers(-1, 4, count),
                )
            )
        frames = with_only(frames, linker.NEEDS | more)
        turned = [select(frame, random.permutation(len(frame))) for frame in frames]
        one, other = (linker.link(given, VIDEO, linker.Settings())[1] for given in (frames, turned))
        assert detected(one) == detected(other)

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

    @pytest.mark.parametrize("width", [0, 5])
    def test_frames_without_boxes_may_have_embeddings_of_any_width(self, name: str, width: int) -> None:
        linker = load("linker", name)
        frames = [detections(0, embeddings=np.empty((0, width))), *moving()[1:], detections(12)]
        assert len(linker.link(frames, VIDEO, linker.Settings())[1]) == 2

    def test_numbers_that_are_none_and_unknown_choices_are_refused(self, name: str) -> None:
        linker = load("linker", name)
        hints = get_type_hints(linker.Settings)
        for field, hint in hints.items():
            if hint is bool:
                continue
            wrong = ["nonsense"] if get_origin(hint) is Literal else [np.nan, np.inf, -np.inf]
            for value in wrong:
                with pytest.raises(ValueError, match=rf"^linker {name}\.{field} is {value!r}; it must be "):
                    linker.Settings(**{field: value})

    def test_names_the_evidence_it_needs(self, name: str) -> None:
        assert load("linker", name).NEEDS.issubset(EVIDENCE)


def shaken(num_frames: int = 30, count: int = 6) -> list[Detections]:
    """Objects side by side whose places shake a little, with all evidence; box_id says who is who."""
    random = np.random.default_rng(0)
    who = np.arange(count, dtype=np.int32)
    middle = np.stack([30 * who, 0 * who], axis=1) + np.arange(num_frames + 1)[:, None, None] * (1, 2)
    middle = middle + random.normal(0, 1, middle.shape)
    places = np.concatenate([middle - 12, middle + 12], axis=2).astype(np.float32)
    return [
        detections(
            t,
            places[t],
            random.uniform(0.8, 1, count),
            class_scores=np.full((count, 2), 0.5),
            embeddings=np.eye(count) + random.normal(0, 0.1, (count, count)),
            tracklet_id=who,
            moves=Moves(places[t], places[t + 1], np.ones(count, np.float32), who),
        )
        for t in range(num_frames)
    ]


def dealt(frames: list[Detections], what: str) -> list[Detections]:
    """In each frame the boxes, or evidence of this name, dealt out anew at random."""
    random = np.random.default_rng(1)
    given_out = []
    for frame in frames:
        order, old = random.permutation(len(frame)), getattr(frame, what)
        new = dataclasses.replace(old, end=old.end[order]) if isinstance(old, Moves) else old[order]
        given_out.append(dataclasses.replace(frame, **{what: new}))
    return given_out


def share_kept(tracks: list[Track], frames: list[Detections]) -> float:
    """Of all steps of an object from one frame to the next, those that stay in one track."""
    track_of = {
        step: track.track_id
        for track in tracks
        for step in zip(track.frame_index.tolist(), track.box_id.tolist(), strict=True)
    }
    steps = [(frame.frame_index, box) for frame in frames[1:] for box in frame.box_id.tolist()]
    return float(np.mean([track_of.get((t, box), -1) == track_of.get((t - 1, box), -2) for t, box in steps]))


# What each linker lives on, and the settings under which it has nothing else.
LIVES_ON = {
    "bytetrack": [("boxes", {})],
    "deepsort": [("boxes", {}), ("embeddings", {"max_iou_distance": 0.0, "n_init": 1})],
    "keep": [("tracklet_id", {})],
    "offline": [("boxes", {})],
    "online": [("boxes", {})],
    "seq_nms": [("boxes", {}), ("moves", {"links": "moves"})],
    "sort": [("boxes", {})],
    "track_store": [("boxes", {}), ("embeddings", {})],
    "tracklets": [("boxes", {}), ("embeddings", {}), ("tracklet_id", {})],
    "tubes": [("boxes", {}), ("moves", {})],
}


@pytest.mark.parametrize("name", LINKERS)
def test_what_a_linker_lives_on_makes_it_worse_when_shuffled(name: str) -> None:
    linker = load("linker", name)
    for what, changes in LIVES_ON[name]:
        frames = with_only(shaken(), linker.NEEDS | {what})
        own, spoilt = (
            share_kept(linker.link(given, VIDEO, linker.Settings(**changes))[1], frames)
            for given in (frames, dealt(frames, what))
        )
        assert own > 0.9, what
        assert spoilt < 0.5, what


def test_keep_takes_the_models_ids_as_they_are() -> None:
    _, tracks = keep.link(moving(gap=(4, 7)), VIDEO, keep.Settings())
    assert spans(tracks) == [(0, 0, 4), (0, 7, 5), (1, 0, 12)]
    _, long_ones = keep.link(moving(gap=(4, 7)), VIDEO, keep.Settings(min_length=5))
    assert spans(long_ones) == [(0, 7, 5), (1, 0, 12)]


def test_keep_refuses_a_length_of_no_box() -> None:
    with pytest.raises(ValueError, match=r"linker keep\.min_length is 0; it must be at least 1"):
        keep.Settings(min_length=0)
