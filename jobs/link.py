"""Tracks from detections that are there already: a run's, or other people's.

trackloom link runs/mine --linker offline --output runs/mine-offline
trackloom link DATASET --catalog mot --output runs/public      det/det.txt of each sequence
trackloom link KITTI/training --catalog kitti --output runs/cars
trackloom link det.txt --linker bytetrack --set linker.track_buffer=60 --output runs/one
trackloom link detections.parquet --linker deepsort --output runs/theirs

Without --linker: `tracklets` where a model's own tracklets are there, else `online`.
"""

from __future__ import annotations

from typing import Annotated

import typer

from jobs import given, prepare
from jobs.command import main
from jobs.options import (
    OF_LINKING,
    Address,
    CatalogName,
    Frames,
    IsLocal,
    LinkerName,
    Output,
    Overwrite,
    RecipeName,
    Set,
    recipe_of,
)
from jobs.progress import Line
from jobs.summary import exit_code, summary
from pipeline import flow


def link(
    source: Annotated[
        str, typer.Argument(help="A run, or detections: a MOTChallenge folder or text file, Parquet, COCO json.")
    ],
    *,
    output: Output,
    recipe: RecipeName = None,
    catalog: CatalogName = None,
    linker: LinkerName = None,
    settings: Set = None,
    frames: Frames = None,
    local: IsLocal = False,
    address: Address = None,
    overwrite: Overwrite = False,
) -> int:
    """Gives stored detections their identities: `detections` in, `tracks` out, without any network."""
    catalog = given.kind_of(source, catalog)
    if catalog is None and frames is not None:
        raise ValueError(f"--frames is {frames!r}, and {source} is a run, which has the frames that it was made of")
    takes = OF_LINKING if catalog is None else ("catalog", "frames", "videos_per_shard", *OF_LINKING)
    stored = given.of_run(source, output) if catalog is None else None
    if linker is None and recipe is None:
        linker = "tracklets" if stored and "tracklet_id" in stored.evidence else "online"
    chosen = recipe_of(recipe, settings, takes, [source], catalog=catalog, linker=linker, frames=frames)
    found = stored or given.of_catalog(chosen)
    prepare.check_linker(chosen, found.evidence, source)
    engine, _ = prepare.engine(local, address)
    identity = {"detections": found.identity, "recipe": prepare.resolved(chosen, takes)}
    tables = prepare.claim(output, identity, found.classes, overwrite, engine)
    progress = Line()
    if found.run is None:
        if found.has_truth:
            flow.know(tables, chosen, found.videos, engine, progress)
        flow.take(tables, chosen, found.videos, engine, progress)
    flow.link(tables, chosen, engine, progress, found.run)
    if found.has_truth:
        flow.score(tables, engine, progress, found.run)
    typer.echo(summary(tables))
    return exit_code(tables)


if __name__ == "__main__":
    main("link")
