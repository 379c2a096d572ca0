"""What a training puts on the disk goes with its process, however that ends."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.training.scratch import scratch

ROOT = Path(__file__).parents[3]
WAITING = """
from pipeline.training.scratch import scratch
with scratch() as folder:
    (folder / "frames").write_bytes(b"x")
    print("ready", flush=True)
    input()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files lie, in other processes too."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_only_what_a_killed_process_left_is_removed(temporary: Path) -> None:
    (temporary / "trackloom-training-by-hand").mkdir()
    others = [
        subprocess.Popen(
            [sys.executable, "-c", WAITING], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for other in others:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
    assert len(list(temporary.glob("*/frames"))) == 2
    others[0].kill()
    others[0].communicate()
    with scratch() as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["lock"]
        (alive,) = temporary.glob("*/frames")
    assert not folder.exists()
    others[1].communicate("\n")
    assert others[1].returncode == 0
    assert not alive.parent.exists()
    assert [path.name for path in temporary.iterdir()] == ["trackloom-training-by-hand"]
