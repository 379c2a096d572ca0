"""A run: the folder, at any fsspec URL, in which one recipe's tables lie, and what of them is already done.

    RUN/run.json                          what made it: recipe, weights, catalog, versions, commit
    RUN/videos/shard-00000.parquet        one row an input
    RUN/detections/shard-00000.parquet    one row a frame, nested lists
    RUN/tracks/shard-00000.parquet        one row a box
    RUN/truth, RUN/scores                 where truth is known
    RUN/_parts/CLIP.parquet               what is under way: one file a clip, gone once its shard is whole

Every file appears whole or not at all: by rename on a local disk, by a single PUT on an object store. So a file that
is there is its own marker, and globbing `tracks/*.parquet` is right at any moment.
"""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from pipeline.schemas import SCHEMA_VERSION

TABLES = ("videos", "detections", "tracks", "truth", "scores")
PARTS = "_parts"
REPORT = "report"


@dataclass(frozen=True)
class Store:
    """Files below one URL: written whole, read whole, listed."""

    url: str

    @cached_property
    def _place(self) -> tuple[fsspec.AbstractFileSystem, str]:
        fs, path = fsspec.core.url_to_fs(self.url)
        return fs, path.rstrip("/")

    def __getstate__(self) -> dict[str, Any]:
        # A file system's connection does not travel to workers, nor does the folder that this process is in.
        return {**{name: value for name, value in vars(self).items() if name != "_place"}, "url": self.url_of()}

    @property
    def is_local(self) -> bool:
        """Whether the files lie on this machine's disk."""
        return isinstance(self._place[0], LocalFileSystem)

    @property
    def filesystem(self) -> fsspec.AbstractFileSystem:
        """What reads and writes there."""
        return self._place[0]

    def url_of(self, *names: str) -> str:
        """A file below the URL as others may open it: a path on this machine, else a URL."""
        return self.path(*names) if self.is_local else str(self.filesystem.unstrip_protocol(self.path(*names)))

    def path(self, *names: str) -> str:
        """The path of a file below the URL, as its file system spells it."""
        return "/".join((self._place[1], *names))

    def write(self, content: bytes, *names: str) -> None:
        """Writes a file that appears whole or not at all, replacing one of that name."""
        fs, _ = self._place
        path = self.path(*names)
        fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        if self.is_local:
            # Readers of Parquet folders pass over names that begin with a dot.
            folder, _, name = path.rpartition("/")
            unfinished = f"{folder}/.{name}.{uuid.uuid4().hex}"
            fs.pipe_file(unfinished, content)
            os.replace(unfinished, path)
        else:
            fs.pipe_file(path, content)

    def read(self, *names: str) -> bytes:
        """A file's content; FileNotFoundError where there is none."""
        content: bytes = self._place[0].cat_file(self.path(*names))
        return content

    def exists(self, *names: str) -> bool:
        """Whether there is such a file."""
        return bool(self._place[0].exists(self.path(*names)))

    def names(self, *folder: str, suffix: str = "") -> list[str]:
        """The names of the files in a folder that end so, sorted; none where there is no such folder."""
        fs, _ = self._place
        path = self.path(*folder)
        fs.invalidate_cache(path)
        if not fs.isdir(path):
            return []
        return sorted(
            name
            for found in fs.ls(path, detail=False)
            if (name := found.rstrip("/").rsplit("/", 1)[-1]).endswith(suffix)
        )

    def remove(self, *names: str) -> None:
        """Removes a file or a folder with all below it; nothing happens where there is none."""
        fs, _ = self._place
        if self.exists(*names):
            fs.rm(self.path(*names), recursive=True)


@dataclass(frozen=True)
class Run(Store):
    """A run's tables. `about` is written into the metadata of every file."""

    about: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def write_table(self, table: pa.Table, *names: str, metadata: Mapping[str, str] | None = None) -> None:
        """Writes a table as Parquet (zstd, dictionary strings), with what made it in the metadata."""
        about = {"trackloom": json.dumps(self.about), **(metadata or {})}
        buffer = pa.BufferOutputStream()
        pq.write_table(table.replace_schema_metadata(about), buffer, compression="zstd")
        self.write(buffer.getvalue().to_pybytes(), *names)

    def read_table(self, *names: str) -> pa.Table:
        """A Parquet file as a table, its metadata in the schema's; ValueError where it is not Parquet."""
        content = self.read(*names)
        try:
            # Without threads: one of Arrow's may still hold our bytes when Python ends, which then aborts.
            return pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{self.path(*names)} is not a whole Parquet file: {error}") from None

    def shards(self, table: str) -> list[str]:
        """The file names of a table's finished shards."""
        return self.names(table, suffix=".parquet")

    def table(self, name: str) -> pa.Table:
        """All shards of a table as one; ValueError with what is there where the run has no such table."""
        shards = self.shards(name)
        if not shards:
            there = [other for other in TABLES if self.shards(other)]
            raise ValueError(f"{self.url} has no {name} table; it has: {', '.join(there) or 'no table at all'}")
        return pa.concat_tables([self.read_table(name, shard).replace_schema_metadata(None) for shard in shards])

    def parts(self) -> set[str]:
        """The ids of the clips whose part is written."""
        return {name.removesuffix(".parquet") for name in self.names(PARTS, suffix=".parquet")}

    def made_by(self) -> dict[str, Any] | None:
        """What run.json says, or None where there is none yet."""
        if not self.exists("run.json"):
            return None
        try:
            return dict(json.loads(self.read("run.json")))
        except ValueError:
            raise ValueError(f"{self.path('run.json')} is not whole JSON; was it written by something else?") from None

    def claim(self, identity: Mapping[str, Any], classes: Sequence[str], overwrite: bool = False) -> Run:
        """Makes the folder this run's: writes run.json, or checks that what is there was made by the same.

        identity: nested plain values that say what makes the tables (recipe, weights, catalog); classes: the names of
        the labels; overwrite: throw away what another recipe made, but never what no run made. Raises ValueError with
        the differences where the folder was made by something else, and where it holds other people's files.
        """
        before = self.made_by()
        if before is None and (taken := [name for name in (*TABLES, PARTS, REPORT) if self.names(name)]):
            raise ValueError(
                f"{self.url} holds {', '.join(taken)} but no run.json, so it is not known to be a run's; "
                "choose another --output"
            )
        if before is not None and overwrite:
            # The parts first and run.json last: what is left of an overwriting cut short still says whose it is.
            self.remove(PARTS)
            for table in TABLES:
                for shard in self.shards(table):
                    self.remove(table, shard)
            self.remove(REPORT)
            self.remove("run.json")
            before = None
        if before is None:
            before = {
                "schema_version": SCHEMA_VERSION,
                "run_id": uuid.uuid4().hex[:12],
                "identity": dict(identity),
                "classes": list(classes),
                "versions": versions(),
                "commit": commit(),
            }
            self.write(json.dumps(before, indent=2).encode(), "run.json")
        others = list(differences(before.get("identity", {}), json.loads(json.dumps(identity))))
        if others:
            raise ValueError(
                f"{self.url} was made by another recipe: {'; '.join(others[:3])}"
                f"{'; ...' if others[3:] else ''}. Choose another --output or say --overwrite"
            )
        return Run(self.url, before)


def read_run(url: str) -> Run:
    """The run at a URL; FileNotFoundError where there is none."""
    run = Run(url)
    about = run.made_by()
    if about is None:
        raise FileNotFoundError(f"{url} is not a run: it has no run.json")
    return Run(url, about)


def versions() -> dict[str, str]:
    """Versions of Trackloom and of what its numbers depend on."""
    found = {}
    for name in ("trackloom", "torch", "torchvision", "ray", "numpy", "scipy", "pyarrow", "decord2", "av"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str | None:
    """The commit of Trackloom's checkout, `-dirty` where files differ from it; None outside one."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def differences(there: Any, here: Any, name: str = "") -> Iterable[str]:
    """Where two nested plain values differ, one sentence each."""
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for key in sorted(set(there) | set(here)):
            yield from differences(there.get(key), here.get(key), f"{name}.{key}" if name else key)
    elif there != here:
        yield f"{name} is {there!r} there and {here!r} here"
