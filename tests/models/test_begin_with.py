"""Beginning with the weights of others: what is filled, what begins anew, and what is another network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from models import smot, tracktor
from models.parts import weights
from models.parts.weights import StoredWeights, begin_with, read_weights, write_weights
from pipeline.config import available, load


class Net(nn.Module):
    def __init__(self, outputs: int = 3, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 4))
        self.head = nn.Linear(4, outputs)


BODY = {f"body.{name}" for name in ("0.weight", "0.bias", "2.weight", "2.bias")} | {
    f"body.1.{name}" for name in ("weight", "bias", "running_mean", "running_var")
}
HEAD = {"head.weight", "head.bias"}


def stored(network: nn.Module, **metadata: str) -> StoredWeights:
    return StoredWeights("theirs", {name: value.clone() for name, value in network.state_dict().items()}, metadata, "d")


def state(*modules: nn.Module) -> list[dict[str, Tensor]]:
    return [{name: tensor.clone() for name, tensor in module.state_dict().items()} for module in modules]


def same(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> bool:
    return all(torch.equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a)


def test_what_is_there_in_its_shape_is_filled_and_outputs_of_other_classes_begin_anew() -> None:
    theirs, ours = Net(outputs=5), Net(outputs=3)
    was = state(ours.head)
    begun = begin_with(ours, stored(theirs, resize='{"short_side": 256}'))
    assert same(state(ours.body), state(theirs.body))
    assert same(state(ours.head), was)
    assert (set(begun.loaded), set(begun.anew)) == (BODY, HEAD)
    assert (begun.source, begun.digest, begun.num_tensors, begun.missing) == ("theirs", "d", 8, ())
    assert begun.resize == {"short_side": 256}


def test_as_many_classes_begin_as_those_of_the_file() -> None:
    theirs, ours = Net(), Net()
    assert begin_with(ours, stored(theirs)).anew == ()
    assert same(state(ours), state(theirs))


def test_what_the_file_lacks_begins_anew_and_what_the_network_lacks_is_passed_over(tmp_path: Path) -> None:
    """A tracker's file with its tracker, of which only one layer is there, under a model with another part besides."""
    theirs, their_tracker = Net(), nn.ModuleDict({"first": nn.Linear(2, 2)})
    write_weights(tmp_path / "w", theirs, {}, torch.float32, {"tracker": their_tracker, "flow": nn.Linear(9, 9)})
    ours = Net()
    tracker = nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Linear(2, 2)})
    extras = {"tracker": tracker, "embeddings": nn.Linear(2, 2), "nothing": nn.Identity()}
    was = state(tracker["second"], extras["embeddings"])
    begun = begin_with(ours, str(tmp_path / "w"), extras)
    assert same(state(ours, tracker["first"]), state(theirs, their_tracker["first"]))
    assert same(state(tracker["second"], extras["embeddings"]), was)
    assert set(begun.loaded) == BODY | HEAD | {"tracker.first.weight", "tracker.first.bias"}
    assert begun.anew == ("embeddings.bias", "embeddings.weight", "tracker.second.bias", "tracker.second.weight")
    assert begun.missing == ("embeddings",)


class Large(nn.Module):
    """Half of its 200 numbers are in `body`, in one of nine names."""

    def __init__(self, body: int = 100) -> None:
        super().__init__()
        self.body = nn.Parameter(torch.zeros(body))
        self.rest = nn.ParameterList([nn.Parameter(torch.zeros(12)) for _ in range(8)])
        self.last = nn.Parameter(torch.zeros(4))


def test_half_of_the_numbers_known_by_name_is_enough_whatever_the_share_of_names() -> None:
    ours = Large()
    assert begin_with(ours, StoredWeights("w", {"body": torch.ones(100)}, {}, "")).loaded == ("body",)
    assert ours.body.detach().eq(1).all()
    rest = {name: torch.ones_like(tensor) for name, tensor in Large(99).state_dict().items() if name != "body"}
    assert len(rest) == 9
    begin_with(Large(100), StoredWeights("w", rest, {}, ""))  # 100 of 200
    ours = Large(101)
    with pytest.raises(ValueError, match="weights w know 49 % of the network by name"):
        begin_with(ours, StoredWeights("w", rest, {}, ""))
    assert not any(tensor.any() for tensor in ours.state_dict().values())


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        pytest.param(Net(width=5), r"hold 'body.2.weight' of shape \(4, 5\), the network's is \(4, 4\)", id="width"),
        pytest.param(nn.Linear(4, 4), "know 0 % of the network by name", id="no name in common"),
    ],
)
def test_another_network_is_refused_and_nothing_is_filled(theirs: nn.Module, message: str) -> None:
    ours, extra = Net(), nn.Linear(2, 2)
    was = state(ours, extra)
    with pytest.raises(ValueError, match=message) as caught:
        begin_with(ours, stored(theirs), {"extra": extra})
    assert "weights theirs" in str(caught.value)
    assert "another network" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert same(state(ours, extra), was)


@pytest.mark.parametrize("name", available("model"))
def test_every_network_begins_with_one_of_other_classes(name: str, tmp_path: Path) -> None:
    module = load("model", name)
    theirs, ours = (module.build(module.Settings(weights="random", classes=tuple("abcde"[:n]))) for n in (5, 3))
    write_weights(tmp_path / "w.safetensors", theirs.network, {}, torch.float32, theirs.extras)
    begun = begin_with(ours.network, str(tmp_path / "w.safetensors"), ours.extras)
    assert 1 <= len(begun.anew) <= 2
    assert all("classes" in tensor or "scores" in tensor for tensor in begun.anew), "what else would know of classes?"
    filled = read_weights(str(tmp_path / "w.safetensors")).tensors
    assert filled.keys() == {*begun.loaded, *begun.anew}
    ours_now = weights._named_tensors(ours.network, ours.extras)
    assert all(torch.equal(ours_now[tensor], filled[tensor]) for tensor in begun.loaded)


def test_a_tracker_begins_with_the_shipped_detector_alone() -> None:
    model = tracktor.build(tracktor.Settings(weights="random", classes=("fly",), reid="small", reid_weights="random"))
    begun = begin_with(model.network, "plug-and-play-synthetic-v1-detector", model.extras)
    assert begun.missing == ("reid",)
    assert {name for name in begun.anew if not name.startswith("reid.")} == {"classes.weight", "classes.bias"}


def test_torchvisions_weights_have_full_names(tmp_path: Path, served: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SSDLite of COCO's 91 outputs, with random values from a server in place of the real one, for two classes."""
    from torchvision.models.detection import SSDLite320_MobileNet_V3_Large_Weights as Weights

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    theirs = smot.build(smot.Settings(detector="ssdlite320_mobilenet_v3_large", weights="random"))
    torch.save(theirs.network.state_dict(), tmp_path / "coco.pth")
    monkeypatch.setattr(Weights.COCO_V1.value, "url", f"{served}/coco.pth")
    ours = smot.build(smot.Settings(detector="ssdlite320_mobilenet_v3_large", weights="random", classes=("cat", "dog")))
    begun = begin_with(ours.network, "SSDLite320_MobileNet_V3_Large_Weights.COCO_V1")
    assert begun.anew
    assert all("classification_head" in name for name in begun.anew)
    for name, tensor in theirs.network.state_dict().items():
        assert not name.startswith("backbone.") or torch.equal(ours.network.state_dict()[name], tensor)
    with pytest.raises(FileNotFoundError, match="neither a file nor a known name"):
        read_weights("SSDLite320_MobileNet_V3_Large_Weights.COCO_V9")


@pytest.mark.parametrize(
    ("said", "resize"),
    [
        ('{"short_side": 256, "long_side": 400}', {"short_side": 256, "long_side": 400}),
        ('{"size": [300, 400]}', {"size": (300, 400)}),
        ("{}", {}),
    ],
)
def test_the_size_of_frames_is_read(said: str, resize: dict[str, Any]) -> None:
    assert begin_with(Net(), stored(Net(), resize=said)).resize == resize
    assert weights.load_weights(Net(), stored(Net(), resize=said)).resize == resize
    assert weights.load_weights(Net(), stored(Net())).resize is None


@pytest.mark.parametrize(
    "said", ["256", "short", '{"short_side": 0}', '{"side": 3}', '{"size": 3}', '{"short_side": "256"}',
             '{"size": [3, 4], "short_side": 3}', '{"size": [3, 4.5]}', '{"long_side": true}', "[]"]
)  # fmt: skip
@pytest.mark.parametrize("read", [begin_with, weights.load_weights])
def test_what_is_no_size_is_refused(read: Callable[..., object], said: str) -> None:
    with pytest.raises(ValueError, match=r"weights theirs say resize .*; it must be JSON of") as caught:
        read(Net(), stored(Net(), resize=said))
    assert "\n" not in str(caught.value)


def test_a_file_of_half_floats_fills_whole_ones(tmp_path: Path) -> None:
    theirs, ours = Net(outputs=5), Net()
    content = {name: tensor.half() for name, tensor in theirs.state_dict().items() if tensor.is_floating_point()}
    (tmp_path / "w").write_bytes(safetensors.torch.save(content))
    begin_with(ours, str(tmp_path / "w"))
    assert ours.body[0].weight.dtype == torch.float32
    torch.testing.assert_close(ours.body[0].weight, theirs.body[0].weight, atol=1e-3, rtol=0)
