"""Settings from words: converted by type, refused by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest

from pipeline.config import available, did_you_mean, digest, load, settings


@dataclass(frozen=True)
class Settings:
    count: int = 1
    share: float | None = None
    kind: Literal["max", "avg"] = "max"
    on: bool = False
    names: tuple[str, ...] = ()
    size: tuple[int, int] = (1, 2)
    level: Literal[1, 2] = 1
    by: Literal["look", "none"] | None = None


GOOD = {
    "text becomes a number": ({"count": "3", "share": "0.5"}, Settings(count=3, share=0.5)),
    "none where it may be": ({"share": "none"}, Settings()),
    "yes and no": ({"on": "yes"}, Settings(on=True)),
    "lists by commas": ({"names": "a,b,c"}, Settings(names=("a", "b", "c"))),
    "pairs": ({"size": "3,4"}, Settings(size=(3, 4))),
    "a choice": ({"kind": "avg"}, Settings(kind="avg")),
    "a choice of numbers": ({"level": "2"}, Settings(level=2)),
    "a choice that is called none": ({"by": "none"}, Settings(by="none")),
    "none of the choices": ({"by": None}, Settings()),
}
BAD = {
    "a misspelt name": ({"cuont": 1}, "has no setting 'cuont' .did you mean 'count'"),
    "not a number": ({"count": "x"}, "count is 'x'; it must be a whole number"),
    "not whole": ({"count": 1.5}, "count is 1.5; it must be a whole number"),
    "not a choice": ({"kind": "sum"}, "kind is 'sum'; it must be one of: max, avg"),
    "not a choice of numbers": ({"level": "3"}, "level is '3'; it must be one of: 1, 2"),
    "not a truth": ({"on": "maybe"}, "on is 'maybe'; it must be true or false"),
    "too many": ({"size": "1,2,3"}, "size is '1,2,3'; it must be 2 values"),
}


@pytest.mark.parametrize(("given", "expected"), GOOD.values(), ids=GOOD)
def test_settings_are_converted(given: dict[str, Any], expected: Settings) -> None:
    assert settings(Settings, given, "thing") == expected


@pytest.mark.parametrize(("given", "message"), BAD.values(), ids=BAD)
def test_settings_are_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(Settings, given, "thing")


def test_digest_is_of_the_values() -> None:
    assert digest(Settings()) == digest(Settings())
    assert digest(Settings()) != digest(Settings(count=2))
    assert digest({"a": 1, "b": (1, 2)}) == digest({"b": [1, 2], "a": 1})


@pytest.mark.parametrize("kind", ["model", "linker", "catalog"])
def test_everything_available_keeps_the_contract(kind: str) -> None:
    wanted = {
        "model": ("Settings", "GIVES", "build"),
        "linker": ("Settings", "NEEDS", "link"),
        "catalog": ("Settings", "CLASSES", "videos", "truth"),
    }[kind]
    for name in available(kind):
        module = load(kind, name)
        assert [part for part in wanted if not hasattr(module, part)] == [], f"{kind} {name} lacks"
        assert settings(module.Settings, {}, name) is not None


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"unknown linker 'trackets' \(did you mean 'tracklets'\?\); available: .*keep"
    ):
        load("linker", "trackets")


@pytest.mark.parametrize(
    ("word", "known", "said"),
    [
        ("IDF", ["idfp", "IDF1"], " (did you mean 'IDF1'?)"),
        ("hota", ["HOTA", "MOTA"], " (did you mean 'HOTA'?)"),
        ("refine", ["refine"], ""),
        ("x", ["HOTA"], ""),
    ],
)
def test_the_nearest_name_is_another_whatever_its_case(word: str, known: list[str], said: str) -> None:
    assert did_you_mean(word, known) == said


def test_what_settings_there_are_is_said_with_their_defaults() -> None:
    with pytest.raises(ValueError, match=r"linker keep has no setting 'length'.*; it has: min_length=1$"):
        settings(load("linker", "keep").Settings, {"length": 3}, "linker keep")
