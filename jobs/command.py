"""The `trackloom` command: its verbs, and how errors become one sentence and an exit code.

Exit codes: 0 all well; 1 wrong use, or nothing could be done; 2 some videos failed or are partial.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Callable

import typer

from pipeline.engine import StageError

STOPPED = 130  # a shell's code for Ctrl-C
VERBS = {  # and what --help says of each; only the one asked for is imported, since torch and others take seconds
    "run": "A model and a linker over videos: tables, scores where there is truth, a report.",
    "detect": "A model over videos: what it sees, to be linked as often as you like.",
    "link": "Identities for stored detections, a run's or other people's.",
    "evaluate": "Scores of tracks against truth.",
    "report": "A page on a run, with an annotated video.",
    "query": "A run's tables in SQL.",
    "train": "A model's weights from labelled videos.",
    "recipes": "The named runs, and the published figures of those that papers have.",
    "benchmark": "Speed and quality beside other programs.",
}


# Typer's own copy of click's; it names only this child of it.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def application(*verbs: str, asked: str | None = None) -> typer.Typer:
    """A Typer application of these verbs; the function of jobs/<verb>.py that bears its name is the command.

    asked: the only verb that will be called, None for any.
    """
    app = typer.Typer(
        name="trackloom",
        help="Video datasets in, track tables out, scores over the whole dataset.",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    for verb in verbs:
        app.command(verb, short_help=VERBS[verb])(_command(verb) if asked in (verb, None) else _unasked)
    return app


def _command(verb: str) -> Callable[..., object]:
    found: Callable[..., object] = getattr(importlib.import_module(f"jobs.{verb}"), verb)
    return found


def _unasked() -> None:
    """Stands for a verb that only --help lists."""


def main(*verbs: str) -> None:
    """Runs the command line; errors that a user can mend end in one sentence on stderr, without a traceback.

    TRACKLOOM_DEBUG=1 shows the traceback too.
    """
    try:
        asked = None if verbs else next((word for word in sys.argv[1:] if not word.startswith("-")), "")
        app = application(*(verbs or VERBS), asked=asked)
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except UsageError as error:
        said = " ".join(error.format_message().split()).rstrip(".")  # type: ignore[attr-defined]
        print(f"trackloom: {said[:1].lower() + said[1:]}; --help shows what there is", file=sys.stderr)
        code = 1
    except (typer.Abort, KeyboardInterrupt):
        code = STOPPED
    except (ValueError, OSError, StageError, ImportError) as error:
        if isinstance(error, ImportError) and not str(error).startswith("Install"):
            raise  # fsspec says so of a URL whose library is not installed; any other is a bug
        if os.environ.get("TRACKLOOM_DEBUG"):
            traceback.print_exc()
            print(getattr(error, "trace", ""), file=sys.stderr)
        print(f"trackloom: {error}", file=sys.stderr)
        code = 1
    if code == STOPPED:  # Typer may have turned the interrupt into this code itself
        print("stopped; what was written is whole, and the same command goes on from there", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
