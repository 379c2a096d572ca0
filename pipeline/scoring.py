"""Truth and tracks to scores: tables of videos in, rows of `scores` per video and class out, and their sum.

Both steps are functions of Arrow tables and know nothing of where those lie: `score` is for one shard of videos,
`combine` for the rows of all shards.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.config import did_you_mean
from pipeline.metrics import clear, detection, hota, identity, ignoring
from pipeline.metrics.counts import Counts, add
from pipeline.metrics.pairs import Rows, pair
from pipeline.metrics.sides import UNNAMED, by_video, is_unnamed, nothing
from pipeline.schemas import SCORES

FAMILIES = {"hota": hota, "clear": clear, "identity": identity, "detection": detection}
METRICS = tuple(name for family in FAMILIES.values() for name in family.FIELDS)
WITHOUT_IDS = tuple(name for family in FAMILIES.values() if not family.NEEDS_IDS for name in family.FIELDS)
NUMBERS = (*clear.NUMBERS, *identity.NUMBERS)  # whole numbers; the other metrics are ratios

Tally = dict[tuple[str, str], dict[str, Counts]]  # counts of each family, by video and class


def score(
    truth: pa.Table,
    tracks: pa.Table,
    *,
    metrics: Sequence[str] | None = None,
    videos: Sequence[str] | None = None,
    class_agnostic: bool = False,
    tolerance: float = 0.0,
    catalog: str = "",
) -> pa.Table:
    """Rows of SCORES for each video and class, and for each video over its classes (class_name null).

    truth, tracks: tables with the columns of TRUTH and TRACKS that matter here: video_id, frame_index, track_id,
    class_name, the corners, and `ignore` and `flags` or `score`.
    metrics: names of METRICS; None for all that the truth allows.
    videos: the ids to score, of which some may have no row in either table; None for those that truth has rows of.
    class_agnostic: boxes match whatever their classes; so they do where either side names no classes (`object`).
    tolerance: see `metrics.detection`.

    A frame that only one side has rows in counts: as misses, or as false positives. Rows without track_id feed mAP
    alone. An ignored row of truth that names a class excuses predictions of that class, one that names none all.
    Raises ValueError where a metric of identities is asked for and truth lacks ids, and where an id comes twice in a
    frame.
    """
    asked = families(metrics)
    true_sides, predicted_sides = by_video(truth, is_truth=True), by_video(tracks, is_truth=False)
    lump = class_agnostic or is_unnamed(true_sides) or is_unnamed(predicted_sides)
    tally: Tally = {}
    for video in true_sides if videos is None else videos:
        true, predicted = (sides.get(video, nothing()) for sides in (true_sides, predicted_sides))
        true.check_ids(f"the truth of video {video!r}")
        predicted.check_ids(f"the tracks of video {video!r}")
        if lump:
            true, predicted = true.without_classes(), predicted.without_classes()
        possible = [family for family in asked if not (FAMILIES[family].NEEDS_IDS and true.lacks_ids)]
        if metrics is not None and possible != asked:
            lacking = [name for name in metrics if _family(name) not in possible]
            raise ValueError(
                f"{', '.join(lacking)} need identities, and the truth of video {video!r} has boxes without track_id; "
                f"without identities there is: {', '.join(WITHOUT_IDS)}"
            )
        for name in sorted(true.classes() | predicted.classes()) or [UNNAMED]:
            tally[video, name] = _count(true.of_class(name), predicted.of_class(name), possible, tolerance)
    return _table(catalog, tally, per_video=True)


def combine(tables: Iterable[pa.Table]) -> pa.Table:
    """Rows of SCORES over all videos (video_id null), by class and over classes, from rows that `score` gave.

    A family of metrics that some video lacks (its truth has no identities) is left out.
    """
    table = pa.concat_tables(list(tables))
    tally: Tally = {}
    counted = table.filter(pc.and_(pc.is_valid(table["class_name"]), pc.is_valid(table["video_id"])))
    for row in counted.filter(pc.is_valid(counted["counts"])).to_pylist():
        family = _family(row["metric"])
        tally.setdefault((row["video_id"], row["class_name"]), {})[family] = {
            name: np.array(numbers) if name in FAMILIES[family].JOINED else np.array(numbers).squeeze()
            for name, numbers in row["counts"]
        }
    catalogs = pc.unique(table["catalog"]).to_pylist()
    return _table(catalogs[0] if len(catalogs) == 1 else "", tally, per_video=False)


def values(table: pa.Table) -> dict[tuple[str | None, str | None], dict[str, float]]:
    """Rows of SCORES as {(video_id, class_name): {metric: value}}."""
    found: dict[tuple[str | None, str | None], dict[str, float]] = {}
    for video, name, metric, value in zip(
        *(table[column].to_pylist() for column in ("video_id", "class_name", "metric", "value")), strict=True
    ):
        found.setdefault((video, name), {})[metric] = value
    return found


def families(metrics: Sequence[str] | None) -> list[str]:
    """The families that these metrics belong to, all for None; ValueError with the nearest name for an unknown."""
    return list(FAMILIES) if metrics is None else sorted({_family(name) for name in metrics}, key=list(FAMILIES).index)


def _family(metric: str) -> str:
    for name, family in FAMILIES.items():
        if metric in family.FIELDS:
            return name
    raise ValueError(f"unknown metric {metric!r}{did_you_mean(metric, METRICS)}; available: {', '.join(METRICS)}")


def _count(truth: Rows, predicted: Rows, possible: Sequence[str], tolerance: float) -> dict[str, Counts]:
    """Counts of one video and class for each family."""
    counts: dict[str, Counts] = {}
    of_pairs = [family for family in possible if FAMILIES[family].OF_PAIRS]
    if of_pairs:
        tracked = predicted[predicted.ids >= 0]
        tracked = tracked[ignoring.counted(truth, tracked)]
        pairs = pair(truth[truth.kind == ignoring.SCORED], tracked)
        counts.update((family, FAMILIES[family].count(pairs)) for family in of_pairs)
    for family in possible:
        if not FAMILIES[family].OF_PAIRS:
            counts[family] = FAMILIES[family].count(truth, predicted, tolerance)
    return counts


def _table(catalog: str, tally: Tally, *, per_video: bool) -> pa.Table:
    """Rows of SCORES from counts: by class, and over classes, of each video or of all together."""
    groups: dict[str | None, dict[str, list[dict[str, Counts]]]] = {}
    for (video, label), counts in tally.items():
        groups.setdefault(video if per_video else None, {}).setdefault(label, []).append(counts)
    lines: list[_Line] = []
    for group, classes in groups.items():
        for family, module in FAMILIES.items():
            if not all(family in counts for found in classes.values() for counts in found):
                continue
            parts = {
                label: add([counts[family] for counts in found], module.JOINED)
                for label, found in sorted(classes.items())
            }
            by_class = {label: module.scores(counts) for label, counts in parts.items()}
            for label, scores in by_class.items():
                for index, (metric, value) in enumerate(scores.items()):
                    lines.append(_Line(catalog, group, label, metric, value, None if index else _listed(parts[label])))
            for metric, value in _over_classes(module, parts, by_class).items():
                lines.append(_Line(catalog, group, None, metric, value, None))
    columns = zip(*lines, strict=True) if lines else ([] for _ in SCORES)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, SCORES, strict=True)], schema=SCORES
    )


class _Line(NamedTuple):
    """A row of SCORES."""

    catalog: str
    video_id: str | None
    class_name: str | None
    metric: str
    value: float
    counts: list[tuple[str, NDArray[np.float64]]] | None


def _listed(counts: Counts) -> list[tuple[str, NDArray[np.float64]]]:
    """Counts as Arrow's map type takes them: a single number is a list of one."""
    return [(name, np.atleast_1d(array)) for name, array in counts.items()]


def _over_classes(
    module: types.ModuleType, parts: dict[str, Counts], by_class: dict[str, dict[str, float]]
) -> dict[str, float]:
    """Means over the classes that have a value, or what follows from the sum of the classes' counts."""
    if module.OVER_CLASSES == "mean":
        table = np.array([[scores[field] for field in module.FIELDS] for scores in by_class.values()])
        known = ~np.isnan(table)
        means = np.where(known, table, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)
        return dict(zip(module.FIELDS, means.tolist(), strict=True))
    scores: dict[str, float] = module.scores(add(list(parts.values()), module.JOINED))
    return scores
