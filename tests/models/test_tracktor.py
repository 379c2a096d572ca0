"""Tracktor as a model: against plain steps and PnP's regression tracker, what each '+' brings, weights, training."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from catalogs import synthetic
from models import plug_and_play, tracktor
from models.parts import faster_rcnn, reid
from models.parts.anchors import has_area
from models.parts.regressed_tracks import State, Tracks
from models.parts.weights import write_weights
from models.tracktor import Memory, Model, Settings

SIZE = (64, 96)
RANDOM = Settings(weights="random", classes=("cat", "dog"))
PLUS = replace(RANDOM, camera="ecc", reid="small", reid_weights="random")
PLUS_TRAINED = Settings(camera="ecc", reid="small", batch_frames=6)

Frame = dict[str, Tensor]


def scattered(settings: Settings, seed: int = 3) -> Model:
    """Not trained, but what it says differs from box to box, boxes move, and some are tracked."""
    torch.manual_seed(seed)
    built = tracktor.build(settings)
    detector: Any = built.detector
    with torch.no_grad():
        for layer in (detector.objectness, detector.anchor_deltas, detector.classes, detector.deltas):
            layer.weight.normal_(0, 0.2)
        for module in built.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train().momentum = 1.0
        detector.dense(features := detector.features(pictures(2, seed=9)), SIZE)
        detector.head(features, [torch.tensor([[10.0, 10, 30, 30]])] * 2, SIZE)
    return built.eval()


def pictures(count: int, seed: int = 0, size: tuple[int, int] = SIZE) -> Tensor:
    """Frames of coloured tiles that drift by a pixel to the left."""
    random = torch.Generator().manual_seed(seed)
    tiles = torch.randint(0, 256, (3, size[0] // 8, (size[1] + count) // 8 + 1), dtype=torch.uint8, generator=random)
    whole = tiles.repeat_interleave(8, 1).repeat_interleave(8, 2)
    return torch.stack([whole[:, :, t : t + size[1]] for t in range(count)])


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
    return found


def ids(frame: Frame) -> list[int]:
    """Of the tracks in it, those that were followed first."""
    return [track for track in frame["tracklet_id"].tolist() if track >= 0]


def video(number: int) -> Tensor:
    """uint8 (T, 3, 128, 160) of synthetic-v1's test split."""
    frames, _ = synthetic.render("test", number)
    return torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))


def blank(count: int) -> Tensor:
    """As many frames of such a video in which there is nothing."""
    return torch.full((count, 3, 128, 160), 100, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sigma_active": 1.5}, "tracktor.sigma_active is 1.5; it must be between 0 and 1"),
        ({"reid_iou": -0.1}, "tracktor.reid_iou is -0.1; it must be between 0 and 1"),
        ({"reid_frames": 0}, "tracktor.reid_frames is 0; it must be at least 1"),
        ({"camera_side": 0}, "tracktor.camera_side is 0; it must be at least 1"),
        ({"patience": -1}, "tracktor.patience is -1; it must be at least 0"),
        ({"reid_distance": 200.0}, "tracktor.reid_distance is 200.0; it must be between 0 and 2"),
        ({"train": "reid"}, "tracktor.reid 'none' has nothing to learn; it must be 'small' or 'resnet50'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**wrong)


def test_frames_are_resized_as_asked() -> None:
    assert tracktor.build(RANDOM).resize == {}
    assert tracktor.build(replace(RANDOM, input_side=1024)).resize == {"size": (1024, 1024)}


@torch.no_grad()
def test_the_first_frame_and_tracks_that_never_start_are_the_detectors() -> None:
    clip = pictures(3)
    built, never = scattered(RANDOM), scattered(replace(RANDOM, sigma_det=1.0))
    detector = built.detector
    for number, frame in enumerate(whole(never, [clip])[0]):
        features = detector.features(clip[number : number + 1])
        boxes = detector.proposals(detector.dense(features, SIZE))
        (regions,) = detector.head(features, boxes, SIZE)
        expected, _ = detector.detected(regions, SIZE)
        assert len(expected.boxes) > 3
        torch.testing.assert_close(frame["boxes"], expected.boxes, atol=1e-2, rtol=0)  # in a batch and alone
        torch.testing.assert_close(frame["scores"], expected.scores, atol=1e-4, rtol=0)
        assert torch.equal(frame["labels"], expected.labels)
        assert not frame["tracked"].any()
        assert (frame["tracklet_id"] == -1).all()
    first = whole(built, [clip])[0][0]
    assert len(ids(first)) > 0
    assert sorted(first["scores"].tolist()) == pytest.approx(sorted(whole(never, [clip])[0][0]["scores"].tolist()))


@torch.no_grad()
def test_a_single_box_goes_where_plug_and_plays_regression_takes_it() -> None:
    """With one class "any object" and "this class" are one, and both let a box live by .5 of it."""
    alone = replace(RANDOM, classes=("cat",))
    ours = scattered(alone)
    theirs = plug_and_play.build(
        plug_and_play.Settings(weights="random", classes=("cat",), tracker="regression", moves=False)
    )
    theirs.detector.load_state_dict(ours.detector.state_dict())
    clip = pictures(2, seed=1)
    (_, look), (_, their_look) = ours.look(clip), theirs.look(clip)
    boxes = ours.detector.proposals(ours.detector.dense(ours.detector.features(clip[:1]), SIZE))[0]
    lived = 0
    for box in boxes:
        ends, quality = theirs.track(torch.zeros(0), their_look, box[None])
        zero = torch.zeros(1, dtype=torch.long)
        track = Tracks(box[None], labels=zero, ids=zero, missed=zero, appearance=torch.zeros(1, 10, 0), known=zero)
        row, _ = ours.follow(Memory(State(track, ours.start().state.inactive, 1)), look)
        followed = row["tracked"].any()
        assert followed == ((quality > 0.5) & has_area(ends))
        if followed:
            torch.testing.assert_close(row["boxes"][:1], ends)
            assert row["scores"][0] >= quality[0] - 1e-6  # or that of a detection that it stands for
            lived += 1
    assert 0 < lived < len(boxes)


def test_chunks_clips_beside_it_and_stored_memories_change_nothing() -> None:
    """With all that is remembered; the shared contract asks the same of plain Tracktor."""
    built = tracktor.build(PLUS_TRAINED)
    clip = torch.cat([video(2)[:3], blank(1), video(2)[3:5], blank(1)])
    expected = whole(built, [clip])[0]
    assert [len(ids(frame)) for frame in expected] == [2, 2, 2, 0, 2, 2, 0]
    for frames in (whole(built, [clip], 2, travel=True)[0], whole(built, [clip, video(0)[:4]], 3)[0]):
        for frame, same in zip(frames, expected, strict=True):
            assert torch.equal(frame["tracklet_id"], same["tracklet_id"])
            torch.testing.assert_close(frame["boxes"], same["boxes"], atol=1e-3, rtol=0)
            torch.testing.assert_close(frame["scores"], same["scores"], atol=1e-4, rtol=0)
    _, (memory,) = built.detect([clip], [None])
    assert isinstance(memory, Memory)
    assert memory.grey is not None
    assert memory.grey.untyped_storage().nbytes() == memory.grey.nbytes == 128 * 160
    assert len(memory.state.inactive.ids) == 2
    assert memory.state.inactive.known.tolist() == [5, 5]


def test_each_network_is_asked_once_a_frame_and_a_batch_of_frames_seen_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = tracktor.build(PLUS_TRAINED)
    calls: dict[str, list[int]] = {"features": [], "regressed": [], "embed": []}

    def counted(owner: object, name: str, size: int) -> None:
        original = getattr(owner, name)

        def wrapper(*arguments: Any) -> Any:
            calls[name].append(len(arguments[size]))
            return original(*arguments)

        monkeypatch.setattr(owner, name, wrapper)

    counted(built.detector, "features", 0)
    counted(built.detector, "regressed", 1)
    counted(built.reid, "embed", 1)
    found, _ = built.detect([video(2)[:5], video(0)[:3]], [None, None])
    assert calls["features"] == [6, 2], "three frames of both, then two of the longer one"
    assert len(calls["regressed"]) == len(calls["embed"]) == 8
    tracks = sorted(len(ids(frame)) for frames in found for frame in frames)
    assert sorted(calls["embed"]) == tracks, "of all tracks, followed and new"
    assert max(calls["regressed"]) > 1


def test_frames_in_which_nothing_is_found() -> None:
    built = scattered(replace(PLUS, min_score=1.0))
    for frame in whole(built, [pictures(3)])[0]:
        assert {name: tuple(value.shape) for name, value in frame.items()} == {
            "boxes": (0, 4),
            "scores": (0,),
            "labels": (0,),
            "tracklet_id": (0,),
            "tracked": (0,),
        }


def test_it_follows_what_a_trained_detector_finds() -> None:
    """Objects that stand still in a still frame keep their tracks, whatever their number."""
    built = tracktor.build(Settings())
    (frames,), _ = built.detect([video(2)[:1].repeat(4, 1, 1, 1)], [None])
    assert ids(frames[0]) == ids(frames[1]) == ids(frames[3]) == [0, 1]
    assert frames[0]["tracked"].sum() == 0
    assert all(frame["tracked"].sum() == 2 for frame in frames[1:])
    assert built.untrained == ()


@pytest.mark.parametrize("camera_side", [None, 64])
def test_a_camera_that_jumps_loses_objects_unless_its_motion_is_known(camera_side: int | None) -> None:
    """Two windows of one frame 12 px apart, down and to the right: objects are some 33 px large."""
    frame, jump = video(2)[0], 12
    height, width = (side - jump for side in frame.shape[1:])
    clip = torch.stack([frame[:, :height, :width]] * 2 + [frame[:, jump:, jump:]] * 2)
    plain, moved = (
        tracktor.build(Settings(camera=camera, camera_side=camera_side)).detect([clip], [None])[0][0]
        for camera in ("none", "ecc")
    )
    assert ids(plain[1]) == ids(moved[1]) == [0, 1]
    assert not set(ids(plain[2])) & {0, 1}
    assert ids(moved[2]) == ids(moved[3]) == [0, 1]
    before, after = (moved[number]["boxes"][:2] for number in (1, 2))
    torch.testing.assert_close(before - after, torch.full((2, 4), float(jump)), atol=4, rtol=0)


@pytest.mark.parametrize(
    ("settings", "same", "again"),
    [
        (Settings(), True, [2, 3]),
        (Settings(reid="small"), True, [0, 1]),
        (Settings(reid="small", patience=2), True, [2, 3]),  # for so long it does not wait
        (Settings(reid="small"), False, [2, 3]),  # what is there now looks like others
        (Settings(reid="small", reid_distance=2.0), False, [0, 1]),
    ],
)
def test_an_identity_outlives_an_absence_only_by_its_looks(settings: Settings, same: bool, again: list[int]) -> None:
    """A frame twice, three in which there is nothing, and the frame again, or the same patterns in other colours."""
    built = tracktor.build(settings)
    assert built.untrained == ()
    frame = video(2)[:1]
    last = frame if same else frame[:, [1, 2, 0]]
    (rows,), _ = built.detect([torch.cat([frame, frame, blank(3), last, last])], [None])
    assert [ids(row) for row in rows[:2]] == [[0, 1]] * 2
    assert [ids(row) for row in rows[2:5]] == [[]] * 3
    assert [sorted(ids(row)) for row in rows[5:]] == [again] * 2
    assert rows[5]["tracked"].sum() == 0
    assert rows[6]["tracked"].sum() == 2


def test_coco_weights_are_loaded_by_name_and_from_a_file(
    tmp_path: Path, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names and shapes as published, random numbers in them, from a server in place of the real one and from a file."""
    detector: Any = "fasterrcnn_mobilenet_v3_large_320_fpn"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    architecture = faster_rcnn.ARCHITECTURES[detector]
    state = architecture.builder(weights=None, weights_backbone=None).state_dict()
    tensors = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    torch.save(tensors, tmp_path / "new.pth")
    name = f"coco-{hashlib.sha256((tmp_path / 'new.pth').read_bytes()).hexdigest()[:8]}.pth"
    (tmp_path / "new.pth").rename(tmp_path / name)
    monkeypatch.setattr(architecture.weights.COCO_V1.value, "url", f"{served}/{name}")

    plain = tracktor.build(Settings(detector=detector))
    plus = tracktor.build(Settings(detector=detector, weights=str(tmp_path / name), camera="ecc", reid="small"))
    for built in (plain, plus):
        held = built.network.state_dict()
        assert all(torch.equal(held[key], tensor) for key, tensor in tensors.items())
        assert (len(built.classes), built.classes[0]) == (80, "person")
        assert built.weights is not None
        assert built.weights.missing == built.untrained
    assert (plain.untrained, plus.untrained) == ((), ("reid",))
    (frames,), _ = plain.detect([pictures(2)], [None])
    assert len(frames) == 2


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, Path]:
    """Weight files of a small Tracktor++, of its detector alone, and of its ReID network alone."""
    built = scattered(PLUS)
    assert built.reid is not None
    metadata = {"classes": json.dumps(built.classes)}
    files = {name: tmp_path / f"{name}.safetensors" for name in ("both", "detector", "reid")}
    write_weights(files["both"], built.network, metadata, torch.float32, built.extras)
    write_weights(files["detector"], built.network, metadata, torch.float32)
    write_weights(files["reid"], built.reid, {}, torch.float32)
    return files


@pytest.mark.parametrize(
    ("weights", "kind", "reid_weights", "untrained"),
    [
        ("both", "none", "default", ()),  # plain Tracktor passes over the ReID network in the file
        ("both", "small", "default", ()),
        ("both", "small", "reid", ()),
        ("both", "small", "random", ("reid",)),
        ("detector", "none", "default", ()),
        ("detector", "small", "default", ("reid",)),
        ("detector", "small", "both", ()),
        ("detector", "small", "reid", ()),
        ("both", "resnet50", "random", ("reid",)),
    ],
)
def test_weights_of_both_networks_in_one_file_or_two(
    weights: str, kind: Any, reid_weights: str, untrained: tuple[str, ...], stored: dict[str, Path]
) -> None:
    source = str(stored.get(reid_weights, reid_weights))
    built = tracktor.build(Settings(weights=str(stored[weights]), reid=kind, reid_weights=source))
    assert built.classes == ("cat", "dog")
    assert built.untrained == untrained
    assert set(built.extras) == (set() if kind == "none" else {"reid"})
    in_file = kind == "none" or (weights, reid_weights) == ("both", "default")
    assert built.weights is not None
    assert built.weights.missing == (() if in_file else ("reid",)), "what the file of the detector holds not"
    other = scattered(PLUS)
    assert_same_weights(built.network, other.network)
    if kind == "small" and not untrained:
        assert built.reid is not None
        assert other.reid is not None
        assert_same_weights(built.reid, other.reid)


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    """But for batch norm's counters, which files leave out."""
    tensors = other.state_dict()
    for key, value in one.state_dict().items():
        assert key.endswith("num_batches_tracked") or torch.equal(value, tensors[key]), key


def test_weights_of_another_reid_network_are_refused(stored: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"hold reid 'small', not 'resnet50'; give a file of .*reid_weights"):
        tracktor.build(Settings(weights=str(stored["both"]), reid="resnet50"))
    with pytest.raises(FileNotFoundError, match=r"no-such-file\.safetensors"):
        tracktor.build(Settings(weights=str(stored["both"]), reid="small", reid_weights="no-such-file.safetensors"))


def truth(boxes: list[list[float]], track_ids: list[int]) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes),
        "labels": torch.zeros(len(track_ids), dtype=torch.long),
        "track_ids": torch.tensor(track_ids),
        "ignore": torch.zeros(len(track_ids), dtype=torch.bool),
    }


@pytest.mark.parametrize(("learner", "names"), [("detector", None), ("reid", {"reid"})])
def test_one_of_the_networks_learns_and_the_other_stays(learner: Any, names: set[str] | None) -> None:
    built = scattered(replace(PLUS, train=learner)).train()
    frozen = built.detector if learner == "reid" else built.reid
    taught = built.reid if learner == "reid" else built.detector
    assert frozen is not None
    assert taught is not None
    before = copy.deepcopy(frozen.state_dict())
    targets = [[truth([[10.0, 10, 30, 40], [50, 20, 80, 50]], [1, 2])] * 2] * 2
    torch.manual_seed(0)
    losses = built.losses([pictures(2), pictures(2, seed=4)], targets)
    assert names is None or set(losses) == names
    torch.autograd.backward(list(losses.values()))
    assert all(parameter.grad is None for parameter in frozen.parameters())
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in taught.parameters())
    assert all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())
    assert not frozen.training
    assert taught.training


def test_reid_is_built_frozen_and_wakes_only_to_learn() -> None:
    for settings, learns in ((PLUS, False), (replace(PLUS, train="reid"), True)):
        built = tracktor.build(settings)
        assert isinstance(built.reid, reid.Reid)
        assert not built.reid.training
        assert all(parameter.requires_grad == learns for parameter in built.reid.parameters())


@pytest.mark.slow
def test_tracktor_plus_plus_of_paper_size_follows() -> None:
    built = tracktor.build(
        Settings(
            detector="fasterrcnn_resnet50_fpn",
            weights="random",
            classes=("person",),
            camera="ecc",
            reid="resnet50",
            reid_weights="random",
            sigma_det=0.3,  # it says .5 of everything
            sigma_active=0.3,
        )
    )
    assert built.untrained == ("reid",)
    built.detector.limits = replace(built.detector.limits, max_detections=4)
    (frames,), _ = built.detect([pictures(2, size=(256, 320))], [None])
    assert ids(frames[0]) == [0, 1, 2, 3][: len(ids(frames[0]))] != []
    assert set(ids(frames[0])) & set(ids(frames[1])[: int(frames[1]["tracked"].sum())])
