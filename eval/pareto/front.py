"""Uncertainty of a Pareto front: bootstrap intervals over seeds and items.

A resample draws the seeds of each group, and the items of each benchmark once for all checkpoints, which share them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.scores.artefacts import Artefacts, item_seed
from eval.scores.statistics import (
    RESAMPLES,
    Interval,
    front_shares,
    hypervolumes,
    percentile_interval,
    resampled_means,
    resampled_seeds,
)
from ogpsa.utils.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

AXES = ("safety", "utility")


@dataclass(frozen=True)
class PointIntervals:
    """95% intervals of one point, and of the area that it dominates together with the base.

    Attributes:
        on_front: share of the resamples in which no other point dominates it.
    """

    safety: Interval
    utility: Interval
    hypervolume: Interval
    on_front: float


@dataclass(frozen=True)
class FrontIntervals:
    """95% intervals of the front of all points, reference point (0, 0).

    The front is a maximum over noisy points, so its hypervolume is biased upwards, in a resample more than in the
    estimate: the interval can lie mostly above the estimate.
    """

    hypervolume: Interval
    base: PointIntervals | None
    groups: list[PointIntervals]


def front_intervals(
    bases: Sequence[Artefacts], groups: Sequence[Sequence[Artefacts]], resamples: int = RESAMPLES, seed: int = 0
) -> FrontIntervals:
    """Bootstrap the front of the base and the groups' means.

    Args:
        bases: the untuned model, or one per seed where seeds have their own; none where there is no base.
        groups: the evaluations of each group, one per seed.

    Raises:
        UserError: the evaluations are not on the same items with the same judges, or one has no safety or utility
            score: one line.
    """
    import numpy as np

    everything = [*bases, *(one for group in groups for one in group)]
    drawn: dict[str, Array] = {}
    averages = np.stack([_average(axis, everything, drawn, resamples, seed) for axis in AXES], axis=1)
    generator = np.random.default_rng((seed, len(everything)))
    points, position = [], 0
    for size in [*([len(bases)] if bases else []), *map(len, groups)]:
        points.append(resampled_seeds(averages[position : position + size], generator))
        position += size
    stacked = np.stack(points)
    shares = front_shares(stacked)
    found = [
        PointIntervals(
            percentile_interval(point[0]),
            percentile_interval(point[1]),
            percentile_interval(hypervolumes(np.stack([stacked[0], point]) if bases else point[None])),
            share,
        )
        for point, share in zip(stacked, shares, strict=True)
    ]
    return FrontIntervals(
        percentile_interval(hypervolumes(stacked)), found[0] if bases else None, found[1:] if bases else found
    )


def _average(
    group: str, everything: Sequence[Artefacts], drawn: dict[str, "Array"], resamples: int, seed: int
) -> "Array":
    """A group's average of each evaluation in each resample, shape (evaluations, resamples)."""
    import numpy as np

    first = everything[0]
    members = first.members(group)
    if not members:
        raise UserError(f"{first.folder}: no benchmark of {group}")
    for other in everything[1:]:
        if other.members(group) != members or any(other.parts(name) != first.parts(name) for name in members):
            raise UserError(f"{group} is not of the same benchmarks in {first.folder} and {other.folder}")
    for part in {part: None for name in members for part in first.parts(name)}:
        if part not in drawn:
            drawn[part] = _resampled(part, everything, resamples, seed)
    scores = [np.mean([drawn[part] for part in first.parts(name)], axis=0) for name in members]
    return np.asarray(np.mean(scores, axis=0))


def _resampled(benchmark: str, everything: Sequence[Artefacts], resamples: int, seed: int) -> "Array":
    import numpy as np

    rows: list[list[float | None]] = []
    for one in everything:
        values = {row["id"]: row["value"] for row in one.verdicts(benchmark)}
        instrument = one.instrument(benchmark).key
        if one is everything[0]:
            ids, expected = sorted(values), instrument
        elif sorted(values) != ids or instrument != expected:
            raise UserError(
                f"{benchmark} is not on the same items, task and judge in {everything[0].folder} and {one.folder}"
            )
        if all(value is None for value in values.values()):
            raise UserError(f"{benchmark} has no verdict in {one.folder}")
        rows.append([values[key] for key in ids])
    return resampled_means(np.array(rows, dtype=np.float64), resamples, item_seed(ids, seed))
