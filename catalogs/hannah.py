"""Hannah: all faces of one feature film, `Hannah and Her Sisters` (1986), as tracks that end with their shots.

    trackloom run --catalog hannah HANNAH

The film is not part of the dataset: put it beside the truth, as one video file or as images in a folder `frames`, with
the 153,825 frames that were annotated (a PAL DVD, 25 a second) and none before them. The truth is text, in the folder
or one folder below it:

    hannah_video_faces.txt   a line a face: frame, left, top, width, height, track
    hannah_video_tracks.txt  a line a track: track, character, perhaps a comment
    hannah_cast.txt          a line a character: character, its name, perhaps the actor's

Columns stand between tabs; a file may begin with lines that describe it. Only the faces are needed; where the other
two are there, a face's `flags` hold its character's name. No description of the files by their authors was found: this
is what two public programs that read them take them for, which also agree that frames and tracks count from 1 and that
boxes are in pixels of frames resized to 996 x 560. So boxes are scaled to the size that the film's header or first
image says. Left, top, width and height are taken as continuous pixels. Shots and speech are not read.

Box style: Hannah's boxes are wider than those of WIDER FACE, ears included, and shorter, from the middle of the
forehead to that of the jaw (SMOT, Figure 5a). A detector trained on the one loses IoU, and so matches, on the other. No
conversion is published, so none is offered: boxes are as the file says, and a warning says so once.
Source: Ozerov, Vigouroux, Chevallier, Perez, On Evaluating Face Tracks in Movies, ICIP 2013; Li et al., SMOT: Single-
Shot Multi Object Tracking, Sections 6.2 and 6.4.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import av
import fsspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from catalogs.parts import faces
from catalogs.parts.files import IMAGES, VIDEOS, address, folder_of, identity, listed
from pipeline.records import VideoInfo, natural_key

CLASSES = faces.CLASSES

FACES, TRACKS, CAST = "hannah_video_faces.txt", "hannah_video_tracks.txt", "hannah_cast.txt"
FRAMES = "frames"
ANNOTATED = (560, 996)  # (height, width) of the frames that boxes are drawn on
FPS = 25.0

_FACE = re.compile(r"\s*" + r"\s+".join([r"-?\d+(\.\d*)?"] * 6) + r"\s*")  # a line of the faces

_log = logging.getLogger(__name__)
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """There is nothing to choose."""


def videos(source: str | None, settings: Settings) -> list[VideoInfo]:
    """The film; of kind `rows` where only its truth is there.

    Raises FileNotFoundError where there is no truth, ValueError where there are several films.
    """
    fs, root = folder_of(source, "hannah", f"the film and {FACES}")
    inside = fs.ls(root, detail=True)
    folders = [root, *sorted(entry["name"].rstrip("/") for entry in inside if entry["type"] == "directory")]
    texts = next((folder for folder in folders if fs.isfile(f"{folder}/{FACES}")), None)
    if texts is None:
        raise FileNotFoundError(f"{source} holds no truth of Hannah; looked for {FACES} in it and its folders")
    films_by_name = listed(fs, root, VIDEOS)
    images = sorted(listed(fs, f"{root}/{FRAMES}", IMAGES).values(), key=lambda entry: natural_key(str(entry["name"])))
    if len(films_by_name) + bool(images) > 1:
        names = [*films_by_name, *([f"{FRAMES}/"] if images else [])]
        raise ValueError(f"{source} holds {', '.join(sorted(names))}; the film must be one of them, whole")
    films = list(films_by_name.values())
    first = next(iter([*films, *images]), None)
    described = [fs.info(f"{texts}/{name}") for name in (FACES, TRACKS, CAST) if fs.isfile(f"{texts}/{name}")]
    warn_of_style()
    return [
        VideoInfo(
            video_id="hannah",
            uri=address(fs, f"{root}/{FRAMES}" if images else films[0]["name"]) if first else "",
            catalog="hannah",
            kind="images" if images else "video" if films else "rows",
            identity=identity([*described, *films, *images]),
            truth_uri=address(fs, f"{texts}/{FACES}"),
            fps=FPS,
            size=_size(fs, first["name"]) if first else None,
        )
    ]


def truth(video: VideoInfo) -> pa.Table | None:
    """The film's faces as rows of TRUTH, in pixels of its frames, or of the annotated ones where there is no film."""
    assert video.truth_uri is not None, "videos() names the truth"
    rows = read_faces(video.truth_uri)
    (height, width), (high, wide) = ANNOTATED, video.size or ANNOTATED
    named = read_names(video.truth_uri.removesuffix(FACES))
    track = rows[:, 5].astype(np.int64)
    return faces.table(
        video.video_id,
        frame=rows[:, 0].astype(np.int64) - 1,
        boxes=rows[:, 1:5] * np.array([wide / width, high / height] * 2),
        track=track,
        flags=[[named[each]] if each in named else [] for each in track.tolist()],
    )


@functools.cache
def warn_of_style() -> None:
    """Says once how Hannah's boxes differ from those that face detectors are trained on."""
    _log.warning(
        "Hannah's face boxes are wider and shorter than those of WIDER FACE (SMOT, Figure 5a): "
        "a detector trained on the one loses matches when scored on the other"
    )


def read_faces(path: str) -> Floats:
    """The faces of a file (N, 6): frame and track from 1, as in the file. ValueError where it is not one."""
    lines = _lines(path)
    start = next((place for place, (_, line) in enumerate(lines) if _is_face(line)), len(lines))
    if start == len(lines):
        raise ValueError(f"{path} holds no face; a line is frame, left, top, width, height, track, with tabs between")
    bad = next((pair for pair in lines[start:] if not _is_face(pair[1])), None)
    if bad is not None:
        raise ValueError(f"{path}:{bad[0]}: not the six numbers of a face: {bad[1][:80]}")
    rows = np.loadtxt([line for _, line in lines[start:]], ndmin=2)
    counts = rows[:, [0, 5]]
    wrong = ((counts < 1) | (counts != np.floor(counts))).any(axis=1)
    if wrong.any():
        number, line = lines[start + int(np.argmax(wrong))]
        raise ValueError(
            f"{path}:{number}: frame and track (columns 1 and 6) must be whole numbers from 1; got: {line[:80]}"
        )
    return rows


def read_names(folder: str) -> dict[int, str]:
    """Track -> its character's name, of the files of a folder; empty where they are not both there."""
    try:
        tracks, cast = _lines(f"{folder}{TRACKS}"), _lines(f"{folder}{CAST}")
    except FileNotFoundError:
        return {}
    names = {int(fields[0]): fields[1] for fields in _fields(cast) if fields[0].isdecimal()}
    played = {
        int(fields[0]): int(fields[1]) for fields in _fields(tracks) if fields[0].isdecimal() and fields[1].isdecimal()
    }
    return {track: names[character] for track, character in played.items() if names.get(character)}


def _lines(path: str) -> list[tuple[int, str]]:
    """Number and text of each line that is not blank; names may be in any encoding."""
    with fsspec.open(path, "rt", encoding="utf-8-sig", errors="replace") as file:
        lines = file.read().splitlines()
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


def _fields(lines: Sequence[tuple[int, str]]) -> Iterator[list[str]]:
    """What stands between the tabs of each line with at least two columns."""
    for _, line in lines:
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) > 1:
            yield fields


def _is_face(line: str) -> bool:
    return _FACE.fullmatch(line) is not None


def _size(fs: Any, path: str) -> tuple[int, int] | None:
    """(height, width) by the header of the film or of its first image; None of a bad one, of which the run will say."""
    with contextlib.suppress(av.FFmpegError), fs.open(path, "rb") as file, av.open(file) as container:
        if container.streams.video:
            stream = container.streams.video[0]
            return stream.height, stream.width
    return None
