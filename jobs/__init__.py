"""Verbs, one file each: `trackloom VERB --help`, or `python -m jobs.VERB` from the root."""

from pathlib import Path

import catalogs
import models
import pipeline

_ROOT = Path(__file__).resolve().parent.parent
for _package in (pipeline, models, catalogs):
    _found = Path(_package.__file__ or "").resolve().parent
    if _found.parent != _ROOT:
        raise ImportError(
            f"a foreign package named {_package.__name__!r} was picked up from {_found}; "
            f"Trackloom's lies in {_ROOT}. Start from that folder, or put it first on the path."
        )
