"""Fetching of the benchmarks' rows and of what scoring them needs; ``prefetch.json`` says what was fetched."""

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from eval.benchmarks.definition import Benchmark
from eval.benchmarks.sources import (
    BUILT_HERE,
    FETCH_SECONDS,
    MissingData,
    built_file,
    data_hash,
    fetch,
    find_tokenizer,
    rows_file,
)
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import build_folder, read_json, write_atomically, write_json
from ogpsa.utils.network import UNREACHABLE

RECORD = "prefetch.json"
# Tables as text, no pickles.
TOKENIZER = "https://raw.githubusercontent.com/nltk/nltk_data/gh-pages/packages/tokenizers/punkt_tab.zip"
TOKENIZER_FILES = ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt")


def prefetch(benchmarks: Sequence[Benchmark], folder: Path) -> list[str]:
    """Fetch what is not in ``folder`` yet, report on each benchmark, and return what is missing, one line each.

    Raises:
        UserError: ``prefetch.json`` is damaged.
    """
    missing = []
    for benchmark in benchmarks:
        try:
            print(f"{benchmark.name}: {_prefetch_one(benchmark, folder)}", flush=True)
            if benchmark.tokenized:
                fetch_tokenizer(benchmark, folder)
        except MissingData as error:
            missing.append(str(error))
    return missing


def _prefetch_one(benchmark: Benchmark, folder: Path) -> str:
    """Fetch one benchmark's rows if needed; returns what happened, in words."""
    source = benchmark.source
    assert source is not None
    record = _record(folder)
    file = rows_file(benchmark, folder)
    if file is not None and benchmark.rows not in record:
        return f"{file} is there and is not ours to replace"
    if file is not None:
        known = record[benchmark.rows]
        if known["source"] == asdict(source) and known["sha256"] == _sha256(file.read_bytes()):
            return f"{file} is there, {known['rows']} rows"
    rows, fetched = fetch(benchmark)
    if source.hub == BUILT_HERE:
        # Not copied: a copy would be out of date after the next build.
        return f"{built_file(source)} is there, {len(rows)} rows"
    target = folder / f"{benchmark.rows}.jsonl"
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    entry = {
        **fetched, "rows": len(rows), "data_hash": data_hash(rows), "sha256": _sha256(content.encode()),
        "licence": source.licence, "date": datetime.now(UTC).date().isoformat(), "source": asdict(source),
    }  # fmt: skip
    # The record first: a kill between the two leaves an entry without its file, which is fetched again.
    write_json(folder / RECORD, {**record, benchmark.rows: entry})
    write_atomically(target, content)
    return f"{target}, {len(rows)} rows of {source.hub} at {fetched['revision'] or 'no revision'}"


def _record(folder: Path) -> dict[str, Any]:
    file = folder / RECORD
    if not file.is_file():
        return {}
    record = read_json(file)
    if not isinstance(record, dict):
        raise UserError(f"{file}: not a record of what was fetched; delete it to recreate it")
    return record


def fetch_tokenizer(benchmark: Benchmark, folder: Path, address: str = TOKENIZER) -> None:
    """Fetch NLTK's English tokenizer without NLTK's own downloader, which ignores proxies."""
    if find_tokenizer(folder):
        return
    try:
        with urlopen(address, timeout=FETCH_SECONDS) as answer, zipfile.ZipFile(io.BytesIO(answer.read())) as archive:
            files = {name: archive.read(f"punkt_tab/english/{name}") for name in TOKENIZER_FILES}
    except (*UNREACHABLE, KeyError, zipfile.BadZipFile) as error:
        raise MissingData(benchmark.name, f"NLTK's punkt_tab cannot be fetched from {address} ({error})") from None
    with build_folder(folder / "nltk_data" / "tokenizers" / "punkt_tab" / "english") as place:
        for name, content in files.items():
            (place / name).write_bytes(content)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
