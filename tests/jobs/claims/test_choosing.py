"""What is chosen on val: by the mean over seeds, the first of equals, for those that are like a system too."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from jobs.claims import choosing, scores, units
from jobs.claims.system import System
from pipeline.engine import Local
from pipeline.recipe import Recipe

OPEN = System("open", Recipe(), {"linker.min_score": (0.3, 0.5), "model.top": (1, 2)})
LIKE = System("like", Recipe(), like="open")
ALL = {"open": OPEN, "like": LIKE, "settled": System("settled", Recipe())}


def test_every_value_is_tried_with_every_other() -> None:
    assert list(choosing.variants(OPEN).values()) == [
        {"linker.min_score": score, "model.top": top} for score in (0.3, 0.5) for top in (1, 2)
    ]
    assert len(choosing.variants(OPEN)) == 4  # names


@pytest.mark.parametrize(
    ("hota", "best"),
    [
        ({0.3: (0.1, 0.9), 0.5: (0.6, 0.6), 0.7: (0.7, 0.4)}, 0.5),
        ({0.3: (0.5, 0.5), 0.5: (0.4, 0.6), 0.7: (0.2, 0.3)}, 0.3),  # the first of equals
        ({0.3: (0.5, 0.1), 0.5: (0.4, 0.1), 0.7: (0.9, 0.3)}, 0.7),
    ],
)
def test_the_best_mean_over_seeds_is_chosen(
    hota: dict[float, tuple[float, float]], best: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = System("one", Recipe(), {"linker.min_score": tuple(hota)})

    def listed(systems: Any, seeds: Any, file: Any, split: str, chosen: Any) -> list[units.Unit]:
        assert split == "val"
        return [units.Unit(systems[0].name, seed, Recipe(), chosen[systems[0].name], "", "") for seed in seeds]

    monkeypatch.setattr(units, "units", listed)
    monkeypatch.setattr(units, "run", lambda *given: {})
    monkeypatch.setattr(scores, "score", lambda *given: {})
    monkeypatch.setattr(choosing, "whole", lambda place, unit: hota[unit.identity["linker.min_score"]][unit.seed])
    assert choosing.choose([system, ALL["settled"]], [0, 1], str, str(tmp_path), Local()) == {}
    found = choosing.read(str(tmp_path))
    assert found.keys() == {"one"}
    assert found["one"]["chosen"] == {"linker.min_score": best}
    assert [line["settings"]["linker.min_score"] for line in found["one"]["tried"]] == list(hota)
    assert [line["HOTA"] for line in found["one"]["tried"]] == pytest.approx([sum(each) / 2 for each in hota.values()])
    assert (found["one"]["split"], found["one"]["seeds"]) == ("val", [0, 1])


def test_a_failed_run_leaves_what_was_chosen_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / choosing.FILE).write_text('{"open": {"chosen": {"linker.min_score": 0.3, "model.top": 1}}}')
    monkeypatch.setattr(
        units, "units", lambda systems, seeds, *rest: [units.Unit(systems[0].name, 0, Recipe(), {}, "", "")]
    )
    monkeypatch.setattr(units, "run", lambda every, *rest: {every[-1].name: "no luck"})
    monkeypatch.setattr(scores, "score", lambda *given: {})
    assert list(choosing.choose([OPEN], [0], str, str(tmp_path), Local()).values()) == ["no luck"]
    assert choosing.read(str(tmp_path))["open"]["chosen"] == {"linker.min_score": 0.3, "model.top": 1}


def test_the_settings_of_this_folder_come_before_those_that_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing.results, "KEPT", tmp_path / "kept")
    out = tmp_path / "out"
    for folder, score in ((tmp_path / "kept", 0.3), (out, 0.5)):
        folder.mkdir()
        about = {"open": {"chosen": {"linker.min_score": score, "model.top": 2}}}
        (folder / choosing.FILE).write_text(json.dumps(about))
    values, where = choosing.chosen(ALL, ALL, str(out))
    assert values == {name: {"linker.min_score": 0.5, "model.top": 2} for name in ("open", "like")}
    assert where == f"{out}/{choosing.FILE}"
    (out / choosing.FILE).unlink()
    values, where = choosing.chosen({"like": LIKE}, ALL, str(out))
    assert values == {"like": {"linker.min_score": 0.3, "model.top": 2}}
    assert where == f"{tmp_path}/kept/{choosing.FILE}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not what trackloom benchmark papers --choose wrote"),
        ("[]", "is not what trackloom benchmark papers --choose wrote"),
        ('{"open": {}}', "is not what trackloom benchmark papers --choose wrote"),
        ("{}", "no settings are chosen for system open yet; --choose does it, on val"),
        ('{"open": {"chosen": {"linker.min_score": 0.4, "model.top": 1}}}', "has for system open none of its choices"),
    ],
)
def test_what_is_no_choice_is_refused(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / choosing.FILE).write_text(content)
    with pytest.raises(ValueError, match=re.escape(said)):
        choosing.chosen({"like": LIKE}, ALL, str(tmp_path))
