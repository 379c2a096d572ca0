"""Plug & Play learns a few clips by heart; then following and linking find what the detector alone does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catalogs import synthetic
from models.parts.small_two_stage import SmallTwoStage
from models.plug_and_play import Model, Settings
from pipeline import scoring
from pipeline.linkers import seq_nms
from pipeline.records import Moves, VideoInfo, detections
from pipeline.schemas import tracks_table

VIDEOS, NUM_FRAMES = (0, 1), 12
BLUR, EVERY = 7, 3  # px, and which frames
TargetOf = Callable[[pa.Table, tuple[str, ...]], dict[str, Tensor]]
SETTINGS = Settings(weights="random", classes=synthetic.CLASSES, per_object=8)
Batch = tuple[list[Tensor], list[list[dict[str, Tensor]]]]


@dataclass(frozen=True)
class Film:
    """A clip uint8 (T, 3, H, W), what is in each frame, and the same as a table."""

    clip: Tensor
    targets: list[dict[str, Tensor]]
    truth: pa.Table


def film(index: int, target_of: TargetOf) -> Film:
    """The first frames of a training video of synthetic-v1."""
    frames, truth = synthetic.render("train", index)
    truth = truth.filter(pc.less(truth["frame_index"], NUM_FRAMES))
    of_frame = [truth.filter(pc.equal(truth["frame_index"], t)) for t in range(NUM_FRAMES)]
    targets = [target_of(rows, synthetic.CLASSES) for rows in of_frame]
    return Film(torch.from_numpy(np.ascontiguousarray(frames[:NUM_FRAMES].transpose(0, 3, 1, 2))), targets, truth)


def blurred(clip: Tensor) -> Tensor:
    """Every third frame out of focus, as nothing that was learned."""
    soft = F.avg_pool2d(F.pad(clip.float(), (BLUR // 2,) * 4, mode="replicate"), BLUR, 1).byte()
    last = (torch.arange(len(clip)) % EVERY == EVERY - 1)[:, None, None, None]
    return torch.where(last, soft, clip)


def fit(model: Model, part: nn.Module, steps: int, batch: Callable[[], Batch]) -> None:
    """Trains what the settings say; its batch norms then take the means over some batches, of the last weights."""
    model.train()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.2)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(list(model.losses(*batch()).values()))
        nn.utils.clip_grad_norm_(learned, 5.0)
        optimizer.step()
        schedule.step()
    for module in part.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        for _ in range(6):
            model.losses(*batch())
    model.eval()


def mean_ap(model: Model, films: list[Film], linked: bool) -> float:
    """mAP at IoU .5 of clips in which frames are blurred; linked: by Seq-Track-NMS."""
    truth, tracks = [], []
    for number, one in enumerate(films):
        (rows,), memories = model.detect([blurred(one.clip)], [None])
        if model.frames_after:
            rows += model.finish(memories)[0]
        video = VideoInfo(str(one.truth["video_id"][0]), f"film-{number}", "synthetic")
        seen = []
        for t, row in enumerate(rows):
            evidence: dict[str, Any] = {name: value.numpy() for name, value in row.items() if name != "moves"}
            if "moves" in row:
                moves = {name: value.numpy() for name, value in row["moves"].items() if name != "stride"}
                evidence["moves"] = Moves(**{**moves, "box_id": moves["box_id"].astype(np.int32)})
            seen.append(detections(t, **evidence))
        settings = seq_nms.Settings(links="moves", nms_iou=0.45)
        after, found = seq_nms.link(seen, video, settings) if linked else (seen, [])
        tracks.append(tracks_table(video.video_id, after, found, synthetic.CLASSES, raw=seen))
        truth.append(one.truth)
    table = scoring.score(pa.concat_tables(truth), pa.concat_tables(tracks), metrics=["mAP"])
    return scoring.values(scoring.combine([table]))[None, None]["mAP"]


@pytest.mark.slow  # `test_regression_tracker` learns in less time, `test_committed` holds what shipped weights find
def test_following_finds_what_single_frames_do_not_show(target_of: TargetOf) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    films = [film(index, target_of) for index in VIDEOS]

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=random))

    def frames() -> Batch:
        chosen = [(films[draw(len(films))], draw(NUM_FRAMES)) for _ in range(8)]
        return [one.clip[t : t + 1] for one, t in chosen], [[one.targets[t]] for one, t in chosen]

    def pairs() -> Batch:
        clips, targets = [], []
        for _ in range(4):
            one, first, gap = films[draw(len(films))], draw(NUM_FRAMES - 2), 1 + draw(2)
            order = [first, first + gap] if draw(2) else [first + gap, first]
            clips.append(one.clip[order])
            targets.append([one.targets[t] for t in order])
        return clips, targets

    detector = SmallTwoStage(len(synthetic.CLASSES), widths=(16, 16, 32, 64), channels=32, hidden=128)
    first = Model(SETTINGS, detector, synthetic.CLASSES)
    fit(first, detector, 80, frames)
    plugged = Model(replace(SETTINGS, train="tracker"), detector, synthetic.CLASSES)
    fit(plugged, plugged.tracker, 80, pairs)
    alone = Model(replace(SETTINGS, tracking_first=False, moves=False), detector, synthetic.CLASSES).eval()
    assert mean_ap(plugged, films, linked=True) > mean_ap(alone, films, linked=False) + 0.04
