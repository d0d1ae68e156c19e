"""What projection costs: reference rows by count, time from what the trainers logged, memory by the basis's size."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from experiments.outcomes import Row
from experiments.rows import load_suite
from ogpsa.config import Config, StageName
from ogpsa.preflight.memory import BASIS_BYTES
from ogpsa.subspace.settings import ProjectionSettings
from ogpsa.utils.errors import UserError

if TYPE_CHECKING:
    from ogpsa.preflight.report import Counts

# In the order of StageCost.
COLUMNS = {
    "reference rows": "{:.1%}",
    "work on them": "{:.1%}",
    "refreshing": "{:.1%}",
    "projecting": "{:.1%}",
    "time per step": "× {:.2f}",
    "basis / weights": "{:.2f}",
}
NOTES = (
    "Stage by stage (SFT / DPO). Reference rows: their share of all rows that pass through the model in training. "
    "Work on them: their passes' share of all passes, by length of the texts. Both are counted as `preflight=true` "
    "does, also for rows that have not run; empty where the data is not there.",
    "Refreshing: seconds a refresh, mean over the log, times refreshes; projecting: seconds a projected step times "
    "steps; both as a share of the stage's training time, mean over the seeds that ran without interruption. Time per "
    "step: what these shares make of a step, one over what they leave. Each is a ratio within one run: others go on "
    "beside it.",
    "Basis / weights: bytes of the basis (rank × trained weights × bytes a number) by theirs in fp32.",
)


@dataclass(frozen=True)
class StageCost:
    """One stage's; None where it is not known or has not run.

    Attributes:
        rows: reference rows as a share of all rows that pass through the model; ``work``: their share of the work.
        refresh: time in refreshes as a share of the training time; ``projection``: time in projecting.
        time: per step, as a multiple of a step without the two.
        basis: memory of the basis as a multiple of that of the trained weights in fp32.
    """

    rows: float | None
    work: float | None
    refresh: float | None
    projection: float | None
    time: float | None
    basis: float


@dataclass(frozen=True)
class Cost:
    """A row's, by stage."""

    row: Row
    stages: dict[StageName, StageCost]

    def cells(self) -> dict[str, str]:
        columns = zip(*(asdict(one).values() for one in self.stages.values()), strict=True)
        return {title: _stages(values, form) for values, (title, form) in zip(columns, COLUMNS.items(), strict=True)}

    def numbers(self) -> dict[str, float | None]:
        """By stage and quantity."""
        return {f"{stage}_{name}": value for stage, one in self.stages.items() for name, value in asdict(one).items()}


def costs(suite: str, rows: Sequence[Row]) -> list[Cost]:
    """What each row costs, as far as it is known."""
    devices = load_suite(suite).devices
    found = []
    for row in rows:
        counts = _counts(row.config, devices)
        found.append(Cost(row, {stage: _stage(row, stage, counts.get(stage)) for stage in _names(row.config)}))
    return found


def _names(config: Config) -> list[StageName]:
    return [stage.name for stage in config.stages]


def _counts(config: Config, devices: int) -> "dict[StageName, Counts]":
    from ogpsa.data.rows import load_data
    from ogpsa.preflight.report import count

    try:
        data = load_data(config)
    except UserError:  # The paper's data has yet to be built.
        return {}
    checkpointing = config.model.gradient_checkpointing
    return {
        stage.name: count(stage, config.method.projection(stage.name), data, checkpointing, devices)
        for stage in config.stages
    }


def _stage(row: Row, stage: StageName, counts: "Counts | None") -> StageCost:
    settings = row.config.method.projection(stage)
    histories = _histories(row, stage)
    refresh = projection = time = None
    if settings is not None and histories and counts is not None:
        refresh = fmean(_mean(one, "refresh_seconds") * counts.refreshes / _runtime(one) for one in histories)
        projection = fmean(_mean(one, "projection_seconds") * one[-1]["step"] / _runtime(one) for one in histories)
        time = 1 / (1 - refresh - projection)
    return StageCost(
        rows=counts.share if counts else None,
        work=counts.work if counts else None,
        refresh=refresh,
        projection=projection,
        time=time,
        basis=_basis(settings, row.config) if settings else 0.0,
    )


def _histories(row: Row, stage: StageName) -> list[list[dict[str, Any]]]:
    """Of runs that were made in one go: a trainer's time is that of its last session."""
    found = [result.run.history(stage) for result in row.by_seed().values() if len(result.run.sessions) <= 1]
    return [lines for lines in found if any("train_runtime" in line for line in lines)]


def _runtime(history: Sequence[dict[str, Any]]) -> float:
    return float(next(line["train_runtime"] for line in history if "train_runtime" in line))


def _mean(history: Sequence[dict[str, Any]], name: str) -> float:
    """Of what was logged; 0 where that never happened."""
    values = [line[f"projection/{name}"] for line in history if f"projection/{name}" in line]
    return fmean(values) if values else 0.0


def _basis(settings: ProjectionSettings, config: Config) -> float:
    dtype = settings.basis_dtype
    if dtype == "auto":
        dtype = "bf16" if config.model.precision == "bf16" else "fp32"
    return settings.rank * BASIS_BYTES[dtype] / BASIS_BYTES["fp32"]


def _stages(values: Sequence[float | None], form: str) -> str:
    return (
        ""
        if all(value is None for value in values)
        else " / ".join("–" if value is None else form.format(value) for value in values)
    )
