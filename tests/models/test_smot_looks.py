"""What SMOT gives linkers to go by: embeddings where they are asked for, or the detector's boxes and no tracklets."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from catalogs import synthetic
from models.parts import redetection
from models.smot import Memory, Model, Settings, build
from pipeline.linkers import deepsort, keep, tracklets
from pipeline.metrics import clear, identity
from pipeline.metrics.pairs import Rows, pair, rows
from pipeline.records import Detections, Track, VideoInfo, detections


def film() -> Tensor:
    """A video of the synthetic test split, uint8 (40, 3, 128, 160)."""
    return torch.from_numpy(np.ascontiguousarray(synthetic.render("test", 1)[0].transpose(0, 3, 1, 2)))


def built(**settings: object) -> Model:
    torch.manual_seed(0)
    return build(Settings(reid="small", reid_weights="random", **settings))  # type: ignore[arg-type]


def known(row: dict[str, Tensor]) -> Tensor:
    """Which boxes (N,) have an appearance; it is of unit length."""
    length = row["embeddings"].norm(dim=1)
    torch.testing.assert_close(length, (length > 0).float(), atol=1e-5, rtol=0)
    return length > 0


def seen(model: Model, clip: Tensor) -> list[dict[str, Tensor]]:
    (found,), _ = model.detect([clip], [None])
    return found


@pytest.mark.parametrize("chunk", [24, 7])
def test_a_tracklet_is_looked_at_when_it_is_born_and_then_every_so_often(chunk: int) -> None:
    clip, model = film()[:24], built(reid_every=10, reid_score=0.3)
    birth: dict[int, int] = {}
    found, memory, looked = [], None, 0
    for start in range(0, 24, chunk):  # an age is remembered
        (given,), (memory,) = model.detect([clip[start : start + chunk]], [memory])
        memory = pickle.loads(pickle.dumps(memory))
        found += given
    for number, row in enumerate(found):
        for name in row["tracklet_id"].tolist():
            birth.setdefault(name, number)
        ages = torch.tensor([number - birth[name] for name in row["tracklet_id"].tolist()])
        due = (row["tracklet_id"] >= 0) & (ages % 10 == 0) & (row["scores"] >= 0.3)
        assert known(row).tolist() == due.tolist()
        assert model.reid is not None
        torch.testing.assert_close(row["embeddings"][due], model.reid.embed(clip[number], row["boxes"][due]))
        looked += int((due & (ages > 0)).sum())
    assert looked > 0


def test_every_box_is_looked_at_where_every_frame_is_asked_for() -> None:
    for row in seen(built(reid_every=1, reid_score=0.3), film()[:4]):
        assert known(row).tolist() == (row["scores"] >= 0.3).tolist()
        assert (known(row) & (row["tracklet_id"] < 0)).any() or (row["scores"][row["tracklet_id"] < 0] < 0.3).all()


def test_looking_changes_nothing_else() -> None:
    for one, other in zip(seen(build(Settings()), film()[:6]), seen(built(), film()[:6]), strict=True):
        assert other.keys() - one.keys() == {"embeddings"}
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_frame_with_nothing_in_it_has_embeddings_of_no_box() -> None:
    rows = seen(built(min_score=0.5), torch.full((2, 3, 40, 50), 90, dtype=torch.uint8))
    assert [row["embeddings"].shape for row in rows] == [(0, 64)] * 2


def test_without_tracking_it_is_the_detector_frame_by_frame() -> None:
    clip = film()[:6]
    model = built(tracking=False)
    (found,), (memory,) = model.detect([clip], [None])
    assert isinstance(memory, Memory)
    assert len(memory.tracks.ids) == 0
    alone = [seen(model, clip[number : number + 1])[0] for number in range(6)]
    for number, (row, other) in enumerate(zip(found, alone, strict=True)):
        assert row.keys() == {"boxes", "scores", "labels", "embeddings"}
        torch.testing.assert_close(row["boxes"], other["boxes"], atol=1e-3, rtol=0)
        with torch.no_grad():
            plain = redetection.detect(model.detector.outputs(clip)[number], model.rules)
        torch.testing.assert_close(row["boxes"], plain.boxes, atol=1e-3, rtol=0)
        assert row["labels"].tolist() == plain.labels.tolist()
        assert known(row).tolist() == (row["scores"] >= 0.5).tolist()


@pytest.mark.parametrize(
    ("given", "gives"),
    [
        ({}, {"tracklet_id"}),
        ({"tracking": False}, set()),
        ({"reid": "small"}, {"tracklet_id", "embeddings"}),
        ({"reid": "small", "tracking": False}, {"embeddings"}),
    ],
)
def test_settings_say_what_frames_have(given: dict[str, object], gives: set[str]) -> None:
    settings = Settings(**given)  # type: ignore[arg-type]
    assert settings.gives == gives
    if "reid" in given:
        settings = Settings(**given, reid_weights="random")  # type: ignore[arg-type]
    row = seen(build(settings), film()[:1])[0]
    assert row.keys() & {"tracklet_id", "embeddings", "class_scores", "moves"} == gives


def test_an_untrained_network_is_named_and_a_trained_one_stays_as_it_was() -> None:
    model = built()
    assert model.untrained == ("reid",)
    assert build(Settings()).untrained == ()
    model.train()
    assert model.reid is not None
    assert not model.reid.training
    assert model.detector.training
    assert not any(one.requires_grad for one in model.reid.parameters())
    with pytest.raises(ValueError, match="reid resnet50 has no weights by default"):
        build(Settings(reid="resnet50"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reid_score": 1.5}, r"smot\.reid_score is 1\.5; it must be between 0 and 1"),
        ({"reid_every": 0}, r"smot\.reid_every is 0; it must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**given)  # type: ignore[arg-type]


# Two objects are to be seen, then none, then both.
OBJECTS = ((27, 66, 58, 108), (73, 49, 118, 87))  # in the first frame of video 2 of the test split
PLACES = ((15, 40), (95, 40))  # left upper corners
MARGIN, SHOWN, AWAY = 4, 8, 6
WHEN = [*range(SHOWN), *range(SHOWN + AWAY, 2 * SHOWN + AWAY)]
VIDEO = VideoInfo("video", "", "test", fps=25.0, size=(128, 160))


def absence(swapped: bool) -> tuple[Tensor, Rows]:
    """uint8 (22, 3, 128, 160), and its truth. swapped: in the end each object is where the other was."""
    picture = torch.from_numpy(synthetic.render("test", 2)[0][0]).permute(2, 0, 1)
    clip = torch.full((2 * SHOWN + AWAY, 3, 128, 160), 110, dtype=torch.uint8)
    boxes = []
    for (x1, y1, x2, y2), places in zip(OBJECTS, (PLACES, PLACES[::-1]), strict=True):
        patch = picture[:, y1 - MARGIN : y2 + MARGIN, x1 - MARGIN : x2 + MARGIN]
        for frame in WHEN:
            x, y = places[swapped and frame > SHOWN]
            clip[frame, :, y : y + patch.shape[1], x : x + patch.shape[2]] = patch
            boxes.append([x + MARGIN, y + MARGIN, x + MARGIN + x2 - x1, y + MARGIN + y2 - y1])
    return clip, rows(WHEN * 2, np.array(boxes, np.float64), [1] * len(WHEN) + [2] * len(WHEN))


def records(found: list[dict[str, Tensor]]) -> list[Detections]:
    arrays = [{name: value.numpy() for name, value in row.items()} for row in found]
    return [detections(number, row.pop("boxes"), **row) for number, row in enumerate(arrays)]


def scores(tracks: list[Track], truth: Rows) -> dict[str, float]:
    names = [track.track_id for track in tracks for _ in track.frame_index]
    frames, boxes = ([getattr(track, name) for track in tracks] for name in ("frame_index", "boxes"))
    counted = pair(truth, rows(np.concatenate(frames), np.concatenate(boxes), names))
    return {**identity.scores(identity.count(counted)), **clear.scores(clear.count(counted))}


def test_linking_by_appearance_joins_what_an_absence_parts() -> None:
    """Section 5, on beside off: nothing but their looks tells who came back where.

    A random network sees it too, since it looks at the same pixels again. Position alone takes one for the other.
    """
    clip, truth = absence(swapped=True)
    frames = records(seen(built(), clip))
    always = {"max_gap": None, "min_length": 1}
    by_looks = tracklets.Settings(match_by="appearance", **always)  # type: ignore[arg-type]
    by_place = tracklets.Settings(match_by="position", same_class=False, **always)  # type: ignore[arg-type]
    alone = scores(keep.link(frames, VIDEO, keep.Settings())[1], truth)
    linked, misled = (scores(tracklets.link(frames, VIDEO, how)[1], truth) for how in (by_looks, by_place))
    assert alone["IDF1"] == pytest.approx(0.5, abs=0.05)
    assert (alone["num_switches"], alone["num_transfer"]) == (2, 0)
    assert linked["IDF1"] > 0.95
    assert (linked["num_switches"], linked["num_transfer"]) == (0, 0)
    assert misled["IDF1"] == pytest.approx(0.5, abs=0.05)
    assert misled["num_transfer"] == 2


def test_deepsort_follows_the_detector_alone() -> None:
    """DFS of Table 1: nothing is tracked by the model, every box has its looks, and DeepSORT finds who came back."""
    clip, truth = absence(swapped=False)
    settings = deepsort.Settings(n_init=1, min_confidence=0.5)
    frames = records(seen(built(tracking=False), clip))
    found = scores(deepsort.link(frames, VIDEO, settings)[1], truth)
    assert found["IDF1"] > 0.95
    assert (found["num_switches"], found["num_transfer"]) == (0, 0)
    blind = [replace(frame, embeddings=np.zeros_like(frame.embeddings)) for frame in frames]
    assert scores(deepsort.link(blind, VIDEO, settings)[1], truth)["IDF1"] < 0.6
