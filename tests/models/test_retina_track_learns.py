"""RetinaTrack learns a clip by heart: two objects of one class swap places between two frames.

Where one was, the other is: by position alone their tracks are swapped. By what anchors learned to tell them apart, in
the same training, they are not.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import retina_track
from models.retina_track import Model, Settings
from pipeline.linkers import track_store
from pipeline.records import Detections, Track, VideoInfo, detections

SIDE, TOP, SIZE = 20, 14, (48, 80)  # px
LEFTS = ((8, 13, 18, 42, 47, 52), (52, 47, 42, 18, 13, 8))  # of both objects, in each frame
COLOURS = ((220, 60, 40), (40, 90, 220))
STEPS, SEED = 60, 0


def crossing() -> tuple[Tensor, list[dict[str, Tensor]]]:
    """uint8 (T, 3, H, W) and its truth: squares that differ in their colour only, over noise."""
    random = torch.Generator().manual_seed(SEED)
    count = len(LEFTS[0])
    clip = torch.randint(90, 130, (count, 3, *SIZE), generator=random, dtype=torch.uint8)
    targets = []
    for t in range(count):
        boxes = []
        for lefts, colour in zip(LEFTS, COLOURS, strict=True):
            left = lefts[t]
            clip[t, :, TOP : TOP + SIDE, left : left + SIDE] = torch.tensor(colour, dtype=torch.uint8)[:, None, None]
            boxes.append([left, TOP, left + SIDE, TOP + SIDE])
        targets.append(
            {
                "boxes": torch.tensor(boxes, dtype=torch.float32),
                "labels": torch.zeros(2, dtype=torch.long),
                "track_ids": torch.tensor([1, 2]),
            }
        )
    return clip, targets


def fitted() -> Model:
    """Trained on pairs of the clip's frames."""
    torch.manual_seed(SEED)
    # Of so small a clip every anchor that may find an object must have learned whose it is.
    settings = Settings(weights="random", classes=("square",), identity_iou=0.5)
    model = retina_track.build(settings).train()
    clip, targets = crossing()
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=STEPS, pct_start=0.2)
    for _ in range(STEPS):
        losses = model.losses([clip], [targets])
        optimizer.zero_grad()
        torch.autograd.backward(list(losses.values()))
        nn.utils.clip_grad_norm_(learned, 5.0)
        optimizer.step()
        schedule.step()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():  # statistics of the last weights
        model.losses([clip], [targets])
    return model.eval()


@pytest.fixture(scope="module")
def frames() -> list[Detections]:
    """What the model finds in the clip that it was trained on."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ((rows,), _) = fitted().detect([crossing()[0]], [None])
    finally:
        torch.set_num_threads(threads)
    found = []
    for t, row in enumerate(rows):
        arrays: dict[str, Any] = {name: value.numpy() for name, value in row.items()}
        found.append(detections(t, arrays.pop("boxes"), timestamp_s=t / 10, **arrays))
    return found


def identities(frames: list[Detections], match_by: Literal["both", "position"]) -> list[list[int]]:
    """For each track the object that it shows in each of its frames, by its box."""
    video = VideoInfo("crossing", "crossing", "test")
    _, tracks = track_store.link(frames, video, track_store.Settings(match_by=match_by, min_score=0.5))
    return [[shown(track, position) for position in range(len(track.frame_index))] for track in tracks]


def shown(track: Track, position: int) -> int:
    centre = (track.boxes[position, 0] + track.boxes[position, 2]) / 2
    lefts = np.array([lefts[track.frame_index[position]] for lefts in LEFTS])
    return int(np.abs(lefts + SIDE / 2 - centre).argmin())


def test_both_are_found_in_every_frame(frames: list[Detections]) -> None:
    for t, frame in enumerate(frames):
        sure = frame.scores >= 0.5
        assert sure.sum() == 2
        lefts = np.sort(frame.boxes[sure, 0])
        np.testing.assert_allclose(lefts, sorted(lefts_[t] for lefts_ in LEFTS), atol=3)


def test_position_alone_swaps_them_and_embeddings_do_not(frames: list[Detections]) -> None:
    assert identities(frames, "position") in (
        [[0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0]],
        [[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]],
    )
    assert identities(frames, "both") in ([[0] * 6, [1] * 6], [[1] * 6, [0] * 6])


def test_embeddings_of_one_object_are_alike_and_of_two_are_not(frames: list[Detections]) -> None:
    """Wide of the linker's threshold of .5 on both sides."""
    looks: list[list[Any]] = [[], []]
    for t, frame in enumerate(frames):
        assert frame.embeddings is not None
        for row in np.flatnonzero(frame.scores >= 0.5):
            nearest = int(np.argmin([abs(lefts[t] - frame.boxes[row, 0]) for lefts in LEFTS]))
            vector = frame.embeddings[row].astype(np.float64)
            looks[nearest].append(vector / np.linalg.norm(vector))
    one, other = (np.array(vectors) for vectors in looks)
    assert min((one @ one.T).min(), (other @ other.T).min()) > 0.7
    assert (one @ other.T).max() < 0.2
