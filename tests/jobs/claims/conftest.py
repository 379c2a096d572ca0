"""A papers' benchmark that takes seconds: three systems on two short videos, with the weights of two seeds."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from jobs import benchmark_papers
from jobs.claims import judging, results
from jobs.claims.claim import Claim
from jobs.claims.system import System
from jobs.papers import weights as known_weights
from models.parts import weights as model_weights
from pipeline.recipe import Recipe

WEIGHTS = "smot-synthetic-v1"
MODEL: dict[str, Any] = {"detector": "small", "weights": WEIGHTS}


def recipe(linker: str, linker_settings: dict[str, Any] | None = None, **settings: Any) -> Recipe:
    """SMOT on two videos, 12 frames of each, in which something is in a burst."""
    return Recipe(
        catalog="synthetic",
        catalog_settings={"num_videos": 2},
        frames="17:29",
        model="smot",
        model_settings={**MODEL, **settings},
        linker=linker,
        linker_settings=linker_settings or {},
    )


SYSTEMS = {
    system.name: system
    for system in (
        System("plain", recipe("keep")),
        System("linked", recipe("tracklets"), {"linker.min_start_score": (0.99, 0.0)}),
        System("strict", recipe("keep", sigma_det=0.97)),
    )
}
CLAIMS = [
    Claim("smot", "recall", "finds more", "plain", "strict", "recall", source="Table 0"),
    Claim("smot", "turned", "finds no more", "strict", "plain", "recall"),
    Claim("smot", "same", "what links changes no box", "linked", "plain", "recall", near=True, margin=0.5),
    Claim("smot", "time", "less than a third", "plain", "strict", "ms", factor=1 / 3),
    Claim("smot", "clean", "more in bursts", "plain", "strict", "recall", subset="burst", beyond="clean"),
]


@dataclass(frozen=True)
class Bench:
    """The benchmark of SYSTEMS and CLAIMS. out: a folder for it; shipped: that of the weights, of seeds 0 and 1."""

    out: Path
    shipped: Path
    systems: Mapping[str, System] = field(default_factory=lambda: SYSTEMS)

    def run(self, **options: Any) -> int:
        """`trackloom benchmark papers`, locally, of two systems with seed 0 unless something else is said."""
        defaults = {"seeds": "0", "names": "plain,strict", "local": True}
        return benchmark_papers.papers(str(self.out), **{**defaults, **options})

    def change(self, name: str) -> None:
        """Makes other weights of some."""
        path = self.shipped / f"{name}.safetensors"
        path.write_bytes(changed(path, 2))


def changed(path: Path, seed: int) -> bytes:
    """The content of a weight file with its classes' biases moved a little."""
    tensors = load_file(path)
    name = min(name for name in tensors if name.endswith("bias") and "class" in name)
    generator = torch.Generator().manual_seed(seed)
    tensors[name] = tensors[name] + 0.05 * torch.randn(tensors[name].shape, generator=generator).to(tensors[name].dtype)
    with safe_open(path, "pt") as stored:
        metadata = stored.metadata()
    other = path.with_name("changed.safetensors")
    save_file(tensors, other, metadata)
    content = other.read_bytes()
    other.unlink()
    return content


def made(folder: Path, patch: pytest.MonkeyPatch) -> Bench:
    """The benchmark in a folder, as long as the patch lasts the only one that there is."""
    shipped = folder / "shipped"
    shipped.mkdir()
    path = shipped / f"{WEIGHTS}.safetensors"
    path.write_bytes((known_weights.SHIPPED / path.name).read_bytes())
    path.with_name(f"{WEIGHTS}-seed-1.safetensors").write_bytes(changed(path, 1))
    for module in (known_weights, model_weights):
        patch.setattr(module, "SHIPPED", shipped)
    patch.setattr(judging, "ROUNDS", 200)
    patch.setattr(results, "KEPT", folder / "kept")
    patch.setattr(benchmark_papers, "systems", lambda: SYSTEMS)
    patch.setattr(benchmark_papers, "claims", lambda: CLAIMS)
    return Bench(folder / "out", shipped)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The benchmark, with nothing done yet."""
    return made(tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def finished_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All systems with both seeds, settings chosen."""
    folder = tmp_path_factory.mktemp("papers")
    with pytest.MonkeyPatch.context() as patch:
        assert made(folder, patch).run(names=None, seeds="0,1", choose=True) == 0
    return folder


@pytest.fixture
def finished(finished_once: Path, bench: Bench) -> Bench:
    """The same, in a folder of its own."""
    shutil.copytree(finished_once / "out", bench.out)
    shutil.copytree(finished_once / "shipped", bench.shipped, dirs_exist_ok=True)
    return bench
