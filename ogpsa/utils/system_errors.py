"""Refusals of the operating system (space, permission, links, locks) as one line each, whatever raised them.

Libraries report the same refusal in words of their own: ``OSError``, ``SafetensorError`` (``os error 28``), torch's
``PytorchStreamWriter``, sqlite's ``database or disk is full``. Nothing is asked of the disk: by the time it could
answer, a file that was given up has made room again.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ogpsa.utils.errors import UserError

ROOM = "make room and give the same command again"
NO_SPACE = {
    errno.ENOSPC: "no space left on the disk",
    errno.EDQUOT: "the quota of disk space is used up",
    errno.EFBIG: "a file larger than the system allows (ulimit -f)",
}
# Libraries' words for the numbers above; torch's writer has none but that it failed.
WORDS = {
    r"os error 28\b|Errno 28\b|No space left on device|database or disk is full|Not enough disk space": errno.ENOSPC,
    r"os error 122\b|Errno 122\b|Disk quota exceeded": errno.EDQUOT,
    r"os error 27\b|Errno 27\b|File too large": errno.EFBIG,
    r"PytorchStreamWriter failed|file write failed|basic_ios::clear: iostream error": errno.ENOSPC,
    r"attempt to write a readonly database|unable to open database file": errno.EACCES,
    r"os error 13\b|\(os error 1\)|Permission denied": errno.EACCES,
    r"os error 30\b|Read-only file system": errno.EROFS,
    r"does not appear to support flock|No locks available": errno.ENOLCK,
    r"os error 5\b|Input/output error": errno.EIO,
}
# Of safetensors and sqlite, by name: neither is imported for it.
LIBRARY_ERRORS = {"SafetensorError", "OperationalError", "DatabaseError"}
OTHERS = {
    errno.ELOOP: "a link that leads back to itself; name the folder or file itself",
    errno.ENAMETOOLONG: "a name longer than the file system allows; choose a shorter one",
    errno.ENOLCK: "no locks on this file system; choose another, or have it mounted with them (Lustre: flock)",
    errno.EROFS: "on a file system that is mounted read-only; choose another place",
    errno.EIO: "the disk failed to read or write (input/output error); give the same command again, or move to another",
    errno.ESTALE: "no longer there for this machine (stale file handle); give the same command again",
    errno.EMFILE: "more open files than the system allows; raise ulimit -n",
    errno.ENFILE: "more open files than the system allows; close other programs",
    errno.EBUSY: "in use by the system; give the same command again",
}


def refusal(error: BaseException, where: Path | None = None) -> UserError | None:
    """The system's refusal behind an error, as a user's mistake; None for any other failure.

    Args:
        where: the folder that was being written, for libraries that do not name the file.
    """
    for one in _chain(error):
        if "No usable temporary directory" in str(one):
            return UserError(f"TMPDIR: no folder for temporary files can be written; {ROOM}, or name another")
        number = _number(one)
        if number is None:
            continue
        path = _path(one) or where
        named = f"{path}: " if path else ""
        if number in NO_SPACE:
            return UserError(f"{named}{NO_SPACE[number]}; {ROOM}")
        if number in (errno.EACCES, errno.EPERM):
            return UserError(f"{named}{_permission(path)}")
        if number in OTHERS:
            return UserError(f"{named}{OTHERS[number]}")
        if path is not None and (problem := _wrong_kind(path, number)):
            return UserError(f"{named}{problem}")
    return None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put ``path`` into what the system refuses meanwhile: a write that fails names no file."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those that it came of, the nearest first."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop(0)
        if one is None or one in seen:
            continue
        seen.append(one)
        yield one
        members = one.exceptions if isinstance(one, BaseExceptionGroup) else ()
        waiting += [*members, one.__cause__, None if one.__suppress_context__ else one.__context__]


def _number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        # A connection's error does not concern a file.
        return None if isinstance(error, ConnectionError | TimeoutError) else error.errno
    if not isinstance(error, OSError | RuntimeError) and type(error).__name__ not in LIBRARY_ERRORS:
        # Its text may speak of such things without being one.
        return None
    text = str(error)
    return next((number for words, number in WORDS.items() if re.search(words, text)), None)


def _path(error: BaseException) -> Path | None:
    if not isinstance(error, OSError):
        return None
    # Of a renaming, the second is where it was to go.
    name = error.filename2 if error.filename2 is not None else error.filename
    return Path(os.fsdecode(name)) if isinstance(name, str | bytes | os.PathLike) else None


def _permission(path: Path | None) -> str:
    if path is None:
        return "no permission; choose another place, or have it opened to you (chmod)"
    place = next((one for one in [path, *path.absolute().parents] if os.path.lexists(one)), path)
    at = "" if place == path else f" on {place}"
    if place == path and place.is_file() and not os.access(place, os.R_OK):
        return "no permission to read it; have it opened to you (chmod a+r), or name another"
    return f"no permission to read or write{at or ' it'}; choose another place, or have it opened to you (chmod)"


def absent(path: Path) -> str:
    """Why there is nothing at ``path``: no such file, or a link on the way that leads nowhere."""
    return _wrong_kind(path, errno.ENOENT) or "no such file"


def _wrong_kind(path: Path, number: int) -> str | None:
    """A file in place of a folder, the reverse, or a link to nothing."""
    for place in [*reversed(path.absolute().parents), path.absolute()]:
        if place.is_symlink() and not place.exists():
            it = "a link" if place == path.absolute() else f"{place} is a link"
            return f"{it} to {place.readlink()}, which is not there; mend the link, or name another"
        if number in (errno.ENOTDIR, errno.EEXIST) and place.is_file():
            it = "a file" if place == path.absolute() else f"lies below {place}, which is a file"
            return f"{it}; expected a folder; choose another place"
    if number == errno.EISDIR:
        return "a folder; expected a file"
    return None
