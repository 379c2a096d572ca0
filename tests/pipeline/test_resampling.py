"""Resampled scores are those of videos that are really repeated; the interval holds the truth as often as it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import scoring
from pipeline.metrics import detection
from pipeline.metrics.rankings import Ranking
from pipeline.resampling import draws, interval, mean_of_seeds, ratios, values
from pipeline.schemas import SCORES, TRACKS, TRUTH

Row = dict[str, Any]
VIDEOS = ("a", "b", "c", "empty")
KINDS: tuple[Any, ...] = ([], None, ["distractor"], ["unscored"])


def table(schema: pa.Schema, rows: list[Row]) -> pa.Table:
    plain = {field.name: getattr(field.type, "value_type", field.type) for field in schema if field.name != "flags"}
    kinds = {**plain, **({"flags": pa.list_(pa.string())} if "flags" in schema.names else {})}
    return pa.Table.from_pylist(rows, pa.schema(kinds))


def scene(seed: int) -> tuple[list[Row], list[Row]]:
    """Truth and tracks of three videos: two classes (a third in one video), doubles, ties, frames without truth."""
    random = np.random.default_rng(seed)
    truth: list[Row] = []
    found: list[Row] = []
    for video in VIDEOS[:3]:
        names = ("cat", "dog", "owl") if video == "b" else ("cat", "dog")
        for track in range(1, random.integers(2, 5)):
            name, corner, size = (
                names[random.integers(len(names))],
                random.integers(0, 60, 2),
                random.integers(8, 40, 2),
            )
            speed = random.integers(-9, 10, 2)
            for frame in range(random.integers(1, 7)):
                where = {"video_id": video, "frame_index": frame}
                if random.random() < 0.85:
                    ignore = bool(random.random() < 0.15)
                    own: Row = {"ignore": ignore, "flags": KINDS[random.integers(4)] if ignore else None}
                    own["motion_iou"] = None if random.random() < 0.2 else round(random.random(), 1)
                    truth.append(
                        {**where, "track_id": track, "class_name": name, **own, **box(corner, speed, frame, size)}
                    )
                for copy in range(random.integers(0, 3)):
                    guess = name if random.random() < 0.8 else names[random.integers(len(names))]
                    own = {"score": round(random.random(), 1), "track_score": 0.5 if random.random() < 0.5 else None}
                    own["track_id"] = None if random.random() < 0.2 else 10 * track + copy
                    near = corner + random.integers(-5, 6, 2)
                    found.append(
                        {
                            **where,
                            "class_name": guess,
                            **own,
                            **box(near, speed, frame, size + random.integers(0, 4, 2)),
                        }
                    )
    return truth, found


def box(corner: Any, speed: Any, frame: int, size: Any) -> dict[str, float]:
    (x, y), (width, height) = corner + frame * speed, size
    return {"x1": float(x), "y1": float(y), "x2": float(x + width), "y2": float(y + height)}


def repeated(rows: list[Row], weights: dict[str, int]) -> list[Row]:
    """The rows of a dataset in which each video is there so often, under names that keep their order."""
    return [
        {**row, "video_id": f"{row['video_id']}~{copy}"} for row in rows for copy in range(weights[row["video_id"]])
    ]


def check(truth: list[Row], found: list[Row], metrics: Any, weights: list[int], tolerance: float = 0.0) -> None:
    """Resampled scores are those of the repeated videos; the weights stand beside others, which change nothing."""
    options: dict[str, Any] = {"metrics": metrics, "tolerance": tolerance}
    rows = scoring.score(table(TRUTH, truth), table(TRACKS, found), videos=VIDEOS, **options)
    resampled = values(rows, metrics, VIDEOS, [[1, 2, 3, 0], weights, [1, 1, 1, 1]])

    number = dict(zip(VIDEOS, weights, strict=True))
    names = [f"{video}~{copy}" for video in VIDEOS for copy in range(number[video])]
    sides = table(TRUTH, repeated(truth, number)), table(TRACKS, repeated(found, number))
    again = scoring.score(*sides, videos=names, **options)
    for draw, all_rows in ((1, again), (2, rows)):
        expected = scoring.values(scoring.combine([all_rows])).get((None, None), {})
        for metric, value in resampled.items():
            np.testing.assert_allclose(value[draw], expected.get(metric, np.nan), rtol=0, atol=1e-12, err_msg=metric)


WEIGHTS = st.lists(st.integers(0, 3), min_size=4, max_size=4)


@settings(max_examples=16)
@given(st.integers(0, 10**6), WEIGHTS, st.sampled_from([0.0, 10.0]))
def test_weights_are_videos_that_are_repeated(seed: int, weights: list[int], tolerance: float) -> None:
    check(*scene(seed), scoring.METRICS, weights, tolerance)


@settings(max_examples=16)
@given(st.integers(0, 10**6), WEIGHTS)
def test_where_truth_lacks_ids_too(seed: int, weights: list[int]) -> None:
    """Then there is no split by track of any class where the video is drawn."""
    truth, found = scene(seed)
    for row in truth:
        row["track_id"] = None if row["video_id"] == "c" else row["track_id"]
    check(truth, found, detection.FIELDS, weights)


def test_the_scenes_have_what_may_go_wrong() -> None:
    """Every split and every group of tracks has a value that is neither best nor worst, and a class is of one video."""
    families = ["detection", "tracks", "stability"]
    rows = [scoring.score(table(TRUTH, t), table(TRACKS, f), metrics=families) for t, f in map(scene, range(16))]
    got = [values(each, families, VIDEOS, np.ones((1, 4))) for each in rows]
    for metric in got[0]:
        assert any(0 < each[metric][0] < 1 for each in got), metric
    owls = [each.filter(pc.equal(each["class_name"], "owl")) for each in rows]
    assert {video for each in owls for video in each["video_id"].to_pylist()} == {"b"}


def test_a_class_without_truth_drops_out_of_the_mean() -> None:
    """Video a finds its cat; in b the owl is missed, and a cat is made up in the frame's corner, surer than a's."""
    at = {"x1": 0.0, "y1": 0.0, "x2": 9.0, "y2": 9.0}
    cat = {"video_id": "a", "frame_index": 0, "track_id": 1, "class_name": "cat", **at}
    owl = {"video_id": "b", "frame_index": 0, "track_id": 1, "class_name": "owl", **at}
    made_up = {**owl, "class_name": "cat", "score": 0.9}
    rows = scoring.score(table(TRUTH, [cat, owl]), table(TRACKS, [{**cat, "score": 0.5}, made_up]))
    weights = [[1, 1], [1, 0], [0, 1], [3, 1], [0, 0]]
    got = values(rows, ["mAP", "IDF1", "num_misses"], ["a", "b"], weights)
    np.testing.assert_allclose(got["mAP"], [(0.5 + 0) / 2, 1, 0, (0.75 + 0) / 2, np.nan])
    np.testing.assert_allclose(got["IDF1"], [0.5, 1, 0, 6 / 8, np.nan])
    np.testing.assert_allclose(got["num_misses"], [1, 0, 1, 1, np.nan])


def test_videos_without_rows_add_nothing() -> None:
    """So a subset is resampled with the weights of all videos; where none of its own is drawn it has no value."""
    truth, found = scene(3)
    rows = scoring.score(table(TRUTH, truth), table(TRACKS, found), videos=["b"])
    got = values(rows, ["clear", "mAP"], VIDEOS, [[5, 1, 0, 2], [0, 1, 0, 0], [2, 0, 1, 1]])
    for metric in got:
        np.testing.assert_array_equal(got[metric][0], got[metric][1])
        assert np.isnan(got[metric][2])
    nothing = values(SCORES.empty_table(), ["mAP", "HOTA"], VIDEOS, np.ones((2, 4)))
    assert all(np.isnan(value).all() and value.shape == (2,) for value in nothing.values())


REFUSED: dict[str, tuple[Any, Any, Any, str]] = {  # metrics, videos, weights, what is said
    "a metric of another name": (
        ["HOTTA"],
        VIDEOS,
        np.ones((1, 4)),
        r"unknown metric 'HOTTA' \(did you mean 'HOTA'\?\)",
    ),
    "a column too few": (["mAP"], VIDEOS, np.ones((1, 3)), r"shape \(1, 3\); there must be a column for each of 4"),
    "one resampling, bare": (["mAP"], VIDEOS, np.ones(4), r"weights have the shape \(4,\)"),
    "half a video": (["mAP"], VIDEOS, [[1, 1, 0.5, 1]], "whole numbers of at least 0"),
    "less than no video": (["mAP"], VIDEOS, [[1, 1, -1, 1]], "whole numbers of at least 0"),
    "no number": (["mAP"], VIDEOS, [[1, 1, np.nan, 1]], "whole numbers of at least 0"),
    "a video twice": (["mAP"], ("a", "b", "c", "a"), np.ones((1, 4)), "4 names, of which 3 differ"),
    "a video that is not named": (["mAP"], ("a", "b"), np.ones((1, 2)), "rows of 'c', which is none of the 2 videos"),
    "a family that was not scored": (["HOTA"], VIDEOS, np.ones((1, 4)), "video 'a' lack hota"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_resampled_is_refused(name: str) -> None:
    truth, found = scene(1)
    rows = scoring.score(table(TRUTH, truth), table(TRACKS, found), metrics=["detection"], videos=VIDEOS)
    metrics, videos, weights, said = REFUSED[name]
    with pytest.raises(ValueError, match=said):
        values(rows, metrics, videos, weights)


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(0, 40))
def test_areas_are_those_of_predictions_that_are_repeated(seed: int, number: int) -> None:
    """Ties, predictions that count in part, and some that count for nothing."""
    random = np.random.default_rng(seed)
    score, hit = random.integers(0, 8, number) / 4, random.random(number) < 0.4
    false = np.where(hit, 0, random.choice([0.0, 0.25, 1.0, np.nan], number))
    video, weights = random.integers(0, 3, number), random.integers(0, 3, (6, 3))
    num_truth, unknown = random.integers(0, 30, 6).astype(np.float64), random.random(6)
    areas = Ranking(score, video, weights.astype(np.float64)).average_precision(hit, false, num_truth, unknown)
    for draw, weight in enumerate(weights):
        chosen = np.repeat(np.arange(number), weight[video])
        known = np.where(np.isnan(false), unknown[draw], false)[chosen]
        expected = detection.average_precision(score[chosen], hit[chosen], num_truth[draw], known)
        np.testing.assert_allclose(areas[draw], expected, rtol=0, atol=1e-12)


def test_a_ratio_is_of_the_sums() -> None:
    """Milliseconds and frames of three videos, the last of which has none."""
    got = ratios([100, 60, 0], [10, 20, 0], [[1, 1, 1], [2, 0, 5], [0, 1, 0], [0, 0, 3]])
    np.testing.assert_allclose(got, [160 / 30, 10, 3, np.nan])


def test_draws_are_of_as_many_with_replacement() -> None:
    weights, seeds = draws(num_videos=20, num_seeds=3, rounds=4000, seed=7)
    assert (weights.shape, seeds.shape) == ((4000, 20), (4000, 3))
    assert (weights.sum(axis=1) == 20).all()
    assert (seeds.sum(axis=1) == 3).all()
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.08)
    np.testing.assert_allclose(weights.var(), 19 / 20, atol=0.03)  # (n - 1) / n
    assert (seeds == 3).any(axis=1).mean() == pytest.approx(1 / 9, abs=0.02)  # all three the same
    assert abs(np.corrcoef(weights[:, 0], seeds[:, 0])[0, 1]) < 0.06  # of independent ones it has a deviation of .016

    np.testing.assert_array_equal(draws(20, 3, 4000, seed=7)[0], weights)
    np.testing.assert_array_equal(draws(20, 5, 4000, seed=7)[0], weights)
    assert (draws(20, 3, 4000, seed=8)[0] != weights).any()
    with pytest.raises(ValueError, match="48 videos, 0 seeds, 10 rounds; there must be at least 1 of each"):
        draws(48, 0, 10)


def test_the_mean_over_seeds_is_of_those_drawn() -> None:
    of_each = [np.array([1.0, 1.0, np.nan, np.nan]), np.array([4.0, 4.0, 4.0, 4.0])]
    got = mean_of_seeds(of_each, [[1, 1], [0, 2], [0, 2], [1, 1]])
    np.testing.assert_array_equal(got, [2.5, 4, 4, np.nan])


def test_the_interval_is_of_percentiles_of_what_has_a_value() -> None:
    spread = np.append(np.linspace(0, 100, 101), [np.nan] * 50)
    assert interval(spread) == pytest.approx((2.5, 97.5))
    assert interval(spread[::-1], level=0.5) == pytest.approx((25, 75))
    assert np.isnan(interval([np.nan, np.nan])).all()
    with pytest.raises(ValueError, match=r"level is 95; it must lie between 0 and 1"):
        interval(spread, level=95)


def coverage(num_videos: int, num_seeds: int, of_video: float, of_seed: float, simulations: int = 1000) -> float:
    """How often the interval holds the true difference of two systems, of which each video and seed has its own."""
    random = np.random.default_rng(0)
    weights, seeds = draws(num_videos, num_seeds, rounds=1000, seed=1)
    held = 0
    for _ in range(simulations):
        # The difference of the two systems in each video and seed: .3, what the video adds, what the seed adds.
        by_video = 0.3 + of_video * (random.exponential(size=num_videos) - 1)
        by_seed = of_seed * random.normal(size=num_seeds)
        of_each = [ratios(by_video + own, np.ones(num_videos), weights) for own in by_seed]
        low, high = interval(mean_of_seeds(of_each, seeds))
        held += low <= 0.3 <= high
    return held / simulations


def test_the_interval_holds_the_difference_nearly_19_times_in_20() -> None:
    """Of 48 videos whose differences are skewed (exponential), seeds a tenth of what the mean of videos varies by."""
    assert coverage(48, 3, of_video=1, of_seed=0.1 * 48**-0.5) == pytest.approx(0.93, abs=0.02)


def test_three_seeds_alone_hold_it_three_times_in_four() -> None:
    """As `interval` says of itself: its ends are the best and the worst seed."""
    assert coverage(48, 3, of_video=0, of_seed=1) == pytest.approx(0.75, abs=0.04)
