"""What a training is told of its frames: classes, ranges, stills, and what teaches nothing."""

from __future__ import annotations

import pickle
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.records import VideoInfo
from pipeline.schemas import TRUTH
from pipeline.training import labelled as module
from pipeline.training.labelled import Labelled, labelled, material_of
from pipeline.training.settings import Training

SAME = np.ones(4, np.float32)
Rows = dict[str, list[dict[str, Any]]]  # of TRUTH, by video


def truth(rows: list[dict[str, Any]]) -> pa.Table:
    plain = {"video_id": "v", "frame_index": 0, "track_id": 1, "class_name": "a", "ignore": False}
    box = {"x1": 2.0, "y1": 4.0, "x2": 20.0, "y2": 30.0}
    return pa.Table.from_pylist([plain | box | row for row in rows], TRUTH)


@dataclass(frozen=True)
class Settings:
    classes: tuple[str, ...] = ()
    split: str = "train"


def listed(patch: pytest.MonkeyPatch, classes: tuple[str, ...] = (), **catalogs: Rows) -> None:
    """Makes catalogs of these names and rows, whatever they are asked."""

    def load(kind: str, name: str) -> types.SimpleNamespace:
        assert kind == "catalog"
        rows = catalogs[name]
        return types.SimpleNamespace(
            Settings=Settings,
            CLASSES=classes,
            videos=lambda source, settings: [VideoInfo(video, f"{video}.mp4", name) for video in rows],
            truth=lambda video: truth(rows[video.video_id]),
        )

    patch.setattr(module, "load", load)


@pytest.fixture
def catalog(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`listed`, for the time of a test."""
    return partial(listed, monkeypatch)


def ignored(found: Labelled, video: int = 0, frame: int = 0) -> list[bool]:
    ignore: list[bool] = found.truth.target(video, frame, SAME)["ignore"].tolist()
    return ignore


def test_targets_are_the_truth_in_the_networks_pixels(catalog: Callable[..., None]) -> None:
    rows = [{"class_name": "b", "track_id": 4}, {"ignore": True, "track_id": None}, {"class_name": "unheard of"}]
    catalog(("a", "b"), some={"v": rows})
    found = labelled("some", "", {})
    target = found.truth.target(0, 0, np.array([0.5, 2, 0.5, 2], np.float32))
    assert target["boxes"].tolist() == [[1, 8, 10, 60]] * 3
    assert target["labels"].tolist() == [1, 0, 0]
    assert target["track_ids"].tolist() == [4, -1, 1]
    assert target["ignore"].tolist() == [False, True, True]
    assert {name: str(value.dtype) for name, value in target.items()} == {
        "boxes": "torch.float32", "labels": "torch.int64", "track_ids": "torch.int64", "ignore": "torch.bool",
    }  # fmt: skip
    nothing = found.truth.target(0, 1, SAME)
    assert nothing["boxes"].shape == (0, 4)
    assert len(nothing["labels"]) == len(nothing["ignore"]) == 0
    assert found.boxes == {"a": 0, "b": 1}


def test_a_target_is_its_callers_own(catalog: Callable[..., None]) -> None:
    catalog(some={"v": [{}]})
    found = labelled("some", "", {})
    before = {name: value.clone() for name, value in found.truth.target(0, 0, SAME).items()}
    for value in found.truth.target(0, 0, SAME).values():
        value.fill_(1)
    assert all(value.equal(before[name]) for name, value in found.truth.target(0, 0, SAME).items())


def test_boxes_of_no_size_and_rows_of_no_class_are_not_learned(catalog: Callable[..., None]) -> None:
    catalog(some={"v": [{}, {"x1": 20.0}, {"class_name": None}, {"y2": 3.0}]})
    assert ignored(labelled("some", "", {})) == [False, True, True, True]


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4), st.sampled_from("abc")), min_size=1, max_size=30),
    start=st.integers(0, 3),
    length=st.integers(1, 5),
)
def test_each_frame_gets_its_rows_whatever_their_order(
    rows: list[tuple[int, int, str]], start: int, length: int
) -> None:
    """rows: (video, frame, class); of each video the frames [start, start + length)."""
    tables: Rows = {f"v{video}": [] for video in range(4)}
    for number, (video, frame, name) in enumerate(rows):
        tables[f"v{video}"].append({"frame_index": frame, "class_name": name, "track_id": number})
    with pytest.MonkeyPatch.context() as patch:
        listed(patch, some=tables)
        wanted = range(start, start + length)
        if not any(frame in wanted for _, frame, _ in rows):
            with pytest.raises(ValueError, match="holds no labelled box"):
                labelled("some", "", {}, f"{start}:{start + length}")
            return
        found = labelled("some", "", {}, f"{start}:{start + length}")
    assert found.classes == tuple(sorted({name for _, _, name in rows})), "a range does not change the classes"
    for video in range(4):
        for frame in range(6):
            target = found.truth.target(video, frame, SAME)
            expected = [
                (number, name)
                for number, (its_video, its_frame, name) in enumerate(rows)
                if (its_video, its_frame) == (video, frame) and frame in wanted
            ]
            assert target["track_ids"].tolist() == [number for number, _ in expected]
            assert [found.classes[label] for label in target["labels"]] == [name for _, name in expected]


@pytest.mark.parametrize(
    ("own", "settings", "expected"),
    [
        pytest.param((), {}, ("a", "b"), id="of the truth, in alphabetical order"),
        pytest.param(("c", "b", "a"), {}, ("c", "b", "a"), id="the catalog's"),
        pytest.param(("c", "b"), {"classes": "b,a"}, ("b", "a"), id="of its settings"),
    ],
)
def test_where_classes_come_from(
    catalog: Callable[..., None], own: tuple[str, ...], settings: dict[str, Any], expected: tuple[str, ...]
) -> None:
    catalog(own, some={"v": [{"class_name": "b"}], "w": [{"class_name": "a"}]})
    found = labelled("some", "", settings)
    assert found.classes == expected
    assert [found.truth.target(video, 0, SAME)["labels"].item() for video in (0, 1)] == [
        expected.index("b"),
        expected.index("a"),
    ]


def test_stills_are_of_the_videos_classes_and_their_objects_stay(catalog: Callable[..., None]) -> None:
    """D&T, section 5.2: objects of a still are each one, whatever ids it has; other classes teach nothing."""
    catalog(
        film={"v": [{"class_name": "b"}, {"class_name": "a"}]},
        photos={
            "p": [{"class_name": "c", "track_id": None}, {"class_name": "b", "track_id": None}],
            "q": [],
            "r": [{"track_id": 7}, {"frame_index": 1}, {"track_id": 7}],
        },
    )
    found = material_of(Training(catalog="film", stills={"catalog": "photos"}))
    assert found.stills is not None
    assert found.sources == [found.videos, found.stills]
    assert found.stills.classes == found.videos.classes == ("a", "b")
    assert ignored(found.stills) == [True, False]
    assert found.stills.truth.target(0, 0, SAME)["labels"].tolist() == [0, 1]
    ids = [found.stills.truth.target(*at, SAME)["track_ids"].tolist() for at in ((0, 0), (1, 0), (2, 0), (2, 1))]
    assert ids == [[1, 2], [], [1, 2], [1]]


def test_stills_come_from_the_trainings_source_or_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def note(*given: Any, **more: Any) -> Labelled:
        asked.append((given, more))
        return Labelled([], None, ("a",))  # type: ignore[arg-type]

    monkeypatch.setattr(module, "labelled", note)
    for source in ({}, {"source": "there"}):
        stills = {"catalog": "photos", "share": 0.3, "split": "val", **source}
        material_of(Training(catalog="film", source="here", frames=":9", catalog_settings={"x": 1}, stills=stills))
    film: Any = (("film", "here", {"x": 1}, ":9"), {})
    here, there = ((("photos", place, {"split": "val"}), {"stills_of": ("a",)}) for place in ("here", "there"))
    assert asked == [film, here, film, there]


def test_nothing_to_learn_is_said(catalog: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    catalog(empty={}, some={"v": [{}]}, ignored={"v": [{"ignore": True}]}, blank={"v": []})
    for name, settings, message in (
        ("empty", {}, "catalog empty found no video in 'here' to train on"),
        ("ignored", {}, "catalog ignored holds no labelled box to train on"),
        ("blank", {}, "catalog blank holds no labelled box to train on"),
        ("some", {"classes": "x,y"}, "some holds no labelled box of the classes x, y to train on; those of .* are a"),
        ("some", {"clases": "x"}, "catalog some has no setting 'clases'"),
    ):
        with pytest.raises(ValueError, match=message):
            labelled(name, "here", settings)
    with pytest.raises(ValueError, match="holds no labelled box of the classes a to train on in frames 1:"):
        labelled("some", "", {}, "1:")
    monkeypatch.setattr(module, "limited", lambda *_: [VideoInfo("v", "", "some", "rows")])
    with pytest.raises(ValueError, match="video v of catalog some has no frames to train on, only rows"):
        labelled("some", "", {})


def test_truth_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from catalogs import synthetic

    monkeypatch.setattr(synthetic, "truth", lambda video: None)
    with pytest.raises(ValueError, match="video train-0000 of catalog synthetic has no ground truth to train on"):
        labelled("synthetic", str(tmp_path), {"split": "train", "num_videos": 1})


def test_ignored_rows_name_no_class_to_learn(tmp_path: Path) -> None:
    """As MOT17's do, where only pedestrians are scored."""
    (tmp_path / "A" / "gt").mkdir(parents=True)
    (tmp_path / "A" / "img1").mkdir()
    (tmp_path / "A" / "img1" / "000001.jpg").touch()
    (tmp_path / "A" / "gt" / "gt.txt").write_text("1,1,0,0,9,9,1,1,1\n1,2,0,0,9,9,0,8,1\n")
    found = labelled("mot", str(tmp_path), {})
    assert found.classes == ("pedestrian",)
    assert ignored(found) == [False, True]


def test_many_videos_are_read_in_parts(catalog: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "READ_AT_ONCE", 2)
    catalog(some={f"v{number}": [{"class_name": "abcab"[number], "track_id": number}] for number in range(5)})
    found = labelled("some", "", {})
    targets = [found.truth.target(video, 0, SAME) for video in range(5)]
    assert [target["labels"].tolist() for target in targets] == [[0], [1], [2], [0], [1]]
    assert [target["track_ids"].tolist() for target in targets] == [[0], [1], [2], [3], [4]]
    assert found.boxes == {"a": 2, "b": 2, "c": 1}


def test_a_digest_is_of_the_videos_and_all_that_is_known(catalog: Callable[..., None]) -> None:
    catalog(("a",), some={"v": [{}], "w": [{}]})
    found = labelled("some", "", {})
    later = [replace(video, start=1) for video in found.videos]
    touched = [replace(video, identity="other") for video in found.videos]
    moved = replace(found.truth, boxes=found.truth.boxes + np.float32(1))
    others = [replace(found, videos=later), replace(found, videos=touched), replace(found, truth=moved)]
    names = {each.digest for each in (found, *others)}
    assert len(names) == 4
    assert replace(found, videos=list(found.videos)).digest in names


def test_what_is_digested_once_is_not_again_here_or_where_it_travels_to(
    catalog: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog(("a",), some={"v": [{}]})
    found = labelled("some", "", {})
    name = found.digest
    monkeypatch.setattr(module, "hashlib", None)
    assert found.digest == pickle.loads(pickle.dumps(found)).digest == name
