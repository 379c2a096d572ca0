"""How the camera moved between two frames, and boxes that move with it.

The camera motion compensation of Tracktor++ ("Tracking without bells and whistles", Bergmann et al., 2019, section
2.3): two grey frames are aligned by turning and shifting one until the enhanced correlation coefficient is largest
(ECC; Evangelidis and Psarakis, 2008). OpenCV's, with the values of the released tracker. What has no contrast, or has
changed too much, is not aligned: the camera counts as still.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import rgb_to_grayscale

ITERATIONS, EPSILON = 100, 1e-5  # it ends once the coefficient grows by less


def grey(frame: Tensor, short_side: int | None = None) -> Tensor:
    """uint8 (3, H, W), RGB, on any device -> uint8 (h, w) on the CPU, what `ecc` compares.

    short_side: in px, at least 1: a frame whose shorter side is longer is reduced to it; None for never.
    """
    assert frame.dtype == torch.uint8
    height, width = frame.shape[-2:]
    scale = min(1.0, (short_side or math.inf) / min(height, width))
    picture = rgb_to_grayscale(frame)[None].float()  # (1, 1, H, W)
    if scale < 1:
        size = (round(height * scale), round(width * scale))
        picture = F.interpolate(picture, size, mode="bilinear", antialias=True)
    return picture[0, 0].round().byte().cpu().contiguous()


def still() -> Tensor:
    """The motion of a camera that does not move: float32 (2, 3)."""
    return torch.eye(2, 3)


def ecc(before: Tensor, after: Tensor, size: tuple[int, int]) -> Tensor:
    """The turn and shift from one frame to the next, of `size` (height, width): float32 (2, 3), on the CPU.

    before, after: uint8 (h, w), from `grey`. A point (x, y) of the first frame, in its pixels, is at
    motion @ (x, y, 1) in the second. Where ECC does not converge it is `still`.
    """
    assert before.shape == after.shape
    assert before.dtype == after.dtype == torch.uint8
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, ITERATIONS, EPSILON)
    try:
        _, motion = cv2.findTransformECC(
            before.numpy(), after.numpy(), np.eye(2, 3, dtype=np.float32), cv2.MOTION_EUCLIDEAN, criteria
        )
    except cv2.error as error:
        if error.code != cv2.Error.StsNoConv:
            raise
        return still()
    found = torch.from_numpy(np.asarray(motion, np.float64))
    if not found.isfinite().all():
        return still()
    turn, shift = found[:, :2], found[:, 2]
    # OpenCV counts from the middle of the first pixel, boxes from its corner, half a pixel before it.
    shift = shift + 0.5 - turn @ torch.full((2,), 0.5, dtype=turn.dtype)
    scale = torch.tensor([size[1] / before.shape[1], size[0] / before.shape[0]], dtype=turn.dtype)
    return torch.cat([turn, (shift * scale)[:, None]], dim=1).float()


def move_boxes(boxes: Tensor, motion: Tensor) -> Tensor:
    """Boxes (N, 4) xyxy of the first frame where a motion (2, 3) takes them: their centres move, their sides stay.

    The released tracker moves two corners, which makes a box narrower or wider the way the camera turns; objects do not
    change their sides by that, and the turn between two frames is small. Nothing is cut at the border.
    """
    motion = motion.to(boxes)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2  # (N, 2)
    shift = centres @ motion[:, :2].T + motion[:, 2] - centres
    return boxes + shift.repeat(1, 2)
