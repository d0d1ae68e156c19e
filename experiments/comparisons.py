"""Rows of an experiment against each other, paired by seed: at the same learning rates, and at equal safety."""

from collections.abc import Hashable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from statistics import fmean
from typing import TypeVar

from eval.scores.statistics import AtSafety, Paired, Summary, holm, paired_t, pareto_front, summarize, utility_at_safety
from eval.scores.statistics import Point as Coordinates
from experiments.distance import cosine
from experiments.kept import KeptRun
from experiments.outcomes import Row, height, reference_of, usual_of
from experiments.rows import Experiment

Key = TypeVar("Key", bound=Hashable)
COMPARED = ("utility", "safety", "over_refusal")
AT_EQUAL_SAFETY = {"utility": "utility at equal safety", "over_refusal": "over-refusal at equal safety"}
AT_EQUAL_DISTANCE = "utility at equal distance"
TO_USUAL = "utility beside the usual setting's"


@dataclass(frozen=True)
class Comparison:
    """``row`` minus ``against`` on the same seeds, in percent; ``p`` is corrected by Holm over those of its score."""

    row: str
    against: str
    score: str
    paired: Paired
    p: float | None = None


@dataclass(frozen=True)
class EqualSafety:
    """Utility that a row's fronts reach at its reference's safety, at the rates where rows are compared; in percent, by
    seed.

    Attributes:
        reference: the row whose safety it is; the row itself if it is one that others are compared with.
        safety: the reference's.
        utility: None where no point of the row is that safe.
        over_refusal: the lowest at that safety, of the seeds whose points are as safe and have it measured.
    """

    row: Row
    reference: Row
    safety: dict[int, float]
    utility: dict[int, AtSafety | None]
    over_refusal: dict[int, float]

    @property
    def found(self) -> dict[int, float]:
        """The utilities there are, by seed."""
        return {seed: at.utility for seed, at in self.utility.items() if at is not None}


@dataclass(frozen=True)
class AtLevel:
    """The lowest over-refusal that a row reaches at a safety, in percent, by seed.

    Read off the Pareto front of the untuned model and the row's points of that seed, one per strength, interpolated
    linearly between neighbours; a seed whose points are all less safe has no number, and nothing is extrapolated.

    Attributes:
        safety, over_refusal: the benchmarks.
        common: the level is the highest that every row of the group and pipeline reaches in every seed.
        seeds: the seeds that have run at every strength of the row.
        against: difference to the reference's, over the seeds for which both have a number.
    """

    row: Row
    safety: str
    over_refusal: str
    level: float
    common: bool
    seeds: list[int]
    found: dict[int, float]
    against: Comparison | None


@dataclass(frozen=True)
class Membership:
    """Whether a row is on the Pareto front of its group and pipeline, the untuned model included.

    Attributes:
        against: the front's axis other than safety: utility or over_refusal.
        mean: its mean at the strength that rows are compared at among the other rows'.
        seeds: the same seed by seed, over the seeds that all rows have.
        strengths: the mean at each strength among the means of all rows at all strengths.
    """

    row: Row
    against: str
    mean: bool
    seeds: dict[int, bool]
    strengths: dict[float, bool]


def compare(experiment: Experiment, rows: Sequence[Row]) -> list[Comparison]:
    """Every row against its reference, at the strength at which they are compared, on the seeds that both have run."""
    found = []
    for row in rows:
        if (reference := reference_of(row, experiment, rows)) is None:
            continue
        for score in COMPARED:
            found += _paired(row, reference, score, row.values(score), reference.values(score))
    return [one for score in COMPARED for one in _corrected([one for one in found if one.score == score])]


def compare_to_usual(experiment: Experiment, rows: Sequence[Row]) -> list[Comparison]:
    """Every row but its reference against the one with the paper's setting, at that strength."""
    found = []
    for row in rows:
        usual, reference = usual_of(row, experiment, rows), reference_of(row, experiment, rows)
        if usual is not None and reference is not None and usual is not reference:
            found += _paired(row, usual, TO_USUAL, row.values("utility"), usual.values("utility"))
    return _corrected(found)


def equal_safety(experiment: Experiment, rows: Sequence[Row]) -> list[EqualSafety]:
    """Every row that is to run at several strengths, its reference too.

    Seed by seed at the strengths at which both have run: a row with more points would have a better front.
    """
    found = []
    several = [row for row in rows if len(row.strengths) > 1]
    for row in several:
        alike = [other for other in several if other.place == row.place]
        reference = reference_of(row, experiment, alike) or row
        pattern = experiment.settings.reference
        if len(alike) > 1 and pattern is not None and fnmatchcase(reference.name, pattern):
            found.append(_at_safety_of(reference, row, [row, reference]))
    return found


def _at_safety_of(reference: Row, row: Row, both: Sequence[Row]) -> EqualSafety:
    """``row`` at the strengths at which all of ``both`` have run."""
    safety, utility, over_refusal = dict[int, float](), dict[int, AtSafety | None](), dict[int, float]()
    for seed, wanted in reference.values("safety").items():
        points = [
            row.by_seed(strength)[seed].scores
            for strength in row.strengths
            if all(_has_run(other, seed, strength) for other in both)
        ]
        if not points:
            continue
        safety[seed] = wanted
        utility[seed] = utility_at_safety([(one["safety"], one["utility"]) for one in points], wanted)
        if all("over_refusal" in one for one in points):
            lowest = _lowest([(one["safety"], one["over_refusal"]) for one in points], wanted)
            if lowest is not None:
                over_refusal[seed] = lowest
    return EqualSafety(row, reference, safety, utility, over_refusal)


def _has_run(row: Row, seed: int, strength: float) -> bool:
    result = row.by_seed(strength).get(seed)
    return result is not None and {"safety", "utility"} <= result.scores.keys()


def at_levels(experiment: Experiment, rows: Sequence[Row]) -> list[AtLevel]:
    """Over-refusal at the experiment's safety levels, and at the highest that all rows reach in all seeds."""
    found = []
    for pair in experiment.settings.levels:
        for place in dict.fromkeys(row.place for row in rows):
            points = {
                row.name: _points(row, pair.safety, pair.over_refusal)
                for row in rows
                if row.place == place and len(row.strengths) > 1
            }
            highest = [max(x for x, _ in own) for by_seed in points.values() for own in by_seed.values()]
            levels = dict.fromkeys(pair.at, False) | ({min(highest): True} if highest else {})
            for level, common in levels.items():
                numbers = {
                    name: {seed: y for seed, own in by_seed.items() if (y := _lowest(own, level)) is not None}
                    for name, by_seed in points.items()
                }
                members = [row for row in rows if row.name in points]
                differences = [
                    one
                    for row in members
                    if (reference := reference_of(row, experiment, members)) is not None
                    for one in _paired(row, reference, "over_refusal", numbers[row.name], numbers[reference.name])
                ]
                compared = {one.row: one for one in _corrected(differences)}
                found += [
                    AtLevel(row, pair.safety, pair.over_refusal, level, common, list(points[row.name]),
                            numbers[row.name], compared.get(row.name))
                    for row in members
                    if points[row.name]
                ]  # fmt: skip
    return found


def _points(row: Row, safety: str, over_refusal: str) -> dict[int, list[Coordinates]]:
    """For each seed that has run at every strength of the row: its untuned model's point and one per strength."""
    by_strength = [row.by_seed(strength) for strength in row.strengths]
    found = {}
    for seed in set.intersection(*map(set, by_strength)):
        results = [by_seed[seed] for by_seed in by_strength]
        scores = [results[0].base, *(result.scores for result in results)]
        if all({safety, over_refusal} <= own.keys() for own in scores):
            found[seed] = [(own[safety], own[over_refusal]) for own in scores]
    return dict(sorted(found.items()))


def _lowest(points: Sequence[Coordinates], safety: float) -> float | None:
    """The lowest over-refusal that (safety, over-refusal) ``points`` reach at a safety, as ``utility_at_safety``."""
    at = utility_at_safety([(x, height("over_refusal", y)) for x, y in points], safety)
    return None if at is None else 100 - at.utility


def compare_at_equal_safety(experiment: Experiment, equal: Sequence[EqualSafety]) -> list[Comparison]:
    """The row with the paper's setting minus every other of its group and pipeline, where both have run."""
    found = []
    rows = [one.row for one in equal]
    for one in equal:
        usual = usual_of(one.row, experiment, rows)
        if usual is not None:
            ours, other = (_at_safety_of(one.reference, row, [usual, one.row]) for row in (usual, one.row))
            found += _paired(ours.row, other.row, AT_EQUAL_SAFETY["utility"], ours.found, other.found)
            found += _paired(
                ours.row, other.row, AT_EQUAL_SAFETY["over_refusal"], ours.over_refusal, other.over_refusal
            )
    return [
        one for score in AT_EQUAL_SAFETY.values() for one in _corrected([one for one in found if one.score == score])
    ]


def compare_at_equal_distance(rows: Sequence[Row]) -> list[Comparison]:
    """Every row minus naive tuning that has moved the weights as far, by seed.

    Naive tuning's utility at a distance is interpolated between the untuned model and its points, one per strength, by
    a monotone cubic (Fritsch and Carlson, SIAM J. Numer. Anal. 17, 1980; scipy's PCHIP): straight lines would lie below
    a curve that falls ever faster. A seed that has moved farther than all of them does not count.
    """
    found = []
    for row in rows:
        if (naive := _naive_beside(row, rows)) is None or len(naive.strengths) == 1:
            continue
        theirs = {
            seed: utility
            for seed, distance in row.values("moved").items()
            if (utility := _utility_at_distance(naive, seed, distance)) is not None
        }
        found += _paired(row, naive, AT_EQUAL_DISTANCE, row.values("utility"), theirs)
    return _corrected(found)


def _naive_beside(row: Row, rows: Sequence[Row]) -> Row | None:
    """Naive tuning in the row's group and pipeline, the first row of it; None if there is none or it is that row."""
    alike = [other for other in rows if other.place == row.place]
    naive = next((other for other in alike if other.config.method.name == "baseline"), None)
    return None if naive is row else naive


def directions(rows: Sequence[Row]) -> dict[str, Summary]:
    """Cosine between the displacements of each row's weights and of naive tuning's, over the seeds of both, by row."""
    found = {row.name: list(cosines_with_naive(row, rows).values()) for row in rows}
    return {name: summarize(cosines) for name, cosines in found.items() if cosines}


def cosines_with_naive(row: Row, rows: Sequence[Row], strength: float | None = None) -> dict[int, float]:
    """Cosine between the displacements of a row's weights and of naive tuning's, by seed; none for naive tuning itself.

    Args:
        strength: the row's own if None.
    """
    if (naive := _naive_beside(row, rows)) is None:
        return {}
    theirs = {seed: result.displacement for seed, result in naive.by_seed(strength).items()}
    found = {}
    for seed, mine in row.by_seed(strength).items():
        if isinstance(mine.run, KeptRun) and mine.run.record.direction is not None:
            found[seed] = mine.run.record.direction
        elif mine.displacement is not None and (other := theirs.get(seed)) is not None:
            found[seed] = cosine(mine.displacement, other)
    return found


def front_membership(rows: Sequence[Row], against: str = "utility") -> list[Membership]:
    """Every row that has run and has both scores, within its group and pipeline."""
    found = []
    for place in dict.fromkeys(row.place for row in rows):
        alike = [row for row in rows if row.place == place and row.by_seed()]
        members = [row for row in alike if _measured(row, against)]
        if not members:
            continue
        common = set.intersection(*(set(row.by_seed()) for row in members))
        if not common:
            continue
        bases = {seed: _coordinates(members[0].by_seed()[seed].base, against) for seed in common}
        untuned = fmean(x for x, _ in bases.values()), fmean(y for _, y in bases.values())
        # Means over other seeds, which may have other bases, would not be comparable.
        every = {
            (row.name, strength): _mean_point(row, strength, against, common)
            for row in members
            for strength in row.strengths
            if all(common <= row.values(score, strength).keys() for score in ("safety", against))
        }
        compared = {row.name: every[row.name, row.strength] for row in members if (row.name, row.strength) in every}
        on_mean = _on_front(compared, untuned)
        points = {
            seed: {row.name: _coordinates(row.by_seed()[seed].scores, against) for row in members} for seed in common
        }
        on_seed = {seed: _on_front(own, bases[seed]) for seed, own in points.items()}
        on_any = _on_front(every, untuned)
        for row in members:
            seeds = {seed: row.name in on for seed, on in sorted(on_seed.items())}
            strengths = {strength: (name, strength) in on_any for name, strength in every if name == row.name}
            found.append(Membership(row, against, row.name in on_mean, seeds, strengths))
    return found


def _on_front(points: Mapping[Key, Coordinates], untuned: Coordinates) -> set[Key]:
    flags = pareto_front([*points.values(), untuned])
    return {key for key, on in zip(points, flags, strict=False) if on}


def _measured(row: Row, against: str) -> bool:
    """Whether safety and the score have a value wherever the row has run at the strength at which it is compared."""
    scores = [some for result in row.by_seed().values() for some in (result.base, result.scores)]
    return all({"safety", against} <= some.keys() for some in scores)


def _mean_point(row: Row, strength: float, against: str, seeds: Set[int]) -> Coordinates:
    values = {score: row.values(score, strength) for score in ("safety", against)}
    return _coordinates({score: fmean(found[seed] for seed in seeds) for score, found in values.items()}, against)


def _coordinates(scores: Mapping[str, float], against: str) -> Coordinates:
    """Of a front: more is better on both axes."""
    return scores["safety"], height(against, scores[against])


def _utility_at_distance(row: Row, seed: int, distance: float) -> float | None:
    results = [row.by_seed(strength).get(seed) for strength in row.strengths]
    there = [one for one in results if one and {"moved", "utility"} <= one.scores.keys() and "utility" in one.base]
    if len(there) < len(results):
        return None
    points = sorted((one.scores["moved"], one.scores["utility"]) for one in there)
    distances, utilities = zip((0.0, there[0].base["utility"]), *points, strict=True)
    if distance > distances[-1]:
        return None
    from scipy.interpolate import PchipInterpolator

    return float(PchipInterpolator(distances, utilities)(distance))


def _paired(row: Row, against: Row, score: str, ours: dict[int, float], theirs: dict[int, float]) -> list[Comparison]:
    seeds = [seed for seed in ours if seed in theirs]
    if not seeds:
        return []
    paired = paired_t([ours[seed] for seed in seeds], [theirs[seed] for seed in seeds])
    return [Comparison(row.name, against.name, score, paired)]


def _corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    adjusted = iter(holm([one.paired.p for one in comparisons if one.paired.p is not None]))
    return [one if one.paired.p is None else replace(one, p=next(adjusted)) for one in comparisons]
