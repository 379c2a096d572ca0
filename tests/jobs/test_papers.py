"""The papers' tables: every line is there, with its figures and the settings that the paper gives it."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

import pytest

from jobs import recipes
from jobs.benchmark import WANTED
from jobs.papers.row import Row
from models.retina_track import Settings, shipped_name
from pipeline.config import settings

ROWS: dict[str, list[Row]] = {stem: paper.rows() for stem, paper in recipes.PAPERS.items()}


def named(name: str) -> Row:
    return next(row for row in recipes.rows() if row.name == name)


class TestRows:
    def test_every_table_of_the_issue_is_there(self) -> None:
        tables = Counter((row.paper, row.table) for row in recipes.rows())
        stem = "tracklet_conditioned_detection"
        assert {table: count for (paper, table), count in tables.items() if paper == stem} == {
            "Table 1": 6,
            "Table 2": 18,
            "Table 3": 2,
            "Table 4": 6,
            "Table 5": 8,
            "Table 6": 9,
        }
        assert {table: count for (paper, table), count in tables.items() if paper == "detect_to_track"} == {
            "Table 1": 9,
            "Table 2": 12,
            "Section 4": 2,
            "Section 5.3": 7,
        }
        assert {table: count for (paper, table), count in tables.items() if paper == "plug_and_play_tracker"} == {
            "Table 1": 13,
            "Table 2": 7,
            "Table 3": 1,
            "Table 4": 1,
            "Table 5": 5,
            "Table 6": 7,
        }
        assert {table: count for (paper, table), count in tables.items() if paper == "retinatrack"} == {
            "Figure 4": 7,
            "Figure 5": 9,
            "Figure 6": 3,
            "Figure 7": 3,
            "Figure 8": 4,
            "Figure 9": 3,
        }
        assert {table: count for (paper, table), count in tables.items() if paper == "smot"} == {
            "Table 1": 4 + 6 + 3 + 6,  # MOT17, Hannah, three off-line on Music Videos, and ours there
            "Table 2": 2 * 8,  # lines with figures of both datasets
            "Table 3": 2 * 4,
            "Table 4": 2 * 5,
        }

    def test_names_are_unique(self) -> None:
        assert max(Counter(recipes.names()).values()) == 1
        assert max(Counter(row.name for row in recipes.rows()).values()) == 1

    def test_kinds_say_what_a_row_has(self) -> None:
        for row in recipes.rows():
            times = all(name.endswith(("[ms]", "[GB]", "[FPS]")) or "times" in name for name in row.published)
            assert (row.kind == "benchmark") == bool(row.published and times), row.name
            assert (row.kind == "published_only") == (row.run is None), row.name
            assert row.published or row.note, row.name
            if row.benchmark:
                assert row.benchmark in WANTED

    @pytest.mark.parametrize(
        ("name", "model", "linker", "published"),
        [
            (
                "tcd-late",
                {"condition": "none", "propagate": "raft_small", "rescore": True},
                ("keep", {}),
                {"mAP_det [%]": 75.8, "mAP_track_fast [%]": 38.9},
            ),
            ("tcd-r-0.2", {"null": 0.2}, ("keep", {}), {"mAP_det [%]": 78.1, "mAP_track [%]": 67.4}),
            ("tcd-gamma-16", {"gamma": 16}, ("keep", {}), {"mAP_det [%]": 78.3, "mAP_track [%]": 67.8}),
            ("tcd-mot15", {"benchmark": "mot15", "min_score": 0.95}, ("keep", {"min_length": 10}), {"IDSw": 788}),
            ("tcd-stability-integrated", {}, ("keep", {}), {"fragment_error_slow [1e-3]": 14}),
            ("dt-online", {}, ("tubes", {"evidence": "moves", "rescore": "causal"}), {"mAP [%]": 78.7}),
            (
                "dt-stride-10-average",
                {"stride": 10, "average": True},
                ("tubes", {"evidence": "moves"}),
                {"mAP [%]": 79.2},
            ),
            ("dt-alpha-0.1", {}, ("tubes", {"evidence": "moves", "alpha": 0.1}), {}),
            (
                "dt-inception-v4-average",
                {"backbone": "inception_v4"},
                ("tubes", {"evidence": "moves"}),
                {"mAP [%]": 82.1},
            ),
            ("pnp-hrnet-tfd-0.3-seq-nms", {"merge_iou": 0.3}, ("seq_nms", {"nms_iou": 0.45}), {"mAP [%]": 77.8}),
            (
                "pnp-resnext-tfd-seq-track-nms",
                {"detector": "resnext101_fpn_dcn"},
                ("seq_nms", {"nms_iou": 0.45, "links": "moves"}),
                {"mAP [%]": 81.1},
            ),
            (
                "rt-coco-k1-shared",
                {"head": "shared", "num_shapes": 1, "embedding": "none", "input_side": 896},
                ("online", {}),
                {"mAP [%]": 30.71, "time [ms]": 30},
            ),
            (
                "rt-star-shared",
                {"head": "shared", "input_side": 1024, "weights": "retina-track-resnet50-waymo-star-shared"},
                ("track_store", {"min_score": 0.5}),
                {"MOTA [%]": 37.63, "mAP [%]": 36.75, "time [ms]": 40},
            ),
            ("rt-2-2", {"m1": 2, "m2": 2}, ("track_store", {"min_score": 0.5}), {"MOTA [%]": 39.08}),
            ("rt-m3-4", {"m3": 4}, ("track_store", {"min_score": 0.5}), {"MOTA [%]": 38.85, "mAP [%]": 38.24}),
            ("rt-tracktor-plus-plus", {"camera": "ecc", "reid": "resnet50"}, ("keep", {}), {"IDSw": 10370}),
            ("rt-iou", {"embedding": "none"}, ("track_store", {"min_score": 0.5}), {"MOTA [%]": 35.36}),
            (
                "rt-v1.1-joint",
                {"weights": "retina-track-resnet50-waymo-v1.1"},
                ("track_store", {"min_score": 0.5}),
                {"MOTA [%]": 44.92, "mAP [%]": 45.70},
            ),
            (
                "smot-hannah-linking",
                {"motion": "farneback", "reid": "resnet50", "sigma_det": 0.9, "sigma_track": 0.2, "input_side": 1024},
                ("tracklets", {"match_by": "appearance", "max_gap": None, "min_length": 1}),
                {"MOTA": 0.728, "Transfer": 165, "IDSw": 1122},
            ),
            ("smot-mot17", {"sigma_det": 0.9, "sigma_track": 0.4}, ("keep", {}), {"IDF1": 0.477, "recall": 0.576}),
            ("smot-music-dfs", {"tracking": False, "reid": "resnet50"}, ("deepsort", {}), {"IDF1": 0.141}),
            ("smot-music-0.65-0.3", {"sigma_det": 0.65, "sigma_track": 0.3}, ("keep", {}), {"IDSw": 10673}),
            ("smot-hannah-anchors-1", {"num_anchors": 1, "weighting": "max"}, ("keep", {}), {"IDSw": 3239}),
            ("smot-hannah-256", {"input_side": 256, "num_anchors": 10}, ("keep", {}), {"speed [FPS]": 40}),
        ],
    )
    def test_known_rows(
        self, name: str, model: dict[str, Any], linker: tuple[str, dict[str, Any]], published: dict[str, float]
    ) -> None:
        row = named(name)
        assert row.run
        assert model.items() <= row.run.recipe.model_settings.items()
        assert (row.run.recipe.linker, row.run.recipe.linker_settings) == linker
        assert published.items() <= row.published.items()

    def test_the_paper_s_gains_are_the_differences_of_its_rows(self) -> None:
        """TCD section 4.2 and PnP section 6.4 say by how much their parts help."""

        def gain(metric: str, better: str, worse: str) -> float:
            one, other = named(better).published[metric], named(worse).published[metric]
            assert one is not None
            assert other is not None
            return round(one - other, 1)

        assert gain("mAP_det [%]", "tcd-integrated", "tcd-late") == 2.3
        assert gain("mAP_track [%]", "tcd-integrated", "tcd-late") == 2.0
        assert gain("mAP_det [%]", "tcd-first-stage", "tcd-sequential") == 0.8
        assert gain("mAP_track [%]", "tcd-second-stage", "tcd-sequential") == 1.6
        assert gain("mAP [%]", "dt-t-loss", "dt-r-fcn") == 1.6
        assert gain("mAP [%]", "dt-stride-1", "dt-stride-10") == 1.2
        assert gain("mAP [%]", "pnp-hrnet-tfd-seq-nms", "pnp-hrnet") == 5.4
        assert gain("mAP [%]", "pnp-resnext-tfd-seq-track-nms", "pnp-resnext-tfd-seq-nms") == 0.7

    def test_what_retinatrack_s_parts_are_worth_is_what_its_text_says(self) -> None:
        """Section 4: K = 6 and separate towers are better on COCO, (3, 1) among RetinaTrack's, on Waymo too."""

        def scores(metric: str, *names: str) -> list[float]:
            found = [named(f"rt-{name}").published[metric] for name in names]
            return [value for value in found if value is not None]

        coco = ("separate", "shared", "3-1", "2-2", "1-3", "k1-separate", "k1-shared")
        detected = scores("mAP [%]", *(f"coco-{name}" for name in coco))
        assert detected == [36.17, 35.35, 35.74, 35.55, 35.11, 31.45, 30.71]
        for metric in ("MOTA [%]", "mAP [%]"):
            for better in (("3-1", "2-2", "1-3"), ("3-1", "star-separate", "star-shared", "k1-separate")):
                assert scores(metric, *better) == sorted(scores(metric, *better), reverse=True)
        assert scores("MOTA [%]", "joint", "no-triplet", "reid", "iou") == [39.19, 37.92, 37.39, 35.36]

    def test_twins_of_retinatrack_take_what_its_small_network_would_by_default(self) -> None:
        for name, run in {row.run.recipe.name: row.run for row in ROWS["retinatrack"] if row.run}.items():
            given = dict(run.small.model_settings)
            own = given.pop("weights")
            only_with_embeddings = name in ("rt-coco-1-3", "rt-coco-2-2")  # are these trained
            if run.small.model == "retina_track" and not only_with_embeddings:
                assert own == shipped_name(settings(Settings, given, "model retina_track")), name

    def test_f1_is_that_of_precision_and_recall_or_noted(self) -> None:
        """SMOT's Table 1 prints all three; rounded to thousandths, F1 may be .0015 off."""
        for row in ROWS["smot"]:
            f1, precision, recall = (row.published.get(name) for name in ("F1", "precision", "recall"))
            if f1 and precision and recall:
                expected = 2 * precision * recall / (precision + recall)
                assert abs(f1 - expected) < 0.0015 or f"would be {expected:.3f}".replace("0.", ".") in row.note, (
                    row.name
                )

    def test_figures_of_one_run_agree_or_the_disagreement_is_noted(self) -> None:
        """RetinaTrack and SMOT print a run in several tables; where they contradict themselves a reader is told."""
        for rows in (ROWS["retinatrack"], ROWS["smot"]):
            for one, other in combinations([row for row in rows if row.run], 2):
                if one.run != other.run:
                    continue
                shared = one.published.keys() & other.published.keys()
                differ = [name for name in shared if one.published[name] != other.published[name]]
                assert not differ or one.note or other.note, (one.name, other.name, differ)
