"""Validation of runs before they start, without torch: their files, directories and benchmarks."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from eval.benchmarks.definition import OWN_METRIC
from eval.benchmarks.sources import MissingData, load_rows
from eval.judging.verdicts import check_judge
from eval.scores.groups import check_groups
from ogpsa.config import Config
from ogpsa.data.rows import Data
from ogpsa.pipeline import check as check_training
from ogpsa.pipeline import check_files
from ogpsa.utils.errors import Problems, UserError

Key = TypeVar("Key")
log = logging.getLogger("ogpsa.eval")


def check_run(config: Config, directory: Path) -> None:
    """Refuse what the files, the directory, the processes or the benchmarks do not allow.

    Raises:
        UserError: one line per problem.
    """
    _check_both(config, partial(check_training, config, directory))


def _check_both(config: Config, check: Callable[[], Data]) -> None:
    """Training's files and evaluation's, so that whatever is missing of either is told at once.

    Raises:
        UserError: one line per problem.
    """
    problems, found = Problems(), list[Data]()
    with problems.kept():
        found.append(check())
    # The data may bring the benchmarks' rows.
    if found or config.eval.data_dir is not None:
        with problems.kept():
            check_evaluation(config, found[0].evaluation if found else {})
    problems.tell()


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
            _check_both(config, partial(check_files, config, directory))
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
    problems = Problems()
    benchmarks = check_groups(settings)
    needed = [f"{benchmark.rows}.jsonl" for benchmark in benchmarks if benchmark.source is None]
    if settings.data_dir is not None and needed and not Path(settings.data_dir).is_dir():
        raise UserError(f"eval.data_dir: {settings.data_dir}: no such folder; it is to hold {', '.join(needed)}")
    for judge in dict.fromkeys(benchmark.judge for benchmark in benchmarks if benchmark.judge != OWN_METRIC):
        with problems.kept():
            check_judge(judge, settings.judge)
    for benchmark in benchmarks:
        with problems.kept():
            if settings.data_dir is not None:
                try:
                    load_rows(benchmark, Path(settings.data_dir))
                except MissingData as error:
                    log.warning("%s", error)
            elif not rows.get(benchmark.rows):
                raise UserError(
                    f"eval.data_dir: data={config.data.name} brings no rows for '{benchmark.name}'; "
                    f"name a folder with {benchmark.rows}.jsonl"
                )
    problems.tell()
