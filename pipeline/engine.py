"""How stages run: one after the other in this process, or on Ray Data. Stages are plain callables over records.

A stage is made once a worker (`Stage.make()`) and then called with one record at a time; it yields records. Locally
that is a chain of generators. On Ray each record is a row; stages with `actors` hold their state (a network) in a pool
of actors, the others are tasks.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any, Protocol

import pyarrow as pa

Worker = Callable[[Any], Iterable[Any]]


@dataclass(frozen=True)
class Stage:
    """One step of a dataflow.

    make: called once a worker, gives the callable from one record to records; must be picklable.
    takes, gives: what goes in and comes out, in words, for `--explain`.
    actors: the size of its actor pool; 0 makes it a stateless task.
    cpus, gpus: what one worker of it reserves.
    is_quick: a record takes it milliseconds, so that many go together.
    """

    name: str
    make: Callable[[], Worker]
    takes: str
    gives: str
    actors: int = 0
    cpus: float = 1
    gpus: float = 0
    is_quick: bool = False

    def describe(self) -> str:
        """One line for `--explain`."""
        where = f"{self.actors} actor{'s' * (self.actors > 1)}" if self.actors else "tasks"
        needs = f"{self.cpus:g} CPU" + (f", {self.gpus:g} GPU" if self.gpus else "")
        return f"{self.name:<9}{where:<11}{needs:<15}{self.takes}  ->  {self.gives}"


class StageError(RuntimeError):
    """An exception in a worker, told in a sentence; `trace` is the worker's own traceback."""

    def __init__(self, said: str, trace: str = "") -> None:
        super().__init__(said)
        self.trace = trace


class Engine(Protocol):
    """Runs records through stages; the order of what comes out is not promised."""

    name: str

    def stream(self, records: Sequence[Any], stages: Sequence[Stage]) -> Iterator[Any]:
        """Yields what the last stage yields; a record whose worker process dies may be missing."""


class Local:
    """The stages in a plain loop in this process."""

    name = "local"

    def stream(self, records: Sequence[Any], stages: Sequence[Stage]) -> Iterator[Any]:
        flowing: Iterable[Any] = records
        for stage in stages:
            flowing = chain.from_iterable(map(stage.make(), flowing))
        yield from flowing


class OnRay:
    """The stages on Ray Data, with back-pressure between them.

    address: a cluster's address, or "local" for a session of this machine's own. A record that kills its worker's
    process is tried twice, then dropped: who calls `stream` must notice what is missing. An exception ends the stream
    with StageError.
    """

    name = "ray"

    def __init__(self, address: str | None = None) -> None:
        self.address = address or os.environ.get("RAY_ADDRESS") or "local"

    def stream(self, records: Sequence[Any], stages: Sequence[Stage]) -> Iterator[Any]:
        import ray

        self.start()
        if not records:
            return
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        # A pool may be left without work: the stage before it lost what it had.
        warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")
        context.execution_no_progress_timeout_s = -1  # a training, or a clip of hours, is one row: Ray would give up
        context.max_errored_blocks = -1  # a lost worker must not end the run; `stream`'s caller counts what came
        size = -(-len(records) // QUICK_BLOCKS) if stages[0].is_quick else 1
        blocks = [records[start : start + size] for start in range(0, len(records), size)]
        flowing: ray.data.Dataset = ray.data.from_arrow([_table(*block) for block in blocks])
        for stage in stages:
            how: dict[str, Any] = (
                {
                    "fn": _Each,
                    "fn_constructor_args": (stage.name, stage.make),
                    # One task at a time: what waits behind a deadly one would count as tried when it kills the actor.
                    "compute": ray.data.ActorPoolStrategy(
                        size=min(stage.actors, len(records)), max_tasks_in_flight_per_actor=1
                    ),
                    "max_restarts": -1,  # what is tried is bounded a task: a pool must outlive many bad records
                    "max_task_retries": 1,
                }
                if stage.actors
                else {"fn": _each, "fn_args": (stage.name, stage.make), "max_retries": 1}
            )
            with warnings.catch_warnings():
                # Ray 2.60 takes the limits on restarts only by a way that it says will go in 2.64, and names no other.
                warnings.filterwarnings("ignore", message=".*ray_remote_args.*")
                flowing = flowing.map_batches(
                    batch_size=1, batch_format="pyarrow", num_cpus=stage.cpus, num_gpus=stage.gpus or None, **how
                )
        for batch in flowing.iter_batches(batch_size=1, batch_format="pyarrow", prefetch_batches=0):
            for record in _records(batch):
                if isinstance(record, _Raised):
                    raise StageError(record.said, record.trace)
                yield record

    def start(self) -> None:
        """Connects to Ray, once; ConnectionError where there is none, or it is too slow to start."""
        import ray
        import ray.data

        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        options: dict[str, Any] = {"include_dashboard": False} if self.address == "local" else {}
        # What Ray says of its own doings stays in its log files; on the terminal our one line speaks.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        try:
            _knock(self.address)
            with _stderr_aside():  # or it says that it was told to be quiet
                ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # a node too slow to start raises just that
            raise ConnectionError(f"Ray did not start at {self.address!r}: {' '.join(str(error).split())}") from error
        for handler in logging.getLogger("ray.data").handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setLevel(logging.CRITICAL)

    def resources(self) -> tuple[float, float]:
        """CPUs and GPUs of the whole cluster; of this machine, without starting Ray, for a session of its own."""
        if self.address == "local":
            return float(os.cpu_count() or 1), 0.0
        import ray

        self.start()
        there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        return float(there.get("CPU", 1)), float(there.get("GPU", 0))


def _knock(address: str) -> None:
    """OSError where nothing listens at "host:port" or "ray://host:port"; Ray itself would try for minutes, silently."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


@contextlib.contextmanager
def _stderr_aside() -> Iterator[None]:
    """Nothing that is written to stderr, by libraries too, is shown; exceptions pass."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


QUICK_BLOCKS = 64  # at most: a block costs Ray some 45 ms, whatever is in it


@dataclass(frozen=True)
class _Raised:
    """An exception on its way to the driver: what was said, and where."""

    said: str
    trace: str


def _table(*records: Any) -> pa.Table:
    """Records as rows. One pickled column: a copy of a 64 MB clip costs 10 ms, its decoding a second."""
    return pa.table({"record": pa.array([pickle.dumps(record, protocol=5) for record in records], pa.large_binary())})


def _records(batch: pa.Table) -> Iterator[Any]:
    for scalar in batch["record"]:
        yield pickle.loads(scalar.as_buffer())


def _worked(name: str, make: Callable[[], Worker], batch: pa.Table) -> Iterator[pa.Table]:
    """What a stage makes of a row; an exception travels on as a row, past all later stages.

    Ray would drop the row without a word, as it does those of processes that died.
    """
    try:
        worker = make()
        for record in _records(batch):
            yield from map(_table, [record] if isinstance(record, _Raised) else worker(record))
    except Exception as exception:
        text = " ".join(str(exception).split())
        yield _table(_Raised(f"stage {name}: {type(exception).__name__}: {text}", traceback.format_exc()))


def _each(batch: pa.Table, name: str, make: Callable[[], Worker]) -> Iterator[pa.Table]:
    """A stateless stage as Ray Data calls it."""
    yield from _worked(name, make, batch)


class _Each:
    """A stage with state as Ray Data calls it; the state is made by the first record, where its errors can be told."""

    def __init__(self, name: str, make: Callable[[], Worker]) -> None:
        self.name = name
        self.make = cache(make)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        yield from _worked(self.name, self.make, batch)
