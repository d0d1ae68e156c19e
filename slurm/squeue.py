"""What SLURM says of a sweep's tasks."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ogpsa.errors import UserError
from slurm.sweep import Sweep

# A task's words end with this, since overrides may hold anything else.
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
        UserError: there is no squeue, or it has no answer.
    """
    own = sweep.submissions.resolve()
    found = []
    for line in call(["squeue", "--all", "--noheader", "--array", "--format=%F|%K|%T|%N|%r|%k"]).splitlines():
        array, index, state, node, reason, comment = line.strip().split("|", 5)
        submission = Path(comment)
        if submission.parent == own:
            row = read_words(submission / index)[0]
            found.append(Task(row, f"{array}_{index}", state, node, reason))
    return found


def call(command: Sequence[str]) -> str:
    """What a command of SLURM's prints.

    Raises:
        UserError: it is not there, or refuses; in its own words.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
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
