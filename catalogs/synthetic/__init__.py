"""synthetic-v1: procedural videos with exact ground truth, made where they are asked for.

160 x 128 pixels, 32 to 40 frames at 25 a second, H.264. The pattern on an object says its class; colour and silhouette
say which individual it is. What befalls objects, and is flagged box by box (`FLAGS`): bursts of deterioration in which
the pattern cannot be read, three speeds, occluders, crossings, leaving and coming back, look-alikes, concentric
objects, a shaking camera; distractors that last a frame or two are in no truth.

Each video is a pure function of the version, the split and the index. The version names the pixels for good: a change
to any is a new version, and `DIGESTS` are there to notice it. The frames come before the encoder; how a build of
libx264 packs them is not part of the version (see `files`).

`--catalog synthetic [SOURCE]`: SOURCE is the folder in which `synthetic-v1/<split>/` is made or found, by default
TRACKLOOM_CACHE or ~/.cache/trackloom.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from catalogs.parts.files import IMAGES, VIDEOS
from catalogs.synthetic import draw
from catalogs.synthetic.annotate import FLAGS, digest, truth_table, video_id
from catalogs.synthetic.files import ENCODING, FPS, write, written_digest
from catalogs.synthetic.paths import SIZE
from catalogs.synthetic.scene import VERSION, make_scene
from catalogs.synthetic.shapes import CLASSES
from pipeline.records import VideoInfo

__all__ = ["CLASSES", "DIGESTS", "FLAGS", "SPLITS", "VERSION", "Settings", "flow", "render", "truth", "videos"]

Split = Literal["train", "val", "test"]
SPLITS: dict[Split, int] = {"train": 400, "val": 40, "test": 48}  # videos in each
_MOST_VIDEOS = 10_000  # a training run may ask for more than the split's usual number; names have four digits

# What some videos hold: `annotate.digest` of their frames and truth.
DIGESTS: dict[str, str] = {
    "train-0000": "86666218e8181017d021b751a92dc398ab960a1cbf143ee0d0ffbb9226abc154",
    "train-0301": "50fb2a3a64d843fbc02abc0ca1aa93ef575db4ecbb6fac8fcfd69ae4c148bd24",
    "val-0001": "910dae56d3c27d9ce87631c23d847bf37d0e11eb9bd7496b835cde4ba0745fe4",
    "test-0002": "dc3965278a289741e85998408622de69f792cebbd61c43cc1170832eef5e0aa4",
    "test-0006": "f2c2029dd7ecc1f92ac60e38baf817231845da9634aa435ef04cfde835d8e957",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """Which videos: a split, and how many of it (None: as many as SPLITS says; the first ones hold all speeds)."""

    split: Split = "test"
    num_videos: int | None = None

    def __post_init__(self) -> None:
        if self.split not in get_args(Split):
            raise ValueError(f"split is {self.split!r}; it must be one of: {', '.join(get_args(Split))}")
        if self.num_videos is not None and not 1 <= self.num_videos <= _MOST_VIDEOS:
            raise ValueError(f"num_videos is {self.num_videos}; it must be from 1 to {_MOST_VIDEOS}")


def videos(source: str | None, settings: Settings) -> list[VideoInfo]:
    """The videos of a split, made first where they are not yet there (about 4 ms a frame).

    Raises ValueError where the source is no local folder, or is somebody's videos, which would not be read.
    """
    folder = _folder(source) / VERSION / settings.split
    count = settings.num_videos or SPLITS[settings.split]
    paths = [folder / f"{video_id(settings.split, index)}.mp4" for index in range(count)]
    digests = [written_digest(path) for path in paths]
    if missing := digests.count(None):
        log.info("making %d videos of %s in %s", missing, VERSION, folder)
    for index, path in enumerate(paths):
        if digests[index] is None:
            frames, table = render(settings.split, index)
            digests[index] = digest(frames, table)
            write(path, frames, table, digests[index] or "")
    return [
        VideoInfo(
            video_id=path.stem,
            uri=str(path),
            catalog="synthetic",
            identity=f"{VERSION}-{name}-{ENCODING}",
            truth_uri=str(path.with_suffix(".parquet")),
            fps=float(FPS),
            size=SIZE,
        )
        for path, name in zip(paths, digests, strict=True)
    ]


def truth(video: VideoInfo) -> pa.Table:
    """The truth of a video that `videos` listed; a table of `schemas.TRUTH`, with ids, motion_iou and flags."""
    if video.truth_uri is None or not Path(video.truth_uri).is_file():
        raise FileNotFoundError(f"the truth of {video.video_id} is not at {video.truth_uri}; list the videos again")
    return pq.read_table(video.truth_uri).replace_schema_metadata(None)


def render(split: str, index: int) -> tuple[NDArray[np.uint8], pa.Table]:
    """One video in memory, as it was before H.264: frames uint8 (T, H, W, 3) RGB, and its truth."""
    what = make_scene(split, index)
    pictures = list(draw.pictures(what))
    return np.stack([picture.frame for picture in pictures]), truth_table(what, pictures)


def flow(video: VideoInfo) -> Iterator[NDArray[np.float32]]:
    """The exact optical flow of a video, frame by frame: float32 (H, W, 2), x then y, in pixels from t to t + 1.

    T - 1 fields for T frames. A pixel moves with what is in front at it.
    """
    split, _, index = video.video_id.partition("-")
    if split not in SPLITS or not index.isdecimal():
        raise ValueError(f"{video.video_id!r} is no video of {VERSION}; they are called like 'test-0007'")
    return draw.flow(make_scene(split, int(index)))


def _folder(source: str | None) -> Path:
    if source and "://" in source:
        raise ValueError(f"the synthetic videos are made in a local folder, not at {source}")
    cache = os.environ.get("TRACKLOOM_CACHE") or Path.home() / ".cache" / "trackloom"
    folder = Path(source or cache).expanduser()
    if source and _holds_videos(folder):
        raise ValueError(
            f"the catalog synthetic makes its own videos and would not read {source.splitlines()[0]}; "
            "--catalog folder reads videos of yours, none at all puts these into the cache"
        )
    return folder


def _holds_videos(source: Path) -> bool:
    """Whether this is somebody's videos, by files or a folder or a glob of them, not a place to put these into."""
    if source.is_dir():
        return any(path.suffix.lower() in (*VIDEOS, *IMAGES) for path in source.iterdir())
    return source.exists() or any(sign in str(source) for sign in "\n*?[")
