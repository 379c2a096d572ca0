"""The papers' claims on a terminal and in the README."""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs.claims import figures, results
from jobs.claims.tables import BEGIN, END, WIDE, block_of, readme, show, with_block

ROOT = Path(__file__).resolve().parents[3]


def row(name: str, **others: Any) -> dict[str, Any]:
    """An object of papers.json."""
    return {
        "paper": "smot", "name": name, "claim": f"it is so that {name} is better than what was there before it",
        "better": "one", "worse": "other-with-a-long-name-of-more-than-forty-letters", "metric": "mAP",
        "subset": "lookalike_crossing", "beyond": "", "margin": 0.0, "near": False, "factor": 1.0, "source": "Table 1",
        "expected": True, "difference": 0.031, "interval": [0.012, 0.049], "better_value": 0.521,
        "worse_value": 0.49, "holds": "holds", "seeds": [0, 1, 2], "videos": 48, "machine": "2 cores",
        "commit": "c0ffee", "date": "2026-11-22", **others,
    }  # fmt: skip


ROWS = [
    row("a"),
    row("b", paper="retinatrack", metric="num_switches", difference=-1234.5, interval=[-2345.6, 0], holds="undecided"),
    row("c", difference=None, interval=[None, None], better_value=None, worse_value=None, holds="undecided"),
    row("d", metric="ms", difference=-0.1234, interval=[-0.2, -0.1], better_value=1.5, holds="fails", expected=False),
]


def shown(rows: list[dict[str, Any]], width: int) -> str:
    """What is printed on a terminal of so many columns."""
    stream = io.StringIO()
    show(rows, Console(file=stream, width=width, color_system=None))
    return stream.getvalue()


class TestTerminal:
    @pytest.mark.parametrize("width", [32, 40, WIDE - 1, WIDE, 120, 200])
    def test_every_figure_is_whole_on_one_line(self, width: int) -> None:
        text = shown(ROWS, width)
        lines = text.splitlines()
        assert max(map(len, lines)) <= width
        for figure in (
            *("+3.1 points", "[+1.2, +4.9]", "−1,234.5", "[−2,345.6, +0.0]", "no value", "−0.12 ms", "[−0.20, −0.10]"),
            *("52.1", "49.0", "1.50", "● holds", "✕ fails", "○ undecided"),
        ):
            assert any(figure in line for line in lines), figure
        assert "…" not in text

    def test_no_claims_are_said_to_be_none(self) -> None:
        assert shown([], 80) == "No claim is about these systems alone; papers.html has their scores.\n"

    @pytest.mark.parametrize("width", [40, 120])
    def test_every_claim_is_there_once_below_its_paper(self, width: int) -> None:
        text = re.sub(r"\s+", " ", shown(ROWS, width))
        assert all(text.count(f"that {name} is") == 1 for name in "abcd")
        below = text.split("(smot)")
        assert "that b is" in below[0]
        assert [name for name in "abcd" if f"that {name} is" in below[1]] == ["a", "c", "d"]
        assert text.count("not expected at this size") == 1
        assert "4 claims: 1 holds, 1 fails, 2 undecided. Training seeds 0, 1, 2; 48 videos; commit c0ffee" in text


class TestFigures:
    @pytest.mark.parametrize(
        ("metric", "of", "text"),
        [
            ("mAP", 0.0312, "+3.1"),
            ("MOTA", -0.0004, "−0.0"),  # which side of 0 it is on
            ("num_transfer", 12.34, "+12.3"),
            ("stability_error", -0.0126, "−0.013"),
            ("fragment_error_fast", 0.5, "+0.500"),
            ("ms", 1.005e3, "+1,005.00"),
            ("mAP", math.nan, "no value"),
        ],
    )
    def test_differences_have_the_scale_of_their_kind(self, metric: str, of: float, text: str) -> None:
        assert figures.signed(metric, of) == text

    def test_what_differs_between_claims_is_all_said(self) -> None:
        made = figures.made([row("a"), row("b", commit=None), row("c", seeds=[0], commit="beef, c0ffee")])
        assert (made["seeds"], made["commit"], made["videos"]) == ("0, 1, 2; 0", "c0ffee, unknown, beef", "48")


class TestReadme:
    def test_it_is_a_table_with_every_claim(self) -> None:
        lines = readme(ROWS).splitlines()
        assert (lines[0], lines[-1]) == (BEGIN, END)
        table = [line for line in lines if line.startswith("|")]
        assert len(table) == 2 * 2 + len(ROWS)  # the two papers' heads, claims
        assert {line.count("|") for line in table} == {5}
        summaries = [line for line in lines if line.startswith("<details><summary>")]
        assert len(summaries) == lines.count("</details>") == 2
        assert all(re.search(r"</b>: \d+ claims?: ", line) for line in summaries)
        assert sum("● holds" in line for line in table) == 1
        assert sum("| no value | no value |" in line for line in table) == 1
        late = r"\| ✕ fails \| .* \(ms a frame, .*not expected.*\) \| −0.12 ms \| \[−0.20, −0.10\] \|"
        assert sum(bool(re.search(late, line)) for line in table) == 1

    def test_what_markdown_would_read_is_escaped(self) -> None:
        [line] = [
            line for line in readme([row("a", claim="RetinaNet* <b>|a_b` [c]")]).splitlines() if "holds |" in line
        ]
        assert r"RetinaNet\* &lt;b>\|a\_b\` \[c\]" in line

    def test_a_block_is_found_and_written_anew(self) -> None:
        before = f"# Head\n\n{readme(ROWS[:1])}\n\n## Foot\n"
        after = with_block(before, ROWS)
        assert block_of(before) == readme(ROWS[:1])
        assert block_of(after) == readme(ROWS)
        assert after.replace(readme(ROWS), "") == "# Head\n\n\n\n## Foot\n"
        assert block_of("# Head\n") is None
        with pytest.raises(ValueError, match="no block of claims"):
            with_block("# Head\n", ROWS)

    def test_the_readme_here_has_what_the_committed_claims_give(self) -> None:
        wanted = readme(results.read_claims()) if (results.KEPT / results.CLAIMS).exists() else None
        assert block_of((ROOT / "README.md").read_text()) == wanted
