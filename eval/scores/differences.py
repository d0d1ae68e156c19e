"""B minus A, and its distribution over draws of their items."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

from eval.scores.equivalence import CONFIDENCE, Finding, Flips, finding, pairs_needed
from eval.scores.statistics import ROUNDING, Interval, flip_test, percentile_interval, unanimous_interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """B minus A, in one benchmark or average.

    Attributes:
        a, b: the scores, over the items that both have a verdict on.
        interval: of the difference; None for fewer than two items, which say nothing of their spread. Where all items
            differ alike, or none does, the bound of ``unanimous_interval``.
        p_value: of the difference, None likewise.
        items: those with both verdicts.
        missing: those without.
        finding: what its 90% interval says of the margin; None without an interval.
        flips: of verdicts that are 0 or 1 in a single benchmark.
        needed: items that would show a difference as large as the margin, of a mean of benchmarks in the same shares;
            None where no item differs.
    """

    a: float
    b: float
    interval: Interval | None
    p_value: float | None
    items: int
    missing: int
    finding: Finding | None = None
    flips: Flips | None = None
    needed: int | None = None

    @property
    def value(self) -> float:
        return self.b - self.a


@dataclass(frozen=True)
class Drawn:
    """A difference with the distributions that its interval and its p-value come from.

    Attributes:
        smallest: items, or categories where these are drawn, of the benchmark that has the fewest.
        lower_is_better: an increase is a loss.
        bounded: of shares; a loss has no bound that items which all differ alike could leave.
        exact: the flips whose exact test gives p.
    """

    a: float
    b: float
    bootstrap: "Array"
    flipped: "Array"
    items: int
    smallest: int
    missing: int
    lower_is_better: bool
    bounded: bool
    flips: Flips | None = None
    exact: bool = False

    def difference(self, margin: float) -> Difference:
        if self.smallest < 2:
            return Difference(self.a, self.b, None, None, self.items, self.missing, flips=self.flips)
        p_value = self.flips.p if self.flips and self.exact else flip_test(self.b - self.a, self.flipped)
        found = finding(self._interval(CONFIDENCE), margin, self.lower_is_better)
        spread = float(self.bootstrap.var())
        needed = pairs_needed(self.items * spread, margin) if spread > ROUNDING**2 else None
        interval = self._interval(0.95)
        return Difference(self.a, self.b, interval, p_value, self.items, self.missing, found, self.flips, needed)

    def _interval(self, confidence: float) -> Interval:
        interval = percentile_interval(self.bootstrap, confidence)
        if self.bounded and interval.high - interval.low < ROUNDING:
            return unanimous_interval(self.b - self.a, self.smallest, -1.0, 1.0, confidence)
        return interval


def mean_of(members: Sequence[Drawn]) -> Drawn:
    """The mean of several benchmarks, whose draws go together."""
    import numpy as np

    return Drawn(
        a=fmean(member.a for member in members),
        b=fmean(member.b for member in members),
        bootstrap=np.mean([member.bootstrap for member in members], axis=0),
        flipped=np.mean([member.flipped for member in members], axis=0),
        items=sum(member.items for member in members),
        smallest=min(member.smallest for member in members),
        missing=sum(member.missing for member in members),
        lower_is_better=members[0].lower_is_better,
        bounded=all(member.bounded for member in members),
    )
