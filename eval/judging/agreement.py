"""Agreement of a judge of refusals with human labels.

python -m eval agreement DIR [--judge NAME] [OPTION VALUE ...]

DIR holds CSV files, one per model, with the columns prompt, completion and final_label (1_full_compliance,
2_full_refusal, 3_partial_refusal), as XSTest publishes them. Options as of python -m eval judge. Prints one line per
file and one for all: the share of responses on which judge and people agree, and Cohen's kappa, for any refusal
against compliance and for the three classes. Responses without a readable verdict are left out, and counted.

What has been paid for is kept in --journal FILE (.agreement.journal).
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from eval.judging.judge_csv import Row, add_options, as_options, judge_rows, settings_from
from ogpsa.data.readers import read_csv
from ogpsa.utils.command_line import Parser
from ogpsa.utils.errors import EXIT_DONE, UserError, report

LABELS = {
    "1_full_compliance": "full_compliance", "2_full_refusal": "full_refusal", "3_partial_refusal": "partial_refusal",
}  # fmt: skip
Pairs = list[tuple[str, str]]


def main(arguments: Sequence[str]) -> int:
    parser = Parser(
        prog="python -m eval agreement", usage=argparse.SUPPRESS, description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("folder", metavar="DIR", type=Path)
    parser.add_argument("--judge", metavar="NAME", default="refusal_match")
    parser.add_argument("--journal", type=Path, default=Path(".agreement.journal"))
    add_options(parser)
    try:
        given = parser.parse_args(arguments)
        files = read_folder(given.folder)
        from eval.judging.judge import load_judge

        settings = settings_from(given.judge, vars(given))
        if load_judge(given.judge, settings.dir).metric != "refusal_rate":
            raise UserError(f"--judge: {given.judge} does not judge refusals")
        rows = [row for answers in files.values() for row in answers]
        found = judge_rows(given.judge, rows, settings, given.journal)
    except UserError as error:
        return report(as_options(error))
    verdicts = iter(judged.verdict.label for judged in found)
    pairs = {name: [(LABELS[row["final_label"]], next(verdicts)) for row in answers] for name, answers in files.items()}
    print(table(given.judge, pairs))
    return EXIT_DONE


def read_folder(folder: Path) -> dict[str, list[Row]]:
    """The rows of each CSV file, by the file's name.

    Raises:
        UserError: no such file, or a row without one of the three labels.
    """
    found = {}
    for path in sorted(folder.glob("*.csv")):
        header, rows = read_csv(path)
        if {"prompt", "completion", "final_label"} <= set(header):
            found[path.stem] = rows
            for number, row in enumerate(rows, start=1):
                if row["final_label"] not in LABELS:
                    label, allowed = row["final_label"], ", ".join(LABELS)
                    raise UserError(f"{path}: row {number}: final_label: found '{label}'; allowed: {allowed}")
    if not found:
        raise UserError(f"{folder}: holds no CSV file with the columns prompt, completion and final_label")
    return found


def table(judge: str, files: dict[str, Pairs]) -> str:
    """Markdown: one line per file and, of several, one for all."""
    lines = [
        f"| {judge} | responses | unparsed | any refusal: agreement | κ | three classes: agreement | κ |",
        "|---|---|---|---|---|---|---|",
    ]
    everything = {"all": [pair for pairs in files.values() for pair in pairs]} if len(files) > 1 else {}
    for name, pairs in (files | everything).items():
        read = [pair for pair in pairs if pair[1] != "unparsed"]
        coarse = [(_coarse(human), _coarse(judged)) for human, judged in read]
        cells = [f"{number:.3f}" for number in (*agreement(coarse), *agreement(read))]
        lines.append(f"| {name} | {len(pairs)} | {len(pairs) - len(read)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def agreement(pairs: Pairs) -> tuple[float, float]:
    """Share of equal pairs and Cohen's kappa; NaN without pairs, and kappa where chance alone agrees on all."""
    if not pairs:
        return float("nan"), float("nan")
    equal = sum(one == other for one, other in pairs) / len(pairs)
    ones, others = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
    chance = sum(ones[label] * others[label] for label in ones) / len(pairs) ** 2
    return equal, (equal - chance) / (1 - chance) if chance < 1 else float("nan")


def _coarse(label: str) -> str:
    return "compliance" if label == "full_compliance" else "refusal"
