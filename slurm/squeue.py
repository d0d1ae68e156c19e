"""SLURM's state of a sweep's tasks."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ogpsa.utils.errors import UserError
from slurm.sweep import Sweep

# Ends each of a task's words, since overrides may hold any other character.
END = "\0"


@dataclass(frozen=True)
class Task:
    """A row's task that SLURM still has.

    Attributes:
        row: the row's name.
        job: as SLURM writes it, ``<array>_<index>``.
        state: SLURM's word for it.
        reason: why it waits.
    """

    row: str
    job: str
    state: str
    node: str
    reason: str


def tasks_of(sweep: Sweep) -> list[Task]:
    """The sweep's tasks that are queued, running or ending.

    Raises:
        UserError: there is no squeue, it fails, or the sweep's folder was removed under a task.
    """
    own = sweep.submissions.resolve()
    found = []
    for array, index, state, node, reason, comment in _queue():
        submission = Path(comment)
        if submission.parent != own:
            continue
        try:
            row = read_words(submission / index)[0]
        except FileNotFoundError as error:
            raise UserError(
                f"{error.filename}: removed, but job {array}_{index} still needs it; scancel {array}"
            ) from None
        found.append(Task(row, f"{array}_{index}", state, node, reason))
    return found


def results_of_others(sweep: Sweep) -> set[Path]:
    """The results that tasks of other sweeps are to make: two sweeps may share runs.

    Raises:
        UserError: there is no squeue, or it fails.
    """
    found: set[Path] = set()
    for _, index, _, _, _, comment in _queue():
        folder = Path(comment).parent
        if folder.parts[-2:] == ("slurm", "submissions") and folder != sweep.submissions.resolve():
            # Another user's may not be readable, nor a folder that was removed.
            with suppress(OSError, UnicodeError):
                found.update(map(Path, read_words(Path(comment) / index)[3:4]))
    return found


def _queue() -> Iterator[list[str]]:
    """Array, index, state, node, reason and comment of every task; another user's comment may have line breaks too."""
    for line in call(["squeue", "--all", "--noheader", "--array", "--format=%F|%K|%T|%N|%r|%k"]).splitlines():
        fields = line.strip().split("|", 5)
        if len(fields) == 6:
            yield fields


def call(command: Sequence[str]) -> str:
    """The output of one of SLURM's commands.

    Raises:
        UserError: it is not there, or refuses; in its own words.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except FileNotFoundError:
        raise UserError(f"{command[0]}: no such program here; type this on a machine that has SLURM") from None
    if done.returncode:
        said = " ".join(done.stderr.split()).removeprefix(f"{command[0]}: ").removeprefix("error: ")
        raise UserError(f"{command[0]}: {said or f'exit code {done.returncode}'}")
    return done.stdout


def write_words(file: Path, words: Sequence[str]) -> None:
    """A task's file: every word ended by a zero byte."""
    file.write_text("".join(word + END for word in words), encoding="utf-8")


def read_words(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").split(END)[:-1]
