"""The score stage: a shard's `tracks` are held against what its catalog knows, and `truth` and `scores` written."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from pipeline import scoring
from pipeline.config import load
from pipeline.planning import Shard
from pipeline.records import VideoInfo
from pipeline.schemas import TRUTH
from pipeline.tables import Run


class Score:
    """shards -> their names, once their `truth` and `scores` are written; source: a run that has their truth."""

    def __init__(self, run: Run, catalog: str, source: Run | None = None) -> None:
        self.run = run
        self.catalog = catalog
        self.source = source

    def __call__(self, shard: Shard) -> Iterator[str]:
        if self.source:
            truth = self.source.read_table("truth", shard.file)
            scored = self.source.read_table("scores", shard.file)["video_id"]
            videos = [str(video) for video in scored.unique().to_pylist()]
        else:
            known = {video.video_id: truth for video in shard.videos if (truth := load_truth(video)) is not None}
            truth = pa.concat_tables([TRUTH.empty_table(), *known.values()]).unify_dictionaries()
            videos = list(known)
        self.run.write_table(truth, "truth", shard.file)
        tracks = self.run.read_table("tracks", shard.file)
        scores = scoring.score(truth, tracks, videos=videos, catalog=self.catalog)
        self.run.write_table(scores, "scores", shard.file)
        yield shard.file


def load_truth(video: VideoInfo) -> pa.Table | None:
    """What the video's catalog knows of it, as rows of TRUTH; None where nothing is known."""
    table = load("catalog", video.catalog).truth(video)
    return None if table is None else table.cast(TRUTH)
