"""The weights that systems need, of each training seed: which others they begin with, and what trains them."""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jobs.claims.system import System, WeightsFile, of_seed
from jobs.papers import weights
from jobs.train_settings import training_of
from pipeline.tables import Store
from pipeline.training.settings import Training

SUFFIX, FILE = ".safetensors", "papers-weights.json"


@dataclass(frozen=True)
class Trained:
    """Weights of a seed. base: what those of seed 0 are called, of `weights.known()`."""

    base: str
    seed: int

    @property
    def name(self) -> str:
        """What they are called."""
        return of_seed(self.base, self.seed)

    @property
    def after(self) -> Trained | None:
        """The weights, of the same seed, that they begin with; None where with none of ours."""
        base = weights.known()[self.base].after
        return Trained(base, self.seed) if base else None

    def given(self) -> tuple[str, list[str]]:
        """The named training, and what is changed of it but for seed and beginning."""
        parser = argparse.ArgumentParser()
        parser.add_argument("--recipe")
        parser.add_argument("--set", action="append", default=[])
        for always in ("--local", "--half"):
            parser.add_argument(always, action="store_true")
        found = parser.parse_args(shlex.split(weights.known()[self.base].training))
        return found.recipe, found.set

    def settings(self, file: WeightsFile) -> list[str]:
        """All that is changed of the named training but for the seed. file: where weights of a name are."""
        recipe, changes = self.given()
        if self.after is None:
            return changes
        training = training_of(recipe, changes)
        named = {"start": training.start, **{f"model.{key}": value for key, value in training.model_settings.items()}}
        begun = [setting for setting, name in named.items() if name == self.after.base]
        assert begun, f"the training of {self.base} names {self.after.base} nowhere"
        kept = [change for change in changes if change.partition("=")[0] not in begun]
        return [*kept, *(f"{setting}={file(self.after.name)}" for setting in begun)]

    def training(self, file: WeightsFile) -> Training:
        """What is trained."""
        return training_of(self.given()[0], self.settings(file), seed=self.seed)

    def words(self) -> list[str]:
        """The arguments of `trackloom train` that make them, where those that they begin with are in models/weights."""
        recipe, changes = self.given()
        changes = self.settings(str) if self.seed else changes
        return [
            *("--recipe", recipe, "--local", "--half"),
            *(word for change in changes for word in ("--set", change)),
            *(("--seed", str(self.seed)) if self.seed else ()),
            *("--out", f"runs/{self.name}", "--export", f"models/weights/{self.name}{SUFFIX}"),
        ]


def needed(systems: Sequence[System], seeds: Sequence[int], beginnings: bool = False) -> list[Trained]:
    """What the systems need, each once, what is begun with first. beginnings: also what only others begin with."""
    found: dict[Trained, None] = {}
    for seed in seeds:
        for system in systems:
            for base in system.weights().values():
                line = [Trained(base, seed)]
                while beginnings and (before := line[-1].after) is not None:
                    line.append(before)
                found.update(dict.fromkeys(reversed(line)))
    return list(found)


def check_shipped(wanted: Sequence[Trained]) -> None:
    """Raises FileNotFoundError where some are not in models/weights."""
    lacking = [each.name for each in wanted if not (weights.SHIPPED / f"{each.name}{SUFFIX}").is_file()]
    if lacking:
        raise FileNotFoundError(
            f"{len(lacking)} of the {len(wanted)} weights that these systems and seeds need are not in models/weights, "
            f"such as {lacking[0]}; --retrain trains them, and other --seeds or --systems may need others"
        )


def write_digests(out: str, wanted: Sequence[Trained], file: WeightsFile) -> None:
    """Writes papers-weights.json: of each file its SHA-256, and the command that trains it."""
    found: dict[str, dict[str, Any]] = {}
    for each in wanted:
        found.setdefault(each.base, {})[str(each.seed)] = {
            "sha256": hashlib.sha256(content_of(file(each.name))).hexdigest(),
            "command": shlex.join(["trackloom", "train", *each.words()]),
        }
    Store(out).write((json.dumps(found, indent=1) + "\n").encode(), FILE)


def content_of(name: str) -> bytes:
    """The bytes of weights as models find them: by the name of shipped ones, or by a path."""
    folder, _, file = name.rpartition("/")
    return Store(folder).read(file) if folder else (weights.SHIPPED / f"{name}{SUFFIX}").read_bytes()


def read_digests(folder: str) -> dict[str, dict[str, dict[str, str]]]:
    """{weights: {seed: {sha256, command}}}; FileNotFoundError where there is no papers-weights.json."""
    found: dict[str, dict[str, dict[str, str]]] = json.loads(Store(folder).read(FILE))
    return found
