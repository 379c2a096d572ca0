"""What a report says in numbers, from a run's tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.report_charts import Bars, Curve, curves, histogram
from jobs.report_scene import Scene, make_scene, of_video
from pipeline import scoring
from pipeline.linking import stitched
from pipeline.metrics import hota
from pipeline.metrics.counts import Counts, add
from pipeline.metrics.detection import curve
from pipeline.schemas import SCORES, TRACKS, tracks_table
from pipeline.tables import Run

HEADLINE = ("HOTA", "mAP", "IDF1", "MOTA")
BESIDE = ("DetA", "AssA", "IDSW", "num_false_positives", "num_misses")
COLUMNS = ("HOTA", "DetA", "AssA", "IDF1", "MOTA", "IDSW", "num_false_positives", "num_misses", "mAP")
NAMES = {"num_false_positives": "false positives", "num_misses": "misses", "IDSW": "ID switches"}
SHORT = {"num_false_positives": "FP", "num_misses": "misses"}
STAGES = {"decode_s": "decode", "detect_s": "detect", "link_s": "link"}
SCORE_BINS = LENGTH_BINS = 24

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Stage:
    """Seconds of work of a stage over all videos, its share of all stages (percent), and the frames of a second."""

    name: str
    seconds: float
    share: float
    frames_per_second: float


@dataclass(frozen=True)
class Facts:
    """A run's tables, read once. Scores are {(video_id or None, class or None): {metric: value}}."""

    run: Run

    @cached_property
    def videos(self) -> list[dict[str, Any]]:
        """Rows of `videos`; `frames` is how many there were to work on."""
        rows: list[dict[str, Any]] = self.run.table("videos").to_pylist()
        for row in rows:
            row["frames"] = row["frames_decoded"] if row["frames_decoded"] is not None else row["frames_declared"] or 0
        return sorted(rows, key=lambda row: row["video_id"])

    @cached_property
    def tracks(self) -> pa.Table | None:
        """None where nothing has been linked yet."""
        return self.run.table("tracks") if self.run.shards("tracks") else None

    @cached_property
    def truth(self) -> pa.Table | None:
        return self.run.table("truth") if self.run.shards("truth") else None

    @cached_property
    def per_video(self) -> pa.Table:
        """Rows of SCORES of each video; none where no truth is known."""
        return self.run.table("scores") if self.run.shards("scores") else SCORES.empty_table()

    @cached_property
    def combined(self) -> pa.Table:
        """Rows of SCORES over all videos."""
        return scoring.combine([self.per_video]) if len(self.per_video) else SCORES.empty_table()

    @cached_property
    def scores(self) -> dict[tuple[str | None, str | None], dict[str, float]]:
        return {**scoring.values(self.per_video), **scoring.values(self.combined)}

    @cached_property
    def counts(self) -> dict[str, dict[str, Counts]]:
        """{family of metrics: {class: counts over all videos}}."""
        found: dict[str, dict[str, Counts]] = {}
        for (_, name), families in scoring.read_counts(self.combined).items():
            for family, counts in families.items():
                found.setdefault(family, {})[str(name)] = counts
        return found

    @property
    def statuses(self) -> Counter[str]:
        return Counter(row["status"] for row in self.videos)

    @property
    def overall(self) -> dict[str, float]:
        """Metric -> value over all videos and classes; empty where no truth is known."""
        return self.scores.get((None, None), {})

    def total(self, column: str) -> int | None:
        """The sum of a column of `videos`; None where it has no value at all."""
        known = [row[column] for row in self.videos if row[column] is not None]
        return int(sum(known)) if known else None

    def columns(self) -> list[str]:
        """The metrics that there are, in the order of the tables."""
        return [name for name in COLUMNS if name in self.overall]

    def classes(self) -> list[dict[str, Any]]:
        """A line for each class: its boxes, tracks and scores."""
        lines: dict[str, dict[str, Any]] = {}
        if self.tracks is not None and len(self.tracks):
            named = self.tracks.select(["video_id", "track_id"]).append_column(
                "class_name", self.tracks["class_name"].cast(pa.string())
            )
            boxes = pc.value_counts(named["class_name"]).to_pylist()
            lines = {entry["values"]: {"boxes": entry["counts"], "tracks": 0} for entry in boxes}
            tracked = named.filter(pc.is_valid(named["track_id"])).group_by(["class_name", "video_id", "track_id"])
            for entry in pc.value_counts(tracked.aggregate([])["class_name"]).to_pylist():
                lines[entry["values"]]["tracks"] = entry["counts"]
        for name, counts in self.counts.get("detection", {}).items():
            lines.setdefault(name, {"boxes": 0, "tracks": 0})["truth"] = int(counts["num_truth"].sum())
        return [
            {"name": name, **line, "scores": self.scores.get((None, name), {})} for name, line in sorted(lines.items())
        ]

    def stages(self) -> list[Stage]:
        """The stages whose seconds are known."""
        seconds = {
            name: sum(row[column] or 0.0 for row in self.videos)
            for column, name in STAGES.items()
            if any(row[column] is not None for row in self.videos)
        }
        whole, frames = sum(seconds.values()), sum(row["frames"] for row in self.videos)
        return [
            Stage(name, value, 100 * value / whole, frames / value) for name, value in seconds.items() if value > 0
        ]  # fmt: skip

    def representative(self) -> str | None:
        """The video of median HOTA (or mAP); without truth the one with the most tracks, or boxes."""
        if ranked := self.ranked():
            return ranked[len(ranked) // 2]
        usable = [row for row in self.videos if row["status"] != "failed"]
        return max(usable, key=lambda row: (row["tracks"] or 0, row["boxes"] or 0))["video_id"] if usable else None

    def num_scored(self) -> int:
        """How many videos have truth."""
        return len({video for video, _ in self.scores if video is not None})

    def ranked(self) -> list[str]:
        """Videos with scores that did not fail, worst first, by HOTA, else mAP."""
        metric = self.ranking
        failed = {row["video_id"] for row in self.videos if row["status"] == "failed"}
        of_videos = {video: scores for (video, name), scores in self.scores.items() if video and name is None}
        value = {
            video: scores[metric]
            for video, scores in of_videos.items()
            if metric and video not in failed and not np.isnan(scores.get(metric, np.nan))
        }
        return sorted(value, key=lambda video: (value[video], video))

    @property
    def ranking(self) -> str | None:
        """The metric that orders videos."""
        return next((name for name in ("HOTA", "mAP") if name in self.overall), None)

    def scene(self, video_id: str) -> Scene:
        """A video's boxes and truth; its detections where nothing is linked yet."""
        row = next(row for row in self.videos if row["video_id"] == video_id)
        tracks = self.tracks if self.tracks is not None else self._untracked(video_id)
        return make_scene(row, tracks, self.truth if (video_id, None) in self.scores else None)

    def _untracked(self, video_id: str) -> pa.Table:
        """A video's detections as rows of TRACKS without a track."""
        for shard in self.run.shards("detections"):
            rows = of_video(self.run.read_table("detections", shard).replace_schema_metadata(None), video_id)
            if len(rows):
                return tracks_table(video_id, stitched(rows), (), self.run.about["classes"])
        return TRACKS.empty_table()

    def made_by(self) -> list[tuple[str, str]]:
        """What run.json says, as (name, value) with nested names joined by dots."""
        about = {name: value for name, value in self.run.about.items() if name not in ("classes", "versions")}
        versions = ", ".join(f"{name} {version}" for name, version in self.run.about.get("versions", {}).items())
        return [*_flat(about), ("versions", versions)]

    def title(self) -> str:
        """The recipe's name, or the run's folder where it has none of its own."""
        name = self._recipe.get("name")
        return str(name) if name and name != "custom" else self.run.url.rstrip("/").rsplit("/", 1)[-1]

    def subtitle(self) -> str:
        """What worked on what."""
        recipe = self._recipe
        made = [f"model {recipe['model']}" if "model" in recipe else "stored detections"]
        made += [f"linker {recipe['linker']}"] if "linker" in recipe and self.tracks is not None else []
        source = [recipe[name] for name in ("catalog", "source") if recipe.get(name)]
        return " + ".join(made) + (f" on {' '.join(source)}" if source else "")

    @property
    def _recipe(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.run.about.get("identity", {}).get("recipe", {})
        return found


def score_chart(facts: Facts) -> str | None:
    """Histogram of the boxes' scores, by whether a track took them; None without boxes."""
    table = facts.tracks
    if table is None:
        shards = [facts.run.read_table("detections", shard) for shard in facts.run.shards("detections")]
        owned = [shard.filter(shard["owned"])["scores"] for shard in shards]
        scores = np.concatenate([np.asarray(pc.list_flatten(column), np.float64) for column in owned] or [np.zeros(0)])
        tracked = np.zeros(len(scores), np.bool_)
    else:
        scores = np.asarray(table["score"], np.float64)
        tracked = np.asarray(pc.is_valid(table["track_id"]), np.bool_)
    if not len(scores):
        return None
    edges: Floats = np.linspace(min(0.0, float(scores.min())), max(1.0, float(scores.max())), SCORE_BINS + 1)
    bars = [
        Bars(name, np.histogram(scores[chosen], edges)[0], kind)
        for name, chosen, kind in (("tracked", tracked, "first"), ("no track", ~tracked, "quiet"))
        if chosen.any()
    ]
    return histogram(bars, edges, "score", "boxes")


def length_chart(facts: Facts) -> str | None:
    """Histogram of how many boxes tracks have; None without tracks."""
    if facts.tracks is None or facts.tracks["track_id"].null_count == len(facts.tracks):
        return None
    tracked = facts.tracks.filter(pc.is_valid(facts.tracks["track_id"]))
    lengths = np.asarray(
        tracked.group_by(["video_id", "track_id"]).aggregate([("track_id", "count")])["track_id_count"], np.int64
    )
    step = max(1, -(-int(lengths.max()) // LENGTH_BINS))  # whole frames, so that no bar is taller for its width
    edges: Floats = np.arange(0.0, int(lengths.max()) + step + 1, step) + 1.0
    return histogram([Bars("tracks", np.histogram(lengths, edges)[0])], edges, "boxes in a track", "tracks")


def precision_charts(facts: Facts) -> list[tuple[str, float, str]]:
    """(class, AP, curve) of precision, made to fall as in the mean, against recall; classes with truth, worst first."""
    charts = []
    for name, counts in facts.counts.get("detection", {}).items():
        if counts["num_truth"].sum():
            recall, precision = precision_recall(counts)
            area = facts.scores[None, name]["mAP"]
            charts.append((name, area, curves([Curve(name, recall, precision, is_filled=True)], "recall", "precision")))
    return sorted(charts, key=lambda chart: chart[1])


def precision_recall(counts: Counts) -> tuple[Floats, Floats]:
    """The curve whose area is mAP, as the corners of its steps: recall, precision."""
    recall, precision = curve(counts["score"], counts["hit"], float(counts["num_truth"].sum()))
    corners = np.repeat(np.concatenate([[0.0], recall]), 2)[1:-1] if len(recall) else np.zeros(0)
    return corners, np.repeat(precision, 2)


def hota_chart(facts: Facts) -> str | None:
    """HOTA, DetA and AssA against the IoU that a match needs, over all classes; None where truth has no ids."""
    if "hota" not in facts.counts:
        return None
    found = hota.curves(add(list(facts.counts["hota"].values())))
    kinds = {"HOTA": "first", "DetA": "second", "AssA": "third"}
    drawn = [Curve(name, hota.ALPHAS, found[name], kind) for name, kind in kinds.items()]
    return curves(drawn, "IoU that a match needs (α)", "score")


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested plain values as (name, value); what is empty is left out."""
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in _flat(item, f"{name}.{key}" if name else str(key))]
    return [] if value is None or value == "" else [(name.removeprefix("identity."), str(value))]
