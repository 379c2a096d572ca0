"""Batches of a training, one after the other from any step on, loaded ahead by processes beside the network's.

The processes are not forks of the network's, which may hang where that one has threads of Arrow, Ray, CUDA or a remote
file system. They are forks of a server that has imported what they need and done nothing: it costs the seconds that
importing torch takes, once. A batch comes from them as one tensor in shared memory and a few arrays: each tensor there
is an open file, and targets would be hundreds.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.engine import StageError
from pipeline.training.frames import Frames, Targets
from pipeline.training.sampling import Sampler
from pipeline.training.settings import Training
from pipeline.training.turning import padded, turned

Item = TypeVar("Item")


@dataclass(frozen=True)
class Batch:
    """This worker's share of a batch: clips uint8 (T, 3, H, W), all of one size, and targets for each frame of each."""

    clips: list[Tensor]
    targets: list[Targets]


@dataclass(frozen=True)
class Packed:
    """A batch as it travels. clips: uint8 (B, T, 3, H, W); targets: as a Batch's, of arrays."""

    clips: Tensor
    targets: list[list[dict[str, NDArray[np.generic]]]]

    def pin_memory(self) -> Packed:
        """Into memory that a GPU reads by itself; torch calls it."""
        return Packed(self.clips.pin_memory(), self.targets)


class Batches:
    """A worker's share of every batch, by the batch's number.

    sources: labelled frames of the videos and, where the training has any, of the stills. rank, world: which of how
    many workers this is; each takes as many clips, neighbours in the batch, and pads them to the largest of its own.
    """

    def __init__(self, training: Training, sources: Sequence[Frames], rank: int = 0, world: int = 1) -> None:
        self.training, self.sources = training, sources
        self.sampler = Sampler(training, [source.video for source in sources])
        share = training.batch_size // world
        self.mine = slice(rank * share, (rank + 1) * share)

    def __getitem__(self, number: int) -> Batch:
        draws = self.sampler.batch(number)[self.mine]
        pairs = [turned(*self.sources[draw.source].clip(draw.frames), draw) for draw in draws]
        return Batch(padded([clip for clip, _ in pairs]), [targets for _, targets in pairs])

    def since(self, first: int, pin: bool = False) -> Iterator[Batch]:
        """Batches from number `first` to the last of the training; its processes end with the iterator.

        pin: in memory that a GPU reads by itself. Raises ValueError where a video cannot be decoded, at its batch, and
        StageError where a process that loads was killed.
        """
        loaders = self.training.loaders
        loader: DataLoader[Packed | ValueError] = DataLoader(
            _Packing(self),
            batch_size=None,  # an item is a batch already
            sampler=range(first, self.training.steps),
            num_workers=loaders,
            multiprocessing_context=_server() if loaders else None,
            worker_init_fn=_alone,
            pin_memory=pin,
            generator=torch.Generator(),  # of torch's own chance nothing is taken
        )
        for item in _told(loader):
            if isinstance(item, ValueError):
                raise item
            targets = [
                [{name: torch.from_numpy(value) for name, value in frame.items()} for frame in clip]
                for clip in item.targets
            ]
            yield Batch(list(item.clips), targets)


class _Packing(Dataset["Packed | ValueError"]):
    """Batches as they travel. An error of the user's travels too, or it would arrive as the text of a traceback."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __getitem__(self, number: int) -> Packed | ValueError:
        try:
            batch = self.batches[number]
        except ValueError as error:
            return error
        targets = [[{name: value.numpy() for name, value in frame.items()} for frame in clip] for clip in batch.targets]
        return Packed(torch.stack(batch.clips), targets)


def _told(items: Iterable[Item]) -> Iterator[Item]:
    """What a loader gives; that one of its processes died is said for a user."""
    try:
        yield from items
    except (RuntimeError, EOFError, ConnectionError) as error:  # the latter where it dies while a batch is fetched
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker (pid"):
            raise
        why = "it was killed, as where memory does not do for so many loaders"
        raise StageError(f"a process that loads frames beside the training died: {why}") from error


def _server() -> BaseContext:
    """What loaders are forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", __name__])
    return context


def _alone(_: int) -> None:
    """In a loader: one thread, as there are several loaders; and an end with the network's process, however it ends."""
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Torch looks whether the loader's parent lives: the server, which lives as long as any loader does."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
