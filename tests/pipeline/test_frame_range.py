"""Ranges of frames: what texts mean, and that nothing outside a range is ever shown, owned or known."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.clips import Decode, Unit
from pipeline.frame_range import FrameRange, held, limited
from pipeline.planning import PlanVideo, units_of
from pipeline.recipe import Recipe
from pipeline.records import ClipRef, Resize, VideoInfo
from pipeline.video import VideoError, cut, decode, probe

COUNT = 12


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> VideoInfo:
    """An H.264 file of 12 frames, each of its own grey."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "4"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(COUNT):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 20 * index, np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return VideoInfo("film", str(path), "folder", identity="1")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> VideoInfo:
    folder = tmp_path_factory.mktemp("images")
    for index in range(COUNT):
        cv2.imwrite(f"{folder}/{index}.png", np.full((8, 8, 3), 20 * index, np.uint8))
    return VideoInfo("images", str(folder), "folder", "images", identity="1")


@pytest.mark.parametrize(
    ("text", "start", "stop", "plain"),
    [
        ("", 0, None, ""),
        (":", 0, None, ""),
        ("0:", 0, None, ""),
        ("0%:100%", 0, None, ""),
        ("600:750", 600, 750, "600:750"),
        (":600", 0, 600, ":600"),
        ("0:600", 0, 600, ":600"),
        (" 600 : ", 600, None, "600:"),
        ("80%:", Fraction(4, 5), None, "80%:"),
        (":80.0%", 0, Fraction(4, 5), ":80%"),
        ("12.5%:900", Fraction(1, 8), 900, "12.5%:900"),
    ],
)
def test_texts(text: str, start: object, stop: object, plain: str) -> None:
    found = FrameRange.parse(text)
    assert (found.start, found.stop) == (start, stop)
    assert str(found) == plain
    assert FrameRange.parse(plain) == found


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("600", "frames is '600'; it must be START:STOP"),
        ("1:2:3", "it must be START:STOP"),
        ("-5:", "'-5' is neither a frame nor 0% to 100%"),
        (":120%", "'120%' is neither"),
        ("1.5:", "'1.5' is neither"),
        ("half:", "'half' is neither"),
        ("5:5", "holds no frame; its stop must lie above its start"),
        ("9:3", "holds no frame"),
        ("80%:50%", "holds no frame"),
        (":0%", "holds no frame"),
        (":0", "holds no frame"),
        ("100%:", "holds no frame"),
    ],
)
def test_what_names_no_range_is_said(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        limited([], text)
    assert "\n" not in str(error.value)


@given(percent=st.decimals(0, 100, places=2), count=st.integers(1, 100_000))
def test_shares_meet_without_a_gap(percent: object, count: int) -> None:
    """What is trained on and what is held out are the whole video, and share no frame."""
    if 0 < Fraction(str(percent)) < 100:
        first, rest = FrameRange.parse(f":{percent}%").of(count), FrameRange.parse(f"{percent}%:").of(count)
        assert first == (0, rest[0])
        assert rest[1] is None


def test_shares_are_rounded_down_exactly() -> None:
    """29% of 100 is 29, though .29 * 100 is less in floating point."""
    assert FrameRange.parse("29%:57%").of(100) == (29, 57)
    assert FrameRange.parse(":50%").of(7) == (0, 3)


@pytest.mark.parametrize(
    ("text", "start", "stop"), [("3:7", 3, 7), (":80%", 0, 9), ("80%:", 9, None), ("25%:50%", 3, 6), ("9:900", 9, 900)]
)
@pytest.mark.parametrize("which", ["film", "images"])
def test_only_the_range_is_shown_and_all_of_it(
    which: str, text: str, start: int, stop: int | None, request: pytest.FixtureRequest
) -> None:
    whole: VideoInfo = request.getfixturevalue(which)
    (video,) = limited([whole], text)
    assert (video.start, video.stop) == (start, stop)
    assert video.identity == whole.identity
    wanted = list(range(start, min(stop or COUNT, COUNT)))
    every = next(decode([ClipRef(whole)], Resize(), COUNT)).frames
    for clip_frames in (None, 1, 4):
        (plan,) = PlanVideo(Recipe(clip_frames=clip_frames, overlap=2), (1, 1))(video)
        assert plan.header is not None
        assert plan.header.frames_declared == COUNT
        (unit,) = units_of(plan.clips, {video.video_id: plan}, Resize())
        owned = []
        for decoded in Decode(Resize(), 3)(unit):
            assert not isinstance(decoded, Unit)
            clip = decoded.clip
            assert clip.error is None
            assert video.holds(clip.frame_index).all()
            assert np.array_equal(clip.frames, every[clip.frame_index])
            assert clip.timestamp_s == pytest.approx(clip.frame_index / (25 if which == "film" else 30))
            owned += clip.frame_index[clip.ref.owns(clip.frame_index)].tolist()
        assert owned == wanted


@given(
    start=st.integers(0, 40), length=st.none() | st.integers(1, 40), frames=st.none() | st.integers(0, 60),
    clip_frames=st.none() | st.integers(1, 15), before=st.integers(0, 5), after=st.integers(0, 5),
)  # fmt: skip
def test_clips_of_any_range_partition_it_and_show_nothing_else(
    start: int, length: int | None, frames: int | None, clip_frames: int | None, before: int, after: int
) -> None:
    """Whatever the header promised, of a file of 60 frames."""
    video = VideoInfo("v", "v.mp4", "folder", start=start, stop=None if length is None else start + length)
    all_frames = np.arange(60)
    owned, shown = [], set()
    for ref in cut(video, frames, clip_frames, before, after):
        owned += all_frames[ref.owns(all_frames)].tolist()
        shown |= set(all_frames[ref.first_shown : ref.end_shown].tolist())
    assert owned == all_frames[video.holds(all_frames)].tolist() == sorted(shown)


def test_a_range_beyond_the_end_is_said_where_the_video_is_opened(film: VideoInfo, images: VideoInfo) -> None:
    for video in limited([film, images], f"{COUNT}:"):
        says = f"{video.uri} has 12 frames, and the range that is asked for begins after them"
        with pytest.raises(VideoError, match=says):
            probe(video)
        (clip,) = decode([ClipRef(video)], Resize(), 4)
        assert clip.error == says
        assert not len(clip.frames)


def test_shares_of_what_cannot_be_counted(film: VideoInfo, images: VideoInfo, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'10%:12%', which holds none of the 12 frames of film: \[1, 1\)"):
        limited([film], "10%:12%")
    rows = VideoInfo("seq", "", "mot", "rows")
    with pytest.raises(ValueError, match="'50%:', and of seq no frames are there to take a share of; give numbers"):
        limited([rows], "50%:")
    assert limited([rows], "3:5")[0].start == 3

    late = tmp_path / "late.mp4"  # a video that is not there yet when its share is taken
    good, bad = limited([film, VideoInfo("late", str(late), "folder")], ":50%")
    assert (good.start, good.stop) == (0, 6)
    (clip,) = decode([ClipRef(bad)], Resize(), 4)
    assert clip.error == f"{late} does not exist"
    late.write_bytes(Path(film.uri).read_bytes())
    (clip,) = decode([ClipRef(bad)], Resize(), 4)
    assert clip.error is not None
    assert not len(clip.frames), "what should be held out was shown"


def test_rows_of_other_frames_are_left_out(film: VideoInfo) -> None:
    table = pa.table({"frame_index": pa.array([0, 3, 3, 6, 7], pa.int32()), "row": [0, 1, 2, 3, 4]})
    (video,) = limited([film], "3:7")
    assert held(table, video)["row"].to_pylist() == [1, 2, 3]
    assert held(table, film) is table


def test_another_range_is_another_clip(film: VideoInfo) -> None:
    names = {ClipRef(video).clip_id for text in ("", "3:", ":7", "3:7") for video in limited([film], text)}
    assert len(names) == 4
