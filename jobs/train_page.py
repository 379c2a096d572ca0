"""How a training went, as one page that opens anywhere, without a network: curves of all that its tables hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jinja2
import numpy as np

from jobs.report_charts import Band, Curve, lines
from jobs.train_card import Made, figures, portable, steps_of, trained_on
from jobs.train_folder import LOSSES, Floats, Folder
from jobs.train_judge import SCORES, best_of
from jobs.train_line import duration
from pipeline.training.history import GRADIENT, LEARNING_RATE, MEASURES, MEMORY, SECONDS, WAITED

POINTS = 120  # of a curve: each is the mean of as many steps
SPREAD = (5, 95)  # percent of those steps that the area around it holds
KINDS = ("first", "second", "third", "quiet")


@dataclass(frozen=True)
class Chart:
    """A chart of the page. legend: (kind, name) of its curves, where there are several."""

    name: str
    svg: str
    legend: Sequence[tuple[str, str]] = ()


def render(folder: Folder, made: Made, steps: Mapping[str, Floats], scores: Sequence[Mapping[str, float]]) -> str:
    """The page.

    steps: a column (N,) for each number of a step's row, see `pipeline.training.history`. scores: a row for each
    validation.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("jobs"), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    chosen, count = made.training, len(steps.get("step", ()))
    scored = [row for row in scores if len(row) > 1]
    spent = float(np.sum(steps[SECONDS])) if count else 0.0
    return environment.get_template("training.html").render(
        name=chosen.name if chosen.name != "custom" else chosen.model,
        subtitle=f"{chosen.model} on {trained_on(chosen)}: {steps_of(chosen)}".replace("`", ""),
        state=folder.about["state"],
        count=count,
        total=chosen.steps,
        spent=duration(spent),
        waited=float(np.sum(steps[WAITED])) / max(spent, 1e-9) if count else 0.0,
        best=best_of(scored, chosen.best_by) if scored else None,
        best_by=chosen.best_by,
        scores=score_chart(scored),
        losses=[smooth(steps, name, name, "second") for name in steps if name not in ("step", *MEASURES)],
        measures=measure_charts(steps) if count else [],
        tables=(LOSSES, SCORES),
        url=folder.store.url,
        facts={
            "command": made.command,
            "commit": made.commit or "unknown",
            "classes": ", ".join(made.classes),
            "data": made.data,
            **{name: _plain(value) for name, value in portable(folder.about["identity"]["training"]).items()},
        },
        figures=figures,
    )


def score_chart(rows: Sequence[Mapping[str, float]]) -> Chart | None:
    """Scores on the validation videos over steps; None where there are none."""
    names = list(dict.fromkeys(name for row in rows for name in row if name != "step"))[: len(KINDS)]
    if not names:
        return None
    at = np.array([row["step"] for row in rows], np.float64)
    drawn = [
        Curve(name, at, np.array([row.get(name, np.nan) for row in rows]), kind)
        for name, kind in zip(names, KINDS, strict=False)
    ]
    title = "Scores on the validation videos"
    return Chart(title, lines(drawn, title, "step"), [(curve.kind, curve.name) for curve in drawn])


def measure_charts(steps: Mapping[str, Floats]) -> list[Chart]:
    """All that is known of steps beside their losses."""
    share = {"step": steps["step"], WAITED: steps[WAITED] / np.maximum(steps[SECONDS], 1e-9)}
    memory = {"step": steps["step"], MEMORY: steps[MEMORY] / 1000}
    return [
        smooth(steps, LEARNING_RATE, "Learning rate"),
        smooth(steps, GRADIENT, "Norm of the gradient, before it is cut"),
        smooth(steps, SECONDS, "Seconds a step"),
        smooth(share, WAITED, "Share of a step that data is waited for"),
        smooth(memory, MEMORY, "Memory, the most so far, in GB"),
    ]


def smooth(steps: Mapping[str, Floats], name: str, title: str, kind: str = "first") -> Chart:
    """A column over steps: the means of neighbouring steps, and the area that most of those steps are in."""
    groups = np.array_split(np.arange(len(steps["step"])), min(POINTS, len(steps["step"])))
    at, values = ([steps[column][group] for group in groups] for column in ("step", name))
    ends, means = np.array([part[-1] for part in at]), np.array([part.mean() for part in values])
    low, high = (np.array([np.percentile(part, percent) for part in values]) for percent in SPREAD)
    return Chart(title, lines([Curve(title, ends, means, kind)], title, "step", [Band(ends, low, high, kind)]))


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={item}" for key, item in value.items()) or "–"
    return "–" if value in (None, "", []) else str(value)
