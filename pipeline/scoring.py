"""Truth and tracks to scores: tables of videos in, rows of `scores` per video and class out, and their sum.

Both steps are functions of Arrow tables and know nothing of where those lie: `score` is for one shard of videos,
`combine` for the rows of all shards.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import did_you_mean
from pipeline.metrics import clear, clear_trackeval, coco, detection, hota, identity, ignoring, stability
from pipeline.metrics import tracks as whole_tracks
from pipeline.metrics.counts import Counts, add, total
from pipeline.metrics.pairs import pair
from pipeline.metrics.sides import UNNAMED, Side, by_video, is_unnamed, nothing
from pipeline.schemas import SCORES

FAMILIES = {
    "hota": hota,
    "clear": clear,
    "clear_trackeval": clear_trackeval,
    "identity": identity,
    "detection": detection,
    "tracks": whole_tracks,
    "stability": stability,
    "coco": coco,
}
ON_REQUEST = ("coco",)  # ten times the counts of the others
METRICS = tuple(name for family in FAMILIES.values() for name in family.FIELDS)
WITHOUT_IDS = tuple(name for family in FAMILIES.values() if not family.NEEDS_IDS for name in family.FIELDS)
NUMBERS = (*clear.NUMBERS, *clear_trackeval.NUMBERS, *identity.NUMBERS)  # whole numbers; the other metrics are ratios

Group = tuple[str | None, str | None]  # video and class
Tally = dict[Group, dict[str, Counts]]  # counts of each family


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
    metrics: names of METRICS or of FAMILIES; None for all that the truth allows, but ON_REQUEST.
    videos: the ids to score, of which some may have no row in either table; None for those that truth has rows of.
    class_agnostic: boxes match whatever their classes; so they do where either side names no classes (`object`).
    tolerance: see `metrics.detection`.

    A frame that only one side has rows in counts: as misses, or as false positives. Rows without track_id feed mAP
    alone. An ignored row of truth that names a class excuses predictions of that class, one that names none all.
    Raises ValueError where a metric of identities is asked for and truth lacks ids, where an id comes twice in a frame,
    and where a row lacks a frame, a corner or a score.
    """
    if metrics is not None:
        metrics = named(metrics)
    asked = [name for name in FAMILIES if name not in ON_REQUEST] if metrics is None else families(metrics)
    true_sides, predicted_sides = by_video(truth, is_truth=True), by_video(tracks, is_truth=False)
    lump = class_agnostic or is_unnamed(true_sides) or is_unnamed(predicted_sides)
    alone = [family for family in asked if not hasattr(FAMILIES[family], "count_all")]
    known: dict[str, Side] = {}
    found: dict[str, Side] = {}
    tally: Tally = {}
    empty = nothing()
    for video in true_sides if videos is None else videos:
        true, predicted = (sides.get(video, empty) for sides in (true_sides, predicted_sides))
        true.check_ids(f"the truth of video {video!r}")
        predicted.check_ids(f"the tracks of video {video!r}")
        if lump:
            true, predicted = true.without_classes(), predicted.without_classes()
        possible = [family for family in alone if not (FAMILIES[family].NEEDS_IDS and true.lacks_ids)]
        if metrics is not None and possible != alone:
            lacking = [name for name in metrics if _family(name) in set(alone) - set(possible)]
            raise ValueError(
                f"{', '.join(lacking)} need identities, and the truth of video {video!r} has boxes without track_id; "
                f"without identities there is: {', '.join(WITHOUT_IDS)}"
            )
        known[video], found[video] = true, predicted
        for name in sorted(true.classes() | predicted.classes()) or [UNNAMED]:
            tally[video, name] = _count(true, predicted, name, possible, tolerance) if possible else {}
    for family in asked:
        if family not in alone:
            counted = FAMILIES[family].count_all(known, found, list(tally), tolerance)
            for counts, of_all in zip(tally.values(), counted, strict=True):
                counts[family] = of_all
    return _table(catalog, tally, per_video=True)


def combine(tables: Iterable[pa.Table]) -> pa.Table:
    """Rows of SCORES over all videos (video_id null), by class and over classes, from rows that `score` gave.

    A family of metrics that some video lacks (its truth has no identities) is left out.
    """
    table = pa.concat_tables([SCORES.empty_table(), *tables])
    tally = read_counts(table.filter(pc.and_(pc.is_valid(table["class_name"]), pc.is_valid(table["video_id"]))))
    tally = {group: tally[group] for group in sorted(tally, key=str)}  # whatever the order in which shards come
    catalogs = pc.unique(table["catalog"]).to_pylist()
    return _table(catalogs[0] if len(catalogs) == 1 else "", tally, per_video=False)


def read_counts(table: pa.Table) -> Tally:
    """The counts in rows of SCORES, as {(video_id, class_name): {family: counts}}."""
    rows = table.filter(pc.is_valid(table["counts"])).combine_chunks()
    counts = pa.concat_arrays(rows["counts"].chunks or [pa.array([], SCORES.field("counts").type)])
    starts, names = counts.offsets.to_pylist(), counts.keys.to_pylist()
    bounds, numbers = counts.items.offsets.to_pylist(), counts.items.values.to_numpy()
    found: Tally = {}
    for video, label, metric, start, stop in zip(
        *(rows[column].to_pylist() for column in ("video_id", "class_name", "metric")),
        *(starts[:-1], starts[1:]),
        strict=True,
    ):
        family = _family(metric)
        arrays = {names[index]: numbers[bounds[index] : bounds[index + 1]] for index in range(start, stop)}
        found.setdefault((video, label), {})[family] = {
            name: array if name in FAMILIES[family].JOINED else array.squeeze() for name, array in arrays.items()
        }
    return found


def values(table: pa.Table) -> dict[Group, dict[str, float]]:
    """Rows of SCORES as {(video_id, class_name): {metric: value}}."""
    found: dict[Group, dict[str, float]] = {}
    for video, name, metric, value in zip(
        *(table[column].to_pylist() for column in ("video_id", "class_name", "metric", "value")), strict=True
    ):
        found.setdefault((video, name), {})[metric] = value
    return found


def named(names: Sequence[str]) -> list[str]:
    """The metrics of these names, of which that of a family (`hota`) stands for all of its metrics.

    Raises ValueError with the nearest name for an unknown one.
    """
    unknown = next((name for name in names if name not in FAMILIES and name not in METRICS), None)
    if unknown is not None:
        raise ValueError(
            f"unknown metric {unknown!r}{did_you_mean(unknown, (*METRICS, *FAMILIES))}; it may be one of the families "
            f"{', '.join(FAMILIES)}, or of their metrics, which `trackloom evaluate --help` lists"
        )
    return [metric for name in names for metric in (FAMILIES[name].FIELDS if name in FAMILIES else (name,))]


def families(metrics: Sequence[str]) -> list[str]:
    """The families that these metrics are of, each once."""
    return [name for name, family in FAMILIES.items() if not set(family.FIELDS).isdisjoint(metrics)]


def _family(metric: str) -> str:
    return next(name for name, family in FAMILIES.items() if metric in family.FIELDS)


def _count(true: Side, found: Side, name: str, possible: Sequence[str], tolerance: float) -> dict[str, Counts]:
    """Counts of one class of a video for each family."""
    truth, predicted = true.of_class(name), found.of_class(name)
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
        assert label is not None, "counts are of a class"
        groups.setdefault(video if per_video else None, {}).setdefault(label, []).append(counts)
    blocks: list[_Block] = []
    for group, classes in groups.items():
        for family, module in FAMILIES.items():
            if not all(family in counts for found in classes.values() for counts in found):
                continue
            parts = {
                label: add([counts[family] for counts in found], module.JOINED)
                for label, found in sorted(classes.items())
            }
            shared = [total(list(parts.values()), module.JOINED)] if hasattr(module, "count_all") else []
            by_class = {label: module.scores(counts, *shared) for label, counts in parts.items()}
            blocks += [_Block(group, label, scores, parts[label]) for label, scores in by_class.items()]
            blocks.append(_Block(group, None, _over_classes(module, parts, by_class), None))
    sizes = [len(block.scores) for block in blocks]
    columns = {
        "catalog": pa.repeat(pa.scalar(catalog, pa.string()), sum(sizes)),
        "video_id": _repeated([block.video_id for block in blocks], sizes),
        "class_name": _repeated([block.class_name for block in blocks], sizes),
        "metric": pa.array([metric for block in blocks for metric in block.scores], pa.string()),
        "value": pa.array([value for block in blocks for value in block.scores.values()], pa.float64()),
        "counts": _listed([each for block in blocks for each in (block.counts, *[None] * (len(block.scores) - 1))]),
    }
    return pa.table(columns, schema=SCORES)


class _Block(NamedTuple):
    """Rows of SCORES that one family has of a video and class, one a metric; counts: of the first."""

    video_id: str | None
    class_name: str | None
    scores: Mapping[str, float]
    counts: Counts | None


def _repeated(names: Sequence[str | None], times: Sequence[int]) -> pa.Array:
    """Each name so many times, as strings."""
    return pa.array(names, pa.string()).take(pa.array(np.repeat(np.arange(len(names)), times)))


def _listed(rows: Sequence[Counts | None]) -> pa.Array:
    """Counts as the column of SCORES: a map a row, null for None; a single number is a list of one."""
    entries = [(name, array.reshape(-1)) for counts in rows if counts for name, array in counts.items()]
    kind = SCORES.field("counts").type
    starts = np.cumsum([0, *(len(counts or ()) for counts in rows)])
    is_null = np.array([*(counts is None for counts in rows), False])  # of an offset: of the row that starts there
    numbers = np.concatenate([np.zeros(0), *(array for _, array in entries)])
    bounds = np.cumsum([0, *(len(array) for _, array in entries)])
    return pa.MapArray.from_arrays(
        pa.array(starts, pa.int32(), mask=is_null),
        pa.array([name for name, _ in entries], pa.string()),
        pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), pa.array(numbers)),
    ).cast(kind)


def _over_classes(
    module: types.ModuleType, parts: dict[str, Counts], by_class: dict[str, dict[str, float]]
) -> dict[str, float]:
    """Means over the classes that have a value, or what follows from the sum of the classes' counts."""
    if module.OVER_CLASSES == "mean":
        fields = list(next(iter(by_class.values())))  # those that all classes have
        table = np.array([list(scores.values()) for scores in by_class.values()])
        known = ~np.isnan(table)
        means = np.where(known, table, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)
        return dict(zip(fields, means.tolist(), strict=True))
    scores: dict[str, float] = module.scores(add(list(parts.values()), module.JOINED))
    return scores
