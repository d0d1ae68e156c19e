"""Outcomes of an experiment's finished points: scores in percent, the paper's unit, and courses of training."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import yaml

from eval.scores.finished import FinishedRun, is_finished, read_finished
from eval.scores.statistics import Summary, average_gain, balanced_score, summarize
from experiments.distance import Displacement, displacement_of, relative_distance
from experiments.kept import KeptRun, Record
from experiments.rows import (
    PUBLISHED_FILE,
    Experiment,
    ExperimentSettings,
    Point,
    load_suite,
    placeholders,
    row_model,
    setting,
)
from ogpsa.config import Config, Section, StageName
from ogpsa.utils.errors import UserError

# Averages over benchmarks, and the average gain over the base.
SCORES = ("safety", "utility", "over_refusal", "gain")
# Data and benchmarks, by name, on which numbers are published.
PUBLISHED_SETTINGS = {("paper", "paper"), ("nspo", "nspo")}
# Of safety and over-refusal (``balanced_score``).
BALANCED = "balanced"
# In the order of the paper.
PIPELINES = {"sft": "SFT", "dpo": "DPO", "sft_dpo": "SFT→DPO", "grpo": "GRPO", "sft_grpo": "SFT→GRPO"}
# Tags of published numbers that were not read in the paper itself.
SECOND_HAND = ("nspo",)
Item = TypeVar("Item")


class Published(Section):
    """A published number, in percent; ``method`` has no row here."""

    row: str | None
    model: str | None
    method: str | None = None
    score: str
    value: float
    tag: str


class Publication(Section):
    """``experiments/definitions/published.yaml``."""

    methods: dict[str, str]
    scores: list[Published]


@cache
def publication() -> Publication:
    return Publication.model_validate(yaml.safe_load(PUBLISHED_FILE.read_text(encoding="utf-8")))


@cache
def published() -> dict[tuple[str, str], Published]:
    """All published numbers, by row (the untuned model's by the model's name, those of a method without a row by
    ``rival``) and score.
    """
    return {
        (rival(entry.model or "", entry.method) if entry.method else entry.row or entry.model or "", entry.score): entry
        for entry in publication().scores
    }


def rival(model: str, method: str) -> str:
    """The name under which ``published`` has a method that has no row."""
    return f"{model} {method}"


def attack_success(benchmark: str) -> str:
    """The score of a safety benchmark as attack success: 100 less that of the benchmark."""
    return f"attack_success/{benchmark}"


def method_label(config: Config) -> str:
    """The method as the paper calls it, or its own name."""
    return publication().methods.get(config.method.name, config.method.name)


@dataclass(frozen=True)
class Result:
    """A finished point.

    Attributes:
        scores: ``SCORES``, ``BALANCED`` and the last checkpoint's benchmarks by name, in percent but for losses, in
            nats per token, without what has no value; how far the weights have moved (``moved``) where the experiment
            shows it.
        base: the same of the untuned model.
        displacement: of the weights, where the experiment shows how far they have moved and they are there.
    """

    point: Point
    run: FinishedRun
    scores: dict[str, float]
    base: dict[str, float]
    displacement: Displacement | None = None

    @property
    def refused(self) -> float | None:
        """Share of refusals among the answers to the utility benchmarks, in percent; None where not counted."""
        entries = self.run.last["benchmarks"]
        shares = [entries[name].get("refused") for name in self.point.config.eval.utility]
        return None if not shares or None in shares else 100 * fmean(shares)


@dataclass(frozen=True)
class Row:
    """A row of an experiment and its results.

    Attributes:
        group: what rows are compared within: a model, or the testbed's world in its place.
        model: the row's at full size, a name of ``conf/model``.
        strength: multiple of the learning rates at which the row is compared with others.
        attacks: whether its safety benchmarks are shown as attack success.
        config: of its first point at that strength.
        points: all of its points, whether they have run or not.
        results: of those that have.
        apart: of those that began with another untuned model than most runs of their seed: nothing compares them.
    """

    name: str
    group: str
    model: str
    label: str
    strength: float
    config: Config
    points: list[Point] = field(repr=False)
    results: list[Result] = field(repr=False)
    attacks: bool = False
    apart: list[Result] = field(default_factory=list, repr=False)

    @property
    def pipeline(self) -> str:
        return PIPELINES[self.config.stage.name]

    @property
    def place(self) -> tuple[str, str]:
        """Group and pipeline: rows are compared with those that share both."""
        return self.group, self.pipeline

    @property
    def method(self) -> str:
        return method_label(self.config)

    @property
    def comparable(self) -> bool:
        """Whether what is published is of the same model, data and benchmarks."""
        names = (self.config.data.name, self.config.eval.name)
        return self.config.model.name == self.model and names in PUBLISHED_SETTINGS

    @property
    def benchmarks(self) -> list[str]:
        """The scores that enter an average or are reported in addition, as they are shown."""
        return [
            attack_success(name) if self.attacks and group == "safety" else name
            for group, members in self.config.eval.groups.items()
            for name in members
        ]

    @property
    def losses(self) -> list[str]:
        """The benchmarks that are losses, in nats per token, if a run has measured them."""
        entries = self.results[0].run.last["benchmarks"] if self.results else {}
        return [name for name in self.benchmarks if entries.get(name, {}).get("metric") == "loss"]

    @property
    def strengths(self) -> list[float]:
        return sorted({point.strength for point in self.points})

    def planned(self, strength: float | None = None) -> list[int]:
        """Seeds at a strength; here and below, the default is the strength at which the row is compared."""
        wanted = self.strength if strength is None else strength
        return [point.seed for point in self.points if point.strength == wanted]

    def by_seed(self, strength: float | None = None) -> dict[int, Result]:
        wanted = self.strength if strength is None else strength
        return {result.point.seed: result for result in self.results if result.point.strength == wanted}

    def values(self, score: str, strength: float | None = None) -> dict[int, float]:
        """A score by seed, of those that have it."""
        found = self.by_seed(strength).items()
        return {seed: result.scores[score] for seed, result in found if score in result.scores}

    def summary(self, score: str, strength: float | None = None) -> Summary | None:
        values = list(self.values(score, strength).values())
        return summarize(values) if values else None

    @property
    def bases(self) -> list[dict[str, float]]:
        """The untuned model's scores, of which a seed may have its own, by seed that has run."""
        return list({result.point.seed: result.base for result in self.results}.values())

    @property
    def base(self) -> dict[str, float]:
        """Their means over seeds; empty before one has run."""
        bases = self.bases
        shared = set.intersection(*map(set, bases)) if bases else ()
        return {name: fmean(base[name] for base in bases) for name in bases[0] if name in shared} if bases else {}

    def course(self, stage: StageName, key: str) -> list[tuple[int, float]]:
        """Step and mean over seeds of what was logged under ``key``, or under keys that begin with it and a slash."""
        steps: dict[int, list[float]] = {}
        for result in self.by_seed().values():
            for line in result.run.history(stage):
                values = [value for name, value in line.items() if name == key or name.startswith(f"{key}/")]
                if values:
                    steps.setdefault(line["step"], []).append(fmean(values))
        most = max(map(len, steps.values()), default=0)
        return [(step, fmean(values)) for step, values in sorted(steps.items()) if len(values) == most]


def height(score: str, value: float) -> float:
    """Position of a score in percent on the axis that safety is set against, on which more is better.

    Over-refusal: the share of harmless requests that are answered, as in ``eval/pareto``.
    """
    return 100 - value if score == "over_refusal" else value


def read_rows(
    experiment: Experiment, suite: str, points: Sequence[Point], folder: Path, kept: Mapping[str, Record] | None = None
) -> list[Row]:
    """Every row with what has run of it, a group at a time, pipelines and methods in the paper's order.

    Args:
        folder: of the suite's runs.
        kept: records of runs, by name, for those that do not lie there.

    Raises:
        UserError: a result is damaged.
    """
    rows = []
    strength = next((found for name, found in experiment.settings.compared_at.items() if name == suite), 1.0)
    for name in dict.fromkeys(point.row for point in points):
        own = [point for point in points if point.row == name]
        config = min(own, key=lambda point: point.strength != strength).config
        model = row_model(name)
        group = f"world {config.data.seed} in the place of {model}"
        if not load_suite(suite).models:
            group = model if config.model.name == model else f"{config.model.name} in the place of {model}"
        results = [result for point in own if (result := _read(point, folder, experiment.settings, kept or {}))]
        label, attacks = row_label(experiment, name, config), experiment.settings.attack_success
        rows.append(Row(name, group, model, label, strength, config, own, results, attacks))
    groups = list(dict.fromkeys(row.group for row in rows))
    return sorted(
        _from_one_model(rows),
        key=lambda row: (
            groups.index(row.group),
            _order(row.pipeline, PIPELINES.values()),
            _order(row.method, publication().methods.values()),
        ),
    )


def _from_one_model(rows: Sequence[Row]) -> list[Row]:
    """The rows, with the results set apart that began with another untuned model than most of their seed in the group.

    A testbed's base has other weights on another machine. Runs that lie here count before those of which a record is
    kept.
    """
    here: dict[tuple[str, int], Counter[str | None]] = defaultdict(Counter)
    recorded: dict[tuple[str, int], Counter[str | None]] = defaultdict(Counter)
    for row in rows:
        for one in row.results:
            counts = recorded if isinstance(one.run, KeptRun) else here
            counts[row.group, one.point.seed][one.run.untuned] += 1
    most = {place: counts.most_common(1)[0][0] for place, counts in (recorded | here).items()}
    split = []
    for row in rows:
        parts: dict[bool, list[Result]] = {True: [], False: []}
        for one in row.results:
            parts[one.run.untuned == most[row.group, one.point.seed]].append(one)
        split.append(replace(row, results=parts[True], apart=parts[False]))
    return split


def reference_of(row: Row, experiment: Experiment, rows: Sequence[Row]) -> Row | None:
    """The row of the same group and pipeline that ``row`` is compared with; None if there is none or it is that."""
    return _alike(row, rows, experiment.settings.reference)


def usual_of(row: Row, experiment: Experiment, rows: Sequence[Row]) -> Row | None:
    """The row of the same group and pipeline with the paper's setting; None if there is none or it is that."""
    return _alike(row, rows, experiment.settings.usual)


def _alike(row: Row, rows: Sequence[Row], pattern: str | None) -> Row | None:
    alike = [other for other in rows if other.place == row.place]
    found = [other for other in alike if pattern is not None and fnmatchcase(other.name, pattern)]
    return found[0] if found and found[0] is not row else None


def row_label(experiment: Experiment, row: str, config: Config) -> str:
    """Name of a row: the experiment's ``label``, or the method where that does not name it."""
    folder, _, stem = row.rpartition("/")
    method = method_label(config)
    template = experiment.settings.label
    named = {"method": method, "row": method if folder == "table1" else stem if folder == experiment.name else row}
    keys = placeholders(template)
    values = {key: named.get(key) or setting(config, key) for key in keys}
    if any(value is None for value in values.values()):
        return method
    for key, value in values.items():
        template = template.replace(f"{{{key}}}", str(value))
    return template


def _finished(point: Point, folder: Path, kept: Mapping[str, Record]) -> FinishedRun | None:
    """A point's run in ``folder``, or what is kept of it; None where there is neither.

    Raises:
        UserError: its result is damaged.
    """
    directory = folder / point.config.run_name()
    if not is_finished(directory):
        record = kept.get(directory.name)
        return KeptRun(directory, record.metrics, record) if record else None
    try:
        return read_finished(directory)
    except UserError as error:
        raise UserError(*(f"{directory}: {problem}" for problem in error.problems)) from None


def _read(point: Point, folder: Path, settings: ExperimentSettings, kept: Mapping[str, Record]) -> Result | None:
    run = _finished(point, folder, kept)
    if run is None:
        return None
    members = [*point.config.eval.safety, *point.config.eval.utility]
    base, scores = _scores(run.metrics["base"]), _scores(run.last)
    if all(name in scores and name in base for name in members):
        gain = average_gain({name: scores[name] for name in members}, {name: base[name] for name in members})
        # A mean that leaves out benchmarks does not say which.
        scores |= {} if gain.percent is None or gain.excluded else {"gain": gain.percent}
    if settings.attack_success:
        for found in (base, scores):
            attacked = [name for name in point.config.eval.safety if name in found]
            found |= {attack_success(name): 100 - found[name] for name in attacked}
    displacement = displacement_of(point.config, run.directory) if settings.distance else None
    if displacement is not None:
        scores |= {"moved": 100 * relative_distance(displacement)}
    elif settings.distance and isinstance(run, KeptRun) and run.record.moved is not None:
        scores |= {"moved": run.record.moved}
    return Result(point, run, scores, base, displacement)


def _scores(part: dict[str, Any]) -> dict[str, float]:
    values = {name: part[name] for name in SCORES if name in part}
    entries = part.get("benchmarks", {})
    values |= {name: entry["value"] for name, entry in entries.items()}
    if values.get("safety") is not None and values.get("over_refusal") is not None:
        values[BALANCED] = balanced_score(values["safety"], values["over_refusal"])
    losses = {name for name, entry in entries.items() if entry.get("metric") == "loss"}
    return {name: value if name in losses else 100 * value for name, value in values.items() if value is not None}


def _order(item: Item, known: Any) -> int:
    order = list(known)
    return order.index(item) if item in order else len(order)
