"""Tracks from detections that are there already: a run's, or other people's.

trackloom link runs/mine --linker tracklets --output runs/mine-tracklets
trackloom link DATASET --catalog mot --linker tracklets --output runs/public      det/det.txt of each sequence
trackloom link det.txt --linker tracklets --output runs/one
trackloom link detections.parquet --linker tracklets --output runs/theirs
"""

from __future__ import annotations

from typing import Annotated

import typer

from jobs import given, prepare
from jobs.command import main
from jobs.options import Address, CatalogName, IsLocal, LinkerName, Output, Overwrite, RecipeName, Set, recipe_of
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
    local: IsLocal = False,
    address: Address = None,
    overwrite: Overwrite = False,
) -> int:
    """Gives stored detections their identities: `detections` in, `tracks` out, without any network."""
    chosen = recipe_of(recipe, settings, linker=linker or (None if recipe else "tracklets"))
    found = given.find(source, chosen, catalog)
    prepare.check_linker(chosen, found.evidence, f"what {source} holds")
    engine, _ = prepare.engine(local, address)
    identity = {"detections": found.identity, "recipe": prepare.linking(chosen)}
    tables = prepare.claim(output, identity, found.classes, overwrite, engine)
    progress = Line()
    if found.run is None:
        flow.take(tables, chosen, found.videos, engine, progress)
    flow.link(tables, chosen, engine, progress, found.run)
    if found.has_truth:
        flow.score(tables, chosen, found.videos, engine, progress, found.run)
    typer.echo(summary(tables))
    return exit_code(tables)


if __name__ == "__main__":
    main("link")
