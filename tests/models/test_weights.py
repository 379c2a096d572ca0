"""Weights by name, path and URL, and every way in which a file can be wrong: one clear sentence each."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models import detection

from models import smot
from models.parts import single_shot, weights
from models.parts.weights import StoredWeights, class_names, load_weights, read_weights, write_weights


class Net(nn.Module):
    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, outputs)


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def equal(one: nn.Module, other: nn.Module) -> bool:
    theirs = dict(other.named_parameters())
    return all(torch.equal(parameter, theirs[name]) for name, parameter in one.named_parameters())


@pytest.mark.parametrize(
    "save",
    [
        pytest.param(lambda net, path: torch.save(net.state_dict(), path), id="torch"),
        pytest.param(lambda net, path: torch.save({"model": net.state_dict(), "epoch": 3}, path), id="checkpoint"),
        pytest.param(
            lambda net, path: torch.save(net.state_dict(), path, _use_new_zipfile_serialization=False), id="torch, old"
        ),
        pytest.param(lambda net, path: write_weights(path, net, {}, torch.float32), id="safetensors"),
    ],
)
@pytest.mark.parametrize("place", ["path", "file URL", "http URL"])
def test_what_was_saved_is_loaded(
    save: Callable[[nn.Module, Path], None], place: str, tmp_path: Path, served: str
) -> None:
    saved, fresh = Net(), Net()
    save(saved, tmp_path / "weights")
    where = {
        "path": str(tmp_path / "weights"),
        "file URL": f"file://{tmp_path}/weights",
        "http URL": f"{served}/weights",
    }
    report = load_weights(fresh, where[place])
    assert equal(fresh, saved)
    assert report.num_tensors == len([name for name in saved.state_dict() if not name.endswith("tracked")])
    assert report.digest == hashlib.sha256((tmp_path / "weights").read_bytes()).hexdigest()


def test_metadata_and_half_floats_make_the_round_trip(tmp_path: Path) -> None:
    saved, fresh = Net(), Net()
    path = tmp_path / "new" / "half.safetensors"
    write_weights(path, saved, {"classes": json.dumps(["a", "b"]), "steps": "7"}, torch.float16)
    assert read_weights(str(path)).metadata == {"classes": '["a", "b"]', "steps": "7"}
    load_weights(fresh, str(path))
    assert fresh.head.weight.dtype == torch.float32
    torch.testing.assert_close(fresh.head.weight, saved.head.weight, atol=1e-3, rtol=0)
    assert [file.name for file in path.parent.iterdir()] == ["half.safetensors"]


def test_a_published_name_is_fetched_once_and_its_hash_checked(
    tmp_path: Path, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    net = Net()
    torch.save(net.state_dict(), tmp_path / "new.pth")
    content = (tmp_path / "new.pth").read_bytes()
    good = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    for name in (good, "other-0123abcd.pth"):
        (tmp_path / name).write_bytes(content)
    published = {"V1": f"{served}/{good}", "BAD": f"{served}/other-0123abcd.pth", "GONE": f"{served}/none.pth"}

    fresh = Net()
    load_weights(fresh, "V1", published)
    assert equal(fresh, net)
    (tmp_path / good).unlink()
    load_weights(Net(), "V1", published)  # it is kept

    with pytest.raises(ValueError, match=r"'BAD' from .* arrived damaged"):
        read_weights("BAD", published)
    with pytest.raises(FileNotFoundError, match=r"'GONE' could not be fetched from .*none.pth"):
        read_weights("GONE", published)


def test_a_detector_loads_its_published_weights_by_name(
    tmp_path: Path, served: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SSDLite's own names, shapes and 91 outputs, with random values, from a server in place of the real one."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    detector = "ssdlite320_mobilenet_v3_large"
    source = smot.build(smot.Settings(detector=detector, weights="random"))  # type: ignore[arg-type]
    torch.save(source.network.state_dict(), tmp_path / "new.pth")
    name = f"ssdlite-{hashlib.sha256((tmp_path / 'new.pth').read_bytes()).hexdigest()[:8]}.pth"
    (tmp_path / "new.pth").rename(tmp_path / name)
    enum = single_shot.ARCHITECTURES[detector].weights
    monkeypatch.setattr(enum.COCO_V1.value, "url", f"{served}/{name}")
    loaded = smot.build(smot.Settings(detector=detector))  # type: ignore[arg-type]
    assert equal(loaded.network, source.network)
    assert loaded.weights is not None
    assert loaded.weights.source == "COCO_V1"
    assert len(loaded.classes) == 80


def with_old_names(network: nn.Module) -> dict[str, Tensor]:
    """The state dict as torchvision named things when it published its first COCO weights."""
    names = {
        r"rpn\.head\.conv\.0\.0\.": "rpn.head.conv.",
        r"(fpn\.\w+_blocks\.\d+)\.0\.": r"\1.",
        **{rf"(head\.\w+_head\.conv)\.{i}\.0\.": rf"\1.{2 * i}." for i in range(4)},
    }
    old = {}
    for name, tensor in state(network).items():
        for today, before in names.items():
            name = re.sub(today, before, name)
        old[name] = tensor
    return old


@pytest.mark.parametrize(
    ("builder", "num_renamed"),
    [
        (detection.fasterrcnn_mobilenet_v3_large_320_fpn, 10),
        pytest.param(detection.fasterrcnn_resnet50_fpn, 18, marks=pytest.mark.slow),
        pytest.param(detection.retinanet_resnet50_fpn, 28, marks=pytest.mark.slow),
    ],
)
def test_published_weights_with_the_names_of_their_time_are_loaded(
    builder: Callable[..., nn.Module], num_renamed: int, tmp_path: Path
) -> None:
    saved, theirs, ours = (builder(weights=None, weights_backbone=None) for _ in range(3))
    old = with_old_names(saved)
    assert len(old.keys() - saved.state_dict().keys()) == num_renamed
    theirs.load_state_dict(old)  # torchvision still knows these names
    assert equal(theirs, saved)
    torch.save(old, tmp_path / "old.pth")
    load_weights(ours, str(tmp_path / "old.pth"))
    assert equal(ours, saved)


class Extra(nn.Module):
    """A part beside a network, with a batch norm's counter to leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)


def test_extras_lie_beside_the_network_under_their_names(tmp_path: Path) -> None:
    saved, extras = Net(), {"tracker": Extra(), "other": Extra(), "nothing": nn.Identity()}
    write_weights(tmp_path / "w", saved, {}, torch.float32, extras)
    names = read_weights(str(tmp_path / "w")).tensors.keys()
    assert names >= {"head.bias", "tracker.fc.weight", "other.norm.running_mean"}
    assert not any("num_batches_tracked" in name for name in names)
    fresh, others = Net(), {"other": Extra(), "nothing": nn.Identity(), "tracker": Extra()}
    report = load_weights(fresh, str(tmp_path / "w"), extras=others)
    assert report.missing == ()
    assert report.num_tensors == len(names)
    assert equal(fresh, saved)
    assert all(equal(others[name], extras[name]) for name in extras)


def test_an_extra_that_was_never_written_is_reported_and_stays_as_it_is(tmp_path: Path) -> None:
    saved, tracker = Net(), Extra()
    write_weights(tmp_path / "w", saved, {}, torch.float32, {"tracker": tracker})
    fresh, embeddings, others = Net(), Extra(), Extra()
    before = state(embeddings)
    extras = {"embeddings": embeddings, "tracker": others, "track": Extra()}  # no part of it is the tracker's
    assert load_weights(fresh, str(tmp_path / "w"), extras=extras).missing == ("embeddings", "track")
    assert equal(fresh, saved)
    assert equal(others, tracker)
    assert all(torch.equal(tensor, before[name]) for name, tensor in embeddings.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            lambda t: t.pop("tracker.fc.bias"), "lack 'tracker.fc.bias' of the network's", id="an extra in part"
        ),
        pytest.param(lambda t: t.pop("head.bias"), "lack 'head.bias' of the network's", id="the network in part"),
        pytest.param(
            lambda t: t.update({"tracker.fc.bias": torch.zeros(5)}),
            r"hold 'tracker.fc.bias' of shape \(5,\), the network's is \(3,\)",
            id="an extra of another shape",
        ),
        pytest.param(
            lambda t: t.update({"tracker.more": torch.zeros(5)}), "hold 'tracker.more' that", id="an extra and more"
        ),
        pytest.param(
            lambda t: t.update({"other.fc": torch.zeros(5)}), "hold 'other.fc' that", id="an extra nobody asked for"
        ),
    ],
)
def test_wrong_extras_are_refused_and_nothing_is_filled(
    change: Callable[[dict[str, Tensor]], object], message: str, tmp_path: Path
) -> None:
    write_weights(tmp_path / "w", Net(), {}, torch.float32, {"tracker": Extra()})
    tensors = read_weights(str(tmp_path / "w")).tensors
    change(tensors)
    (tmp_path / "w").write_bytes(safetensors.torch.save(tensors))
    network, tracker = Net(), Extra()
    before = [state(network), state(tracker)]
    with pytest.raises(ValueError, match=message):
        load_weights(network, str(tmp_path / "w"), extras={"tracker": tracker})
    for module, was in zip((network, tracker), before, strict=True):
        assert all(torch.equal(tensor, was[name]) for name, tensor in module.state_dict().items())


class Runs:
    """A pickle of it would run code."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (exec, ("raise AssertionError('code was run')",))


def edited(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], object]:
    def write(path: Path) -> None:
        tensors = state(Net())
        change(tensors)
        path.write_bytes(safetensors.torch.save(tensors))

    return write


def truncated(path: Path) -> None:
    path.write_bytes(safetensors.torch.save(state(Net()))[:-9])


def truncated_torch(path: Path) -> None:
    torch.save(state(Net()), path)
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        pytest.param(
            edited(lambda t: t.pop("head.bias")), "lack 'head.bias' of the network's tensors", id="one missing"
        ),
        pytest.param(
            edited(lambda t: [t.pop(name) for name in list(t) if name.startswith("head")]),
            "lack 'head.bias' and 1 more of",
            id="two missing",
        ),
        pytest.param(
            edited(lambda t: t.update(extra=torch.zeros(1))),
            "hold 'extra' that the network does not have",
            id="one over",
        ),
        pytest.param(
            edited(lambda t: t.update({"head.bias": torch.zeros(5)})),
            r"hold 'head.bias' of shape \(5,\), the network's is \(3,\)",
            id="another shape",
        ),
        pytest.param(truncated, "are a damaged safetensors file", id="safetensors cut short"),
        pytest.param(
            truncated_torch, "neither safetensors nor a file that torch saved, or damaged", id="zip cut short"
        ),
        pytest.param(lambda path: path.write_bytes(b"no weights at all"), "neither safetensors nor", id="text"),
        pytest.param(lambda path: path.write_bytes(b""), "neither safetensors nor", id="empty file"),
        pytest.param(lambda path: torch.save({"w": Runs()}, path), "would run code, so they are refused", id="code"),
        pytest.param(lambda path: torch.save([1, 2], path), "hold no state dict", id="a list"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(write: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    write(path)
    network = Net()
    before = state(network)
    with pytest.raises(ValueError, match=message) as caught:
        load_weights(network, str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        pytest.param("COCO_V2", FileNotFoundError, r"did you mean 'COCO_V1'\?\); names: COCO_V1", id="misspelt name"),
        pytest.param("/nowhere/w.pth", FileNotFoundError, "neither a file nor a known name", id="no such path"),
        pytest.param("ftpx://host/w.pth", ValueError, "cannot be opened", id="no such protocol"),
        pytest.param("http://127.0.0.1:9/w.pth", FileNotFoundError, "could not be fetched", id="no such server"),
    ],
)
def test_what_is_not_there_is_said(source: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        weights.read_weights(source, {"COCO_V1": "https://example.invalid/x.pth"})


def test_a_file_that_breaks_off_on_its_way_is_not_there() -> None:
    def half(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 100\r\n\r\nbegun")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=half, args=(server,))
        thread.start()
        with pytest.raises(FileNotFoundError, match=r"could not be fetched: IncompleteRead\(5 bytes read, 95 more"):
            weights.read_weights(f"http://127.0.0.1:{server.getsockname()[1]}/w.pth")
        thread.join()


def test_classes_are_those_that_the_weights_say_or_those_given() -> None:
    silent, stored = (StoredWeights("net.pth", {}, said, "") for said in ({}, {"classes": '["a", "b"]'}))
    assert class_names(("c",), silent) == class_names(("c",), None) == ("c",)
    assert class_names((), stored) == class_names(("a", "b"), stored) == ("a", "b")
    for others in (("b", "a"), ("a", "c"), ("a",), ("a", "b", "c")):
        with pytest.raises(ValueError, match=r"and those of weights net\.pth, in their order, a, b") as caught:
            class_names(others, stored)
        assert "\n" not in str(caught.value)
    assert class_names((), silent, needed=False) == class_names((), None, needed=False) == ()
    for source, named in ((silent, "net.pth"), (None, "random")):
        with pytest.raises(ValueError, match=f"weights '{named}' do not say what their classes are called"):
            class_names((), source)
