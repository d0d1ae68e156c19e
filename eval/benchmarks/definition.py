"""Benchmarks: one YAML each, in lm-eval's task format, and one file of rows.

They are found below ``eval/benchmarks/tasks`` and in the folder that ``eval.task_dir`` names. In addition to lm-eval's
keys a YAML holds under ``metadata`` the judge, the file of rows, where they come from and what they need, the column by
which they fall into categories (``category``, if it does not say), and with ``plain_text`` that its prompts are asked
as they are, without the chat template. An ``include`` that begins with ``lm_eval/`` is a file of the installed package.
Nothing here imports torch or lm-eval: a mistake in a name or a file shows before a model is loaded.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from eval.benchmarks.converters import CONVERSIONS
from eval.benchmarks.own_files import defined_in, named_files
from ogpsa.utils.errors import UserError, closest_match, first_line
from ogpsa.utils.files import read_jsonl, read_text
from ogpsa.utils.json_text import json_kind

TASKS = Path(__file__).parent / "tasks"
LISTED = "python -m eval benchmarks lists them"
COLUMNS = ("id", "prompt", "target")
# Instead of a judge's name: the verdict is the lm-eval task's own metric.
OWN_METRIC = "lm_eval"
# What a row's answer rests on in addition to the row, which stands beside them in the file of generations.
STAMP = ("backend", "model_fingerprint", "data_hash", "task_hash", "template_kwargs", "rendered_hash")
# lm-eval's kinds of tasks that are read: a response, the likeliest of several texts, the likelihood of one.
OUTPUT_TYPES = ("generate_until", "multiple_choice", "loglikelihood")


@dataclass(frozen=True)
class Source:
    """The source of a benchmark's rows.

    Attributes:
        hub: id of the data set, with its configuration, split and revision.
        convert: the conversion in ``eval/benchmarks/converters.py`` that makes our rows of the published ones, or
            ``FILE.NAME``, one in a Python file beside the YAML.
        gated: where to ask for access; None if it is open.
        count: rows that the published set has.
    """

    hub: str
    split: str
    convert: str
    licence: str
    config: str | None = None
    revision: str | None = None
    gated: str | None = None
    count: int | None = None


@dataclass(frozen=True)
class Function:
    """lm-eval's ``!function``: a dotted path, or a name in a Python file beside ``yaml``, which holds it."""

    yaml: Path
    path: str

    @property
    def place(self) -> str:
        """Where it stands, for errors."""
        return f"{self.yaml}: '{self.path}'"

    @property
    def file(self) -> Path:
        """The file that holds it.

        Raises:
            UserError: there is none, or a package around it does not run.
        """
        module = self.path.rpartition(".")[0]
        own = self.yaml.parent.joinpath(*module.split(".")).with_suffix(".py")
        if own.is_file():
            return own
        try:
            spec = find_spec(module)
        except (Exception, SystemExit) as error:
            # A package without that module, or a path without one.
            absent = isinstance(error, ValueError) or (
                isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
            )
            if not absent:
                raise self._broken(error) from error
            spec = None
        if spec is None or not spec.has_location or spec.origin is None:
            raise UserError(
                f"{self.yaml}: '!function {self.path}' names no Python file beside the YAML and no module in a file"
            )
        return Path(spec.origin)

    def load(self) -> Any:
        """The object of that name.

        Raises:
            UserError: the file does not run, or does not define it.
        """
        module, _, name = self.path.rpartition(".")
        file = self.file
        if file.is_relative_to(self.yaml.parent):
            try:
                return defined_in(file, name)
            except UserError as error:
                raise UserError(*(f"{self.place}: {problem}" for problem in error.problems)) from error
        try:
            found = vars(import_module(module))
        except (Exception, SystemExit) as error:
            raise self._broken(error) from error
        if name not in found:
            raise UserError(f"{self.place}: {file}: defines no '{name}'{closest_match(name, found)}")
        return found[name]

    def _broken(self, error: BaseException) -> UserError:
        return UserError(f"{self.place}: its module does not run ({type(error).__name__}: {first_line(error)})")


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's definition.

    Attributes:
        file: the YAML that defines it.
        judge: a judge's name, or ``lm_eval`` for the task's own ``metric``, lm-eval's ``metric,filter``.
        rows: the file of rows, without its ending.
        task: lm-eval's task configuration, includes resolved.
        plain_text: the prompts are asked as they are, without the chat template.
        task_hash: sixteen hexadecimal digits over ``task`` and ``plain_text``.
        tokenized: by column, the entries that need NLTK's trained tokenizer, where a row has one of them.
        category: the column that a table by category is made of; its rows need not have one.
    """

    name: str
    file: Path
    judge: str
    metric: str | None
    rows: str
    source: Source | None
    task: Mapping[str, Any]
    plain_text: bool
    task_hash: str
    tokenized: Mapping[str, Sequence[str]]
    category: str

    @property
    def generates(self) -> bool:
        """Whether the model writes a response; otherwise texts are scored by their likelihood."""
        return bool(self.task["output_type"] == "generate_until")

    @property
    def measures_loss(self) -> bool:
        """Whether one text's own likelihood is the score: nats per token, lower is better."""
        return bool(self.task["output_type"] == "loglikelihood")

    @property
    def answer_columns(self) -> tuple[str, ...]:
        """The columns in which an answer stands; of texts that are scored none may look like a response either."""
        texts = () if self.generates else ("options", "greedy", "tokens")
        return ("response", "finish_reason", "in_thought", *texts)

    @property
    def taken_columns(self) -> tuple[str, ...]:
        """The columns that generations add to a row, so that the row itself must not have them."""
        kind = () if self.category == "category" else ("category",)
        return (*self.answer_columns, "benchmark", *STAMP, *kind)


def find_benchmarks(
    names: Iterable[str],
    judges: Mapping[str, str] | None = None,
    folder: str | None = None,
    max_new_tokens: int | None = None,
    key: str = "eval",
) -> list[Benchmark]:
    """The benchmarks called ``names``, in that order.

    Args:
        judges: judges in place of the benchmarks' own.
        folder: benchmarks of one's own (``eval.task_dir``), in addition to ours.
        max_new_tokens: a cap on a response below the benchmarks' own (``eval.max_new_tokens``); another cap is another
            task, by its hash.
        key: where the names stand, for errors.

    Raises:
        UserError: a name has no YAML or is listed twice, or a YAML misses what a benchmark needs.
    """
    files = named_files("[!_]*.yaml", TASKS, folder, "eval.task_dir")
    names, judges = list(names), judges or {}
    problems = [
        f"{key}: unknown benchmark '{name}' ({LISTED}){closest_match(name, files)}"
        for name in names
        if name not in files
    ]
    problems += [f"{key}: benchmark '{name}' is listed twice" for name in dict.fromkeys(names) if names.count(name) > 1]
    problems += [
        f"eval.judges: unknown benchmark '{name}' ({LISTED}){closest_match(name, files)}"
        for name in judges
        if name not in files
    ]
    if problems:
        raise UserError(*problems)
    return [_benchmark(files[name], judges.get(name), max_new_tokens) for name in names]


class _Loader(yaml.SafeLoader):
    """Keeps lm-eval's ``!function`` with the file that holds it."""

    yaml: Path


def _function(loader: Any, node: Any) -> Function:
    return Function(loader.yaml, str(node.value))


_Loader.add_constructor("!function", _function)


def _benchmark(path: Path, judge: str | None, max_new_tokens: int | None) -> Benchmark:
    task = _resolve(path)
    kind = task.setdefault("output_type", "generate_until")
    if kind not in OUTPUT_TYPES:
        allowed = f"{', '.join(OUTPUT_TYPES)}{closest_match(str(kind), OUTPUT_TYPES)}"
        raise UserError(f"{path}: output_type: found {kind!r}; allowed: {allowed}")
    settings, metadata = (_section(path, task, key) for key in ("generation_kwargs", "metadata"))
    most = settings.get("max_gen_toks")
    if kind == "generate_until" and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        found = "not given" if most is None else f"found {most!r}"
        raise UserError(f"{path}: generation_kwargs.max_gen_toks: {found}; say how many tokens an answer may have")
    _texts(path, "generation_kwargs.until", settings.get("until") or [])
    if max_new_tokens is not None and max_new_tokens < settings.get("max_gen_toks", 0):
        task["generation_kwargs"] = settings | {"max_gen_toks": max_new_tokens}
    if task.get("task") != path.stem:
        raise UserError(f"{path}: task: found {task.get('task')!r}; it must be the file's name, '{path.stem}'")
    if not isinstance(metadata.get("rows"), str):
        raise UserError(f"{path}: metadata.rows: found {metadata.get('rows')!r}; name the file of rows")
    judge = judge or metadata.get("judge")
    if not isinstance(judge, str):
        raise UserError(f"{path}: metadata.judge: found {judge!r}; name a judge, or {OWN_METRIC}")
    if judge == OWN_METRIC and not isinstance(metadata.get("metric"), str):
        raise UserError(f"{path}: metadata.metric: found {metadata.get('metric')!r}; name lm-eval's metric,filter")
    source = _section(path, metadata, "source") if metadata.get("source") is not None else None
    if source is not None:
        keys = [field.name for field in fields(Source)]
        for key in source:
            if key not in keys:
                raise UserError(
                    f"{path}: metadata.source.{key}: unknown key; allowed: {', '.join(keys)}{closest_match(key, keys)}"
                )
        lacking = [key for key in ("hub", "split", "convert", "licence") if key not in source]
        if lacking:
            raise UserError(f"{path}: metadata.source.{lacking[0]}: no value given, and it has no default")
        convert = str(source["convert"])
        if convert not in CONVERSIONS and not (path.parent / f"{convert.partition('.')[0]}.py").is_file():
            raise UserError(
                f"{path}: metadata.source.convert: found '{convert}'; allowed: {', '.join(CONVERSIONS)}, or FILE.NAME "
                f"of a Python file beside the YAML{closest_match(convert, CONVERSIONS)}"
            )
    # The judge is not part of the task: another judge leaves the responses as they are.
    content = {key: value for key, value in task.items() if key != "metadata"} | {"lm_eval": version("lm_eval")}
    plain_text = bool(metadata.get("plain_text", False))
    # Left out where it is false, so that the hashes of what was asked before it existed hold.
    content |= {"plain_text": True} if plain_text else {}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=_function_hash).encode()).hexdigest()
    return Benchmark(
        name=path.stem,
        file=path,
        judge=judge,
        metric=metadata.get("metric") if judge == OWN_METRIC else None,
        rows=Path(metadata["rows"]).stem,
        source=None if source is None else Source(**source),
        task=task,
        plain_text=plain_text,
        task_hash=digest[:16],
        tokenized={
            column: _texts(path, f"metadata.tokenized.{column}", entries)
            for column, entries in _section(path, metadata, "tokenized").items()
        },
        category=str(metadata.get("category", "category")),
    )


def _section(path: Path, task: Mapping[str, Any], key: str) -> dict[str, Any]:
    section = task.get(key, {})
    if not isinstance(section, dict):
        raise UserError(f"{path}: {key}: found {json_kind(section)}; expected keys with their values")
    return section


def _texts(path: Path, key: str, value: Any) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{path}: {key}: found {json_kind(value)}; expected a text or a list of texts")
    return texts


def _function_hash(found: object) -> str:
    """A function's name and the code of the file that holds it; of what else YAML has and JSON has not, its text."""
    if not isinstance(found, Function):
        return str(found)
    return f"{found.path} {hashlib.sha256(found.file.read_bytes()).hexdigest()}"


def _resolve(path: Path, includers: Sequence[Path] = ()) -> dict[str, Any]:
    """A task with what it includes, nearer files winning key by key, as lm-eval merges them."""
    loader = _Loader(read_text(path, "a task in YAML"))
    loader.yaml = path
    try:
        task = loader.get_single_data()
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(task, dict):
        raise UserError(f"{path}: expected a task in YAML; found {json_kind(task)}")
    included = _texts(path, "include", task.pop("include", []))
    merged: dict[str, Any] = {}
    for name in included:
        file = _shipped(name) if name.startswith("lm_eval/") else path.parent / name
        if file.resolve() in (around := [*includers, path.resolve()]):
            raise UserError(f"{path}: include: '{name}' includes this file; a task cannot include itself")
        merged |= _resolve(file, around)
    return merged | task


def _shipped(name: str) -> Path:
    """A file of the installed lm-eval."""
    package = find_spec("lm_eval")
    assert package is not None and package.origin is not None
    return Path(package.origin).parent.parent / name


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a benchmark; at least the columns ``id``, ``prompt`` and ``target``.

    Raises:
        UserError: no such file, no rows, a column that is missing or no text, or an id that occurs twice.
    """
    rows = read_jsonl(path)
    check_rows(path, rows)
    return rows


def check_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse rows that are not a benchmark's; ``path`` names them in the message.

    Raises:
        UserError: as ``read_rows``.
    """
    if not rows:
        raise UserError(f"{path}: no rows; a benchmark without rows has no score")
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        for column in COLUMNS:
            if not isinstance(row.get(column), str):
                raise UserError(
                    f"{path}:{number}: {column}: found {row.get(column)!r}; a row holds the texts {', '.join(COLUMNS)}"
                )
        if row["id"] in seen:
            raise UserError(f"{path}:{number}: id: '{row['id']}' occurs twice")
        seen.add(row["id"])
