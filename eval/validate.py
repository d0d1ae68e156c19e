"""What a run would refuse, before it starts and without torch: its files, its directory, its benchmarks."""

from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from eval.benchmarks.definition import check_evaluation
from ogpsa.config import Config
from ogpsa.pipeline import check as check_run
from ogpsa.pipeline import check_files
from ogpsa.utils.errors import UserError

Key = TypeVar("Key")


def check(config: Config, directory: Path) -> None:
    """Refuse what the files, the directory, the processes or the benchmarks do not allow.

    Raises:
        UserError: one line per problem.
    """
    check_evaluation(config, check_run(config, directory).evaluation)


def check_all(runs: Iterable[tuple[Key, Config, Path]]) -> list[tuple[Key, str]]:
    """What ``check`` would refuse of many runs, but for the processes that are to run them.

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
            check_evaluation(config, check_files(config, directory).evaluation)
        except UserError as error:
            for problem in error.problems:
                problems.setdefault(problem, key)
    return [(key, problem) for problem, key in problems.items()]
