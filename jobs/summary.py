"""What a job says when it is done: where its tables lie, how it went, the scores, and a query to try."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import scoring
from pipeline.metrics.sides import UNNAMED
from pipeline.schemas import SCORES, TRUTH
from pipeline.tables import TABLES, Run

SHOWN = ("mAP", "HOTA", "MOTA", "IDF1", "IDSW")


def statuses(run: Run) -> Counter[str]:
    """How many videos are ok, partial and failed."""
    return Counter(run.table("videos")["status"].to_pylist())


def exit_code(run: Run) -> int:
    """0 where every video is ok, 2 where some are not, 1 where none gave anything."""
    found = statuses(run)
    if found["failed"] == found.total():
        return 1
    return 2 if found["failed"] or found["partial"] else 0


def summary(run: Run, page: str | None = None) -> str:
    """A few lines for the end of a job."""
    videos = run.table("videos")
    lines = []
    bad = videos.filter(pc.not_equal(videos["status"], "ok"))
    for row in bad.slice(0, 10).to_pylist():
        lines.append(f"{row['status']}: {row['video_id']}: {row['error']}")
    if len(bad) > 10:
        lines.append(f"... and {len(bad) - 10} more; all in the videos table")
    counts = statuses(run)
    frames, boxes, tracks = (pc.sum(videos[name]).as_py() for name in ("frames_decoded", "boxes", "tracks"))
    found = [f"{frames:,} frames"] if frames else []
    found.append(f"{boxes:,} boxes detected")
    if tracks is not None:
        found.append(f"{tracks:,} track{'s' * (tracks != 1)} of {_tracked(run)}")
    lines.append(
        f"{counts['ok']} video{'s' * (counts['ok'] != 1)} ok, {counts['partial']} partial, {counts['failed']} failed; "
        + ", ".join(found)
    )
    if scored := scores_line(run):
        known = len(pc.unique(run.table("scores")["video_id"]))
        lines.append(scored if known == len(videos) else f"{scored}  (of {known} of {len(videos)} videos)")
        lines += [apart] if (apart := classes_apart(run)) else []
    lines.append("")
    lines += [f"{name:<12}{run.url}/{name}/*.parquet" for name in TABLES if run.shards(name)]
    if page:
        lines.append(f"{'report':<12}{page}")
    if not run.url.startswith("memory://"):  # which is gone with this process
        sql = QUERY if tracks is not None else QUERY_VIDEOS
        lines.append(f'{"try":<12}{command()} query {shlex.quote(run.url)} "{sql}"')
    return "\n".join(lines)


def _tracked(run: Run) -> str:
    """How many boxes are in tracks, and how many of them a linker put into gaps."""
    table = run.table("tracks").select(["track_id", "origin"])
    table = table.filter(pc.is_valid(table["track_id"]))
    made = pc.sum(pc.equal(table["origin"].cast(pa.string()), "interpolated")).as_py() or 0
    return f"{len(table):,} boxes" + (f", {made:,} of them filled in" if made else "")


def command() -> str:
    """How the `trackloom` command can be called from here: by name, or by the path of this environment's."""
    if shutil.which("trackloom"):
        return "trackloom"
    beside = Path(sys.executable).with_name("trackloom")
    return os.path.relpath(beside) if beside.exists() else f"{sys.executable} -m jobs.command"


QUERY_VIDEOS = "SELECT status, count(*) AS videos, sum(boxes) AS boxes FROM videos GROUP BY status"
QUERY = (
    "SELECT class_name, count(DISTINCT (video_id, track_id)) AS tracks, count(*) AS boxes "
    "FROM tracks WHERE track_id IS NOT NULL GROUP BY class_name ORDER BY tracks DESC"
)


def scores_line(run: Run) -> str:
    """The combined scores in one line; empty where there is no truth."""
    combined = combined_scores(run)
    return "  ".join(
        f"{name} {int(combined[name])}" if name in scoring.NUMBERS else f"{name} {combined[name]:.3f}"
        for name in SHOWN
        if name in combined
    )


def classes_apart(run: Run) -> str | None:
    """Why nothing that is found can be right: no class of the truth is one of the run's; None where one is."""
    truth = run.table("truth") if run.shards("truth") else TRUTH.empty_table()
    truth = truth.filter(pc.invert(pc.fill_null(truth["ignore"], False)))
    known = {*pc.unique(truth["class_name"].cast(pa.string())).drop_null().to_pylist()}
    given = [*run.about["classes"]]
    if not known or UNNAMED in known.union(given) or known.intersection(given):
        return None
    shown = [", ".join(names[:5]) + ", ..." * (len(names) > 5) for names in (sorted(known), given)]
    return f"note: no class is in both, so nothing can match: the truth has {shown[0]}; this run looks for {shown[1]}"


def combined_scores(run: Run) -> dict[str, float]:
    """Metric -> value over all videos and classes; empty where there is no truth."""
    table = run.table("scores") if run.shards("scores") else SCORES.empty_table()
    return scoring.values(scoring.combine([table])).get((None, None), {}) if len(table) else {}
