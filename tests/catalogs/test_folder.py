"""The folder catalog: what each kind of source lists, under which names, and what it says where nothing is there.

And truth beside a video: where it is found, what is none, and that each of its forms says the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest

from catalogs import folder
from catalogs.parts.files import IMAGES
from pipeline.images import SUFFIXES
from pipeline.records import VideoInfo

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


# The same truth in three forms: two objects in frame 0, one of them in frame 2, nothing in frame 1; then other things.
TEXT = "1,1,10,20,30,40,1,2,1\n1,2,1,2,3,4,1,1,1\n3,1,12,20,30,40,1,2,1\n"
ROWS = [(0, 1, "cat", 10, 20, 40, 60), (0, 2, "ant", 1, 2, 4, 6), (2, 1, "cat", 12, 20, 42, 60)]
LIST = "1.mp4\nother/2.mp4\n"
NOTES = "Filmed on 2 May 2020,\n3 cats, 1 dog.\n"


def coco(*names: str, frame_ids: tuple[int, ...] = (0, 1, 2)) -> str:
    """A CocoVID json of videos of these names, the truth above in the last."""
    images = [
        {"id": 10 * number + frame, "video_id": number, "frame_id": frame_id, "file_name": f"{frame:06d}.jpg"}
        for number in range(len(names))
        for frame, frame_id in enumerate(frame_ids)
    ]
    last = 10 * (len(names) - 1)
    annotations = [
        {"image_id": last + frame, "category_id": {"ant": 1, "cat": 2}[name], "track_id": track,
         "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for frame, track, name, x1, y1, x2, y2 in ROWS
    ]  # fmt: skip
    videos = [{"id": number, "name": name} for number, name in enumerate(names)]
    categories = [{"id": 1, "name": "ant"}, {"id": 2, "name": "cat"}]
    return json.dumps({"videos": videos, "images": images, "annotations": annotations, "categories": categories})


def xml(frame: int, has_ids: bool = True) -> str:
    """The annotation of a frame; last pixels are counted in, ids count from 0."""
    things = [
        f"<object>{f'<trackid>{track - 1}</trackid>' * has_ids}<name>{name}</name><bndbox><xmin>{x1}</xmin>"
        f"<ymin>{y1}</ymin><xmax>{x2 - 1}</xmax><ymax>{y2 - 1}</ymax></bndbox></object>"
        for at, track, name, x1, y1, x2, y2 in ROWS
        if at == frame
    ]
    return f"<annotation>{''.join(things)}</annotation>"


XML = {f"{frame:06d}.xml": xml(frame) for frame in range(3)}
IMAGE = {f"v/{number}.jpg": "x" for number in (1, 2, 10)}


def listed(root: Path, files: dict[str, str], source: str = "v.mp4", **settings: Any) -> VideoInfo:
    """The only video of a source, among files that are written."""
    for name, content in files.items():
        _write(root / name, content)
    (video,) = folder.videos(f"{root}/{source}", folder.Settings(**settings))
    return video


def rows(video: VideoInfo) -> list[tuple[Any, ...]]:
    table = folder.truth(video)
    assert table is not None
    assert {*table["video_id"].to_pylist()} <= {video.video_id}
    columns = ("frame_index", "track_id", "class_name", "x1", "y1", "x2", "y2")
    return list(zip(*(table[name].to_pylist() for name in columns), strict=True))


@pytest.mark.parametrize(
    ("files", "source"),
    {
        "text, by name": ({"v.mp4": "x", "v.txt": TEXT, "w.mp4": "x"}, "v.mp4"),
        "text, in a folder": ({"v.mp4": "x", "v/gt.txt": TEXT, "w.mp4": "x"}, "v.mp4"),
        "text, in MOTChallenge's": ({"v.mp4": "x", "v/gt/gt.txt": TEXT, "w.mp4": "x"}, "v.mp4"),
        "text of the only video": ({"v.mp4": "x", "gt.txt": TEXT, "deeper/w.mp4": "x"}, "v.mp4"),
        "the same, in gt": ({"v.mp4": "x", "gt/gt.txt": TEXT}, "v.mp4"),
        "the same, by its folder": ({"v.mp4": "x", "gt.txt": TEXT}, ""),
        "the same, by a glob": ({"v.mp4": "x", "gt.txt": TEXT}, "*.mp4"),
        "of any suffix": ({"v.bin": "x", "v.txt": TEXT}, "v.bin"),
        "json": ({"v.mp4": "x", "v.json": coco("anything")}, "v.mp4"),
        "json of several": ({"v.mp4": "x", "v.json": coco("w.mp4", "some/v.mp4")}, "v.mp4"),
        "json of frames from 1": ({"v.mp4": "x", "v.json": coco("v", frame_ids=(1, 2, 3))}, "v.mp4"),
        "XML": ({"v.mp4": "x", **{f"v/{name}": content for name, content in XML.items()}}, "v.mp4"),
        "XML of some frames": ({"v.mp4": "x", "v/2.xml": xml(2), "v/0.xml": xml(0)}, "v.mp4"),
        "XML apart": ({"v.mp4": "x", **{f"Annotations/v/{name}": text for name, text in XML.items()}}, "v.mp4"),
        "images and text": ({**IMAGE, "v.txt": TEXT}, "v"),
        "images and text among them": ({**IMAGE, "v/gt.txt": TEXT}, "v"),
        "MOTChallenge's folders": ({"img1/1.jpg": "x", "gt/gt.txt": TEXT, "det/det.txt": TEXT}, "img1"),
        "images and json": ({**IMAGE, "v.json": coco("v")}, "v"),
        "images and XML": ({**IMAGE, "v/1.xml": xml(0), "v/10.xml": xml(2)}, "v"),
        "images and XML apart": ({**IMAGE, "Annotations/v/1.xml": xml(0), "Annotations/v/10.xml": xml(2)}, "v"),
    }.values(),
)
def test_truth_is_found_and_says_the_same_in_each_form(tmp_path: Path, files: dict[str, str], source: str) -> None:
    video = listed(tmp_path, files, source, classes=("ant", "cat"))
    assert sorted(rows(video)) == sorted(ROWS)


@pytest.mark.parametrize(
    "files",
    {
        "nothing": {},
        "a list of videos": {"v.txt": LIST},
        "notes": {"v.txt": NOTES},
        "somebody else's numbers": {"v.txt": "10 20 30 40\n11 20 30 40\n"},
        "text of another": {"w.txt": TEXT},
        "one text and two videos": {"gt.txt": TEXT, "w.mp4": "x"},
        "one text, a video and images": {"gt.txt": TEXT, "w/1.jpg": "x"},
        "json of another tool": {"v.json": '{"title": "v", "fps": 25}'},
        "XML of another tool": {"v/metadata.xml": "<video/>"},
        "what is hidden": {"v/.gt.txt": TEXT},
    }.values(),
)
def test_what_is_no_truth_is_left_alone(tmp_path: Path, files: dict[str, str]) -> None:
    video = listed(tmp_path, {"v.mp4": "x", **files})
    assert video.truth_uri is None
    assert folder.truth(video) is None
    assert video.identity == listed(tmp_path, {}, truth=False).identity


def test_truth_at_any_url_and_none_on_request(tmp_path: Path) -> None:
    root = f"memory://{tmp_path.name}/truth"
    files, path = fsspec.core.url_to_fs(root)
    for name, content in {"v.mp4": "x", "v.txt": TEXT}.items():
        files.pipe_file(f"{path}/{name}", content.encode())
    (video,) = folder.videos(f"{root}/v.mp4")
    assert [row[:3] for row in rows(video)] == [(0, 1, "object"), (0, 2, "object"), (2, 1, "object")]
    (video,) = folder.videos(f"{root}/v.mp4", folder.Settings(truth=False))
    assert video.truth_uri is None


def test_links_lead_to_truth(tmp_path: Path) -> None:
    _write(tmp_path / "stored" / "gt" / "gt.txt", TEXT)
    _write(tmp_path / "set" / "v.mp4", "x")
    (tmp_path / "set" / "v").symlink_to(tmp_path / "stored")
    assert len(rows(listed(tmp_path / "set", {}))) == 3
    (tmp_path / "set" / "v").unlink()
    (tmp_path / "set" / "v.txt").symlink_to(tmp_path / "stored" / "gt" / "gt.txt")
    assert len(rows(listed(tmp_path / "set", {}))) == 3
    (tmp_path / "set" / "v.txt").unlink()
    (tmp_path / "set" / "v.txt").symlink_to(tmp_path / "gone.txt")
    assert listed(tmp_path / "set", {}).truth_uri is None


def test_another_truth_is_another_content(tmp_path: Path) -> None:
    before = listed(tmp_path, {"v.mp4": "x", "v.txt": TEXT})
    assert listed(tmp_path, {"v.txt": TEXT + TEXT[:20]}).identity != before.identity


@pytest.mark.parametrize(
    ("classes", "line", "name"),
    [
        ((), "1,1,10,20,30,40", "object"),
        ((), "1,1,10,20,30,40,1,7,1", "object"),
        (("fly",), "1,1,10,20,30,40,1,-1,-1,-1", "fly"),
        (("fly",), "1 1 10 20 30 40", "fly"),
        (("fly",), "1,1,10,20,30,40,1,1,1", "fly"),
        (("ant", "fly"), "1,1,10,20,30,40,1,2", "fly"),
        (("ant", "fly"), "1,1,10,20,30,40,0,2", None),  # not to be counted, as in MOTChallenge
    ],
)
def test_classes_number_those_of_text(tmp_path: Path, classes: tuple[str, ...], line: str, name: str | None) -> None:
    assert rows(listed(tmp_path, {"v.mp4": "x", "v.txt": line}, classes=classes)) == [(0, 1, name, 10, 20, 40, 60)]


def test_labels_are_in_the_order_of_the_classes(tmp_path: Path) -> None:
    """Else in that of the json, or of the alphabet."""
    files = {"v.mp4": "x", "w.mp4": "x", "v.json": coco("v"), **{f"w/{name}": text for name, text in XML.items()}}
    for source in ("v.mp4", "w.mp4"):
        for classes, labels in (((), {"ant": 0, "cat": 1}), (("cat", "ant"), {"cat": 0, "ant": 1})):
            table = folder.truth(listed(tmp_path, files, source, classes=classes))
            assert table is not None
            assert dict(zip(table["class_name"].to_pylist(), table["class_id"].to_pylist(), strict=True)) == labels


def test_boxes_without_identities_and_names_of_wordnet(tmp_path: Path) -> None:
    video = listed(tmp_path, {"v.mp4": "x", "v/0.xml": xml(0, has_ids=False).replace("cat", "n02691156")})
    assert [row[:3] for row in rows(video)] == [(0, None, "airplane"), (0, None, "ant")]


@pytest.mark.parametrize(
    ("files", "classes", "says"),
    {
        "a line cut short": ({"v.txt": TEXT + "4,1,10"}, (), r"v\.txt:4: 3 columns where the first line has 9"),
        "a first line of words": ({"v.txt": "frame,id,x,y,w,h,1,2,1\n" + TEXT}, (), r"v\.txt:1: column 1 is 'frame'"),
        "a frame 0": ({"v.txt": TEXT + "0,1,1,1,1,1,1,1,1"}, (), r"v\.txt:4: the frame \(column 1\) must be"),
        "an unknown number": ({"v.txt": TEXT}, ("ant",), r"v\.txt:1: the class is 2 .* must be 1 to 1.*names ant$"),
        "no number": ({"v.txt": "\n1,1,2,3,4,5\n"}, ("a", "b"), r"v\.txt:2: the line names no class .* a, b$"),
        "half a json": ({"v.json": coco("v")[:-10] + "\n]"}, (), r"v\.json is not whole JSON: .*line 2"),
        "json of others": ({"v.json": coco("x", "y")}, (), r"v\.json is of 2 videos \(x, y\), and not one .* called v"),
        "json of some frames": (
            {"v.json": coco("v", frame_ids=(0, 1, 9))}, (), "lists 3 frames, of frame_id 0 to 9; it must list every",
        ),
        "a name of json": ({"v.json": coco("v")}, ("cat",), r"v\.json has the class 'ant', .* folder\.classes: cat$"),
        "half an XML": ({"v/0.xml": "<annotation>\n<object>"}, (), r"0\.xml is not whole XML: .*line 2"),
        "a name of XML": ({"v/0.xml": xml(0)}, ("cat",), r"0\.xml has the class 'ant'"),
        "an XML of something else": ({"v/0.xml": "<a><object><name>x</name></object></a>"}, (), "lacks bndbox/xmin"),
        "two of them": ({"v.txt": TEXT, "v.json": coco("v")}, (), r"truth in two places, .*v\.txt and .*v\.json; keep"),
    }.values(),
)  # fmt: skip
def test_damaged_truth_is_said_in_a_sentence(
    tmp_path: Path, files: dict[str, str], classes: tuple[str, ...], says: str
) -> None:
    with pytest.raises(ValueError, match=says) as error:
        folder.truth(listed(tmp_path, {"v.mp4": "x", **files}, classes=classes))
    assert "\n" not in str(error.value)


def test_json_of_fewer_frames_than_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds 4 images and .*v\.json lists 3; it must list them all"):
        folder.truth(listed(tmp_path, {**IMAGE, "v/11.jpg": "x", "v.json": coco("v")}, "v"))


def test_truth_given_as_a_list_is_not_taken_for_one(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"v\.txt is no list of videos: it holds MOTChallenge's numbers; name the video"
    ):
        listed(tmp_path, {"v.mp4": "x", "v.txt": TEXT}, "v.txt")
    assert listed(tmp_path, {"list.txt": "v.mp4\n"}, "list.txt").truth_uri == f"{tmp_path}/v.txt"


@pytest.mark.parametrize("classes", [("a", "a"), ("a", ""), ("",)])
def test_classes_must_differ(classes: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"folder\.classes is .* must be different names, none empty"):
        folder.Settings(classes=classes)
