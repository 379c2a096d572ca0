"""Boxes as arrays: conversion, IoU, non-maximum suppression. All boxes are xyxy, (N, 4)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[Any]


def from_xywh(boxes: ArrayLike) -> Floats:
    """(N, 4) of left, top, width, height -> xyxy."""
    array = np.asarray(boxes)
    return np.concatenate([array[..., :2], array[..., :2] + array[..., 2:]], axis=-1)


def area(boxes: ArrayLike) -> Floats:
    """Areas (N,) in square pixels, in float64."""
    array = np.asarray(boxes, np.float64)
    product: Floats = (array[..., 2] - array[..., 0]) * (array[..., 3] - array[..., 1])
    return product


def intersection(first: ArrayLike, second: ArrayLike) -> Floats:
    """Areas of overlap (N, M) of (N, 4) with (M, 4), in float64."""
    a = np.asarray(first, np.float64).reshape(-1, 1, 4)
    b = np.asarray(second, np.float64).reshape(1, -1, 4)
    width = np.minimum(a[..., 2], b[..., 2]) - np.maximum(a[..., 0], b[..., 0])
    height = np.minimum(a[..., 3], b[..., 3]) - np.maximum(a[..., 1], b[..., 1])
    overlap: Floats = np.maximum(width, 0) * np.maximum(height, 0)
    return overlap


def iou(first: ArrayLike, second: ArrayLike) -> Floats:
    """Intersection over union (N, M) of (N, 4) with (M, 4), in float64."""
    shared = intersection(first, second)
    union = area(np.reshape(first, (-1, 4)))[:, None] + area(np.reshape(second, (-1, 4)))[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def clip(boxes: ArrayLike, size: tuple[int, int]) -> Floats:
    """Boxes cut at the frame of `size` (height, width); what lies outside becomes empty."""
    height, width = size
    array = np.asarray(boxes)
    return np.clip(array, 0, np.array([width, height, width, height], array.dtype))


def keep_by_nms(boxes: ArrayLike, scores: ArrayLike, max_iou: float) -> NDArray[np.intp]:
    """Indices of the boxes that non-maximum suppression keeps, best first; equal scores in the order given."""
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    overlaps = iou(boxes, boxes)
    kept: list[int] = []
    for index in order:
        if not kept or overlaps[index, kept].max() <= max_iou:
            kept.append(int(index))
    return np.array(kept, np.intp)
