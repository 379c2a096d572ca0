"""A frame with what was found drawn on it: boxes in their track's colour, labels, short trails, truth dashed white."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from jobs import report_colours as colours
from jobs.report_colours import Colour
from jobs.report_scene import Scene

Picture = NDArray[np.uint8]  # (H, W, 3), RGB

TRAIL_FRAMES = 20
UNTRACKED_SCORE = 0.3  # detections without a track are drawn from this score on
WHITE: Colour = (255, 255, 255)
GREY: Colour = (205, 208, 212)
EMPTY: Colour = (30, 33, 38)  # where there are no pixels to draw on
_FONT = cv2.FONT_HERSHEY_SIMPLEX


@dataclass(frozen=True)
class Canvas:
    """From the pixels of a source frame to those of its picture. source, target: (height, width)."""

    source: tuple[int, int]
    target: tuple[int, int]

    @property
    def width(self) -> int:
        """Of a line, in pixels of the picture."""
        return max(2, round(min(self.target) / 320))

    def corners(self, boxes: NDArray[np.float32]) -> NDArray[np.float64]:
        """Boxes (..., 4) in the picture."""
        vertical, horizontal = np.divide(self.target, self.source)
        scaled: NDArray[np.float64] = boxes * np.array([horizontal, vertical, horizontal, vertical])
        return scaled


def size_of_picture(size: tuple[int, int]) -> tuple[int, int]:
    """The even (height, width) in which a frame of `size` is shown.

    Small ones are enlarged by a whole number to a width of 640 or more (but not above a height of 960), so that text
    on them can be read; large ones are shrunk to 1280.
    """
    height, width = size
    scale: float = max(1, min(math.ceil(640 / width), 960 // height))
    scale = min(scale, 1280 / max(size))
    return max(2, round(height * scale / 2) * 2), max(2, round(width * scale / 2) * 2)


def draw(picture: Picture, scene: Scene, frame: int, timestamp_s: float, canvas: Canvas) -> None:
    """Draws on the picture, in place, what the scene has of a frame."""
    boxes = scene.tracks
    here = boxes.at(frame)
    _trails(picture, scene, frame, canvas)
    untracked = [row for row in here if boxes.ids[row] == 0 and boxes.scores[row] >= UNTRACKED_SCORE]
    for row in untracked:
        _outline(picture, canvas.corners(boxes.boxes[row]), GREY, 1)
    if scene.truth is not None:
        for row in scene.truth.at(frame):
            _dashed(picture, canvas.corners(scene.truth.boxes[row]), canvas.width)
    tracked = [row for row in here if boxes.ids[row] > 0]
    for row in tracked:
        colour = colours.rgb(colours.of_track(int(boxes.ids[row])))
        _outline(picture, canvas.corners(boxes.boxes[row]), colour, max(1, canvas.width - boxes.guessed[row]))
    # Labels last, so that no box crosses them; boxes without a track have one where there are no tracks at all.
    for row in tracked if boxes.ids.any() else untracked:
        track = int(boxes.ids[row])
        words = [str(track or ""), boxes.names[row], f"{boxes.scores[row]:.2f}".removeprefix("0")]
        colour = colours.rgb(colours.of_track(track)) if track else GREY
        _label(picture, " ".join(filter(None, words)), canvas.corners(boxes.boxes[row]), colour, canvas)
    _caption(picture, f"frame {frame}  {timestamp_s:.2f} s")


def _trails(picture: Picture, scene: Scene, frame: int, canvas: Canvas) -> None:
    """Where the tracks of this frame came from: the middles of their boxes, fading into the past."""
    boxes = scene.tracks
    now = set(boxes.ids[list(boxes.at(frame))].tolist()) - {0}
    start, stop = np.searchsorted(boxes.frame, [frame - TRAIL_FRAMES, frame + 1])
    recent = range(int(start), int(stop))
    places: dict[int, list[tuple[int, tuple[int, int]]]] = {}
    for row in recent:
        track = int(boxes.ids[row])
        if track in now:
            x1, y1, x2, y2 = canvas.corners(boxes.boxes[row])
            places.setdefault(track, []).append((int(boxes.frame[row]), _fixed((x1 + x2) / 2, (y1 + y2) / 2)))
    for track, points in places.items():
        colour = colours.rgb(colours.of_track(track))
        for (_, begin), (when, end) in itertools.pairwise(points):
            freshness = 1 - (frame - when) / (TRAIL_FRAMES + 1)
            width = max(1, round(canvas.width * 1.5 * freshness))
            cv2.line(picture, begin, end, colour, width, cv2.LINE_AA, _SHIFT)


def _outline(picture: Picture, corners: NDArray[np.float64], colour: Colour, width: int) -> None:
    x1, y1, x2, y2 = corners
    cv2.rectangle(picture, _fixed(x1, y1), _fixed(x2, y2), colour, width, cv2.LINE_AA, _SHIFT)


def _dashed(picture: Picture, corners: NDArray[np.float64], width: int) -> None:
    """A thin white outline of dashes, of the same number however the box moves."""
    x1, y1, x2, y2 = corners
    for begin, end in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x2, y2), (x1, y2)), ((x1, y2), (x1, y1))):
        along = np.subtract(end, begin)
        dashes = max(2, round(float(np.abs(along).max()) / (6 * width)))
        for dash in range(dashes):
            first = begin + along * (dash / dashes)
            last = begin + along * ((dash + 0.5) / dashes)
            cv2.line(picture, _fixed(*first), _fixed(*last), WHITE, 1, cv2.LINE_AA, _SHIFT)


def _label(picture: Picture, text: str, corners: NDArray[np.float64], colour: Colour, canvas: Canvas) -> None:
    """A tag on the box's upper edge; inside it where there is no room above."""
    scale = 0.42 * min(max(min(canvas.target) / 512, 1), 1.6)
    width, height = _tag_size(text, scale)
    left = min(max(0, round(corners[0]) - 1), max(0, picture.shape[1] - width))
    top = round(corners[1]) - height
    if top < 0:
        top = min(max(0, round(corners[1])), picture.shape[0] - height)
    _tag(picture, text, (left, top), scale, colour)


def _caption(picture: Picture, text: str) -> None:
    """Which frame this is, in the lower left corner."""
    _tag(picture, text, (0, picture.shape[0] - _tag_size(text, 0.42)[1]), 0.42, EMPTY)


def _tag_size(text: str, scale: float) -> tuple[int, int]:
    """(width, height) of a tag."""
    (width, height), baseline = cv2.getTextSize(text, _FONT, scale, 1)
    return width + 2 * _PAD, height + baseline + _PAD


def _tag(picture: Picture, text: str, place: tuple[int, int], scale: float, colour: Colour) -> None:
    """Text on a filled rectangle; place: its (left, top)."""
    left, top = place
    width, height = _tag_size(text, scale)
    cv2.rectangle(picture, (left, top), (left + width, top + height), colour, cv2.FILLED)
    line = top + cv2.getTextSize(text, _FONT, scale, 1)[0][1] + _PAD - 1
    cv2.putText(picture, text, (left + _PAD, line), _FONT, scale, colours.text_on(colour), 1, cv2.LINE_AA)


_PAD = 3  # around a tag's text
_SHIFT = 4  # cv2 takes places in fixed point, in sixteenths of a pixel


def _fixed(x: float, y: float) -> tuple[int, int]:
    """A place in cv2's fixed point; a pixel's middle is at its index there, half a pixel on here."""
    return round((x - 0.5) * 2**_SHIFT), round((y - 0.5) * 2**_SHIFT)
