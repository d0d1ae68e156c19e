"""SLURM's state of a sweep's tasks."""

import subprocess
from collections.abc import Sequence
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


def queue_of(sweep: Sweep) -> tuple[list[Task], set[Path]]:
    """The sweep's tasks that are queued, running or ending, and the run directories of all such tasks in ``outputs``.

    Two sweeps may ask for the same run in the same directory.

    Raises:
        UserError: there is no squeue, it fails, or the sweep's folder was removed under a task.
    """
    own, outputs = sweep.submissions.resolve(), sweep.folder.resolve().parent
    tasks, directories = [], set()
    for line in call(["squeue", "--all", "--noheader", "--array", "--format=%F|%K|%T|%N|%r|%k"]).splitlines():
        fields = line.strip().split("|", 5)
        # Another user's job may have anything for its comment, line breaks too.
        if len(fields) < 6:
            continue
        array, index, state, node, reason, comment = fields
        submission = Path(comment)
        ours = submission.parent == own
        if not ours and (submission.parts[:-4], submission.parts[-3:-1]) != (outputs.parts, ("slurm", "submissions")):
            continue
        try:
            row, _, _, result, *_ = read_words(submission / index)
        except FileNotFoundError as error:
            if not ours:
                continue
            raise UserError(
                f"{error.filename}: removed, but job {array}_{index} still needs it; scancel {array}"
            ) from None
        directories.add(Path(result).parent.resolve())
        if ours:
            tasks.append(Task(row, f"{array}_{index}", state, node, reason))
    return tasks, directories


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
