"""Ranges of frames, as a user writes them: "600:750", ":600", "80%:", ":80%"; half-open, "" for all.

    trackloom train VIDEO --catalog folder --frames :80% ...
    trackloom run VIDEO --frames 80%: ...

What is in a range is the video, for whoever asks: clips are cut in it, context comes from it, truth and given
detections are kept in it. Frames outside are never shown to a network, so what is held out stays out. Frames keep the
numbers that they have in the file. Shares of one video meet without a gap: on MOT17's sequences `:50%` and `50%:` are
the halves that papers train on and choose by (CenterTrack's, which most take, have frame N // 2 in the first half).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pyarrow as pa

from pipeline.records import VideoInfo
from pipeline.video import VideoError, probe

FORMS = "START:STOP, either left out, in frames from 0 or in percent of the video, as 600:750, :600 or 80%:"
UNKNOWN = int(np.iinfo(np.int32).max)  # where the range of a video starts that cannot be opened: beyond all frames


@dataclass(frozen=True)
class FrameRange:
    """Frames [start, stop): numbers (int), or shares of all that there are (Fraction); stop None is the end."""

    start: int | Fraction = 0
    stop: int | Fraction | None = None

    @classmethod
    def parse(cls, text: str) -> FrameRange:
        """The range that a text names; raises ValueError where it names none, or one without a frame."""
        if not text:
            return cls()
        words = text.split(":")
        if len(words) != 2:
            raise ValueError(f"frames is {text!r}; it must be {FORMS}")
        start, stop = (_bound(word.strip(), text) for word in words)
        start, stop = start or 0, None if isinstance(stop, Fraction) and stop == 1 else stop
        is_same_kind = isinstance(start, Fraction) is isinstance(stop, Fraction)
        ends_first = stop is not None and (stop == 0 or (is_same_kind and stop <= start))
        if ends_first or (isinstance(start, Fraction) and start == 1):
            raise ValueError(f"frames is {text!r}, which holds no frame; its stop must lie above its start")
        return cls(start, stop)

    def __str__(self) -> str:
        """The shortest text that names it: what is the same looks the same."""
        start, stop = _text(self.start) if self.start else "", "" if self.stop is None else _text(self.stop)
        return f"{start}:{stop}" if start or stop else ""

    @property
    def has_share(self) -> bool:
        """Whether the length of a video has to be known."""
        return isinstance(self.start, Fraction) or isinstance(self.stop, Fraction)

    def of(self, count: int) -> tuple[int, int | None]:
        """[start, stop) in a video of so many frames; shares are rounded down. It may hold no frame."""
        return _frame(self.start, count), None if self.stop is None else _frame(self.stop, count)


def limited(videos: Sequence[VideoInfo], text: str) -> list[VideoInfo]:
    """The same videos, of each only this range of its frames; for percentages each is opened for its header.

    A range that goes beyond a video's end stops there; one that begins beyond it makes the video fail where it is
    opened. A video that cannot be opened now is kept with a range in which nothing is, whatever becomes of it: it is
    the business of who opens it next to say why. Raises ValueError where the text names no range, or no frame of a
    video, and where percentages are asked of a video without frames.
    """
    wanted = FrameRange.parse(text)
    if wanted == FrameRange():
        return list(videos)
    return [_limited(video, wanted) for video in videos]


def held(table: pa.Table, video: VideoInfo) -> pa.Table:
    """The rows of a table with `frame_index` that are of the video's frames."""
    if video.start == 0 and video.stop is None:
        return table
    return table.filter(pa.array(video.holds(table["frame_index"].to_numpy())))


def _limited(video: VideoInfo, wanted: FrameRange) -> VideoInfo:
    if video.kind == "rows" and wanted.has_share:
        raise ValueError(
            f"frames is {str(wanted)!r}, and of {video.video_id} no frames are there to take a share of; "
            "give numbers of frames"
        )
    count = 0
    if wanted.has_share:
        with contextlib.suppress(VideoError):
            count = probe(video).frames_declared or 0
        if count == 0:
            return replace(video, start=UNKNOWN)
    start, stop = wanted.of(count)
    if stop is not None and stop <= start:
        raise ValueError(
            f"frames is {str(wanted)!r}, which holds none of the {count} frames of {video.video_id}: [{start}, {stop})"
        )
    return replace(video, start=start, stop=stop)


def _bound(word: str, text: str) -> int | Fraction | None:
    """A number of frames, a share, or None for nothing said."""
    if not word:
        return None
    if re.fullmatch(r"[0-9]{1,9}", word):
        return int(word)
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?%", word) and (share := Fraction(word[:-1]) / 100) <= 1:
        return share
    raise ValueError(f"frames is {text!r}, and {word!r} is neither a frame nor 0% to 100%; it must be {FORMS}")


def _text(bound: int | Fraction) -> str:
    return f"{float(bound * 100):.12g}%" if isinstance(bound, Fraction) else str(bound)


def _frame(bound: int | Fraction, count: int) -> int:
    return int(bound * count) if isinstance(bound, Fraction) else bound
