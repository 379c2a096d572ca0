"""Which frames are in batch n, and how they are turned: a function of the seed and of n alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.training.settings import Stills, Training

VIDEOS, STILLS = 0, 1  # sources

Int = NDArray[np.int64]


@dataclass(frozen=True)
class Draw:
    """A clip: frames of a source in the order they are shown in, and how all of them are turned.

    colours: which of its channels becomes the first, the second, the third.
    """

    source: int
    frames: tuple[int, ...]
    flip: bool
    flip_vertical: bool
    colours: tuple[int, ...]


class Sampler:
    """The clips of every batch. All clips of a source come once before any comes again, in an order drawn each time.

    videos: for each source int (N,), which video each of its frames is of; those of one stand together, in order of
    time. Raises ValueError where no video is long enough for a clip.
    """

    def __init__(self, training: Training, videos: Sequence[Int]) -> None:
        self.training = training
        self.videos = videos
        self.share = Stills.of(training.stills).share if training.stills else 0.0
        self.starts = [starts(videos[VIDEOS], training), *(np.arange(len(video)) for video in videos[1:])]
        self.orders: dict[int, tuple[int, Int]] = {}  # of each source: its last epoch, and that one's order

    def batch(self, number: int) -> list[Draw]:
        """The clips of batch `number`, stills spread evenly among them."""
        first = number * self.training.batch_size
        return [self.clip(place) for place in range(first, first + self.training.batch_size)]

    def clip(self, place: int) -> Draw:
        """The clip that comes as number `place` in the whole training."""
        stills = int(place * self.share)
        is_still = int((place + 1) * self.share) > stills
        source = STILLS if is_still else VIDEOS
        epoch, index = divmod(stills if is_still else place - stills, len(self.starts[source]))
        start = int(self.starts[source][self.order(source, epoch)[index]])
        chance = np.random.default_rng([self.training.seed, 2, place])
        flips, colours = chance.random(2) < 0.5, chance.permutation(3)
        return Draw(
            source,
            (start,) * self.training.frames_per_clip if is_still else self.frames(start, chance),
            bool(flips[0]) and self.training.flip,
            bool(flips[1]) and self.training.flip_vertical,
            tuple(colours.tolist()) if self.training.permute_colours else (0, 1, 2),
        )

    def frames(self, first: int, chance: np.random.Generator) -> tuple[int, ...]:
        """The frames of a clip of a video that begins with this one."""
        training, video = self.training, self.videos[VIDEOS]
        end = int(np.searchsorted(video, video[first], side="right"))  # of its video
        found = [first]
        for still in range(training.frames_per_clip - 2, -1, -1):  # frames that are to come after this one
            last = min(found[-1] + training.max_gap, end - 1 - still * training.min_gap)
            found.append(int(chance.integers(found[-1] + training.min_gap, last + 1)))
        return tuple(reversed(found) if training.reverse and chance.random() < 0.5 else found)

    def order(self, source: int, epoch: int) -> Int:
        """In which order the clips of a source come in its epoch of this number."""
        if source not in self.orders or self.orders[source][0] != epoch:
            chance = np.random.default_rng([self.training.seed, 1, source, epoch])
            self.orders[source] = (epoch, chance.permutation(len(self.starts[source])))
        return self.orders[source][1]


def starts(video: Int, training: Training) -> Int:
    """Indices of the frames that a clip begins with: those whose video goes on for as long as a clip must.

    video: int (N,), which video each frame is of. With `frames_per_video` no more than that of each video.
    """
    shortest = training.min_gap * (training.frames_per_clip - 1)
    found = np.flatnonzero(video[: max(0, len(video) - shortest)] == video[shortest:])
    if not len(found):
        raise ValueError(
            f"a clip of {training.frames_per_clip} frames, min_gap {training.min_gap}, needs {shortest + 1} frames, "
            f"and the longest video has {int(np.bincount(video).max())}; give a smaller min_gap or frames_per_clip"
        )
    if training.frames_per_video is None:
        return found
    of_video = np.split(found, np.flatnonzero(np.diff(video[found])) + 1)
    return np.concatenate([_spread(frames, training.frames_per_video) for frames in of_video])


def _spread(frames: Int, count: int) -> Int:
    """At most `count` of the frames, evenly spread, each in the middle of its share."""
    if len(frames) <= count:
        return frames
    return frames[((np.arange(count) + 0.5) * len(frames) / count).astype(np.int64)]
