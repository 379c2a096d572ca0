"""The papers' datasets through the whole job: a detector that calls rings by the names of the datasets.

The trees have the published shapes; the pictures are those of a synthetic video.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
from numpy.typing import NDArray

from catalogs import synthetic
from jobs.run import run
from models.parts.weights import SHIPPED, read_weights
from pipeline import scoring
from pipeline.tables import read_run

SHOWN = 3  # of synthetic-v1's test split: it has a ring in every frame
Frames = NDArray[np.uint8]
Rings = Sequence[dict[str, Any]]


@pytest.fixture(scope="module")
def scene() -> tuple[Frames, Rings]:
    """The video's frames (T, 128, 160, 3), and its rings as rows of truth."""
    frames, truth = synthetic.render("test", SHOWN)
    rows: list[dict[str, Any]] = truth.to_pylist()
    return frames, [row for row in rows if row["class_name"] == "ring" and not row["ignore"]]


def weights(folder: Path, name: str) -> str:
    """The shipped small detector, for which a ring is called so."""
    stored = read_weights(str(SHIPPED / "smot-synthetic-v1.safetensors"))
    names = [name if known == "ring" else known for known in json.loads(stored.metadata["classes"])]
    path = folder / "rings.safetensors"
    path.write_bytes(safetensors.torch.save(stored.tensors, {**stored.metadata, "classes": json.dumps(names)}))
    return str(path)


def encoded(frame: Frames) -> bytes:
    return bytes(cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])[1])


def sides(row: dict[str, Any]) -> tuple[float, float, float, float]:
    """Left, top, width, height."""
    return row["x1"], row["y1"], row["x2"] - row["x1"], row["y2"] - row["y1"]


def write_film(path: Path, frames: Frames) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())


def waymo(root: Path, frames: Frames, rings: Rings) -> None:
    time = 1_550_083_467_346_370 + 100_000 * np.arange(len(frames))
    none = pa.array([b""] * len(frames), pa.binary())  # what another camera saw
    tables = {
        "camera_image": {
            "key.frame_timestamp_micros": np.tile(time, 2),
            "key.camera_name": np.repeat([1, 2], len(frames)),
            "[CameraImageComponent].image": [*map(encoded, frames), *none.to_pylist()],
        },
        "camera_box": {
            "key.frame_timestamp_micros": time[[row["frame_index"] for row in rings]],
            "key.camera_name": [1] * len(rings),
            "key.camera_object_id": [f"ring-{row['track_id']}" for row in rings],
            "[CameraBoxComponent].box.center.x": [x + width / 2 for x, _, width, _ in map(sides, rings)],
            "[CameraBoxComponent].box.center.y": [y + height / 2 for _, y, _, height in map(sides, rings)],
            "[CameraBoxComponent].box.size.x": [width for _, _, width, _ in map(sides, rings)],
            "[CameraBoxComponent].box.size.y": [height for _, _, _, height in map(sides, rings)],
            "[CameraBoxComponent].type": [1] * len(rings),
        },
    }
    for component, columns in tables.items():
        (root / "validation" / component).mkdir(parents=True)
        pq.write_table(pa.table(columns), root / "validation" / component / "segment.parquet", row_group_size=16)


def coco(root: Path, frames: Frames, rings: Rings) -> None:
    shown = range(0, len(frames), 3)
    content = {
        "images": [{"id": index, "file_name": f"{index:012d}.jpg", "height": 128, "width": 160} for index in shown],
        "categories": [{"id": 3, "name": "car"}],
        "annotations": [
            {"id": number, "image_id": row["frame_index"], "category_id": 3, "bbox": sides(row), "iscrowd": 0}
            for number, row in enumerate(rings)
            if row["frame_index"] in shown
        ],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    (root / "val2017").mkdir()
    for index in shown:
        (root / "val2017" / f"{index:012d}.jpg").write_bytes(encoded(frames[index]))


def mot(root: Path, frames: Frames, rings: Rings) -> None:
    lines = [(row["frame_index"] + 1, row["track_id"], *sides(row), 1, 1, 1) for row in rings]
    for detector in ("DPM", "FRCNN", "SDP"):
        sequence = root / "train" / f"MOT17-02-{detector}"
        (sequence / "img1").mkdir(parents=True)
        (sequence / "gt").mkdir()
        for index, frame in enumerate(frames, 1):
            (sequence / "img1" / f"{index:06d}.jpg").write_bytes(encoded(frame))
        (sequence / "gt" / "gt.txt").write_text("\n".join(",".join(map(str, line)) for line in lines))
        (sequence / "seqinfo.ini").write_text(f"[Sequence]\nimDir=img1\nframeRate=25\nseqLength={len(frames)}\n")


def hannah(root: Path, frames: Frames, rings: Rings) -> None:
    write_film(root / "film.mp4", frames)
    lines = ["frame\tx\ty\tw\th\ttrack"]
    for row in rings:
        x, y, width, height = sides(row)
        numbers = (x * 996 / 160, y * 560 / 128, width * 996 / 160, height * 560 / 128)
        lines.append("\t".join([str(row["frame_index"] + 1), *(f"{n:.2f}" for n in numbers), str(row["track_id"])]))
    (root / "hannah_video_faces.txt").write_text("\n".join(lines))


def music(root: Path, frames: Frames, rings: Rings) -> None:
    write_film(root / "T-ara.mov", frames)
    people = ""
    for track in {row["track_id"] for row in rings}:
        people += f'<Trajectory obj_id="{track}">'
        for row in (row for row in rings if row["track_id"] == track):
            x, y, width, height = sides(row)
            people += f'<Frame frame_no="{row["frame_index"] + 1}" x="{x}" y="{y}" width="{width}" height="{height}"/>'
        people += "</Trajectory>"
    (root / "Tara_gt.xml").write_text(f"<Video>{people}</Video>")


def wider(root: Path, frames: Frames, rings: Rings) -> None:
    lines = []
    for index in range(0, len(frames), 3):
        name = f"3--Rings/3_Rings_{index}.jpg"
        path = root / "WIDER_val/images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(frames[index]))
        faces = [np.rint(sides(row)).astype(int) for row in rings if row["frame_index"] == index]
        lines += [name, str(len(faces))]
        lines += [" ".join(map(str, [*face, 0, 0, 0, 0, 0, 0])) for face in faces] or ["0 " * 10]
    (root / "wider_face_split").mkdir()
    (root / "wider_face_split/wider_face_val_bbx_gt.txt").write_text("\n".join(lines))


ALL, BOXES = ("mAP", "MOTA", "IDF1"), ("mAP",)
TREES: dict[str, tuple[Callable[..., None], str, list[str], int, str, tuple[str, ...]]] = {
    "waymo": (waymo, "vehicle", ["catalog.cameras=FRONT", "catalog.classes=vehicle"], 1, "jpeg", ALL),
    "coco": (coco, "car", [], 13, "jpeg", BOXES),
    "mot": (mot, "person", ["catalog.detector=FRCNN", "catalog.person=person"], 1, "jpeg", ALL),
    "hannah": (hannah, "face", [], 1, "h264", ALL),
    "music_videos": (music, "face", ["catalog.names=T-ara"], 1, "h264", ALL),
    "wider_face": (wider, "face", [], 13, "jpeg", BOXES),
}  # how a tree is written, what rings are called, settings, videos and their codec, metrics


@pytest.mark.parametrize("catalog", TREES)
def test_objects_are_found_scored_and_shown(tmp_path: Path, catalog: str, scene: tuple[Frames, Rings]) -> None:
    """Scores are high only where frames, boxes and names of truth and tracks meet; pictures only where frames open."""
    write, name, given, count, codec, metrics = TREES[catalog]
    source, output = tmp_path / "tree", tmp_path / "run"
    source.mkdir()
    write(source, *scene)
    settings = [*given, f"model.weights={weights(tmp_path, name)}"]
    done = run([str(source)], output=str(output), recipe="demo", catalog=catalog, settings=settings, local=True)
    assert done == 0
    tables = read_run(str(output))
    assert tables.table("videos")["status"].to_pylist() == ["ok"] * count
    assert set(tables.table("videos")["codec"].to_pylist()) == {codec}
    scores = scoring.values(scoring.combine([tables.table("scores")]))[None, name]
    assert min(scores[metric] for metric in metrics) >= 0.8
    assert "empty frames" not in (output / "report" / "index.html").read_text()
