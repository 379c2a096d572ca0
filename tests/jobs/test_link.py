"""`trackloom link`: any detections with any linker that their evidence allows, and which one without being asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jobs.link import link
from pipeline.config import available, load
from pipeline.tables import read_run


def boxes(num_frames: int = 12) -> pd.DataFrame:
    """Two objects that cross, as rows of detections."""
    rows = [
        {"video_id": "v", "frame_index": t, "x1": x, "y1": 10.0, "x2": x + 20, "y2": 60.0, "score": 0.9, "who": who}
        for t in range(num_frames)
        for who, x in enumerate((5.0 * t, 60.0 - 5.0 * t))
    ]
    return pd.DataFrame(rows)


@pytest.fixture
def plain(tmp_path: Path) -> str:
    boxes().drop(columns="who").to_parquet(tmp_path / "plain.parquet")
    return str(tmp_path / "plain.parquet")


@pytest.fixture
def with_looks(tmp_path: Path) -> str:
    rows = boxes()
    rows["embedding"] = [[1.0, 0.0] if who else [0.0, 1.0] for who in rows.pop("who")]
    rows.to_parquet(tmp_path / "looks.parquet")
    return str(tmp_path / "looks.parquet")


def linker_of(output: Path) -> str:
    recipe = read_run(str(output)).about["identity"]["recipe"]
    return str(recipe["linker"])


def test_without_being_asked_it_is_online(plain: str, tmp_path: Path) -> None:
    assert link(plain, output=str(tmp_path / "run"), local=True) == 0
    assert linker_of(tmp_path / "run") == "online"


@pytest.mark.parametrize("name", sorted({*available("linker")} - {"keep", "deepsort"}))
def test_plain_boxes_are_linked_by_all_that_need_no_more(plain: str, tmp_path: Path, name: str) -> None:
    assert not load("linker", name).NEEDS
    assert link(plain, output=str(tmp_path / "run"), linker=name, local=True) == 0
    tracks = read_run(str(tmp_path / "run")).table("tracks").to_pandas()
    assert len(tracks) >= 20
    assert tracks.track_id.notna().any()


def test_embeddings_tell_apart_what_crosses(with_looks: str, tmp_path: Path) -> None:
    assert link(with_looks, output=str(tmp_path / "run"), linker="deepsort", local=True) == 0
    tracks = read_run(str(tmp_path / "run")).table("tracks").to_pandas().dropna(subset="track_id")
    steps = tracks.sort_values("frame_index").groupby("track_id").x1.apply(lambda x: np.unique(np.diff(x)).tolist())
    assert sorted(steps.tolist()) == [[-5.0], [5.0]]


REFUSED = {
    "deepsort": ({"linker": "deepsort"}, "linker deepsort needs embeddings"),
    "keep": ({"linker": "keep"}, "linker keep needs tracklet_id"),
    "what a setting asks for": (
        {"linker": "seq_nms", "settings": ["linker.links=moves"]}, "linker seq_nms needs moves",
    ),
    "looks": (
        {"linker": "track_store", "settings": ["linker.match_by=both"]}, "linker track_store needs embeddings",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("options", "said"), REFUSED.values(), ids=REFUSED)
def test_evidence_that_is_not_there_is_said_before_any_work(
    plain: str, tmp_path: Path, options: dict, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        link(plain, output=str(tmp_path / "run"), local=True, **options)
    assert not (tmp_path / "run").exists()
