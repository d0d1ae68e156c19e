"""Which prompts occur twice: exactly after normalisation, or nearly, between files that must not share any.

Near duplicates are found by an exact set-similarity join over character shingles with prefix and length filters
(Bayardo, Ma & Srikant, WWW 2007): no pair above the threshold is missed.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from ogpsa.data.conversations import users_turns
from ogpsa.data.readers import FORMATS, Row, ending, read_table, with_input
from ogpsa.utils.errors import Problems, UserError, closest_match
from ogpsa.utils.files import hash_file, write_json

REPORT = "leakage.json"
WIDTH = 5
# Columns that hold a row's prompt, in our files and in published ones; the first one present counts.
# A question is a prompt without the words around it.
PROMPTS = (
    "question", "Question", "prompt", "instruction", "instructions", "forbidden_prompt", "problem", "user_query",
    "inputs", "Behavior", "text",
)  # fmt: skip
# Where a conversation stands, the longest first.
CONVERSATIONS = ("messages", "chosen", "prompt")
# Texts that are compared with all others at a time.
BLOCK = 256
FACTOR = np.uint64(0x9E3779B97F4A7C15)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Pair:
    """Two prompts by their places, and the Jaccard similarity of their shingles; 1.0 and ``exact`` where they are
    equal after normalisation."""

    left: int
    right: int
    similarity: float
    exact: bool


def normalised(text: str) -> str:
    """A text without what does not tell prompts apart: letters' width and case, whitespace, final punctuation."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.rstrip(".?! ") or text


def duplicates(left: Sequence[str], right: Sequence[str], threshold: float) -> list[Pair]:
    """All pairs of a text of ``left`` and one of ``right`` that are equal or nearly so, by place.

    Args:
        threshold: least Jaccard similarity of a pair, over the sets of ``WIDTH`` consecutive characters.
    """
    left, right = [normalised(text) for text in left], [normalised(text) for text in right]
    if not left or not right:
        return []
    sets = _shingle_sets([*left, *right])
    sizes, prefixes = np.diff(sets.indptr), _prefixes(sets, threshold)
    lefts, rights, right_prefixes = sets[: len(left)], sets[len(left) :], prefixes[len(left) :].T
    found = []
    for start in range(0, len(left), BLOCK):
        first, second = (prefixes[start : min(start + BLOCK, len(left))] @ right_prefixes).nonzero()
        first = first + start
        small, large = np.sort([sizes[first], sizes[len(left) + second]], axis=0)
        alike = small >= threshold * large - 1e-9
        first, second, total = first[alike], second[alike], (small + large)[alike]
        shared = lefts[first].multiply(rights[second]).sum(axis=1)
        similar = shared / (total - shared)
        for i, j, similarity in zip(first.tolist(), second.tolist(), similar.tolist(), strict=True):
            exact = left[i] == right[j]
            if exact or similarity >= threshold:
                found.append(Pair(i, j, 1.0 if exact else similarity, exact))
    return sorted(found, key=lambda pair: (pair.left, pair.right))


def _shingles(text: str) -> Array:
    """The text's shingles as numbers, each once."""
    points = np.frombuffer(text.ljust(WIDTH).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    hashes = np.zeros(len(points) - WIDTH + 1, dtype=np.uint64)
    for offset in range(WIDTH):
        hashes = hashes * FACTOR + points[offset : offset + len(hashes)]
    return np.unique(hashes)


def _shingle_sets(texts: Sequence[str]) -> csr_array:
    """Which text [row] holds which shingle [column], the rarest shingles first."""
    sets = [_shingles(text) for text in texts]
    _, inverse, counts = np.unique(np.concatenate(sets), return_inverse=True, return_counts=True)
    ranks = np.empty(len(counts), dtype=np.int64)
    ranks[np.argsort(counts, kind="stable")] = np.arange(len(counts))
    starts = np.concatenate([[0], np.cumsum([len(members) for members in sets])])
    matrix = csr_array((np.ones(len(inverse), np.int32), ranks[inverse], starts), shape=(len(sets), len(counts)))
    matrix.sort_indices()
    return matrix


def _prefixes(sets: csr_array, threshold: float) -> csr_array:
    """The rarest shingles of each set; a set that is similar to it holds one of them among its own."""
    sizes = np.diff(sets.indptr)
    kept = sizes - np.ceil(threshold * sizes - 1e-9).astype(int) + 1
    places = np.arange(sets.nnz) - np.repeat(sets.indptr[:-1], sizes)
    inside = places < np.repeat(kept, sizes)
    starts = np.concatenate([[0], np.cumsum(kept)])
    return csr_array((sets.data[inside], sets.indices[inside], starts), shape=sets.shape)


def prompts_of(file: Path, column: str | None = None) -> list[tuple[int, str]]:
    """The prompts in a file, each with its row's number from 1; of a conversation each user's turn.

    Args:
        column: where they stand in a file that has none of our own columns for them.

    Raises:
        UserError: it is not readable, or has no such column.
    """
    rows = read_table(file)
    return [(number, text) for number, row in enumerate(rows, start=1) for text in _prompts(file, number, row, column)]


def _prompts(file: Path, number: int, row: Row, column: str | None) -> list[str]:
    own = () if column is None else (column,)
    for name in (*CONVERSATIONS, *own):
        if asked := users_turns(row.get(name)):
            return asked
    for name in (*PROMPTS, *own):
        if isinstance(row.get(name), str):
            return [with_input(row[name], row) if name == "instruction" else row[name]]
    known = ", ".join(map(str, row)) or "none"
    hint = closest_match(column, map(str, row)) if column else "; call it 'prompt' (check also takes --column)"
    raise UserError(
        f"{file}: row {number} has no text in {' or '.join((*PROMPTS, *own))} (columns found: {known}){hint}"
    )


def tables_in(place: Path) -> list[Path]:
    """A file, or the tables in a folder and the folders below it.

    Raises:
        UserError: there are none.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise UserError(f"{place}: no such file or folder")
    files = [file for file in sorted(place.rglob("*")) if ending(file) in FORMATS and file.is_file()]
    tables = [file for file in files if not _is_no_table(file.relative_to(place))]
    if not tables:
        raise UserError(f"{place}: holds no {', '.join(FORMATS)} file")
    return tables


def _is_no_table(file: Path) -> bool:
    """Hidden, or written beside the rows by our own commands: reports, NLTK's tokenizer, judges' prompts."""
    folders = file.parts[:-1]
    return (
        any(part.startswith(".") for part in file.parts)
        or file.name in (REPORT, "card.json", "prefetch.json")
        or file.name.endswith(".attack.json")
        or "nltk_data" in folders
        or (file.suffix == ".txt" and "prompts" in folders)
    )


def tables_in_all(places: Sequence[Path]) -> list[Path]:
    """The tables of several files and folders.

    Raises:
        UserError: as ``tables_in``, of all places at once.
    """
    problems, tables = Problems(), list[Path]()
    for one in places:
        with problems.kept():
            tables += tables_in(one)
    problems.tell()
    return tables


def check_leakage(folder: Path, against: Sequence[Path], threshold: float, column: str | None = None) -> dict[str, Any]:
    """Compare the files in ``folder`` with each other and with those in ``against``; the report is written there.

    Returns:
        The report: each file's rows and SHA-256, and each pair of files that share prompts, with their rows (from 1).

    Raises:
        UserError: a file is not readable, has no prompts, or there are fewer than two.
    """
    problems, ours, given = Problems(), list[Path](), list[Path]()
    with problems.kept():
        ours = tables_in(folder)
    with problems.kept():
        given = tables_in_all(against)
    problems.tell()
    known = {file.resolve() for file in ours}
    others = [file for file in given if file.resolve() not in known]
    if len(ours) + len(others) < 2:
        raise UserError(f"{folder}: holds one file; name others with --against")
    files = {file: prompts_of(file, column) for file in dict.fromkeys([*ours, *others])}
    names = list(files)
    pairs = []
    for number, left in enumerate(ours):
        rights = names[number + 1 :]
        places = [(file, row) for file in rights for row, _ in files[file]]
        by_file: dict[Path, list[dict[str, Any]]] = {}
        texts = [[text for _, text in files[file]] for file in (left, *rights)]
        for pair in duplicates(texts[0], list(chain.from_iterable(texts[1:])), threshold):
            file, row = places[pair.right]
            number_left, _ = files[left][pair.left]
            by_file.setdefault(file, []).append(
                {"left": number_left, "right": row, "similarity": round(pair.similarity, 4), "exact": pair.exact}
            )
        for file, found in by_file.items():
            exact = sum(entry["exact"] for entry in found)
            pairs.append(
                {"left": str(left), "right": str(file), "exact": exact, "near": len(found) - exact, "rows": found}
            )
    report = {
        "threshold": threshold,
        "shingle": WIDTH,
        "files": {
            str(file): {"rows": len({row for row, _ in prompts}), "sha256": hash_file(file)}
            for file, prompts in files.items()
        },
        "pairs": pairs,
    }
    write_json(folder / REPORT if folder.is_dir() else folder.with_name(REPORT), report)
    return report
