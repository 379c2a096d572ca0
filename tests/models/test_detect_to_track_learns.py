"""D&T as a whole: it learns clips by heart, its tubes outdo its frames on them; and the paper's networks are built."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from torch import Tensor

from catalogs import synthetic
from models.detect_to_track import Backbone, Model, Settings, build
from pipeline.labelled import target_of
from pipeline.linkers import tubes
from pipeline.records import Detections, Moves, VideoInfo, detections
from pipeline.scoring import combine, score, values

CLASSES = tuple(synthetic.CLASSES)
VIDEOS = ("train-0000", "train-0002")
FIRST, COUNT = 4, 8  # frames of a clip
NOISE = 90.0  # standard deviation, of 255


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """The same sums in the same order on any machine of a kind."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def clip_of(name: str) -> tuple[Tensor, list[dict[str, Tensor]], pa.Table]:
    """Frames uint8 (T, 3, H, W) of a video, the target of each, and their truth."""
    split, index = name.split("-")
    frames, table = synthetic.render(split, int(index))
    of_frame = [table.filter(pc.equal(table["frame_index"], FIRST + number)) for number in range(COUNT)]
    targets = [target_of(rows, CLASSES, np.ones(4, np.float32)) for rows in of_frame]
    pixels = torch.from_numpy(frames[FIRST : FIRST + COUNT]).permute(0, 3, 1, 2).contiguous()
    return pixels, targets, pa.concat_tables(of_frame)


def learned(clips: list[tuple[Tensor, list[dict[str, Tensor]], pa.Table]], steps: int) -> Model:
    """The small network after so many steps of two pairs of neighbouring frames."""
    torch.manual_seed(0)
    model = build(Settings(weights="random", classes=CLASSES)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.1)
    random = torch.Generator().manual_seed(0)
    for _ in range(steps):
        pairs, wanted = [], []
        for _ in range(2):
            pixels, targets, _truth = clips[int(torch.randint(len(clips), (1,), generator=random))]
            start = int(torch.randint(COUNT - 1, (1,), generator=random))
            pairs.append(pixels[start : start + 2])
            wanted.append(targets[start : start + 2])
        optimizer.zero_grad()
        sum(model.losses(pairs, wanted).values(), start=torch.zeros(())).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def worn(pixels: Tensor) -> Tensor:
    """Every second frame drowned in noise, so that what is in it is hard to tell by itself."""
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0)) * NOISE
    noise[::2] = 0
    return (pixels + noise).round().clamp(0, 255).to(torch.uint8)


def found_in(model: Model, pixels: Tensor) -> list[Detections]:
    rows, memories = model.detect([pixels], [None])
    frames = []
    for number, row in enumerate([*rows[0], *model.finish(memories)[0]]):
        given: dict[str, Any] = {name: value for name, value in row.items() if name != "moves"}
        moves: Any = row.get("moves")
        if moves is not None:
            numbers = {name: value.numpy() for name, value in moves.items() if name != "stride"}
            given["moves"] = Moves(**numbers | {"box_id": numbers["box_id"].astype(np.int32)}, stride=moves["stride"])
        frames.append(detections(FIRST + number, **given))
    return frames


def mean_average_precision(truth: list[pa.Table], found: dict[str, list[Detections]]) -> float:
    rows = [
        (video, frame.frame_index, None, CLASSES[label], *box.tolist(), value)
        for video, frames in found.items()
        for frame in frames
        for box, value, label in zip(frame.boxes, frame.scores.tolist(), frame.labels.tolist(), strict=True)
    ]
    names = ("video_id", "frame_index", "track_id", "class_name", "x1", "y1", "x2", "y2", "score")
    types = (pa.string(), pa.int32(), pa.int32(), pa.string(), *[pa.float32()] * 5)
    columns = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), types, strict=True)]
    scores = score(pa.concat_tables(truth), pa.table(dict(zip(names, columns, strict=True))), metrics=["mAP"])
    return values(combine([scores]))[None, None]["mAP"]


def test_it_learns_clips_by_heart_and_tubes_outdo_frames_where_every_second_is_noise() -> None:
    """Reached when this was written: .99 as learned; worn .63 frame by frame, .76 by tubes with moves."""
    clips = [clip_of(name) for name in VIDEOS]
    truth = [table for _, _, table in clips]
    model = learned(clips, 130)

    def scored(pixels: list[Tensor], link: tubes.Settings | None) -> float:
        found = {}
        for name, frames in zip(VIDEOS, pixels, strict=True):
            video = VideoInfo(name, "", "synthetic", size=(frames.shape[2], frames.shape[3]), fps=25.0)
            found[name] = found_in(model, frames)
            if link:
                found[name], _ = tubes.link(found[name], video, link)
        return mean_average_precision(truth, found)

    assert scored([pixels for pixels, _, _ in clips], None) > 0.9
    noisy = [worn(pixels) for pixels, _, _ in clips]
    by_frame = scored(noisy, None)
    assert by_frame < 0.85
    assert scored(noisy, tubes.Settings(evidence="moves")) > by_frame + 0.05


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
