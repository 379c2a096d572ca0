"""Hannah: a tree of the documented shape, made on the spot; the film is of three frames."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from catalogs import hannah
from catalogs.hannah import CAST, FACES, TRACKS, Settings
from pipeline import video
from pipeline.records import ClipRef, Resize, VideoInfo
from pipeline.schemas import TRUTH

FACE_LINES = """\
Faces, frame by frame

frame\tx\ty\tw\th\ttrack
3\t0\t0\t0\t9\t2
1\t498\t280\t99.6\t56\t1
3\t-9\t0\t19\t56\t1
"""
TRACK_LINES = "Tracks\ntrack\tcharacter\tcomment\n1\t12\n2\t40\tback of the head\n"
CAST_LINES = "12\tHannah\tMia Farrow\n40\t\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The film at half the size of the annotated frames."""
    root = tmp_path / "hannah"
    (root / "annotations").mkdir(parents=True)
    for name, text in ((FACES, FACE_LINES), (TRACKS, TRACK_LINES), (CAST, CAST_LINES)):
        (root / "annotations" / name).write_text(text)
    with av.open(str(root / "film.mkv"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height = 498, 280
        for level in (0, 100, 200):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((280, 498, 3), level, np.uint8))))
        container.mux(stream.encode())
    return root


def only(source: Path) -> VideoInfo:
    (found,) = hannah.videos(str(source), Settings())
    return found


def test_the_film_is_listed(tree: Path) -> None:
    film = only(tree)
    assert (film.video_id, film.kind, film.uri) == ("hannah", "video", str(tree / "film.mkv"))
    assert (film.size, film.truth_uri) == ((280, 498), str(tree / "annotations" / FACES))
    (clip,) = video.decode([ClipRef(film)], Resize(), chunk_frames=8)
    assert (clip.error, clip.size, len(clip.frames)) == (None, film.size, 3)


def test_truth_is_in_pixels_of_the_film(tree: Path) -> None:
    table = hannah.truth(only(tree))
    assert table is not None
    assert table.schema == TRUTH
    columns = ["frame_index", "track_id", "class_name", "x1", "y1", "x2", "y2", "ignore", "flags"]
    assert [tuple(row.values()) for row in table.select(columns).to_pylist()] == [
        (0, 1, "face", 249, 140, pytest.approx(298.8), 168, False, ["Hannah"]),  # half of 498, 280, 597.6, 336
        (2, 1, "face", -4.5, 0, 5, 28, False, ["Hannah"]),
        (2, 2, "face", 0, 0, 0, 4.5, True, ["no_size"]),  # and a character without a name
    ]


def test_a_film_may_be_images(tree: Path) -> None:
    (tree / "film.mkv").unlink()
    (tree / "frames").mkdir()
    for frame in (1, 2, 10):
        assert cv2.imwrite(str(tree / "frames" / f"{frame}.png"), np.zeros((56, 249, 3), np.uint8))
    film = only(tree)
    assert (film.kind, film.uri, film.size, film.fps) == ("images", str(tree / "frames"), (56, 249), 25)
    table = hannah.truth(film)
    assert table is not None
    first = table.select(["x1", "y1", "x2", "y2"]).to_pylist()[0]
    assert list(first.values()) == pytest.approx([124.5, 28, 149.4, 33.6])  # each way by its own scale


def test_without_a_film_the_truth_is_as_annotated(tree: Path) -> None:
    (tree / "annotations" / CAST).unlink()  # names are not needed
    known = only(tree / "annotations")
    assert (known.kind, known.uri, known.size) == ("rows", "", None)
    table = hannah.truth(known)
    assert table is not None
    assert table["x1"].to_pylist() == [498, -9, 0]
    assert table["flags"].to_pylist() == [[], [], ["no_size"]]


def test_a_film_that_cannot_be_opened_is_the_run_s_to_report(tree: Path) -> None:
    (tree / "film.mkv").write_bytes(b"no film")
    film = only(tree)
    assert (film.kind, film.size) == ("video", None)
    (clip,) = video.decode([ClipRef(film)], Resize(), chunk_frames=8)
    assert clip.error is not None


def test_identity_changes_with_the_truth_and_the_film(tree: Path) -> None:
    before = only(tree).identity
    assert only(tree).identity == before
    (tree / "annotations" / TRACKS).write_text(TRACK_LINES + "\n")
    between = only(tree).identity
    (tree / "film.mkv").write_bytes(b"no film")
    assert len({before, between, only(tree).identity}) == 3


def test_the_style_of_its_boxes_is_said_once(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    hannah.warn_of_style.cache_clear()
    with caplog.at_level(logging.WARNING, "catalogs.hannah"):
        only(tree)
        only(tree)
    assert [record.getMessage().startswith("Hannah's face boxes are wider") for record in caplog.records] == [True]


def has_two(root: Path) -> None:
    (root / "part2.VOB").touch()


def has_both(root: Path) -> None:
    (root / "frames").mkdir()
    (root / "frames/1.jpg").touch()


def lacks_truth(root: Path) -> None:
    (root / "annotations" / FACES).rename(root / "faces.txt")


def is_a_file(root: Path) -> None:
    root.rename(root.parent / "gone")
    root.touch()


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "two films": (has_two, r"holds film\.mkv, part2\.VOB; the film must be one of them, whole"),
    "film and images": (has_both, r"holds film\.mkv, frames/; the film must be one of them"),
    "no truth": (lacks_truth, f"holds no truth of Hannah; looked for {FACES} in it and its folders"),
    "no folder": (is_a_file, f"is not a folder; the catalog hannah needs the one that holds the film and {FACES}"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_or_partial_tree_is_said(tree: Path, name: str) -> None:
    change, message = WRONG[name]
    change(tree)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        hannah.videos(str(tree), Settings())


BAD = {
    "empty": ("", "holds no face; a line is frame, left, top, width, height, track"),
    "description alone": ("Faces\nframe\tx\n", "holds no face"),
    "words among numbers": (FACE_LINES + "4\tx\t1\t1\t1\t1\n", ":7: not the six numbers of a face: 4\tx\t1"),
    "cut short": (FACE_LINES + "4\t1\t1", ":7: not the six numbers of a face: 4\t1\t1"),
    "frame 0": (FACE_LINES + "0\t1\t1\t1\t1\t1\n", r":7: frame and track \(columns 1 and 6\) must be .* from 1"),
    "half a track": (FACE_LINES + "4\t1\t1\t1\t1\t1.5\n", ":7: frame and track"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_truth_is_refused_by_line(tree: Path, name: str) -> None:
    text, message = BAD[name]
    (tree / "annotations" / FACES).write_text(text)
    with pytest.raises(ValueError, match=message):
        hannah.truth(only(tree))
