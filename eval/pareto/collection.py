"""Contents of the Pareto tables and pictures: worlds, their groups of runs, and the fronts.

Runs are grouped by world, pipeline and method variant. A world is what fixes the axes: the base
(``model.name``), the data (``data.name``, ``data.seed``) and the evaluation settings; scores of
different worlds are never averaged and never share a front. A variant is a method with all other
settings but the seed; its label names the settings in which the collected runs differ.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from eval.scores.finished import Scores
from eval.scores.statistics import Point, Summary

Settings = dict[str, Any]
# What a front sets against safety.
Against = Literal["utility", "over_refusal"]


@dataclass(frozen=True)
class Run:
    """A finished run; ``directory`` is relative to ``root``, the directory it was found below."""

    root: str
    directory: str
    seed: int
    scores: Scores[float]
    base: Scores[float]


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
        scores: means and 95% intervals over seeds.
        change: mean differences from the runs' own base.
        hypervolume: of the base and this group's mean.
    """

    pipeline: str
    method: str
    label: str
    settings: Settings
    runs: list[Run]
    scores: Scores[Summary]
    change: Scores[float]
    hypervolume: float

    def point(self, against: Against = "utility") -> Point:
        """Mean safety, and mean utility or the mean share of harmless requests that are answered."""
        return self.scores.safety.mean, self.height(against).mean

    def height(self, against: Against) -> Summary:
        """The value plotted upwards: the share that is answered in place of over-refusal, so that more is better.

        Raises:
            ValueError: over-refusal is not measured.
        """
        if against == "utility":
            return self.scores.utility
        if self.scores.over_refusal is None:
            raise ValueError("over-refusal is not measured")
        return replace(self.scores.over_refusal, mean=1 - self.scores.over_refusal.mean)


@dataclass(frozen=True)
class Front:
    """The Pareto front over the base and the means of one pipeline's groups (None: of all groups).

    Attributes:
        members: pipeline and label of the groups that neither another group nor the base dominates.
        hypervolume: in [0, 1], as everywhere with the reference point (0, 0).
    """

    pipeline: str | None
    members: list[tuple[str, str]]
    base_on_front: bool
    hypervolume: float


def base_point(base: Scores[float], against: Against = "utility") -> Point:
    """An untuned model's safety, and its utility or the share of harmless requests that it answers.

    Raises:
        ValueError: over-refusal is asked for and not measured.
    """
    if against == "utility":
        return base.safety, base.utility
    if base.over_refusal is None:
        raise ValueError("over-refusal is not measured")
    return base.safety, 1 - base.over_refusal


@dataclass(frozen=True)
class World:
    """One base under one evaluation, with all groups that start from it.

    ``fronts`` holds the front of all groups first, then one per pipeline. ``over_refusal_fronts`` are the same of
    safety and the share of harmless requests that are answered; none where over-refusal is not measured in all groups.
    """

    name: str
    base: Scores[float]
    groups: list[Group]
    fronts: list[Front]
    over_refusal_fronts: list[Front]

    def fronts_of(self, against: Against) -> list[Front]:
        return self.fronts if against == "utility" else self.over_refusal_fronts

    def base_point(self, against: Against = "utility") -> Point:
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
