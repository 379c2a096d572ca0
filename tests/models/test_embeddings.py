"""Embeddings of anchors and regions: their shapes, their order, and what each kind shares with the head."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear

from models.parts.embeddings import Embeddings, Kind
from models.parts.small_two_stage import SmallTwoStage
from models.parts.two_stage import Dense, Regions

FRAME = torch.randint(0, 256, (1, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
BOXES = torch.tensor([[4.0, 6.0, 30.0, 40.0], [50.0, 10.0, 90.0, 60.0], [0.0, 0.0, 96.0, 64.0]])


@pytest.fixture(scope="module")
def said() -> tuple[SmallTwoStage, Dense, Regions]:
    torch.manual_seed(0)
    detector = SmallTwoStage(3).eval()
    with torch.no_grad():
        features = detector.features(FRAME)
        return detector, detector.dense(features, (64, 96)), detector.head(features, [BOXES], (64, 96))[0]


@torch.no_grad()
def test_an_anchors_embedding_is_at_the_anchors_place(said: tuple[SmallTwoStage, Dense, Regions]) -> None:
    detector, dense, _ = said
    branches = Embeddings(detector, size=5)
    (tower,) = dense.towers
    embeddings = branches.of_anchors(tower)
    assert embeddings.shape == (1, len(dense.anchors), 5)
    maps = conv2d(tower, branches.anchors.weight, branches.anchors.bias)  # (1, K * 5, h, w)
    row, column, which = 3, 7, 2
    index = (row * tower.shape[3] + column) * detector.per_cell + which
    x1, y1, x2, y2 = dense.anchors[index].tolist()
    assert ((x1 + x2) / 2, (y1 + y2) / 2) == (column * 8 + 4, row * 8 + 4)
    torch.testing.assert_close(embeddings[0, index], maps[0, which * 5 : which * 5 + 5, row, column])


@pytest.mark.parametrize("kind", ["separate_2fc", "shared_2fc", "fully_shared"])
@torch.no_grad()
def test_stage_2_is_one_layer_beside_the_classes(kind: Kind, said: tuple[SmallTwoStage, Dense, Regions]) -> None:
    detector, _, regions = said
    branches = Embeddings(detector, kind)
    wanted = linear(regions.embeddings, branches.stage_2.weight, branches.stage_2.bias)
    torch.testing.assert_close(branches.stage_2_of(regions), wanted)
    assert branches.stage_1_of(regions).shape == branches.stage_2_of(regions).shape == (3, 128)
    assert branches.sizes == (128, 128)


@pytest.mark.parametrize(
    ("kind", "same", "by_pooled", "by_head"),
    [
        pytest.param("separate_2fc", False, True, False, id="separate: two layers of its own on the pooled region"),
        pytest.param("shared_2fc", False, False, True, id="shared: its own last layer on the head's two"),
        pytest.param("fully_shared", True, False, True, id="fully shared: it is E_s2"),
    ],
)
def test_what_stage_1_depends_on(
    kind: Kind, same: bool, by_pooled: bool, by_head: bool, said: tuple[SmallTwoStage, Dense, Regions]
) -> None:
    detector, _, regions = said
    branches = Embeddings(detector, kind)
    pooled, head = regions.pooled.clone().requires_grad_(), regions.embeddings.clone().requires_grad_()
    apart = Regions(regions.boxes, pooled, head, regions.logits, regions.deltas, regions.coder)
    stage_1 = branches.stage_1_of(apart)
    assert torch.equal(stage_1, branches.stage_2_of(apart)) == same
    torch.autograd.backward([stage_1.sum() + 0 * (pooled.sum() + head.sum())])
    assert pooled.grad is not None
    assert head.grad is not None
    assert (bool(pooled.grad.any()), bool(head.grad.any())) == (by_pooled, by_head)


@pytest.mark.parametrize("kind", ["separate_2fc", "shared_2fc", "fully_shared"])
def test_how_many_numbers_are_learned(kind: Kind, said: tuple[SmallTwoStage, Dense, Regions]) -> None:
    """Of the small detector: 64 channels, 4 x 4 cells, 256 hidden; the anchors' branch is 128 K (64 + 1)."""
    detector = said[0]
    wanted = 128 * detector.per_cell * (64 + 1) + (256 + 1) * 128
    if kind == "shared_2fc":
        wanted += (256 + 1) * 128
    if kind == "separate_2fc":
        wanted += (64 * 16 + 1) * 256 + (256 + 1) * 256 + (256 + 1) * 128
    assert sum(weight.numel() for weight in Embeddings(detector, kind).parameters()) == wanted


def test_fc7_is_the_heads_own_less_its_mean(said: tuple[SmallTwoStage, Dense, Regions]) -> None:
    detector, _, regions = said
    branches = Embeddings(detector, "fc7")
    assert branches.sizes == (0, detector.hidden)
    assert not list(branches.parameters())
    looks = branches.stage_2_of(regions)
    torch.testing.assert_close(looks, regions.embeddings - regions.embeddings.mean(dim=0))
    torch.testing.assert_close(looks.sum(dim=0), torch.zeros(detector.hidden), atol=1e-5, rtol=0)
    assert branches.stage_1_of(regions).shape == (3, 0)
    none = regions.where(slice(0))
    assert branches.stage_2_of(none).shape == (0, detector.hidden)
    with pytest.raises(AssertionError):
        branches.of_anchors(torch.zeros(1, 64, 2, 2))


def test_nothing_has_a_gradient_of_zeros(said: tuple[SmallTwoStage, Dense, Regions]) -> None:
    branches = Embeddings(said[0])
    nothing: Tensor = branches.nothing()
    torch.autograd.backward([nothing])
    assert nothing.item() == 0
    assert all(weight.grad is not None and not weight.grad.any() for weight in branches.parameters())
