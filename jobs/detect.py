"""Detections only: a network over videos, its rows kept for as many linkers as you like.

trackloom detect VIDEOS --model smot --output runs/mine
trackloom link runs/mine --linker tracklets --output runs/mine-tracklets
"""

from __future__ import annotations

import typer

from jobs import prepare
from jobs.command import main
from jobs.options import (
    OF_DETECTION,
    Address,
    CatalogName,
    ClipFrames,
    Explain,
    Frames,
    FuseDecode,
    Gpus,
    IsLocal,
    MaxVideos,
    ModelName,
    Networks,
    Output,
    Overwrite,
    RecipeName,
    Set,
    Source,
    recipe_of,
)
from jobs.progress import Line
from jobs.summary import exit_code, summary
from pipeline import flow


def detect(
    source: Source = None,
    *,
    output: Output,
    recipe: RecipeName = None,
    catalog: CatalogName = None,
    model: ModelName = None,
    settings: Set = None,
    frames: Frames = None,
    clip_frames: ClipFrames = None,
    max_videos: MaxVideos = None,
    local: IsLocal = False,
    fuse_decode: FuseDecode = False,
    workers: Networks = None,
    gpus: Gpus = 0,
    address: Address = None,
    explain: Explain = False,
    overwrite: Overwrite = False,
) -> int:
    """Runs a model over videos and writes its `detections`; `link` makes tracks of them, as often as you like.

    A run that was stopped goes on where it was. Exit code 2 says that some videos failed or are partial.
    """
    chosen = recipe_of(
        recipe, settings, OF_DETECTION, source, catalog=catalog, model=model, frames=frames, clip_frames=clip_frames
    )  # fmt: skip
    job = prepare.detection(chosen, max_videos)
    engine, hands = prepare.engine(local, address, workers, gpus, fuse_decode)
    if explain:
        typer.echo(prepare.plan(output, job, engine, hands, ()))
        return 0
    tables = prepare.claim(output, job.identity(OF_DETECTION), job.model.classes, overwrite, engine)
    progress = Line()
    if any(video.truth_uri for video in job.videos):
        flow.know(tables, chosen, job.videos, engine, progress)  # for the scores of what is linked later
    flow.detect(tables, chosen, job.videos, job.model, engine, hands, progress)
    typer.echo(summary(tables))
    return exit_code(tables)


if __name__ == "__main__":
    main("detect")
