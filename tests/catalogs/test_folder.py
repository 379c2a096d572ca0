"""The folder catalog: what each kind of source lists, under which names, and what it says where nothing is there."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from catalogs import folder
from catalogs.parts.files import IMAGES
from pipeline.images import SUFFIXES

TREE = ("a/one.mp4", "a/two.MKV", "b/one.avi", "notes.md", "frames/cam1/2.jpg", "frames/cam1/10.jpg",
        "frames/cam2/1.png", "a/poster.jpg", ".trash/old.mp4", "odd.bin")  # fmt: skip


@pytest.fixture(params=["local", "memory"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The root of the same small tree, in a folder and in memory."""
    root = f"{tmp_path}/set" if request.param == "local" else f"memory://{tmp_path.name}/set"
    files, path = fsspec.core.url_to_fs(root)
    for number, name in enumerate(TREE):
        files.makedirs(f"{path}/{name}".rpartition("/")[0], exist_ok=True)
        files.pipe_file(f"{path}/{name}", b"x" * (number + 1))
    return root


@pytest.mark.parametrize(
    ("source", "ids"),
    {
        "a folder, with all below it": ("", "a/one a/two b/one frames/cam1 frames/cam2"),
        "a folder of images": ("/frames/cam1", "cam1"),
        "a parent of folders of images": ("/frames", "cam1 cam2"),
        "a file": ("/b/one.avi", "one"),
        "a file of another suffix": ("/odd.bin", "odd"),
        "an image": ("/a/poster.jpg", "poster"),
        "a glob": ("/a/*", "one two"),
        "a glob over folders": ("/*/one.*", "a/one b/one"),
        "a glob of folders of images": ("/frames/*", "cam1 cam2"),
    }.values(),
)
def test_ids_of_each_kind_of_source(tree: str, source: str, ids: str) -> None:
    found = folder.videos(tree + source)
    assert [video.video_id for video in found] == ids.split()
    for video in found:
        files, path = fsspec.core.url_to_fs(video.uri)
        assert video.kind == ("images" if files.isdir(path) else "image" if path.endswith(".jpg") else "video")
        assert video.catalog == "folder"
        assert video.identity


def test_lists(tree: str) -> None:
    files, path = fsspec.core.url_to_fs(tree)
    files.makedirs(f"{path}/lists", exist_ok=True)
    files.pipe_file(f"{path}/lists/mine.txt", b"# two of them\n../a/one.mp4\n\n../odd.bin\n../a/one.mp4\n")
    assert [video.video_id for video in folder.videos(f"{tree}/lists/mine.txt")] == ["a/one", "odd"]
    both = [video.video_id for video in folder.videos([f"{tree}/a", f"{tree}/b/one.avi"])]
    assert both == ["a/one", "a/two", "b/one"]
    assert [video.video_id for video in folder.videos(f"{tree}/a, {tree}/b/one.avi")] == both


def test_identity_changes_with_the_content(tree: str) -> None:
    before = {video.video_id: video.identity for video in folder.videos(tree)}
    assert before == {video.video_id: video.identity for video in folder.videos(tree)}
    files, path = fsspec.core.url_to_fs(tree)
    files.pipe_file(f"{path}/a/one.mp4", b"something else")
    files.pipe_file(f"{path}/frames/cam1/10.jpg", b"another image")
    after = {video.video_id: video.identity for video in folder.videos(tree)}
    assert {name for name in before if before[name] != after[name]} == {"a/one", "frames/cam1"}


@pytest.mark.parametrize("source", ["set", "set/*/*.*", "set/a/one.mp4", "set/a, set/frames/cam1", "list.txt"])
def test_places_hold_in_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    for name in TREE:
        _write(tmp_path / "set" / name, "x")
    _write(tmp_path / "list.txt", "set/a/one.mp4\nset/frames/cam1\n")
    monkeypatch.chdir(tmp_path)
    found = folder.videos(source)
    assert found
    assert all(Path(video.uri).is_absolute() and Path(video.uri).exists() for video in found)


@pytest.mark.parametrize(
    ("source", "says"),
    {
        "missing, with a near name": ("/framez", r"framez does not exist \(did you mean 'frames'\?\)"),
        "missing with its folder": ("/x/y", "neither does its folder"),
        "a folder of other things": ("/docs", r"holds no video among its 1 files \(\.md\); looked for"),
        "a glob of nothing": ("/a/*.webm", "matches 0 files and folders, none of them a video; looked for"),
        "a list that names what is not there": ("/docs.txt", r"docs.txt lists gone\.mp4, but .*does not exist"),
        "a list of nothing": ("/none.txt", "lists no video"),
    }.values(),
)
def test_nothing_there_is_said(tmp_path: Path, source: str, says: str) -> None:
    _write(tmp_path / "docs/readme.md", "text")
    _write(tmp_path / "docs.txt", "gone.mp4\n")
    _write(tmp_path / "none.txt", "# nothing\n")
    (tmp_path / "frames").mkdir()
    (tmp_path / "a").mkdir()
    with pytest.raises(FileNotFoundError, match=says):
        folder.videos(f"{tmp_path}{source}")


def test_a_collision_is_refused(tmp_path: Path) -> None:
    _write(tmp_path / "one.mp4", "x")
    _write(tmp_path / "one.avi", "x")
    with pytest.raises(ValueError, match=r"both called 'one'.*one\.avi and .*one\.mp4"):
        folder.videos(str(tmp_path))


def test_settings_and_truth(tree: str) -> None:
    chosen = folder.videos(tree, folder.Settings(suffixes=(".bin",), fps=12.5))
    assert [(video.video_id, video.fps) for video in chosen] == [
        ("a", 12.5), ("frames/cam1", 12.5), ("frames/cam2", 12.5), ("odd", None)
    ]  # fmt: skip
    assert folder.truth(chosen[0]) is None


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_what_is_listed_as_an_image_is_what_is_read_as_one() -> None:
    assert sorted(IMAGES) == sorted(SUFFIXES)
