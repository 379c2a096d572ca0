"""D&T's tables and what its text measures besides, on ImageNet VID.

Table 1 prints a column a class too; the means alone are here. D is scored frame by frame: its recipes link with
`online`, which leaves every box and score as it is, so that mAP is the frames' own and the identities are ours. What
differs by training has weights of its own: D (R-FCN alone, before the tracking loss), and D&T, whose detector alone is
the paper's D (& T loss).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.papers.row import VID, Configuration, Row
from pipeline.recipe import Recipe

PAPER = "detect_to_track"
TITLE = "Detect to Track and Track to Detect"

# Section 5.2: voting, and 25 boxes a class, come before linking; a frame by itself is suppressed at .3.
FRAME_BY_FRAME: dict[str, Any] = {"track": False, "nms_iou": 0.3, "vote_iou": None, "top_k": 300}
BACKBONES = {  # as the paper writes them, and as recipes are called
    "resnet50": ("ResNet-50", "resnet50"),
    "resnet101": ("ResNet-101", "resnet101"),
    "resnext101_32x4d": ("ResNeXt-101-32x4", "resnext101"),
    "inception_v4": ("Inception-v4", "inception-v4"),
}


def rows() -> list[Row]:
    """All lines of Tables 1 and 2, and the text of sections 4 and 5.3."""
    return [*table_1(), *table_2(), *section_4(), *section_5_3()]


def table_1() -> list[Row]:
    """Methods; by ResNet-101 but for the last."""
    others = {
        "tcn": ("TCN", 47.5),
        "tpn-lstm": ("TPN + LSTM", 68.4),
        "ilsvrc-15": ("Winner ILSVRC'15", 73.8),
        "ilsvrc-16": ("Winner ILSVRC'16, single model", 76.2),
    }
    ours = {
        "dt-r-fcn": ("D (R-FCN)", detector("resnet101"), 74.2),
        "dt-t-loss": ("D (& T loss)", detector_of_both(), 75.8),
        "dt-stride-10": ("D&T (tau = 10)", strided(), 78.6),
        "dt-stride-1": ("D&T (tau = 1)", tracked("resnet101"), 79.8),
        "dt-t1-inception-v4": ("D&T (Inception-v4)", tracked("inception_v4"), 82.0),
    }
    return [
        *(Row(f"dt-t1-{name}", PAPER, "Table 1", text, {"mAP [%]": value}) for name, (text, value) in others.items()),
        *(_scored(name, "Table 1", text, run, value) for name, (text, run, value) in ours.items()),
    ]


def table_2() -> list[Row]:
    """Backbones: each line of the paper is a backbone, each row here one of its three systems."""
    printed = {
        "resnet50": (72.1, 76.5, 76.7),
        "resnet101": (74.1, 79.8, 80.0),
        "resnext101_32x4d": (75.9, 81.4, 81.6),
        "inception_v4": (77.9, 82.0, 82.1),
    }
    found = []
    for backbone, figures in printed.items():
        text = BACKBONES[backbone][0]
        systems = (detector(backbone), tracked(backbone), averaged(backbone))
        for system, run, value in zip(("D", "D&T", "D&T, average"), systems, figures, strict=True):
            found.append(_scored(run.recipe.name, "Table 2", f"{text}: {system}", run, value))
    return found


def section_4() -> list[Row]:
    """The share of a tube's best scores that rescores it: the text gives the range it tried, and how little it did."""
    text = "share of a tube's scores that its boxes gain by"
    note = "the text gives the two ends of the range; for any between: --set linker.alpha=0.3"
    return [
        Row(
            f"dt-alpha-{alpha}",
            PAPER,
            "Section 4",
            f"alpha = {alpha:.0%}: {text}",
            {"largest change of mAP, below [%]": 0.5},
            "recipe",
            configuration(f"dt-alpha-{alpha}", linker={"alpha": alpha}),
            note=note,
        )
        for alpha in (0.1, 1.0)
    ]


def section_5_3() -> list[Row]:
    """Online rescoring, strides with averages, both directions, and times."""
    size = "1000 x 600 px, Titan X"
    both = tracked("resnet101")
    return [
        _scored("dt-online", "Section 5.3", "D&T, causal rescoring", online(), 78.7),
        _scored(
            "dt-stride-10-average",
            "Section 5.3",
            "D&T (tau = 10), average",
            configuration("dt-stride-10-average", stride=10, average=True),
            79.2,
        ),
        Row(
            "dt-bidirectional",
            PAPER,
            "Section 5.3",
            "D&T, average, tracks from t to t - 1 and t + 1",
            {},
            "recipe",
            configuration("dt-bidirectional", average=True, bidirectional=True),
            note="the text: no gain over D&T, average; it gives no figure",
        ),
        _timed("dt-time-detector", f"a frame without correlation and RoI tracking, {size}", detector("resnet101"), 127),
        _timed("dt-time", f"a frame with them, {size}", both, 141),
        Row(
            "dt-time-linking",
            PAPER,
            "Section 5.3",
            "a frame of tube linking, 1 CPU core",
            {"time [ms]": 46},
            "benchmark",
            both,
            "linkers",
        ),
        Row(
            "dt-time-stride-10",
            PAPER,
            "Section 5.3",
            "D&T (tau = 10): a video's time",
            {"times less than at tau = 1, about": 10},
            "benchmark",
            strided(),
            "models",
        ),
    ]


def detector(backbone: str) -> Configuration:
    """D: R-FCN frame by frame, as it is before the tracking loss."""
    return configuration(_name(backbone, "-detector"), backbone, "detector", "online", **FRAME_BY_FRAME)


def detector_of_both() -> Configuration:
    """D (& T loss): D&T's detector frame by frame."""
    return configuration("dt-t-loss", linked_by="online", **FRAME_BY_FRAME)


def tracked(backbone: str) -> Configuration:
    """D&T at tau = 1."""
    return configuration(_name(backbone), backbone)


def averaged(backbone: str) -> Configuration:
    """D&T whose tracked regions are classified too."""
    return configuration(_name(backbone, "-average"), backbone, average=True)


def strided() -> Configuration:
    """D&T at tau = 10: tubes are filled in between the frames that the network saw."""
    return configuration("dt-stride-10", stride=10)


def online() -> Configuration:
    """D&T whose boxes are rescored by what their tube was up to them."""
    return configuration("dt-online", linker={"rescore": "causal"})


def configuration(
    name: str,
    backbone: str = "resnet101",
    trained: str = "",
    linked_by: str = "tubes",
    linker: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Configuration:
    """A run of the model with these settings. trained: what sets its weights apart from D&T's."""
    ending = f"-{trained}" if trained else ""
    own = f"detect-to-track-{backbone.replace('_', '-')}-vid{ending}"
    recipe = Recipe(
        name=name,
        **VID,
        model="detect_to_track",
        model_settings={"backbone": backbone, "weights": own, **settings},
        linker=linked_by,
        linker_settings={**({"evidence": "moves"} if linked_by == "tubes" else {}), **(linker or {})},
    )
    return Configuration(recipe, {"backbone": "small", "weights": f"detect-to-track-synthetic-v1{ending}"})


def _name(backbone: str, ending: str = "") -> str:
    return f"dt-{BACKBONES[backbone][1]}{ending}"


def _scored(name: str, table: str, text: str, run: Configuration, value: float) -> Row:
    return Row(name, PAPER, table, text, {"mAP [%]": value}, "recipe", run)


def _timed(name: str, text: str, run: Configuration, value: float) -> Row:
    return Row(name, PAPER, "Section 5.3", text, {"time [ms]": value}, "benchmark", run, "models")
