"""Write a sweep from a grid: ``python -m slurm.grid KEY=VALUE,VALUE… [KEY=VALUE…] > slurm/sweeps/NAME.txt``.

A row for every combination of the values, the last key changing fastest; commas in brackets, braces or quotes are part
of a value, as for Hydra. ``--out FILE`` writes the file in place of the screen; rows that it holds already stay, and
only new ones are added.
"""

import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from ogpsa.utils.command_line import Parser
from ogpsa.utils.errors import EXIT_DONE, UserError, report
from slurm.sweep import Line, add_lines

OPENING, CLOSING, QUOTES = "[{(", "]})", "\"'"


def rows(words: Sequence[str]) -> list[tuple[str, ...]]:
    """Every combination of the words' values.

    Raises:
        UserError: a word is no override, or one of its values is empty.
    """
    choices = []
    for word in words:
        key, equals, text = word.partition("=")
        if not key or not equals:
            raise UserError(f"'{word}' is no override; write KEY=VALUE or KEY=VALUE,VALUE")
        values = split(text)
        if len(values) > 1 and "" in values:
            raise UserError(f"{key}: found '{text}', with an empty value; write the values between commas")
        choices.append([f"{key}={value}" for value in values])
    return list(product(*choices))


def split(text: str) -> list[str]:
    """The values between the commas that are in no brackets, braces or quotes."""
    values, start, depth, quote, escaped = [], 0, 0, "", False
    for place, character in enumerate(text):
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif quote:
            quote = "" if character == quote else quote
        elif character in QUOTES:
            quote = character
        elif character in OPENING:
            depth += 1
        elif character in CLOSING:
            depth -= 1
        elif character == "," and depth == 0:
            values.append(text[start:place])
            start = place + 1
    return [*values, text[start:]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print or write the rows and return the exit code."""
    parser = Parser(prog="python -m slurm.grid", description="Write a sweep, one row a line, from a grid of values.")
    parser.add_argument("grid", metavar="KEY=VALUE,VALUE", nargs="+", help="a key of train.py and its values")
    parser.add_argument("--out", metavar="FILE", type=Path, help="add the rows to this file")
    try:
        options = parser.parse_args(arguments)
        found = [Line(0, row) for row in rows(options.grid)]
        if options.out is None:
            print("\n".join(line.text for line in found))
            return EXIT_DONE
        added, there = add_lines(options.out, found)
    except UserError as error:
        return report(error)
    print(f"{options.out}: {added} rows added, {there} were there")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
