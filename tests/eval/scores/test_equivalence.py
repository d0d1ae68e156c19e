"""What a difference within a margin may be called, and how many items settle it."""

import pytest
from scipy import stats

from eval.scores.equivalence import Flips, finding, pairs_needed
from eval.scores.statistics import Interval


@pytest.mark.parametrize(("up", "down"), [(0, 0), (3, 3), (1, 0), (0, 9), (2, 6), (40, 61), (900, 1100)])
def test_mcnemar_agrees_with_scipy(up: int, down: int) -> None:
    expected = stats.binomtest(up, up + down).pvalue if up + down else 1.0
    assert Flips(up, down).p == pytest.approx(expected)


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (-0.01, 0.01, "unchanged"),
        (-0.019, 0.019, "unchanged"),
        (-0.01, 0.03, "not worse"),
        (0.03, 0.05, "not worse"),
        (-0.05, -0.03, "worse"),
        (-0.03, 0.01, "undecided"),
        (-0.03, -0.01, "undecided"),
        # The margin itself is a loss.
        (-0.02, 0.0, "undecided"),
    ],
)
def test_what_an_interval_says_of_a_margin_of_two_points(low: float, high: float, found: str) -> None:
    assert finding(Interval(low, high), 0.02, lower_is_better=False) == found
    assert finding(Interval(-high, -low), 0.02, lower_is_better=True) == found


def test_the_pairs_needed_find_the_margin_four_times_in_five() -> None:
    n = pairs_needed(variance=0.25, margin=0.1)
    noncentrality = 0.1 / (0.25 / n) ** 0.5
    assert stats.norm.sf(1.96 - noncentrality) == pytest.approx(0.8, abs=0.01)
    assert pairs_needed(variance=1e-9, margin=0.1) == 2


@pytest.mark.parametrize("spread", [0.5, 1, 2, 5])
def test_the_pairs_needed_are_those_of_a_t_test_of_few(spread: float) -> None:
    """The power of the two-sided test by the noncentral t distribution: enough, and not with one pair less."""
    n = pairs_needed(variance=spread**2, margin=2)
    power = {
        pairs: stats.nct.sf(stats.t.isf(0.025, pairs - 1), pairs - 1, 2 * pairs**0.5 / spread) for pairs in (n, n - 1)
    }
    assert power[n] >= 0.8 > (power[n - 1] if n > 2 else 0)
