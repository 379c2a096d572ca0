"""What is done to tracks after linking, as a user asks for it: `--set refine.NAME=VALUE`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jobs import command
from jobs.link import link
from pipeline.tables import read_run

SEEN = [frame for frame in range(1, 31) if frame not in (9, 10, 20)]


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """One object that moves 3 pixels a frame, jittery and not seen in three of them; and one that stays and is seen."""
    random = np.random.default_rng(0)
    rows = [(t, 3 * t, 50, 40, 30, 0.6 + 0.3 * (t % 2)) for t in SEEN] + [
        (t, 300, 50, 40, 30, 0.9) for t in range(1, 31)
    ]
    text = [
        ",".join(map(str, [t, -1, *(np.array(box) + random.normal(0, 1, 4)).round(3), score, -1, -1, -1]))
        for t, *box, score in rows
    ]
    path = tmp_path / "det.txt"
    path.write_text("\n".join(text))
    return path


def tracks(output: Path) -> pd.DataFrame:
    return read_run(str(output)).table("tracks").to_pandas()


def test_link_fills_rescores_and_smooths(given: Path, tmp_path: Path) -> None:
    plain, refined = tmp_path / "plain", tmp_path / "refined"
    assert link(str(given), output=str(plain), local=True) == 0
    wanted = ["refine.fill=5", "refine.rescore=mean", "refine.smooth=all", "refine.min_length=5"]
    assert link(str(given), output=str(refined), local=True, settings=wanted) == 0
    before, after = tracks(plain), tracks(refined)
    assert len(before) == len(SEEN) + 30
    assert len(after) == 60
    made = after[after.origin == "interpolated"]
    assert sorted(made.frame_index) == [8, 9, 19]
    assert made.timestamp_s.tolist() == pytest.approx((made.frame_index / 30).tolist())
    for _, track in after.groupby("track_id"):
        assert track.score.nunique() == 1
    moving = after[after.x1 < 200].sort_values("frame_index")
    was = before[before.x1 < 200].sort_values("frame_index")
    assert moving.score.iloc[0] == pytest.approx(was.score.mean(), abs=1e-5)
    assert np.abs(np.diff(moving.x1) - 3).max() < 0.5 < np.abs(np.diff(was.x1[was.frame_index < 8]) - 3).max()


def test_a_run_without_refining_is_the_run_it_always_was(given: Path, tmp_path: Path) -> None:
    """Nothing in run.json speaks of it, so runs from before go on; said defaults are the same; another is refused."""
    output = tmp_path / "run"
    link(str(given), output=str(output), local=True)
    assert "refine" not in str(read_run(str(output)).about["identity"])
    assert link(str(given), output=str(output), local=True, settings=["refine.fill=0"]) == 0
    with pytest.raises(ValueError, match=r"refine_settings is None there and .*'fill': 3"):
        link(str(given), output=str(output), local=True, settings=["refine.fill=3"])


WRONG = {
    "no such setting": ("link", "refine.nonsense=1", "refine has no setting 'nonsense'; it has: min_length=1, "),
    "misspelt": ("link", "refine.smoth=all", "refine has no setting 'smoth' (did you mean 'smooth'?)"),
    "no such rule": ("link", "refine.rescore=best", "refine.rescore is 'best'; it must be one of: none, mean, "),
    "out of range": ("link", "refine.fill=-1", "refine.fill is -1; it must be at least 0"),
    "no number": ("link", "refine.strength=much", "refine.strength is 'much'; it must be a number"),
    "of no tracks": ("detect", "refine.fill=1", "names no setting that counts here"),
    "before the network": ("run", "refine.fill=-1", "refine.fill is -1; it must be at least 0"),
}


@pytest.mark.parametrize(("verb", "setting", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_ends_in_a_sentence_before_any_work(
    verb: str,
    setting: str,
    message: str,
    given: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("pipeline.engine.OnRay.start", lambda self: pytest.fail("Ray was started"))
    words = [verb, str(given), "--output", str(tmp_path / "run"), "--set", setting]
    monkeypatch.setattr(sys, "argv", ["trackloom", *words])
    with pytest.raises(SystemExit) as stop:
        command.main()
    said = capsys.readouterr()
    assert stop.value.code == 1
    assert len(said.err.strip().splitlines()) == 1
    assert message in said.err
    assert not (tmp_path / "run").exists()
