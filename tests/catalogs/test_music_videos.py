"""Music Videos: a tree of the published shape, made on the spot; the videos are of three frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from catalogs import music_videos
from catalogs.music_videos import TRUTHS, Settings
from pipeline import video
from pipeline.records import ClipRef, Resize
from pipeline.schemas import TRUTH

XML = """\
<?xml version = "1.0"?>
<Video fname="gt" start_frame="1" end_frame="3">
  <Trajectory obj_id="2" start_frame="1" end_frame="3">
\t\t<Frame frame_no="1" x="10" y="5" width="20" height="25" observation="1"></Frame>
\t\t<Frame frame_no="3" x="-2" y="0" width="8" height="9" observation="1"></Frame>
\t</Trajectory>
  <Trajectory obj_id="1" start_frame="3" end_frame="3">
\t\t<Frame frame_no="3" x="30" y="7" width="4.5" height="6"></Frame>
\t</Trajectory>
</Video>"""
FILES = ("Apink.mp4", "BrunoMars.mp4", "Darling.mp4", "GirlsAloud.mp4", "HelloBubble.mp4", "PussycatDolls.mp4",
         "T-ara.mov", "Westlife.mp4")  # fmt: skip


def write(path: Path) -> None:
    """Three frames of 64 x 48 pixels."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height = 64, 48
        for level in (0, 100, 200):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8))))
        container.mux(stream.encode())


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "music"
    for folder in ("videos", "ground_truth/GT"):
        (root / folder).mkdir(parents=True)
    for name in FILES:
        write(root / "videos" / name)
    for name in (*TRUTHS.values(), "bbt0101_5thFrame_gt.xml"):  # the sitcom's comes with them
        (root / "ground_truth/GT" / name).write_text(XML)
    return root


def test_the_eight_videos_are_listed(tree: Path) -> None:
    found = music_videos.videos(str(tree), Settings())
    assert [Path(each.uri).name for each in found] == list(FILES)
    dolls = found[5]
    assert (dolls.video_id, dolls.kind) == ("PussycatDolls", "video")
    assert dolls.truth_uri == str(tree / "ground_truth/GT/stickwitu_gt.xml")
    (clip,) = video.decode([ClipRef(dolls)], Resize(), chunk_frames=8)
    assert (clip.error, clip.frames.shape) == (None, (3, 3, 48, 64))
    some = music_videos.videos(str(tree), Settings(names=("T-ara", "Apink")))
    assert [each.video_id for each in some] == ["Apink", "T-ara"]


def test_truth_is_read(tree: Path) -> None:
    table = music_videos.truth(music_videos.videos(str(tree), Settings())[6])
    assert table is not None
    assert table.schema == TRUTH
    columns = ["video_id", "frame_index", "track_id", "class_name", "x1", "y1", "x2", "y2", "ignore", "flags"]
    assert [tuple(row.values()) for row in table.select(columns).to_pylist()] == [
        ("T-ara", 0, 2, "face", 10, 5, 30, 30, False, []),
        ("T-ara", 2, 1, "face", 30, 7, 34.5, 13, False, []),
        ("T-ara", 2, 2, "face", -2, 0, 6, 9, False, []),  # truth is not cut at the frame
    ]


def test_without_videos_the_truth_is_there(tree: Path) -> None:
    found = music_videos.videos(str(tree / "ground_truth"), Settings())
    assert [(each.video_id, each.kind, each.uri) for each in found] == [(name, "rows", "") for name in TRUTHS]
    assert music_videos.truth(found[0]) is not None


def test_identity_changes_with_the_truth_and_the_video(tree: Path) -> None:
    def identities() -> list[str]:
        return [each.identity for each in music_videos.videos(str(tree), Settings(names=("Apink", "Darling")))]

    before = identities()
    (tree / "ground_truth/GT/Apink_gt.xml").write_text(XML + "\n")
    between = identities()
    assert [one == other for one, other in zip(before, between, strict=True)] == [False, True]
    (tree / "videos/Darling.mp4").write_bytes(b"other")
    assert [one == other for one, other in zip(between, identities(), strict=True)] == [True, False]


def lacks_all(root: Path) -> None:
    (root / "ground_truth").rename(root.parent / "gone")


def lacks_truth(root: Path) -> None:
    (root / "ground_truth/GT/stickwitu_gt.xml").unlink()


def lacks_videos(root: Path) -> None:
    for name in ("Apink.mp4", "T-ara.mov"):
        (root / "videos" / name).unlink()


def has_two(root: Path) -> None:
    (root / "copy").mkdir()
    (root / "copy/t-ara.mp4").write_bytes(b"")


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "no truth": (lacks_all, "lacks the truth of Apink, BrunoMars, .*Westlife; looked for Apink_gt.xml, "),
    "truth of one": (lacks_truth, r"lacks the truth of PussycatDolls; looked for stickwitu_gt\.xml in it and below"),
    "videos": (lacks_videos, r"lacks the videos Apink, T-ara; looked for .* \(music_videos\.names takes fewer\)"),
    "two": (has_two, r"copy/t-ara\.mp4 and .*videos/T-ara\.mov are both of one music video"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_or_partial_tree_is_said(tree: Path, name: str) -> None:
    change, message = WRONG[name]
    change(tree)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        music_videos.videos(str(tree), Settings())


def test_wrong_settings_are_said(tree: Path) -> None:
    with pytest.raises(ValueError, match=r"music_videos\.names has 'Abba'; it must be some of: Apink"):
        Settings(names=("Apink", "Abba"))
    with pytest.raises(ValueError, match=r"music_videos\.names is empty"):
        Settings(names=())
    with pytest.raises(ValueError, match="needs a folder"):
        music_videos.videos(None, Settings())


BAD = {
    "cut short": (XML[:200], "is not whole XML"),
    "another XML": ("<annotation/>", "is no truth of the Music Videos"),
    "frame 0": (XML.replace('frame_no="1"', 'frame_no="0"'), "frame_no of a <Frame> is '0'; it must be .* from 1"),
    "no id": (XML.replace('obj_id="1"', ""), "obj_id of a <Trajectory> is ''"),
    "no width": (XML.replace('width="20"', ""), "a <Frame> needs x, y, width and height as numbers"),
    "twice": (XML.replace('obj_id="1"', 'obj_id="2"'), "has track 2 twice in frame 2"),
    "endless": (XML.replace('width="20"', 'width="inf"'), "a <Frame> needs x, y, width and height as numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_truth_is_refused_by_file(tmp_path: Path, name: str) -> None:
    text, message = BAD[name]
    path = tmp_path / "Apink_gt.xml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"Apink.*{message}"):
        music_videos.read_truth(str(path), "Apink")
