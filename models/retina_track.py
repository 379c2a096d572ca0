"""RetinaTrack: a single-shot detector whose every anchor has a feature, and so an embedding, of its own.

"RetinaTrack: Online Single Stage Joint Detection and Tracking". RetinaNet with the anchor shapes split early (section
3.2: `parts.retina_head`), a branch from each anchor's feature F_ik to an embedding (3.3), trained together with
detection by triplets of both frames of a clip (3.4: `parts.retina_triplets`). A detection's embedding is that of the
anchor that found it. Linking by overlap and embeddings (3.5) is the linker `track_store`'s work; nothing is remembered.

The baselines are settings: RetinaNet's own wiring (`head`), whose colliding anchors share embeddings (RetinaNet*, 4.2);
one anchor shape (`num_shapes`); for embeddings F_ik itself, those of an offline ReID network, or none (4.3,
`embedding`). Torchvision's RetinaNets are RetinaNet* with COCO's weights and nothing to train.

Where the paper is silent: vanilla towers have m1 + m2 layers, as many as it compares them with; RetinaNet* takes its
embeddings from the class tower's last layer; of each clip 64 triplets are drawn, and their mean is the loss, so that it
weighs as much as losses that are normalised by matches. The paper teaches Euclidean distances and matches by cosine;
the small network is taught the cosines that it is asked for (`unit_length`): measured once, after 400 steps they told
137 boxes of 20 videos apart with an AUC of .90, and .85 where distances had been taught; after 3,000 steps tracks were
equally good (LOG.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.parts import anchors, backbones, reid, single_shot, weights
from models.parts.anchors import AnchorOutputs
from models.parts.lock_step import lock_step
from models.parts.retina_head import EmbeddingBranch, Head, PerAnchorHead, TaskTowers, of_anchors, rows
from models.parts.retina_network import ResNetPyramid, RetinaNetwork, SmallPyramid
from models.parts.retina_triplets import clips_triplet_loss
from models.parts.single_shot import TorchvisionDetector

GIVES = frozenset({"embeddings"})
LINKER = "track_store"

OWN = ("small", "resnet50")
EMBEDDING_SIZES = {"small": 64, "resnet50": 256}


@dataclass(frozen=True)
class Settings:
    """Which network, wired how, where embeddings come from, and what is given out.

    weights: "default" is what the project ships for `small` so wired and trained (see `shipped_name`), COCO_V1 for
    torchvision's; otherwise a published name, a path or a URL; "random" leaves the network untrained. classes: their
    names, for weights that do not say them (and for "random"). backbone_weights: what the body begins a training with,
    where `weights` are random: of `resnet50` a name of torchvision's, of ImageNet; of `small` SMOT's; a path or a URL.
    head, m1, m2, m3, num_shapes: of `small` and `resnet50`; torchvision's have separate towers and nine shapes.
    embedding: "learned" by the branch; "instance": F_ik itself; "reid": by an offline network, from the frame; "none".
    None: learned, or, of torchvision's networks, instance.
    """

    network: Literal["small", "resnet50", "retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2"] = "small"
    weights: str = "default"
    classes: tuple[str, ...] = ()
    backbone_weights: str = "random"
    head: Literal["per_anchor", "separate", "shared"] = "per_anchor"  # the latter: RetinaNet, by its task towers
    m1: int = 3  # layers of each shape before the tasks part
    m2: int = 1  # layers of each task after that; RetinaNet's towers have m1 + m2
    m3: int = 2  # layers from F_ik to the embedding
    num_shapes: int = 6  # K: 6 or 1
    embedding: Literal["learned", "instance", "reid", "none"] | None = None
    triplet: bool | None = None  # whether losses teach embeddings; None: where those are learned
    # From which IoU on an anchor tells whose a box is (section 3.4). At .5 the hardest positives barely see the object,
    # and all embeddings fall together: for 1,000 steps the small network's loss stayed at what equal ones give.
    identity_iou: float = 0.7
    # Whether triplets compare embeddings at unit length (ours), so that what is taught, as what the linker asks, is
    # their cosine. The paper's lengths are free. None: of `small`.
    unit_length: bool | None = None
    reid: Literal["small", "resnet50"] = "small"  # which network embedding="reid" asks
    reid_weights: str = "default"  # see `parts.reid.build`
    reid_score: float = 0.1  # boxes below it are not worth a look: their embedding is 0, unknown
    input_side: int | None = None  # px; frames become squares of it: 1024 for Waymo, 896 for COCO. None: as they are
    min_score: float = 0.01  # near zero, for detection; the linker has a threshold of its own (section 4)
    nms_iou: float = 0.6
    top_k: int = 1000  # candidates of each level
    max_detections: int = 100
    batch_frames: int = 8  # frames that the network sees at once

    def __post_init__(self) -> None:
        for name in ("identity_iou", "reid_score", "min_score", "nms_iou"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"retina_track.{name} is {value}; it must be between 0 and 1")
        least = {"m1": 1, "m2": 0, "m3": 0, "input_side": 32, "top_k": 1, "max_detections": 1, "batch_frames": 1}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ValueError(f"retina_track.{name} is {value}; it must be at least {lowest}")
        if self.num_shapes not in (1, 6):
            raise ValueError(f"retina_track.num_shapes is {self.num_shapes}; it must be 1 or 6")
        if self.backbone_weights != "random" and self.network not in OWN:
            raise ValueError(
                f"retina_track.backbone_weights is {self.backbone_weights!r}; "
                "it is for retina_track.network 'small' and 'resnet50' alone"
            )
        if self.embeds != "reid" and self.reid_weights != "default":
            raise ValueError(
                f"retina_track.embedding is {self.embeds!r}, which has no use for retina_track.reid_weights "
                f"{self.reid_weights!r}; it must be 'reid'"
            )
        if self.network not in OWN and self.embedding == "learned":
            raise ValueError(
                f"retina_track.embedding is 'learned', which retina_track.network {self.network!r} has no branch for; "
                "it must be 'instance', 'reid' or 'none'"
            )
        if self.network not in OWN and self.triplet:
            raise ValueError(
                f"retina_track.triplet is on, but retina_track.network {self.network!r} has no embeddings to teach; "
                "it must be off"
            )

    @property
    def embeds(self) -> Literal["learned", "instance", "reid", "none"]:
        """Where embeddings come from."""
        return self.embedding or ("learned" if self.network in OWN else "instance")

    @property
    def teaches(self) -> bool:
        """Whether losses teach embeddings."""
        return self.embeds == "learned" if self.triplet is None else self.triplet

    @property
    def at_unit_length(self) -> bool:
        """Whether triplets compare embeddings at unit length."""
        return self.network == "small" if self.unit_length is None else self.unit_length

    @property
    def gives(self) -> frozenset[str]:
        """What frames have by these settings."""
        return GIVES if self.embeds != "none" else frozenset()


def shipped_name(settings: Settings) -> str:
    """What the project calls the weights of the small network wired and trained as these settings say.

    Where a wiring has been trained with embeddings only, its weights serve without them too. Raises ValueError where
    there are none.
    """
    towers = "" if settings.head == "per_anchor" else f"-{settings.head}"
    depths = (settings.m1, settings.m2, settings.m3)
    endings = {
        ("per_anchor", 6, (3, 1, 2)): ("", "-no-triplet"),
        ("per_anchor", 6, (1, 3, 2)): ("-1-3", "-1-3"),
        ("per_anchor", 6, (2, 2, 2)): ("-2-2", "-2-2"),
        ("per_anchor", 6, (3, 1, 0)): ("-m3-0", "-m3-0"),
        ("per_anchor", 6, (3, 1, 4)): ("-m3-4", "-m3-4"),
    }
    if towers and sum(depths[:2]) == 4 and depths[2] == 2:
        endings[settings.head, 6, depths] = (f"-star{towers}", towers)
        endings[settings.head, 1, depths] = (f"-k1{towers}", f"-k1-plain{towers}")
    joint, plain = endings.get((settings.head, settings.num_shapes, depths), (None, None))
    ending = joint if settings.teaches else plain
    if settings.network != "small" or ending is None:
        wired = (
            f"head={settings.head}, m1={depths[0]}, m2={depths[1]}, m3={depths[2]}, num_shapes={settings.num_shapes}"
        )
        raise ValueError(
            f"there are no default weights of retina_track.network {settings.network!r} with {wired} and embeddings "
            f"{'' if settings.teaches else 'not '}trained; give weights a path or a URL, or 'random' to train it"
        )
    return f"retina-track-synthetic-v1{ending}"


def build(settings: Settings) -> Model:
    """The model in eval mode, with its weights.

    Raises FileNotFoundError where the weights are not, ValueError where they do not fit the network or nobody says what
    their classes are called.
    """
    own = settings.network in OWN
    stored = None
    if settings.weights != "random":
        name = settings.weights
        if name == "default":
            name = shipped_name(settings) if own else "COCO_V1"
        stored = weights.read_weights(name, {} if own else single_shot.published(settings.network))
    classes = weights.class_names(settings.classes, stored, needed=own)
    if own:
        detector: RetinaNetwork | TorchvisionDetector = network_of(settings, len(classes))
    else:
        detector, classes = single_shot.build(settings.network, classes)
    model = Model(settings, detector, classes).eval()
    if stored:
        if model.branch is None:  # weights that were trained with embeddings serve without them too
            stored = stored.without("embedding.")
        model.weights = weights.load_weights(model.network, stored, extras=model.extras)
    return model


def network_of(settings: Settings, num_classes: int) -> RetinaNetwork:
    """The small network or the paper's, wired as the settings say."""
    small = settings.network == "small"
    pyramid = SmallPyramid() if small else ResNetPyramid()
    if settings.weights == "random" and settings.backbone_weights != "random":
        stored = weights.read_weights(settings.backbone_weights, {} if small else backbones.published("resnet50"))
        names = pyramid.body.state_dict().keys()  # whatever else there is, such as a classifier, is of another network
        body = {key: tensor for key, tensor in stored.tensors.items() if key in names}
        weights.load_weights(pyramid.body, replace(stored, tensors=body))
    sizes = (num_classes, pyramid.channels, settings.num_shapes, len(pyramid.strides))
    if settings.head == "per_anchor":
        head: Head = PerAnchorHead(*sizes, settings.m1, settings.m2, objectness=small)
    else:
        shared = settings.head == "shared"
        head = TaskTowers(*sizes, settings.m1 + settings.m2, shared=shared, objectness=small)
    return RetinaNetwork(pyramid, head)


class Model(nn.Module):
    """The network and where its embeddings come from; see the package for the contract of all models.

    classes: names of the labels; resize: how large it wants its frames, as keywords of `records.Resize`. weights: which
    were loaded, or None if random. branch: from F_ik to embeddings, where these are learned or taught.
    """

    frames_before = 0
    frames_after = 0

    def __init__(
        self, settings: Settings, detector: RetinaNetwork | TorchvisionDetector, classes: tuple[str, ...]
    ) -> None:
        super().__init__()
        self.settings = settings
        self.detector = detector
        self.classes = classes
        self.weights: weights.Report | None = None
        self.resize: dict[str, Any] = {}
        self.branch: EmbeddingBranch | None = None
        if isinstance(detector, RetinaNetwork):
            if settings.embeds == "learned" or settings.teaches:
                self.branch = EmbeddingBranch(
                    detector.head.channels,
                    EMBEDDING_SIZES[settings.network],
                    detector.head.instances,
                    len(detector.pyramid.strides),
                    settings.m3,
                )
        else:
            self.resize = dict(single_shot.ARCHITECTURES[settings.network].resize)
            self.to(memory_format=torch.channels_last)
        if settings.input_side is not None:
            self.resize = {"size": (settings.input_side, settings.input_side)}
        self.reid = reid.build(settings.reid, settings.reid_weights) if settings.embeds == "reid" else None

    @property
    def network(self) -> nn.Module:
        """The module whose state dict is what weight files hold of the detector."""
        return self.detector if isinstance(self.detector, RetinaNetwork) else self.detector.network

    @property
    def extras(self) -> Mapping[str, nn.Module]:
        """What weight files hold besides."""
        return {} if self.branch is None else {"embedding": self.branch}

    @property
    def untrained(self) -> tuple[str, ...]:
        """The parts in use that no weights were loaded for."""
        if self.settings.embeds == "reid":
            return () if self.reid is not None and self.reid.trained else ("reid",)
        if self.settings.embeds != "learned" or self.settings.m3 == 0:
            return ()
        return ("embedding",) if self.weights is None or "embedding" in self.weights.missing else ()

    def train(self, mode: bool = True) -> Model:
        """As of any module, but the offline ReID network stays as it is."""
        super().train(mode)
        if self.reid is not None:
            self.reid.eval()
        return self

    @torch.no_grad()
    def detect(
        self, clips: Sequence[Tensor], memories: Sequence[object | None]
    ) -> tuple[list[list[dict[str, Tensor]]], list[object]]:
        """The detections of some clips, frame by frame; nothing is remembered.

        clips: uint8 (T, 3, H, W). Each frame is a dict of CPU tensors: boxes (N, 4) xyxy in the pixels given, scores
        (N,), labels (N,), best first, and embeddings (N, E) unless there are to be none. The network sees frames of all
        clips together.
        """
        device = next(self.parameters()).device
        found: list[list[dict[str, Tensor]]] = [[] for _ in clips]
        for together in lock_step(clips, self.settings.batch_frames):
            frames = torch.cat(list(together.values())).to(device)
            outputs, embeddings = self.look(frames)
            rows = (self.row(*of_frame) for of_frame in zip(frames, outputs, embeddings, strict=True))
            for number, own in together.items():
                found[number] += [next(rows) for _ in own]
        return found, [None for _ in clips]

    def look(self, frames: Tensor) -> tuple[list[AnchorOutputs], Sequence[Tensor | None]]:
        """uint8 (N, 3, H, W) -> what the network says of each frame's anchors, and their embeddings (A', E)."""
        embeds = self.settings.embeds in ("learned", "instance")
        if isinstance(self.detector, TorchvisionDetector):
            outputs, towers = outputs_and_towers(self.detector, frames)
            return outputs, list(towers) if embeds else [None] * len(frames)
        raw = self.detector(frames)
        outputs = self.detector.outputs(raw)
        if not embeds:
            return outputs, [None] * len(frames)
        if self.settings.embeds == "instance":
            return outputs, list(rows(raw.head.instances))
        assert self.branch is not None
        return outputs, list(self.branch(raw.head.instances))

    def row(self, frame: Tensor, outputs: AnchorOutputs, embeddings: Tensor | None) -> dict[str, Tensor]:
        """A frame's detections; embeddings: of its anchors, (A', E)."""
        plain = anchors.detections(
            outputs,
            min_score=self.settings.min_score,
            max_iou=self.settings.nms_iou,
            top_k=self.settings.top_k,
            max_detections=self.settings.max_detections,
            per="level",
        )
        found = {"boxes": plain.boxes, "scores": plain.scores, "labels": plain.labels}
        if embeddings is not None:
            found["embeddings"] = of_anchors(embeddings, plain.anchor, len(outputs.anchors)).float()
        elif self.reid is not None:
            found["embeddings"] = plain.boxes.new_zeros(len(plain.boxes), self.reid.embedding_size)
            worth = plain.scores >= self.settings.reid_score
            found["embeddings"][worth] = self.reid.embed(frame, plain.boxes[worth])
        return {name: value.cpu() for name, value in found.items()}

    def losses(self, clips: Sequence[Tensor], targets: Sequence[Sequence[dict[str, Tensor]]]) -> dict[str, Tensor]:
        """The detector's losses and, where embeddings are taught, `triplet`; over all clips, which share one size.

        Triplets are of anchors of all frames of one clip, drawn by torch's global generator; their loss is the mean
        over clips. targets: for each frame of each clip boxes (M, 4), labels (M,), track_ids (M,), -1 where unknown,
        and optionally ignore (M,).
        """
        frames, flat = torch.cat(list(clips)), [target for clip in targets for target in clip]
        if isinstance(self.detector, TorchvisionDetector):
            return self.detector.losses(frames, flat)
        raw = self.detector(frames)
        found: dict[str, Tensor] = self.detector.losses(raw, flat)
        if self.settings.teaches:
            assert self.branch is not None
            found["triplet"] = clips_triplet_loss(
                raw.anchors,
                self.branch(raw.head.instances),
                [len(clip) for clip in clips],
                flat,
                min_iou=self.settings.identity_iou,
                unit_length=self.settings.at_unit_length,
            )
        return found


def outputs_and_towers(detector: TorchvisionDetector, frames: Tensor) -> tuple[list[AnchorOutputs], Tensor]:
    """What a RetinaNet of torchvision's says of each frame's anchors, and the last layers of its class tower.

    frames: uint8 (N, 3, H, W). The second result is (N, A / 9, 256): the anchors of a cell share it.
    """
    towers: list[Tensor] = []  # of each level (N, 256, h, w)
    class_tower: nn.Module = detector.network.head.classification_head.conv
    hook = class_tower.register_forward_hook(lambda module, inputs, tower: towers.append(tower))
    try:
        outputs = detector.outputs(frames)
    finally:
        hook.remove()
    return outputs, rows([tower[:, None] for tower in towers])
