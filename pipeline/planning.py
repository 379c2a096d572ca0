"""What is to be done: a catalog's videos in shards, a video's clips, clips in units."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.clips import Unit
from pipeline.recipe import Recipe
from pipeline.records import ClipRef, Resize, VideoInfo
from pipeline.video import Probe, cut, probe, why

TRAVEL_BYTES = 128 * 1024**2  # a clip of more pixels than this is decoded where it is seen
UNIT_FRAMES = 256  # short clips go together until they are this many frames: a second or two of work a Ray block


@dataclass(frozen=True)
class Plan:
    """What is to be done of one video: its clips, or why there are none."""

    video: VideoInfo
    header: Probe | None
    clips: tuple[ClipRef, ...]
    error: str | None = None


@dataclass(frozen=True)
class Shard:
    """Videos whose rows share a file. plans: what was to be done of each, where that matters."""

    number: int
    videos: tuple[VideoInfo, ...]
    plans: tuple[Plan, ...] = ()

    @property
    def file(self) -> str:
        """The name of its file in every table."""
        return f"shard-{self.number:05d}.parquet"


def shards_of(videos: Sequence[VideoInfo], size: int) -> dict[str, Shard]:
    """The catalog in pieces of `size` videos, by the name of their file; a video lies wholly in one."""
    shards = [Shard(i // size, tuple(videos[i : i + size])) for i in range(0, len(videos), size)]
    return {shard.file: shard for shard in shards}


class PlanVideo:
    """videos -> plans: opens each video for its header and cuts it into clips."""

    def __init__(self, recipe: Recipe, context: tuple[int, int]) -> None:
        self.clip_frames = recipe.clip_frames
        overlap = recipe.overlap if recipe.clip_frames else 0
        self.before, self.after = context[0] + overlap, context[1] + overlap

    def __call__(self, video: VideoInfo) -> Iterator[Plan]:
        try:
            header = probe(video)
        except Exception as exception:  # as in `video.decode`
            yield Plan(video, None, (), why(exception))
            return
        clips = cut(video, header.frames_declared, self.clip_frames, self.before, self.after)
        yield Plan(video, header, tuple(clips))


def units_of(refs: Sequence[ClipRef], plans: Mapping[str, Plan], resize: Resize) -> list[Unit]:
    """Clips in units of about a second's work; one whose pixels are too many to travel, or unknown, stays alone."""
    units: list[Unit] = []
    waiting: list[ClipRef] = []
    frames = 0
    for ref in refs:
        header = plans[ref.video.video_id].header
        assert header is not None, "a video without a header has no clips"
        ends = [end for end in (ref.end_shown, header.frames_declared) if end is not None]
        count = max(min(ends) - ref.first_shown, 1) if ends else None
        height, width = resize.target(header.size)
        if count is None or count * height * width * 3 > TRAVEL_BYTES:
            units.append(Unit((ref,), travels=False))
            continue
        if waiting and frames + count > UNIT_FRAMES:
            units.append(Unit(tuple(waiting)))
            waiting, frames = [], 0
        waiting.append(ref)
        frames += count
    return units + ([Unit(tuple(waiting))] if waiting else [])


def lost_plan(video: VideoInfo) -> Plan:
    """What is said of a video whose header could not be read without the process dying."""
    return Plan(video, None, (), "the process that read its header died each time; it was tried twice")
