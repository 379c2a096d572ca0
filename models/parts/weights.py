"""Weights by published name, path or URL: read without running code, and fitted to a network key by key."""

from __future__ import annotations

import difflib
import hashlib
import http.client
import io
import json
import pickle
import re
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import fsspec
import safetensors.torch
import torch
import torchvision
from safetensors import SafetensorError
from torch import Tensor, nn

SHIPPED = Path(__file__).resolve().parent.parent / "weights"  # what this project trained itself
PATIENCE = 60  # seconds that a server may be silent
COUNTERS = ".num_batches_tracked"  # batch norm's count of training steps: some files have it, no result needs it


@dataclass(frozen=True)
class StoredWeights:
    """Tensors by name, what the file says of itself (safetensors only), and the SHA-256 of its bytes."""

    source: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    digest: str

    def without(self, *beginnings: str) -> StoredWeights:
        """All but the tensors whose names begin so: those of parts that are not in use."""
        kept = {name: tensor for name, tensor in self.tensors.items() if not name.startswith(beginnings)}
        return replace(self, tensors=kept)


@dataclass(frozen=True)
class Report:
    """What was loaded: where it came from, its digest, how many tensors, and the extras that it holds nothing of.

    resize: how large the frames were that they were trained on, as keywords of `records.Resize`; None: it is not said.
    """

    source: str
    digest: str
    num_tensors: int
    missing: tuple[str, ...] = ()
    resize: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Begun(Report):
    """What a training begins with: the names of the tensors that were loaded, and of those that begin anew."""

    loaded: tuple[str, ...] = ()
    anew: tuple[str, ...] = ()


def load_weights(
    network: nn.Module,
    weights: str | StoredWeights,
    published: Mapping[str, str] | None = None,
    extras: Mapping[str, nn.Module] = MappingProxyType({}),
) -> Report:
    """Fills the network with the weights of a published name, path or URL, or with some that were read before.

    Every tensor of the network must be there in its shape, and nothing else but tensors of `extras`: parts beside the
    network, whose tensors are called `<name of the extra>.<their own name>`. An extra that the file holds nothing of
    stays as it is and is reported; one that is there must be there whole. Raises FileNotFoundError where there is no
    such file, ValueError where it cannot be read without running code, is damaged, or is of another network; nothing is
    filled then.
    """
    stored = read_weights(weights, published) if isinstance(weights, str) else weights
    missing = tuple(name for name in extras if not _any_of(name, stored.tensors))
    present = {name: extra for name, extra in extras.items() if name not in missing}
    wanted = _named_tensors(network, present)
    given, resize = _given(stored, wanted), _resize(stored)
    for names, problem in (
        (wanted.keys() - given.keys(), "lack {} of the network's tensors"),
        (given.keys() - wanted.keys(), "hold {} that the network does not have"),
    ):
        if names:
            what = repr(min(names)) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            raise ValueError(f"weights {stored.source} {problem.format(what)}; they belong to another network")
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"weights {stored.source} hold {name!r} of shape {tuple(tensor.shape)}, the network's is "
                f"{tuple(wanted[name].shape)}; the number of classes or the network differs"
            )
    network.load_state_dict({name: given[name] for name in _tensors(network)}, strict=False)
    for part, extra in present.items():
        extra.load_state_dict({name: given[f"{part}.{name}"] for name in _tensors(extra)}, strict=False)
    missing = tuple(name for name in missing if _tensors(extras[name]))
    return Report(stored.source, stored.digest, len(given), missing, resize)


def begin_with(
    network: nn.Module, weights: str | StoredWeights, extras: Mapping[str, nn.Module] = MappingProxyType({})
) -> Begun:
    """Fills what it can of a network to be trained with the weights of one that knows other classes or lacks parts.

    A tensor begins anew, which is as the network was built, where the file has none of its name, as of a tracker that a
    detector has not, or one of another number of rows, as the outputs of other classes are. A layer of another width is
    not taken for that, for then the next one has other inputs. What the network has no place for is passed over. Rows
    are never moved: each head orders classes, anchors and the background in its own way, and what tells classes apart
    lies mostly before it; where as many classes have other names, they begin as each other.

    weights: as of `read_weights`, or some that were read before. Raises FileNotFoundError where there is no such file,
    ValueError where it cannot be read, a tensor of the name has another shape, or less than half of the network is
    known by name: of its numbers, since of names batch norms, which hold next to nothing, have the most. Nothing is
    filled then.
    """
    stored = read_weights(weights) if isinstance(weights, str) else weights
    wanted = _named_tensors(network, extras)
    given, resize = _given(stored, wanted), _resize(stored)
    given = {name: tensor for name, tensor in given.items() if name in wanted}
    own = _tensors(network)
    known, size = (sum(own[name].numel() for name in names) for names in (own.keys() & given.keys(), own))
    if 2 * known < size:
        raise ValueError(
            f"weights {stored.source} know {100 * known // size} % of the network by name, and less than half is too "
            "little to begin with; they belong to another network"
        )
    for name, tensor in given.items():
        shape, its_shape = tuple(tensor.shape), tuple(wanted[name].shape)
        if (len(shape), shape[1:]) != (len(its_shape), its_shape[1:]):
            raise ValueError(
                f"weights {stored.source} hold {name!r} of shape {shape}, the network's is {its_shape}; only outputs, "
                "the first of these numbers, may differ as classes do: they belong to another network"
            )
    loaded = {name: tensor for name, tensor in given.items() if tensor.shape == wanted[name].shape}
    network.load_state_dict({name: loaded[name] for name in own.keys() & loaded.keys()}, strict=False)
    for part, extra in extras.items():
        theirs = {name: loaded[key] for name in _tensors(extra) if (key := f"{part}.{name}") in loaded}
        extra.load_state_dict(theirs, strict=False)
    return Begun(
        stored.source,
        stored.digest,
        len(loaded),
        tuple(part for part, extra in extras.items() if _tensors(extra) and not _any_of(part, loaded)),
        resize,
        loaded=tuple(sorted(loaded)),
        anew=tuple(sorted(wanted.keys() - loaded.keys())),
    )


def read_weights(source: str, published: Mapping[str, str] | None = None) -> StoredWeights:
    """Reads safetensors, or a state dict that torch saved (also under the keys `model` or `state_dict`).

    source: a key of `published` (name -> URL, kept in torch's hub folder once fetched), torchvision's full name of any
    of its weights, such as FasterRCNN_ResNet50_FPN_Weights.COCO_V1, the name of a file that is shipped in
    models/weights, a path, or any fsspec URL.
    """
    published = {**(published or {}), **_torchvisions(source)}
    shipped = {path.stem: path for path in sorted(SHIPPED.glob("*.safetensors"))}
    location = str(_fetch(source, published[source]) if source in published else shipped.get(source, source))
    try:
        # http by the standard library: fsspec's needs one more package for it
        on_web = location.startswith(("http://", "https://"))
        with urllib.request.urlopen(location, timeout=PATIENCE) if on_web else fsspec.open(location, "rb") as file:
            content = file.read()
    except (FileNotFoundError, IsADirectoryError):
        names = [*published, *shipped]
        near = difflib.get_close_matches(source, names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise FileNotFoundError(
            f"weights {source!r} are neither a file nor a known name{hint}; names: {', '.join(names) or 'none'}"
        ) from None
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise FileNotFoundError(f"weights {source!r} could not be fetched: {error}") from None
    except (ImportError, ValueError) as error:  # a protocol that fsspec does not know, or whose package is missing
        raise ValueError(f"weights {source!r} cannot be opened: {error}") from None
    tensors, metadata = _parse(content, source)
    return StoredWeights(source, tensors, metadata, hashlib.sha256(content).hexdigest())


def weights_bytes(
    network: nn.Module,
    metadata: Mapping[str, str],
    dtype: torch.dtype,
    extras: Mapping[str, nn.Module] = MappingProxyType({}),
) -> bytes:
    """The network, and extras under their names, as the content of a safetensors file.

    Floats are written as `dtype`; batch norm's counters are left out.
    """
    tensors = {
        name: tensor.detach().cpu().to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in _named_tensors(network, extras).items()
    }
    return bytes(safetensors.torch.save(tensors, dict(metadata)))


def write_weights(
    path: Path,
    network: nn.Module,
    metadata: Mapping[str, str],
    dtype: torch.dtype,
    extras: Mapping[str, nn.Module] = MappingProxyType({}),
) -> None:
    """Writes what `weights_bytes` gives to a file; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(weights_bytes(network, metadata, dtype, extras))
    partial.replace(path)


def class_names(given: tuple[str, ...], stored: StoredWeights | None, *, needed: bool = True) -> tuple[str, ...]:
    """What the labels are called: those names that the weights say or, where they say none, those given.

    stored: None for random weights. Raises ValueError where the names given are not those that the weights say, in
    their order: labels would pass for others. So it does where nobody says any, unless none are needed, as by networks
    whose labels have names of their own: then there are none.
    """
    said = tuple(json.loads(stored.metadata.get("classes", "[]")) if stored else ())
    if stored and said and given not in ((), said):
        raise ValueError(
            f"classes are {', '.join(given)}, and those of weights {stored.source}, in their order, {', '.join(said)}; "
            "leave the setting classes out, or train for others beginning with these weights"
        )
    names = said or given
    if needed and not names:
        raise ValueError(
            f"weights {stored.source if stored else 'random'!r} do not say what their classes are called; "
            "give the names, in order, with the setting classes"
        )
    return names


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in module.state_dict().items() if not name.endswith(COUNTERS)}


def _named_tensors(network: nn.Module, extras: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """All tensors by the names that they have in a file."""
    tensors = _tensors(network)
    for name, extra in extras.items():
        assert not any(key.startswith(f"{name}.") for key in tensors), f"the network has a part {name} of its own"
        tensors |= {f"{name}.{key}": tensor for key, tensor in _tensors(extra).items()}
    return tensors


def _resize(stored: StoredWeights) -> Mapping[str, Any] | None:
    """What a file says under "resize", JSON such as {"short_side": 256}; ValueError where that is no size."""
    said = stored.metadata.get("resize")
    if said is None:
        return None
    wrong = f"weights {stored.source} say resize {said}; it must be JSON of size [height, width] or sides in pixels"
    try:
        found = json.loads(said)
    except ValueError:
        raise ValueError(wrong) from None
    kinds = {"size": 2, "short_side": 1, "long_side": 1}  # how many numbers each has
    if not isinstance(found, dict) or not found.keys() <= kinds.keys() or {"size"} < found.keys():
        raise ValueError(wrong)
    for name, value in found.items():
        sides = value if isinstance(value, list) else [value]
        if len(sides) != kinds[name] or not all(type(side) is int and side > 0 for side in sides):
            raise ValueError(wrong)
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def _given(stored: StoredWeights, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The stored tensors by the names that the network has for them today."""
    return {
        name if name in wanted else _name_today(name): tensor
        for name, tensor in stored.tensors.items()
        if not name.endswith(COUNTERS)
    }


def _any_of(part: str, names: Iterable[str]) -> bool:
    """Whether one of the names in a file is of this extra."""
    return any(name.startswith(f"{part}.") for name in names)


def _name_today(name: str) -> str:
    """What torchvision calls a tensor today that the COCO weights published before its version 0.13 call `name`."""
    name = re.sub(r"\b(rpn\.head\.conv)\.(weight|bias)$", r"\1.0.0.\2", name)
    name = re.sub(r"\b(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2", name)
    old = re.search(r"^(head\.\w+_head\.conv)\.(\d+)\.(weight|bias)$", name)  # RetinaNet's, with its ReLUs between
    return f"{old[1]}.{int(old[2]) // 2}.0.{old[3]}" if old else name


def _torchvisions(name: str) -> dict[str, str]:
    """Torchvision's full name of weights, and their URL; nothing where it has none of that name."""
    if "_Weights." not in name:
        return {}
    try:
        return {name: torchvision.models.get_weight(name).url}
    except (ValueError, KeyError):  # no such network, and none of that name for it
        return {}


def _fetch(name: str, url: str) -> Path:
    """The file that a published name stands for, downloaded once; its hash is checked where its name has one."""
    file = url.rpartition("/")[2]
    digest = re.search(r"-([0-9a-f]{8,})\.", file)
    path = Path(torch.hub.get_dir()) / "checkpoints" / (file if digest else f"{name}-{file}")  # many are "model.*"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path), digest and digest[1], progress=False)
        except OSError as error:
            raise FileNotFoundError(f"weights {name!r} could not be fetched from {url}: {error}") from None
        except RuntimeError:  # what torch raises for a wrong hash
            raise ValueError(
                f"weights {name!r} from {url} arrived damaged: their hash is not {digest and digest[1]}"
            ) from None
    return path


def _parse(content: bytes, source: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    if content[8:9] == b"{":  # a safetensors file: the header's length in 8 bytes, then the header as JSON
        try:
            tensors = safetensors.torch.load(content)
        except SafetensorError as error:
            raise ValueError(f"weights {source} are a damaged safetensors file: {error}") from None
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return tensors, header.get("__metadata__", {})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that are refused below
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "global" in str(error).lower():
            raise ValueError(
                f"weights {source} hold more than tensors: reading them would run code, so they are refused; "
                "save the state dict alone"
            ) from None
        raise ValueError(f"weights {source} are neither safetensors nor a file that torch saved, or damaged") from None
    except (RuntimeError, EOFError, KeyError, zipfile.BadZipFile):
        raise ValueError(f"weights {source} are neither safetensors nor a file that torch saved, or damaged") from None
    for key in ("model", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ValueError(f"weights {source} hold no state dict, which maps names to tensors")
    return dict(loaded), {}
