"""A Hydra program around the composer: the command line, exit codes, and the report on a sweep."""

import functools
import math
import os
import sys
import traceback
from argparse import ArgumentError, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hydra import __version__ as hydra_version
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ogpsa import __version__
from ogpsa.app.compose import COMPOSITION_ERRORS, Check, Composer, in_our_words, label, validate
from ogpsa.distributed import processes
from ogpsa.utils.command_line import expand_homes
from ogpsa.utils.errors import EXIT_FAILURE, UserError, closest_match, interrupted, report, unread
from ogpsa.utils.system_errors import refusal

if TYPE_CHECKING:  # the schema imports pydantic, which --help and --cfg do not need
    from ogpsa.config import Config

FLAGS = ["--multirun", "--cfg", "--resolve", "--package", "--info", "--help", "--hydra-help", "--version"]

Task = Callable[["Config", Path, list[str]], tuple[float, float]]
HydraTask = Callable[[DictConfig], tuple[float, float]]


class Program:
    """A ``@hydra.main`` program: validation before the first run, exit codes, the report on a sweep.

    ``check`` refuses, by ``UserError``, what only the files show; it is called for every run before the first.

    ``task`` decorates the function below ``@hydra.main``; ``start`` runs the result. Exit codes: 0 done, 1 failure,
    2 the user's mistake; a ``SystemExit`` raised by the task keeps its own and ends a sweep.
    """

    def __init__(self, check: Check) -> None:
        self._check = check
        self._points: list[str] = []  # of a sweep that runs in this process
        self._failures: list[str] = []

    def task(self, function: Task) -> HydraTask:
        """Give ``function`` the validated configuration, the run directory and the overrides of its run.

        The function's scores (safety, utility) go to the sweeper; those of a point that failed are NaN.
        """

        @functools.wraps(function)
        def run(composed: DictConfig) -> tuple[float, float]:
            settings = HydraConfig.get()
            overrides = list(settings.overrides.task)
            directory = Path(settings.runtime.output_dir)
            if self._points:
                place = f"[{settings.job.num + 1}/{len(self._points)}]"
                print(place, label(overrides), "->", os.path.relpath(directory), file=sys.stderr, flush=True)
            try:
                return function(validate(composed), directory, overrides)
            except Exception as error:
                if settings.mode == RunMode.MULTIRUN and not self._points:
                    raise  # another sweeper or launcher handles failures itself
                code = _report(error)
                if not self._points:
                    raise SystemExit(code) from None
                mistake = _as_users(error)
                lines = mistake.problems if mistake else traceback.format_exception_only(error)
                self._failures.append(f"{label(overrides)}: {lines[-1].strip().splitlines()[-1]}")
                return math.nan, math.nan

        return run

    def start(self, main: Callable[[], None]) -> None:
        """Check the command line in ``sys.argv``, then let Hydra run ``main``; exits with a code on failure."""
        sys.argv[1:] = expand_homes(sys.argv[1:])  # also in the keys that Hydra itself reads, such as hydra.run.dir
        os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing and exiting
        try:
            points = processes.on_main_process(lambda: self._prepare(main))
            if points is not None:
                self._points = points
                main()
            sys.stdout.flush()  # a failed write shows here
        except KeyboardInterrupt:
            sys.exit(interrupted())
        except Exception as error:
            if _as_users(error) is None and not isinstance(error, BrokenPipeError):
                raise
            sys.exit(_report(error))
        finally:
            for failure in self._failures:
                print(f"failed: {failure}", file=sys.stderr)
            processes.shut_down()
        if self._failures:
            sys.exit(EXIT_FAILURE)

    def _prepare(self, main: Callable[[], None]) -> list[str] | None:
        """Check the command line and return what ``Composer.check`` does; None where it only asked for information."""
        arguments = _parse_arguments(sys.argv[1:])
        composer = Composer(arguments.config_path, arguments.config_name, arguments.config_dir)
        if _only_informs(arguments):
            _inform(main, composer, arguments.overrides)
            return None
        if arguments.multirun and processes.world_size() > 1:
            raise UserError("--multirun: found under torchrun, which runs one point; start torchrun for each point")
        return composer.check(arguments.overrides, arguments.multirun, self._check)


def _parse_arguments(words: list[str]) -> Namespace:
    parser = get_args_parser()
    parser.exit_on_error = False
    if "--version" in words:
        print(f"ogpsa {__version__} (Hydra {hydra_version})")
        sys.exit()
    try:
        arguments, unknown = parser.parse_known_args(words)
    except ArgumentError as error:
        raise UserError(str(error)) from None
    if unknown:
        raise UserError(*map(_unknown_argument, unknown))
    if arguments.run and arguments.multirun:
        raise UserError("--run: contradicts --multirun; give one of the two")
    return arguments


def _unknown_argument(word: str) -> str:
    if not word.startswith("-"):
        return f"{word}: stands apart from the other overrides; put flags before or after all of them"
    return (
        f"{word}: unknown flag; allowed: {', '.join(FLAGS)}{closest_match(word, FLAGS)} "
        "(settings are KEY=VALUE, without dashes)"
    )


def _only_informs(arguments: Namespace) -> bool:
    asked = (arguments.cfg, arguments.info, arguments.help, arguments.hydra_help, arguments.shell_completion)
    return any(asked) or arguments.resolve or arguments.experimental_rerun is not None


def _inform(main: Callable[[], None], composer: Composer, overrides: list[str]) -> None:
    """Let Hydra print its help or a configuration, which needs no valid values."""
    with in_our_words():
        try:
            main()
        except COMPOSITION_ERRORS:
            composer.compose(overrides)  # raises a clearer error
            raise


def _report(error: Exception) -> int:
    """Print an error that anybody reads, with its traceback unless the user caused it, and return its exit code."""
    if (left := unread(error)) is not None:
        return left
    mistake = _as_users(error)
    if mistake is not None:
        return report(mistake)
    traceback.print_exception(error)
    return EXIT_FAILURE


def _as_users(error: Exception) -> UserError | None:
    """The error as a mistake that the user can fix; None for a bug of this package."""
    return error if isinstance(error, UserError) else refusal(error)
