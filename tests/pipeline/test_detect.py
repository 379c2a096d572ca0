"""The detect stage: boxes and moves back in source pixels, and networks that give their frames late."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline import detect as module
from pipeline import planning
from pipeline.clips import Decoded, Part
from pipeline.detect import Detect, Shown, mapped_back
from pipeline.planning import PlanVideo
from pipeline.recipe import Recipe
from pipeline.records import Clip, ClipRef, Detections, VideoInfo
from pipeline.schemas import detections_frames
from pipeline.video import Probe

VIDEO = VideoInfo("v", "v.mp4", "folder")
NUM_FRAMES = 11
HEADER = Probe((60, 80), 0, "h264", 25.0, False, NUM_FRAMES, None, 0)


class Late(nn.Module):
    """Sees one box in a frame, as far right as the frame is bright, and waits `frames_after` frames to see it go on.

    breaks: the brightness of the frame it does not survive.
    """

    resize: dict[str, Any] = {}  # noqa: RUF012
    settings = weights = None
    breaks = -1

    def __init__(self, frames_after: int) -> None:
        super().__init__()
        self.frames_after = frames_after

    def detect(self, clips: list[Tensor], memories: list[Any]) -> tuple[list[list[dict[str, Any]]], list[Any]]:
        given, remembered = [], []
        for frames, memory in zip(clips, memories, strict=True):
            values = [] if memory is None else list(memory)
            for frame in frames:
                if int(frame[0, 0, 0]) == self.breaks:
                    raise RuntimeError("out of\nmemory")
                values.append(int(frame[0, 0, 0]))
            given.append([row(*pair) for pair in zip(values, values[self.frames_after :], strict=False)])
            remembered.append(values[len(given[-1]) :])
        return given, remembered

    def finish(self, memories: list[Any]) -> list[list[dict[str, Any]]]:
        assert self.frames_after, "nothing waits"
        return [[row(value) for value in memory] for memory in memories]


def row(value: int, later: int | None = None) -> dict[str, Any]:
    box = torch.tensor([[value, 2.0, value + 4.0, 8.0]])
    end = box.clone() if later is None else torch.tensor([[later, 2.0, later + 4.0, 8.0]])
    moves: dict[str, Any] = {
        "start": box,
        "end": end,
        "scores": torch.tensor([0.5]),
        "box_id": torch.tensor([0]),
        "stride": 1,
    }
    if later is None:
        moves |= {name: moves[name][:0] for name in ("start", "end", "scores", "box_id")}
    return {"boxes": box, "scores": torch.tensor([0.9]), "labels": torch.tensor([0]), "moves": moves}


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A detect stage that holds a `Late` network of these numbers: (chunk_frames, frames_after) -> Detect."""

    def make(chunk_frames: int, frames_after: int = 1) -> Detect:
        monkeypatch.setattr(module, "build", lambda model, settings: Late(frames_after))
        return Detect("late", {}, chunk_frames)

    return make


def film(ref: ClipRef, error: str | None = None) -> Decoded:
    """The clip's frames of a video of NUM_FRAMES, frame t of brightness 3 t; 60 x 80, shown at half their size."""
    stop = NUM_FRAMES if ref.end_shown is None else min(ref.end_shown, NUM_FRAMES)
    index = np.arange(ref.first_shown, stop, dtype=np.int32)
    frames = np.broadcast_to((3 * index).astype(np.uint8)[:, None, None, None], (len(index), 3, 30, 40)).copy()
    return Decoded(Clip(ref, frames, index, index / 25, (60, 80), error), 0.0)


def seen(part: Part) -> dict[int, Detections]:
    frames = detections_frames(part.table)
    assert len({frame.frame_index for frame in frames}) == len(frames), "a frame is given once"
    return {frame.frame_index: frame for frame in frames}


@pytest.mark.parametrize("chunk_frames", [1, 3, 100])
@pytest.mark.parametrize("frames_after", [0, 1, 2])
@pytest.mark.parametrize("clip_frames", [None, 1, 4])
def test_a_move_leads_over_the_seam_of_clips(
    worker: Any, monkeypatch: pytest.MonkeyPatch, chunk_frames: int, frames_after: int, clip_frames: int | None
) -> None:
    """A clip is shown as many frames more as its network waits for, whatever the chunks."""
    monkeypatch.setattr(planning, "probe", lambda video: HEADER)
    (plan,) = PlanVideo(Recipe(clip_frames=clip_frames, overlap=0), (0, frames_after))(VIDEO)
    refs = plan.clips
    assert len(refs) == {None: 1, 1: NUM_FRAMES, 4: 3}[clip_frames]
    stage, frames = worker(chunk_frames, frames_after), dict[int, Detections]()
    for ref in refs:
        (part,) = stage(film(ref))
        assert part.error is None
        owned = [row["frame_index"] for row in part.table.to_pylist() if row["owned"]]
        assert len(owned) == part.frames == part.boxes
        given = seen(part)
        assert list(given) == film(ref).clip.frame_index.tolist(), "in order, also those of the neighbour"
        assert not frames.keys() & set(owned)
        frames |= {index: given[index] for index in owned}
    assert list(frames) == list(range(NUM_FRAMES))
    for index, frame in frames.items():
        assert frame.boxes[0, 0] == 6 * index, "in source pixels"
        assert frame.timestamp_s == pytest.approx(index / 25)
        assert frame.moves is not None
        ends = frame.moves.end[:, 0].tolist()
        assert ends == ([6 * (index + frames_after)] if index + frames_after < NUM_FRAMES else [])


@pytest.mark.parametrize("chunk_frames", [1, 3])
def test_frames_that_wait_when_the_network_breaks_are_not_lost(worker: Any, chunk_frames: int) -> None:
    stage = worker(chunk_frames, 2)
    stage.model.breaks = 21  # frame 7
    (part,) = stage(film(ClipRef(VIDEO)))
    assert (part.status, part.stage, part.error) == ("partial", "detect", "RuntimeError: out of memory")
    assert list(seen(part)) == list(range(7 if chunk_frames == 1 else 6))


def test_frames_that_wait_when_the_decoder_breaks_are_not_lost(worker: Any) -> None:
    (part,) = worker(3, 2)(film(ClipRef(VIDEO), "the file is cut short"))
    assert (part.status, part.stage, part.error) == ("partial", "decode", "the file is cut short")
    assert list(seen(part)) == list(range(NUM_FRAMES))


def test_a_network_that_cannot_finish_keeps_what_it_gave(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = worker(3, 2)
    monkeypatch.setattr(stage.model, "finish", lambda memories: [[]])
    (part,) = stage(film(ClipRef(VIDEO)))
    assert (part.status, part.stage) == ("partial", "detect")
    assert part.error == "AssertionError: the model owes the rows of 2 frames"
    assert list(seen(part)) == list(range(NUM_FRAMES - 2))


def test_a_clip_without_frames_is_not_finished(worker: Any) -> None:
    empty = Clip(ClipRef(VIDEO), np.zeros((0, 3, 30, 40), np.uint8), np.zeros(0, np.int32), np.zeros(0), (60, 80))
    (part,) = worker(3)(Decoded(empty, 0.0))
    assert part.frames == 0
    assert part.error is None


SHOWN = Shown(3, 0.25, (40, 60), np.array([2, 4, 2, 4], np.float32))


def test_evidence_follows_its_box() -> None:
    """A box outside the frame goes, and all that is said of it; what is said of the others stays theirs."""
    given = {
        "boxes": torch.tensor([[30.0, 0, 40, 5], [1, 2, 3, 4], [5, 5, 5, 9], [20, 5, 40, 20]]),
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.6]),
        "labels": torch.tensor([0, 1, 2, 3]),
        "class_scores": torch.arange(20.0).reshape(4, 5),
        "embeddings": torch.arange(8.0).reshape(4, 2),
        "tracklet_id": torch.tensor([7, -1, 8, 9]),
        "tracked": torch.tensor([True, False, True, True]),
    }
    found = mapped_back(given, SHOWN)
    assert (found.frame_index, found.timestamp_s, found.moves) == (3, 0.25, None)
    assert found.boxes.tolist() == [[2, 8, 6, 16], [40, 20, 60, 40]]
    assert found.box_id.tolist() == [0, 1]
    assert found.scores.tolist() == pytest.approx([0.8, 0.6])
    assert found.labels.tolist() == [1, 3]
    assert found.class_scores is not None
    assert found.embeddings is not None
    assert found.class_scores[:, 0].tolist() == [5, 15]
    assert found.embeddings[:, 0].tolist() == [2, 6]
    assert (found.tracklet_id.tolist(), found.tracked.tolist()) == ([-1, 9], [False, True])  # type: ignore[union-attr]


def test_moves_are_mapped_back_and_tied_to_the_boxes_that_are_left() -> None:
    inside, outside = [1.0, 2, 3, 4], [30.0, 0, 40, 5]
    cases: list[tuple[list[float], list[float], int, int | None]] = [  # start, end, box_id, box_id in the record
        (inside, outside, 1, 0),  # where it ends may lie outside
        ([20, 5, 40, 20], [21, 5, 41, 20], 2, 1),
        (inside, inside, -1, -1),
        (inside, inside, 0, -1),  # of a box that went
        (outside, inside, 0, None),  # starts outside
        (inside, [5, 5, 5, 9], 1, None),  # ends in nothing
        (inside, [5, 9, 8, 7], 1, None),  # and in less
    ]
    start, end, box_id, expected = zip(*cases, strict=True)
    moves = {
        "start": torch.tensor(start),
        "end": torch.tensor(end),
        "scores": torch.linspace(0.1, 0.7, len(cases)),
        "box_id": torch.tensor(box_id),
        "stride": 5,
    }
    boxes = torch.tensor([outside, inside, [20.0, 5, 40, 20]])
    found = mapped_back({"boxes": boxes, "scores": torch.ones(3), "labels": torch.zeros(3), "moves": moves}, SHOWN)
    assert found.moves is not None
    assert found.moves.start.tolist() == [[2, 8, 6, 16], [40, 20, 60, 40], [2, 8, 6, 16], [2, 8, 6, 16]]
    assert found.moves.end[:2].tolist() == [[60, 0, 80, 20], [42, 20, 82, 80]]
    assert found.moves.box_id.tolist() == [number for number in expected if number is not None]
    assert found.moves.scores.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert found.moves.stride == 5
    assert {array.dtype for array in (found.moves.start, found.moves.end, found.moves.scores)} == {np.dtype(np.float32)}


def test_a_frame_without_boxes_may_have_moves_of_none() -> None:
    none = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.long)}
    moves = {"start": torch.ones(1, 4).cumsum(1), "end": torch.ones(1, 4).cumsum(1), "scores": torch.ones(1)}
    found = mapped_back({**none, "moves": {**moves, "box_id": torch.tensor([-1]), "stride": 1}}, SHOWN)
    assert len(found) == 0
    assert found.moves is not None
    assert found.moves.box_id.tolist() == [-1]
