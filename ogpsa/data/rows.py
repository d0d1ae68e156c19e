"""The rows a run works on, read or built before anything heavy is imported, and kept in the run directory.

Columns (text): ``prompt`` with ``chosen`` and ``rejected``; SFT needs no ``rejected`` and takes ``completion``
for ``chosen``.
"""

import hashlib
import random
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ogpsa.config import Config, FileData, SetUse, StageName
from ogpsa.data.builders.settings import SCHEMAS
from ogpsa.testbed.rows import Rows, build_rows
from ogpsa.testbed.world import World
from ogpsa.utils.errors import UserError, closest_match
from ogpsa.utils.files import read_jsonl, to_jsonl, write_jsonl

Row = dict[str, Any]
COLUMNS: dict[str, tuple[str, ...]] = {"sft": ("prompt", "chosen"), "dpo": ("prompt", "chosen", "rejected")}


@dataclass(frozen=True)
class Data:
    """Rows by role.

    Attributes:
        evaluation: by benchmark; empty where the benchmarks bring their own.
        general: by stage, what of the reference sets is trained on beside the safety rows.
    """

    safety: list[Row]
    reference_sets: dict[str, list[Row]]
    evaluation: dict[str, list[Row]] = field(default_factory=dict)
    general: dict[StageName, list[Row]] = field(default_factory=dict)

    def training(self, stage: StageName) -> list[Row]:
        """The rows that ``stage`` trains on; their order in training is the trainer's to draw."""
        return [*self.safety, *self.general.get(stage, [])]

    def parts(self) -> Iterable[tuple[str, list[Row]]]:
        """Every part's rows, by the name of its file."""
        yield "safety", self.safety
        for folder, groups in (
            ("reference", self.reference_sets),
            ("evaluation", self.evaluation),
            ("general", self.general),
        ):
            for name, rows in groups.items():
                yield f"{folder}/{name}", rows

    def facts(self) -> dict[str, dict[str, Any]]:
        """Each part's row count, and the SHA-256 of its file."""
        return {
            name: {"rows": len(rows), "sha256": hashlib.sha256(to_jsonl(rows).encode()).hexdigest()}
            for name, rows in self.parts()
        }

    def write(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Write one JSONL file per part and return ``facts``."""
        for name, rows in self.parts():
            write_jsonl(folder / f"{name}.jsonl", rows)
        return self.facts()


def load_data(config: Config) -> Data:
    """All rows of a run.

    Raises:
        UserError: a file is missing, empty or lacks a column, or a reference set is smaller than wanted.
    """
    data = config.data
    evaluation: dict[str, list[Row]] = {}
    if not isinstance(data, FileData):
        built = _testbed(data.seed, data.safety_rows, data.reference_rows, data.evaluation_rows)
        safety, reference_sets, evaluation = built.safety, built.reference_sets, built.evaluation
    else:
        safety = _read_rows(data.safety, "data.safety", {stage.name for stage in config.stages})
        readers: dict[str, set[StageName]] = {}
        for stage, use in _set_uses(config, safety):
            readers.setdefault(use.name, set()).add(stage)
        reference_sets = {
            name: _read_rows(data.reference_sets[name], f"data.reference_sets.{name}", stages)
            for name, stages in readers.items()
        }
    _check_sizes(config, safety, reference_sets)
    general: dict[StageName, list[Row]] = {}
    for stage, use in _set_uses(config, safety):
        if use.trained_on:
            draw = random.Random(f"{config.seed} {stage} {use.name}")
            general.setdefault(stage, []).extend(draw.sample(reference_sets[use.name], use.rows))
    return Data(safety, reference_sets, evaluation, general)


@lru_cache(maxsize=4)
def _testbed(seed: int, safety_rows: int, reference_rows: int, evaluation_rows: int) -> Rows:
    """Kept for the next run of a sweep: nobody changes rows."""
    return build_rows(World(seed), seed, safety_rows, reference_rows, evaluation_rows)


def _set_uses(config: Config, safety: list[Row]) -> list[tuple[StageName, SetUse]]:
    return [(stage.name, use) for stage in config.stages for use in config.method.set_uses(stage.name, len(safety))]


def _read_rows(path: str, key: str, stages: Set[str]) -> list[Row]:
    try:
        found = read_jsonl(Path(path))
    except UserError as error:
        name = Path(path).parent.name
        built = name in SCHEMAS and not Path(path).exists()
        hint = f"; build it: python -m ogpsa.data build {name}" if built else ""
        raise UserError(*(f"{key}: {problem}{hint}" for problem in error.problems)) from None
    if not found:
        raise UserError(f"{key}: {path} holds no rows; expected one JSON object a line")
    columns = sorted({column for stage in stages for column in COLUMNS[stage]})
    rows = []
    for number, row in enumerate(found, start=1):
        row = {"chosen": row["completion"], **row} if "completion" in row else row
        for column in columns:
            if not isinstance(row.get(column), str) or not row[column].strip():
                known = ", ".join(sorted(row)) or "none"
                hint = closest_match(column, row.keys() - {column})
                raise UserError(
                    f"{key}: {path}:{number} has no text in column '{column}' (columns found: {known}); "
                    f"{' and '.join(sorted(stages))} need {', '.join(columns)}{hint}"
                )
        rows.append({column: row[column] for column in columns})
    return rows


def _check_sizes(config: Config, safety: list[Row], reference_sets: dict[str, list[Row]]) -> None:
    for name, use in _set_uses(config, safety):
        held = len(reference_sets[use.name])
        if held < use.rows:
            raise UserError(
                f"method.{use.key}: {use.rows} rows wanted for {name}, but reference set '{use.name}' "
                f"holds {held}; lower method.{use.key} or add rows"
            )
    for stage in config.stages:
        if len(safety) < stage.batch_size:
            raise UserError(
                f"{config.stage_key(stage.name)}.batch_size: {stage.batch_size} rows a step, but the safety set holds "
                f"only {len(safety)}; lower it (and micro_batch_size) or add rows"
            )
