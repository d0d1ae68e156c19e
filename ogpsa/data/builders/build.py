"""Building a data set: published rows in, ``<part>.jsonl`` and a data card out."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ogpsa import __version__
from ogpsa.data.builders.candidates import Candidate, find_form, read_candidate
from ogpsa.data.builders.fitting import fitting
from ogpsa.data.builders.refusals import check_refusals, write_refusals
from ogpsa.data.builders.rejected import write_rejected
from ogpsa.data.builders.replies import check_writer
from ogpsa.data.builders.settings import CARD, Answered, DataSet, OneSource, Rejected, SafeRLHF, Source
from ogpsa.data.conversations import as_text
from ogpsa.data.leakage import duplicates, normalised, prompts_of, tables_in_all
from ogpsa.data.readers import (
    FORMATS,
    Row,
    check_parts,
    ending,
    errors_of_the_hub,
    read_hub,
    read_table,
    reason_of_the_hub,
)
from ogpsa.utils.dotted import flatten
from ogpsa.utils.errors import UserError, closest_match
from ogpsa.utils.files import check_writable, exclusive, hash_file, read_json, write_json, write_jsonl

JOURNAL = "refusals.journal"
# The part that serves as a benchmark, which no other part may resemble.
HELD_OUT = "heldout"
REJECTED_JOURNAL = "rejected.journal"
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


@dataclass(frozen=True)
class Drawn:
    """The published rows that are kept.

    Attributes:
        parts: the candidates of each file, in their order.
        counts: rows read, dropped by reason, eligible, drawn for all parts.
        source: where they came from: path, revision, SHA-256 of a file; of several, by name, with the rows drawn.
        excluded: SHA-256 of each file whose prompts were kept out.
    """

    parts: dict[str, list[Candidate]]
    counts: dict[str, Any]
    source: dict[str, Any]
    excluded: dict[str, str]


def build(settings: DataSet) -> dict[str, Any]:
    """Write the rows of every part, then the data card, into ``settings.output``; returns the card.

    The same settings and source give the same bytes. A file is complete or absent; the card is written last and names
    each by its SHA-256. Existing refusals are not requested again.

    Raises:
        UserError: the source is unavailable or holds other columns, too few rows are left, or the refusals cannot
            be written.
    """
    folder = Path(settings.output)
    check_writable(folder, "output")
    if isinstance(settings, SafeRLHF):
        check_refusals(settings.refusals)
    elif isinstance(settings, Answered) and settings.rejected.way == "model":
        _check_parts(settings)
        check_writer("rejected", settings.rejected.model)
    with exclusive(folder / "build.lock", f"output: another process builds in {folder}"):
        _check_same(settings, folder)
        drawn = draw(settings)
        written_facts: dict[str, Any] = {}
        if isinstance(settings, SafeRLHF):
            prompts = [candidate.prompt for part in drawn.parts.values() for candidate in part]
            written, facts = write_refusals(settings.refusals, settings.seed, prompts, folder / JOURNAL)
            written_facts, answers = {"refusals": facts}, iter(written)
            for part in drawn.parts.values():
                part[:] = [replace(candidate, chosen=next(answers)) for candidate in part]
            if settings.harmful_answers:
                first = next(iter(drawn.parts.values()))[: settings.harmful_answers]
                exchanged = [replace(row, chosen=row.rejected, rejected=row.chosen) for row in first]
                drawn.parts["harmful_answers"] = exchanged
        elif isinstance(settings, Answered) and settings.rejected.way == "model":
            written_facts = {"rejected": _add_rejected(settings.rejected, drawn.parts, folder / REJECTED_JOURNAL)}
        (folder / CARD).unlink(missing_ok=True)
        files = {}
        for name, part in drawn.parts.items():
            file = folder / f"{name}.jsonl"
            write_jsonl(file, [_row(candidate) for candidate in part])
            files[name] = {"file": file.name, "rows": len(part), "sha256": hash_file(file)}
        card = {
            "name": settings.name,
            "ogpsa": __version__,
            "source": drawn.source,
            "seed": settings.seed,
            "counts": drawn.counts | {"written": sum(len(drawn.parts[name]) for name in settings.parts)},
            "parts": files,
            **written_facts,
            "excluded": drawn.excluded,
            "settings": settings.model_dump(mode="json"),
        }
        write_json(folder / CARD, card)
    return card


def _check_same(settings: DataSet, folder: Path) -> None:
    """Refuse to replace rows that were chosen otherwise, and which another configuration may read.

    The last part may hold more or fewer, which changes none of the others, and answers may be written otherwise. A card
    that an earlier version wrote with other keys says nothing.

    Raises:
        UserError: names the settings that differ.
    """
    card = folder / CARD
    try:
        stored = type(settings).model_validate(read_json(card)["settings"])
    except (UserError, KeyError, TypeError, ValidationError):
        return
    before, now = map(_choices, (stored, settings))
    changed = [
        f"{key}: {before.get(key, 'not there')}, now {now.get(key, 'left out')}"
        for key in {**before, **now}
        # One file has several names.
        if before.get(key) != now.get(key)
        and not (key.endswith(".path") and Path(before.get(key, "")).resolve() == Path(now.get(key, "")).resolve())
    ]
    if changed:
        raise UserError(
            f"output: the rows in {folder} were built with other settings ({'; '.join(changed)}); name another folder, "
            f"or delete {card} to replace them"
        )


def _choices(settings: DataSet) -> dict[str, Any]:
    """The settings that decide which rows the parts hold, the last one's size left out, by their dotted keys."""
    tree = settings.model_dump(mode="json", exclude={"output", "about", "refusals", "rejected"})
    *others, last = tree["parts"]
    tree["parts"] = {name: tree["parts"][name] for name in others} | {last: "the last part"}
    return flatten(tree)


def _check_parts(settings: Answered) -> None:
    for name in settings.rejected.parts:
        if name not in settings.parts:
            allowed = ", ".join(settings.parts)
            raise UserError(
                f"rejected.parts: '{name}' is not a part; allowed: {allowed}{closest_match(name, settings.parts)}"
            )


def _add_rejected(settings: Rejected, parts: dict[str, list[Candidate]], journal: Path) -> dict[str, Any]:
    """Add the checkpoint's answers to ``settings.parts``, drop rows without one; returns the card's facts."""
    named = {name: parts[name] for name in parts if name in settings.parts}
    written, facts = write_rejected(settings, [candidate for part in named.values() for candidate in part], journal)
    answers = iter(written)
    for part in named.values():
        answered = [replace(candidate, rejected=next(answers)) for candidate in part]
        part[:] = [row for row in answered if row.rejected is not None]
    return facts


def draw(settings: DataSet) -> Drawn:
    """Read, filter and draw, but do not write a safety set's refusals.

    A prompt's place in the draw depends on the seed and its text alone, so that a larger part keeps what a smaller one
    held.

    Raises:
        UserError: as ``build``.
    """
    dropped: Counter[str] = Counter()
    kept: dict[str, Candidate] = {}
    sources: dict[str, dict[str, Any]] = {}
    read: dict[str, int] = {}
    for name, (key, source) in settings.published().items():
        published, sources[name] = _read(source, key)
        read[name] = _add_eligible(name, settings, source.path, published, kept, dropped)
    eligible = fitting(settings.fits, list(kept.values()), dropped)
    excluded = tables_in_all([Path(place) for place in settings.exclude])
    if excluded:
        asked = [(number, text) for number, candidate in enumerate(eligible) for text in candidate.asked]
        theirs = [text for file in excluded for _, text in prompts_of(file)]
        found = duplicates([text for _, text in asked], theirs, settings.similarity)
        exact = {asked[pair.left][0] for pair in found if pair.exact}
        near = {asked[pair.left][0] for pair in found} - exact
        dropped["prompt in an excluded file"] += len(exact)
        dropped["prompt nearly in an excluded file"] += len(near)
        eligible = [candidate for number, candidate in enumerate(eligible) if number not in exact | near]
    excluded_by = {str(file): hash_file(file) for file in excluded}
    parts = _deal(settings, eligible, read, dropped)
    drawn = sum(map(len, parts.values()))
    _keep_from_held_out(parts, settings.similarity, dropped)
    counts = {
        "read": sum(read.values()),
        "dropped": {reason: n for reason, n in dropped.items() if n},
        "eligible": len(eligible),
        "drawn": drawn,
    }
    if isinstance(settings, OneSource):
        return Drawn(parts, counts, sources[settings.name], excluded_by)
    for name, facts in sources.items():
        facts["rows"] = {part: sum(row.source == name for row in rows) for part, rows in parts.items()}
    return Drawn(parts, counts, sources, excluded_by)


def _keep_from_held_out(parts: dict[str, list[Candidate]], similarity: float, dropped: Counter[str]) -> None:
    """Remove near duplicates of held-out prompts from the other parts; nothing replaces them."""
    held_out = [candidate.prompt for candidate in parts.get(HELD_OUT, [])]
    for name, part in parts.items():
        if held_out and name != HELD_OUT:
            found = duplicates([candidate.prompt for candidate in part], held_out, similarity)
            near = {pair.left for pair in found}
            dropped[f"of {name}, nearly in {HELD_OUT}"] += len(near)
            part[:] = [candidate for number, candidate in enumerate(part) if number not in near]


def _deal(
    settings: DataSet, eligible: list[Candidate], read: Mapping[str, int], dropped: Mapping[str, int]
) -> dict[str, list[Candidate]]:
    """The parts, each with its share of the candidates of every source, in the order of the draw.

    Args:
        read: rows of each source.

    Raises:
        UserError: a source has too few.
    """

    def place(candidate: Candidate) -> bytes:
        return hashlib.sha256(f"{settings.seed} {candidate.prompt}".encode()).digest()

    parts: dict[str, list[Candidate]] = {name: [] for name in settings.parts}
    for number, (name, (_, source)) in enumerate(settings.published().items()):
        pool = sorted((candidate for candidate in eligible if candidate.source == name), key=place)
        shares = {part: _share(rows, len(pool), number, len(read)) for part, rows in settings.parts.items()}
        # Zero rows would make an empty file.
        wanted, ordered = max(1, sum(shares.values())), iter(pool)
        if len(pool) < wanted:
            raise UserError(
                f"parts: {wanted} rows wanted, but {len(pool)} of {read[name]} in {source.path} are left after the "
                f"filters ({_reasons(dropped)}); lower parts or loosen a filter"
            )
        for part, share in shares.items():
            parts[part] += islice(ordered, share)
    return {name: sorted(part, key=place) for name, part in parts.items()}


def _share(rows: int | float, eligible: int, number: int, sources: int) -> int:
    """Rows that a part takes from one source: a share of the eligible ones, or equal numbers, ``rows`` in all."""
    if isinstance(rows, float):
        return round(rows * eligible)
    return rows // sources + (number < rows % sources)


def _add_eligible(
    name: str,
    settings: DataSet,
    place: str,
    published: Iterable[Row],
    kept: dict[str, Candidate],
    dropped: Counter[str],
) -> int:
    """Add to ``kept`` the candidates that pass every filter, one per prompt; returns the number of rows read."""
    form, read = None, 0
    for read, row in enumerate(published, start=1):
        form = form or find_form(name, place, row)
        candidate = read_candidate(name, form, settings, place, read, row)
        if not isinstance(candidate, str):
            candidate = replace(_clean(candidate), source=name)
            candidate = _objection(candidate, settings.max_characters) or candidate
        if isinstance(candidate, str):
            dropped[candidate] += 1
            continue
        key = normalised(candidate.prompt)
        if key in kept:
            dropped["prompt of another row"] += 1
        if key not in kept or candidate.rank > kept[key].rank:
            kept[key] = candidate
    if not read:
        raise UserError(f"{place}: holds no rows")
    return read


def _clean(candidate: Candidate) -> Candidate:
    chosen, rejected = (None if text is None else _text(text) for text in (candidate.chosen, candidate.rejected))
    cleaned = replace(candidate, chosen=chosen, rejected=rejected, turns=tuple(map(_text, candidate.turns)))
    return replace(cleaned, prompt=as_text(cleaned.messages) if cleaned.turns else _text(candidate.prompt))


def _text(value: str) -> str:
    """A text without surrounding whitespace and without lone surrogates, which UTF-8 cannot encode."""
    return value.encode("utf-8", "replace").decode().strip()


def _objection(candidate: Candidate, max_characters: int | None) -> str | None:
    answers = [answer for answer in (candidate.chosen, candidate.rejected) if answer is not None]
    if not candidate.prompt or not all(answers) or not all(candidate.turns):
        return "empty prompt or answer"
    if len(set(answers)) < len(answers):
        return "two equal answers"
    if max_characters is not None and len(candidate.prompt) + max(map(len, answers), default=0) > max_characters:
        return f"longer than {max_characters} characters"
    return None


def _row(candidate: Candidate) -> Row:
    """A line of the file: what ``ogpsa.data`` reads, and the question for the leakage check."""
    names = ("prompt", "chosen", "rejected", "question", "harmful")
    row = {name: vars(candidate)[name] for name in names if vars(candidate)[name] is not None}
    return row | ({"prompt": candidate.messages} if candidate.turns else {})


def _read(source: Source, key: str) -> tuple[Iterable[Row], dict[str, Any]]:
    """The published rows, and what the data card says of them; ``key`` names the source in messages.

    Raises:
        UserError: there is no such file, or the hub does not provide them.
    """
    path = Path(source.path)
    facts: dict[str, Any] = {"path": source.path, "licence": source.licence}
    if path.is_file():
        if ending(path) not in FORMATS:
            raise UserError(f"{key}.path: {path} is no {', '.join(FORMATS)} file")
        local = read_table(path)
        check_parts(local, f"{key}.path", source.path)
        return local, facts | {"sha256": hash_file(path)}
    must_be_hub_id = "://" not in source.path and not path.is_dir()
    if must_be_hub_id and (ending(path) in FORMATS or not HUB_ID.fullmatch(source.path)):
        raise UserError(f"{key}.path: {path}: no such file or folder, and no hub id")
    try:
        rows, revision = read_hub(source.path, source.config, source.split, source.revision, source.data_dir)
    except errors_of_the_hub() as error:
        raise UserError(
            f"{key}.path: {source.path} cannot be fetched ({reason_of_the_hub(error)}); name a local copy: "
            f"{key}.path=FILE"
        ) from None
    facts |= {"config": source.config, "split": source.split, "revision": revision}
    return rows, facts


def _reasons(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "none dropped"


def summary(card: Mapping[str, Any], folder: Path) -> Sequence[str]:
    """The card in a few lines for the screen."""
    counts = card["counts"]
    source = card["source"]
    read_from = source["path"] if "path" in source else ", ".join(one["path"] for one in source.values())
    lines = [f"{card['name']}: {counts['read']} rows read from {read_from}"]
    lines += [f"  {count:>8}  dropped: {reason}" for reason, count in counts["dropped"].items()]
    lines += [f"  {counts['eligible']:>8}  eligible"]
    lines += [f"  {part['rows']:>8}  {folder / part['file']}" for part in card["parts"].values()]
    for kind in ("refusals", "rejected"):
        if kind in card:
            lines += [f"  {kind}: {', '.join(f'{key} {value}' for key, value in card[kind].items())}"]
    return [*lines, f"  {folder / CARD}"]
