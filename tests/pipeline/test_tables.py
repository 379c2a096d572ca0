"""Runs: files that are whole or absent, and folders that belong to one recipe."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.tables import Run, read_run

TABLE = pa.table({"a": [1, 2, 3]})


@pytest.fixture(params=["disk", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "run") if request.param == "disk" else f"memory://{tmp_path.name}"


def test_a_table_is_read_as_written_with_what_made_it(url: str) -> None:
    run = Run(url, {"commit": "abc"})
    run.write_table(TABLE, "tracks", "shard-00000.parquet", metadata={"more": "1"})
    table = run.read_table("tracks", "shard-00000.parquet")
    assert table.equals(TABLE)
    assert table.schema.metadata == {b"trackloom": b'{"commit": "abc"}', b"more": b"1"}
    assert run.shards("tracks") == ["shard-00000.parquet"]
    assert pickle.loads(pickle.dumps(run)).read_table("tracks", "shard-00000.parquet").equals(TABLE)


def test_what_is_half_written_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies while it writes leaves no file that globbing would find."""
    run = Run(str(tmp_path))

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", dies)
    with pytest.raises(KeyboardInterrupt):
        run.write_table(TABLE, "tracks", "shard-00000.parquet")
    assert list(tmp_path.glob("tracks/*.parquet")) == []
    assert all(path.name.startswith(".") for path in (tmp_path / "tracks").iterdir()), "folder readers would read it"
    assert run.shards("tracks") == []


def test_parts_are_known_by_clip(url: str) -> None:
    run = Run(url)
    assert run.parts() == set()
    run.write_table(TABLE, "_parts", "abc.parquet")
    assert run.parts() == {"abc"}
    run.remove("_parts")
    assert run.parts() == set()


def test_a_run_belongs_to_what_made_it(url: str) -> None:
    first = Run(url).claim({"recipe": {"model": "smot", "settings": {"k": 1}}}, ["a"])
    again = Run(url).claim({"recipe": {"model": "smot", "settings": {"k": 1}}}, ["a"])
    assert again.about["run_id"] == first.about["run_id"]
    assert read_run(url).about["classes"] == ["a"]
    with pytest.raises(ValueError, match=r"recipe\.settings\.k is 1 there and 2 here.*--overwrite"):
        Run(url).claim({"recipe": {"model": "smot", "settings": {"k": 2}}}, ["a"])
    first.write_table(TABLE, "tracks", "shard-00000.parquet")
    taken = Run(url).claim({"recipe": {"model": "smot", "settings": {"k": 2}}}, ["a"], overwrite=True)
    assert taken.about["run_id"] != first.about["run_id"]
    assert taken.shards("tracks") == []


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["tracks", "videos", "report", "_parts"])
def test_strangers_files_are_not_taken_over_nor_thrown_away(url: str, name: str, overwrite: bool) -> None:
    Run(url).write(b"theirs", name, "precious")
    with pytest.raises(ValueError, match=rf"holds {name} but no run\.json"):
        Run(url).claim({}, [], overwrite)
    assert Run(url).read(name, "precious") == b"theirs"


def test_overwriting_leaves_files_that_are_no_tables(url: str) -> None:
    run = Run(url).claim({"a": 1}, [])
    run.write(b"mine", "videos", "holiday.mp4")
    run.write(b"mine", "notes.txt")
    run.write_table(TABLE, "videos", "shard-00000.parquet")
    again = Run(url).claim({"a": 2}, [], overwrite=True)
    assert (again.names("videos"), again.names()[-1]) == (["holiday.mp4"], "videos")
    assert again.read("notes.txt") == b"mine"


def test_overwriting_cut_short_does_not_leave_old_parts_to_a_new_recipe(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Run(url).claim({"a": 1}, []).write_table(TABLE, "_parts", "abc.parquet")
    remove = Run.remove

    def dies_after_one(self: Run, *names: str) -> None:
        remove(self, *names)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "remove", dies_after_one)
        with pytest.raises(KeyboardInterrupt):
            Run(url).claim({"a": 2}, [], overwrite=True)
    with pytest.raises(ValueError, match="was made by another recipe"):
        Run(url).claim({"a": 2}, [])
    assert Run(url).parts() == set()


def test_a_run_travels_to_workers_in_other_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    packed = pickle.dumps(Run("here"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    pickle.loads(packed).write_table(TABLE, "tracks", "shard-00000.parquet")
    assert (tmp_path / "here" / "tracks" / "shard-00000.parquet").exists()


def test_missing_and_broken_files_are_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a run"):
        read_run(str(tmp_path / "nothing"))
    run = Run(str(tmp_path))
    with pytest.raises(ValueError, match="has no tracks table; it has: no table at all"):
        run.table("tracks")
    run.write(b"PAR1 and then nothing", "tracks", "shard-00000.parquet")
    with pytest.raises(ValueError, match="is not a whole Parquet file"):
        run.table("tracks")
    run.write(b"{", "run.json")
    with pytest.raises(ValueError, match="is not whole JSON"):
        run.made_by()
