"""Frames from images in the rows of a Parquet file: the right ones in order of time, and few in memory at once."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import parquet_images
from pipeline.images import ImageReader
from pipeline.parquet_images import ParquetImages
from pipeline.records import ClipRef, ImageRows, Resize, VideoInfo
from pipeline.video import VideoError, cut, decode, kind_of, probe

COUNT, CAMERAS = 12, 3
START_US = 1_550_083_467_346_370


def png(value: int, size: tuple[int, int] = (20, 30)) -> bytes:
    return bytes(cv2.imencode(".png", np.full((*size, 3), value, np.uint8))[1])


def table() -> pa.Table:
    """Frame i of camera c is grey 10 i + c, at 10 Hz."""
    frame, camera = np.divmod(np.arange(COUNT * CAMERAS), CAMERAS)
    return pa.table(
        {
            "time": START_US + 100_000 * frame,
            "camera": pa.array(camera.astype(np.int8)),
            "image": pa.array([png(10 * i + c) for i, c in zip(frame.tolist(), camera.tolist(), strict=True)]),
        }
    )


def video(path: object, camera: int = 1) -> VideoInfo:
    uri = ImageRows(str(path), "image", "time", "camera", camera).uri
    return VideoInfo("a", uri, "waymo", "parquet", fps=10.0)


def greys(info: VideoInfo, start: int = 0, stop: int | None = None) -> tuple[list[int], list[int], str | None]:
    (clip,) = decode([ClipRef(info, start, stop)], Resize(), 100)
    return clip.frame_index.tolist(), [int(frame[0, 0, 0]) for frame in clip.frames], clip.error


ORDERS = {
    "by time, cameras in turn": np.arange(COUNT * CAMERAS),
    "camera by camera": np.arange(COUNT * CAMERAS).reshape(COUNT, CAMERAS).T.ravel(),
    "backwards": np.arange(COUNT * CAMERAS)[::-1],
    "in any order": np.random.default_rng(0).permutation(COUNT * CAMERAS),
}


@pytest.mark.parametrize("group", [1, 5, 1000])
@pytest.mark.parametrize("order", ORDERS)
def test_frames_are_one_cameras_in_order_of_time(tmp_path: Path, order: str, group: int) -> None:
    pq.write_table(table().take(ORDERS[order]), tmp_path / "a.parquet", row_group_size=group)
    for camera in range(CAMERAS):
        info = video(tmp_path / "a.parquet", camera)
        expected = [10 * i + camera for i in range(COUNT)]
        assert greys(info) == (list(range(COUNT)), expected, None)
        assert greys(info, 7, 9) == ([7, 8], expected[7:9], None)


def test_the_header_and_the_times(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "a.parquet")
    info = video(tmp_path / "a.parquet")
    facts = probe(info)
    assert (facts.size, facts.frames_declared, facts.fps, facts.duration_s) == ((20, 30), COUNT, 10.0, COUNT / 10)
    assert (facts.codec, facts.is_vfr, facts.rotation) == ("png", False, 0)
    clips = list(decode(cut(info, COUNT, 5, 0, 1), Resize(size=(10, 10)), 4))
    assert [clip.frame_index.tolist() for clip in clips] == [[0, 1, 2, 3], [4, 5], [5, 6, 7, 8], [9, 10], [10, 11]]
    for clip in clips:
        np.testing.assert_allclose(clip.timestamp_s, clip.frame_index / 10, atol=1e-9)
        assert clip.frames.shape[1:] == (3, 10, 10)
    uneven = table().set_column(0, "time", pa.array(START_US + np.arange(COUNT * CAMERAS) ** 3 * 1000))
    pq.write_table(uneven, tmp_path / "b.parquet")
    assert probe(video(tmp_path / "b.parquet")).is_vfr


def test_at_any_url(tmp_path: Path) -> None:
    content = io.BytesIO()
    pq.write_table(table(), content)
    fsspec.filesystem("memory").pipe_file("/parquet/a.parquet", content.getvalue())
    info = video("memory://parquet/a.parquet")
    assert kind_of(info.uri) == "parquet"
    assert greys(info, 10) == ([10, 11], [101, 111], None)
    assert ImageRows.parse(info.uri).uri == info.uri


def test_names_of_columns_and_files_are_any(tmp_path: Path) -> None:
    rows = ImageRows("/odd name?&#.parquet", "[Camera].image", "key time", "a&b=c", 3)
    assert ImageRows.parse(rows.uri) == rows
    with pytest.raises(ValueError, match=r"/a\.parquet names no images in a Parquet file; it must be FILE\?image="):
        ImageRows.parse("/a.parquet")


def test_a_clip_in_the_middle_reads_its_row_groups_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(table(), tmp_path / "a.parquet", row_group_size=6)  # two frames of three cameras
    images = ParquetImages(video(tmp_path / "a.parquet").uri)
    read: list[int] = []
    whole = ParquetImages._batches

    def watched(self: ParquetImages, parquet: pq.ParquetFile, group: int) -> object:
        for first, column in whole(self, parquet, group):
            read.extend(range(first, first + len(column)))
            yield first, column

    monkeypatch.setattr(ParquetImages, "_batches", watched)
    monkeypatch.setattr(parquet_images, "BATCH_ROWS", 3)
    contents = images.contents(8)
    assert [next(contents), next(contents)] == [png(81), png(91)]
    assert read == list(range(24, 30))


def test_few_images_are_in_memory_at_once(tmp_path: Path) -> None:
    """80 images of 1 MB, each a page, in one row group: 80 MB if it were read whole."""
    noise = np.random.default_rng(0).integers(0, 256, 2**20, np.uint8).tobytes()
    rows = pa.table({"time": range(80), "camera": [0] * 80, "image": [noise] * 80})
    pq.write_table(rows, tmp_path / "a.parquet", row_group_size=1000, use_dictionary=False, write_batch_size=1)
    del rows
    images = ParquetImages(video(tmp_path / "a.parquet", 0).uri)
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        by_arrow = [pa.total_allocated_bytes() - before for content in images.contents(0) if content == noise]
        by_python = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(by_arrow) == 80
    assert max(by_arrow) + by_python < 40 * 2**20


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    def said(info: VideoInfo) -> str:
        with pytest.raises(VideoError) as error:
            probe(info)
        assert str(error.value) == greys(info)[2]
        return str(error.value)

    path = tmp_path / "a.parquet"
    assert said(video(path)) == f"{path} does not exist"
    path.write_bytes(b"PAR1 no more")
    assert said(video(path)).startswith(f"{path} is not a whole Parquet file: ")
    pq.write_table(table().drop_columns(["image"]), path)
    assert said(video(path)) == f"{path} has no column 'image'; it has: time, camera"
    pq.write_table(table(), path)
    assert said(video(path, 7)) == f"{path} has no row where camera is 7"


def test_an_image_that_cannot_be_read_leaves_a_gap(tmp_path: Path) -> None:
    images = table()["image"].to_pylist()
    images[3 * 4 + 1], images[3 * 6 + 1], images[3 * 8 + 1] = None, b"no image", png(0, (8, 8))
    pq.write_table(table().set_column(2, "image", pa.array(images)), tmp_path / "a.parquet")
    info = video(tmp_path / "a.parquet")
    indices, _, error = greys(info)
    assert indices == [0, 1, 2, 3, 5, 7, 9, 10, 11]
    assert str(error).startswith(f"frame 4 could not be decoded: row 13 of {tmp_path / 'a.parquet'} holds no image")
    reader = ImageReader(ParquetImages(info.uri), Resize())
    assert len(list(reader.frames(0, None))) == 9
    assert reader.problems[6].endswith("row 19 of " + str(tmp_path / "a.parquet") + " is not a readable image")
    assert reader.problems[8] == "its size (8, 8) is not that of the first image, (20, 30)"
