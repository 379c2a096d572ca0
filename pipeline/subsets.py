"""Parts of a truth by its flags, so that scores can be told apart by what befalls objects: bursts, speeds, crossings.

A subset is of boxes, of whole tracks or of whole videos, and this decides which frames are scored. `restrict` makes of
truth and tracks the two tables that hold the subset alone; `scoring.score` then knows nothing of subsets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.config import did_you_mean

Booleans = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Subset:
    """text: what is in it, in a line. flags: of `catalogs.synthetic.FLAGS`; a row must have all of them.

    of: `boxes`: the rows that have the flags; `tracks`, `videos`: all of those in which some row has them.
    without: the boxes that do not have the flags, instead.
    """

    text: str
    of: Literal["boxes", "tracks", "videos"]
    flags: tuple[str, ...] = ()
    without: bool = False


ALL = "all"
SUBSETS = {
    ALL: Subset("every box of every video", "videos"),
    "burst": Subset("boxes whose pattern a burst of deterioration hides", "boxes", ("burst",)),
    "clean": Subset("boxes outside of bursts", "boxes", ("burst",), without=True),
    "slow": Subset("videos of slow objects", "videos", ("slow",)),
    "medium": Subset("videos of objects of medium speed", "videos", ("medium",)),
    "fast": Subset("videos of fast objects", "videos", ("fast",)),
    "concentric": Subset("tracks that at some time share their centre with another", "tracks", ("concentric",)),
    "lookalike_crossing": Subset(
        "tracks that have a look-alike and cross another object", "tracks", ("lookalike", "crossing")
    ),
    "jitter": Subset("videos whose camera shakes", "videos", ("jitter",)),
}
_FLAGS = sorted({flag for subset in SUBSETS.values() for flag in subset.flags})


def restrict(truth: pa.Table, tracks: pa.Table, name: str) -> tuple[pa.Table, pa.Table]:
    """The truth and the tracks of a subset: tables of the same columns, rows in the same order.

    truth: a table of TRUTH, flags as synthetic-v1 has them. tracks: with at least video_id and frame_index.

    - Of videos: all rows of these videos, of all frames.
    - Of boxes and of tracks: the frames in which a scored box of the subset is; there, truth outside the subset is
      ignored, and so are predictions on it. It loses its class, since an ignored row without one excuses predictions of
      every class: the score of clean objects must not depend on what the one beside them, in a burst, is taken for.
      (The price: where a prediction overlaps a box outside the subset even more than its own, metrics of identities
      miss its own. On synthetic-v1 3 of 672 boxes in bursts overlap one outside by an IoU above .5.) What is ignored
      already stays as it is.

    A subset of tracks so has every frame in which any of its tracks is scored, flagged there or not: trajectories stay
    whole, and their switches, fragments and temporal IoU mean what they mean in the whole dataset. What a tracker
    makes up while all of them are out of sight costs it nothing. A subset of boxes has trajectories with holes:
    identities are those of these boxes alone, a switch lies between two of them however far apart, and what needs
    consecutive frames (errors of stability, speeds by track) is better read from the others.

    Raises ValueError for an unknown name, for truth without such flags (in synthetic-v1 every row has that of its
    speed), and for a subset of tracks where scored truth lacks track_id.
    """
    if name not in SUBSETS:
        raise ValueError(f"unknown subset {name!r}{did_you_mean(name, SUBSETS)}; it may be one of {', '.join(SUBSETS)}")
    if name == ALL:
        return truth, tracks
    subset, flagged = SUBSETS[name], _flagged(truth, name)
    video, names = _numbers(truth["video_id"])
    found_in, _ = _numbers(tracks["video_id"], names)  # -1 where truth does not have the video
    if subset.of == "videos":
        chosen = np.unique(video[flagged])
        return truth.filter(pa.array(np.isin(video, chosen))), tracks.filter(pa.array(np.isin(found_in, chosen)))

    scored = ~truth["ignore"].fill_null(False).to_numpy()
    if subset.of == "tracks":
        flagged = _whole_tracks(truth, video, flagged, scored, name)
    inside = scored & (flagged != subset.without)
    span = 1 + max((pc.max(side["frame_index"]).as_py() or 0) for side in (truth, tracks))
    moment = video * span + truth["frame_index"].to_numpy()
    there = np.isin(moment, moment[inside])
    found_there = np.isin(found_in * span + tracks["frame_index"].to_numpy(), moment[inside])
    known = truth.filter(pa.array(there))
    outside = pa.array((scored & ~inside)[there])
    for column, value in (("ignore", True), ("class_id", None), ("class_name", None)):
        known = _put(known, column, outside, value)
    return known, tracks.filter(pa.array(found_there))


def _flagged(truth: pa.Table, name: str) -> Booleans:
    """Which rows (N,) have all flags of a subset; raises ValueError where truth has none of any subset."""
    flags = truth["flags"].combine_chunks() if "flags" in truth.column_names else pa.array([], pa.list_(pa.string()))
    row, word = pc.list_parent_indices(flags).to_numpy(), pc.list_flatten(flags)
    if len(truth) and not pc.any(pc.is_in(word, pa.array(_FLAGS))).as_py():
        raise ValueError(
            f"the subset {name!r} needs truth with flags as synthetic-v1 has them, and this has none of "
            f"{', '.join(_FLAGS)}; without them there is the subset {ALL!r}"
        )
    number = np.zeros(len(truth), np.int64)
    for flag in SUBSETS[name].flags:
        number[row[pc.equal(word, flag).to_numpy(zero_copy_only=False)]] += 1
    return number == len(SUBSETS[name].flags)


def _whole_tracks(truth: pa.Table, video: Ints, flagged: Booleans, scored: Booleans, name: str) -> Booleans:
    """Which rows (N,) are of tracks in which some row is flagged, an ignored one too; rows without id are ignored."""
    track = truth["track_id"].fill_null(-1).to_numpy().astype(np.int64)
    if (scored & (track < 0)).any():
        raise ValueError(f"the subset {name!r} is of whole tracks, and this truth has scored rows without track_id")
    identity = np.where(track < 0, -1, video * (track.max(initial=0) + 1) + track)
    return np.isin(identity, identity[flagged])


def _numbers(column: pa.ChunkedArray, names: pa.Array | None = None) -> tuple[Ints, pa.Array]:
    """Strings as indices (N,) into names, by default the distinct ones; -1 for others."""
    words = column.cast(pa.string()).combine_chunks()
    names = pc.unique(words) if names is None else names
    return pc.index_in(words, names).fill_null(-1).to_numpy().astype(np.int64), names


def _put(table: pa.Table, name: str, chosen: pa.Array, value: Any) -> pa.Table:
    """The table with a value (None: null) in the chosen rows (N,) of a column."""
    field = table.schema.field(name)
    plain = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    column = pc.if_else(chosen, pa.scalar(value, plain), table[name].cast(plain))
    column = column.dictionary_encode() if plain != field.type else column
    return table.set_column(table.column_names.index(name), field, column.cast(field.type))
