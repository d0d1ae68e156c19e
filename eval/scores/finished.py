"""A finished run, read from its own files: configuration, scores, sessions, and what its trainers logged."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from eval.scores.aggregate import AVERAGES
from eval.scores.statistics import balanced_score
from ogpsa.config import StageName
from ogpsa.runs.directory import CONFIG_FILE, HISTORY_FILE, METRICS_FILE, PROVENANCE_FILE, read_stored_config
from ogpsa.runs.inputs import untuned_digest
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import COMPLETE_FILE, read_json, read_jsonl

Value = TypeVar("Value")


@dataclass(frozen=True)
class Scores(Generic[Value]):
    """One value a score, each an average over benchmarks in [0, 1]; None where it is not measured or incomplete.

    ``over_refusal`` is better when lower; ``balanced`` is of it and safety (``balanced_score``).
    """

    safety: Value | None
    utility: Value | None
    over_refusal: Value | None
    balanced: Value | None = None

    def named(self) -> dict[str, Value | None]:
        return {
            "safety": self.safety,
            "utility": self.utility,
            "over_refusal": self.over_refusal,
            "balanced": self.balanced,
        }


@dataclass(frozen=True)
class FinishedRun:
    """A run that has its result.

    Attributes:
        metrics: what its ``metrics.json`` holds.
    """

    directory: Path
    metrics: dict[str, Any]

    @property
    def scores(self) -> Scores[float]:
        """The averages of the last checkpoint."""
        return _averages(self.metrics)

    @property
    def base(self) -> Scores[float]:
        """As ``scores``, of the untuned model."""
        return _averages(self.metrics["base"])

    @property
    def incomplete(self) -> dict[str, list[str]]:
        """The averages of the last checkpoint that have no value, each with its benchmarks that have none.

        Raises:
            UserError: the scores of the benchmarks are damaged.
        """
        return _incomplete(self.last, f"{METRICS_FILE}: stages: {list(self.metrics['stages'])[-1]}", self.scores)

    @property
    def base_incomplete(self) -> dict[str, list[str]]:
        """As ``incomplete``, of the untuned model."""
        return _incomplete(self.metrics["base"], f"{METRICS_FILE}: base", self.base)

    @property
    def last(self) -> dict[str, Any]:
        """All scores of the last checkpoint, benchmark by benchmark as well."""
        stages: dict[str, dict[str, Any]] = self.metrics["stages"]
        return list(stages.values())[-1]

    @cached_property
    def config(self) -> dict[str, Any]:
        """The stored configuration as plain YAML, not as today's schema: a run stays usable when that gains a key.

        Raises:
            UserError: it is missing or damaged.
        """
        file = self.directory / CONFIG_FILE
        try:
            stored = read_stored_config(file)
        except OSError as error:
            raise UserError(f"{file.name}: {error.strerror}") from None
        if stored is None:
            raise UserError(f"{file.name}: not readable as a configuration")
        return stored

    @cached_property
    def sessions(self) -> list[dict[str, Any]]:
        """The entries of the run's ``provenance.json``, one per process that worked on it."""
        file = self.directory / PROVENANCE_FILE
        found: list[dict[str, Any]] = read_json(file)["sessions"] if file.is_file() else []
        return found

    @property
    def revision(self) -> str:
        """Revision of the code in the session that finished the run; ``+``: the files differed from it."""
        git = (self.sessions or [{}])[-1].get("git") or {"revision": "unknown", "dirty": False}
        return str(git["revision"])[:7] + ("+" if git["dirty"] else "")

    @cached_property
    def untuned(self) -> str | None:
        """Digest of the untuned model's files; None if none is recorded."""
        return untuned_digest(self.directory)

    @property
    def seconds(self) -> float:
        """Seconds from the start of the session that finished the run to its result."""
        finished = (self.directory / METRICS_FILE).stat().st_mtime
        started = (self.sessions or [{}])[-1].get("started")
        return finished - datetime.fromisoformat(started).timestamp() if started else 0.0

    @property
    def interrupted(self) -> bool:
        """Whether more than one session worked on it."""
        return len(self.sessions) > 1

    def history(self, stage: StageName) -> list[dict[str, Any]]:
        """The lines that the stage's trainer logged; none if they are gone or the run has no such stage."""
        return [line for file in self.directory.glob(f"[0-9][0-9]-{stage}/{HISTORY_FILE}") for line in read_jsonl(file)]

    def facts(self, stage: StageName) -> dict[str, Any]:
        """The facts noted when the stage was finished; none if they are gone or there is no such stage."""
        files = self.directory.glob(f"[0-9][0-9]-{stage}/{COMPLETE_FILE}")
        return {name: value for file in files for name, value in read_json(file).items()}


def is_finished(directory: Path) -> bool:
    return (directory / METRICS_FILE).is_file()


def read_finished(directory: Path) -> FinishedRun:
    """The finished run in ``directory``.

    Raises:
        UserError: there is none, or its result is damaged; the message does not name the directory.
    """
    path = directory / METRICS_FILE
    if not path.exists():
        raise UserError(f"no {METRICS_FILE}: the run is not finished")
    try:
        metrics = read_json(path)
    except OSError as error:
        raise UserError(f"{METRICS_FILE}: {error.strerror}") from None
    except UserError as error:
        raise UserError(str(error).replace(str(path), METRICS_FILE)) from None
    _check_averages(metrics, METRICS_FILE)
    _check_averages(metrics.get("base"), f"{METRICS_FILE}: base")
    stages = metrics.get("stages")
    if not stages:
        raise UserError(f"{METRICS_FILE}: stages is missing")
    if not isinstance(stages, dict):
        raise UserError(f"{METRICS_FILE}: stages: found {type(stages).__name__}, expected an object with their scores")
    return FinishedRun(directory, metrics)


def run_directories(root: Path) -> Iterator[Path]:
    """The run directories at and below ``root``; nothing below one of them is looked at."""
    for place, folders, files in os.walk(root):
        if CONFIG_FILE in files:
            folders.clear()
            yield Path(place)
        # Hidden folders hold caches and unfinished work.
        folders[:] = [folder for folder in folders if not folder.startswith(".")]


def _check_averages(part: Any, place: str) -> None:
    """Refuse a part of the metrics whose averages are neither null nor numbers; ``place`` names it in messages."""
    if not isinstance(part, dict):
        raise UserError(f"{place}: found {type(part).__name__}, expected an object with {', '.join(AVERAGES)}")
    for key in AVERAGES:
        if key not in part:
            raise UserError(f"{place}: {key} is missing")
        value = part[key]
        # JSON's true and false are numbers in Python; NaN and infinity fail the comparison.
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1
        if value is not None and not number:
            raise UserError(f"{place}: {key}: found {value!r}, expected a number from 0 to 1")


def _averages(part: dict[str, Any]) -> Scores[float]:
    safety, utility, over_refusal = (part[key] for key in AVERAGES)
    balanced = None if safety is None or over_refusal is None else balanced_score(safety, over_refusal)
    return Scores(safety, utility, over_refusal, balanced)


def _incomplete(part: Any, place: str, scores: Scores[float]) -> dict[str, list[str]]:
    without = [key for key in AVERAGES if scores.named()[key] is None]
    if not without:
        return {}
    entries = part.get("benchmarks", {}) if isinstance(part, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise UserError(f"{place}: benchmarks: expected an object with an object for each benchmark")
    missing = {name: entry.get("group") for name, entry in entries.items() if entry.get("value") is None}
    return {key: [name for name, group in missing.items() if group == key] for key in without}
