"""Two checkpoints on the same items: ``python -m eval compare A B``.

A and B are folders of evaluations, or directories of finished runs, whose last evaluation is taken. Prints how B
differs from A, benchmark by benchmark and average by average, with 95% intervals (paired bootstrap over items) and
p-values (sign flips of the paired differences), and B's average gain with A as its base. Only items on which both have
a verdict count; the others are listed as missing. Both must have been asked and judged alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from eval.scores.aggregate import AVERAGES
from eval.scores.artefacts import Artefacts, Instrument, item_seed, open_evaluation
from eval.scores.statistics import (
    RESAMPLES,
    Gain,
    Interval,
    average_gain,
    flip_test,
    flipped_means,
    percentile_interval,
    resampled_means,
    unanimous_interval,
)
from ogpsa.runs.score_table import GROUPS, METRICS
from ogpsa.utils.command_line import Parser, whole_number
from ogpsa.utils.errors import EXIT_DONE, UserError, report
from ogpsa.utils.table import Table, aligned

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

ALLOW = "--allow-different-judges"
COLUMNS = ("", "A", "B", "B − A", "95% interval", "p", "items")
# Resampled means of equal differences are equal but for rounding.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Difference:
    """B minus A, in one benchmark or average.

    Attributes:
        a, b: the scores, over the items that both have a verdict on.
        interval: of the difference; None for fewer than two items, which say nothing of their spread. Where all items
            differ alike, or none does, the bound of ``unanimous_interval``.
        p_value: of the difference, None likewise.
        items: those with both verdicts.
        missing: those without.
    """

    a: float
    b: float
    interval: Interval | None
    p_value: float | None
    items: int
    missing: int

    @property
    def value(self) -> float:
        return self.b - self.a


@dataclass(frozen=True)
class Comparison:
    """B against A.

    Attributes:
        benchmarks: by name; composites are among them.
        averages: by group, each over all its benchmarks; a group that cannot be compared as a whole is not in it.
        gain: B's average gain over the benchmarks of safety and utility, with A as its base; None if one cannot be
            compared.
        metrics: what each benchmark measures.
        notes: what is not compared, what else the two differ in, and averages with missing verdicts.
    """

    benchmarks: dict[str, Difference]
    averages: dict[str, Difference]
    gain: Gain | None
    metrics: dict[str, str]
    notes: list[str]


@dataclass(frozen=True)
class _Drawn:
    """A difference with the distributions that its interval and its p-value come from.

    Attributes:
        bounded: of shares; a loss has no bound that items which all differ alike could leave.
    """

    a: float
    b: float
    bootstrap: "Array"
    flipped: "Array"
    items: int
    smallest: int
    missing: int
    bounded: bool = True

    def difference(self) -> Difference:
        if self.smallest < 2:
            return Difference(self.a, self.b, None, None, self.items, self.missing)
        interval = percentile_interval(self.bootstrap)
        if self.bounded and interval.high - interval.low < ROUNDING:
            interval = unanimous_interval(self.b - self.a, self.smallest, -1.0, 1.0)
        p_value = flip_test(self.b - self.a, self.flipped)
        return Difference(self.a, self.b, interval, p_value, self.items, self.missing)


def compare(
    a: Artefacts, b: Artefacts, resamples: int = RESAMPLES, seed: int = 0, allow_different_judges: bool = False
) -> Comparison:
    """Compare two evaluations, benchmark by benchmark.

    Args:
        allow_different_judges: only note where the judge, its model, prompt or version, or the task differs.

    Raises:
        UserError: they share no benchmark with verdicts, or a shared one has other items, data or another metric, or
            was not asked and judged alike: one line each.
    """
    notes = _notes(a, b)
    shared = [name for name in a.benchmarks if name in b.benchmarks and a.parts(name) == [name] == b.parts(name)]
    problems: list[str] = []
    drawn: dict[str, _Drawn] = {}
    for name in shared:
        try:
            found = _draw(a, b, name, resamples, seed, notes, allow_different_judges)
        except UserError as error:
            problems += error.problems
            continue
        if found is not None:
            drawn[name] = found
    if problems:
        raise UserError(*problems)
    for name in a.benchmarks:
        parts = a.parts(name)
        if name in b.benchmarks and name not in shared and parts == b.parts(name) and drawn.keys() >= set(parts):
            drawn[name] = _mean([drawn[part] for part in parts])
    if not drawn:
        raise UserError(f"{a.folder} and {b.folder}: no benchmark has verdicts in both", *notes)
    notes += _prompt_notes(a, b, [name for name in shared if name in drawn])
    averages = {}
    for group in AVERAGES:
        members = a.members(group)
        if sorted(members) == sorted(b.members(group)) and members and drawn.keys() >= set(members):
            averages[group] = _mean([drawn[name] for name in members]).difference()
        elif members or b.members(group):
            without = sorted({*members, *b.members(group)} - drawn.keys()) or ["not the same benchmarks"]
            notes.append(f"{group}: no average of all its benchmarks: {', '.join(without)}")
    differences = {name: drawn[name].difference() for name in a.benchmarks if name in drawn}
    gain = None
    if {"safety", "utility"} & averages.keys() and not {
        group for group in ("safety", "utility") if a.members(group) and group not in averages
    }:
        members = [*a.members("safety"), *a.members("utility")]
        gain = average_gain(
            {name: differences[name].b for name in members}, {name: differences[name].a for name in members}
        )
    notes += [*_missing_notes("A", a), *_missing_notes("B", b)]
    metrics = {name: str(a.benchmarks[name]["metric"]) for name in differences}
    return Comparison(differences, averages, gain, metrics, notes)


def _notes(a: Artefacts, b: Artefacts) -> list[str]:
    sides = (("A", a, b), ("B", b, a))
    return [
        f"{name}: only in {side}"
        for side, one, other in sides
        for name in one.benchmarks
        if name not in other.benchmarks
    ]


def _prompt_notes(a: Artefacts, b: Artefacts, names: Sequence[str]) -> list[str]:
    """That the two models got other texts: by other chat templates, or other variables in one template."""
    hashes = {name: (a.instrument(name).rendered, b.instrument(name).rendered) for name in names}
    # Older evaluations do not say.
    others = [name for name, (one, other) in hashes.items() if one and other and one != other]
    if not others:
        return []
    one, other = hashes[others[0]]
    return [
        f"the prompts differ as the chat templates render them, in {', '.join(others)} (rendered_hash {one} in A, "
        f"{other} in B in the first): other templates, or other model.template_kwargs"
    ]


def _missing_notes(side: str, one: Artefacts) -> list[str]:
    """Averages that missing verdicts could move, over all that ``one`` has a verdict on."""
    notes = []
    for group in AVERAGES:
        average = one.average(group)
        if average.get("missing") and average["value"] is not None:
            error = "" if average["stderr"] is None else f" ± {average['stderr']:.3f}"
            notes.append(
                f"{group} of {side}: {average['value']:.3f}{error}; verdicts missing: {average['missing']}, "
                f"with them it lies between {average['low']:.3f} and {average['high']:.3f}"
            )
    return notes


def _draw(
    a: Artefacts, b: Artefacts, name: str, resamples: int, seed: int, notes: list[str], allow_different_judges: bool
) -> _Drawn | None:
    """One benchmark, or None where a side has no verdict; remarks go to ``notes``.

    Raises:
        UserError: the two do not measure the same.
    """
    import numpy as np

    rows_a, rows_b = a.verdicts(name), b.verdicts(name)
    for side, one, rows in (("A", a, rows_a), ("B", b, rows_b)):
        if all(row["value"] is None for row in rows):
            why = one.benchmarks[name].get("error") or "no verdict"
            notes.append(f"{name}: no score in {side}: {why}")
            return None
    values_a, values_b = ({row["id"]: row["value"] for row in rows} for rows in (rows_a, rows_b))
    _check_items(a, b, name, list(values_a), list(values_b))
    if differing := _differing(a.instrument(name), b.instrument(name)):
        line = f"{name}: not asked and judged alike: {'; '.join(differing)}"
        if not allow_different_judges:
            raise UserError(f"{line}; {ALLOW} compares them nevertheless")
        notes.append(line)
    ids = [key for key, value in values_a.items() if value is not None and values_b[key] is not None]
    missing = len(values_a) - len(ids)
    if not ids:
        notes.append(f"{name}: no item has a verdict in both")
        return None
    pairs = np.array([[values_a[key] for key in ids], [values_b[key] for key in ids]], dtype=np.float64)
    # Items in one order, so that the draw does not depend on which side comes first.
    order = np.argsort(ids)
    pairs, own = pairs[:, order], item_seed(sorted(ids), seed)
    means = resampled_means(pairs, resamples, own)
    flipped = flipped_means(pairs[1] - pairs[0], resamples, own)
    value_a, value_b = (fmean(row) for row in pairs.tolist())
    bounded = a.benchmarks[name]["metric"] != "loss"
    return _Drawn(value_a, value_b, means[1] - means[0], flipped, len(ids), len(ids), missing, bounded)


def _check_items(a: Artefacts, b: Artefacts, name: str, ids_a: Sequence[str], ids_b: Sequence[str]) -> None:
    only_a, only_b = (sorted(set(first) - set(second)) for first, second in ((ids_a, ids_b), (ids_b, ids_a)))
    if only_a or only_b:
        told = [f"{len(only)} only in {side} ({only[0]}, …)" for side, only in (("A", only_a), ("B", only_b)) if only]
        raise UserError(f"{name}: not the same items: {len(ids_a)} in A, {len(ids_b)} in B; {', '.join(told)}")
    data_a, data_b = a.instrument(name).data, b.instrument(name).data
    if data_a != data_b:
        raise UserError(f"{name}: not the same data: data_hash {data_a} in A, {data_b} in B")
    metric_a, metric_b = a.benchmarks[name]["metric"], b.benchmarks[name]["metric"]
    if metric_a != metric_b:
        raise UserError(f"{name}: not the same metric: {metric_a} in A, {metric_b} in B")


def _differing(one: Instrument, other: Instrument) -> list[str]:
    """What tells the two sides' judges and tasks apart, both named."""
    told = []
    if (one.judge, one.judge_version) != (other.judge, other.judge_version):
        told = _pair("judge", _judge(one), _judge(other))
        if one.judge == other.judge:
            told += _pair("prompt_hash", one.prompt, other.prompt)
        # The version of a task's own metric is that of the task.
        told = told or _pair(f"{one.judge} of version", one.judge_version, other.judge_version)
    return told + _pair("task_hash", one.task, other.task)


def _pair(what: str, one: str | None, other: str | None) -> list[str]:
    return [f"{what} {one} in A, {other} in B"] if one != other else []


def _judge(one: Instrument) -> str:
    return f"{one.judge} ({one.judge_model})" if one.judge_model else str(one.judge)


def _mean(members: Sequence[_Drawn]) -> _Drawn:
    import numpy as np

    return _Drawn(
        fmean(member.a for member in members),
        fmean(member.b for member in members),
        np.mean([member.bootstrap for member in members], axis=0),
        np.mean([member.flipped for member in members], axis=0),
        sum(member.items for member in members),
        min(member.smallest for member in members),
        sum(member.missing for member in members),
        all(member.bounded for member in members),
    )


def render(comparison: Comparison, a: Path, b: Path, resamples: int = RESAMPLES) -> str:
    """The comparison as a Markdown table, with notes on how to read it."""
    lines = [[GROUPS[group], *_cells(found)] for group, found in comparison.averages.items()]
    lines += [
        [f"{name} ({METRICS.get(comparison.metrics[name], comparison.metrics[name])})", *_cells(found)]
        for name, found in comparison.benchmarks.items()
    ]
    text = [f"A: {a}", f"B: {b}", "", aligned(Table(COLUMNS, lines, align="lrrrrrr")), ""]
    text.append(
        f"B − A over the items that both have a verdict on; paired bootstrap and sign flips, {resamples} resamples; "
        "p-values not corrected for the number of benchmarks. Where no item differs, or all differ alike, resampling "
        "sees no spread: the interval is then Wilson's bound on the share of items that would not."
    )
    gain = comparison.gain
    if gain is not None:
        percent = "–" if gain.percent is None else f"{gain.percent:+.2f}%"
        text.append(f"Average gain of B against A: {percent}, the mean relative change of {_named(gain.benchmarks)}.")
        if gain.excluded:
            text.append(f"Not in the average gain, since A scores 0: {', '.join(gain.excluded)}.")
    return "\n".join([*text, *(f"Note: {note}" for note in comparison.notes)]) + "\n"


def _named(names: Sequence[str]) -> str:
    return f"{len(names)} benchmarks ({', '.join(names)})" if len(names) > 1 else "".join(names) or "no benchmark"


def _cells(found: Difference) -> list[str]:
    interval = "–" if found.interval is None else f"{found.interval.low:+.3f} to {found.interval.high:+.3f}"
    items = f"{found.items} ({found.missing} missing)" if found.missing else str(found.items)
    return [f"{found.a:.3f}", f"{found.b:.3f}", f"{found.value:+.3f}", interval, _p(found.p_value), items]


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison and return the exit code."""
    parser = Parser(
        prog="python -m eval compare",
        description="How checkpoint B differs from checkpoint A on the same items, with paired intervals.",
    )
    for side in ("A", "B"):
        parser.add_argument(side.lower(), metavar=side, type=Path, help="folder of an evaluation, or a run's directory")
    parser.add_argument(
        "--resamples", metavar="N", type=whole_number(1), default=RESAMPLES, help="default: %(default)s"
    )
    parser.add_argument(
        "--seed", metavar="N", type=whole_number(0), default=0, help="of the resampling; default: %(default)s"
    )
    parser.add_argument(
        ALLOW, action="store_true", help="compare even if the judge, its model, prompt or version, or the task differs"
    )
    try:
        options = parser.parse_args(arguments)
        a, b = open_evaluation(options.a), open_evaluation(options.b)
        comparison = compare(a, b, options.resamples, options.seed, options.allow_different_judges)
    except UserError as error:
        return report(error)
    print(render(comparison, a.folder, b.folder, options.resamples), end="")
    return EXIT_DONE
