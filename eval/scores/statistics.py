"""The statistics of scores: intervals over seeds and over items, paired comparison, average gain, Pareto front.

Everything that draws is seeded. What is missing is NaN in an array and is never counted as a value.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist, fmean, mean, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Indices = NDArray[np.intp]

Point = tuple[float, float]
RESAMPLES = 10_000
# Numbers drawn at a time, so that a benchmark of many items needs no more memory than one of few.
DRAWN_AT_ONCE = 4_000_000
# Means that are equal, of seeds or of resamples, differ by less, summed in another order.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Summary:
    """A mean over seeds.

    Attributes:
        n: number of seeds.
        mean: their arithmetic mean, in the unit of the values.
        half_width: half the confidence interval, so that it is ``mean ± half_width``; None for one seed.
    """

    n: int
    mean: float
    half_width: float | None


def summarize(values: Sequence[float], confidence: float = 0.95) -> Summary:
    """Mean and Student's t interval (n - 1 degrees of freedom) of independent values, one per seed.

    The interval is not cut at the ends of the values' range.

    Raises:
        ValueError: no value is given.
    """
    if not values:
        raise ValueError("a mean needs at least one value")
    if len(values) == 1:
        return Summary(1, values[0], None)
    from scipy.special import stdtrit  # Student's t quantile, without the second that scipy.stats takes to load

    quantile = float(stdtrit(len(values) - 1, (1 + confidence) / 2))
    # mean is exact where fmean rounds: equal seeds must tie with an equal base, not miss it by the last bit.
    return Summary(len(values), mean(values), quantile * stdev(values) / sqrt(len(values)))


def pareto_front(points: Sequence[Point]) -> list[bool]:
    """Which points no other point dominates, both coordinates being maximised.

    One point dominates another if it is at least as good in both coordinates and better in one. Equal
    points do not dominate each other: duplicates are on the front together or not at all. Of two points
    that tie in one coordinate, only the better in the other can be on it.

    Returns:
        One flag per point, in the order of ``points``.
    """
    return [not any(_dominates(other, point) for other in points) for point in points]


def _dominates(one: Point, other: Point) -> bool:
    return one[0] >= other[0] and one[1] >= other[1] and one != other


def hypervolume(points: Sequence[Point]) -> float:
    """Area that ``points`` dominate above the reference point (0, 0), both coordinates being maximised.

    The area of the union of the rectangles between the reference point and each point: dominated points
    and duplicates add nothing, and neither does a point with a coordinate of at most 0. No points: 0. For points in
    the unit square: between 0 and 1.
    """
    area = height = 0.0
    # From right to left, each point adds the strip by which it rises above all points to its right.
    for x, y in sorted(points, reverse=True):
        if x > 0 and y > height:
            area += x * (y - height)
            height = y
    return area


@dataclass(frozen=True)
class Interval:
    """A 95% interval, or one of another confidence, in the unit of the values."""

    low: float
    high: float


def wilson(value: float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a share ``value`` of ``n`` items.

    Unlike ``value ± 1.96 stderr`` it has a width where all items agree, and stays within [0, 1]. For grades
    within [0, 1] it is on the safe side: their variance is at most that of a share with the same mean.

    Raises:
        ValueError: ``n`` is not positive.
    """
    if n < 1:
        raise ValueError("an interval needs at least one item")
    quantile = NormalDist().inv_cdf((1 + confidence) / 2)
    weight = quantile**2 / n
    centre = (value + weight / 2) / (1 + weight)
    half_width = quantile * sqrt(value * (1 - value) / n + weight / (4 * n)) / (1 + weight)
    # Where all items agree, the end that is theirs is missed by the last bit.
    return Interval(min(value, max(0.0, centre - half_width)), max(value, min(1.0, centre + half_width)))


def clustered_error(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Standard error of the mean of items that come in clusters, whose items may be alike (arXiv 2411.00640, eq. 4).

    Where every item is a cluster of its own this is the usual error, but for n in place of n - 1.
    """
    centre = fmean(values)
    sums: dict[Hashable, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value - centre
    return sqrt(sum(total**2 for total in sums.values())) / len(values)


def normal_interval(value: float, stderr: float, confidence: float = 0.95, top: float = 1.0) -> Interval:
    """The interval of a score from its standard error, cut at 0 and ``top``."""
    half_width = NormalDist().inv_cdf((1 + confidence) / 2) * stderr
    return Interval(max(0.0, value - half_width), min(top, value + half_width))


def p_text(value: float | None) -> str:
    """A p to three digits; a dash where there is none."""
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def unanimous_interval(value: float, n: int, low: float = 0.0, high: float = 1.0, confidence: float = 0.95) -> Interval:
    """An interval of a mean whose ``n`` items all agree, so that no resampling gives it a width.

    The share of items that would not agree is at most Wilson's upper end for 0 of ``n``; theirs may be anything from
    ``low`` to ``high``. With a ``value`` of 0 or 1 between 0 and 1 this is Wilson's interval. For a mean of several
    benchmarks, each of which agrees in itself, it holds with the ``n`` of the smallest.

    Raises:
        ValueError: ``n`` is not positive.
    """
    share = wilson(0.0, n, confidence).high
    return Interval(value - share * (value - low), value + share * (high - value))


def percentile_interval(samples: "Array", confidence: float = 0.95) -> Interval:
    """The middle of a bootstrap distribution; resamples without a value (NaN) are left out.

    Raises:
        ValueError: no resample has a value.
    """
    import numpy as np

    known = samples[~np.isnan(samples)]
    if not known.size:
        raise ValueError("no resample has a value")
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def resampled_means(
    values: "Array", resamples: int = RESAMPLES, seed: Sequence[int] = (0,), clusters: "Indices | None" = None
) -> "Array":
    """Bootstrap: each row's mean over items drawn with replacement, the same items for all rows.

    The common draw is what pairs the rows: the spread of a difference of two rows is that of paired items. With
    the same seed two calls on as many items draw the same ones.

    Args:
        values: shape (rows, items), one item at least; NaN where an item has no value, which leaves it out.
        clusters: each item's cluster, from 0; clusters are then drawn whole, and a mean is still one over items.

    Returns:
        Shape (rows, resamples); NaN where a draw holds no item with a value.
    """
    import numpy as np

    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    items = values.shape[1]
    means = np.empty((len(values), resamples))
    for part, counts in _drawn(_item_counts, items, resamples, seed, clusters):
        with np.errstate(invalid="ignore"):
            fixed = known.all() and clusters is None
            means[:, part] = (filled @ counts.T) / (items if fixed else known.astype(float) @ counts.T)
    return means


def flipped_means(
    differences: "Array", resamples: int = RESAMPLES, seed: Sequence[int] = (0,), clusters: "Indices | None" = None
) -> "Array":
    """The mean of paired differences, shape (items,), with the sign of each drawn at random.

    If the two sides do not differ, either sign of an item's difference is as likely: this is the distribution
    that the mean then has. With the same seed two calls on as many items draw the same signs.

    Args:
        clusters: as for ``resampled_means``; one sign is drawn for each cluster.

    Returns:
        Shape (resamples,).
    """
    import numpy as np

    means = np.empty(resamples)
    for part, signs in _drawn(_signs, len(differences), resamples, seed, clusters):
        means[part] = signs @ differences / len(differences)
    return means


def flip_test(difference: float, flipped: "Array") -> float:
    """Two-sided p-value of a mean difference against its sign flips.

    At least ``1 / (resamples + 1)``, since what was found is one of the possible outcomes.
    """
    import numpy as np

    # Sums in another order differ by rounding.
    as_extreme = np.count_nonzero(np.abs(flipped) >= abs(difference) - 1e-12)
    return float((as_extreme + 1) / (len(flipped) + 1))


def _drawn(
    draw: "Callable[[np.random.Generator, int, int], Array]", items: int, resamples: int, seed: Sequence[int],
    clusters: "Indices | None",
) -> "Iterator[tuple[slice, Array]]":  # fmt: skip
    """Weights of the items, shape (part, items), a part of the resamples at a time."""
    import numpy as np

    generator = np.random.default_rng(seed)
    step = max(1, DRAWN_AT_ONCE // items)
    for start in range(0, resamples, step):
        part = slice(start, min(start + step, resamples))
        if clusters is None:
            yield part, draw(generator, part.stop - part.start, items)
        else:
            yield part, draw(generator, part.stop - part.start, int(clusters.max()) + 1)[:, clusters]


def _item_counts(generator: "np.random.Generator", resamples: int, items: int) -> "Array":
    import numpy as np

    drawn = generator.integers(items, size=(resamples, items)) + items * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * items).reshape(resamples, items).astype(float)


def _signs(generator: "np.random.Generator", resamples: int, items: int) -> "Array":
    import numpy as np

    return 2 * generator.integers(2, size=(resamples, items), dtype=np.int8).astype(float) - 1


def balanced_score(safety: float, over_refusal: float) -> float:
    """``(safety + 1 - over_refusal) / 2``: the mean of refusing when one should and of answering when one should.

    A model that refuses everything, or nothing, scores 1/2; one that tells the two apart scores 1. All in [0, 1].
    """
    return (safety + 1 - over_refusal) / 2


@dataclass(frozen=True)
class Gain:
    """The average gain against a base.

    Attributes:
        percent: mean relative change, in percent; None where no benchmark is left.
        benchmarks: those it is the mean of.
        excluded: those on which the base scores 0, where a relative change means nothing.
    """

    percent: float | None
    benchmarks: list[str]
    excluded: list[str]


def average_gain(scores: Mapping[str, float], base: Mapping[str, float]) -> Gain:
    """The mean over benchmarks of ``(score - base) / base``, the paper's average performance gain.

    Raises:
        ValueError: the two do not name the same benchmarks.
    """
    if scores.keys() != base.keys():
        raise ValueError(f"not the same benchmarks: {', '.join(sorted(scores.keys() ^ base.keys()))}")
    included = [name for name in scores if base[name] != 0]
    changes = [100 * (scores[name] - base[name]) / base[name] for name in included]
    return Gain(fmean(changes) if changes else None, included, [name for name in scores if base[name] == 0])


def hypervolumes(points: "Array") -> "Array":
    """``hypervolume`` of every resample: ``points`` has shape (points, 2, resamples), the result (resamples,)."""
    import numpy as np

    x, y = points[:, 0], points[:, 1]
    order = np.argsort(-x, axis=0, kind="stable")
    x, y = np.take_along_axis(x, order, 0), np.take_along_axis(y, order, 0)
    height = np.maximum.accumulate(np.maximum(y, 0), axis=0)
    strips: Array = np.maximum(x, 0) * np.diff(height, axis=0, prepend=0)
    return np.asarray(strips.sum(axis=0))


def front_shares(points: "Array") -> list[float]:
    """By point, the share of the resamples in which it is on the Pareto front; ``points`` as for ``hypervolumes``."""
    import numpy as np

    shares = []
    for point in points:
        as_good = (points >= point).all(axis=1)
        better = (points > point).any(axis=1)
        shares.append(float(1 - np.mean((as_good & better).any(axis=0))))
    return shares


def resampled_seeds(values: "Array", generator: "np.random.Generator") -> "Array":
    """The mean over seeds drawn with replacement, another draw for each resample.

    Of one seed there is one draw: its own. Few seeds understate their spread, by √((n - 1)/n).

    Args:
        values: shape (seeds, …, resamples).

    Returns:
        Shape (…, resamples).
    """
    import numpy as np

    seeds, resamples = values.shape[0], values.shape[-1]
    counts = generator.multinomial(seeds, [1 / seeds] * seeds, size=resamples)
    return np.asarray(np.einsum("rs,s...r->...r", counts / seeds, values))


@dataclass(frozen=True)
class Paired:
    """A difference of paired values.

    Attributes:
        difference: its mean and t interval.
        p: two-sided paired t-test; None for one pair, and where all differ by the same amount: no spread, no test.
        narrow: the 90% t interval, None likewise.
        variance: of a pair's difference, None likewise.
    """

    difference: Summary
    p: float | None
    narrow: Interval | None = None
    variance: float | None = None


def paired_t(ours: Sequence[float], theirs: Sequence[float]) -> Paired:
    """Difference of ``ours`` and ``theirs``, pair by pair.

    Raises:
        ValueError: no pair is given, or their numbers differ.
    """
    differences = [one - other for one, other in zip(ours, theirs, strict=True)]
    difference = summarize(differences)
    if len(differences) == 1 or stdev(differences) < ROUNDING:
        return Paired(difference, None)
    from scipy.special import stdtr

    t = difference.mean / (stdev(differences) / sqrt(len(differences)))
    half_width = summarize(differences, 0.90).half_width or 0.0
    return Paired(
        difference,
        2 * float(stdtr(len(differences) - 1, -abs(t))),
        Interval(difference.mean - half_width, difference.mean + half_width),
        stdev(differences) ** 2,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) adjusted p-values, in the order given: those below a level hold together at that level."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


@dataclass(frozen=True)
class AtSafety:
    """A front's utility at a safety; ``safer`` where its point of highest utility is safer than asked already."""

    utility: float
    safer: bool


def utility_at_safety(points: Sequence[Point], safety: float) -> AtSafety | None:
    """The highest utility that (safety, utility) ``points`` reach at a safety of at least ``safety``.

    Between neighbours on their Pareto front it is interpolated linearly. None where no point is as safe.
    """
    front = sorted({point for point, on in zip(points, pareto_front(points), strict=True) if on})
    as_safe = [index for index, (x, _) in enumerate(front) if x >= safety - ROUNDING]
    if not as_safe:
        return None
    x, y = front[as_safe[0]]
    if as_safe[0] == 0 or x <= safety + ROUNDING:
        return AtSafety(y, x > safety + ROUNDING)
    x_before, y_before = front[as_safe[0] - 1]
    return AtSafety(y + (y_before - y) * (x - safety) / (x - x_before), False)
