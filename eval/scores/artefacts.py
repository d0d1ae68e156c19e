"""Reading what an evaluation left behind: generations, verdicts and scores of one checkpoint."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.scores.aggregate import AVERAGES
from ogpsa.runs.directory import CONFIG_FILE, METRICS_FILE, SCORES_FILE
from ogpsa.utils.errors import UserError, closest_folder
from ogpsa.utils.files import read_json, read_jsonl

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Row = dict[str, Any]


@dataclass(frozen=True)
class Instrument:
    """The instrument behind a benchmark's verdicts, the checkpoint aside; None where it was not recorded.

    Attributes:
        data: hash of the rows.
        task: hash of how the model is asked about them.
        rendered: hash of the prompts as the model got them, by its own chat template.
        judge: who judged.
        judge_version: hash of the judge's code, prompt and model.
        judge_model: its model's name; None for a rule.
        prompt: hash of its prompt; None where it has none.
    """

    data: str | None
    task: str | None
    rendered: str | None
    judge: str | None
    judge_version: str | None
    judge_model: str | None
    prompt: str | None

    @property
    def key(self) -> tuple[str | None, ...]:
        """The identity that comparable evaluations share. A model counts by its hash, not by its name."""
        return self.data, self.task, self.judge, self.judge_version


@dataclass(frozen=True)
class Artefacts:
    """The folder of one evaluation; ``scores`` is what its ``scores.json`` holds."""

    folder: Path
    scores: dict[str, Any]

    @property
    def benchmarks(self) -> dict[str, Any]:
        """By name, the entries of the benchmarks and composites."""
        found: dict[str, Any] = self.scores["benchmarks"]
        return found

    @property
    def model(self) -> str | None:
        """Fingerprint of the checkpoint's files; None where it was not recorded."""
        rows = (_first_row(self.folder / "generations" / f"{name}.jsonl") for name in self.benchmarks)
        return next((row["model_fingerprint"] for row in rows if "model_fingerprint" in row), None)

    def members(self, group: str) -> list[str]:
        """The benchmarks and composites that a group's average is the mean of."""
        return [name for name, entry in self.benchmarks.items() if entry["group"] == group]

    def group(self, name: str) -> str:
        """The group that a benchmark counts in, by itself or as a part of a composite."""
        holders = [one for one, entry in self.benchmarks.items() if name in (entry.get("parts") or [])]
        return str(self.benchmarks[holders[0] if holders else name]["group"])

    def lower_is_better(self, name: str) -> bool:
        return self.group(name) == "over_refusal" or self.benchmarks[name]["metric"] == "loss"

    def parts(self, name: str) -> list[str]:
        """The benchmarks that a composite is the mean of, or the benchmark itself."""
        return list(self.benchmarks[name].get("parts") or [name])

    def average(self, group: str) -> dict[str, Any]:
        """A group's average: ``value``, ``stderr``, ``low``, ``high``, ``missing``; empty in older evaluations."""
        return dict(self.scores.get("averages", {}).get(group, {}))

    def verdicts(self, benchmark: str) -> list[Row]:
        """The benchmark's verdicts, in the order of its items; none where it was not judged or not available.

        Raises:
            UserError: the file is damaged, or a verdict lacks its id or value.
        """
        path = _verdicts_file(self.folder, benchmark)
        if not path.exists() or self.benchmarks.get(benchmark, {}).get("error") is not None:
            return []
        rows = read_jsonl(path)
        for number, row in enumerate(rows, start=1):
            value = row.get("value")
            if not isinstance(row.get("id"), str) or not (value is None or isinstance(value, int | float)):
                raise UserError(f"{path}:{number}: no verdict; expected an id and a value, or null")
        return rows

    def generations(self, benchmark: str) -> list[Row]:
        """The benchmark's generations, in the order of its items; none where there are none.

        Raises:
            UserError: the file is damaged.
        """
        path = self.folder / "generations" / f"{benchmark}.jsonl"
        return read_jsonl(path) if path.exists() else []

    def categories(self, benchmark: str) -> dict[str, str]:
        """By the items' ids, the category that the benchmark's makers put each in; empty where they name none.

        Raises:
            UserError: the file is damaged.
        """
        return {row["id"]: row["category"] for row in self.generations(benchmark) if row.get("category") is not None}

    def instrument(self, benchmark: str) -> Instrument:
        """The inputs that the benchmark's verdicts depend on."""
        return read_instrument(self.folder, benchmark)


def read_instrument(folder: Path, benchmark: str) -> Instrument:
    """The inputs that a benchmark's verdicts in an evaluation's folder depend on, read from the first rows.

    Raises:
        UserError: such a row is damaged.
    """
    verdict, generation = (_first_row(folder / kind / f"{benchmark}.jsonl") for kind in ("verdicts", "generations"))
    return Instrument(
        data=generation.get("data_hash") or verdict.get("data_hash"),
        task=generation.get("task_hash"),
        rendered=generation.get("rendered_hash"),
        judge=verdict.get("judge"),
        # Its name before each judge had a hash of its own.
        judge_version=verdict.get("judge_hash") or verdict.get("judges_hash"),
        judge_model=verdict.get("judge_model"),
        prompt=verdict.get("prompt_hash"),
    )


def _first_row(path: Path) -> Row:
    if not path.exists():
        return {}
    with path.open(encoding="utf-8") as lines:
        try:
            row = json.loads(next(lines, "{}"))
        except json.JSONDecodeError:
            row = None
    if not isinstance(row, dict):
        raise UserError(f"{path}:1: not a JSON object; expected one JSON object a line")
    return row


def _verdicts_file(folder: Path, benchmark: str) -> Path:
    return folder / "verdicts" / f"{benchmark}.jsonl"


def content_hash(path: Path) -> str | None:
    """Sixteen hexadecimal digits over a file's bytes; None where there is none yet."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None


def is_evaluation(folder: Path) -> bool:
    return (folder / SCORES_FILE).is_file()


def evaluation_folders(directory: Path) -> Iterator[Path]:
    """The folders of evaluations at and below ``directory``, hidden ones left out."""
    for place, folders, _ in os.walk(directory):
        if is_evaluation(Path(place)):
            yield Path(place)
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))


def read_artefacts(folder: Path) -> Artefacts:
    """An evaluation's folder.

    Raises:
        UserError: its ``scores.json`` is missing, damaged or holds something else, or was not computed from the
            verdicts beside it: one line each.
    """
    path = folder / SCORES_FILE
    scores = read_json(path)
    benchmarks = scores.get("benchmarks") if isinstance(scores, dict) else None
    whole = isinstance(benchmarks, dict) and all(
        isinstance(entry, dict) and {"value", "n", "missing", "metric", "group"} <= entry.keys()
        for entry in benchmarks.values()
    )
    if not whole or not set(AVERAGES) <= scores.keys():
        raise UserError(f"{path}: holds no scores of an evaluation; delete it to recreate it")
    others = [
        f"{verdicts}: not the verdicts that {SCORES_FILE} was computed from; delete both and evaluate again"
        for name, entry in scores["benchmarks"].items()
        # Older evaluations do not say; of a benchmark that was not available, an earlier call's may lie there.
        if "verdicts_hash" in entry
        and entry.get("error") is None
        and entry["verdicts_hash"] != content_hash(verdicts := _verdicts_file(folder, name))
    ]
    if others:
        raise UserError(*others)
    return Artefacts(folder, scores)


def stage_evaluations(run: Path) -> list[Path]:
    """The evaluations after each of a finished run's stages, in their order.

    Raises:
        UserError: the run is not finished, or its evaluations are gone.
    """
    if not (run / METRICS_FILE).is_file():
        raise UserError(f"{run}: no {METRICS_FILE}: the run is not finished; name one of the folders in its eval/")
    # Numbered as the stages are; an evaluation of one's own may lie beside them.
    found = sorted(path.parent for path in run.glob(f"eval/[0-9][0-9]-*/{SCORES_FILE}"))
    if not found:
        raise UserError(f"{run}: no eval/<stage>/{SCORES_FILE}: the run's evaluations are gone")
    return found


def open_evaluation(path: Path) -> Artefacts:
    """An evaluation's folder, or of a finished run's directory the evaluation after its last stage.

    Raises:
        UserError: ``path`` is neither.
    """
    if is_evaluation(path):
        return read_artefacts(path)
    if (path / CONFIG_FILE).is_file():
        return read_artefacts(stage_evaluations(path)[-1])
    if path.is_dir():
        raise UserError(f"{path}: neither an evaluation ({SCORES_FILE}) nor a run directory ({CONFIG_FILE})")
    raise UserError(f"{path}: no such directory{closest_folder(path)}")


def item_seed(ids: Sequence[str], seed: int) -> tuple[int, int]:
    """A seed that two benchmarks on the same items share, so that these are drawn alike."""
    return seed, int.from_bytes(hashlib.sha256("\n".join(ids).encode()).digest()[:8])
