"""Evaluation of one checkpoint: generate → judge → aggregate, three artefacts on disk.

```
generations/<benchmark>.jsonl   the row, its response (or log-likelihoods), and what they rest on:
                                benchmark, backend, model_fingerprint, data_hash, task_hash, template_kwargs,
                                rendered_hash (of the benchmark's prompts as the model got them); category, where the
                                rows fall into some
verdicts/<benchmark>.jsonl      id, judge, verdict, value, parse_status, refused, detail, and what they rest on;
                                no_answer: empty, or unfinished (the response ends in a thought); finish_reason;
                                fallback: the jailbreak failed and the request was put as it is
scores.json                     the averages and every benchmark's score (eval/scores/aggregate.py)
```
A file that is there and rests on the same weights, rows, task and judge is kept, and so is every finished piece of one
that is not whole yet, and what an endpoint replied (``.<benchmark>.journal``). A second call resumes where a first one
was killed; one that finds everything loads no model.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eval.benchmarks.definition import OWN_METRIC, STAMP, Benchmark
from eval.benchmarks.sources import MissingData, data_hash, load_rows, needs_brought, rows_file, sample_rows
from eval.generation.fingerprint import checkpoint_folder, server_fingerprint
from eval.judging.answers import NO_ANSWER, Answer, find_answers, verdict_on_none
from eval.judging.judge import Item, Verdict, endpoint_judges, missing, verdict_hash
from eval.judging.verdicts import (
    Estimate,
    Judgement,
    check_judge,
    check_value,
    estimate,
    judge_responses,
    open_journal,
    print_total,
    request_of,
    responses_of,
    was_withheld,
)
from eval.scores.aggregate import Result, aggregate
from eval.scores.artefacts import content_hash
from eval.scores.groups import check_groups
from ogpsa.config import Evaluation, Precision
from ogpsa.models.files import fingerprint
from ogpsa.runs.directory import SCORES_FILE
from ogpsa.runs.inputs import package_digests
from ogpsa.utils.endpoint import Budget, Endpoint, TooLongError
from ogpsa.utils.errors import UserError, closest_match
from ogpsa.utils.files import read_jsonl, write_json, write_jsonl
from ogpsa.utils.health import FAULTS, faults
from ogpsa.utils.journal import stamp_of
from ogpsa.utils.refusal_rules import declines

if TYPE_CHECKING:
    from eval.generation.generate import Answering
    from eval.generation.questions import Question

log = logging.getLogger("ogpsa.eval")

Row = dict[str, Any]
# Share of a benchmark's responses from which a warning is due [ours].
MANY = 0.25
# The verdict on a response that the server's filter kept back: there is nothing to judge.
WITHHELD = Judgement(missing("withheld"), None, None)
# The last artefact to make.
Until = Literal["generations", "verdicts", "metrics"]


def evaluate(
    checkpoint: Path,
    rows: Path,
    output: Path,
    settings: Evaluation,
    safe_point: Callable[[], None] = lambda: None,
    precision: Precision = "bf16",
    until: Until = "metrics",
) -> dict[str, Any]:
    """Evaluate a checkpoint on the benchmarks that ``settings`` names and return what ``scores.json`` holds.

    A published benchmark whose rows are missing, or that the backend cannot answer, has no score, and its averages have
    none; the others run.

    Args:
        checkpoint: a local folder, or the id of a model in the local hub cache; nothing is downloaded. Left aside
            where a server holds the model.
        rows: folder with the benchmarks' rows; ``settings.data_dir`` takes its place where given, except for a
            benchmark that nobody publishes and of which it holds no file.
        output: folder of the artefacts.
        settings: benchmarks by group, rows per benchmark, who generates and who judges.
        safe_point: called before each batch, where the work may stop; what it raises ends the evaluation, finished
            pieces stay.
        precision: of the weights on a GPU, as in training.
        until: ``generations`` or ``verdicts`` stops short of the rest, and returns the benchmarks without rows.

    Raises:
        UserError: an unknown benchmark, rows that are malformed, a checkpoint that cannot be loaded, a judge that
            cannot be asked; before the first response is generated.
    """
    benchmarks = check_groups(settings)
    if settings.backend.name == "server":
        model, identity = checkpoint, server_fingerprint(settings.backend)
    else:
        model = checkpoint_folder(checkpoint)
        identity = fingerprint(model)
    folder = Path(settings.data_dir) if settings.data_dir else rows
    errors: dict[str, str] = {}
    works = []
    for benchmark in benchmarks:
        with _noting(errors, benchmark, MissingData):
            brought = needs_brought(benchmark, folder) and rows_file(benchmark, rows) is not None
            works.append(_work(benchmark, rows if brought else folder, output, settings, identity))
    pending = [work for work in works if _stored(work.generations, work.rows) is None]
    earlier = [work for work in works if work not in pending or _journal(work.generations).is_file()]
    if settings.backend.name == "server" and earlier:
        log.warning(
            "answers of an earlier call are taken for %d of %d benchmarks; if '%s' has other weights by now, name "
            "another output",
            len(earlier), len(works), settings.backend.model,
        )  # fmt: skip
    unjudged = [
        work for work in works if work in pending or _stored(work.verdicts, _expected_verdicts(work, settings)) is None
    ]
    if until != "generations":
        for judge in dict.fromkeys(work.benchmark.judge for work in unjudged):
            if judge != OWN_METRIC:
                check_judge(judge, settings.judge)
                # Nothing is generated for a judge that would not answer.
                if pending and endpoint_judges(judge, settings.judge):
                    Endpoint.of("eval.judge", settings.judge, settings.judge.model).reach()
    calls = _prepare(model, pending, errors, settings, precision) if pending else []
    if unjudged:
        (output / SCORES_FILE).unlink(missing_ok=True)
    _generate_all(calls, errors, safe_point)
    if calls and settings.backend.name != "server":
        from accelerate.utils.memory import clear_device_cache

        # The model goes before judges with weights of their own come.
        calls.clear()
        clear_device_cache(garbage_collection=True)
    works = [work for work in works if work.benchmark.name not in errors]
    for work in works:
        _journal(work.generations).unlink(missing_ok=True)
    unavailable = {"benchmarks": {name: {"error": error, "parts": []} for name, error in errors.items()}}
    if until == "generations":
        return unavailable
    budget = Budget(settings.judge.max_calls)
    print_total((_estimate(work, settings) for work in works if work in unjudged), budget)
    results = {work.benchmark.name: _result(work, settings, safe_point, budget) for work in works}
    if until == "verdicts":
        return unavailable
    scores = aggregate(results, benchmarks, settings, errors)
    warn_of_responses(benchmarks, scores["benchmarks"], settings.max_new_tokens)
    write_json(output / SCORES_FILE, scores)
    return scores


def _generate_all(calls: "Sequence[_Call]", errors: dict[str, str], safe_point: Callable[[], None]) -> None:
    for work, call in calls:
        with _noting(errors, work.benchmark, TooLongError):
            call(safe_point)


@dataclass(frozen=True)
class _Work:
    """One benchmark's part of an evaluation.

    Attributes:
        rows: those of its generations, without the responses.
        available: rows that its file holds.
    """

    benchmark: Benchmark
    rows: list[Row]
    available: int
    generations: Path
    verdicts: Path


@contextmanager
def _noting(errors: dict[str, str], benchmark: Benchmark, kind: type[Exception]) -> Iterator[None]:
    """Note why a published benchmark is unavailable, so that the others run; the testbed's are always available."""
    try:
        yield
    except kind as error:
        if benchmark.source is None:
            raise UserError(str(error)) from None
        errors[benchmark.name] = str(error)


def _work(benchmark: Benchmark, folder: Path, output: Path, settings: Evaluation, identity: str) -> _Work:
    rows = load_rows(benchmark, folder)
    stamp = {
        "benchmark": benchmark.name,
        "backend": settings.backend.name,
        "model_fingerprint": identity,
        "data_hash": data_hash(rows),
        "task_hash": benchmark.task_hash,
        "template_kwargs": settings.template_kwargs,
    }
    return _Work(
        benchmark,
        [
            {**row, **_category(benchmark, row), **stamp}
            for row in sample_rows(rows, settings.rows_of(benchmark.name), settings.sample_seed)
        ],
        len(rows),
        output / "generations" / f"{benchmark.name}.jsonl",
        output / "verdicts" / f"{benchmark.name}.jsonl",
    )


# A benchmark's part and what makes its generations, given the safe point.
_Call = tuple[_Work, Callable[[Callable[[], None]], None]]


def _prepare(
    model: Path, works: Sequence[_Work], errors: dict[str, str], settings: Evaluation, precision: Precision
) -> list[_Call]:
    """The calls that make the generations, one per benchmark; one that cannot be asked is found before the first call.

    Raises:
        UserError: a benchmark cannot be asked, or was asked in other prompts before.
    """
    from eval.generation.generate import local_model, prepare
    from eval.generation.questions import rendered_hash
    from eval.generation.server import Server

    if settings.backend.name == "server":
        backend: Answering = Server(settings.backend, settings.template_kwargs)
    else:
        backend = local_model(model, settings, precision)
    calls = []
    for work in works:
        with _noting(errors, work.benchmark, UserError):
            questions = prepare(backend, work.benchmark, work.rows)
            if work.benchmark.judge == OWN_METRIC:
                _check_metric(work.benchmark, work.rows, questions)
            stamped = replace(work, rows=[{**row, "rendered_hash": rendered_hash(questions)} for row in work.rows])
            calls.append((stamped, questions))
    for work, _ in calls:
        _check_same_prompts(work)
    made_by = package_digests()
    return [(work, partial(_generate, backend, work, questions, made_by)) for work, questions in calls]


def _generate(
    backend: "Answering",
    work: _Work,
    questions: "Sequence[Question]",
    made_by: Mapping[str, str],
    safe_point: Callable[[], None],
) -> None:
    from eval.generation.generate import generate

    journal = _journal(work.generations)
    # A half-made file of other code or libraries is begun again.
    stamp = _stamp(work.rows) | {"made_by": dict(made_by)}
    answers = generate(backend, questions, work.benchmark.name, journal, stamp, safe_point)
    rows = zip(work.rows, answers, strict=True)
    write_jsonl(work.generations, [{**row, **answer} for row, answer in rows])


def _category(benchmark: Benchmark, row: Row) -> Row:
    """The category of a row in a table by category; empty without its column."""
    kind = row.get(benchmark.category)
    return {} if kind is None else {"category": str(kind)}


def _stamp(rows: Sequence[Row]) -> dict[str, Any]:
    """The inputs that the answers to a benchmark's rows depend on."""
    return {key: rows[0].get(key) for key in STAMP} | {"rows": [row.get("id") for row in rows]}


def _check_same_prompts(work: _Work) -> None:
    """Refuse to resume where the same model was asked the same rows in other prompts.

    Raises:
        UserError: names the file, both hashes, and what the templates were given.
    """
    stamp = _stamp(work.rows)
    made, journal = _readable(work.generations), _journal(work.generations)
    for file, before in ((work.generations, _stamp(made) if made else {}), (journal, stamp_of(journal))):
        differing = {key for key in stamp if before.get(key) != stamp[key]}
        if before.get("rendered_hash") and {"rendered_hash"} <= differing <= {"rendered_hash", "template_kwargs"}:
            raise UserError(
                f"{file}: made from other prompts: rendered_hash {before['rendered_hash']} there, "
                f"{stamp['rendered_hash']} here; model.template_kwargs {before['template_kwargs']} there, "
                f"{stamp['template_kwargs']} here; give the same ones, or choose another output"
            )


def warn_of_responses(
    benchmarks: Sequence[Benchmark], entries: Mapping[str, Any], max_new_tokens: int | None = None
) -> None:
    """Log a line naming the benchmarks with many responses cut at the cap on tokens, with many non-answers or faults.

    Args:
        max_new_tokens: the cap that was asked for; what it cuts is meant to be cut.
    """
    cut, silent, faulty = [], [], []
    for benchmark in benchmarks:
        entry, name = entries[benchmark.name], benchmark.name
        total = entry["n"] + entry["missing"]
        cap = benchmark.task.get("generation_kwargs", {}).get("max_gen_toks")
        if entry["cut"] and entry["cut"] >= MANY * total and cap != max_new_tokens:
            cut.append(f"{name} {entry['cut']} of {total} (max_gen_toks {cap})")
        if (none := entry["empty"] + entry["unfinished"]) and none >= MANY * total:
            kinds = " and ".join(f"{entry[kind]} {kind}" for kind in NO_ANSWER if entry[kind])
            silent.append(f"{name} {kinds} of {total}")
        many = [fault for fault in FAULTS if entry[fault] and entry[fault] >= MANY * total]
        faulty += [f"{name} {entry[fault]} {fault.replace('_', ' ')} of {total}" for fault in many]
    if cut:
        log.warning("warning: many responses met the cap on tokens and are cut: %s", ", ".join(cut))
    if silent:
        log.warning("warning: many responses hold no answer: %s", ", ".join(silent))
    if faulty:
        log.warning("warning: many responses are not what a person would read: %s", ", ".join(faulty))


def _expected_verdicts(work: _Work, settings: Evaluation) -> list[Row]:
    """The rows of a benchmark's verdicts, without what the judge says."""
    benchmark = work.benchmark
    own = benchmark.judge == OWN_METRIC
    stamp = {
        "benchmark": benchmark.name,
        "judge": f"{OWN_METRIC}:{benchmark.metric}" if own else benchmark.judge,
        "judge_hash": verdict_hash(benchmark, settings.judge),
        "generations_hash": content_hash(work.generations),
        "model_fingerprint": work.rows[0]["model_fingerprint"],
        "data_hash": work.rows[0]["data_hash"],
        "rendered_hash": next((row.get("rendered_hash") for row in _readable(work.generations)), None),
    }
    return [{"id": row["id"], **stamp} for row in work.rows]


def _result(work: _Work, settings: Evaluation, safe_point: Callable[[], None], budget: Budget) -> Result:
    """A benchmark's verdicts, from disk where they rest on these generations and this judge."""
    expected = _expected_verdicts(work, settings)
    verdicts = _stored(work.verdicts, expected)
    if verdicts is None:
        answered = read_jsonl(work.generations)
        if work.benchmark.judge == OWN_METRIC:
            made = own_verdicts(work.benchmark, answered)
        else:
            made = _judge_verdicts(work, answered, settings, safe_point, budget)
        verdicts = [{**head, **verdict} for head, verdict in zip(expected, made, strict=True)]
        write_jsonl(work.verdicts, verdicts)
        unread = sum(row["parse_status"] == "unparsed" for row in made)
        if unread >= MANY * len(made) and unread:
            log.warning("warning: many verdicts cannot be read: %d of %d; see %s", unread, len(made), work.verdicts)
    named = {row["id"]: _category(work.benchmark, row) for row in work.rows}
    categories = {key: found["category"] for key, found in named.items() if found}
    return Result(verdicts, content_hash(work.verdicts), work.available, categories)


def _estimate(work: _Work, settings: Evaluation) -> Estimate:
    """The requests to an endpoint that judging a benchmark will take."""
    if work.benchmark.judge == OWN_METRIC:
        return Estimate()
    items = responses_of(work.benchmark, read_jsonl(work.generations))
    return estimate(work.benchmark.judge, list(items.values()), settings.judge, open_journal(_journal(work.verdicts)))


def _judge_verdicts(
    work: _Work, answered: list[Row], settings: Evaluation, safe_point: Callable[[], None], budget: Budget
) -> list[Row]:
    """The verdicts of the benchmark's judge."""
    items = responses_of(work.benchmark, answered)
    name = work.benchmark.name
    # Stays when the verdicts are complete: a better parser can read again what was paid for.
    journal = open_journal(_journal(work.verdicts))
    judge = work.benchmark.judge
    found = judge_responses(judge, list(items.values()), settings.judge, journal, f"judging {name}", safe_point, budget)
    judged = dict(zip(items, found, strict=True))
    answers = _answers(items)
    return [_verdict_row(judged.get(row["id"], WITHHELD), row, answers.get(row["id"])) for row in answered]


def _answers(items: dict[str, Item]) -> dict[str, Answer]:
    return dict(zip(items, find_answers(list(items.values())), strict=True))


def own_verdicts(benchmark: Benchmark, answered: list[Row]) -> list[Row]:
    """The verdicts of the lm-eval task itself; its other metrics are kept in addition to the one that counts.

    It measures only rows that have an answer.
    """
    from eval.generation.questions import Questions

    answers = _answers(responses_of(benchmark, answered))
    texts = {key: {"response": answer.text} for key, answer in answers.items() if answer.none is None}
    likelihoods = {row["id"]: row for row in answered if row["id"] not in answers and not was_withheld(row)}
    # The rows as they were asked: to a task that reads its answer's column the model would agree with itself.
    asked = [{key: row[key] for key in row if key not in benchmark.answer_columns} for row in answered]
    metrics = iter(Questions(benchmark, asked, lambda messages, **_: str(messages)).metrics(texts | likelihoods))
    rows = []
    for row in answered:
        answer = answers.get(row["id"])
        if answer and answer.none:
            judged = Judgement(verdict_on_none(answer.none, "accuracy"), None, None)
        elif was_withheld(row):
            judged = WITHHELD
        else:
            judged = Judgement(_own_verdict(benchmark, row, next(metrics)), None, None)
        rows.append(_verdict_row(judged, row, answer))
    return rows


def _own_verdict(benchmark: Benchmark, row: Row, found: Mapping[str, Any]) -> Verdict:
    """The verdict on a row by what the task has measured."""
    value = _own_value(benchmark, f"row '{row['id']}'", found)
    numbers = {name: number for name, number in found.items() if isinstance(number, bool | int | float)}
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise UserError(
                f"{benchmark.name}: row '{row['id']}': lm-eval's {name} is {number}; a score must be finite"
            )
    label = "loss" if benchmark.measures_loss else "right" if value else "wrong"
    return missing("unparsed") if value is None else Verdict(label, value, detail=numbers)


def _own_value(benchmark: Benchmark, place: str, found: Mapping[str, Any]) -> float | None:
    """The number that counts among those that the task has measured at ``place``.

    Raises:
        UserError: it is not among them, no number, or not a score.
    """
    metric = str(benchmark.metric)
    if metric not in found:
        known = ", ".join(found) or "nothing"
        hint = closest_match(metric, found)
        raise UserError(f"{benchmark.file}: metadata.metric: '{metric}' is not measured; found {known}{hint}")
    value = found[metric]
    if benchmark.measures_loss and isinstance(value, float):
        return value
    check_value(f"{benchmark.file}: {metric}: {place}", value)
    return None if value is None else float(value)


def _check_metric(benchmark: Benchmark, rows: Sequence[Row], questions: "Sequence[Question]") -> None:
    """Try the task's own metric on an answer that says nothing, before any is generated.

    Raises:
        UserError: the task fails, though no function of its own reads responses, or does not measure the metric that
            counts, or its value is no score.
    """
    from eval.generation.questions import Questions, TaskError

    texts = len(questions[0].requests)
    nothing: Row = {"options": [-1.0] * texts, "greedy": [False] * texts}
    if benchmark.generates:
        nothing = {"response": ""}
    elif benchmark.measures_loss:
        nothing |= {"tokens": [1]}
    # Of all rows only where the task looks at them together.
    tried = rows if benchmark.task.get("process_docs") else rows[:1]
    task = Questions(benchmark, tried, lambda messages, **_: str(messages))
    try:
        [found] = task.metrics({rows[0]["id"]: nothing})
    except TaskError:
        # The user's own function may fail on such a response, which no model need give.
        if benchmark.generates and not benchmark.task.keys().isdisjoint(("process_results", "filter_list")):
            return
        raise
    value = found.get(str(benchmark.metric))
    if not (isinstance(value, float) and math.isnan(value)):
        _own_value(benchmark, "an empty answer", found)


def _verdict_row(judged: Judgement, row: Row, answer: Answer | None) -> Row:
    """The fields of an answered row in a verdict file, apart from the inputs that the verdict depends on.

    Args:
        answer: None for options, which have no words, and for responses that a filter withheld, which no model refused.
    """
    verdict = judged.verdict
    refused = answer and (row.get("finish_reason") == "refusal" or declines(answer.text))
    answered = answer if answer and answer.none is None else None
    return {
        "verdict": verdict.label,
        "value": verdict.value,
        "parse_status": verdict.parse_status,
        "refused": refused if answered else None,
        "faults": faults(request_of(row), answered.text) if answered else [],
        "no_answer": answer.none if answer else None,
        "finish_reason": row.get("finish_reason"),
        "detail": dict(verdict.detail),
        "prompt_hash": judged.prompt_hash,
        "judge_model": judged.judge_model,
        "fallback": row.get("fallback"),
    }


def _journal(path: Path) -> Path:
    """Where the finished pieces of a file are kept."""
    return path.with_name(f".{path.stem}.journal")


def _readable(path: Path) -> list[Row]:
    """A file's rows; none where it is not there, or damaged."""
    try:
        return read_jsonl(path) if path.is_file() else []
    except UserError:
        return []


def _stored(path: Path, expected: list[Row]) -> list[Row] | None:
    """The file's rows if they are the expected ones, completed; None if it has to be made (again)."""
    rows = _readable(path)
    valid = len(rows) == len(expected) and all(
        want.items() <= row.items() for want, row in zip(expected, rows, strict=True)
    )
    return rows if rows and valid else None
