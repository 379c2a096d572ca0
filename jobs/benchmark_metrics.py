"""CPU seconds and memory of the metrics at the size of MOT17 and of ImageNet VID, from files or tables to scores."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from catalogs import imagenet_vid, mot
from jobs.benchmark_rows import Row, against, cpu_s, peer, table
from pipeline import scoring
from pipeline.boxes import iou
from pipeline.schemas import TRACKS

__all__ = ["rows", "table"]

SEQUENCES = [f"S-{number:02d}" for number in range(7)]
FRAMES, OBJECTS = 759, 21  # in all 5,313 frames and 111,573 boxes: MOT17's training set has 5,316 and 112,297
VID_FRAMES = 176_126
SPLITS = [f"mAP{name}" for name in ("", "_slow_by_box", "_medium_by_box", "_fast_by_box")]
TOLERANCE = 1e-6  # within which all programs have to agree


def rows(data: str, slow_peers: bool) -> Iterator[Row]:
    """Tracking metrics from MOTChallenge files; AP with motion splits on the truth of ImageNet VID's validation set."""
    with tempfile.TemporaryDirectory() as folder:
        write_crowds(Path(folder))
        size = f"{len(SEQUENCES) * FRAMES:,} frames, {len(SEQUENCES) * FRAMES * OBJECTS:,} boxes"
        expected = score_crowds(folder)
        peers = {
            "roboflow trackers": lambda: _roboflow(folder, expected),
            "TrackEval": lambda: _trackeval(folder, expected),
            "motmetrics (no HOTA)": lambda: _motmetrics(folder, expected),
        }
        yield from against("HOTA + CLEAR + identity", size, "s", cpu_s(lambda: score_crowds(folder)), peers)

    with multiprocessing.get_context("spawn").Pool(1) as fresh:  # its memory is the work's alone
        seconds, memory, size = fresh.apply(score_vid, (data,))
    slow: dict[str, Callable[[], Callable[[], object]]] = {
        "faster-coco-eval (ten IoUs)": lambda: _coco("faster_coco_eval", data),
        "pycocotools (ten IoUs)": lambda: _coco("pycocotools", data),
    }
    yield from against("AP at IoU .5 with motion splits", size, "s", seconds, slow if slow_peers else {})
    yield from against("AP at IoU .5, peak memory", size, "GB", memory, {})


def write_crowds(folder: Path) -> None:
    """Truth and results of people who walk about, as text: one in ten missed, 3 false a frame, ids change often."""
    for number, name in enumerate(SEQUENCES):
        random = np.random.default_rng(number)
        frame, who = np.divmod(np.arange(FRAMES * OBJECTS), OBJECTS)
        start, step = random.uniform((0, 0), (1800, 900), (OBJECTS, 2)), random.normal(0, 2, (OBJECTS, 2))
        size = random.uniform(30, 80, OBJECTS)[:, None] * [1, 2.5]
        corner = start[who] + frame[:, None] * step[who]
        truth = np.column_stack([frame + 1, who + 1, corner, size[who]])

        found = random.random(len(who)) > 0.1
        ids = who + 1 + OBJECTS * ((frame + 7 * who) // 50)
        seen = np.column_stack([frame + 1, ids, corner + random.normal(0, 3, corner.shape), size[who]])[found]
        false = np.arange(3 * FRAMES)
        place = random.uniform(0, 1500, (len(false), 2))
        wrong = np.column_stack([1 + false % FRAMES, 100_000 + false // FRAMES, place, size[false % OBJECTS]])
        for path, lines, rest in (
            (folder / "gt" / name / "gt" / "gt.txt", truth, (1, 1, 1)),
            (folder / "results" / "ours" / "data" / f"{name}.txt", np.concatenate([seen, wrong]), (0.9, -1, -1, -1)),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = np.column_stack([lines, np.tile(rest, (len(lines), 1))])
            np.savetxt(
                path,
                whole,
                delimiter=",",
                fmt=["%d", "%d", "%.2f", "%.2f", "%.2f", "%.2f", "%g"] + ["%d"] * (len(rest) - 1),
            )


def score_crowds(folder: str) -> dict[str, float]:
    """The combined scores, from the files."""
    parts = []
    for name in SEQUENCES:
        truth = mot.read_truth(f"{folder}/gt/{name}/gt/gt.txt", name)
        tracks = mot.read_tracks(f"{folder}/results/ours/data/{name}.txt", name)
        parts.append(scoring.score(truth, tracks, metrics=["HOTA", "MOTA", "IDF1"], class_agnostic=True))
    return scoring.values(scoring.combine(parts))[None, None]


def score_vid(data: str) -> tuple[float, float, str]:
    """CPU seconds, peak gigabytes above imports, and the size, of scoring ImageNet VID's validation set."""
    imported = _peak_gb()
    truth, tracks = vid_tables(data)
    start = time.process_time()
    scoring.combine([scoring.score(truth, tracks, metrics=SPLITS)])
    seconds = time.process_time() - start
    return seconds, _peak_gb() - imported, f"{VID_FRAMES:,} frames, {len(tracks):,} detections, 30 classes"


def vid_tables(data: str, seed: int = 0) -> tuple[pa.Table, pa.Table]:
    """The truth of all videos, and simulated detections, some 4.9 a frame."""
    videos = imagenet_vid.videos(f"{data}/imagenet_vid", imagenet_vid.Settings())
    truth = pa.concat_tables([imagenet_vid.truth(video) for video in videos]).unify_dictionaries()
    random = np.random.default_rng(seed)
    boxes = np.stack([truth[name].to_numpy() for name in ("x1", "y1", "x2", "y2")], axis=1).astype(np.float64)
    repeated = np.repeat(np.arange(len(truth)), random.poisson(3.16, len(truth)))  # near ones, and false ones beside
    side = boxes[repeated, 2:] - boxes[repeated, :2]
    shift = (
        random.normal(0, 1, (len(repeated), 2)) * side * random.choice([0.05, 0.5], (len(repeated), 1), p=[0.5, 0.5])
    )
    corners = np.tile(shift, 2) + boxes[repeated] + random.normal(0, 0.05, (len(repeated), 4)) * np.tile(side, 2)
    corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2] + 1)
    rows = truth.take(pa.array(repeated))
    near = np.abs(shift / side).max(axis=1) < 0.15
    scores = np.clip(random.normal(np.where(near, 0.6, 0.3), 0.2), 0.01, 0.99).astype(np.float32)
    count = len(rows)
    columns = {
        **{name: rows[name] for name in ("video_id", "frame_index", "class_id", "class_name")},
        **{name: corners[:, index].astype(np.float32) for index, name in enumerate(("x1", "y1", "x2", "y2"))},
        "score": scores,
        "raw_score": scores,
    }
    arrays = [columns.get(field.name, pa.nulls(count, field.type)) for field in TRACKS]
    return truth, pa.table(arrays, schema=TRACKS)


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _agree(theirs: dict[str, float], expected: dict[str, float]) -> None:
    for name, value in theirs.items():
        assert abs(value - expected[name]) < TOLERANCE, (name, value, expected[name])


def _roboflow(folder: str, expected: dict[str, float]) -> Callable[[], object]:
    evaluate = peer("trackers.eval.evaluate", "trackers").evaluate_mot_sequences

    def work() -> None:
        found = evaluate(f"{folder}/gt", f"{folder}/results/ours/data", metrics=["CLEAR", "HOTA", "Identity"]).aggregate
        _agree({"HOTA": found.HOTA.HOTA, "IDF1": found.Identity.IDF1}, expected)

    return work


def _trackeval(folder: str, expected: dict[str, float]) -> Callable[[], object]:
    trackeval = peer("trackeval", "trackeval")
    quiet = {"PRINT_CONFIG": False}
    dataset = {
        **quiet,
        "GT_FOLDER": f"{folder}/gt",
        "TRACKERS_FOLDER": f"{folder}/results",
        "SKIP_SPLIT_FOL": True,
        "DO_PREPROC": False,
        "SEQ_INFO": dict.fromkeys(SEQUENCES, FRAMES),
    }

    def work() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            files = trackeval.datasets.MotChallenge2DBox(dataset)
            metrics = [trackeval.metrics.HOTA(), trackeval.metrics.CLEAR(quiet), trackeval.metrics.Identity(quiet)]
            found = {}
            each: list[dict[str, Any]] = [{} for _ in metrics]
            for name in SEQUENCES:
                raw = files.get_preprocessed_seq_data(files.get_raw_seq_data("ours", name), "pedestrian")
                for metric, results in zip(metrics, each, strict=True):
                    results[name] = metric.eval_sequence(raw)
            for metric, results in zip(metrics, each, strict=True):
                found.update(metric.combine_sequences(results))
        _agree({"HOTA": float(np.mean(found["HOTA"])), "IDF1": found["IDF1"]}, expected)

    return work


def _motmetrics(folder: str, expected: dict[str, float]) -> Callable[[], object]:
    motmetrics = peer("motmetrics", "motmetrics")

    def work() -> None:
        accumulators = []
        for name in SEQUENCES:
            sides = [
                np.loadtxt(path, delimiter=",")
                for path in (f"{folder}/gt/{name}/gt/gt.txt", f"{folder}/results/ours/data/{name}.txt")
            ]
            accumulator = motmetrics.MOTAccumulator(auto_id=True)
            for frame in range(1, FRAMES + 1):
                truth, found = (side[side[:, 0] == frame] for side in sides)
                corners = [np.column_stack([side[:, 2:4], side[:, 2:4] + side[:, 4:6]]) for side in (truth, found)]
                apart = 1 - iou(*corners)  # its own iou_matrix does not run with numpy 2
                accumulator.update(truth[:, 1], found[:, 1], np.where(apart <= 0.5, apart, np.nan))
            accumulators.append(accumulator)
        names = ["mota", "motp", "idf1", "num_switches"]
        found = motmetrics.metrics.create().compute_many(accumulators, metrics=names, generate_overall=True)
        _agree({"MOTA": found["mota"]["OVERALL"], "IDF1": found["idf1"]["OVERALL"]}, expected)

    return work


def _coco(module: str, data: str) -> Callable[[], object]:
    """COCO's evaluation of the same boxes: ten IoUs, no motion splits."""
    if module == "pycocotools":
        coco, evaluation = peer("pycocotools.coco", module).COCO, peer("pycocotools.cocoeval", module).COCOeval
    else:
        package = peer(module, module.replace("_", "-"))
        coco, evaluation = package.COCO, package.COCOeval_faster
    truth, tracks = vid_tables(data)
    image = {key: number for number, key in enumerate(sorted({*_keys(truth), *_keys(tracks)}))}

    def annotations(table: pa.Table) -> list[dict[str, Any]]:
        columns = zip(
            _keys(table), *(table[name].to_pylist() for name in ("class_id", "x1", "y1", "x2", "y2")), strict=True
        )
        return [
            {
                "id": index,
                "image_id": image[key],
                "category_id": label,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
            }
            for index, (key, label, x1, y1, x2, y2) in enumerate(columns, 1)
        ]

    def work() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            known = coco()
            known.dataset = {
                "images": [{"id": number} for number in image.values()],
                "categories": [{"id": label} for label in range(30)],
                "annotations": annotations(truth),
            }
            known.createIndex()
            found = [
                {**row, "score": score}
                for row, score in zip(annotations(tracks), tracks["score"].to_pylist(), strict=True)
            ]
            run = evaluation(known, known.loadRes(found), "bbox")
            run.evaluate()
            run.accumulate()
            run.summarize()

    return work


def _keys(table: pa.Table) -> list[tuple[str, int]]:
    return list(zip(table["video_id"].to_pylist(), table["frame_index"].to_pylist(), strict=True))
