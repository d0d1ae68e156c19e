"""Which prompts occur twice: exactly after normalisation, or nearly, between files that must not share any.

Near duplicates are found by an exact set-similarity join over character shingles with prefix and length filters
(Bayardo, Ma & Srikant, WWW 2007): no pair above the threshold is missed.
"""

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ogpsa.data.readers import FORMATS, Row, read_table
from ogpsa.utils.errors import UserError, closest_match
from ogpsa.utils.files import write_json

REPORT = "leakage.json"
WIDTH = 5
# Where a row's prompt stands, in our files and in those that data sets publish; the first one that is there counts.
# A question is a prompt without the words around it.
PROMPTS = ("question", "Question", "prompt", "instruction", "forbidden_prompt", "problem", "user_query", "inputs")
# Pairs of a shared shingle that are held at a time.
BLOCK = 4_000_000
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
    """A text without what does not tell prompts apart: width and case of letters, whitespace, marks at the end."""
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
    sets = _ranked([_shingles(text) for text in [*left, *right]])
    lefts, rights = sets[: len(left)], sets[len(left) :]
    held = np.zeros(1 + max(members[-1] for members in sets), dtype=bool)
    found = []
    for first, seconds in _candidates(lefts, rights, threshold):
        held[lefts[first]] = True
        similar = _jaccard(held, len(lefts[first]), [rights[second] for second in seconds])
        held[lefts[first]] = False
        for second, similarity in zip(seconds, similar, strict=True):
            exact = left[first] == right[second]
            if exact or similarity >= threshold:
                found.append(Pair(first, second, 1.0 if exact else similarity, exact))
    return found


def _shingles(text: str) -> Array:
    """The text's shingles as numbers, each once."""
    points = np.frombuffer(text.ljust(WIDTH).encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    hashes = np.zeros(len(points) - WIDTH + 1, dtype=np.uint64)
    for offset in range(WIDTH):
        hashes = hashes * FACTOR + points[offset : offset + len(hashes)]
    return np.unique(hashes)


def _ranked(sets: Sequence[Array]) -> list[Array]:
    """The sets with each shingle's rank in its place, the rarest first; sorted."""
    lengths = [len(members) for members in sets]
    _, inverse, counts = np.unique(np.concatenate(sets), return_inverse=True, return_counts=True)
    ranks = np.empty(len(counts), dtype=np.int64)
    ranks[np.argsort(counts, kind="stable")] = np.arange(len(counts))
    return [np.sort(part) for part in np.split(ranks[inverse], np.cumsum(lengths)[:-1])]


def _candidates(lefts: Sequence[Array], rights: Sequence[Array], threshold: float) -> Iterator[tuple[int, list[int]]]:
    """For each left set, the right ones that share one of its rarest shingles, as all similar ones do, and are about
    as large."""
    shingles, owners = _prefixes(lefts, threshold)
    others, other_owners = _prefixes(rights, threshold)
    order = np.argsort(others, kind="stable")
    others, other_owners = others[order], other_owners[order]
    starts = np.searchsorted(others, shingles, side="left")
    matches = np.searchsorted(others, shingles, side="right") - starts
    sizes, other_sizes = (np.array([len(members) for members in sets]) for sets in (lefts, rights))
    seen: list[Array] = []
    for block in _blocks(matches):
        repeats = matches[block]
        within = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        first = np.repeat(owners[block], repeats)
        second = other_owners[np.repeat(starts[block], repeats) + within]
        small, large = np.minimum(sizes[first], other_sizes[second]), np.maximum(sizes[first], other_sizes[second])
        alike = small >= threshold * large - 1e-9
        seen.append(np.unique(first[alike] * len(rights) + second[alike]))
    firsts, seconds = np.divmod(np.unique(np.concatenate(seen)), len(rights))
    for part in np.split(np.arange(len(firsts)), np.flatnonzero(np.diff(firsts)) + 1):
        if len(part):
            yield int(firsts[part[0]]), seconds[part].tolist()


def _prefixes(sets: Sequence[Array], threshold: float) -> tuple[Array, Array]:
    """The rarest shingles of each set, one of which every similar set holds too, and whose they are."""
    kept = [members[: len(members) - int(np.ceil(threshold * len(members) - 1e-9)) + 1] for members in sets]
    return np.concatenate(kept), np.repeat(np.arange(len(kept)), [len(part) for part in kept])


def _blocks(matches: Array) -> Iterator[slice]:
    """Consecutive parts with at most ``BLOCK`` matches each, or a single entry."""
    totals = np.cumsum(matches)
    start, before = 0, 0
    while start < len(matches):
        stop = max(start + 1, int(np.searchsorted(totals, before + BLOCK, side="right")))
        yield slice(start, stop)
        start, before = stop, int(totals[stop - 1])


def _jaccard(held: Array, size: int, others: Sequence[Array]) -> list[float]:
    """The similarity of a set, given by what it holds and its size, and each of several others."""
    sizes = np.array([len(other) for other in others])
    shared = np.add.reduceat(held[np.concatenate(others)], np.cumsum(sizes) - sizes, dtype=np.int64)
    similar: list[float] = (shared / (size + sizes - shared)).tolist()
    return similar


def prompts_of(file: Path, column: str | None = None) -> list[str]:
    """The prompts in a file, by row.

    Raises:
        UserError: it is not readable, or has no such column.
    """
    rows = read_table(file)
    return [_prompt(file, number, row, column) for number, row in enumerate(rows, start=1)]


def _prompt(file: Path, number: int, row: Row, column: str | None) -> str:
    names = PROMPTS if column is None else (column,)
    for name in names:
        if isinstance(row.get(name), str):
            text: str = row[name]
            return text
    known = ", ".join(map(str, row)) or "none"
    hint = closest_match(column, map(str, row)) if column else "; name one with --column"
    raise UserError(f"{file}: row {number} has no text in {' or '.join(names)} (columns found: {known}){hint}")


def tables_in(place: Path) -> list[Path]:
    """A file, or the tables in a folder and the folders below it.

    Raises:
        UserError: there are none.
    """
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise UserError(f"{place}: no such file or folder")
    files = [file for file in sorted(place.rglob("*")) if file.suffix in FORMATS and file.is_file()]
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(place).parts)]
    tables = [
        file for file in files if file.suffix != ".json" or file.name not in (REPORT, "card.json", "prefetch.json")
    ]
    if not tables:
        raise UserError(f"{place}: holds no {', '.join(FORMATS)} file")
    return tables


def check_leakage(folder: Path, against: Sequence[Path], threshold: float, column: str | None = None) -> dict[str, Any]:
    """Compare the files in ``folder`` with each other and with those in ``against``; the report is written there.

    Returns:
        The report: each file's rows and SHA-256, and each pair of files that share prompts, with their rows (from 1).

    Raises:
        UserError: a file is not readable, has no prompts, or there are fewer than two.
    """
    ours = tables_in(folder)
    known = {file.resolve() for file in ours}
    others = [file for place in against for file in tables_in(place) if file.resolve() not in known]
    if len(ours) + len(others) < 2:
        raise UserError(f"{folder}: holds one file; name others with --against")
    files = {file: prompts_of(file, column) for file in dict.fromkeys([*ours, *others])}
    names = list(files)
    pairs = []
    for number, left in enumerate(ours):
        rights = names[number + 1 :]
        places = [(file, row) for file in rights for row in range(1, len(files[file]) + 1)]
        by_file: dict[Path, list[dict[str, Any]]] = {}
        for pair in duplicates(files[left], [text for file in rights for text in files[file]], threshold):
            file, row = places[pair.right]
            by_file.setdefault(file, []).append(
                {"left": pair.left + 1, "right": row, "similarity": round(pair.similarity, 4), "exact": pair.exact}
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
            str(file): {"rows": len(texts), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
            for file, texts in files.items()
        },
        "pairs": pairs,
    }
    write_json(folder / REPORT if folder.is_dir() else folder.with_name(REPORT), report)
    return report
