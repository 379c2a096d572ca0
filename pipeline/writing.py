"""What a network saw, written: a part as soon as a clip is done, a shard's tables once all its parts are there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.clips import Part
from pipeline.config import load
from pipeline.planning import Plan, Shard
from pipeline.records import ClipRef, Detections
from pipeline.schemas import DETECTIONS, VIDEOS, detections_table
from pipeline.tables import PARTS, Run

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


class Take:
    """shards -> their names, once the detections that their catalog has of their videos are tables."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __call__(self, shard: Shard) -> Iterator[str]:
        tables, rows = [DETECTIONS.empty_table()], []
        for video in shard.videos:
            how: dict[str, str] = {"status": "ok"}
            frames: list[Detections] = []
            try:
                given = load("catalog", video.catalog).detections(video)
                frames = [frame for frame in given if video.holds(np.array(frame.frame_index))]
            except (ValueError, OSError) as error:
                how = {"status": "failed", "stage": "take", "error": " ".join(str(error).split())}
            owned = np.ones(len(frames), np.bool_)
            tables.append(detections_table(video.video_id, ClipRef(video).clip_id, frames, owned))
            height, width = video.size or (None, None)
            about = {"video_id": video.video_id, "catalog": video.catalog, "uri": video.uri, "fps": video.fps}
            size = {"height": height, "width": width, "frames_declared": len(frames)}
            part = {"start": video.start, "stop": video.stop}
            rows.append({**about, **part, **size, **how, "boxes": sum(map(len, frames))})
        self.run.write_table(pa.Table.from_pylist(rows, VIDEOS), "videos", shard.file)
        self.run.write_table(pa.concat_tables(tables).unify_dictionaries(), "detections", shard.file)
        yield shard.file


def video_row(plan: Plan, parts: Sequence[Part]) -> dict[str, Any]:
    """The row of `videos` that says how it went."""
    header = asdict(plan.header) if plan.header else {}
    header.update(zip(("height", "width"), header.pop("size", (None, None)), strict=True))
    bad = [part for part in parts if part.status != "ok"]
    frames = sum(part.frames for part in parts)
    how: dict[str, str | None]
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
        "start": plan.video.start,
        "stop": plan.video.stop,
        **{name: value for name, value in header.items() if name in VIDEOS.names},
        "frames_decoded": frames,
        **how,
        "boxes": sum(part.boxes for part in parts),
        **{name: sum(part.seconds.get(name, 0.0) for part in parts) for name in ("decode_s", "detect_s")},
    }
