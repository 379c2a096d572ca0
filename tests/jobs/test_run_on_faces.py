"""The datasets of faces through the whole job: a detector that calls rings faces, on trees of the published shapes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import safetensors.torch
from numpy.typing import NDArray

from catalogs import synthetic
from jobs.run import run
from models.parts.weights import SHIPPED, read_weights
from pipeline import scoring
from pipeline.tables import read_run

SHOWN = 3  # of synthetic-v1's test split: it has a ring in every frame


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The shipped small detector, for which a ring's name is `face`."""
    stored = read_weights(str(SHIPPED / "smot-synthetic-v1.safetensors"))
    names = ["face" if name == "ring" else name for name in json.loads(stored.metadata["classes"])]
    path = tmp_path_factory.mktemp("weights") / "rings.safetensors"
    path.write_bytes(safetensors.torch.save(stored.tensors, {**stored.metadata, "classes": json.dumps(names)}))
    return str(path)


@pytest.fixture(scope="module")
def scene() -> tuple[NDArray[np.uint8], Sequence[dict[str, Any]]]:
    """The video's frames (T, 128, 160, 3), and its rings as rows of truth."""
    frames, truth = synthetic.render("test", SHOWN)
    rows: list[dict[str, Any]] = truth.to_pylist()
    return frames, [row for row in rows if row["class_name"] == "ring" and not row["ignore"]]


def write_film(path: Path, frames: NDArray[np.uint8]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())


def box(row: dict[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, width, height."""
    return row["x1"], row["y1"], row["x2"] - row["x1"], row["y2"] - row["y1"]


def hannah(root: Path, frames: NDArray[np.uint8], rings: Sequence[dict[str, Any]]) -> None:
    write_film(root / "film.mp4", frames)
    lines = ["frame\tx\ty\tw\th\ttrack"]
    for row in rings:
        x, y, width, height = box(row)
        numbers = (x * 996 / 160, y * 560 / 128, width * 996 / 160, height * 560 / 128)
        lines.append("\t".join([str(row["frame_index"] + 1), *(f"{n:.2f}" for n in numbers), str(row["track_id"])]))
    (root / "hannah_video_faces.txt").write_text("\n".join(lines))


def music(root: Path, frames: NDArray[np.uint8], rings: Sequence[dict[str, Any]]) -> None:
    write_film(root / "T-ara.mov", frames)
    people = ""
    for track in {row["track_id"] for row in rings}:
        people += f'<Trajectory obj_id="{track}">'
        for row in (row for row in rings if row["track_id"] == track):
            x, y, width, height = box(row)
            people += f'<Frame frame_no="{row["frame_index"] + 1}" x="{x}" y="{y}" width="{width}" height="{height}"/>'
        people += "</Trajectory>"
    (root / "Tara_gt.xml").write_text(f"<Video>{people}</Video>")


def wider(root: Path, frames: NDArray[np.uint8], rings: Sequence[dict[str, Any]]) -> None:
    lines = []
    for index in range(0, len(frames), 3):
        name = f"3--Rings/3_Rings_{index}.jpg"
        path = root / "WIDER_val/images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), cv2.cvtColor(frames[index], cv2.COLOR_RGB2BGR))
        faces = [np.rint(box(row)).astype(int) for row in rings if row["frame_index"] == index]
        lines += [name, str(len(faces))]
        lines += [" ".join(map(str, [*face, 0, 0, 0, 0, 0, 0])) for face in faces] or ["0 " * 10]
    (root / "wider_face_split").mkdir()
    (root / "wider_face_split/wider_face_val_bbx_gt.txt").write_text("\n".join(lines))


TREES: dict[str, tuple[Callable[..., None], list[str], int, tuple[str, ...]]] = {  # how, settings, videos, metrics
    "hannah": (hannah, [], 1, ("mAP", "MOTA", "IDF1")),
    "music_videos": (music, ["catalog.names=T-ara"], 1, ("mAP", "MOTA", "IDF1")),
    "wider_face": (wider, [], 13, ("mAP",)),
}


@pytest.mark.parametrize("catalog", TREES)
def test_faces_are_found_and_scored(
    tmp_path: Path, catalog: str, weights: str, scene: tuple[NDArray[np.uint8], Sequence[dict[str, Any]]]
) -> None:
    """Scores are high only where frames, boxes and names of truth and tracks meet."""
    write, given, count, metrics = TREES[catalog]
    source, output = tmp_path / "tree", str(tmp_path / "run")
    source.mkdir()
    write(source, *scene)
    settings = [*given, f"model.weights={weights}"]
    done = run(
        [str(source)], output=output, recipe="demo", catalog=catalog, settings=settings, local=True, report=False
    )
    assert done == 0
    tables = read_run(output)
    assert tables.table("videos")["status"].to_pylist() == ["ok"] * count
    scores = scoring.values(scoring.combine([tables.table("scores")]))[None, "face"]
    assert set(metrics) <= set(scores)
    assert min(scores[name] for name in metrics) >= 0.8
