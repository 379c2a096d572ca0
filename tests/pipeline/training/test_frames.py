"""Labelled frames by number: each with what is known of it, in the order that is asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.records import VideoInfo
from pipeline.training.frames import OfVideos
from pipeline.training.labelled import Labelled, Truth

FRAME = np.array([0, 1, 2, 5, 6, 7, 8], np.int32)  # of two videos, of which the second begins at its frame 5


class Numbered(OfVideos):
    """Frames of 4 x 6 pixels, half as large as in the file, whose pixels are 10 times the video and the place in it."""

    asked: list[list[int]]

    def read(self, video: int, places: list[int]) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        self.asked = [*getattr(self, "asked", []), places]
        return np.stack([np.full((3, 4, 6), 10 * video + place, np.uint8) for place in places]), (8, 12)


@pytest.fixture
def frames() -> Numbered:
    videos = [VideoInfo("v", "v.mp4", "folder"), VideoInfo("w", "w.mp4", "folder", start=5)]
    truth = Truth(
        first=np.array([0, 3, 7]),
        frame=FRAME,
        boxes=np.stack([[frame, 2, frame + 4, 6] for frame in FRAME]).astype(np.float32),
        labels=np.zeros(7, np.int16),
        track_ids=np.arange(7, dtype=np.int32),
        ignore=np.zeros(7, np.bool_),
    )
    return Numbered(Labelled(videos, truth, ("a",)), [3, 4])


def test_frames_of_a_video_are_together(frames: Numbered) -> None:
    assert frames.video.tolist() == [0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("numbers", [[0, 1, 2], [2, 0], [1], [5, 3, 6], [4, 4], [6, 5, 6]])
def test_any_order_and_twice(numbers: list[int], frames: Numbered) -> None:
    clip, targets = frames.clip(numbers)
    places = [number if number < 3 else 10 + number - 3 for number in numbers]
    assert clip[:, 0, 0, 0].tolist() == places
    assert [target["track_ids"].item() for target in targets] == numbers
    assert [target["boxes"].tolist() for target in targets] == [
        [[FRAME[number] / 2, 1, FRAME[number] / 2 + 2, 3]] for number in numbers
    ]
    (asked,) = frames.asked
    assert asked == sorted(set(asked)), "each is read once, as the file has them"


def test_what_is_shown_twice_is_known_twice(frames: Numbered) -> None:
    clip, (one, other) = frames.clip([4, 4])
    one["boxes"].zero_()
    clip[0] = 0
    assert other["boxes"].all()
    assert clip[1].all()


def test_videos_without_a_frame_are_refused(frames: Numbered) -> None:
    nothing: Any = Labelled(frames.infos, frames.truth, ("a",))
    with pytest.raises(ValueError, match="the videos hold no frame to train on"):
        Numbered(nothing, [0, 0])
