"""R-FCN step by step, at the paper's configuration (on a backbone of few channels) and the small one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

from models.parts.backbones import Backbone
from models.parts.position_sensitive import vote
from models.parts.rfcn import PAPER, SMALL, Configuration, Rfcn, chosen, joined
from models.parts.small_backbone import SmallBackbone

SIZE = (72, 104)
NOTHING = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}


class Thin(nn.Module):
    """The strides of a backbone of the paper's at four channels a level."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(3, 4, 8, 8)
        self.conv4 = nn.Conv2d(4, 4, 2, 2)
        self.conv5 = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        conv3 = self.conv3(x)
        conv4 = self.conv4(conv3)
        return {"conv3": conv3, "conv4": conv4, "conv5": self.conv5(conv4)}


def network(configuration: Configuration, num_classes: int = 3) -> Rfcn:
    """An untrained one whose anchors and regions differ in what they say."""
    torch.manual_seed(4)
    channels, third = dict.fromkeys(("conv3", "conv4", "conv5"), 4), (0.5, 0.5, 0.5)
    backbone = SmallBackbone() if configuration is SMALL else Backbone(Thin(), channels, third, third)
    made = Rfcn(backbone, num_classes, configuration).eval()
    with torch.no_grad():
        for layer in (made.rpn.head.cls_logits, made.rpn.head.bbox_pred, made.head.scores, made.head.deltas):
            layer.weight.normal_(0, 0.3)
    return made


def pictures(count: int, size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("size", [(72, 104), (61, 83), (1, 1)])
@torch.no_grad()
def test_the_small_body_keeps_its_stride_in_conv5(size: tuple[int, int]) -> None:
    backbone = SmallBackbone((8, 16, 24, 32)).eval()
    conv3, conv4, conv5 = (backbone(torch.randn(2, 3, *size))[name] for name in ("conv3", "conv4", "conv5"))
    assert backbone.channels == {"conv3": 16, "conv4": 24, "conv5": 32}
    assert conv3.shape == (2, 16, -(-size[0] // 4), -(-size[1] // 4))
    assert conv4.shape == (2, 24, -(-size[0] // 8), -(-size[1] // 8))
    assert conv5.shape == (2, 32, *conv4.shape[2:])


@torch.no_grad()
def test_conv5_of_the_small_body_is_dilated() -> None:
    """Two convolutions of dilation 2 see 4 cells of conv4 to either side, at every other cell, and no further."""
    backbone = SmallBackbone((4, 4, 4, 4)).eval()
    for parameter in backbone.conv5.parameters():
        parameter.fill_(0.1)  # nothing cancels
    one = torch.zeros(1, 4, 15, 15)
    one[..., 7, 7] = 1.0
    moved = (backbone.conv5(one) - backbone.conv5(torch.zeros_like(one)))[0, 0].abs() > 1e-6
    assert moved[7].nonzero().flatten().tolist() == [3, 5, 7, 9, 11]
    assert torch.equal(moved, moved[7][:, None] & moved[7])


@pytest.mark.parametrize(("configuration", "stride", "multiple"), [(PAPER, 16, 32), (SMALL, 8, 8)])
@torch.no_grad()
def test_frames_of_any_size_are_padded(configuration: Configuration, stride: int, multiple: int) -> None:
    made = network(configuration)
    for size in ((72, 104), (61, 83), (1, 1)):
        levels = made.features(pictures(2, size))
        cells = [(side + -side % multiple) // stride for side in size]
        assert [list(level.shape[2:]) for level in levels] == [[2 * side for side in cells], cells, cells]
        dense = made.dense(levels, size)
        per_cell = 15 if configuration is PAPER else 6
        assert dense.logits.shape == (2, cells[0] * cells[1] * per_cell)
        for boxes in made.proposals(dense):
            assert len(boxes) <= configuration.limits.num_proposals
            assert boxes.min() >= 0
            assert (boxes[:, 2:] <= torch.tensor([size[1], size[0]])).all()


def test_anchors_of_the_paper() -> None:
    """5 scales and 3 aspects (section 5.2), on every cell of stride 16."""
    made = network(PAPER)
    anchors = made.dense(made.features(pictures(1, (64, 96))), (64, 96)).anchors.view(4, 6, 15, 4)
    sides = anchors[..., 2:] - anchors[..., :2]
    areas, aspects = sides.prod(dim=-1).sqrt(), sides[..., 1] / sides[..., 0]
    wanted = torch.tensor([32.0, 64, 128, 256, 512])
    torch.testing.assert_close(areas[1, 2].sort().values, wanted.repeat_interleave(3), rtol=0.02, atol=0)
    torch.testing.assert_close(
        aspects[1, 2].sort().values, torch.tensor([0.5, 1, 2]).repeat_interleave(5), rtol=0.05, atol=0
    )
    centres = (anchors[..., :2] + anchors[..., 2:]) / 2
    torch.testing.assert_close(centres[3, 5] - centres[0, 0], torch.tensor([80.0, 48.0]).expand(15, 2))


def test_the_head_has_the_papers_channels() -> None:
    """Section 5.2: 512 by a 3x3 convolution of dilation 6; k^2 (C + 1) = 49 * 31 of scores, 4 k^2 = 196 of deltas."""
    made = network(PAPER, num_classes=30)
    maps = made.maps(made.features(pictures(1)))
    assert maps.scores.shape[1] == 49 * 31
    assert maps.deltas.shape[1] == 196
    assert made.head.reduce.weight.shape == (512, 4, 3, 3)
    assert made.head.reduce.dilation == (6, 6)


@pytest.mark.parametrize("configuration", [PAPER, SMALL])
@torch.no_grad()
def test_regions_are_what_the_maps_vote(configuration: Configuration) -> None:
    made = network(configuration)
    x = (pictures(2).float() / 255 - made.mean) / made.std
    multiple = configuration.multiple
    conv5 = made.backbone(F.pad(x, (0, -SIZE[1] % multiple, 0, -SIZE[0] % multiple)))["conv5"]
    shared = F.relu(made.head.reduce(conv5))
    boxes = [torch.tensor([[3.0, 5, 40, 50], [30, 20, 31, 21]]), torch.tensor([[-9.0, -9, 200, 200]])]
    how = (boxes, 1 / configuration.stride, configuration.bins, configuration.pooling)
    logits, deltas = vote(made.head.scores(shared), *how), vote(made.head.deltas(shared), *how)
    first, second = made.regions(made.maps(made.features(pictures(2))), boxes)
    torch.testing.assert_close(torch.cat([first.logits, second.logits]), logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.cat([first.deltas, second.deltas])[:, 0], deltas, atol=1e-4, rtol=1e-4)
    assert torch.equal(first.boxes, boxes[0])
    refined = configuration.coder.decode(boxes[0], first.deltas[:, 0])
    torch.testing.assert_close(first.refined((999, 999))[:, 0], refined.clamp(min=0))
    nothing = made.regions(made.maps(made.features(pictures(2))), [torch.zeros(0, 4)] * 2)
    assert [of_frame.logits.shape for of_frame in nothing] == [(0, 4)] * 2


@pytest.mark.parametrize("configuration", [PAPER, SMALL])
@torch.no_grad()
def test_what_is_seen_of_a_frame_does_not_depend_on_its_batch(configuration: Configuration) -> None:
    made, frames = network(configuration), pictures(3)
    together = made.see(frames)
    for frame, seen in zip(frames, together, strict=True):
        (alone,) = made.see(frame[None])
        for name in ("proposals", "boxes", "probabilities"):
            torch.testing.assert_close(getattr(seen, name), getattr(alone, name), atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(seen.maps.scores, alone.maps.scores, atol=1e-4, rtol=1e-4)
        assert seen.size == SIZE
        assert len(seen.proposals) > 5
    levels, maps = joined(together)
    for one, other in zip(levels, made.features(frames), strict=True):
        torch.testing.assert_close(one, other)
    again, _ = chosen(levels, maps, torch.tensor([2, 0, 2]))
    assert torch.equal(again[1][0], levels[1][2])


def test_proposals_and_true_boxes_teach() -> None:
    made = network(SMALL)
    truth = {"boxes": torch.tensor([[1.0, 2, 30, 40], [5, 5, 9, 9]]), "labels": torch.tensor([0, 1])}
    ignored = truth | {"ignore": torch.tensor([False, True])}
    dense = made.dense(made.features(pictures(3)), SIZE)
    first, second, third = made.training_boxes(dense, [truth, ignored, NOTHING])
    assert first[16:].tolist() == truth["boxes"].tolist()
    assert second[16:].tolist() == [[1, 2, 30, 40]]
    assert len(third) == 16
    assert not first.requires_grad


@pytest.mark.parametrize("configuration", [PAPER, SMALL])
@pytest.mark.parametrize(
    "boxes",
    [
        pytest.param([], id="nothing"),
        pytest.param([[30.0, 20, 31, 21]], id="one pixel"),
        pytest.param([[10.0, 10, 40, 42], [50, 20, 90, 60]], id="two"),
    ],
)
@pytest.mark.parametrize("ignored", [False, True])
def test_losses_and_gradients_are_finite(configuration: Configuration, boxes: list[list[float]], ignored: bool) -> None:
    made = network(configuration).train()
    target = {
        "boxes": torch.tensor(boxes).reshape(-1, 4),
        "labels": torch.ones(len(boxes), dtype=torch.long),
        "ignore": torch.full((len(boxes),), ignored),
    }
    levels = made.features(pictures(2))
    losses = made.losses(levels, made.maps(levels), SIZE, [target, NOTHING])
    assert set(losses) == {"objectness", "anchor_box", "class", "box"}
    sum(losses.values(), start=torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    assert all(loss.isfinite() for loss in losses.values())
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in made.parameters())
    if ignored or not boxes:
        assert losses["box"] == 0


def test_only_the_hardest_regions_of_the_paper_teach() -> None:
    """Of some 300 regions 128 (section 5.2): their mean loss is above that of all."""
    made = network(PAPER)
    nn.init.normal_(made.head.scores.weight, std=20.0)
    truth = {"boxes": torch.tensor([[10.0, 10, 60, 60]]), "labels": torch.tensor([1])}
    levels = made.features(pictures(1, (320, 480)))
    maps, dense = made.maps(levels), made.dense(levels, (320, 480))
    boxes = made.training_boxes(dense, [truth])
    assert len(boxes[0]) > 250
    (found,) = made.regions(maps, boxes)
    wanted = torch.where(box_iou(boxes[0], truth["boxes"])[:, 0] >= 0.5, 2, 0)
    each = F.cross_entropy(found.logits, wanted, reduction="none")
    of_class = made.losses(levels, maps, (320, 480), [truth])["class"]
    few = each[wanted == 0].topk(120).values.mean()  # at most some of the foreground are among the hardest
    assert of_class > each.mean() * 1.05
    assert of_class.item() == pytest.approx(few.item(), rel=0.1)
