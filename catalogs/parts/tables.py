"""Boxes and what is known of them as rows of one of our schemas, whatever file they come from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def of_schema(schema: pa.Schema, boxes: NDArray[Any], **columns: Any) -> pa.Table:
    """Rows of TRUTH or TRACKS, in the order given; what is not given is null.

    boxes: (N, 4) xyxy; columns: N values each by name, as an array or a list, or one word that all rows share.
    """
    assert columns.keys() <= set(schema.names), columns.keys()
    columns |= {name: boxes[:, index] for index, name in enumerate(("x1", "y1", "x2", "y2"))}
    return pa.table([_column(field.type, len(boxes), columns.get(field.name)) for field in schema], schema=schema)


def _column(kind: pa.DataType, count: int, values: Any) -> pa.Array:
    if values is None:
        return pa.nulls(count, kind)
    if isinstance(values, str):
        values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([values]))
    elif not isinstance(values, pa.Array):
        values = pa.array(values, kind.value_type if pa.types.is_dictionary(kind) else kind)
    return values.cast(kind)
