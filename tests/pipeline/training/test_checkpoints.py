"""Checkpoints: whole or refused, of this training or refused, and no more of them than are wanted."""

from __future__ import annotations

import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.tables import Store
from pipeline.training.checkpoints import Checkpoints, Damaged
from pipeline.training.history import Record, columns, mean_losses, rows

STATE: dict[str, Any] = {"tensor": torch.arange(4.0), "plain": [1, 2.5, None, "text"]}


def path(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:08d}.pt"


@pytest.mark.parametrize("url", ["{}", "file://{}", "memory://{}"])
def test_what_is_saved_comes_back(url: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(Store(url.format(tmp_path)))
    assert checkpoints.steps() == []
    assert checkpoints.last() is None
    checkpoints.save(7, STATE)
    found = checkpoints.last()
    assert found is not None
    step, state = found
    assert step == 7
    assert torch.equal(state["tensor"], STATE["tensor"])
    assert state["plain"] == STATE["plain"]


def test_the_last_ones_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Store(str(tmp_path)), keep=2)
    for step in (5, 10, 15, 100):
        checkpoints.save(step, STATE)
    assert checkpoints.steps() == [15, 100]
    checkpoints.save(20, STATE)  # gone on from 15, since 100 is damaged
    assert checkpoints.steps() == [15, 20]
    assert sorted(each.name for each in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000015.pt",
        "step-00000020.pt",
    ]


@pytest.mark.parametrize("damage", ["cut", "a bit", "nothing left", "longer"])
def test_what_is_damaged_is_passed_over_with_a_sentence(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = Checkpoints(Store(str(tmp_path)))
    for step in (1, 2):
        checkpoints.save(step, {"step": step})
    content = path(tmp_path, 2).read_bytes()
    middle = len(content) // 2
    path(tmp_path, 2).write_bytes(
        {
            "cut": content[:middle],
            "a bit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "nothing left": b"",
            "longer": content + b"\0",
        }[damage]
    )
    with pytest.raises(Damaged):
        checkpoints.load(2)
    assert checkpoints.last() == (1, {"step": 1})
    said = capsys.readouterr().err
    assert said == f"checkpoint {path(tmp_path, 2)} is damaged; the training goes on from what is whole before it\n"
    path(tmp_path, 1).write_bytes(b"")
    assert checkpoints.last() is None


def test_another_training_is_refused_by_what_differs(tmp_path: Path) -> None:
    made_by = {"training": {"seed": 0, "steps": 5}, "classes": ["a", "b"]}
    Checkpoints(Store(str(tmp_path)), made_by).save(1, STATE)
    assert Checkpoints(Store(str(tmp_path)), dict(made_by)).last() is not None
    other = {"training": {"seed": 0, "steps": 6}, "classes": ["b", "a"]}
    with pytest.raises(
        ValueError,
        match=r"step-00000001.pt is of another training: classes is \['a', 'b'\] there and \['b', 'a'\] here; "
        r"training.steps is 5 there and 6 here. Go on with the same, or choose another folder",
    ):
        Checkpoints(Store(str(tmp_path)), other).last()


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Store(str(tmp_path)))
    checkpoints.save(1, {"path": Path("of an object")})
    with pytest.raises(pickle.UnpicklingError):
        checkpoints.load(1)


def record(steps: int) -> Record:
    history = [{"step": i + 1, "box": 0.1 * i, "gradient": 1.0 / (i + 1), "seconds": 0.5} for i in range(steps)]
    return Record(history, [{"step": steps, "mAP": 0.5}, {"step": steps}], 3.25)


@pytest.mark.parametrize("steps", [0, 1, 30])
def test_a_record_comes_back_to_the_bit(steps: int, tmp_path: Path) -> None:
    checkpoints = Checkpoints(Store(str(tmp_path)))
    checkpoints.save(1, record(steps).state())
    found = Record.of(checkpoints.load(1))
    assert found == record(steps)
    assert all(type(row["step"]) is int for row in found.steps)


def test_a_long_record_is_written_and_read_in_no_time(tmp_path: Path) -> None:
    """As rows it would take a second to write and five to read."""
    checkpoints, whole = Checkpoints(Store(str(tmp_path))), record(100_000)
    start = time.process_time()
    checkpoints.save(1, whole.state())
    assert Record.of(checkpoints.load(1)).steps[-1] == whole.steps[-1]
    assert time.process_time() - start < 3
    assert path(tmp_path, 1).stat().st_size < 4e6


def test_losses_are_means_of_what_is_no_measure() -> None:
    assert mean_losses([]) == {}
    some = [{"step": 1, "box": 1.0, "seconds": 9.0}, {"step": 2, "box": 2.0, "seconds": 9.0}]
    assert mean_losses(some) == {"box": 1.5}
    assert rows(columns(some)) == some
