"""The stages between the networks: small callables over records, each a worker's whole job."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import scoring
from pipeline.config import load, settings
from pipeline.detect import Part, Unit, failed
from pipeline.recipe import Recipe
from pipeline.records import ClipRef, Resize, VideoInfo
from pipeline.schemas import DETECTIONS, TRACKS, TRUTH, VIDEOS, detections_frames, tracks_table
from pipeline.stitch import stitch
from pipeline.tables import PARTS, Run
from pipeline.video import Probe, VideoError, cut, probe

TRAVEL_BYTES = 128 * 1024**2  # a clip of more pixels than this is decoded where it is seen
UNIT_FRAMES = 256  # short clips go together until they are this many frames: a second or two of work a Ray block


@dataclass(frozen=True)
class Plan:
    """What is to be done of one video: its clips, or why there are none."""

    video: VideoInfo
    header: Probe | None
    clips: tuple[ClipRef, ...]
    error: str | None = None


@dataclass(frozen=True)
class Shard:
    """Videos whose rows share a file. plans: what was to be done of each, where that matters."""

    number: int
    videos: tuple[VideoInfo, ...]
    plans: tuple[Plan, ...] = ()

    @property
    def file(self) -> str:
        """The name of its file in every table."""
        return f"shard-{self.number:05d}.parquet"


def shards_of(videos: Sequence[VideoInfo], size: int) -> dict[str, Shard]:
    """The catalog in pieces of `size` videos, by the name of their file; a video lies wholly in one."""
    shards = [Shard(i // size, tuple(videos[i : i + size])) for i in range(0, len(videos), size)]
    return {shard.file: shard for shard in shards}


class PlanVideo:
    """videos -> plans: opens each video for its header and cuts it into clips."""

    def __init__(self, recipe: Recipe, context: tuple[int, int]) -> None:
        self.clip_frames = recipe.clip_frames
        overlap = recipe.overlap if recipe.clip_frames else 0
        self.before, self.after = context[0] + overlap, context[1] + overlap

    def __call__(self, video: VideoInfo) -> Iterator[Plan]:
        try:
            header = probe(video)
        except VideoError as error:
            yield Plan(video, None, (), str(error))
            return
        clips = cut(video, header.frames_declared, self.clip_frames, self.before, self.after)
        yield Plan(video, header, tuple(clips))


def units_of(refs: Sequence[ClipRef], plans: Mapping[str, Plan], resize: Resize) -> list[Unit]:
    """Clips in units of about a second's work; one whose pixels are too many to travel, or unknown, stays alone."""
    units: list[Unit] = []
    waiting: list[ClipRef] = []
    frames = 0
    for ref in refs:
        header = plans[ref.video.video_id].header
        assert header is not None, "a video without a header has no clips"
        end = ref.end_shown if ref.stop is not None else header.frames_declared
        count = max(end - ref.first_shown, 1) if end is not None else None
        height, width = resize.target(header.size)
        if count is None or count * height * width * 3 > TRAVEL_BYTES:
            units.append(Unit((ref,), travels=False))
            continue
        if waiting and frames + count > UNIT_FRAMES:
            units.append(Unit(tuple(waiting)))
            waiting, frames = [], 0
        waiting.append(ref)
        frames += count
    return units + ([Unit(tuple(waiting))] if waiting else [])


TOLD = ("frames", "boxes", "status", "stage", "error", "seconds")  # what a part's file says besides its rows


class WritePart:
    """parts -> the same without their rows, which now lie in `_parts/CLIP.parquet`."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __call__(self, part: Part) -> Iterator[Part]:
        told = json.dumps({name: getattr(part, name) for name in TOLD})
        self.run.write_table(part.table, PARTS, f"{part.ref.clip_id}.parquet", metadata={"part": told})
        yield replace(part, table=DETECTIONS.empty_table())


class Gather:
    """shards -> their names, once their parts are one file of `detections` and their videos one of `videos`."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __call__(self, shard: Shard) -> Iterator[str]:
        tables, rows = [], []
        for plan in shard.plans:
            parts = [self._part(ref) for ref in plan.clips]
            tables += [part.table for part in parts]
            rows.append(video_row(plan, parts))
        # `videos` first: a shard counts as done once its `detections` are there.
        self.run.write_table(pa.Table.from_pylist(rows, VIDEOS), "videos", shard.file)
        detections = pa.concat_tables([DETECTIONS.empty_table(), *tables]).unify_dictionaries()
        self.run.write_table(detections, "detections", shard.file)
        yield shard.file

    def _part(self, ref: ClipRef) -> Part:
        table = self.run.read_table(PARTS, f"{ref.clip_id}.parquet")
        about = json.loads(table.schema.metadata[b"part"])
        return Part(ref, table.replace_schema_metadata(None).cast(DETECTIONS), **about)


class Link:
    """File names of `detections` -> the same, once the shard's `tracks` and `videos` are written."""

    def __init__(self, run: Run, recipe: Recipe, source: Run) -> None:
        self.run, self.source = run, source
        self.linker = load("linker", recipe.linker)
        self.settings = settings(self.linker.Settings, recipe.linker_settings, f"linker {recipe.linker}")
        self.recipe = recipe
        self.classes: list[str] = source.about["classes"]

    def __call__(self, file: str) -> Iterator[str]:
        rows = self.source.read_table("videos", file).to_pylist()
        detections = self.source.read_table("detections", file)
        of_video = np.asarray(detections["video_id"].cast(pa.string()))
        tables = [TRACKS.empty_table()]
        for row in rows:
            start = time.perf_counter()
            mine = np.flatnonzero(of_video == row["video_id"])
            table = self.tracks(row, detections.take(mine))
            tables.append(table)
            row["tracks"] = len(set(table["track_id"].drop_null().to_pylist()))
            row["link_s"] = time.perf_counter() - start
        self.run.write_table(pa.Table.from_pylist(rows, VIDEOS), "videos", file)
        self.run.write_table(pa.concat_tables(tables).unify_dictionaries(), "tracks", file)
        yield file

    def tracks(self, row: Mapping[str, Any], detections: pa.Table) -> pa.Table:
        """One video's rows of `tracks` from its rows of `detections`."""
        size = (row["height"], row["width"]) if row["height"] else None
        video = VideoInfo(row["video_id"], row["uri"] or "", row["catalog"] or "", fps=row["fps"], size=size)
        frames, tracks = self.linker.link(stitched(detections), video, self.settings)
        table = tracks_table(video.video_id, frames, tracks, self.classes)
        return thresholded(table, self.recipe.detection_threshold, self.recipe.tracking_threshold)


class Score:
    """shards -> their names, once their `truth` and `scores` are written."""

    def __init__(self, run: Run, catalog: str) -> None:
        self.run = run
        self.catalog = catalog

    def __call__(self, shard: Shard) -> Iterator[str]:
        known = {video.video_id: truth for video in shard.videos if (truth := load_truth(video)) is not None}
        truth = pa.concat_tables([TRUTH.empty_table(), *known.values()]).unify_dictionaries()
        self.run.write_table(truth, "truth", shard.file)
        tracks = self.run.read_table("tracks", shard.file)
        scores = scoring.score(truth, tracks, videos=list(known), catalog=self.catalog)
        self.run.write_table(scores, "scores", shard.file)
        yield shard.file


def load_truth(video: VideoInfo) -> pa.Table | None:
    """What the video's catalog knows of it, as rows of TRUTH; None where nothing is known."""
    table = load("catalog", video.catalog).truth(video)
    return None if table is None else table.cast(TRUTH)


def stitched(detections: pa.Table) -> list[Any]:
    """One video's rows of `detections`, clip by clip in order of time, as its owned frames."""
    frames = detections_frames(detections)
    owned = np.asarray(detections["owned"])
    clip_id = detections["clip_id"].cast(pa.string()).to_pylist()
    clips = []
    for _, group in groupby(range(len(frames)), key=lambda row: clip_id[row]):
        rows = list(group)
        clips.append(([frames[row] for row in rows], owned[rows]))
    return stitch(clips)


def thresholded(tracks: pa.Table, detection_threshold: float, tracking_threshold: float) -> pa.Table:
    """Rows that score below the one go, tracks that score below the other lose their id."""
    score = np.asarray(tracks["score"])
    weak = np.nan_to_num(np.asarray(tracks["track_score"]), nan=0.0) < tracking_threshold
    if weak.any():
        for name in ("track_id", "track_score"):
            column = tracks[name].combine_chunks()
            blank = pa.array(np.asarray(column.fill_null(0)), column.type, mask=weak | np.asarray(column.is_null()))
            tracks = tracks.set_column(tracks.column_names.index(name), TRACKS.field(name), blank)
    return tracks.filter(pa.array(score >= detection_threshold))


def lost_part(ref: ClipRef) -> Part:
    """What is said of a clip whose worker died each time."""
    return failed(ref, "detect", "the process that worked on it died each time; it was tried three times, once alone")


def lost_plan(video: VideoInfo) -> Plan:
    """What is said of a video whose header could not be read without the process dying."""
    return Plan(video, None, (), "the process that read its header died each time; it was tried twice")


def video_row(plan: Plan, parts: Sequence[Part]) -> dict[str, Any]:
    """The row of `videos` that says how it went."""
    header = asdict(plan.header) if plan.header else {}
    header.update(zip(("height", "width"), header.pop("size", (None, None)), strict=True))
    bad = [part for part in parts if part.status != "ok"]
    frames = sum(part.frames for part in parts)
    if plan.error is not None:
        how = {"status": "failed", "stage": "open", "error": plan.error}
    elif bad:
        how = {"status": "partial" if frames else "failed", "stage": bad[0].stage, "error": bad[0].error}
    else:
        how = {"status": "ok"}
    return {
        "video_id": plan.video.video_id,
        "catalog": plan.video.catalog,
        "uri": plan.video.uri,
        **{name: value for name, value in header.items() if name in VIDEOS.names},
        "frames_decoded": frames,
        **how,
        "boxes": sum(part.boxes for part in parts),
        **{name: sum(part.seconds.get(name, 0.0) for part in parts) for name in ("decode_s", "detect_s")},
    }
