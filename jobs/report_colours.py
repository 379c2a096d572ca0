"""The colours of the report: the same track has the same colour in the video, the timeline and the crops.

Okabe and Ito's palette (2008), which people with any form of colour blindness can tell apart. Its black is left out:
it is lost on dark frames.
"""

from __future__ import annotations

PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#D55E00", "#CC79A7", "#0072B2")

Colour = tuple[int, int, int]  # RGB, 0 to 255


def of_track(track_id: int) -> str:
    """The colour of a track, as CSS; ids that follow each other differ."""
    assert track_id >= 1
    return PALETTE[(track_id - 1) % len(PALETTE)]


def rgb(css: str) -> Colour:
    """'#RRGGBB' as numbers."""
    return int(css[1:3], 16), int(css[3:5], 16), int(css[5:7], 16)


def text_on(colour: Colour) -> Colour:
    """Black or white, whichever is easier to read on it (by Rec. 601 luma)."""
    red, green, blue = colour
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 120 else (255, 255, 255)
