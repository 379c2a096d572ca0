"""One video file as frames: what its header and packets say, and two decoders that give the same pixels.

The picture is defined once, whoever decodes: FFmpeg's `scale` filter (bicubic) after its `transpose`, as RGB24. decord
(the default) builds that filter chain inside; `AvReader` builds the same one, and their frames are bit-equal
(tests/pipeline/test_video.py). PyAV takes over where decord fails or is wrong: videos too long to be held decoded (it
reads ahead without bound; to throw that away by seeking costs 3.5 ms a frame where PyAV takes 0.5, with one key frame
in 250), frames narrower than 64 pixels, containers without presentation times (AVI with B-frames), open groups of
pictures (wrong frames after seeking), several video streams, and from the first frame on that it cannot decode.

A frame's index is its place in display order among the file's packets, which demuxing tells without decoding: so a
frame that cannot be decoded leaves a gap and the frames after it keep their numbers.
"""

from __future__ import annotations

import itertools
import sys
import types
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import IO, Any, Protocol

import av  # before decord, whose libraries are loaded for the whole process and would be taken for PyAV's
import numpy as np
from numpy.typing import NDArray

Frame = NDArray[np.uint8]  # (H, W, 3), RGB, upright, resized
MIN_DECORD_WIDTH = 64  # its rows are padded to 64 bytes, and narrower ones come out in a wrong shape
READ_AHEAD_BYTES = 256 * 2**20  # of a video, decoded whole: above it decord is not used, as it decodes on unasked
TURNS = {0: (), 1: (("transpose", "cclock"),), 2: (("hflip", ""), ("vflip", "")), 3: (("transpose", "clock"),)}


class VideoError(ValueError):
    """A video that cannot be used, and why, in one sentence."""


class Reader(Protocol):
    """Frames of one video in display order. `problems`: why a frame, by its index, could not be decoded."""

    problems: dict[int, str]

    def frames(self, start: int, stop: int | None) -> Iterator[tuple[int, Frame]]:
        """Frames from `start` on, with their indices; beyond `stop` it may go on or end."""
        ...


@dataclass(frozen=True)
class Header:
    """What the container says of its first real video stream. size: (height, width), upright."""

    size: tuple[int, int]
    stream: int  # its place among the video streams
    turns: int  # quarter turns counter-clockwise that set a decoded frame upright
    codec: str
    is_alone: bool  # the only video stream
    fps: float | None
    base_fps: float | None
    frames: int | None
    duration_s: float | None


@dataclass(frozen=True)
class Index:
    """Where frames lie. pts: int64 (N,), rising; keys: int64 (K,), rising indices of key frames.

    is_exact: pts are true presentation times, so a frame is known by its own; otherwise frames are counted from
    the first one on, and seeking is not possible.
    """

    pts: NDArray[np.int64]
    keys: NDArray[np.int64]
    is_exact: bool
    is_closed: bool
    time_base: float
    fps: float

    def __len__(self) -> int:
        return len(self.pts)

    def position(self, pts: int | None) -> int | None:
        """The index of the frame shown at `pts`, None where there is none."""
        if not self.is_exact or pts is None:
            return None
        place = int(np.searchsorted(self.pts, pts))
        return place if place < len(self.pts) and self.pts[place] == pts else None

    def timestamp(self, frame: int) -> float:
        """Presentation time in seconds; beyond the last known frame, at the average rate."""
        if frame < len(self.pts):
            return float(self.pts[frame]) * self.time_base
        last = float(self.pts[-1]) * self.time_base if len(self.pts) else -1 / self.fps
        return last + (frame - len(self.pts) + 1) / self.fps


def read_header(source: str | IO[bytes], name: str) -> Header:
    """Opens the video and decodes its first frame (which alone tells the rotation); raises VideoError."""
    with _open(source, name) as container:
        stream = _stream(container, name)
        codec = stream.codec_context
        turns, shape = 0, (codec.height, codec.width)
        frame = _first_frame(container, stream)
        if frame is not None:
            turns, shape = round(frame.rotation / 90) % 4, (frame.height, frame.width)
        if min(shape) <= 0:
            raise VideoError(f"{name}: no frame of its {codec.name} video could be decoded, and its size is unknown")
        duration = None if container.duration is None else container.duration / av.time_base
        streams = [s for s in container.streams.video if not _is_cover(s)]
        return Header(
            size=shape[::-1] if turns % 2 else shape,
            stream=container.streams.video.index(stream),
            turns=turns,
            codec=codec.codec.canonical_name,
            is_alone=len(streams) == 1,
            fps=float(stream.average_rate) if stream.average_rate else None,
            base_fps=float(stream.base_rate) if stream.base_rate else None,
            frames=stream.frames or None,
            duration_s=duration,
        )


def read_index(source: str | IO[bytes], name: str) -> Index:
    """Demuxes the whole file, decoding nothing (3 us a packet); raises VideoError where it cannot be opened."""
    with _open(source, name) as container:
        stream = _stream(container, name)
        times: list[int | None] = []
        decoding_times: list[int | None] = []
        keys: list[int | None] = []
        is_closed = True
        try:
            for packet in container.demux(stream):
                if packet.size == 0 or packet.is_discard or _is_hidden(packet, stream.codec_context.name):
                    continue
                times.append(packet.pts)
                decoding_times.append(packet.dts)
                if packet.is_keyframe:
                    keys.append(packet.pts)
                elif keys and packet.pts is not None and keys[-1] is not None:
                    is_closed = is_closed and packet.pts > keys[-1]
        except av.FFmpegError:
            pass  # decoding meets it again, and reports it
        fps = float(stream.average_rate or stream.base_rate or 30)
        time_base = float(stream.time_base)
        # AVI has no presentation times; those that FFmpeg makes up are wrong where frames are reordered.
        in_order = times == sorted(time for time in times if time is not None)
        invented = "avi" in container.format.name and not in_order
        pts = _rising(times)
        is_exact = pts is not None and not invented and len(keys) > 0
        if pts is None or invented:  # frame i is then shown when packet i is decoded, or at the average rate
            pts = _rising(decoding_times)
        if pts is None:
            pts, time_base = np.arange(len(times), dtype=np.int64), 1 / fps
        places = np.zeros(1, np.int64)
        if is_exact:
            shown = np.array(sorted(key for key in keys if key is not None), np.int64)
            pts = pts[np.searchsorted(pts, shown[0]) :]  # what is shown before it refers to what was cut away
            places = np.searchsorted(pts, shown).astype(np.int64)
        return Index(pts, places, is_exact, is_closed, time_base, fps)


def _rising(times: list[int | None]) -> NDArray[np.int64] | None:
    """The times sorted; None where one is unknown, or two are the same."""
    known = np.array(sorted(time for time in times if time is not None), np.int64)
    return known if len(known) == len(times) and bool(np.all(np.diff(known) > 0)) else None


def reader(path: str, header: Header, index: Index, size: tuple[int, int], threads: int) -> Reader:
    """The decoder for this file: decord, or PyAV where decord is known to be wrong. size: of the frames given."""
    ours = AvReader(path, header, index, size, threads)
    fits = len(index) * size[0] * size[1] * 3 <= READ_AHEAD_BYTES
    if not (fits and header.is_alone and index.is_exact and index.is_closed and size[1] >= MIN_DECORD_WIDTH):
        return ours
    try:
        theirs = DecordReader(path, size, threads, ours)
    except RuntimeError:  # decord does not open it
        return ours
    return theirs if theirs.count == len(index) else ours


class AvReader:
    """PyAV: bounded memory, and the cause of each failure. `size` = (height, width) of the frames it gives."""

    def __init__(self, path: str, header: Header, index: Index, size: tuple[int, int], threads: int) -> None:
        self.problems: dict[int, str] = {}
        self._path, self._index, self._threads = path, index, threads
        self._stream = header.stream
        height, width = size
        self._filters = (*TURNS[header.turns], ("scale", f"{width}:{height}"), ("format", "rgb24"))
        self._graphs: dict[tuple[object, ...], av.filter.Graph] = {}

    def frames(self, start: int, stop: int | None, only: Collection[int] | None = None) -> Iterator[tuple[int, Frame]]:
        """As a Reader's. only: which frames are given, all others are not even resized; None for all."""
        container, packets, last = self._enter(start)
        with container:
            codec = container.streams.video[self._stream].codec_context
            codec.thread_count = self._threads
            ended = False
            while not ended:
                packet: Any = None
                try:
                    packet = next(packets, None)
                except av.FFmpegError as error:
                    self.problems.setdefault(last + 1, _cause(error))
                ended = packet is None  # which as a packet makes the decoder give out what it still holds
                try:
                    frames = codec.decode(packet)
                except av.FFmpegError as error:
                    frames = []
                    if not isinstance(error, av.EOFError):
                        place = None if packet is None else self._index.position(packet.pts)
                        self.problems.setdefault(last + 1 if place is None else place, _cause(error))
                for frame in frames:
                    if self._leads(frame.pts, last):
                        continue
                    place = self._index.position(frame.pts)
                    last = last + 1 if place is None else place
                    if last >= start and (only is None or last in only):
                        yield last, self._picture(frame)

    def _leads(self, pts: int | None, last: int) -> bool:
        """Whether a frame is shown before the key frame that decoding started at: it lacks what it refers to."""
        if not self._index.is_exact or pts is None:
            return False
        place = self._index.position(pts)
        return pts < self._index.pts[0] or (place is not None and place <= last)

    def _enter(self, start: int) -> tuple[Any, Iterator[Any], int]:
        """The file, its packets from a key frame at or before `start`, and the index before their first frame."""
        keys = self._index.keys  # of an index that is not exact: the first frame alone
        for key in keys[(keys > 0) & (keys <= start)][::-1]:
            container = _open(self._path, self._path)
            stream = container.streams.video[self._stream]
            wanted = int(self._index.pts[key])
            try:
                container.seek(wanted, stream=stream)
                packets = _nonempty(container, stream)
                first = next(packets, None)
            except av.FFmpegError:
                first = None
            # A container may land later than asked (it seeks by decoding time): then one key earlier.
            if first is not None and first.pts is not None and first.pts <= wanted:
                before = int(np.searchsorted(self._index.pts, first.pts)) - 1
                return container, itertools.chain([first], packets), before
            container.close()
        container = _open(self._path, self._path)
        return container, _nonempty(container, container.streams.video[self._stream]), -1

    def _picture(self, frame: av.VideoFrame) -> Frame:
        key = (frame.width, frame.height, frame.format.name)
        if key not in self._graphs:
            graph = av.filter.Graph()
            graph.threads = 1
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
            )
            nodes = [graph.add(name, *([options] if options else [])) for name, options in self._filters]
            graph.link_nodes(source, *nodes, graph.add("buffersink")).configure()
            self._graphs = {key: graph}
        self._graphs[key].push(frame)
        return np.asarray(self._graphs[key].pull().to_ndarray(), np.uint8)


class DecordReader:
    """decord, for videos short enough that its unbounded read-ahead holds them whole at worst.

    What it cannot decode, `other` does, which also says why.
    """

    def __init__(self, path: str, size: tuple[int, int], threads: int, other: AvReader) -> None:
        self._decord = _decord()
        self._reader = self._decord.VideoReader(path, width=size[1], height=size[0], num_threads=threads)
        self.count = len(self._reader)
        self.problems = other.problems
        self._other = other

    def frames(self, start: int, stop: int | None) -> Iterator[tuple[int, Frame]]:
        stop = self.count if stop is None else min(stop, self.count)
        for first in range(start, stop, 32):
            batch = range(first, min(first + 32, stop))
            try:
                pictures = self._reader.get_batch(batch).asnumpy()
            except (RuntimeError, self._decord.base.DECORDError):
                yield from self._other.frames(first, stop)
                return
            yield from zip(batch, pictures, strict=True)


def _decord() -> types.ModuleType:
    """decord, loaded without the CUDA libraries.

    On import it opens every shared library of the nvidia-* packages (1 s, 600 MB in each process), which it needs
    only to decode on a GPU.
    """
    if "decord" not in sys.modules:
        saved = sys.modules.get("nvidia")
        sys.modules["nvidia"] = None  # type: ignore[assignment]
        try:
            import decord
        finally:
            del sys.modules["nvidia"]
            if saved is not None:
                sys.modules["nvidia"] = saved
        decord.logging.set_level(decord.logging.QUIET)
    return sys.modules["decord"]


def _open(source: str | IO[bytes], name: str) -> Any:
    try:
        return av.open(source)
    except av.InvalidDataError as error:
        if _starts_as_mp4(source):
            raise VideoError(f"{name} is cut short: the index of frames (moov) that ends an MP4 is missing") from None
        raise VideoError(f"{name} cannot be read as a video: {_cause(error)}") from None
    except av.FFmpegError as error:
        raise VideoError(f"{name} cannot be read as a video: {_cause(error)}") from None


def _starts_as_mp4(source: str | IO[bytes]) -> bool:
    if isinstance(source, str):
        with open(source, "rb") as file:
            return file.read(8)[4:] == b"ftyp"
    source.seek(0)
    return source.read(8)[4:] == b"ftyp"


def _stream(container: Any, name: str) -> Any:
    """The first video stream that is not a cover picture; raises VideoError."""
    for stream in container.streams.video:
        if not _is_cover(stream):
            if stream.codec_context is None:
                raise VideoError(f"{name}: its video is of a codec that cannot be decoded here")
            return stream
    others = sorted({stream.type for stream in container.streams})
    raise VideoError(f"{name} has no video stream, only: {', '.join(others) or 'nothing'}")


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _is_hidden(packet: Any, codec: str) -> bool:
    """Whether it is a VP8 frame that is only referred to, never shown (RFC 6386, 9.1: show_frame)."""
    return codec in ("vp8", "libvpx") and not bytes(packet)[0] & 0x10


def _nonempty(container: Any, stream: Any) -> Iterator[Any]:
    """The stream's packets, without the empty one that ends them."""
    return (packet for packet in container.demux(stream) if packet.size)


def _first_frame(container: Any, stream: Any) -> Any:
    """The first frame that decodes, None where there is none among the first packets."""
    packets = itertools.islice(_nonempty(container, stream), 64)
    while True:
        try:
            packet = next(packets, None)
            frames = stream.codec_context.decode(packet)
        except av.EOFError:
            return None
        except av.FFmpegError:
            continue
        if frames or packet is None:
            return frames[0] if frames else None


def _cause(error: av.FFmpegError) -> str:
    """The decoder's own words, without its function's name."""
    return str(error.strerror or error).rstrip(".").replace("Invalid data found", "invalid data found")
