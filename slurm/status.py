"""A sweep's rows as they stand: what ``slurm/status.sh`` prints (``slurm/status.sh --help``).

A row's name is the overrides in which the sweep's rows differ.
"""

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args

from ogpsa.config.stage import StageName
from ogpsa.runs.directory import read_metrics
from ogpsa.utils.command_line import Parser, run_program
from ogpsa.utils.errors import EXIT_DONE, UserError
from ogpsa.utils.files import is_full
from ogpsa.utils.table import in_columns
from slurm.squeue import Task, queue_of
from slurm.sweep import Record, Sweep, find_sweep, read_lines

# Lines of the trainer's log, or of the run's, that tell its progress.
STEP = re.compile(rf"({'|'.join(get_args(StageName))}) (\d+)/(\d+):")
EVALUATING = re.compile(r"evaluating (\S+)")
# How a traceback or a refusal ends.
ERROR = re.compile(
    r"^(?!torch\.distributed\.elastic)([\w.]+(Error|Exception|Exit|Interrupt|Expired)\b|error: |slurmstepd: .*oom)"
)
# Errors of a process that lost another one, whose own error tells more.
CONNECTION = re.compile(r"connection|NCCL|gloo", flags=re.IGNORECASE)
# How a task's part of its log begins.
BEGINNING = "slurm: task "
QUEUED, STARTED = "queued", "started"
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")
WIDEST = 100


@dataclass(frozen=True)
class Event:
    """A task's notes on its row.

    Attributes:
        time: in seconds since 1970.
        what: queued, started, requeued, finished, failed, or ended, by SLURM.
        job: as SLURM writes it.
        restarts: of the job, until then.
        why: in words, or nothing.
    """

    time: float
    what: str
    job: str
    node: str
    restarts: int
    why: str


def note_queued(file: Path, job: str) -> None:
    """Add to a row's events that ``job`` was queued for it."""
    with file.open("a", encoding="utf-8") as handle:
        handle.write(f"{time.time():.0f}\t{QUEUED}\t{job}\t\t0\t\n")


def read_events(file: Path) -> list[Event]:
    """The events of a row, a task's queueing only where it has said nothing itself; an incomplete line is skipped."""
    events = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        parts = line.split("\t")
        if len(parts) == 6 and parts[0].isdecimal() and parts[4].isdecimal():
            events.append(Event(float(parts[0]), parts[1], parts[2], parts[3], int(parts[4]), parts[5]))
    begun = {event.job for event in events if event.what != QUEUED}
    return [event for event in events if event.what != QUEUED or event.job not in begun]


def state_of(record: Record, events: Sequence[Event], task: Task | None, known: bool = True) -> str:
    """done, running, waiting, requeued, failed, cancelled, stopped, not queued or unknown.

    Args:
        known: SLURM has been asked, so that a row without a task has none.
    """
    if record.done:
        return "done"
    last = events[-1].what if events else None
    if task is not None:
        if task.state in WAITING:
            return "requeued" if last in (STARTED, "requeued", "ended") else "waiting"
        return "running"
    if last == "failed":
        return "failed"
    if not known:
        return "unknown"
    # Cancelled, or out of time; stopped: killed before it could say anything.
    return {None: "not queued", "ended": "cancelled"}.get(last, "stopped")


def place_of(record: Record) -> str:
    """Stage and step, or what is evaluated, from the end of the run's log."""
    file = record.directory / "run.log"
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    for line in reversed(lines):
        if match := STEP.search(line):
            return f"{match[1]} {match[2]}/{match[3]}"
        if match := EVALUATING.search(line):
            return f"evaluating {match[1]}"
    return ""


def seconds_of(record: Record, events: Sequence[Event], now: float | None) -> float:
    """Time for which the row's tasks have worked.

    Args:
        now: the end of a running task. The end of a killed task, which recorded none, is that of the run's log.
    """
    log = record.directory / "run.log"
    heard = log.stat().st_mtime if log.is_file() else 0.0
    total = 0.0
    for event, after in zip_longest(events, events[1:]):
        if event.what == STARTED:
            killed = max(event.time, heard)
            silent = after is not None and after.what in (QUEUED, STARTED)
            end = min(after.time, killed) if silent else after.time if after else now or killed
            total += end - event.time
    return total


def requeues_of(events: Sequence[Event]) -> int:
    """Number of times that SLURM restarted the row's tasks."""
    return sum(max(event.restarts for event in events if event.job == job) for job in {event.job for event in events})


def _log(sweep: Sweep, events: Sequence[Event]) -> Path:
    """What the row's last task printed."""
    return sweep.logs / f"{events[-1].job}.log"


def error_of(sweep: Sweep, events: Sequence[Event]) -> str:
    """The line of the last task's log that says what went wrong, and the task's own reason."""
    if not events:
        return ""
    log = _log(sweep, events)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    starts = [number for number, line in enumerate(lines) if line.startswith(BEGINNING)]
    # torchrun and srun add lines of their own below it.
    found = [line.strip() for line in (lines[starts[-1] :] if starts else lines) if ERROR.match(line)]
    told = next((line for line in reversed(found) if not CONNECTION.search(line)), found[-1] if found else "")
    return "; ".join(dict.fromkeys(filter(None, (told.removeprefix("error: "), events[-1].why))))


def status(sweep: Sweep, tasks: Sequence[Task] | None, failed_only: bool, now: float) -> str:
    """The table, and a line of sums.

    Args:
        tasks: None where SLURM has no answer.
    """
    by_row = {task.row: task for task in tasks or ()}
    records = [one for one in sweep.records().values() if not one.gone or one.name in by_row]
    common = set.intersection(*(set(one.line.overrides) for one in records)) if records else set()
    cells, states = [], []
    for record in records:
        events = read_events(sweep.events(record.name))
        task = by_row.get(record.name)
        state = state_of(record, events, task, known=tasks is not None)
        states.append(state)
        if failed_only and state not in ("failed", "stopped", "cancelled"):
            continue
        metrics, damage = _metrics(record)
        cells.append(
            {
                "row": _cut(" ".join(word for word in record.line.overrides if word not in common) or record.name),
                "state": state,
                "step": "" if record.done else place_of(record),
                "safety": _percent(metrics["safety"] if metrics else None),
                "utility": _percent(metrics["utility"] if metrics else None),
                "time": _clock(seconds_of(record, events, now if state == "running" else None)),
                "requeues": str(requeues_of(events)) if events else "",
                "node": task.node if task else events[-1].node if events else "",
                "last error": damage or _cut(_why(sweep, state, task, events)),
                "log": str(_log(sweep, events)) if failed_only and events and _log(sweep, events).is_file() else "",
            }
        )
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    submitted = {record.line.content for record in records}
    new = sum(line.content not in submitted for line in read_lines(sweep.file))
    lines = [*_table(cells), counts or "nothing was submitted"]
    if new:
        lines.append(f"{new} of {sweep.file} not submitted yet: slurm/submit.sh {sweep.file}")
    if sweep.folder.exists() and is_full(sweep.folder):
        # Its logs then cannot say so.
        lines.append(f"no space left on the disk of {sweep.folder}")
    return "\n".join(lines)


def _metrics(record: Record) -> tuple[dict[str, Any] | None, str]:
    """A finished row's result, or what is wrong with it."""
    try:
        return read_metrics(record.directory), ""
    except UserError as error:
        return None, str(error)


def _why(sweep: Sweep, state: str, task: Task | None, events: Sequence[Event]) -> str:
    if state in ("done", "running", "not queued"):
        return ""
    if task is not None:
        return "" if task.reason in ("None", "") else task.reason
    silent = bool(events) and events[-1].what == QUEUED and not _log(sweep, events).is_file()
    ended = {
        "stopped": f"{'never started' if silent else 'ended without a word'}; submit again to resume",
        "cancelled": "ended by SLURM, cancelled or out of time; submit again to resume",
        "unknown": f"last: {events[-1].what}" if events else "",
    }.get(state, "")
    return "; ".join(filter(None, (error_of(sweep, events), ended)))


def _table(cells: Sequence[dict[str, str]]) -> list[str]:
    if not cells:
        return []
    shown = [name for name in cells[0] if name in ("row", "state") or any(line[name] for line in cells)]
    return in_columns([{name: line[name] for name in shown} for line in cells])


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def _cut(text: str) -> str:
    return text if len(text) <= WIDEST else text[: WIDEST - 1] + "…"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table and return the exit code."""
    parser = Parser(prog="slurm/status.sh", description="A sweep's rows as they stand.")
    parser.add_argument("sweep", metavar="SWEEP", help="the file of its rows, or its name in slurm/sweeps")
    parser.add_argument("--failed", action="store_true", help="only rows that failed or stopped")
    options = parser.parse_args(arguments)
    sweep = find_sweep(options.sweep)
    tasks = None
    try:
        tasks = queue_of(sweep)[0]
    except UserError as error:
        print(f"{error}: states from files alone", file=sys.stderr)
    print(status(sweep, tasks, options.failed, time.time()))
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_program(main))
