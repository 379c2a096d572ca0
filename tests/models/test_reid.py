"""Re-identification: what a crop is, what an embedding depends on, which files are taken, and that it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from catalogs import synthetic
from models.parts import backbones, reid
from models.parts.backbones import IMAGENET_MEAN, IMAGENET_STD
from models.parts.reid import Reid, crops
from models.parts.small_detector import SmallDetector
from models.parts.weights import write_weights

MEAN, STD = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]


def noise(seed: int = 0, height: int = 60, width: int = 80) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def normalised(frame: Tensor) -> Tensor:
    return (frame.float() / 255 - MEAN) / STD


def random_reid(seed: int = 0) -> Reid:
    torch.manual_seed(seed)
    network = reid.build("small", "random")
    with torch.no_grad():  # otherwise the last batch norm has measured nothing, and all embeddings are nearly one
        network.train()(torch.randn(64, 3, 48, 48))
    return network.eval()


def test_a_crop_of_its_own_size_is_the_frames_pixels() -> None:
    frame = noise()
    box = torch.tensor([[10.0, 20.0, 34.0, 52.0]])
    torch.testing.assert_close(crops(frame, box, (32, 24))[0], normalised(frame)[:, 20:52, 10:34], atol=1e-4, rtol=0)


def test_a_crop_is_squashed_by_the_mean_of_what_its_pixels_cover() -> None:
    frame = noise()
    box = torch.tensor([[8.0, 4.0, 72.0, 52.0]])  # 64 x 48 -> 16 x 16: 4 x 3 pixels each
    blocks = normalised(frame)[:, 4:52, 8:72].reshape(3, 16, 3, 16, 4).mean(dim=(2, 4))
    torch.testing.assert_close(crops(frame, box, (16, 16))[0], blocks, atol=1e-4, rtol=0)


def test_outside_the_frame_is_the_mean_colour() -> None:
    frame = torch.full((3, 60, 80), 255, dtype=torch.uint8)
    inside = (1 - MEAN) / STD
    half, none = crops(frame, torch.tensor([[-20.0, 10.0, 20.0, 50.0], [200.0, 10.0, 240.0, 50.0]]), (8, 8))
    torch.testing.assert_close(half[:, :, 4:], inside.expand(3, 8, 4), atol=1e-4, rtol=0)
    assert half[:, :, :3].abs().max() == 0
    assert none.abs().max() == 0


@pytest.mark.parametrize(
    "box",
    [
        pytest.param([10, 10, 11, 11], id="one pixel"),
        pytest.param([10, 10, 10.01, 50], id="a line"),
        pytest.param([-30, -30, 20, 20], id="partly outside"),
        pytest.param([500, 500, 600, 600], id="outside"),
        pytest.param([-1000, -1000, 1000, 1000], id="larger than the frame"),
    ],
)
def test_any_box_has_an_embedding_of_unit_length(box: list[float]) -> None:
    found = random_reid().embed(noise(), torch.tensor([box], dtype=torch.float32))
    assert found.shape == (1, 64)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert float(found.norm()) == pytest.approx(1, abs=1e-5)


def test_no_box_has_no_embedding() -> None:
    network = random_reid()
    assert network.embed(noise(), torch.zeros(0, 4)).shape == (0, network.embedding_size)


def test_an_embedding_does_not_depend_on_other_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reid, "AT_ONCE", 4)
    network, frame = random_reid(), noise()
    corner = torch.rand(11, 2, generator=torch.Generator().manual_seed(1)) * 40
    boxes = torch.cat([corner, corner + 17], dim=1)
    together = network.embed(frame, boxes)
    for number, box in enumerate(boxes):
        torch.testing.assert_close(network.embed(frame, box[None])[0], together[number], atol=1e-5, rtol=0)
    assert float((together @ together.T).fill_diagonal_(0).max()) < 0.999  # they are not one


def test_an_embedding_depends_on_its_boxs_pixels_alone() -> None:
    network, frame = random_reid(), noise()
    box = torch.tensor([[20.0, 20.0, 50.0, 50.0]])
    elsewhere = noise(seed=1)
    elsewhere[:, 19:51, 19:51] = frame[:, 19:51, 19:51]  # a sample on the edge looks half a pixel further
    torch.testing.assert_close(network.embed(elsewhere, box), network.embed(frame, box), atol=1e-5, rtol=0)


def target(boxes: list[list[float]], ids: list[int], ignore: list[bool] | None = None) -> dict[str, Tensor]:
    found = {"boxes": torch.tensor(boxes).reshape(-1, 4), "track_ids": torch.tensor(ids, dtype=torch.long)}
    return found if ignore is None else {**found, "ignore": torch.tensor(ignore)}


LEFT, RIGHT = [5.0, 5.0, 35.0, 45.0], [45.0, 5.0, 75.0, 45.0]


@pytest.mark.parametrize(
    ("targets", "ids"),
    [
        pytest.param([[target([LEFT, RIGHT], [7, 3])]], [1, 0], id="two of a frame"),
        pytest.param([[target([LEFT], [7]), target([RIGHT], [7])], [target([LEFT], [7])]], [0, 0, 1], id="two clips"),
        pytest.param([[target([LEFT, RIGHT, LEFT], [7, -1, 3])]], [1, 0], id="one unknown"),
        pytest.param([[target([LEFT, RIGHT, LEFT], [7, 5, 3], [False, True, False])]], [1, 0], id="one to ignore"),
        pytest.param([[target([], []), target([LEFT], [7])], [target([RIGHT], [0])]], [0, 1], id="an empty frame"),
    ],
)
def test_who_is_compared_with_whom(
    targets: list[list[dict[str, Tensor]]], ids: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(embeddings: Tensor, given: Tensor) -> Tensor:
        assert len(embeddings) == len(given)
        seen.append(given.tolist())
        return embeddings.sum()

    monkeypatch.setattr(reid, "batch_hard", watched)
    clips = [torch.stack([noise(seed) for seed in range(len(frames))]) for frames in targets]
    random_reid().losses(clips, targets)
    assert seen == [ids]


@pytest.mark.parametrize(
    "targets",
    [
        pytest.param([[target([], [])]], id="nothing"),
        pytest.param([[target([LEFT], [7])]], id="one crop"),
        pytest.param([[target([LEFT], [7]), target([LEFT], [7])]], id="one object"),
        pytest.param([[target([LEFT, RIGHT], [-1, -1])]], id="nobody known"),
    ],
)
def test_where_there_is_nobody_to_tell_apart_it_learns_nothing(targets: list[list[dict[str, Tensor]]]) -> None:
    network = random_reid().train().requires_grad_()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    loss = network.losses([torch.stack([noise()] * len(frames)) for frames in targets], targets)["reid"]
    assert loss.item() == 0
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(weight.grad is not None and weight.grad.abs().max() == 0 for weight in network.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def squares(greens: Tensor, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """A noisy frame of one square for each of greens (M,), which say who it is; its red and blue are chance."""
    frame = torch.randint(0, 256, (3, 48, 32 * len(greens)), dtype=torch.uint8, generator=generator)
    colours = torch.randint(0, 256, (len(greens), 3), dtype=torch.uint8, generator=generator)
    colours[:, 1] = greens
    boxes = []
    for number, colour in enumerate(colours):
        x, y = (torch.randint(0, 12, (2,), generator=generator) + torch.tensor([32 * number, 0])).tolist()
        frame[:, y : y + 20, x : x + 20] = colour[:, None, None]
        boxes.append([float(x), float(y), float(x + 20), float(y + 20)])
    return frame, target(boxes, list(range(len(greens))))


def two_views(generator: torch.Generator) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Two frames of the same four, whose greens are 64 levels apart."""
    greens = (64 * torch.randperm(4, generator=generator) + torch.randint(0, 64, (), generator=generator)).byte()
    (first, one), (second, other) = squares(greens, generator), squares(greens, generator)
    return torch.stack([first, second]), [one, other]


def found_again(network: Reid) -> int:
    """How many of 80 objects are most like themselves in another frame; 20 by chance."""
    network.eval()
    generator, hits = torch.Generator().manual_seed(1), 0
    for _ in range(20):
        frames, (one, other) = two_views(generator)
        cosine = network.embed(frames[0], one["boxes"]) @ network.embed(frames[1], other["boxes"]).T
        hits += int((cosine.argmax(dim=1) == torch.arange(4)).sum())
    return hits


def test_it_learns_to_tell_objects_apart_that_it_has_never_seen() -> None:
    torch.set_num_threads(1)
    network, generator = random_reid(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.requires_grad_().parameters(), lr=2e-3)
    before = found_again(network)
    network.train()
    for _ in range(60):
        clips, targets = zip(*[two_views(generator) for _ in range(2)], strict=True)
        loss = network.losses(clips, targets)["reid"]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    after = found_again(network)
    assert before <= 45
    assert after >= 70


def test_built_it_is_frozen_and_says_whether_anything_trained_it(tmp_path: Path) -> None:
    network = random_reid()
    assert not network.trained
    assert network.weights is None
    write_weights(tmp_path / "reid.safetensors", network, {}, torch.float32)
    loaded = reid.build("small", str(tmp_path / "reid.safetensors"))
    assert loaded.trained
    assert not loaded.training
    assert not any(weight.requires_grad for weight in loaded.parameters())


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a detector"])
def test_a_file_holds_it_alone_or_beside_a_detector(tmp_path: Path, beside: bool) -> None:
    network, path = random_reid(seed=3), str(tmp_path / "file.safetensors")
    if beside:
        write_weights(Path(path), SmallDetector(2), {}, torch.float32, {"reid": network})
    else:
        write_weights(Path(path), network, {}, torch.float32)
    loaded = reid.build("small", path)
    boxes = torch.tensor([LEFT, RIGHT])
    assert torch.equal(loaded.embed(noise(), boxes), network.embed(noise(), boxes))
    assert loaded.weights is not None
    assert loaded.weights.source == path


def test_a_file_without_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "detector.safetensors"
    write_weights(path, SmallDetector(2), {}, torch.float32)
    with pytest.raises(
        ValueError, match=r"hold no re-identification network: .* 'reid\.', .* such as 'body\."
    ) as raised:
        reid.build("small", str(path))
    assert str(path) in str(raised.value)


def test_a_file_with_a_part_of_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "part.safetensors"
    write_weights(path, SmallDetector(2), {}, torch.float32, {"reid": random_reid().body})
    with pytest.raises(ValueError, match=r"part\.safetensors lack .* of the network's tensors"):
        reid.build("small", str(path))


def test_resnet50_has_no_weights_by_default() -> None:
    with pytest.raises(ValueError, match="reid resnet50 has no weights by default, since nothing has trained it yet"):
        reid.build("resnet50")


def test_kinds_are_known_by_name() -> None:
    with pytest.raises(ValueError, match="reid is 'large'; it must be one of: small, resnet50"):
        reid.build("large", "random")  # type: ignore[arg-type]


@pytest.mark.slow
def test_trinet_at_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tensors, crops of 256 x 128, ImageNet's weights for the body, and that every part of it learns."""
    torch.manual_seed(0)
    network = reid.build("resnet50", "random")
    assert sum(weight.numel() for weight in network.parameters()) == 23_508_032 + 2048 * 1024 + 1024 + 2048 + 131_200
    found = network.embed(noise(), torch.tensor([LEFT, RIGHT]))
    assert found.shape == (2, 128)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))
    sizes = []
    network.body.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape))
    network.train().requires_grad_()
    targets = [[target([LEFT, RIGHT], [0, 1]), target([LEFT, RIGHT], [0, 1])]]
    network.losses([torch.stack([noise(), noise(1)])], targets)["reid"].backward()  # type: ignore[no-untyped-call]
    assert sizes == [(4, 3, 256, 128)]
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters())

    classifier = {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    path = tmp_path / "resnet50.pth"
    torch.save({**network.body.state_dict(), **classifier}, path)
    name = "IMAGENET1K_V2"
    monkeypatch.setattr(backbones, "published", lambda kind: {name: path.as_uri()} if kind == "resnet50" else {})
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    begun = reid.build("resnet50", name)
    assert not begun.trained
    assert all(torch.equal(*pair) for pair in zip(begun.body.parameters(), network.body.parameters(), strict=True))


def test_the_shipped_network_knows_objects_of_test_videos_again() -> None:
    """Every fourth frame of four videos: an object's most similar box at least 8 frames away is mostly its own."""
    torch.set_num_threads(1)
    network = reid.build("small")
    first, far_cosines, other_cosines = [], [], []
    for video in range(4):
        pixels, truth = synthetic.render("test", video)
        rows = [row for row in truth.to_pylist() if row["frame_index"] % 4 == 0 and not row["ignore"]]
        boxes = torch.tensor([[row[side] for side in ("x1", "y1", "x2", "y2")] for row in rows])
        frame, ids = (torch.tensor([row[name] for row in rows]) for name in ("frame_index", "track_id"))
        embeddings = torch.zeros(len(rows), network.embedding_size)
        for index in sorted(set(frame.tolist())):
            image = torch.from_numpy(np.ascontiguousarray(pixels[index].transpose(2, 0, 1)))
            embeddings[frame == index] = network.embed(image, boxes[frame == index])
        cosine = embeddings @ embeddings.T
        apart = (frame[:, None] - frame).abs() >= 8
        same = ids[:, None] == ids
        asked = (apart & same).any(dim=1) & (apart & ~same).any(dim=1)
        nearest = cosine.masked_fill(~apart, -2).argmax(dim=1)
        first.append((ids[nearest] == ids)[asked])
        far_cosines.append(cosine[apart & same])
        other_cosines.append(cosine[apart & ~same])
    assert len(torch.cat(first)) > 70
    assert float(torch.cat(first).float().mean()) > 0.9
    assert float((torch.cat(far_cosines) > 0.8).float().mean()) > 0.85
    assert float((torch.cat(other_cosines) <= 0.8).float().mean()) > 0.9
