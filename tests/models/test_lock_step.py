"""Clips in step: every frame once, in order, in batches of one size that are not too large."""

from __future__ import annotations

import pytest
import torch

from models.parts.lock_step import lock_step


@pytest.mark.parametrize("batch_frames", [1, 3, 8, 100])
@pytest.mark.parametrize("lengths", [(), (0,), (5,), (5, 5), (7, 2, 4), (3, 0, 1)])
def test_every_frame_comes_once_and_in_order(lengths: tuple[int, ...], batch_frames: int) -> None:
    sizes = [(2, 3) if number % 3 else (4, 4) for number in range(len(lengths))]
    clips = [
        torch.arange(length)[:, None, None, None].expand(length, 3, *size)
        for length, size in zip(lengths, sizes, strict=True)
    ]
    seen: dict[int, list[int]] = {number: [] for number in range(len(clips))}
    for together in lock_step(clips, batch_frames):
        assert len({frames.shape for frames in together.values()}) == 1
        assert sum(map(len, together.values())) <= max(batch_frames, len(together))
        for number, frames in together.items():
            seen[number] += frames[:, 0, 0, 0].tolist()
    assert seen == {number: list(range(length)) for number, length in enumerate(lengths)}


def test_a_batch_is_shared_by_the_clips_that_go_on() -> None:
    clips = [torch.zeros(length, 3, 2, 2) for length in (9, 3)]
    counts = [{number: len(frames) for number, frames in together.items()} for together in lock_step(clips, 4)]
    assert counts == [{0: 2, 1: 2}, {0: 1, 1: 1}, {0: 4}, {0: 2}]
