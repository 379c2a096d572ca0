"""Batches: the same whoever loads them and wherever they begin."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.engine import StageError
from pipeline.records import Resize
from pipeline.training.frames import Frames, Targets
from pipeline.training.holding import Cached, OnDemand
from pipeline.training.labelled import labelled
from pipeline.training.loading import Batch, Batches
from pipeline.training.settings import Training

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more loaders than there are cores

CHOSEN = Training(
    steps=12, batch_size=4, frames_per_clip=2, max_gap=3, reverse=True, flip_vertical=True, permute_colours=True,
    stills={"catalog": "coco"},
)  # fmt: skip


@dataclass(frozen=True)
class Painted:
    """Two videos of 20 frames, of two sizes; a frame's pixels and its one box say which it is."""

    sizes: tuple[tuple[int, int], ...] = ((16, 24), (24, 16))
    broken: int | None = None

    @property
    def video(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(2), 20)

    def clip(self, numbers: Sequence[int]) -> tuple[torch.Tensor, Targets]:
        if self.broken in numbers:
            raise ValueError(f"video {self.broken} cannot be trained on: frame 7 could not be decoded")
        pixels = torch.stack([torch.full((3, *self.sizes[number // 20]), number) for number in numbers]).byte()
        targets = [
            {
                "boxes": torch.tensor([[1.0, 2.0, 3.0, 4.0 + number]]),
                "labels": torch.tensor([0]),
                "track_ids": torch.tensor([number]),
                "ignore": torch.tensor([False]),
            }
            for number in numbers
        ]
        return pixels, targets


def sources(**changes: Any) -> list[Frames]:
    return [Painted(**changes), Painted(((16, 16), (16, 16)))]


def plain(batch: Batch) -> list[Any]:
    """Everything of a batch, to be compared."""
    targets = [
        {name: (value.dtype, value.tolist()) for name, value in frame.items()}
        for clip in batch.targets
        for frame in clip
    ]
    return [[clip.shape for clip in batch.clips], [clip.numpy().tobytes() for clip in batch.clips], targets]


def ids(batch: Batch) -> list[tuple[int, ...]]:
    """Which frames its clips are of."""
    return [tuple(int(frame["track_ids"].item()) for frame in clip) for clip in batch.targets]


@pytest.fixture(scope="module")
def expected() -> list[list[Any]]:
    batches = Batches(CHOSEN, sources())
    return [plain(batches[number]) for number in range(CHOSEN.steps)]


@pytest.mark.parametrize(("loaders", "first"), [(0, 0), (0, 5), (1, 0), (3, 0), (3, 5)])
def test_batches_are_the_same_whoever_loads_them(loaders: int, first: int, expected: list[list[Any]]) -> None:
    batches = Batches(replace(CHOSEN, loaders=loaders), sources())
    assert [plain(batch) for batch in batches.since(first)] == expected[first:]


def test_a_batch_is_of_one_size_and_boxes_stay() -> None:
    batches = Batches(CHOSEN, sources())
    shapes = set()
    for number in range(CHOSEN.steps):
        batch = batches[number]
        shapes |= {clip.shape[1:] for clip in batch.clips}
        assert len({clip.shape for clip in batch.clips}) == 1
        assert all(len(clip) == len(targets) == 2 for clip, targets in zip(batch.clips, batch.targets, strict=True))
        for clip, targets, frames in zip(batch.clips, batch.targets, ids(batch), strict=True):
            for picture, target, frame in zip(clip, targets, frames, strict=True):
                x1, y1, x2, y2 = target["boxes"][0].tolist()
                assert (x2 - x1, y2 - y1) == (2, 2 + frame)
                assert (picture[:, 0, 0] == frame).all(), "padding is to the right and below"
    assert (3, 24, 24) in shapes, "as high as the highest, as wide as the widest"


def test_workers_share_every_batch() -> None:
    """Together they see what one alone sees, in its order."""
    alone = Batches(CHOSEN, sources())
    for world in (2, 4):
        shares = [Batches(CHOSEN, sources(), rank, world) for rank in range(world)]
        for number in range(CHOSEN.steps):
            assert [each for share in shares for each in ids(share[number])] == ids(alone[number])


def test_fewer_clips_than_a_batch_still_fill_it() -> None:
    chosen = replace(
        CHOSEN, batch_size=30, frames_per_clip=1, max_gap=1, reverse=False, frames_per_video=1, stills=None
    )
    assert [len(batch.clips) for batch in Batches(chosen, sources()[:1]).since(0)] == [30] * CHOSEN.steps


@pytest.mark.parametrize("loaders", [0, 1])
def test_what_cannot_be_decoded_is_said_as_it_is(loaders: int) -> None:
    """And not as the text of a traceback; batches before it come."""
    chosen = replace(CHOSEN, loaders=loaders, stills=None)
    whole = Batches(chosen, sources()[:1])
    at = next(number for number in range(1, 12) if any(13 in clip for clip in ids(whole[number])))
    assert not any(13 in clip for number in range(at) for clip in ids(whole[number]))
    batches = Batches(chosen, [Painted(broken=13)]).since(0)
    got: list[list[tuple[int, ...]]] = []
    with pytest.raises(ValueError, match=r"^video 13 cannot be trained on: frame 7 could not be decoded$"):
        got.extend(ids(batch) for batch in batches)
    assert len(got) == at
    del batches
    assert not running()


def running() -> list[Any]:
    """Loaders that have not ended, after some patience."""
    gc.collect()
    for _ in range(50):
        if not multiprocessing.active_children():
            break
        time.sleep(0.1)
    return multiprocessing.active_children()


@pytest.mark.parametrize("taken", [1, 12])
def test_loaders_end_with_the_iterator(taken: int) -> None:
    """When a training was stopped, or has taken its last batch and asks for no more."""
    feed: Iterator[Batch] | None = Batches(replace(CHOSEN, loaders=2), sources()).since(0)
    assert feed is not None
    for _ in range(taken):
        next(feed)
    assert len(multiprocessing.active_children()) == 2
    feed = None
    assert not running()


def test_a_loader_that_is_killed_is_told_in_a_sentence() -> None:
    feed = Batches(replace(CHOSEN, steps=50, loaders=1), sources()).since(0)
    next(feed)
    (loader,) = multiprocessing.active_children()
    loader.kill()
    with pytest.raises(StageError, match=r"^a process that loads frames beside the training died: it was killed, as"):
        list(feed)


def outlive(process: int) -> None:
    """Waits for the end of another process, up to ten seconds, and kills it; ProcessLookupError where it had ended."""
    for _ in range(100):
        os.kill(process, 0)
        time.sleep(0.1)
    os.kill(process, signal.SIGKILL)


@pytest.mark.slow
def test_loaders_end_with_a_training_that_is_killed() -> None:
    """Though the server that they are forked from lives as long as they do."""
    command = [sys.executable, __file__]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as training:
        assert training.stdout is not None
        loader = int(training.stdout.readline())
        os.kill(loader, 0)  # it is there
        training.kill()
    with pytest.raises(ProcessLookupError):
        outlive(loader)


def test_torchs_chance_is_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    list(Batches(CHOSEN, sources()).since(0))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", [Cached, OnDemand])
def test_real_frames_are_loaded_beside(kind: type[Cached] | type[OnDemand], tmp_path: Path) -> None:
    """Decoders, memory maps and truth work in a process that opened none of them."""
    material = labelled("synthetic", str(tmp_path), {"split": "train", "num_videos": 2})
    frames = kind(material, Resize(short_side=64), tmp_path)
    chosen = replace(CHOSEN, steps=3, stills=None)
    here = [plain(batch) for batch in Batches(chosen, [frames]).since(0)]
    there = [plain(batch) for batch in Batches(replace(chosen, loaders=1), [frames]).since(0)]
    assert here == there


def test_an_error_of_a_decoder_reaches_the_user(tmp_path: Path) -> None:
    """From another process, with the video's name."""
    material = labelled("synthetic", str(tmp_path), {"split": "train", "num_videos": 1})
    frames = OnDemand(material, Resize(short_side=64), tmp_path)
    Path(material.videos[0].uri).unlink()
    with pytest.raises(ValueError, match=r"^video train-0000 cannot be trained on: "):
        next(Batches(replace(CHOSEN, loaders=1, stills=None), [frames]).since(0))


if __name__ == "__main__":  # a training that is killed
    feed = Batches(replace(CHOSEN, loaders=1), sources()).since(0)
    next(feed)
    print(multiprocessing.active_children()[0].pid, flush=True)
    time.sleep(600)
