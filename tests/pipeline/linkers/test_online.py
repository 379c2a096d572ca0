"""`online` and `offline`: evidence decides what is given out; real detections are followed better than by others."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import benchmark_real_detections as real
from pipeline.linkers import offline, online
from pipeline.records import Detections, Track, VideoInfo, detections

VIDEO = VideoInfo("a", "a.mp4", "folder")


def walk(scores: list[float | None], speed: float = 2.0, size: float = 40.0) -> list[Detections]:
    """One object at constant speed, seen with these scores; None where it is missed."""
    frames = []
    for index, score in enumerate(scores):
        left = 100 + speed * index
        boxes = [] if score is None else [[left, 50, left + size, 50 + 2 * size]]
        frames.append(detections(index, boxes, [] if score is None else [score]))
    return frames


def together(*objects: list[Detections]) -> list[Detections]:
    """The detections of all, frame by frame."""
    return [
        detections(
            frames[0].frame_index,
            np.concatenate([frame.boxes for frame in frames]),
            np.concatenate([frame.scores for frame in frames]),
        )
        for frames in zip(*objects, strict=True)
    ]


def follow(frames: list[Detections], linker: object = online, **changes: object) -> list[Track]:
    return linker.link(frames, VIDEO, linker.Settings(**changes))[1]  # type: ignore[attr-defined]


def given_out(tracks: list[Track]) -> list[list[int]]:
    """The frames of each track."""
    return [track.frame_index.tolist() for track in tracks]


def test_log_odds() -> None:
    assert online.log_odds(np.array([0.2, 0.5, 0.8]), 0.2) == pytest.approx([0, np.log(4), np.log(16)])
    bounded = online.log_odds(np.array([0.0, 1.0]), 0.5)
    assert bounded == pytest.approx([-np.log(49), np.log(49)])


SURE, LIKELY, WEAK = 0.9, 0.5, 0.25  # evidence of 3.58, 1.39 and .29 against a prior of .2
CASES = {
    "a sure object is given out at once": ([SURE] * 3, {}, [[0, 1, 2]]),
    "a likely one when seen twice": ([LIKELY] * 4, {}, [[1, 2, 3]]),
    "from its first box on, if all is known": ([LIKELY] * 4, {"whole_tracks": True}, [[0, 1, 2, 3]]),
    "a weak one never begins": ([WEAK] * 9, {}, []),
    "but carries on": ([SURE, WEAK, WEAK], {}, [[0, 1, 2]]),
    "a box below the prior tells against it": ([LIKELY, LIKELY, 0.12, LIKELY], {}, [[1, 3]]),
    "a gap is bridged": ([SURE] * 3 + [None] * 4 + [SURE] * 2, {}, [[0, 1, 2, 7, 8]]),
    "as long as evidence lasts": ([SURE] * 3 + [None] * 25 + [SURE] * 2, {}, [[0, 1, 2], [28, 29]]),
    "so a likely one is lost sooner": ([LIKELY] * 2 + [None] * 12 + [LIKELY] * 2, {}, [[1], [15]]),
    "evidence is lost in a gap": ([LIKELY] * 2 + [None] * 3 + [LIKELY] * 2, {}, [[1, 6]]),
    "boxes below the least score are not seen": ([SURE, 0.05, SURE], {}, [[0, 2]]),
}


@pytest.mark.parametrize(("scores", "changes", "expected"), CASES.values(), ids=CASES)
def test_evidence(scores: list[float | None], changes: dict, expected: list) -> None:
    assert given_out(follow(walk(scores), **changes)) == expected


FITS = {
    "a fast object beside its last box": ([walk([SURE] * 6, speed=50)], {}, 1),
    "not without a margin": ([walk([SURE] * 6, speed=50)], {"margin": 0.0}, 6),
    "another size is another object": ([walk([SURE] * 3 + [None] * 3), walk([None] * 3 + [SURE] * 3, size=150)], {}, 2),
    "two apart are two": ([walk([SURE] * 6), walk([SURE] * 6, speed=-20)], {}, 2),
}


@pytest.mark.parametrize(("objects", "changes", "count"), FITS.values(), ids=FITS)
def test_fit(objects: list[list[Detections]], changes: dict, count: int) -> None:
    assert len(follow(together(*objects), **changes)) == count


@pytest.mark.parametrize("scale", [2.0**-12, 2.0**12])
def test_what_a_pixel_is_does_not_matter(scale: float) -> None:
    frames = together(walk([SURE] * 6, speed=9), walk([SURE] * 6, speed=-9, size=30))
    scaled = [dataclasses.replace(frame, boxes=frame.boxes * np.float32(scale)) for frame in frames]
    assert given_out(follow(scaled)) == given_out(follow(frames)) == [[*range(6)]] * 2


def test_classes_stay_apart_unless_asked() -> None:
    frames = walk([SURE] * 6)
    turned = [detections(f.frame_index, f.boxes, f.scores, [f.frame_index % 2]) for f in frames]
    assert len(follow(turned)) == 2
    assert given_out(follow(turned, same_class=False)) == [[0, 1, 2, 3, 4, 5]]


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.integers(1, 24))
def test_what_is_given_out_depends_on_no_later_frame(seed: int, length: int) -> None:
    random = np.random.default_rng(seed)
    frames = []
    for index in range(25):
        corner = random.uniform(0, 60, (random.integers(0, 5), 2))
        boxes = np.concatenate([corner, corner + random.uniform(20, 50, corner.shape)], axis=1)
        frames.append(detections(index, boxes, random.random(len(boxes))))
    whole = {(t.track_id, f) for t in follow(frames) for f in t.frame_index.tolist() if f < length}
    begun = {(t.track_id, f) for t in follow(frames[:length]) for f in t.frame_index.tolist()}
    assert whole == begun


def test_a_frame_without_a_record_is_one_without_boxes() -> None:
    frames = walk([SURE] * 3 + [None] * 25 + [SURE] * 2)
    assert given_out(follow([frame for frame in frames if len(frame)])) == given_out(follow(frames))


OFFLINE = {
    "a weak object that is always there": ([0.45] * 24, {}, [list(range(24))]),
    "not a weak one that is seen rarely": ([0.45, None, None, None] * 6, {}, []),
    "a short gap is filled": ([SURE] * 5 + [None] * 3 + [SURE] * 5, {}, [list(range(13))]),
    "a long one is not": ([SURE] * 5 + [None] * 9 + [SURE] * 5, {}, [[*range(5), *range(14, 19)]]),
    "a single box is no track": ([0.98], {"min_evidence": 0.0}, []),
}


@pytest.mark.parametrize(("scores", "changes", "expected"), OFFLINE.values(), ids=OFFLINE)
def test_offline(scores: list[float | None], changes: dict, expected: list) -> None:
    assert given_out(follow(walk(scores), offline, **changes)) == expected


def test_filled_boxes_are_marked_and_lie_on_the_way() -> None:
    (track,) = follow(walk([SURE] * 5 + [None] * 3 + [SURE] * 5, speed=3), offline)
    assert track.box_id.tolist() == [0] * 5 + [-1] * 3 + [0] * 5
    assert track.boxes[:, 0] == pytest.approx(100 + 3 * np.arange(13), abs=0.01)


@pytest.mark.parametrize(
    ("linker", "changes", "said"),
    [
        (online, {"prior": 0.0}, "linker online.prior is 0.0; it must be from 0.02 to 0.98"),
        (online, {"measurement": 0.0}, "linker online.measurement is 0.0; it must be above 0"),
        (online, {"end": 10.0}, "linker online.end is 10.0; it must be below online.most, 9.0"),
        (offline, {"miss": -1.0}, "linker offline.miss is -1.0; it must be at least 0"),
        (online, {"certain": 9.5}, "linker online.certain is 9.5; it must be at most online.most, 9.0"),
        (offline, {"fill": -1}, "linker offline.fill is -1; it must be at least 0"),
        (offline, {"smooth": 2000.0}, "linker offline.smooth is 2000.0; it must be from 0 to 1000"),
    ],
)
def test_settings_out_of_range_are_refused(linker: object, changes: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        follow([], linker, **changes)


@pytest.mark.parametrize("prior", [0.02, 0.98])
def test_the_bounds_of_the_prior_are_allowed(prior: float) -> None:
    assert online.Settings(prior=prior).prior == prior


@pytest.fixture(scope="module")
def entries(data: Path) -> list[real.Entry]:
    return real.entries(str(data))


# Fourteen entries, one setting; the best open tracker reaches HOTA 67.2, MOTA 71.0, IDF1 81.4.
REAL = {"online": {"HOTA": 68.5, "MOTA": 72.5, "IDF1": 83.0}, "offline": {"HOTA": 71.0, "MOTA": 75.0, "IDF1": 84.5}}


@pytest.mark.data
@pytest.mark.parametrize(("linker", "least"), REAL.items(), ids=REAL)
def test_real_detections_are_followed_well(entries: list[real.Entry], linker: str, least: dict[str, float]) -> None:
    assert len(entries) == 14
    assert sum(len(entry.frames) for entry in entries) == 2948
    found = real.scores(entries, real.linker(linker))
    assert {name: found[name] for name in least if found[name] < least[name]} == {}
