"""SQL over a run's tables, wherever they lie."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.query import query


@pytest.mark.parametrize("place", ["disk", "memory"])
def test_every_table_can_be_asked(
    place: str, videos: Path, start: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "run") if place == "disk" else f"memory://{tmp_path.name}"
    start(videos / "deeper" / "c.mp4", output)
    capsys.readouterr()
    for table in ("videos", "detections", "tracks"):
        query(output, f"SELECT count(*) AS rows FROM {table}", csv=True)
        header, count = capsys.readouterr().out.split()
        assert (header, int(count) > 0) == ("rows", True)
    query(output, "SELECT status, frames_decoded FROM videos")
    said = capsys.readouterr().out
    assert "frames_decoded" in said
    assert "12" in said


@pytest.mark.parametrize("sql", ["SELECT nothing FROM tracks", "SELCT 1", "SELECT * FROM truth"])
def test_what_cannot_be_asked_is_said_in_a_sentence(
    sql: str, videos: Path, start: Callable[..., int], tmp_path: Path
) -> None:
    start(videos / "deeper" / "c.mp4", tmp_path / "run")
    with pytest.raises(ValueError, match=r"nothing|SELCT|truth") as refusal:
        query(str(tmp_path / "run"), sql)
    assert "\n" not in str(refusal.value)
