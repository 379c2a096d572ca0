"""The main job as a user meets it: tables, bad videos, bad commands, resumption, Ray."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import command
from jobs.detect import detect
from jobs.link import link
from jobs.run import run
from pipeline import decoders, flow, planning
from pipeline.clips import Decode, Decoded, Part, Unit, clips_of
from pipeline.decoders import AvReader
from pipeline.detect import Detect
from pipeline.records import Clip, ClipRef, Resize, VideoInfo
from pipeline.tables import Run, read_run

Runs = Callable[..., int]

Table = Callable[[Path, str], pa.Table]
SameRows = Callable[[Path, Path], None]


def test_every_frame_is_on_record_once(table: Table, undisturbed: Path) -> None:
    detections = table(undisturbed, "detections").to_pandas()
    owned = detections[detections.owned]
    for name, count in {"a": 30, "b": 21, "deeper/c": 12}.items():
        assert owned[owned.video_id == name].frame_index.tolist() == list(range(count))
    assert len(detections) > len(owned)  # neighbouring clips share frames
    videos = table(undisturbed, "videos").to_pandas()
    assert videos.status.tolist() == ["ok"] * 3
    assert videos.frames_decoded.tolist() == [30, 21, 12]
    assert videos.boxes.tolist() == [sum(map(len, owned[owned.video_id == name].boxes)) for name in videos.video_id]


def test_seconds_are_of_the_stage_that_spent_them(undisturbed: Path) -> None:
    rows = read_run(str(undisturbed)).table("videos").to_pandas()
    assert (rows.decode_s > 1e-4 * rows.frames_decoded).all()  # no decoder gives 10,000 of these frames a second
    assert (rows.detect_s > 0).all()


def test_tracks_keep_the_promises_of_the_table(table: Table, undisturbed: Path) -> None:
    tracks = table(undisturbed, "tracks")
    rows = tracks.to_pandas()
    assert rows.track_id.notna().any()
    assert rows.track_id.dropna().min() >= 1
    assert set(rows.class_name) <= {"one", "two", "three"}
    tracked = rows[rows.track_id.notna()]
    assert not tracked.duplicated(["video_id", "frame_index", "track_id"]).any()
    assert (rows.x1 < rows.x2).all()
    assert (rows.y1 < rows.y2).all()
    assert rows[["x1", "y1"]].min().min() >= 0
    assert (rows.x2.max(), rows.y2.max()) <= (96, 64)
    assert rows.timestamp_s.tolist() == pytest.approx((rows.frame_index / 25).tolist())
    keys = list(zip(rows.video_id, rows.frame_index, rows.track_id.fillna(1e9), strict=True))
    assert keys == sorted(keys)


def test_files_say_what_made_them(undisturbed: Path) -> None:
    about = read_run(str(undisturbed)).about
    assert about["identity"]["recipe"]["clip_frames"] == 8
    assert about["classes"] == ["one", "two", "three"]
    stored = pq.read_schema(undisturbed / "tracks" / "shard-00000.parquet").metadata[b"trackloom"].decode()
    assert about["run_id"] in stored
    assert not (undisturbed / "_parts").exists()


def test_shards_hold_whole_videos_and_the_same_rows(
    same_rows: SameRows, videos: Path, start: Runs, undisturbed: Path, tmp_path: Path
) -> None:
    assert start(videos, tmp_path / "run", clip_frames=8, settings=["videos_per_shard=2"]) == 0
    assert len(list((tmp_path / "run" / "tracks").glob("*.parquet"))) == 2
    same_rows(tmp_path / "run", undisturbed)


def test_whole_videos_and_clips_detect_the_same_boxes_where_nothing_is_remembered(
    table: Table, videos: Path, start: Runs, tmp_path: Path
) -> None:
    """With no tracklets the network has no memory: cutting must not change what it sees."""
    for name, frames in (("whole", None), ("cut", 5)):
        start(videos, tmp_path / name, clip_frames=frames, settings=["model.sigma_det=1"])
    one, other = (table(tmp_path / name, "detections").to_pandas() for name in ("whole", "cut"))
    other = other[other.owned].reset_index()
    for name in ("boxes", "scores", "labels"):
        assert [[list(map(float, box)) if name == "boxes" else float(box) for box in row] for row in one[name]] == [
            [pytest.approx(list(map(float, box)), abs=1e-3) if name == "boxes" else pytest.approx(float(box), abs=1e-4)
             for box in row]
            for row in other[name]
        ]  # fmt: skip


@pytest.fixture(scope="module")
def half_bad(videos: Path, start: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good video among three that are none, or not whole."""
    folder = tmp_path_factory.mktemp("bad")
    shutil.copy(videos / "a.mp4", folder / "good.mp4")
    (folder / "text.mp4").write_text("this is no video\n" * 100)
    (folder / "empty.mp4").write_bytes(b"")
    whole = (videos / "b.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    assert start(folder, folder / "run") == 2
    return folder / "run"


def test_no_video_vanishes_and_each_bad_one_says_why(table: Table, half_bad: Path) -> None:
    rows = {row["video_id"]: row for row in table(half_bad, "videos").to_pylist()}
    statuses = {name: row["status"] for name, row in rows.items()}
    assert statuses == {"good": "ok", "text": "failed", "empty": "failed", "cut": "failed"}
    for name in ("text", "empty", "cut"):
        assert len(rows[name]["error"]) > 10
        assert "\n" not in rows[name]["error"]


def test_the_good_video_among_bad_ones_is_whole(table: Table, half_bad: Path) -> None:
    assert set(table(half_bad, "tracks")["video_id"].to_pylist()) == {"good"}
    assert len(table(half_bad, "detections")) == 30


def test_nothing_good_at_all_is_exit_code_1(start: Runs, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is no video\n" * 100)
    assert start(tmp_path / "text.mp4", tmp_path / "run") == 1


BAD_COMMANDS = {
    "misspelt option": (["run", "{videos}", "--modle", "smot"], "no such option: --modle"),
    "missing file": (["run", "{videos}/d.mp4"], "d.mp4"),
    "unknown catalog": (["run", "--catalog", "sinthetic"], "unknown catalog 'sinthetic' .did you mean 'synthetic'"),
    "unknown model": (["run", "{videos}", "--model", "smut"], "unknown model 'smut' .did you mean 'smot'"),
    "unknown linker": (["run", "{videos}", "--linker", "keeep"], "unknown linker 'keeep' .did you mean 'keep'"),
    "unknown recipe": (["run", "{videos}", "--recipe", "dmo"], "unknown recipe 'dmo' .did you mean 'demo'"),
    "misspelt setting": (["run", "{videos}", "--set", "model.sigma=1"], "has no setting 'sigma' .did you mean"),
    "misspelt section": (["run", "{videos}", "--set", "modle.k=1"], "names no setting"),
    "value out of range": (["run", "{videos}", "--set", "model.sigma_det=7"], "sigma_det is 7"),
    "corrupt weights": (["run", "{videos}", "--set", "model.weights={videos}/a.mp4"], "a.mp4"),
    "missing weights": (["run", "{videos}", "--set", "model.weights=nosuch.safetensors"], "nosuch"),
    "impossible pair": (
        ["link", "{given}", "--linker", "keep"],
        "gives boxes, scores and labels only; choose another linker: bytetrack, offline, online, seq_nms, ",
    ),
    "what the settings leave out": (
        [
            *("run", "{videos}", "--model", "plug_and_play", "--set", "model.moves=false"),
            *("--linker", "seq_nms", "--set", "linker.links=moves"),
        ],
        "linker seq_nms needs moves; model plug_and_play with these settings gives boxes, scores and labels only; "
        "change the settings of linker seq_nms, or choose another linker: ",
    ),
    "a range without frames": (["run", "{videos}", "--frames", "9:3"], "frames is '9:3', which holds no frame"),
    "no range": (["detect", "{videos}", "--set", "frames=half"], "frames is 'half'; it must be START:STOP"),
    "a setting of another verb": (["link", "{given}", "--set", "model.k=1"], "names no setting that counts here"),
    "more networks than fit": (
        ["run", "{videos}", "--set", "model.weights={weights}", "--workers", "4000"], "--workers 4000 is more than",
    ),
    "no source": (["run"], "the catalog folder needs videos"),
    "an empty output": (["run", "{videos}", "--output", ""], "--output is empty"),
    "an output that is a file": (
        ["run", "{videos}", "--set", "model.weights={weights}", "--output", "{weights}/run"], "cannot be written",
    ),
    "a GPU that is not there": (
        ["run", "{videos}", "--set", "model.weights={weights}", "--local", "--gpus", "1"], "a GPU is asked for",
    ),
    "no library for the URL": (["run", "nosuch://bucket/videos"], "nosuch"),
    "output of another recipe": (
        ["run", "{videos}", "--set", "model.weights={weights}", "--output", "{made}"], "was made by another recipe",
    ),
    "memory output on Ray": (
        ["run", "{videos}", "--set", "model.weights={weights}", "--output", "memory://x"], "add --local",
    ),
    "a run that is none": (["query", "{videos}", "SELECT 1"], "is not a run"),
}  # fmt: skip


@pytest.mark.parametrize(("words", "message"), BAD_COMMANDS.values(), ids=BAD_COMMANDS)
def test_bad_commands_end_in_one_sentence_before_any_work(
    words: list[str],
    message: str,
    videos: Path,
    weights: str,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = tmp_path / "det.txt"
    given.write_text("1,-1,0,0,10,10,0.9,-1,-1,-1\n")
    places = {"videos": str(videos), "given": str(given), "weights": weights, "made": str(undisturbed)}
    words = [word.format(**places) for word in words]
    if "--output" not in words and words[0] != "query":
        words += ["--output", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["trackloom", *words])
    monkeypatch.setattr("pipeline.engine.OnRay.start", lambda self: pytest.fail("Ray was started"))
    with pytest.raises(SystemExit) as stop:
        command.main()
    said = capsys.readouterr()
    assert stop.value.code == 1
    assert said.out == ""
    assert len(said.err.strip().splitlines()) == 1
    assert re.search(message, said.err), said.err
    assert not (tmp_path / "run").exists()


def test_explain_prints_the_plan_and_does_nothing(
    videos: Path, start: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(videos, tmp_path / "run", explain=True, local=False, clip_frames=8) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0] == f"3 videos -> {tmp_path}/run, on ray, clips of 8 frames"
    for stage in ("plan", "decode", "detect", "write", "gather", "link"):
        assert any(line.startswith(stage) and "->" in line for line in said.splitlines()), stage
    assert not (tmp_path / "run").exists()


def test_killed_and_started_again_equals_undisturbed(
    same_rows: SameRows, videos: Path, start: Runs, settings: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    words = [str(videos), "--linker", "tracklets", "--clip-frames", "8", "--local", "--no-report", "-o", str(output)]
    for setting in settings:
        words += ["--set", setting]
    process = subprocess.Popen([sys.executable, "-m", "jobs.run", *words], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(Run(str(output)).parts()) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        # Seldom before the first part: to get there it needs the CPU that looking takes.
        time.sleep(0.002 if (output / "_parts").exists() else 0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = Run(str(output)).parts()
    assert 2 <= len(left) < 9
    assert not (output / "tracks").exists()
    before = {name: (output / "_parts" / f"{name}.parquet").stat().st_mtime_ns for name in left}

    seen = []
    keep = flow.WritePart.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            flow.WritePart, "__call__", lambda self, part: (seen.append(part.ref.clip_id), keep(self, part))[1]
        )
        assert start(videos, output, clip_frames=8) == 0
    assert before
    assert not before.keys() & set(seen), "what was marked done was done again"
    same_rows(output, undisturbed)
    assert start(videos, output, clip_frames=8) == 0  # nothing is left to do, and nothing changes
    same_rows(output, undisturbed)


def test_ctrl_c_says_that_nothing_is_lost(
    videos: Path,
    settings: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Pressed when the first clip is whole, in this process, which is soon there."""
    keep = flow.WritePart.__call__

    def pressed(self: flow.WritePart, part: Part) -> Any:
        written = list(keep(self, part))
        os.kill(os.getpid(), signal.SIGINT)
        return written

    monkeypatch.setattr(flow.WritePart, "__call__", pressed)
    words = [str(videos), "--linker", "tracklets", "--clip-frames", "8", "--local", "--no-report"]
    chosen = [word for setting in settings for word in ("--set", setting)]
    monkeypatch.setattr(sys, "argv", ["trackloom", "run", *words, *chosen, "--output", str(tmp_path / "run")])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a runner of tests may ignore it
    try:
        with pytest.raises(SystemExit) as stop:
            command.main()
    finally:
        signal.signal(signal.SIGINT, before)
    assert stop.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("stopped; what was written is whole")
    assert len(Run(str(tmp_path / "run")).parts()) == 1


def test_detect_then_link_equals_run_and_is_scored(
    table: Table, weights: str, settings: list[str], tmp_path: Path
) -> None:
    """Detect once, link as often as you like: same rows, same scores as in one go."""
    of_model = [setting for setting in settings if setting.startswith("model.")]
    of_linker = [setting for setting in settings if not setting.startswith("model.")]
    common: dict[str, Any] = {"catalog": "synthetic", "local": True}
    split = ["catalog.split=val"]
    assert run(output=str(tmp_path / "all"), settings=[*split, *settings], linker="tracklets", report=False,
               max_videos=2, **common) == 0  # fmt: skip
    assert detect(output=str(tmp_path / "seen"), settings=[*split, *of_model], max_videos=2, **common) == 0
    linked = tmp_path / "linked"
    assert link(str(tmp_path / "seen"), output=str(linked), linker="tracklets", settings=of_linker, local=True) == 0
    for name in ("tracks", "truth", "scores"):
        one, other = (repr(table(place, name).to_pylist()) for place in (linked, tmp_path / "all"))  # nan equals nan
        assert one == other, name
    with pytest.raises(ValueError, match="is the run whose detections are linked"):
        link(str(tmp_path / "seen"), output=str(tmp_path / "seen"), linker="tracklets", overwrite=True, local=True)
    (tmp_path / "seen" / "detections" / "shard-00000.parquet").rename(tmp_path / "aside")
    with pytest.raises(ValueError, match="has no detections yet"):
        link(str(tmp_path / "seen"), output=str(tmp_path / "other"), linker="tracklets", local=True)


def test_thresholds_take_ids_and_rows_and_leave_the_order(
    table: Table, videos: Path, start: Runs, tmp_path: Path
) -> None:
    start(videos / "a.mp4", tmp_path / "free")
    rows = table(tmp_path / "free", "tracks").to_pandas()
    middle = float(rows.track_score.median())
    start(videos / "a.mp4", tmp_path / "held", settings=[f"tracking_threshold={middle}"])
    held = table(tmp_path / "held", "tracks").to_pandas()
    assert len(held) == len(rows)
    assert 0 < held.track_id.notna().sum() < rows.track_id.notna().sum()
    assert held.track_score.min() >= np.float32(middle)
    assert sorted(held.track_id.dropna().unique()) == list(range(1, held.track_id.nunique() + 1))
    keys = list(zip(held.frame_index, held.track_id.fillna(1e9), strict=True))
    assert keys == sorted(keys)
    cut = float(rows.score.quantile(0.5))
    start(videos / "a.mp4", tmp_path / "cut", settings=[f"detection_threshold={cut}"])
    assert table(tmp_path / "cut", "tracks").to_pandas().score.min() >= np.float32(cut)


def test_what_breaks_half_way_through_a_video_keeps_what_was_seen(
    table: Table, videos: Path, start: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that nobody foresaw, in the decoder or in the network, is that video's alone."""
    see = Detect.see

    def breaks(self: Detect, clip: Clip, memory: object) -> Any:
        if clip.ref.video.video_id == "b" and clip.frame_index[0] >= 8:
            raise RuntimeError("out of\nmemory")
        return see(self, clip, memory)

    monkeypatch.setattr(Detect, "see", breaks)
    assert start(videos, tmp_path / "network", settings=["chunk_frames=4"]) == 2
    rows = {row["video_id"]: row for row in table(tmp_path / "network", "videos").to_pylist()}
    assert [rows[name]["status"] for name in ("a", "b", "deeper/c")] == ["ok", "partial", "ok"]
    assert (rows["b"]["stage"], rows["b"]["error"]) == ("detect", "RuntimeError: out of memory")
    assert rows["b"]["frames_decoded"] == 8

    monkeypatch.undo()
    probe = planning.probe
    monkeypatch.setattr(planning, "probe", lambda video: probe(video) if video.video_id != "b" else int("no number"))
    assert start(videos, tmp_path / "header") == 2
    rows = {row["video_id"]: row for row in table(tmp_path / "header", "videos").to_pylist()}
    assert rows["b"]["status"] == "failed"
    assert rows["b"]["error"].startswith("ValueError: invalid literal")


def test_a_run_among_its_own_videos_is_none_of_them(
    table: Table, start: Runs, film: Callable[..., None], tmp_path: Path
) -> None:
    """With its report, which holds a video: the same command again finds what it found."""
    film(tmp_path / "x.mp4", 10, 5)
    for _ in range(2):
        assert start(tmp_path, tmp_path / "runs" / "one", report=True) == 0
    assert list((tmp_path / "runs" / "one" / "report").glob("*.mp4"))
    assert table(tmp_path / "runs" / "one", "videos")["video_id"].to_pylist() == ["x"]


def test_a_decoder_that_breaks_half_way_gives_the_same_decoded_apart_or_where_it_is_seen(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was decoded before an error that nobody foresaw is kept, also in the middle of a chunk."""
    frames = AvReader.frames

    def breaks(self: AvReader, *given: Any) -> Any:
        for index, frame in frames(self, *given):
            if index == 7:
                raise RuntimeError("no such\ncodec")
            yield index, frame

    monkeypatch.setattr(AvReader, "frames", breaks)
    monkeypatch.setattr(decoders, "READ_AHEAD_BYTES", 0)  # so that it is PyAV that decodes
    unit = Unit((ClipRef(VideoInfo("a", str(videos / "a.mp4"), "folder")),))
    (decoded,) = Decode(Resize(), 4)(unit)
    assert isinstance(decoded, Decoded)
    assert decoded.clip.frame_index.tolist() == list(range(7))
    assert decoded.clip.error == "RuntimeError: no such codec"
    seen = [frame for _, chunks in clips_of(unit, Resize(), 4) for chunk in chunks for frame in chunk.frames]
    assert np.array_equal(np.stack(seen), decoded.clip.frames)


def test_the_same_said_otherwise_is_the_same_run(videos: Path, start: Runs, tmp_path: Path) -> None:
    start(videos / "a.mp4", tmp_path / "run", settings=["model.sigma_track=0.020"])
    relative = os.path.relpath(videos / "a.mp4")
    assert start(relative, tmp_path / "run", settings=["model.sigma_track=2e-2"]) == 0
    with pytest.raises(ValueError, match=r"model_settings\.sigma_track is 0\.02 there and 0\.03 here"):
        start(videos / "a.mp4", tmp_path / "run", settings=["model.sigma_track=0.03"])


def test_ids_start_anew_in_each_video(table: Table, start: Runs, film: Callable[..., None], tmp_path: Path) -> None:
    """The same content twice: equal rows, ids that start at 1 in each."""
    for name in ("x", "y"):
        film(tmp_path / f"{name}.mp4", 10, 5)
    start(tmp_path, tmp_path / "run", settings=[])
    tracks = table(tmp_path / "run", "tracks").to_pandas()
    one, other = (tracks[tracks.video_id == name].drop(columns="video_id").reset_index(drop=True) for name in "xy")
    assert one.track_id.min() == 1
    assert one.equals(other)
