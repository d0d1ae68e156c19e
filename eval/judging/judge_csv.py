"""Judge the answers of a CSV file.

python -m eval judge --judge NAME --in answers.csv --out verdicts.csv [OPTION VALUE ...]

The file has the columns prompt and completion, and target for the judges of accuracy. All rows, their order and their
columns are kept. A judge of refusals adds the column verdict (full_compliance, full_refusal, partial_refusal,
unparsed); any other adds score and parse_status. A verdict that cannot be read is unparsed, its score is empty. A panel
also adds votes: the verdict of each member.

Paid replies are kept next to the output, in .OUT.journal: a stopped command resumes where it was.
"""

import argparse
import ast
import csv
import io
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ogpsa.data.readers import read_csv
from ogpsa.utils.command_line import Parser, quoted
from ogpsa.utils.errors import EXIT_DONE, UserError, closest_match, report

if TYPE_CHECKING:  # the schema needs pydantic, which --help does without
    from eval.judging.judge import Item, ReadyJudge, Verdict
    from eval.judging.verdicts import Judgement
    from ogpsa.config import JudgeSettings
    from ogpsa.utils.endpoint import Budget

Row = dict[str, str]
# The columns of the answers' file, and what they hold.
NEEDED = {"prompt": "requests", "completion": "answers", "target": "right answers"}
# The judges whose detail holds a published ``score``.
STRONGREJECT = ("strongreject_rubric", "strongreject_finetuned")


def summaries() -> dict[str, str]:
    """The first line of each judge's file, read without importing it."""
    files = sorted((Path(__file__).parent / "judges").glob("[!_]*.py"))
    texts = {file.stem: ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) for file in files}
    return {name: (text or "").partition("\n")[0] for name, text in texts.items()}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of judges: each is the key of the same name in ``eval.judge``."""
    parser.add_argument("--dir", help="folder with judges of your own, each NAME.py with its prompt in NAME.txt")
    endpoint = parser.add_argument_group("judges that ask an endpoint")
    endpoint.add_argument("--base-url", help="address that speaks OpenAI's protocol (https://api.openai.com/v1)")
    endpoint.add_argument("--model", help="the judge's model (gpt-4o-mini)")
    endpoint.add_argument("--api-key-env", help="variable that holds the key, '' for none (OPENAI_API_KEY)")
    endpoint.add_argument("--concurrency", type=int, help="requests at a time (16)")
    endpoint.add_argument("--timeout", type=float, help="seconds after which a request counts as lost (60)")
    endpoint.add_argument("--attempts", type=int, help="times that a request is tried (6)")
    endpoint.add_argument("--max-calls", type=int, help="cap on requests, retries included (none)")
    endpoint.add_argument("--prompt-file", help="text, or .json list of messages, in place of our prompt")
    local = parser.add_argument_group("judges with local weights")
    local.add_argument("--weights", help="hub id or folder")
    local.add_argument("--batch-size", type=int, help="responses in one forward pass (8)")
    panels = parser.add_argument_group("panels")
    panels.add_argument("--members", help="judges whose majority counts, with commas")


def main(arguments: Sequence[str]) -> int:
    parser = Parser(
        prog="python -m eval judge", usage=argparse.SUPPRESS, description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="judges:\n" + "\n".join(f"  {name:22}  {what}" for name, what in summaries().items()),
    )  # fmt: skip
    parser.add_argument("--judge", required=True, metavar="NAME", help="one of the judges below")
    parser.add_argument("--in", required=True, metavar="CSV", dest="answers", type=Path)
    parser.add_argument("--out", required=True, metavar="CSV", dest="verdicts", type=Path)
    add_options(parser)
    try:
        given = parser.parse_args(arguments)
        run(given.judge, given.answers, given.verdicts, vars(given))
    except UserError as error:
        return report(as_options(error))
    return EXIT_DONE


def run(name: str, answers: Path, verdicts: Path, options: dict[str, Any]) -> None:
    """Judge ``answers`` and write ``verdicts``.

    Args:
        options: values of the options, None where not given.

    Raises:
        UserError: an unknown judge, a file that cannot be used, or anything that ``judge_responses`` refuses.
    """
    from eval.judging.judge import PanelJudge, RuleJudge, load_judge
    from eval.judging.panel import is_disputed
    from eval.judging.verdicts import Judgement
    from ogpsa.utils.files import check_writable, exclusive, write_atomically

    settings = settings_from(name, options)
    judge = load_judge(name, settings.dir)
    header, rows = read_csv(answers)
    needed = [column for column in NEEDED if column != "target" or judge.needs_target]
    lacking = [column for column in needed if column not in header]
    if lacking:
        there, others = ", ".join(header), [column for column in header if column not in needed]
        raise UserError(
            *(
                f"{answers}: no column '{column}'; found: {there}{closest_match(column, others)}; rename the column "
                f"with the {NEEDED[column]} to {column}"
                for column in lacking
            )
        )
    new = ["verdict"] if judge.metric == "refusal_rate" else ["score", "parse_status"]
    new += ["votes"] if isinstance(judge, PanelJudge) else []
    taken = [column for column in new if column in header]
    if taken:
        raise UserError(f"{answers}: has a column '{taken[0]}' already; rename it")
    if verdicts.resolve() == answers.resolve():
        raise UserError(f"--out: {verdicts} is the file of answers; name another")
    if verdicts.is_dir():
        raise UserError(f"--out: {verdicts} is a folder; name a file")
    check_writable(verdicts.parent, "--out")

    def cells(judged: Judgement) -> list[str]:
        votes = "; ".join(f"{member}: {label}" for member, label in judged.verdict.detail.get("votes", {}).items())
        score = _score(name, judged.verdict)
        read = [judged.verdict.label] if "verdict" in new else [score, judged.verdict.parse_status]
        return [*read, votes][: len(new)]

    busy = f"--out: another process judges into {verdicts}"
    lock = exclusive(verdicts.with_name(f".{verdicts.name}.lock"), busy)
    with nullcontext() if isinstance(judge, RuleJudge) else lock:
        found = judge_rows(name, rows, settings, verdicts.with_name(f".{verdicts.name}.journal"))
        lines = [[*header, *new], *([*row.values(), *cells(judged)] for row, judged in zip(rows, found, strict=True))]
        write_atomically(verdicts, "".join(map(_line, lines)))
    unread = sum(judged.verdict.value is None for judged in found)
    disputed = f", {count} disputed" if (count := sum(is_disputed(judged.verdict.detail) for judged in found)) else ""
    print(f"{verdicts}: {len(rows)} rows, {unread} without a readable verdict{disputed}")


def judge_rows(
    name: str,
    rows: Sequence[Row],
    settings: "JudgeSettings",
    journal: Path,
    budget: "Budget | None" = None,
    opened: "Callable[[str], ReadyJudge] | None" = None,
) -> list["Judgement"]:
    """The verdicts on rows with the columns ``prompt``, ``completion`` and perhaps ``target``.

    Args:
        budget, opened: as in ``judge_responses``.

    Raises:
        UserError: anything that ``judge_responses`` refuses.
    """
    from eval.judging.judge import LocalJudge, PanelJudge, load_judge
    from eval.judging.verdicts import check_judge, judge_responses, open_journal

    check_judge(name, settings)
    if isinstance(load_judge(name, settings.dir), LocalJudge | PanelJudge):
        from ogpsa.utils.libraries import quiet_libraries

        quiet_libraries()
    return judge_responses(
        name, items_of(rows), settings, open_journal(journal), "judging", budget=budget, opened=opened
    )


def items_of(rows: Sequence[Row]) -> list["Item"]:
    """The responses to judge in rows with the columns ``prompt``, ``completion`` and perhaps ``target``."""
    from eval.judging.judge import Item

    return [
        Item(str(number), row["prompt"], row["completion"], row.get("target", "")) for number, row in enumerate(rows)
    ]


def settings_from(name: str, options: dict[str, Any]) -> "JudgeSettings":
    """The default settings with the options that were given.

    Raises:
        UserError: a value out of range, or an option that this judge does not have.
    """
    from eval.judging.judge import LocalJudge, PanelJudge, PromptJudge, judge_files, load_judge
    from ogpsa.app.compose import compose_config

    plain = ("dir", "base_url", "model", "api_key_env", "concurrency", "timeout", "attempts", "max_calls", "batch_size")
    given = {option: options[option] for option in plain if options.get(option) is not None}
    settings = compose_config(
        [f"eval.judge.{option}={quoted(value) if isinstance(value, str) else value}" for option, value in given.items()]
    ).eval.judge
    judge = load_judge(name, settings.dir)
    for option, kind in (("prompt_file", PromptJudge), ("weights", LocalJudge), ("members", PanelJudge)):
        value = options.get(option)
        if value is None:
            continue
        if not isinstance(judge, kind):
            judges = {other: load_judge(other, settings.dir) for other in judge_files(settings.dir)}
            has = ", ".join(other for other, found in judges.items() if isinstance(found, kind))
            raise UserError(f"--{option.replace('_', '-')}: the judge {name} has none; only {has} do")
        settings = settings.model_copy(update={option: {name: split_names(value) if option == "members" else value}})
    return settings


def split_names(names: str) -> list[str]:
    """Names with commas between them."""
    return [name.strip() for name in names.split(",")]


def _line(cells: list[str]) -> str:
    """One row. The writer quotes a lone carriage return only where it ends its rows with one."""
    row = io.StringIO(newline="")
    csv.writer(row).writerow(cells)
    return row.getvalue().removesuffix("\r\n") + "\n"


def as_options(error: UserError) -> UserError:
    """The same with the settings' keys as this command's options."""
    return UserError(
        *(
            re.sub(r"eval\.judge\.(\w+?)(?:\.\w+)?(?=[:=) ])", lambda key: "--" + key[1].replace("_", "-"), problem)
            for problem in error.problems
        )
    )


def _score(name: str, verdict: "Verdict") -> str:
    """A verdict's value; for StrongREJECT the published score, of which the goodness is the complement."""
    if verdict.value is None:
        return ""
    return repr(float(verdict.detail["score"] if name in STRONGREJECT else verdict.value))
