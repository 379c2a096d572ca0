"""The regression tracker: geometry against hand-made maps and plain loops, what it is taught, and that it learns."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

from models.parts.regression_tracker import (
    DELTAS,
    RegressionTracker,
    RoiIou,
    correlate,
    expand,
    freeze,
    jitter,
    merge_levels,
    paired_iou,
    pool,
    rois_and_goals,
    sample_rois,
)

SIZE = (64, 96)
STRIDE = 4


def boxes(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_maps(pairs: int, channels: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features of frames of SIZE at STRIDE."""
    shape = (2, pairs, channels, SIZE[0] // STRIDE, SIZE[1] // STRIDE)
    here, later = torch.rand(shape, generator=seeded(seed))
    return here, later


def small_tracker(inputs: int = 6) -> RegressionTracker:
    """Not trained, but with weights that make its outputs differ from box to box."""
    torch.manual_seed(0)
    tracker = RegressionTracker(inputs, STRIDE, channels=8)
    nn.init.normal_(tracker.deltas.weight, std=0.02)
    nn.init.normal_(tracker.quality.weight, std=0.02)
    return tracker.eval()


def correlate_in_loops(search: Tensor, template: Tensor) -> Tensor:
    count, channels, height, width = search.shape
    rows, columns = template.shape[-2:]
    out = torch.zeros(count, channels, height - rows + 1, width - columns + 1)
    for n in range(count):
        for c in range(channels):
            for y in range(out.shape[2]):
                for x in range(out.shape[3]):
                    out[n, c, y, x] = (search[n, c, y : y + rows, x : x + columns] * template[n, c]).sum()
    return out


@pytest.mark.parametrize(
    ("search", "template", "expected"),
    [
        pytest.param((2, 3, 21, 21), (2, 3, 7, 7), (2, 3, 15, 15), id="the paper's"),
        pytest.param((1, 2, 4, 6), (1, 2, 2, 5), (1, 2, 3, 2), id="not square"),
        pytest.param((1, 1, 3, 3), (1, 1, 3, 3), (1, 1, 1, 1), id="one place only"),
    ],
)
def test_correlation_is_its_definition(search: tuple[int, ...], template: tuple[int, ...], expected: object) -> None:
    patch, small = torch.randn(search, generator=seeded(1)), torch.randn(template, generator=seeded(2))
    fit = correlate(patch, small)
    assert fit.shape == expected
    torch.testing.assert_close(fit, correlate_in_loops(patch, small), atol=1e-5, rtol=1e-5)


def test_boxes_grow_around_their_centres() -> None:
    assert expand(boxes([10, 20, 14, 30]), 3).tolist() == [[6, 10, 18, 40]]
    assert expand(boxes(), 3).shape == (0, 4)


def test_iou_of_pairs_is_the_diagonal_of_all() -> None:
    some = jitter(boxes([10, 10, 30, 20]), 30, 1.5, 0.5, seeded())[0]
    torch.testing.assert_close(paired_iou(some, some.flip(0)), box_iou(some, some.flip(0)).diagonal())
    assert paired_iou(boxes(), boxes()).shape == (0,)


def test_levels_come_together_at_the_second() -> None:
    hrnet = [torch.zeros(1, 32 * 2**i, 152 // 2**i, -(-252 // 2**i)) for i in range(4)]
    assert merge_levels(hrnet).shape == (1, 480, 76, 126)
    pyramid = [torch.zeros(1, 256, *size) for size in ((76, 126), (38, 63), (19, 32))]
    assert merge_levels(pyramid).shape == (1, 768, 38, 63)


def test_finer_levels_are_max_pooled_and_coarser_repeated() -> None:
    fine = torch.arange(16.0).reshape(1, 1, 4, 4)
    middle = torch.full((1, 1, 2, 2), 7.0)
    coarse = torch.tensor([[[[3.0]], [[5.0]]]])
    assert merge_levels([fine, middle, coarse]).tolist() == [
        [[[5, 7], [13, 15]], [[7, 7], [7, 7]], [[3, 3], [3, 3]], [[5, 5], [5, 5]]]
    ]


def positions(size: tuple[int, int], stride: int) -> Tensor:
    """Features (1, 2, rows, columns) that say where they are: x and y of each cell's centre in pixels."""
    rows, columns = size[0] // stride, size[1] // stride
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return ((torch.stack([x, y]) + 0.5) * stride)[None]


@pytest.mark.parametrize(
    ("box", "x", "y"),
    [
        pytest.param([20, 16, 34, 44], [22 + 1 / 3, 27, 31 + 2 / 3], [20 + 2 / 3, 30, 39 + 1 / 3], id="inside"),
        pytest.param([40, 30, 41, 31], [40 + 1 / 6, 40.5, 40 + 5 / 6], [30 + 1 / 6, 30.5, 30 + 5 / 6], id="a pixel"),
    ],
)
def test_a_part_is_pooled_where_it_lies(box: list[float], x: list[float], y: list[float]) -> None:
    pooled = pool(positions(SIZE, STRIDE), [boxes(box)], 3, STRIDE, SIZE)[0]
    torch.testing.assert_close(pooled[0], torch.tensor(x).expand(3, 3))
    torch.testing.assert_close(pooled[1], torch.tensor(y)[:, None].expand(3, 3))


def test_a_part_is_the_mean_of_all_its_cells() -> None:
    here, _ = random_maps(1)
    pooled = pool(here, [boxes([8, 16, 72, 48])], 2, STRIDE, SIZE)  # 2 x 2 parts of 4 x 8 cells
    torch.testing.assert_close(pooled, F.avg_pool2d(here[:, :, 4:12, 2:18], (4, 8)))


@pytest.mark.parametrize("size", [pytest.param(SIZE, id="whole map"), pytest.param((50, 70), id="padded frame")])
def test_what_lies_outside_the_frame_is_zero(size: tuple[int, int]) -> None:
    height, width = size
    pooled = pool(torch.ones(1, 1, 16, 24), [boxes([width - 9, height - 6, width + 9, height + 12])], 6, STRIDE, size)
    inside = torch.zeros(6, 6)
    inside[:2, :3] = 1  # parts of 3 x 3 pixels: three of them across, two down
    assert torch.equal(pooled[0, 0] > 0, inside.bool())
    corner = pool(torch.ones(1, 1, 16, 24), [boxes([-6, -6, 6, 6])], 4, STRIDE, size)[0, 0]
    assert torch.equal(corner > 0, torch.tensor([[0, 0, 1, 1]] * 4).bool() & torch.tensor([[0], [0], [1], [1]]).bool())
    assert pool(torch.ones(1, 1, 16, 24), [boxes([200, 200, 220, 220])], 2, STRIDE, size).abs().sum() == 0


def test_template_and_search_have_one_scale() -> None:
    here, _ = random_maps(1)
    box = boxes([40, 24, 54, 38])
    template = pool(here, [box], 7, STRIDE, SIZE)
    search = pool(here, [expand(box, 3)], 21, STRIDE, SIZE)
    torch.testing.assert_close(search[:, :, 7:14, 7:14], template)


def test_size_does_not_matter() -> None:
    """An object twice as large in features that vary half as fast has the same deltas and quality."""
    tracker = small_tracker(inputs=2).double()
    size = (128, 192)
    fast = positions(size, STRIDE).double()
    slow = fast / 2
    box = boxes([60, 30, 75, 42]).double()
    with torch.no_grad():
        once = tracker(fast, fast + 3, [box], size)
        twice = tracker(slow, slow + 3, [box * 2], size)
        other = tracker(slow, slow + 3, [box], size)
    assert (once[0] - other[0]).abs().max() > 1e-3
    torch.testing.assert_close(once, twice, atol=1e-8, rtol=0)


def test_pairs_together_are_pairs_alone() -> None:
    tracker = small_tracker()
    here, later = random_maps(3)
    lists = [boxes([10, 10, 30, 30], [40, 20, 41, 21]), boxes(), boxes([-5, -5, 20, 60])]  # one of a pixel
    with torch.no_grad():
        deltas, quality = tracker(here, later, lists, SIZE)
        tracked = [tracker.track(here[i], later[i], lists[i], SIZE) for i in range(3)]
    starts = torch.cat(lists)
    expected = DELTAS.decode(starts, deltas).clamp(min=0).minimum(torch.tensor([96.0, 64, 96, 64]))
    torch.testing.assert_close(torch.cat([ends for ends, _ in tracked]), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.cat([score for _, score in tracked]), quality, atol=1e-5, rtol=0)
    assert [len(ends) for ends, _ in tracked] == [2, 0, 1]
    assert ((quality > 0) & (quality < 1)).all()


@pytest.mark.parametrize("training", [False, True])
def test_a_look_is_what_the_layers_make_of_what_is_pooled(training: bool) -> None:
    """Also past the frame's edges, where there is nothing; in float64, where only the order of sums is left."""
    network = RegressionTracker(3, STRIDE, 4).double().train(training)
    features = torch.randn(2, 3, 16, 24, generator=seeded(1)).double()
    around = [boxes([8, 16, 72, 48], [-9, -6, 20, 18]).double(), boxes([100, 70, 140, 110]).double()]
    for layers, bins in ((network.template, 7), (network.search, 21)):
        look = network.look(layers, features, around, bins, SIZE)
        assert look.shape == (3, 4, bins, bins)
        torch.testing.assert_close(look, layers(pool(features, around, bins, STRIDE, SIZE)), atol=1e-12, rtol=1e-9)


def test_both_frames_matter() -> None:
    tracker = small_tracker()
    here, later = random_maps(1)
    box = [boxes([30, 20, 60, 44])]
    with torch.no_grad():
        deltas, _ = tracker(here, later, box, SIZE)
        for one, other in ((here.flip(3), later), (here, later.flip(3))):
            assert (tracker(one, other, box, SIZE)[0] - deltas).abs().max() > 1e-4


def test_the_papers_size() -> None:
    tracker = RegressionTracker(480, 8)
    assert tracker.deltas.in_features == tracker.quality.in_features == 256 * 15 * 15
    assert sum(p.numel() for p in tracker.parameters()) == 2_895_877


def test_untrained_boxes_stay() -> None:
    torch.manual_seed(0)
    here, later = random_maps(1)
    box = boxes([30, 20, 60, 44])
    with torch.no_grad():
        ends, quality = RegressionTracker(6, STRIDE, channels=8).eval().track(here[0], later[0], box, SIZE)
    assert box_iou(ends, box).item() > 0.9
    assert quality.item() == pytest.approx(0.5, abs=0.05)


def test_each_roi_leads_to_its_own_object_if_that_is_in_both_frames() -> None:
    def frame(ids: list[int], ignore: list[bool]) -> dict[str, Tensor]:
        """The object of id i has the box [10 i, 0, 10 i + 10, 10]."""
        own = torch.cat([boxes([10 * i, 0, 10 * i + 10, 10]) for i in ids])
        return {"boxes": own, "track_ids": torch.tensor(ids), "ignore": torch.tensor(ignore)}

    here = frame([1, 5, 9, 7, -1], [False, False, False, True, False])  # 5 leaves, 7 is to ignore, -1 is unknown
    later = frame([9, -1, 7, 1], [False] * 4)
    rois, goals = rois_and_goals(here, later, seeded(), "gt", per_object=4)
    assert goals.tolist() == [[10, 0, 20, 10]] * 4 + [[90, 0, 100, 10]] * 4
    assert box_iou(rois, goals).diagonal().min() >= 0.5
    assert [len(found) for found in rois_and_goals(here, frame([2], [False]), seeded())] == [0, 0]


def test_share_of_equation_3_that_overlaps_by_half() -> None:
    """4.2 %: of 256 RoIs eleven, so that 128 can only be had from those below."""
    object_box = boxes([10, 20, 50, 100])
    drawn = jitter(object_box, 40_000, 1.0, 0.5, seeded())[0]
    share = (box_iou(drawn, object_box) >= 0.5).float().mean().item()
    assert share == pytest.approx(0.042, abs=0.004)
    scaled = DELTAS.encode(object_box.expand_as(drawn), drawn)
    assert -1 <= scaled[:, :2].min() < -0.99
    assert 0.99 < scaled[:, :2].max() <= 1
    assert 0.499 < scaled[:, 2:].exp().min() < 0.51
    assert 1.49 < scaled[:, 2:].exp().max() < 1.501


@pytest.mark.parametrize(("roi_iou", "tight"), [("lt", 0), ("mix", 64), ("gt", 128)])
def test_rois_overlap_as_asked(roi_iou: RoiIou, tight: int) -> None:
    objects = boxes([10, 20, 50, 100], [0, 0, 1, 1], [300, 5, 320, 12])
    state = torch.get_rng_state()
    rois, index = sample_rois(objects, seeded(3), roi_iou)
    overlap = box_iou(rois, objects)[torch.arange(len(rois)), index]
    for own in range(3):
        assert (index == own).sum() == 128
        assert (overlap[index == own] >= 0.5).sum() == tight
    again, _ = sample_rois(objects, seeded(3), roi_iou)
    other, _ = sample_rois(objects, seeded(4), roi_iou)
    assert torch.equal(again, rois)
    assert not torch.equal(other, rois)
    assert torch.equal(torch.get_rng_state(), state)
    nothing, of_nothing = sample_rois(boxes(), seeded(), roi_iou)
    assert (nothing.shape, of_nothing.shape) == ((0, 4), (0,))


def test_losses_are_smooth_l1_of_deltas_and_of_the_iou_reached() -> None:
    tracker = small_tracker()
    here, later = random_maps(2)
    rois = [boxes([10, 10, 30, 30], [50, 20, 70, 60]), boxes([40, 8, 60, 40])]
    goals = [boxes([12, 10, 33, 31], [90, 1, 95, 3]), boxes([40, 8, 60, 40])]
    losses = tracker.losses(here, later, rois, goals, SIZE)
    with torch.no_grad():
        deltas, quality = tracker(here, later, rois, SIZE)
    move = sum(
        0.5 * d * d if d < 1 else d - 0.5
        for d in (deltas - DELTAS.encode(torch.cat(rois), torch.cat(goals))).abs().flatten()
    )
    reached = box_iou(DELTAS.decode(torch.cat(rois), deltas), torch.cat(goals)).diagonal()
    assert losses["move"].item() == pytest.approx(float(move) / 3, rel=1e-4)
    assert losses["quality"].item() == pytest.approx((0.5 * (quality - reached) ** 2).mean().item(), rel=1e-4)


def test_the_quality_does_not_teach_the_move() -> None:
    tracker = small_tracker()
    box = [boxes([10, 10, 30, 30])]
    tracker.losses(*random_maps(1), box, [box[0] + 2], SIZE)["quality"].backward()
    assert tracker.deltas.weight.grad is None
    assert tracker.quality.weight.grad is not None
    assert tracker.search[0][0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("rois", "goals"),
    [
        pytest.param([boxes([10, 10, 30, 30]), boxes()], [boxes([12, 9, 30, 30]), boxes()], id="a pair without"),
        pytest.param(
            [boxes([5, 5, 6, 6]), boxes([-90, -90, -80, -80])], [boxes([5, 5, 6, 6])] * 2, id="a pixel, outside"
        ),
        pytest.param([boxes([10, 10, 11, 11])] * 2, [boxes([0, 0, 96, 64])] * 2, id="far larger"),
    ],
)
def test_gradients_are_finite(rois: list[Tensor], goals: list[Tensor]) -> None:
    tracker = small_tracker().train()
    losses = tracker.losses(*random_maps(2), rois, goals, SIZE)
    sum(losses.values(), start=torch.zeros(())).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in tracker.parameters())
    assert sum(float(p.grad.abs().sum()) for p in tracker.parameters() if p.grad is not None) > 0


def test_nothing_to_track_teaches_nothing() -> None:
    tracker = small_tracker().train()
    before = copy.deepcopy(tracker.state_dict())
    losses = tracker.losses(*random_maps(2), [boxes()] * 2, [boxes()] * 2, SIZE)
    assert {name: loss.item() for name, loss in losses.items()} == {"move": 0, "quality": 0}
    sum(losses.values(), start=torch.zeros(())).backward()
    assert all(p.grad is not None and not p.grad.any() for p in tracker.parameters())
    assert all(torch.equal(value, before[name]) for name, value in tracker.state_dict().items())


def untrained_backbone() -> nn.Module:
    """Features of stride 4 in 16 channels."""
    torch.manual_seed(0)
    halves = [(nn.Conv2d(inputs, 16, 3, 2, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for inputs in (3, 16)]
    return nn.Sequential(*halves[0], *halves[1])


def moving_square(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two frames (3, 96, 96) in which a textured square moves by up to 8 px each way, and its boxes (1, 4)."""
    ground = F.interpolate(torch.rand(1, 3, 12, 12, generator=generator), (96, 96), mode="bilinear")[0] / 2 + 0.25
    side = int(torch.randint(16, 25, (), generator=generator))
    square = F.interpolate(torch.rand(1, 3, 4, 4, generator=generator), (side, side), mode="nearest")[0]
    start = torch.randint(8, 88 - side, (2,), generator=generator)
    frames, found = [], []
    for x, y in (start.tolist(), (start + torch.randint(-8, 9, (2,), generator=generator)).tolist()):
        picture = ground.clone()
        picture[:, y : y + side, x : x + side] = square
        frames.append(picture)
        found.append(boxes([x, y, x + side, y + side]))
    return frames[0], frames[1], found[0], found[1]


def squares(
    backbone: nn.Module, count: int, generator: torch.Generator, per_object: int
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], list[Tensor]]:
    """Features of `count` pairs, here and later, the square's box here, RoIs around it, and where each should lead."""
    here, later, starts, ends = zip(*[moving_square(generator) for _ in range(count)], strict=True)
    one = {"track_ids": torch.tensor([1])}
    sampled = [
        rois_and_goals({"boxes": start, **one}, {"boxes": end, **one}, generator, per_object=per_object)
        for start, end in zip(starts, ends, strict=True)
    ]
    rois, goals = zip(*sampled, strict=True)
    with torch.no_grad():
        return backbone(torch.stack(here)), backbone(torch.stack(later)), list(starts), list(rois), list(goals)


def test_it_learns_to_follow_and_to_know_how_well() -> None:
    backbone = untrained_backbone()
    freeze(backbone)
    torch.manual_seed(3)
    tracker = RegressionTracker(16, STRIDE, channels=16).train()
    steps, size = 100, (96, 96)
    optimizer = torch.optim.AdamW(tracker.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    generator = seeded(1)
    for _ in range(steps):
        here, later, _, rois, goals = squares(backbone, 8, generator, 4)
        optimizer.zero_grad()
        sum(tracker.losses(here, later, rois, goals, size).values(), start=torch.zeros(())).backward()
        optimizer.step()
        schedule.step()
    tracker.eval()
    here, later, starts, rois, goals = squares(backbone, 64, seeded(99), 8)
    start, end = torch.cat(starts), torch.stack([goal[0] for goal in goals])
    with torch.no_grad():
        deltas, _ = tracker(here, later, starts, size)
        roi_deltas, quality = tracker(here, later, rois, size)
    stayed, followed = paired_iou(start, end).mean(), paired_iou(DELTAS.decode(start, deltas), end).mean()
    assert stayed < 0.5
    assert followed > stayed + 0.15
    reached = paired_iou(DELTAS.decode(torch.cat(rois), roi_deltas), torch.cat(goals))
    assert torch.corrcoef(torch.stack([quality, reached]))[0, 1] > 0.4
