"""Re-identification: a network that says of a box's pixels alone which object they show.

TriNet (Hermans, Beyer and Leibe, "In Defense of the Triplet Loss for Person Re-Identification", 2017): a network on the
box's crop, trained by BatchHard triplets. RetinaTrack compares itself with one (section 4.3), Tracktor++ finds lost
tracks by one, DeepSORT and SMOT's linker tell objects apart by one.

Where the paper compares embeddings as they come, these are of unit length, so that the thresholds of linkers mean the
same for every network: two lie sqrt(2 - 2 cosine) apart, from 0 to 2.

Legend: N boxes, E numbers of an embedding, crops of h x w.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, pad
from torchvision import models as torchvision_models
from torchvision.ops import roi_align

from models.parts import backbones
from models.parts.backbones import IMAGENET_MEAN, IMAGENET_STD
from models.parts.regression_tracker import freeze, jitter
from models.parts.small_detector import Residual, convolution
from models.parts.triplet import batch_hard
from models.parts.weights import Report, StoredWeights, load_weights, read_weights
from models.parts.workers import over_workers

Kind = Literal["small", "resnet50"]
KINDS: tuple[Kind, ...] = get_args(Kind)

DEFAULT_WEIGHTS: Mapping[str, str] = {"small": "tracktor-synthetic-v1"}  # of the other kind there are none
PREFIX = "reid."  # how its tensors are called beside a detector's
AT_ONCE = 128  # crops; those of a crowd, all together, would fill the memory
MOVE, SCALE = 0.05, 0.1  # in training boxes are moved by up to so many sides and made longer or shorter by such a share
# The unit sphere leaves distances no room: without a factor the soft margin would never call two objects far enough.
SHARPNESS = 8.0


class Reid(nn.Module):
    """Boxes of a frame in, embeddings of unit length out.

    kind: "small", a residual network of 0.2 million parameters on crops of 48 x 48, or "resnet50", TriNet's on crops
    of 256 x 128. embedding_size: E. trained: whether its weights are those of a trained network for
    re-identification, not random or, but for its body, of ImageNet. weights: which were loaded, None for random ones.
    """

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        architecture = ARCHITECTURES[kind]
        self.kind = kind
        self.crop = architecture.crop
        self.embedding_size = architecture.embedding_size
        self.body, self.head = architecture.build()
        self.trained = False
        self.weights: Report | None = None

    def forward(self, crops: Tensor) -> Tensor:
        """Normalised crops (N, 3, h, w) -> (N, E) of unit length, float32 though layers be of bfloat16."""
        return normalize(self.head(self.body(crops.contiguous(memory_format=torch.channels_last))).float(), dim=1)

    @torch.no_grad()
    def embed(self, frame: Tensor, boxes: Tensor) -> Tensor:
        """What the boxes of a frame show: float32 (N, E), each of unit length, on their device.

        frame: uint8 (3, H, W); boxes: (N, 4) xyxy in its pixels; see `crops`.
        """
        found = [self(crops(frame, some, self.crop)) for some in boxes.split(AT_ONCE)]
        return torch.cat(found)

    def losses(self, clips: Sequence[Tensor], targets: Sequence[Sequence[dict[str, Tensor]]]) -> dict[str, Tensor]:
        """`reid`: the triplet loss of all objects of all frames of all clips; 0 where fewer than two are known.

        clips: uint8 (T, 3, H, W); targets: for each frame of each clip boxes (M, 4), track_ids (M,), those below 0
        unknown, and optionally ignore (M,). Boxes are jittered by torch's global generator.

        Objects of different clips are different ones, since clips may be recoloured each in its own way. Two clips of
        one video as it is would make an object its own negative: where there are few videos a batch should be one
        clip; also where there are many objects in each, for all crops go through the network together. Where workers
        share a batch, each compares its own clips (see `workers`); the mean is over the triplets of all.
        """
        cut, shown = [], []
        for number, (clip, frames) in enumerate(zip(clips, targets, strict=True)):
            for frame, target in zip(clip, frames, strict=True):
                known = target["track_ids"] >= 0
                if "ignore" in target:
                    known &= ~target["ignore"]
                boxes = jitter(target["boxes"][known], 1, MOVE, SCALE, torch.default_generator)[:, 0]
                cut.append(crops(frame, boxes, self.crop))
                shown.append(pad(target["track_ids"][known][:, None], (1, 0), value=number))  # (n, 2): clip and track
        objects, ids = torch.cat(shown).unique(dim=0, return_inverse=True)
        comparable = len(objects) > 1
        num_triplets = over_workers(torch.tensor(len(ids) if comparable else 0, device=ids.device))
        if not comparable:  # nothing to compare, and too little for batch norm to measure
            nothing: Tensor = sum((weight.sum() * 0 for weight in self.parameters()), torch.zeros(()))
            return {"reid": nothing}
        return {"reid": batch_hard(SHARPNESS * self(torch.cat(cut)), ids).sum() / num_triplets}


def crops(frame: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The boxes' pixels, squashed to `size` (height, width) whatever their shape, as ImageNet's: float32 (N, 3, h, w).

    frame: uint8 (3, H, W); boxes: (N, 4) xyxy in its pixels, of any size and place. Pixels of the crop are means of
    those that they cover; what lies outside the frame is ImageNet's mean colour, 0.
    """
    mean, std = (torch.tensor(values, device=frame.device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    pixels = (frame.float() / 255 - mean) / std
    cut: Tensor = roi_align(pixels[None], [boxes.float()], size, aligned=True)
    return cut


def build(kind: Kind, weights: str = "default") -> Reid:
    """The network in eval mode, frozen.

    weights: "default", what the project ships for the kind; "random"; for resnet50 also a name of torchvision's
    ImageNet weights, which its body begins with; else a shipped name, a path or a URL of a file that holds the network
    alone or, under `reid.`, beside another.

    Raises FileNotFoundError where the weights are not, ValueError where there are none by default, or where they hold
    no such network or not the whole of it.
    """
    if kind not in ARCHITECTURES:
        raise ValueError(f"reid is {kind!r}; it must be one of: {', '.join(KINDS)}")
    if weights == "default" and kind not in DEFAULT_WEIGHTS:
        raise ValueError(
            f"reid {kind} has no weights by default, since nothing has trained it yet; "
            "give a file of them with reid_weights"
        )
    reid = Reid(kind)
    name = DEFAULT_WEIGHTS[kind] if weights == "default" else weights
    published = ARCHITECTURES[kind].published()
    if name in published:
        reid.weights = load_weights(reid.body, read_weights(name, published).without("fc."))
    elif name != "random":
        stored = read_weights(name)
        reid.weights = load_weights(reid, replace(stored, tensors=own_tensors(reid, stored)))
        reid.trained = True
    freeze(reid)
    return reid


def own_tensors(reid: Reid, stored: StoredWeights) -> dict[str, Tensor]:
    """What a file holds of the network, by the network's own names: its tensors or, beside others', those of `reid.`.

    Raises ValueError where it holds nothing of it, or a network of another kind.
    """
    beside = {key.removeprefix(PREFIX): tensor for key, tensor in stored.tensors.items() if key.startswith(PREFIX)}
    alone = {key: tensor for key, tensor in stored.tensors.items() if key in reid.state_dict()}
    if not beside and not alone:
        raise ValueError(
            f"weights {stored.source} hold no re-identification network: no tensor's name begins with {PREFIX!r}, "
            f"and none is called like those of reid {reid.kind}, such as {min(reid.state_dict())!r}"
        )
    found = beside or alone
    for other in KINDS:
        if not found.keys() <= reid.state_dict().keys() and found.keys() <= _names(other):
            raise ValueError(
                f"weights {stored.source} hold reid {other!r}, not {reid.kind!r}; "
                f"give a file of that with reid_weights, or take reid {other!r}"
            )
    return found


def _names(kind: Kind) -> set[str]:
    """How the tensors of a network of this kind are called; a file may lack some, such as counters of batches."""
    with torch.device("meta"):
        return set(Reid(kind).state_dict())


@dataclass(frozen=True)
class Architecture:
    """How body and head are built, the crop's (height, width) in pixels, E, and published weights of the body."""

    build: Callable[[], tuple[nn.Module, nn.Module]]
    crop: tuple[int, int]
    embedding_size: int
    published: Callable[[], Mapping[str, str]]


def small() -> tuple[nn.Module, nn.Module]:
    """Ours: a residual network of stride 8."""
    body = nn.Sequential(
        convolution(3, 16, 2),  # (N, 16, 24, 24)
        Residual(16, 32, 2),  # (N, 32, 12, 12)
        Residual(32, 64, 2),  # (N, 64, 6, 6)
        Residual(64, 96, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    # Without the last batch norm all objects begin, and for long remain, within some degrees of each other.
    return body, nn.Sequential(nn.Linear(96, 64, bias=False), nn.BatchNorm1d(64))


def trinet() -> tuple[nn.Module, nn.Module]:
    """ResNet-50 whose classification layer two others take the place of (Hermans et al., section 4.2)."""
    body = torchvision_models.resnet50()
    body.fc = nn.Identity()
    return body, nn.Sequential(nn.Linear(2048, 1024), nn.BatchNorm1d(1024), nn.ReLU(), nn.Linear(1024, 128))


ARCHITECTURES = {
    "small": Architecture(small, (48, 48), 64, dict),
    "resnet50": Architecture(trinet, (256, 128), 128, lambda: backbones.published("resnet50")),
}
