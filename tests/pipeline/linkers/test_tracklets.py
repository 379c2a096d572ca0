"""`tracklets`: what continues what by position and by appearance, held to a plain version that tries all pairings."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from functools import cache
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalogs.synthetic import render
from catalogs.synthetic.paths import SIZE
from catalogs.synthetic.shapes import CLASSES
from pipeline.boxes import iou
from pipeline.linkers import keep, tracklets
from pipeline.records import Detections, Track, VideoInfo, detections
from pipeline.schemas import tracks_table
from pipeline.scoring import combine, score, values
from pipeline.simulating import Settings, simulate

VIDEO = VideoInfo("a", "a.mp4", "folder")


def moving(gap: tuple[int, int] = (0, 0), speed: float = 3.0) -> list[Detections]:
    """Two objects on parallel lines for 12 frames; those in the gap lack the first, whose tracklet ends there."""
    frames = []
    for t in range(12):
        seen = [not gap[0] <= t < gap[1], True]
        boxes = np.array([[speed * t, y, speed * t + 20, y + 20] for y in (0, 50)])[seen]
        ids = np.array([0 if t < gap[1] else 5, 1])[seen]
        frames.append(detections(t, boxes, [0.9] * sum(seen), np.arange(2)[seen], tracklet_id=ids))
    return frames


def without_tracklets(frames: list[Detections]) -> list[Detections]:
    return [dataclasses.replace(frame, tracklet_id=None) for frame in frames]


def link(frames: list[Detections], **changes: object) -> list[Track]:
    return tracklets.link(frames, VIDEO, tracklets.Settings(**changes))[1]


def spans(tracks: list[Track]) -> list[tuple[int, int, int]]:
    """(label, first frame, number of boxes) of each track."""
    return sorted((track.label, int(track.frame_index[0]), len(track)) for track in tracks)


# --- by position ---

CASES = {
    "a broken tracklet is joined over the gap": (moving(gap=(4, 7)), {}, [(0, 0, 9), (1, 0, 12)]),
    "not over a longer gap than allowed": (moving(gap=(4, 7)), {"max_gap": 2}, [(0, 0, 4), (0, 7, 5), (1, 0, 12)]),
    "plain detections are linked too": (without_tracklets(moving(gap=(4, 7))), {}, [(0, 0, 9), (1, 0, 12)]),
    "velocity finds the fast one": (
        without_tracklets(moving(gap=(6, 7), speed=9)), {}, [(0, 0, 11), (1, 0, 12)],
    ),
    "a frame that is not there is a gap": (
        [frame for frame in moving(gap=(4, 7)) if not 4 <= frame.frame_index < 7], {}, [(0, 0, 9), (1, 0, 9)],
    ),
    "weak boxes of the model's tracklets do carry on": (moving(), {"min_score": 0.95}, [(0, 0, 12), (1, 0, 12)]),
    "but start nothing": (moving(), {"min_start_score": 0.95}, []),
    "weak detections carry nothing": (without_tracklets(moving()), {"min_score": 0.95}, []),
    "weak detections start nothing": (without_tracklets(moving()), {"min_start_score": 0.95}, []),
    "short tracks are not given out": (moving(gap=(4, 7)), {"max_gap": 0, "min_length": 5}, [(0, 7, 5), (1, 0, 12)]),
}  # fmt: skip


@pytest.mark.parametrize(("frames", "changes", "expected"), CASES.values(), ids=CASES)
def test_by_position(frames: list[Detections], changes: dict, expected: list) -> None:
    assert spans(link(frames, **changes)) == expected


def seen(*when: int, score: float = 0.9) -> list[Detections]:
    """A box that stands still, of tracklet 0, seen in these frames; the model is certain of it at first."""
    frames = []
    for t in range(max(when) + 1):
        box, sure = [[0, 0, 20, 20]] * (t in when), [0.9 if t == 0 else score] * (t in when)
        frames.append(detections(t, box, sure, tracklet_id=[0] * (t in when)))
    return frames


RETURNS = {
    "in time": (seen(0, 1, 7, 8), 5, [(0, 0, 4)]),
    "one frame too late it is another": (seen(0, 1, 8, 9), 5, [(0, 0, 2), (0, 8, 2)]),
    "long closed it is another, and then carries on": (seen(0, 1, 90, 91, 95), 5, [(0, 0, 2), (0, 90, 3)]),
    "closed and weak it starts nothing": (seen(0, 1, 90, 91, score=0.5), 5, [(0, 0, 2)]),
    "tracks that never close take it whenever": (seen(0, 1, 90, 91, 95), None, [(0, 0, 5)]),
}


@pytest.mark.parametrize(("frames", "max_gap", "expected"), RETURNS.values(), ids=RETURNS)
def test_a_tracklet_is_taken_up_again_only_while_its_track_is_open(
    frames: list[Detections], max_gap: int | None, expected: list
) -> None:
    assert spans(link(frames, max_gap=max_gap, min_length=1)) == expected


def test_a_track_begun_by_a_returning_tracklet_is_matched_when_lost_again() -> None:
    frames = seen(0, 1, 90, 91, 95)
    frames[95] = dataclasses.replace(frames[95], tracklet_id=np.array([7], np.int32))
    assert spans(link(frames, max_gap=5, min_length=1)) == [(0, 0, 2), (0, 90, 3)]


def test_of_two_boxes_of_a_tracklet_the_better_continues_its_track() -> None:
    frames = [
        detections(0, [[0, 0, 20, 20]], [0.9], tracklet_id=[3]),
        detections(1, [[80, 0, 99, 20], [0, 0, 20, 20]], [0.7, 0.8], tracklet_id=[3, 3]),
    ]
    first, second = link(frames, min_length=1)
    assert first.box_id.tolist() == [0, 1]
    assert second.box_id.tolist() == [0]


def by_trying_all(frames: list[Detections]) -> list[tuple[float, ...]]:
    """Plain detections of one class by position: of all pairings the one of most pairs, then of least cost."""
    tracks: list[dict] = []
    for frame in frames:
        now = frame.frame_index
        expected = np.array([t["box"] + t["drift"] * (now - t["at"]) for t in tracks]).reshape(-1, 4)
        overlap = iou(expected, frame.boxes)
        best: tuple[tuple[int, float], list[tuple[int, int]]] = ((0, 0.0), [])
        slots = [*range(len(tracks)), *[None] * len(frame)]
        for choice in set(itertools.permutations(slots, len(frame))):
            pairs = [(track, box) for box, track in enumerate(choice) if track is not None]
            if all(overlap[t, b] >= max(0.3 / (1 + 0.1 * (now - tracks[t]["at"] - 1)), 1e-9) for t, b in pairs):
                best = max(best, ((len(pairs), float(sum(overlap[pair] for pair in pairs))), pairs))
        taken = dict((box, track) for track, box in best[1])
        for box, corners in enumerate(frame.boxes.astype(float)):
            if box in taken:
                track = tracks[taken[box]]
                step = (corners - track["box"]) / (now - track["at"])
                drift = 0.4 * np.tile((step[:2] + step[2:]) / 2, 2) + 0.6 * track["drift"]
                track.update(box=corners, drift=drift, at=now, boxes=[*track["boxes"], (now, box)])
            else:
                tracks.append({"box": corners, "drift": np.zeros(4), "at": now, "boxes": [(now, box)]})
    return sorted(track["boxes"] for track in tracks)


@given(st.integers(0, 10_000))
@settings(max_examples=25)
def test_as_many_as_can_be_at_the_least_cost(seed: int) -> None:
    random = np.random.default_rng(seed)
    frames = []
    for t in sorted(random.permutation(7)[:5].tolist()):
        corners = random.uniform(0, 16, (int(random.integers(0, 4)), 2))
        frames.append(detections(t, np.concatenate([corners, corners + 20], axis=1), np.full(len(corners), 0.9)))
    found = [list(zip(t.frame_index.tolist(), t.box_id.tolist(), strict=True)) for t in link(frames, min_length=1)]
    assert sorted(found) == by_trying_all(frames)


# --- by appearance ---

NEAR, FAR = [0, 0, 20, 20], [200, 0, 220, 20]
EAST, NORTH, UNKNOWN = [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]


def at(degrees: float, length: float = 1.0) -> list[float]:
    return [length * np.cos(np.radians(degrees)), length * np.sin(np.radians(degrees))]


def sightings(*boxes: tuple[int, list[int], list[float]], tracklet: int | None = None) -> list[Detections]:
    """One box a frame: when, where and what it looks like; each of a tracklet of its own, or all of one."""
    return [
        detections(t, [box], [0.9], tracklet_id=[number if tracklet is None else tracklet], embeddings=[looks])
        for number, (t, box, looks) in enumerate(boxes)
    ]


# Unit vectors d degrees apart have a distance of 2 sin(d / 2): .97 is 58 degrees.
LOOKS_CASES = {
    "found far away by its looks": (sightings((0, NEAR, EAST), (5, FAR, EAST)), {}, [2]),
    "in the next frame as well": (sightings((0, NEAR, EAST), (1, FAR, EAST)), {}, [2]),
    "another look is another object, though in its place": (sightings((0, NEAR, EAST), (5, NEAR, NORTH)), {}, [1, 1]),
    "58 degrees are alike": (sightings((0, NEAR, EAST), (5, FAR, at(57.9))), {}, [2]),
    "58.1 are not": (sightings((0, NEAR, EAST), (5, FAR, at(58.1))), {}, [1, 1]),
    "how long an embedding is says nothing": (sightings((0, NEAR, at(0, 9)), (5, FAR, at(50, 0.1))), {}, [2]),
    "unknown looks resemble nothing": (sightings((0, NEAR, UNKNOWN), (5, NEAR, UNKNOWN)), {}, [1, 1]),
    "unless position is to decide": (sightings((0, NEAR, EAST), (5, NEAR, NORTH)), {"match_by": "position"}, [2]),
    "the mean of two tracklets is 25 degrees, from which 80 are alike": (
        sightings((0, NEAR, EAST), (5, FAR, at(50)), (9, NEAR, at(80))), {}, [3],
    ),
    "a tracklet's embedding is its first box's until it is refreshed": (
        sightings((0, NEAR, EAST), *((t, NEAR, at(50)) for t in range(1, 4)), tracklet=0)
        + sightings((9, NEAR, at(60)), tracklet=1), {"refresh": 10}, [4, 1],
    ),
    "refreshed each frame its mean is at 38 degrees": (
        sightings((0, NEAR, EAST), *((t, NEAR, at(50)) for t in range(1, 4)), tracklet=0)
        + sightings((9, NEAR, at(60)), tracklet=1), {"refresh": 1}, [5],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("frames", "changes", "lengths"), LOOKS_CASES.values(), ids=LOOKS_CASES)
def test_by_appearance(frames: list[Detections], changes: dict, lengths: list[int]) -> None:
    assert [len(track) for track in link(frames, min_length=1, **changes)] == lengths


def test_looks_that_position_agrees_with_go_first() -> None:
    """Two alike: by looks alone the far one is a little nearer; SMOT's linker takes it, `auto` stays where it was."""
    frames = [
        detections(0, [NEAR], [0.9], embeddings=[EAST]),
        detections(1, [NEAR, FAR], [0.9, 0.8], embeddings=[at(10), at(5)]),
    ]
    for match_by, expected in (("auto", 0), ("appearance", 1)):
        assert link(frames, match_by=match_by, min_length=1)[0].box_id.tolist() == [0, expected]


def test_appearance_finds_again_what_position_has_lost() -> None:
    """Two objects swap places while unseen: IoU would swap the ids, embeddings do not (SMOT section 5)."""
    places = np.array([NEAR, [60, 0, 80, 20]])

    def video(with_looks: bool) -> list[Detections]:
        frames = []
        for t in range(10):
            there = slice(2 if t < 4 or t >= 7 else 0)
            evidence = {"embeddings": np.eye(2)[there]} if with_looks else {}
            frames.append(detections(t, places[:: -1 if t >= 7 else 1][there], [0.9, 0.8][there], **evidence))
        return frames

    for with_looks, end in ((False, 0), (True, 60)):
        tracks = link(video(with_looks))
        assert len(tracks) == 2
        assert tracks[0].boxes[-1, 0] == end


def test_appearance_without_embeddings_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"match_by is 'appearance', and the detections of video 'a' have no embed"):
        link(moving(), match_by="appearance")
    assert link([detections(0)], match_by="appearance") == []  # nothing to match is no fault


# --- on scenes with known identities ---


GOOD = Settings(
    confusion=(0.03, 0.6),
    certainty=(0.85, 0.4),
    spread=0.1,
    min_score=0.3,
    false_positives=0,
    clutter=0,
    evidence=("embeddings", "tracklet_id"),
)


@cache
def scenes() -> list[tuple[np.ndarray, pa.Table]]:
    """Pictures and truth of three videos."""
    return [render("val", index) for index in (0, 1, 2)]


def shuffled(frames: list[Detections], evidence: str) -> list[Detections]:
    """The same with this evidence dealt out anew among the boxes of each frame."""
    random = np.random.default_rng(0)
    return [
        dataclasses.replace(frame, **{evidence: getattr(frame, evidence)[random.permutation(len(frame))]})
        for frame in frames
    ]


def scores(linker: ModuleType, change: Callable[[list[Detections]], list[Detections]], **changes: object) -> dict:
    """Of a linker over the scenes, as a good detector sees them, with tracklets that misses break; after the change."""
    rows = []
    for pictures, truth in scenes():
        frames = change(simulate(truth, len(pictures), CLASSES, GOOD, size=SIZE))
        frames, tracks = linker.link(frames, VIDEO, linker.Settings(**changes))
        name = truth["video_id"][0].as_py()
        rows.append(score(truth, tracks_table(name, frames, tracks, CLASSES), class_agnostic=True))
    return values(combine(rows))[None, None]


def test_linking_mends_broken_tracklets_and_looks_help() -> None:
    broken = scores(keep, list)
    by_position = scores(tracklets, list, match_by="position")
    by_looks = scores(tracklets, list)
    assert broken["IDF1"] + 0.05 < by_position["IDF1"] < by_looks["IDF1"] - 0.02
    assert broken["num_switches"] > by_position["num_switches"] >= by_looks["num_switches"]


WORSE = {
    "shuffled embeddings": (lambda frames: shuffled(frames, "embeddings"), list),
    "shuffled embeddings of plain detections": (
        lambda frames: shuffled(without_tracklets(frames), "embeddings"),
        without_tracklets,
    ),
    "shuffled tracklets": (lambda frames: shuffled(frames, "tracklet_id"), list),
}


@pytest.mark.parametrize(("spoilt", "sound"), WORSE.values(), ids=WORSE)
def test_spoilt_evidence_makes_it_worse(spoilt: Callable, sound: Callable) -> None:
    worse, better = scores(tracklets, spoilt), scores(tracklets, sound)
    assert worse["IDF1"] < better["IDF1"] - 0.1
    assert worse["num_switches"] > better["num_switches"] + 5


WRONG_SETTINGS = [
    ({"min_score": -0.1}, "min_score is -0.1; it must be from 0 to 1"),
    ({"min_start_score": float("nan")}, "min_start_score is nan; it must be from 0 to 1"),
    ({"match_by": "looks"}, "match_by is 'looks'; it must be one of: auto, position, appearance"),
    ({"min_iou": 30}, "min_iou is 30"),
    ({"velocity": 1.1}, "velocity is 1.1"),
    ({"gap_slack": -1}, "gap_slack is -1; it must be at least 0"),
    ({"max_gap": -1}, "max_gap is -1; it must be none or at least 0"),
    ({"max_distance": 0}, "max_distance is 0; it must be above 0"),
    ({"refresh": 0}, "refresh is 0; it must be at least 1"),
    ({"min_length": 0}, "min_length is 0; it must be at least 1"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG_SETTINGS, ids=lambda value: str(value)[:30])
def test_settings_out_of_range_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^linker tracklets\.{message}"):
        tracklets.Settings(**changes)
