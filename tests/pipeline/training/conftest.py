"""A short training of the small detector, and how two of its kind are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from pipeline.training import start
from pipeline.training.history import Row
from pipeline.training.labelled import Material, material_of
from pipeline.training.loop import Fitted
from pipeline.training.settings import Training
from pipeline.training.work import Work


@pytest.fixture(scope="session")
def short() -> Training:
    """Ten steps of the small detector, on no videos yet."""
    return Training(
        model_settings={"detector": "small"}, catalog_settings={"split": "train", "num_videos": 2}, steps=10,
        batch_size=2, warmup=1, checkpoint_every=4, max_failures=1,
    )  # fmt: skip


@pytest.fixture(scope="session")
def chosen(short: Training, tmp_path_factory: pytest.TempPathFactory) -> Training:
    """The same on two videos."""
    return replace(short, source=str(tmp_path_factory.mktemp("videos")))


@pytest.fixture(scope="session")
def material(chosen: Training) -> Material:
    """What it learns from."""
    return material_of(chosen)


@pytest.fixture(scope="session")
def alone(chosen: Training, material: Material) -> Fitted:
    """What it comes to in this process."""
    return start.here(Work(chosen, material))


def without_clock(rows: Sequence[Row]) -> list[Row]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "waited_s", "memory_mb")} for row in rows]


@pytest.fixture(scope="session")
def numbers() -> Callable[[Sequence[Row]], list[Row]]:
    """Rows without what a clock says."""
    return without_clock


@pytest.fixture(scope="session")
def assert_same() -> Callable[[Fitted, Fitted], None]:
    """Asserts that two trainings are one to the bit: what is on record, and the network."""

    def compared(one: Fitted, other: Fitted) -> None:
        assert without_clock(one.history) == without_clock(other.history)
        theirs = other.model.state_dict()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in one.model.state_dict().items())

    return compared
