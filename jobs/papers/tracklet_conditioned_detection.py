"""TCD's tables: tracklet-conditioned detection, and Algorithm 1 before it, on ImageNet VID and 2D MOT 2015.

One network of one training serves all of Table 1 (section 4.2: the baseline only leaves the conditioning out), and of
Table 2 all but the embeddings. FlowNet 2 is RAFT-small here, and Farneback in the twins, which need no weights for it.
FGFA looks at frames on both sides; a system that is to be online has those before it alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.papers import detect_to_track
from jobs.papers.row import VID, Configuration, Row
from pipeline.recipe import Recipe

PAPER = "tracklet_conditioned_detection"
TITLE = "Integrated Object Detection and Tracking with Tracklet-Conditioned Detection"

LATE: dict[str, Any] = {"condition": "none", "propagate": "raft_small", "rescore": True}
DEFORMABLE: dict[str, Any] = {"deformable": True}
# FGFA's own range of frames, of which the later half has not been seen yet.
AGGREGATED: dict[str, Any] = {**DEFORMABLE, "aggregate": 10, "aggregate_flow": "raft_small"}
# Of the small network, as many as it learned with: ten would be a third of a video, and lose .10 of mAP.
SMALL_AGGREGATE = 2
# Appendix A1.
MOT15: dict[str, Any] = {"benchmark": "mot15", "min_score": 0.95, "start_score": 0.95, "max_age": 10}


def rows() -> list[Row]:
    """All lines of Tables 1 to 6."""
    return [*table_1(), *table_2(), *table_3(), *table_4(), *table_5(), *table_6()]


def table_1() -> list[Row]:
    """Ablation of the key components."""
    names = ("mAP_det", "mAP_track", "mAP_track_slow", "mAP_track_medium", "mAP_track_fast")
    printed = (
        ("sequential baseline", configuration("tcd-sequential", condition="none"), (74.6, 65.2, 79.3, 54.8, 33.5)),
        (
            "sequential with late integration: + PropagateBox",
            configuration("tcd-propagate", condition="none", propagate="raft_small"),
            (75.2, 65.9, 80.3, 53.3, 38.9),
        ),
        (
            "sequential with late integration: ++ RescoreBox",
            configuration("tcd-late", **LATE),
            (75.8, 65.9, 80.3, 53.3, 38.9),
        ),
        (
            "integrated: first stage only",
            configuration("tcd-first-stage", condition="stage_1"),
            (75.4, 67.1, 79.9, 55.2, 37.9),
        ),
        (
            "integrated: second stage only",
            configuration("tcd-second-stage", condition="stage_2"),
            (76.8, 66.8, 80.4, 58.0, 36.9),
        ),
        ("integrated: both stages", integrated(), (78.1, 67.9, 80.9, 58.1, 41.9)),
    )
    return [
        _row(run.recipe.name, "Table 1", text, run, dict(zip((f"{name} [%]" for name in names), values, strict=True)))
        for text, run, values in printed
    ]


def table_2() -> list[Row]:
    """Hyper-parameters and box embeddings: every column, the default's too."""
    printed: dict[tuple[str, str, float], dict[float, tuple[float, float]]] = {
        ("alpha", "alpha", 1.0): {0.5: (78.4, 66.7), 1.0: (78.1, 67.9), 2.0: (76.7, 67.9)},
        ("beta", "beta", 0.99): {0.95: (78.1, 67.5), 0.99: (78.1, 67.9), 1.0: (78.1, 67.4)},
        ("eta", "eta", 0.8): {0.7: (78.0, 66.8), 0.8: (78.1, 67.9), 0.9: (78.1, 67.4)},
        ("gamma", "gamma", 8): {4: (76.9, 67.5), 8: (78.1, 67.9), 16: (78.3, 67.8)},
        ("R", "null", 0.3): {0.2: (78.1, 67.4), 0.3: (78.1, 67.9), 0.4: (78.1, 67.7)},
    }
    found = []
    for (symbol, setting, default), columns in printed.items():
        for value, figures in columns.items():
            name = f"tcd-{symbol.lower()}-{value}"
            changed: dict[str, Any] = {setting: value}
            run = integrated() if value == default else configuration(name, **changed)
            found.append(_row(name, "Table 2", f"{symbol} = {value}", run, _both(*figures)))
    for embedding, figures in {
        "fully_shared": (77.2, 66.5),
        "shared_2fc": (77.4, 67.2),
        "separate_2fc": (78.1, 67.9),
    }.items():
        text = embedding.replace("_", "-")
        name = f"tcd-{text}"
        run = integrated() if embedding == "separate_2fc" else configuration(name, text, embedding=embedding)
        found.append(
            _row(name, "Table 2", f"box embedding features: {embedding.replace('_', ' ')}", run, _both(*figures))
        )
    return found


def table_3() -> list[Row]:
    """Stability: each line of the paper is a motion split with both systems, each row here a system with all splits."""
    printed = {
        "late": (26, 134, 236, 11, 88, 184, 37, 173, 304, 63, 227, 336),
        "integrated": (25, 126, 219, 14, 87, 170, 41, 168, 282, 48, 205, 317),
    }
    names = [
        f"{error}_error{split} [1e-3]"
        for split in ("", "_slow", "_medium", "_fast")
        for error in ("fragment", "center", "aspect")
    ]
    texts = {"late": "sequential with late integration", "integrated": "integrated"}
    return [
        _row(
            f"tcd-stability-{system}", "Table 3", texts[system], _system(system), dict(zip(names, values, strict=True))
        )
        for system, values in printed.items()
    ]


def table_4() -> list[Row]:
    """Stronger baselines."""
    printed = {
        ("plain", "late"): (75.8, 65.9),
        ("plain", "integrated"): (78.1, 67.9),
        ("dcn", "late"): (79.4, 68.4),
        ("dcn", "integrated"): (82.0, 70.8),
        ("dcn-fgfa", "late"): (81.5, 70.2),
        ("dcn-fgfa", "integrated"): (83.5, 72.6),
    }
    texts = {"plain": "", "dcn": "DCNv2, ", "dcn-fgfa": "DCNv2 + FGFA, "}
    return [
        _row(
            f"tcd-{features}-{system}",
            "Table 4",
            texts[features] + ("sequential with late integration" if system == "late" else system),
            _system(system, "" if features == "plain" else features),
            _both(*figures),
        )
        for (features, system), figures in printed.items()
    ]


def table_5() -> list[Row]:
    """Systems on ImageNet VID."""
    printed: dict[str, tuple[str, tuple[float, float | None]]] = {
        "nuist": ("NUIST, ensemble, off-line", (81.2, None)),
        "nus-qihoo-uiuc": ("NUS-Qihoo-UIUC, DPN-131, off-line", (83.1, 70.3)),
        "fgfa": ("FGFA, ResNet-101, off-line", (78.4, None)),
        "thp": ("THP, ResNet-101, on-line", (78.6, None)),
        "dt-online": ("D&T, ResNet-101, on-line", (78.7, None)),
        "dt-offline": ("D&T, ResNet-101, off-line", (79.8, None)),
    }
    others = [
        Row(f"tcd-t5-{name}", PAPER, "Table 5", text, _both(*figures)) for name, (text, figures) in printed.items()
    ]
    reproduced = "D&T (reproduced), ResNet-101, off-line"
    return [
        *others,
        _row("tcd-dt-reproduced", "Table 5", reproduced, detect_to_track.tracked("resnet101"), _both(79.0, 60.5)),
        _row(
            "tcd-system-vid",
            "Table 5",
            "Ours, ResNet-101, on-line",
            _system("integrated", "dcn-fgfa"),
            _both(83.5, 72.6),
        ),
    ]


def table_6() -> list[Row]:
    """Systems on the test set of 2D MOT 2015."""
    printed = {
        "h1-sjtuzte": ("H1 SJTUZTE, off-line", (56.6, 7198, 18926, 533)),
        "rar15": ("RAR15, on-line", (56.5, 9386, 16921, 428)),
        "trid": ("TRID, off-line", (55.7, 6273, 20611, 351)),
        "nomtwsdp": ("NOMTwSDP, off-line", (55.5, 5594, 21322, 427)),
        "ap-hwdpl": ("AP HWDPL, on-line", (53.0, 5159, 22984, 708)),
        "cda-ddal": ("CDA DDAL, on-line", (51.3, 7110, 22271, 544)),
        "mdp-subcnn": ("MDP SubCNN, on-line", (47.5, 8632, 22969, 628)),
        "dmt": ("DMT, off-line", (44.5, 8088, 25336, 684)),
    }
    names = ("MOTA [%]", "FP", "FN", "IDSw")
    others = [
        Row(f"tcd-t6-{name}", PAPER, "Table 6", text, dict(zip(names, figures, strict=True)))
        for name, (text, figures) in printed.items()
    ]
    figures = dict(zip(names, (56.1, 5717, 20460, 788), strict=True))
    note = "the truth of the test set is not public: its server scores tracks"
    return [*others, _row("tcd-mot15", "Table 6", "Ours, on-line", mot15(), figures, note)]


def integrated() -> Configuration:
    """The paper's system: conditioning in both stages, every setting as it is by default."""
    return configuration("tcd-integrated")


def mot15() -> Configuration:
    """The system of Table 6, with appendix A1's rules for MOTA: sure boxes, tracks of ten frames or more."""
    recipe = Recipe(
        name="tcd-mot15",
        catalog="mot",
        model="tracklet_rcnn",
        model_settings={"detector": "resnet101", "weights": "tracklet-rcnn-resnet101-mot15", **MOT15},
        linker="keep",
        linker_settings={"min_length": 10},
    )
    # Of the benchmark's sizes the small network can have one: how near two boxes may be.
    return Configuration(recipe, {**small_network(), "benchmark": "vid", "nms_iou": 0.5})


def configuration(name: str, trained: str = "", **settings: Any) -> Configuration:
    """A run of the model with these settings. trained: what sets its weights apart from those of most rows."""
    ending = f"-{trained}" if trained else ""
    recipe = Recipe(
        name=name,
        **VID,
        model="tracklet_rcnn",
        model_settings={"detector": "resnet101", "weights": f"tracklet-rcnn-resnet101-vid{ending}", **settings},
        linker="keep",
    )
    flows = {name: "farneback" for name, value in settings.items() if value == "raft_small"}
    frames = {"aggregate": SMALL_AGGREGATE} if "aggregate" in settings else {}
    return Configuration(recipe, small_network(ending) | flows | frames)


def small_network(ending: str = "") -> dict[str, Any]:
    """The small network's settings; ending: of the name of its weights."""
    return {"detector": "small", "weights": f"tracklet-rcnn-synthetic-v1{ending}"}


def _system(system: str, features: str = "") -> Configuration:
    """Late integration or the integrated system, on plain or on stronger features."""
    if system == "integrated" and not features:
        return integrated()
    settings = {"": {}, "dcn": DEFORMABLE, "dcn-fgfa": AGGREGATED}[features] | (LATE if system == "late" else {})
    return configuration("-".join(word for word in ("tcd", features, system) if word), features, **settings)


def _row(
    name: str, table: str, text: str, run: Configuration, published: Mapping[str, float | None], note: str = ""
) -> Row:
    return Row(name, PAPER, table, text, published, "recipe", run, note=note)


def _both(detection: float, tracking: float | None) -> dict[str, float | None]:
    return {"mAP_det [%]": detection, "mAP_track [%]": tracking}
