"""Plug & Play's tables: a tracker in a detector that stays as it is, on ImageNet VID.

The tracker and the detector are one file of weights a backbone, whatever of them a row uses. Where nothing is linked
the recipes take `online`, which leaves every box and score as it is, so that mAP is the frames' own and the identities
are ours. ResNeXt101* stands for ResNeXt-101 with FPN and deformable convolutions, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.papers.row import VID, Configuration, Row
from pipeline.recipe import Recipe

PAPER = "plug_and_play_tracker"
TITLE = "Plug & Play Convolutional Regression Tracker for Video Object Detection"

HRNET, RESNEXT = "hrnet_w32", "resnext101_fpn_dcn"
NAMES = {HRNET: "HRNet-w32", RESNEXT: "ResNeXt101*"}
SEQ_NMS: dict[str, Any] = {"nms_iou": 0.45}  # section 6.2: of what is given out in the end
TITAN = "Titan X (Pascal)"


def rows() -> list[Row]:
    """All lines of Tables 1 to 6."""
    return [*table_1(), *table_2(), *table_3_and_4(), *table_5(), *table_6()]


def table_1() -> list[Row]:
    """Systems, with their speed."""
    printed: dict[str, tuple[str, float, float | None]] = {
        "fgfa": ("FGFA, optical flow", 78.4, 1.15),
        "fgfa-seq-nms": ("FGFA + Seq-NMS, optical flow", 80.1, 1.05),
        "manet": ("MANet, optical flow", 78.1, 4.96),
        "manet-seq-nms": ("MANet + Seq-NMS, optical flow", 80.3, None),
        "stmn": ("STMN, STMM", 80.5, 1.2),
        "stsn": ("STSN, DCN", 78.9, None),
        "stsn-seq-nms": ("STSN + Seq-NMS, DCN", 80.4, None),
        "dt": ("D&T, box regression", 79.8, 7.09),
        "psla-seq-nms": ("PSLA + Seq-NMS, attention", 81.4, 5.13),
        "emn": ("EMN, memory", 79.3, 8.9),
        "emn-seq-nms": ("EMN + Seq-NMS, memory", 81.6, None),
    }
    ours = {
        "hrnet": ("Ours (HRNet-w32), box regression", tracking_first(HRNET), 78.6, 11),
        "resnext": ("Ours (ResNeXt101*), box regression", seq_track_nms(), 81.1, 5.6),
    }
    return [
        *(
            Row(f"pnp-t1-{name}", PAPER, "Table 1", text, {"mAP [%]": score, "speed [FPS]": speed})
            for name, (text, score, speed) in printed.items()
        ),
        *(
            Row(
                f"pnp-t1-{name}",
                PAPER,
                "Table 1",
                text,
                {"mAP [%]": score, "speed [FPS]": speed},
                "recipe",
                run,
                "models",
                f"speed: {TITAN}",
            )
            for name, (text, run, score, speed) in ours.items()
        ),
    ]


def table_2() -> list[Row]:
    """Ablation."""
    figures = (73.2, 75.5, 77.8, 78.6, 76.2, 80.4, 81.1)
    return [
        Row(run.recipe.name, PAPER, "Table 2", text, {"mAP [%]": score}, "recipe", run)
        for (text, run), score in zip(_ablation(), figures, strict=True)
    ]


def table_3_and_4() -> list[Row]:
    """What the components of HRNet-w32 cost."""
    run = tracking_first(HRNET)
    times = {"backbone [ms]": 43, "RPN [ms]": 10, "R-CNN [ms]": 7, "tracker [ms]": 3}
    memory = {"detector [GB]": 1.59, "detector + tracker [GB]": 1.65}
    return [
        Row("pnp-time", PAPER, "Table 3", f"time of components, {TITAN}", times, "benchmark", run, "models"),
        Row("pnp-memory", PAPER, "Table 4", "memory of the GPU while running", memory, "benchmark", run, "models"),
    ]


def table_5() -> list[Row]:
    """Speed of pipelines."""
    as_table_1 = "Table 1 gives this speed beside the score of Seq-Track-NMS"
    printed = (
        ("pnp-speed-hrnet-detector", "HRNet-w32: detector", detector(HRNET), 15, ""),
        ("pnp-hrnet-tfd", "HRNet-w32: detector, TFD", tracking_first(HRNET, linked=False), 12, ""),
        ("pnp-speed-hrnet", "HRNet-w32: detector, TFD, Seq-NMS", tracking_first(HRNET), 11, ""),
        ("pnp-speed-resnext-detector", "ResNeXt101*: detector", detector(RESNEXT), 6.9, ""),
        ("pnp-speed-resnext", "ResNeXt101*: detector, TFD, Seq-NMS", tracking_first(RESNEXT), 5.6, as_table_1),
    )
    return [
        Row(name, PAPER, "Table 5", text, {"speed [FPS]": speed}, "benchmark", run, "models", note)
        for name, text, run, speed, note in printed
    ]


def table_6() -> list[Row]:
    """The ablation class by class."""
    note = "figures class by class, in an image: not copied here; their means are Table 2"
    return [
        Row(f"pnp-t6-{run.recipe.name.removeprefix('pnp-')}", PAPER, "Table 6", text, {}, "recipe", run, note=note)
        for text, run in _ablation()
    ]


def detector(backbone: str, linked: bool = False) -> Configuration:
    """The detector frame by frame; linked: with Seq-NMS."""
    return configuration("seq-nms" if linked else "", backbone, linked, tracking_first=False, moves=False)


def tracking_first(backbone: str, linked: bool = True, **settings: Any) -> Configuration:
    """Tracking-first detection; linked: with Seq-NMS."""
    name = f"tfd{'-0.3' if 'merge_iou' in settings else ''}{'-seq-nms' if linked else ''}"
    return configuration(name, backbone, linked, moves=False, **settings)


def seq_track_nms() -> Configuration:
    """The paper's best: tracking-first detection, and linking by where the tracker says that boxes go."""
    return configuration("tfd-seq-track-nms", RESNEXT, True, {"links": "moves"})


def configuration(
    name: str, backbone: str, linked: bool, linker: Mapping[str, Any] | None = None, **settings: Any
) -> Configuration:
    """A run of the model with these settings; linked: by Seq-NMS, else by `online`, for identities alone."""
    short = {HRNET: "hrnet", RESNEXT: "resnext"}[backbone]
    own = f"plug-and-play-{backbone.replace('_', '-')}-vid"
    recipe = Recipe(
        name="-".join(word for word in ("pnp", short, name) if word),
        **VID,
        model="plug_and_play",
        model_settings={"detector": backbone, "weights": own, **settings},
        linker="seq_nms" if linked else "online",
        linker_settings={**SEQ_NMS, **(linker or {})} if linked else {},
    )
    return Configuration(recipe, {"detector": "small", "weights": "plug-and-play-synthetic-v1"})


def _ablation() -> list[tuple[str, Configuration]]:
    """What Tables 2 and 6 compare."""
    return [
        ("HRNet-w32", detector(HRNET)),
        ("HRNet-w32 + Seq-NMS", detector(HRNET, linked=True)),
        ("HRNet-w32 + TFD(0.3) + Seq-NMS", tracking_first(HRNET, merge_iou=0.3)),
        ("HRNet-w32 + TFD(0.7) + Seq-NMS", tracking_first(HRNET)),
        ("ResNeXt101*", detector(RESNEXT)),
        ("ResNeXt101* + TFD(0.7) + Seq-NMS", tracking_first(RESNEXT)),
        ("ResNeXt101* + TFD(0.7) + Seq-Track-NMS", seq_track_nms()),
    ]
