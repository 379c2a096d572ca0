"""Clips and boxes turned together, and clips of several sizes made one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training.sampling import Draw
from pipeline.training.turning import PADDING, padded, turned

SQUARES = ((4, 10, 24, 30), (10, 12, 30, 32))  # of two frames: x1, y1, x2, y2


def clip() -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """Two dark frames, 48 x 64, with a bright square each, red and then green."""
    frames = torch.full((2, 3, 48, 64), 50, dtype=torch.uint8)
    targets = []
    for number, (x1, y1, x2, y2) in enumerate(SQUARES):
        frames[number, number, y1:y2, x1:x2] = 240
        targets.append({"boxes": torch.tensor([[x1, y1, x2, y2]]).float(), "labels": torch.tensor([number])})
    return frames, targets


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("flip_vertical", [False, True])
@pytest.mark.parametrize("colours", list(itertools.permutations(range(3))))
def test_frames_and_boxes_are_turned_together(flip: bool, flip_vertical: bool, colours: tuple[int, ...]) -> None:
    frames, targets = clip()
    found, known = turned(frames, targets, Draw(0, (0, 1), flip, flip_vertical, colours))
    assert found.shape == frames.shape
    for number, (square, target) in enumerate(zip(SQUARES, known, strict=True)):
        x1, y1, x2, y2 = (int(side) for side in target["boxes"][0])
        bright = found[number] == 240
        assert bright[:, y1:y2, x1:x2].any(0).all(), "the square is where its box is"
        assert bright.sum() == (x2 - x1) * (y2 - y1), "and nowhere else"
        assert bright.any(2).any(1).nonzero().item() == colours.index(number), "one exchange of colours for both"
        assert (x1 != square[0]) == flip, "both left to right or neither"
        assert (y1 != square[1]) == flip_vertical, "both upside down or neither"
        assert target["labels"].item() == number
    before, same = clip()
    assert frames.equal(before), "a clip may be drawn again"
    assert all(one["boxes"].equal(other["boxes"]) for one, other in zip(targets, same, strict=True))


def test_what_is_not_turned_is_as_it_was() -> None:
    frames, targets = clip()
    found, known = turned(frames, targets, Draw(0, (0, 1), False, False, (0, 1, 2)))
    assert found.equal(frames)
    assert known == targets


@given(sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4))
def test_clips_are_padded_to_the_right_and_below(sizes: list[tuple[int, int]]) -> None:
    clips = [torch.from_numpy(np.random.default_rng(0).integers(0, 99, (2, 3, *size), np.uint8)) for size in sizes]
    height, width = max(size[0] for size in sizes), max(size[1] for size in sizes)
    for before, after in zip(clips, padded(clips), strict=True):
        assert after.shape == (2, 3, height, width)
        assert after.is_contiguous()
        rows, columns = before.shape[2:]
        assert after[:, :, :rows, :columns].equal(before)
        mean = torch.tensor(PADDING, dtype=torch.uint8).view(1, 3, 1, 1)
        assert (after[:, :, rows:] == mean).all()
        assert (after[:, :, :, columns:] == mean).all()
