"""Files that are whole or not there, and locks."""

import errno
import fcntl
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TextIO

from ogpsa.utils.errors import UserError
from ogpsa.utils.refusals import NO_SPACE, absent, naming

COMPLETE_FILE = "COMPLETE.json"
# Bytes; where they cannot be written nothing can go on.
FULL_DISK = 1 << 20
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
    try:
        with naming(path), temporary.open("wb") as handle:
            handle.write(content.encode() if isinstance(content, str) else content)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


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
        raise UserError(f"{path}: {absent(path)}") from None
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
        raise UserError(f"{path}: {absent(path)}") from None
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


def mark_complete(folder: Path, facts: Mapping[str, Any]) -> None:
    """Declare ``folder`` whole. Call it after everything else in it is on disk."""
    _share(folder)
    write_json(folder / COMPLETE_FILE, dict(facts))


def _share(folder: Path) -> None:
    """Let others read the files of a folder as the umask says; safetensors keeps its own from them."""
    umask = int(
        re.findall(r"^Umask:\s*(\d+)$", Path("/proc/self/status").read_text(encoding="utf-8"), flags=re.M)[0], 8
    )
    for file in folder.rglob("*"):
        if not file.is_symlink() and file.is_file() and file.stat().st_uid == os.geteuid():
            file.chmod(file.stat().st_mode | (0o666 & ~umask))


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
