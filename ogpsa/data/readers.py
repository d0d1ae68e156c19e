"""Reading of rows: from a .jsonl, .json, .csv, .parquet or .txt file, or a data set of the hub."""

import csv
import io
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ogpsa.utils.errors import UserError, first_line
from ogpsa.utils.files import read_jsonl, read_text
from ogpsa.utils.json_text import json_kind, parse_json
from ogpsa.utils.network import UNREACHABLE, ask_hub

FORMATS = (".jsonl", ".json", ".csv", ".parquet", ".txt")
Row = dict[str, Any]
# What a .json file must hold.
LISTS = "a list of objects, or an object of such lists"
# Cell separators of spreadsheets' other exports.
SEPARATORS = (";", "\t", "|")
# Parts of a data set that are not for training.
HELD_OUT = {"test", "val", "valid", "validation", "dev", "eval", "evaluation", "heldout", "holdout"}


def ending(file: Path) -> str:
    """The ending that names a file's format: of rows.jsonl.gz, .jsonl."""
    return Path(file.stem if file.suffix == ".gz" else file).suffix.lower()


def read_table(file: Path) -> list[Row]:
    """The rows of a .json, .csv or .parquet file; of a .txt file, each line that says something as ``text``; of any
    other, one JSON object a line.

    A JSON object of lists is one list, each row with the name of its list as ``config``; a text in a list is a row
    whose only column has the list's name.

    Raises:
        UserError: the file is missing or not of the format that its ending says.
    """
    kind = ending(file)
    if kind == ".json":
        return parse_list(read_text(file, LISTS), file)
    if kind == ".txt":
        return [{"text": line} for line in read_text(file, "lines of text").splitlines() if line.strip()]
    if kind == ".csv":
        return [dict(row) for row in read_csv(file)[1]]
    if kind == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            rows: list[Row] = pyarrow.parquet.read_table(file).to_pylist()
        except FileNotFoundError:
            raise UserError(f"{file}: no such file") from None
        except (pyarrow.ArrowInvalid, UnicodeDecodeError) as error:
            raise UserError(f"{file}: not readable as Parquet ({error})") from None
        except OSError as error:
            # One of pyarrow's own, of a damaged page; the system's has a number.
            if error.errno is not None:
                raise
            raise UserError(f"{file}: not readable as Parquet ({first_line(error)}); fetch it again") from None
        return rows
    if kind in (".tsv", ".tab") and file.is_file():
        raise UserError(f"{file}: cells separated by tabs are not read; save it as CSV with commas, or as JSON lines")
    return read_jsonl(file)


def parse_list(text: str, file: Path | str) -> list[Row]:
    """The rows of a JSON text that holds a list of objects, or an object of such lists; ``file`` names it.

    Raises:
        UserError: it holds something else.
    """
    try:
        content = parse_json(text)
    except ValueError as error:
        lines = "; a file with an object a line is named .jsonl" if re.match(r"\s*\{.*\n\{", text) else ""
        raise UserError(f"{file}: not readable as JSON ({error}); expected {LISTS}{lines}") from None
    if isinstance(content, dict):
        content = [
            _named(name, row, isinstance(rows, list))
            for name, rows in content.items()
            for row in (rows if isinstance(rows, list) else [rows])
        ]
    if not isinstance(content, list):
        raise UserError(f"{file}: expected {LISTS}; found {json_kind(content)}")
    for number, row in enumerate(content, start=1):
        if not isinstance(row, dict):
            raise UserError(f"{file}: expected {LISTS}; row {number} is {json_kind(row)}")
    return content


def _named(name: str, row: Any, listed: bool) -> Any:
    """A row of the list called ``name``."""
    if isinstance(row, dict):
        return {"config": name, **row}
    return {name: row} if isinstance(row, str) and listed else row


def check_parts(rows: Iterable[Row], key: str, path: str) -> None:
    """Refuse rows of a file or list that also holds a part to be tested on.

    Raises:
        UserError: names ``key`` and the parts.
    """
    for column in ("split", "config"):
        parts = sorted({row[column] for row in rows if isinstance(row.get(column), str)})
        held_out = [part for part in parts if _is_held_out(part, parts)]
        if held_out and len(parts) > len(held_out):
            raise UserError(
                f"{key}: {path} holds the parts {', '.join(parts)}, and all of it would be trained on; keep the rows "
                f"of '{held_out[0]}' in another file"
            )


def _is_held_out(part: str, parts: Sequence[str]) -> bool:
    """Whether a part is for testing by its name, or by that of another one: ``test_sft`` beside ``train_sft``."""
    pieces = re.split(r"([\W_]+)", part.lower())
    twins = ("".join([*pieces[:at], "train", *pieces[at + 1 :]]) for at, word in enumerate(pieces) if word in HELD_OUT)
    return "".join(pieces[::2]) in HELD_OUT or not {one.lower() for one in parts}.isdisjoint(twins)


def with_input(instruction: str, row: Mapping[str, Any]) -> str:
    """An instruction with what stands in ``input``, as in Alpaca's form."""
    more = row.get("input")
    return f"{instruction}\n\n{more}" if isinstance(more, str) and more else instruction


def place(file: Path | str, number: int) -> str:
    """The place of a row by its number: its line, or its position in a file that has no lines."""
    listed = ending(Path(file)) in (".json", ".csv", ".parquet")
    return f"{file}: row {number}" if listed else f"{file}:{number}"


def read_csv(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Header and rows of a CSV file, every cell as it stands.

    Raises:
        UserError: as ``parse_csv``, or no such file.
    """
    return parse_csv(read_text(file, "CSV"), file)


def parse_csv(text: str, place: Path | str) -> tuple[list[str], list[dict[str, str]]]:
    """Header and rows of a text in CSV; ``place`` names it.

    Raises:
        UserError: it is not CSV, its cells are not separated by commas, a column occurs twice, or a row has another
            length than the header.
    """
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        header = next(reader, [])
        if header and re.match(r"\s*sep=", header[0], re.IGNORECASE):
            raise UserError(f"{place}:1: the line '{','.join(header)}' is a spreadsheet's own note; take it out")
        separator = next((sign for sign in SEPARATORS if len(header) == 1 and sign in header[0]), None)
        if separator is not None:
            raise UserError(f"{place}:1: the cells are separated by {separator!r}; save it with commas between them")
        for cells in reader:
            if cells and len(cells) != len(header):
                raise UserError(f"{place}:{reader.line_num}: {len(cells)} cells; the header has {len(header)}")
            if cells:
                rows.append(dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise UserError(f"{place}:{reader.line_num}: not readable as CSV: {error}") from None
    doubled = [column for column in header if header.count(column) > 1]
    if doubled:
        raise UserError(f"{place}: the column '{doubled[0]}' occurs twice")
    return header, rows


def read_hub(
    hub: str, config: str | None, split: str, revision: str | None, data_dir: str | None = None
) -> tuple[Iterable[Row], str | None]:
    """The rows of a data set on the hub, in a folder laid out like one or in a JSON file at an address, its revision.

    Of several configurations, ``a, b``, each row names its own as ``config``.

    Raises:
        Exception: one of ``errors_of_the_hub``.
    """
    import datasets
    from huggingface_hub import HfApi

    if "://" in hub:
        datasets.disable_progress_bars()
        return datasets.load_dataset("json", data_files=hub, split=split), revision
    if not Path(hub).is_dir():
        ask_hub()
    if not Path(hub).is_dir() and revision is None:
        revision = HfApi().dataset_info(hub).sha
    datasets.disable_progress_bars()
    names = [name.strip() for name in (config or "").split(",")]
    parts = [
        datasets.load_dataset(hub, name or None, data_dir=data_dir, split=split, revision=revision) for name in names
    ]
    if len(names) == 1:
        return parts[0], revision
    return ({"config": name, **row} for name, part in zip(names, parts, strict=True) for row in part), revision


def errors_of_the_hub() -> tuple[type[Exception], ...]:
    """Errors that leave no rows: no network, no access, no such data set, configuration or split."""
    import httpx2
    from datasets.exceptions import DatasetsError

    # The hub's client passes on the errors of its HTTP client. A row that cannot be read has an error of its own.
    return (*UNREACHABLE, httpx2.HTTPError, DatasetsError)


def reason_of_the_hub(error: Exception) -> str:
    """The first line of one of these errors; of a row that cannot be read, of what is wrong with it."""
    from datasets.exceptions import DatasetGenerationError

    told = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
    return first_line(told).rstrip(".")
