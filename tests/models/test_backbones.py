"""Backbones at stride 16: what dilation keeps, where cells lie, and which weights fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision import models as torchvision_models

from models.parts import backbones
from models.parts.backbones import ARCHITECTURES, InceptionV4, begun, build, published

STRIDES = {"conv3": 8, "conv4": 16, "conv5": 16}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "resnet101")) for name in ARCHITECTURES]
)
def test_maps_have_the_strides_that_the_papers_give_them_and_cell_i_lies_at_i_strides(name: str) -> None:
    """Kernels made their own mirror images: the mirrored frame, whose last column is a multiple of 16, gives the
    mirrored maps only where no layer looks to one side."""
    torch.manual_seed(0)
    backbone = build(name)
    with torch.no_grad():
        for layer in backbone.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.copy_((layer.weight + layer.weight.flip(3)) / 2)
        frames = torch.randn(2, 3, 54, 81)
        maps, mirrored = backbone(frames), backbone(frames.flip(3))
    assert list(maps) == ["conv3", "conv4", "conv5"]
    for key, stride in STRIDES.items():
        assert maps[key].shape == (2, backbone.channels[key], -(-54 // stride), -(-81 // stride))
        assert 0.1 < maps[key].std() < 10  # random, but neither vanishing nor growing
        torch.testing.assert_close(mirrored[key].flip(3), maps[key], rtol=1e-3, atol=1e-3)


def test_published_weights_fit_and_every_other_cell_of_conv5_is_what_the_classification_network_sees(
    tmp_path: Path,
) -> None:
    torch.manual_seed(1)
    network = torchvision_models.resnet50().eval()
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        for name, tensor in norm.state_dict().items():
            tensor.fill_(3.0 if name == "running_var" else 0.7)
    torch.save(network.state_dict(), tmp_path / "imagenet.pth")
    frames = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps = build("resnet50", str(tmp_path / "imagenet.pth"))(frames)
        x = network.maxpool(network.relu(network.bn1(network.conv1(frames))))
        conv3 = network.layer2(network.layer1(x))
        conv4 = network.layer3(conv3)
        conv5 = network.layer4(conv4)
    torch.testing.assert_close(maps["conv3"], conv3, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(maps["conv4"], conv4, rtol=1e-4, atol=1e-4)
    assert maps["conv5"].shape[-2:] == conv4.shape[-2:]
    torch.testing.assert_close(maps["conv5"][..., ::2, ::2], conv5, rtol=1e-4, atol=1e-4)


def test_inception_dilated_is_at_every_other_cell_inception_not_dilated() -> None:
    """But for the averages, which cannot be dilated: their convolutions are silent here."""
    torch.manual_seed(2)
    dilated, plain = build("inception_v4").body, InceptionV4()
    for number, block in enumerate(plain.features):
        for layer in block.modules():
            if number == InceptionV4.REDUCTION_B and getattr(layer, "kernel_size", 0) in (3, (3, 3)):
                layer.stride = 2 if isinstance(layer, nn.MaxPool2d) else (2, 2)  # type: ignore[assignment]
            elif number > InceptionV4.REDUCTION_B and isinstance(layer, nn.Conv2d):
                layer.dilation, layer.padding = (1, 1), tuple(side // 2 for side in layer.kernel_size)
    plain = begun(plain, "random", {}, ())  # type: ignore[assignment]
    plain.load_state_dict(dilated.state_dict())
    frames = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for network in (dilated, plain):
            for block in network.features[InceptionV4.REDUCTION_B + 1 :]:  # type: ignore[index]
                block.branch3[1].conv.weight.zero_()
        ours_, wanted = dilated(frames), plain(frames)
    assert wanted["conv5"].shape[-2:] == (2, 3)
    torch.testing.assert_close(ours_["conv4"], wanted["conv4"])
    torch.testing.assert_close(ours_["conv5"][..., ::2, ::2], wanted["conv5"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [pytest.param("resnext101_32x4d", marks=pytest.mark.slow), "inception_v4"])
def test_what_timm_calls_a_networks_tensors_is_what_it_is_here(name: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    torch.save(timm.create_model(name).state_dict(), tmp_path / "imagenet.pth")
    loaded = build(name, str(tmp_path / "imagenet.pth")).body.state_dict()
    stored = torch.load(tmp_path / "imagenet.pth")
    assert loaded
    assert all(torch.equal(tensor, stored[key]) for key, tensor in loaded.items())


def test_training_leaves_batch_norms_alone() -> None:
    torch.manual_seed(4)
    backbone = build("resnet50").train()
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    backbone(torch.randn(2, 3, 32, 32))["conv5"].sum().backward()
    torch.optim.SGD(backbone.parameters(), lr=0.1).step()
    changed = {key for key, tensor in backbone.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed == {key for key in before if "conv" in key or key.endswith("downsample.0.weight")}


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"fc.weight": torch.zeros(1)}, None),
        ({"0.bias": None}, r"lack '0\.bias' of"),
        ({"fcn.weight": torch.zeros(1)}, r"hold 'fcn\.weight' that"),
        ({"0.weight": torch.zeros(4, 4, 1, 1)}, r"hold '0\.weight' of shape \(4, 4, 1, 1\)"),
    ],
    ids=["a classifier", "too little", "too much", "another shape"],
)
def test_only_the_classifier_may_be_too_much(
    changed: dict[str, Tensor | None], problem: str | None, tmp_path: Path
) -> None:
    def network() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

    tensors = network().state_dict() | changed
    torch.save({key: tensor for key, tensor in tensors.items() if tensor is not None}, tmp_path / "some.pth")
    if problem is None:
        loaded = begun(network(), str(tmp_path / "some.pth"), {}, ("fc.",))
        assert torch.equal(loaded.state_dict()["0.weight"], tensors["0.weight"])
    else:
        with pytest.raises(ValueError, match=problem):
            begun(network(), str(tmp_path / "some.pth"), {}, ("fc.",))


def test_wrong_names_are_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"backbone 'resnet-50' is not known \(did you mean 'resnet50'\?\); names: "):
        build("resnet-50")
    with pytest.raises(FileNotFoundError, match=r"'IMAGENET1K_V3' .*did you mean 'IMAGENET1K_V2'"):
        build("resnet50", "IMAGENET1K_V3")


def test_all_have_published_weights() -> None:
    found = {name: published(name) for name in ARCHITECTURES}
    assert all(url.startswith("https://") for urls in found.values() for url in urls.values())
    assert {"IMAGENET1K_V1", "IMAGENET1K_V2"} <= found["resnet50"].keys() & found["resnet101"].keys()
    assert "resnext101_32x4d.gluon_in1k" in found["resnext101_32x4d"]
    assert "inception_v4.tf_in1k" in found["inception_v4"]
    assert backbones.published_by_timm("hrnet_w32").keys() >= {"hrnet_w32.ms_in1k"}


def test_published_files_of_one_name_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Timm's are all called model.safetensors."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    urls = {}
    for name, value in (("one.in1k", 1.0), ("two.in1k", 2.0)):
        (tmp_path / name).mkdir()
        torch.save({"0.weight": torch.full((4, 3, 1, 1), value)}, tmp_path / name / "model.pth")
        urls[name] = (tmp_path / name / "model.pth").as_uri()
    for name, value in (("one.in1k", 1.0), ("two.in1k", 2.0), ("one.in1k", 1.0)):
        network = begun(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False)), name, urls, ())
        assert (network.state_dict()["0.weight"] == value).all()
