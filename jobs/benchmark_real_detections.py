"""How well trackers follow real detections, one setting for all: TUD (MOT15) and KITTI, cars and pedestrians apart.

Fourteen entries: the detections of two MOT15 sequences, and PointRCNN's of six KITTI sequences, for each class. Boxes
that score below .1 are left out. All entries are scored together: HOTA, CLEAR and identity as TrackEval 1.3 defines
them; predictions that vans, people sitting and DontCare regions excuse do not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.table import Table

from catalogs import kitti, mot
from jobs.benchmark_rows import Missing, Row, peer
from pipeline import scoring
from pipeline.config import load
from pipeline.records import Detections, Track, VideoInfo, detections
from pipeline.schemas import tracks_table
from pipeline.tracks import tracks_of

MIN_SCORE = 0.1
OURS = ("online", "offline", "bytetrack", "sort", "tracklets", "tubes")
TRACKEVALS = {"MOTA": "CLR_MOTA"}
SHOWN = ("HOTA", "DetA", "AssA", "MOTA", "IDF1", "IDSW")
Tracker = Callable[[list[Detections], VideoInfo], list[Track]]


@dataclass(frozen=True)
class Entry:
    """Detections of one class in one video, and its truth."""

    video: VideoInfo
    class_name: str
    frames: list[Detections]
    truth: pa.Table


def rows(data: str, slow_peers: bool) -> Iterator[Row]:
    """Each score of each of our linkers beside each peer's."""
    found = entries(data)
    size = f"{len(found)} entries, {sum(len(entry.frames) for entry in found):,} frames"
    theirs: dict[str, dict[str, float]] = {}
    missing = {}
    for label, kind in (("roboflow SORT", "SORTTracker"), ("roboflow ByteTrack", "ByteTrackTracker")):
        try:
            theirs[label] = scores(found, _roboflow(kind))
        except Missing as error:
            theirs[label], missing[label] = dict.fromkeys(SHOWN, math.nan), str(error)
    for name in OURS:
        ours = scores(found, linker(name))
        for peer_name in theirs:
            for metric in SHOWN:
                unit = "switches" if metric == "IDSW" else "% (more is better)"
                yield Row(
                    f"{name} {metric}",
                    size,
                    ours[metric],
                    peer_name,
                    theirs[peer_name][metric],
                    unit,
                    missing.get(peer_name, ""),
                )


def table(rows: Iterable[Row]) -> Table:
    """A line a tracker, ours and theirs."""
    found: dict[str, dict[str, float]] = {}
    missing = set()
    for row in rows:
        name, metric = row.name.split()
        found.setdefault(name, {})[metric] = row.ours
        found.setdefault(row.peer_name, {})[metric] = row.peer
        missing |= {row.peer_name} if row.missing else set()
    shown = Table("tracker", *SHOWN)
    for name, scores in sorted(found.items(), key=lambda item: -item[1]["HOTA"]):
        figures = [f"{scores[metric]:.0f}" if metric == "IDSW" else f"{scores[metric]:.1f}" for metric in SHOWN]
        shown.add_row(name, *(["not installed"] if name in missing else figures))
    return shown


def entries(data: str) -> list[Entry]:
    """What is tracked: each class of each video that has truth and detections."""
    found = []
    for catalog, folder in ((mot, "mot15"), (kitti, "kitti")):
        for video in catalog.videos(f"{data}/{folder}", catalog.Settings()):
            truth = catalog.truth(video)
            if truth is None or video.detections_uri is None:
                continue
            length = 1 + max(truth["frame_index"].to_pylist())
            frames = catalog.detections(video)
            frames += [detections(index) for index in range(len(frames), length)]
            for label, name in enumerate(catalog.classes(video)):
                found.append(Entry(video, name, [_of_class(frame, label) for frame in frames], truth))
    return found


def scores(found: list[Entry], tracker: Tracker) -> dict[str, float]:
    """SHOWN of all entries together; in percent, but for the switches."""
    tables = []
    for entry in found:
        tracks = tracker(entry.frames, entry.video)
        table = tracks_table(entry.video.video_id, entry.frames, tracks, [entry.class_name])
        table = table.filter(pc.is_valid(table["track_id"]))
        truth = _of_name(entry.truth, entry.class_name)
        # An entry is a video of its own: the two classes of a KITTI sequence share no truth.
        tables.append(scoring.score(truth, table, metrics=["HOTA", "IDF1", "CLR_MOTA"], videos=[entry.video.video_id]))
    combined = scoring.values(scoring.combine(tables))[None, None]
    return {name: combined[TRACKEVALS.get(name, name)] * (1 if name == "IDSW" else 100) for name in SHOWN}


def _of_class(frame: Detections, label: int) -> Detections:
    """The boxes of a class that are strong enough, as those of a video that has no other."""
    chosen = (frame.labels == label) & (frame.scores >= MIN_SCORE)
    return detections(frame.frame_index, frame.boxes[chosen], frame.scores[chosen], timestamp_s=frame.timestamp_s)


def _of_name(truth: pa.Table, class_name: str) -> pa.Table:
    """The truth of a class, and what concerns every class."""
    return truth.filter(
        pc.or_kleene(pc.equal(truth["class_name"].cast(pa.string()), class_name), pc.is_null(truth["class_name"]))
    )


def linker(name: str) -> Tracker:
    """One of ours, as it comes."""
    module = load("linker", name)
    return lambda frames, video: module.link(frames, video, module.Settings())[1]


def _roboflow(kind: str) -> Tracker:
    make = getattr(peer("trackers", "trackers"), kind)
    supervision = peer("supervision", "supervision")

    def track(frames: list[Detections], video: VideoInfo) -> list[Track]:
        running = make()
        shown, ids = [], []
        for frame in frames:
            boxes, scores = frame.boxes.astype(np.float64), frame.scores.astype(np.float64)
            seen = running.update(supervision.Detections(boxes, confidence=scores, class_id=frame.labels))
            identified = np.asarray(seen.tracker_id) >= 0  # -1 is its word for unconfirmed
            shown.append(detections(frame.frame_index, seen.xyxy[identified], seen.confidence[identified]))
            ids.append(np.asarray(seen.tracker_id)[identified].astype(np.int32))
        return tracks_of(shown, ids)

    return track
