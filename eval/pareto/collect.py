"""Tables and a picture of safety against utility from finished runs: ``python -m eval.pareto DIR…``.

Runs are grouped by world, pipeline and method variant. A world is what fixes the axes: the base
(``model.name``), the data (``data.name``, ``data.seed``) and the evaluation settings; scores of
different worlds are never averaged and never share a front. A variant is a method with all other
settings but the seed; its label names the settings in which the collected runs differ.
"""

import io
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from eval.scores.statistics import Point, Summary, hypervolume, pareto_front, summarize
from ogpsa.config import INERT_SECTIONS
from ogpsa.runs.directory import CONFIG_FILE, METRICS_FILE, read_stored_config
from ogpsa.utils.command_line import Parser
from ogpsa.utils.errors import EXIT_DONE, UserError, closest_match, report
from ogpsa.utils.files import check_writable, read_json, write_atomically, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCORES = ("safety", "utility", "over_refusal")
BASE_SETTINGS = ("model.name", "data.name", "data.seed")
REQUIRED_SETTINGS = ("seed", "stage.name", "method.name", "eval.name", *BASE_SETTINGS)
# What changes no result, and the recipe: what it sets shows in the stage's own keys.
IGNORED_SECTIONS = (*INERT_SECTIONS, "model.recipe")
# Base values that differ by less differ in the order of summation alone.
BASE_TOLERANCE = 1e-9

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)
Result = TypeVar("Result")
Value = TypeVar("Value")
Settings = dict[str, Any]
Variant = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Scores(Generic[Value]):
    """One value a score, each an average over benchmarks in [0, 1].

    ``over_refusal`` (lower is better) is None where it is not measured.
    """

    safety: Value
    utility: Value
    over_refusal: Value | None

    def named(self) -> dict[str, Value | None]:
        return {"safety": self.safety, "utility": self.utility, "over_refusal": self.over_refusal}


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

    ``fronts`` holds the front of all groups first, then one a pipeline.
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


@dataclass(frozen=True)
class _Finished:
    """A run with its settings, before it has a group."""

    run: Run
    settings: Settings

    @property
    def pipeline(self) -> str:
        return str(self.settings["stage.name"])

    @property
    def method(self) -> str:
        return str(self.settings["method.name"])

    @property
    def variant(self) -> Variant:
        return tuple((key, _text(value)) for key, value in sorted(self.settings.items()))

    def values(self, keys: Sequence[str]) -> tuple[str, ...]:
        return tuple(_text(self.settings[key]) if key in self.settings else "unset" for key in keys)


def collect(directories: Sequence[Path]) -> Collection:
    """Find, read, group and compare the runs below ``directories``.

    Raises:
        UserError: a directory does not exist or holds no run, or no run at all can be used.
    """
    finished: list[_Finished] = []
    left_out: list[LeftOut] = []
    for root, directory in _find_runs(directories):
        name = str(directory.relative_to(root))
        try:
            finished.append(_read_run(root, directory, name))
        except UserError as error:
            left_out.append(LeftOut(str(root), name, str(error)))
    if not finished:
        raise UserError(*map(str, left_out), "DIR: none of the runs found can be used; expected a finished run")
    worlds = _worlds(finished)
    notes: list[str] = []
    labels = _labels(finished, worlds.values(), notes)
    names = sorted(worlds, key=_natural)
    return Collection([_compare(name, worlds[name], labels, notes) for name in names], left_out, notes)


def write(collection: Collection, folder: Path) -> list[Path]:
    """Write ``pareto.{csv,json,md,tex,png,pdf}`` into ``folder``, each atomically, and return the paths.

    Raises:
        UserError: ``folder`` cannot be written.
    """
    check_writable(folder, "--out")
    from eval.pareto.plot import draw
    from eval.pareto.tables import comma_separated, latex, markdown

    paths = {ending: folder / f"pareto.{ending}" for ending in ("csv", "json", "md", "tex", "png", "pdf")}
    write_atomically(paths["csv"], comma_separated(collection))
    write_json(paths["json"], asdict(collection))
    write_atomically(paths["md"], markdown(collection))
    write_atomically(paths["tex"], latex(collection))
    figure = draw(collection)
    save(figure, paths["png"])
    # Without its date the file is the same whenever the results are.
    save(figure, paths["pdf"], metadata={"CreationDate": None})
    return list(paths.values())


def save(figure: "Figure", path: Path, **options: Any) -> None:
    """Write a picture atomically, in the format that its suffix names."""
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:], **options)
    write_atomically(path, picture.getvalue())


def _find_runs(directories: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Pairs of a given directory and a run directory below it, each run once, in the order of their paths."""
    problems: list[str] = []
    runs: dict[Path, tuple[Path, Path]] = {}
    for root in directories:
        if not root.is_dir():
            siblings = [entry.name for entry in root.parent.iterdir()] if root.parent.is_dir() else []
            found = "is a file" if root.exists() else "no such directory"
            problems.append(f"DIR: {root}: {found}; expected a directory of runs{closest_match(root.name, siblings)}")
            continue
        below = sorted(run_directories(root))
        if not below:
            problems.append(f"DIR: {root}: holds no run; expected directories with a {CONFIG_FILE}")
        for directory in below:
            runs.setdefault(directory.resolve(), (root, directory))
    if problems:
        raise UserError(*problems)
    return list(runs.values())


def run_directories(root: Path) -> Iterator[Path]:
    """The run directories at and below ``root``; nothing below one of them is looked at."""
    for place, folders, files in os.walk(root):
        if CONFIG_FILE in files:
            folders.clear()
            yield Path(place)
        # Hidden folders hold caches and unfinished work.
        folders[:] = [folder for folder in folders if not folder.startswith(".")]


def _read_run(root: Path, directory: Path, name: str) -> _Finished:
    """Read one run directory.

    Raises:
        UserError: it cannot be used; the message says why.
    """
    settings = _read_settings(directory / CONFIG_FILE)
    seed = settings.pop("seed")
    path = directory / METRICS_FILE
    if not path.exists():
        raise UserError(f"no {METRICS_FILE}: the run is not finished")
    try:
        metrics = read_json(path)
    except OSError as error:
        raise UserError(f"{METRICS_FILE}: {error.strerror}") from None
    except UserError as error:
        raise UserError(str(error).replace(str(path), METRICS_FILE)) from None
    scores = _read_scores(metrics, METRICS_FILE)
    base = _read_scores(metrics.get("base"), f"{METRICS_FILE}: base")
    return _Finished(Run(str(root), name, seed, scores, base), settings)


def _read_settings(path: Path) -> Settings:
    # As plain YAML, not as today's schema: a run stays usable when the schema has gained a key since.
    try:
        stored = read_stored_config(path)
    except OSError as error:
        raise UserError(f"{path.name}: {error.strerror}") from None
    if stored is None:
        raise UserError(f"{path.name}: not readable as a configuration")
    settings = {key: value for key, value in _flatten(stored).items() if not _is_below(key, IGNORED_SECTIONS)}
    for key in REQUIRED_SETTINGS:
        if settings.get(key) is None:
            raise UserError(f"{path.name}: {key} is missing")
    return settings


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> Settings:
    """Settings by dotted key. A method's keys stay whole: a mapping there is one value for each stage."""
    flat: Settings = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and prefix != "method.":
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _is_below(key: str, sections: Iterable[str]) -> bool:
    return any(f"{key}.".startswith(f"{section}.") for section in sections)


def _read_scores(part: Any, place: str) -> Scores[float]:
    """The scores in a part of the metrics; ``place`` names it in messages."""
    if not isinstance(part, dict):
        raise UserError(f"{place}: found {type(part).__name__}, expected an object with {', '.join(SCORES)}")
    for key in SCORES:
        if key not in part:
            raise UserError(f"{place}: {key} is missing")
        value = part[key]
        measured = value is not None or key != "over_refusal"
        # JSON's true and false are numbers in Python; NaN and infinity fail the comparison.
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
        if measured and not number:
            raise UserError(f"{place}: {key}: found {value!r}, expected a number from 0 to 1")
    return Scores(*(part[key] for key in SCORES))


def _text(value: Any) -> str:
    """A value as it is typed on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_text(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    return str(value)


def _natural(text: str) -> list[tuple[int, str]]:
    """Sorting key that puts rank=2 before rank=10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def _partition(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    parts: dict[Key, list[Item]] = defaultdict(list)
    for item in items:
        parts[key(item)].append(item)
    return dict(parts)


def _differing(members: Sequence[_Finished]) -> set[str]:
    """The keys whose value is not the same in all members."""
    keys = {key for member in members for key in member.settings}
    return {key for key in keys if len({member.values([key]) for member in members}) > 1}


def _short_names(finished: Sequence[_Finished]) -> dict[str, str]:
    """For every dotted key its shortest ending that no other key shares."""
    endings = {key: _endings(key) for run in finished for key in run.settings}
    shared = Counter(ending for own in endings.values() for ending in own)
    return {key: next((ending for ending in own if shared[ending] == 1), key) for key, own in endings.items()}


def _endings(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]


def _worlds(finished: Sequence[_Finished]) -> dict[str, list[_Finished]]:
    """Runs by world. The name holds those evaluation settings that tell it from others of the same base."""
    short = _short_names(finished)
    worlds: dict[str, list[_Finished]] = defaultdict(list)
    for (model, data, seed), same_base in _partition(finished, lambda run: run.values(BASE_SETTINGS)).items():
        telling: list[str] = []
        # eval.name first, since it often says it all.
        for key in sorted(_differing(same_base), key=lambda key: (key != "eval.name", key)):
            kinds = {run.values(telling) for run in same_base}
            finer = {run.values([*telling, key]) for run in same_base}
            if key.startswith("eval.") and len(finer) > len(kinds):
                telling.append(key)
        for run in same_base:
            told = [f"{short[key]}={value}" for key, value in zip(telling, run.values(telling), strict=True)]
            worlds[" ".join([f"{model}, {data} seed {seed}", *told])].append(run)
    return worlds


def _labels(
    finished: Sequence[_Finished], worlds: Iterable[Sequence[_Finished]], notes: list[str]
) -> dict[Variant, str]:
    """Label every variant by its method and the settings in which runs differ, alike in all worlds.

    Those are the method's own keys in which any two of its runs differ, and the other keys in which two of
    its runs of the same world and pipeline do. A key's usual value is not named; it goes to ``notes``.
    """
    short = _short_names(finished)
    others: dict[tuple[str, str], set[str]] = defaultdict(set)
    for members in worlds:
        for case, runs in _partition(members, lambda run: (run.method, run.pipeline)).items():
            others[case] |= {key for key in _differing(runs) if not key.startswith("method.")}
    labels: dict[Variant, str] = {}
    for method, of_method in _partition(finished, lambda run: run.method).items():
        own = _usual(of_method, {key for key in _differing(of_method) if key.startswith("method.")})
        notes += _unnamed(method, own, short)
        for pipeline, runs in _partition(of_method, lambda run: run.pipeline).items():
            other = _usual(runs, others[method, pipeline])
            notes += _unnamed(f"{pipeline}: {method}", other, short)
            usual = own | other
            for run in runs:
                values = zip(usual, run.values(list(usual)), strict=True)
                told = [f"{short[key]}={value}" for key, value in values if value != usual[key]]
                labels[run.variant] = " ".join([method, *told])
    return labels


def _usual(runs: Sequence[_Finished], keys: Iterable[str]) -> dict[str, str | None]:
    """By key, sorted: null (the default) where a run has it, else what over half of the variants have, or None."""
    variants = {run.variant: run for run in runs}.values()
    usual: dict[str, str | None] = {}
    for key in sorted(keys):
        counts = Counter(variant.values([key])[0] for variant in variants)
        value, count = counts.most_common(1)[0]
        usual[key] = "null" if "null" in counts else value if 2 * count > len(variants) else None
    return usual


def _unnamed(who: str, usual: Mapping[str, str | None], short: Mapping[str, str]) -> list[str]:
    told = [f"{short[key]}={value}" for key, value in usual.items() if value is not None]
    return [f"{who}: where a label does not say otherwise, {' '.join(told)}"] if told else []


def _compare(name: str, members: Sequence[_Finished], labels: Mapping[Variant, str], notes: list[str]) -> World:
    """Summarize one world's groups and find its fronts; remarks go to ``notes``."""
    bases = [member.run.base for member in members]
    base = _combine(bases, mean)
    for key, spread in _combine(bases, lambda values: max(values) - min(values)).named().items():
        if spread is not None and spread > BASE_TOLERANCE:
            notes.append(
                f"{name}: the runs disagree on the base's {key} by up to {spread:.2g}: the base is shown as the "
                "mean over all runs, changes are against each run's own base"
            )
    groups = []
    for variant, same in _partition(members, lambda member: member.variant).items():
        label = labels[variant]
        runs = _one_a_seed([member.run for member in same], f"{name}: {same[0].pipeline}: {label}", notes)
        groups.append(_summarize(same[0], label, runs, base))
    groups.sort(key=lambda group: (group.pipeline, _natural(group.label)))
    parts = _partition(groups, lambda group: group.pipeline)
    return World(name, base, groups, [_front(None, groups, base), *(_front(*part, base) for part in parts.items())])


def _combine(many: Sequence[Scores[float]], combine: Callable[[list[float]], Result]) -> Scores[Result]:
    over_refusal = [one.over_refusal for one in many if one.over_refusal is not None]
    return Scores(
        combine([one.safety for one in many]),
        combine([one.utility for one in many]),
        combine(over_refusal) if len(over_refusal) == len(many) else None,
    )


def _one_a_seed(runs: Sequence[Run], place: str, notes: list[str]) -> list[Run]:
    """The first run of each seed, by seed."""
    kept = []
    for seed, (first, *others) in sorted(_partition(runs, lambda run: run.seed).items()):
        kept.append(first)
        for other in others:
            found = "the same scores" if other.scores == first.scores else "other scores"
            notes.append(
                f"{place}: two runs of seed {seed}: {Path(first.root, first.directory)} is kept, "
                f"{Path(other.root, other.directory)} ({found}) is not"
            )
    return kept


def _summarize(example: _Finished, label: str, runs: list[Run], base: Scores[float]) -> Group:
    scores = _combine([run.scores for run in runs], summarize)
    change = _combine([_difference(run.scores, run.base) for run in runs], mean)
    volume = hypervolume([_point(base), (scores.safety.mean, scores.utility.mean)])
    return Group(example.pipeline, example.method, label, example.settings, runs, scores, change, volume)


def _difference(after: Scores[float], before: Scores[float]) -> Scores[float]:
    over_refusal = None
    if after.over_refusal is not None and before.over_refusal is not None:
        over_refusal = after.over_refusal - before.over_refusal
    return Scores(after.safety - before.safety, after.utility - before.utility, over_refusal)


def _front(pipeline: str | None, groups: Sequence[Group], base: Scores[float]) -> Front:
    points = [_point(base), *(group.point for group in groups)]
    base_on_front, *on_front = pareto_front(points)
    members = [(group.pipeline, group.label) for group, on in zip(groups, on_front, strict=True) if on]
    return Front(pipeline, members, base_on_front, hypervolume(points))


def _point(scores: Scores[float]) -> Point:
    return scores.safety, scores.utility


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables and the picture, print the Markdown table, and return the exit code."""
    parser = Parser(
        prog="python -m eval pareto",
        description="Safety against utility of finished runs: tables, Pareto fronts and a picture.",
    )
    parser.add_argument("directories", metavar="DIR", nargs="+", type=Path, help="searched for run directories")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="where pareto.* are written (default: first DIR)")
    try:
        options = parser.parse_args(arguments)
        collection = collect(options.directories)
        paths = write(collection, options.out or options.directories[0])
    except UserError as error:
        return report(error)
    print(next(path for path in paths if path.suffix == ".md").read_text(encoding="utf-8"), end="")
    for line in [*collection.notes, *(f"left out: {run}" for run in collection.left_out)]:
        print(line, file=sys.stderr)
    print("wrote", *paths, file=sys.stderr)
    return EXIT_DONE
