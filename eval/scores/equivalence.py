"""Tests of "unchanged": a difference within a stated margin, exact tests of flips, and the number of items needed."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil, comb
from statistics import NormalDist
from typing import Literal

from eval.scores.statistics import Interval

# Of scores between 0 and 1: two points [ours].
MARGIN = 0.02
# The interval whose place within the margin is a pair of one-sided tests at 5% (TOST, Schuirmann 1987).
CONFIDENCE = 0.90
POWER = 0.8

Finding = Literal["unchanged", "not worse", "worse", "undecided"]


@dataclass(frozen=True)
class Flips:
    """Items of a yes-or-no verdict that differ between two sides.

    Attributes:
        up: those with 0 on the first side and 1 on the second.
        down: the others.
    """

    up: int
    down: int

    @property
    def p(self) -> float:
        """McNemar's exact two-sided p: both kinds of flips are equally likely where the sides do not differ."""
        total = self.up + self.down
        tail = sum(comb(total, k) for k in range(min(self.up, self.down) + 1))
        return min(1.0, 2 * tail / (1 << total))


def finding(interval: Interval, margin: float, lower_is_better: bool) -> Finding:
    """The claim about a margin that the 90% interval of a difference supports.

    Args:
        interval: of the second side less the first.
        lower_is_better: an increase is a loss.

    Returns:
        unchanged: the difference lies within the margin (TOST at 5%); not worse: any loss is smaller than the margin (a
        one-sided test at 5%); worse: a loss that is larger than the margin; undecided: none of these is shown.
    """
    low, high = (-interval.high, -interval.low) if lower_is_better else (interval.low, interval.high)
    if low > -margin:
        return "unchanged" if high < margin else "not worse"
    return "worse" if high < -margin else "undecided"


def pairs_needed(variance: float, margin: float, power: float = POWER, alpha: float = 0.05) -> int:
    """Pairs with which a two-sided test at ``alpha`` finds a true difference of ``margin`` with probability ``power``.

    The least n that is at least ``(t(1 - alpha / 2) + t(power))² variance / margin²``, with Student's quantiles of
    n - 1 degrees of freedom.

    Args:
        variance: of a pair's difference.
    """
    from scipy.special import stdtrit  # Student's t quantile, without the second that scipy.stats takes to load

    def needed(quantile: Callable[[float], float]) -> float:
        return (quantile(1 - alpha / 2) + quantile(power)) ** 2 * variance / margin**2

    # With the normal distribution's quantiles it is a few too small.
    pairs = max(2, ceil(needed(NormalDist().inv_cdf)))
    while pairs < needed(partial(stdtrit, pairs - 1)):
        pairs += 1
    return pairs
