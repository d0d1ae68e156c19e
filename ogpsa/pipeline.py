"""From a validated configuration to ``metrics.json``: every arrow's product is on disk before the next."""

import logging
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from ogpsa.config import Config, Evaluation
from ogpsa.data.rows import Data, load_data
from ogpsa.distributed import processes
from ogpsa.distributed.launch import check_launch
from ogpsa.models.files import check_model, check_weights, local_folder
from ogpsa.runs.directory import (
    METRICS_FILE,
    PROVENANCE_FILE,
    SCORES_FILE,
    check_directory,
    merged_folder,
    own,
    read_metrics,
    stage_folder,
)
from ogpsa.runs.score_table import table
from ogpsa.runs.tracking import NoTracker, check_tracker
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import COMPLETE_FILE, check_writable, exclusive, is_complete, is_full, write_json
from ogpsa.utils.signals import Interruption

# evaluate(checkpoint, rows, output, settings, check) -> scores; ``check`` may leave between benchmarks.
Evaluate = Callable[[Path, Path, Path, Evaluation, Callable[[], None]], dict[str, Any]]
log = logging.getLogger(__name__)
file_log = logging.getLogger("ogpsa.file")


def check(config: Config, directory: Path) -> Data:
    """Refuse what can be refused before torch is imported and before anything is written; return the rows.

    Raises:
        UserError: the data, the model, the directory or the environment cannot serve this configuration.
    """
    check_launch(config)
    return check_files(config, directory)


def check_files(config: Config, directory: Path) -> Data:
    """The same but for the processes that are to run it, which may not have been started yet.

    Raises:
        UserError: as ``check``.
    """
    check_directory(directory, config)
    data = load_data(config)
    check_writable(Path(config.cache_dir), "cache_dir")
    if config.stage_store is not None:
        check_writable(Path(config.stage_store), "stage_store")
    check_tracker(config.tracker)
    check_model(config.model, config.data.name)
    for stage in config.stages:
        trained = stage_folder(directory, config, stage.name)
        for folder in filter(is_complete, (trained, merged_folder(trained))):
            check_weights(folder, "hydra.run.dir", f"delete {folder} to have it made again")
    read_metrics(directory)
    return data


def run(config: Config, directory: Path, evaluate: Evaluate, overrides: Sequence[str] = ()) -> tuple[float, float]:
    """Run, or go on with, the whole pipeline in ``directory``.

    Every process of the run calls it. All of them train; the rest is the main one's, while the others wait.

    Returns:
        The last checkpoint's safety and utility score, in [0, 1]; NaN where there is none, as with ``preflight``.

    Raises:
        UserError: as ``check``, another run owns the directory, or its disk is full; on the main process alone.
        SystemExit: code 85, with everything saved, when SIGTERM or SIGUSR1 asked for it; on the other processes
            also the main one's failure.
    """
    directory = processes.broadcast(directory)
    data = processes.on_main_process(lambda: check(config, directory))
    if config.preflight:
        processes.on_main_process(lambda: _print_preflight(config, data, directory))
        return math.nan, math.nan
    with ExitStack() as owned:
        processes.on_main_process(lambda: owned.enter_context(own(directory, config)))
        metrics = processes.on_main_process(lambda: read_metrics(directory))
        if metrics is None:
            log_file = directory / "run.log" if processes.is_main() else None
            with _full_disk_said(directory), Interruption() as interruption, _logging(log_file):
                try:
                    metrics = _run(config, directory, data, evaluate, overrides, interruption)
                except Exception:
                    file_log.exception("failed")
                    raise
                file_log.info("\n%s", table(metrics["base"], metrics["stages"]))
    if processes.is_main():
        print(f"\n{table(metrics['base'], metrics['stages'])}\n\n{directory / METRICS_FILE}", flush=True)
    safety, utility = (math.nan if metrics[name] is None else metrics[name] for name in ("safety", "utility"))
    return safety, utility


def _print_preflight(config: Config, data: Data, directory: Path) -> None:
    from ogpsa.utils.libraries import quiet_libraries

    quiet_libraries()
    from ogpsa.preflight.report import report

    print(report(config, data), flush=True)
    # Hydra has made it.
    if not any(directory.iterdir()):
        directory.rmdir()


def _run(
    config: Config,
    directory: Path,
    data: Data,
    evaluate: Evaluate,
    overrides: Sequence[str],
    interruption: Interruption,
) -> dict[str, Any]:
    from ogpsa.utils.libraries import quiet_libraries

    quiet_libraries()
    from ogpsa.runs import provenance
    from ogpsa.runs.stage_cache import StageStore, begun_under, stage_key
    from ogpsa.runs.tracking import tracker
    from ogpsa.testbed.cache import ensure_base
    from ogpsa.training.merging import merge
    from ogpsa.training.stage import run_stage

    log.info("run directory: %s", directory)
    start = processes.on_main_process(lambda: None if config.model.path is None else local_folder(config.model))
    facts = processes.on_main_process(
        lambda: provenance.record(directory / PROVENANCE_FILE, config, data.write(directory / "data"), overrides)
    )

    def score(checkpoint: Path, output: Path) -> dict[str, Any]:
        interruption.check()
        log.info("evaluating %s", output.name)
        return evaluate(checkpoint, directory / "data" / "evaluation", output, config.eval, interruption.check)

    store = StageStore(None if config.stage_store is None else Path(config.stage_store))

    def shared_score(untuned: Path, checkpoint: Path, name: str, count: int) -> dict[str, Any]:
        key = f"{stage_key(config, data, untuned, count)}-{config.eval.key()}"
        output = directory / "eval" / name
        with store.shared(key, output, SCORES_FILE, interruption.check):
            return score(checkpoint, output)

    def testbed_base() -> tuple[Path, dict[str, Any]]:
        base = ensure_base(config, interruption.check)
        # Every run of a world starts from this base, so its evaluation is kept beside it.
        kept = base.with_name(f"{base.name}-{config.eval.key()}") / "base"
        with exclusive(kept.parent / ".lock", "another process evaluates the base", wait=interruption.check):
            scores = score(base, kept)
            hidden = shutil.ignore_patterns(".*")
            shutil.copytree(kept, directory / "eval" / "base", ignore=hidden, dirs_exist_ok=True)
        return base, scores

    with tracker(config, directory, facts) if processes.is_main() else nullcontext(NoTracker()) as mirror:
        metrics: dict[str, Any] = {"stages": {}}
        if start is None:
            start, metrics["base"] = processes.on_main_process(testbed_base)
        else:
            metrics["base"] = processes.on_main_process(partial(shared_score, start, start, "base", 0))
        checkpoint = start
        for count, stage in enumerate(config.stages, start=1):
            folder = stage_folder(directory, config, stage.name)
            key = processes.on_main_process(partial(stage_key, config, data, start, count))
            with ExitStack() as held:
                sharing = store.shared(key, folder, COMPLETE_FILE, interruption.check)
                processes.on_main_process(partial(held.enter_context, sharing))
                run_stage(config, stage, checkpoint, data, folder, interruption, mirror)
            if not processes.on_main_process(partial(begun_under, key, folder)):
                # Nor is what follows from it what its key would say.
                store = StageStore(None)
            metrics["stages"][stage.name] = processes.on_main_process(
                partial(shared_score, start, folder, folder.name, count)
            )
            checkpoint = folder
            weight = config.method.merge_weight(last=stage is config.stages[-1])
            if weight is not None:
                checkpoint = merged_folder(folder)
                processes.on_main_process(partial(merge, start, folder, checkpoint, weight, interruption.check))
                scores = processes.on_main_process(partial(score, checkpoint, directory / "eval" / checkpoint.name))
                metrics["stages"][f"{stage.name}-merged"] = scores
        last = list(metrics["stages"].values())[-1]
        headline = {name: last[name] for name in ("safety", "utility", "over_refusal")}
        result = headline | metrics
        mirror.summarize(result)
        if processes.is_main():
            write_json(directory / METRICS_FILE, result)
    return result


@contextmanager
def _full_disk_said(directory: Path) -> Iterator[None]:
    """Libraries, and the log's own file, say it in words of their own."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_full(directory):
            problem = f"hydra.run.dir: no space left on the disk of {directory}"
            raise UserError(f"{problem}; make room and give the same command again") from error
        raise


@contextmanager
def _logging(file: Path | None) -> Iterator[None]:
    """Send this package's log to stderr and to ``file``, or nowhere; libraries stay at their warnings."""
    package = logging.getLogger("ogpsa")
    handlers: list[logging.Handler] = [logging.NullHandler()]
    if file is not None:
        handlers = [logging.StreamHandler(sys.stderr), logging.FileHandler(file, encoding="utf-8")]
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        package.addHandler(handler)
    # Said elsewhere on the screen: the table and the traceback are printed, a bar shows the steps.
    elsewhere = {file_log.name, "ogpsa.steps"} if sys.stderr.isatty() else {file_log.name}
    handlers[0].addFilter(lambda record: record.name not in elsewhere)
    package.setLevel(logging.INFO)
    package.propagate = False
    try:
        yield
    finally:
        for handler in handlers:
            package.removeHandler(handler)
            handler.close()
