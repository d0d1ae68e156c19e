"""Options of a command line; a mistake in them takes one line, as all of the user's."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from ogpsa.utils.errors import EXIT_DONE, EXIT_USER_ERROR, UserError, closest_match, report


class Parser(argparse.ArgumentParser):
    """``argparse``'s, without abbreviations of options; an unknown option is named before what else is wrong.

    Raises:
        UserError: from ``parse_args``, for anything that it cannot read.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:  # type: ignore[override]
        given = sys.argv[1:] if args is None else list(args)
        known = [option for action in self._actions for option in action.option_strings]
        for argument in given[: given.index("--")] if "--" in given else given:
            option = argument.partition("=")[0]
            if option.startswith("--") and option not in known:
                self.error(f"{option}: unknown option{closest_match(option, known)}")
        return super().parse_known_args(given, namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists the options")


def whole_number(least: int) -> Callable[[str], int]:
    """A ``type`` for an option that takes whole numbers from ``least``."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"found {text!r}; expected a whole number from {least}")
        return int(text)

    return parse


def run_command(arguments: Sequence[str], usage: str | None, commands: Mapping[str, Callable[[list[str]], int]]) -> int:
    """Let the command that comes first in ``arguments`` have the rest, and return its exit code.

    Without arguments, or with ``--help``, ``usage`` is printed; a mistake of the user's takes one line.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(usage)
        return EXIT_DONE if arguments else EXIT_USER_ERROR
    command, *rest = arguments
    try:
        if command not in commands:
            allowed = ", ".join(commands)
            raise UserError(f"'{command}' is no command; allowed: {allowed}{closest_match(command, commands)}")
        return commands[command](rest)
    except UserError as error:
        return report(error)
