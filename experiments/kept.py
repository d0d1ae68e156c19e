"""Finished runs kept without their weights, one line of JSON each: all that a report reads of them.

``python -m experiments keep`` writes ``experiments/results/<suite>/runs.jsonl``, which is committed; with ``kept=true``
``report`` shows these runs in addition to those that have run here, and ``run`` leaves them out where ``usable_here``.
A run is known by its name, which holds a hash of its configuration.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from eval.scores.aggregate import AVERAGES
from eval.scores.finished import FinishedRun
from experiments.distance import untuned_folder
from experiments.rows import Point
from ogpsa.config import Config, Section, StageName, describe
from ogpsa.runs.inputs import folder_digest
from ogpsa.utils.errors import UserError
from ogpsa.utils.files import read_jsonl, to_jsonl, write_atomically

RESULTS = Path(__file__).parent / "results"
# Of a benchmark's scores.
ENTRIES = ("value", "stderr", "n", "missing", "refused", "metric")
# Of a line that a trainer logged: what no table reads, as numbers by layer group, is left out.
LOGGED = re.compile(
    r"step|loss|reward(_std|_missing)?|refused/\w+|frac_reward_zero_std|completions/(mean_length|clipped_ratio)|kl(_to_start)?"
    r"|train_runtime|projection/\w+|projection/(signed_cosine|reference_loss)/[^/]+|projection/null_share/\w+/median"
)
# Of the facts of a finished stage.
FACTS = ("steps", "session_steps", "cpu_seconds")


class Stage(Section):
    """A stage's facts and what its trainer logged."""

    facts: dict[str, float]
    history: list[dict[str, Any]]


class Record(Section):
    """A finished run.

    Attributes:
        run: its name (``Config.run_name``). row, seed, strength: those it was run as; another experiment may list it
            under another row.
        untuned: digest of the untuned model's files; None where the run noted none.
        seconds: of the session that finished it; interrupted: there were others before it.
        moved: distance of the last weights from the untuned model's in percent; direction: cosine of their displacement
            with naive tuning's; None where the experiment does not show it, or weights were not available.
        metrics: of ``metrics.json`` the untuned model's averages and benchmarks and those of each stage.
    """

    run: str
    row: str
    seed: int
    strength: float
    revision: str
    untuned: str | None
    seconds: float = Field(ge=0)
    interrupted: bool
    moved: float | None
    direction: float | None
    metrics: dict[str, Any]
    stages: dict[StageName, Stage]


@dataclass(frozen=True)
class KeptRun(FinishedRun):
    """A run of which only the record is available; ``directory`` is where it would lie."""

    record: Record

    @property
    def revision(self) -> str:
        return self.record.revision

    @cached_property
    def untuned(self) -> str | None:
        return self.record.untuned

    @property
    def seconds(self) -> float:
        return self.record.seconds

    @property
    def interrupted(self) -> bool:
        return self.record.interrupted

    def history(self, stage: StageName) -> list[dict[str, Any]]:
        return self.record.stages[stage].history if stage in self.record.stages else []

    def facts(self, stage: StageName) -> dict[str, Any]:
        return dict(self.record.stages[stage].facts) if stage in self.record.stages else {}


def kept_file(suite: str) -> Path:
    return RESULTS / suite / "runs.jsonl"


def read_kept(file: Path) -> dict[str, Record]:
    """The records by run; none where there is no such file.

    Raises:
        UserError: a line is damaged.
    """
    if not file.is_file():
        return {}
    records = {}
    for number, line in enumerate(read_jsonl(file), 1):
        try:
            record = Record.model_validate(line)
        except ValidationError as error:
            raise UserError(*(f"{file}:{number}: {problem}" for problem in describe(error, line))) from None
        records[record.run] = record
    return records


def usable_here(records: Mapping[str, Record], points: Iterable[Point]) -> dict[str, Record]:
    """The records of the points' runs that began with the untuned model that is here, or may have.

    A base that the testbed trains has other weights on every machine, and a record of one is of no use beside runs of
    another. A model that has yet to be fetched may be the same.
    """
    digest = cache(folder_digest)

    def usable(record: Record, config: Config) -> bool:
        folder = untuned_folder(config)
        if folder is None:
            return True
        return folder.is_dir() and digest(folder) == record.untuned

    named = {point.config.run_name(): point.config for point in points}
    return {name: records[name] for name, config in named.items() if name in records and usable(records[name], config)}


def record_of(run: FinishedRun, point: Point, moved: float | None, direction: float | None) -> Record:
    """What is kept of a run that lies in its own directory."""
    return Record(
        run=run.directory.name,
        row=point.row,
        seed=point.seed,
        strength=point.strength,
        revision=run.revision,
        untuned=run.untuned,
        seconds=round(run.seconds, 1),
        interrupted=run.interrupted,
        moved=moved,
        direction=direction,
        metrics=_scores(run.metrics)
        | {"base": _scores(run.metrics["base"])}
        | {"stages": {name: _scores(part) for name, part in run.metrics["stages"].items()}},
        stages={
            name: Stage(
                facts={key: value for key, value in run.facts(name).items() if key in FACTS},
                history=[line for logged in run.history(name) if (line := _logged(logged)).keys() - {"step"}],
            )
            for name in (stage.name for stage in point.config.stages)
        },
    )


def add_records(file: Path, records: Iterable[Record]) -> tuple[int, int]:
    """Write the records in addition to those that ``file`` has, in the order of their names.

    A new record replaces an old one of the same run. Where the run's weights are gone, ``moved`` and ``direction``
    stay, unless the old run began with another model.

    Returns:
        How many were added, and how many there are.
    """
    known = read_kept(file)
    every = dict(known)
    for record in records:
        old = known.get(record.run, record)
        if old.untuned != record.untuned:
            old = record
        moved = old.moved if record.moved is None else record.moved
        direction = old.direction if record.direction is None else record.direction
        every[record.run] = record.model_copy(update={"moved": moved, "direction": direction})
    write_atomically(file, to_jsonl(every[name].model_dump(mode="json") for name in sorted(every)))
    return len(every) - len(known), len(every)


def _scores(part: Mapping[str, Any]) -> dict[str, Any]:
    entries = {
        name: {key: entry[key] for key in ENTRIES if key in entry} for name, entry in part.get("benchmarks", {}).items()
    }
    return {name: part[name] for name in AVERAGES} | ({"benchmarks": entries} if entries else {})


def _logged(line: Mapping[str, Any]) -> dict[str, Any]:
    """To six digits, which are more than any table shows."""
    found = {name: value for name, value in line.items() if LOGGED.fullmatch(name)}
    return {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in found.items()}
