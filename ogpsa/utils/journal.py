"""Finished pieces of work, on disk one by one, for work that a kill must not undo."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ogpsa.utils.errors import UserError
from ogpsa.utils.files import write_atomically
from ogpsa.utils.system_errors import naming


class Journal:
    """One JSON object a line: first what the work rests on, then ``{key: piece}`` for each group of pieces.

    A line that a kill cut short is dropped. A journal whose stamp differs is started from the beginning. One that has
    several hard links is copied: under its other names it stays as it is.

    Args:
        stamp: what the pieces rest on, as JSON holds it.

    Attributes:
        pieces: everything kept so far.

    Raises:
        UserError: a whole line cannot be read.
    """

    def __init__(self, path: Path, stamp: Mapping[str, Any]) -> None:
        self.path = path
        self.pieces: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        found = path.read_bytes() if path.is_file() else b""
        whole = found[: found.rfind(b"\n") + 1]
        first, *lines = whole.split(b"\n")[:-1] or [b""]
        if _parsed(first) != dict(stamp):
            whole, lines = _line(stamp), []
        for number, line in enumerate(lines, start=2):
            pieces = _parsed(line)
            if pieces is None:
                raise UserError(
                    f"{path}:{number}: damaged, but not by a kill; delete the line to continue without its pieces"
                )
            self.pieces |= pieces
        if whole != found or path.stat().st_nlink > 1:
            write_atomically(path, whole)

    def keep(self, pieces: Mapping[str, Any]) -> None:
        """Write the pieces to disk, all or none."""
        line = memoryview(_line(pieces))
        # Not made anew where it was deleted: the stamp would be missing.
        with naming(self.path), self.path.open("r+b", buffering=0) as handle:
            end = handle.seek(0, os.SEEK_END)
            try:
                while line:
                    line = line[handle.write(line) :]
                os.fsync(handle.fileno())
            except OSError:
                handle.truncate(end)
                raise
        self.pieces |= pieces


def stamp_of(path: Path) -> dict[str, Any]:
    """The stamp of the journal at ``path``; empty if there is no journal."""
    if not path.is_file():
        return {}
    with path.open("rb") as lines:
        return _parsed(lines.readline()) or {}


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(value), ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
