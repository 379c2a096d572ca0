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
from jobs.options import Address, IsLocal, LinkerName, Output, Overwrite, RecipeName, Set, recipe_of
from jobs.progress import Line
from jobs.report import write_report
from jobs.summary import exit_code, summary
from pipeline import flow


def run(
    source: Annotated[
        list[str] | None, typer.Argument(help="Videos: files, folders, globs, lists, folders of images, URLs.")
    ] = None,
    *,
    output: Output,
    recipe: RecipeName = None,
    catalog: Annotated[str | None, typer.Option(help="What SOURCE is: folder, mot, synthetic ...")] = None,
    model: Annotated[str | None, typer.Option(help="The network: smot ...")] = None,
    linker: LinkerName = None,
    settings: Set = None,
    clip_frames: Annotated[int | None, typer.Option(help="Cut videos into clips of so many frames.", min=1)] = None,
    max_videos: Annotated[int | None, typer.Option(help="Only the first so many videos.", min=1)] = None,
    local: IsLocal = False,
    fuse_decode: Annotated[
        bool, typer.Option("--fuse-decode", help="Decode where the network is, not in a stage of its own.")
    ] = False,
    workers: Annotated[int | None, typer.Option(help="How many networks work at once.", min=1)] = None,
    gpus: Annotated[float, typer.Option(help="GPUs that each network holds; 0 runs on the CPU.", min=0)] = 0,
    address: Address = None,
    explain: Annotated[bool, typer.Option("--explain", help="Print the plan and stop.")] = False,
    overwrite: Overwrite = False,
    report: Annotated[bool, typer.Option(help="Write RUN/report: a page with an annotated video.")] = True,
) -> int:
    """Runs a model and a linker over videos: tracks as Parquet, scores where there is truth, and a report.

    A run that was stopped goes on where it was. Exit code 2 says that some videos failed or are partial: the `videos`
    table says which and why.
    """
    chosen = recipe_of(
        recipe, settings or [], source=prepare.joined(source), catalog=catalog, model=model, linker=linker,
        clip_frames=clip_frames,
    )  # fmt: skip
    job = prepare.detection(chosen, max_videos)
    prepare.check_pair(chosen)
    engine, workers_ = prepare.engine(local, address, workers, gpus, fuse_decode)
    if explain:
        typer.echo(prepare.plan(output, job, engine, workers_))
        return 0
    tables = prepare.claim(output, job, overwrite, local)
    progress = Line()
    print(f"{len(job.videos)} videos -> {output}", file=sys.stderr)
    flow.detect(tables, chosen, job.videos, job.model, engine, workers_, progress)
    flow.link(tables, chosen, engine, progress)
    if any(video.truth_uri for video in job.videos):
        flow.score(tables, chosen, job.videos, engine, progress)
    page = write_report(tables) if report else None
    typer.echo(summary(tables, page))
    return exit_code(tables)


if __name__ == "__main__":
    main("run")
