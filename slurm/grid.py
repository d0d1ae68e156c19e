"""Write a sweep from a grid: ``python -m slurm.grid KEY=VALUE,VALUE… [KEY=VALUE…] > slurm/sweeps/NAME.txt``.

One row per combination of the values, the last key changing fastest. Values are written as for ``train.py -m``, in
Hydra's grammar: ``2,4``, ``range(1,4)``, ``glob(*)``. ``--out FILE`` writes the file in place of the screen; rows that
it holds already stay, and only new ones are added.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from ogpsa.app.compose import Composer
from ogpsa.utils.command_line import Parser, run_program
from ogpsa.utils.errors import EXIT_DONE
from slurm.sweep import Line, add_lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Print or write the rows and return the exit code."""
    parser = Parser(prog="python -m slurm.grid", description="Write a sweep, one row a line, from a grid of values.")
    parser.add_argument("grid", metavar="KEY=VALUE,VALUE", nargs="+", help="a key of train.py and its values")
    parser.add_argument("--out", metavar="FILE", type=Path, help="add the rows to this file")
    options = parser.parse_args(arguments)
    found = [Line(0, tuple(point)) for point in Composer().sweep_points(options.grid)]
    if options.out is None:
        print("\n".join(line.text for line in found))
        return EXIT_DONE
    added, there = add_lines(options.out, found)
    print(f"{options.out}: {added} rows added, {there} were there")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_program(main))
