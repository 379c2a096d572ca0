"""Music Videos: faces in eight music videos, each person with one identity through all of a video's shots.

    trackloom run --catalog music_videos MUSIC

The published files are the eight videos (Apink.mp4, BrunoMars.mp4, Darling.mp4, GirlsAloud.mp4, HelloBubble.mp4,
PussycatDolls.mp4, T-ara.mov, Westlife.mp4) and an XML of truth for each: Apink_gt.xml and so on, that of the Pussycat
Dolls under the name of their song, stickwitu_gt.xml. They may lie anywhere below the folder; other truth that comes
with them (episodes of a sitcom, of which every fifth frame is annotated) is passed over. Inside an XML:

    <Video fname="gt" start_frame="1" end_frame="5275">
      <Trajectory obj_id="1" start_frame="253" end_frame="5275">
        <Frame frame_no="253" x="639" y="155" width="109" height="139"></Frame>

Frames count from 1; x and y are the left and the top of a box, taken like its width and height as continuous pixels of
the videos that come with the truth: of another size or frame rate they do not fit.
Source: Zhang et al., Tracking Persons-of-Interest via Adaptive Discriminative Features, ECCV 2016, and the readme of
its truth.
"""

from __future__ import annotations

import math
import posixpath
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa

from catalogs.parts import faces
from catalogs.parts.files import VIDEOS, address, folder_of, identity
from pipeline import records
from pipeline.records import VideoInfo

CLASSES = faces.CLASSES

TRUTHS = {  # by video, as the readme of the truth and the paper call it
    "Apink": "Apink_gt.xml",
    "BrunoMars": "BrunoMars_gt.xml",
    "Darling": "Darling_gt.xml",
    "GirlsAloud": "GirlsAloud_gt.xml",
    "HelloBubble": "HelloBubble_gt.xml",
    "PussycatDolls": "stickwitu_gt.xml",
    "T-ara": "Tara_gt.xml",
    "Westlife": "Westlife_gt.xml",
}
SONGS = {"stickwitu": "pussycatdolls", "stickwithu": "pussycatdolls"}


@dataclass(frozen=True)
class Settings:
    """names: of the eight videos, those that are taken; all of these must be there."""

    names: tuple[str, ...] = tuple(TRUTHS)

    def __post_init__(self) -> None:
        unknown = [name for name in self.names if name not in TRUTHS]
        if unknown or not self.names:
            got = f"has {unknown[0]!r}" if unknown else "is empty"
            raise ValueError(f"music_videos.names {got}; it must be some of: {', '.join(TRUTHS)}")


def videos(source: str | None, settings: Settings) -> list[VideoInfo]:
    """The videos below a folder that have truth; of kind `rows` where there is truth and not one video.

    Raises FileNotFoundError where truth or videos are missing, ValueError where there are two for one.
    """
    fs, root = folder_of(source, "music_videos", "the videos and their truth")
    entries = fs.find(root, detail=True)
    truths = _by_name({path: entry for path, entry in entries.items() if path.endswith("_gt.xml")})
    movies = _by_name({path: entry for path, entry in entries.items() if path.lower().endswith(VIDEOS)})
    lacking = [name for name in settings.names if _key(name) not in truths]
    if lacking:
        raise FileNotFoundError(
            f"{source} lacks the truth of {', '.join(lacking)}; looked for {', '.join(TRUTHS[n] for n in lacking)} "
            "in it and below (music_videos.names takes fewer)"
        )
    lacking = [name for name in settings.names if _key(name) not in movies]
    if 0 < len(lacking) < len(settings.names):
        raise FileNotFoundError(
            f"{source} lacks the videos {', '.join(lacking)}; looked for files of these names in it and below "
            "(music_videos.names takes fewer)"
        )
    return records.unique_ids(
        [
            VideoInfo(
                video_id=name,
                uri=address(fs, movie["name"]) if movie else "",
                catalog="music_videos",
                kind="video" if movie else "rows",
                identity=identity([known, *([movie] if movie else [])]),
                truth_uri=address(fs, known["name"]),
            )
            for name in settings.names
            for known, movie in [(truths[_key(name)], movies.get(_key(name)))]
        ]
    )


def truth(video: VideoInfo) -> pa.Table | None:
    """The truth of a video that `videos` listed, as rows of TRUTH; a track is a person through the whole video."""
    assert video.truth_uri is not None, "videos() names the truth"
    return read_truth(video.truth_uri, video.video_id)


def read_truth(path: str, video_id: str) -> pa.Table:
    """A file of truth as rows of TRUTH; raises ValueError where it is not one."""
    with fsspec.open(path, "rb") as file:
        content = file.read()
    try:
        video = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is not whole XML: {error}") from None
    people = video.findall("Trajectory")
    if video.tag != "Video" or not people:
        raise ValueError(f"{path} is no truth of the Music Videos: it needs <Video> with a <Trajectory> a person")
    rows = [
        (_number(frame, "frame_no", path), _number(person, "obj_id", path), *(_box(frame, path)))
        for person in people
        for frame in person.findall("Frame")
    ]
    columns = np.array(rows, np.float64).reshape(-1, 6)
    return faces.table(
        video_id,
        frame=columns[:, 0].astype(np.int64) - 1,
        boxes=columns[:, 2:],
        track=columns[:, 1].astype(np.int64),
    )


def _by_name(entries: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The file of each video, by the key of its name; other files are left out."""
    known = {_key(name) for name in TRUTHS}
    found: dict[str, dict[str, Any]] = {}
    for path, entry in sorted(entries.items()):
        key = _key(posixpath.splitext(posixpath.basename(path))[0].removesuffix("_gt"))
        if key in found:
            raise ValueError(f"{found[key]['name']} and {path} are both of one music video; one of them must go")
        if key in known:
            found[key] = entry
    return found


def _key(name: str) -> str:
    """A name's letters and digits alone: T-ara's truth is called Tara."""
    key = re.sub(r"[^a-z0-9]", "", name.lower())
    return SONGS.get(key, key)


def _box(frame: ElementTree.Element, path: str) -> list[float]:
    """Left, top, width, height."""
    try:
        values = [float(frame.attrib[name]) for name in ("x", "y", "width", "height")]
    except (KeyError, ValueError):
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise ValueError(f"{path}: a <Frame> needs x, y, width and height as numbers; got: {frame.attrib}")
    return values


def _number(element: ElementTree.Element, name: str, path: str) -> int:
    text = element.get(name, "")
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{path}: {name} of a <{element.tag}> is {text!r}; it must be a whole number from 1")
    return int(text)
