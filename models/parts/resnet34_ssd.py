"""SMOT's detector: SSD on ResNet-34 with a feature pyramid ("SMOT: Single-Shot Multi Object Tracking", section 6.1).

The paper names the parts and says no more. Torchvision's SSD class gives the rest as SSD has it (Liu et al., 2016): a
3 x 3 convolution a level for classes and one for boxes, softmax over background and classes, smooth L1 and
cross-entropy with three of the hardest negatives for each positive, positives from IoU .5.

Levels and anchors are for faces and persons: strides 4 to 128 with anchors of four times the stride, as in S3FD (Zhang
et al., 2017), so 16 to 512 px; each level also has the geometric mean of its side and the next one's, as SSD has, and
each side comes square and twice as high as wide. SMOT's released code, whose SSDs are without pyramid and for COCO,
keeps its anchors in pixels, whatever the size of the input, and so does this.

Batch norms are frozen, as of all bodies here; nobody has published weights of this detector.
"""

from __future__ import annotations

import math

from torch import nn
from torchvision.models import ResNet34_Weights, resnet34
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.ssd import SSD, SSDHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from models.parts import backbones

CHANNELS = 256  # of the pyramid, as in its paper (Lin et al., 2017)
STAGES = {"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"}
STAGE_CHANNELS = [64, 128, 256, 512]
STRIDES = (4, 8, 16, 32, 64, 128)
SIDES = tuple((4 * stride, round(4 * stride * math.sqrt(2))) for stride in STRIDES)  # px
ASPECTS = (1.0, 2.0)  # height / width
SIDE = 1024  # px, the largest square of Table 4


def build(*, num_classes: int, weights: None = None, weights_backbone: str | None = None) -> nn.Module:
    """The detector, called as torchvision calls its own. num_classes: outputs, of which the background is the first.

    weights_backbone: of ResNet-34 for ImageNet, a name (IMAGENET1K_V1), a path or a URL; None for random ones. Raises
    ValueError and FileNotFoundError as `parts.weights` does.
    """
    assert weights is None, "nobody has published any"
    body = IntermediateLayerGetter(resnet34(weights=None), {stage: stage for stage in STAGES})
    published = {one.name: one.url for one in ResNet34_Weights}
    begun = backbones.begun(body, weights_backbone or "random", published, ("fc.",))
    anchors = AnchorGenerator(SIDES, (ASPECTS,) * len(SIDES))
    per_cell = anchors.num_anchors_per_location()
    return SSD(
        BackboneWithFPN(begun, STAGES, STAGE_CHANNELS, CHANNELS, LastLevelP6P7(CHANNELS, CHANNELS)),
        anchors,
        (SIDE, SIDE),
        num_classes,
        head=SSDHead([CHANNELS] * len(STRIDES), per_cell, num_classes),
    )
