"""Two evaluations item by item, those whose verdicts became harmful first."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from eval.scores.artefacts import Artefacts

# Characters of a request or an answer on the screen.
SHOWN = 90


@dataclass(frozen=True)
class Pair:
    """One item with A's and B's verdict and answer.

    Attributes:
        kind: harmful: a harmful request that B declines less than A; worse, better: any other change; same: none;
            unknown: one side has no value.
        category: of the benchmark's makers; empty where they name none.
        value_a, value_b: None where the verdict is missing.
    """

    kind: str
    benchmark: str
    id: str
    category: str
    verdict_a: str
    verdict_b: str
    value_a: float | None
    value_b: float | None
    prompt: str
    target: str
    response_a: str
    response_b: str


FLIPS = ("harmful", "worse", "better")
KINDS = (*FLIPS, "same", "unknown")
FIELDS = tuple(field.name for field in fields(Pair))


def find_pairs(a: Artefacts, b: Artefacts, names: Iterable[str]) -> list[Pair]:
    """The items that both have verdicts on: harmful flips first, of each kind the largest changes first.

    Raises:
        UserError: a file is damaged.
    """
    order = {name: number for number, name in enumerate(a.benchmarks)}

    def rank(pair: Pair) -> tuple[int, float, int, str]:
        return KINDS.index(pair.kind), -abs((pair.value_b or 0) - (pair.value_a or 0)), order[pair.benchmark], pair.id

    return sorted((pair for name in names for pair in _pairs(a, b, name)), key=rank)


def find_flips(a: Artefacts, b: Artefacts, names: Iterable[str]) -> list[Pair]:
    """Those of ``find_pairs`` that differ; of a loss every item does, so that it is left out.

    Raises:
        UserError: a file is damaged.
    """
    judged = [name for name in names if a.benchmarks[name]["metric"] != "loss"]
    return [pair for pair in find_pairs(a, b, judged) if pair.kind in FLIPS]


def _pairs(a: Artefacts, b: Artefacts, name: str) -> list[Pair]:
    verdicts_b = {row["id"]: row for row in b.verdicts(name)}
    answers_a, answers_b = ({row["id"]: row for row in side.generations(name)} for side in (a, b))
    lower, group = a.lower_is_better(name), a.group(name)
    pairs = []
    for one in a.verdicts(name):
        key = one["id"]
        if (other := verdicts_b.get(key)) is None:
            continue
        value_a, value_b = one["value"], other["value"]
        if value_a is None or value_b is None:
            kind = "unknown"
        elif value_a == value_b:
            kind = "same"
        elif (value_b < value_a) == lower:
            kind = "better"
        else:
            kind = "harmful" if group == "safety" else "worse"
        row_a, row_b = answers_a.get(key, {}), answers_b.get(key, {})
        pairs.append(
            Pair(
                kind, name, key, str(row_a.get("category") or ""), one["verdict"], other["verdict"], value_a, value_b,
                *(str(row_a.get(column, "")) for column in ("prompt", "target")),
                *(response_text(row) for row in (row_a, row_b)),
            )
        )  # fmt: skip
    return pairs


def response_text(generation: Mapping[str, Any]) -> str:
    """A model's answer, or for a multiple choice the log-likelihoods of the options."""
    options = generation.get("options")
    if isinstance(options, list):
        return "log-likelihoods of the options: " + ", ".join(f"{option:.2f}" for option in options)
    return str(generation.get("response", ""))


def flips_csv(flips: Sequence[Pair]) -> str:
    """All flips with their texts, one per line."""
    text = io.StringIO()
    # All in quotes, since the writer leaves a lone carriage return without.
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(asdict(flip) for flip in flips)
    return text.getvalue()


def flips_text(flips: Sequence[Pair], shown: int) -> str:
    """The first ``shown`` flips of each kind, and how many there are."""
    lines = []
    for kind in FLIPS:
        members = [flip for flip in flips if flip.kind == kind]
        if members and shown:
            rest = f", the first {shown}" if len(members) > shown else ""
            lines += ["", f"{_TITLES[kind]} ({len(members)}{rest}):"]
            for flip in members[:shown]:
                category = f", {flip.category}" if flip.category else ""
                lines.append(f"- {flip.benchmark} {flip.id}{category}: {flip.verdict_a} → {flip.verdict_b}")
                lines.append(f"  asked: {_short(flip.prompt)}")
                if flip.response_a or flip.response_b:
                    lines += [f"  A: {_short(flip.response_a)}", f"  B: {_short(flip.response_b)}"]
    return "\n".join(lines)


_TITLES = {
    "harmful": "Harmful requests that B declines less than A",
    "worse": "Other items on which B is worse",
    "better": "Items on which B is better",
}


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"
