"""Backbones at stride 16: classification networks whose last stage is dilated where it would shrink the map once more.

Both "Integrated detection and tracking" (tracklet-conditioned detection, section 2.3) and "Detect to Track and Track to
Detect" (section 3.2) run conv5 at conv4's stride with dilated convolutions, so that weights trained on ImageNet fit.

Batch norms are always frozen, statistics and affine: these detectors train with one or two images a GPU, far too few to
measure a batch by, and a network has the same tensors however it was begun.
"""

from __future__ import annotations

import difflib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision import models as torchvision_models
from torchvision.models._utils import IntermediateLayerGetter

from models.parts.weights import load_weights, read_weights

Three = tuple[float, float, float]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in 0..1
CALIBRATION_SIDE = 128  # px


class Backbone(nn.Module):
    """Frames in, maps out: RGB in 0..1, less `mean`, by `std`, (N, 3, H, W) -> conv3, conv4, conv5.

    Their strides are 8, 16 and 16, their sizes ceil(H / stride) by ceil(W / stride), their channels `channels`. The
    keys of `body` are those of the classification network's published weights.
    """

    def __init__(self, body: nn.Module, channels: Mapping[str, int], mean: Three, std: Three) -> None:
        super().__init__()
        self.body = body
        self.channels = dict(channels)
        self.mean, self.std = mean, std

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        maps: OrderedDict[str, Tensor] = self.body(x)
        return maps


def build(name: str, weights: str = "random") -> Backbone:
    """The backbone of that name, in evaluation mode.

    weights: "random", a name of `published(name)`, a path or a URL, of the whole classification network; its classifier
    is left out. Raises ValueError for another name, and whatever `weights.load_weights` does.
    """
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(name, ARCHITECTURES, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"backbone {name!r} is not known{hint}; names: {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    body = begun(architecture.body(), weights, published(name), architecture.classifier)
    return Backbone(body, architecture.channels, architecture.mean, architecture.std).eval()


def published(name: str) -> dict[str, str]:
    """Names of a backbone's published ImageNet weights, and their URLs."""
    if name in TORCHVISION_WEIGHTS:
        return {weights.name: weights.url for weights in TORCHVISION_WEIGHTS[name]}
    return published_by_timm(name)


def published_by_timm(name: str) -> dict[str, str]:
    """Names (timm's "architecture.tag") of the ImageNet weights that timm knows of, and their URLs."""
    import timm  # takes seconds, which no small network should wait for

    urls = {}
    for full in timm.list_pretrained(f"{name}.*"):
        config = timm.get_pretrained_cfg(full)
        assert config is not None
        urls[full] = str(config.url or f"https://huggingface.co/{config.hf_hub_id}/resolve/main/model.safetensors")
    return urls


def begun(network: nn.Module, weights: str, published: Mapping[str, str], without: tuple[str, ...]) -> nn.Module:
    """The network with weights of ImageNet or random ones, and its batch norms frozen.

    weights: see `build`. without: how the keys begin that only the classification of ImageNet needs; what else there is
    too much is an error, as is what lacks.
    """
    from timm.layers.norm_act import freeze_batch_norm_2d

    if weights == "random":
        calibrate(network)
    else:
        load_weights(network, read_weights(weights, published).without(*without))
    frozen: nn.Module = freeze_batch_norm_2d(network)
    return frozen.eval()


@torch.no_grad()
def calibrate(network: nn.Module) -> None:
    """Fits the batch norms of a random network to one image of noise: each then scales its input to a mean square of 1.

    As begun they would change nothing once frozen, and residuals double the variance with each block: 2^33 in
    ResNet-101. Nothing is centred: in deep networks of random weights all cells become alike, and what is left after
    taking the mean, scaled up again, is chance.
    """

    def fit(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        norm.running_var.copy_(inputs[0].square().mean(dim=(0, 2, 3)))  # type: ignore[operator]

    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(fit) for norm in norms]
    network.eval()(torch.randn(1, 3, CALIBRATION_SIDE, CALIBRATION_SIDE))
    for hook in hooks:
        hook.remove()


def resnet(layers: Sequence[int], groups: int = 1, width: int = 64, *, dilated: bool = True) -> nn.Module:
    """ResNet, or ResNeXt of `groups` groups of `width` channels: torchvision's layer2 to layer4 are conv3 to conv5.

    layers: blocks of each stage. Not dilated, conv5 has stride 32.
    """
    network = torchvision_models.ResNet(
        torchvision_models.resnet.Bottleneck,
        list(layers),
        groups=groups,
        width_per_group=width,
        replace_stride_with_dilation=[False, False, dilated],
    )
    body: nn.Module = IntermediateLayerGetter(network, {"layer2": "conv3", "layer3": "conv4", "layer4": "conv5"})
    return body


def resnext101_32x4d(*, dilated: bool = True) -> nn.Module:
    """Torchvision's class, with the tensors of timm's network of that name, whose weights it takes."""
    return resnet((3, 4, 23, 3), groups=32, width=4, dilated=dilated)


class InceptionV4(nn.Module):
    """Timm's Inception-v4 with the strides of the others; D&T says nothing of how it was fitted (section 5.2).

    As published its convolutions do not pad: 600 px become 35 cells, not 38, and a map's cell lies the further from its
    stride's multiple the deeper the map. Here all pad, so that cell i is at 16 i px. conv3 is what enters Reduction-A,
    conv4 what enters Reduction-B, which does not shrink it; after it the 3-wide convolutions are dilated by 2. The
    3 x 3 average in each block cannot be and looks half as far. Tensors are those of the published network.
    """

    MAPS = {"9": "conv3", "17": "conv4", "21": "conv5"}  # noqa: RUF012
    REDUCTION_B = 18  # of `features`

    def __init__(self) -> None:
        import timm

        super().__init__()
        features = timm.create_model("inception_v4").features
        assert isinstance(features, nn.Sequential)
        self.features = features
        for number, block in enumerate(features):
            for layer in block.modules():
                if isinstance(layer, nn.Conv2d):
                    if number == self.REDUCTION_B:
                        layer.stride = (1, 1)
                    elif number > self.REDUCTION_B:
                        layer.dilation = (2, 2)
                    sides = zip(layer.kernel_size, layer.dilation, strict=True)
                    layer.padding = tuple(dilation * (side // 2) for side, dilation in sides)
                elif isinstance(layer, nn.MaxPool2d):
                    layer.stride = 1 if number == self.REDUCTION_B else 2
                    layer.padding = 1

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        maps = OrderedDict()
        for number, block in self.features.named_children():
            x = block(x)
            if number in self.MAPS:
                maps[self.MAPS[number]] = x
        return maps


@dataclass(frozen=True)
class Architecture:
    """How a body is built, the channels of its maps, its input, and how the keys of its classifier begin."""

    body: Callable[[], nn.Module]
    channels: Mapping[str, int]
    mean: Three = IMAGENET_MEAN
    std: Three = IMAGENET_STD
    classifier: tuple[str, ...] = ("fc.",)


OF_RESNET = {"conv3": 512, "conv4": 1024, "conv5": 2048}
ARCHITECTURES = {
    "resnet50": Architecture(lambda: resnet((3, 4, 6, 3)), OF_RESNET),
    "resnet101": Architecture(lambda: resnet((3, 4, 23, 3)), OF_RESNET),
    "resnext101_32x4d": Architecture(resnext101_32x4d, OF_RESNET),
    "inception_v4": Architecture(
        InceptionV4,
        {"conv3": 384, "conv4": 1024, "conv5": 1536},
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        classifier=("last_linear.",),
    ),
}
TORCHVISION_WEIGHTS = {
    "resnet50": torchvision_models.ResNet50_Weights,
    "resnet101": torchvision_models.ResNet101_Weights,
}
