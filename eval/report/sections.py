"""The content of the page: checkpoints on the same items, their scores, charts and examples."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, mean
from typing import Any

from eval.pareto.collect import collect
from eval.pareto.collection import Collection, Group, World, known_hypervolume
from eval.pareto.front import AXES, FrontIntervals, PointIntervals, front_intervals
from eval.scores.aggregate import AVERAGES
from eval.scores.artefacts import Artefacts, evaluation_folders, is_evaluation, read_artefacts, stage_evaluations
from eval.scores.finished import run_directories
from eval.scores.flips import response_text
from eval.scores.statistics import (
    ROUNDING,
    Gain,
    Interval,
    average_gain,
    hypervolume,
    normal_interval,
    pareto_front,
    summarize,
    unanimous_interval,
    wilson,
)
from ogpsa.runs.directory import SCORES_FILE
from ogpsa.runs.score_table import GROUPS, METRICS, response_remarks
from ogpsa.utils.errors import UserError, closest_folder

TITLES = {**GROUPS, "reported": "reported, in no average"}
# Colours that the page declares for the pipelines.
COLOURS = 6
LONGEST_TEXT = 4000
# The row of all of a benchmark's categories.
ALL = "all"


@dataclass(frozen=True)
class Cell:
    """A score as it is shown; ``low`` and ``high`` bound it, whatever the missing verdicts are."""

    value: float | None
    interval: Interval | None = None
    change: float | None = None
    n: int = 0
    missing: int = 0
    low: float | None = None
    high: float | None = None
    error: str | None = None
    remarks: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """The base, a group of seeds or one evaluation: a row of the tables, a point of the plot and a bar of each chart.

    Attributes:
        mark: ``B`` for the base, else a number.
        colour: 1 to ``COLOURS``, by pipeline; 0 for the base.
        evaluations: one per seed, the first one shown in the examples.
        scores: the averages by group.
    """

    mark: str
    label: str
    colour: int
    evaluations: list[Artefacts]
    scores: dict[str, Cell]
    hypervolume: float | None
    front: str
    sure: PointIntervals | None
    pipeline: str = ""
    seeds: int = 1
    gain: Gain | None = None

    @property
    def point(self) -> tuple[float, float] | None:
        safety, utility = (self.scores[axis].value for axis in AXES)
        return None if safety is None or utility is None else (safety, utility)


@dataclass(frozen=True)
class Section:
    """Checkpoints on the same items, judged alike; the base comes first where there is one."""

    title: str
    checkpoints: list[Checkpoint]
    hypervolume: float | None
    hypervolume_interval: Interval | None
    notes: list[str]


@dataclass(frozen=True)
class Chart:
    """A benchmark and each checkpoint's score in it.

    Attributes:
        top: the end of its scale: 1 of a share, of a loss the highest end of an interval.
    """

    name: str
    group: str
    metric: str
    judge: str
    parts: list[str]
    bars: list[tuple[Checkpoint, Cell]]

    @property
    def top(self) -> float:
        ends = [cell.interval.high if cell.interval else cell.value or 0.0 for _, cell in self.bars]
        return max(1.0, *ends)


@dataclass(frozen=True)
class Answer:
    """A checkpoint's answer to an item, and the judge's verdict on it."""

    checkpoint: Checkpoint
    verdict: str
    response: str


@dataclass(frozen=True)
class Example:
    id: str
    prompt: str
    target: str
    answers: list[Answer]


def find_sections(directory: Path, resamples: int) -> tuple[list[Section], list[str]]:
    """Everything below ``directory``, finished runs first, and remarks on what is not shown.

    Raises:
        UserError: there is no finished run and no evaluation, or what is there is damaged.
    """
    if not directory.is_dir():
        raise UserError(f"DIR: {directory}: no such directory{closest_folder(directory)}")
    runs = list(run_directories(directory))
    notes: list[str] = []
    collection = Collection([], [], [])
    lone = list(evaluation_folders(directory))
    if runs:
        try:
            collection = collect([directory])
        except UserError as error:
            if not lone:
                raise
            notes += error.problems
    left_out = {Path(run.root, run.directory) for run in collection.left_out}
    collected = [run for run in runs if run not in left_out] if collection.worlds else []
    lone = [folder for folder in lone if not any(run == folder or run in folder.parents for run in collected)]
    sections = [_world(world, resamples) for world in collection.worlds]
    sections += _lone_sections(directory, [read_artefacts(folder) for folder in lone], resamples)
    if not sections:
        raise UserError(f"DIR: {directory}: holds neither a run (config.yaml) nor an evaluation ({SCORES_FILE})")
    return sections, [*notes, *collection.notes, *(f"Left out: {run}" for run in collection.left_out)]


def _world(world: World, resamples: int) -> Section:
    notes: list[str] = []
    evaluations = [_group_evaluations(group, notes) for group in world.groups]
    own_bases = [_group_bases(group, notes) for group in world.groups]
    # One, or one per seed.
    different: dict[str | None, Artefacts] = {}
    for one in (base for group in own_bases for base in group):
        different.setdefault(one.model, one)
    bases = list(different.values())
    # What lacks safety or utility is on no front.
    placed = [group.point() is not None for group in world.groups]
    whole = [found for found, on in zip(evaluations, placed, strict=True) if on]
    sure = None
    if bases and whole and all(whole):
        sure = _intervals(bases if world.base_point() else [], whole, resamples, notes)
    points = iter(sure.groups if sure else [])
    pipelines = sorted({group.pipeline for group in world.groups})
    checkpoints = [_base(world, bases, sure)]
    for number, (group, found, started) in enumerate(zip(world.groups, evaluations, own_bases, strict=True), start=1):
        point = next(points, None) if placed[number - 1] else None
        change, summaries = group.change.named(), group.scores.named()
        scores = {}
        for name in AVERAGES:
            summary = summaries[name]
            interval = _bounds(point).get(name)
            if summary and summary.half_width is not None:
                interval = Interval(summary.mean - summary.half_width, summary.mean + summary.half_width)
            value = summary.mean if summary else None
            scores[name] = _average(found, name, value, interval, change[name], _without_score(found, name))
        checkpoints.append(
            Checkpoint(
                mark=str(number),
                label=group.label,
                pipeline=group.pipeline,
                colour=pipelines.index(group.pipeline) % COLOURS + 1,
                evaluations=found,
                seeds=len(group.runs),
                scores=scores,
                gain=_gain(started, found, notes),
                hypervolume=group.hypervolume,
                front=world.standing(group),
                sure=point,
            )
        )
    notes = list(dict.fromkeys(notes))
    return Section(world.name, checkpoints, world.fronts[0].hypervolume, sure.hypervolume if sure else None, notes)


def _base(world: World, bases: list[Artefacts], sure: FrontIntervals | None) -> Checkpoint:
    overall, *pipelines = world.fronts
    standing = "overall" if overall.base_on_front else "pipeline" if any(f.base_on_front for f in pipelines) else ""
    point = sure.base if sure else None
    scores = {}
    for name in AVERAGES:
        value, interval = world.base.named()[name], _bounds(point).get(name)
        values = [own for one in bases if (own := one.scores.get(name)) is not None]
        if value is not None and 1 < len(values) == len(bases) and (half := summarize(values).half_width) is not None:
            interval = Interval(value - half, value + half)
        scores[name] = _average(bases, name, value, interval, error=_without_score(bases, name))
    return Checkpoint(
        mark="B",
        label="base",
        colour=0,
        evaluations=bases,
        seeds=max(1, len(bases)),
        scores=scores,
        hypervolume=known_hypervolume([world.base_point()]),
        front=standing,
        sure=point,
    )


def _bounds(point: PointIntervals | None) -> dict[str, Interval]:
    return {"safety": point.safety, "utility": point.utility} if point else {}


def _average(
    evaluations: Sequence[Artefacts],
    group: str,
    value: float | None,
    interval: Interval | None,
    change: float | None = None,
    error: str | None = None,
) -> Cell:
    """A group's average and the range that missing verdicts leave it; of one evaluation, always with a spread."""
    entries = [one.benchmarks[name] for one in evaluations for name in one.members(group)]
    averages = [one.average(group) for one in evaluations]
    if value is None or not entries:
        return Cell(value, interval, change, error=error)
    if len(evaluations) == 1:
        stderr = averages[0].get("stderr")
        if interval is None and stderr:
            interval = normal_interval(value, stderr)
        elif stderr == 0 or (interval and interval.high - interval.low < ROUNDING):
            (one,) = evaluations
            parts = [part for name in one.members(group) for part in one.parts(name)]
            interval = unanimous_interval(value, min(one.benchmarks[part]["n"] for part in parts))
    n, missing = sum(entry["n"] for entry in entries), sum(average.get("missing", 0) for average in averages)
    low, high = (mean(average.get(key, value) for average in averages) for key in ("low", "high"))
    return Cell(value, interval, change, n, missing, low, high, error)


def _without_score(evaluations: Sequence[Artefacts], group: str) -> str | None:
    """The benchmarks of a group that have no score in one of the evaluations."""
    names = [name for one in evaluations for name in one.scores.get("incomplete", {}).get(group, ())]
    return ", ".join(dict.fromkeys(names)) or None


def _group_evaluations(group: Group, notes: list[str]) -> list[Artefacts]:
    """The last evaluation of each of the group's runs, or nothing where one is gone."""
    found = []
    for run in group.runs:
        try:
            found.append(read_artefacts(stage_evaluations(Path(run.root, run.directory))[-1]))
        except UserError as error:
            notes += error.problems
            return []
    return found


def _group_bases(group: Group, notes: list[str]) -> list[Artefacts]:
    """The start of each of the group's runs; empty if one is gone."""
    folders = [Path(run.root, run.directory, "eval", "base") for run in group.runs]
    if not all(map(is_evaluation, folders)):
        return []
    try:
        return [read_artefacts(folder) for folder in folders]
    except UserError as error:
        notes += error.problems
        return []


def _intervals(
    bases: Sequence[Artefacts], groups: Sequence[Sequence[Artefacts]], resamples: int, notes: list[str]
) -> FrontIntervals | None:
    try:
        return front_intervals(bases, groups, resamples)
    except UserError as error:
        notes += [f"No intervals from resampling: {problem}" for problem in error.problems]
        return None


def _gain(bases: Sequence[Artefacts], evaluations: Sequence[Artefacts], notes: list[str]) -> Gain | None:
    """The mean over seeds of the average gain against the seed's own base; None if a benchmark has no score.

    It is over all benchmarks of safety and utility but those on which a base scores 0.
    """
    if not bases or not evaluations:
        return None
    names = [name for axis in AXES for name in bases[0].members(axis)]
    for one in [*bases, *evaluations]:
        without = [name for name in names if one.benchmarks.get(name, {}).get("value") is None]
        if without:
            notes.append(f"No average gain for {one.folder}: no score in {', '.join(without)}")
            return None
    excluded = [name for name in names if any(base.benchmarks[name]["value"] == 0 for base in bases)]
    included = [name for name in names if name not in excluded]
    gains = [
        average_gain(*({name: one.benchmarks[name]["value"] for name in included} for one in (tuned, base))).percent
        for base, tuned in zip(bases, evaluations, strict=True)
    ]
    percents = [gain for gain in gains if gain is not None]
    return Gain(fmean(percents) if percents else None, included, excluded)


def _measured(one: Artefacts) -> Hashable:
    """Everything but the checkpoint that an evaluation's averages depend on; only equal ones are compared."""
    return frozenset(
        (
            name,
            entry["group"],
            tuple(one.parts(name)),
            frozenset(row["id"] for row in one.verdicts(name)),
            one.instrument(name).key,
        )
        for name, entry in one.benchmarks.items()
    )


def _lone_sections(directory: Path, evaluations: Sequence[Artefacts], resamples: int) -> list[Section]:
    """Evaluations on the same items, judged alike, together; in the order of their names."""
    alike: dict[Hashable, list[Artefacts]] = {}
    for one in evaluations:
        alike.setdefault(_measured(one), []).append(one)
    sections = []
    for number, members in enumerate(alike.values(), start=1):
        notes: list[str] = []
        points = {
            one.folder: (one.scores["safety"], one.scores["utility"])
            for one in members
            if all(one.scores[axis] is not None for axis in AXES)
        }
        whole = [[one] for one in members if one.folder in points]
        found = _intervals([], whole, resamples, notes) if whole else None
        sure = dict(zip(points, found.groups, strict=True)) if found else {}
        on_front = [folder for folder, on in zip(points, pareto_front(list(points.values())), strict=True) if on]
        checkpoints = [
            Checkpoint(
                mark=str(position),
                label=str(one.folder.relative_to(directory)) if one.folder != directory else directory.name,
                colour=1,
                evaluations=[one],
                scores={
                    name: _average(
                        [one],
                        name,
                        one.scores[name],
                        _bounds(sure.get(one.folder)).get(name),
                        error=_without_score([one], name),
                    )
                    for name in AVERAGES
                },
                hypervolume=hypervolume([points[one.folder]]) if one.folder in points else None,
                front="overall" if one.folder in on_front else "",
                sure=sure.get(one.folder),
            )
            for position, one in enumerate(members, start=1)
        ]
        title = "Evaluations"
        if len(alike) > 1:
            title += f" on the same items with the same judges, {number} of {len(alike)}"
        volume = hypervolume(list(points.values())) if points else None
        sections.append(Section(title, checkpoints, volume, found.hypervolume if found else None, notes))
    return sections


def charts(section: Section) -> list[Chart]:
    """The benchmarks of a section's evaluations, those of each group together."""
    first: dict[str, Artefacts] = {}
    for one in section.checkpoints:
        for evaluation in one.evaluations:
            first |= {name: evaluation for name in evaluation.benchmarks if name not in first}
    found = [_chart(section, name, evaluation) for name, evaluation in first.items()]
    return sorted(found, key=lambda chart: list(TITLES.values()).index(chart.group))


def _chart(section: Section, name: str, example: Artefacts) -> Chart:
    entry = example.benchmarks[name]
    model = example.instrument(name).judge_model
    return Chart(
        name,
        TITLES[entry["group"]],
        METRICS.get(entry["metric"], entry["metric"]),
        " ".join(filter(None, [entry.get("judge"), model and f"({model})"])),
        [part for part in example.parts(name) if part != name],
        [(one, benchmark_cell(one.evaluations, name)) for one in section.checkpoints if one.evaluations],
    )


def benchmark_cell(evaluations: Sequence[Artefacts], name: str) -> Cell:
    """A benchmark's score: the mean over seeds with Student's interval, or of one with Wilson's over items.

    Of one loss it is the normal interval over items. A share's interval ends at 0 and 1.
    """
    entries = [one.benchmarks[name] for one in evaluations if name in one.benchmarks]
    values = [entry["value"] for entry in entries]
    n, missing = (sum(entry[key] for entry in entries) for key in ("n", "missing"))
    remarks = ", ".join(response_remarks(entries))
    if not values or len(values) < len(evaluations) or any(value is None for value in values):
        errors = [entry.get("error") for entry in entries if entry.get("error")]
        error = "; ".join(dict.fromkeys(errors)) or "no score"
        return Cell(None, n=n, missing=missing, error=error, remarks=remarks)
    low, high = (mean(entry.get(key, entry["value"]) for entry in entries) for key in ("low", "high"))
    if len(values) > 1:
        summary = summarize(values)
        assert summary.half_width is not None
        top = float("inf") if entries[0]["metric"] == "loss" else 1.0
        interval = Interval(max(0.0, summary.mean - summary.half_width), min(top, summary.mean + summary.half_width))
        return Cell(summary.mean, interval, None, n, missing, low, high, remarks=remarks)
    if entries[0]["metric"] == "loss":
        stderr = entries[0]["stderr"]
        spread = None if stderr is None else normal_interval(values[0], stderr, top=float("inf"))
        return Cell(values[0], spread, None, n, missing, low, high, remarks=remarks)
    # A composite's parts may hold the same items, which then count once.
    items = max(1, n // len(evaluations[0].parts(name)))
    return Cell(values[0], wilson(values[0], items), None, n, missing, low, high, remarks=remarks)


@dataclass(frozen=True)
class CategoryRow:
    """A category of a benchmark's items and each checkpoint's score in it, None where it has none."""

    benchmark: str
    category: str
    cells: Sequence[tuple[Checkpoint, Cell | None]]


def category_rows(section: Section, names: Sequence[str]) -> list[CategoryRow]:
    """The scores of the benchmarks ``names`` by category, of those whose items fall into some."""
    shown = [one for one in section.checkpoints if one.evaluations]
    rows: list[CategoryRow] = []
    for name in names:
        entries = {one.mark: [_categories(evaluation, name) for evaluation in one.evaluations] for one in shown}
        metrics = {found[name]["metric"] for one in shown for e in one.evaluations if name in (found := e.benchmarks)}
        categories = sorted({category for found in entries.values() for one in found for category in one})
        if categories:
            rows.append(CategoryRow(name, ALL, [(one, _clustered_cell(one.evaluations, name)) for one in shown]))
        for category in categories:
            cells = [(one, _category_cell(entries[one.mark], category, "loss" not in metrics)) for one in shown]
            rows.append(CategoryRow(name, category, cells))
    return rows


def _clustered_cell(evaluations: Sequence[Artefacts], name: str) -> Cell:
    """A benchmark's score, of one evaluation with an interval that holds if items of one category are alike."""
    cell = benchmark_cell(evaluations, name)
    error = evaluations[0].benchmarks.get(name, {}).get("clustered_stderr")
    if len(evaluations) > 1 or cell.value is None or error is None:
        return cell
    top = float("inf") if evaluations[0].benchmarks[name]["metric"] == "loss" else 1.0
    return replace(cell, interval=normal_interval(cell.value, error, top=top))


def _categories(one: Artefacts, benchmark: str) -> dict[str, Any]:
    # Older evaluations do not say.
    return one.benchmarks.get(benchmark, {}).get("categories") or {}


def _category_cell(seeds: Sequence[Mapping[str, Any]], category: str, is_share: bool) -> Cell | None:
    """The mean over seeds; None where one of them has no verdict on the category."""
    entries = [seed.get(category) or {"value": None} for seed in seeds]
    if any(entry["value"] is None for entry in entries):
        return None
    n, missing = (sum(entry[key] for entry in entries) for key in ("n", "missing"))
    value = fmean(entry["value"] for entry in entries)
    return Cell(value, wilson(value, n) if len(entries) == 1 and is_share else None, n=n, missing=missing)


def examples_of(section: Section, benchmark: str, number: int) -> list[Example]:
    """Items of a benchmark with every checkpoint's answer, those on which verdicts differ most first."""
    shown = [(one, one.evaluations[0]) for one in section.checkpoints if one.evaluations]
    answers: dict[str, list[Answer]] = {}
    asked: dict[str, Mapping[str, Any]] = {}
    for one, evaluation in shown:
        verdicts = {row["id"]: row for row in evaluation.verdicts(benchmark)}
        for row in evaluation.generations(benchmark):
            key = str(row["id"])
            asked.setdefault(key, row)
            verdict = verdicts.get(key, {})
            answers.setdefault(key, []).append(
                Answer(one, str(verdict.get("verdict", "not judged")), _cut(response_text(row)))
            )
    # Stable: items with as many different verdicts stay in their order.
    telling = sorted(asked, key=lambda key: -len({answer.verdict for answer in answers[key]}))
    return [
        Example(key, _cut(str(asked[key].get("prompt", ""))), _cut(str(asked[key].get("target", ""))), answers[key])
        for key in telling[:number]
    ]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}… ({len(text) - LONGEST_TEXT} characters more)"
