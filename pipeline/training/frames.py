"""Labelled frames by number: uint8 pixels, those that inference gives, and what is known to be in them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.training.labelled import Labelled

Targets = list[dict[str, Tensor]]  # of each frame, as `labelled.Truth.target` makes them


class Frames(Protocol):
    """Labelled frames, by number: those of a video together, in order of time. It can be pickled."""

    @property
    def video(self) -> NDArray[np.int64]:
        """Which video each is of, int (N,), rising."""
        ...

    def clip(self, numbers: Sequence[int]) -> tuple[Tensor, Targets]:
        """The frames of these numbers, of one video, in any order: uint8 (T, 3, H, W), and their targets.

        Raises ValueError where one cannot be decoded.
        """
        ...


class OfVideos(ABC):
    """Frames of videos by number, as `Frames` says. counts: how many there are of each video."""

    def __init__(self, material: Labelled, counts: Sequence[int]) -> None:
        if not sum(counts):
            raise ValueError("the videos hold no frame to train on")
        self.truth = material.truth
        self.infos = material.videos
        self.video = np.repeat(np.arange(len(counts)), counts)
        self.first = np.cumsum([0, *counts])  # (V + 1,), number of each video's first frame

    def clip(self, numbers: Sequence[int]) -> tuple[Tensor, Targets]:
        """As `Frames.clip`."""
        video = int(self.video[numbers[0]])
        info = self.infos[video]
        places = np.asarray(numbers) - self.first[video]
        rising, which = np.unique(places, return_inverse=True)
        pixels, (height, width) = self.read(video, rising.tolist())
        scale = np.array([pixels.shape[3] / width, pixels.shape[2] / height] * 2, np.float32)
        targets = [self.truth.target(video, info.start + place, scale) for place in places.tolist()]
        return torch.from_numpy(pixels[which]), targets

    @abstractmethod
    def read(self, video: int, places: list[int]) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """Frames of a video, rising, counted from its first: uint8 (T, 3, H, W), and their size before resizing."""
