"""Tables, picture and W&B run of a sweep's finished rows: ``python -m slurm.front FOLDER``.

A task runs this when its row is done; FOLDER is the sweep's, ``outputs/<sweep>``. The W&B run is ``pareto-<sweep>`` and
keeps its id, so that there is one per sweep.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from ogpsa.utils.command_line import Parser, run_program
from ogpsa.utils.errors import EXIT_DONE, UserError
from ogpsa.utils.files import build_folder, exclusive
from slurm.sweep import RECORDS, read_records


class _Busy(Exception):  # noqa: N818 - another process is at it, nothing went wrong
    pass


def refresh(folder: Path) -> int:
    """Write ``pareto.*`` into ``folder`` and log the front to W&B where the rows do.

    Returns:
        How many rows it shows; 0 if another process is refreshing it, which then refreshes it once more. Of many rows
        that end together, only one keeps its nodes for this.

    Raises:
        UserError: no sweep was submitted there, nothing has finished, or a result is damaged.
    """
    if not (folder / RECORDS).is_file():
        raise UserError(f"FOLDER: {folder}: no sweep was submitted here")

    def leave() -> None:
        raise _Busy

    due = folder / "slurm" / "front.due"
    due.touch()
    shown = 0
    while due.exists():
        try:
            with exclusive(folder / "slurm" / "front.lock", "", wait=leave):
                due.unlink(missing_ok=True)
                shown = _refresh(folder)
        except _Busy:
            break
    return shown


def _refresh(folder: Path) -> int:
    from eval.pareto.collect import collect
    from eval.pareto.command import write
    from eval.report.mirror import mirror_front, stored_tracker

    done = [record.directory for record in read_records(folder).values() if record.done and not record.gone]
    if not done:
        raise UserError(f"FOLDER: {folder}: no row of this sweep has finished")
    collection = collect(done)
    write(collection, folder)
    trackers = [tracker for run in done if (tracker := stored_tracker(run)).name == "wandb"]
    if trackers:
        with build_folder(folder / "slurm" / "front") as kept:
            mirror_front(collection, trackers[0], folder, kept)
    return len(done)


def main(arguments: Sequence[str] | None = None) -> int:
    """Refresh the front, print its place, and return the exit code."""
    parser = Parser(prog="python -m slurm.front", description="The front of a sweep's finished rows.")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="of the sweep: outputs/<sweep>")
    folder = parser.parse_args(arguments).folder.resolve()
    count = refresh(folder)
    print(f"{folder / 'pareto.md'}: {f'{count} rows' if count else 'another process refreshes it'}")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_program(main))
