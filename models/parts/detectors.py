"""The two-stage detectors by name: what every two-stage system chooses from."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from models.parts import faster_rcnn, paper_detectors
from models.parts.small_two_stage import SmallTwoStage
from models.parts.two_stage import TwoStage
from models.parts.weights import StoredWeights, class_names, read_weights

# (num_classes, **options) -> TwoStage with random weights. Nobody has published weights for these.
BUILDERS: dict[str, Callable[..., TwoStage]] = {"small": SmallTwoStage, **paper_detectors.BUILDERS}
NAMES = (*BUILDERS, *faster_rcnn.ARCHITECTURES)
NO_CLASS = ("__background__", "N/A")  # what COCO's 91 outputs call those that are no class


@dataclass(frozen=True)
class Built:
    """A detector with random weights, the names of its classes, and the weights that are to be loaded into it."""

    detector: TwoStage
    classes: tuple[str, ...]
    stored: StoredWeights | None


def published(name: str) -> dict[str, str]:
    """Names of a detector's published weights, and their URLs."""
    if name not in faster_rcnn.ARCHITECTURES:
        return {}
    return {weights.name: weights.url for weights in faster_rcnn.ARCHITECTURES[name].weights}


def build(
    name: str,
    weights: str,
    classes: tuple[str, ...],
    default: str | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Built:
    """The detector of that name, one of `NAMES`.

    weights: "random", a published name, a path or a URL; or "default", which stands for `default` where the detector
    is small, and for COCO_V1 where it is torchvision's. classes: names of the classes; where there are none, the
    weights say them, or they are COCO's. options: further arguments of the detector's own builder, such as `hardest`.

    Raises FileNotFoundError where the weights are not, ValueError where they cannot be read, or nobody says what the
    classes are called, or there is no such detector.
    """
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"detector {name!r} is not known{hint}; detectors: {', '.join(NAMES)}")
    stored = None
    if weights != "random":
        stored = read_weights(_default(name, default) if weights == "default" else weights, published(name))
    classes = class_names(classes, stored, needed=name in BUILDERS)
    if name in BUILDERS:
        return Built(BUILDERS[name](len(classes), **options), classes, stored)
    outputs = ("__background__", *classes) if classes else coco_categories(name)
    columns = [i for i, output in enumerate(outputs) if output not in NO_CLASS]
    detector = faster_rcnn.build(name, len(outputs), columns, **options)
    return Built(detector, tuple(outputs[column] for column in columns), stored)


def coco_categories(name: str) -> tuple[str, ...]:
    """The names of the 91 outputs of torchvision's detectors trained on COCO."""
    return tuple(faster_rcnn.ARCHITECTURES[name].weights.COCO_V1.meta["categories"])


def _default(name: str, default: str | None) -> str:
    """The weights that "default" stands for."""
    if name in faster_rcnn.ARCHITECTURES:
        return "COCO_V1"
    if name == "small" and default is not None:
        return default
    raise ValueError(
        f"there are no default weights of detector {name!r}; give weights a path or a URL, or 'random' to train it"
    )
