"""Pieces of work that may fail one by one: the others are done all the same, and what failed says why."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipeline.engine import Engine, Stage
from pipeline.flow import Workers

ALONE = Workers(fuse=True)  # of a flow within a piece of work: this process alone


@dataclass(frozen=True)
class Done:
    """What became of a piece: its value, or, in a sentence, why there is none."""

    name: str
    value: Any
    error: str | None = None


@dataclass(frozen=True)
class Piece:
    """A record on its way to a worker, and what it is called."""

    name: str
    record: Any


class Try:
    """Pieces -> what became of them, on one thread: as many pieces are worked on as there are cores."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        import torch

        torch.set_num_threads(1)
        self.work = work

    def __call__(self, piece: Piece) -> Iterator[Done]:
        try:
            yield Done(piece.name, self.work(piece.record))
        except (ValueError, OSError, RuntimeError) as error:  # StageError and what torch raises are of the last kind
            yield Done(piece.name, None, " ".join(str(error).split()))


def done(
    what: str, records: Mapping[str, Any], work: Callable[[Any], Any], engine: Engine
) -> tuple[dict[str, Any], dict[str, str]]:
    """The values of all records by their names, and the errors of those that have none.

    what: is done with each, a word. work: picklable; ValueError, OSError and RuntimeError of it are the record's alone.
    """
    stage = Stage(what, partial(Try, work), "pieces", "what became of them")
    values: dict[str, Any] = {}
    errors: dict[str, str] = {}
    start = time.monotonic()
    if records:  # the first may take long
        print(f"{what} 0/{len(records)}", file=sys.stderr, flush=True)
    for count, found in enumerate(engine.stream([Piece(*item) for item in records.items()], [stage]), start=1):
        if found.error is None:
            values[found.name] = found.value
        else:
            errors[found.name] = found.error
        took = f"{time.monotonic() - start:,.0f} s"
        ending = "" if found.error is None else " failed"
        print(f"{what} {count}/{len(records)}: {found.name}{ending} | {took}", file=sys.stderr, flush=True)
    for name in records.keys() - values.keys() - errors.keys():
        errors[name] = "its process died each time that it was tried"
    return values, errors


def quiet(*_: object) -> None:
    """Says nothing of how far a piece is."""
