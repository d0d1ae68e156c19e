"""Statistics and fronts against closed forms, exact enumerations and simulated coverage."""

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from eval.pareto.front import front_intervals
from eval.scores.artefacts import read_artefacts
from eval.scores.statistics import (
    DRAWN_AT_ONCE,
    Interval,
    average_gain,
    clustered_error,
    flip_test,
    flipped_means,
    front_shares,
    hypervolume,
    hypervolumes,
    pareto_front,
    percentile_interval,
    resampled_means,
    resampled_seeds,
    unanimous_interval,
    wilson,
)
from ogpsa.utils.errors import UserError
from tests.eval.handmade import Benchmark, write_evaluation


@pytest.mark.parametrize(("right", "n"), [(0, 1), (0, 100), (100, 100), (1, 3), (57, 100), (4000, 14042)])
def test_wilson_agrees_with_scipy(right: int, n: int) -> None:
    expected = stats.binomtest(right, n).proportion_ci(method="wilson")
    found = wilson(right / n, n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= found.low <= right / n <= found.high <= 1


def test_wilson_needs_an_item() -> None:
    with pytest.raises(ValueError, match="at least one item"):
        wilson(0.5, 0)


@pytest.mark.parametrize("n", [1, 10, 1000])
def test_where_all_items_agree_the_interval_is_wilsons(n: int) -> None:
    for value in (0.0, 1.0):
        found, expected = unanimous_interval(value, n), wilson(value, n)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    down, up = unanimous_interval(-1, n, -1, 1), unanimous_interval(1, n, -1, 1)
    assert (down.low, down.high) == (-1, pytest.approx(2 * wilson(0, n).high - 1))
    assert (up.low, up.high) == (pytest.approx(-down.high), 1)


def test_where_all_items_agree_the_interval_covers() -> None:
    """Of the samples that agree, the share whose interval misses the mean, whatever the share of other items."""
    n, other = 30, -1.0
    for share in np.linspace(0.001, 0.999, 200):
        interval = unanimous_interval(1.0, n, -1, 1)
        missed = not interval.low <= 1 - share + share * other <= interval.high
        assert not missed or (1 - share) ** n < 0.025


def test_the_error_of_clusters() -> None:
    values = [0.0, 0.0, 1.0, 1.0, 1.0, 0.0]
    # Items of their own: √(Σ(x - mean)²) / n.
    assert clustered_error(values, range(6)) == pytest.approx((6 * 0.25) ** 0.5 / 6)
    # Pairs that agree are half as many items; pairs that cancel say nothing of the mean.
    assert clustered_error([0, 0, 1, 1], "aabb") == pytest.approx((2 * 1.0) ** 0.5 / 4)
    assert clustered_error([0, 1, 0, 1], "aabb") == 0


def test_bootstrap_of_three_items_is_the_enumerated_one() -> None:
    values = np.array([[0.0, 0.3, 1.0]])
    resamples = 20_000
    found = resampled_means(values, resamples)[0]
    exact = [sum(draw) / 3 for draw in product(values[0], repeat=3)]
    for mean in np.unique(np.round(exact, 9)):
        share = np.isclose(exact, mean).mean()
        spread = np.sqrt(share * (1 - share) / resamples)
        assert np.isclose(found, mean).mean() == pytest.approx(share, abs=4 * spread)


def test_bootstrap_interval_of_many_items_is_the_normal_one() -> None:
    values = np.random.default_rng(1).beta(2, 1, size=(1, 2000))
    found = percentile_interval(resampled_means(values)[0])
    centre, half_width = values.mean(), 1.96 * values.std() / np.sqrt(values.size)
    assert (found.low, found.high) == pytest.approx((centre - half_width, centre + half_width), abs=0.05 * half_width)


def test_paired_interval_covers_the_true_difference() -> None:
    """In 95% of simulated pairs of checkpoints."""
    generator = np.random.default_rng(2)
    items, chance_a, chance_b = 120, 0.6, 0.7
    covered = 0
    for trial in range(500):
        # Both depend on the same item's difficulty, so their verdicts go together.
        difficulty = generator.random(items)
        pairs = np.stack(
            [difficulty < chance_a, np.where(generator.random(items) < 0.6, difficulty, 1 - difficulty) < chance_b]
        )
        means = resampled_means(pairs.astype(float), 1000, (trial,))
        interval = percentile_interval(means[1] - means[0])
        covered += interval.low <= chance_b - chance_a <= interval.high
    # Three standard deviations of the share around 95%.
    assert covered / 500 == pytest.approx(0.95, abs=0.03)


def test_rows_are_drawn_together_and_alike_for_the_same_seed() -> None:
    row = np.random.default_rng(3).random(50)
    means = resampled_means(np.stack([row, row + 0.25, 1 - row]), 200)
    assert means[1] - means[0] == pytest.approx(0.25)
    assert means[0] + means[2] == pytest.approx(1)
    # Equal but for the order of summation.
    assert resampled_means(row[None], 200)[0] == pytest.approx(means[0], abs=1e-12)
    assert np.abs(resampled_means(row[None], 200, (1,))[0] - means[0]).max() > 0.01


def test_missing_verdicts_are_left_out_of_every_draw() -> None:
    values = np.array([[0.5, np.nan, 0.5, np.nan], [1.0, 1.0, 1.0, 0.0]])
    means = resampled_means(values, 500)
    drawn_without = np.isnan(means[0])
    # A draw of the two missing items alone has no mean: (1/2)^4 of the draws.
    assert 0 < drawn_without.mean() < 0.15
    assert (means[0][~drawn_without] == 0.5).all()
    assert not np.isnan(means[1]).any()
    assert percentile_interval(means[0]) == Interval(0.5, 0.5)
    with pytest.raises(ValueError, match="no resample"):
        percentile_interval(np.array([np.nan]))


def test_many_items_are_drawn_in_parts() -> None:
    items = DRAWN_AT_ONCE // 8
    means = resampled_means(np.stack([np.ones(items), np.arange(items) % 2]), 20)
    assert (means[0] == 1).all()
    assert means[1] == pytest.approx(0.5, abs=0.01)
    assert len(set(means[1])) > 10


@pytest.mark.parametrize(("worse", "better"), [(3, 12), (0, 10), (7, 9), (1, 1), (20, 45)])
def test_p_value_is_mcnemars(worse: int, better: int) -> None:
    differences = np.array([-1.0] * worse + [1.0] * better + [0.0] * 30)
    found = flip_test(differences.mean(), flipped_means(differences, 20_000))
    assert found == pytest.approx(stats.binomtest(worse, worse + better).pvalue, abs=0.012)


def test_p_value_is_never_0_and_1_where_nothing_differs() -> None:
    assert flip_test(0.0, flipped_means(np.zeros(10), 99)) == 1
    assert flip_test(1.0, flipped_means(np.ones(60), 99)) == 0.01


def test_average_gain_is_the_mean_relative_change() -> None:
    gain = average_gain({"a": 0.6, "b": 0.1, "c": 0.4}, {"a": 0.5, "b": 0.2, "c": 0.0})
    assert gain.percent == pytest.approx((20 - 50) / 2)
    assert (gain.benchmarks, gain.excluded) == (["a", "b"], ["c"])
    assert average_gain({"c": 0.4}, {"c": 0.0}).percent is None


def test_average_gain_is_never_over_fewer_benchmarks() -> None:
    with pytest.raises(ValueError, match="not the same benchmarks: b, c"):
        average_gain({"a": 0.6, "b": 0.1}, {"a": 0.5, "c": 0.1})


def test_hypervolumes_and_front_of_every_resample() -> None:
    generator = np.random.default_rng(4)
    # A coarse grid, so that there are ties; a few points lie below the reference point.
    points = generator.integers(-2, 9, size=(6, 2, 300)) / 8
    one_by_one = [[(float(x), float(y)) for x, y in points[:, :, draw]] for draw in range(300)]
    assert hypervolumes(points) == pytest.approx([hypervolume(draw) for draw in one_by_one])
    assert front_shares(points) == pytest.approx(np.mean([pareto_front(draw) for draw in one_by_one], axis=0))


def test_seeds_are_drawn_with_replacement() -> None:
    generator = np.random.default_rng(5)
    seeds = np.array([0.1, 0.4, 0.9])
    drawn = resampled_seeds(np.broadcast_to(seeds[:, None, None], (3, 2, 20_000)), generator)
    assert drawn.shape == (2, 20_000)
    assert (drawn[0] == drawn[1]).all()
    assert drawn[0].mean() == pytest.approx(seeds.mean(), abs=0.01)
    assert drawn[0].var() == pytest.approx(seeds.var() / 3, rel=0.05)
    alone = np.random.default_rng(6).random((1, 2, 5))
    assert (resampled_seeds(alone, generator) == alone[0]).all()


def right(count: int, n: int = 50) -> list[float]:
    return [1.0] * count + [0.0] * (n - count)


def test_front_intervals_over_items(tmp_path: Path) -> None:
    """Where utility is 1 throughout, a point's hypervolume is its safety."""
    safety, utility = Benchmark(right(30), "safety", "refusal_rate"), Benchmark(right(50))
    base = read_artefacts(write_evaluation(tmp_path / "base", {"s": safety, "u": utility}))
    better = Benchmark(right(45), "safety", "refusal_rate")
    tuned = read_artefacts(write_evaluation(tmp_path / "tuned", {"s": better, "u": utility}))
    found = front_intervals([base], [[tuned]])
    (point,) = found.groups
    assert found.base is not None
    assert point.hypervolume == point.safety == found.hypervolume
    assert point.utility == Interval(1, 1)
    assert point.safety.low < 0.9 < point.safety.high
    # On the same items the tuned one is nowhere worse: no draw puts the base before it.
    assert point.on_front == 1
    assert found.base.on_front < 0.01
    assert found == front_intervals([base], [[tuned]])


def test_front_intervals_over_seeds(tmp_path: Path) -> None:
    """Items that all agree leave the spread of the seeds alone: two of them give their ends and their middle."""

    def seed(name: str, refused: int) -> Path:
        return write_evaluation(
            tmp_path / name, {"s": Benchmark(right(refused), "safety", "refusal_rate"), "u": Benchmark(right(50))}
        )

    group = [read_artefacts(seed("none", 0)), read_artefacts(seed("all", 50))]
    (point,) = front_intervals([], [group]).groups
    assert point.safety == point.hypervolume == Interval(0, 1)


def test_front_intervals_refuse_other_items(tmp_path: Path) -> None:
    here = {"s": Benchmark(right(30), "safety", "refusal_rate"), "u": Benchmark(right(50))}
    other = here | {"u": Benchmark(right(50), data_hash="0" * 16)}
    a = read_artefacts(write_evaluation(tmp_path / "a", here))
    b = read_artefacts(write_evaluation(tmp_path / "b", other))
    with pytest.raises(UserError, match="u is not on the same items"):
        front_intervals([a], [[b]])
    judged = here | {"u": Benchmark(right(50), judge_hash="b" * 16)}
    d = read_artefacts(write_evaluation(tmp_path / "d", judged))
    with pytest.raises(UserError, match="u is not on the same items, task and judge"):
        front_intervals([a], [[d]])
    c = read_artefacts(write_evaluation(tmp_path / "c", here | {"v": Benchmark(right(1))}))
    with pytest.raises(UserError, match="utility is not of the same benchmarks"):
        front_intervals([a], [[c]])
