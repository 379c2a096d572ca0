"""Plug & Play as a model: tracking-first detection and moves against plain steps, memory, and what stays frozen."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import plug_and_play
from models.parts import detectors
from models.parts.regression_tracker import rois_and_goals
from models.parts.small_two_stage import SmallTwoStage
from models.parts.tracking_first import Rows
from models.parts.weights import write_weights
from models.plug_and_play import Look, Memory, Model, Settings

SIZE = (64, 96)
CLASSES = ("cat", "dog")
RANDOM = Settings(weights="random", classes=CLASSES, min_score=0.3, max_tracked=12, tracker_channels=8, per_object=4)
ALONE = replace(RANDOM, tracking_first=False, moves=False)

A, NEAR_A, B = [10.0, 10.0, 30.0, 30.0], [10.0, 10.0, 30.0, 26.0], [60.0, 30.0, 80.0, 60.0]

Frame = dict[str, Any]


def model(settings: Settings = RANDOM) -> Model:
    """Not trained, but what it says differs from box to box, and boxes move."""
    torch.manual_seed(3)
    built = plug_and_play.build(settings)
    detector: Any = built.detector
    with torch.no_grad():
        for layer in (detector.objectness, detector.anchor_deltas, detector.classes, detector.deltas):
            layer.weight.normal_(0, 0.2)
        built.tracker.deltas.weight.normal_(0, 0.01)
        built.tracker.quality.weight.normal_(0, 0.05)
        # Batch norms that know such frames, so that those do not all look the same.
        for module in built.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train().momentum = 1.0
        merged = built.merged(detector.features(pictures(2, seed=9)))
        built.tracker(merged[:1], merged[1:], [torch.tensor([A, B])], SIZE)
    return built.eval()


def pictures(count: int, seed: int = 0, size: tuple[int, int] = SIZE) -> Tensor:
    """Frames of coloured tiles, each frame others."""
    random = torch.Generator().manual_seed(seed)
    tiles = torch.randint(0, 256, (count, 3, size[0] // 8, size[1] // 8), dtype=torch.uint8, generator=random)
    return tiles.repeat_interleave(8, 2).repeat_interleave(8, 3)


def target(boxes: list[list[float]], ids: list[int], labels: list[int] | None = None) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels or [0] * len(ids), dtype=torch.long),
        "track_ids": torch.tensor(ids, dtype=torch.long),
        "ignore": torch.zeros(len(ids), dtype=torch.bool),
    }


def rows(boxes: list[list[float]], scores: list[float]) -> Rows:
    count = len(scores)
    return Rows(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores),
        torch.zeros(count, dtype=torch.long),
        torch.zeros(count, dtype=torch.bool),
    )


def whole(built: Model, clips: Sequence[Tensor], chunk: int = 99, travel: bool = False) -> list[list[Frame]]:
    """All frames of some clips seen in chunks, side by side; travel: memories are pickled between chunks."""
    memories: list[object] = [None] * len(clips)
    found: list[list[Frame]] = [[] for _ in clips]
    for start in range(0, max(map(len, clips)), chunk):
        ready, memories = built.detect([clip[start : start + chunk] for clip in clips], memories)
        for own, new in zip(found, ready, strict=True):
            own += new
        if travel:
            memories = pickle.loads(pickle.dumps(memories))
    if built.frames_after:
        for own, new in zip(found, built.finish(memories), strict=True):
            own += new
    return found


def assert_same(one: Sequence[Frame], other: Sequence[Frame]) -> None:
    """By the tolerance that the design allows; rows at a threshold would be exempt, and here there are none."""
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a["labels"], b["labels"])
        assert torch.equal(a["tracked"], b["tracked"])
        torch.testing.assert_close(a["boxes"], b["boxes"], atol=1e-3, rtol=0)
        torch.testing.assert_close(a["scores"], b["scores"], atol=1e-4, rtol=0)
        assert ("moves" in a) == ("moves" in b)
        if "moves" in a:
            torch.testing.assert_close(a["moves"]["end"], b["moves"]["end"], atol=1e-3, rtol=0)
            torch.testing.assert_close(a["moves"]["scores"], b["moves"]["scores"], atol=1e-4, rtol=0)


def test_frames_are_as_all_models_give_them() -> None:
    built = model()
    clip = pictures(4)
    (first,), (memory,) = built.detect([clip], [None])
    assert built.frames_after == 1
    assert len(first) == 3
    (last,) = built.finish([memory])
    assert len(last) == 1
    for frame in (*first, *last):
        count = len(frame["boxes"])
        assert count > 3
        assert frame["boxes"].shape == (count, 4)
        assert frame["scores"].shape == frame["labels"].shape == frame["tracked"].shape == (count,)
        assert (frame["boxes"].dtype, frame["labels"].dtype) == (torch.float32, torch.int64)
        assert frame["tracked"].dtype == torch.bool
    assert not first[0]["tracked"].any()
    assert any(frame["tracked"].any() and not frame["tracked"].all() for frame in first)
    assert set(last[0]["moves"]) == {"start", "end", "scores", "box_id", "stride"}
    assert len(last[0]["moves"]["start"]) == len(last[0]["moves"]["box_id"]) == 0


@torch.no_grad()
def test_the_first_frame_and_frames_without_tracklets_are_the_detectors() -> None:
    """Nothing scores above 1, so nothing is tracked; also where tracking only serves the moves."""
    clip = pictures(3)
    (expected,) = whole(model(ALONE), [clip])
    for settings in (replace(RANDOM, carry_score=1.0), replace(RANDOM, tracking_first=False)):
        for frame, own in zip(whole(model(settings), [clip])[0], expected, strict=True):
            for name in ("boxes", "scores", "labels", "tracked"):
                assert torch.equal(frame[name], own[name]), name
    (tracked,) = whole(model(), [clip])
    assert torch.equal(tracked[0]["boxes"], expected[0]["boxes"])
    assert not torch.equal(tracked[1]["boxes"], expected[1]["boxes"])
    detector = model().detector
    features = detector.features(clip)
    dense = detector.dense(features, SIZE)
    regions = detector.head(features, detector.proposals(dense), SIZE)
    for frame, of_frame in zip(expected, regions, strict=True):
        found, _ = detector.detected(of_frame, SIZE)
        torch.testing.assert_close(frame["boxes"], found.boxes, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("merge_iou", "left"),
    [
        pytest.param(0.0, [], id="0: nothing beside what is tracked"),
        pytest.param(0.3, [B], id=".3"),
        pytest.param(0.7, [B], id=".7: an IoU of .8 goes"),
        pytest.param(0.9, [NEAR_A, B], id=".9: it stays"),
        pytest.param(1.0, [NEAR_A, B], id="1: only the same box goes"),
    ],
)
@torch.no_grad()
def test_a_tracked_box_is_taken_over_a_detection(
    merge_iou: float, left: list[list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = model(replace(RANDOM, merge_iou=merge_iou))
    monkeypatch.setattr(built, "track", lambda before, look, boxes: (boxes, torch.full((len(boxes),), 0.9)))
    features = built.detector.features(pictures(1))
    look = Look(SIZE, features, rows([A, NEAR_A, B], [0.9, 0.8, 0.7]), built.merged(features)[0])
    found, moves = built.follow(Memory(rows([A], [0.5]), look.seen), look)
    assert moves.ends.tolist() == [A]
    assert found.boxes[~found.tracked].tolist() == left
    # What is tracked has the second stage's scores, of every class that is likely enough and of the best.
    (regions,) = built.detector.head(features, [torch.tensor([A])], SIZE)
    scores = regions.logits.softmax(dim=1)[0, 1:]
    assert found.boxes[found.tracked].tolist() == [A] * int(found.tracked.sum())
    torch.testing.assert_close(found.scores[found.tracked], scores[found.labels[found.tracked]])
    assert int(scores.argmax()) in found.labels[found.tracked].tolist()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(RANDOM, id="tracking first"),
        pytest.param(replace(RANDOM, min_quality=1.0), id="all rejected"),
        pytest.param(replace(RANDOM, tracking_first=False), id="frame by frame"),
        pytest.param(replace(RANDOM, regress_tracked=False), id="by the tracker alone"),
    ],
)
@torch.no_grad()
def test_every_box_says_where_it_goes(settings: Settings) -> None:
    built = model(settings)
    clip = pictures(4)
    (found,) = whole(built, [clip])
    merged = [built.merged(built.detector.features(frame[None]))[0] for frame in clip]
    for t, frame in enumerate(found[:-1]):
        ends, quality = built.tracker.track(merged[t], merged[t + 1], frame["boxes"], SIZE)
        if settings.regress_tracked:
            (regions,) = built.detector.head(built.detector.features(clip[t + 1 : t + 2]), [ends], SIZE)
            ends = regions.refined(SIZE)[:, 0]  # the small detector has one box for all classes
        moves = frame["moves"]
        assert torch.equal(moves["start"], frame["boxes"])
        assert moves["box_id"].tolist() == list(range(len(frame["boxes"])))
        assert moves["stride"] == 1
        torch.testing.assert_close(moves["end"], ends, atol=1e-3, rtol=0)
        torch.testing.assert_close(moves["scores"], quality, atol=1e-4, rtol=0)
        assert (ends - frame["boxes"]).abs().max() > 1
    assert any(frame["tracked"].any() for frame in found) == (settings.tracking_first and settings.min_quality < 1)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(RANDOM, id="learned"),
        pytest.param(replace(RANDOM, moves=False, batch_frames=3), id="no moves"),
        pytest.param(replace(RANDOM, tracking_first=False, batch_frames=1), id="moves only"),
        pytest.param(ALONE, id="the detector alone"),
        pytest.param(replace(RANDOM, tracker="regression"), id="regression"),
        pytest.param(replace(RANDOM, tracker="farneback"), id="farneback"),
    ],
)
def test_neither_chunks_nor_other_clips_change_a_clip(settings: Settings) -> None:
    built = model(settings)
    clips = [pictures(5), pictures(4, seed=1), pictures(3, seed=2, size=(48, 64)), pictures(1, seed=3)]
    alone = [whole(built, [clip])[0] for clip in clips]
    assert [len(frames) for frames in alone] == [5, 4, 3, 1]
    for chunk in (1, 3, 99):
        for one, other in zip(alone, whole(built, clips, chunk, travel=True), strict=True):
            assert_same(one, other)


def test_the_memory_is_one_frames_and_comes_back_exactly() -> None:
    built = model()
    _, (memory,) = built.detect([pictures(5)], [None])
    stored = pickle.dumps(memory)
    assert isinstance(memory, Memory)
    assert len(stored) < 4 * memory.seen.numel() + 10_000  # of all five frames it would be five times that
    again = pickle.loads(stored)
    after = pictures(2, seed=1)
    (one,), _ = built.detect([after], [memory])
    (other,), _ = built.detect([after], [again])
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a["boxes"], b["boxes"])
        assert torch.equal(a["moves"]["end"], b["moves"]["end"])


@pytest.mark.parametrize("settings", [RANDOM, replace(RANDOM, moves=False), ALONE])
def test_clips_with_little_in_them(settings: Settings) -> None:
    built = model(settings)
    late = built.frames_after
    found, memories = built.detect([pictures(0), pictures(1)], [None, None])
    assert [len(frames) for frames in found] == [0, 1 - late]
    assert memories[0] is None
    assert built.finish(memories)[0] == []
    # Frames in which nothing is found, also after some in which there was something.
    detector: Any = built.detector
    torch.nn.init.constant_(detector.classes.bias[:1], 50.0)
    (nothing,), memories = built.detect([pictures(3)], memories[1:])
    assert len(nothing) == 3
    assert all(frame["tracked"].all() for frame in nothing[late:])  # what was there is followed for one frame
    assert nothing[2]["boxes"].shape == (0, 4)
    (more,), _ = built.detect([torch.zeros((2, 3, *SIZE), dtype=torch.uint8)], memories)
    assert [frame["boxes"].shape for frame in more] == [(0, 4), (0, 4)]


@pytest.mark.parametrize("tracker", ["learned", "regression", "farneback"])
@torch.no_grad()
def test_boxes_of_a_pixel_are_tracked(tracker: Any) -> None:
    built = model(replace(RANDOM, tracker=tracker))
    looks = list(built.look(pictures(2)))
    tiny = torch.tensor([[5.0, 5.0, 6.0, 6.0], [0.0, 0.0, 1.0, 1.0], [95.0, 63.0, 96.0, 64.0]])
    ends, quality = built.track(looks[0].seen, looks[1], tiny)
    assert ends.shape == (3, 4)
    assert ends.isfinite().all()
    assert ((quality >= 0) & (quality <= 1)).all()


@torch.no_grad()
def test_flow_follows_what_moves_and_doubts_what_it_cannot_see() -> None:
    built = model(replace(RANDOM, tracker="farneback"))
    coarse = torch.rand((1, 3, 8, 12), generator=torch.Generator().manual_seed(0))
    before = (torch.nn.functional.interpolate(coarse, SIZE, mode="bicubic")[0].clamp(0, 1) * 255).byte()
    after = before.roll((3, 4), (1, 2))
    look = next(built.look(after[None]))
    box = torch.tensor([[30.0, 20.0, 54.0, 40.0]])
    ends, quality = built.track(before, look, box)
    torch.testing.assert_close(ends, box + torch.tensor([4.0, 3, 4, 3]), atol=0.5, rtol=0)
    assert quality.item() > 0.9
    cut = next(built.look(pictures(1)))  # another scene
    assert built.track(before, cut, box)[1].item() < quality.item()


@torch.no_grad()
def test_regression_looks_where_the_box_was() -> None:
    built = model(replace(RANDOM, tracker="regression"))
    look = next(built.look(pictures(1)))
    boxes = torch.tensor([A, B])
    ends, quality = built.track(look.seen, look, boxes)
    (regions,) = built.detector.head(look.features, [boxes], SIZE)
    scores = regions.logits.softmax(dim=1)
    for i in range(2):
        torch.testing.assert_close(ends[i], regions.refined(SIZE)[i, int(scores[i, 1:].argmax())])
        torch.testing.assert_close(quality[i], scores[i, 1:].sum())


PAIR = [target([A, B], [1, 2]), target([NEAR_A, [63, 30, 83, 60]], [1, 2])]


@pytest.mark.parametrize("taught", ["detector", "tracker"])
def test_training_one_leaves_the_other_as_it_was(taught: Any) -> None:
    built = model(replace(RANDOM, train=taught)).train()
    built.eval()
    built.train()  # woken again, as after an evaluation
    before = copy.deepcopy(built.state_dict())
    optimizer = torch.optim.AdamW(built.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        torch.autograd.backward(list(built.losses([pictures(2)], [PAIR]).values()))
        optimizer.step()
    moved = {name for name, value in built.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.partition(".")[0] for name in moved} == {taught}
    assert any("running_mean" in name for name in moved)
    for name, parameter in built.named_parameters():
        assert parameter.requires_grad == name.startswith(taught), name


def test_the_tracker_learns_to_get_from_the_first_frame_to_the_last() -> None:
    built = model(replace(RANDOM, train="tracker", roi_iou="gt"))
    clips, middle = [pictures(3), pictures(2, seed=1)], target([[0, 0, 90, 60]], [1])
    targets = [[PAIR[0], middle, PAIR[1]], PAIR]
    torch.manual_seed(5)
    losses = built.losses(clips, targets)
    torch.manual_seed(5)
    sampled = [rois_and_goals(PAIR[0], PAIR[1], torch.default_generator, "gt", 4) for _ in clips]
    rois, goals = zip(*sampled, strict=True)
    here, later = (built.merged(built.detector.features(torch.stack([clip[at] for clip in clips]))) for at in (0, -1))
    expected = built.tracker.losses(here, later, rois, goals, SIZE)
    assert set(losses) == {"move", "quality"}
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-4, atol=1e-6)


def test_the_detector_learns_on_every_frame() -> None:
    built = model()
    losses = built.losses([pictures(2), pictures(1, seed=1)], [PAIR, PAIR[:1]])
    expected = built.detector.losses(torch.cat([pictures(2), pictures(1, seed=1)]), [*PAIR, PAIR[0]])
    assert losses.keys() == expected.keys() == {"objectness", "anchor_box", "class", "box"}
    assert all(torch.equal(losses[name], expected[name]) for name in losses)


@pytest.mark.parametrize("taught", ["detector", "tracker"])
@pytest.mark.parametrize(
    "pair",
    [
        pytest.param([target([], []), target([], [])], id="empty frames"),
        pytest.param([target([A], [1]), target([], [])], id="gone"),
        pytest.param([target([[5, 5, 6, 6]], [1]), target([[90, 60, 91, 61]], [1])], id="a pixel"),
        pytest.param([target([A], [1], [1]), target([A], [1], [1])], id="a class never seen"),
        pytest.param([target([A], [-1])], id="one frame, of unknown identity"),
    ],
)
def test_losses_and_gradients_are_finite(taught: Any, pair: list[dict[str, Tensor]]) -> None:
    built = model(replace(RANDOM, train=taught)).train()
    losses = built.losses([pictures(len(pair))] * 2, [pair] * 2)
    torch.autograd.backward(list(losses.values()))
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in built.parameters())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"merge_iou": 1.5}, "merge_iou is 1.5; it must be between 0 and 1"),
        ({"min_score": -0.1}, "min_score is -0.1; it must be between 0 and 1"),
        ({"max_tracked": 0}, "max_tracked is 0; it must be at least 1"),
        ({"per_object": 0}, "per_object is 0; it must be at least 1"),
        ({"train": "tracker", "tracker": "farneback"}, "train is 'tracker', but plug_and_play.tracker 'farneback'"),
        ({"backbone_weights": "x"}, "backbone_weights is 'x'; .* not for weights 'random' and detector 'small'"),
        ({"backbone_weights": "x", "detector": "hrnet_w32", "weights": "y"}, "backbone_weights .* not for weights 'y'"),
    ],
)
def test_settings_that_make_no_sense(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=f"plug_and_play.{says}"):
        replace(RANDOM, **given)


def test_the_papers_detectors_begin_with_a_backbone_of_imagenet(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: dict[str, Any] = {}

    def built(name: str, *_: Any, options: dict[str, Any] | None = None) -> detectors.Built:
        begun[name] = options
        return detectors.Built(SmallTwoStage(len(CLASSES)), CLASSES, None)

    monkeypatch.setattr(detectors, "build", lambda *given: built(*given[:-1], options=given[-1]))
    plug_and_play.build(replace(RANDOM, detector="hrnet_w32", backbone_weights="hrnet_w32.ms_in1k"))
    plug_and_play.build(RANDOM)
    assert begun == {"hrnet_w32": {"backbone_weights": "hrnet_w32.ms_in1k"}, "small": {}}


def test_weights_may_lack_the_tracker(tmp_path: Path) -> None:
    trained = model()
    both, alone = str(tmp_path / "both.safetensors"), str(tmp_path / "alone.safetensors")
    metadata = {"classes": json.dumps(CLASSES)}
    write_weights(Path(both), trained.network, metadata, torch.float32, extras=trained.extras)
    write_weights(Path(alone), trained.network, metadata, torch.float32)
    own = replace(RANDOM, classes=())
    loaded = plug_and_play.build(replace(own, weights=both))
    assert (loaded.classes, loaded.untrained) == (CLASSES, ())
    assert_same(whole(loaded, [pictures(3)])[0], whole(trained, [pictures(3)])[0])
    assert plug_and_play.build(replace(own, weights=alone)).untrained == ("tracker",)
    for unused in ({"tracker": "farneback"}, {"tracker": "regression"}, {"tracking_first": False, "moves": False}):
        given: dict[str, Any] = {"weights": alone, **unused}
        assert plug_and_play.build(replace(own, **given)).untrained == ()
    assert trained.untrained == ("tracker",)
    with pytest.raises(ValueError, match="tracker"):
        plug_and_play.build(replace(own, weights=both, tracker_channels=9))


@torch.no_grad()
def test_it_plugs_into_torchvisions_detectors() -> None:
    """As for users' own videos: weights of COCO, and a tracker that needs none."""
    built = model_of("fasterrcnn_mobilenet_v3_large_320_fpn", tracker="regression", min_quality=0.0)
    assert built.tracker.stride == 32
    frames = whole(built, [pictures(3, size=(96, 128))])[0]
    assert len(frames) == 3
    assert frames[1]["tracked"].any()
    assert len(frames[1]["moves"]["end"]) == len(frames[1]["boxes"])
    learned = replace(built.settings, tracker="learned", train="tracker", per_object=2)
    with_tracker = Model(learned, built.detector, built.classes).train()
    losses = with_tracker.losses([pictures(2, size=(96, 128))], [PAIR])
    assert all(loss.isfinite() for loss in losses.values())


def model_of(detector: Any, **given: Any) -> Model:
    """Random weights, all of whose boxes are likely enough to be given out."""
    torch.manual_seed(0)
    names = tuple(f"class {i}" for i in range(30))
    return plug_and_play.build(
        Settings(detector=detector, weights="random", classes=names, min_score=0.0, carry_score=0.0, **given)
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("detector", "channels", "stride"),
    [pytest.param("hrnet_w32", 480, 8, id="light"), pytest.param("resnext101_fpn_dcn", 768, 16, id="heavy")],
)
def test_the_papers_size(detector: str, channels: int, stride: int) -> None:
    built = model_of(detector)
    assert built.resize["short_side"] == 600
    assert built.detector.limits.max_iou == 0.45
    assert built.tracker.stride == stride
    assert built.tracker.state_dict()["template.0.0.weight"].shape == (256, channels, 1, 1)
    (first, last) = whole(built, [pictures(2, size=(600, 1000))])[0]
    assert len(first["boxes"]) > 0
    assert len(first["moves"]["end"]) == len(first["boxes"])
    assert first["moves"]["end"].isfinite().all()
    assert last["boxes"].isfinite().all()
