"""The training loop: repeatable, honest about its data, and equal in this process and on Ray."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import distributed, nn

from models.parts.weights import write_weights
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
    """Six noisy frames of two videos, with a bright square each, of one class or the other."""
    random = np.random.default_rng(0)
    pixels = random.integers(90, 120, (6, 3, 64, 64), dtype=np.uint8)
    targets = []
    for index in range(6):
        left = 4 + 6 * index  # mirrored it is where no other square is
        pixels[index, index % 3, 10:34, left : left + 24] = 240
        rows = truth([{"x1": left, "y1": 10.0, "x2": left + 24.0, "y2": 34.0, "class_name": CLASSES[index % 2]}])
        targets.append(target_of(rows, CLASSES, np.ones(4, np.float32)))
    return Frames(pixels, targets, np.array([0, 0, 0, 0, 1, 1]))


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
        (clip,), ((target,),) = draw(frames, [1], SHORT, random)
        x1, y1, x2, y2 = (int(side) for side in target["boxes"][0])
        assert clip.shape == (1, 3, 64, 64)
        assert clip[0].amax(0)[y1:y2, x1:x2].min() == 240  # the square is where its box is
        assert clip[0].amax(0).float().mean() < 150
        seen.add((x1, y1, int(clip[0, :, y1, x1].argmax())))
    assert len(seen) == 2 * 2 * 3  # left or right, up or down, three channels
    plain = replace(SHORT, flip=False, flip_vertical=False, permute_colours=False)
    (clip,), _ = draw(frames, [1], plain, random)
    assert torch.equal(clip[0], torch.from_numpy(frames.pixels[1]))


PAIRS = replace(SHORT, frames_per_clip=2)


@pytest.mark.parametrize(
    ("changes", "pairs"),
    [
        pytest.param({}, {(0, 1), (1, 2), (2, 3), (4, 5)}, id="neighbours"),
        pytest.param({"max_gap": 9}, {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3), (4, 5)}, id="any"),
        pytest.param({"min_gap": 2, "max_gap": 3}, {(0, 2), (0, 3), (1, 3)}, id="the short video is left out"),
        pytest.param(
            {"reverse": True}, {(0, 1), (1, 2), (2, 3), (4, 5), (1, 0), (2, 1), (3, 2), (5, 4)}, id="reversed"
        ),
    ],
)
def test_pairs_are_of_one_video_and_mirrored_alike(
    frames: Frames, changes: dict[str, Any], pairs: set[tuple[int, int]]
) -> None:
    chosen, random = replace(PAIRS, **changes), torch.Generator().manual_seed(0)
    index = {4 + 6 * i: i for i in range(6)} | {36 - 6 * i: i for i in range(6)}  # of a left edge, mirrored or not
    seen = set()
    for _ in range(40):
        clips, targets = draw(frames, training.starts(frames, chosen).tolist(), chosen, random)
        for clip, target in zip(clips, targets, strict=True):
            assert clip.shape == (2, 3, 64, 64)
            for frame, found in zip(clip, target, strict=True):
                x1, y1, x2, y2 = (int(side) for side in found["boxes"][0])
                assert frame.amax(0)[y1:y2, x1:x2].min() == 240  # the square is where its box is
            one, other = (frame["boxes"][0] for frame in target)
            assert one[1] == other[1], "both upside down or neither"
            pair = tuple(index[int(frame["boxes"][0, 0])] for frame in target)
            shift = int(other[0] - one[0]) / 6
            assert abs(shift) == abs(pair[1] - pair[0]), "both left to right or neither"
            colours = [
                int(frame[:, int(y), int(x)].argmax())
                for frame, (x, y, *_) in zip(clip, [frame["boxes"][0] for frame in target], strict=True)
            ]
            assert (colours[0] == colours[1]) == ((pair[1] - pair[0]) % 3 == 0), "one exchange of colours for both"
            seen.add(pair)
    assert seen == pairs


@pytest.mark.parametrize(
    ("changes", "clips"),
    [
        pytest.param({}, {(0, 1, 2), (1, 2, 3)}, id="neighbours"),
        pytest.param({"max_gap": 9}, {(0, 1, 2), (0, 1, 3), (0, 2, 3), (1, 2, 3)}, id="any, with room for the last"),
        pytest.param({"frames_per_clip": 4, "max_gap": 2, "reverse": True}, {(0, 1, 2, 3), (3, 2, 1, 0)}, id="all"),
    ],
)
def test_longer_clips_keep_room_for_all_their_frames(
    frames: Frames, changes: dict[str, Any], clips: set[tuple[int, ...]]
) -> None:
    chosen, random = replace(PAIRS, **{"frames_per_clip": 3, **changes}), torch.Generator().manual_seed(0)
    firsts = training.starts(frames, chosen).tolist() * 40
    assert {tuple(training.clip_from(first, frames, chosen, random)) for first in firsts} == clips


def test_pairs_need_a_video_as_long_as_their_gap(frames: Frames) -> None:
    far = replace(PAIRS, min_gap=4, max_gap=9)
    with pytest.raises(
        ValueError, match="a clip of 2 frames, min_gap 4, needs 5 frames, and the longest video has 4; give"
    ):
        fit(far, training.build(far, CLASSES), frames)


def test_a_network_learns_on_pairs(frames: Frames) -> None:
    """A seed is a training here too, and every step sees `batch_size` clips of two frames."""
    shapes: list[tuple[int, ...]] = []
    model = training.build(PAIRS, CLASSES)
    learn = model.losses

    def noted(clips: list[torch.Tensor], targets: Any) -> Any:
        shapes.extend(tuple(clip.shape) for clip in clips)
        assert [len(clip) for clip in targets] == [2, 2]
        return learn(clips, targets)  # type: ignore[operator]

    model.losses = noted  # type: ignore[assignment]
    losses = fit(replace(PAIRS, average=0), model, frames).losses
    assert shapes == [(2, 3, 64, 64)] * 2 * 4
    assert fit(PAIRS, training.build(PAIRS, CLASSES), frames).losses == losses


class Halves(nn.Module):
    """Two numbers, one of them frozen; a batch teaches the other only if `teaches`."""

    def __init__(self, teaches: bool) -> None:
        super().__init__()
        self.frozen, self.learned = nn.Parameter(torch.ones(2, 2), requires_grad=False), nn.Parameter(torch.ones(2, 2))
        self.unused = nn.Parameter(torch.ones(2, 2))
        self.teaches = teaches

    def losses(self, clips: list[torch.Tensor], targets: Any) -> dict[str, torch.Tensor]:
        lost = (self.learned * self.frozen).square().sum()
        return {"some": lost if self.teaches else lost.detach() * 0, "none": torch.zeros(())}


@pytest.fixture
def one_process() -> Iterator[None]:
    """A process group of this process alone, for data parallelism."""
    store = distributed.HashStore()  # type: ignore[attr-defined]
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("teaches", [True, False])
@pytest.mark.usefixtures("one_process")
def test_what_is_frozen_stays_and_a_batch_may_teach_nothing(frames: Frames, world: int, teaches: bool) -> None:
    chosen = replace(SHORT, average=0, weight_decay=0.01, learning_rate=0.1)
    found = fit(chosen, Halves(teaches), frames, world=world).model.state_dict()
    assert (found["frozen"] == 1).all()
    assert (found["unused"] == 1).all()
    assert (found["learned"] < 0.9).all() if teaches else (found["learned"] > 0.99).all()


def test_a_network_with_nothing_to_learn_is_refused(frames: Frames) -> None:
    with pytest.raises(ValueError, match="model smot has nothing to learn with the settings"):
        fit(SHORT, Halves(True).requires_grad_(False), frames)


def test_training_goes_on_from_weights_of_the_same_classes(frames: Frames, tmp_path: Any) -> None:
    path = tmp_path / "before.safetensors"
    before = fit(SHORT, training.build(SHORT, CLASSES), frames).model
    write_weights(path, before.network, {"classes": '["a", "b"]'}, torch.float32)  # type: ignore[arg-type]
    after = replace(SHORT, model_settings={"detector": "small", "weights": str(path)})
    model = training.build(after, CLASSES)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), before.parameters(), strict=True))
    for others in (("b", "a"), ("a", "b", "c")):
        with pytest.raises(
            ValueError, match=r"before.safetensors' are of 2 classes a, b; the catalog has, in this order"
        ):
            training.build(after, others)


def test_the_workers_share_a_batch(frames: Frames, monkeypatch: pytest.MonkeyPatch) -> None:
    """Together two workers see what one alone sees, each half of it."""
    monkeypatch.setattr(training, "DistributedDataParallel", lambda module, **given: module)
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
        ({"frames_per_clip": 0}, "frames_per_clip is 0; it must be at least 1"),
        ({"frames_per_clip": 2, "min_gap": 0}, "min_gap is 0 and max_gap 1; they must be at least 1"),
        ({"frames_per_clip": 2, "min_gap": 3, "max_gap": 2}, "min_gap is 3 and max_gap 2; .* no smaller than min_gap"),
        ({"max_gap": 2}, "min_gap, max_gap and reverse are of several frames; give frames_per_clip=2 or more"),
        ({"reverse": True}, "min_gap, max_gap and reverse are of several frames; give frames_per_clip=2 or more"),
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
    few = Frames(frames.pixels[:1], frames.targets[:1], frames.video[:1])
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
    assert frames.video.tolist() == sorted(frames.video)
    assert np.bincount(frames.video).tolist() == [table["frame_index"].to_numpy().max() + 1 for table in material.truth]
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
    decode = module.decode  # type: ignore[attr-defined]
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
