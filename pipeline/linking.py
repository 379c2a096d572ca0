"""The link stage: a shard's `detections` are stitched, linked, refined and written as its `tracks`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import refining
from pipeline.config import load, settings
from pipeline.recipe import Recipe
from pipeline.records import Detections, VideoInfo
from pipeline.schemas import TRACKS, VIDEOS, detections_frames, tracks_table
from pipeline.stitch import stitch
from pipeline.tables import Run


class Link:
    """File names of `detections` -> the same, once the shard's `tracks` and `videos` are written."""

    def __init__(self, run: Run, recipe: Recipe, source: Run) -> None:
        self.run, self.source = run, source
        self.linker = load("linker", recipe.linker)
        self.settings = settings(self.linker.Settings, recipe.linker_settings, f"linker {recipe.linker}")
        self.refine_settings = settings(refining.Settings, recipe.refine_settings, "refine")
        self.recipe = recipe
        self.classes: list[str] = run.about["classes"]

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
        video = VideoInfo(
            row["video_id"], row["uri"] or "", row["catalog"] or "", fps=row["fps"], size=size,
            start=row.get("start") or 0, stop=row.get("stop"),
        )  # fmt: skip
        raw = stitched(detections)
        frames, tracks = self.linker.link(raw, video, self.settings)
        strong = [track for track in tracks if track.score >= self.recipe.tracking_threshold]
        frames, refined = refining.refine(frames, strong, self.refine_settings)
        numbered = [replace(track, track_id=number) for number, track in enumerate(refined, start=1)]
        table = tracks_table(video.video_id, frames, numbered, self.classes, raw)
        return table.filter(pc.greater_equal(table["score"], self.recipe.detection_threshold))


def stitched(detections: pa.Table) -> list[Detections]:
    """One video's rows of `detections`, clip by clip in order of time, as its owned frames."""
    frames = detections_frames(detections)
    owned = np.asarray(detections["owned"])
    clip_id = detections["clip_id"].cast(pa.string()).to_pylist()
    clips = []
    for _, group in groupby(range(len(frames)), key=lambda row: clip_id[row]):
        rows = list(group)
        clips.append(([frames[row] for row in rows], owned[rows]))
    return stitch(clips)
