"""Weights by published name, path or URL: read without running code, and fitted to a network key by key."""

from __future__ import annotations

import difflib
import hashlib
import io
import json
import pickle
import re
import urllib.error
import urllib.request
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import fsspec
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

SHIPPED = Path(__file__).resolve().parent.parent / "weights"  # what this project trained itself
COUNTERS = ".num_batches_tracked"  # batch norm's count of training steps: some files have it, no result needs it


@dataclass(frozen=True)
class StoredWeights:
    """Tensors by name, what the file says of itself (safetensors only), and the SHA-256 of its bytes."""

    source: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    digest: str


@dataclass(frozen=True)
class Report:
    """What was loaded: where it came from, its digest, and how many tensors."""

    source: str
    digest: str
    num_tensors: int


def load_weights(
    network: nn.Module, weights: str | StoredWeights, published: Mapping[str, str] | None = None
) -> Report:
    """Fills the network with the weights of a published name, path or URL, or with some that were read before.

    Every tensor of the network must be there in its shape, and nothing else. Raises FileNotFoundError where there is
    no such file, ValueError where it cannot be read without running code, is damaged, or is of another network.
    """
    stored = read_weights(weights, published) if isinstance(weights, str) else weights
    wanted = {name: tensor for name, tensor in network.state_dict().items() if not name.endswith(COUNTERS)}
    given = {name: tensor for name, tensor in stored.tensors.items() if not name.endswith(COUNTERS)}
    for names, problem in (
        (wanted.keys() - given.keys(), "lack {} of the detector's tensors"),
        (given.keys() - wanted.keys(), "hold {} that the detector does not have"),
    ):
        if names:
            what = repr(min(names)) + (f" and {len(names) - 1} more" if len(names) > 1 else "")
            raise ValueError(f"weights {stored.source} {problem.format(what)}; they belong to another network")
    for name, tensor in given.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"weights {stored.source} hold {name!r} of shape {tuple(tensor.shape)}, the detector's is "
                f"{tuple(wanted[name].shape)}; the number of classes or the network differs"
            )
    network.load_state_dict(given, strict=False)
    return Report(stored.source, stored.digest, len(given))


def read_weights(source: str, published: Mapping[str, str] | None = None) -> StoredWeights:
    """Reads safetensors, or a state dict that torch saved (also under the keys `model` or `state_dict`).

    source: a key of `published` (name -> URL, kept in torch's hub folder once fetched), the name of a file that is
    shipped in models/weights, a path, or any fsspec URL.
    """
    published = published or {}
    shipped = {path.stem: path for path in SHIPPED.glob("*.safetensors")}
    location = str(_fetch(source, published[source]) if source in published else shipped.get(source, source))
    try:
        # http by the standard library: fsspec's needs one more package for it
        opened = urllib.request.urlopen(location) if location.startswith(("http://", "https://")) else None
        with opened or fsspec.open(location, "rb") as file:
            content = file.read()
    except (FileNotFoundError, IsADirectoryError):
        names = [*published, *shipped]
        near = difflib.get_close_matches(source, names, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise FileNotFoundError(
            f"weights {source!r} are neither a file nor a known name{hint}; names: {', '.join(names) or 'none'}"
        ) from None
    except urllib.error.URLError as error:
        raise FileNotFoundError(f"weights {source!r} could not be fetched: {error}") from None
    except (ImportError, ValueError) as error:  # a protocol that fsspec does not know, or whose package is missing
        raise ValueError(f"weights {source!r} cannot be opened: {error}") from None
    tensors, metadata = _parse(content, source)
    return StoredWeights(source, tensors, metadata, hashlib.sha256(content).hexdigest())


def write_weights(path: Path, network: nn.Module, metadata: Mapping[str, str], dtype: torch.dtype) -> None:
    """Writes the network as safetensors, floats as `dtype`, without batch norm's counters; whole or not at all."""
    tensors = {
        name: tensor.detach().cpu().to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in network.state_dict().items()
        if not name.endswith(COUNTERS)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(safetensors.torch.save(tensors, dict(metadata)))
    partial.replace(path)


def _fetch(name: str, url: str) -> Path:
    """The file that a published name stands for, downloaded once; its hash is checked where its name has one."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = re.search(r"-([0-9a-f]{8,})\.", path.name)
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
