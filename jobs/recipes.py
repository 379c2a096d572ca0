"""Recipes: named runs, each a function that returns a `Recipe`; `trackloom run --recipe NAME`."""

from __future__ import annotations

import inspect
import sys

from pipeline.config import did_you_mean
from pipeline.recipe import Recipe


def demo() -> Recipe:
    """SMOT with the shipped small detector on the test split of synthetic-v1.

    trackloom run --recipe demo --output runs/demo
    """
    return Recipe(
        name="demo", catalog="synthetic", catalog_settings={"split": "test"}, model="smot", linker="tracklets"
    )


def smot_coco() -> Recipe:
    """SMOT on torchvision's RetinaNet with its COCO weights, on your own videos.

    trackloom run VIDEOS --recipe smot-coco --output runs/mine
    """
    return Recipe(
        name="smot-coco", model="smot", model_settings={"detector": "retinanet_resnet50_fpn_v2"}, linker="tracklets"
    )


def names() -> list[str]:
    """All recipes, as the command line calls them."""
    module = sys.modules[__name__]
    return sorted(
        name.replace("_", "-")
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if inspect.signature(function, eval_str=True).return_annotation is Recipe
        and not inspect.signature(function).parameters
    )


def load(name: str) -> Recipe:
    """The recipe of that name; ValueError with the nearest where there is none."""
    if name not in names():
        raise ValueError(f"unknown recipe {name!r}{did_you_mean(name, names())}; available: {', '.join(names())}")
    recipe: Recipe = getattr(sys.modules[__name__], name.replace("-", "_"))()
    return recipe
