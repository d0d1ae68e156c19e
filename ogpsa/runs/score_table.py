"""The table that the main job and an evaluation print."""

from collections.abc import Mapping, Sequence
from typing import Any

from ogpsa.utils.health import FAULTS
from ogpsa.utils.table import Table, aligned

Scores = Mapping[str, Any]
GROUPS = {"safety": "safety ↑", "utility": "utility ↑", "over_refusal": "over-refusal ↓"}
# Counts shown next to a score: of the responses, and of a panel's verdicts.
COUNTED = ("empty", "unfinished", "cut", *FAULTS, "unread", "disputed")
METRICS = {
    "accuracy": "accuracy", "refusal_rate": "refusal rate", "goodness": "goodness", "loss": "nats per token ↓",
    "win_rate": "win rate",
}  # fmt: skip


def table(base_scores: Scores, stage_scores: Mapping[str, Scores]) -> str:
    """Scores of the base and after each stage (``{"sft": …, "dpo": …, "dpo-merged": …}``) side by side."""
    columns = {"base": base_scores}
    for name, scores in stage_scores.items():
        stage, dash, merged = name.partition("-")
        columns[f"after {stage.upper()}{dash}{merged}"] = scores
    return score_table(columns)


def score_table(columns: Mapping[str, Scores]) -> str:
    """A Markdown table: group averages first, then each benchmark with its standard error and its rows ``n``.

    ``columns`` maps a title to what ``scores.json`` holds; a score that a column lacks is shown as a dash. Where
    verdicts are missing, their number and what they could make of the score follow it, and so do the responses that are
    empty, that end in an unfinished thought, that the cap on tokens has cut, that have a fault of form, or in which no
    answer could be read.
    """
    lines = []
    for group, title in GROUPS.items():
        lines.append([title, *(_number(scores[group]) for scores in columns.values()), ""])
    benchmarks = {name: entry for scores in columns.values() for name, entry in scores["benchmarks"].items()}
    for name, entry in benchmarks.items():
        found = [scores["benchmarks"].get(name) for scores in columns.values()]
        rows = dict.fromkeys(str(benchmark["n"]) for benchmark in found if benchmark)
        remarks = METRICS[entry["metric"]]
        if entry.get("fallbacks"):
            remarks += f", {entry['fallbacks']} without jailbreak"
        if entry.get("published") and 0 < entry["available"] < entry["published"]:
            remarks += f", from {entry['available']} of {entry['published']} rows"
        lines.append([f"{name} ({remarks})", *map(_with_error, found), " / ".join(rows)])
    return aligned(Table(["", *columns, "n"], lines, align="l" + "r" * (len(columns) + 1)))


def response_remarks(entries: Sequence[Scores]) -> list[str]:
    """Counts over the responses to one benchmark, in one or several evaluations; only those above zero."""
    # Older evaluations do not say.
    counts = {kind: sum(entry.get(kind) or 0 for entry in entries) for kind in COUNTED}
    return [f"{count} {kind.replace('_', ' ')}" for kind, count in counts.items() if count]


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _with_error(benchmark: Scores | None) -> str:
    if benchmark is None:
        return _number(None)
    # A loss moves by hundredths where shares move by tenths.
    digits = 3 if benchmark["metric"] == "loss" else 2
    value = _number(benchmark["value"], digits)
    if benchmark["stderr"] is not None:
        value += f" ± {_number(benchmark['stderr'], digits)}"
    remarks = []
    if benchmark["missing"]:
        remarks.append(f"{benchmark['missing']} missing: {benchmark['low']:.2f} to {benchmark['high']:.2f}")
    remarks += response_remarks([benchmark])
    return f"{value} ({', '.join(remarks)})" if remarks else value
