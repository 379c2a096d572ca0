"""MOTChallenge's text: a line of numbers a box, separated by commas or white space; what is wrong is said by line."""

from __future__ import annotations

from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from catalogs.parts.tables import of_schema
from pipeline.boxes import from_xywh

Floats = NDArray[np.float64]


def read_text(path: str) -> Floats:
    """The numbers of a file (N, C), float64, C >= 6, checked; frames as they stand, from 1.

    An empty file has no box, as where a detector found nothing. Raises FileNotFoundError, or ValueError that names
    the file and the line.
    """
    with fsspec.open(path, "rb") as file:
        content: bytes = file.read()
    columns = _plain_numbers(content)
    if columns is None:
        filled = _filled_lines(path, content)
        if not filled:
            return np.empty((0, 7))
        delimiter = "," if "," in filled[0][1] else None
        try:
            columns = np.loadtxt([line for _, line in filled], delimiter=delimiter, ndmin=2, comments=None)
        except ValueError:
            raise ValueError(_bad_line(path, filled, delimiter)) from None
    if columns.shape[1] < 6:
        raise ValueError(
            f"{path}:{_filled_lines(path, content)[0][0]}: {columns.shape[1]} columns; "
            "a MOTChallenge file has at least 6: frame, id, left, top, width, height"
        )
    frame, track = columns[:, 0], columns[:, 1]
    for wrong, what in (
        (~np.isfinite(columns[:, :7]).all(axis=1), "a number is not finite"),
        ((frame < 1) | (frame != np.floor(frame)), "the frame (column 1) must be a whole number from 1"),
        ((track < -1) | (track != np.floor(track)), "the id (column 2) must be a whole number from 0, or -1 for none"),
        ((columns[:, 4:6] < 0).any(axis=1), "width and height (columns 5 and 6) must not be negative"),
    ):
        if wrong.any():
            number, line = _filled_lines(path, content)[int(np.argmax(wrong))]
            raise ValueError(f"{path}:{number}: {what}; got: {line[:80]}")
    return columns


def rows_of(schema: pa.Schema, columns: Floats, video_id: str, **given: Any) -> pa.Table:
    """Rows of a schema from the columns of a file, sorted by frame and id; what is not given is null."""
    track = columns[:, 1].astype(np.int64)
    if (track == 0).any():
        track = np.where(track >= 0, track + 1, -1)
    table = of_schema(
        schema,
        from_xywh(columns[:, 2:6]).astype(np.float32),
        video_id=video_id,
        frame_index=columns[:, 0].astype(np.int64) - 1,
        track_id=pa.array(track, mask=track < 0),
        **given,
    )
    return table.take(np.lexsort((track, columns[:, 0])))


def line_of(path: str, row: int) -> int:
    """The number, from 1, of the line that a row of `read_text` comes from."""
    with fsspec.open(path, "rb") as file:
        return _filled_lines(path, file.read())[row][0]


def _plain_numbers(content: bytes) -> Floats | None:
    """The numbers of a file in which every line has as many, with commas between; None of any other. Fast."""
    try:
        table = csv.read_csv(
            pa.BufferReader(content), csv.ReadOptions(use_threads=False, autogenerate_column_names=True)
        )
    except pa.ArrowInvalid:
        return None
    if table.num_columns == 0 or any(c.null_count or not pa.types.is_primitive(c.type) for c in table.columns):
        return None
    return np.stack([column.to_numpy().astype(np.float64) for column in table.columns], axis=1)


def _filled_lines(path: str, content: bytes) -> list[tuple[int, str]]:
    """Number and text of each line that is not blank."""
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text; a MOTChallenge file has a line of numbers a box") from None
    return [(number, line.strip().rstrip(", \t")) for number, line in enumerate(lines, 1) if line.strip()]


def _bad_line(path: str, filled: list[tuple[int, str]], delimiter: str | None) -> str:
    """What is wrong with the first line that is not like the first."""
    expected = len(filled[0][1].split(delimiter))
    for number, line in filled:
        fields = line.split(delimiter)
        if len(fields) != expected:
            return f"{path}:{number}: {len(fields)} columns where the first line has {expected}; got: {line[:80]}"
        for index, field in enumerate(fields, 1):
            try:
                float(field)
            except ValueError:
                return (
                    f"{path}:{number}: column {index} is {field.strip()!r}, not a number; is this a MOTChallenge file?"
                )
    return f"{path} is not a MOTChallenge file: a line of numbers a box"
