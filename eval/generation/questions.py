"""Benchmarks as lm-eval's tasks: the requests that a row becomes, and the task's own metric on the answers."""

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from itertools import chain
from pathlib import Path
from traceback import walk_tb
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.utils import env
from pyarrow import ArrowException

import ogpsa
from eval.benchmarks.converters import CONVERSIONS
from eval.benchmarks.definition import OWN_METRIC, Benchmark, Function
from eval.generation.isolation import isolated_and_silent
from ogpsa.utils.errors import UserError, closest_match, first_line
from ogpsa.utils.json_text import json_kind

Row = Mapping[str, Any]
# ``response``: the text with its thoughts, ``finish_reason``: ``stop`` or ``length``, ``in_thought`` where the prompt
# has begun a thought; of a multiple choice ``options``: log-likelihoods, and ``greedy``: which are the likeliest; of a
# text whose loss is measured the same of it alone, and ``tokens``: how many it has.
Answer = dict[str, Any]
# The keys that name a column, or hold a template; doc_to_choice ends in an error where it is neither.
ASKED = ("doc_to_text", "doc_to_target")
# A word that has a letter.
WORD = re.compile(r"[\w-]*[^\W\d][\w-]*")
SEE = "; see doc_to_text, doc_to_choice and doc_to_target"
# Where the code lies that is no task's.
OURS = (Path(__file__).parents[1], Path(str(ogpsa.__file__)).parent)
# Columns that our own functions read, in addition to those that every row has.
READ = {column for conversion in CONVERSIONS.values() for column in conversion.extra}
# What lm-eval takes of a function in a key's place.
RETURNED = {
    "doc_to_text": ((str, int), "a text"),
    "doc_to_choice": ((list, tuple), "a list of texts"),
    "process_results": ((Mapping,), "an object of numbers by their metrics' names"),
}
# lm-eval's keys that say where it would fetch rows itself.
FETCHING = ("dataset_path", "dataset_name", "dataset_kwargs", "training_split", "validation_split", "fewshot_split")


@dataclass(frozen=True)
class Question:
    """One row as the task asks it; a multiple choice is one request per option, a text's loss a single one.

    Attributes:
        in_thought: the prompt ends in a thought that the template begins.
    """

    row_id: str
    requests: Sequence[Instance]
    in_thought: bool = False

    @property
    def key(self) -> str:
        """Sixteen hexadecimal digits over what is asked."""
        asked = json.dumps([request.args for request in self.requests], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()[:16]

    @property
    def length(self) -> int:
        """Characters of the longest request."""
        return max(sum(len(part) for part in request.args if isinstance(part, str)) for request in self.requests)

    def behind(self, start: str) -> "Question":
        """The question with ``start`` in front of each of its prompts."""
        requests = [
            replace(request, arguments=(start + request.args[0], *request.args[1:])) for request in self.requests
        ]
        return replace(self, requests=requests)


def rendered_hash(questions: Sequence[Question]) -> str:
    """Sixteen hexadecimal digits over all prompts of a benchmark as the model gets them."""
    return hashlib.sha256("".join(question.key for question in questions).encode()).hexdigest()[:16]


class Questions:
    """A benchmark's rows as one lm-eval task.

    Args:
        chat_template: makes a prompt of the messages, unless the benchmark puts them as plain text.

    Raises:
        UserError: the task's YAML and the rows do not go together.
    """

    def __init__(self, benchmark: Benchmark, rows: Sequence[Row], chat_template: Callable[..., str]) -> None:
        self._benchmark = benchmark
        chat = not benchmark.plain_text
        config = task_config(benchmark, rows)
        with isolated_and_silent(), _told(benchmark, "lm-eval makes no questions of the rows", SEE):
            # A task that draws draws the same again for the answers' metrics.
            random.seed(0)
            np.random.seed(0)
            self._task = ConfigurableTask(config=config)
            self._check_columns()
            self._task.build_all_requests(
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
                chat_template=chat_template if chat else None,
            )
            self._check_documents()
        documents: dict[int, list[Instance]] = {}
        for request in self._task.instances:
            documents.setdefault(int(request.doc_id or 0), []).append(request)
        # A task's process_docs may put the rows in another order.
        requests = {str(asked[0].doc.get("id")): asked for asked in documents.values()}
        ids = [str(row["id"]) for row in rows]
        kept = len(requests.keys() & set(ids))
        if not len(documents) == len(requests) == kept == len(ids):
            raise UserError(
                f"{benchmark.file}: process_docs: {len(documents)} documents hold {kept} of {len(ids)} rows' ids; "
                "allowed: each row once, with its id; leave a row out of its file instead"
            )
        self.all = [Question(key, requests[key]) for key in ids]

    def _check_columns(self) -> None:
        """Refuse a misspelt column, whose name lm-eval would put to the model, or take for the answer, as it is.

        Raises:
            UserError: names the key, and the rows' columns.
        """
        columns = self._task.features
        # An option that is every row's answer is a word of the task; _check_documents refuses what is none.
        keys = ("doc_to_text",) if self._benchmark.task["output_type"] == "multiple_choice" else ASKED
        for key in keys:
            found = self._benchmark.task.get(key)
            if isinstance(found, str) and WORD.fullmatch(found) and found not in columns:
                own = _own_columns(self._benchmark, columns)
                raise UserError(
                    f"{self._benchmark.file}: {key}: '{found}' is no column of the rows ({', '.join(own)})"
                    f'{closest_match(found, own)}; a fixed text is written as {{{{ "text" }}}}'
                )

    def _check_documents(self) -> None:
        """Refuse a row's prompt or answer that lm-eval would take otherwise than it is meant.

        Raises:
            UserError: names the row.
        """
        task, kind = self._benchmark.task, self._benchmark.task["output_type"]
        # Otherwise a judge or a function makes of the target what it wants.
        compared = kind != "generate_until" or (self._benchmark.judge == OWN_METRIC and "process_results" not in task)
        written = {key: self._task.get_config(key) for key in (ASKED if compared else ASKED[:1])}
        templates = {
            key: WRITING.from_string(found)
            for key, found in written.items()
            if isinstance(found, str) and found not in self._task.features
        }
        for document in {request.doc_id: request.doc for request in self._task.instances}.values():
            place = f"{self._benchmark.file}: row '{document.get('id')}'"
            for key, template in templates.items():
                try:
                    template.render(**document)
                except _NullError:
                    null = _own_columns(self._benchmark, (name for name in document if document[name] is None))
                    raise UserError(
                        f"{place}: {key}: it would say 'None' for a value that is null; columns that are: "
                        f"{', '.join(null) or 'part of one'}"
                    ) from None
            target = self._task.doc_to_target(document) if compared else None
            if compared and "doc_to_choice" in task and not self._task.multiple_input:
                self._check_options(place, self._task.doc_to_choice(document), target)
            elif kind == "loglikelihood" and not (isinstance(target, str) and target.strip()):
                raise UserError(
                    f"{place}: doc_to_target: found {json_kind(target)}; expected the text whose loss counts"
                )
            elif compared and target is None:
                raise UserError(f"{place}: doc_to_target: found null; expected what an answer is compared with")

    def _check_options(self, place: str, options: Any, target: Any) -> None:
        """Refuse a text, whose characters lm-eval would take for options, a single option, and a target that is none.

        Raises:
            UserError: names the row.
        """
        if isinstance(options, str) or len(options) < 2:
            raise UserError(f"{place}: doc_to_choice: found {json_kind(options)}; expected a list of several texts")
        for right in target if isinstance(target, list) else [target]:
            if right not in (range(len(options)) if isinstance(right, int) else options):
                raise UserError(
                    f"{place}: doc_to_target: found {right!r}; expected one of its {len(options)} options, or its "
                    "number from 0"
                )

    def metrics(self, answers: Mapping[str, Answer]) -> list[dict[str, float]]:
        """The task's own metrics of each row that has an answer, in the order of the rows.

        They are named ``metric,filter``, as lm-eval does.
        """
        answered = [question for question in self.all if question.row_id in answers]
        if not answered:
            return []
        for question in answered:
            for request, response in zip(question.requests, _responses(answers[question.row_id]), strict=True):
                request.resps = [response]
        # What the filters are applied to.
        self._task._instances = [request for question in answered for request in question.requests]
        with isolated_and_silent():
            with _told(self._benchmark, "filter_list fails"):
                self._task.apply_filters()
            return [self._metrics(question) for question in answered]

    def _metrics(self, question: Question) -> dict[str, float]:
        numbers: dict[str, float] = {}
        with _told(self._benchmark, f"row '{question.row_id}': its answer is not measured"):
            for name in question.requests[0].filtered_resps:
                filtered = [request.filtered_resps[name] for request in question.requests]
                results = self._task.process_results(question.requests[0].doc, filtered)
                numbers |= {f"{metric},{name}": value for metric, value in results.items()}
        return numbers


class _NullError(Exception):
    """A template writes null."""


def _not_null(value: Any) -> Any:
    if value is None:
        raise _NullError
    return value


# Reads lm-eval's templates as it does.
WRITING = env.overlay(finalize=_not_null)


class TaskError(UserError):
    """A task's own program fails, perhaps on this answer alone."""


@contextmanager
def _told(benchmark: Benchmark, failing: str, hint: str = "") -> Iterator[None]:
    """Run a task, which is its author's program, as are its functions: whatever it raises is one line.

    Raises:
        TaskError: names the benchmark's file.
        Exception: what code of ours raised that the task called: a template's, a function's of our own tasks.
    """
    try:
        yield
    except Exception as error:
        files = {Path(frame.f_code.co_filename) for frame, _ in walk_tb(error.__traceback__)} - {Path(__file__)}
        if isinstance(error, UserError) or any(file.is_relative_to(code) for file in files for code in OURS):
            raise
        told = f"{type(error).__name__}: {first_line(error)}"
        raise TaskError(f"{benchmark.file}: {failing} ({told}){hint}") from error


def task_config(benchmark: Benchmark, rows: Sequence[Row]) -> dict[str, Any]:
    """lm-eval's configuration of a benchmark's task over these rows."""
    config = {key: _resolved(benchmark, key, value) for key, value in benchmark.task.items() if key not in FETCHING}
    # Held in memory, so that no cache can serve the rows of another world.
    table = _table(benchmark, rows)
    config |= {"custom_dataset": lambda **_: {"test": table}, "test_split": "test"}
    return config | {"metadata": {"version": benchmark.task.get("metadata", {}).get("version", 1)}}


def _table(benchmark: Benchmark, rows: Sequence[Row]) -> Dataset:
    """The rows by column.

    Raises:
        UserError: names a column whose values are not of one kind, or too large.
    """
    columns = []
    for column in dict.fromkeys(chain.from_iterable(rows)):
        try:
            columns.append(Dataset.from_list([{column: row.get(column)} for row in rows]))
        except (ArrowException, OverflowError) as error:
            raise UserError(
                f"{benchmark.file}: its rows, '{benchmark.rows}': {column}: {first_line(error)}; allowed: values of "
                "one kind, whole numbers of at most 64 bits"
            ) from None
    return concatenate_datasets(columns, axis=1)


def _responses(answer: Answer) -> list[Any]:
    if "response" in answer:
        return [answer["response"]]
    parts = [answer[key] for key in ("options", "greedy", "tokens") if key in answer]
    return list(zip(*parts, strict=True))


def _resolved(benchmark: Benchmark, key: str, value: Any) -> Any:
    """A key's value with each ``!function`` in the function's place."""
    if isinstance(value, Function):
        return _function(benchmark, key, value)
    if isinstance(value, dict):
        return {name: _resolved(benchmark, name, inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_resolved(benchmark, "", inner) for inner in value]
    return value


def _function(benchmark: Benchmark, key: str, function: Function) -> Any:
    """A function that lm-eval calls, whose failures are one line that names it and the row; a class as it is.

    Raises:
        UserError: it is neither. When it is called: a function of ours misses a column, or it returns another type
            than ``key`` takes.
        TaskError: when it is called, a function of the task's author fails.
    """
    found = function.load()
    if isinstance(found, type):
        return found
    if not callable(found):
        raise UserError(f"{function.place} is {json_kind(found)}; expected a function")
    ours = any(function.file.is_relative_to(code) for code in OURS)

    @wraps(found)
    def called(*arguments: Any, **named: Any) -> Any:
        document = next((given for given in arguments if isinstance(given, dict)), {})
        if ours:
            # In a row that lacks a column, the table of all rows has null.
            arguments = tuple(_without_null(given) if given is document else given for given in arguments)
        row = f" row '{document['id']}'" if "id" in document else ""
        try:
            result = found(*arguments, **named)
        except (Exception, SystemExit) as error:
            if isinstance(error, KeyError) and ours and error.args[0] in READ - _without_null(document).keys():
                raise UserError(
                    f"{function.place}:{row} has no column '{error.args[0]}', which that function reads; the rows' "
                    f"columns: {', '.join(_own_columns(benchmark, document))}"
                ) from error
            if ours or isinstance(error, UserError):
                raise
            on = row and f" on{row}"
            raise TaskError(f"{function.place} fails{on} ({type(error).__name__}: {first_line(error)})") from error
        kinds, words = RETURNED.get(key, ((object,), ""))
        if not isinstance(result, kinds):
            raise UserError(f"{function.place}:{row}: returns {json_kind(result)}; {key} takes {words}")
        return result

    return called


def _without_null(row: Row) -> dict[str, Any]:
    return {column: value for column, value in row.items() if value is not None}


def _own_columns(benchmark: Benchmark, columns: Iterable[str]) -> list[str]:
    """Those that the rows' author gave them."""
    return [column for column in columns if column not in benchmark.taken_columns]
