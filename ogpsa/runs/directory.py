"""The run directory: its owner, its content, and why each of its files is complete or absent.

```
config.yaml      resolved configuration, and the directory's identity
provenance.json  git revision, versions, host, world size, data fingerprints, seeds
run.log          what the run printed
data/            the rows it trained on
01-sft/ 02-dpo/  one checkpoint a stage; COMPLETE.json is written last
01-grpo/rewards/ what the judges of the RL stage were asked and said, and the tokens that it took
02-dpo-merged/   a stage's checkpoint averaged with the untuned model, where the method does so
eval/<name>/     generations, verdicts and scores of base and of each checkpoint
metrics.json     the result, written last
```
"""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from ogpsa.config import Config, StageName, identity_of
from ogpsa.distributed import processes
from ogpsa.utils.dotted import flatten
from ogpsa.utils.errors import EXIT_REQUEUE, UserError, first_few
from ogpsa.utils.files import check_writable, exclusive, is_complete, read_json, remove_unfinished, write_atomically

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.json"
PROVENANCE_FILE = "provenance.json"
HISTORY_FILE = "history.jsonl"
REWARDS = "rewards"
SCORES_FILE = "scores.json"
LOCK_FILE = "run.lock"


def read_metrics(directory: Path) -> dict[str, Any] | None:
    """A finished run's result, or None where there is none yet.

    Raises:
        UserError: ``metrics.json`` is damaged or holds something else.
    """
    file = directory / METRICS_FILE
    if not file.exists():
        return None
    metrics = read_json(file)
    if not isinstance(metrics, dict) or not {"safety", "utility", "over_refusal", "base", "stages"} <= metrics.keys():
        raise UserError(f"{file}: holds no result of a run; delete it to recreate it")
    return metrics


def stage_folder(directory: Path, config: Config, stage: StageName) -> Path:
    """``01-sft``, ``02-dpo``: the stage's place in the pipeline and its name."""
    names = [settings.name for settings in config.stages]
    return directory / f"{names.index(stage) + 1:02d}-{stage}"


def checkpoints(directory: Path) -> list[Path]:
    """A run's whole checkpoints in the order in which they were made: ``01-sft``, ``02-dpo``, ``02-dpo-merged``."""
    return sorted(filter(is_complete, directory.glob("[0-9][0-9]-*")))


def check_directory(directory: Path, config: Config) -> None:
    """Refuse a place that cannot hold this run, without touching it.

    Raises:
        UserError: a part of the path is a file, the place is not writable, or it holds another configuration
            (the keys that differ are named).
    """
    check_writable(directory, "hydra.run.dir")
    config_file = directory / CONFIG_FILE
    if not config_file.exists():
        # A kill can leave the lock and an incomplete configuration.
        foreign = [path.name for path in directory.glob("*") if path.name != LOCK_FILE and path.name[0] != "."]
        if foreign:
            raise UserError(
                f"hydra.run.dir: {directory} holds files that are not a run's ({foreign[0]}, …); "
                "choose an empty or a new directory"
            )
        return
    stored = read_stored_config(config_file)
    if stored is None:
        raise UserError(f"{config_file}: not readable as a configuration; move {directory} away or choose another")
    ours = flatten(config.identity())
    theirs = flatten(identity_of(stored))
    differing = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
    if differing:
        shown = first_few([f"{key} ({theirs.get(key)!r} there, {ours.get(key)!r} here)" for key in differing])
        raise UserError(
            f"hydra.run.dir: {directory} holds a run of another configuration; differing: {shown}; "
            "choose another directory"
        )


def read_stored_config(file: Path) -> dict[str, Any] | None:
    """A run's ``config.yaml`` as plain YAML; None where it is damaged."""
    try:
        stored = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
    return stored if isinstance(stored, dict) else None


@contextmanager
def own(directory: Path, config: Config) -> Iterator[None]:
    """Own ``directory`` for this run; every process calls it, and the main one holds the lock.

    Raises:
        UserError: as ``own_alone``, on the main process.
        SystemExit: as ``own_alone``; code 2 on the others where the main one has a UserError.
    """
    with ExitStack() as held:
        processes.on_main_process(lambda: held.enter_context(own_alone(directory, config)))
        yield


@contextmanager
def own_alone(directory: Path, config: Config) -> Iterator[None]:
    """Own ``directory`` for this process: check it, lock it, and record the configuration in it.

    Raises:
        UserError: as ``check_directory``, or another process runs in it.
        SystemExit: code 85, another process has run in it for all of ``lock_wait``.
    """
    check_directory(directory, config)
    busy = f"hydra.run.dir: another process runs in {directory}; wait for it or choose another directory"
    until = time.monotonic() + config.lock_wait

    def wait() -> None:
        if time.monotonic() > until:
            print(f"another process still runs in {directory} after {config.lock_wait} s", file=sys.stderr, flush=True)
            raise SystemExit(EXIT_REQUEUE)

    with exclusive(directory / LOCK_FILE, busy, wait=wait if config.lock_wait else None):
        check_directory(directory, config)
        remove_unfinished(directory)
        if not (directory / CONFIG_FILE).exists():
            text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
            write_atomically(directory / CONFIG_FILE, text)
        yield
