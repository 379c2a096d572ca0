"""The dataflow: videos -> clips -> decode -> detect -> write; read -> stitch -> link -> write; read -> score -> write.

Functions from table to table: `detect` (videos -> `detections`), `link` (`detections` -> `tracks`), `know` (videos ->
`truth`) and `score` (`tracks`, `truth` -> `scores`). Each does only what is missing from the run, on whatever engine it
is given, and each stage is a plain callable over records.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pipeline.clips import Decode, Unit, lost_part
from pipeline.config import resize_of
from pipeline.engine import Engine, Local, Stage, StageError
from pipeline.judging import Know, Score
from pipeline.linking import Link
from pipeline.planning import Plan, PlanVideo, lost_plan, shards_of, units_of
from pipeline.recipe import Recipe
from pipeline.records import ClipRef, Resize, VideoInfo
from pipeline.tables import PARTS, Run
from pipeline.writing import Gather, Take, WritePart

MOST_LOST = 32  # clips; from there on, and from one in a hundred, something else is wrong than the videos

Progress = Callable[[str, int, int, Any], None]
"""Called with (what is being done, how many are done, of how many, the newest result)."""


@dataclass(frozen=True)
class Workers:
    """How many, and what each holds. actors: networks at work; gpus: of each; fuse: they decode for themselves.

    cpus, decode_cpus: what a network and a decoder reserve.
    """

    actors: int = 1
    gpus: float = 0
    fuse: bool = False
    cpus: float = 1
    decode_cpus: float = 1


def detect_stages(run: Run, recipe: Recipe, resize: Resize, workers: Workers) -> list[Stage]:
    """clips -> `_parts`."""
    from pipeline.detect import Detect  # torch takes seconds to import, and linking needs none

    device = "cuda" if workers.gpus else "cpu"
    network = partial(Detect, recipe.model, recipe.model_settings, recipe.chunk_frames, device)
    decoder = partial(Decode, resize, recipe.chunk_frames)
    decode = Stage("decode", decoder, "clips", "frames uint8 (T, 3, H, W)", cpus=workers.decode_cpus)
    detect = Stage(
        "detect",
        network,
        "clips" if workers.fuse else "frames uint8 (T, 3, H, W)",
        "boxes, scores, labels, evidence",
        actors=workers.actors,
        cpus=workers.cpus,
        gpus=workers.gpus,
    )
    write = Stage("write", partial(WritePart, run), detect.gives, "_parts/CLIP.parquet", cpus=0.1)
    return [detect, write] if workers.fuse else [decode, detect, write]


def plan_stage(recipe: Recipe, context: tuple[int, int]) -> Stage:
    """videos -> clips."""
    make = partial(PlanVideo, recipe, context)
    return Stage("plan", make, "videos", "clips, what the headers say", cpus=0.5, is_quick=True)


def gather_stage(run: Run) -> Stage:
    """`_parts` of a shard -> its `detections` and `videos`."""
    return Stage("gather", partial(Gather, run), "_parts/CLIP.parquet", "detections, videos")


def take_stage(run: Run) -> Stage:
    """The detections that a catalog's videos come with -> `detections` and `videos`."""
    return Stage("take", partial(Take, run), "the catalog's detections", "detections, videos")


def link_stage(run: Run, recipe: Recipe, source: Run | None = None) -> Stage:
    """`detections` of a shard -> its `tracks`."""
    return Stage("link", partial(Link, run, recipe, source or run), "detections", "tracks, videos")


def know_stage(run: Run) -> Stage:
    """What a catalog knows of its videos -> `truth`."""
    return Stage("know", partial(Know, run), "the catalog's truth", "truth")


def score_stage(run: Run, source: Run | None = None) -> Stage:
    """`tracks` of a shard and its truth -> its `scores`."""
    return Stage("score", partial(Score, run, source or run), "tracks, truth", "scores")


def detect(
    run: Run,
    recipe: Recipe,
    videos: Sequence[VideoInfo],
    model: Any,
    engine: Engine,
    workers: Workers,
    progress: Progress,
) -> None:
    """Writes `detections` and `videos` of every shard that has none yet.

    model: a built network, asked only what it wants to be shown.
    """
    done = set(run.shards("detections"))
    shards = {file: shard for file, shard in shards_of(videos, recipe.videos_per_shard).items() if file not in done}
    plans = planned(recipe, model, [video for shard in shards.values() for video in shard.videos], engine, progress)
    clips = [ref for plan in plans.values() for ref in plan.clips]
    resize = resize_of(model)
    stages = detect_stages(run, recipe, resize, workers)
    report = counter("detect", len(clips), progress, len(clips) - len(missing(clips, run)))
    units = units_of(missing(clips, run), plans, resize)
    report(engine.stream(units, stages))
    # A process that died took its whole unit along: each of its clips for itself, so that only the culprits are lost.
    once = set(missing(clips, run))
    again = [Unit((ref,), unit.travels) for unit in units for ref in unit.refs if ref in once and len(unit.refs) > 1]
    report(engine.stream(again, stages))
    if len(lost := missing(clips, run)) > max(MOST_LOST, len(clips) // 100):
        raise StageError(
            f"the processes of {len(lost)} of {len(clips)} clips died each time that they were tried, which is not the "
            "videos' doing; Ray's logs say more. What is done is kept, and the same command goes on from there"
        )
    report(Local().stream([lost_part(ref) for ref in lost], stages[-1:]))

    gathered = {
        file: replace(shard, plans=tuple(plans[v.video_id] for v in shard.videos)) for file, shard in shards.items()
    }
    fill(run, "detections", gathered, engine, gather_stage(run), progress)
    run.remove(PARTS)


def take(run: Run, recipe: Recipe, videos: Sequence[VideoInfo], engine: Engine, progress: Progress) -> None:
    """Writes `detections` and `videos` from what the videos' catalog gives, without any network."""
    fill(run, "detections", shards_of(videos, recipe.videos_per_shard), engine, take_stage(run), progress)


def link(run: Run, recipe: Recipe, engine: Engine, progress: Progress, source: Run | None = None) -> None:
    """Writes `tracks` of every shard of `detections` that has none yet; source: the run that has them, if another."""
    files = {file: file for file in (source or run).shards("detections")}
    fill(run, "tracks", files, engine, link_stage(run, recipe, source), progress)


def know(run: Run, recipe: Recipe, videos: Sequence[VideoInfo], engine: Engine, progress: Progress) -> None:
    """Writes `truth` of every shard that has none yet; before any work, since truth that cannot be read ends it."""
    fill(run, "truth", shards_of(videos, recipe.videos_per_shard), engine, know_stage(run), progress)


def score(run: Run, engine: Engine, progress: Progress, source: Run | None = None) -> None:
    """Writes `scores` of every shard that has none yet; source: the run that has the truth, if another."""
    files = {file: file for file in (source or run).shards("truth")}
    fill(run, "scores", files, engine, score_stage(run, source), progress)


def planned(
    recipe: Recipe, model: Any, videos: Sequence[VideoInfo], engine: Engine, progress: Progress
) -> dict[str, Plan]:
    """Each video's plan by its id; a video whose header kills the reader's process is planned as failed."""
    stage = plan_stage(recipe, (model.frames_before, model.frames_after))
    plans: dict[str, Plan] = {}
    for plan in engine.stream(videos, [stage]):
        plans[plan.video.video_id] = plan
        progress("plan", len(plans), len(videos), plan)
    return {video.video_id: plans.get(video.video_id) or lost_plan(video) for video in videos}


def fill(run: Run, table: str, records: Mapping[str, Any], engine: Engine, stage: Stage, progress: Progress) -> None:
    """Runs a stage on the records, by file name, whose file the table lacks; each writes it.

    What a lost worker left undone is done again in this process, where an error ends the run: a shard cannot fail by
    a video's fault.
    """
    done = set(run.shards(table))
    todo = {file: record for file, record in records.items() if file not in done}
    report = counter(stage.name, len(todo), progress)
    report(engine.stream(list(todo.values()), [stage]))
    done = set(run.shards(table))
    report(Local().stream([record for file, record in todo.items() if file not in done], [stage]))


def missing(refs: Sequence[ClipRef], run: Run) -> list[ClipRef]:
    """The clips that have no part."""
    parts = run.parts()
    return [ref for ref in refs if ref.clip_id not in parts]


def counter(name: str, total: int, progress: Progress, count: int = 0) -> Callable[[Iterable[Any]], None]:
    """A function that runs a stream to its end and tells `progress` of each result, counting on over calls."""
    numbers = itertools.count(count + 1)

    def run_out(stream: Iterable[Any]) -> None:
        for result in stream:
            progress(name, min(next(numbers), total), total, result)

    return run_out
