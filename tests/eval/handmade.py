"""Evaluation folders and run directories written by hand, as ``eval/evaluation.py`` and ``train.py`` leave them."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import hypot
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from ogpsa.app.compose import compose_config

AVERAGES = ("safety", "utility", "over_refusal")


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's verdicts; item ``i`` is ``<prefix>-<i>``. Without values it was unavailable (``error``)."""

    values: Sequence[float | None]
    group: str = "utility"
    metric: str = "accuracy"
    prefix: str = "item"
    data_hash: str = "d" * 16
    task_hash: str = "7" * 16
    judge: str = "exact_match"
    judge_hash: str = "a" * 16
    judge_model: str | None = None
    prompt_hash: str | None = None
    prompt: str = "a question"
    responses: Sequence[str] = field(default=())
    categories: Sequence[str] = field(default=())
    error: str | None = None
    model: str = "f" * 16


def write_evaluation(
    folder: Path, benchmarks: Mapping[str, Benchmark], composites: Mapping[str, Sequence[str]] | None = None
) -> Path:
    """Write the three artefacts; a composite takes the group of its first part, whose parts are then only reported."""
    entries: dict[str, dict[str, Any]] = {}
    for name, benchmark in benchmarks.items():
        entries[name] = _entry(benchmark) | {"verdicts_hash": None}
        if benchmark.values:
            _write_rows(folder, name, benchmark)
            verdicts = (folder / "verdicts" / f"{name}.jsonl").read_bytes()
            entries[name]["verdicts_hash"] = hashlib.sha256(verdicts).hexdigest()[:16]
    for name, parts in (composites or {}).items():
        first = entries[parts[0]]
        entries[name] = first | {"parts": list(parts), "verdicts_hash": None}
        for key in ("value", "low", "high"):
            entries[name][key] = fmean(entries[part][key] for part in parts)
        for key in ("n", "missing"):
            entries[name][key] = sum(entries[part][key] for part in parts)
        for part in parts:
            entries[part] = entries[part] | {"group": "reported"}
    averages = {}
    incomplete = {}
    for group in AVERAGES:
        members = {name: entry for name, entry in entries.items() if entry["group"] == group}
        averages[group] = _average(list(members.values()))
        without = [name for name, entry in members.items() if entry["value"] is None]
        incomplete |= {group: without} if without else {}
    scores: dict[str, Any] = {group: average["value"] for group, average in averages.items()}
    scores |= {"averages": averages, "incomplete": incomplete, "benchmarks": entries}
    (folder / "scores.json").write_text(json.dumps(scores))
    return folder


def make_older(folder: Path) -> Path:
    """An evaluation of an earlier revision: its scores do not name their verdicts, its averages lack error and
    bounds."""
    path = folder / "scores.json"
    scores = json.loads(path.read_text())
    del scores["averages"]
    for entry in scores["benchmarks"].values():
        del entry["verdicts_hash"]
    path.write_text(json.dumps(scores))
    return folder


def _average(members: list[dict[str, Any]]) -> dict[str, Any]:
    whole = bool(members) and all(member["value"] is not None for member in members)
    errors = [member["stderr"] for member in members if member["stderr"] is not None]
    return {
        **{key: fmean(member[key] for member in members) if whole else None for key in ("value", "low", "high")},
        "stderr": hypot(*errors) / len(members) if members and len(errors) == len(members) else None,
        "missing": sum(member["missing"] for member in members),
    }


def _write_rows(folder: Path, name: str, benchmark: Benchmark) -> None:
    stamp = {"benchmark": name, "model_fingerprint": benchmark.model, "data_hash": benchmark.data_hash}
    generations, verdicts = [], []
    for index, value in enumerate(benchmark.values):
        head = {"id": f"{benchmark.prefix}-{index}", **stamp}
        response = benchmark.responses[index] if benchmark.responses else f"answer {index}"
        asked = {"prompt": benchmark.prompt, "target": "a target", "task_hash": benchmark.task_hash}
        named = {"category": benchmark.categories[index]} if benchmark.categories else {}
        generations.append({**head, **asked, **named, "response": response})
        told = {key: getattr(benchmark, key) for key in ("judge", "judge_hash", "prompt_hash", "judge_model")}
        status = "unparsed" if value is None else "parsed"
        label = "unparsed" if value is None else f"label {value}"
        verdict = {"verdict": label, "value": value, "refused": False, "parse_status": status, "detail": {}}
        verdicts.append({**head, **told, "generations_hash": "9" * 16, **verdict})
    for kind, rows in (("generations", generations), ("verdicts", verdicts)):
        path = folder / kind / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _entry(benchmark: Benchmark) -> dict[str, Any]:
    known = [value for value in benchmark.values if value is not None]
    missing = len(benchmark.values) - len(known)
    return {
        "value": fmean(known) if known else None,
        "stderr": stdev(known) / len(known) ** 0.5 if len(known) > 1 else None,
        "n": len(known),
        "missing": missing,
        "low": sum(known) / len(benchmark.values) if benchmark.values else None,
        "high": (sum(known) + missing) / len(benchmark.values) if benchmark.values else None,
        "refused": 0.0,
        "metric": benchmark.metric,
        "group": benchmark.group,
        "judge": benchmark.judge,
        "error": benchmark.error,
        "parts": None,
        "categories": _by_category(benchmark),
        "clustered_stderr": 0.1 if benchmark.categories else None,
    }


def _by_category(benchmark: Benchmark) -> dict[str, dict[str, Any]] | None:
    members: dict[str, list[float | None]] = {}
    for category, value in zip(benchmark.categories, benchmark.values, strict=False):
        members.setdefault(category, []).append(value)
    known = {name: [value for value in found if value is not None] for name, found in members.items()}
    return {
        name: {
            "value": fmean(known[name]) if known[name] else None,
            "n": len(known[name]),
            "missing": len(found) - len(known[name]),
        }
        for name, found in members.items()
    } or None


@cache
def config_text(overrides: str) -> str:
    config = compose_config(["tracker=none", "stage=sft", *overrides.split()])
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def write_run(
    directory: Path, base: Mapping[str, Benchmark], tuned: Mapping[str, Benchmark], overrides: str = "method=baseline"
) -> Path:
    """A finished run of one SFT stage, its training's numbers included."""
    directory.mkdir(parents=True)
    (directory / "config.yaml").write_text(config_text(overrides))
    (directory / "provenance.json").write_text('{"revision": "0" }')
    (directory / "01-sft").mkdir()
    history = [{"loss": 2.0, "epoch": 0.5, "step": 1}, {"loss": 1.0, "epoch": 1.0, "step": 2}, {"train_runtime": 3.0}]
    (directory / "01-sft" / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in history))
    scores = {}
    for name, benchmarks in (("base", base), ("01-sft", tuned)):
        folder = write_evaluation(directory / "eval" / name, benchmarks)
        scores[name] = json.loads((folder / "scores.json").read_text())
    headline = {group: scores["01-sft"][group] for group in AVERAGES}
    metrics = headline | {"base": scores["base"], "stages": {"sft": scores["01-sft"]}}
    (directory / "metrics.json").write_text(json.dumps(metrics))
    return directory
