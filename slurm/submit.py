"""Queue a sweep's rows, once each: what ``slurm/submit.sh`` does (``slurm/submit.sh --help``)."""

import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ogpsa.errors import EXIT_DONE, UserError, report
from ogpsa.runs import exclusive
from slurm.squeue import call, tasks_of, write_words
from slurm.sweep import Record, Row, Sweep, check_edits, compose_rows, find_sweep, read_lines

REPOSITORY = Path(__file__).resolve().parent.parent
# Of sbatch, by what they would break.
OWN_OPTIONS = {
    "--array": "it is made from the rows",
    "-a": "it is made from the rows",
    "--comment": "it tells the sweep's jobs from others",
    "--job-name": "it is the sweep's name",
    "-J": "it is the sweep's name",
    "--chdir": "runs start where submit.sh is typed",
    "-D": "runs start where submit.sh is typed",
    "--output": "the logs lie in outputs/<sweep>/slurm/logs",
    "-o": "the logs lie in outputs/<sweep>/slurm/logs",
    "--wrap": "the script is ours",
}


def main(arguments: Sequence[str]) -> int:
    try:
        name, *options = arguments
        test_only = "--test-only" in options
        submit(find_sweep(name), [option for option in options if option != "--test-only"], test_only)
    except UserError as error:
        return report(error)
    return EXIT_DONE


def submit(sweep: Sweep, options: Sequence[str], test_only: bool) -> None:
    """Validate all rows and queue those that are neither done nor queued.

    Args:
        options: of sbatch.
        test_only: stop before anything is queued.

    Raises:
        UserError: one line per problem; nothing is queued then.
    """
    for option in options:
        if (reason := OWN_OPTIONS.get(option.partition("=")[0])) is not None:
            raise UserError(f"{option.partition('=')[0]}: set by submit.sh; {reason}")
    nodes = node_count(options)
    rows = compose_rows(sweep, read_lines(sweep.file))
    check_rows(sweep, [row for row in rows if not row.done], nodes)
    busy = f"SWEEP: {sweep.name} is being submitted by another process"
    with exclusive(sweep.folder / "slurm" / "submit.lock", busy, wait=lambda: None):
        tasks = {task.row: task for task in tasks_of(sweep)}
        records = sweep.records()
        check_edits(sweep, rows, records, list(tasks))
        todo = [row for row in rows if not row.done and row.name not in tasks]
        names = {row.name for row in rows}
        kept = [one for one in records.values() if one.name in names or one.begun or one.name in tasks]
        done = sum(row.done for row in rows)
        said = f"{len(rows)} rows: {done} done, {len(rows) - done - len(todo)} queued or running"
        if gone := sum(one.name not in names for one in kept):
            said += f" ({gone} more ran and {'is' if gone == 1 else 'are'} no longer in the file)"
        if test_only or not todo:
            print(f"{said}, {len(todo)} to queue", flush=True)
            return
        known = {one.name for one in kept}
        new = [Record(row.name, row.line, row.directory.absolute()) for row in todo if row.name not in known]
        sweep.remember([*kept, *new])
        job = _queue(sweep, todo, nodes, options)
    print(f"{said}, {len(todo)} queued as job {job}; slurm/status.sh {sweep.file}", flush=True)


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
    from eval.checks import check_all

    problems: dict[str, Row] = {}
    for row in rows:
        for problem in _launch_problems(row, nodes):
            problems.setdefault(problem, row)
    for row, problem in check_all([(row, row.config, row.directory) for row in rows]):
        problems.setdefault(problem, row)
    if not problems:
        for row, problem in _memory_problems(rows, nodes):
            problems.setdefault(problem, row)
    if problems:
        raise UserError(*(f"{sweep.file}:{row.line.number}: {problem}" for problem, row in problems.items()))


def processes_per_node(row: Row, nodes: int) -> int | None:
    """Processes that torchrun starts on a node for this row; None where nothing says how many."""
    wanted = row.config.distributed.processes
    if row.config.distributed.name == "single":
        return 1
    if wanted is not None:
        return wanted // nodes
    per_node = os.environ.get("OGPSA_PROCESSES", "")
    return int(per_node) if per_node.isdecimal() and int(per_node) > 0 else None


def _launch_problems(row: Row, nodes: int) -> list[str]:
    from ogpsa.launch import batch_problems

    distributed = row.config.distributed
    per_node = processes_per_node(row, nodes)
    if distributed.name == "single":
        if nodes > 1:
            return [f"distributed.name: found single with --nodes={nodes}; allowed: ddp, fsdp2, zero2, zero3"]
        return []
    if per_node is None:
        return ["OGPSA_PROCESSES: not set; say in slurm/env.sh how many processes a node has, or in the row "
                "distributed.processes"]  # fmt: skip
    if distributed.processes is not None and distributed.processes % nodes:
        return [f"distributed.processes: found {distributed.processes}, which {nodes} nodes cannot share evenly"]
    if per_node * nodes < 2:
        return [f"distributed.name: {distributed.name} needs several processes, but OGPSA_PROCESSES is 1 on one node"]
    return batch_problems(row.config, per_node * nodes)


def _memory_problems(rows: Sequence[Row], nodes: int) -> list[tuple[Row, str]]:
    """Rows whose pre-flight does not fit in ``OGPSA_GPU_MEMORY_GB``."""
    text = os.environ.get("OGPSA_GPU_MEMORY_GB", "")
    if not text or not rows:
        return []
    try:
        memory = float(text)
    except ValueError:
        raise UserError(f"OGPSA_GPU_MEMORY_GB: found '{text}'; expected a number") from None
    from ogpsa.preflight import fit
    from ogpsa.quiet import quiet_libraries

    quiet_libraries()
    different = {row.config.model_copy(update={"seed": 0}).key(): row for row in reversed(rows)}
    found = []
    for row in reversed(different.values()):
        per_node = processes_per_node(row, nodes)
        assert per_node is not None
        verdict = fit(row.config, per_node * nodes, memory)
        if not verdict.fits:
            found.append((row, f"does not fit: {verdict.text}"))
    return found


def _queue(sweep: Sweep, rows: Sequence[Row], nodes: int, options: Sequence[str]) -> str:
    """Hand the rows to sbatch and return the job's number."""
    submission = sweep.submissions.resolve() / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    submission.mkdir(parents=True)
    sweep.events("any").parent.mkdir(exist_ok=True)
    sweep.logs.mkdir(exist_ok=True)
    for index, row in enumerate(rows):
        events = sweep.events(row.name).resolve()
        words = [row.name, str(events), str(processes_per_node(row, nodes)), *row.overrides]
        write_words(submission / str(index), words)
    at_once = os.environ.get("OGPSA_ROWS_AT_ONCE", "")
    command = [
        "sbatch", "--parsable", f"--job-name={sweep.name}", f"--comment={submission}", f"--chdir={Path.cwd()}",
        f"--array=0-{len(rows) - 1}" + (f"%{at_once}" if at_once else ""),
        f"--output={sweep.logs.resolve()}/%A_%a.log", "--open-mode=append", "--requeue",
        f"--signal=B:USR1@{os.environ.get('OGPSA_WARNING_SECONDS') or 300}",
        *options,
        str(REPOSITORY / "slurm" / ("multinode.sbatch" if nodes > 1 else "array.sbatch")),
        str(REPOSITORY), str(submission),
    ]  # fmt: skip
    return call(command).strip().partition(";")[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
