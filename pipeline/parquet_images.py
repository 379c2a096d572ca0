"""Images in the rows of a Parquet file as a video's frames, read in order and few of them at once.

Memory is bounded by a few rows and a page of the file; who wrote it decides how large a page is, at most a row group.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import IO

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.decoders import VideoError
from pipeline.images import as_video_error
from pipeline.records import ImageRows

BATCH_ROWS = 8  # held at once, of all that the file has: a camera's images lie among those of others
BUFFER_BYTES = 2**20  # of the column, where it would otherwise be read a row group at a time


class ParquetImages:
    """The images that a uri of `ImageRows` names; raises VideoError where it names none.

    What tells the rows apart is read at first, the images as they are asked for: from the start of the row group that
    holds the first one wanted. Rows that are in order of time, in all or for each video apart, are read once; others
    are read right too, but again and again.
    """

    def __init__(self, uri: str) -> None:
        self._where = ImageRows.parse(uri)
        with self._opened() as parquet:
            missing = [name for name in self._columns if name not in parquet.schema_arrow.names]
            if missing:
                raise VideoError(
                    f"{self._where.file} has no column {missing[0]!r}; it has: {', '.join(parquet.schema_arrow.names)}"
                )
            keys = parquet.read(columns=[self._where.by, self._where.time], use_threads=False)
            groups = [parquet.metadata.row_group(number) for number in range(parquet.num_row_groups)]
            ours = keys[self._where.by].to_numpy() == self._where.value
        if not ours.any():
            raise VideoError(f"{self._where.file} has no row where {self._where.by} is {self._where.value}")
        times = keys[self._where.time].to_numpy()[ours].astype(np.int64)
        order = np.argsort(times, kind="stable")
        self._rows = np.flatnonzero(ours)[order]  # (N,), of the file
        self._starts = np.cumsum([0, *(group.num_rows for group in groups)])  # of its row groups, and its end
        self.times_us: NDArray[np.int64] | None = times[order]
        self.names: Sequence[str] = [f"row {row} of {self._where.file}" for row in self._rows]
        self.total_bytes = round(sum(group.total_byte_size for group in groups) * ours.mean())  # its share of them

    @property
    def _columns(self) -> tuple[str, str, str]:
        return self._where.image, self._where.time, self._where.by

    def contents(self, start: int) -> Iterator[bytes | str]:
        with self._opened() as parquet:
            batches: Iterator[tuple[int, pa.Array]] | None = None
            first, held = 0, pa.array([], pa.binary())  # rows [first, first + len(held)) of the file
            for row, name in zip(self._rows[start:].tolist(), self.names[start:], strict=True):
                group = int(np.searchsorted(self._starts, row, side="right")) - 1
                if batches is None or row < first or self._starts[group] > first + len(held):
                    batches = self._batches(parquet, group)
                    first, held = next(batches)
                while row >= first + len(held):
                    first, held = next(batches)
                image = held[row - first]
                yield image.as_py() if image.is_valid else f"{name} holds no image"

    def _batches(self, parquet: pq.ParquetFile, group: int) -> Iterator[tuple[int, pa.Array]]:
        """The column of images from a row group on, a few rows at a time, each with the number of its first row."""
        first = int(self._starts[group])
        groups = list(range(group, len(self._starts) - 1))
        for batch in parquet.iter_batches(BATCH_ROWS, groups, [self._where.image], use_threads=False):
            yield first, batch.column(0)
            first += len(batch)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        with as_video_error(self._where.file), contextlib.ExitStack() as stack:
            files, path = fsspec.core.url_to_fs(self._where.file)
            file: IO[bytes] = stack.enter_context(files.open(path, "rb"))
            try:
                yield pq.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)
            except pa.ArrowException as error:
                raise VideoError(f"{self._where.file} is not a whole Parquet file: {error}") from None
