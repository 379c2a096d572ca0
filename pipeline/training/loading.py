"""Batches of a training, one after the other from any step on, loaded ahead by processes beside the network's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.training.sampling import Sampler
from pipeline.training.settings import Training
from pipeline.training.turning import Targets, turned


class Frames(Protocol):
    """Labelled frames, by number."""

    @property
    def video(self) -> NDArray[np.int64]:
        """Which video each is of, int (N,); those of one stand together, in order of time."""
        ...

    def clip(self, indices: Sequence[int]) -> tuple[Tensor, Targets]:
        """The frames of these numbers, of one video: uint8 (T, 3, H, W), and their targets."""
        ...


@dataclass(frozen=True)
class Batch:
    """This worker's share of a batch: clips uint8 (T, 3, H, W), all of one size, and targets for each frame of each."""

    clips: list[Tensor]
    targets: list[Targets]


class Batches(Dataset[Batch]):
    """A worker's share of every batch, by the batch's number.

    sources: labelled frames of the videos and, where the training has any, of the stills. rank, world: which of how
    many workers this is; each takes as many clips, and neighbours in the batch go together.
    """

    def __init__(self, training: Training, sources: Sequence[Frames], rank: int = 0, world: int = 1) -> None:
        self.training, self.sources = training, sources
        self.sampler = Sampler(training, [source.video for source in sources])
        share = training.batch_size // world
        self.mine = slice(rank * share, (rank + 1) * share)

    def __getitem__(self, number: int) -> Batch:
        draws = self.sampler.batch(number)[self.mine]
        pairs = [turned(*self.sources[draw.source].clip(draw.frames), draw) for draw in draws]
        return Batch([clip for clip, _ in pairs], [targets for _, targets in pairs])

    def since(self, first: int, pin: bool = False) -> Iterator[Batch]:
        """Batches from number `first` to the last of the training. pin: in memory that a GPU reads by itself."""
        loader = DataLoader(
            self,
            batch_size=None,  # an item is a batch already
            sampler=range(first, self.training.steps),
            num_workers=self.training.loaders,
            pin_memory=pin,
        )
        return iter(loader)
