"""What made some weights, as they say it of themselves and as a card beside them says it to a reader."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.config import digest, plain
from pipeline.records import Resize
from pipeline.tables import commit, versions
from pipeline.training.settings import Training
from pipeline.training.work import Work

LOCAL = ("/", "~/", "file://")


@dataclass(frozen=True)
class Made:
    """What made weights. data: a digest of the videos and stills; half: whether they are stored as 16-bit floats.

    resize: how large the frames were, where that is not what the model wants by itself.
    command, commit, versions: of the process that trains, or went on with it.
    """

    training: Training
    classes: tuple[str, ...]
    data: str
    half: bool = False
    resize: Resize | None = None
    command: str = ""
    commit: str | None = None
    versions: Mapping[str, str] | None = None

    def metadata(self, step: int) -> dict[str, str]:
        """What a weight file says of itself, after so many steps: text, or JSON; the same on every machine."""
        facts = {
            "model": self.training.model,
            "classes": list(self.classes),
            "training": plain(self.training),
            "step": step,
            "command": self.command,
            "data": self.data,
            "commit": self.commit,
            "versions": dict(self.versions or {}),
            **({"resize": {side: n for side, n in plain(self.resize).items() if n}} if self.resize else {}),
        }
        facts = portable(facts)
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}


def made(work: Work, half: bool, resize: Resize | None) -> Made:
    """What this process makes."""
    data = [source.digest for source in work.material.sources]
    return Made(
        training=work.training,
        classes=work.material.videos.classes,
        data=data[0] if len(data) == 1 else digest(data),
        half=half,
        resize=resize,
        command=command(),
        commit=commit(),
        versions=versions(),
    )


def command() -> str:
    """The command line that this process was started with, however it was, as it could be given on any machine."""
    words = sys.argv[1 + (sys.argv[1:2] == ["train"]) :]
    return shlex.join(["trackloom", "train", *portable(words)])


def portable(value: Any) -> Any:
    """Plain values, of whose paths on this machine only the last name is left: the others mean nothing elsewhere."""
    if isinstance(value, Mapping):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item) for item in value]
    if not isinstance(value, str):
        return value
    parts = re.split(r"([=,\n])", value)  # NAME=PATH, and several paths
    return "".join(part.rstrip("/").rpartition("/")[2] if part.startswith(LOCAL) else part for part in parts)


def steps_of(chosen: Training) -> str:
    """How long a training is, in words."""
    plural = "s" * (chosen.batch_size != 1)
    shown = f"frame{plural}" if chosen.frames_per_clip == 1 else f"clip{plural} of {chosen.frames_per_clip} frames"
    return f"{chosen.steps:,} steps of {chosen.batch_size} {shown}"


def trained_on(chosen: Training) -> str:
    """The catalogs and their settings, in words."""
    given = {**({"source": chosen.source} if chosen.source else {}), **chosen.catalog_settings}
    parts = [f"catalog {_named(chosen.catalog, given)}"]
    if chosen.frames:
        parts.append(f"frames `{chosen.frames}` of each video")
    if chosen.stills:
        stills = dict(chosen.stills)
        parts.append(f"stills of catalog {_named(stills.pop('catalog'), stills)}")
    return ", ".join(parts)


def card(name: str, made: Made, step: int, scores: Mapping[str, float], facts: Mapping[str, Any]) -> str:
    """What a reader should know of weights, as Markdown.

    name: of the file, without its suffix. step: after how many steps the weights were taken. scores: theirs on the
    validation videos. facts: losses (means of the last hundred steps before), cpu_minutes (of the whole training),
    megabytes, and begun: what a training that was gone on with says of its beginning, or "".
    """
    chosen = made.training
    taken = "" if step == chosen.steps else f", taken after step {step:,}"
    begun = f", begun with `{portable(chosen.start)}`" if chosen.start else ""
    lines = [
        f"# {name}",
        "",
        f"Weights of {_named(chosen.model, chosen.model_settings)}{begun}, trained on {trained_on(chosen)}. "
        f"Classes: {', '.join(made.classes)}.",
        "",
        f"- made by: `{made.command}` at commit {made.commit or 'unknown'}{facts['begun']}",
        f"- data: digest {made.data}",
        f"- {steps_of(chosen)}{taken}, seed {chosen.seed}, {facts['cpu_minutes']:.1f} CPU-minutes",
        f"- {16 if made.half else 32}-bit floats, {facts['megabytes']:.1f} MB",
        "- loss, mean of the hundred steps before: " + figures(facts["losses"]),
    ]
    if scores:
        given = dict(chosen.validation or {})
        which = {**({"source": chosen.source} if chosen.source else {}), **given}
        lines += [
            f"- on {_said(which) or 'the same videos'}, linker {_named(chosen.linker, chosen.linker_settings)}: "
            f"{figures(scores)}"
        ]
    return "\n".join(lines) + "\n"


def figures(values: Mapping[str, float]) -> str:
    """Names and their values with three digits."""
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items())


def _named(name: str, settings: Mapping[str, Any]) -> str:
    """A part and what is changed of its settings."""
    return f"`{name}` {_said(settings)}".rstrip()


def _said(settings: Mapping[str, Any]) -> str:
    """Settings as `name=value`s, portable; "" for none."""
    return ", ".join(f"`{name}={_text(value)}`" for name, value in portable(plain(settings)).items())


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
