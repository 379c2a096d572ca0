"""A line of a paper's table: what was published, and the run that gives the figure here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipeline.recipe import Recipe

SYNTHETIC: dict[str, Any] = {"catalog": "synthetic", "catalog_settings": {"split": "test"}}
VID: dict[str, Any] = {"catalog": "imagenet_vid", "catalog_settings": {"split": "val"}}
# What twins have in the place of a ReID network; the weights hold it beside the detector of the small Tracktor.
SMALL_REID: dict[str, Any] = {"reid": "small", "reid_weights": "tracktor-synthetic-v1"}

Kind = Literal["recipe", "published_only", "benchmark"]


@dataclass(frozen=True)
class Configuration:
    """What the authors ran: the recipe at their size on their data, and what its small twin has in its place."""

    recipe: Recipe
    small_settings: Mapping[str, Any]  # of the model

    @property
    def small(self) -> Recipe:
        """The twin: the small network on the test split of synthetic-v1, the other settings as they are."""
        settings = {**self.recipe.model_settings, **self.small_settings}
        return replace(self.recipe, name=f"{self.recipe.name}-small", model_settings=settings, **SYNTHETIC)


@dataclass(frozen=True)
class Row:
    """A line, or one system of a line, of a table.

    name: its own; `trackloom run` takes it where there is a run. paper: the stem of the paper's file. table: "Table 1",
    or "Section 5.3" for what only the text says. row: as the paper prints it, shortened.
    published: figures as printed, the unit in the name, as "mAP [%]"; None where the paper has a dash or N.A.
    run: what the authors ran; lines of one configuration share it, so that it may have another line's name.
    kind: "recipe": a score, which the run gives; "published_only": other people's system, or figures taken from their
    paper; "benchmark": a time or a memory, which `trackloom benchmark <benchmark>` measures on the run's network. A row
    of scores may name a benchmark too.
    note: what a reader of the figures must know.
    """

    name: str
    paper: str
    table: str
    row: str
    published: Mapping[str, float | None]
    kind: Kind = "published_only"
    run: Configuration | None = None
    benchmark: str | None = None
    note: str = ""

    def __post_init__(self) -> None:
        assert self.kind != "recipe" or self.run, self.name
        assert self.kind != "benchmark" or self.benchmark, self.name
        assert self.kind != "published_only" or not (self.run or self.benchmark), self.name
