"""Deformable convolutions with modulation, in the place of a network's 3 x 3 ones.

Zhu et al., "Deformable ConvNets v2: More Deformable, Better Results", 2019, section 3.2: the stronger baseline of
"Integrated detection and tracking" (Table 4, on conv3 to conv5) and the heavy detector of "Plug & Play" (appendix).
DCNv2's other two ideas, deformable RoI pooling and mimicking R-CNN's features, neither paper speaks of; they are left
out.

Legend: G deformable groups, K = 9 kernel points, C channels of the input, D of the output, h x w cells of the output.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from models.parts.sampling import bilinear


class DeformableConv2d(nn.Conv2d):
    """A convolution each of whose kernel points is moved and weighted, cell by cell, as the input says.

    convolution: what it takes the place of; its tensors keep their keys, those of `sampling` are new. groups: G; the
    input's channels fall into so many groups that move apart from each other.

    At the start it equals the convolution: `sampling` gives 0, and the masks are 2 sigmoid(0) = 1. DCNv2's own are
    sigmoid(0) = .5, which would halve what weights of ImageNet expect; its ten times smaller learning rate of
    `sampling` is left to the optimiser.
    """

    def __init__(self, convolution: nn.Conv2d, groups: int = 1) -> None:
        assert convolution.padding_mode == "zeros"
        assert not isinstance(convolution.padding, str)
        assert convolution.in_channels % groups == 0
        super().__init__(
            convolution.in_channels,
            convolution.out_channels,
            convolution.kernel_size,  # type: ignore[arg-type]
            convolution.stride,  # type: ignore[arg-type]
            convolution.padding,  # type: ignore[arg-type]
            convolution.dilation,  # type: ignore[arg-type]
            convolution.groups,
            bias=convolution.bias is not None,
        )
        self.weight, self.bias = convolution.weight, convolution.bias
        points = self.kernel_size[0] * self.kernel_size[1]
        self.num_offsets, self.num_masks = 2 * points * groups, points * groups
        self.sampling = nn.Conv2d(
            self.in_channels,
            self.num_offsets + self.num_masks,
            self.kernel_size,  # type: ignore[arg-type]
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.dilation,  # type: ignore[arg-type]
        )
        nn.init.zeros_(self.sampling.weight)
        assert self.sampling.bias is not None
        nn.init.zeros_(self.sampling.bias)

    def forward(self, x: Tensor) -> Tensor:
        # offsets: (N, G K (dy, dx), h, w) in cells of x; masks: (N, G K, h, w) in 0..2
        offsets, masks = self.sampling(x).split([self.num_offsets, self.num_masks], dim=1)
        exact = (
            self.weight.dtype
        )  # of the weights, though layers before be of bfloat16, which not all devices know here
        x, offsets, masks = x.to(exact), offsets.to(exact), 2 * torch.sigmoid(masks).to(exact)
        if x.device.type == "cpu":
            return self.sampled(x, offsets, masks)
        moved: Tensor = deform_conv2d(
            x, offsets, self.weight, self.bias, self.stride, self.padding, self.dilation, masks
        )
        return moved

    def sampled(self, x: Tensor, offsets: Tensor, masks: Tensor) -> Tensor:
        """What torchvision's `deform_conv2d` gives, (N, D, h, w), in less than half of its time on a CPU.

        All that the kernel sees is drawn side by side, (N, C, 3h, 3w), for a convolution that steps from one to the
        next. x: (N, C, H, W); offsets: (N, 2 G K, h, w), of each point dy and dx; masks: (N, G K, h, w).
        """
        rows, columns = self.points(0, masks.shape[-2]), self.points(1, masks.shape[-1])  # (h, 3), (w, 3)
        drawn = (rows.numel(), columns.numel())
        still = torch.stack(torch.broadcast_tensors(rows[:, :, None, None], columns), dim=-1)  # (h, 3, w, 3, 2), y, x
        moves = offsets.unflatten(1, (-1, *self.kernel_size, 2)).permute(0, 1, 5, 2, 6, 3, 4)  # (N, G, h, 3, w, 3, 2)
        masks = masks.unflatten(1, (-1, *self.kernel_size)).permute(0, 1, 4, 2, 5, 3)  # (N, G, h, 3, w, 3)
        places = (moves + still).flip(-1).reshape(-1, *drawn, 2)  # (N G, 3h, 3w, 2), x, y
        groups = x.unflatten(1, (moves.shape[1], -1)).flatten(0, 1)  # (N G, C / G, H, W)
        seen = bilinear(groups, places) * masks.reshape(-1, 1, *drawn)
        return F.conv2d(seen.view(len(x), -1, *drawn), self.weight, self.bias, self.kernel_size, groups=self.groups)

    def points(self, axis: int, count: int) -> Tensor:
        """Where the kernel's points are for each of `count` outputs along an axis, before they move, (count, 3)."""
        assert not isinstance(self.padding, str)
        first = torch.arange(count, device=self.weight.device) * self.stride[axis] - self.padding[axis]
        return first[:, None] + torch.arange(self.kernel_size[axis], device=first.device) * self.dilation[axis]


def deform(network: nn.Module, stages: Sequence[str], groups: int = 1) -> None:
    """Makes all 3 x 3 convolutions of the network's stages (names of submodules) deformable, strides and all kept.

    To be called after weights of ImageNet are loaded, which have no `sampling`; at first it changes no output.
    """
    for stage in stages:
        for parent in list(network.get_submodule(stage).modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Conv2d) and child.kernel_size == (3, 3):
                    setattr(parent, name, DeformableConv2d(child, groups))
