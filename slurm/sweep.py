"""A sweep: a file with one run a line, and what is known of the rows that were submitted.

A row is written as ``train.py`` is given it, quoted as in a shell; empty lines and lines that begin with # are passed
over. The configuration that its overrides compose to names it, so neither the order of rows nor that of a row's
overrides matters.

```
outputs/<sweep>/<run>/                     a run's directory, unless its row says hydra.run.dir=DIR
outputs/<sweep>/pareto.*                   tables and picture of the rows that are done
outputs/<sweep>/slurm/rows.json            every row that was submitted, as it was
                      submissions/<id>/    one array: a file a task, never changed
                      events/<row>.tsv     what happened to a row, a line each
                      logs/<job>.log       what its tasks printed
```
"""

import os
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import TYPE_CHECKING

from ogpsa.runs.directory import CONFIG_FILE, METRICS_FILE
from ogpsa.utils.command_line import quoted
from ogpsa.utils.errors import UserError, closest_match
from ogpsa.utils.files import read_json, read_text, write_atomically, write_json
from ogpsa.utils.progress import Progress

if TYPE_CHECKING:
    from ogpsa.config import Config

SWEEPS = Path("slurm/sweeps")
RUN_DIRECTORY = re.compile(r"\+*hydra\.run\.dir=")
TRACKER_GROUP = re.compile(r"\+*tracker\.group=")
# Valid names of a sweep: they stand in paths, in overrides and in SLURM's own fields.
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
# Below a sweep's folder.
RECORDS = Path("slurm") / "rows.json"
# Two lines more similar than this count as one that was edited.
ALIKE = 0.6


@dataclass(frozen=True)
class Line:
    """A row as the file has it; ``number`` counts from 1."""

    number: int
    overrides: tuple[str, ...]

    @property
    def text(self) -> str:
        return shlex.join(self.overrides)

    @property
    def content(self) -> tuple[str, ...]:
        """The same for every order of the overrides."""
        return tuple(sorted(self.overrides))


@dataclass(frozen=True)
class Row:
    """A line and the run that it asks for."""

    line: Line
    name: str
    directory: Path
    overrides: tuple[str, ...]
    config: "Config"

    @property
    def done(self) -> bool:
        return is_done(self.directory)


@dataclass(frozen=True)
class Record:
    """A row as it was when it was submitted.

    Attributes:
        gone: the file no longer held it at the last submission.
    """

    name: str
    line: Line
    directory: Path
    gone: bool = False

    @property
    def done(self) -> bool:
        return is_done(self.directory)

    @property
    def begun(self) -> bool:
        return (self.directory / CONFIG_FILE).is_file()


@dataclass(frozen=True)
class Sweep:
    """A sweep's file and its folder of results.

    Attributes:
        file: its rows.
        folder: ``outputs/<sweep>`` below the working directory.
    """

    file: Path
    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def records_file(self) -> Path:
        return self.folder / RECORDS

    @property
    def submissions(self) -> Path:
        return self.folder / "slurm" / "submissions"

    @property
    def logs(self) -> Path:
        return self.folder / "slurm" / "logs"

    def events(self, name: str) -> Path:
        """The file of what happened to the row called ``name``."""
        return self.folder / "slurm" / "events" / f"{name}.tsv"

    def records(self) -> dict[str, Record]:
        """Rows that were submitted, by name.

        Raises:
            UserError: they are of another file that is called the same.
        """
        if self.records_file.is_file():
            other = Path(os.path.abspath(self.folder / read_json(self.records_file)["file"]))
            if other.exists() and not other.samefile(self.file):
                raise UserError(
                    f"SWEEP: {self.folder} holds the rows of {other}; rename {self.file}, or move {self.folder} away"
                )
        return read_records(self.folder)

    def remember(self, records: Sequence[Record]) -> None:
        """Replace what is known by ``records``."""
        rows = {
            one.name: {"line": one.line.number, "overrides": one.line.overrides,
                       "directory": self._directory(one), "gone": one.gone}
            for one in records
        }  # fmt: skip
        # From the folder, since both may move together.
        file = os.path.relpath(self.file, self.folder)
        write_json(self.records_file, {"file": file, "rows": rows})

    def _directory(self, record: Record) -> str:
        """The row's directory from the sweep's folder if it lies there, and then moves with it."""
        folder = os.path.abspath(self.folder)
        own = record.directory.is_relative_to(folder)
        return str(record.directory.relative_to(folder) if own else record.directory)


def is_done(directory: Path) -> bool:
    return (directory / METRICS_FILE).is_file()


def read_records(folder: Path) -> dict[str, Record]:
    """The state of the sweep whose results are in ``folder``.

    Raises:
        UserError: the file is damaged.
    """
    file = folder / RECORDS
    return {
        name: Record(
            name,
            Line(one["line"], tuple(one["overrides"])),
            Path(os.path.abspath(folder / one["directory"])),
            one["gone"],
        )
        for name, one in (read_json(file)["rows"] if file.is_file() else {}).items()
    }


def find_sweep(text: str) -> Sweep:
    """The sweep that ``text`` names: a file, or one of ``slurm/sweeps`` without its ending.

    Raises:
        UserError: there is none.
    """
    known = [path.stem for path in sorted(SWEEPS.glob("*.txt"))]
    for file in (Path(text), SWEEPS / f"{text}.txt"):
        if file.is_file():
            if not NAME.fullmatch(file.stem):
                raise UserError(f"SWEEP: found '{file.name}'; expected a name of letters, digits, dots, - and _")
            return Sweep(file, Path("outputs") / file.stem)
    allowed = f"a file of rows, or one of {SWEEPS}: {', '.join(known) or 'none there'}"
    raise UserError(f"SWEEP: found '{text}'; expected {allowed}{closest_match(Path(text).stem, known)}")


def read_lines(file: Path) -> list[Line]:
    """The rows of a sweep file.

    Raises:
        UserError: the file is not text, holds no row, or a line's quotes do not match; one line per problem.
    """
    lines, problems = [], []
    # Not splitlines, which also cuts at separators that a quoted value may hold.
    for number, line in enumerate(_text(file).split("\n"), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            lines.append(Line(number, tuple(shlex.split(line))))
        except ValueError as error:
            problems.append(f"{file}:{number}: {str(error).lower()}; quote as in a shell")
    if not lines and not problems:
        problems.append(f"{file}: holds no row; expected one run's overrides a line")
    if problems:
        raise UserError(*problems)
    return lines


def _text(file: Path) -> str:
    return read_text(file, "one row of overrides a line")


def add_lines(file: Path, lines: Sequence[Line]) -> tuple[int, int]:
    """Append to a sweep file the rows that it lacks; returns how many those are, and how many it had.

    Raises:
        UserError: the file cannot be read as one.
    """
    old = read_lines(file) if file.exists() else []
    text = _text(file) if file.exists() else ""
    known = {line.content for line in old}
    new = [line for line in lines if line.content not in known]
    text += "\n" * bool(text and not text.endswith("\n"))
    write_atomically(file, text + "".join(f"{line.text}\n" for line in new))
    return len(new), len(old)


def compose_rows(sweep: Sweep, lines: Sequence[Line]) -> list[Row]:
    """The runs that the lines ask for.

    Raises:
        UserError: one line per problem: a row does not compose, or two ask for the same run.
    """
    from ogpsa.app.compose import compose_run

    rows: list[Row] = []
    by_key: dict[str, Line] = {}
    by_directory: dict[str, Line] = {}
    problems: list[str] = []
    progress = Progress(len(lines), "reading rows")
    for count, line in enumerate(lines, start=1):
        own = [word for word in line.overrides if RUN_DIRECTORY.match(word)]
        overrides = [word for word in line.overrides if word not in own]
        if not any(TRACKER_GROUP.match(word) for word in overrides):
            overrides.append(f"tracker.group={quoted(sweep.name)}")
        try:
            config, directory = compose_run([*overrides, *(own or [f"hydra.run.dir={sweep.folder}/${{run_name:}}"])])
        except UserError as error:
            problems += [f"{sweep.file}:{line.number}: {problem}" for problem in error.problems]
            continue
        same = by_key.setdefault(config.key(), line)
        tenant = by_directory.setdefault(os.path.abspath(directory), line)
        if same is not line:
            problems.append(f"{sweep.file}:{line.number}: the same run as line {same.number}; drop one")
        elif tenant is not line:
            problems.append(
                f"{sweep.file}:{line.number}: would run in the same directory as line {tenant.number}, {directory}; "
                "tell them apart in hydra.run.dir"
            )
        # As it is now: what conf/ says when the row starts may be something else.
        resolved = (*overrides, f"hydra.run.dir={quoted(str(directory))}")
        rows.append(Row(line, config.run_name(), directory, resolved, config))
        progress.show(count)
    if problems:
        raise UserError(*problems)
    return rows


def check_edits(sweep: Sweep, rows: Sequence[Row], records: Mapping[str, Record], queued: Collection[str]) -> None:
    """Refuse rows that were changed after they ran or were queued: their results would be of another row.

    Args:
        queued: names of rows that are queued or running.

    Raises:
        UserError: one line per row, with both versions.
    """
    problems = []
    contents = {row.line.content: row for row in rows}
    names = {row.name: row for row in rows}
    new = [row for row in rows if row.name not in records]
    for record in records.values():
        if not (record.begun or record.name in queued):
            continue
        state = "ran" if record.begun else "was queued"
        if (same := names.get(record.name)) is not None:
            if (directory := Path(os.path.abspath(same.directory))) != record.directory:
                problems.append(
                    f"{sweep.file}:{same.line.number}: hydra.run.dir: edited after it {state}; it was: "
                    f"{record.directory}; it is: {directory}; put the old one back, or move the run there when it has "
                    "ended"
                )
        elif record.gone:
            continue
        elif (row := contents.get(record.line.content)) is not None:
            problems.append(
                f"{sweep.file}:{row.line.number}: conf/ has changed since this row {state}: it was {record.name}, it "
                f"is {row.name}; go back to the revision that ran it, or give the row to a new sweep file"
            )
        elif (row := _edited(record, new)) is not None:
            new.remove(row)
            problems.append(
                f"{sweep.file}:{row.line.number}: edited after it {state}; it was: {record.line.text}; it is: "
                f"{row.line.text}; put the old row back and give the new one a line of its own, or delete "
                f"{record.directory}"
            )
    if problems:
        raise UserError(*problems)


def _edited(record: Record, new: Sequence[Row]) -> Row | None:
    """The new row that ``record`` has become, if there is one."""

    def likeness(row: Row) -> float:
        return SequenceMatcher(None, record.line.text, row.line.text, autojunk=False).ratio()

    alike = [row for row in new if likeness(row) > ALIKE]
    return max(alike, key=likeness, default=next((row for row in new if row.line.number == record.line.number), None))
