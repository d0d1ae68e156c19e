"""Finished pieces of work, on disk one by one, for work that a kill must not undo."""

import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from ogpsa.utils.errors import UserError
from ogpsa.utils.files import write_atomically
from ogpsa.utils.system_errors import naming


class Journal:
    """One JSON object a line: first what the work rests on, then ``{key: piece}`` for each group of pieces.

    The file is read, or begun, when it is first needed. A line that a kill cut short is dropped. A journal whose stamp
    differs is started from the beginning. One that has several hard links is copied: under its other names it stays as
    it is.

    Args:
        stamp: what the pieces rest on, as JSON holds it.
    """

    def __init__(self, path: Path, stamp: Mapping[str, Any]) -> None:
        self.path = path
        self._stamp = dict(stamp)

    @cached_property
    def pieces(self) -> dict[str, Any]:
        """Everything kept so far.

        Raises:
            UserError: a whole line cannot be read.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        found = self.path.read_bytes() if self.path.is_file() else b""
        whole = found[: found.rfind(b"\n") + 1]
        first, *lines = whole.split(b"\n")[:-1] or [b""]
        if _parsed(first) != self._stamp:
            whole, lines = _line(self._stamp), []
        kept: dict[str, Any] = {}
        for number, line in enumerate(lines, start=2):
            pieces = _parsed(line)
            if pieces is None:
                raise UserError(
                    f"{self.path}:{number}: damaged, but not by a kill; delete the line to continue without its pieces"
                )
            kept |= pieces
        if whole != found or self.path.stat().st_nlink > 1:
            write_atomically(self.path, whole)
        return kept

    def keep(self, pieces: Mapping[str, Any]) -> None:
        """Write the pieces to disk, all or none.

        Raises:
            UserError: as ``pieces``.
        """
        kept, line = self.pieces, memoryview(_line(pieces))
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
        kept |= pieces


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
