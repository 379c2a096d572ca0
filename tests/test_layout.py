"""The rules of the layout: who may import whom, how long a file may be, what the names may be."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("pipeline", "models", "jobs", "catalogs")
FILES = sorted(path for folder in OURS for path in (ROOT / folder).rglob("*.py"))

# What a module of ours may import of ours and of the heavy libraries, by the longest prefix that fits.
ALLOWED = {
    "pipeline.records": set(),
    "pipeline.boxes": set(),
    "pipeline.schemas": {"pipeline.records", "pyarrow"},
    "pipeline.linkers": {"pipeline.records", "pipeline.boxes", "pipeline.tracks", "pipeline.linkers"},
    "pipeline.simulating": {"pipeline.records", "pipeline.boxes", "pipeline.schemas", "pyarrow"},
    "pipeline.metrics": {"pipeline.boxes", "pipeline.metrics", "pyarrow"},
    "pipeline.detect": {"pipeline", "torch"},
    "pipeline.training": {"pipeline", "torch", "ray", "pyarrow"},
    "pipeline.engine": {"ray", "pyarrow"},
    "pipeline.flow": {"pipeline"},
    "pipeline": {"pipeline", "pyarrow"},
    "models": {"models", "torch", "torchvision"},
    "catalogs": {"catalogs", "pipeline.records", "pipeline.boxes", "pipeline.schemas", "pyarrow"},
    "jobs": {"jobs", "pipeline", "catalogs", "models", "pyarrow", "torch"},
}
WATCHED = {*OURS, "torch", "torchvision", "ray", "pyarrow"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """Full names of what a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively; names are whole here"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in WATCHED}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_only_what_its_place_allows(path: Path) -> None:
    name = module_name(path)
    rule = max((prefix for prefix in ALLOWED if (name + ".").startswith(prefix + ".")), key=len)
    wrong = {
        found
        for found in imported(path)
        if not any((found + ".").startswith(allowed + ".") for allowed in ALLOWED[rule])
    }
    assert not wrong, f"{name} may import {sorted(ALLOWED[rule])}, not {sorted(wrong)}"


def test_nobody_imports_jobs() -> None:
    for path in FILES:
        if not module_name(path).startswith("jobs"):
            assert not any(name.split(".")[0] == "jobs" for name in imported(path)), path


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_file_is_one_idea_with_a_fit_name(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400, "split it: one idea a file"
    assert path.stem not in {"utils", "helpers", "common", "misc"}
    assert path.stem == "__init__" or path.stem not in sys.stdlib_module_names, "hides a standard module"
    assert ast.get_docstring(ast.parse(path.read_text())), "says what it is for"
