"""A run as one page that opens anywhere, without a network: scores, curves, timelines and annotated videos.

trackloom report runs/demo
trackloom report runs/demo --video test-0007 --video test-0011
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import jinja2
import typer

from jobs import report_colours as colours
from jobs import report_facts
from jobs.command import main
from jobs.report_draw import TRAIL_FRAMES, UNTRACKED_SCORE
from jobs.report_facts import Facts
from jobs.report_timeline import Timeline, make_timeline
from jobs.report_video import MAX_FRAMES, Drawn, annotate, still
from jobs.summary import QUERY, QUERY_VIDEOS
from pipeline.config import did_you_mean
from pipeline.scoring import NUMBERS
from pipeline.tables import Run, Store, read_run

MAX_INLINE = 3 * 2**20  # bytes of a video that the page itself holds; a longer one only lies beside it
MAX_ROWS = 2000  # of a table on the page
WORST = 4
DEFINITIONS = (
    "HOTA, DetA, AssA and ID switches as TrackEval defines them; MOTA, IDF1, false positives and misses as "
    "py-motmetrics does; mAP is ImageNet VID's at IoU .5."
)


@dataclass(frozen=True)
class Shown:
    """A video of the page: drawn, with its timeline. file: the name of its mp4; source: what <video> plays."""

    video_id: str
    file: str
    source: str
    drawn: Drawn
    timeline: Timeline
    scores: dict[str, float]
    first_frame: int
    num_frames: int
    has_truth: bool


@dataclass(frozen=True)
class Worst:
    """One of the videos with the lowest scores, at its worst frame."""

    video_id: str
    scores: dict[str, float]
    frame: int
    picture: str


def report(
    run: Annotated[str, typer.Argument(help="The run: a folder at any fsspec URL.")],
    video: Annotated[
        list[str] | None, typer.Option("--video", help="A video to show, by its id; may be repeated.")
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", help="The folder to write, at any fsspec URL; by default RUN/report.")
    ] = "",
) -> None:
    """Writes index.html, one page on the run with an annotated video, and the video beside it."""
    page = write_report(read_run(run), video or (), output)
    if page is None:
        raise ValueError(f"{run} has no videos table yet, so there is nothing to report on; run it first")
    typer.echo(page)


def write_report(run: Run, videos: Sequence[str] = (), output: str = "") -> str | None:
    """Writes the page and its videos; returns the page's URL, None where the run has no `videos` yet.

    videos: ids of those to show; by default the one of median HOTA, or without truth the one with the most tracks.
    output: the folder, RUN/report by default. Raises ValueError for an id that the run does not have.
    """
    if not run.shards("videos"):
        return None
    facts = Facts(run)
    known = [row["video_id"] for row in facts.videos]
    for name in videos:
        if name not in known:
            raise ValueError(
                f"--video {name!r} is no video of {run.url}{did_you_mean(name, known)}; it has {len(known)}: "
                f"{', '.join(known[:5])}{', ...' if known[5:] else ''}"
            )
    store = Store(output or f"{run.url.rstrip('/')}/report")
    chosen = list(dict.fromkeys(videos)) or [name for name in [facts.representative()] if name is not None]
    shown = []
    for name in chosen:
        shown.append(show(facts, name))
        store.write(shown[-1].drawn.mp4, shown[-1].file)
    store.write(render(facts, shown).encode(), "index.html")
    return f"{store.url.rstrip('/')}/index.html"


def show(facts: Facts, video_id: str) -> Shown:
    """One video, drawn."""
    scene = facts.scene(video_id)
    drawn = annotate(scene)
    file = file_name(video_id)
    inline = len(drawn.mp4) <= MAX_INLINE
    return Shown(
        video_id=video_id,
        file=file,
        source="data:video/mp4;base64," + base64.b64encode(drawn.mp4).decode() if inline else file,
        drawn=drawn,
        timeline=make_timeline(scene),
        scores=facts.scores.get((video_id, None), {}),
        first_frame=scene.start,
        num_frames=scene.length,
        has_truth=scene.truth is not None,
    )


def worst(facts: Facts) -> list[Worst]:
    """The videos with the lowest scores that have pixels; none where there are too few to compare."""
    found = []
    ranked = facts.ranked()
    for name in ranked[:WORST] if len(ranked) > 2 * WORST else []:
        scene = facts.scene(name)
        frame = scene.busiest_frame()
        if (picture := still(scene, frame)) is not None:
            found.append(Worst(name, facts.scores[name, None], frame, picture))
    return found


def render(facts: Facts, shown: Sequence[Shown]) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jobs"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(score=score, number=lambda value: "–" if value is None else f"{value:,}")
    return environment.get_template("report.html").render(
        facts=facts,
        shown=shown,
        worst=worst(facts),
        text=report_facts,
        charts={
            "scores": report_facts.score_chart(facts),
            "lengths": report_facts.length_chart(facts),
            "hota": report_facts.hota_chart(facts),
            "precision": report_facts.precision_charts(facts),
        },
        definitions=DEFINITIONS,
        palette=colours.PALETTE,
        query=QUERY if facts.tracks is not None else QUERY_VIDEOS,
        max_frames=MAX_FRAMES,
        max_rows=MAX_ROWS,
        trail_frames=TRAIL_FRAMES,
        untracked_score=UNTRACKED_SCORE,
        made=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )


def score(value: float | None, metric: str) -> str:
    """A figure of the page: counts whole, the rest with three digits."""
    if value is None or value != value:
        return "–"
    return f"{int(value):,}" if metric in NUMBERS else f"{value:.3f}"


def file_name(video_id: str) -> str:
    """An mp4's name for a video id, which may hold slashes; ids that differ give names that differ."""
    plain = re.sub(r"[^\w.-]+", "-", video_id).strip("-.")
    mark = "" if plain == video_id else f"-{hashlib.sha256(video_id.encode()).hexdigest()[:6]}"
    return f"{plain}{mark}.mp4"


if __name__ == "__main__":
    main("report")
