"""Flow-guided feature aggregation: the features of a frame, made firmer by those of the frames before it.

"Flow-Guided Feature Aggregation for Video Object Detection" (Zhu et al., 2017), with which tracklet-conditioned
detection has its strongest row (its Table 4). Features of other frames are warped to where the frame has the same
(equation 1) and averaged (equation 2), cell by cell, with weights by how like the frame's own they are in the eyes of a
small embedding network (equation 3).

What differs: the paper averages over frames before and after; a tracker that gives its rows at once has only those
before. What a frame does not show, since it lies outside of it, the paper's warping makes 0, which is averaged in; here
the reference's own stands for it, or the features of whatever comes into view would fade. A frame's embeddings are
computed once and warped along with its features, where the paper embeds the warped features once more for each
reference. The flow is not trained along: `Flow` estimates without gradients.

Legend: T frames, C channels, E embedding, h x w cells of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.parts.flow import Flow, aggregate, warp
from models.parts.two_stage import Features


class Embedding(nn.Sequential):
    """What features (T, C, h, w) are compared by: (T, E, h, w). widths: of its three convolutions, the last is E."""

    def __init__(self, channels: int, widths: tuple[int, int, int]) -> None:
        super().__init__(
            nn.Conv2d(channels, widths[0], 1),
            nn.ReLU(),
            nn.Conv2d(widths[0], widths[1], 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(widths[1], widths[2], 1),
        )


@dataclass(frozen=True)
class Seen:
    """Frames of a clip in order, which is all that is remembered: uint8 (T, 3, H, W), and for each level their features
    (T, C, h, w) and embeddings (T, E, h, w).
    """

    frames: Tensor
    features: Features
    embeddings: Features

    def followed_by(self, later: Seen) -> Seen:
        """These frames and then those, on the device of those."""
        device = later.frames.device
        pairs = zip((*self.features, *self.embeddings), (*later.features, *later.embeddings), strict=True)
        levels = tuple(torch.cat([before.to(device), after]) for before, after in pairs)
        count = len(self.features)
        return Seen(torch.cat([self.frames.to(device), later.frames]), levels[:count], levels[count:])

    def last(self, count: int) -> Seen:
        """The last `count` frames, on the CPU, free of graphs and with no storage but their own."""

        def kept(tensor: Tensor) -> Tensor:
            return tensor.detach()[max(0, len(tensor) - count) :].cpu().clone()

        return Seen(kept(self.frames), tuple(map(kept, self.features)), tuple(map(kept, self.embeddings)))


class Aggregation(nn.Module):
    """Features of the frames of a clip in, aggregated features of the same frames out.

    flow: from a frame to one before it. channels, strides: C and pixels a cell of each level of the features; levels of
    as many channels share an embedding network, as those of a pyramid share their heads. frames_before: how many
    frames before a frame are averaged with it, fewer at a clip's start; with 0 features come out as they went in.
    widths: of the embedding network's convolutions, the paper's by default.

    `embedding` holds all that is learned, and is what belongs in a weight file; the flow has weights of its own. It
    learns from the detector's losses on aggregated features, in clips of two or more frames, of which all but the first
    are aggregated. It need not see as many frames as later: the paper trains with two others and tests with twenty.

    Raises ValueError for values that make no sense.
    """

    def __init__(
        self,
        flow: Flow,
        channels: Sequence[int],
        strides: Sequence[int],
        frames_before: int,
        widths: tuple[int, int, int] = (512, 512, 2048),
    ) -> None:
        super().__init__()
        assert len(channels) == len(strides) > 0
        if frames_before < 0:
            raise ValueError(f"aggregation.frames_before is {frames_before}; it must not be negative")
        if min(widths) < 1:
            raise ValueError(f"aggregation.widths is {widths}; each must be at least 1")
        self.flow = flow
        self.channels = tuple(channels)
        self.strides = tuple(strides)
        self.frames_before = frames_before
        self.embedding = nn.ModuleDict({str(of_level): Embedding(of_level, widths) for of_level in sorted({*channels})})

    def forward(self, features: Features, frames: Tensor, memory: object | None) -> tuple[Features, object]:
        """The features of the next T frames of one clip, aggregated, and what to remember of the clip.

        features: (T, C, h, w) for each level, of the frames uint8 (T, 3, H, W), T at least 1; memory: what the clip's
        last call gave back, None at its start. The memory is picklable, on the CPU and without gradients. How a clip is
        cut into calls changes nothing but how far gradients go back.
        """
        assert len(frames) > 0
        if self.frames_before == 0:
            return features, None
        embeddings = tuple(
            self.embedding[str(channels)](level) for channels, level in zip(self.channels, features, strict=True)
        )
        seen = Seen(frames, features, embeddings)
        if memory is not None:
            assert isinstance(memory, Seen)
            seen = memory.followed_by(seen)
        count = len(seen.frames)
        aggregated = [self.aggregated(seen, now) for now in range(count - len(frames), count)]
        return tuple(torch.stack(level) for level in zip(*aggregated, strict=True)), seen.last(self.frames_before)

    def aggregated(self, seen: Seen, now: int) -> list[Tensor]:
        """The features (C, h, w) of frame `now`, averaged with those of the frames before it, for each level."""
        first = max(0, now - self.frames_before)
        if first == now:
            return [level[now] for level in seen.features]
        flows = torch.stack([self.flow(seen.frames[now], frame) for frame in seen.frames[first:now]])  # (T, 2, H, W)
        levels = []
        for features, embeddings, stride in zip(seen.features, seen.embeddings, self.strides, strict=True):
            both = torch.cat([features[first : now + 1], embeddings[first : now + 1]], dim=1)  # (T + 1, C + E, h, w)
            earlier, reference = both[:-1], both[-1:]
            shown = warp(torch.ones_like(earlier[:, :1]), flows, stride)  # (T, 1, h, w), 0 where it lies outside
            warped = warp(earlier, flows, stride) + (1 - shown) * reference  # equation 1
            of_frames, compared = torch.cat([warped, reference]).tensor_split([features.shape[1]], dim=1)
            levels.append(aggregate(of_frames, compared, reference=-1))  # equations 2, 3
        return levels
