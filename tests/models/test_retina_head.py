"""RetinaNet's head in both wirings, held against plain convolutions, one shape at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parts.retina_head import (
    EmbeddingBranch,
    Head,
    HeadOutputs,
    Layer,
    PerAnchorHead,
    TaskTowers,
    of_anchors,
    rows,
)
from models.parts.retina_network import level_anchors

CLASSES, CHANNELS, SHAPES, LEVELS, BATCH = 3, 8, 6, 2, 3
CELLS = ((4, 5), (2, 3))


def maps(seed: int = 0, batch: int = BATCH) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, CHANNELS, *cells, generator=random) for cells in CELLS]


def shaken(module: nn.Module, seed: int = 1) -> None:
    """Weights of any size, and batch norms that do something, each its own."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=random)
            elif tensor.is_floating_point():
                spread = tensor[0].numel() ** -0.5 if tensor.ndim == 4 else 0.5
                tensor.normal_(1.0 if ".norms." in name and name.endswith("weight") else 0, spread, generator=random)


def per_anchor_head(m1: int = 2, m2: int = 1, shapes: int = SHAPES, objectness: bool = False) -> PerAnchorHead:
    head = PerAnchorHead(CLASSES, CHANNELS, shapes, LEVELS, m1, m2, objectness=objectness)
    shaken(head)
    return head


def task_towers(depth: int, shared: bool, shapes: int = SHAPES, objectness: bool = False) -> TaskTowers:
    head = TaskTowers(CLASSES, CHANNELS, shapes, LEVELS, depth, shared=shared, objectness=objectness)
    shaken(head)
    return head


# The reference: one shape and one level at a time, every layer by torch's own functions.


def alone(layer: Layer, x: Tensor, shape: int, level: int, training: bool) -> Tensor:
    """A layer for one of its shapes: (N, inputs, h, w) -> (N, outputs, h, w)."""
    norm = layer.norms[level]
    outputs = norm.num_features // layer.shapes
    mine = slice(shape * outputs, (shape + 1) * outputs)
    weight = layer.convolution.weight[mine] if layer.own else layer.convolution.weight
    y = F.conv2d(x, weight, padding=layer.convolution.padding)
    measured = (None, None) if training else (norm.running_mean[mine], norm.running_var[mine])
    return F.relu(F.batch_norm(y, *measured, norm.weight[mine], norm.bias[mine], training))


def one_by_one(head: PerAnchorHead, branch: EmbeddingBranch, levels: list[Tensor], training: bool) -> dict[str, Tensor]:
    """Classes, deltas and embeddings of all anchors, by K heads with nothing in common but weights that are copies."""
    found: dict[str, list[Tensor]] = {"classes": [], "deltas": [], "embeddings": []}
    for level, x in enumerate(levels):
        of_shapes: dict[str, list[Tensor]] = {name: [] for name in found}
        for shape in range(head.shapes):
            instance = x
            for layer in head.task_shared:
                instance = alone(layer, instance, shape, level, training)
            towers = {"classes": instance, "deltas": instance, "embeddings": instance}
            for name, layers in (
                ("classes", head.class_tower),
                ("deltas", head.box_tower),
                ("embeddings", branch.layers),
            ):
                for layer in layers:
                    towers[name] = alone(layer, towers[name], shape, level, training)
            last = {"classes": head.classes, "deltas": head.deltas, "embeddings": branch.last}
            for name, layer in last.items():
                assert layer is not None
                of_shapes[name].append(layer(towers[name]).permute(0, 2, 3, 1))  # (N, h, w, values)
        for name, values in of_shapes.items():
            found[name].append(torch.stack(values, dim=3).flatten(1, 3))  # shapes of a cell side by side
    return {name: torch.cat(values, dim=1) for name, values in found.items()}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("m1", "m2", "m3"), [(3, 1, 2), (2, 2, 4), (1, 3, 1), (2, 0, 2)])
def test_grouped_it_is_as_many_separate_heads(m1: int, m2: int, m3: int, training: bool) -> None:
    head = per_anchor_head(m1, m2).train(training)
    branch = EmbeddingBranch(CHANNELS, 5, SHAPES, LEVELS, m3).train(training)
    shaken(branch)
    wanted = one_by_one(head, branch, maps(), training)
    found = head(maps())
    num_anchors = SHAPES * sum(rows_ * columns for rows_, columns in CELLS)
    assert found.classes.shape == (BATCH, num_anchors, CLASSES)
    assert wanted["classes"].std() > 0.1
    torch.testing.assert_close(found.classes, wanted["classes"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.deltas, wanted["deltas"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(branch(found.instances), wanted["embeddings"], atol=1e-5, rtol=1e-5)


def copied(source: Head, target: Head, names: dict[str, str]) -> None:
    """Gives the target the source's tensors; names: what a part of the target is called in the source."""
    held = source.state_dict()
    wanted = {}
    for key in target.state_dict():
        part, _, rest = key.partition(".")
        tower, _, deeper = rest.partition(".")
        name = names.get(f"{part}.{tower}", names.get(part))
        if name is None:
            wanted[key] = held[key]
        else:
            wanted[key] = held[f"{name}.{deeper}" if f"{part}.{tower}" in names else f"{name}.{rest}"]
    target.load_state_dict(wanted)


@pytest.mark.parametrize("training", [False, True])
def test_with_one_shape_it_is_the_vanilla_wiring_with_shared_towers(training: bool) -> None:
    split = per_anchor_head(m1=4, m2=0, shapes=1, objectness=True)
    vanilla = task_towers(depth=4, shared=True, shapes=1, objectness=True)
    copied(split, vanilla, {"class_tower": "task_shared"})
    branch = EmbeddingBranch(CHANNELS, 5, 1, LEVELS, 2).train(training)
    ours, theirs = split.train(training)(maps()), vanilla.train(training)(maps())
    assert_equal(ours, theirs)
    assert torch.equal(branch(ours.instances), branch(theirs.instances))


def test_with_one_shape_and_layers_of_tasks_it_is_the_vanilla_wiring_with_separate_towers() -> None:
    split = per_anchor_head(m1=3, m2=1, shapes=1).eval()
    vanilla = task_towers(depth=4, shared=False, shapes=1).eval()
    names = {f"{tower}.{depth}": f"task_shared.{depth}" for tower in ("class_tower", "box_tower") for depth in range(3)}
    copied(split, vanilla, names | {f"{tower}.3": f"{tower}.0" for tower in ("class_tower", "box_tower")})
    assert_equal(split(maps()), vanilla(maps()))


def assert_equal(one: HeadOutputs, other: HeadOutputs) -> None:
    assert one.classes.std() > 0.1
    torch.testing.assert_close(one.classes, other.classes, atol=1e-6, rtol=0)
    torch.testing.assert_close(one.deltas, other.deltas, atol=1e-6, rtol=0)
    if one.objectness is not None and other.objectness is not None:
        torch.testing.assert_close(one.objectness, other.objectness, atol=1e-6, rtol=0)


def test_the_shapes_of_a_cell_say_the_same_where_they_share_all_and_not_where_they_are_split() -> None:
    """Vanilla towers know shapes only in the last layer; RetinaTrack's F_ik differ, and with them all that follows."""
    split, vanilla = per_anchor_head(), task_towers(3, shared=False)
    assert [x.shape[1] for x in split.eval()(maps()).instances] == [SHAPES] * LEVELS
    assert [x.shape[1] for x in vanilla.eval()(maps()).instances] == [1] * LEVELS
    instances = split(maps()).instances[0]
    for one in range(SHAPES):
        for other in range(one):
            assert (instances[:, one] - instances[:, other]).abs().max() > 0.1


def test_shapes_are_weighed_by_their_own_weights_alone() -> None:
    head = per_anchor_head(m1=2, m2=1).eval()
    before = head(maps()).classes.unflatten(1, (-1, SHAPES))
    with torch.no_grad():
        for layer in head.task_shared:
            layer.convolution.weight[4 * CHANNELS : 5 * CHANNELS] *= -1  # of the fifth
    changed = (head(maps()).classes.unflatten(1, (-1, SHAPES)) - before).abs().amax(dim=(0, 1, 3))
    assert changed.gt(1e-3).tolist() == [False, False, False, False, True, False]


@pytest.mark.parametrize("own", [True, False])
def test_statistics_are_of_one_level_and_one_shape(own: bool) -> None:
    """Momentum .1 from 0: a tenth of the mean, over frames and cells, of what each shape's convolution gives there."""
    layer = Layer(CHANNELS, CHANNELS, SHAPES, LEVELS, own=own).train()
    x = torch.randn(BATCH, SHAPES, CHANNELS, 4, 5) + torch.arange(SHAPES)[:, None, None, None]
    layer(x, 1)
    untouched, touched = layer.norms
    assert not untouched.running_mean.any()
    for shape in range(SHAPES):
        weight = layer.convolution.weight
        mine = weight[shape * CHANNELS : (shape + 1) * CHANNELS] if own else weight
        mean = F.conv2d(x[:, shape], mine, padding=1).mean(dim=(0, 2, 3))
        measured = touched.running_mean[shape * CHANNELS : (shape + 1) * CHANNELS]
        torch.testing.assert_close(measured, 0.1 * mean, atol=1e-5, rtol=0)
    for norm in layer.norms:
        assert len(norm.weight) == SHAPES * CHANNELS, "scale and shift are untied too"


def test_vanilla_statistics_are_of_one_level() -> None:
    head = task_towers(1, shared=True).train()
    fine, coarse = head.class_tower[0].norms
    before = coarse.running_mean.clone()
    head.features(maps()[0], 0)
    assert torch.equal(coarse.running_mean, before)
    assert len(fine.running_mean) == CHANNELS


def test_rows_are_in_the_order_of_anchors() -> None:
    """Features that are the anchors' own boxes come out as those boxes."""
    wanted, instances = [], []
    for cells, stride, side in zip(CELLS, (8, 16), (21.0, 42.0), strict=True):
        boxes = level_anchors(cells, stride, side, SHAPES)  # (h * w * K, 4)
        wanted.append(boxes)
        instances.append(boxes.view(*cells, SHAPES, 4).permute(2, 3, 0, 1)[None].repeat(BATCH, 1, 1, 1, 1))
    found = rows(instances)
    assert torch.equal(found, torch.cat(wanted).expand(BATCH, -1, -1))


def test_embeddings_are_looked_up_by_anchor() -> None:
    own = torch.arange(12.0)[:, None]
    assert of_anchors(own, torch.tensor([0, 5, 11]), 12).flatten().tolist() == [0, 5, 11]
    shared = torch.arange(2.0)[:, None]  # of two cells with six anchors each
    assert of_anchors(shared, torch.tensor([0, 5, 6, 11]), 12).flatten().tolist() == [0, 0, 1, 1]
    assert of_anchors(shared, torch.zeros(0, dtype=torch.long), 12).shape == (0, 1)


@pytest.mark.parametrize(("m3", "tensors"), [(0, 0), (1, 2), (2, 1 + 4 * LEVELS + 2), (4, 3 * (1 + 4 * LEVELS) + 2)])
def test_the_branch_has_as_many_layers_as_it_is_told(m3: int, tensors: int) -> None:
    branch = EmbeddingBranch(CHANNELS, 5, SHAPES, LEVELS, m3).eval()
    shaken(branch)
    instances = [x[:, None].repeat(1, SHAPES, 1, 1, 1).relu() for x in maps()]
    found = branch(instances)
    assert found.shape == (BATCH, SHAPES * 26, 5 if m3 else CHANNELS)
    kept = [name for name in branch.state_dict() if not name.endswith("num_batches_tracked")]
    assert len(kept) == tensors
    if m3:
        assert found.min() < 0 < found.max(), "nothing follows the last layer"
    else:
        assert torch.equal(found, rows(instances)), "F_ik itself"


@pytest.mark.parametrize("split", [True, False])
@pytest.mark.parametrize("objectness", [True, False])
def test_scores_start_low(split: bool, objectness: bool) -> None:
    head: Head = (
        PerAnchorHead(CLASSES, CHANNELS, SHAPES, LEVELS, 2, 1, objectness=objectness)
        if split
        else TaskTowers(CLASSES, CHANNELS, SHAPES, LEVELS, 2, shared=False, objectness=objectness)
    )
    found = head.eval()(maps())
    assert (found.objectness is not None) == objectness
    scores = (found.classes if found.objectness is None else found.objectness).sigmoid()
    torch.testing.assert_close(scores, torch.full_like(scores, 0.01), atol=0.005, rtol=0)
