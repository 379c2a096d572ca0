"""What the tests of whole jobs share: a network of seeded random weights, a few short videos, one Ray session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
import torch

from jobs.run import run
from models.parts.small_detector import SmallDetector
from models.parts.weights import write_weights
from pipeline.tables import read_run


def drawn(path: Path, num_frames: int, seed: int) -> None:
    """An H.264 file of drifting blobs, 96 x 64."""
    random = np.random.default_rng(seed)
    start, step = random.uniform(0, 60, (3, 2)), random.uniform(-2, 2, (3, 2))
    grey = random.integers(40, 255, 3)
    y, x = np.mgrid[:64, :96]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for t in range(num_frames):
            frame = np.full((64, 96, 3), 90, np.uint8)
            for (left, top), value in zip(start + t * step, grey, strict=True):
                frame[(abs(x - left - 8) < 9) & (abs(y - top - 8) < 9)] = value
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="session")
def film() -> Callable[[Path, int, int], None]:
    """Writes an H.264 file of so many frames, by seed."""
    return drawn


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of 30, 21 and 12 frames, one of them in a folder below."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "deeper").mkdir()
    for seed, (name, count) in enumerate({"a.mp4": 30, "b.mp4": 21, "deeper/c.mp4": 12}.items()):
        drawn(folder / name, count, seed)
    return folder


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The small detector, untrained but always the same; it sees boxes everywhere."""
    torch.manual_seed(1)
    network = SmallDetector(3)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "objectness" in name:
                parameter.normal_(0, 0.3) if parameter.ndim > 1 else parameter.zero_()
    path = tmp_path_factory.mktemp("weights") / "untrained.safetensors"
    write_weights(path, network, {"classes": '["one", "two", "three"]'}, torch.float32)
    return str(path)


@pytest.fixture(scope="session")
def settings(weights: str) -> list[str]:
    """A small detector that starts tracks readily and gives out few boxes."""
    return [
        f"model.weights={weights}",
        "model.sigma_det=0.1",
        "model.sigma_track=0.02",
        "model.max_detections=12",
        "linker.min_start_score=0.0",
    ]


Runs = Callable[..., int]


@pytest.fixture(scope="session")
def start(settings: list[str]) -> Runs:
    """`run` with that detector, locally and without a report unless something else is said."""

    def begin(source: Path | str, output: Path | str, **options: object) -> int:
        given = [*settings, *options.pop("settings", [])]  # type: ignore[misc]
        defaults = {"local": True, "report": False, "linker": "tracklets"}
        return run([str(source)], output=str(output), settings=given, **{**defaults, **options})  # type: ignore[arg-type]

    return begin


@pytest.fixture(scope="session")
def ray_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Ray session of two CPUs for all tests."""
    import ray

    from pipeline.engine import OnRay

    OnRay("local").start()
    yield
    ray.shutdown()


def plain_table(output: Path, name: str) -> pa.Table:
    """A run's table without what may differ: the seconds it took, and how its files share out the names."""
    whole = read_run(str(output)).table(name)
    if name == "videos":
        whole = whole.drop(["decode_s", "detect_s", "link_s"])
    plain = [
        pa.field(field.name, pa.string() if pa.types.is_dictionary(field.type) else field.type)
        for field in whole.schema
    ]
    return whole.cast(pa.schema(plain)).combine_chunks()


@pytest.fixture
def table() -> Callable[[Path, str], pa.Table]:
    """Reads a run's table; see `plain_table`."""
    return plain_table


@pytest.fixture
def same_rows() -> Callable[[Path, Path], None]:
    """Asserts that two runs hold the same."""

    def compared(one: Path, other: Path) -> None:
        for name in ("detections", "tracks", "videos"):
            assert plain_table(one, name).equals(plain_table(other, name)), name

    return compared


@pytest.fixture(scope="session")
def undisturbed(videos: Path, start: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of 8 frames, in a plain loop, without a stop."""
    output = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert start(videos, output, clip_frames=8) == 0
    return output
