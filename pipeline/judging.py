"""Truth and scores: what catalogs know becomes a table of the run, and `tracks` are held against it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pyarrow as pa

from pipeline import scoring
from pipeline.config import load
from pipeline.frame_range import held
from pipeline.metrics.sides import UNNAMED
from pipeline.planning import Shard
from pipeline.schemas import TRUTH
from pipeline.tables import Run


class Know:
    """shards -> their names, once what their catalog knows of their videos is their `truth`.

    Of a video that is a range of a file's frames, what is known of those. The file's metadata names the videos that
    are known, also those in which there is nothing.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    def __call__(self, shard: Shard) -> Iterator[str]:
        tables = {video.video_id: load("catalog", video.catalog).truth(video) for video in shard.videos}
        of = {video.video_id: video for video in shard.videos}
        known = {name: held(table.cast(TRUTH), of[name]) for name, table in tables.items() if table is not None}
        truth = pa.concat_tables([TRUTH.empty_table(), *known.values()]).unify_dictionaries()
        self.run.write_table(truth, "truth", shard.file, metadata={"videos": json.dumps(list(known))})
        yield shard.file


class Score:
    """File names of `tracks` -> the same, once the shard's `scores` are written; source: the run that has the truth."""

    def __init__(self, run: Run, source: Run) -> None:
        self.run = run
        self.source = source

    def __call__(self, file: str) -> Iterator[str]:
        truth = self.source.read_table("truth", file)
        videos = truth.schema.metadata[b"videos"].decode()
        tracks = self.run.read_table("tracks", file)
        catalog = self.run.read_table("videos", file)["catalog"][0].as_py()
        unnamed = self.run.about.get("classes") == [UNNAMED]  # of all shards, whatever rows this one has
        scores = scoring.score(truth, tracks, videos=json.loads(videos), catalog=catalog, class_agnostic=unnamed)
        if self.source.url_of() != self.run.url_of():
            self.run.write_table(truth, "truth", file, metadata={"videos": videos})
        self.run.write_table(scores, "scores", file)
        yield file
