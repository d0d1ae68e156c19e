"""Rows from where they lie: a .jsonl, .json, .csv or .parquet file, or a data set of the hub."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ogpsa.utils.errors import UserError
from ogpsa.utils.files import read_json, read_jsonl
from ogpsa.utils.network import ask_hub

FORMATS = (".jsonl", ".json", ".csv", ".parquet")
Row = dict[str, Any]


def read_table(file: Path) -> list[Row]:
    """The rows of a .jsonl, .json, .csv or .parquet file.

    A JSON object of lists is one list, each row with the name of its list as ``config``.

    Raises:
        UserError: the file is not of the format that its ending says.
    """
    if file.suffix == ".jsonl":
        return read_jsonl(file)
    if file.suffix == ".json":
        content = read_json(file)
        if isinstance(content, dict):
            content = [
                {"config": name, **row} if isinstance(row, dict) else row
                for name, rows in content.items()
                for row in (rows if isinstance(rows, list) else [rows])
            ]
        if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
            raise UserError(f"{file}: expected a list of objects, or an object of such lists")
        return content
    if file.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            rows: list[Row] = pyarrow.parquet.read_table(file).to_pylist()
        except pyarrow.ArrowInvalid as error:
            raise UserError(f"{file}: not readable as Parquet ({error})") from None
        return rows
    try:
        with file.open(encoding="utf-8-sig", newline="") as handle:
            return list(csv.DictReader(handle, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not readable as CSV ({error})") from None


def read_hub(hub: str, config: str | None, split: str, revision: str | None) -> tuple[Iterable[Row], str | None]:
    """The rows of a data set on the hub, or in a folder laid out like one, and its revision.

    Of several configurations, ``a, b``, each row names its own as ``config``.

    Raises:
        Exception: one of ``errors_of_the_hub``.
    """
    import datasets
    from huggingface_hub import HfApi

    if not Path(hub).is_dir():
        ask_hub()
    if not Path(hub).is_dir() and revision is None:
        revision = HfApi().dataset_info(hub).sha
    datasets.disable_progress_bars()
    names = [name.strip() for name in (config or "").split(",")]
    parts = [datasets.load_dataset(hub, name or None, split=split, revision=revision) for name in names]
    if len(names) == 1:
        return parts[0], revision
    return ({"config": name, **row} for name, part in zip(names, parts, strict=True) for row in part), revision


def errors_of_the_hub() -> tuple[type[Exception], ...]:
    """What there is instead of rows: no network, no access, no such data set, configuration or split."""
    import httpx2

    # The hub's client lets those of its own client through.
    return (OSError, ValueError, httpx2.HTTPError)
