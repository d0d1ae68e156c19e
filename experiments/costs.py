"""Costs of a method: reference rows by count, time from the trainers' notes, memory by sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from experiments.outcomes import Row, reference_of, usual_of
from experiments.rows import Experiment, load_suite
from ogpsa.config import Config, StageName
from ogpsa.preflight.memory import BASIS_BYTES
from ogpsa.subspace.settings import ProjectionSettings
from ogpsa.utils.errors import UserError

if TYPE_CHECKING:
    from eval.scores.finished import FinishedRun
    from ogpsa.preflight.report import Counts

RELATIVE = "relative to the reference"
MEASURED = ("refresh", "projection", "time", "step", "setup", "pairs")
# In the order of StageCost.
COLUMNS = {
    "reference rows": "{:.1%}",
    "work on them": "{:.1%}",
    "refreshing": "{:.1%}",
    "projecting": "{:.1%}",
    "time per step": "× {:.2f}",
    RELATIVE: "× {:.2f}",
    "set-up": "{:.3g} s",
    "basis / weights": "{:.2f}",
    "peak": "{:.3g} GB",
}
NOTES = (
    "Stage by stage (SFT / DPO). Reference rows: their share of all rows that pass through the model in training. "
    "Work on them: their passes' share of all passes, by length of the texts. Both are counted as `preflight=true` "
    "does, also for rows that have not run; empty where the data is not there.",
    "Refreshing: seconds a refresh, mean over the log, times refreshes; projecting: seconds a projected step times "
    "steps; both as a share of the stage's training time, mean over the seeds that trained in one session. Time per "
    "step: 1 / (1 − refreshing − projecting), a ratio within one run, since other runs share the machine.",
    "Relative to the reference: time per step divided by that of the row that rows are compared with, mean over the "
    "seeds that both trained in one session and at the same revision; n says how many, where it is not all; on the "
    "testbed the processor's time, which others disturb less. In GRPO the lengths of the completions tell too. Set-up: "
    "what NSPO's null spaces took, once for all runs from the same model.",
    "Basis / weights: bytes of the basis (OGPSA: rank × trained weights × bytes a number; NSPO: its spaces' bases) by "
    "those of the trained weights in fp32. Peak: the pre-flight's estimate for a GPU.",
)


@dataclass(frozen=True)
class StageCost:
    """Costs of one stage; None where it is not known or has not run.

    Attributes:
        rows: reference rows as a share of all rows that pass through the model; ``work``: their share of the work.
        refresh: time in refreshes as a share of the training time; ``projection``: time in projecting.
        time: per step, as a multiple of a step without the two.
        step: a whole step's time, as a multiple of that of the reference row's; ``pairs``: seeds that it is a mean of.
        setup: seconds that went before the stages.
        basis: memory of the basis as a multiple of that of the trained weights in fp32.
        peak: GB of a GPU at the highest moment, as estimated.
    """

    rows: float | None
    work: float | None
    refresh: float | None
    projection: float | None
    time: float | None
    step: float | None
    setup: float | None
    basis: float | None
    peak: float | None
    pairs: int


@dataclass(frozen=True)
class Cost:
    """A row's, by stage."""

    row: Row
    stages: dict[StageName, StageCost]

    def cells(self) -> dict[str, str]:
        seeds, stages = len(self.row.by_seed()), list(self.stages.values())
        fewer = [f" (n = {one.pairs})" if 0 < one.pairs < seeds else "" for one in stages]
        # The number of pairs is in no column of its own.
        columns = list(zip(*(asdict(one).values() for one in stages), strict=True))[:-1]
        return {
            title: _stages(values, form, fewer if title == RELATIVE else [""] * len(stages))
            for values, (title, form) in zip(columns, COLUMNS.items(), strict=True)
        }

    def numbers(self, measured: bool) -> dict[str, float | None]:
        """By stage and quantity; ``measured``: those too that were measured, not counted."""
        return {
            f"{stage}_{name}": value if measured or name not in MEASURED else None
            for stage, one in self.stages.items()
            for name, value in asdict(one).items()
        }


def costs(experiment: Experiment, suite: str, rows: Sequence[Row]) -> list[Cost]:
    """The cost of each row, as far as it is known."""
    devices = load_suite(suite).devices
    found = []
    for row in rows:
        counts = _counts(row.config, devices)
        other = (usual_of if experiment.settings.reference is None else reference_of)(row, experiment, rows)
        names = [stage.name for stage in row.config.stages]
        stages = {stage: _stage(row, other, stage, counts.get(stage), devices) for stage in names}
        found.append(Cost(row, stages))
    return found


def _counts(config: Config, devices: int) -> "dict[StageName, Counts]":
    from ogpsa.data.rows import load_data
    from ogpsa.preflight.report import count

    try:
        data = load_data(config)
    except UserError:  # The paper's data is not built yet.
        return {}
    checkpointing = config.model.gradient_checkpointing
    return {
        stage.name: count(stage, config.method.projection(stage.name), data, checkpointing, devices)
        for stage in config.stages
    }


def _stage(row: Row, other: Row | None, stage: StageName, counts: "Counts | None", devices: int) -> StageCost:
    settings = row.config.method.projection(stage)
    histories = _histories(row, stage)
    refresh = projection = time = None
    if settings is not None and histories and counts is not None:
        refresh = fmean(_mean(one, "refresh_seconds") * counts.refreshes / _runtime(one) for one in histories)
        projection = fmean(_mean(one, "projection_seconds") * one[-1]["step"] / _runtime(one) for one in histories)
        time = 1 / (1 - refresh - projection)
    ratios = _ratios(_step_seconds(row, stage), _step_seconds(other, stage)) if other else []
    return StageCost(
        rows=counts.share if counts else None,
        work=counts.work if counts else None,
        refresh=refresh,
        projection=projection,
        time=time,
        step=fmean(ratios) if ratios else None,
        setup=_logged(histories, "setup_seconds"),
        basis=_basis(settings, row.config) if settings else _logged_basis(row.config, stage, histories),
        peak=_peak(row.config, stage, devices),
        pairs=len(ratios),
    )


def _step_seconds(row: Row, stage: StageName) -> dict[tuple[int, str], float]:
    """Time of a step: CPU time on the testbed, whose runs share a machine, wall-clock time elsewhere.

    By seed and revision: runs of different revisions may have been made on different machines.
    """
    found = {}
    for seed, result in row.by_seed().items():
        facts = result.run.facts(stage)
        if not facts.get("steps") or not _in_one_session(result.run, stage):
            continue
        if row.config.model.path is None and "cpu_seconds" in facts:
            found[seed, result.run.revision] = facts["cpu_seconds"] / facts["steps"]
        elif row.config.model.path is not None:
            found[seed, result.run.revision] = _runtime(result.run.history(stage)) / facts["steps"]
    return found


def _ratios(ours: Mapping[tuple[int, str], float], theirs: Mapping[tuple[int, str], float]) -> list[float]:
    return [ours[key] / theirs[key] for key in ours if theirs.get(key)]


def _logged(histories: Sequence[Sequence[dict[str, Any]]], name: str) -> float | None:
    """The mean over runs of what their trainers logged; None where they did not."""
    values = [_mean(one, name) for one in histories if any(f"projection/{name}" in line for line in one)]
    return fmean(values) if values else None


def _logged_basis(config: Config, stage: StageName, histories: Sequence[Sequence[dict[str, Any]]]) -> float | None:
    from ogpsa.preflight.report import stage_shapes

    if not config.method.prepared_from():
        return 0.0
    found = _logged(histories, "basis_bytes")
    return None if found is None else found / (BASIS_BYTES["fp32"] * stage_shapes(config, stage)[1].trained)


def _peak(config: Config, stage: StageName, devices: int) -> float | None:
    from eval.judging.reward import JUDGES
    from ogpsa.preflight.memory import GB, estimate
    from ogpsa.preflight.report import stage_setup, stage_shapes

    settings = next(one for one in config.stages if one.name == stage)
    try:
        shape = stage_shapes(config, stage)[1]
    except UserError:  # The model's configuration is not here.
        return None
    return estimate(shape, stage_setup(config, settings, config.distributed.name, devices, JUDGES)).peak / GB


def _histories(row: Row, stage: StageName) -> list[list[dict[str, Any]]]:
    """The logs of stages that were trained in one session; a resumed stage logs only the time of its last session."""
    found = [result.run.history(stage) for result in row.by_seed().values() if _in_one_session(result.run, stage)]
    return [lines for lines in found if any("train_runtime" in line for line in lines)]


def _in_one_session(run: "FinishedRun", stage: StageName) -> bool:
    """Whether the stage was trained without a break, by ``run`` or by the run that it took the stage from."""
    facts = run.facts(stage)
    # Earlier revisions do not note the steps of the last session.
    return bool(facts["session_steps"] == facts["steps"]) if "session_steps" in facts else not run.interrupted


def _runtime(history: Sequence[dict[str, Any]]) -> float:
    return float(next(line["train_runtime"] for line in history if "train_runtime" in line))


def _mean(history: Sequence[dict[str, Any]], name: str) -> float:
    """The mean of a logged number; 0 if it was never logged."""
    values = [line[f"projection/{name}"] for line in history if f"projection/{name}" in line]
    return fmean(values) if values else 0.0


def _basis(settings: ProjectionSettings, config: Config) -> float:
    dtype = settings.basis_dtype
    if dtype == "auto":
        dtype = "bf16" if config.model.precision == "bf16" else "fp32"
    return settings.rank * BASIS_BYTES[dtype] / BASIS_BYTES["fp32"]


def _stages(values: Sequence[float | None], form: str, more: Sequence[str]) -> str:
    """The stages' values, each with what is said of it behind; empty where none is known."""
    if all(value is None for value in values):
        return ""
    pairs = zip(values, more, strict=True)
    return " / ".join("–" if value is None else f"{form.format(value)}{behind}" for value, behind in pairs)
