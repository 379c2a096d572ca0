"""What the page of the papers' claims shows, read back from its HTML and SVG."""

from __future__ import annotations

import math
import re
from html import unescape
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest

from jobs.claims import figures, forest
from jobs.claims.forest import Axis, Line, axis_of
from jobs.claims.page import cell, plots, render, tables

PAPERS = ("smot", "detect_to_track")


def row(name: str, difference: float | None = 0.03, interval: Any = (0.01, 0.05), **others: Any) -> dict[str, Any]:
    """An object of papers.json: by default better is 3 points of mAP ahead, which holds."""
    return {
        "paper": "smot", "name": name, "claim": f"the claim {name}", "better": "one", "worse": "other",
        "metric": "mAP", "subset": "all", "beyond": "", "margin": 0.0, "near": False, "factor": 1.0,
        "source": "Table 1", "expected": True, "difference": difference, "interval": list(interval),
        "better_value": 0.5, "worse_value": 0.47, "holds": "holds", "seeds": [0, 1, 2], "videos": 48,
        "machine": "2 cores", "commit": "c0ffee", "date": "2026-11-22", **others,
    }  # fmt: skip


def tree(svg: str) -> ElementTree.Element:
    """A picture's elements."""
    return ElementTree.fromstring(svg)


def at(element: ElementTree.Element, name: str = "x") -> float:
    """A place in percent of the width."""
    assert element.attrib[name].endswith("%")
    return float(element.attrib[name].rstrip("%"))


def named(svg: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    """The elements of a class."""
    return [element for element in svg.iter() if element.get("class") == name]


def numbers(scale: str) -> dict[float, float]:
    """The axis's numbers and where they stand."""
    ticks = [text for text in tree(scale).iter("text") if text.get("text-anchor") == "middle"]
    return {float(str(text.text).replace("−", "-").split()[0]): at(text) for text in ticks}


class TestAxis:
    def test_points_and_intervals_lie_where_its_numbers_say(self) -> None:
        [plot] = plots([row("a"), row("b", -0.02, (-0.04, 0.01), holds="undecided")])
        places = numbers(plot.scale)
        per_point = (places[4] - places[0]) / 4
        for claim, (low, point, high) in zip(plot.claims, [(1, 3, 5), (-4, -2, 1)], strict=True):
            svg = tree(claim.picture)
            [interval], [mark], ends = named(svg, "interval"), named(svg, "mark"), named(svg, "end")
            drawn = [at(interval, "x1"), at(mark), at(interval, "x2"), at(named(svg, "zero")[0], "x1")]
            wanted = [places[0] + value * per_point for value in (low, point, high, 0)]
            assert drawn == pytest.approx(wanted, abs=0.02)
            assert [at(end) for end in ends] == [at(interval, "x1"), at(interval, "x2")]

    @pytest.mark.parametrize(
        ("lines", "low", "high"),
        [
            ([], -1, 1),
            ([(math.nan, math.nan, math.nan)], -1, 1),
            ([(0.0, 0.0, 0.0)], -1, 1),
            ([(3.0, 1.0, 5.0)], -0.5, 5),  # 0 has some room on both sides
            ([(3.0, 1.0, 5.0), (-2.0, -4.0, 1.0)], -4, 5),
            ([(1.0, 0.5, 2.0), (1.0, 0.5, 2.0), (-90.0, -99.0, 70.0)], -8, 8),  # four times the middle one
        ],
    )
    def test_it_holds_all_claims_but_outliers(
        self, lines: list[tuple[float, float, float]], low: float, high: float
    ) -> None:
        axis = axis_of([Line(*line, "undecided", "") for line in lines])
        assert (axis.low, axis.high) == pytest.approx((low, high))
        assert 0 in axis.ticks
        assert len(axis.ticks) <= 7
        assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
        assert 4 <= axis.place(axis.low) < axis.place(0) < axis.place(axis.high) <= 96

    def test_an_axis_holds_what_claims_allow(self) -> None:
        axis = axis_of([Line(1, 0.5, 1.5, "holds", "", (-3, 3))])
        assert axis.holds(-3)
        assert axis.holds(3)

    @pytest.mark.parametrize("power", range(-4, 5))
    def test_ticks_are_round_and_neither_few_nor_many(self, power: int) -> None:
        for high in (1.0, 1.3, 2.1, 3.4, 4.9, 7.0, 9.99):
            axis = axis_of([Line(0, -(10.0**power), high * 10.0**power, "holds", "")])
            assert 3 <= len(axis.ticks) <= 7
            [step] = {f"{after - before:.6e}" for before, after in pairwise(axis.ticks)}
            assert float(step[:8]) in (1, 2, 2.5, 5)

    @pytest.mark.parametrize(
        ("line", "arrows"),
        [
            ((0.0, -1.0, 1.0), []),
            ((0.0, -20.0, 1.0), ["left"]),
            ((0.0, -20.0, 20.0), ["left", "right"]),
            ((30.0, 20.0, 40.0), ["right"]),  # no point and no end within: the arrow alone says where it went
            ((30.0, math.nan, math.nan), ["right"]),
        ],
    )
    def test_what_goes_on_beyond_it_is_an_arrow(self, line: tuple[float, float, float], arrows: list[str]) -> None:
        axis = Axis(-10.0, 10.0, (0.0,))
        drawn = Line(*line, "undecided", "")
        svg = tree(forest.picture(drawn, axis))
        places = [at(arrow) for arrow in named(svg, "beyond")]
        assert places == [{"left": axis.place(-10), "right": axis.place(10)}[side] for side in arrows]
        assert len(named(svg, "mark")) == (abs(line[0]) <= 10)
        assert len(named(svg, "end")) == sum(abs(end) <= 10 for end in line[1:])
        assert forest.is_cut(drawn, axis) == bool(arrows)

    @pytest.mark.parametrize(("near", "ends"), [(False, (-2, 0)), (True, (-2, 2))])
    def test_what_a_claim_allows_is_shaded(self, near: bool, ends: tuple[float, float]) -> None:
        [plot] = plots([row("a", margin=0.02, near=near)])
        places = numbers(plot.scale)
        per_point = (places[4] - places[0]) / 4
        [band] = named(tree(plot.claims[0].picture), "allowed")
        assert at(band) == pytest.approx(places[0] + ends[0] * per_point, abs=0.02)
        assert at(band, "width") == pytest.approx((ends[1] - ends[0]) * per_point, abs=0.02)
        assert plot.has_allowed
        [plain] = plots([row("b")])
        assert not named(tree(plain.claims[0].picture), "allowed")
        assert not plain.has_allowed


class TestClaims:
    @pytest.fixture
    def rows(self) -> list[dict[str, Any]]:
        metrics = ("mAP", "num_switches", "ms", "stability_error", "IDF1")
        verdicts = ("holds", "fails", "undecided")
        return [
            row(f"c{n}", paper=PAPERS[n % 2], metric=metrics[n % 5], holds=verdicts[n % 3], expected=n % 4 > 0)
            for n in range(20)
        ]

    def test_every_claim_is_there_once_with_its_figures(self, rows: list[dict[str, Any]]) -> None:
        page = render(rows)
        assert sorted(re.findall(r'data-claim="([^"]+)"', page)) == sorted(given["name"] for given in rows)
        for item in re.findall(r'<li class="claim.*?</li>', page, re.DOTALL):
            [name] = re.findall(r'data-claim="([^"]+)"', item)
            [given] = [given for given in rows if given["name"] == name]
            assert given["claim"] in item
            assert len(tree(re.findall(r'<svg class="\w+" role.*</svg></div>', item)[0].removesuffix("</div>"))) > 3
            assert f"<span>{figures.difference(given)}</span>" in item
            assert figures.ends(given) in item
            assert f"<strong>{given['holds']}</strong>" in item
            assert ("not expected" in item) == (not given["expected"])

    def test_claims_share_an_axis_with_those_of_their_paper_and_kind_only(self, rows: list[dict[str, Any]]) -> None:
        page = render(rows)
        sections = {stem: page.split(f'<section id="{stem}">')[1].split("</section>")[0] for stem in PAPERS}
        for stem, section in sections.items():
            some = [given for given in rows if given["paper"] == stem]
            titles = dict.fromkeys(figures.kind(given["metric"]).title for given in some)
            assert re.findall("<h3>([^<]+)</h3>", section) == [k.title for k in figures.KINDS if k.title in titles]
            assert section.count('class="scale"') == len(titles)
            assert section.count('class="claim ') == len(some)
        assert page.index('id="detect_to_track"') < page.index('id="smot"')  # as recipes are listed

    def test_claims_are_counted_as_they_fell(self, rows: list[dict[str, Any]]) -> None:
        found = dict(re.findall(r'data-count="(\w+)">(\d+)<', render(rows)))
        assert found == {"claims": "20", "holds": "7", "fails": "7", "undecided": "6"}

    def test_verdicts_differ_in_shape_and_not_in_colour_alone(self) -> None:
        [plot] = plots([row(verdict, holds=verdict) for verdict in figures.VERDICTS])
        marks = [named(tree(claim.picture), "mark")[0] for claim in plot.claims]
        shapes = ["".join(ElementTree.tostring(part, encoding="unicode") for part in mark) for mark in marks]
        assert len(set(shapes)) == 3
        assert [mark[0].tag for mark in marks] == ["circle", "path", "circle"]
        page = render([row("a")])
        assert ".undecided .mark { fill: var(--card); }" in page  # hollow, beside the full one of "holds"
        assert len(set(figures.SHAPES.values())) == 3

    def test_each_picture_says_in_words_what_it_shows(self) -> None:
        [plot] = plots([row("a", holds="fails")])
        title = tree(plot.claims[0].picture).findtext("title")
        assert title == "Difference +3.0 points, 95% interval [+1.0, +5.0]: fails"

    def test_no_value_is_said(self) -> None:
        nothing = row("a", None, (None, None), better_value=None, worse_value=None, holds="undecided")
        for rows in ([nothing], [nothing, row("b")]):
            page = render(rows)
            item = page.split('data-claim="a"')[1].split("</li>")[0]
            assert ">no value</text>" in item
            assert "one no value" in item
            assert 'class="mark"' not in item.split("<title>")[1].split("</svg></div>")[0]
            assert "1 of the claims has no value" in page
            assert "nan" not in re.sub("<style>.*?</style>", "", page, flags=re.DOTALL).lower().split()
        assert "no value" not in render([row("b")])

    def test_what_is_compared_is_said(self) -> None:
        costs = row("a", metric="ms", factor=0.25, better_value=1.5, worse_value=8.0, source="")
        beyond = row("b", subset="fast", beyond="slow")
        page = unescape(re.sub("<[^>]+>", "", render([costs, beyond, row("c", margin=0.01, near=True)])))
        assert "ms a frame: one 1.50 against 0.25 × other 8.00" in page
        assert "mAP, fast more than slow: one 50.0 against other 47.0 · Table 1" in page
        assert "mAP, within 1.0 points: one" in page

    def test_text_is_escaped(self) -> None:
        page = render([row("a", claim="<b>1 & 2</b>", better="<i>", machine="<u>", source="<s>")])
        assert not {"<b>1", "<i>", "<u>", "<s>"} & set(re.findall(r"<[^>]+>1?", page))
        assert "&lt;b&gt;1 &amp; 2&lt;/b&gt;" in page

    def test_it_needs_no_network_and_suits_the_dark(self) -> None:
        page = render([row("a")])
        assert not re.findall(r'(?:src|href)="(?!data:|#)', page)
        assert "prefers-color-scheme: dark" in page

    def test_without_claims_there_is_a_page_all_the_same(self) -> None:
        assert 'data-count="claims">0<' in render([])


class TestScores:
    def test_cells_hold_mean_spread_and_each_seed(self) -> None:
        found = cell("mAP", [0.5, 0.6, 0.7])
        assert (found.mean, found.spread, found.each) == ("60.0", "10.0", "50.0, 60.0, 70.0")
        assert found.number == pytest.approx(0.6)
        assert cell("num_switches", [3.0]).spread == ""
        assert cell("mAP", [None, 0.5, math.nan]).each == "no value, 50.0, no value"
        assert cell("mAP", [None, 0.5, math.nan]).mean == "50.0"
        assert cell("mAP", [None]).number is None

    def test_a_table_a_subset_a_row_a_system(self) -> None:
        scores = {
            "one": {"all": {"mAP": [0.5], "ms": [1.0]}, "fast": {"mAP": [0.4]}},
            "other": {"all": {"mAP": [0.3]}},
        }
        whole, fast = tables(scores)
        assert (whole.subset, fast.subset) == ("all", "fast")
        assert whole.metrics == {"mAP": "mAP", "ms": "ms a frame"}
        assert [None if found is None else found.mean for found in whole.rows["other"]] == ["30.0", None]
        assert list(fast.rows) == ["one"]
        page = render([row("a")], scores)
        assert re.findall(r'data-subset="(\w+)"', page) == ["all", "fast"]
        assert page.count('data-value="0.5"') == 1
