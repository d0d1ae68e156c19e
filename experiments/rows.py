"""Which runs an experiment consists of: its rows, in a suite, at seeds and strengths.

An experiment is one YAML in ``experiments/definitions``; a row is one YAML in ``conf/experiment/<experiment>``; a suite
(``experiments/definitions/suites``) says at what size the rows run. Nothing here imports torch.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import Field, ValidationError

from ogpsa.app.compose import CONF, compose_config
from ogpsa.config import Config, OneStage, Section, StageName, describe
from ogpsa.subspace.settings import ProjectionSettings
from ogpsa.utils.dotted import flatten
from ogpsa.utils.errors import UserError, closest_match

DEFINITIONS = Path(__file__).parent / "definitions"
PUBLISHED_FILE = DEFINITIONS / "published.yaml"
ROWS = CONF / "experiment"
S = TypeVar("S", bound=Section)
SuiteName = Literal["paper", "testbed", "small", "small_full", "check"]
# In addition to the names of experiments.
ALL = "all"


class Device(Section):
    """The devices assumed for one run in ``python -m experiments plan``; ``utilisation`` is of their peak."""

    name: str
    memory_gb: float = Field(gt=0)
    teraflops: float = Field(gt=0)
    utilisation: float = Field(gt=0, le=1)


class Suite(Section):
    """A size at which every row can run: ``experiments/definitions/suites/<name>.yaml``.

    Attributes:
        own_bases: each seed trains a testbed base of its own (``model.base.seed``); otherwise all start from one.
        row_tokens: of a row that is not built yet, for ``plan``; None: it says nothing of such rows.
    """

    overrides: list[str]
    own_bases: bool = False
    models: dict[str, list[str]]
    rows: dict[str, list[str]] = Field(default_factory=dict)
    devices: int = Field(ge=1)
    device: Device
    max_steps: int | None = Field(default=None, ge=1)
    row_tokens: int | None = Field(default=None, ge=1)


class Grid(Section):
    """Some of an experiment's rows, how many seeds they run at and at which multiples of their learning rates."""

    rows: list[str] = Field(default=["*"], min_length=1)
    seeds: int = Field(ge=1)
    strengths: list[float] = Field(default=[1.0])


class Level(Section):
    """Benchmarks of ``safety`` and ``over_refusal``; the latter is read off where the former is ``at``, in percent."""

    safety: str
    over_refusal: str
    at: list[Annotated[float, Field(gt=0, lt=100)]]


class ExperimentSettings(Section):
    """``experiments/definitions/<name>.yaml``.

    Attributes:
        reference: pattern of the row that the others of its model and pipeline are compared with.
        usual: the same for the row with the paper's setting, or the nearest to it; they are compared with both.
        axis: key that the figure's horizontal axis shows.
        panels: parts of the rows that a front's figure draws apart, each a pattern by title: a row is in the first that
            fits. None: all are drawn together.
        distance: show how far the weights have moved.
        costs: show what each method costs.
        losses: show how utility was lost.
        attack_success: show the safety benchmarks as attack success, 100 less the score.
        overlap: show the cosines of the safety gradient with the subspace and each reference, and the losses.
        levels: safeties at which over-refusal is read off the rows' strengths.
        compared_at: the strength at which rows are compared, by suite; elsewhere 1.
    """

    title: str
    rows: list[str]
    label: str
    reference: str | None
    usual: str | None = None
    figure: Literal["none", "front", "curve", "overlap"]
    axis: str | None = None
    panels: dict[str, str] = Field(default_factory=dict)
    distance: bool = False
    costs: bool = False
    losses: bool = False
    attack_success: bool = False
    overlap: bool = False
    levels: list[Level] = Field(default_factory=list)
    compared_at: dict[SuiteName, float] = Field(default_factory=dict)
    suites: dict[SuiteName, list[Grid]]


@dataclass(frozen=True)
class Experiment:
    """A table or figure.

    Attributes:
        rows: names below ``conf/experiment``, in the table's order.
    """

    name: str
    settings: ExperimentSettings
    rows: tuple[str, ...]

    def panel(self, row: str) -> str:
        """The title of the part of a front's figure that the row is drawn in; empty if all are drawn together."""
        return next((title for title, pattern in self.settings.panels.items() if _matches(row, pattern)), "")


@dataclass(frozen=True)
class Point:
    """One run.

    Attributes:
        strength: multiple of the row's learning rates.
        overrides: what ``train.py`` is given to run it.
    """

    row: str
    seed: int
    strength: float
    overrides: tuple[str, ...]
    config: Config

    @property
    def name(self) -> str:
        """A readable name: the row, its seed, and its strength if it is not the row's own."""
        strength = "" if self.strength == 1 else f" x{self.strength:g}"
        return f"{self.row} seed {self.seed}{strength}"


def experiment_names() -> list[str]:
    return sorted(path.stem for path in DEFINITIONS.glob("*.yaml") if path != PUBLISHED_FILE)


def experiments_of(suite: str) -> list[str]:
    """The experiments that run on a suite.

    Raises:
        UserError: there is no such suite, or a file is wrong.
    """
    load_suite(suite)
    return [name for name in experiment_names() if suite in load_experiment(name).settings.suites]


def load_experiment(name: str) -> Experiment:
    """The experiment called ``name``.

    Raises:
        UserError: there is none, or its file is wrong.
    """
    names = experiment_names()
    if name not in names:
        raise UserError(f"'{name}' is not an experiment; allowed: {', '.join(names)}{closest_match(name, names)}")
    file = DEFINITIONS / f"{name}.yaml"
    settings = validated(ExperimentSettings, file)
    rows = [row for pattern in settings.rows for row in _matching(pattern)]
    if absent := [pattern for pattern in settings.rows if not _matching(pattern)]:
        raise UserError(f"{file}: rows: '{absent[0]}' matches nothing in {ROWS}")
    if settings.levels:
        if not any(len({rate for grid in grids for rate in grid.strengths}) > 1 for grids in settings.suites.values()):
            raise UserError(f"{file}: levels: no suite runs at two strengths, between which over-refusal is read off")
        _check_levels(settings.levels, rows[0], file)
    experiment = Experiment(name, settings, tuple(dict.fromkeys(rows)))
    for key, pattern in (("reference", settings.reference), ("usual", settings.usual)):
        if pattern is not None and not any(fnmatchcase(row, pattern) for row in rows):
            raise UserError(
                f"{file}: {key}: '{pattern}' matches none of the table's rows{closest_match(pattern, rows)}"
            )
    if settings.figure == "curve" and settings.axis is None:
        raise UserError(f"{file}: axis: found null; figure is 'curve', whose axis shows a key, as method.rank")
    if settings.panels:
        _check_panels(experiment, file)
    _check_shown(experiment, file)
    return experiment


def _check_panels(experiment: Experiment, file: Path) -> None:
    """Refuse panels of a figure that has none, and panels that do not share the rows among them."""
    panels, titles = experiment.settings.panels, [experiment.panel(row) for row in experiment.rows]
    patterns = ", ".join(panels.values())
    if experiment.settings.figure != "front":
        raise UserError(f"{file}: panels: figure is '{experiment.settings.figure}'; only a front has panels")
    if "" in titles:
        raise UserError(f"{file}: panels: {experiment.rows[titles.index('')]} fits none of {patterns}")
    if absent := [title for title in panels if title not in titles]:
        raise UserError(f"{file}: panels: no row is in '{absent[0]}' ({panels[absent[0]]})")


def _check_shown(experiment: Experiment, file: Path) -> None:
    """Refuse a label or an axis with a key that no row's configuration has; no more are composed than needed."""
    settings = experiment.settings
    shown = [("label", key) for key in placeholders(settings.label) if key not in ("method", "row")]
    shown += [("axis", settings.axis)] if settings.axis is not None else []
    known = {"method", "row"}
    for row in experiment.rows:
        if not shown:
            return
        config = _compose((f"+experiment={row}",))
        shown = [(place, key) for place, key in shown if setting(config, key) is None]
        known |= flatten(config.model_dump(mode="json")).keys()
        if any(config.method.projection(stage.name) for stage in config.stages):
            known |= {f"method.{name}" for name in ProjectionSettings.__dataclass_fields__}
    if shown:
        raise UserError(
            *(f"{file}: {place}: no row has the key '{key}'{closest_match(key, known)}" for place, key in shown)
        )


def _check_levels(levels: Sequence[Level], row: str, file: Path) -> None:
    """Refuse benchmarks that the rows do not average; they share one evaluation, and ``row`` is one of them."""
    groups = _compose((f"+experiment={row}",)).eval.groups
    problems = [
        f"{file}: levels: {key}: found '{name}'; {row} averages {', '.join(groups[key])}"
        f"{closest_match(name, groups[key])}"
        for level in levels
        for key, name in (("safety", level.safety), ("over_refusal", level.over_refusal))
        if name not in groups[key]
    ]
    if problems:
        raise UserError(*problems)


def load_suite(name: str) -> Suite:
    """The suite called ``name``.

    Raises:
        UserError: there is none, or its file is wrong.
    """
    names = sorted(path.stem for path in (DEFINITIONS / "suites").glob("*.yaml"))
    if name not in names:
        raise UserError(f"suite: found '{name}'; allowed: {', '.join(names)}{closest_match(name, names)}")
    return validated(Suite, DEFINITIONS / "suites" / f"{name}.yaml")


def points(
    experiment: Experiment,
    suite: str,
    rows: Sequence[str] = ("*",),
    seeds: Sequence[int] | None = None,
    overrides: Sequence[str] = (),
) -> list[Point]:
    """The experiment's runs: row by row, seed by seed.

    Args:
        rows: patterns; a row is taken if one of them matches its name or the end of it after the experiment's.
        seeds: in place of the suite's own.
        overrides: given to every run in addition.

    Raises:
        UserError: the experiment or none of ``rows`` runs on this suite, nothing matches, or a row does not compose.
    """
    settings = load_suite(suite)
    if suite not in experiment.settings.suites:
        raise UserError(
            f"suite: {experiment.name} does not run on '{suite}'; allowed: {', '.join(experiment.settings.suites)}"
        )
    taken = [row for row in experiment.rows if any(_matches(row, pattern) for pattern in rows)]
    for pattern in rows:
        if not any(_matches(row, pattern) for row in experiment.rows):
            short = [row.removeprefix(f"{experiment.name}/") for row in experiment.rows]
            raise UserError(
                f"rows: '{pattern}' matches no row of {experiment.name}; rows: {', '.join(short)}"
                f"{closest_match(pattern, short)}"
            )
    found = []
    for row in taken:
        given = (*row_overrides(row, suite), *overrides)
        config = _compose(given)
        for seed, strength in _grid(experiment, suite, row, seeds):
            here, changes = _adjusted(config, strength, settings.max_steps)
            here = here.model_copy(update={"seed": seed})
            if settings.own_bases:
                here, changes = _with_base(here, seed), [*changes, f"model.base.seed={seed}"]
            found.append(Point(row, seed, strength, (*given, *changes, f"seed={seed}"), here))
    if not found and "*" not in rows:
        running = ", ".join(row for row in experiment.rows if _grid(experiment, suite, row, seeds))
        raise UserError(f"rows: suite={suite} of {experiment.name} leaves out {', '.join(taken)}; it runs {running}")
    return found


def row_overrides(row: str, suite: str) -> tuple[str, ...]:
    """A row in a suite, as arguments of ``train.py``, without the suite's cap on steps.

    Raises:
        UserError: the suite has no replacement for the row's model.
    """
    settings = load_suite(suite)
    given = [f"+experiment={row}"]
    if settings.models:
        model = row_model(row)
        if model not in settings.models:
            allowed = ", ".join(settings.models)
            raise UserError(f"{row}: suite={suite} has nothing in the place of model={model}; allowed: {allowed}")
        given += settings.models[model]
    given += settings.overrides
    given += [override for pattern, own in settings.rows.items() if _matches(row, pattern) for override in own]
    return tuple(given)


def _adjusted(config: Config, strength: float, max_steps: int | None) -> tuple[Config, list[str]]:
    """The configuration with its learning rates times ``strength`` and its steps capped, and the overrides for it."""
    overrides: list[str] = []
    stages: dict[str, OneStage] = {}
    for stage in config.stages:
        changes: dict[str, float | int] = {}
        if strength != 1:
            changes["learning_rate"] = float(f"{stage.learning_rate * strength:.6g}")
        if max_steps is not None:
            changes["max_steps"] = max_steps
        overrides += [f"{config.stage_key(stage.name)}.{key}={value:g}" for key, value in changes.items()]
        stages[stage.name] = stage.model_copy(update=changes)
    alone = stages.get(config.stage.name)
    adjusted = config.stage.model_copy(update=stages) if alone is None else alone
    return config.model_copy(update={"stage": adjusted}), overrides


def _with_base(config: Config, seed: int) -> Config:
    """``config`` with the base of that seed.

    Raises:
        UserError: it names no testbed base.
    """
    _, base = config.testbed_base()
    model = config.model.model_copy(update={"base": base.model_copy(update={"seed": seed})})
    return config.model_copy(update={"model": model})


def row_model(row: str) -> str:
    """The option of ``conf/model`` that a row picks, in its own file or in one that it inherits.

    Raises:
        UserError: it picks none.
    """
    model = _picks(row).get("override /model")
    if model is None:
        # What is wrong with a file that it inherits comes first.
        _compose((f"+experiment={row}",))
        raise UserError(
            f"{ROWS / row}.yaml: defaults: picks no model; begin with 'defaults: [/experiment/_paper]' or add "
            "'- override /model: NAME'"
        )
    return model


def _picks(row: str) -> dict[str, str]:
    """A row's options by group. Files whose names start with ``_`` are not rows but what rows inherit."""
    picks: dict[str, str] = {}
    file = ROWS / f"{row}.yaml"
    raw = _read(file) if file.is_file() else None
    for entry in (raw or {}).get("defaults") or []:
        picks |= entry if isinstance(entry, dict) else _picks(entry.removeprefix("/experiment/"))
    return picks


@cache
def _compose(overrides: tuple[str, ...]) -> Config:
    return compose_config(list(overrides))


def _grid(experiment: Experiment, suite: str, row: str, seeds: Sequence[int] | None) -> list[tuple[int, float]]:
    """Seeds and strengths of a row."""
    pairs = {
        (seed, strength): None
        for name, grids in experiment.settings.suites.items()
        if name == suite
        for grid in grids
        if any(_matches(row, pattern) for pattern in grid.rows)
        for strength in grid.strengths
        for seed in (range(grid.seeds) if seeds is None else seeds)
    }
    return list(pairs)


def _matches(row: str, pattern: str) -> bool:
    return fnmatchcase(row, pattern) or fnmatchcase(row.partition("/")[2], pattern)


def _matching(pattern: str) -> list[str]:
    names = [path.relative_to(ROWS).with_suffix("").as_posix() for path in ROWS.rglob("[!_]*.yaml")]
    return sorted((name for name in names if fnmatchcase(name, pattern)), key=_natural)


def _natural(name: str) -> list[float | str]:
    """``rank/4`` before ``rank/16``, ``replay_0.05`` before ``replay_0.1``."""
    return [float(part) if part[0].isdigit() else part for part in re.split(r"(\d+(?:\.\d+)?)", name) if part]


def placeholders(label: str) -> list[str]:
    """The words in braces: ``method`` and ``row``, which every row has, and keys of its configuration."""
    return [part.partition("}")[0] for part in label.split("{")[1:]]


def setting(config: Config, key: str) -> str | None:
    """A key's value as text, stage by stage where the stages differ; None where this configuration has no such key.

    What a projection makes of null, the paper's default, is shown in its place.
    """
    name = key.removeprefix("method.")
    if key != name and name in ProjectionSettings.__dataclass_fields__:
        projections = [config.method.projection(stage.name) for stage in config.stages]
        values = [vars(projection)[name] for projection in projections if projection is not None]
        return " / ".join(dict.fromkeys(_text(value, "never") for value in values)) or None
    flat = flatten(config.model_dump(mode="json"))
    others = {f"{key}.{stage}" for stage in get_args(StageName)} - {f"{key}.{stage.name}" for stage in config.stages}
    found = {path: value for path, value in flat.items() if path == key or path.startswith(f"{key}.")}
    parts = [value for path, value in found.items() if path not in others]
    return " / ".join(dict.fromkeys(_text(value, "default") for value in parts)) or None


def _text(value: Any, null: str) -> str:
    if isinstance(value, list | tuple):
        return " + ".join(map(str, value))
    return null if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def validated(schema: type[S], file: Path) -> S:
    """A YAML file as ``schema`` checks it.

    Raises:
        UserError: one line per problem, with the file.
    """
    raw = _read(file)
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        raise UserError(*(f"{file}: {line}" for line in describe(error, raw))) from None


def _read(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"{file}: {' '.join(str(error).split())}") from None
