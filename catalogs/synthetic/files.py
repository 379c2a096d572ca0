"""Files: each video as H.264 with its truth beside it, made once and then found again.

The same build of libx264 gives the same bytes on every x86 processor: left to itself it takes other algorithms on
others, by which a network's mAP on a single video moved up to .05; results of two machines could not be compared.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

FPS = 25
ENCODING = "2"  # another one for files whose pixels are others
_OPTIONS = {"crf": "18", "preset": "veryfast", "movflags": "+faststart", "x264-params": "cpu-independent=1"}


def written_digest(video: Path) -> str | None:
    """The digest of a video that lies whole in its place, as it is encoded now, else None.

    The truth is written after the video, and says in its metadata what both hold: it is the mark that all is done.
    """
    truth = video.with_suffix(".parquet")
    if not (video.is_file() and truth.is_file()):
        return None
    metadata = pq.read_schema(truth).metadata or {}
    if metadata.get(b"encoding", b"").decode() != ENCODING:
        return None
    return metadata.get(b"digest", b"").decode() or None


def write(video: Path, frames: NDArray[np.uint8], truth: pa.Table, digest: str) -> None:
    """Writes frames, uint8 (T, H, W, 3), as `video` and the truth beside it, each whole or not at all."""
    video.parent.mkdir(parents=True, exist_ok=True)
    marked = truth.replace_schema_metadata({"digest": digest, "encoding": ENCODING})
    _whole(video, lambda path: encode(path, frames))
    _whole(video.with_suffix(".parquet"), lambda path: pq.write_table(marked, path, compression="zstd"))


def encode(path: Path, frames: NDArray[np.uint8]) -> None:
    """Encodes frames, uint8 (T, H, W, 3) RGB, as H.264 in an MP4 container."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options=_OPTIONS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # what threads do to rate control would make files differ
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(yuv420(frame), format="yuv420p")))
        container.mux(stream.encode())


def yuv420(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB (H, W, 3), H a multiple of 4, as Y, Cb and Cr one below the other (3 H / 2, W): BT.601 of limited range.

    Chroma is of the mean of 2 x 2 pixels. All is whole numbers, which no processor rounds otherwise.
    """
    height, width = frame.shape[:2]
    red, green, blue = np.moveaxis(frame.astype(np.int32), 2, 0)
    luma = ((66 * red + 129 * green + 25 * blue + 128) >> 8) + 16
    red, green, blue = (
        (plane.reshape(height // 2, 2, width // 2, 2).sum(axis=(1, 3)) + 2) >> 2 for plane in (red, green, blue)
    )
    chroma = ((-38 * red - 74 * green + 112 * blue + 128) >> 8, (112 * red - 94 * green - 18 * blue + 128) >> 8)
    return np.concatenate([luma, *((plane + 128).reshape(height // 4, width) for plane in chroma)]).astype(np.uint8)


def _whole(path: Path, make: Callable[[Path], None]) -> None:
    """Makes a file under another name and then gives it its own, so that a half one is never found."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        make(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
