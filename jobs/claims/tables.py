"""The papers' claims and how they fell: for a terminal, and for the README."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from jobs.claims import figures
from jobs.claims.figures import Row

WIDE = 84  # columns of a terminal from which a claim's figures lie beside it
STYLES = {"holds": "cyan", "fails": "yellow", "undecided": "bold"}
BEGIN, END = "<!-- claims: begin, written by jobs.claims.tables -->", "<!-- claims: end -->"


def show(rows: Sequence[Row], console: Console) -> None:
    """Prints all claims, paper by paper, and how many fell how."""
    for part in renderables(rows, console.width):
        console.print(part, highlight=False)


def renderables(rows: Sequence[Row], width: int) -> Iterator[RenderableType]:
    """What `show` prints on a terminal of `width` columns; figures are whole however narrow it is."""
    if not rows:
        yield Text("No claim is about these systems alone; papers.html has their scores.")
        return
    for stem, some in figures.by_paper(rows).items():
        yield Text(f"\n{figures.title(stem)} ({stem})", style="bold")
        yield _table(some) if width >= WIDE else Group(*(_lines(row) for row in some))
    yield Text(f"\n{figures.tally(rows)}. {_made(rows)}")


def readme(rows: Sequence[Row]) -> str:
    """The README's tables in Markdown, one of a paper folded, between BEGIN and END; no newline at the end."""
    lines = [BEGIN]
    for stem, some in figures.by_paper(rows).items():
        lines += [f"<details><summary><b>{escape(figures.title(stem))}</b>: {figures.tally(some)}</summary>", ""]
        lines += ["| verdict | claim | difference | 95% interval |", "|---|---|---|---|"]
        for row in some:
            verdict = f"{figures.SHAPES[row['holds']]} {row['holds']}"
            said = f"{row['claim']} ({figures.where(row)}{_fragile(row)})"
            lines.append(f"| {verdict} | {_escaped(said)} | {figures.difference(row)} | {figures.ends(row)} |")
        lines += ["", "</details>"]
    return "\n".join([*lines, "", f"{figures.tally(rows)}. {_escaped(_made(rows))}", END])


def block_of(text: str) -> str | None:
    """The block of a README that `readme` wrote; None where there is none."""
    found = re.search(f"{re.escape(BEGIN)}.*?{re.escape(END)}", text, re.DOTALL)
    return found and found.group()


def with_block(text: str, rows: Sequence[Row]) -> str:
    """A README with its block written anew; ValueError where it has none."""
    block = block_of(text)
    if block is None:
        raise ValueError(f"the text has no block of claims; it must have {BEGIN} and, further on, {END}")
    return text.replace(block, readme(rows))


def _table(rows: Sequence[Row]) -> Table:
    """A line a claim, the two systems and their values beneath it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True, min_width=11)
    table.add_column("claim", ratio=1, overflow="fold")
    table.add_column("difference", justify="right", no_wrap=True)
    table.add_column("95% interval", justify="right", no_wrap=True)
    for row in rows:
        said = Group(
            Text(row["claim"]), Padding(Text(_compared(row), style="dim", overflow="fold"), (0, 0, 0, 2), expand=False)
        )
        table.add_row(_verdict(row), said, figures.difference(row), figures.ends(row))
    return table


def _lines(row: Row) -> RenderableType:
    """A claim where there is no room for columns: its text wraps, and its figures follow it."""
    first = Text.assemble(_verdict(row), "  ", row["claim"])
    fell = " ".join(dict.fromkeys([figures.difference(row), figures.ends(row)]))  # "no value" but once
    rest = Text(f"{fell}\n", overflow="fold").append(_compared(row), style="dim")
    return Group(first, Padding(rest, (0, 0, 1, 2), expand=False))


def _verdict(row: Row) -> Text:
    return Text(f"{figures.SHAPES[row['holds']]} {row['holds']}", style=STYLES[row["holds"]])


def _compared(row: Row) -> str:
    """ "mAP, fast: tubes 52.1, causal 50.3 (Table 2)"; and whether that much was expected."""
    better, worse = figures.systems(row)
    source = f" ({row['source']})" if row["source"] else ""
    return f"{figures.where(row)}: {better}, {worse}{source}{_fragile(row)}"


def _fragile(row: Row) -> str:
    return "" if row["expected"] else "; not expected at this size"


def _made(rows: Sequence[Row]) -> str:
    """What they come from, in a sentence."""
    made = figures.made(rows)
    return (
        f"Training seeds {made['seeds']}; {made['videos']} videos; commit {made['commit']}; "
        f"{made['machine']}; {made['date']}."
    )


def _escaped(text: str) -> str:
    """Text as Markdown shows it, also in a cell of a table."""
    return re.sub(r"([\\|*_`\[\]])", r"\\\1", text.replace("&", "&amp;").replace("<", "&lt;"))
