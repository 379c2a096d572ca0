"""Decoding: the right frames at the right times, the same however clips are cut, and a sentence where frames lack.

Real files are held to an independent PyAV decode here, at full size and without our readers.
"""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import cv2
import fsspec
import numpy as np
import pytest

from pipeline import decoders
from pipeline.records import Clip, ClipRef, Resize, VideoInfo
from pipeline.video import VideoError, cut, decode, kind_of, probe

AS_IT_IS = Resize()


def info(path: object, **more: object) -> VideoInfo:
    return VideoInfo("video", str(path), "folder", **more)  # type: ignore[arg-type]


def write(
    path: Path, codec: str = "libx264", count: int = 60, size: tuple[int, int] = (72, 96), **options: str
) -> Path:
    """A small video whose frame i is a grey that tells i: 3 i + 20, with a moving square."""
    container_options = {"movflags": options.pop("movflags")} if "movflags" in options else {}
    times = options.pop("times", "")
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=25, options={"g": "16", **options})
        stream.height, stream.width, stream.pix_fmt = *size, options.get("pix_fmt", "yuv420p")
        stream.bit_rate = 4_000_000
        stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(count):
            picture = np.full((*size, 3), 20 + 3 * i, np.uint8)
            picture[10:30, i : i + 20] = 255
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = 40 * i + (i * i if times else 0), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers(clip: Clip) -> list[int]:
    """Which frame each one is by its looks: the inverse of what `write` paints."""
    corner = clip.frames[:, :, -12:, :].astype(float).mean(axis=(1, 2, 3))
    return [round((grey - 20) / 3) for grey in corner]


def whole(video: VideoInfo, resize: Resize = AS_IT_IS) -> Clip:
    (clip,) = decode([ClipRef(video)], resize, 100_000)
    return clip


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("h264 with B-frames", "libx264", {"bf": "3"}),
        ("h264 with open groups", "libx264", {"bf": "3", "x264-params": "open-gop=1"}),
        ("h265 with open groups", "libx265", {"x265-params": "open-gop=1:bframes=3:keyint=16:log-level=none"}),
        ("mpeg4", "mpeg4", {"bf": "2"}),
        ("vp9", "libvpx-vp9", {"deadline": "realtime"}),
    ],
)
def test_a_clip_is_the_same_alone_and_after_its_neighbour(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    video = info(write(tmp_path / "a.mkv", codec, **options))
    refs = cut(video, 60, 13, before=2, after=3)
    together = list(decode(refs, AS_IT_IS, 5))
    assert [c.ref.start for c in together] == sorted(c.ref.start for c in together)
    for ref in refs:
        alone = list(decode([ref], AS_IT_IS, 5))
        beside = [clip for clip in together if clip.ref == ref]
        assert [len(clip.frames) for clip in alone] == [len(clip.frames) for clip in beside]
        for one, other in zip(alone, beside, strict=True):
            np.testing.assert_array_equal(one.frames, other.frames)
            np.testing.assert_array_equal(one.frame_index, other.frame_index)
            np.testing.assert_array_equal(one.timestamp_s, other.timestamp_s)
            assert numbers(one) == one.frame_index.tolist()
        shown = np.concatenate([clip.frame_index for clip in alone])
        np.testing.assert_array_equal(shown, np.arange(ref.first_shown, min(ref.end_shown or 60, 60)))
    assert not any(clip.error for clip in together)


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".mkv", ".mov", ".ts"])
def test_containers(tmp_path: Path, suffix: str) -> None:
    video = info(write(tmp_path / f"a{suffix}", "mpeg4", bf="2"))
    clip = whole(video)
    assert numbers(clip) == clip.frame_index.tolist() == list(range(60))
    assert clip.error is None
    steps = np.diff(clip.timestamp_s)
    np.testing.assert_allclose(steps, 0.04, atol=0.0011)
    (late,) = decode([ClipRef(video, 41, 44)], AS_IT_IS, 10)
    assert numbers(late) == late.frame_index.tolist() == [41, 42, 43]


def test_uneven_times_are_the_containers(tmp_path: Path) -> None:
    video = info(write(tmp_path / "a.mkv", times="uneven", bf="2"))
    np.testing.assert_allclose(whole(video).timestamp_s, [(40 * i + i * i) / 1000 for i in range(60)], atol=1e-9)


@pytest.mark.parametrize("size", [(50, 64), (144, 200), (33, 97)])
def test_both_decoders_give_the_same_pixels(tmp_path: Path, size: tuple[int, int]) -> None:
    path = str(write(tmp_path / "a.mp4", bf="2"))
    header, index = decoders.read_header(path, path), decoders.read_index(path, path)
    ours = decoders.AvReader(path, header, index, size, 1)
    theirs = decoders.reader(path, header, index, size, 1)
    assert isinstance(theirs, decoders.DecordReader)
    for (i, one), (j, other) in zip(ours.frames(0, None), theirs.frames(0, None), strict=True):
        assert i == j
        np.testing.assert_array_equal(one, other)


def test_a_long_video_is_not_given_to_decord(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write(tmp_path / "a.mp4", bf="2"))
    header, index = decoders.read_header(path, path), decoders.read_index(path, path)
    at_once = whole(info(path))
    monkeypatch.setattr(decoders, "READ_AHEAD_BYTES", 59 * 72 * 96 * 3)
    assert isinstance(decoders.reader(path, header, index, (72, 96), 1), decoders.AvReader)
    np.testing.assert_array_equal(whole(info(path)).frames, at_once.frames)


@pytest.mark.parametrize(
    ("frames", "clip_frames", "starts"),
    [(10, None, [0]), (None, 4, [0]), (10, 4, [0, 4, 8]), (8, 4, [0, 4]), (3, 4, [0]), (0, 4, [0])],
)
def test_cut_partitions(frames: int | None, clip_frames: int | None, starts: list[int]) -> None:
    refs = cut(info("a.mp4"), frames, clip_frames, before=1, after=2)
    assert [ref.start for ref in refs] == starts
    assert [ref.stop for ref in refs] == [*starts[1:], None]
    assert {(ref.before, ref.after) for ref in refs} == {(1, 2)}


def test_a_file_cut_short_gives_what_it_holds(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", movflags="faststart")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert probe(info(path)).frames_declared == 60
    clips = list(decode(cut(info(path), 60, 10, 0, 0), AS_IT_IS, 100))
    held = sum(len(clip.frames) for clip in clips)
    assert 20 < held < 50
    for clip in clips:
        assert numbers(clip) == clip.frame_index.tolist()
        complete = clip.frame_index.tolist() == list(range(clip.ref.start, clip.ref.start + 10))
        assert (clip.error is None) == complete
    assert f"frame {held}" in " ".join(str(clip.error) for clip in clips)
    assert [alone.error for clip in clips for alone in decode([clip.ref], AS_IT_IS, 100)] == [c.error for c in clips]


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "does not exist"), (b"", "is empty"), (b"hello, world" * 99, "cannot be read as a video")],
)
def test_what_is_no_video_is_said(tmp_path: Path, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / "a.mp4").write_bytes(content)
    video = info(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match=says):
        probe(video)
    clips = list(decode(cut(video, 40, 20, 0, 0), Resize(short_side=50), 8))
    assert [(clip.frames.shape, says in str(clip.error)) for clip in clips] == [((0, 3, 0, 0), True)] * 2


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.raises(VideoError, match="has no video stream, only: audio"):
        probe(info(tmp_path / "a.wav"))


def test_remote_is_as_local(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4")
    fsspec.filesystem("memory").pipe_file("/videos/a.mp4", path.read_bytes())
    video = info("memory://videos/a.mp4")
    assert probe(video) == probe(info(path))
    np.testing.assert_array_equal(whole(video).frames, whole(info(path)).frames)


def test_a_folder_of_images(tmp_path: Path) -> None:
    for i in range(12):
        cv2.imwrite(str(tmp_path / f"frame{i}.png"), np.full((40, 60, 3), (0, 0, 20 * i), np.uint8))  # BGR: red
    (tmp_path / "frame5.png").write_bytes(b"no image")
    video = info(tmp_path, kind="images", fps=10.0)
    facts = probe(video)
    assert (facts.size, facts.frames_declared, facts.fps, facts.duration_s) == ((40, 60), 12, 10.0, 1.2)
    clips = list(decode(cut(video, 12, 4, 0, 0), Resize(size=(20, 30)), 4))
    assert [clip.frame_index.tolist() for clip in clips] == [[0, 1, 2, 3], [4, 6, 7], [8, 9, 10, 11]]
    assert [clip.error is None for clip in clips] == [True, False, True]
    assert "frame 5 could not be decoded" in str(clips[1].error)
    for clip in clips:
        assert clip.frames.shape[1:] == (3, 20, 30)
        np.testing.assert_array_equal(clip.frames[:, 0, 0, 0], 20 * clip.frame_index)
        assert not clip.frames[:, 1:].any()
        np.testing.assert_allclose(clip.timestamp_s, clip.frame_index / 10)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_single_image_is_a_video_of_one_frame(tmp_path: Path, suffix: str) -> None:
    cv2.imwrite(str(tmp_path / f"one{suffix}"), np.full((40, 60, 3), (0, 0, 200), np.uint8))  # BGR: red
    cv2.imwrite(str(tmp_path / f"two{suffix}"), np.zeros((8, 8, 3), np.uint8))  # beside it, of another size
    video = info(tmp_path / f"one{suffix}", kind="image")
    facts = probe(video)
    assert (facts.size, facts.frames_declared, facts.is_vfr) == ((40, 60), 1, False)
    assert facts.codec == {".png": "png", ".jpg": "jpeg"}[suffix]
    assert facts.bytes == (tmp_path / f"one{suffix}").stat().st_size
    (ref,) = cut(video, facts.frames_declared, 4, 1, 1)
    (clip,) = decode([ref], Resize(size=(20, 30)), 4)
    assert (clip.error, clip.size, clip.frames.shape) == (None, (40, 60), (1, 3, 20, 30))
    assert (clip.frame_index.tolist(), clip.timestamp_s.tolist()) == ([0], [0.0])
    assert abs(clip.frames.mean(axis=(0, 2, 3)) - (200, 0, 0)).max() < 3
    assert [kind_of(uri) for uri in (video.uri, str(tmp_path), "memory://a.mp4")] == ["image", "images", "video"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.jpg", None, "none.jpg does not exist"),
        ("cut.jpg", b"", "cut.jpg is not a readable image"),
        ("text.png", b"no image", "text.png is not a readable image"),
    ],
)
def test_a_single_image_that_cannot_be_read_is_a_video_in_error(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    video = info(tmp_path / name, kind="image")
    with pytest.raises(VideoError, match=said):
        probe(video)
    (clip,) = decode([ClipRef(video)], AS_IT_IS, 4)
    assert said in str(clip.error)
    assert len(clip.frames) == 0


def test_what_has_rows_alone_has_no_frames() -> None:
    video = VideoInfo("walk", "", "coco", kind="rows")
    said = "walk has no frames to look at: its catalog, coco, found none of them"
    with pytest.raises(VideoError, match=said):
        probe(video)
    assert whole(video).error == said


# What each odd file gives: frames, rotation, and a part of the sentence where something is wrong.
OUTCOMES: dict[str, tuple[int, int, str | None]] = {
    "bgslibrary_demo.avi": (51, 0, None),
    "bgslibrary_video02.avi": (748, 0, None),  # two packets of packed B-frames hold no frame
    "datumaro_video.avi": (8, 0, None),
    "decord_corrupted.mp4": (49, 0, "frame 30 could not be decoded: invalid data"),
    "decord_flipping_a_pancake.mkv": (310, 0, None),
    "decord_unordered.mov": (4, 0, None),
    "decord_video_0.mov": (3, 0, None),
    "decord_video_180.mov": (3, 180, None),
    "decord_video_270.mov": (3, 90, None),
    "decord_video_90.mov": (3, 270, None),
    "learning-area_rabbit320.webm": (234, 0, None),
    "mmaction2_test.avi": (164, 0, None),
    "mmcv_test.mp4": (168, 0, None),
    "moviepy_bitmap.mp4": (5, 0, None),
    "moviepy_transparent.webm": (150, 0, None),
    "moviepy_video_with_failing_audio.mp4": (280, 0, None),
    "torchcodec_av1_video.mkv": (125, 0, None),
    "torchcodec_h265_10bits.mp4": (30, 0, None),
    "torchcodec_h265_video.mp4": (10, 0, None),
    "torchcodec_var_fps_video.mp4": (300, 0, None),
    "truncated_moov.mp4": (0, 0, "is cut short"),
    "zero_byte.webm": (0, 0, "is empty"),
}


def by_pyav(path: Path) -> list[tuple[float, np.ndarray]]:
    """Times and frames, as coded (not turned)."""
    frames = []
    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1  # what is painted over damage depends on it
        for packet in container.demux(video=0):
            try:
                frames += [(f.time, f.to_ndarray(format="rgb24")) for f in packet.decode()]
            except av.InvalidDataError:
                continue
    return frames


@pytest.mark.data
@pytest.mark.parametrize("name", OUTCOMES)
def test_odd_files(data: Path, name: str) -> None:
    count, rotation, wrong = OUTCOMES[name]
    path = data / "decode" / name
    clip = whole(info(path))
    assert len(clip.frames) == count
    assert (wrong is None) == (clip.error is None)
    assert (wrong or "") in (clip.error or "")
    if not count:
        return
    facts = probe(info(path))
    assert (facts.rotation, facts.size, facts.is_vfr) == (rotation, clip.size, "var_fps" in name)
    expected = by_pyav(path)
    assert len(expected) == count
    turned = np.stack([np.rot90(frame, rotation // 90) for _, frame in expected])
    if "10bits" in name:  # with more than 8 bits a sample FFmpeg's two ways to RGB round differently
        assert np.abs(clip.frames.astype(int) - turned.transpose(0, 3, 1, 2)).mean() < 4
    else:
        assert np.array_equal(clip.frames, turned.transpose(0, 3, 1, 2))
    if name not in ("bgslibrary_video02.avi", "mmaction2_test.avi"):  # those times FFmpeg makes up
        np.testing.assert_allclose(clip.timestamp_s, [time for time, _ in expected], atol=1e-9)
    start = count * 2 // 3
    (late,) = decode([ClipRef(info(path), start, start + 2)], AS_IT_IS, 10)
    where = np.searchsorted(clip.frame_index, late.frame_index)
    assert late.frame_index.tolist() == list(range(start, min(start + 2, int(clip.frame_index[-1]) + 1)))
    assert np.array_equal(late.frames, clip.frames[where])


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "count"),
    [("car-detection.mp4", 377), ("night_street_8_frames.mp4", 8), ("road_traffic.mp4", 905),
     ("street_1080p.mp4", 302), ("walking_crowd.mp4", 341)],
)  # fmt: skip
def test_natural_videos(data: Path, name: str, count: int) -> None:
    video = info(data / "videos" / name)
    assert probe(video).frames_declared == count
    shown = range(min(40, count - 8), min(40, count - 8) + 8)
    (clip,) = decode([ClipRef(video, shown.start, shown.stop)], AS_IT_IS, 8)
    assert clip.frame_index.tolist() == list(shown)
    with av.open(video.uri) as container:
        for i, frame in zip(range(shown.stop), container.decode(video=0), strict=False):
            if i in shown:
                picture = clip.frames[i - shown.start].transpose(1, 2, 0)
                np.testing.assert_array_equal(picture, frame.to_ndarray(format="rgb24"))


@pytest.mark.data
def test_frame_i_is_line_i_of_the_truth(data: Path) -> None:
    """VOT2015 bag: what lies in box i of frame i moves to frame i + 1 as the box does, and at no other lag."""
    folder = data / "sequences" / "vot15_bag"
    corners = np.loadtxt(folder / "groundtruth.txt", delimiter=",").reshape(-1, 4, 2)  # (196, 4, xy)
    clip = whole(info(folder / "bag.avi"))
    assert len(clip.frames) == len(corners) == 196
    greys = clip.frames.mean(axis=1).astype(np.uint8)
    low = np.maximum(np.floor(corners.min(axis=1)), 0).astype(int)
    high = np.ceil(corners.max(axis=1)).astype(int)
    seen = []
    for i in range(195):
        (x1, y1), (x2, y2) = low[i], high[i]
        left, top = max(0, x1 - 24), max(0, y1 - 24)
        match = cv2.matchTemplate(
            greys[i + 1, top : y2 + 24, left : x2 + 24], greys[i, y1:y2, x1:x2], cv2.TM_CCOEFF_NORMED
        )
        best_y, best_x = np.unravel_index(np.argmax(match), match.shape)
        seen.append((best_x + left - x1, best_y + top - y1))
    true = np.diff(corners.mean(axis=1), axis=0)  # (195, xy)

    def agreement(lag: int) -> float:
        inner = slice(3, 192)
        shifted = true[3 + lag : 192 + lag]
        return float(np.corrcoef(np.array(seen, float)[inner].ravel(), shifted.ravel())[0, 1])

    assert agreement(0) > 0.9
    assert max(agreement(lag) for lag in (-3, -2, -1, 1, 2, 3)) < 0.7


@pytest.mark.data
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_memory_is_flat(data: Path) -> None:
    """2,000 frames of 640x480 to a slow-starting consumer: 1.8 GB if decoded ahead without bound."""
    script = f"""
import re, time
from pipeline.records import ClipRef, Resize, VideoInfo
from pipeline.video import decode

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024

video = VideoInfo("mice", {str(data / "videos" / "mouse_10000_frames.mp4")!r}, "folder")
seen, early = 0, None
for clip in decode([ClipRef(video)], Resize(), 32):
    seen += len(clip.frames)
    if early is None:
        time.sleep(1)
        early = peak()
    if seen >= 2000:
        break
print(early, peak(), seen)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root)
    early, late, seen = map(int, done.stdout.split())
    assert seen >= 2000
    assert early < 400  # MB, of which the imports are 100
    assert late - early < 100
