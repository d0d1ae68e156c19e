"""Joins the sessions of each W&B run for ``slurm/sync_wandb.sh``, so that no session overwrites another.

A run that is requeued leaves a folder a session, all with one id, and ``wandb sync`` uploads each from the beginning
of the run's history. Here the sessions' files become one file, in the order of their start: all rows of their
histories, steps that a later session trained again as that one logged them, and the last session's state.

A file of W&B's begins with 7 bytes; then come blocks of 32 KB of LevelDB's log format: a checksum (4 bytes), a length
(2), a kind (1: whole, 2: first, 3: middle, 4: last part) and the bytes of a protobuf record.
"""

import json
import shutil
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as messages

from ogpsa.runs.tracking import ask_server, reason
from ogpsa.utils.command_line import Parser, run_program
from ogpsa.utils.errors import EXIT_DONE, UserError
from ogpsa.utils.files import build_folder
from ogpsa.utils.network import UNREACHABLE

HEADER = b":W&B\xe1\xbe\x00"
BLOCK, PART = 32768, struct.Struct("<IHB")
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4
# Records that a session followed by another loses: its own start and end.
SESSION = ("run", "header", "footer", "exit", "final", "preempting")
# Keys that identify a history's row when its step is trained again.
STEP, STAGE = "train/global_step", "train/stage"
JOINED = ".joined"
Record = Any  # protobuf's classes are made at run time
RECORD: Record = vars(messages)["Record"]


def read_records(file: Path) -> list[Record]:
    """The records of a W&B file; one that a kill cut short ends with its last whole one.

    Raises:
        ValueError: it is not such a file.
    """
    data = file.read_bytes()
    if not data.startswith(HEADER[:4]):
        raise ValueError(f"{file}: no file of W&B's")
    return [RECORD.FromString(content) for content in _contents(data)]


def _contents(data: bytes) -> Iterator[bytes]:
    place, content = len(HEADER), b""
    while place + PART.size <= len(data):
        left = BLOCK - place % BLOCK
        if left < PART.size:
            place += left
            continue
        checksum, length, kind = PART.unpack_from(data, place)
        part = data[place + PART.size : place + PART.size + length]
        if zlib.crc32(part, zlib.crc32(bytes([kind]))) != checksum:
            return
        place += PART.size + length
        content = part if kind in (WHOLE, FIRST) else content + part
        if kind in (WHOLE, LAST):
            yield content


def write_records(file: Path, records: Sequence[Record]) -> None:
    """Write records as a W&B file."""
    data = bytearray(HEADER)
    for number, record in enumerate(records, start=1):
        record.num = number
        content, begun = record.SerializeToString(), False
        while True:
            left = BLOCK - len(data) % BLOCK
            if left < PART.size:
                data += bytes(left)
                continue
            part, content = content[: left - PART.size], content[left - PART.size :]
            kind = (MIDDLE if content else LAST) if begun else (FIRST if content else WHOLE)
            data += PART.pack(zlib.crc32(part, zlib.crc32(bytes([kind]))), len(part), kind) + part
            begun = True
            if not content:
                break
    file.write_bytes(data)


def join(sessions: Sequence[Sequence[Record]]) -> list[Record]:
    """One run's records out of its sessions', in the order of their start."""
    joined = [record for record in sessions[-1] if record.WhichOneof("record_type") in ("header", "run")]
    for record in joined:
        if record.WhichOneof("record_type") == "run":
            # Its upload begins with the history's first row.
            record.run.resumed = record.run.resume = False
    ended = [record for record in sessions[-1] if record.WhichOneof("record_type") in ("exit", "final", "footer")]
    again: list[set[tuple[str, str]]] = [set() for _ in sessions]
    for place in range(len(sessions) - 1, 0, -1):
        again[place - 1] = again[place] | {key for record in sessions[place] if (key := _step(record))}
    row, before, latest = 0, 0.0, 0.0
    for session, repeated in zip(sessions, again, strict=True):
        before += latest
        for record in session:
            kind = record.WhichOneof("record_type")
            if kind in SESSION or (kind == "history" and _step(record) in repeated):
                continue
            if kind == "history":
                latest = _place(record, row, before) - before
                row += 1
            joined.append(record)
    return [*joined, *ended]


def _items(record: Record) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): item for item in record.history.item}


def _step(record: Record) -> tuple[str, str] | None:
    """Stage and step of a history's row, as JSON holds them; None where it is of no step."""
    if record.WhichOneof("record_type") != "history":
        return None
    items = _items(record)
    if STEP not in items:
        return None
    return (items[STAGE].value_json if STAGE in items else "", items[STEP].value_json)


def _place(record: Record, row: int, before: float) -> float:
    """Make a history's row the run's ``row``, ``before`` seconds of earlier sessions later, and return its time."""
    record.history.step.num = row
    items, seconds = _items(record), before
    if "_step" in items:
        items["_step"].value_json = json.dumps(row)
    if "_runtime" in items:
        seconds += float(json.loads(items["_runtime"].value_json))
        items["_runtime"].value_json = json.dumps(seconds)
    return seconds


def uploads(directory: Path) -> list[tuple[Path, list[Path]]]:
    """Folders to upload below ``directory``, each with the sessions that it holds; what is uploaded is left out."""
    groups: dict[tuple[str, str, str], list[Path]] = {}
    for folder in sorted(directory.rglob("offline-run-*")):
        if folder.is_dir() and JOINED not in folder.parts:
            groups.setdefault(_run_of(folder), []).append(folder)
    found = []
    for sessions in groups.values():
        # A mirror that was rebuilt from the run's files has all of it.
        rebuilt = [folder for folder in sessions if folder.parent.parent.name == ".mirror"]
        if len(sessions) == 1 or rebuilt:
            found.append(((rebuilt or sessions)[-1], sessions))
        else:
            found.append((_joined(sorted(sessions, key=lambda folder: folder.name)), sessions))
    return found


def _run_of(folder: Path) -> tuple[str, str, str]:
    """Entity, project and id of a session's run; one that cannot be read stands alone."""
    try:
        for record in read_records(_file(folder)):
            if record.WhichOneof("record_type") == "run":
                return record.run.entity, record.run.project, record.run.run_id
    except (OSError, ValueError):
        pass
    return "", "", str(folder)


def _file(folder: Path) -> Path:
    return next(iter(sorted(folder.glob("*.wandb"))), folder / "run.wandb")


def _joined(sessions: Sequence[Path]) -> Path:
    """A folder with the joined sessions, rebuilt if one of them has grown."""
    target = sessions[-1].parent / JOINED / sessions[-1].name
    files = [_file(session) for session in sessions]
    made = _file(target)
    if not made.is_file() or any(file.stat().st_mtime >= made.stat().st_mtime for file in files):
        with build_folder(target) as folder:
            for session in sessions:
                shutil.copytree(session / "files", folder / "files", dirs_exist_ok=True)
            write_records(folder / files[-1].name, join([read_records(file) for file in files]))
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    """Print, each followed by a zero byte and each group by an empty word, a folder to upload and its sessions.

    Raises:
        UserError: there are some, but W&B's server cannot be reached.
    """
    parser = Parser(prog="python -m slurm.wandb_sessions", description="What there is to upload to W&B.")
    parser.add_argument("directory", metavar="DIR", type=Path)
    found = uploads(parser.parse_args(arguments).directory)
    if found:
        try:
            ask_server()
        except UNREACHABLE as error:
            raise UserError(
                f"W&B cannot be reached ({reason(error)}); type this where there is a network, with a key that it knows"
            ) from None
    for folder, sessions in found:
        sys.stdout.write("\0".join([*map(str, (folder, *sessions)), "", ""]))
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(run_program(main))
