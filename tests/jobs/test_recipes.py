"""Recipes: each can be made into a run or says what it lacks; they are listed readably."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from jobs import command, prepare, recipes
from jobs.listing import figure, figures
from jobs.papers import weights
from jobs.papers.row import Row
from jobs.run import run
from jobs.train import training_of
from jobs.trainings import DETECTOR
from pipeline import scoring
from pipeline.config import load, settings
from pipeline.detect import build
from pipeline.recipe import Recipe
from pipeline.tables import Run

RUNS = {row.run.recipe.name: row.run for row in recipes.rows() if row.run}
ALL = {recipe.name: recipe for run in RUNS.values() for recipe in (run.recipe, run.small)} | {
    name: make() for name, make in recipes.OURS.items()
}
UNTRAINED: dict[str, Any] = {"weights": "random", "classes": ("one", "two")}
RANDOM_REID = {"reid_weights": "random"}
SOURCES = ("ILSVRC2015", "MOT15", "MOT17", "COCO", "WAYMO", "WIDER", "FACES.json")
NETWORK = {"detect_to_track": "backbone", "retina_track": "network"}  # what else but `detector` says which it is


def named(name: str) -> Row:
    return next(row for row in recipes.rows() if row.name == name)


def called(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of the command line."""
    monkeypatch.setattr(sys, "argv", ["trackloom", *words])
    with pytest.raises(SystemExit) as exited:
        command.main()
    return int(exited.value.code or 0)


class TestRecipes:
    def test_settings_are_the_model_s_the_linker_s_and_the_catalog_s(self) -> None:
        wrong = {}
        for name, recipe in ALL.items():
            try:
                prepare.check_model_and_linker(recipe)
                settings(load("catalog", recipe.catalog).Settings, recipe.catalog_settings, f"catalog {recipe.catalog}")
            except ValueError as error:
                wrong[name] = str(error)
        assert not wrong

    def test_a_small_twin_differs_by_network_and_videos_alone(self) -> None:
        for name, ran in RUNS.items():
            one, other = vars(ran.recipe), vars(ran.small)
            apart = {field for field in one if one[field] != other[field]}
            assert apart == {"name", "catalog", "catalog_settings", "model_settings"}, name
            assert (ran.small.catalog, ran.small.catalog_settings) == ("synthetic", {"split": "test"}), name
            before, after = ran.recipe.model_settings, ran.small.model_settings
            changed = {setting for setting, value in after.items() if before.get(setting) != value}
            network = NETWORK.get(ran.recipe.model, "detector")
            assert after[network] == "small", name
            parts = {"propagate", "aggregate", "aggregate_flow", "motion", "reid", "reid_weights", "input_side"}
            allowed = {"tcd-mot15": {"benchmark", "nms_iou"}}.get(name, parts)
            assert {network, "weights"} <= changed <= {network, "weights", *allowed}, name
            assert (after.get("input_side") or 0) <= 128, name  # the small frames are 160 x 128 px

    def test_every_small_twin_can_be_built(self) -> None:
        """Settings may fit each other and still not the network."""
        different = {}
        for each in (configured.small for configured in RUNS.values()):
            given = {**each.model_settings, **UNTRAINED, **(RANDOM_REID if "reid" in each.model_settings else {})}
            different[each.model, repr(given)] = given
        for (model, _), given in different.items():
            module = load("model", model)
            network = module.build(settings(module.Settings, given, f"model {model}"))
            assert network.classes == UNTRAINED["classes"]

    @pytest.mark.parametrize(
        "name",
        [
            "tcd-late-small",
            "tcd-dcn-integrated-small",
            "dt-stride-10-average-small",
            "pnp-resnext-tfd-seq-track-nms-small",
            "rt-star-shared-small",
            "rt-iou-small",
            "rt-reid-small",
            "rt-tracktor-plus-plus-small",
            "smot-hannah-dfs-small",
            "smot-music-linking-small",
            "smot-music-512-small",
        ],
    )
    def test_a_small_twin_runs_on_any_videos(self, name: str, videos: Path, tmp_path: Path) -> None:
        given = ["model.weights=random", "model.classes=one,two"]
        given += ["model.reid_weights=random"] if "reid" in recipes.load(name).model_settings else []
        output = str(tmp_path / "run")
        source = [str(videos / "deeper")]
        assert run(source, output=output, recipe=name, catalog="folder", settings=given, local=True, report=False) == 0
        (video,) = Run(output).table("videos").to_pylist()
        assert (video["status"], video["frames_decoded"]) == ("ok", 12)

    @pytest.mark.parametrize("name", ["tcd-coco", "pnp-coco", "tracktor-coco", "retina-coco"])
    def test_published_weights_need_no_training(
        self, name: str, film: Callable[[Path, int, int], None], tmp_path: Path
    ) -> None:
        """The smallest of torchvision's detectors, with random numbers in the place of what COCO taught."""
        size = {"retina-coco": "input_side=64"}.get(name, "detector=fasterrcnn_mobilenet_v3_large_320_fpn")
        small = [f"model.{size}", "model.weights=random"]
        output = str(tmp_path / "run")
        film(tmp_path / "film.mp4", 3, 0)
        assert (
            run([str(tmp_path / "film.mp4")], output=output, recipe=name, settings=small, local=True, report=False) == 0
        )
        (video,) = Run(output).table("videos").to_pylist()
        assert (video["status"], video["frames_decoded"]) == ("ok", 3)

    @pytest.mark.parametrize(
        "name", ["tcd-integrated", "dt-resnet101", "pnp-resnext-tfd-seq-track-nms", "smot-hannah-farneback", "rt-joint"]
    )
    def test_small_twins_find_what_the_project_s_weights_were_taught(self, name: str, tmp_path: Path) -> None:
        """On test videos that none of them has seen; .90 and more when these bounds were set (2026-11-21)."""
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
        full = [run.recipe for run in RUNS.values()]
        told_apart = Counter(repr((each.catalog, each.model_settings, each.linker_settings)) for each in full)
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


class TestWeights:
    def test_what_recipes_of_papers_name_is_known(self) -> None:
        wanted = {
            recipe.model_settings[setting]
            for run in RUNS.values()
            for recipe in (run.recipe, run.small)
            for setting in weights.SETTINGS
            if setting in recipe.model_settings
        }
        before = {found.after for found in weights.known().values() if found.after}
        assert wanted | before == set(weights.known())

    def test_what_trains_them_is_a_training_of_their_network(self) -> None:
        for name, needed in weights.known().items():
            words = needed.training.split()
            assert words[0] == "--recipe", name
            assert ("--local" in words) == ("synthetic" in name), name
            assert (words[2] in SOURCES) == ("--gpu" in words) == ("synthetic" not in name), name
            training = training_of(words[1], [value for option, value in pairwise(words) if option == "--set"])
            given = {"weights": "random", "classes": ("one",), **training.model_settings}
            if given["weights"] != "random":
                del given["classes"]
            settings(load("model", training.model).Settings, given, f"model {training.model}")
            begun = (training.start, *(given.get(start) for start in ("weights", "backbone_weights", "reid_weights")))
            own = [start for start in begun if start in weights.known()]
            assert own == ([needed.after] if needed.after else []), name
            of_runs = {recipe.model for recipe in ALL.values() if recipe.model_settings.get("weights") == name}
            assert of_runs <= {training.model}, name

    def test_what_runs_build_on_is_what_the_training_makes(self) -> None:
        """A setting of a run that shapes its network is that of the training of its weights."""
        shaping = {"detector", "backbone", "network", "head", "m1", "m2", "m3", "num_shapes", "deformable", "benchmark"}
        for recipe in ALL.values():
            needed = weights.needed_by(recipe).get("weights")
            if needed:
                words = needed.training.split()
                training = training_of(words[1], [value for option, value in pairwise(words) if option == "--set"])
                both = [
                    vars(settings(load("model", recipe.model).Settings, {**each, "weights": "random"}, recipe.name))
                    for each in (recipe.model_settings, training.model_settings)
                ]
                different = {field for field in shaping & both[0].keys() if both[0][field] != both[1][field]}
                assert not different, (recipe.name, needed.name)

    def test_what_begins_with_others_says_so(self) -> None:
        known = weights.known()
        assert known["detect-to-track-resnet50-vid"].command == (
            "trackloom train --recipe dt-vid ILSVRC2015 --gpu --set model.backbone=resnet50 "
            "--set start=detect-to-track-resnet50-vid-detector --out runs/detect-to-track-resnet50-vid "
            "--export models/weights/detect-to-track-resnet50-vid.safetensors"
        )
        for name in ("retina-track-resnet50-waymo-star-shared", "retina-track-resnet50-waymo-shared"):
            assert known[name].after == "retina-track-resnet50-coco-shared"
        with pytest.raises(ValueError, match=r"train them, after detect-to-track-resnet101-vid-detector \(`trackloom"):
            recipes.check_weights(recipes.load("dt-resnet101"))

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

    def test_of_two_files_the_one_that_lacks_is_named_with_its_setting(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(weights, "SHIPPED", tmp_path)
        both = recipes.load("rt-reid")
        with pytest.raises(
            ValueError, match=r"the weights retina-track-resnet50-waymo-no-triplet .* model\.weights=FILE"
        ):
            recipes.check_weights(both)
        (tmp_path / "retina-track-resnet50-waymo-no-triplet.safetensors").touch()
        with pytest.raises(ValueError, match=r"the weights reid-resnet50-waymo .* model\.reid_weights=FILE"):
            recipes.check_weights(both)
        assert not weights.can_run(both)
        (tmp_path / "reid-resnet50-waymo.safetensors").touch()
        assert weights.can_run(both)
        recipes.check_weights(both)

    def test_an_untrained_part_is_refused_with_the_setting_that_names_its_file(self) -> None:
        detector_alone = {"weights": DETECTOR, "reid": "small"}
        recipe = Recipe(model="tracktor", model_settings=detector_alone)
        with pytest.raises(ValueError, match=r"^model tracktor uses reid, .* --set model\.reid_weights=FILE") as error:
            prepare.check_trained(recipe, build("tracktor", detector_alone))
        assert "train them as `trackloom train --recipe tracktor-synthetic` does" in str(error.value)
        for random in ("weights", "reid_weights"):
            given = {**detector_alone, random: "random"} | ({"classes": ("one",)} if random == "weights" else {})
            prepare.check_trained(replace(recipe, model_settings=given), build("tracktor", given))

    def test_where_weights_come_from_makes_no_other_run(self) -> None:
        """What is in them does, of all parts of a model: its state dict has a digest."""

        def resolved(**given: str) -> dict[str, Any]:
            settings = {"reid": "small", **given}
            return prepare.resolved(Recipe(model="tracktor", model_settings=settings), ("model",))

        assert resolved(weights="a", reid_weights="b") == resolved(weights="s3://c", reid_weights="d") == resolved()
        assert resolved(reid="none") != resolved()

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
        assert found["tracktor-coco"]["paper"] == found["retina-coco"]["paper"] == "retinatrack"
        late = found["tcd-plain-late"]
        assert (late["recipe"], late["small"], late["kind"]) == ("tcd-late", "tcd-late-small", "recipe")
        assert late["published"] == {"mAP_det [%]": 75.8, "mAP_track [%]": 65.9}
        assert [run["model"]["propagate"] for run in late["runs"]] == ["raft_small", "farneback"]
        assert late["runs"][0]["weights"]["name"] == "tracklet-rcnn-resnet101-vid"
        assert late["runs"][0]["reid_weights"] is None
        full, small = found["rt-reid"]["runs"]
        assert (full["weights"]["name"], full["reid_weights"]["name"]) == (
            "retina-track-resnet50-waymo-no-triplet",
            "reid-resnet50-waymo",
        )
        assert full["reid_weights"]["training"].startswith("trackloom train --recipe reid-waymo WAYMO --gpu --out ")
        assert small["reid_weights"]["name"] == "tracktor-synthetic-v1"
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
