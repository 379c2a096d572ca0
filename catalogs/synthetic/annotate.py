"""Ground truth: one row for each object and frame in which at least a twentieth of it lies in the frame.

Boxes are tight around the whole silhouette and cut at the frame; what stands before an object does not cut its box.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from catalogs.synthetic.draw import Picture
from catalogs.synthetic.paths import SIZE
from catalogs.synthetic.scene import BURSTS, Scene
from catalogs.synthetic.shapes import CLASSES, Double
from pipeline.boxes import clip, iou
from pipeline.schemas import TRUTH

FLAGS = {
    "slow": "the video's mean IoU of consecutive boxes is above .8",
    "medium": "... between .6 and .8",
    "fast": "... below .6",
    "burst": "deteriorated so that the pattern cannot be read; one of the next four says how",
    "motion_blur": "smeared along its velocity",
    "defocus": "out of focus",
    "noise": "covered by noise",
    "low_contrast": "nearly transparent",
    "leaving": "less than .9 of it lies in the frame",
    "occluded": "less than .7 of what lies in the frame is uncovered",
    "reentered": "back after 5 frames or more out of sight",
    "crossing": "its box overlaps another object's by an IoU above .1",
    "concentric": "shares its centre with an object of other aspect",
    "lookalike": "another object of its class and nearly its colour is in the video",
    "jitter": "the camera shakes",
}

_MIN_INSIDE = 0.05  # share of the silhouette in the frame, for a row
_MIN_VISIBLE = 0.3  # share to be seen, for a row that counts
_MIN_SIDE = 2.0  # pixels
_ABSENT = 5  # frames
_NEAR = 10  # frames either side whose boxes motion_iou looks at (Zhu et al., Flow-Guided Feature Aggregation)


def truth_table(scene: Scene, pictures: Sequence[Picture]) -> pa.Table:
    """The rows of `schemas.TRUTH` of one video, sorted by frame and track_id; track_id is 1 + the object's index."""
    whole = np.stack([thing.boxes() for thing in scene.objects])  # (N, T, 4)
    boxes = clip(whole, SIZE)
    inside = np.stack([picture.inside for picture in pictures], 1)  # (N, T)
    visible = np.stack([picture.visible for picture in pictures], 1)
    sides = boxes[..., 2:] - boxes[..., :2]
    present = (inside >= _MIN_INSIDE) & (sides >= _MIN_SIDE).all(-1)
    motion = np.stack([motion_iou(track, there) for track, there in zip(boxes, present, strict=True)])
    rows = []
    for time in range(scene.num_frames):
        for number in np.flatnonzero(present[:, time]):
            x1, y1, x2, y2 = boxes[number, time].astype(np.float32).tolist()
            label = scene.objects[number].look.label
            rows.append(
                {
                    "video_id": video_id(scene.split, scene.index),
                    "frame_index": time,
                    "track_id": int(number) + 1,
                    "class_id": label,
                    "class_name": CLASSES[label],
                    **{"x1": x1, "y1": y1, "x2": x2, "y2": y2},
                    "ignore": bool(visible[number, time] < _MIN_VISIBLE),
                    "motion_iou": None if np.isnan(motion[number, time]) else float(motion[number, time]),
                    "flags": _flags(scene, time, int(number), boxes, present, inside, visible),
                }
            )
    return pa.Table.from_pylist(rows, TRUTH)


def video_id(split: str, index: int) -> str:
    """A video's name, unique in the dataset."""
    return f"{split}-{index:04d}"


def motion_iou(track: Double, present: np.ndarray) -> Double:
    """For each box of a track (T, 4), its mean IoU with the track's other boxes up to 10 frames away; (T,).

    NaN where the object is absent or alone. To 4 digits, since sums may differ beyond.
    """
    frames = np.arange(len(track))
    apart = np.abs(frames[:, None] - frames)
    near = (apart <= _NEAR) & (apart > 0) & present & present[:, None]
    overlaps = np.where(near, iou(track, track), 0).sum(1)
    mean: Double = np.where(near.any(1), overlaps / np.maximum(near.sum(1), 1), np.nan)
    return np.round(mean, 4)


def digest(frames: np.ndarray, truth: pa.Table) -> str:
    """A name for the content of one video: its frames before encoding, uint8 (T, H, W, 3), and its truth."""
    content = hashlib.sha256(np.ascontiguousarray(frames).tobytes())
    content.update(json.dumps(truth.to_pylist(), sort_keys=True).encode())
    return content.hexdigest()


def _flags(
    scene: Scene,
    time: int,
    number: int,
    boxes: Double,
    present: np.ndarray,
    inside: np.ndarray,
    visible: np.ndarray,
) -> list[str]:
    thing = scene.objects[number]
    burst = int(thing.burst[time])
    others = np.flatnonzero(present[:, time])
    others = others[others != number]
    overlaps = iou(boxes[number, time], boxes[others, time])[0]
    partners = [other for other in others if scene.partner[other] == number or scene.partner[number] == other]
    together = any(np.abs(thing.center[time] - scene.objects[other].center[time]).max() < 4 for other in partners)
    before = np.flatnonzero(present[number, : time + 1])
    holds = {
        scene.speed: True,
        "burst": burst > 0,
        BURSTS[burst - 1]: burst > 0,
        "leaving": inside[number, time] < 0.9,
        "occluded": visible[number, time] < 0.7 * inside[number, time],
        "reentered": len(before) > 1 and int(np.diff(before).max()) > _ABSENT,
        "crossing": len(others) > 0 and float(overlaps.max()) > 0.1,
        "concentric": together,
        "lookalike": scene.lookalike[number],
        "jitter": bool(scene.jitter[time]),
    }
    return [flag for flag in FLAGS if holds.get(flag)]
