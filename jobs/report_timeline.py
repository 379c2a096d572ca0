"""The timeline of a video: a lane for each track, and one for each true object that says which tracks covered it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs import report_colours as colours
from jobs.report_scene import Boxes, Cover, Scene
from pipeline.metrics.pairs import Booleans, Ints

MAX_LANES = 40


@dataclass(frozen=True)
class Bar:
    """A piece of a lane. left, width: percent of the video; kind: `seen`, `guessed`, `gap`, `missed` or `switch`."""

    left: float
    width: float
    kind: str
    colour: str
    title: str


@dataclass(frozen=True)
class Lane:
    """A line of the timeline; key: its track's colour, '' for an object of truth."""

    name: str
    key: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Timeline:
    """Lanes of tracks and of true objects, by first frame, and how many of each there are in all."""

    tracks: tuple[Lane, ...]
    num_tracks: int
    objects: tuple[Lane, ...]
    num_objects: int
    num_switches: int
    length: int


def make_timeline(scene: Scene) -> Timeline:
    """The longest MAX_LANES tracks and objects of a video."""
    tracks = scene.tracks.tracks()
    objects = scene.truth.tracks() if scene.truth is not None and scene.cover is not None else {}
    return Timeline(
        tracks=tuple(_track_lane(scene, track, rows) for track, rows in _longest(tracks, scene.tracks)),
        num_tracks=len(tracks),
        objects=tuple(
            _object_lane(scene, scene.truth, scene.cover, number, rows)
            for number, rows in (_longest(objects, scene.truth) if scene.truth is not None else ())
            if scene.truth is not None and scene.cover is not None
        ),
        num_objects=len(objects),
        num_switches=int(scene.cover.switch.sum()) if scene.cover is not None else 0,
        length=scene.length,
    )


def _longest(rows: dict[int, Ints], boxes: Boxes) -> list[tuple[int, Ints]]:
    """The longest few, by their first frame."""
    chosen = sorted(rows.items(), key=lambda item: -len(item[1]))[:MAX_LANES]
    return sorted(chosen, key=lambda item: (int(boxes.frame[item[1][0]]), item[0]))


def _track_lane(scene: Scene, track: int, rows: Ints) -> Lane:
    """What a track has a box for: detected, guessed, or nothing in between."""
    boxes = scene.tracks
    colour = colours.of_track(track)
    frames = boxes.frame[rows]
    bars = [_bar(scene, int(frames[0]), int(frames[-1]) + 1, "gap", colour, "no box")]
    for first, last in _runs(frames, boxes.guessed[rows]):
        kind = "guessed" if boxes.guessed[rows[first]] else "seen"
        bars.append(_bar(scene, int(frames[first]), int(frames[last]) + 1, kind, colour, f"track {track}"))
    return Lane(f"{track} {boxes.names[rows[0]]}", colour, tuple(bars))


def _object_lane(scene: Scene, truth: Boxes, cover: Cover, number: int, rows: Ints) -> Lane:
    """Where an object is (missed), which track covers it when (in that track's colour), and where that changes."""
    frames = truth.frame[rows]
    bars = [
        _bar(scene, int(frames[first]), int(frames[last]) + 1, "missed", "", "missed")
        for first, last in _runs(frames, np.zeros(len(frames), np.int64))
    ]
    mine = np.flatnonzero(cover.object_id == number)
    times, by = cover.frame[mine], cover.track_id[mine]
    for first, last in _runs(times, by):
        track = int(by[first])
        bars.append(
            _bar(scene, int(times[first]), int(times[last]) + 1, "seen", colours.of_track(track), f"by track {track}")
        )
    for place in np.flatnonzero(cover.switch[mine]):
        change = f"switch: track {by[place - 1]} to {by[place]}"
        bars.append(_bar(scene, int(times[place]), int(times[place]), "switch", "", change))
    return Lane(f"{number} {truth.names[rows[0]]}", "", tuple(bars))


def _runs(frames: Ints, values: Ints | Booleans) -> Sequence[tuple[int, int]]:
    """(first, last) places of each run of frames without a gap that share a value."""
    if not len(frames):
        return ()
    breaks = np.flatnonzero((np.diff(frames) != 1) | (values[1:] != values[:-1]))
    return [
        (int(first), int(last))
        for first, last in zip([0, *(breaks + 1)], [*breaks, len(frames) - 1], strict=True)
    ]  # fmt: skip


def _bar(scene: Scene, start: int, stop: int, kind: str, colour: str, what: str) -> Bar:
    """A bar over frames [start, stop)."""
    when = f"frame {start}" if stop - start <= 1 else f"frames {start} to {stop - 1}"
    return Bar(
        left=round(100 * (start - scene.start) / scene.length, 3),
        width=round(100 * (stop - start) / scene.length, 3),
        kind=kind,
        colour=colour,
        title=f"{what}, {when}",
    )
