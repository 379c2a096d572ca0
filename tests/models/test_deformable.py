"""Deformable convolutions: what they begin as, where they look, what learns."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import deform_conv2d

from models.parts import backbones
from models.parts.deformable import DeformableConv2d, deform


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(8, 12, 3, padding=1),
        nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(8, 12, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=4),
    ],
    ids=["plain", "strided", "dilated", "grouped"],
)
def test_begins_as_the_convolution_whose_place_it_takes(convolution: nn.Conv2d, groups: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 9, 11)
    deformable = DeformableConv2d(convolution, groups)
    torch.testing.assert_close(deformable(x), convolution(x), rtol=1e-5, atol=1e-5)
    kept = {key: tensor for key, tensor in deformable.state_dict().items() if not key.startswith("sampling.")}
    assert kept.keys() == convolution.state_dict().keys()


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(8, 12, 3, padding=1),
        nn.Conv2d(8, 12, (3, 5), stride=(2, 1), padding=(1, 3), bias=False),
        nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=4),
    ],
    ids=["plain", "oblong", "dilated and grouped"],
)
def test_on_a_cpu_it_is_what_torchvision_gives_outside_the_map_too(convolution: nn.Conv2d, groups: int) -> None:
    torch.manual_seed(5)
    deformable = DeformableConv2d(convolution, groups)
    x, sampling = torch.randn(2, 8, 9, 11), deformable.sampling
    nn.init.normal_(sampling.weight, std=0.5)  # offsets of some cells
    offsets, masks = sampling(x).split([deformable.num_offsets, deformable.num_masks], dim=1)
    weight, bias, how = convolution.weight, convolution.bias, (sampling.stride, sampling.padding, sampling.dilation)
    wanted = deform_conv2d(x, offsets, weight, bias, *how, mask=2 * masks.sigmoid())
    torch.testing.assert_close(deformable(x), wanted, rtol=1e-4, atol=1e-5)
    given, expected = (
        torch.autograd.grad(y.square().sum(), [weight, sampling.weight], retain_graph=True)
        for y in (deformable(x), wanted)
    )
    torch.testing.assert_close(given, expected, rtol=1e-3, atol=1e-3)


def test_an_offset_of_one_cell_to_the_right_sees_the_image_shifted_to_the_left() -> None:
    torch.manual_seed(1)
    convolution = nn.Conv2d(6, 5, 3, padding=1)
    deformable = DeformableConv2d(convolution, groups=2)
    assert deformable.sampling.bias is not None
    x = torch.randn(1, 6, 8, 10)
    with torch.no_grad():
        offsets = deformable.sampling.bias[: deformable.num_offsets].view(2, 9, 2)  # group, point, (dy, dx)
        offsets[0, :, 1] = 1.0  # the first half of the channels only
        shifted = torch.cat([F.pad(x[:, :3, :, 1:], (0, 1)), x[:, 3:]], dim=1)
        seen, wanted = deformable(x), convolution(shifted)
    # The first column is left out: there the convolution pads, and the deformed one sees the image's own first column.
    torch.testing.assert_close(seen[..., 1:], wanted[..., 1:], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(seen, convolution(x), atol=0.1)


@pytest.mark.parametrize(("logit", "factor"), [(0.0, 1.0), (30.0, 2.0), (-30.0, 0.0)])
def test_masks_weigh_kernel_points_from_none_to_double(logit: float, factor: float) -> None:
    torch.manual_seed(2)
    convolution = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    deformable = DeformableConv2d(convolution)
    assert deformable.sampling.bias is not None
    x = torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        deformable.sampling.bias[deformable.num_offsets + 4] = logit  # the kernel's middle
        convolution_of_factor = convolution.weight.clone()
        convolution_of_factor[:, :, 1, 1] *= factor
        wanted = F.conv2d(x, convolution_of_factor, padding=1)
        torch.testing.assert_close(deformable(x), wanted, rtol=1e-5, atol=1e-5)


def test_offsets_learn_to_look_where_the_answer_is() -> None:
    """The wanted output is the input two cells to the right; the kernel's weights cannot reach so far."""
    torch.manual_seed(3)
    convolution = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.weight[0, 0, 1, 1] = 1.0
    deformable = DeformableConv2d(convolution)
    assert deformable.sampling.bias is not None
    convolution.weight.requires_grad_(False)
    optimizer = torch.optim.Adam(deformable.sampling.parameters(), lr=0.05)
    x = F.interpolate(torch.randn(4, 1, 6, 6), size=(24, 24), mode="bicubic")
    first = loss = torch.tensor(0.0)
    for step in range(80):
        loss = F.mse_loss(deformable(x)[..., 2:-4], x[..., 4:-2])
        first = loss.detach() if step == 0 else first
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss < 0.1 * first
    dy, dx = deformable.sampling.bias[: deformable.num_offsets].view(9, 2)[4]
    assert abs(dy) < 0.5
    assert 1 < dx < 3


def test_in_a_backbone_only_the_3_x_3_convolutions_of_its_stages_deform_and_nothing_changes_at_first() -> None:
    torch.manual_seed(4)
    backbone = backbones.build("resnet50")
    frames = torch.randn(1, 3, 40, 56)
    keys = set(backbone.state_dict())
    with torch.no_grad():
        before = backbone(frames)
        deform(backbone.body, ("layer2", "layer3", "layer4"), groups=4)
        after = backbone(frames)
    for name, expected in before.items():
        torch.testing.assert_close(after[name], expected, rtol=1e-4, atol=1e-4)
    deformed = [name for name, module in backbone.named_modules() if isinstance(module, DeformableConv2d)]
    assert deformed == [
        f"body.layer{stage}.{block}.conv2" for stage, blocks in ((2, 4), (3, 6), (4, 3)) for block in range(blocks)
    ]
    assert set(backbone.state_dict()) - keys == {
        f"{name}.sampling.{kind}" for name in deformed for kind in ("weight", "bias")
    }
    assert keys <= set(backbone.state_dict())
