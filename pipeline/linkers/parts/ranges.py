"""Settings that make no sense are refused in one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args, get_origin, get_type_hints

ANY = (-math.inf, math.inf)


def check(
    settings: object,
    within: Mapping[str, tuple[float, float]],
    above: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Raises ValueError where a linker's setting is outside its range, not finite, or none of a Literal's choices.

    within: least and most of a setting; above: the same, where the least itself is too little. None is always good.
    """
    linker = type(settings).__module__.rpartition(".")[2]
    hints = get_type_hints(type(settings))

    def refuse(name: str, allowed: str) -> None:
        none = "none or " if type(None) in get_args(hints[name]) else ""
        raise ValueError(f"linker {linker}.{name} is {getattr(settings, name)!r}; it must be {none}{allowed}")

    for name, hint in hints.items():
        if get_origin(hint) is Literal and getattr(settings, name) not in get_args(hint):
            refuse(name, f"one of: {', '.join(get_args(hint))}")
    for ranges, is_open in ((within, False), (above or {}, True)):
        for name, (least, most) in ranges.items():
            value = getattr(settings, name)
            if value is None:
                continue
            if math.isinf(value) or (math.isnan(value) and (least, most) == ANY):
                refuse(name, "finite")
            if not least <= value <= most or (is_open and value == least):
                low = f"above {least:g}" if is_open else f"at least {least:g}"
                both = f"{low} and at most {most:g}" if is_open else f"from {least:g} to {most:g}"
                refuse(name, low if most == math.inf else both)
