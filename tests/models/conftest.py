"""Files served over HTTP, for what is fetched by URL; truth rows as a network's targets."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Keeps the test's output clean."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The URL at which the files of tmp_path are served."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def target_of() -> Callable[[pa.Table, tuple[str, ...]], dict[str, Tensor]]:
    """Makes the truth rows of one frame, none of them ignored, what a model's `losses` are given."""

    def made(rows: pa.Table, classes: tuple[str, ...]) -> dict[str, Tensor]:
        boxes = np.stack([rows[side].to_numpy() for side in ("x1", "y1", "x2", "y2")], axis=1)
        return {
            "boxes": torch.from_numpy(boxes.astype(np.float32)),
            "labels": torch.tensor([classes.index(name) for name in rows["class_name"].to_pylist()], dtype=torch.long),
            "track_ids": torch.tensor(rows["track_id"].to_pylist(), dtype=torch.long),
            "ignore": torch.zeros(len(rows), dtype=torch.bool),
        }

    return made
