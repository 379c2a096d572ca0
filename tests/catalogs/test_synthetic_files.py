"""The synthetic dataset's files: that they show what was drawn, are the same everywhere, and are whole."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from catalogs import synthetic
from catalogs.synthetic import files

LUMINANCE = np.array([0.299, 0.587, 0.114])


@pytest.mark.parametrize("index", [0, 1, 2])
def test_files_decode_to_what_was_drawn(index: int, tmp_path: Path) -> None:
    drawn, table = synthetic.render("test", index)
    video = synthetic.videos(str(tmp_path), synthetic.Settings(num_videos=index + 1))[index]
    with av.open(video.uri) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 25)
        decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert decoded.shape == drawn.shape
    luminance_error = np.abs((decoded.astype(float) - drawn) @ LUMINANCE)
    assert luminance_error.mean() < 3  # measured 2.0 to 2.5 grey levels; colour is halved in resolution
    assert synthetic.truth(video).equals(table)


@pytest.mark.parametrize("asm", ["sse2", "avx2", "0"])
def test_files_are_the_same_whatever_the_processor(asm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames, _ = synthetic.render("test", 1)
    files.encode(tmp_path / "here.mp4", frames)
    monkeypatch.setitem(files._OPTIONS, "x264-params", f"{files._OPTIONS['x264-params']}:asm={asm}")
    files.encode(tmp_path / "there.mp4", frames)
    assert (tmp_path / "here.mp4").read_bytes() == (tmp_path / "there.mp4").read_bytes()


def test_planes_are_those_of_bt_601() -> None:
    """Of grey, red and blue blocks: Y, Cb and Cr as the standard has them."""
    frame = np.zeros((4, 12, 3), np.uint8)
    frame[:, :4], frame[:, 4:8], frame[:, 8:] = 128, (255, 0, 0), (0, 0, 255)
    planes = files.yuv420(frame)
    assert planes.shape == (6, 12)
    assert planes[0].tolist() == [126] * 4 + [82] * 4 + [41] * 4
    assert planes[4:].reshape(2, 2, 6).tolist() == [
        [[128, 128, 90, 90, 240, 240]] * 2,
        [[128, 128, 240, 240, 110, 110]] * 2,
    ]


def test_videos_of_an_older_encoding_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = synthetic.Settings(split="val", num_videos=1)
    with monkeypatch.context() as patch:
        patch.setattr(files, "ENCODING", "1")
        patch.setattr(synthetic, "ENCODING", "1")
        (older,) = synthetic.videos(str(tmp_path), options)
    stamp = Path(older.uri).stat().st_mtime_ns
    (newer,) = synthetic.videos(str(tmp_path), options)
    assert newer.identity != older.identity
    assert Path(newer.uri).stat().st_mtime_ns > stamp


def test_videos_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = synthetic.Settings(split="val", num_videos=2)
    monkeypatch.setenv("TRACKLOOM_CACHE", str(tmp_path))
    made = synthetic.videos(None, options)
    stamps = [Path(video.uri).stat().st_mtime_ns for video in made]
    assert synthetic.videos(None, options) == synthetic.videos(str(tmp_path), options) == made
    assert [Path(video.uri).stat().st_mtime_ns for video in made] == stamps
    assert sorted(path.name for path in Path(made[0].uri).parent.iterdir()) == [
        f"val-{index:04d}.{suffix}" for index in (0, 1) for suffix in ("mp4", "parquet")
    ]


def test_video_whose_making_was_cut_short_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = synthetic.Settings(split="val", num_videos=1)

    def disk_full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(files.pq, "write_table", disk_full)
        with pytest.raises(OSError, match="no space left"):
            synthetic.videos(str(tmp_path), options)
    assert [path.name for path in (tmp_path / "synthetic-v1" / "val").iterdir()] == ["val-0000.mp4"]
    (video,) = synthetic.videos(str(tmp_path), options)
    assert pq.read_schema(video.truth_uri).metadata[b"digest"].decode() in video.identity
    assert len(synthetic.truth(video)) > 0
