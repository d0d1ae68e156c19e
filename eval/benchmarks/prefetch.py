"""Fetch the benchmarks' rows into a folder, on a node with a network.

python -m eval prefetch [eval=paper] [benchmarks=a,b] [data_dir=DIR] [prompts=true]

Writes <rows>.jsonl for each benchmark of eval=NAME (or of benchmarks=), NLTK's tokenizer for IFEval, with
prompts=true the published texts of the judges' prompts, and prefetch.json: what was fetched, from where and when.
What is there is not fetched again; what cannot be fetched is named, and the rest goes on. Exit code 2 if anything
is missing at the end.
"""

import ast
import hashlib
import io
import json
import re
import sys
import zipfile
from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from eval.benchmarks.definition import Benchmark, find_benchmarks
from eval.benchmarks.sources import FETCH_SECONDS, MissingData, data_hash, fetch, find_tokenizer, rows_file
from ogpsa.utils.command_line import Keys, read_pairs, yes_or_no
from ogpsa.utils.errors import EXIT_DONE, EXIT_USER_ERROR, UserError, report
from ogpsa.utils.files import build_folder, check_writable, read_json, write_atomically, write_json

RECORD = "prefetch.json"
# The published prompts. Of a Python file, its longest text is the prompt.
PROMPTS = {
    "strongreject_rubric": "https://raw.githubusercontent.com/alexandrasouly/strongreject/"
    "f7cad6c17e624e21d8df2278e918ae1dddb4cb56/strongreject/strongreject_evaluator_prompt.txt",
    "xstest_rubric": "https://raw.githubusercontent.com/paul-rottger/xstest/main/evaluation/classify_completions_gpt.py",
    "simpleqa_grader": "https://raw.githubusercontent.com/openai/simple-evals/main/simpleqa_eval.py",
}
# Tables as text, no pickles.
TOKENIZER = "https://raw.githubusercontent.com/nltk/nltk_data/gh-pages/packages/tokenizers/punkt_tab.zip"
TOKENIZER_FILES = ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt")


def main(arguments: Sequence[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return EXIT_DONE
    try:
        named: Keys = dict.fromkeys(("eval", "benchmarks", "data_dir"), _filled)
        given = read_pairs(arguments, {**named, "prompts": yes_or_no})
        benchmarks, folder = _wanted(given)
        check_writable(folder, "data_dir")
        missing = prefetch(benchmarks, folder)
        if given.get("prompts"):
            missing += fetch_prompts(folder / "prompts", PROMPTS)
    except UserError as error:
        return report(error)
    for line in missing:
        print(f"missing: {line}", file=sys.stderr, flush=True)
    return EXIT_USER_ERROR if missing else EXIT_DONE


def prefetch(benchmarks: Sequence[Benchmark], folder: Path) -> list[str]:
    """Fetch what is not in ``folder`` yet, say what happens with each benchmark, and return what is missing, by line.

    Raises:
        UserError: ``prefetch.json`` is damaged.
    """
    missing = []
    for benchmark in benchmarks:
        try:
            print(f"{benchmark.name}: {_prefetch_one(benchmark, folder)}", flush=True)
            if benchmark.source is not None and benchmark.source.convert == "ifeval":
                fetch_tokenizer(benchmark, folder)
        except MissingData as error:
            missing.append(str(error))
    return missing


def fetch_prompts(folder: Path, prompts: dict[str, str]) -> list[str]:
    """Write the published prompts that are not in ``folder`` yet and return what is missing, by line."""
    missing = []
    for judge, address in prompts.items():
        file = folder / f"{judge}.txt"
        if not file.is_file():
            try:
                with urlopen(address, timeout=FETCH_SECONDS) as answer:
                    text = answer.read().decode()
                write_atomically(file, longest_text(text) if address.endswith(".py") else text)
            except (OSError, ValueError, SyntaxError) as error:
                missing.append(f"{judge}: {address} cannot be fetched ({error})")
                continue
        print(f"{judge}: eval.judge.prompt_file.{judge}={file}", flush=True)
    return missing


def longest_text(code: str) -> str:
    """The longest string of a Python program, nothing of which is run; an f-string's fields are named in braces.

    Raises:
        SyntaxError: ``code`` is no Python.
    """
    return max((_text(node) for node in ast.walk(ast.parse(code))), key=len, default="")


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.FormattedValue):
        # completion, row.completion and row["completion"] are all {completion}.
        name: str = re.findall(r"\w+", ast.unparse(node.value))[-1]
        return f"{{{name}}}"
    return "".join(_text(part) for part in node.values) if isinstance(node, ast.JoinedStr) else ""


def _filled(text: str) -> str:
    if not text:
        raise ArgumentTypeError("found no value; expected KEY=VALUE")
    return text


def _wanted(given: dict[str, Any]) -> tuple[list[Benchmark], Path]:
    """The benchmarks that have a source, and the folder."""
    from ogpsa.app.compose import compose_config

    settings = compose_config([f"eval={given.get('eval', 'paper')}"]).eval
    benchmarks = find_benchmarks(given["benchmarks"].split(",") if "benchmarks" in given else settings.benchmarks)
    sourceless = [benchmark.name for benchmark in benchmarks if benchmark.source is None]
    if sourceless:
        raise UserError(f"benchmarks: nobody publishes the rows of {', '.join(sourceless)}")
    folder = given.get("data_dir", settings.data_dir)
    if folder is None:
        raise UserError(f"data_dir: eval={given['eval']} names no folder; give one")
    return benchmarks, Path(folder)


def _prefetch_one(benchmark: Benchmark, folder: Path) -> str:
    """Fetch one benchmark's rows if need be; what happened, in words."""
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
        raise UserError(f"{file}: not a record of what was fetched; delete it to have it made again")
    return record


def fetch_tokenizer(benchmark: Benchmark, folder: Path, address: str = TOKENIZER) -> None:
    """IFEval's English tokenizer; by hand, since NLTK's own downloader knows no proxies."""
    if find_tokenizer(folder):
        return
    try:
        with urlopen(address, timeout=FETCH_SECONDS) as answer, zipfile.ZipFile(io.BytesIO(answer.read())) as archive:
            files = {name: archive.read(f"punkt_tab/english/{name}") for name in TOKENIZER_FILES}
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise MissingData(benchmark.name, f"NLTK's punkt_tab cannot be fetched from {address} ({error})") from None
    with build_folder(folder / "nltk_data" / "tokenizers" / "punkt_tab" / "english") as place:
        for name, content in files.items():
            (place / name).write_bytes(content)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
