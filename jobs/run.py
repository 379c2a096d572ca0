"""The main job: videos in, tracks, scores and a report out.

trackloom run VIDEOS --model smot --linker tracklets --output runs/mine
trackloom run --recipe demo --output runs/demo
python -m jobs.run ...                            the same, from the project's root or as a Ray job
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from jobs import prepare
from jobs.command import main
from jobs.options import (
    OF_DETECTION,
    OF_LINKING,
    Address,
    CatalogName,
    ClipFrames,
    Explain,
    Frames,
    FuseDecode,
    Gpus,
    IsLocal,
    LinkerName,
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
from jobs.report import write_report
from jobs.summary import classes_apart, exit_code, summary
from pipeline import flow
from pipeline.config import load


def run(
    source: Source = None,
    *,
    output: Output,
    recipe: RecipeName = None,
    catalog: CatalogName = None,
    model: ModelName = None,
    linker: LinkerName = None,
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
    report: Annotated[bool, typer.Option(help="Write RUN/report: a page with an annotated video.")] = True,
) -> int:
    """Runs a model and a linker over videos: tracks as Parquet, scores where there is truth, and a report.

    A run that was stopped goes on where it was. Exit code 2 says that some videos failed or are partial: the `videos`
    table says which and why.
    """
    takes = (*OF_DETECTION, *OF_LINKING)
    if recipe is None and model is not None:
        linker = linker or load("model", model).LINKER
    chosen = recipe_of(
        recipe, settings, takes, source, catalog=catalog, model=model, linker=linker, frames=frames,
        clip_frames=clip_frames,
    )  # fmt: skip
    prepare.check_model_and_linker(chosen)
    job = prepare.detection(chosen, max_videos)
    has_truth = any(video.truth_uri for video in job.videos)
    engine, hands = prepare.engine(local, address, workers, gpus, fuse_decode)
    if explain:
        typer.echo(prepare.plan(output, job, engine, hands, ("link", "score") if has_truth else ("link",)))
        return 0
    tables = prepare.claim(output, job.identity(takes), job.model.classes, overwrite, engine)
    print(f"{len(job.videos)} videos -> {output}", file=sys.stderr)
    progress = Line()
    if has_truth:
        flow.know(tables, chosen, job.videos, engine, progress)
        if apart := classes_apart(tables):
            print(apart, file=sys.stderr)
    flow.detect(tables, chosen, job.videos, job.model, engine, hands, progress)
    flow.link(tables, chosen, engine, progress)
    if has_truth:
        flow.score(tables, engine, progress)
    page = write_report(tables) if report else None
    typer.echo(summary(tables, page))
    return exit_code(tables)


if __name__ == "__main__":
    main("run")
