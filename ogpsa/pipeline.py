"""The course of a run: evaluate the model, train a stage, evaluate its result; each product is on disk before the next.

Processes, locks, signals, the log and the caches live behind ``run`` (``ogpsa/runs/run.py``).
"""

import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ogpsa.config import NO_JUDGES, Config, Judges
from ogpsa.data.rows import Data, load_data
from ogpsa.distributed import processes
from ogpsa.distributed.launch import check_device, check_launch
from ogpsa.models.files import check_model, check_weights, here_already
from ogpsa.runs.directory import METRICS_FILE, check_directory, checkpoints, own, read_metrics
from ogpsa.runs.inputs import check_rows, check_unchanged, code_digests, made_with_other_code, model_digests
from ogpsa.runs.score_table import table
from ogpsa.runs.tracking import check_tracker
from ogpsa.utils.errors import Problems
from ogpsa.utils.files import check_writable
from ogpsa.utils.libraries import common_kernels

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ogpsa.runs.run import Evaluate, Run


def align(config: Config, run: "Run") -> dict[str, Any]:
    """Align the model stage by stage, evaluating it before and after each; returns what ``metrics.json`` holds."""
    from ogpsa.preflight.contexts import check_contexts
    from ogpsa.preflight.report import check_layers
    from ogpsa.training.stage import train_stage

    run.on_main_process(partial(check_device, config))
    base = checkpoint = run.starting_model()
    run.on_main_process(partial(check_contexts, config, run.data, base))
    run.on_main_process(partial(check_layers, config))
    run.on_main_process(run.check_reward)
    config.method.prepare(base, run)
    scores = {"base": run.evaluate(base, "base")}
    for stage in config.stages:
        train = partial(train_stage, run, stage, checkpoint)
        trained = run.stage_result(stage, checkpoint, train)
        checkpoint = config.method.after_stage(stage.name, base, trained, run)
        for folder in dict.fromkeys([trained, checkpoint]):
            scores[folder.name] = run.evaluate(folder, folder.name)
    return run.finish(scores)


def run(
    config: Config, directory: Path, evaluate: "Evaluate", overrides: Sequence[str] = (), judges: Judges = NO_JUDGES
) -> tuple[float, float]:
    """Run, or resume, the whole pipeline in ``directory``; every process of the run calls it.

    Args:
        judges: of the evaluation, for the RL stage's rewards.

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
        processes.on_main_process(lambda: _print_preflight(config, data, directory, judges))
        return math.nan, math.nan
    with own(directory, config):
        metrics = processes.on_main_process(lambda: read_metrics(directory))
        if metrics is not None:
            processes.on_main_process(lambda: _say_other_code(config, directory))
        else:
            if config.model.path is None:
                common_kernels()
            from ogpsa.runs.run import Run

            with Run.start(config, directory, data, evaluate, judges, overrides) as started:
                metrics = align(config, started)
    if processes.is_main():
        print(f"\n{table(metrics['base'], metrics['stages'])}\n\n{directory / METRICS_FILE}", flush=True)
    safety, utility = (math.nan if metrics[name] is None else metrics[name] for name in ("safety", "utility"))
    return safety, utility


def _say_other_code(config: Config, directory: Path) -> None:
    if line := made_with_other_code(directory, "hydra.run.dir", *config.plugins):
        print(line, file=sys.stderr, flush=True)


def check(config: Config, directory: Path) -> Data:
    """Refuse what can be refused before torch is imported and before anything is written; return the rows.

    Raises:
        UserError: the data, the model, the directory or the environment cannot serve this configuration, or the run
            was begun with other inputs.
    """
    check_launch(config)
    return check_files(config, directory)


def check_files(config: Config, directory: Path) -> Data:
    """Check data, model, directory and code; also called before processes are launched.

    Raises:
        UserError: as ``check``.
    """
    check_directory(directory, config)
    problems, data = Problems(), Data([], {})
    with problems.kept():
        data = load_data(config)
    with problems.kept():
        check_writable(Path(config.cache_dir), "cache_dir")
    if config.stage_store is not None:
        with problems.kept():
            check_writable(Path(config.stage_store), "stage_store")
    with problems.kept():
        check_tracker(config.tracker)
    with problems.kept():
        check_model(config)
    for folder in checkpoints(directory):
        with problems.kept():
            check_weights(folder, "hydra.run.dir", f"delete {folder} to recreate it")
    problems.tell()
    check_rows(directory, data)
    model = here_already(config.model)
    if model is not None:
        check_unchanged(directory, partial(model_digests, model))
    if read_metrics(directory) is None:
        check_unchanged(directory, partial(code_digests, *config.plugins), config.accept_changed)
    return data


def check_tokenizer(config: Config, data: Data) -> Path | None:
    """Refuse a tokenizer that disagrees with its template, the model or the rows.

    Returns:
        The folder of model and tokenizer; None if they do not exist yet.

    Raises:
        UserError: as ``check_contexts``.
    """
    # The testbed's own base, perhaps not trained yet, is right by construction.
    if config.model.path is None:
        return None
    from ogpsa.utils.libraries import quiet_libraries

    quiet_libraries()
    from ogpsa.preflight.contexts import check_contexts

    folder = here_already(config.model)
    if folder is not None:
        check_contexts(config, data, folder)
    return folder


def _print_preflight(config: Config, data: Data, directory: Path, judges: Judges) -> None:
    from ogpsa.utils.libraries import quiet_libraries

    quiet_libraries()
    from ogpsa.preflight.report import report
    from ogpsa.preflight.shown_rows import show_rows

    try:
        print(report(config, data, judges), flush=True)
        if config.model.path is None:
            tokenizer = _check_testbed(config, data)
        elif (folder := check_tokenizer(config, data)) is None:
            print(f"\n{config.model.path} is not in the hub's cache: tokenizer and template not checked", flush=True)
            return
        else:
            from ogpsa.models.tokenizer import load_tokenizer

            tokenizer = load_tokenizer(folder, config.model.template_kwargs)
        print(f"\n{show_rows(config, data, tokenizer)}", flush=True)
    finally:
        # Hydra has made it.
        if not any(directory.iterdir()):
            directory.rmdir()


def _check_testbed(config: Config, data: Data) -> "PreTrainedTokenizerBase":
    """Check the rows by the tokenizer that the testbed's base will have; returns it. A run asks the base itself."""
    from ogpsa.preflight.unfit_rows import check_answers
    from ogpsa.testbed.tokenizer import build_tokenizer
    from ogpsa.testbed.world import World

    tokenizer = build_tokenizer(World(config.testbed_base()[0].seed).vocabulary())
    check_answers(config, data, tokenizer)
    return tokenizer
