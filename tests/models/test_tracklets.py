"""The memory of tracklet-conditioned detection: which box continues what, what is then known, who starts and ends."""

from __future__ import annotations

import io
from itertools import product

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from models.parts.conditioning import Conditioning
from models.parts.tracklets import (
    Seen,
    Tracklets,
    associate,
    cosines,
    match,
    no_tracklets,
    overlaps,
    rescore_boxes,
    update,
)

BOX = [10.0, 10.0, 30.0, 30.0]
FAR = [60.0, 60.0, 80.0, 80.0]


def seen(boxes: list[list[float]], probabilities: list[list[float]], embeddings: list[list[float]]) -> Seen:
    """Boxes of a frame with two classes and embeddings of two numbers; E_s1 is E_s2 the other way round."""
    vectors = torch.tensor(embeddings, dtype=torch.float32).reshape(-1, 2)
    return Seen(
        torch.tensor(boxes).reshape(-1, 4), torch.tensor(probabilities).reshape(-1, 3), vectors.flip(1), vectors
    )


def started(frame: Seen) -> Tracklets:
    """One tracklet for each box of the first frame."""
    empty = no_tracklets(frame.probabilities.shape[1] - 1, frame.stage_1.shape[1], frame.stage_2.shape[1])
    return update(empty, frame, torch.full((len(frame.boxes),), -1), start_score=0)[0]


def video(num_frames: int, num_boxes: int = 6, num_classes: int = 3) -> list[Seen]:
    """Objects that drift, are missed now and then, and look much the same from frame to frame."""
    random = torch.Generator().manual_seed(7)
    corners = torch.rand(num_boxes, 2, generator=random) * 60
    looks = torch.randn(num_boxes, 8, generator=random)
    frames = []
    for _ in range(num_frames):
        corners = corners + torch.randn(num_boxes, 2, generator=random) * 3
        there = torch.nonzero(torch.rand(num_boxes, generator=random) < 0.8).squeeze(1)
        noise = torch.randn(2, len(there), 8, generator=random)
        frames.append(
            Seen(
                torch.cat([corners, corners + 20], dim=1)[there],
                (2 * torch.randn(len(there), num_classes + 1, generator=random)).softmax(dim=1),
                looks[there] + 0.3 * noise[0],
                looks[there] + 0.3 * noise[1],
            )
        )
    return frames


def tracked(frames: list[Seen], rule: Conditioning | None, **how: float) -> tuple[list[list[int]], Tensor, Tracklets]:
    """Ids of each frame's boxes, all probabilities as given out, and the memory at the end; not conditioned by None."""
    tracklets, ids, given = no_tracklets(3, 8, 8), [], []
    for frame in frames:
        if rule:
            classes = rule.classes(frame.probabilities, frame.stage_2, frame.boxes, tracklets)
            frame = Seen(frame.boxes, classes, frame.stage_1, frame.stage_2)
        tracklets, frame_ids = update(tracklets, frame, associate(frame, tracklets), **how)  # type: ignore[arg-type]
        ids.append(frame_ids.tolist())
        given.append(frame.probabilities)
    return ids, torch.cat(given), tracklets


@pytest.mark.parametrize(
    ("cosine", "edges", "expected"),
    [
        pytest.param([[0.6, -0.2], [0.3, -0.1]], [[1, 1], [1, 0]], [0, -1], id="rather new than against the cosine"),
        pytest.param([[0.9, 0.8], [0.85, 0.1]], [[1, 1], [1, 1]], [1, 0], id="1.65 in all, where greedy has 1.0"),
        pytest.param([[0.9, 0.8], [0.85, 0.1]], [[1, 0], [1, 1]], [0, 1], id="without the edge: 1.0"),
        pytest.param([[0.9], [0.95]], [[1], [1]], [-1, 0], id="more boxes than tracklets"),
        pytest.param([[0.2, 0.9, 0.3]], [[1, 0, 1]], [2], id="more tracklets than boxes"),
        pytest.param([[0.0]], [[1]], [-1], id="cosine 0 is no better than a tracklet of its own"),
    ],
)
def test_matching_by_hand(cosine: list[list[float]], edges: list[list[int]], expected: list[int]) -> None:
    assert match(torch.tensor(cosine), torch.tensor(edges).bool()).tolist() == expected


def test_matching_equals_all_matchings_with_pseudo_tracklets() -> None:
    random = torch.Generator().manual_seed(0)
    for _ in range(150):
        count, known = torch.randint(0, 5, (2,), generator=random).tolist()
        cosine = torch.rand(count, known, generator=random) * 2 - 1
        edges = torch.rand(count, known, generator=random) < 0.6

        def total(choice: tuple[int, ...], cosine: Tensor = cosine) -> float:
            return sum(float(cosine[i, j]) for i, j in enumerate(choice) if j >= 0)  # -1: its pseudo tracklet, 0

        allowed = [
            choice
            for choice in product(*([-1, *torch.nonzero(edges[i]).flatten().tolist()] for i in range(count)))
            if len({j for j in choice if j >= 0}) == sum(j >= 0 for j in choice)
        ]
        assert tuple(match(cosine, edges).tolist()) == max(allowed, key=total)


def test_association_goes_by_stage_2_among_those_that_overlap() -> None:
    tracklets = started(seen([BOX, FAR, BOX], [[0.2, 0.8, 0]] * 3, [[1, 0], [1, 0], [0, 1]]))
    nearly = [28.0, 28.0, 48.0, 48.0]
    frame = seen([nearly, BOX, [31, 10, 51, 30]], [[0.2, 0.8, 0]] * 3, [[0.1, 1], [1, 0.1], [1, 0]])
    frame = Seen(frame.boxes, frame.probabilities, frame.stage_1.flip(0), frame.stage_2)
    assert associate(frame, tracklets).tolist() == [2, 0, -1]
    assert associate(frame, no_tracklets(2, 2, 2)).tolist() == [-1, -1, -1]
    assert associate(seen([], [], []), tracklets).tolist() == []


def test_overlap_is_iou_above_zero() -> None:
    boxes = torch.tensor(
        [BOX, [30, 10, 50, 30], [10, 30, 30, 50], [29, 29, 30, 30], [12, 12, 13, 13], [0, 0, 100, 100], FAR]
    )
    assert torch.equal(overlaps(boxes, boxes[:4]), box_iou(boxes, boxes[:4]) > 0)
    assert torch.equal(overlaps(boxes[:4], boxes), box_iou(boxes[:4], boxes) > 0)
    assert overlaps(boxes[:1], boxes).tolist() == [[True, False, False, True, True, True, False]]
    assert overlaps(boxes[:0], boxes).shape == (0, 7)


def test_cosines() -> None:
    given = cosines(torch.tensor([[3.0, 0], [0, 0]]), torch.tensor([[2.0, 0], [0, 5], [-1, 1]]))
    torch.testing.assert_close(given, torch.tensor([[1, 0, -(0.5**0.5)], [0, 0, 0]]))


def test_update_by_hand() -> None:
    """Equations (3), at length 4, and (8), for both stages."""
    first = started(seen([BOX], [[0.1, 0.8, 0.1]], [[0, 1]]))
    first = Tracklets(**{**first.state_dict(), "lengths": torch.tensor([4])})
    moved = [12.0, 10.0, 32.0, 30.0]
    after, ids = update(first, seen([moved], [[0.161955, 0.772789, 0.065256]], [[1, 0]]), torch.tensor([0]))
    assert ids.tolist() == after.ids.tolist() == [0]
    torch.testing.assert_close(after.probabilities, torch.tensor([[0.112491, 0.794514, 0.092995]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(after.stage_2, torch.tensor([[0.8, 0.2]]))
    torch.testing.assert_close(after.stage_1, torch.tensor([[0.2, 0.8]]))
    assert after.boxes.tolist() == [moved]
    assert (after.lengths.tolist(), after.ages.tolist(), int(after.next_id)) == ([5], [0], 1)
    assert after.labels.tolist() == [0]


def test_update_equals_a_loop_over_boxes() -> None:
    """Every tracklet, recomputed from the boxes that have its id."""
    beta, eta = 0.9, 0.7
    frames = video(12)
    ids, _, tracklets = tracked(frames, None, beta=beta, eta=eta, start_score=0.5)
    assert tracklets.ids.tolist() == list(range(int(tracklets.next_id)))
    assert tracklets.lengths.max() > 5
    for index, number in enumerate(tracklets.ids.tolist()):
        history = [(t, row.index(number)) for t, row in enumerate(ids) if number in row]
        (t, i), *rest = history
        p_tr, e_1, e_2 = frames[t].probabilities[i], frames[t].stage_1[i], frames[t].stage_2[i]
        assert p_tr[1:].max() >= 0.5
        for length, (t, i) in enumerate(rest, start=1):
            p_tr = (frames[t].probabilities[i] + beta * p_tr * length) / (1 + beta * length)
            e_1 = eta * frames[t].stage_1[i] + (1 - eta) * e_1
            e_2 = eta * frames[t].stage_2[i] + (1 - eta) * e_2
        torch.testing.assert_close(tracklets.probabilities[index], p_tr)
        torch.testing.assert_close(tracklets.stage_1[index], e_1)
        torch.testing.assert_close(tracklets.stage_2[index], e_2)
        assert torch.equal(tracklets.boxes[index], frames[t].boxes[i])
        assert tracklets.lengths[index] == len(history)
        assert tracklets.ages[index] == len(frames) - 1 - t


def test_rescored_boxes_have_the_mean_of_their_tracklet() -> None:
    frames = video(9)
    tracklets, history, alone = no_tracklets(3, 8, 8), {}, 0
    for frame in frames:
        tracklets, ids = update(tracklets, frame, associate(frame, tracklets), beta=1, start_score=0.6)
        rescored = rescore_boxes(frame.probabilities, ids, tracklets)
        for i, number in enumerate(ids.tolist()):
            if number >= 0:
                history.setdefault(number, []).append(frame.probabilities[i])
                expected = torch.stack(history[number]).mean(dim=0)
            else:
                expected, alone = frame.probabilities[i], alone + 1
            torch.testing.assert_close(rescored[i], expected)
    assert max(map(len, history.values())) > 4
    assert alone


@pytest.mark.parametrize(
    ("score", "ids"),
    [
        pytest.param(0.7, [1, -1], id="a likely class in no tracklet starts one"),
        pytest.param(0.71, [-1, -1], id="a less likely one does not"),
        pytest.param(0.1, [1, 2], id="each class counts for itself"),
    ],
)
def test_what_starts_a_tracklet(score: float, ids: list[int]) -> None:
    before = started(seen([BOX], [[0.2, 0.8, 0.0]], [[1, 0]]))
    frame = seen([FAR, FAR, BOX], [[0.25, 0.05, 0.7], [0.4, 0.3, 0.3], [0.9, 0.1, 0]], [[1, 0]] * 3)
    after, given = update(before, frame, associate(frame, before), start_score=score)
    assert given.tolist() == [*ids, 0]  # what continues a tracklet needs no score
    assert after.ids.tolist() == [0, *(number for number in ids if number > 0)]
    assert after.lengths.tolist() == [2, *[1] * (len(after.ids) - 1)]
    assert int(after.next_id) == len(after.ids)


@pytest.mark.parametrize(
    ("max_age", "gap", "comes_back"),
    [(None, 30, True), (3, 2, True), (3, 3, False), (1, 0, True), (1, 1, False)],
)
def test_a_tracklet_unseen_for_max_age_frames_is_closed(max_age: int | None, gap: int, comes_back: bool) -> None:
    there, nothing = seen([BOX], [[0.2, 0.8, 0.0]], [[1, 0]]), seen([], [], [])
    tracklets, ids = no_tracklets(2, 2, 2), torch.empty(0)
    for frame in [there, *[nothing] * gap, there]:
        tracklets, ids = update(tracklets, frame, associate(frame, tracklets), max_age=max_age)
    assert ids.tolist() == [0 if comes_back else 1]
    assert int(tracklets.next_id) == (1 if comes_back else 2)  # ids are never used twice


def test_foremost() -> None:
    tracklets = started(seen([BOX] * 5, [[0.2, 0.8, 0.0]] * 5, [[1, 0]] * 5))
    ages, lengths = torch.tensor([0, 3, 0, 0, 1]), torch.tensor([2, 9, 7, 2, 9])
    tracklets = Tracklets(**{**tracklets.state_dict(), "ages": ages, "lengths": lengths})
    foremost = [tracklets.foremost(count).ids.tolist() for count in range(7)]
    assert foremost == [[], [2], [0, 2], [0, 2, 3], [0, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]


def test_saved_and_restored_in_the_middle_of_a_video() -> None:
    frames = video(8)
    _, _, whole = tracked(frames, None)
    _, _, half = tracked(frames[:4], None)
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    tracklets = Tracklets(**torch.load(file, weights_only=True)).to("cpu")
    for frame in frames[4:]:
        tracklets, _ = update(tracklets, frame, associate(frame, tracklets))
    for name, value in whole.state_dict().items():
        assert torch.equal(tracklets.state_dict()[name], value)


def test_conditioning_that_cannot_matter_is_the_sequential_baseline() -> None:
    frames = video(10)
    plain_ids, plain, _ = tracked(frames, None)
    ids, given, _ = tracked(frames, Conditioning(null=1e4))  # R -> infinity
    assert ids == plain_ids
    torch.testing.assert_close(given, plain, atol=0, rtol=0)
    _, conditioned, _ = tracked(frames, Conditioning())
    assert (conditioned - plain).abs().max() > 0.3


def test_conditioning_steadies_the_class_of_an_object() -> None:
    """For one frame it looks like another class: what it was before decides."""
    clear, burst = [0.2, 0.7, 0.1], [0.3, 0.2, 0.5]
    tracklets, rule = no_tracklets(2, 2, 2), Conditioning()
    labels = []
    for probabilities in (clear, clear, burst, clear):
        frame = seen([BOX], [probabilities], [[1, 0]])
        classes = rule.classes(frame.probabilities, frame.stage_2, frame.boxes, tracklets)
        frame = Seen(frame.boxes, classes, frame.stage_1, frame.stage_2)
        tracklets, _ = update(tracklets, frame, associate(frame, tracklets))
        labels.append(int(classes[:, 1:].argmax()))
    assert labels == [0, 0, 0, 0]
