"""Features averaged along the flow: the same stays the same, the alike counts more, only what came before counts."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from models.parts.aggregation import Aggregation, Seen
from models.parts.flow import Farneback, Flow, NoFlow
from models.parts.two_stage import Features

WIDTHS = (8, 8, 12)
STEP = (16, 8)  # px that the camera of `panned` moves right and down from frame to frame


class Panning(Flow):
    """The exact flow between frames of one grey, which says how far the camera has come; see `panned`."""

    def estimate(self, first: Tensor, second: Tensor) -> Tensor:
        steps = first.mean() - second.mean()
        return (steps * torch.tensor(STEP, dtype=torch.float32))[:, None, None].expand(2, *first.shape[-2:])


def numbered(count: int, height: int = 48, width: int = 64) -> Tensor:
    """Frames uint8 (T, 3, H, W), each of the grey of its number."""
    return torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, height, width).clone()


def panned(count: int, channels: int = 6) -> tuple[Features, Tensor]:
    """What a camera sees that pans over a still world: features of stride 8, and the frames."""
    world = torch.randn((channels, 6 + count, 8 + 2 * count), generator=torch.Generator().manual_seed(0))
    return (torch.stack([world[:, t : t + 6, 2 * t : 2 * t + 8] for t in range(count)]),), numbered(count)


def noise(count: int, channels: int = 6, rows: int = 6, columns: int = 8) -> Tensor:
    return torch.randn((count, channels, rows, columns), generator=torch.Generator().manual_seed(count))


def aggregation(flow: Flow, frames_before: int = 3) -> Aggregation:
    torch.manual_seed(0)
    return Aggregation(flow, (6,), (8,), frames_before, WIDTHS).eval()


def compared_as_they_are(frames_before: int = 3) -> Aggregation:
    """Features are their own embeddings, and nothing moves."""
    module = aggregation(NoFlow(), frames_before)
    module.embedding = nn.ModuleDict({"6": nn.Identity(), "2": nn.Identity()})
    return module


@torch.no_grad()
def test_of_equal_frames_that_do_not_move_the_mean_is_what_they_are() -> None:
    features = noise(1).expand(5, -1, -1, -1)
    aggregated, _ = aggregation(NoFlow())((features,), numbered(1).expand(5, -1, -1, -1), None)
    torch.testing.assert_close(aggregated[0], features, atol=1e-5, rtol=0)


@torch.no_grad()
def test_what_the_flow_follows_stays_as_sharp_as_it_was() -> None:
    """The embeddings see beyond the border, so that weights differ, but what they weigh is the same in all frames.

    That holds to the border: what an earlier frame did not show yet is the frame's own.
    """
    features, frames = panned(5)
    aggregated, _ = aggregation(Panning())(features, frames, None)
    torch.testing.assert_close(aggregated[0], features[0], atol=1e-5, rtol=0)
    still, _ = aggregation(NoFlow())(features, frames, None)  # which says that the flow did it
    assert (still[0][1:] - features[0][1:]).abs().mean() > 0.2


@torch.no_grad()
def test_a_found_flow_brings_features_nearer_than_none() -> None:
    """Farneback on pictures of a moving texture, whose features are the mean colours of cells."""
    soft = nn.functional.avg_pool2d(torch.rand((3, 140, 160), generator=torch.Generator().manual_seed(1)), 15, stride=1)
    world = ((soft - soft.min()) / (soft.max() - soft.min()) * 255).byte()
    frames = torch.stack([world[:, 3 * t : 3 * t + 96, 4 * t : 4 * t + 112] for t in range(4)])
    features = nn.functional.avg_pool2d(frames.float() / 255, 4)
    away = []
    for flow in (Farneback(), NoFlow()):
        module = Aggregation(flow, (3,), (4,), 3, WIDTHS)
        away.append((module((features,), frames, None)[0][0] - features).abs().mean())
    assert away[0] < away[1] / 2


@torch.no_grad()
def test_weights_are_those_of_equation_3() -> None:
    """Against the last frame the cosines are 0, -1 and 1, so the weights are 1 : 1/e : e, whatever the lengths."""
    features = torch.tensor([[0.0, 3.0], [-2.0, 0.0], [5.0, 0.0]]).reshape(3, 2, 1, 1)
    module = compared_as_they_are()
    module.channels = (2,)
    (aggregated,), _ = module((features,), numbered(3, 8, 8), None)
    total = 1 + 1 / math.e + math.e
    by_hand = [(5 * math.e - 2 / math.e) / total, 3 / total]
    assert aggregated[2].flatten().tolist() == pytest.approx(by_hand)
    # the frame in the middle has one before it, at a right angle
    assert aggregated[1].flatten().tolist() == pytest.approx([-2 * math.e / (1 + math.e), 3 / (1 + math.e)])
    assert torch.equal(aggregated[0], features[0])


@torch.no_grad()
def test_where_the_other_frames_show_nothing_the_frame_stands_alone() -> None:
    """The camera has moved by more than a frame's width."""
    features, frames = noise(2), numbered(2)
    frames[1] = 9
    aggregated, _ = aggregation(Panning())((features,), frames, None)
    torch.testing.assert_close(aggregated[0], features)


@torch.no_grad()
def test_only_so_many_frames_before_count_and_none_after() -> None:
    module, frames = compared_as_they_are(frames_before=2), numbered(6)
    features = noise(6)
    (before,), _ = module((features,), frames, None)
    for changed in range(6):
        others = features.clone()
        others[changed] += 1
        (after,), _ = module((others,), frames, None)
        differs = [bool((one != other).any()) for one, other in zip(before, after, strict=True)]
        assert differs == [changed <= now <= changed + 2 for now in range(6)]


@torch.no_grad()
def test_with_none_before_features_come_out_as_they_went_in() -> None:
    module, features = aggregation(Panning(), frames_before=0), (noise(4),)
    aggregated, memory = module(features, numbered(4), None)
    assert aggregated[0] is features[0]
    assert module(features, numbered(4), memory)[0][0] is features[0]


@pytest.mark.parametrize("chunks", [[7], [1] * 7, [2, 5], [5, 2], [3, 1, 3]])
@torch.no_grad()
def test_a_clip_may_come_in_any_chunks(chunks: list[int]) -> None:
    """Two levels, and between calls the memory is stored and read again."""
    torch.manual_seed(0)
    module = Aggregation(Panning(), (6, 4), (8, 16), 3, WIDTHS)
    features, frames = (noise(7), noise(7, 4, 3, 4)), numbered(7)
    whole, _ = module(features, frames, None)
    parts, memory = [], None
    for stop, count in zip(torch.tensor(chunks).cumsum(0).tolist(), chunks, strict=True):
        chunk = slice(stop - count, stop)
        part, memory = module(tuple(level[chunk] for level in features), frames[chunk], memory)
        assert [len(level) for level in part] == [count, count]
        memory = pickle.loads(pickle.dumps(memory))
        parts.append(part)
    for level, of_level in zip(whole, zip(*parts, strict=True), strict=True):
        torch.testing.assert_close(torch.cat(of_level), level, atol=1e-5, rtol=0)


def test_the_memory_holds_the_last_frames_and_nothing_else() -> None:
    features = noise(9).requires_grad_()
    _, memory = aggregation(NoFlow(), frames_before=2)((features,), numbered(9), None)
    assert isinstance(memory, Seen)
    assert memory.frames[:, 0, 0, 0].tolist() == [7, 8]
    assert torch.equal(memory.features[0], features[7:])
    for tensor in (memory.frames, *memory.features, *memory.embeddings):
        assert len(tensor) == 2
        assert not tensor.requires_grad
        assert tensor.untyped_storage().nbytes() == tensor.nbytes  # a view would be pickled with all it is a view of


def test_gradients_reach_the_embedding_network_and_all_frames() -> None:
    module, features = aggregation(NoFlow()), noise(3).requires_grad_()
    (aggregated,), _ = module((features,), numbered(3), None)
    aggregated[2].square().sum().backward()
    assert features.grad is not None
    assert (features.grad.abs().sum(dim=(1, 2, 3)) > 0).all()
    for name, parameter in module.embedding.named_parameters():
        if name != "6.4.bias":  # all channels of all frames move by it
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_it_learns_which_frames_to_trust() -> None:
    """Every other frame is spoiled, with features of its own in a channel that the clean ones have not.

    Cosines are between -1 and 1, so that of a pair of frames the worse keeps at least a weight of 1 / (1 + e^2) = .12.
    """
    random = torch.Generator().manual_seed(3)
    module = aggregation(NoFlow(), frames_before=1).train()
    optimizer = torch.optim.Adam(module.embedding.parameters(), lr=3e-3)
    kept = []
    for _ in range(60):
        clean = torch.randn((1, 6, 6, 8), generator=random).abs()
        clean[:, 0] = 0
        spoiled = torch.randn((1, 6, 6, 8), generator=random).abs()
        spoiled[:, 0] += 2
        (aggregated,), _ = module((torch.cat([spoiled, clean]),), numbered(2), None)
        loss = (aggregated[1] - clean[0]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        kept.append(float((aggregated[1, 0] / spoiled[0, 0]).detach().mean()))  # the weight of the spoiled frame
    assert kept[0] > 0.4
    assert kept[-1] < 0.2


def test_levels_of_as_many_channels_share_a_network_of_the_papers_size() -> None:
    module = Aggregation(NoFlow(), (1024, 1024), (16, 16), 2)
    assert list(module.embedding) == ["1024"]
    parameters = sum(parameter.numel() for parameter in module.embedding.parameters())
    assert parameters == 1024 * 512 + 512 + 512 * 512 * 9 + 512 + 512 * 2048 + 2048
    assert list(Aggregation(NoFlow(), (1024, 2048), (16, 16), 2, WIDTHS).embedding) == ["1024", "2048"]


@pytest.mark.parametrize(
    ("frames_before", "widths", "message"),
    [
        (-1, WIDTHS, "aggregation.frames_before is -1; it must not be negative"),
        (2, (8, 0, 8), r"aggregation.widths is \(8, 0, 8\); each must be at least 1"),
    ],
)
def test_wrong_wishes_are_refused(frames_before: int, widths: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Aggregation(NoFlow(), (6,), (8,), frames_before, widths)
