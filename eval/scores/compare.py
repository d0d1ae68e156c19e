"""Two checkpoints on the same items: ``python -m eval compare A B``.

A and B are folders of evaluations, or directories of finished runs, whose last evaluation is taken. Prints how B
differs from A, benchmark by benchmark and average by average, with 95% intervals (paired bootstrap over items, or over
categories of items), p-values (McNemar's exact test of the flips; sign flips of the paired differences where verdicts
are graded), whether the score is unchanged within a margin, the flipped items, and B's average gain with A as its base.
Only items on which both have a verdict count; the others are listed as missing. Both must have been asked and judged
alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from eval.scores.aggregate import AVERAGES
from eval.scores.alike import add_sides, check_items, differing, shared_benchmarks
from eval.scores.artefacts import Artefacts, Row, item_seed, open_evaluation
from eval.scores.differences import Difference, Drawn, mean_of
from eval.scores.equivalence import MARGIN, Flips
from eval.scores.flips import find_flips, flips_csv, flips_text
from eval.scores.statistics import RESAMPLES, Gain, average_gain, flipped_means, p_text, resampled_means
from ogpsa.runs.score_table import GROUPS, METRICS
from ogpsa.utils.command_line import Parser, positive_number, whole_number
from ogpsa.utils.errors import EXIT_DONE, UserError
from ogpsa.utils.files import check_writable, write_atomically
from ogpsa.utils.table import Table, aligned

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Indices = NDArray[np.intp]

ALLOW = "--allow-different-judges"
COLUMNS = ("", "A", "B", "B − A", "95% interval", "p", "flips", "within ±{}", "items", "needed")
# Flips of each kind on the screen.
SHOWN = 3


@dataclass(frozen=True)
class Comparison:
    """B against A.

    Attributes:
        benchmarks: by name; composites are among them.
        averages: by group, each over all its benchmarks; a group that cannot be compared as a whole is not in it.
        gain: B's average gain over the benchmarks of safety and utility, with A as its base; None if one cannot be
            compared.
        metrics: what each benchmark measures.
        categories: by benchmark and category, A and B there; of all benchmarks whose makers name categories.
        notes: what is not compared, what else the two differ in, and averages with missing verdicts.
    """

    benchmarks: dict[str, Difference]
    averages: dict[str, Difference]
    gain: Gain | None
    metrics: dict[str, str]
    categories: dict[str, dict[str, Difference]]
    notes: list[str]


@dataclass(frozen=True)
class Drawing:
    """Settings for resampling and interpreting differences.

    Attributes:
        by_category: whether a benchmark's categories, if any, are drawn whole, since their items are alike.
        margin: differences within it count as none.
        allow_different_judges: only note where the judge, its model, prompt or version, or the task differs.
    """

    resamples: int = RESAMPLES
    seed: int = 0
    by_category: bool = False
    margin: float = MARGIN
    allow_different_judges: bool = False


AS_USUAL = Drawing()


def compare(a: Artefacts, b: Artefacts, drawing: Drawing = AS_USUAL) -> Comparison:
    """Compare two evaluations, benchmark by benchmark.

    Raises:
        UserError: they share no benchmark with verdicts, or a shared one has other items, data or another metric, or
            was not asked and judged alike: one line each.
    """
    notes = _notes(a, b)
    shared = shared_benchmarks(a, b)
    problems: list[str] = []
    drawn: dict[str, Drawn] = {}
    for name in shared:
        try:
            found = _draw(a, b, name, drawing, notes)
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
            drawn[name] = mean_of([drawn[part] for part in parts])
    if not drawn:
        raise UserError(f"{a.folder} and {b.folder}: no benchmark has verdicts in both", *notes)
    notes += _prompt_notes(a, b, [name for name in shared if name in drawn])
    averages = {}
    for group in AVERAGES:
        members = a.members(group)
        if sorted(members) == sorted(b.members(group)) and members and drawn.keys() >= set(members):
            averages[group] = mean_of([drawn[name] for name in members]).difference(drawing.margin)
        elif members or b.members(group):
            without = sorted({*members, *b.members(group)} - drawn.keys()) or ["not the same benchmarks"]
            notes.append(f"{group}: no average of all its benchmarks: {', '.join(without)}")
    differences = {name: drawn[name].difference(drawing.margin) for name in a.benchmarks if name in drawn}
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
    categories = {name: split for name in shared if name in drawn and (split := _by_category(a, b, name))}
    return Comparison(differences, averages, gain, metrics, categories, notes)


def _notes(a: Artefacts, b: Artefacts) -> list[str]:
    sides = (("A", a, b), ("B", b, a))
    return [
        f"{name}: only in {side}"
        for side, one, other in sides
        for name in one.benchmarks
        if name not in other.benchmarks
    ]


def _prompt_notes(a: Artefacts, b: Artefacts, names: Sequence[str]) -> list[str]:
    """Note that the two models got different texts, from different chat templates or variables of one template."""
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
    """Averages that missing verdicts could change, over all items on which ``one`` has a verdict."""
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


def _draw(a: Artefacts, b: Artefacts, name: str, drawing: Drawing, notes: list[str]) -> Drawn | None:
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
    check_items(a, b, name)
    if told := differing(a.instrument(name), b.instrument(name)):
        line = f"{name}: not asked and judged alike: {'; '.join(told)}"
        if not drawing.allow_different_judges:
            raise UserError(f"{line}; {ALLOW} compares them nevertheless")
        notes.append(line)
    values = _paired_values(rows_a, rows_b)
    missing = len(rows_a) - len(values)
    if not values:
        notes.append(f"{name}: no item has a verdict in both")
        return None
    # Items in one order, so that the draw does not depend on which side comes first.
    ids = sorted(values)
    pairs, own = np.array([values[key] for key in ids], dtype=np.float64).T, item_seed(ids, drawing.seed)
    clusters = _clusters(a.categories(name), ids) if drawing.by_category else None
    if drawing.by_category and clusters is None:
        notes.append(f"{name}: its items have no categories, or one alone, so that single items are drawn")
    differences = pairs[1] - pairs[0]
    binary = bool(np.isin(pairs, (0.0, 1.0)).all())
    return Drawn(
        a=fmean(pairs[0].tolist()),
        b=fmean(pairs[1].tolist()),
        bootstrap=np.subtract(*resampled_means(pairs, drawing.resamples, own, clusters)[::-1]),
        flipped=flipped_means(differences, drawing.resamples, own, clusters),
        items=len(ids),
        smallest=len(ids) if clusters is None else int(clusters.max()) + 1,
        missing=missing,
        lower_is_better=a.lower_is_better(name),
        bounded=a.benchmarks[name]["metric"] != "loss",
        flips=Flips(int((differences > 0).sum()), int((differences < 0).sum())) if binary else None,
        exact=clusters is None,
    )


def _paired_values(rows_a: Sequence[Row], rows_b: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """A's and B's value of each item that has a verdict in both."""
    values_b = {row["id"]: row["value"] for row in rows_b}
    return {
        row["id"]: (row["value"], values_b[row["id"]])
        for row in rows_a
        if row["value"] is not None and values_b[row["id"]] is not None
    }


def _clusters(categories: Mapping[str, str], ids: Sequence[str]) -> "Indices | None":
    """Each item's category as a number; None where an item has none, or all have the same."""
    import numpy as np

    if not all(key in categories for key in ids) or len({categories[key] for key in ids}) < 2:
        return None
    return np.unique([categories[key] for key in ids], return_inverse=True)[1]


def _by_category(a: Artefacts, b: Artefacts, name: str) -> dict[str, Difference]:
    """A benchmark's differences within each of its categories, without intervals: most hold few items."""
    categories = a.categories(name)
    values = _paired_values(a.verdicts(name), b.verdicts(name))
    members: dict[str, list[tuple[float, float]]] = {}
    for key, pair in values.items():
        if key in categories:
            members.setdefault(categories[key], []).append(pair)
    found = {}
    for category, pairs in sorted(members.items()):
        side_a, side_b = (fmean(side) for side in zip(*pairs, strict=True))
        missing = sum(one == category for one in categories.values()) - len(pairs)
        found[category] = Difference(side_a, side_b, None, None, len(pairs), missing)
    return found


def render(comparison: Comparison, a: Path, b: Path, drawing: Drawing = AS_USUAL) -> str:
    """The comparison as Markdown tables, with notes on how to read them."""
    lines = [[GROUPS[group], *_cells(found)] for group, found in comparison.averages.items()]
    lines += [
        [f"{name} ({METRICS.get(comparison.metrics[name], comparison.metrics[name])})", *_cells(found)]
        for name, found in comparison.benchmarks.items()
    ]
    columns = [column.format(f"{drawing.margin:g}") for column in COLUMNS]
    text = [f"A: {a}", f"B: {b}", "", aligned(Table(columns, lines, align="lrrrrrrlrr")), ""]
    drawn = "categories" if drawing.by_category else "items"
    text.append(
        f"B − A over the items that both have a verdict on; paired bootstrap over {drawn}, {drawing.resamples} "
        "resamples; p: McNemar's exact test of the flips (+: from 0 to 1), and sign flips for averages, where verdicts "
        f"are graded{' and where categories are drawn' if drawing.by_category else ''}, not corrected for the number "
        "of benchmarks. "
        "Where no item differs, or all differ alike, resampling sees no spread: the interval is then Wilson's bound on "
        "the share of items that would not."
    )
    text.append(
        f"Within ±{drawing.margin:g} (--margin): unchanged, the 90% interval of B − A lies within the margin (TOST at "
        "5%); not worse, it rules out a loss as large as the margin; worse, it rules out a smaller loss; undecided, "
        "none of these. Needed: items that would show a difference of that size with power 80%, at this spread, of "
        "an average in the same shares."
    )
    gain = comparison.gain
    if gain is not None:
        percent = "–" if gain.percent is None else f"{gain.percent:+.2f}%"
        text.append(f"Average gain of B against A: {percent}, the mean relative change of {_named(gain.benchmarks)}.")
        if gain.excluded:
            text.append(f"Not in the average gain, since A scores 0: {', '.join(gain.excluded)}.")
    text += [f"Note: {note}" for note in comparison.notes]
    if drawing.by_category and comparison.categories:
        rows = [
            [name, category, f"{found.a:.3f}", f"{found.b:.3f}", f"{found.value:+.3f}", _items(found)]
            for name, members in comparison.categories.items()
            for category, found in members.items()
        ]
        text += ["", aligned(Table(["", "category", "A", "B", "B − A", "items"], rows, align="llrrrr"))]
    return "\n".join(text) + "\n"


def _named(names: Sequence[str]) -> str:
    return f"{len(names)} benchmarks ({', '.join(names)})" if len(names) > 1 else "".join(names) or "no benchmark"


def _cells(found: Difference) -> list[str]:
    interval = "–" if found.interval is None else f"{found.interval.low:+.3f} to {found.interval.high:+.3f}"
    flips = "–" if found.flips is None else f"+{found.flips.up} −{found.flips.down}"
    return [
        f"{found.a:.3f}", f"{found.b:.3f}", f"{found.value:+.3f}", interval, p_text(found.p_value), flips,
        found.finding or "–", _items(found), "–" if found.needed is None else str(found.needed),
    ]  # fmt: skip


def _items(found: Difference) -> str:
    return f"{found.items} ({found.missing} missing)" if found.missing else str(found.items)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison and return the exit code."""
    parser = Parser(
        prog="python -m eval compare",
        description="How checkpoint B differs from checkpoint A on the same items, with paired intervals.",
    )
    add_sides(parser)
    parser.add_argument(
        "--resamples", metavar="N", type=whole_number(1), default=RESAMPLES, help="default: %(default)s"
    )
    parser.add_argument(
        "--seed", metavar="N", type=whole_number(0), default=0, help="of the resampling; default: %(default)s"
    )
    parser.add_argument(
        "--margin", metavar="M", type=positive_number, default=MARGIN,
        help="a difference of scores from 0 to 1, or of nats per token, that counts as none; default: %(default)s",
    )  # fmt: skip
    parser.add_argument(
        "--by-category", action="store_true", help="tables by category, and intervals that draw categories whole"
    )
    parser.add_argument(
        "--flips", metavar="N", type=whole_number(0), default=SHOWN,
        help="flipped items of each kind that are shown, those that became harmful first; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--flips-file", metavar="FILE", type=Path, help="a CSV of all flipped items with both answers")
    parser.add_argument(
        ALLOW, action="store_true", help="compare even if the judge, its model, prompt or version, or the task differs"
    )
    options = parser.parse_args(arguments)
    drawing = Drawing(
        options.resamples, options.seed, options.by_category, options.margin, options.allow_different_judges
    )
    a, b = open_evaluation(options.a), open_evaluation(options.b)
    comparison = compare(a, b, drawing)
    flips = find_flips(a, b, [name for name in comparison.benchmarks if a.parts(name) == [name]])
    if options.flips_file:
        check_writable(options.flips_file.parent, "--flips-file")
        write_atomically(options.flips_file, flips_csv(flips))
    print(render(comparison, a.folder, b.folder, drawing), end="")
    if shown := flips_text(flips, options.flips):
        print(shown)
    return EXIT_DONE
