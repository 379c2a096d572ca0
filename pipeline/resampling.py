"""A metric of many datasets that are drawn from one: its videos, each so often; and the interval that follows.

Scores follow from counts of single videos (`scoring`), so a video that is drawn twice is counted twice, and nothing is
matched anew. With `draws` the same for two systems, the paired bootstrap of their difference over videos and seeds is

    weights, seeds = draws(num_videos, num_seeds, rounds, seed)
    one, other = (
        mean_of_seeds([values(rows, ["mAP"], videos, weights)["mAP"] for rows in of_seeds], seeds)
        for of_seeds in (rows_of_one, rows_of_other)
    )
    low, high = interval(one - other)

and of how many resamplings a metric has no value, np.isnan(one - other).sum(), is for the caller to say.
"""

from __future__ import annotations

import types
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray

from pipeline import scoring
from pipeline.metrics.counts import Counts, add, total
from pipeline.metrics.rankings import Ranking

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Parts = dict[str, dict[int, Counts]]  # by class and column of weights: the counts of a family


def values(rows: pa.Table, metrics: Sequence[str], videos: Sequence[str], weights: ArrayLike) -> dict[str, Floats]:
    """Metrics over all classes (R,) of the datasets in which video v occurs weights[r, v] times.

    They are what scoring such a dataset would give, each copy of a video under a name of its own; with weights of 1
    what `scoring.combine` gives.

    rows: of SCORES, by video and class, as `scoring.score` gives them; what is over classes or videos is left aside.
    metrics: names of METRICS or of FAMILIES. videos (V,): ids; one without rows adds nothing (a subset does not have
    it), however often it is drawn. weights (R, V): whole numbers of at least 0.

    nan where a resampling has no value: without truth, and where none of its videos has rows. A class without truth
    drops out of a mean over classes, there as in `combine`.
    Raises ValueError for unknown metrics, weights that are no such numbers or not one a video, videos that come twice
    or rows of others, and metrics whose family some video of the rows lacks.
    """
    metrics = scoring.named(metrics)
    column = {video: number for number, video in enumerate(videos)}
    drawn = _checked(weights, len(videos), len(column))
    tally = scoring.read_counts(rows.filter(pc.and_(pc.is_valid(rows["class_name"]), pc.is_valid(rows["video_id"]))))
    unknown = sorted({str(video) for video, _ in tally} - set(column))
    if unknown:
        raise ValueError(f"there are rows of {unknown[0]!r}, which is none of the {len(videos)} videos")

    found: dict[str, Floats] = {}
    for family in scoring.families(metrics) if tally else ():
        module = scoring.FAMILIES[family]
        parts: Parts = {}
        for video, label in sorted(tally, key=str):
            counts = tally[video, label]
            if family not in counts:
                raise ValueError(f"the rows of video {video!r} lack {family}; score all videos with the same metrics")
            parts.setdefault(str(label), {})[column[str(video)]] = counts[family]
        asked = [metric for metric in metrics if metric in module.FIELDS]
        if module.OVER_CLASSES == "sum":
            scores = _of_sums(module, parts, drawn)
        elif hasattr(module, "resampled"):
            scores = _of_rankings(module, parts, drawn, asked)
        else:
            scores = _one_by_one(module, parts, drawn)
        found.update({metric: scores[metric] for metric in asked})
    with_rows = sorted({column[str(video)] for video, _ in tally})
    is_empty = drawn[:, with_rows].sum(axis=1) == 0
    return {metric: np.where(is_empty, np.nan, found.get(metric, np.nan)) for metric in metrics}


def ratios(parts: ArrayLike, wholes: ArrayLike, weights: ArrayLike) -> Floats:
    """A ratio of two sums over videos (R,), as of milliseconds and frames; nan where there is nothing to divide by.

    parts, wholes (V,): of each video. weights (R, V): as in `values`.
    """
    part, whole = (np.asarray(weights, np.float64) @ np.asarray(side, np.float64) for side in (parts, wholes))
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole != 0)


def draws(num_videos: int, num_seeds: int, rounds: int, seed: int = 0) -> tuple[Ints, Ints]:
    """How often each video (R, V) and each training seed (R, S) is drawn, with replacement, in each of the rounds.

    The two are drawn independently of each other (the bootstrap of two crossed factors; Owen, The pigeonhole bootstrap,
    Annals of Applied Statistics 2007). The draws of videos do not depend on num_seeds.
    """
    if min(num_videos, num_seeds, rounds) < 1:
        raise ValueError(f"{num_videos} videos, {num_seeds} seeds, {rounds} rounds; there must be at least 1 of each")
    of_videos, of_seeds = (np.random.default_rng([seed, factor]) for factor in range(2))
    return (
        of_videos.multinomial(num_videos, np.full(num_videos, 1 / num_videos), rounds),
        of_seeds.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), rounds),
    )


def mean_of_seeds(of_each: Sequence[Floats], seeds: ArrayLike) -> Floats:
    """The mean over the seeds of each resampling (R,): values of each seed (R,), weighted by how often it is drawn.

    seeds (R, S): as `draws` gives them. nan where a seed that is drawn has no value.
    """
    value, number = np.stack(list(of_each), axis=1), np.asarray(seeds, np.float64)  # (R, S)
    mean: Floats = np.where(number > 0, value * number, 0).sum(axis=1) / number.sum(axis=1)
    return mean


def interval(differences: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval (low, high) of resampled differences (R,); those without a value are left out.

    Percentiles of the differences themselves (Efron and Tibshirani, An Introduction to the Bootstrap, chapter 13),
    since the metrics are bounded, skewed and no means of videos: the interval needs no formula of their spread,
    stays among values that the metric can have, and is the same whatever scale they are put on. BCa would correct bias
    and skewness by a jackknife, which has nothing to go by in three seeds.

    What it lacks: a resampling of n spreads by (n - 1) / n of the variance that there is, little with 48 videos, but a
    third is missing with 3 seeds; and as all three draws are the same seed once in 9 times, its ends lie no further out
    than the best and the worst seed. Where seeds alone make the difference, the interval of 3 of them holds the truth 3
    times in 4 (unless all fall on one side: 1 - 2 / 2^3), not 19 in 20. Simulated, with 48 videos of skewed differences
    and 3 seeds: .93 where seeds matter little, .91 where the mean over seeds varies half as much as that over videos,
    .88 where as much, .82 where twice as much.

    nan, twice, where no difference has a value. Raises ValueError for a level that is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must lie between 0 and 1")
    known = np.asarray(differences, np.float64)
    known = known[~np.isnan(known)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2]).tolist()
    return low, high


def _checked(weights: ArrayLike, num_videos: int, num_names: int) -> Floats:
    """The weights (R, V) as numbers that may be multiplied; see `values` for what is refused."""
    if num_names != num_videos:
        raise ValueError(f"videos holds {num_videos} names, of which {num_names} differ; each video is named once")
    drawn = np.asarray(weights, np.float64)
    if drawn.ndim != 2 or drawn.shape[1] != num_videos:
        raise ValueError(
            f"weights have the shape {drawn.shape}; there must be a column for each of {num_videos} videos"
        )
    if not ((drawn >= 0) & (drawn == np.floor(drawn)) & np.isfinite(drawn)).all():
        raise ValueError("weights say how often each video occurs; they must be whole numbers of at least 0")
    return drawn


def _of_sums(module: types.ModuleType, parts: Parts, weights: Floats) -> dict[str, Floats]:
    """Scores that follow from the sum of the classes' counts."""
    summed = total([_summed(module, of_class, weights) for of_class in parts.values()])
    scores = [module.scores({name: array[draw] for name, array in summed.items()}) for draw in range(len(weights))]
    return {field: np.array([score[field] for score in scores]) for field in module.FIELDS}


def _of_rankings(module: types.ModuleType, parts: Parts, weights: Floats, fields: Sequence[str]) -> dict[str, Floats]:
    """Means over the classes of scores that the family resamples itself."""
    summed = {label: _summed(module, of_class, weights) for label, of_class in parts.items()}
    whole = total(list(summed.values()))
    by_class = []
    for label, of_class in parts.items():
        counts = {**add(list(of_class.values()), module.JOINED), **summed[label]}
        ranking = Ranking.of(list(of_class.values()), list(of_class), weights)
        by_class.append(module.resampled(ranking, counts, whole, fields))
    return {field: _mean_of_known(np.stack([scores[field] for scores in by_class])) for field in fields}


def _one_by_one(module: types.ModuleType, parts: Parts, weights: Floats) -> dict[str, Floats]:
    """Means over the classes, each copy of a video strung to the others: what any family allows, if slowly."""
    by_class = np.full((len(parts), len(weights), len(module.FIELDS)), np.nan)
    for number, of_class in enumerate(parts.values()):
        for draw, weight in enumerate(weights.astype(np.int64)):
            copies = [counts for column, counts in of_class.items() for _ in range(weight[column])]
            if copies:
                by_class[number, draw] = list(module.scores(add(copies, module.JOINED)).values())
    return dict(zip(module.FIELDS, np.moveaxis(_mean_of_known(by_class), -1, 0), strict=True))


def _summed(module: types.ModuleType, of_class: dict[int, Counts], weights: Floats) -> Counts:
    """The counts of a class that are added, (R, ...), each video's as often as it is drawn."""
    own, summed = weights[:, list(of_class)], {}
    for name in next(iter(of_class.values())):
        if name not in module.JOINED:
            each = np.stack([counts[name] for counts in of_class.values()])  # (videos, ...)
            lacking = np.isnan(each)  # where one that is drawn is not known, neither is the sum
            summed[name] = np.tensordot(own, np.where(lacking, 0, each), 1)
            summed[name][np.tensordot(own, lacking.astype(np.float64), 1) > 0] = np.nan
    return summed


def _mean_of_known(by_class: Floats) -> Floats:
    """The mean over classes, the first axis, of those that have a value; nan where none has."""
    known = ~np.isnan(by_class)
    mean: Floats = np.where(known, by_class, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)
    return mean
