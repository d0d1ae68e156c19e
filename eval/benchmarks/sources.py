"""A benchmark's rows, from a local file or from where the data set is published.

A local file ``<rows>.jsonl``, ``.json``, ``.csv``, ``.parquet`` or ``.txt`` holds our rows (``id``, ``prompt``,
``target``, as ``python -m eval prefetch`` writes them) or the data set's own ones. If there is such a file, nothing
else is read.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

from eval.benchmarks.converters import CONVERSIONS, ColumnError, Conversion, Row
from eval.benchmarks.definition import COLUMNS, Benchmark, Function, Source, check_rows
from ogpsa.data.readers import (
    FORMATS,
    errors_of_the_hub,
    parse_csv,
    parse_list,
    place,
    read_hub,
    read_table,
    reason_of_the_hub,
)
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import decoded
from ogpsa.utils.json_text import json_kind

# Instead of a hub id: rows that are not published, which that module makes with an attacker model.
MADE_HERE = "eval.benchmarks.attacks"
# Instead of a hub id: the part ``split`` of the data set ``config`` that a builder writes.
BUILT_HERE = "ogpsa.data"
BUILT = Path("outputs") / "data"
CODE_SWITCH = "HF_ALLOW_CODE_EVAL"
TOKENIZER = "tokenizers/punkt_tab/english/"
FETCH_SECONDS = 60
log = logging.getLogger("ogpsa.eval")


class MissingData(Exception):  # noqa: N818 - the data are missing, nothing went wrong
    """A benchmark's rows, or what scoring them needs, are unavailable; the other benchmarks can run."""

    def __init__(self, benchmark: str, reason: str) -> None:
        super().__init__(f"{benchmark}: {reason}")
        self.benchmark = benchmark


def load_rows(benchmark: Benchmark, folder: Path) -> list[Row]:
    """All rows of a benchmark, as ours: the texts ``id``, ``prompt``, ``target``, and what its task reads.

    Raises:
        MissingData: there is no file, and published rows cannot be fetched; or the benchmark needs what is not
            there: NLTK's tokenizer, or the permission to run code that the model writes.
        UserError: the file is no such benchmark's, or there is none and nobody publishes the rows.
    """
    _check_permission(benchmark)
    file = rows_file(benchmark, folder)
    if file is not None:
        rows = _ours(benchmark, read_table(file), file)
        if benchmark.source is not None and benchmark.source.count not in (None, len(rows)):
            log.warning("%s: %d rows; %s has %d", file, len(rows), benchmark.name, benchmark.source.count)
    elif benchmark.source is None:
        raise UserError(f"{folder / benchmark.rows}.jsonl: no such file")
    else:
        rows = fetch(benchmark)[0]
    place = file or folder / benchmark.rows
    check_rows(place, rows)
    for row in rows:
        if taken := [column for column in benchmark.taken_columns if column in row]:
            raise UserError(f"{place}: {taken[0]}: row '{row['id']}' has this column, which generations add; rename it")
        if not row["prompt"].strip():
            raise UserError(f"{place}: prompt: row '{row['id']}' has none")
        if benchmark.measures_loss and not row["target"].strip():
            raise UserError(f"{place}: target: row '{row['id']}' has none, and its loss is measured; leave the row out")
    _check_tokenizer(benchmark, rows, folder)
    return rows


def needs_brought(benchmark: Benchmark, folder: Path) -> bool:
    """Whether a benchmark that nobody publishes has no file in ``folder``, so that the run's own data bring its rows.

    A folder that is not there is a mistake in its name.
    """
    return benchmark.source is None and folder.is_dir() and rows_file(benchmark, folder) is None


def rows_file(benchmark: Benchmark, folder: Path) -> Path | None:
    """The local file of a benchmark's rows, in whichever format."""
    files = [folder / f"{benchmark.rows}{ending}" for ending in FORMATS]
    return next((file for file in files if file.is_file()), None)


def fetch(benchmark: Benchmark) -> tuple[list[Row], dict[str, Any]]:
    """A benchmark's rows from where they are published, and what was fetched: ``hub``, ``revision``, ….

    The hub's own cache keeps what was loaded, even by an interrupted fetch.

    Raises:
        MissingData: nobody publishes them, they are gated, the hub is out of reach, or the rows differ.
    """
    source = benchmark.source
    assert source is not None
    if source.hub == MADE_HERE:
        raise MissingData(
            benchmark.name,
            f"no file '{benchmark.rows}.jsonl' of jailbroken prompts in the data folder; make it once: "
            f"python -m eval attacks {source.config} --help",
        )
    if source.hub == BUILT_HERE and not built_file(source).is_file():
        raise MissingData(
            benchmark.name,
            f"no {built_file(source)}; make it once: python -m ogpsa.data build {source.config}",
        )
    try:
        published, revision = (
            (read_table(built_file(source)), None)
            if source.hub == BUILT_HERE
            else _download(source)
            if "://" in source.hub
            else read_hub(source.hub, source.config, source.split, source.revision)
        )
    except errors_of_the_hub() as error:
        raise MissingData(benchmark.name, _unreachable(source, error)) from None
    try:
        rows = _ours(benchmark, published, Path(source.hub))
    except UserError as error:
        raise MissingData(benchmark.name, str(error)) from None
    if source.count is not None and len(rows) != source.count:
        raise MissingData(
            benchmark.name, f"{source.hub}: {len(rows)} rows where the benchmark has {source.count}; not used"
        )
    return rows, {"hub": source.hub, "config": source.config, "split": source.split, "revision": revision}


def built_file(source: Source) -> Path:
    """The file in which one of our builders leaves the rows."""
    return BUILT / str(source.config) / f"{source.split}.jsonl"


def sample_rows(rows: Sequence[Row], limit: int | None, seed: int | None) -> list[Row]:
    """The first ``limit`` rows, or ``limit`` rows drawn by ``seed``, in their order.

    A row's place in the draw depends on its id and the seed alone, so that a larger limit keeps the rows of a smaller
    one and two benchmarks with the same ids draw the same.
    """
    if limit is None or limit >= len(rows):
        return list(rows)
    if seed is None:
        return list(rows[:limit])
    drawn = sorted(rows, key=lambda row: hashlib.sha256(f"{seed} {row['id']}".encode()).digest())[:limit]
    ids = {row["id"] for row in drawn}
    return [row for row in rows if row["id"] in ids]


def data_hash(rows: Iterable[Row]) -> str:
    """Sixteen hexadecimal digits over the rows, whatever file they came from."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()[:16]


def _ours(benchmark: Benchmark, table: Iterable[Row], file: Path) -> list[Row]:
    """Our rows, from a file that holds ours or the published ones, in values that JSON has.

    Raises:
        UserError: a column is missing or holds another kind of value.
    """
    rows = _converted(benchmark, iter(table), file)
    for number, row in enumerate(rows, start=1):
        for column, value in row.items():
            try:
                row[column] = _plain(value)
            except TypeError as error:
                raise UserError(
                    f"{place(file, number)}: {column}: found {error}; a row holds texts, numbers, lists and objects"
                ) from None
    return rows


def _plain(value: Any) -> Any:
    """A value as JSON has it; NaN, which is a missing cell of a table, as null.

    Raises:
        TypeError: names a value of another kind.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float() if not math.isinf(value):
            return None if math.isnan(value) else value
        case list() | tuple():
            return [_plain(entry) for entry in value]
        case dict():
            return {name: _plain(entry) for name, entry in value.items()}
    raise TypeError(json_kind(value))


def _converted(benchmark: Benchmark, table: Iterator[Row], file: Path) -> list[Row]:
    first = next(table, None)
    if first is None or benchmark.source is None:
        return [row for row in (first, *table) if row is not None]
    conversion = _conversion(benchmark.file, benchmark.source.convert)
    ours = set(COLUMNS) <= first.keys()
    expected = (*COLUMNS, *conversion.extra) if ours else conversion.columns
    if not ours and conversion.elsewhere and set(conversion.elsewhere) <= first.keys():
        expected = conversion.elsewhere
    absent = [column for column in expected if column not in first]
    if absent:
        raise UserError(
            f"{file}: no column {', '.join(absent)}; found {', '.join(first)}; a row of '{benchmark.name}' holds "
            f"{', '.join(conversion.columns)} as published, or {', '.join((*COLUMNS, *conversion.extra))}"
        )
    read = count(1)
    # Conversions read a row at a time, so that the last one read is the one at fault.
    rows = (row for row in chain([first], table) if next(read))
    # Jailbroken prompts are published in our own columns.
    convert = conversion.kept if ours and expected != conversion.columns else conversion.rows
    try:
        return list(convert(rows))
    except ColumnError as error:
        raise UserError(f"{place(file, next(read) - 1)}: {error}") from None
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{place(file, next(read) - 1)}: not the rows that '{benchmark.name}' publishes "
            f"({type(error).__name__}: {error})"
        ) from None


def _conversion(yaml: Path, name: str) -> Conversion:
    """Ours of this name, or one of a Python file beside the benchmark's YAML."""
    if name in CONVERSIONS:
        return CONVERSIONS[name]
    conversion = Function(yaml, name).load()
    if not isinstance(conversion, Conversion):
        raise UserError(f"{yaml}: metadata.source.convert: '{name}' is not a Conversion")
    return conversion


def _download(source: Source) -> tuple[list[Row], str]:
    """The rows of a single published file whose SHA-256 is the source's revision."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE and urlsplit(source.hub).scheme != "file":
        raise OSError("HF_HUB_OFFLINE is set")
    with urlopen(source.hub, timeout=FETCH_SECONDS) as answer:
        content: bytes = answer.read()
    found = hashlib.sha256(content).hexdigest()
    if source.revision not in (None, found):
        raise ValueError(f"the file's SHA-256 is {found}, not {source.revision}")
    ending = Path(urlsplit(source.hub).path).suffix
    if ending == ".json":
        return parse_list(decoded(content, source.hub, "JSON"), source.hub), found
    if ending != ".csv":
        raise ValueError("only .csv and .json files are read from an address")
    return [dict(row) for row in parse_csv(decoded(content, source.hub, "CSV"), source.hub)[1]], found


def _unreachable(source: Source, error: Exception) -> str:
    asked = f"; it is gated: ask for access at {source.gated}, then 'hf auth login'" if source.gated else ""
    return (
        f"no rows in the data folder, and {source.hub} cannot be fetched ({reason_of_the_hub(error)}){asked}; on a "
        "node with network: python -m eval prefetch"
    )


def _check_permission(benchmark: Benchmark) -> None:
    if benchmark.task.get("unsafe_code") and os.environ.get(CODE_SWITCH) != "1":
        raise MissingData(
            benchmark.name, f"it runs the code that the model writes, without a sandbox; {CODE_SWITCH}=1 allows that"
        )


def _check_tokenizer(benchmark: Benchmark, rows: list[Row], folder: Path) -> None:
    """Refuse rows that need NLTK's tokenizer where it is not, before lm-eval's module would go and fetch it."""
    needed = [(column, set(entries)) for column, entries in benchmark.tokenized.items()]
    if not any(entries & set(row.get(column, ())) for row in rows for column, entries in needed):
        return
    if not find_tokenizer(folder):
        raise MissingData(
            benchmark.name,
            f"it needs NLTK's punkt_tab, which is not in {folder / 'nltk_data'} or where NLTK looks; on a node with "
            f"network: python -m eval prefetch benchmarks={benchmark.name}",
        )


def find_tokenizer(folder: Path) -> bool:
    """Whether NLTK finds its tokenizer, the data folder's ``nltk_data`` included from now on."""
    import nltk

    place = str((folder / "nltk_data").resolve())
    if place not in nltk.data.path:
        nltk.data.path.insert(0, place)
    try:
        nltk.data.find(TOKENIZER)
    except LookupError:
        return False
    return True
