"""Files that are complete or absent, and locks."""

import errno
import fcntl
import gzip
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TextIO

from ogpsa.utils.errors import UserError
from ogpsa.utils.json_text import json_kind, parse_json
from ogpsa.utils.system_errors import NO_SPACE, absent, naming

log = logging.getLogger(__name__)

COMPLETE_FILE = "COMPLETE.json"
# Below a folder that is declared whole, but removed once it is.
CHECKPOINTS = "checkpoints"
# How ``write_atomically`` and ``build_folder`` name what they have not finished: .NAME.PID
UNFINISHED = re.compile(r"\..+\.\d+")
BYTE_ORDER_MARK = "\ufeff"
# First bytes of files that are not text.
PACKED = {
    b"\x1f\x8b": "compressed by gzip: unpack it by gunzip",
    b"BZh": "compressed by bzip2: unpack it by bunzip2",
    b"\xfd7zXZ\0": "compressed by xz: unpack it by unxz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd: unpack it by unzstd",
    b"PK\x03\x04": "a zip archive or a spreadsheet: unpack it, or export it as CSV",
    b"PAR1": "Parquet: name it .parquet",
}
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
    """Parse a JSON file that this suite wrote.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return parse_json(read_text(path, "JSON"))
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON ({error}); delete it to recreate it") from None


def to_jsonl(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    write_atomically(path, to_jsonl(rows))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Parse a file of one JSON object a line; a mark of byte order and empty lines at the end are not rows.

    Raises:
        UserError: the file is missing or no UTF-8, or a line is no JSON object (named by its number).
    """
    expected = "one JSON object a line"
    # Not splitlines, which also cuts at separators that JSON allows inside a text.
    lines = read_text(path, expected).split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    rows = []
    for number, line in enumerate(lines, start=1):
        problem, row = "the line is empty", None
        try:
            if line.strip():
                row = parse_json(line.removeprefix(BYTE_ORDER_MARK))
                problem = f"found {json_kind(row)}"
        except json.JSONDecodeError as error:
            problem = f"{error.msg} at column {error.colno}"
        except ValueError as error:
            raise UserError(f"{path}:{number}: {error}") from None
        if not isinstance(row, dict):
            if number == 1 and line.startswith("["):
                problem = "a JSON list is read from a file that is named .json"
            raise UserError(f"{path}:{number}: not a JSON object; expected {expected} ({problem})")
        rows.append(row)
    return rows


def read_text(path: Path, expected: str) -> str:
    """The text of a UTF-8 file, without its mark of byte order; one that is named .gz is unpacked.

    Args:
        expected: what the file should hold, for messages to the user.

    Raises:
        UserError: the file is missing, compressed, in another encoding, or holds NUL.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: {absent(path)}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder; expected a file of {expected}") from None
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path}: not readable as gzip ({error}); fetch it again") from None
    return decoded(content, path, expected)


def decoded(content: bytes, place: Path | str, expected: str) -> str:
    """The text of a UTF-8 file's bytes, without its mark of byte order; ``place`` names the file.

    Raises:
        UserError: as ``read_text``.
    """
    refused = f"{place}: not a UTF-8 text file; expected {expected}"
    for beginning, packed in PACKED.items():
        if content.startswith(beginning):
            raise UserError(f"{refused} ({packed})")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:4]:
        raise UserError(f"{refused} (UTF-16 or UTF-32: save it as UTF-8, for example by iconv -f UTF-16 -t UTF-8)")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The decoder counts from behind the mark.
        at = error.start + len(content) - len(error.object)
        line = content.count(b"\n", 0, at) + 1
        hint = "save it as UTF-8, for example by iconv -f WINDOWS-1252 -t UTF-8"
        raise UserError(f"{refused} (line {line} holds the byte 0x{content[at]:02X}: {hint})") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{refused} (line {line} holds the character NUL: take it out)")
    return text


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal; an unchanged file is read once per process."""
    found = path.stat()
    return _hash_file(path, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@cache
def _hash_file(path: Path, *state: int) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_files(paths: Iterable[Path]) -> dict[Path, str]:
    """``hash_file`` of each, several at a time: weights are many gigabytes."""
    found = list(paths)
    with ThreadPoolExecutor() as pool:
        return dict(zip(found, pool.map(hash_file, found), strict=True))


def mark_complete(folder: Path, facts: Mapping[str, Any]) -> None:
    """Declare ``folder`` whole, with the size and the hash of each file; call it after all of them are on disk."""
    _share(folder)
    hashes = hash_files(_lasting_files(folder))
    files = {str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": hashes[path]} for path in hashes}
    write_json(folder / COMPLETE_FILE, {**facts, "files": files})


def _lasting_files(folder: Path) -> list[Path]:
    inside = {path: path.relative_to(folder).parts for path in sorted(folder.rglob("*")) if path.is_file()}
    return [
        path
        for path, parts in inside.items()
        if parts != (COMPLETE_FILE,) and parts[0] != CHECKPOINTS and not any(part.startswith(".") for part in parts)
    ]


def _share(folder: Path) -> None:
    """Let others read the files of a folder as the umask says; safetensors keeps its own from them."""
    # There is no other way to read it than to set it.
    os.umask(umask := os.umask(0o077))
    for file in folder.rglob("*"):
        if not file.is_symlink() and file.is_file() and file.stat().st_uid == os.geteuid():
            file.chmod(file.stat().st_mode | (0o666 & ~umask))


def is_complete(folder: Path) -> bool:
    """Whether ``folder`` was declared whole."""
    return (folder / COMPLETE_FILE).is_file()


def find_damage(folder: Path, contents: bool) -> str | None:
    """The first file of a complete folder that is not as it was declared, and how; None if all are.

    Args:
        contents: compare hashes too, which reads every byte; sizes alone tell a file that was cut short.
    """
    try:
        files = read_json(folder / COMPLETE_FILE).get("files", {})
        for name, declared in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if (size := path.stat().st_size) != declared["bytes"]:
                return f"{name} has {size} of {declared['bytes']} bytes"
    except (UserError, AttributeError, TypeError, KeyError):
        return f"{COMPLETE_FILE} is damaged"
    hashes = hash_files(folder / name for name in files) if contents else {}
    changed = (name for name in files if contents and hashes[folder / name] != files[name]["sha256"])
    return next((f"{name} has other content than was written" for name in changed), None)


def is_undamaged(folder: Path) -> bool:
    """Whether ``folder`` was declared whole and still has every file as it was declared, hashes included."""
    return is_complete(folder) and find_damage(folder, contents=True) is None


def remove_unfinished(directory: Path) -> None:
    """Remove what killed processes left half written below a directory that this process alone works in."""
    for place, folders, files in os.walk(directory):
        for name in filter(UNFINISHED.fullmatch, files):
            (Path(place) / name).unlink(missing_ok=True)
        for name in filter(UNFINISHED.fullmatch, list(folders)):
            shutil.rmtree(Path(place) / name, ignore_errors=True)
            folders.remove(name)


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
    """Hold the kernel's lock on ``path``; the kernel releases it when the process ends, however it ends.

    Args:
        busy: what it means that another process holds the lock.
        wait: called once a second meanwhile; after a second the log says for whom. None refuses at once.

    Raises:
        UserError: another process holds it and there is no waiting; its holder is named.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as handle:
        for seconds in count():
            if _try_lock(handle):
                break
            handle.seek(0)
            held = f"{busy} ({handle.read().strip() or 'holder unknown'})"
            if wait is None:
                raise UserError(held)
            if seconds == 1:
                log.warning("waiting: %s", held)
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
