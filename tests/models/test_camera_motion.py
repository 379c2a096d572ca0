"""Camera motion: frames cut from one large picture, where the motion between them is known."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from models.parts.camera_motion import ecc, grey, move_boxes, still

SIZE = (96, 128)


def picture(seed: int = 0, cell: int = 20) -> Tensor:
    """uint8 (3, 300, 300): smooth coloured blobs of some `cell` px."""
    random = np.random.default_rng(seed)
    blobs = random.random((300 // cell, 300 // cell, 3)).astype(np.float32)
    smooth = cv2.resize(blobs, (300, 300), interpolation=cv2.INTER_CUBIC) * 160 + 40
    return torch.from_numpy(smooth.clip(0, 255).astype(np.uint8)).permute(2, 0, 1).contiguous()


def window(whole: Tensor, top: int, left: int, size: tuple[int, int] = SIZE) -> Tensor:
    return whole[:, top : top + size[0], left : left + size[1]]


def turned(whole: Tensor, degrees: float, around: tuple[float, float]) -> Tensor:
    """The picture with its points turned clockwise, as seen, around a point (x, y)."""
    turn = cv2.getRotationMatrix2D((around[0] - 0.5, around[1] - 0.5), -degrees, 1.0)
    moved = cv2.warpAffine(whole.permute(1, 2, 0).numpy(), turn, (300, 300), flags=cv2.INTER_CUBIC)
    return torch.from_numpy(moved).permute(2, 0, 1).contiguous()


@pytest.mark.parametrize(("down", "right"), [(0, 0), (3, 5), (-4, 7), (0, -6)])
@pytest.mark.parametrize("side", [None, 48])
def test_a_shift_is_found(down: int, right: int, side: int | None) -> None:
    """The camera goes down and to the right, so what it sees goes up and to the left."""
    whole = picture()
    before, after = window(whole, 100, 100), window(whole, 100 + down, 100 + right)
    motion = ecc(grey(before, side), grey(after, side), SIZE)
    assert motion.dtype == torch.float32
    torch.testing.assert_close(motion[:, :2], torch.eye(2), atol=1e-2, rtol=0)
    box = torch.tensor([[50.0, 40, 70, 60]])
    expected = box - torch.tensor([right, down, right, down])
    torch.testing.assert_close(move_boxes(box, motion), expected, atol=0.2 if side is None else 1.0, rtol=0)


@pytest.mark.parametrize("side", [None, 60])
def test_a_turn_is_found(side: int | None) -> None:
    """By 4 degrees around a corner of the frame."""
    whole, angle = picture(cell=30), math.radians(4)
    before, after = window(whole, 100, 100), window(turned(whole, 4, (100, 100)), 100, 100)
    motion = ecc(grey(before, side), grey(after, side), SIZE)
    expected = torch.tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])
    torch.testing.assert_close(motion[:, :2], expected[:, :2], atol=2e-3, rtol=0)
    torch.testing.assert_close(motion[:, 2], expected[:, 2], atol=0.5, rtol=0)


def test_pixels_are_counted_from_the_corner_of_the_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenCV's motion from the middle of one pixel to that of another, of frames reduced to a half."""
    found = np.array([[0, -1, 7], [1, 0, 2]], np.float32)  # a quarter turn: its pixel (3, 1) goes to (6, 5)
    monkeypatch.setattr(cv2, "findTransformECC", lambda *_: (1.0, found))
    frame = torch.zeros((8, 10), dtype=torch.uint8)
    box = torch.tensor([[6.0, 2, 8, 4]])  # what pixel (3, 1) covers in the frame of 16 x 20 px
    assert move_boxes(box, ecc(frame, frame, (16, 20))).tolist() == [[12, 10, 14, 12]]


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (64, 64)])
def test_where_there_is_nothing_to_align_the_camera_is_still(size: tuple[int, int]) -> None:
    random = torch.Generator().manual_seed(0)
    noise, other = (torch.randint(0, 256, size, generator=random, dtype=torch.uint8) for _ in range(2))
    flat = torch.full(size, 90, dtype=torch.uint8)
    for before, after in ((flat, flat), (flat, noise), (noise, flat), (noise, other)):
        assert torch.equal(ecc(before, after, size), still())


def test_a_jump_too_far_counts_as_still() -> None:
    whole = picture(cell=8)
    assert torch.equal(ecc(grey(window(whole, 10, 10)), grey(window(whole, 100, 120)), SIZE), still())


def test_an_error_that_is_not_of_aligning_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        cv2.cvtColor(np.zeros((0, 0), np.uint8), cv2.COLOR_BGR2GRAY)

    monkeypatch.setattr(cv2, "findTransformECC", broken)
    frame = torch.zeros(SIZE, dtype=torch.uint8)
    with pytest.raises(cv2.error):
        ecc(frame, frame, SIZE)


@pytest.mark.parametrize(("side", "expected"), [(None, (96, 128)), (200, (96, 128)), (48, (48, 64)), (1, (1, 1))])
def test_grey_frames_have_the_size_asked_for(side: int | None, expected: tuple[int, int]) -> None:
    frame = torch.tensor([200, 100, 0], dtype=torch.uint8)[:, None, None].expand(3, *SIZE)
    made = grey(frame, side)
    assert (made.dtype, tuple(made.shape)) == (torch.uint8, expected)
    assert (made.float() - (0.299 * 200 + 0.587 * 100)).abs().max() < 1.5
    assert made.untyped_storage().nbytes() == made.nbytes


def test_boxes_move_by_their_centres_and_keep_their_sides() -> None:
    quarter = torch.tensor([[0.0, -1, 100], [1, 0, 0]])  # a turn by 90 degrees, then 100 px right
    boxes = torch.tensor([[10.0, 20, 30, 80], [0, 0, 10, 10]])  # centres (20, 50), (5, 5)
    assert move_boxes(boxes, quarter).tolist() == [[40, -10, 60, 50], [90, 0, 100, 10]]
    assert torch.equal(move_boxes(boxes, still()), boxes)
    assert move_boxes(boxes[:0], quarter).shape == (0, 4)
