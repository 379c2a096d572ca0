"""Catalog entries -> clips -> frames: `probe` a video, `cut` it into clips, `decode` those.

What the outside world does to a video is dealt with here: a remote one is fetched, a bad one gives what decodes of it
and one sentence on the rest, in `Clip.error`. `decoders` has the decoding itself.

A clip is in error (its video is `partial`, or `failed` where not one frame decodes) where the decoder failed on a
frame that it shows, or where frames are missing that the container holds or its header promises. One exception: the
last two frames of a video may be missing without an error of the decoder; headers of MPEG-4 in AVI count frames that
are not there (packed B-frames).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import fsspec
import numpy as np

from pipeline import decoders
from pipeline.decoders import Frame, Header, Index, Reader, VideoError
from pipeline.images import SUFFIXES, Folder, ImageReader, Images, Single, file_size, local_copy, opened
from pipeline.parquet_images import ParquetImages
from pipeline.records import DEFAULT_FPS, Clip, ClipRef, Kind, Resize, VideoInfo

__all__ = ["Probe", "VideoError", "cut", "decode", "kind_of", "probe", "promised", "why"]

SPARE_FRAMES = 2  # that may be missing at the end of a video
IMAGES: dict[str, Callable[[str], Images]] = {
    "images": Folder,
    "image": Single,
    "parquet": ParquetImages,
}  # by `VideoInfo.kind`


@dataclass(frozen=True)
class Probe:
    """What a header says, as columns of `schemas.VIDEOS`.

    size: (height, width), upright; rotation: degrees counter-clockwise (0, 90, 180, 270) that set it upright.
    is_vfr: frames are not evenly spaced. frames_declared: by the header, or counted by demuxing where it has none.
    """

    size: tuple[int, int]
    rotation: int
    codec: str
    fps: float
    is_vfr: bool
    frames_declared: int | None
    duration_s: float | None
    bytes: int


def probe(video: VideoInfo) -> Probe:
    """Header facts, of the whole file, from one decoded frame at most; raises VideoError that says what is wrong."""
    _check_frames(video)
    if video.kind in IMAGES:
        reader, index = _images(video, Resize())
        _check_range(video, len(index))
        return Probe(
            size=reader.size,
            rotation=0,
            codec=reader.codec,
            fps=index.fps,
            is_vfr=bool(np.ptp(np.diff(index.pts)) * index.time_base * index.fps > 0.01) if len(index) > 1 else False,
            frames_declared=len(index),
            duration_s=len(index) / index.fps,
            bytes=reader.images.total_bytes,
        )
    size = file_size(video.uri)
    with opened(video.uri) as file:
        header = decoders.read_header(file, video.uri)
    declared = header.frames
    if declared is None:
        with opened(video.uri) as file:
            declared = len(decoders.read_index(file, video.uri)) or None
    _check_range(video, declared)
    return Probe(
        size=header.size,
        rotation=90 * header.turns,
        codec=header.codec,
        fps=header.fps or header.base_fps or video.fps or DEFAULT_FPS,
        is_vfr=_varies(header.fps, header.base_fps),
        frames_declared=declared,
        duration_s=header.duration_s,
        bytes=size,
    )


def kind_of(uri: str) -> Kind:
    """What kind of video lies at a place, by its looks: for rows of `videos`, which say nothing else of it."""
    if ".parquet?" in uri:
        return "parquet"
    files, path = fsspec.core.url_to_fs(uri)
    if files.isdir(path):
        return "images"
    return "image" if uri.lower().endswith(SUFFIXES) else "video"


def _varies(average: float | None, base: float | None) -> bool:
    """Whether frames are unevenly spaced: the average rate is not the one that all their times fit in."""
    return average is not None and base is not None and abs(average / base - 1) > 0.01


def cut(video: VideoInfo, frames: int | None, clip_frames: int | None, before: int, after: int) -> list[ClipRef]:
    """Clips of `clip_frames` frames that partition the video; None for either: one clip.

    frames: of the whole file. The last clip ends where the video is said to, else it is open-ended, as `frames` is only
    what a header promised. before, after: frames that each clip is shown in addition to its own.
    """
    if clip_frames is not None and clip_frames < 1:
        raise ValueError(f"clip_frames is {clip_frames}; it must be at least 1, or none for the whole video")
    ends = [end for end in (frames or None, video.stop) if end is not None]
    starts = range(video.start, video.start + 1)
    if ends and clip_frames:
        starts = range(video.start, max(min(ends), video.start + 1), clip_frames)
    stops = [*starts[1:], video.stop]
    return [ClipRef(video, start, stop, before, after) for start, stop in zip(starts, stops, strict=True)]


def decode(refs: Sequence[ClipRef], resize: Resize, chunk_frames: int, threads: int = 1) -> Iterator[Clip]:
    """Frames of one video's clips, clip by clip in the order of their starts, in chunks of at most `chunk_frames`.

    Every clip gives at least one chunk. A clip's chunks do not depend on the clips beside it: whether it is decoded
    alone or after its neighbour, frames and boundaries are bit-identical (where the file is damaged, so are indices and
    errors, but what a decoder paints over the damage may differ). Frames that clips share are decoded once.
    Frames lie in memory as (T, H, W, 3) and are seen as (T, 3, H, W): torch's channels_last.

    Never raises for a bad video: what decodes is given, and the last chunk of each clip that lacks frames has
    `error`. Where the video cannot be opened at all, frames and size are (0, 3, 0, 0) and (0, 0). Memory is bounded by
    a chunk, `decoders.READ_AHEAD_BYTES` and the frames that neighbours share. threads: of the decoder; more than
    one pays only where cores are idle.
    """
    refs = sorted(refs, key=lambda ref: ref.start)
    assert chunk_frames >= 1
    assert len({ref.video for ref in refs}) <= 1, "clips of several videos in one call of decode"
    left = list(refs)
    try:
        for clip in _decoded(refs, resize, chunk_frames, threads):
            left = left[left.index(clip.ref) :]
            yield clip
    except Exception as exception:  # whatever a library or a network makes of a video, it is that video's alone
        for ref in left:
            yield _clip(ref, [], None, why(exception))


def why(exception: Exception) -> str:
    """What went wrong with a video, in one sentence."""
    text = " ".join(str(exception).split())
    return text if isinstance(exception, VideoError) else f"{type(exception).__name__}: {text}"


def _decoded(refs: Sequence[ClipRef], resize: Resize, chunk_frames: int, threads: int) -> Iterator[Clip]:
    """`decode`, of videos whose faults are known kinds of fault."""
    if not refs:
        return
    with contextlib.ExitStack() as stack:
        try:
            source = stack.enter_context(_source(refs[0].video, resize, threads))
        except VideoError as error:
            for ref in refs:
                yield _clip(ref, [], None, str(error))
            return
        feed = _Feed(source, refs)
        for number, ref in enumerate(refs):
            yield from _chunks(ref, feed.frames(number), source, chunk_frames)


@dataclass(frozen=True)
class _Source:
    """An opened video: its reader, when frames are shown, how many there should be, and their sizes."""

    reader: Reader
    index: Index
    promised: int
    size: tuple[int, int]  # of the source frame
    target: tuple[int, int]  # of the frames given


class _Feed:
    """A video's frames for clips in order: each frame is decoded once, however many clips it is shown to."""

    def __init__(self, source: _Source, refs: Sequence[ClipRef]) -> None:
        self._source, self._refs = source, refs
        self._kept: list[tuple[int, Frame]] = []  # frames decoded already that a later clip shows
        self._next = 0
        self._stream: Iterator[tuple[int, Frame]] | None = None

    def frames(self, number: int) -> Iterator[tuple[int, Frame]]:
        """Indices and frames of the clip refs[number]; clips are asked for in order, each to its end."""
        first, end = self._refs[number].first_shown, self._refs[number].end_shown
        later = self._refs[number + 1].first_shown if number + 1 < len(self._refs) else None
        kept, self._kept = self._kept, []
        for index, frame in kept:
            if later is not None and index >= later:
                self._kept.append((index, frame))
            if first <= index and (end is None or index < end):
                yield index, frame
        if end is not None and self._next >= end:
            return
        if self._stream is None or first > self._next:
            self._next = first
            self._stream = self._source.reader.frames(first, self._last_end(number))
        for index, frame in self._stream:
            self._next = index + 1
            if later is not None and index >= later:
                self._kept.append((index, frame))
            if end is not None and index >= end:
                return
            yield index, frame
            if end is not None and self._next >= end:
                return

    def _last_end(self, number: int) -> int | None:
        """The end of the run of adjoining clips that starts with this one."""
        end = self._refs[number].end_shown
        for ref in self._refs[number + 1 :]:
            if end is None or ref.first_shown > end:
                break
            end = ref.end_shown if ref.end_shown is None else max(end, ref.end_shown)
        return end


def _chunks(ref: ClipRef, frames: Iterator[tuple[int, Frame]], source: _Source, chunk_frames: int) -> Iterator[Clip]:
    """The clip's frames in chunks; the last one says what is missing."""
    seen: list[int] = []
    chunk: list[tuple[int, Frame]] = []
    given = False
    broken = None
    try:
        for index, frame in frames:
            if len(chunk) == chunk_frames:
                yield _clip(ref, chunk, source)
                chunk, given = [], True
            chunk.append((index, frame))
            seen.append(index)
    except Exception as exception:  # as in `decode`; what the chunk held before it is kept
        broken = why(exception)
    error = broken or _missing(ref, seen, source)
    assert chunk or not given or broken
    yield _clip(ref, chunk, source, error)


def _clip(ref: ClipRef, chunk: list[tuple[int, Frame]], source: _Source | None, error: str | None = None) -> Clip:
    height, width = source.target if source else (0, 0)
    frames = np.empty((len(chunk), height, width, 3), np.uint8)
    for place, (_, frame) in enumerate(chunk):
        frames[place] = frame
    indices = [index for index, _ in chunk]
    return Clip(
        ref=ref,
        frames=frames.transpose(0, 3, 1, 2),  # (T, 3, H, W)
        frame_index=np.array(indices, np.int32),
        timestamp_s=np.array([source.index.timestamp(index) for index in indices] if source else [], np.float64),
        size=source.size if source else (0, 0),
        error=error,
    )


def _missing(ref: ClipRef, seen: list[int], source: _Source) -> str | None:
    """What the clip should show and does not, in one sentence; None where all is well."""
    stop = source.promised if ref.end_shown is None else min(ref.end_shown, source.promised)
    span = range(ref.first_shown, max(stop, ref.first_shown))
    problems = source.reader.problems
    problems = {i: why for i, why in problems.items() if i in span or (i >= stop and ref.end_shown is None)}
    missing = sorted(set(span).difference(seen))
    if not problems and (not missing or missing[0] >= source.promised - SPARE_FRAMES):
        return None
    lacking = f"{len(missing)} of the {len(span)} frames [{span.start}, {span.stop}) are missing"
    if problems:
        frame = min(problems)
        return f"frame {frame} could not be decoded: {problems[frame]}; {lacking}"
    if missing[-1] == source.promised - 1 and missing[-1] - missing[0] == len(missing) - 1:
        return f"frame {missing[0]} and all after it are missing, of {source.promised} that the header declares"
    return f"frame {missing[0]} could not be decoded: the decoder gave no frame for it; {lacking}"


@contextlib.contextmanager
def _source(video: VideoInfo, resize: Resize, threads: int) -> Iterator[_Source]:
    """The video opened for decoding; raises VideoError."""
    _check_frames(video)
    if video.kind in IMAGES:
        images, index = _images(video, resize)
        _check_range(video, len(index))
        yield _Source(images, index, len(index), images.size, images.target)
        return
    file_size(video.uri)
    with local_copy(video.uri) as path:
        header = decoders.read_header(path, video.uri)
        index = decoders.read_index(path, video.uri)
        count = promised(header, index)
        _check_range(video, count)
        target = resize.target(header.size)
        reader = decoders.reader(path, header, index, target, threads)
        yield _Source(reader, index, count, header.size, target)


def _check_frames(video: VideoInfo) -> None:
    if video.kind == "rows":
        raise VideoError(f"{video.video_id} has no frames to look at: its catalog, {video.catalog}, found none of them")


def _check_range(video: VideoInfo, count: int | None) -> None:
    """count: the file's frames, as far as they are known."""
    if video.start > 0 and count is not None and count <= video.start:
        raise VideoError(f"{video.uri} has {count} frames, and the range that is asked for begins after them")


def _images(video: VideoInfo, resize: Resize) -> tuple[ImageReader, Index]:
    """A video of images opened for reading, and when each is shown; raises VideoError."""
    images = IMAGES[video.kind](video.uri)
    reader = ImageReader(images, resize)
    number, fps = np.arange(len(images.names)), video.fps or DEFAULT_FPS
    if images.times_us is None:
        return reader, Index(number, number, True, True, 1 / fps, fps)
    return reader, Index(images.times_us - images.times_us[0], number, True, True, 1e-6, fps)


def promised(header: Header, index: Index) -> int:
    """How many frames there should be: the header's count where the packets also end well before its duration.

    Without the second condition AVI headers mislead: they count ticks in which no frame is shown.
    """
    count, declared = len(index), header.frames or 0
    if declared <= count or header.duration_s is None or count < 2:
        return max(count, declared)
    shown_s = index.timestamp(count - 1) - index.timestamp(0)
    interval_s = shown_s / (count - 1)
    return declared if header.duration_s - shown_s > (SPARE_FRAMES + 1) * interval_s else count
