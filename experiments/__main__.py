"""The paper's tables and figures by name.

python -m experiments list
python -m experiments plan NAME…   [suite=SUITE] [rows=PATTERN,…] [seeds=…] [output=DIR] [kept=true]
python -m experiments run NAME…    [suite=…] [rows=…] [seeds=…] [output=DIR] [kept=true] [workers=N] [slurm=true]
python -m experiments report NAME… [suite=…] [rows=…] [seeds=…] [output=DIR] [kept=true] [out=DIR]
python -m experiments keep NAME…   [suite=…] [rows=…] [seeds=…] [output=DIR]

list names the experiments and their suites; NAME may be all: every experiment of the suite. plan says what would run,
what is done and what it takes. run does what is not done, and resumes where it was stopped; slurm=true adds the runs to
slurm/sweeps/NAME.txt, one per line, in place of running. report prints the table and writes it as .md, .tex, .csv and
.json, also before anything has run, into <out>/<suite>/NAME; out=experiments/results is for what is committed.
keep adds all that a report reads of the finished runs to experiments/results/<suite>/runs.jsonl, which is committed
where the weights cannot be; with kept=true, report shows these runs, and plan and run count them as done where they
began with the untuned model that is here (of the testbed's bases only the one that is shipped is the same everywhere).

suite: testbed (default): every table in small, on a CPU; paper: full size; small: those whose names begin with
small_, on real weights and rows, on a CPU; small_full: small_sft at full size, on a GPU; check: two steps of every row.
rows: names of rows, * for any part of one, as rows=qwen2_5_7b_sft*. seeds: 3 for the first three, 5-9 or 0,2,4 for
those. output: the folder of all runs (outputs); out: of all tables (<output>/reports). workers: runs at a time, each on
one thread (as many as there are cores). Any other KEY=VALUE goes to every run, as eval=quick or distributed=zero2.
"""

import logging
import os
import re
import sys
from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ogpsa.utils.command_line import Keys, path, read_pairs, run_command, whole_number, yes_or_no
from ogpsa.utils.errors import EXIT_DONE, EXIT_FAILURE, Problems, UserError, closest_match

if TYPE_CHECKING:
    from experiments.kept import Record

MOST_SEEDS = 10_000
# Of train.py, by what to give in their place.
OWN_KEYS = {
    "seed": "name the seeds with seeds=",
    "stage_store": "it lies in the suite's folder, below output=",
    "hydra.run.dir": "choose the folder of all runs with output=",
    "+experiment": "choose rows with rows=",
}


@dataclass
class Request:
    """The request on the command line."""

    names: list[str] = field(default_factory=list)
    suite: str = "testbed"
    rows: list[str] = field(default_factory=lambda: ["*"])
    seeds: list[int] | None = None
    output: Path = Path("outputs")
    out: Path | None = None
    workers: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    slurm: bool = False
    kept: bool = False
    overrides: list[str] = field(default_factory=list)


def main(arguments: Sequence[str]) -> int:
    commands = {"list": _list, "plan": _plan, "run": _run, "report": _report, "keep": _keep}
    return run_command(arguments, __doc__, commands)


def parse(words: Sequence[str]) -> Request:
    """Names and ``KEY=VALUE`` arguments.

    Raises:
        UserError: one line per problem.
    """
    from experiments.rows import ALL, experiment_names, experiments_of
    from ogpsa.config import Config

    known = [*experiment_names(), ALL]
    names = [word for word in words if "=" not in word]
    given = read_pairs([word for word in words if "=" in word], {**KEYS, "*": str})
    problems = [
        f"'{name}' is not an experiment; allowed: {', '.join(known)}{closest_match(name, known)}"
        for name in names
        if name not in known
    ]
    problems += [f"{key}: set by this command for every run; {OWN_KEYS[key]}" for key in given if key in OWN_KEYS]
    keys = [*KEYS, *(key for key in Config.model_fields if key not in OWN_KEYS)]
    problems += [
        f"{key}: unknown key; allowed: {', '.join(keys)}{closest_match(key, keys)}"
        for key in given
        if key.isidentifier() and key not in {*keys, *OWN_KEYS}
    ]
    if not names and not problems:
        problems.append(f"name an experiment: {', '.join(known)}")
    if problems:
        raise UserError(*problems)
    every = experiments_of(given.get("suite", Request.suite)) if ALL in names else []
    return Request(
        names=list(dict.fromkeys(one for name in names for one in (every if name == ALL else [name]))),
        overrides=[f"{key}={value}" for key, value in given.items() if key not in KEYS],
        **{key: value for key, value in given.items() if key in KEYS},
    )


def _seeds(text: str) -> list[int]:
    """The seeds that ``3``, ``5-9`` or ``0,2,4`` name.

    Raises:
        ArgumentTypeError: ``text`` is none of these, or names none or too many.
    """
    if re.fullmatch(r"[1-9]\d{0,3}", text):
        return list(range(int(text)))
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        known = re.fullmatch(r"\d{1,6}(-\d{1,6})?", part) and (dash or "," in text)
        if not known or (dash and not int(first) <= int(last) < int(first) + MOST_SEEDS):
            raise ArgumentTypeError(
                f"found '{text}'; expected a number of seeds (5), a range (5-9) or two or more (0,2,4)"
            )
        found += range(int(first), int(last if dash else first) + 1)
    return found


# This command's own; any other goes to every run.
KEYS: Keys = {
    "suite": str,
    "rows": lambda text: text.split(","),
    "seeds": _seeds,
    "output": path,
    "out": path,
    "workers": whole_number(1),
    "slurm": yes_or_no,
    "kept": yes_or_no,
}


def _list(words: list[str]) -> int:
    from experiments.rows import Experiment, experiment_names, load_experiment

    if words:
        raise UserError(f"list: found '{words[0]}'; it takes no arguments")
    problems, experiments = Problems(), list[Experiment]()
    for name in experiment_names():
        with problems.kept():
            experiments.append(load_experiment(name))
    width = max((len(experiment.name) for experiment in experiments), default=0)
    for experiment in experiments:
        print(
            f"{experiment.name:<{width}}  {experiment.settings.title} "
            f"({len(experiment.rows)} rows; {', '.join(experiment.settings.suites)})"
        )
    problems.tell()
    return EXIT_DONE


def _plan(words: list[str]) -> int:
    from experiments.execute import tasks_of
    from experiments.kept import usable_here
    from experiments.plan import plan
    from experiments.rows import load_experiment, load_suite, points
    from ogpsa.utils.libraries import quiet_libraries

    request = parse(words)
    suite = load_suite(request.suite)
    experiments = [load_experiment(name) for name in request.names]
    found = [points(one, request.suite, request.rows, request.seeds, request.overrides) for one in experiments]
    quiet_libraries()
    kept = usable_here(_kept(request), [point for own in found for point in own])
    for number, (experiment, own) in enumerate(zip(experiments, found, strict=True)):
        print("\n" * bool(number) + plan(experiment, tasks_of(own, request.output / request.suite, kept), suite))
    return EXIT_DONE


def _run(words: list[str]) -> int:
    from experiments.execute import check_tasks, execute, say_other_code, tasks_of
    from experiments.kept import usable_here
    from experiments.rows import load_experiment, points

    request = parse(words)
    every = [
        point
        for name in request.names
        for point in points(load_experiment(name), request.suite, request.rows, request.seeds, request.overrides)
    ]
    folder = request.output / request.suite
    tasks = tasks_of(every, folder, usable_here(_kept(request), every))
    if request.slurm:
        return _write_sweep(request, [task.arguments for task in tasks if not task.kept])
    check_tasks(tasks)
    todo = [task for task in tasks if not task.done]
    say_other_code((task.point, task.directory) for task in tasks if task.done and not task.kept)
    print(f"{len(tasks)} runs in {folder}, {len(tasks) - len(todo)} done", file=sys.stderr, flush=True)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    failed = execute(todo, request.workers)
    for line in failed:
        print(f"failed: {line}", file=sys.stderr)
    print(f"{len(tasks) - len(failed)} of {len(tasks)} runs done")
    return EXIT_FAILURE if failed else EXIT_DONE


def _write_sweep(request: Request, rows: Sequence[Sequence[str]]) -> int:
    from experiments.rows import ALL, experiments_of
    from slurm.sweep import SWEEPS, Line, add_lines

    names = ALL if request.names == experiments_of(request.suite) else "-".join(request.names)
    file = SWEEPS / (f"{names}.txt" if request.suite == "paper" else f"{names}-{request.suite}.txt")
    added, there = add_lines(file, [Line(0, tuple(row)) for row in rows])
    print(f"{file}: {added} rows added, {there} were there; next: slurm/submit.sh {file}")
    return EXIT_DONE


def _report(words: list[str]) -> int:
    from experiments.report import report as write_report
    from experiments.rows import load_experiment, points

    request = parse(words)
    for name in request.names:
        experiment = load_experiment(name)
        found = points(experiment, request.suite, request.rows, request.seeds, request.overrides)
        out = (request.out or request.output / "reports") / request.suite / name
        write_report(experiment, request.suite, found, request.output / request.suite, out, _kept(request))
    return EXIT_DONE


def _keep(words: list[str]) -> int:
    from experiments.comparisons import cosines_with_naive
    from experiments.kept import add_records, kept_file, record_of
    from experiments.outcomes import read_rows
    from experiments.rows import load_experiment, points

    request = parse(words)
    records: dict[str, Record] = {}
    planned: set[str] = set()
    for experiment in map(load_experiment, request.names):
        found = points(experiment, request.suite, request.rows, request.seeds, request.overrides)
        planned |= {point.config.run_name() for point in found}
        rows = read_rows(experiment, request.suite, found, request.output / request.suite)
        for row in rows:
            ways = {strength: cosines_with_naive(row, rows, strength) for strength in row.strengths}
            for result in row.results:
                way = ways[result.point.strength].get(result.point.seed)
                record = record_of(result.run, result.point, result.scores.get("moved"), way)
                # The experiment that shows how the weights have moved knows more.
                if record.run not in records or records[record.run].moved is None:
                    records[record.run] = record
    file = kept_file(request.suite)
    added, every = add_records(file, records.values())
    print(f"{file}: {len(records)} of {len(planned)} runs are finished and kept, {added} of them new; {every} in all")
    return EXIT_DONE


def _kept(request: Request) -> dict[str, "Record"]:
    from experiments.kept import kept_file, read_kept

    return read_kept(kept_file(request.suite)) if request.kept else {}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
