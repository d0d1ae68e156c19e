"""Win rate: the share of requests where one model's answer helps more than another's.

python -m eval winrate A [B] [--benchmark NAME] [OPTION VALUE ...]

A and B are folders of evaluations, or directories of finished runs, whose last evaluation is taken. Without B, A is set
against the untuned model of its run: the evaluation called base beside it. Both hold answers to the same requests,
which a model compares in either order; the other options are those of python -m eval judge. Prints A's wins, ties and
losses, its win rate (a tie counts one half) with its 95% interval and p-value, and the share of verdicts that the order
alone decides. What cannot be read is missing, never a tie.

The verdicts are kept in A's folder, winrates/, under a name that stands for both sides' answers and the judge; paid
replies are kept next to them, so that a stopped command resumes where it was.
"""

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from eval.judging.judge_csv import add_options, as_options, settings_from
from eval.scores.artefacts import Artefacts, content_hash, item_seed, open_evaluation
from eval.scores.statistics import (
    Interval,
    flip_test,
    flipped_means,
    p_text,
    percentile_interval,
    resampled_means,
    unanimous_interval,
)
from ogpsa.utils.command_line import Parser
from ogpsa.utils.errors import EXIT_DONE, UserError, report
from ogpsa.utils.files import check_writable, exclusive, read_jsonl, write_json, write_jsonl
from ogpsa.utils.table import Table, aligned

if TYPE_CHECKING:  # the schema needs pydantic, which --help does without
    from ogpsa.config import JudgeSettings

Row = dict[str, Any]
BENCHMARK = "alpaca_answers"
JUDGE = "helpfulness_pair"
BASE = "base"
FOLDER = "winrates"
COLUMNS = ("", "wins", "ties", "losses", "win rate", "95% interval", "p", "requests")


@dataclass(frozen=True)
class WinRate:
    """A against B on one benchmark's requests.

    Attributes:
        wins, ties, losses: requests whose score, the mean of both orders, is above, at and below one half.
        value: mean score; None where no request has one.
        interval: 95%, bootstrap over requests; None for fewer than two.
        p_value: of a win rate other than 1/2, sign flips.
        low, high: the value if all missing requests were losses, or wins.
        missing: requests without a verdict in both orders, by the reason.
        asked: requests that the judge has decided in both orders.
        flipped: share of those whose verdict changes with the order; None where there are none.
        first: mean verdict for whatever answer stands first, 1/2 without a bias; None likewise.
        longer: share of the wins and losses in which the longer answer won; None where there are none.
    """

    wins: int
    ties: int
    losses: int
    value: float | None
    interval: Interval | None
    p_value: float | None
    low: float
    high: float
    missing: dict[str, int]
    asked: int
    flipped: float | None
    first: float | None
    longer: float | None


def main(arguments: Sequence[str]) -> int:
    parser = Parser(
        prog="python -m eval winrate", usage=argparse.SUPPRESS, description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("a", metavar="A", type=Path)
    parser.add_argument("b", metavar="B", type=Path, nargs="?")
    parser.add_argument("--benchmark", metavar="NAME", default=BENCHMARK, help="requests (%(default)s)")
    parser.add_argument("--task-dir", metavar="DIR", help="folder with benchmarks of your own")
    parser.add_argument("--judge", metavar="NAME", default=JUDGE, help="compares two answers (%(default)s)")
    add_options(parser)
    try:
        given = parser.parse_args(arguments)
        a = open_evaluation(given.a)
        b = open_evaluation(given.b) if given.b else _untuned(a)
        settings = settings_from(given.judge, vars(given))
        rows = compare_answers(a, b, given.benchmark, given.judge, settings, given.task_dir)
        found = win_rate(rows)
    except UserError as error:
        return report(as_options(error))
    print(render(given.benchmark, found, a.folder, b.folder), end="")
    return EXIT_DONE


def _untuned(a: Artefacts) -> Artefacts:
    """The evaluation of the model that a run began with."""
    folder = a.folder.parent / BASE
    if folder == a.folder:
        raise UserError(f"{a.folder}: is the untuned model's own evaluation; name the folder of another model's as B")
    if not folder.is_dir():
        raise UserError(f"{a.folder}: no evaluation '{BASE}' beside it; name the folder of the other model's as B")
    return open_evaluation(folder)


def compare_answers(
    a: Artefacts, b: Artefacts, benchmark: str, judge: str, settings: "JudgeSettings", task_dir: str | None = None
) -> list[Row]:
    """The judge's verdicts on both sides' answers to a benchmark's requests, one row each; from disk if they exist.

    A row holds the ``score`` of A's answer, the mean of both orders (1: A won in both; None: a verdict is missing, and
    ``missing`` says why), the two ``verdicts``, A's answer standing first and then second, None where nobody was asked,
    and the answers' lengths in characters.

    Raises:
        UserError: the judge compares no answers or cannot be asked, a side has no such answers, or the two were not
            asked the same.
    """
    from eval.judging.judge import judge_hash, judge_model, load_judge
    from eval.judging.verdicts import check_judge

    if load_judge(judge, settings.dir).metric != "win_rate":
        raise UserError(f"--judge: '{judge}' does not compare two answers; {JUDGE} does")
    answers = [_answers(side, benchmark, task_dir) for side in (a, b)]
    _check_alike(a, b, benchmark)
    stamp = {
        "benchmark": benchmark,
        "judge": judge,
        "judge_hash": judge_hash(judge, settings),
        "judge_model": judge_model(judge, settings),
        **{
            f"{name}_{key}": value
            for name, side in (("a", a), ("b", b))
            for key, value in (
                ("generations_hash", content_hash(_generations(side, benchmark))),
                ("model_fingerprint", side.generations(benchmark)[0].get("model_fingerprint")),
            )
        },
    }
    identity = hashlib.sha256(json.dumps(stamp).encode()).hexdigest()[:16]
    folder = a.folder / FOLDER
    file = folder / f"{benchmark}-{identity}.jsonl"
    # Its name stands for all that it rests on.
    if file.is_file():
        return read_jsonl(file)
    check_judge(judge, settings, compares=True)
    check_writable(folder, "A")
    with exclusive(folder / ".lock", f"{folder}: another process judges there"):
        rows = _judged(answers[0], answers[1], judge, settings, folder / ".journal", f"comparing {benchmark}")
        write_jsonl(file, [row | stamp for row in rows])
        write_json(file.with_suffix(".json"), stamp | asdict(win_rate(rows)))
    return rows


@dataclass(frozen=True)
class _Answer:
    """One side's answer to a request; ``none``: why there is none."""

    prompt: str
    text: str
    none: str | None


def _answers(side: Artefacts, benchmark: str, task_dir: str | None) -> dict[str, _Answer]:
    """The answers, without thoughts, by request."""
    from eval.benchmarks.definition import find_benchmarks
    from eval.judging.answers import find_answers
    from eval.judging.verdicts import responses_of

    rows = side.generations(benchmark)
    if not rows or "response" not in rows[0]:
        raise UserError(
            f"{_generations(side, benchmark)}: no answers; evaluate with the benchmark in a list, as "
            f"eval.reported=[{benchmark}]"
        )
    [definition] = find_benchmarks([benchmark], folder=task_dir, key="--benchmark")
    items = responses_of(definition, rows)
    found = dict(zip(items, find_answers(list(items.values())), strict=True))
    return {
        row["id"]: _Answer(items[row["id"]].prompt, found[row["id"]].text, found[row["id"]].none)
        if row["id"] in items
        else _Answer(row["prompt"], "", "withheld")
        for row in rows
    }


def _generations(side: Artefacts, benchmark: str) -> Path:
    return side.folder / "generations" / f"{benchmark}.jsonl"


def _check_alike(a: Artefacts, b: Artefacts, benchmark: str) -> None:
    """Refuse answers to other requests, or to the same under another cap on tokens.

    Raises:
        UserError: names what differs.
    """
    one, other = a.instrument(benchmark), b.instrument(benchmark)
    for what, first, second in (("data_hash", one.data, other.data), ("task_hash", one.task, other.task)):
        if first != second:
            raise UserError(f"{benchmark}: not asked alike: {what} {first} in A, {second} in B")
    ids = [{row["id"] for row in side.generations(benchmark)} for side in (a, b)]
    if ids[0] != ids[1]:
        raise UserError(f"{benchmark}: not the same requests: {len(ids[0])} in A, {len(ids[1])} in B")


def _judged(
    a: Mapping[str, _Answer],
    b: Mapping[str, _Answer],
    judge: str,
    settings: "JudgeSettings",
    journal: Path,
    label: str,
) -> list[Row]:
    """A row for each request; the judge is asked where both sides have an answer, with either standing first."""
    from eval.judging.judge import Item
    from eval.judging.verdicts import judge_responses, open_journal

    both = [key for key in a if a[key].none is None and b[key].none is None]
    orders = ((a, b), (b, a))
    items = [Item(key, a[key].prompt, one[key].text, other[key].text) for one, other in orders for key in both]
    found = [judged.verdict for judged in judge_responses(judge, items, settings, open_journal(journal), label)]
    verdicts = dict(zip(both, zip(found[: len(both)], found[len(both) :], strict=True), strict=True))
    rows = []
    for key in a:
        row: Row = {"id": key, "length_a": len(a[key].text), "length_b": len(b[key].text), "verdicts": None}
        if key in verdicts:
            first, second = verdicts[key]
            unread = [verdict.parse_status for verdict in (first, second) if verdict.value is None]
            row |= {"verdicts": [asdict(first), asdict(second)], "missing": unread[0] if unread else None}
            row["score"] = None if first.value is None or second.value is None else (first.value + 1 - second.value) / 2
        else:
            row |= _without_judge(a[key].none, b[key].none)
        rows.append(row)
    return rows


def _without_judge(a: str | None, b: str | None) -> Row:
    """The outcome where a side has no answer: an empty answer loses, all else is missing."""
    unknown = next((none for none in (a, b) if none not in (None, "empty")), None)
    if unknown or a == b:
        return {"score": None, "missing": unknown or a}
    return {"score": float(b is not None), "missing": None}


def win_rate(rows: Sequence[Row]) -> WinRate:
    """Summary of the rows of ``compare_answers``."""
    import numpy as np

    scored = sorted((row for row in rows if row["score"] is not None), key=lambda row: row["id"])
    scores = [row["score"] for row in scored]
    missing = Counter(row["missing"] for row in rows if row["score"] is None)
    interval = p_value = None
    if len(scores) > 1:
        own = item_seed([row["id"] for row in scored], 0)
        interval = percentile_interval(resampled_means(np.array([scores]), seed=own)[0])
        if len(set(scores)) == 1:
            interval = unanimous_interval(scores[0], len(scores))
        p_value = flip_test(fmean(scores) - 0.5, flipped_means(np.array(scores) - 0.5, seed=own))
    # An empty answer loses without a judge.
    judged = [row for row in scored if row["verdicts"]]
    decided = [row for row in judged if row["score"] != 0.5 and row["length_a"] != row["length_b"]]
    asked = [[verdict["value"] for verdict in row["verdicts"]] for row in judged]
    longer = [(row["score"] > 0.5) == (row["length_a"] > row["length_b"]) for row in decided]
    return WinRate(
        wins=sum(score > 0.5 for score in scores),
        ties=scores.count(0.5),
        losses=sum(score < 0.5 for score in scores),
        value=fmean(scores) if scores else None,
        interval=interval,
        p_value=p_value,
        low=sum(scores) / len(rows),
        high=(sum(scores) + missing.total()) / len(rows),
        missing=dict(missing),
        asked=len(asked),
        flipped=fmean(one != 1 - other for one, other in asked) if asked else None,
        first=fmean(value for values in asked for value in values) if asked else None,
        longer=fmean(longer) if longer else None,
    )


def render(benchmark: str, found: WinRate, a: Path, b: Path) -> str:
    """The win rate as a Markdown table, with what may mislead."""
    interval = "–" if found.interval is None else f"{found.interval.low:.3f} to {found.interval.high:.3f}"
    missing = sum(found.missing.values())
    requests = found.wins + found.ties + found.losses
    line = [
        benchmark, str(found.wins), str(found.ties), str(found.losses), _share(found.value), interval,
        p_text(found.p_value), f"{requests} ({missing} missing)" if missing else str(requests),
    ]  # fmt: skip
    text = [f"A: {a}", f"B: {b}", "", aligned(Table(COLUMNS, [line], align="lrrrrrrr")), ""]
    text.append(
        "Wins of A over B; a tie counts one half. Interval by bootstrap over requests, p by sign flips against 1/2."
    )
    if found.asked:
        text.append(
            f"Position: of the {found.asked} requests judged in both orders, a share of {_share(found.flipped)} gets "
            f"another verdict when the answers change places; whatever stands first wins {_share(found.first)}."
        )
    if found.longer is not None:
        text.append(f"Length: the longer answer won in {_share(found.longer)} of the requests that are not ties.")
    if missing:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(found.missing.items()))
        text.append(f"Missing: {reasons}; with them the win rate lies between {found.low:.3f} and {found.high:.3f}.")
    return "\n".join(text) + "\n"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
