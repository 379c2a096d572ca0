"""Detections that are there already: of a run of ours, or of any catalog that has `detections(video)`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import fsspec

from jobs import prepare
from pipeline.config import load
from pipeline.frame_range import limited
from pipeline.recipe import Recipe
from pipeline.records import EVIDENCE, VideoInfo
from pipeline.tables import Run, Store, read_run


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


def kind_of(source: str, catalog: str | None) -> str | None:
    """The catalog that reads the source's detections, None for a run of ours.

    Unless one is named, a folder with run.json is a run, .parquet is of the catalog `parquet`, .json of `coco`, a text
    file or any other folder of `mot`. Raises ValueError for a catalog that has no detections to give.
    """
    if catalog is None and Run(source).exists("run.json"):
        return None
    fs, path = fsspec.core.url_to_fs(source)
    name = catalog or _guess(fs, path.rstrip("/"))
    prepare.check_reads_detections(name)
    return name


def of_catalog(recipe: Recipe) -> Given:
    """The detections that a catalog's videos come with; ValueError or FileNotFoundError where there are none."""
    source, name = recipe.source, recipe.catalog
    fs, path = fsspec.core.url_to_fs(source)
    if name == "mot" and not fs.isdir(path) and fs.exists(path):
        videos = limited([_of_text(source, fs.info(path))], recipe.frames)
    else:
        videos = [video for video in prepare.listed(recipe, name, source) if video.detections_uri]
    if not videos:
        raise ValueError(f"the videos of {source} come without detections; catalog {name} looked for them")
    catalog = load("catalog", name)
    return Given(
        videos=videos,
        classes=catalog.classes(videos[0]),
        evidence=catalog.evidence(videos[0]) if hasattr(catalog, "evidence") else frozenset(),
        has_truth=any(video.truth_uri for video in videos),
        identity={"videos": prepare.videos_digest(videos)},
    )


def of_run(source: str, output: str) -> Given:
    """The detections of a run; ValueError where it has none, not all, or is the output itself."""
    run = read_run(source)
    if Store(output).url_of() == run.url_of():
        raise ValueError(f"--output {output} is the run whose detections are linked; choose another")
    shards = run.shards("detections")
    if not shards:
        raise ValueError(f"{source} has no detections yet; trackloom detect writes them")
    about = run.about["identity"]
    count = about.get("videos", about.get("detections", {}).get("videos", {})).get("count", 0)
    there = sum(len(run.read_table("videos", shard)) for shard in shards)
    if there < count:
        raise ValueError(f"{source} is not finished: it has {there} of {count} videos; what made it goes on from there")
    evidence: set[str] = set()
    for shard in shards:
        table = run.read_table("detections", shard)
        evidence |= {name for name in EVIDENCE if table[name].null_count < len(table)}
    return Given(
        videos=[],
        classes=tuple(run.about["classes"]),
        evidence=frozenset(evidence),
        has_truth=bool(run.shards("truth")),
        identity={"run": run.about["run_id"], "made_by": about},
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
        catalog="mot",
        kind="rows",
        identity=f"{info.get('size')}|{info.get('mtime') or info.get('ETag')}",
        detections_uri=Store(source).url_of(),
    )
