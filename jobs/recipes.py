"""Recipes: named runs. Ours are functions here; those of the papers' tables are in `jobs/papers`.

trackloom recipes                                 what there is, with the published figures
trackloom recipes --paper detect_to_track --json
trackloom run --recipe demo --output runs/demo    any of them
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import lru_cache
from itertools import groupby
from typing import Annotated

import typer
from rich.console import Console

from jobs import listing
from jobs.command import main
from jobs.papers import (
    detect_to_track,
    plug_and_play_tracker,
    retinatrack,
    smot,
    tracklet_conditioned_detection,
    weights,
)
from jobs.papers.row import Row
from pipeline.config import did_you_mean
from pipeline.recipe import Recipe

PAPERS = {
    module.PAPER: module
    for module in (tracklet_conditioned_detection, detect_to_track, plug_and_play_tracker, retinatrack, smot)
}


def demo() -> Recipe:
    """SMOT with the shipped small detector on the test split of synthetic-v1.

    trackloom run --recipe demo --output runs/demo
    """
    return Recipe(
        name="demo", catalog="synthetic", catalog_settings={"split": "test"}, model="smot", linker="tracklets"
    )


def smot_coco() -> Recipe:
    """SMOT on torchvision's RetinaNet with its COCO weights, on your own videos.

    trackloom run VIDEOS --recipe smot-coco --output runs/mine
    """
    return Recipe(
        name="smot-coco", model="smot", model_settings={"detector": "retinanet_resnet50_fpn_v2"}, linker="tracklets"
    )


def tcd_coco() -> Recipe:
    """TCD on torchvision's Faster R-CNN with its COCO weights, on your own videos; its features stand for embeddings.

    trackloom run VIDEOS --recipe tcd-coco --output runs/mine
    """
    settings = {"detector": "fasterrcnn_resnet50_fpn_v2", "embedding": "fc7", "condition": "stage_2"}
    return Recipe(name="tcd-coco", model="tracklet_rcnn", model_settings=settings, linker="tracklets")


def pnp_coco() -> Recipe:
    """Tracking-first detection on the same; its second stage follows the boxes, Seq-Track-NMS links them.

    trackloom run VIDEOS --recipe pnp-coco --output runs/mine
    """
    settings = {"detector": "fasterrcnn_resnet50_fpn_v2", "tracker": "regression"}
    return Recipe(
        name="pnp-coco",
        model="plug_and_play",
        model_settings=settings,
        linker="seq_nms",
        linker_settings={"links": "moves"},
    )


def retina_coco() -> Recipe:
    """RetinaNet* with torchvision's COCO weights, on your own videos: its classifier's features stand for embeddings.

    trackloom run VIDEOS --recipe retina-coco --output runs/mine
    """
    settings = {"network": "retinanet_resnet50_fpn_v2"}
    return Recipe(name="retina-coco", model="retina_track", model_settings=settings, linker="track_store")


def tracktor_coco() -> Recipe:
    """Tracktor on torchvision's Faster R-CNN with its COCO weights, on your own videos; the camera may move.

    trackloom run VIDEOS --recipe tracktor-coco --output runs/mine
    """
    settings = {"detector": "fasterrcnn_resnet50_fpn_v2", "camera": "ecc"}
    return Recipe(name="tracktor-coco", model="tracktor", model_settings=settings, linker="keep")


OURS: dict[str, Callable[[], Recipe]] = {
    "demo": demo,
    "smot-coco": smot_coco,
    "tcd-coco": tcd_coco,
    "pnp-coco": pnp_coco,
    "retina-coco": retina_coco,
    "tracktor-coco": tracktor_coco,
}


@lru_cache(maxsize=1)
def rows() -> list[Row]:
    """Every line of the papers' tables, in their order."""
    return [row for paper in PAPERS.values() for row in paper.rows()]


def names() -> list[str]:
    """All recipes, as the command line calls them: ours, each row's that has one, and its small twin."""
    ran = [row.name for row in rows() if row.run]
    return sorted([*OURS, *ran, *(f"{name}-small" for name in ran)])


def load(name: str) -> Recipe:
    """The recipe of that name; ValueError with the nearest where there is none, or where it is somebody else's."""
    if name in OURS:
        return OURS[name]()
    for row in rows():
        if row.run and name == row.name:
            return row.run.recipe
        if row.run and name == f"{row.name}-small":
            return row.run.small
        if name == row.name:
            raise ValueError(f"{name} is a published figure, of {row.row}; `trackloom recipes` lists what can be run")
    raise ValueError(f"unknown recipe {name!r}{did_you_mean(name, names())}; `trackloom recipes` lists all there are")


def check_weights(recipe: Recipe) -> None:
    """Raises ValueError where a recipe needs weights that are still to be trained; says which and how."""
    for setting, needed in weights.needed_by(recipe).items():
        if needed.are_here:
            continue
        small = f"{recipe.name}-small"
        instead = small in names() and weights.can_run(load(small))
        after = f", after {needed.after}" if needed.after and not weights.known()[needed.after].are_here else ""
        how = f"train them{after} (`{needed.command}`)"
        raise ValueError(
            f"recipe {recipe.name} needs the weights {needed.name} ({needed.what}), and they are not here; "
            f"give a file with --set model.{setting}=FILE" + (f", {how}, or run {small}" if instead else f", or {how}")
        )


def recipes(
    *,
    paper: Annotated[str | None, typer.Option(help=f"Of one paper only: {', '.join(PAPERS)}.", metavar="STEM")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A list of objects, with all settings.")] = False,
) -> int:
    """Lists the named runs: ours, and every line of the papers' tables with the figures that they published."""
    if paper is not None and paper not in PAPERS:
        raise ValueError(f"unknown paper {paper!r}{did_you_mean(paper, PAPERS)}; it may be {', '.join(PAPERS)}")
    ours = {name: str(make.__doc__).split("\n")[0] for name, make in OURS.items() if paper is None}
    chosen = [row for row in rows() if paper in (None, row.paper)]
    if as_json:
        stems = {row.run.recipe.model: row.paper for row in reversed(rows()) if row.run}  # who writes of it first
        objects = [listing.of_ours(load(name), stems[load(name).model], says) for name, says in ours.items()]
        print(json.dumps(objects + [listing.of_row(row) for row in chosen], indent=1))
        return 0
    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140, highlight=False)
    if ours:
        console.print(listing.ours(ours))
    for stem, lines in groupby(chosen, key=lambda row: row.paper):
        console.print(*listing.paper(PAPERS[stem].TITLE, list(lines), console.width), sep="\n")
    console.print(listing.LEGEND)
    return 0


if __name__ == "__main__":
    main("recipes")
