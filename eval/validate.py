"""Validation of runs before they start, without torch: their files, directories and benchmarks."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from eval.benchmarks.definition import OWN_METRIC
from eval.benchmarks.sources import MissingData, load_rows
from eval.judging.verdicts import check_judge
from eval.scores.groups import check_groups
from ogpsa.config import Config
from ogpsa.pipeline import check as check_training
from ogpsa.pipeline import check_files, check_tokenizer
from ogpsa.utils.errors import UserError

Key = TypeVar("Key")
log = logging.getLogger("ogpsa.eval")


def check_run(config: Config, directory: Path) -> None:
    """Refuse what the files, the directory, the processes, the benchmarks or the tokenizer do not allow.

    Raises:
        UserError: one line per problem.
    """
    data = check_training(config, directory)
    check_evaluation(config, data.evaluation)
    _check_room(config, check_tokenizer(config, data))


def check_runs(runs: Iterable[tuple[Key, Config, Path]]) -> list[tuple[Key, str]]:
    """What ``check_run`` would refuse of many runs, but for the processes that are to run them.

    Runs that differ in nothing but the seed are looked at once; of their directories, each run looks at its own.

    Returns:
        Every problem once, with the first run that has it.
    """
    different: dict[str, tuple[Key, Config, Path]] = {}
    for run in runs:
        different.setdefault(run[1].model_copy(update={"seed": 0}).key(), run)
    problems: dict[str, Key] = {}
    for key, config, directory in different.values():
        try:
            data = check_files(config, directory)
            check_evaluation(config, data.evaluation)
            _check_room(config, check_tokenizer(config, data))
        except UserError as error:
            for problem in error.problems:
                problems.setdefault(problem, key)
    return [(key, problem) for problem, key in problems.items()]


def check_evaluation(config: Config, rows: Mapping[str, Sequence[Any]]) -> None:
    """Refuse an evaluation that could not start, or would mix up its averages, once training is done.

    Args:
        rows: the evaluation rows that the data section brings, by benchmark.

    Raises:
        UserError: an unknown benchmark or judge, rows that are not there, or a benchmark in the wrong average.
    """
    settings = config.eval
    problems = []
    benchmarks = check_groups(settings)
    for judge in dict.fromkeys(benchmark.judge for benchmark in benchmarks if benchmark.judge != OWN_METRIC):
        check_judge(judge, settings.judge)
    for benchmark in benchmarks:
        if settings.data_dir is not None:
            try:
                load_rows(benchmark, Path(settings.data_dir))
            except MissingData as error:
                log.warning("%s", error)
        elif not rows.get(benchmark.rows):
            problems.append(
                f"eval.data_dir: data={config.data.name} brings no rows for '{benchmark.name}'; "
                f"name a folder with {benchmark.rows}.jsonl"
            )
    if problems:
        raise UserError(*problems)


def _check_room(config: Config, folder: Path | None) -> None:
    """Refuse a benchmark whose longest answer alone fills the context of the model in ``folder``.

    Raises:
        UserError: one line per benchmark.
    """
    if folder is None or config.eval.backend.name == "server":
        return
    from ogpsa.models.tokenizer import context_length

    context = context_length(folder)
    asked = [benchmark for benchmark in check_groups(config.eval) if not benchmark.multiple_choice]
    tokens = {benchmark.name: benchmark.task["generation_kwargs"]["max_gen_toks"] for benchmark in asked}
    problems = [
        f"eval: '{name}' takes answers of up to {most} tokens, but the context of {folder} is {context}"
        for name, most in tokens.items()
        if context is not None and most >= context
    ]
    if problems:
        raise UserError(*problems)
