"""What the command line of `train` says, as a `Training`: a named one or a plain one, and what is changed of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jobs.trainings import RECIPES
from pipeline.config import did_you_mean, load
from pipeline.config import settings as checked
from pipeline.training.settings import Training

# What `--set SECTION.NAME=VALUE` changes a value of.
SECTIONS = {
    "model": "model_settings",
    "catalog": "catalog_settings",
    "linker": "linker_settings",
    "validation": "validation",
    "stills": "stills",
    "loss_weights": "loss_weights",
}
MAY_BE_NONE = ("validation", "stills")


def training_of(
    name: str | None, given: Sequence[str], val: str | None = None, val_frames: str | None = None, **changes: Any
) -> Training:
    """The named training, or a plain one, with the changes that are not None and the `[section.]name=value` given.

    A model, linker or catalog other than the recipe's drops the settings that were the recipe's for it; another catalog
    the validation too. val, val_frames: the source and the range of frames of the videos that the result is scored on,
    read with the settings of the training's own catalog where the recipe has none for them. Raises ValueError for
    anything that does not fit.
    """
    if name is not None and name not in RECIPES:
        raise ValueError(f"unknown training {name!r}{did_you_mean(name, RECIPES)}; available: {', '.join(RECIPES)}")
    values = dict(vars(RECIPES[name]())) if name else _plain(changes)
    for field, value in changes.items():
        if value is not None:
            _change(values, field, value)
    for text in given:
        key, equals, value = text.partition("=")
        section, dot, field = key.partition(".")
        if not equals or (dot and section not in SECTIONS):
            parts = " or ".join(f"{part}.NAME=VALUE" for part in SECTIONS)
            raise ValueError(f"--set {text!r} is no setting; write NAME=VALUE, {parts}")
        if dot:
            values[SECTIONS[section]] = {**(values.get(SECTIONS[section]) or {}), field: value}
        elif key in MAY_BE_NONE:
            if value.lower() != "none":
                raise ValueError(f"--set {text!r} is no setting; it may be {key}=none or {key}.NAME=VALUE")
            values[key] = None
        else:
            _change(values, key, value)
    if val is not None or val_frames is not None:
        wanted = {"source": val, "frames": val_frames}
        own = values.get("validation")
        base = values.get("catalog_settings", {}) if own is None else own
        values["validation"] = {**base, **{key: text for key, text in wanted.items() if text is not None}}
    mappings = {field: values.pop(field) for field in SECTIONS.values() if field in values}
    if "loss_weights" in mappings:
        mappings["loss_weights"] = _numbers(mappings["loss_weights"])
    return replace(checked(Training, values, "training"), **mappings)


def _plain(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Where no training is named: a user's own videos or, without any, the synthetic ones that are to be learned from.

    Those of another split are what tests are made on.
    """
    if changes.get("source") is not None or changes.get("catalog") is not None:
        values: dict[str, Any] = {"catalog": "folder"}
    else:
        values = {"catalog": "synthetic", "catalog_settings": {"split": "train"}}
    model = changes.get("model") or Training.model
    return {**values, "linker": load("model", model).LINKER}


def _change(values: dict[str, Any], field: str, value: Any) -> None:
    if value == values.get(field):
        return
    values[field] = value
    if field in SECTIONS:
        values[SECTIONS[field]] = {}
    if field == "catalog":
        values["validation"] = None


def _numbers(given: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, value in given.items():
        try:
            found[name] = float(value)
        except ValueError:
            raise ValueError(f"loss_weights.{name} is {value!r}; it must be a number") from None
    return found
