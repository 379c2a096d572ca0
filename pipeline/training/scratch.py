"""Folders for what a process needs only as long as it lives: those of processes that were killed are cleared away."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "trackloom-training-"
LOCK = "lock"  # a file in each folder that its process holds locked, which the system ends with it, however it ends


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder among the temporary files. Those that a killed process on this machine left are removed first."""
    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{LOCK}"):
        _clear(lock)
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        made = Path(folder, "made")
        with made.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            made.rename(Path(folder, LOCK))  # nobody sees it before it is locked
            yield Path(folder)


def _clear(lock: Path) -> None:
    """Removes a lock's folder where no process holds the lock; another may be at it too."""
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)
    except (BlockingIOError, FileNotFoundError, PermissionError):
        return
