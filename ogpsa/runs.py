"""The run directory: who owns it, what it holds, and how its files come to be whole or not at all.

```
config.yaml      resolved configuration, and the directory's identity
provenance.json  git revision, versions, host, world size, data fingerprints, seeds
run.log          what the run printed
data/            the rows it trained on
01-sft/ 02-dpo/  one checkpoint a stage; COMPLETE.json is written last
02-dpo-merged/   a stage's checkpoint averaged with the untuned model, where the method does so
eval/<name>/     generations, verdicts and scores of base and of each checkpoint
metrics.json     the result, written last
```
"""

import errno
import fcntl
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TextIO

import yaml

from ogpsa.config import Config, without_inert
from ogpsa.errors import EXIT_REQUEUE, UserError
from ogpsa.methods import StageName

CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.json"
PROVENANCE_FILE = "provenance.json"
HISTORY_FILE = "history.jsonl"
COMPLETE_FILE = "COMPLETE.json"
SCORES_FILE = "scores.json"
LOCK_FILE = "run.lock"
# Bytes; where they cannot be written nothing can go on.
FULL_DISK = 1 << 20
# How the system says so: the disk is full, or the user's share of it.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# How it says that files cannot be locked.
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)


def is_full(directory: Path) -> bool:
    """Whether no more can be written there."""
    try:
        with TemporaryFile(dir=directory) as file:
            file.write(bytes(FULL_DISK))
    except OSError as error:
        return error.errno in NO_SPACE
    return False


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` so that a reader, also after a kill, sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as handle:
        handle.write(content.encode() if isinstance(content, str) else content)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); delete it to have it made again") from None


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Parse a file of one JSON object a line.

    Raises:
        UserError: the file is missing, or a line is no JSON object (named by its number).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder; expected a file of one JSON object a line") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a UTF-8 text file; expected one JSON object a line") from None
    rows = []
    # Not splitlines, which also cuts at separators that JSON allows inside a text.
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], start=1):
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: not a JSON object; expected one JSON object a line")
        rows.append(row)
    return rows


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
        raise UserError(f"{file}: holds no result of a run; delete it to have it made again")
    return metrics


def mark_complete(folder: Path, facts: Mapping[str, Any]) -> None:
    """Declare ``folder`` whole. Call it after everything else in it is on disk."""
    write_json(folder / COMPLETE_FILE, dict(facts))


def is_complete(folder: Path) -> bool:
    return (folder / COMPLETE_FILE).is_file()


@contextmanager
def build_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``target`` that takes its name if the block succeeds.

    For one process at a time: what a killed one left behind goes first.
    """
    for left in target.parent.glob(f".{target.name}.*"):
        shutil.rmtree(left)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def stage_folder(directory: Path, config: Config, stage: StageName) -> Path:
    """``01-sft``, ``02-dpo``: the stage's place in the pipeline and its name."""
    names = [settings.name for settings in config.stages]
    return directory / f"{names.index(stage) + 1:02d}-{stage}"


def merged_folder(stage: Path) -> Path:
    """``02-dpo-merged``: beside a stage's folder and, sorted by name, after it."""
    return stage.with_name(f"{stage.name}-merged")


def check_writable(folder: Path, key: str) -> None:
    """Refuse a folder that is not there and cannot be made, or cannot be written to.

    Raises:
        UserError: names ``key`` and what is in the way.
    """
    ancestor = folder
    try:
        while not ancestor.exists():
            ancestor = ancestor.parent
    except OSError as error:
        raise UserError(f"{key}: {folder} cannot be used: {error.strerror}") from None
    if not ancestor.is_dir():
        where = "is a file" if ancestor == folder else f"lies below {ancestor}, which is a file"
        raise UserError(f"{key}: {folder} {where}; choose another directory")
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise UserError(f"{key}: {folder} cannot be written: no permission on {ancestor}; choose another directory")


def check_directory(directory: Path, config: Config) -> None:
    """Refuse a place that cannot hold this run, without touching it.

    Raises:
        UserError: a part of the path is a file, the place is not writable, or it holds another configuration
            (the keys that differ are named).
    """
    check_writable(directory, "hydra.run.dir")
    config_file = directory / CONFIG_FILE
    if not config_file.exists():
        # A kill can leave the lock and a configuration that was not yet whole.
        foreign = [path.name for path in directory.glob("*") if path.name != LOCK_FILE and path.name[0] != "."]
        if foreign:
            raise UserError(
                f"hydra.run.dir: {directory} holds files that are no run's ({foreign[0]}, …); "
                "choose an empty or a new directory"
            )
        return
    stored = read_stored_config(config_file)
    if stored is None:
        raise UserError(f"{config_file}: not readable as a configuration; move {directory} away or choose another")
    ours = flatten(config.identity())
    theirs = flatten(without_inert(stored))
    differing = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
    if differing:
        shown = ", ".join(f"{key} ({theirs.get(key)!r} there, {ours.get(key)!r} here)" for key in differing[:8])
        more = f" and {len(differing) - 8} more" if len(differing) > 8 else ""
        raise UserError(
            f"hydra.run.dir: {directory} holds a run of another configuration; differing: {shown}{more}; "
            "choose another directory"
        )


def read_stored_config(file: Path) -> dict[str, Any] | None:
    """What a run's ``config.yaml`` holds, as plain YAML; None where it is damaged."""
    try:
        stored = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
    return stored if isinstance(stored, dict) else None


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping by dotted key."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


@contextmanager
def exclusive(path: Path, busy: str, wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the kernel's lock on ``path``; it goes when the process does, however it ends.

    Args:
        busy: what it means that another process holds the lock.
        wait: called once a second while it does; None refuses at once.

    Raises:
        UserError: another process holds it and there is no waiting; its holder is named.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as handle:
        while not _try_lock(handle):
            if wait is None:
                handle.seek(0)
                raise UserError(f"{busy} ({handle.read().strip() or 'holder unknown'})")
            wait()
            time.sleep(1)
        handle.seek(0)
        handle.truncate()
        job = os.environ.get("SLURM_JOB_ID", "none")
        handle.write(f"host {socket.gethostname()}, pid {os.getpid()}, job {job}\n")
        handle.flush()
        yield


def _try_lock(handle: TextIO) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        problem = f"{handle.name}: no locks on this file system; choose another, or have it mounted with them"
        raise UserError(f"{problem} (Lustre: flock)") from None
    return True


@contextmanager
def own(directory: Path, config: Config) -> Iterator[None]:
    """Own ``directory`` for this run: check it, lock it, and record the configuration in it.

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
        if not (directory / CONFIG_FILE).exists():
            text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
            write_atomically(directory / CONFIG_FILE, text)
        yield
