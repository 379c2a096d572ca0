"""A unit: a system with the weights of one training seed, run over the videos; what is done is not done again.

    OUT/truth/<catalog>-<digest>/      what is known of the videos
    OUT/detections/<model>-<digest>/   what a network sees; for all units that differ in nothing but what links
    OUT/runs/<system>/seed-<n>/        tracks and truth of a unit

Detections lie under a digest of all that makes them, so that changed weights find none. A run that was made of other
detections, or by another linker, is made anew, and only that one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jobs import prepare
from jobs.claims.system import System, WeightsFile
from jobs.claims.working import ALONE, done, quiet
from jobs.options import OF_DETECTION, OF_LINKING
from pipeline import flow
from pipeline.config import digest
from pipeline.engine import Engine, Local
from pipeline.recipe import Recipe
from pipeline.records import VideoInfo
from pipeline.tables import Run, differences, read_run

OF_VIDEOS = ("catalog", "source", "catalog_settings", "frames", "videos_per_shard")  # of a recipe
OF_NETWORK = ("model", "model_settings")


@dataclass(frozen=True)
class Unit:
    """system: its name. recipe: with the weights of the seed.

    identity: what makes its tracks, as `Run.claim` has it. detections, truth: folders below OUT, of what it links and
    of what is known.
    """

    system: str
    seed: int
    recipe: Recipe
    identity: Mapping[str, Any]
    detections: str
    truth: str

    @property
    def name(self) -> str:
        """Its own, in words."""
        return f"{self.system}, seed {self.seed}"

    @property
    def folder(self) -> str:
        """Of its run, below OUT."""
        return f"runs/{self.system}/seed-{self.seed}"


def units(
    systems: Sequence[System],
    seeds: Sequence[int],
    file: WeightsFile,
    split: str = "test",
    chosen: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Unit]:
    """The units of these systems: every network is built, so that what is wrong with any is said before any work.

    file: where weights of a name are. chosen: values of settings by system. Raises ValueError or OSError as `trackloom
    run` does, and where a system names no weights that a training of ours makes.
    """
    found = []
    listed: dict[str, list[VideoInfo]] = {}
    built: dict[str, Any] = {}  # systems that differ in what links alone share a network
    for system in systems:
        if not system.weights():
            raise ValueError(f"system {system.name} names no weights of a training of ours, so it has no seeds")
        for seed in seeds:
            recipe = system.at(seed, split, (chosen or {}).get(system.name), file)
            prepare.check_model_and_linker(recipe)
            of_videos, of_network = (digest([getattr(recipe, f) for f in of]) for of in (OF_VIDEOS, OF_NETWORK))
            if of_videos not in listed:
                listed[of_videos] = prepare.listed(recipe, recipe.catalog, recipe.source)
            if of_network not in built:
                built[of_network] = prepare.built(recipe)
            job = prepare.Detection(recipe, listed[of_videos], built[of_network])
            detections = f"detections/{recipe.model}-{digest(job.identity(OF_DETECTION))}"
            identity = json.loads(json.dumps(job.identity((*OF_DETECTION, *OF_LINKING))))  # as run.json will have it
            truth = f"truth/{recipe.catalog}-{digest([of_videos, identity['videos']])}"
            found.append(Unit(system.name, seed, recipe, identity, detections, truth))
    return found


def run(units: Sequence[Unit], out: str, engine: Engine) -> dict[str, str]:
    """Fills the runs of all units as far as they are not yet; gives the errors by name of those that failed."""
    todo = {unit.truth: unit for unit in units if not is_known(out, unit)}
    _, unknown = done("know", todo, partial(know, out), engine)
    failed = {unit.name: unknown[unit.truth] for unit in units if unit.truth in unknown}
    networks: dict[str, Unit] = {}
    for unit in units:
        if unit.name not in failed:
            networks.setdefault(unit.detections, unit)
    todo = {unit.name: unit for unit in networks.values() if not is_whole(out, unit)}
    _, errors = done("detect", todo, partial(detect, out), engine)
    blind = {todo[name].detections: error for name, error in errors.items()}
    failed |= {unit.name: blind[unit.detections] for unit in units if unit.detections in blind}
    todo = {unit.name: unit for unit in units if unit.name not in failed and not is_linked(out, unit)}
    _, errors = done("link", todo, partial(link, out), engine)
    return failed | errors


def know(out: str, unit: Unit) -> None:
    """Writes what is known of a unit's videos."""
    recipe = unit.recipe
    videos = prepare.listed(recipe, recipe.catalog, recipe.source)
    flow.know(Run(f"{out}/{unit.truth}"), recipe, videos, Local(), quiet)


def detect(out: str, unit: Unit) -> None:
    """Writes the detections of a unit; ValueError where a video failed, after which nothing counts as done."""
    recipe = unit.recipe
    job = prepare.detection(recipe)
    tables = Run(f"{out}/{unit.detections}").claim(job.identity(OF_DETECTION), job.model.classes)
    flow.detect(tables, recipe, job.videos, job.model, Local(), ALONE, quiet)
    bad = [row for row in tables.table("videos").to_pylist() if row["status"] != "ok"]
    if bad:
        tables.remove("detections")
        raise ValueError(f"{len(bad)} videos failed or are partial, such as {bad[0]['video_id']}: {bad[0]['error']}")


def link(out: str, unit: Unit) -> None:
    """Writes the tracks of a unit from its detections; what was linked otherwise before is thrown away."""
    source, tables = read_run(f"{out}/{unit.detections}"), Run(f"{out}/{unit.folder}")
    tables = tables.claim(unit.identity, source.about["classes"], overwrite=_is_of_another(tables, unit))
    known = Run(f"{out}/{unit.truth}")
    for shard in known.shards("truth"):
        truth = known.read_table("truth", shard)
        videos = truth.schema.metadata[b"videos"].decode()
        tables.write_table(truth, "truth", shard, metadata={"videos": videos})
    flow.link(tables, unit.recipe, Local(), quiet, source)


def is_known(out: str, unit: Unit) -> bool:
    """Whether what is known of a unit's videos is there."""
    return len(Run(f"{out}/{unit.truth}").shards("truth")) == shards(unit)


def is_whole(out: str, unit: Unit) -> bool:
    """Whether all detections of a unit are there, of all videos."""
    tables = Run(f"{out}/{unit.detections}")
    if len(tables.shards("detections")) < shards(unit):
        return False
    return set(tables.table("videos")["status"].to_pylist()) == {"ok"}


def is_linked(out: str, unit: Unit) -> bool:
    """Whether all tracks of a unit are there, and its own."""
    tables = Run(f"{out}/{unit.folder}")
    return len(tables.shards("tracks")) == shards(unit) and not _is_of_another(tables, unit)


def shards(unit: Unit) -> int:
    """How many files a table of a unit has."""
    return -(-int(unit.identity["videos"]["count"]) // unit.recipe.videos_per_shard)


def _is_of_another(tables: Run, unit: Unit) -> bool:
    about = tables.made_by()
    return about is not None and any(differences(about["identity"], unit.identity))
