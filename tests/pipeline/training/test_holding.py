"""How frames of a training are held: the same pixels either way, and those of inference."""

from __future__ import annotations

import pickle
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from catalogs import synthetic
from pipeline.records import ClipRef, Resize, VideoInfo
from pipeline.training import holding as module
from pipeline.training.frames import Frames
from pipeline.training.holding import Cached, OnDemand, holdings, measured, sources
from pipeline.training.labelled import Labelled, Material, Truth, labelled
from pipeline.training.settings import Training
from pipeline.video import Probe, decode, probe

SIZE = Resize(size=(48, 60))
KINDS = pytest.mark.parametrize("kind", [Cached, OnDemand])
Kind = Callable[[Labelled, Resize, Path], Frames]


def boxes(*videos: Sequence[Any], classes: int = 1) -> Truth:
    """For each video its frames, one box in each."""
    frame = np.array([each for video in videos for each in video], np.int32)
    count = len(frame)
    return Truth(
        first=np.cumsum([0, *map(len, videos)]),
        frame=frame,
        boxes=np.array([[each, 2, each + 10, 22] for each in frame], np.float32).reshape(-1, 4),
        labels=np.zeros(count, np.int16),
        track_ids=np.arange(count, dtype=np.int32),
        ignore=np.zeros(count, np.bool_),
    )


def photographed(folder: Path, count: int, size: tuple[int, int] = (40, 50), seed: int = 0) -> str:
    """A folder of blurred noise, as JPEG."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for index in range(count):
        coarse = random.integers(0, 255, (5, 5, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{index}.jpg"), cv2.resize(coarse, size[::-1]))  # 2 before 10
    return str(folder)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> VideoInfo:
    """A video file of 160 x 128 pixels, 32 to 40 frames."""
    folder = tmp_path_factory.mktemp("synthetic")
    (video,) = synthetic.videos(str(folder), synthetic.Settings("train", 1))
    return video


@pytest.fixture(scope="module")
def videos(film: VideoInfo, tmp_path_factory: pytest.TempPathFactory) -> list[VideoInfo]:
    """A file, a folder of images, one image, and ranges of the former two."""
    folder = tmp_path_factory.mktemp("images")
    images = photographed(folder / "many", 12)
    one = photographed(folder / "one", 1, (30, 20), seed=1)
    return [
        film,
        VideoInfo("images", images, "folder", "images"),
        VideoInfo("image", f"{one}/0.jpg", "folder", "image"),
        VideoInfo("part of the file", film.uri, "folder", start=7, stop=20),
        VideoInfo("end of the images", images, "folder", "images", start=9),
        VideoInfo("more than there is", images, "folder", "images", start=3, stop=99),
    ]


def shown(video: VideoInfo, resize: Resize) -> np.ndarray:
    """A video's frames as inference sees them: uint8 (T, 3, H, W)."""
    return np.concatenate([clip.frames for clip in decode([ClipRef(video, video.start, video.stop)], resize, 16)])


@KINDS
@pytest.mark.parametrize("resize", [SIZE, Resize(short_side=24), Resize()], ids=["size", "short side", "as it is"])
def test_pixels_are_those_of_inference(kind: Kind, resize: Resize, videos: list[VideoInfo], tmp_path: Path) -> None:
    found = kind(Labelled(videos, boxes(*[[]] * len(videos)), ("a",)), resize, tmp_path)
    number = 0
    for place, video in enumerate(videos):
        expected = shown(video, resize)
        assert (found.video == place).sum() == len(expected)
        clip, _ = found.clip(range(number, number + len(expected)))
        assert clip.dtype == torch.uint8
        assert clip.is_contiguous(), "the same layout of both kinds: networks round by it"
        np.testing.assert_array_equal(clip, expected)
        number += len(expected)
    assert number == len(found.video)


@KINDS
def test_any_order_and_twice(kind: Kind, film: VideoInfo, tmp_path: Path) -> None:
    found = kind(Labelled([film], boxes(range(40)), ("a",)), SIZE, tmp_path)
    expected = shown(film, SIZE)
    for numbers in ([5, 13], [13, 5], [0], [31, 2, 17, 3], [4, 4], [9, 8, 9]):
        clip, targets = found.clip(numbers)
        np.testing.assert_array_equal(clip, expected[numbers])
        assert [target["track_ids"].item() for target in targets] == numbers


@KINDS
def test_boxes_are_in_pixels_of_the_frames(kind: Kind, videos: list[VideoInfo], tmp_path: Path) -> None:
    """And each frame's own, in a range too, whose frames keep the numbers they have in the file."""
    chosen = [videos[0], videos[4]]
    found = kind(Labelled(chosen, boxes(range(40), range(9, 12)), ("a",)), SIZE, tmp_path)
    film, images = np.array([60 / 160, 48 / 128] * 2), np.array([60 / 50, 48 / 40] * 2)
    count = int((found.video == 0).sum())
    _, targets = found.clip([6, 3])
    for target, frame in zip(targets, (6, 3), strict=True):
        np.testing.assert_allclose(target["boxes"][0], [frame, 2, frame + 10, 22] * film, rtol=1e-6)
    _, targets = found.clip([count, count + 2])
    for target, frame in zip(targets, (9, 11), strict=True):
        np.testing.assert_allclose(target["boxes"][0], [frame, 2, frame + 10, 22] * images, rtol=1e-6)


@KINDS
def test_a_catalog_becomes_frames_with_their_truth(kind: Kind, tmp_path: Path) -> None:
    material = labelled("synthetic", str(tmp_path), {"split": "train", "num_videos": 2})
    found = kind(material, Resize(size=(64, 80)), tmp_path)
    seen = 0
    for place, video in enumerate(material.videos):
        rows = synthetic.truth(video)
        numbers = np.flatnonzero(found.video == place).tolist()
        assert len(numbers) == rows["frame_index"].to_numpy().max() + 1
        _, targets = found.clip(numbers)
        seen += sum(len(target["labels"]) for target in targets)
        first = rows.to_pylist()[0]
        target = targets[first["frame_index"]]
        np.testing.assert_allclose(target["boxes"][0], [first[side] / 2 for side in ("x1", "y1", "x2", "y2")])
        assert material.classes[target["labels"][0]] == first["class_name"]
        assert target["track_ids"][0] == first["track_id"]
    assert seen == len(material.truth.frame) == sum(len(synthetic.truth(video)) for video in material.videos)


@KINDS
def test_frames_travel_to_other_processes(kind: Kind, videos: list[VideoInfo], tmp_path: Path) -> None:
    found = kind(Labelled(videos, boxes(*[range(40)] * len(videos)), ("a",)), Resize(), tmp_path)
    before, _ = found.clip([1, 9])
    sent = pickle.dumps(found)
    assert len(sent) < 30_000, "pixels and open files stay"
    there: Frames = pickle.loads(sent)
    np.testing.assert_array_equal(there.clip([1, 9])[0], before)


def test_a_folder_is_listed_once_and_few_bytes_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = VideoInfo("v", photographed(tmp_path / "v", 200), "folder", "images")
    found = OnDemand(Labelled([video], boxes([]), ("a",)), SIZE, tmp_path)
    monkeypatch.setattr(fsspec.implementations.local.LocalFileSystem, "ls", None)
    assert found.clip([150])[0].shape == (1, 3, 48, 60)
    assert len(pickle.dumps(found.pictures)) < 200 * 15


@KINDS
def test_a_remote_video_is_fetched_once(
    kind: Kind, film: VideoInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[str] = []
    fsspec.filesystem("memory").pipe("/train/film.mp4", Path(film.uri).read_bytes())
    before = MemoryFileSystem._open

    def noted(self: MemoryFileSystem, path: str, *given: Any, **more: Any) -> Any:
        fetched.append(path)
        return before(self, path, *given, **more)

    monkeypatch.setattr(MemoryFileSystem, "_open", noted)
    found = kind(Labelled([VideoInfo("v", "memory://train/film.mp4", "folder")], boxes([]), ("a",)), SIZE, tmp_path)
    assert fetched == ["/train/film.mp4"]
    for number in (30, 3):
        np.testing.assert_array_equal(found.clip([number])[0], shown(film, SIZE)[[number]])
    assert len(fetched) == 1


def test_remote_images_are_read_as_they_are_drawn(tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    local = photographed(tmp_path / "v", 3)
    for index in range(3):
        files.pipe(f"/photos/{index}.jpg", (tmp_path / "v" / f"{index}.jpg").read_bytes())
    remote = [
        VideoInfo("v", "memory://photos", "folder", "images"),
        VideoInfo("w", "memory://photos/2.jpg", "folder", "image"),
    ]
    found = OnDemand(Labelled(remote, boxes([], []), ("a",)), SIZE, tmp_path)
    expected = shown(VideoInfo("v", local, "folder", "images"), SIZE)
    np.testing.assert_array_equal(found.clip([0, 2])[0], expected[[0, 2]])
    np.testing.assert_array_equal(found.clip([3])[0], expected[[2]])


def test_what_fits_is_decoded_once(videos: list[VideoInfo], tmp_path: Path) -> None:
    """Videos come before stills, which take what is left."""
    film = Labelled([videos[3]], boxes([]), ("a",))  # 13 frames of 48 x 60
    images = Labelled([videos[2], videos[4]], boxes([], []), ("a",))  # 4 frames
    large, small = 13 * 48 * 60 * 3 / 1e9, 4 * 48 * 60 * 3 / 1e9
    for limit, expected in (
        (large + small + 1e-6, [Cached, Cached]),
        (large + small - 1e-6, [Cached, OnDemand]),
        (large - 1e-6, [OnDemand, Cached]),
        (0, [OnDemand, OnDemand]),
    ):
        chosen, material = Training(cache_gigabytes=limit), Material(film, images)
        held = holdings(chosen, material, SIZE)
        assert [each.frames for each in held] == [13, 4]
        assert [each.gigabytes for each in held] == pytest.approx([large, small])
        assert [each.is_cached for each in held] == [kind is Cached for kind in expected]
        folder = tmp_path / str(limit)
        folder.mkdir()
        found = sources(chosen, material, SIZE, folder)
        assert [type(each) for each in found] == expected
        assert [len(each.video) for each in found] == [13, 4]
    one, two = map(str, holdings(Training(cache_gigabytes=large * 1.1), Material(film, images), SIZE))
    assert one == "13 frames, decoded once (0.00011 GB)"
    assert (
        two == "4 frames, decoded when drawn, as their 3.5e-05 GB are more than the 1.1e-05 that cache_gigabytes leaves"
    )


def test_how_far_the_decoding_is_is_said(
    videos: list[VideoInfo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Cached(Labelled(videos[3:5], boxes([], []), ("a",)), SIZE, tmp_path)
    assert capsys.readouterr().err == "", "now and then, not at once"
    monkeypatch.setattr(module, "SAID_S", 0)
    Cached(Labelled(videos[3:5], boxes([], []), ("a",)), SIZE, tmp_path)
    assert capsys.readouterr().err == "decoded 13 frames, 1 of 2 videos\ndecoded 16 frames, 2 of 2 videos\n"


def test_a_full_disk_holds_nothing(videos: list[VideoInfo], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: types.SimpleNamespace(free=1000))
    (held,) = holdings(Training(), Material(Labelled(videos[:1], boxes([]), ("a",))), SIZE)
    assert not held.is_cached


def test_stills_of_known_size_are_not_looked_at_and_others_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [VideoInfo(f"{index}", f"/nowhere/{index}.jpg", "coco", "image", size=(100, 200)) for index in range(900)]
    assert measured(known, Resize(short_side=10)) == (900, 900 * 10 * 20 * 3)
    looked: list[VideoInfo] = []

    def noted(video: VideoInfo) -> Probe:
        looked.append(video)
        return probe(video)

    monkeypatch.setattr(module, "probe", noted)
    uri = photographed(tmp_path / "v", 1)
    unknown = [VideoInfo(f"{index}", f"{uri}/0.jpg", "imagenet_det", "image") for index in range(900)]
    assert measured(unknown, Resize()) == (900, 900 * 40 * 50 * 3)
    assert 10 <= len(looked) <= 30


@KINDS
@pytest.mark.parametrize(
    ("video", "message"),
    [
        (VideoInfo("v", "/nowhere/v.mp4", "folder"), "video v cannot be trained on: /nowhere/v.mp4 does not exist"),
        (VideoInfo("v", "/nowhere", "folder", "images"), "video v cannot be trained on: /nowhere does not exist"),
        (VideoInfo("v", __file__, "folder"), "video v cannot be trained on: .* cannot be read as a video"),
        (VideoInfo("v", "", "mot", "rows"), "video v cannot be trained on: v has no frames to look at"),
    ],
)
def test_what_cannot_be_opened_is_said_before_training(
    kind: Kind, video: VideoInfo, message: str, tmp_path: Path
) -> None:
    material = Labelled([video], boxes([]), ("a",))
    with pytest.raises(ValueError, match=message):
        kind(material, SIZE, tmp_path)
    with pytest.raises(ValueError, match=message):
        holdings(Training(cache_gigabytes=8 * (kind is Cached)), Material(material), SIZE)


@KINDS
@pytest.mark.parametrize(("video", "start"), [(0, 40), (1, 12)])
def test_a_range_beyond_the_end_is_refused(
    kind: Kind, video: int, start: int, videos: list[VideoInfo], tmp_path: Path
) -> None:
    beyond = VideoInfo("late", videos[video].uri, "folder", videos[video].kind, start=start)
    with pytest.raises(
        ValueError, match=r"video late cannot be trained on: .*has \d+ frames, and the range .* begins after"
    ):
        kind(Labelled([beyond], boxes([]), ("a",)), SIZE, tmp_path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        pytest.param(b"no image", r"7\.jpg is not a readable image", id="damaged"),
        pytest.param(None, r"7\.jpg does not exist", id="gone"),
        pytest.param((20, 30), r"is of size \(40, 50\), frame 7 of \(20, 30\)", id="of another size"),
    ],
)
def test_a_frame_that_cannot_be_read_stops_the_training(content: Any, why: str, tmp_path: Path) -> None:
    """When it is drawn, as nothing says so before; where all is decoded at first, then."""
    video = VideoInfo("v", photographed(tmp_path / "v", 10), "folder", "images")
    material = Labelled([video], boxes([]), ("a",))
    (tmp_path / "it").mkdir()
    found = OnDemand(material, SIZE, tmp_path / "it")
    path = tmp_path / "v" / "7.jpg"
    if isinstance(content, tuple):
        photographed(tmp_path / "other", 1, content)
        path.write_bytes((tmp_path / "other" / "0.jpg").read_bytes())
    elif content:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="video v cannot be trained on: frame 7 could not be decoded"):
            Cached(material, SIZE, tmp_path)
    else:
        path.unlink()
    found.clip([5, 6, 8])
    with pytest.raises(ValueError, match=f"video v cannot be trained on: .*{why}"):
        found.clip([6, 7])


@KINDS
def test_a_file_cut_short_is_refused(kind: Kind, film: VideoInfo, tmp_path: Path) -> None:
    """What its header promises is not there; a range that ends before is whole."""
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    with av.open(film.uri) as source, av.open(str(whole), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    content = whole.read_bytes()
    cut.write_bytes(content[: len(content) * 2 // 3])
    material = Labelled([VideoInfo("v", str(cut), "folder")], boxes([]), ("a",))
    with pytest.raises(ValueError, match=r"video v cannot be trained on: frame 2\d .* 40 "):
        kind(material, SIZE, tmp_path)
    start = Labelled([VideoInfo("v", str(cut), "folder", stop=10)], boxes([]), ("a",))
    np.testing.assert_array_equal(kind(start, SIZE, tmp_path).clip([2, 9])[0], shown(film, SIZE)[[2, 9]])


@pytest.mark.data
def test_odd_files_give_the_frames_of_inference(data: Path, tmp_path: Path) -> None:
    """Turned, of uneven times, without a count, AVI with frames that are not there."""
    resize = Resize(short_side=40)
    damaged = {"decord_corrupted", "truncated_moov", "zero_byte"}
    paths = sorted(path for path in (data / "decode").iterdir() if path.stem not in damaged)
    assert len(paths) > 15
    for path in paths:
        video = VideoInfo(path.stem, str(path), "folder")
        expected = shown(video, resize)
        found = OnDemand(Labelled([video], boxes([]), ("a",)), resize, tmp_path)
        assert len(found.video) == len(expected), path.name
        random = np.random.default_rng(0)
        for _ in range(3):
            numbers = random.integers(0, len(expected), 2).tolist()
            np.testing.assert_array_equal(found.clip(numbers)[0], expected[numbers], err_msg=path.name)


@pytest.mark.data
def test_a_damaged_file_stops_the_training(data: Path, tmp_path: Path) -> None:
    material = Labelled([VideoInfo("v", str(data / "decode" / "decord_corrupted.mp4"), "folder")], boxes([]), ("a",))
    with pytest.raises(ValueError, match="video v cannot be trained on: frame 30 could not be decoded"):
        Cached(material, SIZE, tmp_path)
    found = OnDemand(material, SIZE, tmp_path)
    assert found.clip([3, 4])[0].shape == (2, 3, 48, 60)
    with pytest.raises(ValueError, match="video v cannot be trained on: frame 30 could not be decoded"):
        found.clip([29, 30])
