"""D&T as a whole: what it learns by heart, what its tracks are then worth; and the paper's networks are built."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from catalogs import synthetic
from models.detect_to_track import Backbone, Model, Settings, build
from models.parts.track_branch import in_both
from pipeline.detect import Shown, mapped_back
from pipeline.linkers import tubes
from pipeline.records import Detections, VideoInfo
from pipeline.schemas import tracks_table
from pipeline.scoring import combine, score, values

TargetOf = Callable[[pa.Table, tuple[str, ...]], dict[str, Tensor]]
CLASSES = tuple(synthetic.CLASSES)
VIDEOS, COUNT = (5, 8), 20  # fast ones with several objects of a class: half of them leave more than half of their box
STEPS = 90
NOISE = (60.0, 80.0)  # standard deviations, of 255


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The same sums in the same order on any machine of a kind."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Film(NamedTuple):
    """A clip uint8 (T, 3, H, W), the target of each frame, and the same as a table."""

    clip: Tensor
    targets: list[dict[str, Tensor]]
    truth: pa.Table


def film(index: int, target_of: TargetOf) -> Film:
    """The first frames of a training video of synthetic-v1."""
    frames, truth = synthetic.render("train", index)
    truth = truth.filter(pc.less(truth["frame_index"], COUNT))
    of_frame = [truth.filter(pc.equal(truth["frame_index"], number)) for number in range(COUNT)]
    targets = [target_of(rows, CLASSES) for rows in of_frame]
    return Film(torch.from_numpy(frames[:COUNT]).permute(0, 3, 1, 2).contiguous(), targets, truth)


def learned(films: Sequence[Film], seed: int) -> Model:
    """The small network after steps of two pairs of neighbouring frames."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    model = build(Settings(weights="random", classes=CLASSES)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=STEPS, pct_start=0.1)
    pairs = [(one, first) for one in films for first in range(COUNT - 1)]
    for _ in range(STEPS):
        chosen = [pairs[index] for index in torch.randperm(len(pairs), generator=random)[:2].tolist()]
        losses = model.losses(
            [one.clip[first : first + 2] for one, first in chosen],
            [one.targets[first : first + 2] for one, first in chosen],
        )
        optimizer.zero_grad()
        torch.autograd.backward(list(losses.values()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def worn(clip: Tensor, deviation: float) -> Tensor:
    """Every third frame in noise, as nothing that was learned."""
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(0)) * deviation
    noise[0::3] = noise[1::3] = 0
    return (clip + noise).round().clamp(0, 255).to(torch.uint8)


def seen_by(model: Model, clip: Tensor) -> list[Detections]:
    (rows,), memories = model.detect([clip], [None])
    rows += model.finish(memories)[0]
    size = (clip.shape[2], clip.shape[3])
    return [mapped_back(row, Shown(t, t / 25, size, np.ones(4, np.float32))) for t, row in enumerate(rows)]


def mean_precision(films: Sequence[Film], seen: Sequence[list[Detections]], link: tubes.Settings | None) -> float:
    """mAP at IoU .5 of detections, frame by frame or as tubes."""
    tables = []
    for one, frames in zip(films, seen, strict=True):
        video = VideoInfo(one.truth["video_id"][0].as_py(), "", "synthetic")
        after, tracks = tubes.link(frames, video, link) if link else (frames, [])
        tables.append(tracks_table(video.video_id, after, tracks, CLASSES, raw=frames))
    scores = score(pa.concat_tables([one.truth for one in films]), pa.concat_tables(tables), metrics=["mAP"])
    return values(combine([scores]))[None, None]["mAP"]


def neighbours_reached(films: Sequence[Film], seen: Sequence[list[Detections]]) -> tuple[float, float]:
    """Of the objects in two frames that follow each other, how many some move leads from and to (IoU of .5 at both
    ends, equation 6), and how many overlap by that much without.
    """
    by_moves, by_overlap = [], []
    for one, frames in zip(films, seen, strict=True):
        for t, frame in enumerate(frames[:-1]):
            here, there = in_both(one.targets[t], one.targets[t + 1])
            assert frame.moves is not None
            start, end = torch.from_numpy(frame.moves.start), torch.from_numpy(frame.moves.end)
            leads = (box_iou(here, start) >= 0.5) & (box_iou(there, end) >= 0.5)  # (M, moves)
            by_moves.append(leads.any(dim=1))
            by_overlap.append(box_iou(here, there).diagonal() >= 0.5)
    return torch.cat(by_moves).float().mean().item(), torch.cat(by_overlap).float().mean().item()


@pytest.mark.slow  # `test_track_branch` learns moves in less time, `test_committed` holds what shipped weights find
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tracks_lead_to_fast_objects_and_tubes_by_them_outdo_frames(seed: int, target_of: TargetOf) -> None:
    """By heart, then with every third frame worn; the mean of two strengths, for one alone is a matter of chance.

    2026-11-22, seeds 0, 1, 2: mAP .889, .767, .903 as learned; worn .711, .548, .588 frame by frame, .784, .651, .652
    by tubes with moves. Moves reach 99 % of neighbours, overlaps half of them. Without the track loss (seed 0) moves
    reach 85 %, and tubes gain .006. After 150 steps mAP is .98, and the gain .033 to .088.
    """
    films = [film(index, target_of) for index in VIDEOS]
    model = learned(films, seed)

    clean = [seen_by(model, one.clip) for one in films]
    assert mean_precision(films, clean, None) > 0.6
    by_moves, by_overlap = neighbours_reached(films, clean)
    assert by_overlap < 0.6
    assert by_moves > 0.95

    noisy = [[seen_by(model, worn(one.clip, deviation)) for one in films] for deviation in NOISE]
    by_frame, by_tubes = (
        np.mean([mean_precision(films, seen, link) for seen in noisy]) for link in (None, tubes.Settings("moves"))
    )
    assert by_tubes > by_frame + 0.015


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [name for name in get_args(Backbone) if name != "small"])
def test_the_papers_networks_are_built_and_see_a_pair(backbone: Backbone) -> None:
    """Frames of 600 x 1000 px, 30 classes, random weights: shapes, and that all is finite."""
    classes = tuple(f"class {number}" for number in range(30))
    model = build(Settings(backbone=backbone, weights="random", classes=classes, average=True))
    assert model.resize == {"short_side": 600, "long_side": 1000}
    assert model.track_branch.deltas.weight.shape == (196, 2 * 196 + 81 + 289 + 289, 1, 1)
    frames = torch.randint(0, 256, (2, 3, 600, 1000), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (rows,), memories = model.detect([frames[:1]], [None])
    assert rows == []
    (rows,), memories = model.detect([frames[1:]], memories)
    given: list[dict[str, Any]] = [*rows, *model.finish(memories)[0]]
    for row in given:
        assert row["boxes"].shape == (len(row["scores"]), 4)
        assert all(value.isfinite().all() for name, value in row.items() if name != "moves")
    assert len(rows) == 1
    assert 0 < len(given[0]["moves"]["start"]) <= 300
