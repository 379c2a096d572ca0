"""How good a network is by now: its weights written to the training's folder, and scored by the main job's own code."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import nn

from jobs import prepare
from jobs.options import OF_DETECTION
from jobs.train_card import Made
from pipeline import flow, scoring
from pipeline.engine import Local
from pipeline.metrics import detection, hota
from pipeline.metrics import tracks as whole_tracks
from pipeline.recipe import Recipe
from pipeline.tables import Run, Store
from pipeline.training.settings import Training
from pipeline.training.work import build

LAST, BEST, SCORES = "last.safetensors", "best.safetensors", "scores.parquet"
SHOWN = ("mAP", "HOTA", "MOTA", "IDF1")
# Scores that say by themselves which network is better, higher being better.
BEST_BY = (*detection.FIELDS, *hota.FIELDS, "MOTA", "precision", "recall", "IDF1", "IDP", "IDR", *whole_tracks.FIELDS)


@dataclass(frozen=True)
class Judge:
    """Writes a network as the last, scores it on the validation videos and, where none was better, writes it as best.

    store: the training's folder, which every worker reaches. gpu: whether scoring runs on one.
    """

    store: Store
    made: Made
    gpu: bool = False

    def __call__(self, model: nn.Module, step: int, earlier: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """The scores of the model after so many steps: {} without validation, and where it cannot be scored.

        model: on the CPU, in eval mode. earlier: a row for each validation before, with its `step`.
        """
        from models.parts.weights import weights_bytes  # torchvision takes seconds to import; --help should not

        before = build(self.made.training, self.made.classes)
        network: Any = model
        dtype = torch.float16 if self.made.half else torch.float32
        content = weights_bytes(network.network, self.made.metadata(step), dtype, taught(network, before))
        self.store.write(content, LAST)
        scores = {}
        if self.made.training.validation is not None:
            scores = validated(self.made.training, self.store.url_of(LAST), self.gpu)
        if is_best(scores, earlier, self.made.training.best_by):
            self.store.write(content, BEST)
        write_scores(self.store, [*earlier, {"step": step, **scores}])
        return scores


def is_best(scores: Mapping[str, float], earlier: Sequence[Mapping[str, float]], name: str) -> bool:
    """Whether none of the earlier had more of the score of this name; where none has it, the last is the best."""
    before = [row[name] for row in earlier if not math.isnan(row.get(name, math.nan))]
    return not before or scores.get(name, math.nan) >= max(before)


def best_of(rows: Sequence[Mapping[str, float]], name: str) -> Mapping[str, float]:
    """Of the rows of all validations that whose weights are the best."""
    return [row for index, row in enumerate(rows) if is_best(row, rows[:index], name)][-1]


def scored_by(chosen: Training, weights: str) -> Recipe:
    """The run of the main job that scores weights on the validation videos.

    Of `validation`, `source` and `frames` say which those are, the training's own by default; all else is a setting of
    the catalog.
    """
    settings = dict(chosen.validation or {})
    return Recipe(
        catalog=chosen.catalog,
        source=str(settings.pop("source", chosen.source)),
        frames=str(settings.pop("frames", "")),
        catalog_settings=settings,
        model=chosen.model,
        model_settings=settings_of(chosen, weights),
        linker=chosen.linker,
        linker_settings=chosen.linker_settings,
    )


def settings_of(chosen: Training, weights: str) -> dict[str, Any]:
    """The model's settings that run what was trained: weights in the place of all that the training began with."""
    begun = {"weights", "backbone_weights"}
    if chosen.model_settings.get("train") == "reid":  # whose network the weights hold beside the detector
        begun.add("reid_weights")
    kept = {name: value for name, value in chosen.model_settings.items() if name not in begun}
    return {**kept, "weights": weights}


def validated(chosen: Training, weights: str, gpu: bool = False) -> dict[str, float]:
    """The scores of weights on the validation videos; {} where a part that runs would use was not taught."""
    recipe = scored_by(chosen, weights)
    try:
        job = prepare.detection(recipe)
    except ValueError:  # all else that can be wrong was found before the training: see `why_not_scored`
        return {}
    with tempfile.TemporaryDirectory(prefix="trackloom-") as folder:
        run = Run(folder).claim(job.identity(OF_DETECTION), job.model.classes)
        flow.detect(run, recipe, job.videos, job.model, Local(), flow.Workers(fuse=True, gpus=float(gpu)), quiet)
        flow.link(run, recipe, Local(), quiet)
        flow.know(run, recipe, job.videos, Local(), quiet)
        flow.score(run, Local(), quiet)
        found = scoring.values(scoring.combine([run.table("scores")])).get((None, None), {})
    return {name: found[name] for name in dict.fromkeys((*SHOWN, chosen.best_by)) if name in found}


def why_not_scored(chosen: Training, weights: str) -> str:
    """Why `validated` found nothing to score, or nothing in what it scored."""
    try:
        prepare.detection(scored_by(chosen, weights))
    except ValueError as error:
        return str(error)
    return f"the validation gave no {chosen.best_by}"


def quiet(*_: object) -> None:
    """Says nothing of how far a validation is."""


def taught(model: Any, before: Any) -> dict[str, nn.Module]:
    """Those extras of a trained model that it learned something in, or its weights held; before: the model untrained.

    The others are left out of the file, so that nobody takes what nothing has trained for what was.
    """
    held = before.extras.keys() - before.weights.missing if before.weights else set()

    def learned(name: str) -> bool:
        # Biases tell: the weights of what nothing teaches still decay.
        pairs = zip(model.extras[name].parameters(), before.extras[name].parameters(), strict=True)
        return any(not torch.equal(now.cpu(), then.cpu()) for now, then in pairs if now.ndim <= 1)

    return {name: extra for name, extra in model.extras.items() if name in held or learned(name)}


def write_scores(store: Store, rows: Sequence[Mapping[str, float]]) -> None:
    """Writes `scores.parquet`: a row for each validation and metric."""
    lines = [
        (int(row["step"]), name, float(value)) for row in rows for name, value in row.items() if name != "step"
    ]  # fmt: skip
    steps, names, values = zip(*lines, strict=True) if lines else ((), (), ())
    columns = {
        "step": pa.array(steps, pa.int64()),
        "metric": pa.array(names, pa.string()),
        "value": pa.array(values, pa.float64()),
    }
    Run(store.url).write_table(pa.table(columns), SCORES)
