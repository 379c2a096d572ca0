"""The report: what the page says is what the tables say, and what is drawn lies where the boxes are."""

from __future__ import annotations

import io
import itertools
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest
from numpy.random import RandomState

from jobs import report_colours as colours
from jobs.command import main
from jobs.report import file_name, show, write_report
from jobs.report_draw import size_of_picture
from jobs.report_facts import Facts, precision_recall
from jobs.report_scene import Scene, make_scene
from jobs.report_timeline import make_timeline
from jobs.report_video import annotate
from pipeline import scoring
from pipeline.frame_range import held, limited
from pipeline.records import ClipRef, Resize, Track, VideoInfo, detections
from pipeline.schemas import SCORES, TRACKS, TRUTH, VIDEOS, detections_table, tracks_table
from pipeline.tables import Run
from pipeline.video import decode

CLASSES = ("<cat>", "dog")
LENGTH = 12
GREY = (120, 120, 120)
VOID = {"meta", "link", "img", "br", "input", "line", "rect"}


def box(frame: int, place: int) -> list[float]:
    """A box of 32 x 40 pixels that moves to the right by 4 a frame; place: 0 above, 1 below."""
    left = 8 + 4 * frame
    return [left, 12 + 60 * place, left + 32, 52 + 60 * place]


def track(number: int, frames: list[int], place: int, guessed: tuple[int, ...] = ()) -> Track:
    count = len(frames)
    return Track(
        track_id=number,
        label=place,
        score=0.9,
        frame_index=np.array(frames, np.int32),
        boxes=np.array([box(frame, place) for frame in frames], np.float32),
        scores=np.full(count, 0.75, np.float32),
        raw_scores=np.full(count, 0.75, np.float32),
        box_id=np.array([-1 if frame in guessed else place for frame in frames], np.int32),
        tracked=np.zeros(count, np.bool_),
    )


def seen() -> list[Any]:
    """Detections of the two objects, and a third box that no track takes."""
    return [
        detections(frame, [box(frame, 0), box(frame, 1), [100, 90, 140, 120]], [0.75, 0.75, 0.5], [0, 1, 1],
                   timestamp_s=frame / 25)
        for frame in range(LENGTH)
    ]  # fmt: skip


def tracks_of(video: str) -> pa.Table:
    """Object 0 is covered by track 1, then by track 8; object 1 by track 2, with a gap at 4 and a guess at 5."""
    tracks = [
        track(1, [0, 1, 2, 3, 4, 5], 0),
        track(8, [6, 7, 8, 9, 10, 11], 0),
        track(2, [0, 1, 2, 3, 5, 6, 7, 8], 1, guessed=(5,)),
    ]
    return tracks_table(video, seen(), tracks, CLASSES)


def truth_of(video: str) -> pa.Table:
    rows = [
        {"video_id": video, "frame_index": frame, "track_id": place + 1, "class_id": place,
         "class_name": CLASSES[place], **dict(zip(("x1", "y1", "x2", "y2"), box(frame, place), strict=True)),
         "ignore": False}
        for frame in range(LENGTH) for place in (0, 1)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, TRUTH)


def write_video(path: Path, size: tuple[int, int] = (128, 160)) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        picture = np.full((*size, 3), GREY, np.uint8)
        for _ in range(LENGTH):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def row_of(video: str, uri: str, **values: object) -> dict[str, object]:
    row = {"video_id": video, "catalog": "folder", "uri": uri, "width": 160, "height": 128, "fps": 25.0,
           "frames_declared": LENGTH, "frames_decoded": LENGTH, "status": "ok", "boxes": 3 * LENGTH, "tracks": 3,
           "decode_s": 0.5, "detect_s": 1.5, "link_s": 0.0}  # fmt: skip
    return {**row, **values}


@dataclass
class Made:
    """A run with videos `a/one`, `two` and `bad`, which failed; what the tables hold decides what is written."""

    folder: Path
    url: str = ""
    has_pixels: bool = True
    has_tracks: bool = True
    has_truth: bool = True
    only_bad: bool = False
    videos: list[str] = field(default_factory=lambda: ["a/one", "two"])

    def write(self) -> Run:
        run = Run(self.url or str(self.folder / "run")).claim({"recipe": {"model": "smot", "linker": "keep"}}, CLASSES)
        names = [] if self.only_bad else self.videos
        uri = str(self.folder / "video.mp4") if self.has_pixels else ""
        if self.has_pixels:
            write_video(self.folder / "video.mp4")
        bad = row_of("bad", "gone.mp4", status="failed", stage="open", error="gone.mp4 does not exist",
                     frames_decoded=0, boxes=0, tracks=0, decode_s=None, detect_s=None, link_s=None)  # fmt: skip
        rows = [row_of(name, uri, tracks=3 if self.has_tracks else None) for name in names]
        run.write_table(pa.Table.from_pylist([*rows, bad], VIDEOS), "videos", "shard-00000.parquet")
        owned = np.ones(LENGTH, np.bool_)
        found = [
            detections_table(name, ClipRef(VideoInfo(name, uri, "folder")).clip_id, seen(), owned) for name in names
        ]
        self._write(run, "detections", found)
        if self.has_tracks:
            self._write(run, "tracks", [TRACKS.empty_table(), *map(tracks_of, names)])
            if self.has_truth:
                self._write(run, "truth", [TRUTH.empty_table(), *map(truth_of, names)])
                scores = scoring.score(run.table("truth"), run.table("tracks"), videos=names)
                run.write_table(scores if names else SCORES.empty_table(), "scores", "shard-00000.parquet")
        return run

    def _write(self, run: Run, name: str, tables: list[pa.Table]) -> None:
        if tables:
            run.write_table(pa.concat_tables(tables).unify_dictionaries(), name, "shard-00000.parquet")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Made(tmp_path).write()


class Page(HTMLParser):
    """A page's text, its links, and what lies in elements that carry data; fails where tags do not match."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.links: list[str] = []
        self.figures: dict[tuple[str | None, str], str] = {}
        self.ids: set[str] = set()
        self.feed(content)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.links += [given[name] for name in ("src", "href") if name in given]
        self.ids |= {given["id"]} if "id" in given else set()
        if tag not in VOID:
            self.open.append((tag, given))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        tag, given = self.open[-1] if self.open else ("", {})
        if tag in ("style", "script"):
            return
        self.text += data
        for name in ("data-metric", "data-total"):
            if name in given:
                row = next((a[key] for _, a in self.open for key in ("data-video", "data-class") if key in a), None)
                self.figures[row, given[name]] = data.strip()


def read_page(run: Run) -> Page:
    content = run.read("report", "index.html").decode()
    assert content.rstrip().endswith("</html>")
    return Page(content)


def test_the_page_is_whole_and_needs_nothing_else(run: Run) -> None:
    assert write_report(run) == f"{run.url}/report/index.html"
    page = read_page(run)
    beside = [link for link in page.links if not link.startswith("data:")]
    assert beside == [file_name("two")]
    assert run.exists("report", file_name("two"))
    assert {"scores", "bad", "watch-1", "classes", "charts", "precision", "videos", "stages", "tables"} <= page.ids
    assert "gone.mp4 does not exist" in page.text
    assert "<cat>" in page.text


def test_the_figures_are_those_of_the_tables(run: Run) -> None:
    write_report(run)
    figures = read_page(run).figures
    table = run.table("scores")
    known = scoring.values(pa.concat_tables([table, scoring.combine([table])]))
    places = {None: (None, None), "two": ("two", None), "a/one": ("a/one", None), "dog": (None, "dog")}
    for row, key in places.items():
        for metric in ("HOTA", "DetA", "AssA", "MOTA", "IDF1", "mAP", "IDSW", "num_false_positives", "num_misses"):
            value = known[key][metric]
            text = f"{value:.0f}" if metric in scoring.NUMBERS else f"{value:.3f}"
            assert figures[row, metric] == text, (row, metric)
    assert figures[None, "frames"] == str(2 * LENGTH)
    assert figures[None, "boxes"] == str(6 * LENGTH)
    assert figures[None, "tracks"] == "6"
    assert known[None, None]["IDSW"] == 2  # so that the test would notice


def decoded(mp4: bytes) -> tuple[list[np.ndarray], list[float]]:
    with av.open(io.BytesIO(mp4), "r") as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
        frames = list(container.decode(video=0))
    return [frame.to_ndarray(format="rgb24") for frame in frames], [float(frame.time or 0) for frame in frames]


def test_boxes_are_drawn_in_their_tracks_colour_where_they_are(run: Run) -> None:
    drawn = show(Facts(run), "two").drawn
    pictures, times = decoded(drawn.mp4)
    assert len(pictures) == LENGTH
    assert drawn.size == pictures[0].shape[:2] == (512, 640)
    np.testing.assert_allclose(times, np.arange(LENGTH) / 25, atol=1e-4)
    table = tracks_of("two").to_pylist()
    for row in table:
        picture = pictures[row["frame_index"]]
        y = round(2 * (row["y1"] + row["y2"])) + 11  # of the right side: four times the middle, off the trail
        near = picture[y - 3 : y + 4, round(4 * row["x2"]) - 1].astype(int)
        expected = (205, 208, 212) if row["track_id"] is None else colours.rgb(colours.of_track(row["track_id"]))
        # Chroma is stored at half the size, and dashes of truth lie over detections without a track.
        distance = np.abs(near - expected).max(axis=1).min()
        assert distance < 80, (row["frame_index"], row["track_id"], near)
        assert np.abs(near - GREY).max(axis=1).max() > 40
    assert np.abs(pictures[0][40, 600].astype(int) - GREY).max() < 8  # nothing is drawn where nothing is


def test_colours_repeat_but_neighbours_differ() -> None:
    found = [colours.of_track(number) for number in range(1, 30)]
    assert len(set(found[:7])) == 7
    assert all(one != other for one, other in itertools.pairwise(found))


@pytest.mark.parametrize(
    ("size", "expected"),
    {
        "small, four times": ((128, 160), (512, 640)),
        "odd, made even": ((101, 213), (404, 852)),
        "as it is": ((480, 640), (480, 640)),
        "large, shrunk": ((1080, 1920), (720, 1280)),
        "upright and large": ((3840, 2160), (1280, 720)),
        "tall and narrow, not above 960": ((300, 48), (900, 144)),
    }.values(),
)
def test_size_of_picture(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert size_of_picture(size) == expected


def scene_of(tracks: pa.Table, truth: pa.Table | None, video: str = "two") -> Scene:
    return make_scene(row_of(video, ""), tracks, truth)


def test_the_timeline_shows_gaps_guesses_misses_and_switches() -> None:
    timeline = make_timeline(scene_of(tracks_of("two"), truth_of("two")))
    lanes = {lane.name: [(bar.kind, bar.left, bar.width) for bar in lane.bars] for lane in timeline.tracks}
    twelfth = 100 / 12
    assert lanes["2 dog"] == [
        ("gap", 0, 75.0),
        ("seen", 0, round(4 * twelfth, 3)),
        ("guessed", round(5 * twelfth, 3), round(twelfth, 3)),
        ("seen", 50.0, 25.0),
    ]
    objects = {lane.name: [(bar.kind, bar.colour, bar.left) for bar in lane.bars] for lane in timeline.objects}
    one, eight = colours.of_track(1), colours.of_track(8)
    assert objects["1 <cat>"] == [("missed", "", 0), ("seen", one, 0), ("seen", eight, 50.0), ("switch", "", 50.0)]
    assert timeline.num_switches == 1


@pytest.mark.parametrize("seed", range(20))
def test_switches_are_as_many_as_the_scores_say(seed: int) -> None:
    """Crowded random boxes: the matches behind the timeline are those of IDSW."""
    random = RandomState(seed)

    def table(schema: pa.Schema, **extra: object) -> pa.Table:
        rows = []
        for frame in range(15):
            for number in np.flatnonzero(random.random_sample(5) < 0.8):
                left, top = random.randint(0, 12) + frame, random.randint(0, 12)
                corners = {"x1": left, "y1": top, "x2": left + 20, "y2": top + 20}
                rows.append({"video_id": "two", "frame_index": frame, "track_id": int(number) + 1,
                             "class_name": CLASSES[number % 2], **corners, **extra})  # fmt: skip
        return pa.Table.from_pylist(rows, schema)

    truth, tracks = table(TRUTH, ignore=False), table(TRACKS, score=0.5)
    cover = scene_of(tracks, truth).cover
    assert cover is not None
    scores = scoring.values(scoring.score(truth, tracks))["two", None]
    assert cover.switch.sum() == scores["IDSW"] > 0
    assert cover.errors.sum() == len(truth) + len(tracks) - 2 * len(cover.frame)
    assert cover.errors.min() >= 0


def test_curves_hold_what_the_scores_say(run: Run) -> None:
    facts = Facts(run)
    for name, counts in facts.counts["detection"].items():
        recall, precision = precision_recall(counts)
        assert np.trapezoid(precision, recall) == pytest.approx(facts.scores[None, name]["mAP"])


@pytest.mark.parametrize(
    ("lacking", "says", "absent"),
    {
        "truth": ({"has_truth": False}, "no truth to hold its tracks against", {"scores", "precision"}),
        "tracks": ({"has_tracks": False}, "nothing has been linked yet", {"scores", "classes"}),
        "pixels": ({"has_pixels": False}, "No pixels to draw on: the run was made from stored boxes", {"worst"}),
        "all but failures": ({"only_bad": True}, "gone.mp4 does not exist", {"watch-1", "classes", "charts"}),
    }.values(),
)
def test_what_a_run_lacks_is_said_or_left_out(
    tmp_path: Path, lacking: dict[str, Any], says: str, absent: set[str]
) -> None:
    run = Made(tmp_path, **lacking).write()
    write_report(run)
    page = read_page(run)
    assert says in page.text
    assert not absent & page.ids
    assert ("watch-1" in page.ids) == (not lacking.get("only_bad", False))


def test_a_run_without_videos_has_no_report(tmp_path: Path) -> None:
    assert write_report(Run(str(tmp_path)).claim({}, CLASSES)) is None


def test_boxes_without_pixels_are_drawn_on_empty_frames() -> None:
    drawn = annotate(scene_of(tracks_of("two"), None), max_frames=5)
    pictures, _ = decoded(drawn.mp4)
    assert len(pictures) == 5
    assert not drawn.has_pixels
    assert np.abs(pictures[3].astype(int) - (30, 33, 38)).max() > 100


def test_a_failed_video_can_be_shown_too(run: Run) -> None:
    write_report(run, ["bad", "a/one"])
    page = read_page(run)
    assert {"watch-1", "watch-2"} <= page.ids
    assert "gone.mp4 does not exist; boxes are drawn on empty frames" in page.text


def test_crops_are_the_first_middle_and_last_box(run: Run) -> None:
    crops = show(Facts(run), "two").drawn.crops
    assert [(crop.track_id, crop.name, crop.length) for crop in crops] == [
        (2, "dog", 8),
        (1, "<cat>", 6),
        (8, "<cat>", 6),
    ]
    assert [frame for frame, _ in crops[0].pictures] == [0, 5, 8]


def test_any_url_will_do(tmp_path: Path) -> None:
    run = Made(tmp_path, url="memory://report/run").write()
    write_report(run, ["two"], "memory://report/page")
    assert Run("memory://report/page").names() == ["index.html", "two.mp4"]


def test_ids_that_differ_have_files_that_differ() -> None:
    names = [file_name(video) for video in ("a/b", "a-b", "a b", "../a", "a")]
    assert len(set(names)) == len(names)
    assert all("/" not in name and not name.startswith(".") for name in names)


@pytest.mark.parametrize(
    ("words", "says"),
    {
        "a misspelt video": (["RUN", "--video", "a/oen"], "'a/oen' is no video of RUN (did you mean 'a/one'?)"),
        "no run there": (["RUN/videos"], "RUN/videos is not a run: it has no run.json"),
    }.values(),
)
def test_wrong_use_is_one_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    monkeypatch.setattr("sys.argv", ["report", *(word.replace("RUN", run.url) for word in words)])
    with pytest.raises(SystemExit) as ended:
        main("report")
    error = capsys.readouterr().err
    assert ended.value.code == 1
    assert says.replace("RUN", run.url) in error
    assert error.count("\n") == 1
    assert not run.exists("report")


@pytest.mark.data
@pytest.mark.parametrize("name", ["torchcodec_var_fps_video.mp4", "decord_video_90.mov", "zero_byte.webm"])
def test_odd_files_keep_their_times_or_say_why(data: Path, name: str) -> None:
    uri = str(data / "decode" / name)
    scene = make_scene(row_of("odd", uri, fps=None, width=None, height=None), TRACKS.empty_table(), None)
    drawn = annotate(scene, 40)
    pictures, times = decoded(drawn.mp4)
    clips = list(decode([ClipRef(VideoInfo("odd", uri, "folder"), 0, 40)], Resize(), 40))
    shown = np.concatenate([clip.timestamp_s for clip in clips])
    assert drawn.has_pixels == bool(len(shown))
    if drawn.has_pixels:
        np.testing.assert_allclose(times, shown - shown[0], atol=1e-3)
        assert drawn.size == size_of_picture(clips[0].size) == pictures[0].shape[:2]
    else:
        assert "it has 0 bytes" in (drawn.note or "")


def test_a_range_of_a_video_is_shown_as_what_there_is(tmp_path: Path) -> None:
    """Frames 4 to 8 of 12: they alone are drawn, and the timeline begins and ends with them."""
    write_video(tmp_path / "v.mp4")
    row = row_of("v", str(tmp_path / "v.mp4"), start=4, stop=9, frames_decoded=5)
    (video,) = limited([VideoInfo("v", "", "folder")], "4:9")
    tracks = held(tracks_of("v"), video)
    scene = make_scene(row, tracks, held(truth_of("v"), video))
    assert (scene.start, scene.length) == (4, 5)
    drawn = annotate(scene)
    assert drawn.has_pixels
    assert len(drawn.times) == 5
    assert {frame for crop in drawn.crops for frame, _ in crop.pictures} <= set(range(4, 9))
    assert len(annotate(make_scene({**row, "uri": ""}, tracks, None)).times) == 5
    lanes = {lane.name.split()[0]: lane.bars for lane in make_timeline(scene).tracks}
    assert (lanes["1"][0].left, lanes["1"][0].width) == (0, 40)  # frames 4 and 5
    assert lanes["1"][0].title.endswith("frames 4 to 5")
    assert lanes["8"][0].left + lanes["8"][0].width == 100
