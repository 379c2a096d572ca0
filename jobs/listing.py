"""How recipes are listed: as objects for `--json`, as tables for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from jobs.papers import weights
from jobs.papers.row import Row
from pipeline.recipe import Recipe

PARTS = ("catalog", "model", "linker")  # of a recipe
WIDE = 120  # columns of a terminal from which names and what they stand for lie side by side
LEGEND = (
    "Runs: yes, its weights are here; small, those of its twin on synthetic-v1 are: trackloom run --recipe NAME-small; "
    "no, weights are to be trained first, and trackloom run says which and how; nothing: it is not ours."
)


def of_row(row: Row) -> dict[str, Any]:
    """A row as a plain object."""
    ran = [row.run.recipe, row.run.small] if row.run else []
    return {
        **{name: getattr(row, name) for name in ("name", "paper", "table", "row", "kind")},
        "published": dict(row.published),
        "recipe": ran[0].name if ran else None,
        "small": ran[1].name if ran else None,
        "runs": [of_recipe(recipe) for recipe in ran],
        "benchmark": f"trackloom benchmark {row.benchmark}" if row.benchmark else None,
        "note": row.note or None,
    }


def of_ours(recipe: Recipe, paper: str, says: str) -> dict[str, Any]:
    """A recipe of no table, with the same keys; paper: its system's."""
    row = Row(recipe.name, paper, "", says, {})
    return {**of_row(row), "table": None, "kind": "recipe", "recipe": recipe.name, "runs": [of_recipe(recipe)]}


def of_recipe(recipe: Recipe) -> dict[str, Any]:
    """What a recipe sets, the weights it needs (of a ReID network beside the model's too), and whether it can run."""
    needed = {
        setting: {**asdict(found), "training": found.command} for setting, found in weights.needed_by(recipe).items()
    }
    parts = {part: {"name": getattr(recipe, part), **getattr(recipe, f"{part}_settings")} for part in PARTS}
    files = {setting: needed.get(setting) for setting in weights.SETTINGS}
    return {"name": recipe.name, **parts, **files, "can_run": weights.can_run(recipe)}


def ours(recipes: Mapping[str, str]) -> Table:
    """Our own recipes and what each says."""
    table = Table("recipe", "", box=box.SIMPLE_HEAD, pad_edge=False)
    for name, says in recipes.items():
        table.add_row(name, says)
    return table


def paper(title: str, rows: Sequence[Row], width: int) -> Iterator[RenderableType]:
    """The rows of one paper, table by table, for a terminal of `width` columns."""
    yield Text(f"{title} ({rows[0].paper})", style="bold")
    wide = width >= WIDE
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("recipe", no_wrap=wide)
    if wide:
        table.add_column("as printed", ratio=1)
    table.add_column("published", ratio=1)
    table.add_column("runs", no_wrap=True)
    for label, lines in groupby(rows, key=lambda row: row.table):
        table.add_section()
        table.add_row(Text(label, style="bold"))
        for row in lines:
            name = Text(row.name, style="" if row.run else "dim")
            below = Padding(Text(printed(row), style="dim"), (0, 0, 0, 2))
            first = [name, printed(row)] if wide else [Group(name, below)]
            table.add_row(*first, figures(row), runs(row))
    yield table


def printed(row: Row) -> str:
    """What the paper calls the row, and whose recipe it has where that is another row's."""
    shared = row.run and row.run.recipe.name
    return row.row if shared in (None, row.name) else f"{row.row}\n= {shared}"


def figures(row: Row) -> str:
    """The published figures in a line, as "mAP 79.8%, speed 7.09 FPS", and what measures them where no score does."""
    found = [figure(name, value) for name, value in row.published.items()]
    measured = [f"trackloom benchmark {row.benchmark}"] if row.benchmark else []
    return "; ".join([", ".join(found), *measured, *([row.note] if row.note else [])]).lstrip("; ")


def figure(name: str, value: float | None) -> str:
    """One figure with its unit: ("mAP [%]", 79.8) is "mAP 79.8%"."""
    what, _, unit = name.rstrip("]").replace("[1e", "[e").partition(" [")
    if value is None:
        return f"{what} not given"
    return f"{what} {value}{'' if unit in ('', '%', 'e-3') else ' '}{unit}"


def runs(row: Row) -> str:
    """Whether the row's recipe can run with what is here."""
    if not row.run:
        return ""
    return "yes" if weights.can_run(row.run.recipe) else "small" if weights.can_run(row.run.small) else "no"
