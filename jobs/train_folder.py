"""The folder of a training, at any fsspec URL: whose it is, what lies in it, and what may be thrown away.

    OUT/training.json              what made it, and how far it is
    OUT/checkpoints/               what a stopped training goes on from
    OUT/losses.parquet             one row a step
    OUT/scores.parquet             one row a validation and metric
    OUT/training.html              both as curves
    OUT/best.safetensors, .md      the weights of the best score, and their card
    OUT/last.safetensors, .md      those after the last step

A finished training is never taken for the one that is asked for: it is refused, whatever its settings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.train_card import Made
from jobs.train_judge import BEST, LAST, SCORES
from pipeline.tables import Run, Store, differences
from pipeline.training.checkpoints import FOLDER, Checkpoints
from pipeline.training.history import Row, columns
from pipeline.training.work import Work

Floats = NDArray[np.float64]

ABOUT, LOSSES, PAGE = "training.json", "losses.parquet", "training.html"
CARDS = tuple(name.replace(".safetensors", ".md") for name in (BEST, LAST))
# ABOUT last: what is left of an overwriting cut short still says whose it is.
ALL = (FOLDER, LOSSES, SCORES, PAGE, BEST, LAST, *CARDS, ABOUT)


@dataclass(frozen=True)
class Folder:
    """A training's folder. about: what `training.json` says."""

    store: Store
    about: dict[str, Any]

    @property
    def begun(self) -> str:
        """What is to be said of the processes before this one, where they were of other commits, else ""."""
        others = [each for each in self.about["starts"][:-1] if each["commit"] != self.about["starts"][-1]["commit"]]
        return "".join(f"; from step {each['step']:,} at commit {each['commit'] or 'unknown'}" for each in others)

    def write_about(self, state: str, step: int) -> None:
        """Says how far the training is. state: `running` or `finished`."""
        self.about.update(state=state, step=step)
        self.store.write((json.dumps(self.about, indent=2) + "\n").encode(), ABOUT)

    def write_losses(self, steps: Mapping[str, Floats]) -> None:
        """Writes a row for every step so far. steps: its columns, see `columns_of`."""
        table = pa.table({name: column.astype(int) if name == "step" else column for name, column in steps.items()})
        Run(self.store.url).write_table(table, LOSSES)

    def scores(self) -> list[dict[str, float]]:
        """A row for each validation so far, with its `step`."""
        if not self.store.exists(SCORES):
            return []
        rows: dict[int, dict[str, float]] = {}
        for row in Run(self.store.url).read_table(SCORES).to_pylist():
            rows.setdefault(row["step"], {"step": row["step"]})[row["metric"]] = row["value"]
        return list(rows.values())


def done(store: Store) -> int:
    """The steps after which there is a checkpoint to go on from; 0 for none."""
    return max(Checkpoints(store).steps(), default=0)


def taken(url: str) -> list[str]:
    """What lies in a folder, but for what is hidden."""
    return [name for name in Store(url).names() if not name.startswith(".")]


def known(url: str) -> dict[str, Any] | None:
    """What a folder's `training.json` says; None where it is empty or not there.

    Raises ValueError where it holds something that no training of ours wrote.
    """
    there = taken(url)
    if ABOUT in there:
        try:
            about = json.loads(Store(url).read(ABOUT))
        except ValueError:
            about = None
        if not isinstance(about, dict) or not {"identity", "state", "step", "starts"} <= about.keys():
            raise ValueError(f"{url}/{ABOUT} is not what a training of ours wrote; choose another --out")
        return about
    if there:
        shown = ", ".join(there[:5]) + (", ..." if there[5:] else "")
        raise ValueError(f"--out {url} holds {shown} and no {ABOUT}, so it is no training's; choose another")
    return None


def check(url: str, identity: Mapping[str, Any], overwrite: bool) -> None:
    """Raises ValueError where the folder is not to be had for the training of this identity; writes nothing."""
    about = known(url)
    if about is None or overwrite:
        return
    if others := list(differences(about["identity"], json.loads(json.dumps(identity)))):
        others.sort(key=lambda text: not text.startswith("training."))  # other data follow from other settings
        raise ValueError(
            f"{url} is of another training ({'; '.join(others[:3])}{'; and more' if others[3:] else ''}); give another "
            "--out, or --overwrite to throw that one away"
        )
    if about["state"] == "finished":
        raise ValueError(
            f"{url} holds a finished training of these settings; give another --out, or --overwrite to train anew"
        )


def claim(url: str, identity: Mapping[str, Any], made: Made, overwrite: bool) -> Folder:
    """The folder, made this training's; what another left goes only with overwrite, and only what a training writes.

    Raises ValueError where it is not to be had, and OSError where it cannot be written.
    """
    check(url, identity, overwrite)
    store, about = Store(url), known(url)
    try:
        if about is not None and overwrite:
            for name in ALL:
                store.remove(name)
            about = None
        about = about or {"identity": dict(identity), "classes": list(made.classes), "starts": []}
        folder = Folder(store, about)
        step = done(store)
        start = {"step": step, "command": made.command, "commit": made.commit, "versions": made.versions}
        about["starts"].append(start)
        folder.write_about("running", step)
    except OSError as error:
        raise OSError(f"--out {url} cannot be written: {(error.strerror or str(error)).lower()}") from None
    return folder


def identity_of(work: Work, half: bool) -> dict[str, Any]:
    """What leads to a training's weights, as nested plain values: another identity, other weights."""
    checkpoints = replace(work, out=work.out or ".").checkpoints
    assert checkpoints is not None
    return {**checkpoints.made_by, "half": half}


def columns_of(rows: Sequence[Row]) -> dict[str, Floats]:
    """The rows of all steps as a column (N,) for each of their names."""
    return {name: column.numpy() for name, column in columns(rows).items()}
