"""RetinaTrack: which anchor's embedding a detection has, what triplets are made of, its variants and their weights."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import box_iou

from models import retina_track
from models.parts import single_shot
from models.parts.retina_head import of_anchors, rows
from models.parts.retina_network import RetinaNetwork
from models.parts.retina_triplets import clips_triplet_loss, known
from models.parts.small_detector import SmallDetector
from models.parts.weights import write_weights
from models.retina_track import Model, Settings, shipped_name

CLASSES = ("a", "b")
UNTRAINED = Settings(weights="random", classes=CLASSES)


def built(seed: int = 0, **changes: Any) -> Model:
    """A small network of random weights whose anchors all say something else, with a branch or without."""
    model = retina_track.build(replace(UNTRAINED, **changes))
    torch.manual_seed(seed)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            last = name.rpartition(".")[2]
            spread = 0.2 if last == "deltas" else 8 if last in ("classes", "objectness") else 1
            nn.init.normal_(layer.weight, std=spread / layer.weight[0].numel() ** 0.5)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return model


def noise(num_frames: int, size: tuple[int, int] = (64, 96), seed: int = 0) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_frames, 3, *size), generator=random, dtype=torch.uint8)


def truth(*found: tuple[list[float], int], ignore: bool = False) -> dict[str, Tensor]:
    """A frame's truth: (box, track id) each, all of the first class."""
    return {
        "boxes": torch.tensor([box for box, _ in found], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.zeros(len(found), dtype=torch.long),
        "track_ids": torch.tensor([track for _, track in found], dtype=torch.long),
        "ignore": torch.full((len(found),), ignore, dtype=torch.bool),
    }


class Planted(nn.Module):
    """A branch whose embedding of every anchor of every frame is planted: (A', E)."""

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        self.embeddings = embeddings

    def forward(self, instances: list[Tensor]) -> Tensor:
        return self.embeddings.expand(len(instances[0]), -1, -1)


@pytest.mark.parametrize(("head", "share"), [("per_anchor", 1), ("separate", 6), ("shared", 6)])
def test_each_detection_has_the_embedding_of_its_own_anchor(head: Any, share: int) -> None:
    """The planted embedding is the anchor's index, or its cell's: the anchor of that index was regressed to the box."""
    model, clip = built(head=head, min_score=0.3), noise(2)
    outputs, _ = model.look(clip)
    num_anchors = len(outputs[0].anchors)
    model.branch = Planted(torch.arange(num_anchors / share)[:, None])  # type: ignore[assignment]
    ((first, second),), _ = model.detect([clip], [None])
    for frame, of_anchors_ in zip((first, second), outputs, strict=True):
        assert len(frame["boxes"]) > 10
        index = frame["embeddings"].long() * share + torch.arange(share)  # (N, share)
        far = (of_anchors_.boxes[index] - frame["boxes"][:, None]).abs().amax(dim=2)
        nearest = far.argmin(dim=1, keepdim=True)
        assert far.min(dim=1).values.max() < 1e-3
        scores = of_anchors_.scores[index.gather(1, nearest).squeeze(1), frame["labels"]]
        torch.testing.assert_close(scores, frame["scores"], atol=1e-5, rtol=0)
    assert not torch.equal(first["embeddings"], second["embeddings"])


def test_embeddings_are_the_branchs_or_f_ik_or_none() -> None:
    clip = noise(1)
    learned, instance, none = (built(embedding=kind) for kind in ("learned", "instance", "none"))
    frames = {model: model.detect([clip], [None])[0][0][0] for model in (learned, instance, none)}
    assert all(torch.equal(frame["boxes"], frames[none]["boxes"]) for frame in frames.values())
    assert frames[learned]["embeddings"].shape == (len(frames[none]["boxes"]), 64)
    assert frames[instance]["embeddings"].shape == (len(frames[none]["boxes"]), 32)
    assert "embeddings" not in frames[none]
    assert isinstance(instance.detector, RetinaNetwork)
    with torch.no_grad():
        f_ik = rows(instance.detector(clip).head.instances)[0]
    for embedding in frames[instance]["embeddings"]:
        assert ((f_ik - embedding).abs().amax(dim=1) < 1e-6).any()
    assert (learned.settings.gives, none.settings.gives) == ({"embeddings"}, frozenset())


# Two objects whose nearest anchors lie in one cell: upright and lying, around one centre.
CENTRE = (44.0, 36.0)
UPRIGHT, LYING = (
    [CENTRE[0] - w / 2, CENTRE[1] - h / 2, CENTRE[0] + w / 2, CENTRE[1] + h / 2] for w, h in ((15, 30), (30, 15))
)


@pytest.mark.parametrize(("head", "collide"), [("per_anchor", False), ("separate", True), ("shared", True)])
def test_anchors_that_collide_share_an_embedding_only_in_the_vanilla_wiring(head: Any, collide: bool) -> None:
    model, clip = built(head=head), noise(1)
    (outputs,), (embeddings,) = model.look(clip)
    boxes = torch.tensor([UPRIGHT, LYING])
    upright, lying = box_iou(boxes, outputs.anchors).argmax(dim=1).tolist()
    assert upright != lying
    assert upright // 6 == lying // 6, "of one cell"
    assert embeddings is not None
    one, other = of_anchors(embeddings, torch.tensor([upright, lying]), len(outputs.anchors))
    assert torch.equal(one, other) == collide
    if not collide:
        assert (one - other).abs().max() > 0.1


ANCHORS = torch.tensor([[0.0, 0, 10, 10], [0, 1, 10, 11], [0, 4, 10, 14], [30, 30, 40, 40], [60, 60, 70, 70]])


@pytest.mark.parametrize(
    ("target", "anchors", "ids"),
    [
        pytest.param(truth(([0, 0, 10, 10], 3)), [0, 1], [3, 3], id="from .7 on: .82, not .43"),
        pytest.param(truth(([0, 0, 10, 10], 3), ([30, 30, 40, 34], 5)), [0, 1, 3], [3, 3, 5], id="or the nearest"),
        pytest.param(truth(([0, 0, 10, 10], 3), ([30, 30, 40, 40], -1)), [0, 1], [3, 3], id="unknown"),
        pytest.param(truth(([0, 0, 10, 10], 3), ignore=True), [], [], id="to be ignored"),
        pytest.param(truth(), [], [], id="nothing"),
    ],
)
def test_triplets_are_made_of_anchors_that_tell_whom_they_show(
    target: dict[str, Tensor], anchors: list[int], ids: list[int]
) -> None:
    embeddings = torch.arange(5.0)[:, None]
    found, found_ids = known(ANCHORS, embeddings, target, Settings().identity_iou)
    assert found.flatten().tolist() == anchors
    assert found_ids.tolist() == ids


def test_triplets_are_of_one_clip_and_of_both_its_frames() -> None:
    """Two clips whose only objects have different ids, and equal ones: no negative within either, so nothing to learn.

    With a second object in the clip's other frame there is one.
    """
    model = built().train()
    here, there = ([10.0, 10, 40, 40], 1), ([50.0, 20, 80, 50], 2)
    clips = [noise(2, seed=1), noise(2, seed=2)]
    apart = model.losses(clips, [[truth(here), truth(here)], [truth(there), truth(there)]])
    assert float(apart["triplet"].detach()) == 0
    assert float(model.losses(clips, [[truth(here), truth(there)], [truth(there), truth()]])["triplet"].detach()) > 0


def test_at_unit_length_only_cosines_are_taught() -> None:
    """Embeddings that differ in length alone: apart as they come, equal at one length."""
    embeddings = torch.tensor([[1.0, 0], [9, 0], [1, 0], [1, 0], [1, 0]])[None]
    target = truth(([0, 0, 10, 10], 1), ([30, 30, 40, 40], 2), ([60, 60, 70, 70], 3))
    embeddings[0, 3] *= 5
    # Of two such clips it is the mean.
    losses = [
        float(
            clips_triplet_loss(ANCHORS, embeddings.repeat(2, 1, 1), [1, 1], [target] * 2, min_iou=0.9, unit_length=unit)
        )
        for unit in (False, True)
    ]
    # Distances to the nearest other: of the first and the last 0, of the one in the middle 4; no other positive.
    softplus = [math.log(1 + math.exp(0.1 - distance)) for distance in (0, 4, 0)]
    assert losses == [pytest.approx(sum(softplus) / 3, rel=1e-5), pytest.approx(softplus[0], rel=1e-5)]


def test_settings_say_which_embeddings_are_taught_and_how() -> None:
    """Two anchors that objects fill have embeddings of lengths 1 and 4, and all around them one that is the first's."""
    clip = noise(1)

    def taught(**changes: Any) -> float:
        model = built(**changes).train()
        assert isinstance(model.detector, RetinaNetwork)
        anchors = model.detector(clip).anchors
        one, other = 6 * (4 * 12 + 2), 6 * (4 * 12 + 9)  # in the fifth of the rows of twelve cells
        embeddings = torch.ones(len(anchors), 1)
        embeddings[other] = 4
        model.branch = Planted(embeddings)  # type: ignore[assignment]
        target = truth((anchors[one].tolist(), 1), (anchors[other].tolist(), 2))
        return float(model.losses([clip], [[target]])["triplet"])

    alike, apart = (math.log1p(math.exp(0.1 - distance)) for distance in (0, 3))
    assert taught(unit_length=False) == pytest.approx(apart, rel=1e-4)
    assert taught() == pytest.approx(alike, rel=1e-4), "at unit length they are equal"
    assert taught(unit_length=False, identity_iou=0.3) > 2 * alike, "as are anchors that see less of both objects"


def test_limits_of_what_is_given_out() -> None:
    clip = noise(1)

    def given(**changes: Any) -> dict[str, Tensor]:
        (((frame,),), _) = built(**{"min_score": 0.1} | changes).detect([clip], [None])
        return frame

    frame = given()
    assert len(frame["boxes"]) > 10
    first = given(max_detections=3)
    assert all(torch.equal(first[name], rows_[:3]) for name, rows_ in frame.items()), "the best of all"
    assert torch.equal(given(min_score=0.4)["scores"], frame["scores"][frame["scores"] > 0.4])
    assert len(given(top_k=1)["boxes"]) == 2, "one of each level"
    assert given(min_score=1.0)["embeddings"].shape == (0, 64), "of nothing too"
    offline = given(min_score=1.0, embedding="reid", reid_weights="random")
    assert len(offline["embeddings"]) == 0 < offline["embeddings"].shape[1]
    assert closest(given(nms_iou=0.2)) <= 0.2 < closest(frame) <= 0.6


def closest(frame: dict[str, Tensor]) -> float:
    """The largest IoU of two boxes of one class."""
    same = frame["labels"][:, None] == frame["labels"]
    return float((box_iou(frame["boxes"], frame["boxes"]) * same).fill_diagonal_(0).max())


def test_in_mixed_precision_losses_and_rows_are_as_exact_as_ever() -> None:
    """What the paper trains with (section 3.4): layers in bfloat16; what is made of what they say is float32."""
    model, clip = built().train(), noise(2)
    targets = [[truth(([10.0, 10, 40, 40], 1), ([50.0, 20, 80, 50], 2))] * 2]
    exact = model.losses([clip], targets)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.losses([clip], targets)
        ((frame, _),), _ = model.eval().detect([clip], [None])
    for name, loss in mixed.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], rtol=0.1, atol=0)
    torch.autograd.backward(list(mixed.values()))
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())
    assert all(frame[name].dtype == torch.float32 for name in ("boxes", "scores", "embeddings"))


def test_without_triplets_there_is_no_branch_or_it_learns_nothing() -> None:
    clips, targets = [noise(2)], [[truth(([10.0, 10, 40, 40], 1), ([50.0, 20, 80, 50], 2))] * 2]
    for changes, taught in (
        ({}, True),
        ({"triplet": False}, False),
        ({"embedding": "instance"}, False),
        ({"embedding": "none"}, False),
        ({"embedding": "none", "triplet": True}, True),
    ):
        model = built(**changes).train()
        losses = model.losses(clips, targets)
        torch.autograd.backward(list(losses.values()))
        assert ("triplet" in losses) == taught, changes
        assert (model.branch is not None) == (taught or model.settings.embeds == "learned"), changes
        for weight in model.extras["embedding"].parameters() if model.extras else ():
            assert (weight.grad is not None) == taught, changes


def test_input_side_makes_squares_of_frames() -> None:
    assert built().resize == {}
    assert built(input_side=64).resize == {"size": (64, 64)}


def test_an_offline_network_looks_at_what_scores_enough() -> None:
    clip = noise(2)
    enough = float(built(embedding="none").detect([clip], [None])[0][0][0]["scores"].median())
    model = built(embedding="reid", reid_weights="random", reid_score=enough)
    assert model.reid is not None
    assert model.untrained == ("reid",)
    ((frame, _),), _ = model.detect([clip], [None])
    worth = frame["scores"] >= enough
    assert 0 < worth.sum() < len(worth)
    assert not frame["embeddings"][~worth].any()
    torch.testing.assert_close(frame["embeddings"][worth], model.reid.embed(clip[0], frame["boxes"][worth]))
    model.train()
    assert not model.reid.training
    assert not any(parameter.requires_grad for parameter in model.reid.parameters())
    assert not model.extras, "the offline network has weights of its own"


# Weights


@pytest.mark.parametrize(
    ("changes", "ending"),
    [
        ({}, ""),
        ({"embedding": "instance"}, "-no-triplet"),
        ({"embedding": "reid"}, "-no-triplet"),
        ({"embedding": "none"}, "-no-triplet"),
        ({"embedding": "none", "triplet": True}, ""),
        ({"m1": 1, "m2": 3}, "-1-3"),
        ({"m1": 1, "m2": 3, "embedding": "none"}, "-1-3"),
        ({"m1": 2, "m2": 2}, "-2-2"),
        ({"m3": 0}, "-m3-0"),
        ({"m3": 4}, "-m3-4"),
        ({"head": "separate"}, "-star-separate"),
        ({"head": "shared"}, "-star-shared"),
        ({"head": "separate", "embedding": "none"}, "-separate"),
        ({"head": "shared", "embedding": "none"}, "-shared"),
        ({"head": "separate", "num_shapes": 1}, "-k1-separate"),
        ({"head": "shared", "num_shapes": 1}, "-k1-shared"),
        ({"head": "separate", "num_shapes": 1, "embedding": "none"}, "-k1-plain-separate"),
        ({"head": "shared", "num_shapes": 1, "embedding": "none"}, "-k1-plain-shared"),
    ],
)
def test_each_variant_has_weights_of_its_own_by_default(changes: dict[str, Any], ending: str) -> None:
    assert shipped_name(Settings(**changes)) == f"retina-track-synthetic-v1{ending}"


@pytest.mark.parametrize(
    "changes", [{"network": "resnet50"}, {"num_shapes": 1}, {"m1": 4}, {"head": "shared", "m3": 0}]
)
def test_a_variant_without_weights_says_so(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no default weights of retina_track\.network '(small|resnet50)' with head="):
        retina_track.build(Settings(classes=CLASSES, **changes))


def stored(model: Model, path: Path, embedding: bool) -> str:
    extras = model.extras if embedding else {}
    write_weights(path, model.network, {"classes": json.dumps(CLASSES)}, torch.float32, extras)
    return str(path)


@pytest.mark.parametrize("head", ["per_anchor", "separate", "shared"])
@pytest.mark.parametrize("embedding", ["learned", "instance", "none"])
def test_files_with_and_without_a_branch_fit_and_say_what_nothing_trained(
    embedding: Any, head: Any, tmp_path: Path
) -> None:
    source = built(3, head=head)
    joint = stored(source, tmp_path / "joint.safetensors", True)
    plain = stored(source, tmp_path / "plain.safetensors", False)
    wanted = source.detect([noise(1)], [None])[0][0][0]
    for path, missing in ((joint, False), (plain, True)):
        model = retina_track.build(Settings(weights=path, head=head, embedding=embedding))
        assert model.classes == CLASSES
        assert model.untrained == (("embedding",) if missing and embedding == "learned" else ())
        found = model.detect([noise(1)], [None])[0][0][0]
        assert torch.equal(found["boxes"], wanted["boxes"])
        if embedding == "learned":
            assert torch.equal(found["embeddings"], wanted["embeddings"]) == (not missing)


def test_features_that_are_embeddings_need_no_training_of_their_own(tmp_path: Path) -> None:
    plain = stored(built(m3=0), tmp_path / "plain.safetensors", True)
    assert retina_track.build(Settings(weights=plain, m3=0)).untrained == ()


def test_weights_of_another_wiring_are_refused(tmp_path: Path) -> None:
    path = stored(built(), tmp_path / "joint.safetensors", True)
    for changes in ({"head": "shared"}, {"m1": 2}, {"m3": 4}):
        with pytest.raises(ValueError, match="another network"):
            retina_track.build(Settings(weights=path, **changes))


def test_coco_weights_make_retina_net_star(tmp_path: Path, served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and shapes as published, random numbers in them, by name from a server in place of the real one."""
    name = "retinanet_resnet50_fpn"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    architecture = single_shot.ARCHITECTURES[name]
    whole = architecture.builder(weights=None, weights_backbone=None).state_dict()
    tensors = {key: tensor for key, tensor in whole.items() if not key.endswith("num_batches_tracked")}
    torch.save(tensors, tmp_path / "new.pth")
    file = f"coco-{hashlib.sha256((tmp_path / 'new.pth').read_bytes()).hexdigest()[:8]}.pth"
    (tmp_path / "new.pth").rename(tmp_path / file)
    monkeypatch.setattr(architecture.weights.COCO_V1.value, "url", f"{served}/{file}")
    for source in ("default", str(tmp_path / file)):
        model = retina_track.build(Settings(network=name, weights=source))  # type: ignore[arg-type]
        held = model.network.state_dict()
        assert all(torch.equal(held[key], tensor) for key, tensor in tensors.items())
        assert (len(model.classes), model.classes[0]) == (80, "person")
        assert (model.untrained, model.extras, model.settings.gives) == ((), {}, {"embeddings"})


@pytest.mark.parametrize("name", ["retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2"])
def test_retina_net_star_takes_the_class_towers_last_layer(name: Any) -> None:
    torch.manual_seed(0)
    model = retina_track.build(Settings(network=name, weights="random", classes=CLASSES, min_score=0.0))
    assert model.resize == {"short_side": 800, "long_side": 1333}
    clip = noise(2, (64, 64))
    tower = model.detector.network.head.classification_head
    with torch.no_grad():
        outputs, embeddings = retina_track.outputs_and_towers(model.detector, clip)  # type: ignore[arg-type]
        logits = embeddings[:, :64].unflatten(1, (8, 8)).permute(0, 3, 1, 2)  # of P3: (N, 256, 8, 8)
        scores = tower.cls_logits(logits).unflatten(1, (9, -1)).permute(0, 3, 4, 1, 2).flatten(1, 3).sigmoid()
    for of_frame, wanted in zip(outputs, scores, strict=True):
        torch.testing.assert_close(of_frame.scores[: 64 * 9], wanted[:, model.detector.columns])
        assert len(of_frame.anchors) == 9 * embeddings.shape[1]
    ((frame, _),), _ = model.detect([clip], [None])
    assert frame["embeddings"].shape == (len(frame["boxes"]), 256)
    losses = model.train().losses([clip], [[truth(([10.0, 10, 40, 40], 1)), truth()]])
    assert losses.keys() == {"classification", "bbox_regression"}


def test_the_papers_network_begins_with_a_body_of_imagenet(tmp_path: Path) -> None:
    whole = torchvision.models.resnet50().state_dict()
    torch.save(whole, tmp_path / "imagenet.pth")
    model = retina_track.build(replace(UNTRAINED, network="resnet50", backbone_weights=str(tmp_path / "imagenet.pth")))
    held = model.network.state_dict()
    assert model.weights is None
    assert all(weight.requires_grad for weight in model.parameters())
    for key in ("conv1.weight", "layer4.2.bn3.running_var"):
        assert torch.equal(held[f"pyramid.backbone.body.{key}"], whole[key])


def test_the_small_network_begins_with_the_body_of_the_small_detector(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = SmallDetector(3)
    write_weights(tmp_path / "small.safetensors", source, {}, torch.float32)
    path = str(tmp_path / "small.safetensors")
    held = retina_track.build(replace(UNTRAINED, backbone_weights=path)).network.state_dict()
    wanted = {key: tensor for key, tensor in source.state_dict().items() if key.startswith(("stem.", "stage_"))}
    assert len(wanted) > 50
    assert all(torch.equal(held[f"pyramid.body.{key}"], tensor) for key, tensor in wanted.items())


@pytest.mark.parametrize(("head", "num_shapes"), [("per_anchor", 6), ("shared", 1)])
def test_the_papers_network_detects_and_learns(head: Any, num_shapes: int) -> None:
    torch.manual_seed(0)
    model = retina_track.build(replace(UNTRAINED, network="resnet50", head=head, num_shapes=num_shapes, input_side=64))
    clip = noise(2, (64, 64))
    (frames,), _ = model.detect([clip], [None])
    assert [frame["embeddings"].shape[1] for frame in frames] == [256, 256]
    losses = model.train().losses([clip], [[truth(([10.0, 10, 40, 40], 1)), truth(([20.0, 10, 50, 40], 2))]])
    assert losses.keys() == {"class", "box", "triplet"}
    torch.autograd.backward(list(losses.values()))
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


# Settings


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nms_iou": 1.5}, r"retina_track\.nms_iou is 1\.5; it must be between 0 and 1"),
        ({"m1": 0}, r"retina_track\.m1 is 0; it must be at least 1"),
        (
            {"network": "retinanet_resnet50_fpn", "backbone_weights": "IMAGENET1K_V1"},
            r"retina_track\.backbone_weights is 'IMAGENET1K_V1'",
        ),
        ({"identity_iou": -1.0}, r"retina_track\.identity_iou is -1"),
        ({"num_shapes": 9}, r"retina_track\.num_shapes is 9; it must be 1 or 6"),
        ({"input_side": 8}, r"retina_track\.input_side is 8; it must be at least 32"),
        ({"network": "retinanet_resnet50_fpn", "embedding": "learned"}, r"retina_track\.embedding is 'learned'"),
        ({"network": "retinanet_resnet50_fpn", "triplet": True}, r"retina_track\.triplet is on"),
    ],
)
def test_settings_that_make_no_sense_are_said_to(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Settings(**changes)
