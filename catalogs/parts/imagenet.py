"""ImageNet's annotations (ILSVRC): the classes of VID, which DET has too, and the XML file of an image.

Corners are whole pixels, the last one included: 1 is added to x2 and y2.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORDNET_IDS = {  # of the classes, in the development kit's order (map_vid.txt)
    "n02691156": "airplane",
    "n02419796": "antelope",
    "n02131653": "bear",
    "n02834778": "bicycle",
    "n01503061": "bird",
    "n02924116": "bus",
    "n02958343": "car",
    "n02402425": "cattle",
    "n02084071": "dog",
    "n02121808": "domestic_cat",
    "n02503517": "elephant",
    "n02118333": "fox",
    "n02510455": "giant_panda",
    "n02342885": "hamster",
    "n02374451": "horse",
    "n02129165": "lion",
    "n01674464": "lizard",
    "n02484322": "monkey",
    "n03790512": "motorcycle",
    "n02324045": "rabbit",
    "n02509815": "red_panda",
    "n02411705": "sheep",
    "n01726692": "snake",
    "n02355227": "squirrel",
    "n02129604": "tiger",
    "n04468005": "train",
    "n01662784": "turtle",
    "n04530566": "watercraft",
    "n02062744": "whale",
    "n02391049": "zebra",
}
CLASSES = tuple(WORDNET_IDS.values())

Array = NDArray[Any]


def parsed(fs: Any, path: str) -> ElementTree.Element:
    """The root of an XML file; raises ValueError where it is damaged."""
    try:
        return ElementTree.fromstring(fs.cat_file(path))
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is not whole XML: {error}") from None


def text(element: ElementTree.Element, name: str, path: str) -> str:
    """What an element below this one says; raises ValueError, by file, where there is none."""
    found = element.findtext(name)
    if found is None:
        raise ValueError(f"{path}: <{element.tag}> lacks {name}; is this an annotation of ImageNet?")
    return found.strip()


def number(element: ElementTree.Element, name: str, path: str) -> int:
    """The whole number from 0 that an element below this one says; raises ValueError, by file, where it is none."""
    found = text(element, name, path)
    if not found.isdigit():
        raise ValueError(f"{path}: {name} is {found!r}; it must be a whole number from 0")
    return int(found)


def size(fs: Any, path: str) -> tuple[int, int]:
    """(height, width) of an image, from its annotation."""
    annotation = parsed(fs, path)
    return number(annotation, "size/height", path), number(annotation, "size/width", path)


def corners(thing: ElementTree.Element, path: str) -> list[int]:
    """The first and last pixel of an object: left, top, right, bottom."""
    return [number(thing, f"bndbox/{side}", path) for side in ("xmin", "ymin", "xmax", "ymax")]


def continuous(boxes: Array) -> Array:
    """Corners in whole pixels, the last one included (N, 4) -> float32 xyxy."""
    return (boxes + np.array([0.0, 0.0, 1.0, 1.0])).astype(np.float32)
