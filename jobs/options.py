"""Options that several verbs share, and how they become a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer

from jobs import recipes
from pipeline.config import available, did_you_mean
from pipeline.recipe import Recipe


def _named(output: str) -> str:
    """The output as given; an empty one, from a variable that was not set, would be the folder one is in."""
    if not output.strip():
        raise ValueError("--output is empty; name a folder")
    return output


Output = Annotated[
    str,
    typer.Option("--output", "-o", help="The run: a folder at any fsspec URL.", metavar="RUN", callback=_named),
]
Source = Annotated[
    list[str] | None, typer.Argument(help="Videos: files, folders, globs, lists, folders of images, URLs.")
]
CatalogName = Annotated[
    str | None, typer.Option("--catalog", help=f"What SOURCE is: {', '.join(available('catalog'))}.")
]
ModelName = Annotated[str | None, typer.Option("--model", help=f"The network: {', '.join(available('model'))}.")]
Frames = Annotated[
    str | None, typer.Option(help="Only these frames of each video: 600:750, :600, 80%:.", metavar="START:STOP")
]
ClipFrames = Annotated[int | None, typer.Option(help="Cut videos into clips of so many frames.", min=1)]
MaxVideos = Annotated[int | None, typer.Option(help="Only the first so many videos.", min=1)]
FuseDecode = Annotated[
    bool, typer.Option("--fuse-decode", help="Decode where the network is, not in a stage of its own.")
]
Networks = Annotated[int | None, typer.Option("--workers", help="How many networks work at once.", min=1)]
Gpus = Annotated[float, typer.Option(help="GPUs that each network holds; 0 runs on the CPU.", min=0)]
Explain = Annotated[bool, typer.Option("--explain", help="Print the plan and stop.")]
RecipeName = Annotated[
    str | None, typer.Option("--recipe", help=f"A named run: {', '.join(recipes.OURS)}, or any of `trackloom recipes`.")
]
LinkerName = Annotated[
    str | None, typer.Option("--linker", help=f"Who gives boxes their identities: {', '.join(available('linker'))}.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A setting of the model, linker, catalog or refine, or of the recipe itself; may be repeated.",
        metavar="model.sigma_det=0.5",
    ),
]
IsLocal = Annotated[bool, typer.Option("--local", help="In a plain loop in this process, without Ray; same rows.")]
Address = Annotated[
    str | None, typer.Option("--address", help="A Ray cluster's address; RAY_ADDRESS, else a session of its own.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Throw away the tables that RUN holds.")]

SECTIONS = {
    "model": "model_settings",
    "linker": "linker_settings",
    "catalog": "catalog_settings",
    "refine": "refine_settings",
}
# The parts of a recipe that make detections, and those that make tracks of them.
OF_DETECTION = ("catalog", "frames", "model", "clip_frames", "overlap", "chunk_frames", "videos_per_shard")
OF_LINKING = ("linker", "refine", "detection_threshold", "tracking_threshold")


def recipe_of(
    name: str | None,
    given: Sequence[str] | None,
    takes: Sequence[str],
    source: Sequence[str] | None = None,
    **changes: Any,
) -> Recipe:
    """The named recipe, or a plain one, with the changes that are not None and the `section.name=value` given.

    takes: the sections, and the recipe's own settings, that mean something to the verb. A model, linker or catalog
    other than the recipe's drops the settings that were the recipe's for it. Raises ValueError where any of this does
    not fit, and, to a verb that takes a model, where the recipe's weights are still to be trained.
    """
    recipe = recipes.load(name) if name else Recipe()
    changes["source"] = "\n".join(source) if source else None
    for field, value in changes.items():
        if value is not None and value != getattr(recipe, field):
            new: dict[str, Any] = {field: value, **({SECTIONS[field]: {}} if field in SECTIONS else {})}
            recipe = replace(recipe, **new)
    for text in given or ():
        key, equals, value = text.partition("=")
        section, dot, field = key.partition(".")
        if not equals:
            raise ValueError(f"--set {text!r} has no value; say --set {text or 'NAME'}=VALUE")
        if (section if dot else key) not in takes or bool(dot) != (section in SECTIONS):
            known = [f"{name}.NAME" if name in SECTIONS else name for name in takes]
            near = did_you_mean(section if dot else key, takes)
            raise ValueError(f"--set {text!r} names no setting that counts here{near}; it may be {', '.join(known)}")
        if dot:
            new = {SECTIONS[section]: {**getattr(recipe, SECTIONS[section]), field: value}}
        else:
            new = {key: value if key == "frames" else _number(key, value)}
        recipe = replace(recipe, **new)
    if "model" in takes:
        recipes.check_weights(recipe)
    return recipe


def _number(name: str, text: str) -> Any:
    if text.lower() == "none" and name == "clip_frames":
        return None
    try:
        return float(text) if name.endswith("threshold") else int(text)
    except (ValueError, OverflowError):
        raise ValueError(f"--set {name}={text}: it must be a number") from None
