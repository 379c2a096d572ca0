"""D&T: what is given of a frame against plain steps, frames that come late, strides, averages, and that it learns."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.detect_to_track import TRACKS, Model, Settings, Tracks, averaged, build
from models.parts.anchors import clip, has_area
from models.parts.box_deltas import BoxDeltas
from models.parts.correlation import correlation
from models.parts.position_sensitive import vote
from models.parts.rfcn import Seen
from models.parts.weights import write_weights

SIZE = (64, 96)
CLASSES = ("cat", "dog", "fox")


def scattered(**settings: Any) -> Model:
    """An untrained network that says something else of every box."""
    torch.manual_seed(6)
    model = build(Settings(weights="random", classes=CLASSES, **settings))
    layers = [
        model.detector.rpn.head.cls_logits,
        model.detector.rpn.head.bbox_pred,
        model.detector.head.scores,
        model.detector.head.deltas,
    ]
    with torch.no_grad():
        for layer in layers + ([model.track_branch.deltas] if settings.get("track", True) else []):
            layer.weight.normal_(0, 0.2)
        model.detector.head.reduce.weight.normal_(0, 0.5)
    return model


def pictures(count: int, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))


def all_frames(model: Model, clip: Tensor, lengths: Sequence[int] = (99,)) -> list[dict[str, Any]]:
    """What is given of a clip that comes in chunks of these lengths, the last again and again; memories are pickled."""
    given: list[dict[str, Any]] = []
    memory: object = None
    start, chunk = 0, 0
    while start < len(clip):
        length = lengths[min(chunk, len(lengths) - 1)]
        (rows,), (memory,) = model.detect([clip[start : start + length]], [memory])
        memory = pickle.loads(pickle.dumps(memory))
        given += rows
        start, chunk = start + length, chunk + 1
    return given + (model.finish([memory])[0] if model.frames_after else [])


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Boxes within 1e-3 px and scores within 1e-4."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        if name == "moves":
            assert_same(value, other[name])
        elif isinstance(value, int):
            assert value == other[name]
        else:
            atol = 1e-3 if name in ("boxes", "start", "end") else 1e-4
            torch.testing.assert_close(value, other[name], atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "resnet18"}, "detect_to_track.backbone is 'resnet18'; it must be one of: small, resnet50"),
        ({"tracks_from": "anchors"}, "detect_to_track.tracks_from is 'anchors'; it must be one of: regressed"),
        ({"pooling": "max"}, "detect_to_track.pooling is 'max'; it must be one of: pool, align"),
        ({"nms_iou": 1.5}, "detect_to_track.nms_iou is 1.5; it must be between 0 and 1"),
        ({"stride": 0}, "detect_to_track.stride is 0; it must be at least 1"),
        ({"average": True, "track": False}, "average is true; it needs detect_to_track.track"),
        ({"bidirectional": True}, "bidirectional is true; it needs detect_to_track.average"),
        ({"backbone_weights": "IMAGENET1K_V2", "weights": "random"}, "not for weights 'random' and backbone 'small'"),
        ({"backbone_weights": "IMAGENET1K_V2", "backbone": "resnet50"}, "not for weights 'default' and"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**settings)


def test_networks_without_weights_or_classes_cannot_be() -> None:
    with pytest.raises(ValueError, match="weights is 'default'; there are none for backbone resnet101"):
        build(Settings(backbone="resnet101"))
    with pytest.raises(ValueError, match="give the names, in order, with the setting classes"):
        build(Settings(weights="random"))


def naive_track_maps(model: Model, first: Seen, second: Seen) -> Tensor:
    """Section 3.4, step by step: conv3 at every second position, conv4 and conv5 at all, beside both maps of deltas."""
    strides = (2, 1, 1)
    reach = [how.max_displacement for how in model.correlations]
    rows = zip(first.levels, second.levels, reach, strides, strict=True)
    levels = [correlation(one, other, most, stride) for one, other, most, stride in rows]
    stacked = torch.cat([first.maps.deltas, second.maps.deltas, *levels], dim=1)
    return F.conv2d(stacked, model.track_branch.deltas.weight, model.track_branch.deltas.bias)


def leads_to(model: Model, first: Seen, second: Seen, boxes: Tensor) -> Tensor:
    head = model.detector.head
    deltas = vote(naive_track_maps(model, first, second), [boxes], 1 / 8, head.bins, head.pooling)
    plain = BoxDeltas().decode(boxes, deltas * torch.tensor([0.1, 0.1, 0.2, 0.2]))  # equations 2 and 3
    return clip(plain, SIZE)


@pytest.mark.parametrize("tracks_from", ["regressed", "proposals"])
@torch.no_grad()
def test_moves_are_what_the_plain_steps_say(tracks_from: str) -> None:
    model = scattered(tracks_from=tracks_from, vote_iou=None)
    frames = pictures(4)
    seen = [model.detector.see(frame[None])[0] for frame in frames]
    given = all_frames(model, frames)
    for here, after, row in zip(seen, seen[1:], given, strict=False):
        start = here.boxes if tracks_from == "regressed" else here.proposals
        ends = leads_to(model, here, after, start)
        scores = here.probabilities[:, 1:].amax(dim=1)
        kept = has_area(ends) & (scores > 0.01)
        moves = row["moves"]
        assert len(moves["start"]) > 10
        torch.testing.assert_close(moves["start"], start[kept], atol=1e-3, rtol=0)
        torch.testing.assert_close(moves["end"], ends[kept], atol=1e-3, rtol=0)
        torch.testing.assert_close(moves["scores"], scores[kept], atol=1e-4, rtol=0)
        assert moves["stride"] == 1
        # Boxes of detections are those of the regions, which say whose move it is.
        for box, number in zip(here.boxes[kept], moves["box_id"].tolist(), strict=True):
            of_region = torch.nonzero(((row["boxes"] - box).abs() < 1e-3).all(dim=1)).flatten().tolist()
            assert number == (of_region[0] if of_region else -1)
        assert (moves["box_id"] >= 0).any()
        assert (moves["end"] - moves["start"]).abs().max() > 1
    assert "moves" not in given[-1]
    assert len(given) == 4


@torch.no_grad()
def test_detections_have_the_probabilities_of_their_regions() -> None:
    model = scattered(vote_iou=None, min_score=0.3)
    frames = pictures(3)
    for frame, row in zip(frames, all_frames(model, frames), strict=True):
        (seen,) = model.detector.see(frame[None])
        assert len(row["boxes"]) > 2
        assert row["scores"].min() > 0.3
        assert (row["scores"].diff() <= 0).all()
        torch.testing.assert_close(row["class_scores"].sum(dim=1), torch.ones(len(row["boxes"])))
        picked = row["class_scores"].gather(1, row["labels"][:, None] + 1).squeeze(1)
        assert torch.equal(row["scores"], picked)
        for box, scores in zip(row["boxes"], row["class_scores"], strict=True):
            same = ((seen.boxes - box).abs() < 1e-3).all(dim=1) & ((seen.probabilities - scores).abs() < 1e-4).all(
                dim=1
            )
            assert same.any()


@torch.no_grad()
def test_box_voting_moves_boxes_and_nothing_else() -> None:
    frames = pictures(2)
    plain, voted = (all_frames(scattered(vote_iou=iou), frames)[0] for iou in (None, 0.5))
    assert torch.equal(plain["scores"], voted["scores"])
    assert not torch.equal(plain["boxes"], voted["boxes"])
    assert_same(plain["moves"], voted["moves"])


@torch.no_grad()
def test_detection_alone_waits_for_nothing_and_says_the_same() -> None:
    alone, model = scattered(track=False), scattered()
    alone.detector.load_state_dict(model.detector.state_dict())
    assert (alone.frames_after, model.frames_after) == (0, 1)
    assert not alone.extras
    frames = pictures(3)
    (rows,), memories = alone.detect([frames], [None])
    assert alone.finish(memories) == [[]]
    for row, other in zip(rows, all_frames(model, frames), strict=True):
        assert "moves" not in row
        assert_same(row, {name: value for name, value in other.items() if name != "moves"})


@torch.no_grad()
def test_a_stride_looks_at_every_third_frame_from_the_start() -> None:
    model, every = scattered(stride=3), scattered()
    frames = pictures(8)
    looked_at: list[int] = []
    model.detector.backbone.register_forward_hook(lambda *what: looked_at.append(len(what[1][0])))
    given = all_frames(model, frames, (1,))
    assert looked_at == [1, 1, 1]
    assert model.frames_after == 3
    for row, other in zip(given[::3], all_frames(every, frames[::3]), strict=True):
        if "moves" in other:
            other["moves"]["stride"] = 3
        assert_same(row, other)
    for number in (1, 2, 4, 5, 7):
        assert {name: tuple(value.shape) for name, value in given[number].items()} == {
            "boxes": (0, 4),
            "scores": (0,),
            "labels": (0,),
            "class_scores": (0, 4),
        }
    assert len(given) == 8


def test_an_average_by_hand() -> None:
    here = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]])
    there = torch.tensor([[0.1, 0.9, 0.0], [0.0, 0.0, 1.0]])
    nowhere = torch.zeros(2, 4)
    after = Tracks(nowhere, torch.tensor([True, False]), there)
    torch.testing.assert_close(averaged(here, [after]), torch.tensor([[0.3, 0.6, 0.1], [0.6, 0.3, 0.1]]))
    before = Tracks(nowhere, torch.tensor([True, True]), torch.tensor([[0.3, 0.3, 0.4], [0.2, 0.1, 0.7]]))
    both = torch.tensor([[0.3, 0.5, 0.2], [0.4, 0.2, 0.4]])
    torch.testing.assert_close(averaged(here, [after, before]), both)
    assert torch.equal(averaged(here, []), here)


@pytest.mark.parametrize("bidirectional", [False, True])
@torch.no_grad()
def test_scores_are_the_mean_of_the_region_and_of_where_it_was_tracked_to(bidirectional: bool) -> None:
    model = scattered(average=True, bidirectional=bidirectional, vote_iou=None)
    assert model.frames_before == (1 if bidirectional else 0)
    frames = pictures(3)
    seen = [model.detector.see(frame[None])[0] for frame in frames]
    for number, row in enumerate(all_frames(model, frames)):
        here = seen[number]
        total, count = here.probabilities.clone(), torch.ones(len(here.boxes), 1)
        for other in [number + 1] + ([number - 1] if bidirectional else []):
            if 0 <= other < 3:
                ends = leads_to(model, here, seen[other], here.boxes)
                (there,) = model.detector.regions(seen[other].maps, [ends])
                inside = has_area(ends)[:, None]
                total += there.logits.softmax(dim=1) * inside
                count += inside
        mean = total / count
        for box, scores in zip(row["boxes"], row["class_scores"], strict=True):
            same = ((here.boxes - box).abs() < 1e-3).all(dim=1) & ((mean - scores).abs() < 1e-4).all(dim=1)
            assert same.any()
        if number < 2:
            best = mean[:, 1:].amax(dim=1)
            assert all((best - score).abs().min() < 1e-4 for score in row["moves"]["scores"])


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="D&T"),
        pytest.param({"stride": 3}, id="strided"),
        pytest.param({"average": True}, id="average"),
        pytest.param({"average": True, "bidirectional": True, "stride": 2}, id="bidirectional, strided"),
        pytest.param({"track": False, "stride": 2}, id="D alone, strided"),
    ],
)
@torch.no_grad()
def test_neither_chunks_nor_company_change_what_is_found(settings: dict[str, Any]) -> None:
    model = scattered(**settings, batch_frames=4)
    clips = [pictures(7), pictures(4), pictures(5, (48, 80)), pictures(1), pictures(0)]
    whole = [all_frames(model, clip) for clip in clips]
    assert [len(rows) for rows in whole] == [7, 4, 5, 1, 0]
    assert min(len(row["boxes"]) for row in whole[0][:: settings.get("stride", 1)]) > 3
    for lengths in ((1,), (3,), (2, 4, 1)):
        for row, other in zip(all_frames(model, clips[0], lengths), whole[0], strict=True):
            assert_same(row, other)
    given: list[list[dict[str, Any]]] = [[] for _ in clips]
    memories: list[object] = [None] * len(clips)
    for start in (0, 3, 6):
        ready, memories = model.detect([clip[start : start + 3] for clip in clips], memories)
        for mine, new in zip(given, ready, strict=True):
            mine += new
    for mine, rest, rows in zip(given, model.finish(memories), whole, strict=True):
        for one, other in zip([*mine, *rest], rows, strict=True):
            assert_same(one, other)


@pytest.mark.parametrize("stride", [1, 2, 5])
@torch.no_grad()
def test_frames_wait_for_the_next_that_is_looked_at(stride: int) -> None:
    model = scattered(stride=stride)
    memory: object = None
    for number in range(6):
        (rows,), (memory,) = model.detect([pictures(1)], [memory])
        comes_free = number % stride == 0 and number > 0
        assert len(rows) == (stride if comes_free else 0)
        assert len(model.finish([memory])[0]) == number % stride + 1 <= model.frames_after
    assert model.finish([None]) == [[]]


@torch.no_grad()
def test_memory_is_small_and_its_own() -> None:
    """One frame of what the network computed, not the batch it was part of."""
    model = scattered()
    sizes = [len(pickle.dumps(model.detect([pictures(count)], [None])[1][0])) for count in (1, 8)]
    assert sizes[1] < sizes[0] * 1.05


def objects(*rows: tuple[int, list[float]], ignore: bool = False) -> dict[str, Tensor]:
    return {
        "boxes": torch.tensor([box for _, box in rows], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([number % 2 for number, _ in rows], dtype=torch.long),
        "track_ids": torch.tensor([number for number, _ in rows], dtype=torch.long),
        "ignore": torch.full((len(rows),), ignore),
    }


HERE = objects((4, [10, 10, 40, 42]), (7, [50, 20, 90, 60]))
THERE = objects((7, [46, 22, 88, 60]), (9, [5, 5, 30, 30]))


def total(losses: dict[str, Tensor]) -> Tensor:
    return sum(losses.values(), start=torch.zeros(()))


def test_the_track_loss_is_of_objects_in_both_frames_of_a_clip() -> None:
    model = scattered()
    clips = [pictures(1), pictures(2), pictures(3)[1:]]
    losses = model.losses(clips, [[HERE], [HERE, THERE], [THERE, HERE]])
    assert set(losses) == {"objectness", "anchor_box", "class", "box", "track"}
    found = 0.0
    for pair, start, end in (
        (clips[1], HERE["boxes"][1:], THERE["boxes"][:1]),
        (clips[2], THERE["boxes"][:1], HERE["boxes"][1:]),
    ):
        first, second = model.detector.see(pair)
        head = model.detector.head
        deltas = vote(naive_track_maps(model, first, second), [start], 1 / 8, head.bins, head.pooling)
        found += F.smooth_l1_loss(deltas, TRACKS.encode(start, end), reduction="sum").item() / 2
    assert losses["track"].item() == pytest.approx(found, rel=1e-4)
    detector = model.losses([frame[None] for one in clips for frame in one], [[HERE], [HERE], [THERE], [THERE], [HERE]])
    assert detector.pop("track") == 0, "a frame alone leads nowhere"
    assert set(detector) == {"objectness", "anchor_box", "class", "box"}
    for name, loss in detector.items():
        torch.testing.assert_close(loss, losses[name])


def test_a_still_image_sent_twice_teaches_that_nothing_moves() -> None:
    model = scattered()
    torch.nn.init.zeros_(model.track_branch.deltas.weight)
    frame = pictures(1)
    assert model.losses([torch.cat([frame, frame])], [[HERE, HERE]])["track"] == 0
    assert model.losses([torch.cat([frame, frame])], [[HERE, THERE]])["track"] > 0


def test_detection_alone_has_no_track_loss() -> None:
    assert "track" not in scattered(track=False).losses([pictures(2)], [[HERE, THERE]])


def test_every_layer_learns() -> None:
    model = scattered().train()
    total(model.losses([pictures(2)], [[HERE, THERE]])).backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    "targets",
    [
        pytest.param([objects(), objects()], id="nothing anywhere"),
        pytest.param([HERE, objects()], id="all gone"),
        pytest.param([objects((3, [30, 20, 31, 21])), objects((3, [31, 20, 32, 21]))], id="one pixel"),
        pytest.param([objects((3, [8, 8, 40, 40]), ignore=True)] * 2, id="all to be ignored"),
    ],
)
def test_losses_and_gradients_are_finite(targets: list[dict[str, Tensor]]) -> None:
    model = scattered().train()
    losses = model.losses([pictures(2)], [targets])
    total(losses).backward()  # type: ignore[no-untyped-call]
    assert all(loss.isfinite() for loss in losses.values())
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("size", [(32, 40), (3, 5), (1, 1)])
@torch.no_grad()
def test_frames_of_any_size(size: tuple[int, int]) -> None:
    for row in all_frames(scattered(average=True), pictures(3, size)):
        assert row["boxes"].shape == (len(row["scores"]), 4)
        assert all(value.isfinite().all() for name, value in row.items() if name != "moves")
        assert (row["boxes"][:, 2:] <= torch.tensor([size[1], size[0]]) + 1e-3).all()


def test_weights_hold_the_track_branch_under_its_name(tmp_path: Path) -> None:
    model, alone = scattered(), scattered(track=False)
    assert model.untrained == ("track_branch",)
    about = {"classes": '["cat", "dog", "fox"]'}
    for name, one in (("both", model), ("alone", alone)):
        write_weights(tmp_path / name, one.network, about, torch.float32, extras=one.extras)
    again = build(Settings(weights=str(tmp_path / "both")))
    assert again.classes == CLASSES
    assert again.untrained == ()
    for row, other in zip(all_frames(again, pictures(2)), all_frames(model, pictures(2)), strict=True):
        assert_same(row, other)
    # D alone has no use for the branch; a detector trained alone still lacks it
    assert build(Settings(weights=str(tmp_path / "both"), track=False)).untrained == ()
    assert build(Settings(weights=str(tmp_path / "alone"))).untrained == ("track_branch",)
    with pytest.raises(
        ValueError, match=r"classes are cat, dog, and those of weights .*both, in their order, cat, dog, fox"
    ):
        build(Settings(weights=str(tmp_path / "both"), classes=("cat", "dog")))
    write_weights(tmp_path / "silent", model.network, {}, torch.float32, extras=model.extras)
    with pytest.raises(ValueError, match="the number of classes or the network differs"):
        build(Settings(weights=str(tmp_path / "silent"), classes=("cat", "dog")))
