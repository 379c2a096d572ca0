"""The synthetic dataset: that it holds what it says, exactly."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalogs import synthetic
from catalogs.synthetic import draw, shapes
from catalogs.synthetic.annotate import digest, motion_iou
from catalogs.synthetic.paths import SIZE
from catalogs.synthetic.scene import BURSTS, Scene, make_scene
from pipeline.boxes import clip, iou
from pipeline.config import load
from pipeline.records import VideoInfo
from pipeline.schemas import TRUTH

SIDES = ("x1", "y1", "x2", "y2")


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> list[VideoInfo]:
    """The whole test split, as a user gets it."""
    return synthetic.videos(str(tmp_path_factory.mktemp("cache")), synthetic.Settings())


@pytest.fixture(scope="module")
def rows(listed: list[VideoInfo]) -> list[dict]:
    return [row for video in listed for row in synthetic.truth(video).to_pylist()]


@pytest.fixture(scope="module")
def tracks(rows: list[dict]) -> dict[tuple[str, int], list[dict]]:
    grouped = defaultdict(list)
    for row in rows:
        grouped[row["video_id"], row["track_id"]].append(row)
    return grouped


def box(row: dict) -> list[float]:
    return [row[side] for side in SIDES]


# The version


@pytest.mark.parametrize("name", list(synthetic.DIGESTS))
def test_version_names_these_pixels_and_this_truth(name: str) -> None:
    split, index = name.split("-")
    assert digest(*synthetic.render(split, int(index))) == synthetic.DIGESTS[name], (
        f"the content of {synthetic.VERSION} has changed; a change of content is a new version"
    )


def test_digests_cover_every_split_and_speed() -> None:
    names = [name.split("-") for name in synthetic.DIGESTS]
    assert {split for split, _ in names} == set(synthetic.SPLITS)
    assert {make_scene(split, int(index)).speed for split, index in names} == {"slow", "medium", "fast"}


def test_digest_sees_one_grey_level_and_one_id() -> None:
    frames, table = synthetic.render("val", 1)
    other = frames.copy()
    other[3, 5, 7, 1] ^= 1
    renamed = table.set_column(2, "track_id", pa.array([9] * len(table), pa.int32()))
    assert len({digest(frames, table), digest(other, table), digest(frames, renamed)}) == 3


def test_videos_of_all_splits_differ(listed: list[VideoInfo]) -> None:
    assert len({video.identity for video in listed}) == len(listed) == 48
    first = [synthetic.render(split, 0)[0][0].tobytes() for split in synthetic.SPLITS]
    assert len(set(first)) == 3


# The catalog


def test_lists_what_the_catalog_contract_asks_for(listed: list[VideoInfo]) -> None:
    assert load("catalog", "synthetic") is synthetic
    video = listed[7]
    assert (video.video_id, video.catalog, video.fps, video.size) == ("test-0007", "synthetic", 25.0, (128, 160))
    assert Path(video.uri).parts[-3:] == ("synthetic-v1", "test", "test-0007.mp4")
    assert [v.video_id for v in listed] == sorted(v.video_id for v in listed)
    table = synthetic.truth(video)
    assert table.schema.equals(TRUTH)
    assert set(table["video_id"].to_pylist()) == {"test-0007"}
    keys = list(zip(table["frame_index"].to_pylist(), table["track_id"].to_pylist(), strict=True))
    assert keys == sorted(set(keys))


def test_videos_of_others_are_not_taken_for_a_place_to_write(tmp_path: Path) -> None:
    """Whoever names videos of theirs would else be given scores of ours, and files beside theirs."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "a.MP4").touch()
    for source in (mine, mine / "a.MP4", f"{mine}/*.MP4", f"{mine}/a.MP4\n{mine}/b.MP4"):
        with pytest.raises(ValueError, match=r"would not read .*mine.*; --catalog folder reads videos of yours"):
            synthetic.videos(str(source), synthetic.Settings(num_videos=1))
    assert [path.name for path in mine.iterdir()] == ["a.MP4"]
    (listed,) = synthetic.videos(str(tmp_path), synthetic.Settings(num_videos=1))  # beside folders they may lie
    assert Path(listed.uri).is_relative_to(tmp_path / "synthetic-v1")


@pytest.mark.parametrize(
    ("given_settings", "message"),
    [
        ({"split": "tset"}, "split is 'tset'; it must be one of: train, val, test"),
        ({"num_videos": 0}, "num_videos is 0; it must be from 1 to 10000"),
    ],
)
def test_wrong_settings_are_refused(given_settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthetic.Settings(**given_settings)


def test_wrong_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="local folder, not at s3://bucket"):
        synthetic.videos("s3://bucket", synthetic.Settings(num_videos=1))
    stranger = VideoInfo("test-0001", "x.mp4", "synthetic", truth_uri=str(tmp_path / "none.parquet"))
    with pytest.raises(FileNotFoundError, match="truth of test-0001"):
        synthetic.truth(stranger)
    with pytest.raises(ValueError, match="'holiday' is no video of synthetic-v1"):
        synthetic.flow(replace(stranger, video_id="holiday"))


# What happens in the videos


def test_all_nuisances_are_there_in_sensible_shares(rows: list[dict]) -> None:
    counted = [row for row in rows if not row["ignore"]]
    counts = Counter(flag for row in counted for flag in row["flags"])
    share = {flag: count / len(counted) for flag, count in counts.items()}
    expected = {  # lowest and highest share of the boxes that count
        **dict.fromkeys(("slow", "medium", "fast"), (0.25, 0.42)),
        "burst": (0.12, 0.18),
        **dict.fromkeys(BURSTS, (0.02, 0.08)),
        "leaving": (0.01, 0.1),
        "occluded": (0.05, 0.2),
        "reentered": (0.03, 0.15),
        "crossing": (0.1, 0.35),
        "concentric": (0.03, 0.15),
        "lookalike": (0.15, 0.45),
        "jitter": (0.03, 0.15),
    }
    assert set(share) == set(expected) == set(synthetic.FLAGS)
    assert {f: s for f, s in share.items() if not expected[f][0] <= s <= expected[f][1]} == {}
    assert 0.02 < 1 - len(counted) / len(rows) < 0.1
    assert all(any(kind in row["flags"] for kind in BURSTS) == ("burst" in row["flags"]) for row in rows)
    classes = Counter(row["class_name"] for row in counted)
    assert set(classes) == set(synthetic.CLASSES)
    assert min(classes.values()) > 0.09 * len(counted)


def test_ignored_boxes_are_those_that_can_hardly_be_seen(rows: list[dict]) -> None:
    ignored = [row for row in rows if row["ignore"]]
    assert ignored
    assert all({"occluded", "leaving"} & set(row["flags"]) for row in ignored)


def test_speeds_keep_to_their_ranges(listed: list[VideoInfo], tracks: dict) -> None:
    overlaps = defaultdict(list)
    regime = {}
    for (video, _), track in tracks.items():
        regime[video] = track[0]["flags"][0]
        for one, other in pairwise(track):
            if other["frame_index"] == one["frame_index"] + 1:
                overlaps[video].append(iou([box(one)], [box(other)])[0, 0])
    ranges = {"slow": (0.8, 1.0), "medium": (0.6, 0.8), "fast": (0.0, 0.6)}
    for video, values in overlaps.items():
        low, high = ranges[regime[video]]
        assert low < np.mean(values) < high, (video, regime[video])
    assert Counter(regime.values()) == {"slow": 16, "medium": 16, "fast": 16}
    fast = np.concatenate([values for video, values in overlaps.items() if regime[video] == "fast"])
    assert (fast < 0.5).mean() > 0.4  # linking by IoU > .5 loses them


def test_identities_outlive_absence(tracks: dict) -> None:
    gaps = []
    for track in tracks.values():
        assert len({row["class_name"] for row in track}) == 1
        frames = [row["frame_index"] for row in track]
        absent = np.diff(frames) - 1
        gaps += [gap for gap in absent if gap >= 5]
        back = int(np.argmax(absent >= 5)) + 1 if (absent >= 5).any() else len(track)
        assert ["reentered" in row["flags"] for row in track] == [place >= back for place in range(len(track))]
    assert len(gaps) >= 10
    assert max(gaps) <= 15


def test_bursts_last_two_to_six_frames() -> None:
    lengths: list[int] = []
    for thing in (thing for index in range(20) for thing in make_scene("train", index).objects):
        starts = np.flatnonzero(np.diff(thing.burst, prepend=0, append=0))
        runs = [(a, b) for a, b in pairwise(starts) if thing.burst[a] and b < len(thing.burst)]
        lengths += [int(b - a) for a, b in runs]
    assert set(lengths) == {2, 3, 4, 5, 6}


def test_motion_iou_is_the_mean_over_ten_frames_either_side(tracks: dict) -> None:
    for track in list(tracks.values())[::15]:
        for row in track[::6]:
            near = [o for o in track if 0 < abs(o["frame_index"] - row["frame_index"]) <= 10]
            assert row["motion_iou"] == pytest.approx(iou([box(row)], [box(o) for o in near]).mean(), abs=1e-4)
    alone = motion_iou(np.array([[0.0, 0, 5, 5], [0, 0, 5, 5]]), np.array([True, False]))
    assert np.isnan(alone).all()


def test_lookalikes_share_class_and_colour_and_others_do_not() -> None:
    for what in (make_scene("train", index) for index in range(30)):
        looks = [thing.look for thing in what.objects]
        assert len({look.label for look in looks}) == len(looks) - (sum(what.lookalike) == 2)
        if any(what.lookalike):
            one, other = (look for look, alike in zip(looks, what.lookalike, strict=True) if alike)
            assert np.abs(np.subtract(one.ground, other.ground)).max() <= 14


# Pixels


@settings(max_examples=60, deadline=None)
@given(
    silhouette=st.sampled_from(shapes.SILHOUETTES),
    half=st.tuples(st.floats(6, 25), st.floats(6, 25)),
    angle=st.floats(-math.pi, math.pi),
    scale=st.floats(0.8, 1.3),
)
def test_box_and_area_are_those_of_the_outline(
    silhouette: str, half: tuple[float, float], angle: float, scale: float
) -> None:
    look = shapes.Look(label=0, silhouette=silhouette, half=half, ground=(0, 0, 0))
    center, turn, grown = np.array([[3.25, -4.5]]), np.array([angle]), np.array([scale])
    x, y = np.meshgrid(np.arange(-60, 60, 0.2), np.arange(-60, 60, 0.2))
    cosine, sine = math.cos(angle), math.sin(angle)
    right, down = x - center[0, 0], y - center[0, 1]
    inside = shapes.distance(look, (cosine * right + sine * down) / scale, (cosine * down - sine * right) / scale) <= 0
    measured = [x[inside].min(), y[inside].min(), x[inside].max(), y[inside].max()]
    assert shapes.boxes(look, center, grown, turn)[0] == pytest.approx(measured, abs=0.75)  # thin tips fall between
    assert look.area * scale**2 == pytest.approx(inside.sum() * 0.04, rel=0.02)


def test_boxes_are_tight_around_what_is_drawn() -> None:
    errors = []
    for index in range(6):
        what = make_scene("val", index)
        boxes = clip([thing.boxes() for thing in what.objects], SIZE)
        for time, picture in enumerate(draw.pictures(what, clean=True)):
            for number in np.flatnonzero(picture.visible > 0.995):
                y, x = np.nonzero(picture.top == number)
                drawn = [x.min(), y.min(), x.max() + 1, y.max() + 1]
                errors.append(np.abs(boxes[number, time] - drawn))
    assert len(errors) > 200
    assert np.mean(errors) < 0.4  # pixels
    assert np.max(errors) < 2.5  # a sharp tip covers less than half of its last pixels


def test_what_stands_before_an_object_leaves_its_box_but_takes_its_visibility() -> None:
    what = make_scene("val", 0)
    middle = np.full((what.num_frames, 2), 64.0)
    far, near = (
        replace(what.objects[0], center=middle, look=replace(what.objects[0].look, silhouette="rectangle", half=half))
        for half in ((12.0, 12.0), (12.0, 9.0))
    )
    covered = replace(what, objects=(far, near), partner=(-1, -1), lookalike=(False, False), occluders=())
    for picture in draw.pictures(covered, clean=True):
        assert picture.inside == pytest.approx([1, 1], abs=0.02)
        assert picture.visible == pytest.approx([0.25, 1], abs=0.03)
    rows = synthetic.truth_table(covered, list(draw.pictures(covered))).to_pylist()
    assert {(row["track_id"], row["ignore"]) for row in rows} == {(1, True), (2, False)}


def contrasts(kind: int) -> tuple[float, float]:
    """Grey levels between pattern and surface, and between an object and its surroundings, in bursts of one kind."""
    pattern, outline = [], []
    for index in range(3):
        what = make_scene("train", index)
        steady = np.full(what.num_frames, kind, np.int8)
        for thing in what.objects:
            alone = replace(
                what,
                objects=(replace(thing, burst=steady),),
                partner=(-1,),
                lookalike=(False,),
                occluders=(),
                distractors=(),
            )
            for time, picture in enumerate(draw.pictures(alone)):
                if time % 9 or picture.visible[0] < 0.99:
                    continue
                frame = picture.frame.astype(float)
                y, x = np.mgrid[:128, :160] + 0.5
                u, v = draw._own(thing, time, x, y)
                deep = shapes.distance(thing.look, u, v) < -3
                around = np.abs(shapes.distance(thing.look, u, v) - 5) < 2
                inked = shapes.ink(thing.look, u, v)
                on, off = frame[deep & (inked > 0.9)], frame[deep & (inked < 0.1)]
                if len(on) > 20 and len(off) > 20:
                    pattern.append(np.abs(on.mean(0) - off.mean(0)).mean())
                    outline.append(np.abs(frame[deep].mean(0) - frame[around].mean(0)).mean())
    return float(np.mean(pattern)), float(np.mean(outline))


def test_bursts_hide_the_pattern_but_not_the_silhouette() -> None:
    clean_pattern, clean_outline = contrasts(0)
    for kind, name in enumerate(BURSTS, start=1):
        pattern, outline = contrasts(kind)
        assert pattern < 0.12 * clean_pattern, name
        assert outline > 0.3 * clean_outline, name


@pytest.mark.parametrize("index", [0, 1, 2])
def test_flow_carries_each_clean_frame_to_the_next(listed: list[VideoInfo], index: int) -> None:
    what = make_scene("test", index)
    clean = list(draw.pictures(what, clean=True))
    fields = list(synthetic.flow(listed[index]))
    assert len(fields) == what.num_frames - 1
    x, y = np.meshgrid(np.arange(160, dtype=np.float32), np.arange(128, dtype=np.float32))
    warped_errors, still_errors = [], []
    for now, then, field in zip(clean, clean[1:], fields, strict=False):
        assert field.shape == (128, 160, 2)
        assert field.dtype == np.float32
        goal_x, goal_y = x + field[..., 0], y + field[..., 1]
        back = cv2.remap(then.frame.astype(np.float32), goal_x, goal_y, cv2.INTER_LINEAR)
        # Only what is still in front and well inside its own outline: elsewhere the next frame shows something else.
        owner = cv2.remap(then.top.astype(np.float32), goal_x, goal_y, cv2.INTER_NEAREST, borderValue=-9)
        edge = cv2.dilate(now.top, np.ones((3, 3))) != cv2.erode(now.top, np.ones((3, 3)))
        same = (owner == now.top) & ~edge & (now.top >= 0)
        warped_errors.append(np.abs(back - now.frame)[same].mean())
        still_errors.append(np.abs(then.frame.astype(np.float32) - now.frame)[same].mean())
        ground = (owner == now.top) & ~edge & (now.top < 0)
        assert np.median(np.abs(back - now.frame)[ground]) < 2
    assert np.nanmean(warped_errors) < 0.35 * np.nanmean(still_errors)
    assert np.nanmean(warped_errors) < 8  # bilinear sampling of sharp patterns; the background below 2


def test_flow_moves_box_centers_exactly() -> None:
    what = make_scene("test", 1)
    for time, field in enumerate(draw.flow(what)):
        for thing in what.objects:
            x, y = np.floor(thing.center[time]).astype(int)
            if not (0 <= x < 160 and 0 <= y < 128) or not _alone(what, time, thing):
                continue
            moved = thing.center[time + 1] - thing.center[time]
            assert field[y, x] == pytest.approx(moved, abs=0.05)  # the pixel's own centre turns and grows a little


def _alone(what: Scene, time: int, thing: object) -> bool:
    boxes = np.stack([other.boxes()[time] for other in (*what.objects, *what.occluders)])
    mine = next(place for place, other in enumerate(what.objects) if other is thing)
    return bool((np.delete(iou(boxes, boxes)[mine], mine) == 0).all())
