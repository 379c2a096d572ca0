"""A system whose scores claims are about: a small twin of a paper's recipe, with the weights of any training seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jobs.papers.weights import SETTINGS, known
from pipeline.recipe import Recipe

WeightsFile = Callable[[str], str]
"""From the name of weights to what models take for them: the name itself, or a path."""


@dataclass(frozen=True)
class System:
    """name: its own, a folder's too. recipe: the run, on the test split, with the names of the weights of seed 0.

    choices: settings of model and linker that are chosen on val ("linker.min_score", as `--set` has them), each with
    the values that are tried; empty for a system whose settings are all the paper's or the model's own. like: the name
    of another system whose chosen values it takes, so that it differs from that one in one thing alone.
    """

    name: str
    recipe: Recipe
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    like: str = ""

    def __post_init__(self) -> None:
        assert not (self.choices and self.like), self.name

    def changed(self, name: str, like: str = "", **settings: Any) -> System:
        """A system that differs in these settings of the model, with nothing to choose but what another chose."""
        recipe = replace(self.recipe, model_settings={**self.recipe.model_settings, **settings})
        return System(name, recipe, like=like)

    def weights(self) -> dict[str, str]:
        """The names of the trained weights that it needs, by the setting of the model that names them."""
        named = {setting: str(self.recipe.model_settings.get(setting)) for setting in SETTINGS}
        return {setting: name for setting, name in named.items() if name in known()}

    def at(
        self,
        seed: int,
        split: str = "test",
        chosen: Mapping[str, Any] | None = None,
        file: WeightsFile = str,
    ) -> Recipe:
        """Its run with the weights of a training seed. chosen: values of settings, by names as `choices` has them."""
        model_settings = dict(self.recipe.model_settings)
        model_settings |= {setting: file(of_seed(name, seed)) for setting, name in self.weights().items()}
        settings = {"model": model_settings, "linker": dict(self.recipe.linker_settings)}
        for name, value in (chosen or {}).items():
            part, _, setting = name.partition(".")
            settings[part][setting] = value
        return replace(
            self.recipe,
            name=self.name,
            catalog_settings={**self.recipe.catalog_settings, "split": split},
            model_settings=settings["model"],
            linker_settings=settings["linker"],
        )


def of_seed(name: str, seed: int) -> str:
    """What weights are called that were trained with another seed than 0, the one of those that models take."""
    return name if seed == 0 else f"{name}-seed-{seed}"
