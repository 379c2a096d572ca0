"""A small residual body with three levels, as `backbones` gives them: what R-FCN trains on a CPU in minutes.

Like the stride-reduced ResNets of "Detect to Track and Track to Detect" (section 3.2), conv5 keeps the stride of conv4
and is dilated instead; all strides are half theirs, for objects of 20 to 50 px.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from models.parts.small_detector import Residual, convolution

STRIDES = {"conv3": 4, "conv4": 8, "conv5": 8}


class SmallBackbone(nn.Module):
    """Normalised frames (N, 3, H, W) -> conv3 (N, D3, H/4, W/4), conv4 (N, D4, H/8, W/8), conv5 (N, D5, H/8, W/8).

    widths: channels of the stem, conv3, conv4 and conv5. channels: of each level by its name. mean, std: what frames in
    [0, 1] are normalised by.
    """

    mean = (0.45, 0.45, 0.45)
    std = (0.225, 0.225, 0.225)

    def __init__(self, widths: tuple[int, int, int, int] = (16, 32, 64, 128)) -> None:
        super().__init__()
        self.channels = dict(zip(STRIDES, widths[1:], strict=True))
        self.stem = nn.Sequential(convolution(3, widths[0], 2), Residual(widths[0], widths[0], 1))
        self.conv3 = Residual(widths[0], widths[1], 2)
        self.conv4 = Residual(widths[1], widths[2], 2)
        self.conv5 = Residual(widths[2], widths[3], 1)
        for layer in self.conv5.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                layer.dilation = layer.padding = (2, 2)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        conv3 = self.conv3(self.stem(x))
        conv4 = self.conv4(conv3)
        return OrderedDict(conv3=conv3, conv4=conv4, conv5=self.conv5(conv4))
