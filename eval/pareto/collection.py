"""What the Pareto tables and pictures show: worlds, their groups of runs, and the fronts.

Runs are grouped by world, pipeline and method variant. A world is what fixes the axes: the base
(``model.name``), the data (``data.name``, ``data.seed``) and the evaluation settings; scores of
different worlds are never averaged and never share a front. A variant is a method with all other
settings but the seed; its label names the settings in which the collected runs differ.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.scores.finished import Scores
from eval.scores.statistics import Point, Summary

Settings = dict[str, Any]


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

    @property
    def point(self) -> Point:
        """Mean safety and mean utility."""
        return self.scores.safety.mean, self.scores.utility.mean


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


@dataclass(frozen=True)
class World:
    """One base under one evaluation, with all groups that start from it.

    ``fronts`` holds the front of all groups first, then one per pipeline.
    """

    name: str
    base: Scores[float]
    groups: list[Group]
    fronts: list[Front]

    def standing(self, group: Group) -> str:
        """``overall`` on the front of all groups, ``pipeline`` on that of its pipeline alone, else nothing."""
        on = [front.pipeline for front in self.fronts if (group.pipeline, group.label) in front.members]
        return "overall" if None in on else "pipeline" if on else ""


@dataclass(frozen=True)
class Collection:
    """The worlds, the runs that could not be used, and remarks on those that were."""

    worlds: list[World]
    left_out: list[LeftOut]
    notes: list[str]
