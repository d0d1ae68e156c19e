"""Finding and reading finished runs, grouping them, and comparing the groups."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

from eval.pareto.collection import (
    Against,
    Collection,
    Front,
    Group,
    LeftOut,
    Run,
    Settings,
    World,
    base_point,
    known_hypervolume,
)
from eval.pareto.naming import (
    BASE_SETTINGS,
    ConfiguredRun,
    Variant,
    natural_key,
    partition,
    runs_by_world,
    variant_labels,
)
from eval.scores.aggregate import AVERAGES
from eval.scores.finished import Scores, read_finished, run_directories
from eval.scores.statistics import pareto_front, summarize
from ogpsa.config import is_inert
from ogpsa.runs.directory import CONFIG_FILE
from ogpsa.utils.dotted import flatten
from ogpsa.utils.errors import UserError, closest_folder

REQUIRED_SETTINGS = ("seed", "stage.name", "method.name", "eval.name", *BASE_SETTINGS)
# In addition to inert keys: the recipe, which shows in the stage's own keys, and a base's seed, which its scores show.
IGNORED_SECTIONS = ("model.recipe.", "model.base.seed.")
# Base values that differ by less differ in the order of summation alone.
BASE_TOLERANCE = 1e-9

Result = TypeVar("Result")


def collect(directories: Sequence[Path]) -> Collection:
    """Find, read, group and compare the runs below ``directories``.

    Raises:
        UserError: a directory does not exist or holds no run, or no run at all can be used.
    """
    finished: list[ConfiguredRun] = []
    left_out: list[LeftOut] = []
    for root, directory in _find_runs(directories):
        name = str(directory.relative_to(root))
        try:
            finished.append(_read_run(root, directory, name))
        except UserError as error:
            left_out.append(LeftOut(str(root), name, str(error)))
    if not finished:
        raise UserError(*map(str, left_out), "DIR: none of the runs found can be used; expected a finished run")
    worlds = runs_by_world(finished)
    notes: list[str] = []
    labels = variant_labels(finished, worlds.values(), notes)
    names = sorted(worlds, key=natural_key)
    return Collection([_compare(name, worlds[name], labels, notes) for name in names], left_out, notes)


def _find_runs(directories: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pairs of a given directory and a run directory below it, each run once, in the order of their paths."""
    problems: list[str] = []
    runs: dict[Path, tuple[Path, Path]] = {}
    for root in directories:
        if not root.is_dir():
            found = "is a file" if root.exists() else "no such directory"
            problems.append(f"DIR: {root}: {found}; expected a directory of runs{closest_folder(root)}")
            continue
        below = sorted(run_directories(root))
        if not below:
            problems.append(f"DIR: {root}: holds no run; expected directories with a {CONFIG_FILE}")
        for directory in below:
            runs.setdefault(directory.resolve(), (root, directory))
    if problems:
        raise UserError(*problems)
    return list(runs.values())


def _read_run(root: Path, directory: Path, name: str) -> ConfiguredRun:
    """Read one run directory.

    Raises:
        UserError: it cannot be used; the message says why.
    """
    found = read_finished(directory)
    settings = _settings(found.config)
    seed = settings.pop("seed")
    run = Run(str(root), name, seed, found.scores, found.base, found.incomplete, found.base_incomplete)
    return ConfiguredRun(run, settings)


def _settings(stored: Mapping[str, Any]) -> Settings:
    """Settings by dotted key. A method's keys stay whole: a mapping there is one value for each stage.

    Raises:
        UserError: one is missing.
    """
    flat: Settings = {}
    for section, value in stored.items():
        whole = section == "method" and isinstance(value, Mapping)
        flat |= {f"method.{key}": own for key, own in value.items()} if whole else flatten(value, str(section))
    settings = {
        key: value for key, value in flat.items() if not (is_inert(key) or f"{key}.".startswith(IGNORED_SECTIONS))
    }
    for key in REQUIRED_SETTINGS:
        if settings.get(key) is None:
            raise UserError(f"{CONFIG_FILE}: {key} is missing")
    return settings


def _compare(name: str, members: Sequence[ConfiguredRun], labels: Mapping[Variant, str], notes: list[str]) -> World:
    """Summarize one world's groups and find its fronts; remarks go to ``notes``."""
    bases = [member.run.base for member in members]
    base = _base_of([member.run for member in members])
    notes += [
        f"{name}: the runs disagree on the base's {key} by up to {spread:.2g}: the base is shown as the "
        "mean over seeds, changes are against each run's own base"
        for key, spread in _disagreements(bases)
        if len({member.run.seed for member in members}) > 1
    ]
    notes += [
        f"{name}: the runs of seed {seed} disagree on the base's {key} by up to {spread:.2g}: if they began "
        "with different models, more than their methods tells them apart"
        for seed, same in partition(members, lambda member: member.run.seed).items()
        for key, spread in _disagreements([member.run.base for member in same])
    ]
    _note_incomplete(f"{name}: the base", {str(one.run): one.run.base_incomplete for one in members}, notes)
    groups = []
    for variant, same in partition(members, lambda member: member.variant).items():
        label = labels[variant]
        place = f"{name}: {same[0].pipeline}: {label}"
        runs = _one_a_seed([member.run for member in same], place, notes)
        _note_incomplete(place, {str(run): run.incomplete for run in runs}, notes)
        groups.append(_summarize(same[0], label, runs))
    groups.sort(key=lambda group: (group.pipeline, natural_key(group.label)))
    parts = partition(groups, lambda group: group.pipeline)
    fronts = [(None, groups), *parts.items()]
    measured = any(group.scores.over_refusal is not None for group in groups)
    return World(
        name,
        base,
        groups,
        [_front(*part, "utility", name, notes) for part in fronts],
        [_front(*part, "over_refusal", name, notes) for part in fronts] if measured else [],
    )


def _disagreements(bases: Sequence[Scores[float]]) -> list[tuple[str, float]]:
    """The scores on which they disagree, each with by how much."""
    spreads = _combine(bases, lambda values: max(values) - min(values)).named()
    # A derived score disagrees only if its parts do, which are named themselves.
    return [(key, by) for key, by in spreads.items() if key != "balanced" and by is not None and by > BASE_TOLERANCE]


def _combine(many: Sequence[Scores[float]], combine: Callable[[list[float]], Result]) -> Scores[Result]:
    def combined(values: Sequence[float | None]) -> Result | None:
        known = [value for value in values if value is not None]
        return combine(known) if len(known) == len(values) else None

    return Scores(**{key: combined([one.named()[key] for one in many]) for key in many[0].named()})


def _note_incomplete(place: str, runs: Mapping[str, Mapping[str, Sequence[str]]], notes: list[str]) -> None:
    """Name the averages without a value and the benchmarks that are missing in each of ``runs``, by directory."""
    for key in AVERAGES:
        without = [(run, tuple(incomplete[key])) for run, incomplete in runs.items() if key in incomplete]
        for names, same in partition(without, lambda one: one[1]).items():
            # Over-refusal may be left unmeasured; the two axes may not.
            if names or key != "over_refusal":
                missing = f"{', '.join(names)} without a score" if names else "none of its benchmarks was evaluated"
                where = "all runs" if len(same) == len(runs) > 1 else ", ".join(run for run, _ in same)
                notes.append(f"{place}: no {key} score, shown as n/a: {missing} in {where}")


def _one_a_seed(runs: Sequence[Run], place: str, notes: list[str]) -> list[Run]:
    """The first run of each seed, by seed."""
    kept = []
    for seed, (first, *others) in sorted(partition(runs, lambda run: run.seed).items()):
        kept.append(first)
        for other in others:
            found = "the same scores" if other.scores == first.scores else "other scores"
            notes.append(f"{place}: two runs of seed {seed}: {first} is kept, {other} ({found}) is not")
    return kept


def _base_of(runs: Sequence[Run]) -> Scores[float]:
    """The runs' base: a mean over seeds, whichever of them more runs have."""
    by_seed = partition(runs, lambda run: run.seed).values()
    return _combine([_combine([run.base for run in same], mean) for same in by_seed], mean)


def _summarize(example: ConfiguredRun, label: str, runs: list[Run]) -> Group:
    scores = _combine([run.scores for run in runs], summarize)
    change = _combine([_difference(run.scores, run.base) for run in runs], mean)
    group = Group(example.pipeline, example.method, label, example.settings, runs, scores, change, None)
    if (point := group.point()) is None:
        return group
    return replace(group, hypervolume=known_hypervolume([base_point(_base_of(runs)), point]))


def _difference(after: Scores[float], before: Scores[float]) -> Scores[float]:
    old = before.named()
    changes = {
        key: None if new is None or (start := old[key]) is None else new - start for key, new in after.named().items()
    }
    return Scores(**changes)


def _front(pipeline: str | None, groups: Sequence[Group], against: Against, name: str, notes: list[str]) -> Front:
    """The front of the means over the seeds that all groups with both scores have: other seeds may have other bases."""
    measured = [group for group in groups if group.point(against) is not None]
    seeds = [{run.seed for run in group.runs} for group in measured]
    common = set[int].intersection(*seeds) if seeds else set[int]()
    if any(own != common for own in seeds):
        shared = ", ".join(map(str, sorted(common)))
        front = f"the front is over those that all have, {shared}" if common else "no seed is in all: there is no front"
        note = f"{name}: {pipeline or 'all pipelines'}: the groups have run with different seeds; {front}"
        notes += [note] * (note not in notes)
    compared = [_of_seeds(group, common) for group in measured] if common else []
    runs = [run for group in (compared if measured else groups) for run in group.runs]
    base = base_point(_base_of(runs), against) if runs else None
    points = [base, *(group.point(against) for group in compared)]
    standings = iter(pareto_front([point for point in points if point is not None]))
    base_on_front, *on_front = [point is not None and next(standings) for point in points]
    members = [(group.pipeline, group.label) for group, on in zip(compared, on_front, strict=True) if on]
    return Front(pipeline, members, base_on_front, known_hypervolume(points))


def _of_seeds(group: Group, seeds: set[int]) -> Group:
    """The group with the runs of these seeds alone."""
    runs = [run for run in group.runs if run.seed in seeds]
    return replace(group, runs=runs, scores=_combine([run.scores for run in runs], summarize))
