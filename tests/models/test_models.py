"""What `models` promises of every file in it, asked of all of them; a new one is picked up by being there."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from models.parts.weights import write_weights
from pipeline.config import available, load, resize_of
from pipeline.records import EVIDENCE, Resize

NAMES = available("model")
CLASSES = ("one", "two", "three")
SIZE = (64, 96)
KINDS = {  # of what a frame holds: type, and columns of one row
    "boxes": (torch.float32, (4,)),
    "scores": (torch.float32, ()),
    "labels": (torch.int64, ()),
    "class_scores": (torch.float32, (len(CLASSES) + 1,)),
    "embeddings": (torch.float32, None),  # as many as the model likes
    "tracklet_id": (torch.int64, ()),
    "tracked": (torch.bool, ()),
}
MOVES = {
    "start": (torch.float32, (4,)),
    "end": (torch.float32, (4,)),
    "scores": (torch.float32, ()),
    "box_id": (torch.int64, ()),
}
DELTAS = ("deltas", "anchor_deltas", "bbox_pred")  # the last layers of networks
LOGITS = ("classes", "objectness", "quality", "scores", "cls_logits")
Frame = Mapping[str, Any]


@pytest.fixture(params=NAMES)
def module(request: pytest.FixtureRequest) -> ModuleType:
    return load("model", request.param)


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest) -> Any:
    return scattered(request.param)


@lru_cache
def scattered(name: str) -> Any:
    """The model of default settings, untrained, whose boxes and scores all differ, but not by rounding alone."""
    torch.manual_seed(0)
    module = load("model", name)
    model = module.build(module.Settings(weights="random", classes=CLASSES))
    torch.manual_seed(0)
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            last = path.rpartition(".")[2]
            of_boxes, of_scores = last in DELTAS, last in LOGITS
            scale = 0.2 if of_boxes else 8 if of_scores else 1
            nn.init.normal_(layer.weight, std=scale / layer.weight[0].numel() ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model


def film(num_frames: int, seed: int = 0, size: tuple[int, int] = SIZE) -> Tensor:
    """uint8 (T, 3, H, W): coloured rectangles that drift over noise."""
    random = torch.Generator().manual_seed(seed)
    frames = torch.randint(60, 120, (num_frames, 3, *size), generator=random, dtype=torch.uint8)
    for _ in range(4):
        top, left = (int(torch.randint(0, side - 20, (), generator=random)) for side in size)
        colour = torch.randint(0, 256, (3, 1, 1), generator=random, dtype=torch.uint8)
        for t, frame in enumerate(frames):
            frame[:, top + t : top + t + 16, left + 2 * t : left + 2 * t + 18] = colour
    return frames


def run(model: Any, clips: Sequence[Tensor], chunk_frames: int, pickled: bool = False) -> list[list[Frame]]:
    """The frames of clips side by side, shown so many at a time; how late they come is checked on the way."""
    found: list[list[Frame]] = [[] for _ in clips]
    memories: list[object] = [None] * len(clips)
    for start in range(0, max(map(len, clips)), chunk_frames):
        chunks = [clip[start : start + chunk_frames] for clip in clips]
        given, memories = model.detect(chunks, memories)
        assert len(given) == len(memories) == len(clips)
        if pickled:
            memories = pickle.loads(pickle.dumps(memories))
        for frames, more, clip in zip(found, given, clips, strict=True):
            frames += more
            shown = min(start + chunk_frames, len(clip))
            assert shown - model.frames_after <= len(frames) <= shown, "a frame waits only for what it depends on"
    if model.frames_after:
        for frames, more in zip(found, model.finish(memories), strict=True):
            frames += more
    assert [len(frames) for frames in found] == [len(clip) for clip in clips], "every frame is given once"
    return found


def assert_alike(one: Sequence[Frame], other: Sequence[Frame]) -> None:
    """The same rows within 1e-3 px and 1e-4 of a score, but for those within 1e-4 of the lowest score given out."""
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        for rows, others in ((first, second), (second, first)):
            near = (rows["boxes"][:, None] - others["boxes"]).abs().amax(dim=2) < 1e-3
            near &= (rows["scores"][:, None] - others["scores"]).abs() < 1e-4
            near &= rows["labels"][:, None] == others["labels"]
            if "tracklet_id" in rows:
                near &= rows["tracklet_id"][:, None] == others["tracklet_id"]
            lowest = rows["scores"].min() if len(rows["scores"]) else 0
            assert (near.any(dim=1) | (rows["scores"] < lowest + 1e-4)).all()
        assert ("moves" in first) == ("moves" in second)
        if "moves" in first and len(first["moves"]["end"]) == len(second["moves"]["end"]):
            torch.testing.assert_close(first["moves"]["end"], second["moves"]["end"], atol=1e-3, rtol=0)


def assert_same(one: Sequence[Frame], other: Sequence[Frame]) -> None:
    """The same rows, bit for bit."""
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        assert first.keys() == second.keys()
        for (name, mine), theirs in zip(flat(first).items(), flat(second).values(), strict=True):
            assert torch.equal(mine, theirs), name


def flat(frame: Frame) -> dict[str, Tensor]:
    tensors = {name: value for name, value in frame.items() if name != "moves"}
    if "moves" in frame:
        tensors |= {f"moves.{name}": value for name, value in frame["moves"].items() if name != "stride"}
    return tensors


def test_settings_are_frozen_and_have_defaults_that_hold(module: ModuleType) -> None:
    settings: Any = module.Settings()
    assert settings.weights == "default"
    assert settings.classes == ()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.weights = "other"
    for field in dataclasses.fields(module.Settings):
        assert isinstance(getattr(settings, field.name), str | int | float | bool | tuple | None), field.name


def test_what_it_gives_is_evidence(module: ModuleType) -> None:
    assert isinstance(module.GIVES, frozenset)
    assert set(EVIDENCE) >= module.GIVES


def test_its_linker_can_work_with_what_it_gives(module: ModuleType) -> None:
    linker = load("linker", module.LINKER)
    assert linker.NEEDS | getattr(linker.Settings(), "needs", frozenset()) <= module.GIVES


def test_classes_must_be_known(module: ModuleType) -> None:
    with pytest.raises(ValueError, match="classes"):
        module.build(module.Settings(weights="random"))


def test_weights_that_are_not_there_are_said_to_be(module: ModuleType) -> None:
    with pytest.raises(FileNotFoundError, match=r"no-such-file\.safetensors"):
        module.build(module.Settings(weights="no-such-file.safetensors"))


def test_a_model_says_what_it_is(model: Any) -> None:
    assert not model.training
    assert tuple(model.classes) == CLASSES
    Resize(**model.resize)
    assert isinstance(model.frames_before, int)
    assert isinstance(model.frames_after, int)
    assert min(model.frames_before, model.frames_after) >= 0
    assert isinstance(model.network, nn.Module)
    assert isinstance(model.extras, Mapping)
    assert all(isinstance(extra, nn.Module) for extra in model.extras.values())
    assert model.weights is None
    assert isinstance(model.untrained, tuple)
    assert set(model.untrained) <= {"network", *model.extras}
    assert isinstance(model, nn.Module)


@pytest.mark.parametrize(
    ("said", "resize"),
    [
        ('{"short_side": 256, "long_side": 400}', Resize(short_side=256, long_side=400)),
        ('{"size": [96, 128]}', Resize(size=(96, 128))),
        ("{}", Resize()),
    ],
)
def test_frames_come_as_large_as_those_its_weights_were_trained_on(
    model: Any, said: str, resize: Resize, tmp_path: Path
) -> None:
    """Unless its settings say how large; and weights that do not say it leave it to the model."""
    module = sys.modules[type(model).__module__]
    assert resize_of(model) == Resize(**model.resize)
    for metadata, wanted in (({"resize": said}, resize), ({}, resize_of(model))):
        metadata["classes"] = json.dumps(CLASSES)
        write_weights(tmp_path / "w", model.network, metadata, torch.float32, model.extras)
        again = module.build(module.Settings(weights=str(tmp_path / "w")))
        assert resize_of(again) == wanted
        if hasattr(again.settings, "input_side"):
            square = module.build(module.Settings(weights=str(tmp_path / "w"), input_side=64))
            assert resize_of(square) == Resize(size=(64, 64))


def test_no_weights_are_named_for_a_reid_network_that_is_not_asked(module: ModuleType) -> None:
    if any(field.name == "reid_weights" for field in dataclasses.fields(module.Settings)):
        with pytest.raises(ValueError, match=r"no use for .*reid_weights 'some\.safetensors'; it must be"):
            module.Settings(reid_weights="some.safetensors")


def test_a_weight_file_holds_all_that_is_learned(model: Any) -> None:
    held = {id(tensor) for part in (model.network, *model.extras.values()) for tensor in part.parameters()}
    assert {id(tensor) for tensor in model.parameters() if tensor.requires_grad} <= held


@pytest.mark.parametrize("size", [SIZE, (32, 40), (50, 71)])
def test_frames_are_what_the_contract_says(model: Any, size: tuple[int, int]) -> None:
    (frames,) = run(model, [film(5, size=size)], 5)
    given = sys.modules[type(model).__module__].GIVES
    height, width = size
    for number, frame in enumerate(frames):
        assert {"boxes", "scores", "labels"} <= frame.keys() <= {*KINDS, "moves"}
        assert frame.keys() & set(EVIDENCE) <= given
        waited = number < len(frames) - model.frames_after
        assert given - ({"moves"} if not waited else set()) <= frame.keys(), "what it gives it gives in every frame"
        count = len(frame["boxes"])
        assert_kinds(frame, KINDS, count)
        assert (frame["boxes"] >= 0).all()
        assert (frame["boxes"] <= torch.tensor([width, height, width, height])).all()
        assert (frame["boxes"][:, :2] < frame["boxes"][:, 2:]).all()
        assert ((frame["scores"] >= 0) & (frame["scores"] <= 1)).all()
        assert ((frame["labels"] >= 0) & (frame["labels"] < len(CLASSES))).all()
        if "class_scores" in frame:
            assert ((frame["class_scores"] >= 0) & (frame["class_scores"] <= 1)).all()
        if "tracklet_id" in frame:
            named = frame["tracklet_id"][frame["tracklet_id"] != -1]
            assert (named >= 0).all()
            assert len(named.unique()) == len(named), "an object is in one place at a time"
        if "moves" in frame:
            moves = frame["moves"]
            assert moves.keys() == {*MOVES, "stride"}
            assert_kinds(moves, MOVES, len(moves["start"]))
            assert isinstance(moves["stride"], int)
            assert 1 <= moves["stride"] <= model.frames_after
            assert ((moves["box_id"] >= -1) & (moves["box_id"] < count)).all()
            tied = moves["box_id"] >= 0
            overlap = box_iou(moves["start"][tied], frame["boxes"][moves["box_id"][tied]]).diag()
            assert (overlap > 0.3).all(), "a move starts at its box, or at what others were voted into"
    # What the other tests compare is something, and not the same in every frame.
    assert all(len(frame["boxes"]) > 3 for frame in frames)
    assert all(not torch.equal(one["scores"][:3], other["scores"][:3]) for one, other in pairwise(frames))


def assert_kinds(found: Mapping[str, Any], kinds: Mapping[str, tuple[torch.dtype, Any]], count: int) -> None:
    for name, (dtype, columns) in kinds.items():
        if name in found:
            value = found[name]
            assert (value.dtype, value.device.type, value.shape[0]) == (dtype, "cpu", count), name
            assert columns is None or value.shape[1:] == columns, name
            assert not value.requires_grad
            assert value.isfinite().all(), name


def test_chunks_do_not_change_what_is_found(model: Any) -> None:
    clip = film(7)
    (whole,) = run(model, [clip], 7)
    for chunk_frames in (1, 3):
        assert_alike(run(model, [clip], chunk_frames)[0], whole)


@pytest.mark.parametrize("chunk_frames", [2, 6])
def test_clips_side_by_side_are_as_each_by_itself(model: Any, chunk_frames: int) -> None:
    clips = [film(6, 1), film(3, 2), film(4, 3, (50, 71))]
    together = run(model, clips, chunk_frames)
    for clip, frames in zip(clips, together, strict=True):
        assert_alike(frames, run(model, [clip], chunk_frames)[0])


def test_a_memory_can_be_stored(model: Any) -> None:
    """Pickled and read again between any two calls; and what was given before, again: a memory is never changed."""
    clip = film(5)
    assert_same(run(model, [clip], 2, pickled=True)[0], run(model, [clip], 2)[0])
    _, (memory,) = model.detect([clip[:3]], [None])
    (first,), (after,) = model.detect([clip[3:]], [memory])
    (again,), _ = model.detect([clip[3:]], [memory])
    assert_same(first, again)
    assert all(tensor.device.type == "cpu" for tensor in tensors_of(after))
    assert sum(tensor.untyped_storage().nbytes() for tensor in tensors_of(after)) <= 2 * sum(
        tensor.nbytes for tensor in tensors_of(after)
    ), "a memory holds what it needs, no views of whole batches"


def tensors_of(memory: object) -> list[Tensor]:
    """All tensors in a memory of dataclasses, sequences and mappings."""
    if isinstance(memory, Tensor):
        return [memory]
    inside: list[object] = []
    if dataclasses.is_dataclass(memory):
        inside = [getattr(memory, field.name) for field in dataclasses.fields(memory)]
    elif isinstance(memory, Mapping):
        inside = list(memory.values())
    elif isinstance(memory, tuple | list):
        inside = list(memory)
    return [tensor for each in inside for tensor in tensors_of(each)]


def test_a_clip_may_have_one_frame_or_none(model: Any) -> None:
    nothing, one, two = film(0), film(1), film(2, 1)
    given, memories = model.detect([nothing], [None])
    assert given == [[]]
    if model.frames_after:
        assert model.finish(memories) == [[]]
        assert model.finish([None]) == [[]]
    assert_same(run(model, [one], 1)[0], with_memory(model, one, memories[0]))
    empty, *others = run(model, [nothing, one, two], 8)
    assert empty == []
    assert_alike(others[0], run(model, [one], 8)[0])
    assert_alike(others[1], run(model, [two], 8)[0])
    assert model.detect([], []) == ([], [])


def with_memory(model: Any, clip: Tensor, memory: object) -> list[Frame]:
    (frames,), memories = model.detect([clip], [memory])
    return [*frames, *(model.finish(memories)[0] if model.frames_after else [])]


def test_training_mode_comes_and_goes(model: Any) -> None:
    clip = film(3)
    (before,) = run(model, [clip], 3)
    model.train()
    assert model.training
    model.eval()
    assert_same(run(model, [clip], 3)[0], before)


def truth(*rows: tuple[list[float], int, int], ignore: bool = False) -> dict[str, Tensor]:
    """A frame's truth: (box, label, track id) each."""
    return {
        "boxes": torch.tensor([box for box, _, _ in rows], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([label for _, label, _ in rows], dtype=torch.long),
        "track_ids": torch.tensor([track for *_, track in rows], dtype=torch.long),
        "ignore": torch.full((len(rows),), ignore, dtype=torch.bool),
    }


HERE, THERE = ([10.0, 12, 38, 40], 1, 4), ([14.0, 12, 42, 42], 1, 4)
OTHER, UNNAMED = ([50.0, 20, 80, 60], 0, 7), ([50.0, 20, 80, 60], 2, -1)
PIXEL = ([30.0, 20, 31, 21], 2, 4)
TRUTH = {
    "objects in both": (truth(HERE, OTHER), truth(OTHER, THERE)),
    "nothing": (truth(), truth()),
    "nothing in the first": (truth(), truth(HERE)),
    "nothing in the last": (truth(HERE), truth()),
    "one pixel": (truth(PIXEL), truth(PIXEL)),
    "all to be ignored": (truth(HERE, ignore=True), truth(THERE, ignore=True)),
    "nobody twice": (truth(HERE), truth(OTHER)),
    "no identities": (truth(UNNAMED), truth(UNNAMED)),
}


@pytest.mark.parametrize("num_frames", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_are_finite(name: str, num_frames: int) -> None:
    learner = copy.deepcopy(scattered(name)).train()
    clips = [film(num_frames, seed) for seed in range(2)]
    names = set()
    for case, frames in TRUTH.items():
        learner.zero_grad()
        torch.manual_seed(0)
        losses = learner.losses(
            clips, [frames[:num_frames], TRUTH["objects in both"][:num_frames]][:: 1 if case else -1]
        )
        names.add(frozenset(losses))
        assert all(loss.shape == () for loss in losses.values()), case
        assert all(loss.isfinite() for loss in losses.values()), case
        total = sum(losses.values(), start=torch.zeros(()))
        assert total.requires_grad, case
        total.backward()
        gradients = [tensor.grad for tensor in learner.parameters() if tensor.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients), case
        assert any(gradient.any() for gradient in gradients), case
    assert len(names) == 1, "losses have the same names whatever is in the frames"


@pytest.mark.parametrize("case", TRUTH)
@pytest.mark.parametrize("name", NAMES)
def test_a_batch_may_be_of_this_alone(name: str, case: str) -> None:
    learner = copy.deepcopy(scattered(name)).train()
    torch.manual_seed(0)
    losses = learner.losses([film(2)], [TRUTH[case]])
    total = sum(losses.values(), start=torch.zeros(()))
    if total.requires_grad:
        total.backward()
    assert total.isfinite()
    assert all(tensor.grad is None or tensor.grad.isfinite().all() for tensor in learner.parameters())
