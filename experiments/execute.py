"""Runs an experiment's points: several at a time in worker processes, or one after another under torchrun.

All runs of a suite share one folder: a run that two tables need runs once, and a stage that two runs share, such as the
SFT of SFT→DPO, is trained once (``ogpsa/runs/stage_cache.py``). A point that has its ``metrics.json`` is done.
"""

import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType

from experiments.rows import Point
from ogpsa.runs.directory import METRICS_FILE
from ogpsa.runs.inputs import made_with_other_code
from ogpsa.utils.command_line import quoted
from ogpsa.utils.errors import EXIT_INTERRUPTED, EXIT_REQUEUE, UserError
from ogpsa.utils.progress import Progress

log = logging.getLogger(__name__)
REPOSITORY = Path(__file__).parent.parent
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def _value(path: object) -> str:
    """A path as the value of an override, in quotes where Hydra would read it otherwise."""
    return str(path) if re.fullmatch(r"[\w./-]+", str(path), re.ASCII) else quoted(str(path))


@dataclass(frozen=True)
class Task:
    """A point and where it runs; ``kept``: its result is known from elsewhere."""

    point: Point
    directory: Path
    kept: bool = False

    @property
    def done(self) -> bool:
        return self.kept or (self.directory / METRICS_FILE).is_file()

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments of ``train.py`` that run it."""
        return (
            *self.point.overrides,
            f"stage_store={_value(self.point.config.stage_store)}",
            f"hydra.run.dir={_value(self.directory)}",
        )

    @property
    def base(self) -> str:
        """World and seed of its untuned model, which on the testbed the first run that needs it trains."""
        config = self.point.config
        return f"{config.data.seed} {config.model.base and config.model.base.seed}"

    @property
    def start(self) -> str:
        """The products of this task from which others may start: of two at the same time, the second would wait."""
        config = self.point.config
        return f"{self.base} {config.seed} {config.stages[0]} {config.method.projection(config.stages[0].name)}"


def tasks_of(points: Iterable[Point], folder: Path, kept: Collection[str] = ()) -> list[Task]:
    """Each different run once, short pipelines first: the longer ones resume from their stages.

    Args:
        kept: names of runs whose results are known from elsewhere.
    """
    found: dict[str, Task] = {}
    for point in points:
        config = point.config.model_copy(update={"stage_store": str(folder / "stages")})
        name = config.run_name()
        found.setdefault(name, Task(replace(point, config=config), folder / name, name in kept))
    return sorted(found.values(), key=lambda task: (task.point.seed, len(task.point.config.stages)))


def check_tasks(tasks: Iterable[Task]) -> None:
    """Refuse what a run would refuse, for all runs before the first.

    Raises:
        UserError: one line per problem, naming the first run that has it.
    """
    from eval.validate import check_runs

    # A seed changes only the directory, which the run itself checks again.
    found = check_runs([(task.point.name, task.point.config, task.directory) for task in tasks])
    if found:
        raise UserError(*(f"{name}: {problem}" for name, problem in found))


def say_other_code(finished: Iterable[tuple[Point, Path]]) -> None:
    """Say on stderr of which rows, among finished runs in their directories, the method or reward has changed since."""
    said: set[str] = set()
    for point, directory in finished:
        line = made_with_other_code(directory, "output=", *point.config.plugins)
        if line and point.row not in said:
            said.add(point.row)
            print(f"{point.row}: {line}", file=sys.stderr, flush=True)


def execute(tasks: Sequence[Task], workers: int) -> list[str]:
    """Run what is not done; a point that fails is reported, and the others still run.

    Returns:
        One line for each point that failed.

    Raises:
        SystemExit: code 85 after SIGTERM or SIGUSR1, 130 after SIGINT, with all that was under way saved.
    """
    waiting = [task for task in tasks if not task.done]
    alone = [task for task in waiting if task.point.config.distributed.name != "single"]
    waiting = [task for task in waiting if task not in alone]
    failed = [f"{task.point.name}: {problem}" for task in alone if (problem := _torchrun(task))]
    if waiting:
        failed += _spread(waiting, min(workers, len(waiting)))
    return failed


def _spread(waiting: list[Task], workers: int) -> list[str]:
    failed: list[str] = []
    progress = Progress(len(waiting), "runs", interval=60.0)
    finished = 0
    begun: set[str] = set()
    crew: list[_Worker] = []

    def stop(number: int) -> None:
        for worker in crew:
            worker.stop(number)
        for worker in crew:
            worker.process.join()

    with _interruptible(stop):
        crew += [_Worker(number, waiting[0].directory.parent) for number in range(workers)]
        while waiting or any(worker.task for worker in crew):
            for worker in crew:
                if worker.task is None and waiting:
                    worker.give(_take(waiting, [other.task for other in crew if other.task], begun))
            ready = wait([worker.connection for worker in crew if worker.task])
            for worker in crew:
                if worker.connection not in ready or worker.task is None:
                    continue
                task = worker.task
                problem = worker.result(task)
                finished += 1
                begun.add(task.base)
                if problem is not None:
                    failed.append(f"{task.point.name}: {problem}")
                    log.error("failed: %s", failed[-1])
                progress.show(finished, f", {task.point.name}")
        for worker in crew:
            worker.connection.close()
            worker.process.join()
    return failed


def _take(waiting: list[Task], running: Sequence[Task], begun: Collection[str]) -> Task:
    """The first task that would wait neither for an untuned model in training nor for another's start.

    Without one, the first that would wait only for an untuned model; without that either, the first of all.

    Args:
        begun: untuned models that exist, since a task that starts from them has ended.
    """
    starts = {task.start for task in running}
    training = {task.base for task in running} - set(begun)
    place = min(
        range(len(waiting)), key=lambda place: (waiting[place].start in starts, waiting[place].base in training)
    )
    return waiting.pop(place)


class _Worker:
    """A process that runs one task after another on one thread and prints to a file."""

    def __init__(self, number: int, folder: Path) -> None:
        self._log_file = folder / f"worker-{number}.log"
        self.task: Task | None = None
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, self._log_file), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, task: Task) -> None:
        self.task = task
        with suppress(OSError):  # it is dead; the result says so
            self.connection.send(task)

    def result(self, task: Task) -> str | None:
        """The failure of ``task``, its last one, with the file that has the message; None if it succeeded."""
        run_log, self.task = task.directory / "run.log", None
        try:
            problem: str | None = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            if code == EXIT_REQUEUE:
                raise SystemExit(EXIT_REQUEUE) from None
            self._start()
            ended = f"signal {-code}" if code and code < 0 else f"code {code}"
            return f"its process ended with {ended}; see {self._log_file}"
        return problem and f"{problem}; see {run_log if run_log.is_file() else self._log_file}"

    def stop(self, number: int) -> None:
        """Ask a run to save and leave; without one there is nothing to save."""
        if self.process.is_alive() and (pid := self.process.pid) is not None:
            os.kill(pid, number if self.task else signal.SIGKILL)


@contextmanager
def _interruptible(stop: Callable[[int], None]) -> Iterator[None]:
    """While entered, a signal calls ``stop`` with the signal that asks a run to save, then ends this process."""

    def leave(number: int, frame: FrameType | None) -> None:
        # A second Ctrl-C does not wait.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        stop(signal.SIGTERM if number == signal.SIGINT else number)
        raise SystemExit(EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_REQUEUE)

    previous = {number: signal.signal(number, leave) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _work(connection: Connection, log_file: Path) -> None:
    """A worker's life: until the other end is closed."""
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("a", encoding="utf-8") as handle:
        os.dup2(handle.fileno(), 1)
        os.dup2(handle.fileno(), 2)
    # Ctrl-C reaches every process of the terminal; the first of them asks this one to save.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        connection.send(_run(task))


def _run(task: Task) -> str | None:
    from eval.evaluation import evaluate
    from eval.judging.reward import JUDGES
    from ogpsa.pipeline import run

    try:
        run(task.point.config, task.directory, evaluate, task.point.overrides, JUDGES)
    except UserError as error:
        return " / ".join(error.problems)
    except Exception as error:  # noqa: BLE001  # the traceback is in the run's log; the other points still run
        traceback.print_exc()
        return traceback.format_exception_only(error)[-1].strip()
    return None


def _torchrun(task: Task) -> str | None:
    """Run a task with as many processes as it asks for, or on all devices of this machine."""
    import torch

    processes = task.point.config.distributed.processes or max(1, torch.cuda.device_count())
    print(f"{task.point.name} -> {task.directory}", file=sys.stderr, flush=True)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
        "--signals-to-handle=SIGINT", str(REPOSITORY / "train.py"), *task.arguments,
    ]  # fmt: skip
    # Its processes are told to save by a signal that torchrun never sees: on one that it heeds, it kills them half a
    # minute later. In a group of its own, so that Ctrl-C reaches none of them.
    previous = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    process = subprocess.Popen(command, start_new_session=True)
    signal.signal(signal.SIGUSR1, previous)

    with _interruptible(lambda _: None):
        try:
            code = process.wait()
        finally:
            # Repeatedly: a signal that arrives before they listen is lost.
            while process.poll() is None:
                with suppress(FileNotFoundError, ProcessLookupError):
                    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
                        os.kill(int(child), signal.SIGUSR1)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=2)
    return None if code == 0 else f"torchrun ended with code {code}; what it printed says why"
