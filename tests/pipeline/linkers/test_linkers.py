"""The contract that every linker keeps, and what each of them does besides."""

from __future__ import annotations

import dataclasses
import pickle
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import available, load
from pipeline.linkers import keep, tracklets
from pipeline.records import EVIDENCE, Detections, Track, VideoInfo, detections
from pipeline.schemas import tracks_table

VIDEO = VideoInfo("a", "a.mp4", "folder")
LINKERS = available("linker")


def moving(num_frames: int = 12, gap: tuple[int, int] = (0, 0), speed: float = 3.0) -> list[Detections]:
    """Two objects on parallel lines with tracklet ids that break at the gap; frames in the gap lack the first."""
    frames = []
    for t in range(num_frames):
        boxes, labels, ids = [], [], []
        if not gap[0] <= t < gap[1]:
            boxes.append([speed * t, 0, speed * t + 20, 20])
            labels.append(0)
            ids.append(0 if t < gap[0] or gap[1] == 0 else 5)
        boxes.append([speed * t, 50, speed * t + 20, 70])
        labels.append(1)
        ids.append(1)
        frames.append(detections(t, boxes, [0.9] * len(boxes), labels, tracklet_id=ids, timestamp_s=t / 25))
    return frames


def without_tracklets(frames: list[Detections]) -> list[Detections]:
    return [dataclasses.replace(frame, tracklet_id=None) for frame in frames]


def spans(tracks: list[Track]) -> list[tuple[int, int, int]]:
    """(label, first frame, number of boxes) of each track."""
    return sorted((track.label, int(track.frame_index[0]), len(track)) for track in tracks)


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
        frames, tracks = linker.link(moving(), VIDEO, linker.Settings())
        table = tracks_table("a", frames, tracks, ["one", "two"])
        assert len(table) == sum(map(len, frames))
        assert sorted(track.track_id for track in tracks) == list(range(1, len(tracks) + 1))

    def test_two_plain_objects_are_two_tracks(self, name: str) -> None:
        linker = load("linker", name)
        _, tracks = linker.link(moving(), VIDEO, linker.Settings())
        assert spans(tracks) == [(0, 0, 12), (1, 0, 12)]

    def test_order_of_boxes_does_not_matter(self, name: str) -> None:
        linker = load("linker", name)
        frames = moving(gap=(4, 7))
        turned = [
            detections(
                frame.frame_index,
                frame.boxes[::-1],
                frame.scores[::-1],
                frame.labels[::-1],
                tracklet_id=None if frame.tracklet_id is None else frame.tracklet_id[::-1],
            )
            for frame in frames
        ]
        one, other = (linker.link(given, VIDEO, linker.Settings())[1] for given in (frames, turned))
        assert spans(one) == spans(other)

    def test_linking_again_gives_the_same(self, name: str) -> None:
        linker = load("linker", name)
        one, other = (linker.link(moving(gap=(3, 5)), VIDEO, linker.Settings()) for _ in range(2))
        assert pickle.dumps(one) == pickle.dumps(other)

    def test_names_the_evidence_it_needs(self, name: str) -> None:
        assert load("linker", name).NEEDS.issubset(EVIDENCE)


def test_keep_takes_the_models_ids_as_they_are() -> None:
    _, tracks = keep.link(moving(gap=(4, 7)), VIDEO, keep.Settings())
    assert spans(tracks) == [(0, 0, 4), (0, 7, 5), (1, 0, 12)]
    _, long_ones = keep.link(moving(gap=(4, 7)), VIDEO, keep.Settings(min_length=5))
    assert spans(long_ones) == [(0, 7, 5), (1, 0, 12)]


TRACKLET_CASES = {
    "a broken tracklet is joined over the gap": (moving(gap=(4, 7)), {}, [(0, 0, 9), (1, 0, 12)]),
    "not over a longer gap than allowed": (moving(gap=(4, 7)), {"max_gap": 2}, [(0, 0, 4), (0, 7, 5), (1, 0, 12)]),
    "plain detections are linked too": (without_tracklets(moving(gap=(4, 7))), {}, [(0, 0, 9), (1, 0, 12)]),
    "velocity finds the fast one": (
        without_tracklets(moving(gap=(6, 7), speed=9)), {}, [(0, 0, 11), (1, 0, 12)],
    ),
    "weak boxes of the model's tracklets do carry on": (moving(), {"min_score": 0.95}, [(0, 0, 12), (1, 0, 12)]),
    "but start nothing": (moving(), {"min_start_score": 0.95}, []),
    "weak detections carry nothing": (without_tracklets(moving()), {"min_score": 0.95}, []),
    "weak detections start nothing": (without_tracklets(moving()), {"min_start_score": 0.95}, []),
    "short tracks are not given out": (moving(gap=(4, 7)), {"max_gap": 0, "min_length": 5}, [(0, 7, 5), (1, 0, 12)]),
}  # fmt: skip


@pytest.mark.parametrize(("frames", "changes", "expected"), TRACKLET_CASES.values(), ids=TRACKLET_CASES)
def test_tracklets(frames: list[Detections], changes: dict, expected: list) -> None:
    _, tracks = tracklets.link(frames, VIDEO, tracklets.Settings(**changes))
    assert spans(tracks) == expected


def seen(*when: int, score: float = 0.9) -> list[Detections]:
    """A box that stands still, of tracklet 0, seen in these frames; the model is certain of it at first."""
    frames = []
    for t in range(max(when) + 1):
        box, sure = [[0, 0, 20, 20]] * (t in when), [0.9 if t == 0 else score] * (t in when)
        frames.append(detections(t, box, sure, tracklet_id=[0] * (t in when)))
    return frames


TRACKLET_RETURNS = {
    "in time": (seen(0, 1, 7, 8), [(0, 0, 4)]),
    "one frame too late it is another": (seen(0, 1, 8, 9), [(0, 0, 2), (0, 8, 2)]),
    "long closed it is another, and then carries on": (seen(0, 1, 90, 91, 95), [(0, 0, 2), (0, 90, 3)]),
    "closed and weak it starts nothing": (seen(0, 1, 90, 91, score=0.5), [(0, 0, 2)]),
}


@pytest.mark.parametrize(("frames", "expected"), TRACKLET_RETURNS.values(), ids=TRACKLET_RETURNS)
def test_a_tracklet_is_taken_up_again_only_while_its_track_is_open(frames: list[Detections], expected: list) -> None:
    _, tracks = tracklets.link(frames, VIDEO, tracklets.Settings(max_gap=5, min_length=1))
    assert spans(tracks) == expected


def test_a_track_begun_by_a_returning_tracklet_is_matched_when_lost_again() -> None:
    frames = seen(0, 1, 90, 91, 95)
    frames[95] = dataclasses.replace(frames[95], tracklet_id=np.array([7], np.int32))
    _, tracks = tracklets.link(frames, VIDEO, tracklets.Settings(max_gap=5, min_length=1))
    assert spans(tracks) == [(0, 0, 2), (0, 90, 3)]


WRONG_SETTINGS = [
    (tracklets, {"min_score": -0.1}, "min_score is -0.1; it must be from 0 to 1"),
    (tracklets, {"min_start_score": float("nan")}, "min_start_score is nan; it must be from 0 to 1"),
    (tracklets, {"min_iou": 30}, "min_iou is 30"),
    (tracklets, {"velocity": 1.1}, "velocity is 1.1"),
    (tracklets, {"embedding_update": 2}, "embedding_update is 2"),
    (tracklets, {"gap_slack": -1}, "gap_slack is -1; it must be at least 0"),
    (tracklets, {"max_gap": -1}, "max_gap is -1; it must be at least 0"),
    (tracklets, {"max_distance": 0}, "max_distance is 0; it must be above 0"),
    (tracklets, {"min_length": 0}, "min_length is 0; it must be at least 1"),
    (keep, {"min_length": 0}, "linker keep.min_length is 0; it must be at least 1"),
]


@pytest.mark.parametrize(("linker", "changes", "message"), WRONG_SETTINGS, ids=lambda value: str(value)[:30])
def test_settings_out_of_range_are_refused(linker: ModuleType, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        linker.Settings(**changes)


def test_appearance_finds_again_what_position_has_lost() -> None:
    """Two objects swap places while unseen: IoU would swap the ids, embeddings do not (SMOT section 5)."""
    looks = np.array([[1.0, 0.0], [0.0, 1.0]])
    places = np.array([[0, 0, 20, 20], [60, 0, 80, 20]], float)

    def video(with_looks: bool) -> list[Detections]:
        frames = []
        for t in range(10):
            there = t < 4 or t >= 7
            swapped = places[::-1] if t >= 7 else places
            evidence = {"embeddings": looks if there else np.zeros((0, 2))} if with_looks else {}
            frames.append(detections(t, swapped if there else [], [0.9, 0.8] if there else [], **evidence))
        return frames

    def first_track_ends_at(frames: list[Detections]) -> float:
        _, tracks = tracklets.link(frames, VIDEO, tracklets.Settings())
        assert len(tracks) == 2
        return float(tracks[0].boxes[-1, 0])

    assert first_track_ends_at(video(with_looks=False)) == 0
    assert first_track_ends_at(video(with_looks=True)) == 60


@given(st.integers(0, 10_000))
def test_no_box_is_in_two_tracks_and_no_track_twice_in_a_frame(seed: int) -> None:
    random = np.random.default_rng(seed)
    frames = []
    for t in range(8):
        count = int(random.integers(0, 5))
        corners = random.uniform(0, 30, (count, 2))
        boxes = np.concatenate([corners, corners + random.uniform(5, 20, (count, 2))], axis=1)
        frames.append(detections(t, boxes, random.uniform(0.3, 1, count), random.integers(0, 2, count)))
    _, tracks = tracklets.link(frames, VIDEO, tracklets.Settings(min_length=1))
    taken = [(int(f), int(b)) for track in tracks for f, b in zip(track.frame_index, track.box_id, strict=True)]
    assert len(taken) == len(set(taken))
