"""Queue a sweep's rows, once each: what ``slurm/submit.sh`` does (``slurm/submit.sh --help``)."""

import os
import re
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ogpsa.runs.directory import METRICS_FILE, check_directory
from ogpsa.utils.command_line import run_program
from ogpsa.utils.errors import EXIT_DONE, UserError
from ogpsa.utils.files import exclusive
from slurm.squeue import Task, call, queue_of, write_words
from slurm.status import note_queued
from slurm.sweep import Record, Row, Sweep, check_edits, compose_rows, find_sweep, read_lines

REPOSITORY = Path(__file__).resolve().parent.parent
# Options of sbatch, and why the user cannot set them.
OWN_OPTIONS = {
    "--array": "it is made from the rows",
    "--chdir": "runs start where submit.sh is typed",
    "--clusters": "queued elsewhere, rows could not be told from those that are not",
    "--comment": "it tells the sweep's jobs from others",
    "--error": "the logs lie in outputs/<sweep>/slurm/logs",
    "--job-name": "it is the sweep's name",
    "--no-requeue": "rows are requeued after a warning",
    "--ntasks": "a node has one task, which starts its processes; see OGPSA_PROCESSES",
    "--ntasks-per-node": "a node has one task, which starts its processes; see OGPSA_PROCESSES",
    "--open-mode": "a requeued row continues in its log",
    "--output": "the logs lie in outputs/<sweep>/slurm/logs",
    "--parsable": "what sbatch prints is read here",
    "--signal": "OGPSA_WARNING_SECONDS sets it",
    "--usage": "slurm/submit.sh --help has ours",
    "--version": "type sbatch --version",
    "--wait": "slurm/status.sh tells what is done",
    "--wrap": "the script is ours",
}
SHORT_OPTIONS = {"-a": "--array", "-D": "--chdir", "-J": "--job-name", "-M": "--clusters", "-V": "--version",
                 "-W": "--wait", "-e": "--error", "-n": "--ntasks", "-o": "--output"}  # fmt: skip
# Settings of slurm/env.sh, each with its minimum.
NUMBERS = {"OGPSA_PROCESSES": 1, "OGPSA_ROWS_AT_ONCE": 1, "OGPSA_WARNING_SECONDS": 1, "OGPSA_MOST_REQUEUES": 0,
           "OGPSA_LOCK_SECONDS": 0}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    if not arguments:
        raise UserError("SWEEP: not given; slurm/submit.sh --help says what it is")
    name, *options = arguments
    test_only = "--test-only" in options
    submit(find_sweep(name), [option for option in options if option != "--test-only"], test_only)
    return EXIT_DONE


def submit(sweep: Sweep, options: Sequence[str], test_only: bool) -> None:
    """Validate all rows and queue those that are neither done nor queued.

    Args:
        options: of sbatch.
        test_only: stop before anything is queued.

    Raises:
        UserError: one line per problem; nothing is queued then, except arrays before one that sbatch refuses.
    """
    if problems := [*option_problems(options), *_setting_problems()]:
        raise UserError(*problems)
    nodes = node_count(options)
    rows = compose_rows(sweep, read_lines(sweep.file))
    busy = f"{sweep.name} is being submitted by another process"
    with exclusive(sweep.folder / "slurm" / "submit.lock", busy, wait=lambda: None):
        found: list[Task] = []
        directories: set[Path] = set()
        unknown = ""
        try:
            found, directories = queue_of(sweep)
        except UserError as error:
            if not test_only:
                raise
            unknown = f"what is queued is not known ({error})"
        tasks = {task.row for task in found}
        records = sweep.records()
        check_edits(sweep, rows, records, tasks)
        todo = [row for row in rows if not (row.done or row.name in tasks or row.directory.resolve() in directories)]
        check_rows(sweep, todo, nodes)
        done = sum(row.done for row in rows)
        said = f"{len(rows)} rows: {done} done, {unknown or f'{len(rows) - done - len(todo)} queued or running'}"
        if test_only or not todo:
            print(f"{said}, {len(todo)} to queue", flush=True)
            return
        sweep.remember(_kept(rows, records, tasks))
        largest = _largest_array()
        for start in range(0, len(todo), largest):
            some = todo[start : start + largest]
            job = _queue(sweep, some, nodes, options)
            print(f"{said}, {len(some)} queued as job {job}; slurm/status.sh {sweep.file}", flush=True)


def _kept(rows: Sequence[Row], records: Mapping[str, Record], queued: Collection[str]) -> list[Record]:
    """The rows after a submission: the file's, and those it no longer holds that ran or are queued."""
    here = [Record(row.name, row.line, row.directory.absolute()) for row in rows]
    names = {one.name for one in here}
    gone = [replace(one, gone=True) for one in records.values() if one.begun or one.name in queued]
    return [*here, *(one for one in gone if one.name not in names)]


def option_problems(options: Sequence[str]) -> list[str]:
    """Options of sbatch that would break a sweep, and words that belong to no option."""
    problems = []
    for place, option in enumerate(options):
        name = option.partition("=")[0]
        if name.startswith("--"):
            own = [known for known in OWN_OPTIONS if known == name or (len(name) > 3 and known.startswith(name))]
        else:
            own = [SHORT_OPTIONS[option[:2]]] if option[:2] in SHORT_OPTIONS else []
        if own:
            problems.append(f"{own[0]}: set by submit.sh; {OWN_OPTIONS[own[0]]}")
        before = options[place - 1] if place else ""
        if not option.startswith("-") and (not before.startswith("-") or "=" in before):
            problems.append(f"'{option}' belongs to no option of sbatch; one sweep at a time, its options after it")
    return problems


def _setting_problems() -> list[str]:
    return [
        f"{name}: found '{text}'; expected a whole number from {least}"
        for name, least in NUMBERS.items()
        if (text := os.environ.get(name, "")) and not (text.isdecimal() and int(text) >= least)
    ]


def node_count(options: Sequence[str]) -> int:
    """Nodes of a row's job, as sbatch reads its options.

    Raises:
        UserError: the number is none, or a range.
    """
    count = "1"
    for place, option in enumerate(options):
        if match := re.fullmatch(r"(?:--nodes=|-N=?)(\S+)", option):
            count = match[1]
        elif option in ("--nodes", "-N"):
            count = options[place + 1] if place + 1 < len(options) else ""
    if not count.isdecimal() or int(count) < 1:
        raise UserError(f"--nodes: found '{count}'; expected a whole number from 1")
    return int(count)


def check_rows(sweep: Sweep, rows: Sequence[Row], nodes: int) -> None:
    """Refuse what a row's run would refuse, and what would not fit.

    Raises:
        UserError: one line per problem, naming the first row that has it.
    """
    from eval.validate import check_runs

    problems: dict[str, Row] = {}
    for row in rows:
        for problem in [*_launch_problems(row, nodes), *_directory_problems(row)]:
            problems.setdefault(problem, row)
    for row, problem in check_runs([(row, row.config, row.directory) for row in rows]):
        problems.setdefault(problem, row)
    if not problems:
        for row, problem in _memory_problems(rows, nodes):
            problems.setdefault(problem, row)
    if problems:
        raise UserError(*(f"{sweep.file}:{row.line.number}: {problem}" for problem, row in problems.items()))


def processes_per_node(row: Row, nodes: int) -> int | None:
    """Processes that torchrun starts on a node for this row; None if neither the row nor the environment sets them."""
    wanted = row.config.distributed.processes
    if row.config.distributed.name == "single":
        return 1
    if wanted is not None:
        return wanted // nodes
    return int(os.environ.get("OGPSA_PROCESSES") or 0) or None


def _launch_problems(row: Row, nodes: int) -> list[str]:
    from ogpsa.distributed.launch import launch_problems

    distributed = row.config.distributed
    per_node = processes_per_node(row, nodes)
    if row.config.preflight:
        return ["preflight: found true, which runs nothing; leave it out, submit.sh makes its own"]
    if distributed.name == "single" and nodes > 1:
        return [f"distributed.name: found single with --nodes={nodes}; allowed: ddp, fsdp2, zero2, zero3"]
    if per_node is None:
        return ["OGPSA_PROCESSES: not set; say in slurm/env.sh how many processes a node has, or in the row "
                "distributed.processes"]  # fmt: skip
    if distributed.processes is not None and distributed.processes % nodes:
        return [f"distributed.processes: found {distributed.processes}, which {nodes} nodes cannot share evenly"]
    most = int(os.environ.get("OGPSA_PROCESSES") or 0)
    if most and per_node > most:
        return [f"distributed.processes: found {distributed.processes} with --nodes={nodes}, {per_node} on a node; "
                f"allowed are {most} (OGPSA_PROCESSES); ask for --nodes={-(-per_node * nodes // most)}"]  # fmt: skip
    return launch_problems(row.config, per_node * nodes)


def _directory_problems(row: Row) -> list[str]:
    try:
        check_directory(row.directory, row.config)
    except UserError as error:
        return list(error.problems)
    return []


def _memory_problems(rows: Sequence[Row], nodes: int) -> list[tuple[Row, str]]:
    """Rows whose pre-flight does not fit in ``OGPSA_GPU_MEMORY_GB``."""
    from eval.judging.reward import JUDGES
    from ogpsa.preflight.report import fit, told_memory

    memory = told_memory()
    if memory is None or not rows:
        return []
    from ogpsa.utils.libraries import quiet_libraries

    quiet_libraries()
    different: dict[str, Row] = {}
    for row in rows:
        different.setdefault(row.config.model_copy(update={"seed": 0}).key(), row)
    found = []
    for row in different.values():
        per_node = processes_per_node(row, nodes)
        assert per_node is not None
        verdict = fit(row.config, per_node * nodes, memory, JUDGES)
        if not verdict.fits:
            found.append((row, f"does not fit: {verdict.text}"))
    return found


def _largest_array() -> int:
    """The cluster's limit on the tasks of an array."""
    match = re.search(r"^MaxArraySize\s*=\s*([1-9]\d*)", call(["scontrol", "show", "config"]), flags=re.M)
    return int(match[1]) if match else 1000


def _queue(sweep: Sweep, rows: Sequence[Row], nodes: int, options: Sequence[str]) -> str:
    """Hand the rows to sbatch and return the job's number."""
    submission = sweep.submissions.resolve() / f"{time.strftime('%Y%m%d-%H%M%S')}-{rows[0].name}"
    submission.mkdir(parents=True)
    sweep.events("any").parent.mkdir(exist_ok=True)
    sweep.logs.mkdir(exist_ok=True)
    for index, row in enumerate(rows):
        events = sweep.events(row.name).resolve()
        result = row.directory.absolute() / METRICS_FILE
        words = [row.name, str(events), str(processes_per_node(row, nodes)), str(result), *row.overrides]
        write_words(submission / str(index), words)
    at_once = os.environ.get("OGPSA_ROWS_AT_ONCE", "")
    command = [
        "sbatch", "--parsable", f"--job-name={sweep.name}", f"--comment={submission}", f"--chdir={Path.cwd()}",
        f"--array=0-{len(rows) - 1}" + (f"%{at_once}" if at_once else ""),
        f"--output={str(sweep.logs.resolve()).replace('%', '%%')}/%A_%a.log", "--open-mode=append", "--requeue",
        f"--signal=B:USR1@{os.environ.get('OGPSA_WARNING_SECONDS') or 300}",
        *options,
        str(REPOSITORY / "slurm" / ("multinode.sbatch" if nodes > 1 else "array.sbatch")),
        str(REPOSITORY), str(submission),
    ]  # fmt: skip
    said = call(command)
    if not (job := re.match(r"\d+", said)):
        raise UserError(f"sbatch: found no job's number in its answer: {' '.join(said.split())}")
    for index, row in enumerate(rows):
        # A task that dies before its first word is then known to have been queued.
        note_queued(sweep.events(row.name), f"{job[0]}_{index}")
    return job[0]


if __name__ == "__main__":
    sys.exit(run_program(lambda: main(sys.argv[1:])))
