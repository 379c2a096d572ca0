"""SQL over a run's tables, by DuckDB: videos, detections, tracks, truth, scores.

trackloom query runs/demo "SELECT status, count(*) FROM videos GROUP BY status"
"""

from __future__ import annotations

import sys
from typing import Annotated

import duckdb
import typer
from rich.console import Console
from rich.table import Table

from jobs.command import main
from pipeline.tables import TABLES, read_run

MOST_ROWS = 100
MOST_ITEMS = 6


def query(
    run: Annotated[str, typer.Argument(help="The run whose tables are asked.")],
    sql: Annotated[str, typer.Argument(help="A query over videos, detections, tracks, truth and scores.")],
    csv: Annotated[bool, typer.Option("--csv", help="As comma-separated values, to pass on.")] = False,
) -> None:
    """Asks a run's tables in SQL. The same files can be read by anything that reads Parquet."""
    tables = read_run(run)
    database = duckdb.connect()
    if not tables.is_local:
        database.register_filesystem(tables.filesystem)
    for name in TABLES:
        files = [tables.url_of(name, shard) for shard in tables.shards(name)]
        if files:
            database.read_parquet(files).create_view(name)
    try:
        found = database.sql(sql)
        rows = found.fetchall() if found else []
    except duckdb.Error as error:
        raise ValueError(" ".join(str(error).split())) from None
    if found is None:
        return
    if csv:
        found.to_df().to_csv(sys.stdout, index=False)
        return
    shown = Table(*found.columns)
    for row in rows[:MOST_ROWS]:
        shown.add_row(*(_cell(value) for value in row))
    console = Console()
    (console if console.is_terminal else Console(width=240)).print(shown)  # a file has no width to keep to
    if len(rows) > MOST_ROWS:
        console.print(f"... and {len(rows) - MOST_ROWS:,} more; --csv gives all")


def _cell(value: object) -> str:
    """A value as a table shows it; what --csv gives is not cut."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict | list) and len(value) > MOST_ITEMS:
        return f"({len(value)} items)"
    return str(value)


if __name__ == "__main__":
    main("query")
