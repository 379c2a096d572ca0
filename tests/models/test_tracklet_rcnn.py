"""TCD on scattered networks: what must be equal is equal, what conditions and what is learned; settings and weights."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from models.parts import pair_training, weights
from models.tracklet_rcnn import Memory, Model, Settings, build

CLASSES = ("a", "b", "c")
Row = dict[str, Tensor]


def scattered(**settings: Any) -> Model:
    """An untrained network that says something, the same whatever the settings."""
    torch.manual_seed(3)
    given = {"weights": "random", "classes": CLASSES, **settings}
    model = build(Settings(**given))
    random = torch.Generator().manual_seed(4)
    detector: Any = model.detector
    with torch.no_grad():
        for layer in (detector.objectness, detector.anchor_deltas, detector.classes, detector.deltas):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=random) * 0.15)
        for parameter in model.embeddings.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.1)
    return model


def video(num_frames: int, seed: int = 0) -> Tensor:
    """A blurred pattern that drifts: uint8 (T, 3, 64, 96)."""
    coarse = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(seed))
    picture = (torch.nn.functional.interpolate(coarse, (64, 96), mode="bilinear")[0] * 255).byte()
    return torch.stack([picture.roll((t, 2 * t), (1, 2)) for t in range(num_frames)])


def detected(model: Model, clip: Tensor, memory: object | None = None) -> list[Row]:
    return model.detect([clip], [memory])[0][0]


def assert_same(rows: Sequence[Row], others: Sequence[Row], names: Sequence[str] = ()) -> None:
    """The design's tolerance: 1e-3 px, 1e-4 of score."""
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        for name in names or row:
            assert row[name].shape == other[name].shape, name
            torch.testing.assert_close(row[name], other[name], atol=1e-3 if name == "boxes" else 1e-4, rtol=0)


@pytest.fixture(scope="module")
def sequential() -> list[Row]:
    rows = detected(scattered(condition="none"), video(5))
    assert all(len(row["boxes"]) > 10 for row in rows)
    assert max(int(row["tracklet_id"].max()) for row in rows[1:]) > int(rows[0]["tracklet_id"].max())
    assert len(set(rows[0]["tracklet_id"].tolist()) & set(rows[4]["tracklet_id"].tolist()) - {-1}) > 1
    return rows


@pytest.mark.parametrize("condition", ["both", "stage_1", "stage_2"])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"null": 80.0}, id="the null tracklet has all the weight"),
        pytest.param({"alpha": 0.0}, id="P_tr to the power 0 is uniform"),
        pytest.param({"max_tracklets": 0}, id="no tracklet counts"),
    ],
)
def test_without_weight_it_is_the_sequential_baseline(
    condition: str, settings: dict[str, Any], sequential: list[Row]
) -> None:
    assert_same(detected(scattered(condition=condition, beta=1.0, **settings), video(5)), sequential)


@pytest.mark.parametrize("condition", ["both", "stage_1", "stage_2"])
def test_conditioning_changes_what_is_detected(condition: str, sequential: list[Row]) -> None:
    rows = detected(scattered(condition=condition), video(5))
    assert_same(rows[:1], sequential[:1])  # nothing is known yet
    assert any(
        row["scores"].shape != other["scores"].shape or (row["scores"] - other["scores"]).abs().max() > 0.01
        for row, other in zip(rows[1:], sequential[1:], strict=True)
    )


def test_tracklets_of_no_class_change_nothing() -> None:
    """P_tr uniform over C + 1 in the second stage; a memory in mid-video, with embeddings and all."""
    model, plain = scattered(condition="stage_2", beta=1.0), scattered(condition="none")
    _, (memory,) = model.detect([video(3)], [None])
    assert isinstance(memory, Memory)
    assert len(memory.tracklets.ids) > 3
    uniform = torch.full_like(memory.tracklets.probabilities, 1 / 4)
    memory = replace(memory, tracklets=replace(memory.tracklets, probabilities=uniform))
    assert_same(detected(model, video(4)[3:], memory), detected(plain, video(4)[3:], memory))


def test_with_nothing_known_it_is_the_detector() -> None:
    model, frame = scattered(), video(1)
    detector = model.detector
    with torch.no_grad():
        features = detector.features(frame)
        dense = detector.dense(features, (64, 96))
        (regions,) = detector.head(features, detector.proposals(dense), (64, 96))
        plain, probabilities = detector.detected(regions, (64, 96))
    (row,) = detected(model, frame)
    boxes, labels = (each.tolist() for each in (row["boxes"], row["labels"]))
    own = {(*box, label): score for box, label, score in zip(boxes, labels, row["scores"].tolist(), strict=True)}
    boxes, labels = plain.boxes.tolist(), plain.labels.tolist()
    theirs = {(*box, label): score for box, label, score in zip(boxes, labels, plain.scores.tolist(), strict=True)}
    assert len(theirs) > 10
    assert {which: own[which] for which in theirs} == pytest.approx(theirs, abs=1e-4)
    assert int((row["tracklet_id"] < 0).sum()) <= len(theirs)
    assert len(row["boxes"]) - len(theirs) <= int((row["tracklet_id"] >= 0).sum())
    assert probabilities.shape == (len(theirs), 4)
    torch.testing.assert_close(row["class_scores"].sum(dim=1), torch.ones(len(row["boxes"])))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"gate": "overlap", "max_age": 2}, id="both stages"),
        pytest.param({"condition": "none", "propagate": "farneback", "rescore": True}, id="late integration"),
        pytest.param({"aggregate": 2}, id="aggregated features"),
        pytest.param({"condition": "stage_2", "embedding": "fc7", "deformable": True}, id="fc7, deformable"),
    ],
)
def test_neither_chunks_nor_company_nor_a_stay_on_disk_change_anything(settings: dict[str, Any]) -> None:
    model = scattered(**settings)
    clips = [video(5, seed=1), video(3, seed=2)]
    alone = [detected(model, clip) for clip in clips]
    together, _ = model.detect(clips, [None, None])
    for rows, others in zip(together, alone, strict=True):
        assert_same(rows, others)
    rows, memory = [], None
    for start in range(0, 5, 2):
        (some,), (memory,) = model.detect([clips[0][start : start + 2]], [memory])
        rows += some
        stored = pickle.dumps(memory)
        assert len(stored) < 2_000_000
        memory = pickle.loads(stored)
    assert_same(rows, alone[0])
    (none,), (kept,) = model.detect([clips[0][:0]], [memory])
    assert none == []
    assert isinstance(kept, Memory)
    assert isinstance(memory, Memory)
    assert torch.equal(kept.tracklets.boxes, memory.tracklets.boxes)


@torch.no_grad()
def test_the_first_stage_by_hand() -> None:
    """Equations 1 to 6 and 9 with two classes, E_anchor against E_s1, for single anchors in mid-video."""
    model = scattered()
    _, (memory,) = model.detect([video(3)], [None])
    assert isinstance(memory, Memory)
    tracklets = memory.tracklets
    dense = model.detector.dense(model.detector.features(video(4)[3:]), (64, 96))
    logits = model.objectness(dense, [tracklets])[0]
    maps = model.embeddings.anchors(dense.towers[0])[0]  # (K * 128, 8, 12)
    tracked = tracklets.probabilities[:, 1:].sum(dim=1)  # (9)
    for row, column, which in ((0, 0, 0), (3, 7, 2), (7, 11, model.detector.per_cell - 1)):
        anchor = (row * 12 + column) * model.detector.per_cell + which
        looks = maps[which * 128 : (which + 1) * 128, row, column]
        weight = (8 * cosine_similarity(looks[None], tracklets.stage_1)).exp()  # (4)
        found = dense.logits[0, anchor].sigmoid()
        given = found * tracked / (found * tracked + (1 - found) * (1 - tracked))  # (2)
        wanted = (math.exp(0.3) * found + (weight * given).sum()) / (math.exp(0.3) + weight.sum())  # (5), (6), (1)
        torch.testing.assert_close(logits[anchor], wanted.logit(), atol=1e-3, rtol=1e-3)
        assert abs(logits[anchor] - dense.logits[0, anchor]) > 0.01


def test_frames_in_which_nothing_is() -> None:
    model = scattered(min_score=1.0)
    (one, *others), memory = detected(model, video(3)), model.detect([video(3)], [None])[1][0]
    assert {name: tuple(value.shape) for name, value in one.items()} == {
        "boxes": (0, 4),
        "scores": (0,),
        "labels": (0,),
        "class_scores": (0, 4),
        "tracklet_id": (0,),
        "tracked": (0,),
    }
    assert all(len(row["boxes"]) == 0 for row in others)
    assert isinstance(memory, Memory)
    assert len(memory.tracklets.ids) == 0


def test_a_pyramid_is_conditioned_level_by_level() -> None:
    """Torchvision's smallest detector with one: 3 levels that share the branch."""
    name: Any = "fasterrcnn_mobilenet_v3_large_320_fpn"
    given: dict[str, Any] = {"detector": name, "weights": "random", "classes": CLASSES, "min_score": 0.05, "beta": 1.0}
    models = {}
    variants: dict[str, dict[str, Any]] = {"none": {"condition": "none"}, "null": {"null": 80.0}, "both": {}}
    for which, settings in variants.items():
        torch.manual_seed(0)
        models[which] = build(Settings(**given, num_proposals=40, **settings)).eval()
    rows = {which: detected(model, video(3)) for which, model in models.items()}
    assert len(models["both"].detector.dense(models["both"].detector.features(video(1)), (64, 96)).levels) > 1
    assert all(len(row["boxes"]) for row in rows["none"])
    assert_same(rows["null"], rows["none"])
    assert_same(rows["both"][:1], rows["none"][:1])
    assert not torch.equal(rows["both"][1]["scores"][:5], rows["none"][1]["scores"][:5])


# Settings and weights.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 9.0}, "tracklet_rcnn.alpha is 9.0; it must be between 0 and 6"),
        ({"beta": 1.5}, "tracklet_rcnn.beta is 1.5; it must be between 0 and 1"),
        ({"max_age": 0}, "tracklet_rcnn.max_age is 0; it must be at least 1"),
        ({"aggregate": -1}, "tracklet_rcnn.aggregate is -1; it must not be negative"),
        ({"rescore": True}, "tracklet_rcnn.condition must be 'none', not 'both'"),
        ({"propagate": "farneback", "condition": "stage_1"}, "tracklet_rcnn.condition must be 'none', not 'stage_1'"),
        ({"embedding": "fc7"}, "it must be 'stage_2' or 'none'"),
        ({"detector": "fasterrcnn_resnet50_fpn", "deformable": True}, "must be one of: small, resnet50, resnet101"),
        ({"benchmark": "mot15"}, "tracklet_rcnn.benchmark is 'mot15', which detector small does not have"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        Settings(**settings)


def test_weights_with_and_without_embeddings(tmp_path: Path) -> None:
    model = scattered()
    whole, bare = tmp_path / "whole.safetensors", tmp_path / "bare.safetensors"
    about = {"classes": '["a", "b", "c"]'}
    weights.write_weights(whole, model.network, about, torch.float32, extras=model.extras)
    weights.write_weights(bare, model.network, about, torch.float32)
    assert model.untrained == ("embeddings",)
    loaded = build(Settings(weights=str(whole)))
    assert (loaded.untrained, loaded.classes) == ((), CLASSES)
    assert_same(detected(loaded, video(3)), detected(model, video(3)))
    assert build(Settings(weights=str(bare))).untrained == ("embeddings",)
    assert build(Settings(weights=str(bare), aggregate=1)).untrained == ("embeddings", "aggregation")
    for path in (whole, bare):  # fc7 needs none, and does not mind any
        assert build(Settings(weights=str(path), embedding="fc7", condition="stage_2")).untrained == ()
    with pytest.raises(ValueError, match="embeddings"):
        build(Settings(weights=str(whole), embedding="shared_2fc"))


# Training.


def target(boxes: list[list[float]], ids: list[int], **more: Any) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.zeros(len(ids), dtype=torch.long),
        "track_ids": torch.tensor(ids, dtype=torch.long),
        **more,
    }


PAIR = [target([[8, 8, 40, 40], [50, 20, 90, 60]], [1, 2]), target([[10, 9, 42, 41], [52, 22, 92, 62]], [1, 2])]


def losses(model: Model, clips: list[Tensor], targets: list[list[dict[str, Tensor]]]) -> dict[str, float]:
    torch.manual_seed(5)
    return {name: loss.item() for name, loss in model.losses(clips, targets).items()}


def test_which_frames_teach_and_which_are_pairs() -> None:
    assert pair_training.taught_and_pairs([2, 1, 4, 0]) == ([0, 2, 3, 4, 5], [(0, 1), (3, 4), (4, 5), (5, 6)])


def test_detection_learns_on_the_first_frame_alone() -> None:
    model, clip = scattered(), video(2)
    found = losses(model, [clip], [PAIR])
    alone = {name: loss.item() for name, loss in model.detector.losses(clip[:1], PAIR[:1]).items()}
    assert {name: found[name] for name in alone} == pytest.approx(alone, rel=1e-4)
    assert set(found) == {*alone, "track_anchor", "track_region"}
    other = losses(model, [clip], [[PAIR[0], PAIR[1] | {"labels": torch.tensor([2, 2])}]])
    assert other == pytest.approx(found)


def test_tracking_losses_are_means_over_pairs_and_need_known_tracks() -> None:
    model, clip = scattered(negatives="other_objects"), video(3)
    targets = [*PAIR, target([[12, 10, 44, 42]], [1])]
    both = losses(model, [clip], [targets])
    first, second = losses(model, [clip[:2]], [targets[:2]]), losses(model, [clip[1:]], [targets[1:]])
    for name in ("track_anchor", "track_region"):  # what is drawn differs
        assert both[name] == pytest.approx((first[name] + second[name]) / 2, rel=0.25)
        assert first[name] > 0.05
    for unknown in ({"track_ids": torch.tensor([-1, -1])}, {"ignore": torch.tensor([True, True])}):
        hidden = losses(model, [clip[:2]], [[PAIR[0] | unknown, PAIR[1] | unknown]])
        assert hidden["track_anchor"] == hidden["track_region"] == 0
    single = losses(model, [clip[:1]], [PAIR[:1]])
    assert single["track_anchor"] == single["track_region"] == 0


@pytest.mark.parametrize("embedding", ["separate_2fc", "shared_2fc", "fully_shared"])
@pytest.mark.parametrize(
    "targets",
    [
        pytest.param(PAIR, id="two objects"),
        pytest.param([target([], []), target([], [])], id="none"),
        pytest.param([target([[5, 5, 6, 6]], [1]), target([[95, 63, 96, 64]], [1])], id="one pixel"),
    ],
)
def test_every_parameter_has_a_finite_gradient(embedding: Any, targets: list[dict[str, Tensor]]) -> None:
    model = scattered(embedding=embedding).train()
    torch.autograd.backward(list(model.losses([video(2), video(1)], [targets, targets[:1]]).values()))
    lacking = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert not lacking or not len(targets[0]["boxes"])
    assert all(weight.grad.isfinite().all() for weight in model.parameters() if weight.grad is not None)
    assert all(weight.grad is not None for weight in model.embeddings.parameters())


def test_each_tracking_loss_teaches_its_own_branches() -> None:
    """E_anchor against E_s1 in the first stage, E_s2 against E_s2 in the second."""
    model = scattered(negatives="other_objects")
    found = model.losses([video(2)], [PAIR])
    names, parameters = zip(*model.embeddings.named_parameters(), strict=True)
    for loss, taught in (("track_anchor", {"anchors", "stage_1"}), ("track_region", {"stage_2"})):
        gradients = torch.autograd.grad(found[loss], parameters, retain_graph=True)
        moved = {name.partition(".")[0] for name, gradient in zip(names, gradients, strict=True) if gradient.any()}
        assert moved == taught


def test_aggregation_learns_from_detection_and_fc7_has_nothing_to_learn() -> None:
    model = scattered(aggregate=1).train()
    assert set(model.extras) == {"embeddings", "aggregation"}
    torch.autograd.backward(list(model.losses([video(3)], [[*PAIR, PAIR[1]]]).values()))
    assert all(weight.grad is not None for weight in model.extras["aggregation"].parameters())
    for aggregate in (0, 1):
        bare = scattered(embedding="fc7", condition="stage_2", aggregate=aggregate)
        assert set(bare.losses([video(2)], [PAIR])) == {"objectness", "anchor_box", "class", "box"}
