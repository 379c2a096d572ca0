"""Scores tracks against truth: for each video and over all, whoever made the tracks.

    trackloom evaluate TRACKS --truth TRUTH [--metrics hota,MOTA,mAP] [--json] [--output scores.json]

Each of the two is a run, a Parquet file or folder of ours, a MOTChallenge text file, or a folder of them: results as
NAME.txt, truth as NAME/gt/gt.txt; or a results json and a dataset json of COCO. Videos meet by name; a single file
meets the only video of the other side whatever their names.

A video of truth that the tracks have nothing of counts as missed throughout, whether it failed or nothing was found in
it; failed ones, and such as the tracks do not know, are named on stderr. Given a single results file, only its own
video is scored. Tracks without truth are left out, and named too. Of videos that a run saw a range of (`--frames`), so
is the truth of other frames.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from catalogs import coco, mot
from jobs.command import main
from pipeline import scoring
from pipeline.metrics import detection
from pipeline.records import VideoInfo
from pipeline.tables import Run, Store

FORMS = "a run, Parquet, a MOTChallenge text file, a folder of those, or COCO json"
SHOWN = ("HOTA", "DetA", "AssA", "MOTA", "IDF1", "IDSW", "mAP", "mAP_track")  # unless others are asked for
SPLITS = detection.FIELDS[1:4]  # shown too where truth knows how its boxes move
DEFINITIONS = {  # of each family
    "hota": "TrackEval 1.3",
    "clear": "py-motmetrics 1.4 (its MOTP is the mean of 1 - IoU, smaller is better)",
    "clear_trackeval": "TrackEval 1.3",
    "identity": "py-motmetrics 1.4 and TrackEval 1.3",
    "detection": "ImageNet VID, IoU .5, all points (by_box: FGFA's groups by motion, by_track: TCD's)",
    "tracks": "ImageNet VID, temporal IoU .25, .5 and .75 (groups by motion: TCD's)",
    "stability": "Zhang and Wang 2016, of TCD's best matches, smaller is better",
    "coco": "pycocotools 2.0",
}
METRICS_HELP = "Only these, separated by commas: metrics, or families for all of theirs. There are:\n\n" + "\n\n".join(
    f"{name}{' (only if asked for)' * (name in scoring.ON_REQUEST)}: {', '.join(family.FIELDS)}"
    for name, family in scoring.FAMILIES.items()
)


@dataclass(frozen=True)
class Rows:
    """Rows of TRACKS or TRUTH, and the videos that they are of, also such as have no row.

    is_single: one file, of one video; a run or a folder is none, however few videos it has. ranges: those of the videos
    that are but a range of a file's frames.
    """

    table: pa.Table
    videos: tuple[str, ...]
    is_single: bool = False
    ranges: Mapping[str, VideoInfo] = field(default_factory=dict)


def evaluate(
    tracks: Annotated[str, typer.Argument(help=f"The tracks: {FORMS}.")],
    truth: Annotated[str, typer.Option(help=f"The truth: {FORMS}.")],
    metrics: Annotated[str, typer.Option(help=METRICS_HELP)] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: combined, videos, classes.")] = False,
    output: Annotated[str, typer.Option(help="Write the scores here too: a .json or .parquet file.")] = "",
    class_agnostic: Annotated[bool, typer.Option("--class-agnostic", help="Boxes match whatever their class.")] = False,
    tolerance: Annotated[float, typer.Option(help="Pixels that mAP forgives small boxes; ImageNet VID has 10.")] = 0.0,
) -> None:
    """Score tracks against truth: HOTA, CLEAR, identity and mAP, for each video and combined."""
    if output and not output.endswith((".json", ".parquet")):
        raise ValueError(f"--output is {output!r}; it must end in .json or .parquet")
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"--tolerance is {tolerance}; it must be 0 pixels or more")
    asked = scoring.named([name.strip() for name in metrics.split(",") if name.strip()]) or None
    rows = score_files(tracks, truth, metrics=asked, class_agnostic=class_agnostic, tolerance=tolerance)
    chosen = rows.filter(pc.is_in(rows["metric"], pa.array(asked))) if asked else rows
    if output:
        write(rows if output.endswith(".parquet") else chosen, output)  # whole families, whose counts add up
    if as_json:
        print(json.dumps(summary(chosen), indent=2))
    else:
        show(chosen, asked)


def score_files(
    tracks: str,
    truth: str,
    *,
    metrics: list[str] | None = None,
    class_agnostic: bool = False,
    tolerance: float = 0.0,
) -> pa.Table:
    """Rows of SCORES of each video and over all, from files. Says on stderr which videos do not meet.

    Raises FileNotFoundError or ValueError, in a sentence, where there is nothing to read or nothing meets.
    """
    metrics = scoring.named(metrics) if metrics else None  # a misspelt one stops the work before it starts
    known = read(truth, "truth")
    found = read(tracks, "tracks", wanted=known.videos, dataset=truth)
    if len(found.videos) == len(known.videos) == 1 and (found.is_single or known.is_single):
        if found.videos != known.videos:
            _note(f"{found.videos[0]} of {tracks} is scored against {known.videos[0]} of {truth}")
        found = _renamed(found, known.videos[0])
    elif found.is_single:
        others = [video for video in known.videos if video not in found.videos]
        known = Rows(known.table, found.videos if len(others) < len(known.videos) else ())
        if known.videos and others:
            _note(f"{tracks} is of {found.videos[0]} alone: {_some(others)} of {truth} is not scored")
    _say_who_does_not_meet(found, known, tracks, truth)
    known = _of_the_same_frames(known, found, tracks)
    if not class_agnostic:
        _check_classes(found.table, known.table)
    if "track_id" not in found.table.column_names:
        nobody = pa.nulls(len(found.table), pa.int32())
        found = replace(found, table=found.table.append_column("track_id", nobody))
    if 0 < len(found.table) == found.table["track_id"].null_count:
        identified = [name for name in metrics or () if name not in scoring.WITHOUT_IDS]
        if identified:
            raise ValueError(f"{', '.join(identified)} need identities, and {tracks} has no row with a track_id")
        if not metrics:
            _note(f"{tracks} has no row with a track_id: only metrics of detection are scored")
            metrics = ["detection"]
    rows = scoring.score(
        known.table,
        found.table,
        metrics=metrics,
        videos=known.videos,
        class_agnostic=class_agnostic,
        tolerance=tolerance,
    )
    return pa.concat_tables([rows, scoring.combine([rows])])


def read(path: str, side: str, *, wanted: tuple[str, ...] = (), dataset: str = "") -> Rows:
    """Rows of a side, `tracks` or `truth`, from any of FORMS.

    wanted: of a folder of results, only these videos' files are read (others lie beside them, such as summaries).
    dataset: the json that a results json refers to.
    """
    fs, root = fsspec.core.url_to_fs(path)
    root = root.rstrip("/")
    if not fs.exists(root):
        raise FileNotFoundError(f"the {side} {path} is not there; it may be {FORMS}")
    if fs.isdir(root):
        return _read_folder(fs, root, path, side, wanted)
    folder, _, name = path.rpartition("/")
    if name.endswith(".parquet"):
        rows = _rows(Run(folder or ("/" if path.startswith("/") else ".")).read_table(name), path)
        return Rows(rows.table, rows.videos, is_single=len(rows.videos) == 1)
    if name.endswith(".json"):
        if side == "truth":
            return Rows(coco.read_truth(path), tuple(coco.read_dataset(path).lengths))
        if not dataset.endswith(".json"):
            raise ValueError(f"{path} is a results json; its truth must be the dataset json, not {dataset}")
        return Rows(coco.read_tracks(path, dataset), tuple(coco.read_dataset(dataset).lengths))
    rows = _read_texts({_sequence(fs.info(root)["name"]): path}, side)
    if not len(rows.table):  # among others it may be empty; alone it leaves nothing to be said
        raise ValueError(f"{path} is empty; a MOTChallenge file has a line of numbers a box")
    return Rows(rows.table, rows.videos, is_single=True)


def summary(rows: pa.Table) -> dict[str, Any]:
    """{combined: {metric: value}, videos: {id: {...}}}, and classes: {name: {...}} where there are several.

    nan becomes None, counts whole numbers.
    """
    found = scoring.values(rows)
    plain = {key: {name: _plain(name, value) for name, value in metrics.items()} for key, metrics in found.items()}
    classes = {name: metrics for (video, name), metrics in plain.items() if video is None and name is not None}
    return {
        "combined": plain.get((None, None), {}),
        "videos": {video: metrics for (video, name), metrics in plain.items() if video is not None and name is None},
        **({"classes": classes} if len(classes) > 1 else {}),
    }


def write(rows: pa.Table, output: str) -> None:
    """Writes scores whole or not at all: as `summary`, or as rows of SCORES."""
    folder, _, name = output.rpartition("/")
    folder = folder or ("/" if output.startswith("/") else ".")
    if name.endswith(".parquet"):
        Run(folder).write_table(rows, name)
    else:
        Store(folder).write((json.dumps(summary(rows), indent=2) + "\n").encode(), name)


def show(rows: pa.Table, asked: Sequence[str] | None = None) -> None:
    """Prints a table, a row a video, the combined row last, and what its figures are. asked: the metrics to show."""
    found = summary(rows)
    present = {name for metrics in (found["combined"], *found["videos"].values()) for name in metrics}
    shown = [name for name in asked or (*SHOWN, *SPLITS) if name in present]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("video", overflow="fold")
    for name in shown:
        table.add_column(name, justify="right", no_wrap=True)
    classes = {f"all {name}": metrics for name, metrics in found.get("classes", {}).items()}
    lines = [*found["videos"].items(), *classes.items(), ("combined", found["combined"])]
    ends = {len(found["videos"]) - 1, len(lines) - 2}
    for index, (name, metrics) in enumerate(lines):
        table.add_row(name, *(_cell(metrics.get(metric)) for metric in shown), end_section=index in ends)
    console = Console()
    wanted = console.measure(table, options=console.options.update(width=10_000))
    # A file has no width; and a figure cut short is no use, so lines may be wider than the terminal.
    console.width = max(wanted.minimum, console.width) if console.is_terminal else wanted.maximum
    console.print(table)
    console.print(". ".join(_definitions(shown)) + ".", highlight=False, soft_wrap=True)


def _definitions(shown: Sequence[str]) -> Iterator[str]:
    """What the figures of these metrics are, family by family."""
    for family in scoring.families(shown):
        fields = scoring.FAMILIES[family].FIELDS
        names = [name for name in shown if name in fields]
        yield f"{family if len(names) == len(fields) else ', '.join(names)}: {DEFINITIONS[family]}"


def _cell(value: float | int | None) -> str:
    """A figure of the table."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def _plain(name: str, value: float) -> float | int | None:
    """A value as JSON knows it."""
    if math.isnan(value):
        return None
    return int(value) if name in scoring.NUMBERS else value


def _read_folder(fs: Any, root: str, path: str, side: str, wanted: tuple[str, ...]) -> Rows:
    """A run, a folder of Parquet, or of MOTChallenge files."""
    run = Run(path)
    if run.shards(side):
        return _read_run(run, side, wanted)
    names = run.names()
    parquet = [name for name in names if name.endswith(".parquet")]
    if parquet:
        return _rows(pa.concat_tables([run.read_table(name).replace_schema_metadata(None) for name in parquet]), path)
    if "run.json" in names:
        return _rows(run.table(side), path)  # refuses, and says what there is
    if side == "truth":
        known = {folder.rsplit("/", 1)[-1]: folder for folder in fs.ls(root, detail=False)}
        known[root.rsplit("/", 1)[-1]] = root
        texts = {name: f"{folder}/gt/gt.txt" for name, folder in known.items() if fs.isfile(f"{folder}/gt/gt.txt")}
        if texts:
            return _read_texts({name: fs.unstrip_protocol(text) for name, text in texts.items()}, side)
    texts = {name.removesuffix(".txt"): run.path(name) for name in names if name.endswith(".txt")}
    if not texts:
        raise ValueError(
            f"the {side} {path} is a folder with no *.txt or *.parquet right in it; it may be {FORMS}; "
            "of other datasets link the detections with --catalog, and give that run"
        )
    kept = {name: text for name, text in texts.items() if not wanted or name in wanted}
    return _read_texts(
        {name: fs.unstrip_protocol(text) for name, text in (kept or texts).items()}, side, beside=tuple(texts)
    )


def _read_run(run: Run, side: str, wanted: tuple[str, ...]) -> Rows:
    """A run's rows. Its videos are all that it was given, or all whose truth is known, also such as have no row."""
    shards = [run.read_table(side, shard) for shard in run.shards(side)]
    rows = _rows(pa.concat_tables([shard.replace_schema_metadata(None) for shard in shards]), run.url)
    videos = set(rows.videos)
    ranges = {}
    if side == "truth":
        for shard in shards:
            videos.update(json.loads((shard.schema.metadata or {}).get(b"videos", b"[]")))
    elif run.shards("videos"):
        given = run.table("videos").to_pylist()
        ranges = {
            row["video_id"]: VideoInfo(row["video_id"], "", "", start=row["start"], stop=row["stop"])
            for row in given
            if row.get("start") or row.get("stop")
        }
        videos.update(row["video_id"] for row in given)
        for status, what in (("failed", "all of their truth"), ("partial", "the truth of frames that they lack")):
            names = [row["video_id"] for row in given if row["status"] == status and row["video_id"] in wanted]
            if names:
                _note(f"{_some(names)} {status} in {run.url}: {what} counts as missed")
    return Rows(rows.table, tuple(sorted(videos)), ranges=ranges)


def _read_texts(texts: dict[str, str], side: str, *, beside: tuple[str, ...] = ()) -> Rows:
    """MOTChallenge files by video. beside: the names of files that were not read."""
    reader = mot.read_truth if side == "truth" else mot.read_tracks
    tables = [reader(text.removeprefix("file://"), name) for name, text in sorted(texts.items())]
    return Rows(pa.concat_tables(tables).unify_dictionaries(), tuple(sorted({*texts, *beside})))


def _sequence(path: str) -> str:
    """The video that a MOTChallenge file is of: NAME/gt/gt.txt and NAME.txt are of NAME."""
    parts = path.split("/")
    if len(parts) >= 3 and parts[-2] in ("gt", "det") and parts[-1] == f"{parts[-2]}.txt":
        return parts[-3]
    return parts[-1].rsplit(".", 1)[0]


def _rows(table: pa.Table, path: str) -> Rows:
    """Rows of a table of ours, of the videos that have any."""
    if "video_id" not in table.column_names:
        raise ValueError(f"{path} is no table of tracks or truth; it has the columns {', '.join(table.column_names)}")
    return Rows(table, tuple(sorted(pc.unique(table["video_id"].cast(pa.string())).to_pylist())))


def _renamed(rows: Rows, video: str) -> Rows:
    """The same rows, of a video of another name."""
    index = rows.table.column_names.index("video_id")
    table = rows.table.set_column(index, "video_id", pa.array([video] * len(rows.table), pa.string()))
    part = next(iter(rows.ranges.values()), None)
    return Rows(table, (video,), ranges={} if part is None else {video: part})


def _say_who_does_not_meet(found: Rows, known: Rows, tracks: str, truth: str) -> None:
    """Names the videos of one side only on stderr; raises ValueError where no video is of both."""
    if not known.videos or not len(known.table):
        which = f" of {', '.join(found.videos)}" if found.is_single else ""
        raise ValueError(f"the truth {truth} has nothing{which}; tracks without truth cannot be scored")
    missing = sorted(set(known.videos) - set(found.videos))
    if found.videos and len(missing) == len(known.videos):
        raise ValueError(
            f"no video is in both: the truth has {_some(known.videos)}, the tracks have {_some(found.videos)}"
        )
    if missing:
        _note(f"no tracks of {_some(missing)} in {tracks}: all of their truth counts as missed")
    extra = sorted(set(found.videos) - set(known.videos))
    if extra:
        _note(f"no truth of {_some(extra)} in {truth}: these tracks are not scored")


def _of_the_same_frames(known: Rows, found: Rows, tracks: str) -> Rows:
    """Truth without the rows of frames that a run was not to look at; says so on stderr."""
    frame, of = known.table["frame_index"].to_numpy(), np.asarray(known.table["video_id"].cast(pa.string()))
    keep = np.ones(len(frame), np.bool_)
    for name, part in found.ranges.items():
        keep &= (of != name) | part.holds(frame)
    if keep.all():
        return known
    cut = [name for name in known.videos if not keep[of == name].all()]
    _note(f"{tracks} is of a range of the frames of {_some(cut)}: the truth of other frames is left out")
    return replace(known, table=known.table.filter(pa.array(keep)))


def _note(what: str) -> None:
    """Says on stderr what the figures do not show."""
    print(f"note: {what}", file=sys.stderr)


def _some(names: Any, most: int = 10) -> str:
    """The first few names, and how many there are."""
    shown = ", ".join(list(names)[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _check_classes(tracks: pa.Table, truth: pa.Table) -> None:
    """Raises ValueError where both sides name classes and have none in common."""
    scored = truth.filter(pc.invert(pc.fill_null(truth["ignore"], False))) if "ignore" in truth.column_names else truth
    sides = [
        set(pc.unique(table["class_name"].cast(pa.string())).drop_null().to_pylist())
        for table in (tracks, scored)
        if "class_name" in table.column_names
    ]
    if len(sides) == 2 and all(sides) and mot.UNNAMED not in sides[0] | sides[1] and not sides[0] & sides[1]:
        raise ValueError(
            f"no class is in both: the truth has {_some(sorted(sides[1]))}, the tracks have "
            f"{_some(sorted(sides[0]))}; --class-agnostic matches them whatever their class"
        )


if __name__ == "__main__":
    main("evaluate")
