"""Validation of runs before they start, without torch: their files, directories and benchmarks."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from eval.benchmarks.definition import OWN_METRIC
from eval.benchmarks.sources import MissingData, data_hash, load_rows, needs_brought
from eval.judging.judge import verdict_hash
from eval.judging.reward import judge_scorer
from eval.judging.verdicts import check_judge
from eval.scores.artefacts import read_instrument
from eval.scores.groups import check_groups
from ogpsa.config import Config, FileData, RewardServices
from ogpsa.data.rows import Data
from ogpsa.pipeline import check as check_training
from ogpsa.pipeline import check_files, check_tokenizer
from ogpsa.runs.directory import CONFIG_FILE, METRICS_FILE
from ogpsa.utils.errors import Problems, UserError

Key = TypeVar("Key")
Row = dict[str, Any]
log = logging.getLogger("ogpsa.eval")


def check_run(config: Config, directory: Path) -> None:
    """Refuse what the files, the directory, the processes, the benchmarks or the tokenizer do not allow.

    Raises:
        UserError: one line per problem.
    """
    _check_all(config, directory, check_training)


def _check_all(config: Config, directory: Path, check: Callable[[Config, Path], Data]) -> None:
    """Check the files of training and evaluation together, so that all mistakes are reported at once.

    Raises:
        UserError: one line per problem.
    """
    problems, found, hashes = Problems(), list[Data](), dict[str, str]()
    with problems.kept():
        found.append(check(config, directory))
    # The testbed brings benchmarks' rows.
    if found or (isinstance(config.data, FileData) and config.eval.data_dir is not None):
        with problems.kept():
            hashes = check_evaluation(config, found[0].evaluation if found else {})
    for data in found:
        with problems.kept():
            _check_reward(config, data)
    problems.tell()
    check_benchmarks_unchanged(config, directory, hashes)
    _check_context(config, directory, found[0])


def _check_reward(config: Config, data: Data) -> None:
    """Refuse a reward that could not score the RL stage's completions.

    Raises:
        UserError: one line per problem.
    """
    if config.reward is not None and config.rolls_out:
        rows, judges = data.training("grpo"), config.eval.judge
        # Making a scorer writes nothing, wherever its journals would be.
        config.reward.scorer(RewardServices(rows, Path(), judge_scorer, judges))


def check_runs(runs: Iterable[tuple[Key, Config, Path]]) -> list[tuple[Key, str]]:
    """Problems that ``check_run`` would find in many runs, except in the processes that are to run them.

    Of runs that differ in nothing but the seed, those that have not begun are looked at once.

    Returns:
        Every problem once, with the first run that has it.
    """
    different: dict[str, tuple[Key, Config, Path]] = {}
    for run in runs:
        _, config, directory = run
        begun = (directory / CONFIG_FILE).is_file()
        different.setdefault(str(directory) if begun else config.model_copy(update={"seed": 0}).key(), run)
    problems: dict[str, Key] = {}
    with _each_warning_once():
        for key, config, directory in different.values():
            try:
                _check_all(config, directory, check_files)
            except UserError as error:
                for problem in error.problems:
                    problems.setdefault(problem, key)
    return [(key, problem) for problem, key in problems.items()]


@contextmanager
def _each_warning_once() -> Iterator[None]:
    """While entered, a warning about a benchmark is logged once, not once per run that reads it."""
    said: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        new = text not in said
        said.add(text)
        return new

    log.addFilter(is_new)
    try:
        yield
    finally:
        log.removeFilter(is_new)


def check_evaluation(config: Config, rows: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """Refuse an evaluation that could not start after training, or would mix up its averages.

    Args:
        rows: the evaluation rows that the data section brings, by benchmark.

    Returns:
        The hash of each benchmark's rows, for benchmarks whose rows are available.

    Raises:
        UserError: an unknown benchmark or judge, rows that are not there, or a benchmark in the wrong average.
    """
    settings = config.eval
    problems, hashes = Problems(), dict[str, str]()
    with problems.kept():
        if settings.backend.name == "server":
            raise UserError(
                "eval.backend.name: a server holds one model, which would answer for every checkpoint of a run; "
                "allowed here: model, vllm; python -m eval asks a server"
            )
    benchmarks = check_groups(settings)
    needed = [f"{benchmark.rows}.jsonl" for benchmark in benchmarks if benchmark.source is None]
    if settings.data_dir is not None and needed and not Path(settings.data_dir).is_dir():
        raise UserError(f"eval.data_dir: {settings.data_dir}: no such folder; it is to hold {', '.join(needed)}")
    for judge in dict.fromkeys(benchmark.judge for benchmark in benchmarks if benchmark.judge != OWN_METRIC):
        with problems.kept():
            check_judge(judge, settings.judge)
    for benchmark in benchmarks:
        with problems.kept():
            folder, brought = settings.data_dir and Path(settings.data_dir), rows.get(benchmark.rows)
            if folder and not (brought and needs_brought(benchmark, folder)):
                try:
                    hashes[benchmark.name] = data_hash(load_rows(benchmark, folder))
                except MissingData as error:
                    log.warning("%s", error)
            elif brought:
                hashes[benchmark.name] = data_hash(brought)
    absent = [benchmark for benchmark in benchmarks if settings.data_dir is None and benchmark.name not in hashes]
    with problems.kept():
        if absent:
            files = dict.fromkeys(f"{benchmark.rows}.jsonl" for benchmark in absent)
            raise UserError(
                f"eval.data_dir: data={config.data.name} brings no rows for {', '.join(one.name for one in absent)}; "
                f"choose other benchmarks, as with eval=quick, or name a folder that holds {', '.join(files)}"
            )
    problems.tell()
    return hashes


def check_benchmarks_unchanged(config: Config, directory: Path, hashes: Mapping[str, str]) -> None:
    """Refuse to resume a run, or to show its result, with other benchmarks than it has been evaluated on.

    Their tasks and judges count until the run is finished; its provenance describes a finished run.

    Args:
        hashes: of each benchmark's rows, at present.

    Raises:
        UserError: names the benchmark, and what of it has changed.
    """
    rows_alone = (directory / METRICS_FILE).is_file() or "code" in config.accept_changed
    changed: dict[str, None] = {}
    evaluations = directory / "eval"
    # Others are evaluations of one's own.
    for folder in (evaluations / "base", *sorted(evaluations.glob("[0-9][0-9]-*"))):
        for benchmark in check_groups(config.eval):
            noted = read_instrument(folder, benchmark.name)
            present = {"rows": (noted.data, hashes.get(benchmark.name))}
            if not rows_alone:
                judge = verdict_hash(benchmark, config.eval.judge)
                present |= {"task": (noted.task, benchmark.task_hash), "judge": (noted.judge_version, judge)}
            for what, (before, now) in present.items():
                if None not in (before, now) and before != now:
                    changed.setdefault(f"the {what} of {benchmark.name}")
    if changed:
        raise UserError(
            f"hydra.run.dir: the run in {directory} was evaluated differently; changed since then: "
            f"{', '.join(changed)}; restore them or choose another directory"
        )


def _check_context(config: Config, directory: Path, data: Data) -> None:
    """Refuse what the model in ``model.path`` cannot be given, by its tokenizer, template and context; if it is here.

    A finished run needs no check.

    Raises:
        UserError: as ``check_tokenizer``, and one line for each benchmark whose longest answer alone fills the context.
    """
    folder = None if (directory / METRICS_FILE).is_file() else check_tokenizer(config, data)
    if folder is None:
        return
    from ogpsa.models.tokenizer import context_length

    context = context_length(folder)
    asked = [benchmark for benchmark in check_groups(config.eval) if benchmark.generates]
    tokens = {benchmark.name: benchmark.task["generation_kwargs"]["max_gen_toks"] for benchmark in asked}
    problems = [
        f"eval: '{name}' takes answers of up to {most} tokens, but the context of {folder} is {context}"
        for name, most in tokens.items()
        if context is not None and most >= context
    ]
    if problems:
        raise UserError(*problems)
