"""Options and ``KEY=VALUE`` words of a command line; like any mistake of the user's, one in them takes one line."""

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NoReturn

from ogpsa.utils.errors import EXIT_DONE, EXIT_USER_ERROR, UserError, closest_match, interrupted, report, unread
from ogpsa.utils.system_errors import refusal

# What reads the value of each key, by ``ArgumentTypeError`` if it cannot.
Keys = Mapping[str, Callable[[str], Any]]


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


def read_pairs(words: Sequence[str], keys: Keys) -> dict[str, Any]:
    """Read ``KEY=VALUE`` words; a key that is given twice has its last value.

    Args:
        keys: those allowed, with the readers of their values. A key may be a pattern, as ``eval.*``; the first that
            matches counts, and a ``+`` before a word's key is not compared.

    Raises:
        UserError: one line per word that is no ``KEY=VALUE``, whose key is not allowed or whose value is unreadable.
    """
    values: dict[str, Any] = {}
    problems = []
    for word in words:
        key, equals, text = word.partition("=")
        pattern = next((pattern for pattern in keys if fnmatchcase(key.lstrip("+"), pattern)), None)
        if not equals:
            problems.append(f"'{word}': expected KEY=VALUE")
        elif pattern is None:
            problems.append(f"{key}: unknown key; allowed: {', '.join(keys)}{closest_match(key, keys)}")
        else:
            try:
                values[key] = keys[pattern](text)
            except argparse.ArgumentTypeError as error:
                problems.append(f"{key}: {error}")
    if problems:
        raise UserError(*problems)
    return values


def home_expanded(text: str) -> str:
    """The text with the home folder in place of a ``~`` at its beginning."""
    return os.path.expanduser(text)  # noqa: PTH111  it need not be a path


def expand_homes(words: Sequence[str]) -> list[str]:
    """``KEY=~/…`` words as the shell would have them, which expands no ``~`` behind a key with a dot."""
    return [re.sub(r"^([^=]+=)(~[^/]*(?:/.*)?)$", lambda found: found[1] + home_expanded(found[2]), w) for w in words]


def quoted(text: str) -> str:
    """``text`` as a value of an override, whatever is in it."""
    # Hydra reads backslashes as its own where a quote follows.
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), text) + "'"


def path(text: str) -> Path:
    """A reader of paths, which may be quoted as Hydra would have them."""
    in_quotes = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    found = text[1:-1] if in_quotes else text
    if not found:
        raise argparse.ArgumentTypeError("found nothing; expected a path")
    return Path(home_expanded(found))


def one_of(*allowed: str) -> Callable[[str], str]:
    """A reader of a value that takes one of the ``allowed`` words."""

    def parse(text: str) -> str:
        if text not in allowed:
            raise argparse.ArgumentTypeError(
                f"found '{text}'; allowed: {', '.join(allowed)}{closest_match(text, allowed)}"
            )
        return text

    return parse


def yes_or_no(text: str) -> bool:
    """Whether ``text`` is ``true``; ``false`` is the other word allowed."""
    return one_of("true", "false")(text) == "true"


def whole_number(least: int) -> Callable[[str], int]:
    """A reader of whole numbers from ``least``, for an option's ``type`` as well."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"found '{text}'; expected a whole number from {least}")
        return int(text)

    return parse


def positive_number(text: str) -> float:
    """Read a number above 0, or raise ``ArgumentTypeError``."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"found '{text}', expected a number above 0")
    return number


def run_program(main: Callable[[], int]) -> int:
    """A program's exit code; a user's mistake, what the system refuses and Ctrl-C take one line each."""
    try:
        code = main()
        sys.stdout.flush()  # a failed write shows here
        return code
    except UserError as error:
        return report(error)
    except KeyboardInterrupt:
        return interrupted()
    except Exception as error:
        if (left := unread(error)) is not None:
            return left
        refused = refusal(error)
        if refused is None:
            raise
        return report(refused)


def run_command(arguments: Sequence[str], usage: str | None, commands: Mapping[str, Callable[[list[str]], int]]) -> int:
    """Run the command that ``arguments`` name first with the rest, and return its exit code.

    Without arguments, or with ``--help``, ``usage`` is printed; a mistake of the user's takes one line.
    """
    if not arguments or {"-h", "--help"} & set(arguments):
        print(usage)
        return EXIT_DONE if arguments else EXIT_USER_ERROR
    command, *rest = arguments

    def run() -> int:
        if command not in commands:
            allowed = ", ".join(commands)
            raise UserError(f"unknown command '{command}'; allowed: {allowed}{closest_match(command, commands)}")
        return commands[command](rest)

    return run_program(run)
