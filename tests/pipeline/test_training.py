"""The training loop: repeatable, honest about its data, and equal in this process and on Ray."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline import training
from pipeline.labelled import Frames, Labelled, labelled, read_frames, target_of
from pipeline.records import Resize
from pipeline.schemas import TRUTH
from pipeline.training import Training, draw, fit

CLASSES = ("a", "b")
SHORT = Training(
    model_settings={"detector": "small"}, steps=4, batch_size=2, warmup=1, permute_colours=True, flip_vertical=True
)


def truth(rows: list[dict[str, Any]]) -> pa.Table:
    box = {"video_id": "v", "track_id": 1, "ignore": False, "x1": 2.0, "y1": 4.0, "x2": 20.0, "y2": 30.0}
    return pa.Table.from_pylist([box | row for row in rows], TRUTH)


@pytest.fixture(scope="module")
def frames() -> Frames:
    """Six noisy frames with a bright square each, of one class or the other."""
    random = np.random.default_rng(0)
    pixels = random.integers(90, 120, (6, 3, 64, 64), dtype=np.uint8)
    targets = []
    for index in range(6):
        left = 5 + 6 * index
        pixels[index, index % 3, 10:34, left : left + 24] = 240
        rows = truth([{"x1": left, "y1": 10.0, "x2": left + 24.0, "y2": 34.0, "class_name": CLASSES[index % 2]}])
        targets.append(target_of(rows, CLASSES, np.ones(4, np.float32)))
    return Frames(pixels, targets)


def trained(frames: Frames, **changes: Any) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    chosen, heard = replace(SHORT, **changes), []
    fitted = fit(chosen, training.build(chosen, CLASSES), frames, progress=lambda step, losses, _: heard.append(losses))
    return heard, fitted.model.state_dict()


def test_a_seed_is_a_training(frames: Frames) -> None:
    losses, weights = trained(frames)
    again, same = trained(frames)
    others, _ = trained(frames, seed=1)
    assert losses == again
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert losses != others


def test_it_learns(frames: Frames) -> None:
    heard: list[float] = []
    chosen = replace(SHORT, steps=110, average=0.9, permute_colours=False)
    model = training.build(chosen, CLASSES)
    first = fit(replace(chosen, steps=1), training.build(chosen, CLASSES), frames).losses
    fitted = fit(chosen, model, frames, progress=lambda step, losses, _: heard.append(sum(losses.values())))
    assert len(heard) == 2
    assert heard[1] < 0.5 * sum(first.values())
    assert not fitted.model.training
    assert fitted.cpu_s > 0


def test_frames_and_boxes_are_mirrored_together(frames: Frames) -> None:
    random = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(100):
        (clip,), (target,) = draw(frames, [1], SHORT, random)
        x1, y1, x2, y2 = (int(side) for side in target["boxes"][0])
        assert clip.shape == (1, 3, 64, 64)
        assert clip[0].amax(0)[y1:y2, x1:x2].min() == 240  # the square is where its box is
        assert clip[0].amax(0).float().mean() < 150
        seen.add((x1, y1, int(clip[0, :, y1, x1].argmax())))
    assert len(seen) == 2 * 2 * 3  # left or right, up or down, three channels
    plain = replace(SHORT, flip=False, flip_vertical=False, permute_colours=False)
    (clip,), _ = draw(frames, [1], plain, random)
    assert torch.equal(clip[0], torch.from_numpy(frames.pixels[1]))


def test_the_workers_share_a_batch(frames: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together two workers see what one alone sees, each half of it."""
    monkeypatch.setattr(training, "DistributedDataParallel", lambda module: module)
    shares: dict[tuple[int, int], list[int]] = {}
    for share in ((0, 1), (0, 2), (1, 2)):
        shares[share] = []
        model = training.build(SHORT, CLASSES)
        monkeypatch.setattr(model, "losses", partial(listen, model.losses, shares[share]))
        fit(SHORT, model, frames, *share)
    assert shares[0, 1] == [frame for pair in zip(shares[0, 2], shares[1, 2], strict=True) for frame in pair]


def listen(learn: Any, heard: list[int], clips: list[torch.Tensor], targets: Any) -> Any:
    """Notes which clips the losses are asked of."""
    heard += [hash(clip.numpy().tobytes()) for clip in clips]
    return learn(clips, targets)


def test_a_loss_that_is_no_number_stops_the_training(frames: Frames) -> None:
    model = training.build(SHORT, CLASSES)
    with torch.no_grad():
        next(iter(model.parameters())).fill_(float("nan"))
    with pytest.raises(ValueError, match="the loss is nan at step 1; lower learning_rate"):
        fit(SHORT, model, frames)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"batch_size": 9, "workers": 2}, "batch_size is 9, which 2 workers cannot share"),
        ({"average": 1.0}, "average is 1.0; it must be at least 0 and below 1"),
    ],
)
def test_impossible_settings_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Training(**given)


def test_targets_are_the_truth_in_the_networks_pixels() -> None:
    rows = truth(
        [
            {"class_name": "b", "track_id": 4},
            {"class_name": "a", "ignore": True, "track_id": None},
            {"class_name": "unheard of"},
        ]
    )
    target = target_of(rows, CLASSES, np.array([0.5, 2, 0.5, 2], np.float32))
    assert target["boxes"].tolist() == [[1, 8, 10, 60]] * 3
    assert target["labels"].tolist() == [1, 0, 0]
    assert target["track_ids"].tolist() == [4, -1, 1]
    assert target["ignore"].tolist() == [False, True, True]
    nothing = target_of(None, CLASSES, np.ones(4, np.float32))
    assert nothing["boxes"].shape == (0, 4)
    assert len(nothing["labels"]) == len(nothing["ignore"]) == 0


def test_boxes_of_no_size_and_rows_of_no_class_are_not_learned() -> None:
    row = {"frame_index": 0, "track_id": 1, "y1": 0.0, "y2": 5.0, "ignore": False}
    rows = [
        {**row, "class_name": "a", "x1": 0.0, "x2": 5.0},
        {**row, "class_name": "a", "x1": 5.0, "x2": 5.0},
        {**row, "class_name": None, "x1": 0.0, "x2": 5.0},
    ]
    target = target_of(pa.Table.from_pylist(rows, TRUTH), ("a",), np.ones(4, np.float32))
    assert target["ignore"].tolist() == [False, True, True]


def test_ignored_rows_name_no_class_to_learn(tmp_path: Any) -> None:
    """As MOT17's do, where only pedestrians are scored."""
    (tmp_path / "A" / "gt").mkdir(parents=True)
    (tmp_path / "A" / "gt" / "gt.txt").write_text("1,1,0,0,9,9,1,1,1\n1,2,0,0,9,9,0,8,1\n")
    assert labelled("mot", str(tmp_path), {}).classes == ("pedestrian",)


def test_fewer_frames_than_a_batch_still_fill_it(frames: Frames) -> None:
    few = Frames(frames.pixels[:1], frames.targets[:1])
    seen: list[int] = []

    def counted(*given: Any) -> Any:
        seen.append(len(given[1]))
        return draw(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "draw", counted)
        trained(few, batch_size=4)
    assert set(seen) == {4}


def test_a_catalog_becomes_frames_with_their_truth(tmp_path: Any) -> None:
    material = labelled("synthetic", str(tmp_path), {"split": "train", "num_videos": 2})
    frames = read_frames(material, Resize(size=(64, 80)), tmp_path)
    assert frames.pixels.shape[1:] == (3, 64, 80)
    assert len(frames.targets) == len(frames.pixels)
    assert sum(len(target["labels"]) for target in frames.targets) == sum(len(table) for table in material.truth)
    first = material.truth[0].to_pylist()[0]
    box = frames.targets[first["frame_index"]]["boxes"][0]
    np.testing.assert_allclose(box, [first[side] / 2 for side in ("x1", "y1", "x2", "y2")])
    assert frames.targets[0]["labels"][0] == material.classes.index(first["class_name"])


def test_truth_must_be_there(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from catalogs import synthetic

    monkeypatch.setattr(synthetic, "truth", lambda video: None)
    with pytest.raises(ValueError, match="video train-0000 of catalog synthetic has no ground truth to train on"):
        labelled("synthetic", str(tmp_path), {"split": "train", "num_videos": 1})


def test_material_of_two_sizes_is_refused(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import labelled as module

    material = labelled("synthetic", str(tmp_path), {"split": "train", "num_videos": 2})
    decode = module.decode
    sizes = iter([Resize(size=(64, 80)), Resize(size=(32, 40))])
    monkeypatch.setattr(module, "decode", lambda refs, resize, count: decode(refs, next(sizes), count))
    with pytest.raises(ValueError, match=r"video train-0001 has frames of \(32, 40\), those before of \(64, 80\)"):
        read_frames(Labelled(material.videos, material.truth, material.classes), Resize(), tmp_path)


@pytest.mark.slow
def test_ray_and_this_process_train_the_same(tmp_path: Any) -> None:
    """One worker gives the same weights, bit for bit; two share batches and give finite losses."""
    import ray

    from pipeline.engine import OnRay

    material = labelled("synthetic", str(tmp_path), {"split": "train", "num_videos": 2})
    here = training.train_here(SHORT, material)
    ray.shutdown()  # actors of another test's session may hold both CPUs, and two workers would wait for ever
    OnRay("local").start()
    try:
        there = training.train_on_ray(SHORT, material)
        both = training.train_on_ray(replace(SHORT, workers=2), material)
    finally:
        ray.shutdown()
    theirs = there.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in here.model.state_dict().items())
    assert here.losses == there.losses
    assert all(np.isfinite(value) for value in both.losses.values())
