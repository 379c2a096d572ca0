"""Detections that are there already: of a run of ours, or of any catalog that has `detections(video)`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import fsspec

from catalogs import mot
from jobs import prepare
from pipeline.config import digest, load
from pipeline.recipe import Recipe
from pipeline.records import EVIDENCE, VideoInfo
from pipeline.tables import Run, read_run


@dataclass(frozen=True)
class Given:
    """Where detections come from. run: ours, that holds them; otherwise the videos whose catalog reads them.

    evidence: what linkers may build on; has_truth: whether the videos can be scored.
    """

    videos: list[VideoInfo]
    classes: tuple[str, ...]
    evidence: frozenset[str]
    has_truth: bool
    identity: dict[str, Any]
    run: Run | None = None


def find(source: str, recipe: Recipe, catalog: str | None) -> Given:
    """What lies at the source; ValueError or FileNotFoundError where nothing does that could be linked.

    Without a catalog named, a folder with run.json is a run, .parquet the catalog `parquet`, .json `coco`, a text file
    or any other folder `mot`.
    """
    if catalog is None and Run(source).exists("run.json"):
        return _of_run(read_run(source))
    fs, path = fsspec.core.url_to_fs(source)
    name = catalog or _guess(fs, path.rstrip("/"))
    if name == "mot" and not fs.isdir(path) and fs.exists(path):
        videos = [_of_text(source, fs.info(path))]
    else:
        prepare.check_reads_detections(name)
        videos = prepare.listed(recipe, name, source)
    videos = [video for video in videos if video.detections_uri]
    if not videos:
        raise ValueError(f"the videos of {source} come without detections; catalog {name} looked for them")
    return Given(
        videos=videos,
        classes=load("catalog", name).classes(videos[0]),
        evidence=frozenset(),
        has_truth=any(video.truth_uri for video in videos),
        identity={"catalog": name, "videos": digest([(video.video_id, video.identity) for video in videos])},
    )


def _of_run(run: Run) -> Given:
    shards = run.shards("detections")
    if not shards:
        raise ValueError(f"{run.url} has no detections yet; trackloom detect writes them")
    evidence: set[str] = set()
    for shard in shards:
        table = run.read_table("detections", shard)
        evidence |= {name for name in EVIDENCE if table[name].null_count < len(table)}
        if len(table):
            break
    return Given(
        videos=[],
        classes=tuple(run.about["classes"]),
        evidence=frozenset(evidence),
        has_truth=bool(run.shards("truth")),
        identity={"run": run.about["run_id"], "made_by": run.about["identity"]},
        run=run,
    )


def _guess(fs: Any, path: str) -> str:
    """The catalog that reads such a file or folder."""
    if path.endswith(".json"):
        return "coco"
    if path.endswith(".parquet") or (
        fs.isdir(path) and any(str(name).endswith(".parquet") for name in fs.ls(path, False))
    ):
        return "parquet"
    return "mot"


def _of_text(source: str, info: dict[str, Any]) -> VideoInfo:
    """A single det.txt as a video of its own; named as MOTChallenge's folders say, else by the file."""
    parts = source.rstrip("/").split("/")
    is_sequence = len(parts) > 2 and parts[-2] in ("det", "gt")
    return VideoInfo(
        video_id=parts[-3] if is_sequence else parts[-1].rpartition(".")[0] or parts[-1],
        uri="",
        catalog=mot.__name__.rpartition(".")[2],
        kind="rows",
        identity=f"{info.get('size')}|{info.get('mtime') or info.get('ETag')}",
        detections_uri=source,
    )
