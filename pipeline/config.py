"""Settings: frozen dataclasses with defaults, and modules found by name: the file's name is the thing's name."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import json
import pkgutil
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pipeline.records import Resize

Settings = TypeVar("Settings")

FOLDERS = {"model": "models", "linker": "pipeline.linkers", "catalog": "catalogs"}


def available(kind: str) -> list[str]:
    """Names of all models, linkers or catalogs: the modules of that folder."""
    package = importlib.import_module(FOLDERS[kind])
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.name != "parts")


def load(kind: str, name: str) -> types.ModuleType:
    """The module of a model, linker or catalog; ValueError with the nearest names where there is none."""
    names = available(kind)
    if name not in names:
        raise ValueError(f"unknown {kind} {name!r}{did_you_mean(name, names)}; available: {', '.join(names)}")
    return importlib.import_module(f"{FOLDERS[kind]}.{name}")


def resize_of(model: Any) -> Resize:
    """How large a model is to be given its frames: as its settings say or, where they do not, as its weights do.

    A model's own `resize` is what is left: of its settings, or of its architecture.
    """
    by_settings = getattr(model.settings, "input_side", None) is not None
    of_weights = None if by_settings or model.weights is None else model.weights.resize
    return Resize(**(model.resize if of_weights is None else of_weights))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' where a known word is near, else ''."""
    others = [name for name in known if name != word]
    of_lower = {name.lower(): name for name in others}
    near = difflib.get_close_matches(word, others, n=1)
    near = near or [of_lower[name] for name in difflib.get_close_matches(word.lower(), list(of_lower), n=1)]
    return f" (did you mean {near[0]!r}?)" if near else ""


def settings(cls: type[Settings], given: Mapping[str, Any], what: str) -> Settings:
    """An instance of the dataclass with these values, checked and converted by the fields' types.

    Values may be strings, as they come from a command line. Raises ValueError that names the field, what was got
    and what is allowed.
    """
    hints = typing.get_type_hints(cls)
    known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    values = {}
    for name, value in given.items():
        if name not in known:
            allowed = f"; it has: {_with_defaults(cls)}" if known else "; it has none"
            raise ValueError(f"{what} has no setting {name!r}{did_you_mean(name, known)}{allowed}")
        values[name] = _convert(value, hints[name], f"{what}.{name}")
    return cls(**values)


def _with_defaults(cls: type[object]) -> str:
    """The fields of a dataclass as name=default."""
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    return ", ".join(f"{field.name}={field.default}" if _is_plain(field.default) else field.name for field in fields)


def _is_plain(default: object) -> bool:
    return default is None or isinstance(default, bool | int | float | str)


def digest(value: object) -> str:
    """A short name for settings: equal settings, equal digest, on any machine."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()[:16]


def plain(value: object) -> Any:
    """Dataclasses, tuples and mappings as what JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return value


_KINDS = {int: "a whole number", float: "a number", str: "text"}


def _convert(value: Any, hint: Any, name: str) -> Any:
    """The value as the type that a field is annotated with, or ValueError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        by_text = {str(argument): argument for argument in arguments}  # numbers too come as text from a command line
        if str(value) not in by_text:
            raise ValueError(f"{name} is {value!r}; it must be one of: {', '.join(by_text)}")
        return by_text[str(value)]
    if origin in (typing.Union, types.UnionType):
        choices = [choice for argument in arguments for choice in typing.get_args(argument)]  # of a Literal in it
        is_word = value in choices  # "none" may be one of them, and then means that, not None
        if value is None or (str(value).lower() == "none" and type(None) in arguments and not is_word):
            return None
        return _convert(value, next(a for a in arguments if a is not type(None)), name)
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else list(value)
        inner = arguments[:1] * len(items) if arguments[1:] == (...,) else arguments
        if len(items) != len(inner):
            raise ValueError(f"{name} is {value!r}; it must be {len(inner)} values separated by commas")
        return tuple(_convert(item, kind, name) for item, kind in zip(items, inner, strict=True))
    if hint is bool:
        truths = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if str(value).lower() not in truths:
            raise ValueError(f"{name} is {value!r}; it must be true or false")
        return truths[str(value).lower()]
    try:
        converted = hint(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name} is {value!r}; it must be {_KINDS.get(hint, hint.__name__)}") from None
    if hint is int and isinstance(value, float) and value != converted:
        raise ValueError(f"{name} is {value!r}; it must be a whole number")
    return converted
