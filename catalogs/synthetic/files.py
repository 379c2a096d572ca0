"""Files: each video as H.264 with its truth beside it, made once and then found again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FPS = 25
_OPTIONS = {"crf": "18", "preset": "veryfast", "movflags": "+faststart"}


def written_digest(video: Path) -> str | None:
    """The digest of a video that lies whole in its place, else None.

    The truth is written after the video, and says in its metadata what both hold: it is the mark that all is done.
    """
    truth = video.with_suffix(".parquet")
    if not (video.is_file() and truth.is_file()):
        return None
    metadata = pq.read_schema(truth).metadata or {}
    return metadata.get(b"digest", b"").decode() or None


def write(video: Path, frames: np.ndarray, truth: pa.Table, digest: str) -> None:
    """Writes frames, uint8 (T, H, W, 3), as `video` and the truth beside it, each whole or not at all."""
    video.parent.mkdir(parents=True, exist_ok=True)
    marked = truth.replace_schema_metadata({"digest": digest})
    _whole(video, lambda path: encode(path, frames))
    _whole(video.with_suffix(".parquet"), lambda path: pq.write_table(marked, path, compression="zstd"))


def encode(path: Path, frames: np.ndarray) -> None:
    """Encodes frames, uint8 (T, H, W, 3) RGB, as H.264 in an MP4 container."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options=_OPTIONS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # what threads do to rate control would make files differ
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _whole(path: Path, make: Callable[[Path], None]) -> None:
    """Makes a file under another name and then gives it its own, so that a half one is never found."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        make(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
