"""WIDER FACE: a tree of the published shape, made on the spot, with three images of different sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from catalogs import wider_face
from catalogs.wider_face import Settings
from pipeline import video
from pipeline.records import ClipRef, Resize
from pipeline.schemas import TRUTH

TEXT = """\
0--Parade/0_Parade_marchingband_1_849.jpg
4
10 20 30 40 0 0 0 0 0 0 \n\
5 6 7 8 2 1 1 0 2 1 \n\
1 1 9 9 1 0 0 1 1 0 \n\
50 60 0 12 2 0 0 0 0 0 \n\
0--Parade/0_Parade_Parade_0_452.jpg
0
0 0 0 0 0 0 0 0 0 0 \n\
29--Students_Schoolkids/29_Students_Schoolkids_Students_Schoolkids_29_2.jpg
1
3 4 5 6 0 0 0 0 0 0 \n\
"""
IMAGES = {  # by the order of their ids: name -> (height, width)
    "0--Parade/0_Parade_Parade_0_452": (20, 30),
    "0--Parade/0_Parade_marchingband_1_849": (120, 64),
    "29--Students_Schoolkids/29_Students_Schoolkids_Students_Schoolkids_29_2": (33, 17),
}
FACES = "wider_face_split/wider_face_val_bbx_gt.txt"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    wider_face.read_faces.cache_clear()  # it goes by path, and tests write other texts to the same
    split = tmp_path / "wider_face_split"
    split.mkdir()
    (tmp_path / FACES).write_text(TEXT)
    (split / "wider_face_test_filelist.txt").write_text("0--Parade/0_Parade_marchingband_1_9.jpg\n")
    for name, size in IMAGES.items():
        image(tmp_path / "WIDER_val/images" / f"{name}.jpg", size)
    image(tmp_path / "WIDER_test/images/0--Parade/0_Parade_marchingband_1_9.jpg", (8, 8))
    return tmp_path


def image(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((*size, 3), 90, np.uint8))


def test_each_image_is_a_video_of_one_frame(tree: Path) -> None:
    found = wider_face.videos(str(tree), Settings())
    assert [each.video_id for each in found] == list(IMAGES)
    for each, size in zip(found, IMAGES.values(), strict=True):
        (clip,) = video.decode([ClipRef(each)], Resize(), chunk_frames=8)
        assert (clip.error, clip.size, clip.frames.shape) == (None, size, (1, 3, *size))


def test_faces_are_read(tree: Path) -> None:
    none, four, one = (wider_face.truth(each) for each in wider_face.videos(str(tree), Settings()))
    assert none is not None
    assert four is not None
    assert one is not None
    assert none.schema == four.schema == TRUTH
    assert len(none) == 0  # the line of zeros is no face
    corners = [[row[name] for name in ("x1", "y1", "x2", "y2")] for row in four.to_pylist()]
    assert corners == [[10, 20, 40, 60], [5, 6, 12, 14], [1, 1, 10, 10], [50, 60, 50, 72]]
    assert four["ignore"].to_pylist() == [False, False, True, True]
    assert four["flags"].to_pylist() == [
        [],
        ["blur_heavy", "expression_exaggerated", "illumination_extreme", "occlusion_heavy", "pose_atypical"],
        ["distractor", "blur_normal", "invalid", "occlusion_partial"],
        ["blur_heavy", "no_size"],
    ]
    (row,) = one.select(["frame_index", "track_id", "class_id", "class_name", "x2", "y2"]).to_pylist()
    assert tuple(row.values()) == (0, None, 0, "face", 8, 10)


def test_test_has_no_truth(tree: Path) -> None:
    (only,) = wider_face.videos(str(tree), Settings(split="test"))
    assert (only.video_id, only.kind) == ("0--Parade/0_Parade_marchingband_1_9", "image")
    assert (only.truth_uri, wider_face.truth(only)) == (None, None)


def test_without_images_the_truth_is_there(tree: Path) -> None:
    (tree / "WIDER_val").rename(tree / "elsewhere")
    found = wider_face.videos(str(tree), Settings())
    assert {(each.kind, each.uri) for each in found} == {("rows", "")}
    table = wider_face.truth(found[1])
    assert table is not None
    assert len(table) == 4


def test_identity_changes_with_an_image_and_with_the_truth(tree: Path) -> None:
    def identities() -> list[str]:
        return [each.identity for each in wider_face.videos(str(tree), Settings())]

    before = identities()
    image(tree / "WIDER_val/images" / f"{list(IMAGES)[1]}.jpg", (50, 50))
    assert [one == other for one, other in zip(before, identities(), strict=True)] == [True, False, True]
    (tree / FACES).write_text(TEXT + "\n")
    assert not set(before) & set(identities())


def test_a_wrong_or_partial_tree_is_said(tree: Path) -> None:
    def refused(message: str, source: Path | None = tree, **settings: Any) -> None:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            wider_face.videos(str(source) if source else None, replace(Settings(), **settings))

    refused("needs a folder", source=None)
    refused(f"holds no WIDER FACE of split val; looked for {FACES}", source=tree / "WIDER_val")
    refused("holds no WIDER FACE of split train", split="train")
    refused("wider_face.split is 'vla'; it must be one of: train, val, test", split="vla")
    (tree / "WIDER_val/images" / f"{list(IMAGES)[2]}.jpg").unlink()
    refused(f"lacks 1 of the 3 images of {FACES}, the first of them 29--Students.*; the split must be whole")
    (tree / "WIDER_test").rename(tree / "WIDER_val_2")
    refused("lacks 1 of the 1 images", split="test")


NAME = "0--Parade/a.jpg"
BAD = {
    "empty": ("\n", "is empty"),
    "no image": ("7\n", ":1: '7' where the file of an image"),
    "no number": (f"{NAME}\n1 2 3 4 0 0 0 0 0 0\n", f":2: '1 2 3 4 0 0 0 0 0 0' where the number of faces of {NAME}"),
    "cut short": (f"{NAME}\n2\n1 2 3 4 0 0 0 0 0 0\n", f"ends after 1 of the 2 faces of {NAME}"),
    "cut in a line": (f"{NAME}\n1\n1 2 3 4 0 0", ":3: not the 10 whole numbers of a face: 1 2 3 4 0 0"),
    "too few faces": (f"{NAME}\n2\n1 2 3 4 0 0 0 0 0 0\n{NAME}\n1\n", ":4: not the 10 whole numbers of a face"),
    "no such mark": (f"{NAME}\n1\n1 2 3 4 0 0 0 2 0 0\n", ":3: column 8 is 2; it must be 0 to 1"),
    "twice": (f"{NAME}\n0\n0 0 0 0 0 0 0 0 0 0\n{NAME}\n0\n0 0 0 0 0 0 0 0 0 0\n", f":4: {NAME} is listed twice"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_truth_is_refused_by_line(tree: Path, name: str) -> None:
    text, message = BAD[name]
    (tree / FACES).write_text(text)
    with pytest.raises(ValueError, match=message):
        wider_face.videos(str(tree), Settings())
