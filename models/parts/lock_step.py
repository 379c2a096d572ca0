"""Several clips side by side: their frames go through a network together, in step, whatever remembers what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor


def lock_step(clips: Sequence[Tensor], batch_frames: int) -> Iterator[dict[int, Tensor]]:
    """Walks through clips (T, 3, H, W) at once: yields the next frames (t, 3, H, W) of each clip, by its number.

    All that come together are of one size, and as many of each clip, so that they can be one batch; a clip that ends
    drops out. There are at most `batch_frames` of them, or one of each clip. Clips without frames are not named.
    """
    sizes = {clip.shape[1:] for clip in clips}
    for size in sorted(sizes):
        position = {number: 0 for number, clip in enumerate(clips) if clip.shape[1:] == size and len(clip)}
        while position:
            shortest = min(len(clips[number]) - start for number, start in position.items())
            count = min(shortest, max(1, batch_frames // len(position)))
            yield {number: clips[number][start : start + count] for number, start in position.items()}
            position = {
                number: start + count for number, start in position.items() if start + count < len(clips[number])
            }
