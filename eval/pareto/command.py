"""Tables and a picture of safety against utility from finished runs: ``python -m eval pareto DIR…``."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from eval.pareto.collect import collect
from eval.pareto.collection import Collection
from eval.pareto.tables import latex, markdown, records
from ogpsa.utils.command_line import Parser
from ogpsa.utils.errors import EXIT_DONE
from ogpsa.utils.files import check_writable, write_atomically, write_json
from ogpsa.utils.table import comma_separated


def write(collection: Collection, folder: Path) -> list[Path]:
    """Write ``pareto.{csv,json,md,tex,png,pdf}`` into ``folder``, each atomically, and return the paths.

    Where over-refusal is measured, ``pareto_over_refusal.{png,pdf}`` set it against safety.

    Raises:
        UserError: ``folder`` cannot be written.
    """
    check_writable(folder, "--out")
    from eval.pareto.plot import SUFFIXES, draw, save

    paths = {ending: folder / f"pareto.{ending}" for ending in ("csv", "json", "md", "tex")}
    write_atomically(paths["csv"], comma_separated(records(collection)))
    write_json(paths["json"], asdict(collection))
    write_atomically(paths["md"], markdown(collection))
    write_atomically(paths["tex"], latex(collection))
    figures = {f"pareto{suffix}": draw(collection, against) for against, suffix in SUFFIXES.items()}
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    paths |= {f"{name}.{ending}": folder / f"{name}.{ending}" for name in drawn for ending in ("png", "pdf")}
    for name, figure in drawn.items():
        save(figure, paths[f"{name}.png"])
        save(figure, paths[f"{name}.pdf"])
    return list(paths.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the tables and the picture, print the Markdown table, and return the exit code."""
    parser = Parser(
        prog="python -m eval pareto",
        description="Safety against utility of finished runs: tables, Pareto fronts and a picture.",
    )
    parser.add_argument("directories", metavar="DIR", nargs="+", type=Path, help="searched for run directories")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="where pareto.* are written (default: first DIR)")
    options = parser.parse_args(arguments)
    collection = collect(options.directories)
    paths = write(collection, options.out or options.directories[0])
    print(next(path for path in paths if path.suffix == ".md").read_text(encoding="utf-8"), end="")
    for line in [*collection.notes, *(f"left out: {run}" for run in collection.left_out)]:
        print(line, file=sys.stderr)
    print("wrote", *paths, file=sys.stderr)
    return EXIT_DONE
