"""TCD learns two clips by heart; then tracklets tell what the frames of a burst do not show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from torch import Tensor

from catalogs import synthetic
from models.parts.small_two_stage import SmallTwoStage
from models.tracklet_rcnn import Model, Settings, build
from pipeline import scoring
from pipeline.schemas import TRACKS

TargetOf = Callable[[pa.Table, tuple[str, ...]], dict[str, Tensor]]


def whole(index: int, num_frames: int, target_of: TargetOf) -> tuple[Tensor, list[dict[str, Tensor]], pa.Table]:
    """The first frames of a training video: grey pixels, targets that also say who is in a burst, and the truth."""
    frames, table = synthetic.render("train", index)
    table = table.filter(pc.less(table["frame_index"], num_frames))
    targets = []
    for number in range(num_frames):
        rows = table.filter(pc.equal(table["frame_index"], number))
        burst = torch.tensor(["burst" in flags for flags in rows["flags"].to_pylist()], dtype=torch.bool)
        targets.append(target_of(rows, synthetic.CLASSES) | {"burst": burst})
    grey = torch.from_numpy(frames[:num_frames]).float().mean(dim=3).round().byte()  # colours say who, not what
    return grey[:, None].expand(-1, 3, -1, -1).contiguous(), targets, table


def mean_precision(model: Model, clips: Sequence[Tensor], truth: pa.Table) -> float:
    """mAP_det at IoU .5."""
    rows = []
    videos = sorted(set(truth["video_id"].to_pylist()))
    for name, frames in zip(videos, model.detect(clips, [None] * len(clips))[0], strict=True):
        for number, frame in enumerate(frames):
            columns = (frame["boxes"].tolist(), frame["labels"].tolist(), frame["scores"].tolist())
            for (x1, y1, x2, y2), label, score in zip(*columns, strict=True):
                where = {"video_id": name, "frame_index": number, "x1": x1, "y1": y1, "x2": x2, "y2": y2}
                rows.append(where | {"class_name": synthetic.CLASSES[label], "score": score})
    scores = scoring.score(truth, pa.Table.from_pylist(rows, TRACKS), metrics=["mAP"])
    return scoring.values(scoring.combine([scores]))[None, None]["mAP"]


STEPS = 200


@pytest.mark.slow
def test_tracklets_tell_what_a_burst_hides(target_of: TargetOf) -> None:
    """Learned on two videos, in whose bursts the class is random: over many videos it cannot be told there.

    Without colours, since an object's colour would tell its class where only two videos are known.

    2026-11-21, with seeds 0 and 1: mAP of what is in a burst .772 and .743 without conditioning, .889 and .859 with it;
    of all boxes .984 and .952, and .992 and .956. With seed 0 PropagateBox has .932 in bursts, RescoreBox .946. With
    half the steps or fewer all of this depends on the seed.
    """
    torch.set_num_threads(1)
    clips, targets, tables = zip(*(whole(index, 20, target_of) for index in (3, 6)), strict=True)
    present = torch.tensor(sorted({int(label) for clip in targets for each in clip for label in each["labels"]}))
    settings = Settings(weights="random", classes=synthetic.CLASSES, negatives="other_objects")

    def network(**changed: Any) -> Model:
        small = SmallTwoStage(len(synthetic.CLASSES), widths=(16, 24, 32, 48), channels=32, hidden=128)
        return Model(replace(settings, **changed), small, synthetic.CLASSES)

    torch.manual_seed(0)
    random = torch.Generator().manual_seed(0)
    model = network().train()
    optimizer = torch.optim.AdamW(model.parameters(), 6e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=STEPS, pct_start=0.1)
    pairs = [(clip, first) for clip in range(2) for first in range(19)]
    for _ in range(STEPS):
        chosen = [pairs[index] for index in torch.randperm(len(pairs), generator=random)[:4].tolist()]
        taught = []
        for clip, first in chosen:
            for each in targets[clip][first : first + 2]:
                drawn = present[torch.randint(len(present), each["labels"].shape, generator=random)]
                taught.append(each | {"labels": torch.where(each["burst"], drawn, each["labels"])})
        found = model.losses(
            [clips[clip][first : first + 2] for clip, first in chosen],
            [taught[start : start + 2] for start in range(0, 8, 2)],
        )
        optimizer.zero_grad()
        torch.autograd.backward(list(found.values()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()

    truth = pa.concat_tables(tables)
    clear = pa.array(["burst" not in flags for flags in truth["flags"].to_pylist()])
    hidden = truth.set_column(truth.schema.get_field_index("ignore"), "ignore", clear)
    alone: dict[str, Any] = {"condition": "none"}
    systems: dict[str, dict[str, Any]] = {
        "integrated": {},
        "alone": alone,
        "propagated": alone | {"propagate": "farneback"},
        "rescored": alone | {"rescore": True},
    }
    scores = {}
    for name, changed in systems.items():
        same = network(**changed).eval()
        same.load_state_dict(model.state_dict())
        scores[name] = mean_precision(same, clips, hidden), mean_precision(same, clips, truth)
    assert scores["alone"][1] > 0.85, scores  # it has learned these videos
    for name in ("integrated", "propagated", "rescored"):
        assert scores[name][0] > scores["alone"][0] + 0.04, scores


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="Table 1"),
        pytest.param({"deformable": True, "aggregate": 1}, id="Table 4, DCNv2 and FGFA"),
        pytest.param({"benchmark": "mot15"}, id="MOT15"),
    ],
)
def test_the_papers_network_follows_boxes_at_the_papers_size(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = build(
        Settings(
            detector="resnet101",
            weights="random",
            classes=tuple(f"class {i}" for i in range(30)),
            min_score=0.0,
            start_score=0.0,
            **settings,
        )
    )
    assert model.resize["short_side"] == (800 if "benchmark" in settings else 600)
    random = torch.Generator().manual_seed(1)
    frame = torch.randint(0, 256, (1, 3, 600, 1000), dtype=torch.uint8, generator=random)
    first, second = model.detect([torch.cat([frame, frame])], [None])[0][0]
    followed = set(first["tracklet_id"].tolist()) & set(second["tracklet_id"].tolist()) - {-1}
    assert len(followed) > 20  # what was there is there again
    assert second["class_scores"].shape == (len(second["boxes"]), 31)
    assert second["class_scores"].isfinite().all()
