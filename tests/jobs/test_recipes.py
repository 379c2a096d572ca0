"""Recipes: each can be made into a run or says what it lacks; the papers' rows are whole, and are listed readably."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from jobs import command, prepare, recipes
from jobs.benchmark import WANTED
from jobs.listing import figure, figures
from jobs.papers import weights
from jobs.papers.row import Row
from jobs.run import run
from jobs.train import training_of
from models.parts import backbones
from pipeline import scoring
from pipeline.config import load, settings
from pipeline.recipe import Recipe
from pipeline.tables import Run

RUNS = {row.run.recipe.name: row.run for row in recipes.rows() if row.run}
ALL = {recipe.name: recipe for run in RUNS.values() for recipe in (run.recipe, run.small)} | {
    name: make() for name, make in recipes.OURS.items()
}
UNTRAINED: dict[str, Any] = {"weights": "random", "classes": ("one", "two")}


def named(name: str) -> Row:
    return next(row for row in recipes.rows() if row.name == name)


def called(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of the command line."""
    monkeypatch.setattr(sys, "argv", ["trackloom", *words])
    with pytest.raises(SystemExit) as exited:
        command.main()
    return int(exited.value.code or 0)


class TestRecipes:
    @pytest.mark.parametrize("name", sorted(ALL))
    def test_settings_are_the_model_s_the_linker_s_and_the_catalog_s(self, name: str) -> None:
        recipe = ALL[name]
        prepare.check_model_and_linker(recipe)
        settings(load("catalog", recipe.catalog).Settings, recipe.catalog_settings, f"catalog {recipe.catalog}")

    @pytest.mark.parametrize("name", sorted(RUNS))
    def test_a_small_twin_differs_by_network_and_videos_alone(self, name: str) -> None:
        run = RUNS[name]
        apart = {
            field.name for field in fields(Recipe) if getattr(run.recipe, field.name) != getattr(run.small, field.name)
        }
        assert apart == {"name", "catalog", "catalog_settings", "model_settings"}
        assert run.small.catalog == "synthetic"
        assert run.small.catalog_settings == {"split": "test"}
        changed = {
            key for key, value in run.small.model_settings.items() if run.recipe.model_settings.get(key) != value
        }
        network = "backbone" if run.recipe.model == "detect_to_track" else "detector"
        assert run.small.model_settings[network] == "small"
        allowed = {"tcd-mot15": {"benchmark", "nms_iou"}}.get(name, {"propagate", "aggregate_flow"})
        assert {network, "weights"} <= changed <= {network, "weights", *allowed}

    def test_every_small_twin_can_be_built(self) -> None:
        """Settings may fit each other and still not the network."""
        different = {repr(each.small.model_settings): each.small for each in RUNS.values()}
        for recipe in different.values():
            module = load("model", recipe.model)
            given = {**recipe.model_settings, **UNTRAINED}
            network = module.build(settings(module.Settings, given, f"model {recipe.model}"))
            assert network.classes == UNTRAINED["classes"]

    @pytest.mark.parametrize(
        "name",
        [
            "tcd-late-small",
            "tcd-dcn-integrated-small",
            "dt-stride-10-average-small",
            "pnp-resnext-tfd-seq-track-nms-small",
        ],
    )
    def test_a_small_twin_runs_on_any_videos(self, name: str, videos: Path, tmp_path: Path) -> None:
        given = ["model.weights=random", "model.classes=one,two"]
        output = str(tmp_path / "run")
        source = [str(videos / "deeper")]
        assert run(source, output=output, recipe=name, catalog="folder", settings=given, local=True, report=False) == 0
        (video,) = Run(output).table("videos").to_pylist()
        assert (video["status"], video["frames_decoded"]) == ("ok", 12)

    @pytest.mark.parametrize("name", ["tcd-coco", "pnp-coco"])
    def test_published_weights_need_no_training(self, name: str, videos: Path, tmp_path: Path) -> None:
        """The smallest of torchvision's detectors, with random numbers in the place of what COCO taught."""
        small = ["model.detector=fasterrcnn_mobilenet_v3_large_320_fpn", "model.weights=random"]
        output = str(tmp_path / "run")
        source = [str(videos / "deeper")]
        assert run(source, output=output, recipe=name, settings=small, local=True, report=False) == 0
        (video,) = Run(output).table("videos").to_pylist()
        assert (video["status"], video["frames_decoded"]) == ("ok", 12)

    @pytest.mark.parametrize("name", ["tcd-integrated", "dt-resnet101", "pnp-resnext-tfd-seq-track-nms"])
    def test_small_twins_find_what_the_project_s_weights_were_taught(self, name: str, tmp_path: Path) -> None:
        """On test videos that none of them has seen; .97 and more when these bounds were set (2026-11-21)."""
        output = str(tmp_path / "run")
        assert run(None, output=output, recipe=f"{name}-small", max_videos=3, local=True, report=False) == 0
        assert scoring.values(scoring.combine([Run(output).table("scores")]))[None, None]["mAP"] > 0.85

    def test_every_name_loads_what_it_names(self) -> None:
        for name in recipes.names():
            assert recipes.load(name).name in ALL
            assert recipes.load(recipes.load(name).name) == recipes.load(name)
        assert recipes.load("tcd-alpha-1.0") == recipes.load("tcd-integrated")  # the column of the default
        assert recipes.load("tcd-alpha-0.5-small").model_settings["alpha"] == 0.5

    def test_equal_names_are_equal_recipes(self) -> None:
        """Lines of one configuration make it anew; what has the same name must be the same."""
        for row in recipes.rows():
            if row.run:
                assert row.run == RUNS[row.run.recipe.name], row.name

    def test_different_names_are_different_recipes(self) -> None:
        told_apart = Counter(repr((run.recipe.model_settings, run.recipe.linker_settings)) for run in RUNS.values())
        assert set(told_apart.values()) == {1}

    @pytest.mark.parametrize(
        ("name", "said"),
        {
            "misspelt": ("tcd-integratd", r"unknown recipe 'tcd-integratd' \(did you mean 'tcd-integrated'\?\)"),
            "unlike any": ("zzzz", "unknown recipe 'zzzz'; `trackloom recipes` lists"),
            "not ours": ("dt-t1-tcn", "dt-t1-tcn is a published figure, of TCN"),
            "small twin of what is not ours": ("dt-t1-tcn-small", "unknown recipe"),
        }.values(),
    )
    def test_a_wrong_name_is_said(self, name: str, said: str) -> None:
        with pytest.raises(ValueError, match=said) as error:
            recipes.load(name)
        assert len(str(error.value)) < 200


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


class TestWeights:
    def test_what_recipes_of_papers_name_is_known(self) -> None:
        wanted = {str(recipe.model_settings["weights"]) for run in RUNS.values() for recipe in (run.recipe, run.small)}
        before = {found.after for found in weights.known().values() if found.after}
        assert wanted | before == set(weights.known())

    @pytest.mark.parametrize("name", sorted(weights.known()))
    def test_what_trains_them_is_a_training_of_their_network(self, name: str) -> None:
        words = weights.known()[name].training.split()
        options: dict[str, list[str]] = {"--set": [], "--catalog": [], "--model": [], "--recipe": []}
        for option, value in pairwise(words):
            if option in options:
                options[option].append(value)
        single = {key.strip("-"): values[0] for key, values in options.items() if values and key != "--set"}
        training = training_of(single.pop("recipe", None), options["--set"], **single)
        begun = {"weights": "random", **training.model_settings}
        settings(load("model", training.model).Settings, begun, f"model {training.model}")
        begins_with = [option for option in options["--set"] if "backbone_weights" in option]
        if begins_with:
            backbone = begun.get("backbone", begun.get("detector"))
            assert begins_with[0].partition("=")[2] in backbones.published(str(backbone))
        of_runs = {recipe.model for recipe in ALL.values() if recipe.model_settings.get("weights") == name}
        assert of_runs <= {training.model}

    def test_a_recipe_whose_weights_are_not_here_fails_in_one_sentence_before_any_work(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        monkeypatch.setattr(weights, "SHIPPED", tmp_path)
        assert called(monkeypatch, "run", "--recipe", "dt-resnet101", "--output", str(tmp_path / "run")) == 1
        said = capsys.readouterr().err
        assert said.startswith("trackloom: recipe dt-resnet101 needs the weights detect-to-track-resnet101-vid (")
        assert said.count("\n") == 1
        assert "--set model.weights=FILE" in said
        assert "dt-resnet101-small" not in said  # which lacks its own
        assert not (tmp_path / "run").exists()
        assert called(monkeypatch, "detect", "--recipe", "pnp-hrnet-small", "--output", str(tmp_path / "run")) == 1
        assert "trackloom train --recipe plug-and-play-synthetic-tracker" in capsys.readouterr().err

    def test_weights_put_in_their_place_are_found(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(weights, "SHIPPED", tmp_path)
        small = recipes.load("dt-resnet101-small")
        assert not weights.can_run(small)
        (tmp_path / "detect-to-track-synthetic-v1.safetensors").touch()
        assert weights.can_run(small)
        recipes.check_weights(small)
        with pytest.raises(ValueError, match=r"or run dt-resnet101-small$"):
            recipes.check_weights(recipes.load("dt-resnet101"))

    def test_a_user_s_own_weights_are_nobody_s_business(self) -> None:
        recipes.check_weights(Recipe(model="tracklet_rcnn", model_settings={"weights": "mine.safetensors"}))
        recipes.check_weights(recipes.load("demo"))


class TestListing:
    def test_json_is_a_list_of_every_row_and_of_ours(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert called(monkeypatch, "recipes", "--json") == 0
        found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
        assert list(found) == [*recipes.OURS, *(row.name for row in recipes.rows())]
        assert {*recipes.names()} == {
            name + ending
            for name, each in found.items()
            if each["recipe"]
            for ending in ("", "-small")
            if each["small"] or not ending
        }
        assert len({frozenset(each) for each in found.values()}) == 1  # all have the same keys
        assert (found["demo"]["paper"], found["pnp-coco"]["paper"]) == ("smot", "plug_and_play_tracker")
        late = found["tcd-plain-late"]
        assert (late["recipe"], late["small"], late["kind"]) == ("tcd-late", "tcd-late-small", "recipe")
        assert late["published"] == {"mAP_det [%]": 75.8, "mAP_track [%]": 65.9}
        assert [run["model"]["propagate"] for run in late["runs"]] == ["raft_small", "farneback"]
        assert late["runs"][0]["weights"]["name"] == "tracklet-rcnn-resnet101-vid"
        assert found["dt-time-linking"]["benchmark"] == "trackloom benchmark linkers"
        assert found["tcd-t5-thp"]["published"]["mAP_track [%]"] is None

    def test_one_paper_is_listed_alone(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert called(monkeypatch, "recipes", "--json", "--paper", "plug_and_play_tracker") == 0
        assert {each["paper"] for each in json.loads(capsys.readouterr().out)} == {"plug_and_play_tracker"}
        assert called(monkeypatch, "recipes", "--paper", "plug_and_play") == 1
        assert "unknown paper 'plug_and_play' (did you mean 'plug_and_play_tracker'?)" in capsys.readouterr().err

    @pytest.mark.parametrize("width", [80, 200])
    def test_the_table_fits_and_names_can_be_copied(
        self, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("COLUMNS", str(width))
        assert called(monkeypatch, "recipes") == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= width
        first = {line.split()[0] for line in lines if line.strip()}
        assert {row.name for row in recipes.rows()} | {*recipes.OURS} <= first

    @pytest.mark.parametrize(
        ("name", "value", "shown"),
        [
            ("mAP [%]", 79.8, "mAP 79.8%"),
            ("time [ms]", 127, "time 127 ms"),
            ("center_error [1e-3]", 126, "center_error 126e-3"),
            ("FP", 5717, "FP 5717"),
            ("mAP_track [%]", None, "mAP_track not given"),
        ],
    )
    def test_figures_have_their_units(self, name: str, value: float | None, shown: str) -> None:
        assert figure(name, value) == shown

    def test_rows_say_what_measures_them(self) -> None:
        assert figures(named("dt-time-linking")) == "time 46 ms; trackloom benchmark linkers"
        assert figures(named("dt-bidirectional")).startswith("the text: no gain")

    def test_help_of_run_does_not_print_them_all(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert called(monkeypatch, "run", "--help") == 0
        said = capsys.readouterr().out
        assert "trackloom recipes" in " ".join(said.split())
        assert "tcd-integrated" not in said
