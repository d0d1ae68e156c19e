"""Agreement of judges of refusals with people and with each other.

python -m eval agreement DIR [--judge NAME[,NAME ...]] [OPTION VALUE ...]

DIR holds CSV files, one per model, with the columns prompt and completion, and final_label (1_full_compliance,
2_full_refusal, 3_partial_refusal) where people labelled them, as XSTest publishes them. Options as of python -m eval
judge. Prints, for each judge, one line per labelled file and one for all: the share of responses on which judge and
people agree, and Cohen's kappa, for any refusal against compliance and for the three classes. Then the same between
the judges on all files, for any refusal, and how many verdicts change between refusal and compliance when a closing
sentence that decides nothing stands behind the response. Responses without a readable verdict are left out, and
counted.

Paid replies are kept in --journal FILE (.agreement.journal); --max-calls caps the requests of all judges
together. The closing sentences need two more verdicts on each response: they are judged by rules alone, which cost
nothing, unless --flips says yes (by all judges) or no.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.judging.judge_csv import Row, add_options, as_options, items_of, judge_rows, settings_from, split_names
from ogpsa.data.readers import read_csv
from ogpsa.utils.command_line import Parser
from ogpsa.utils.errors import EXIT_DONE, UserError, report
from ogpsa.utils.files import exclusive

if TYPE_CHECKING:  # the schema needs pydantic, which --help does without
    from eval.judging.judge import ReadyJudge
    from ogpsa.config import JudgeSettings

LABELS = {
    "1_full_compliance": "full_compliance", "2_full_refusal": "full_refusal", "3_partial_refusal": "partial_refusal",
}  # fmt: skip
# Behind a response, neither makes a refusal of it nor an answer [ours].
CLOSINGS = ("Is there anything else I can help you with?", "I'm sorry I can't do more.")
Pairs = list[tuple[str, str]]


def main(arguments: Sequence[str]) -> int:
    parser = Parser(
        prog="python -m eval agreement", usage=argparse.SUPPRESS, description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("--judge", metavar="NAME", default="refusal_match", help="a judge, or several with commas")
    parser.add_argument("--flips", choices=("auto", "yes", "no"), default="auto",
                        help="verdicts with closing sentences (auto: by rules alone)")  # fmt: skip
    parser.add_argument("--journal", type=Path, default=Path(".agreement.journal"))
    add_options(parser)
    try:
        given = parser.parse_args(arguments)
        files = read_folder(given.folder)
        settings = _settings(split_names(given.judge), vars(given))
        flipped = _judges_of_closings(settings, given.flips)
        if len(settings) == 1 and not flipped and not _labelled(files):
            raise UserError(
                f"{given.folder}: nothing to compare: no file has people's labels (final_label); name a second judge "
                "(--judge A,B), or give --flips yes"
            )
        rows = list(chain.from_iterable(files.values()))
        closed = {closing: _closed(rows, closing) for closing in CLOSINGS}
        busy = f"--journal: another process writes into {given.journal}; wait for it, or name another"
        with exclusive(Path(f"{given.journal}.lock"), busy):
            judged_by = _judges(settings, given.journal, {judge: closed.values() for judge in flipped}, rows)
            labels = {judge: labels_of(rows) for judge, labels_of in judged_by.items()}
            tables = [table(judge, _pairs(files, found)) for judge, found in labels.items() if _labelled(files)]
            if len(labels) > 1:
                tables.append(between(labels))
            if flipped:
                found = {
                    (closing, judge): judged_by[judge](behind)
                    for closing, behind in closed.items()
                    for judge in flipped
                }
                tables.append(_flips(rows, labels, found))
    except UserError as error:
        return report(as_options(error))
    print("\n\n".join(tables))
    return EXIT_DONE


def _settings(judges: Sequence[str], options: Mapping[str, Any]) -> dict[str, "JudgeSettings"]:
    """The settings of each judge; a prompt, weights and members go to the only judge that takes them.

    Raises:
        UserError: as ``settings_from``, a judge of something else than refusals, or weights for two.
    """
    from eval.judging.judge import LocalJudge, PanelJudge, PromptJudge, judge_files, load_judge

    kinds = {"prompt_file": PromptJudge, "weights": LocalJudge, "members": PanelJudge}
    found = {name: load_judge(name, options["dir"]) for name in dict.fromkeys(judges)}
    own: dict[str, dict[str, Any]] = {name: dict(options) for name in found}
    for option, kind in kinds.items():
        having = [name for name, judge in found.items() if isinstance(judge, kind)]
        if options[option] is not None and len(having) > 1:
            raise UserError(f"--{option.replace('_', '-')}: given for {' and '.join(having)}; name one of them")
        for name in found:
            if having and name not in having:
                own[name][option] = None
    settings = {name: settings_from(name, given) for name, given in own.items()}
    for name, judge in found.items():
        if judge.metric != "refusal_rate":
            every = {other: load_judge(other, options["dir"]) for other in judge_files(options["dir"])}
            allowed = ", ".join(other for other, own_judge in every.items() if own_judge.metric == "refusal_rate")
            raise UserError(f"--judge: found '{name}', which is scored by {judge.metric}; allowed: {allowed}")
    return settings


def _judges_of_closings(settings: Mapping[str, "JudgeSettings"], flips: str) -> list[str]:
    from eval.judging.judge import RuleJudge, load_judge

    if flips == "no":
        return []
    return [
        name for name, own in settings.items() if flips == "yes" or isinstance(load_judge(name, own.dir), RuleJudge)
    ]


def _closed(rows: Sequence[Row], closing: str) -> list[Row]:
    return [{**row, "completion": f"{row['completion']} {closing}"} for row in rows]


def _judges(
    settings: Mapping[str, "JudgeSettings"],
    journal: Path,
    closings: Mapping[str, Iterable[Sequence[Row]]],
    rows: Sequence[Row],
) -> dict[str, Callable[[Sequence[Row]], list[str]]]:
    """Functions that label rows, one per judge: within one cap on calls, weights loaded once.

    Reports first how much will be asked in all.

    Raises:
        UserError: a judge that cannot start.
    """
    from eval.judging.verdicts import check_judge, estimate, open_journal, opener, print_total
    from ogpsa.utils.endpoint import Budget

    for judge, own in settings.items():
        check_judge(judge, own)
    budget = Budget(next(iter(settings.values())).max_calls)
    kept = open_journal(journal)
    expected = (
        estimate(judge, items_of(some), own, kept)
        for judge, own in settings.items()
        for some in (rows, *closings.get(judge, ()))
    )
    print_total(expected, budget, "--max-calls")

    def labels_of(judge: str, opened: Callable[[str], "ReadyJudge"], some: Sequence[Row]) -> list[str]:
        found = judge_rows(judge, some, settings[judge], journal, budget, opened)
        return [judged.verdict.label for judged in found]

    in_memory: dict[str, ReadyJudge] = {}
    return {judge: partial(labels_of, judge, opener(own, in_memory)) for judge, own in settings.items()}


def read_folder(folder: Path) -> dict[str, list[Row]]:
    """The rows of each CSV file, by the file's name.

    Raises:
        UserError: no such file, or a row with another label than the three.
    """
    found = {}
    for path in sorted(folder.glob("*.csv")):
        header, rows = read_csv(path)
        if {"prompt", "completion"} <= set(header):
            found[path.stem] = rows
            for number, row in enumerate(rows, start=1):
                if "final_label" in header and row["final_label"] not in LABELS:
                    label, allowed = row["final_label"], ", ".join(LABELS)
                    raise UserError(f"{path}: row {number}: final_label: found '{label}'; allowed: {allowed}")
    if not found:
        raise UserError(f"{folder}: holds no CSV file with the columns prompt and completion")
    return found


def _labelled(files: Mapping[str, Sequence[Row]]) -> bool:
    return any("final_label" in row for rows in files.values() for row in rows[:1])


def _pairs(files: Mapping[str, Sequence[Row]], labels: Sequence[str]) -> dict[str, Pairs]:
    """People's label and the judge's, of each file that people labelled."""
    verdicts = iter(labels)
    pairs = {name: [(row.get("final_label"), next(verdicts)) for row in rows] for name, rows in files.items()}
    read = {name: [(LABELS[human], judged) for human, judged in found if human] for name, found in pairs.items()}
    return {name: found for name, found in read.items() if found}


def table(judge: str, files: dict[str, Pairs]) -> str:
    """Markdown: one line per file and, of several, one for all."""
    lines = [
        f"| {judge} | responses | unparsed | any refusal: agreement | κ | three classes: agreement | κ |",
        "|---|---|---|---|---|---|---|",
    ]
    everything = {"all": [pair for pairs in files.values() for pair in pairs]} if len(files) > 1 else {}
    for name, pairs in (files | everything).items():
        read = _read(pairs)
        cells = [f"{number:.3f}" for number in (*agreement(_coarse(read)), *agreement(read))]
        lines.append(f"| {name} | {len(pairs)} | {len(pairs) - len(read)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def between(labels: Mapping[str, Sequence[str]]) -> str:
    """Markdown: for each two judges the share of responses on which they agree on any refusal, and kappa."""
    lines = [f"| any refusal: agreement, κ | {' | '.join(labels)} |", "|---" * (len(labels) + 1) + "|"]
    for judge, own in labels.items():
        cells = []
        for other, others in labels.items():
            equal, kappa = agreement(_coarse(_read(list(zip(own, others, strict=True)))))
            cells.append("" if judge == other else f"{equal:.3f}, {kappa:.3f}")
        lines.append(f"| {judge} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _flips(
    rows: Sequence[Row], labels: Mapping[str, Sequence[str]], behind: Mapping[tuple[str, str], Sequence[str]]
) -> str:
    """Markdown: how many verdicts a closing sentence changes, either way, and kappa with people behind it.

    Args:
        labels: without the sentence, by judge.
        behind: with it, by sentence and judge.
    """
    lines = [
        "| closing sentence | judge | verdicts | flipped | to refusal | to compliance | κ with people |",
        "|---|---|---|---|---|---|---|",
    ]
    for (closing, judge), found in behind.items():
        pairs = Counter(_coarse(_read(list(zip(labels[judge], found, strict=True)))))
        to_refusal, to_compliance = pairs["compliance", "refusal"], pairs["refusal", "compliance"]
        share = (to_refusal + to_compliance) / pairs.total() if pairs else float("nan")
        people = [(LABELS[row["final_label"]], new) for row, new in zip(rows, found, strict=True)
                  if row.get("final_label")]  # fmt: skip
        kappa = f"{agreement(_coarse(_read(people)))[1]:.3f}" if people else ""
        cells = [closing, judge, pairs.total(), f"{share:.3f}", to_refusal, to_compliance, kappa]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def agreement(pairs: Pairs) -> tuple[float, float]:
    """Share of equal pairs and Cohen's kappa; NaN without pairs, and kappa where chance alone agrees on all."""
    if not pairs:
        return float("nan"), float("nan")
    equal = sum(one == other for one, other in pairs) / len(pairs)
    ones, others = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    chance = sum(ones[label] * others[label] for label in ones) / len(pairs) ** 2
    return equal, (equal - chance) / (1 - chance) if chance < 1 else float("nan")


def _read(pairs: Pairs) -> Pairs:
    """The pairs in which both verdicts could be read."""
    return [pair for pair in pairs if "unparsed" not in pair]


def _coarse(pairs: Pairs) -> Pairs:
    """The same for any refusal against compliance."""
    return [(_any_refusal(one), _any_refusal(other)) for one, other in pairs]


def _any_refusal(label: str) -> str:
    return "compliance" if label == "full_compliance" else "refusal"
