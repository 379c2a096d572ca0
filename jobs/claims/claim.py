"""A claim: that one system scores better than another; and its verdict, from a paired bootstrap.

The difference is of means over seeds, so turned that it is positive where the claim holds. The interval is what 95% of
resamplings of the test videos and of the seeds give, the same for both systems.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SMALLER_IS_BETTER = frozenset(
    {"num_switches", "num_transfer", "fragment_error", "center_error", "aspect_error", "stability_error", "ms"}
)
Verdict = Literal["holds", "fails", "undecided"]


@dataclass(frozen=True)
class Claim:
    """name: its own, short; text: what is claimed, in a sentence's length. better, worse: names of systems.

    metric: of `scoring.METRICS`, or "ms": what the network takes a frame. subset: of `pipeline.subsets.SUBSETS`.
    beyond: another subset; then the claim is that better is ahead of worse by more in `subset` than in `beyond`.
    margin: how far better may fall behind and the claim still hold: 0 for "better"; with `near` both must be as near.
    factor: what worse's value is multiplied by first, for costs ("less than a third of": 1/3).
    source: where the paper says it, as "Table 2". expected: whether the paper's finding should show at this size too;
    False where it is known to be fragile.
    """

    paper: str
    name: str
    text: str
    better: str
    worse: str
    metric: str
    subset: str = "all"
    beyond: str = ""
    margin: float = 0.0
    near: bool = False
    factor: float = 1.0
    source: str = ""
    expected: bool = True

    @property
    def sign(self) -> int:
        """-1 where smaller values are better."""
        return -1 if self.metric in SMALLER_IS_BETTER else 1

    def verdict(self, low: float, high: float) -> Verdict:
        """From the interval of the difference: what lies wholly on one side of what is allowed is decided."""
        if self.near:
            if -self.margin <= low and high <= self.margin:
                return "holds"
            return "fails" if high < -self.margin or low > self.margin else "undecided"
        if low > -self.margin:
            return "holds"
        return "fails" if high < -self.margin else "undecided"


@dataclass(frozen=True)
class Judged:
    """How a claim fell. better, worse: the two values, means over seeds of all videos; nan where they have none.

    difference: see above; low, high: of its interval. seeds: of the trainings. num_videos: that were resampled.
    """

    claim: Claim
    better: float
    worse: float
    difference: float
    low: float
    high: float
    seeds: tuple[int, ...]
    num_videos: int

    @property
    def verdict(self) -> Verdict:
        """Whether it holds here."""
        return self.claim.verdict(self.low, self.high)
