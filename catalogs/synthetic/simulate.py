"""What a detector of a given quality would have seen: detections made from ground truth, for linkers without a network.

Deterioration acts as it does on real detectors: in a burst a box is still mostly found, but its class is a guess.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.random import RandomState
from numpy.typing import NDArray

from catalogs.synthetic.paths import SIZE
from catalogs.synthetic.shapes import CLASSES
from pipeline.boxes import clip
from pipeline.records import Detections, detections


@dataclass(frozen=True)
class Quality:
    """How good the detector is. Pairs are (clean boxes, boxes in a burst).

    jitter: standard deviation of a box's sides as a share of its width and height; miss, confusion: chances that it
    is not found, and that another class than its own looks likeliest; certainty: mean score of the likeliest class;
    false_positives: mean number a frame; embedding_noise: standard deviation beside an identity of unit length.
    """

    jitter: tuple[float, float] = (0.03, 0.07)
    miss: tuple[float, float] = (0.03, 0.15)
    confusion: tuple[float, float] = (0.03, 0.7)
    certainty: tuple[float, float] = (0.85, 0.4)
    false_positives: float = 0.3
    embedding_size: int = 16
    embedding_noise: float = 0.1


def simulate_detections(
    truth: pa.Table, seed: int, quality: Quality | None = None, num_frames: int | None = None
) -> list[Detections]:
    """Detections of each frame of one video, with class_scores (N, C + 1) and embeddings (N, E), from its truth.

    truth: rows of `schemas.TRUTH` with this dataset's flags; rows to ignore are seen like others. num_frames: T, by
    default up to the last row. The same seed gives the same detections.
    """
    quality = quality or Quality()
    random = RandomState(seed)
    rows = truth.to_pydict()
    boxes = np.stack([rows[name] for name in ("x1", "y1", "x2", "y2")], axis=1).reshape(-1, 4)
    frame_index = np.array(rows["frame_index"], np.int64)
    burst = np.array(["burst" in flags for flags in rows["flags"]], np.intp)
    labels = np.array(rows["class_id"], np.intp)
    identities = np.array(rows["track_id"], np.int64)
    faces = random.standard_normal((int(identities.max(initial=0)) + 1, quality.embedding_size))
    faces /= np.linalg.norm(faces, axis=1, keepdims=True)

    found = random.random_sample(len(boxes)) >= np.array(quality.miss)[burst]
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    seen_boxes = boxes + random.standard_normal(boxes.shape) * sides * np.array(quality.jitter)[burst, None]
    seen_boxes = _proper(clip(seen_boxes, SIZE))
    class_scores = _class_scores(random, labels, burst, quality)
    noise = random.standard_normal((len(boxes), quality.embedding_size))
    embeddings = faces[identities] + quality.embedding_noise * noise

    frames = []
    for time in range(int(frame_index.max(initial=-1)) + 1 if num_frames is None else num_frames):
        here = np.flatnonzero((frame_index == time) & found)
        false = random.poisson(quality.false_positives)
        scores = np.concatenate([class_scores[here], _false_scores(random, false)])
        frames.append(
            detections(
                time,
                np.concatenate([seen_boxes[here], _false_boxes(random, false)]),
                scores[:, 1:].max(axis=1),
                scores[:, 1:].argmax(axis=1),
                class_scores=scores,
                embeddings=np.concatenate(
                    [embeddings[here], random.standard_normal((false, quality.embedding_size)) / 4]
                ),
            )
        )
    return frames


def _class_scores(
    random: RandomState, labels: NDArray[np.intp], burst: NDArray[np.intp], quality: Quality
) -> NDArray[np.float64]:
    """Scores (N, C + 1), background first, that sum to 1; a confused box favours a class other than its own."""
    count = len(labels)
    confused = random.random_sample(count) < np.array(quality.confusion)[burst]
    likeliest = np.where(confused, (labels + random.randint(1, len(CLASSES), count)) % len(CLASSES), labels)
    top = np.clip(np.array(quality.certainty)[burst] + 0.1 * random.standard_normal(count), 0.3, 0.99)
    rest = random.random_sample((count, len(CLASSES) + 1)) + 0.5
    rest[np.arange(count), 1 + labels] += confused  # the true class is the second guess
    rest[np.arange(count), 1 + likeliest] = 0
    scores = np.minimum(rest / rest.sum(axis=1, keepdims=True) * (1 - top[:, None]), 0.9 * top[:, None])
    scores[np.arange(count), 1 + likeliest] = top
    scores[:, 0] += 1 - scores.sum(axis=1)
    return scores


def _false_boxes(random: RandomState, count: int) -> NDArray[np.float64]:
    height, width = SIZE
    middle = random.random_sample((count, 2)) * [width, height]
    half = random.uniform(8, 20, (count, 2))
    return _proper(clip(np.concatenate([middle - half, middle + half], axis=1), SIZE))


def _false_scores(random: RandomState, count: int) -> NDArray[np.float64]:
    scores = random.random_sample((count, len(CLASSES) + 1)) ** 3
    scores[:, 0] += random.uniform(0.3, 2.0, count)
    return scores / scores.sum(axis=1, keepdims=True)


def _proper(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same boxes, at least a pixel wide and high and still in the frame."""
    height, width = SIZE
    low = np.minimum(boxes[:, :2], [width - 1, height - 1])
    return np.concatenate([low, np.maximum(boxes[:, 2:], low + 1)], axis=1)
