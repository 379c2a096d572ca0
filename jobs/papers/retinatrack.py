"""RetinaTrack's tables, which it prints as Figures 4 to 9: detection on COCO, tracking of vehicles on Waymo.

mAP is COCO's AP there (`trackloom evaluate RUN --metrics coco`). One run has both of the paper's score thresholds:
every box counts for mAP, those of .5 and more are tracked (the paper says higher, not how high). COCO is images: each
is a video of one frame, and `online` leaves every box and score as it is.

What differs by training has weights of its own; "IOU baseline", "w/o triplet loss" and "w/R-50 ReID" share theirs.
The authors also crop at random in training (section 3.4), which ours does not.
Twins have no side to resize to: the small network takes frames as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.papers.row import SMALL_REID, Configuration, Row
from pipeline.recipe import Recipe

PAPER = "retinatrack"
TITLE = "RetinaTrack: Online Single Stage Joint Detection and Tracking"

COCO: dict[str, Any] = {"catalog": "coco", "catalog_settings": {"split": "val2017"}}
WAYMO: dict[str, Any] = {"catalog": "waymo", "catalog_settings": {"split": "validation", "classes": ("vehicle",)}}
COCO_SIDE, WAYMO_SIDE = 896, 1024  # px; sections 4.1 and 3.4
TRACKED: dict[str, Any] = {"min_score": 0.5}

MOTA, MAP, TIME = "MOTA [%]", "mAP [%]", "time [ms]"
V100 = "time: V100"  # without the tracker's bookkeeping
# Three vanilla heads and RetinaTrack's, by what sets their weights apart from those of the best, (3, 1) with K = 6.
HEADS: dict[str, dict[str, Any]] = {
    "1-3": {"m1": 1, "m2": 3},
    "2-2": {"m1": 2, "m2": 2},
    "": {},
    "separate": {"head": "separate"},
    "shared": {"head": "shared"},
    "k1-separate": {"head": "separate", "num_shapes": 1},
    "k1-shared": {"head": "shared", "num_shapes": 1},
}


def rows() -> list[Row]:
    """All lines of Figures 4 to 9."""
    return [*figure_4(), *figure_5(), *figure_6(), *figure_7(), *figure_8(), *figure_9()]


def figure_4() -> list[Row]:
    """COCO17: vanilla RetinaNet and RetinaTrack as detectors of images."""
    printed = {
        "separate": ("RetinaNet, separate task weights, K = 6", 36.17, 45),
        "shared": ("RetinaNet, shared task weights, K = 6", 35.35, 40),
        "k1-separate": ("RetinaNet, separate task weights, K = 1", 31.45, 37),
        "k1-shared": ("RetinaNet, shared task weights, K = 1", 30.71, 30),
        "1-3": ("RetinaTrack, m1 = 1, m2 = 3", 35.11, 83),
        "2-2": ("RetinaTrack, m1 = 2, m2 = 2", 35.55, 75),
        "": ("RetinaTrack, m1 = 3, m2 = 1", 35.74, 74),
    }
    return [
        _row(f"rt-coco-{head or '3-1'}", "Figure 4", text, of_images(head), {MAP: score, TIME: time})
        for head, (text, score, time) in printed.items()
    ]


def figure_5() -> list[Row]:
    """Waymo: the same with embeddings; RetinaNet* shares them among the anchors of a cell."""
    best = "Figures 6 to 8 print 39.19 for the same"
    printed: tuple[tuple[str, str, Configuration, tuple[float | None, float, float], str], ...] = (
        ("separate", "RetinaNet, separate task weights", detector("separate"), (None, 38.19, 34), ""),
        ("star-separate", "RetinaNet*, separate task weights", shared_by_cell("separate"), (38.02, 37.43, 44), ""),
        ("shared", "RetinaNet, shared task weights", detector("shared"), (None, 37.95, 30), ""),
        ("star-shared", "RetinaNet*, shared task weights", shared_by_cell("shared"), (37.63, 36.75, 40), ""),
        ("k1-separate", "RetinaNet, separate, m3 = 2, K = 1", joint("k1-separate"), (30.94, 35.20, 33), ""),
        ("k1-shared", "RetinaNet, shared, m3 = 2, K = 1", joint("k1-shared"), (31.20, 35.08, 29), ""),
        ("1-3", "RetinaTrack, m1 = 1, m2 = 3, m3 = 2", joint("1-3"), (38.71, 37.96, 88), ""),
        ("2-2", "RetinaTrack, m1 = 2, m2 = 2, m3 = 2", joint("2-2"), (39.08, 38.14, 81), ""),
        ("3-1", "RetinaTrack, m1 = 3, m2 = 1, m3 = 2", joint(), (39.12, 38.24, 70), best),
    )
    return [
        _row(f"rt-{name}", "Figure 5", text, run, dict(zip((MOTA, MAP, TIME), figures, strict=True)), note)
        for name, text, run, figures, note in printed
    ]


def figure_6() -> list[Row]:
    """Waymo: how deep the embedding is."""
    return [
        _row(f"rt-m3-{depth}", "Figure 6", f"{depth} embedding layers", run, {MOTA: accuracy, MAP: score})
        for depth, run, accuracy, score in (
            (0, joint(depth=0), 38.52, 37.93),
            (2, joint(), 39.19, 38.24),
            (4, joint(depth=4), 38.85, 38.24),
        )
    ]


def figure_7() -> list[Row]:
    """Waymo: Tracktor and Tracktor++, here with an FPN, which the authors' own do not have."""
    names = (MOTA, "TP", "FP", "IDSw", MAP, TIME)
    printed = (
        ("rt-tracktor", "Tracktor", tracktor(), (35.30, 106006, 15617, 16652, 36.17, 45)),
        ("rt-tracktor-plus-plus", "Tracktor++", tracktor_plus_plus(), (37.94, 112801, 15642, 10370, 36.17, 2645)),
        ("rt-f7-retinatrack", "RetinaTrack", joint(), (39.19, 112025, 11669, 5712, 38.24, 70)),
    )
    return [
        _row(name, "Figure 7", text, run, dict(zip(names, values, strict=True))) for name, text, run, values in printed
    ]


def figure_8() -> list[Row]:
    """Waymo: embeddings learned with the detector, or something else in their place."""
    one_network = "RetinaTrack w/o triplet loss without its embeddings, whose mAP is printed as 38.58"
    printed = (
        ("iou", "IOU baseline", by_overlap(), (35.36, 38.53, 70), one_network),
        ("no-triplet", "RetinaTrack w/o triplet loss", by_features(), (37.92, 38.58, 70), ""),
        ("reid", "RetinaTrack, w/R-50 ReID", by_reid(), (37.39, 38.58, 80), ""),
        ("joint", "RetinaTrack", joint(), (39.19, 38.24, 70), "Figure 5 prints MOTA 39.12 for the same"),
    )
    return [
        _row(f"rt-{name}", "Figure 8", text, run, dict(zip((MOTA, MAP, TIME), figures, strict=True)), note)
        for name, text, run, figures, note in printed
    ]


def figure_9() -> list[Row]:
    """Waymo v1.1: the same videos to be scored, four times the labels to learn from."""
    printed = (
        ("iou", "IOU baseline", by_overlap("v1.1"), (38.25, 45.78, 70)),
        ("tracktor-plus-plus", "Tracktor++", tracktor_plus_plus("v1.1"), (42.62, 42.41, 2645)),
        ("joint", "RetinaTrack", joint(release="v1.1"), (44.92, 45.70, 70)),
    )
    note = "trained on v1.1, 4 x v1's frames; the catalog reads the labels of whichever release is there"
    return [
        _row(f"rt-v1.1-{name}", "Figure 9", text, run, dict(zip((MOTA, MAP, TIME), figures, strict=True)), note)
        for name, text, run, figures in printed
    ]


def of_images(head: str) -> Configuration:
    """A detector of images: any head without embeddings."""
    # RetinaTrack's (m1, m2) have one training each on synthetic-v1, with embeddings, which are left out here.
    small = {"": "no-triplet", "k1-separate": "k1-plain-separate", "k1-shared": "k1-plain-shared"}.get(head, head)
    name = f"rt-coco-{head or '3-1'}"
    settings = {**HEADS[head], "embedding": "none"}
    return _configuration(name, COCO, _ended("coco", head), small, COCO_SIDE, ("online", {}), settings)


def detector(head: str) -> Configuration:
    """Vanilla RetinaNet of Waymo, trained without embeddings; the paper does not score its tracks, here by overlap."""
    return _on_waymo(f"rt-{head}", head, {**HEADS[head], "embedding": "none"})


def shared_by_cell(head: str) -> Configuration:
    """RetinaNet*: the anchors of a cell share an embedding."""
    return _on_waymo(f"rt-star-{head}", f"star-{head}", HEADS[head])


def joint(head: str = "", depth: int = 2, release: str = "") -> Configuration:
    """Detection and embeddings learned together; the paper's system unless something is said."""
    name, trained = (f"rt-m3-{depth}", f"m3-{depth}") if depth != 2 else (f"rt-{head or 'joint'}", head)
    settings = {**HEADS[head], **({"m3": depth} if depth != 2 else {})}
    return _on_waymo(name, trained, settings, release)


def by_overlap(release: str = "") -> Configuration:
    """The IOU baseline."""
    return _on_waymo("rt-iou", "no-triplet", {"embedding": "none"}, release)


def by_features() -> Configuration:
    """RetinaTrack without triplet loss: boxes are compared by their features F_ik."""
    return _on_waymo("rt-no-triplet", "no-triplet", {"embedding": "instance"})


def by_reid() -> Configuration:
    """The same detections, compared by a ReID network that was trained by itself."""
    settings = {"embedding": "reid", "reid": "resnet50", "reid_weights": "reid-resnet50-waymo"}
    return _on_waymo("rt-reid", "no-triplet", settings)


def tracktor() -> Configuration:
    """Tracktor as it is."""
    return _tracktor("rt-tracktor", "", {})


def tracktor_plus_plus(release: str = "") -> Configuration:
    """Tracktor with ReID and camera motion compensation."""
    own = f"reid-resnet50-{_ended('waymo', release)}"
    settings = {"camera": "ecc", "reid": "resnet50", "reid_weights": own}
    return _tracktor("rt-tracktor-plus-plus", release, settings)


def _tracktor(name: str, release: str, settings: Mapping[str, Any]) -> Configuration:
    network = {
        "detector": "fasterrcnn_resnet50_fpn",
        "weights": f"tracktor-resnet50-{_ended('waymo', release)}",
        "input_side": WAYMO_SIDE,
    }
    recipe = Recipe(
        name=_of_release(name, release),
        **WAYMO,
        model="tracktor",
        model_settings={**network, **settings},
        linker="keep",
    )
    small = {"detector": "small", "weights": "tracktor-synthetic-v1", "input_side": None}
    return Configuration(recipe, {**small, **(SMALL_REID if "reid" in settings else {})})


def _on_waymo(name: str, trained: str, settings: Mapping[str, Any], release: str = "") -> Configuration:
    own, name = _ended("waymo", release, trained), _of_release(name, release)
    return _configuration(name, WAYMO, own, trained, WAYMO_SIDE, ("track_store", TRACKED), settings)


def _configuration(
    name: str,
    data: Mapping[str, Any],
    own: str,
    small: str,
    side: int,
    linker: tuple[str, Mapping[str, Any]],
    settings: Mapping[str, Any],
) -> Configuration:
    """own, small: endings of the names of its weights and of its twin's."""
    resnet = {"network": "resnet50", "weights": f"retina-track-resnet50-{own}", "input_side": side}
    recipe = Recipe(
        name=name,
        **data,
        model="retina_track",
        model_settings={**resnet, **settings},
        linker=linker[0],
        linker_settings=linker[1],
    )
    network = {"network": "small", "weights": _ended("retina-track-synthetic-v1", small), "input_side": None}
    return Configuration(recipe, {**network, **(SMALL_REID if "reid" in settings else {})})


def _ended(*words: str) -> str:
    return "-".join(word for word in words if word)


def _of_release(name: str, release: str) -> str:
    return name.replace("rt-", f"rt-{release}-") if release else name


def _row(
    name: str, figure: str, text: str, run: Configuration, published: Mapping[str, float | None], note: str = ""
) -> Row:
    """A row of scores; where there are times too, the benchmark of networks takes them here."""
    timed = TIME in published
    note = "; ".join(filter(None, [note, V100 if timed else ""]))
    return Row(name, PAPER, figure, text, published, "recipe", run, "models" if timed else None, note)
