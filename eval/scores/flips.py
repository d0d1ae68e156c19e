"""The items whose verdict differs between two evaluations, those that became harmful first."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields

from eval.scores.artefacts import Artefacts

# Characters of a request or an answer on the screen.
SHOWN = 90


@dataclass(frozen=True)
class Flip:
    """One item of which A's and B's verdicts differ.

    Attributes:
        kind: harmful: a harmful request that B declines less than A; worse, better: any other change.
        category: of the benchmark's makers; empty where they name none.
    """

    kind: str
    benchmark: str
    id: str
    category: str
    verdict_a: str
    verdict_b: str
    value_a: float
    value_b: float
    prompt: str
    response_a: str
    response_b: str


KINDS = ("harmful", "worse", "better")
FIELDS = tuple(field.name for field in fields(Flip))


def find_flips(a: Artefacts, b: Artefacts, names: Iterable[str]) -> list[Flip]:
    """The flips of the benchmarks ``names``, less losses: harmful ones first, of each kind the largest changes first.

    Raises:
        UserError: a file is damaged.
    """
    found = [flip for name in names if a.benchmarks[name]["metric"] != "loss" for flip in _flips(a, b, name)]
    order = {name: number for number, name in enumerate(a.benchmarks)}
    return sorted(
        found,
        key=lambda flip: (KINDS.index(flip.kind), -abs(flip.value_b - flip.value_a), order[flip.benchmark], flip.id),
    )


def _flips(a: Artefacts, b: Artefacts, name: str) -> list[Flip]:
    verdicts_a, verdicts_b = ({row["id"]: row for row in side.verdicts(name)} for side in (a, b))
    answers_a, answers_b = ({row["id"]: row for row in side.generations(name)} for side in (a, b))
    lower, group = a.lower_is_better(name), a.group(name)
    flips = []
    for key, one in verdicts_a.items():
        other = verdicts_b.get(key)
        if other is None or one["value"] is None or other["value"] is None or one["value"] == other["value"]:
            continue
        kind = "better" if (other["value"] < one["value"]) == lower else "harmful" if group == "safety" else "worse"
        row_a, row_b = answers_a.get(key, {}), answers_b.get(key, {})
        flips.append(
            Flip(
                kind, name, key, str(row_a.get("category") or ""), one["verdict"], other["verdict"], one["value"],
                other["value"], str(row_a.get("prompt", "")), str(row_a.get("response", "")),
                str(row_b.get("response", "")),
            )
        )  # fmt: skip
    return flips


def flips_csv(flips: Sequence[Flip]) -> str:
    """All flips with their texts, one per line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(flip) for flip in flips)
    return text.getvalue()


def flips_text(flips: Sequence[Flip], shown: int) -> str:
    """The first ``shown`` flips of each kind, and how many there are."""
    lines = []
    for kind in KINDS:
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
