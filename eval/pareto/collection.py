"""Contents of the Pareto tables and pictures: worlds, their groups of runs, and the fronts.

Runs are grouped by world, pipeline and method variant. A world is what fixes the axes: the base
(``model.name``), the data (``data.name``, ``data.seed``) and the evaluation settings; scores of
different worlds are never averaged and never share a front. A variant is a method with all other
settings but the seed; its label names the settings in which the collected runs differ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from eval.scores.finished import Scores
from eval.scores.statistics import Point, Summary, hypervolume

Settings = dict[str, Any]
# What a front sets against safety.
Against = Literal["utility", "over_refusal"]


@dataclass(frozen=True)
class Run:
    """A finished run; ``directory`` is relative to ``root``, the directory it was found below.

    Attributes:
        incomplete: the averages that have no value, each with its benchmarks that have none.
        base_incomplete: the same of the base.
    """

    root: str
    directory: str
    seed: int
    scores: Scores[float]
    base: Scores[float]
    incomplete: Mapping[str, Sequence[str]]
    base_incomplete: Mapping[str, Sequence[str]]

    def __str__(self) -> str:
        return str(Path(self.root, self.directory))


@dataclass(frozen=True)
class LeftOut:
    """A run that cannot be used, and why."""

    root: str
    directory: str
    reason: str

    def __str__(self) -> str:
        return f"{Path(self.root, self.directory)}: {self.reason}"


@dataclass(frozen=True)
class Group:
    """The seeds of one method variant in one pipeline and world.

    Attributes:
        label: the method and the settings in which the collected runs differ; the usual value is not named.
        settings: all settings by dotted key, without the seed.
        scores: means and 95% intervals over seeds; None where a seed has no value.
        change: mean differences from the runs' own base; None likewise.
        hypervolume: of the base and this group's mean; None where the group has no ``point``.
    """

    pipeline: str
    method: str
    label: str
    settings: Settings
    runs: list[Run]
    scores: Scores[Summary]
    change: Scores[float]
    hypervolume: float | None

    def point(self, against: Against = "utility") -> Point | None:
        """Means of ``summaries``."""
        summaries = self.summaries(against)
        return None if summaries is None else (summaries[0].mean, summaries[1].mean)

    def summaries(self, against: Against) -> tuple[Summary, Summary] | None:
        """What is plotted: safety to the right; utility, or the share of harmless requests that are answered, upwards.

        None where one of them has no value.
        """
        safety, upwards = self.scores.safety, self.scores.utility
        if against == "over_refusal":
            refused = self.scores.over_refusal
            # The share that is answered, so that more is better.
            upwards = None if refused is None else replace(refused, mean=1 - refused.mean)
        return None if safety is None or upwards is None else (safety, upwards)


@dataclass(frozen=True)
class Front:
    """The Pareto front over the base and the means of one pipeline's groups (None: of all groups).

    What has no value in one of the two scores is left out: it is on no front and dominates nothing.

    Attributes:
        members: pipeline and label of the groups that neither another group nor the base dominates.
        hypervolume: in [0, 1], as everywhere with the reference point (0, 0); None where no point is left.
    """

    pipeline: str | None
    members: list[tuple[str, str]]
    base_on_front: bool
    hypervolume: float | None


def base_point(base: Scores[float], against: Against = "utility") -> Point | None:
    """An untuned model's safety, and its utility or the share of harmless requests that it answers, or None."""
    upwards = base.utility
    if against == "over_refusal":
        upwards = None if base.over_refusal is None else 1 - base.over_refusal
    return None if base.safety is None or upwards is None else (base.safety, upwards)


def known_hypervolume(points: Sequence[Point | None]) -> float | None:
    """The hypervolume of those points that are known; None where none is."""
    known = [point for point in points if point is not None]
    return hypervolume(known) if known else None


@dataclass(frozen=True)
class World:
    """One base under one evaluation, with all groups that start from it.

    ``fronts`` holds the front of all groups first, then one per pipeline. ``over_refusal_fronts`` are the same of
    safety and the share of harmless requests that are answered; none where over-refusal is measured in no group.
    """

    name: str
    base: Scores[float]
    groups: list[Group]
    fronts: list[Front]
    over_refusal_fronts: list[Front]

    def fronts_of(self, against: Against) -> list[Front]:
        return self.fronts if against == "utility" else self.over_refusal_fronts

    def base_point(self, against: Against = "utility") -> Point | None:
        return base_point(self.base, against)

    def standing(self, group: Group, against: Against = "utility") -> str:
        """``overall`` on the front of all groups, ``pipeline`` on that of its pipeline alone, else nothing."""
        fronts = self.fronts_of(against)
        on = [front.pipeline for front in fronts if (group.pipeline, group.label) in front.members]
        return "overall" if None in on else "pipeline" if on else ""


@dataclass(frozen=True)
class Collection:
    """The worlds, the runs that could not be used, and remarks on those that were."""

    worlds: list[World]
    left_out: list[LeftOut]
    notes: list[str]
