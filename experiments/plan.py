"""Plan of an experiment before anything runs: runs, GPU hours, memory, disk and judge calls."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.execute import Task
from experiments.rows import Experiment, Suite
from ogpsa.config import Config, FileData, StageName
from ogpsa.preflight.memory import GB
from ogpsa.utils.endpoint import CHARACTERS_PER_TOKEN
from ogpsa.utils.errors import Problems, UserError
from ogpsa.utils.table import in_columns

if TYPE_CHECKING:
    from ogpsa.data.rows import Data
    from ogpsa.preflight.memory import ModelShape
    from ogpsa.preflight.report import Counts

# Forward and backward pass of a token, per parameter: Kaplan et al., arXiv 2001.08361, section 2.1.
OPERATIONS = 6


@dataclass(frozen=True)
class RowPlan:
    """One row of the table of plans; a value that cannot be known is None, and ``problems`` says why.

    Attributes:
        hours: GPU hours of one run, all its stages.
        peak: bytes per GPU at the highest moment of any stage; ``advice``: what would make it fit.
        disk: bytes that one finished run leaves.
        judge_calls: of one run's evaluations, the untuned model's left out, and of its reward; ``uncounted``:
            benchmarks that are not in them.
        assumed: steps, hours and the share rest on rows that are not built yet.
    """

    row: str
    runs: int
    done: int
    steps: tuple[int, ...] = ()
    reference_share: float | None = None
    hours: float | None = None
    peak: float | None = None
    advice: str = ""
    disk: float | None = None
    judge_calls: int = 0
    uncounted: tuple[str, ...] = ()
    assumed: bool = False
    problems: tuple[str, ...] = ()


def plan(experiment: Experiment, tasks: Sequence[Task], suite: Suite) -> str:
    """The plan as a text: a line per row, the sums, and what they rest on."""
    ordered = sorted(tasks, key=lambda task: experiment.rows.index(task.point.row))
    plans = [_row_plan(row, list(own), suite) for row, own in groupby(ordered, key=lambda task: task.point.row)]
    left = {one.row: one.runs - one.done for one in plans}
    cells = [_cells(one, suite.device.name) for one in plans]
    lines = [f"{experiment.name}: {experiment.settings.title}", *in_columns(cells)]
    hours = [one.hours * left[one.row] for one in plans if one.hours is not None]
    disk = [one.disk * one.runs for one in plans if one.disk is not None]
    calls = sum(one.judge_calls * left[one.row] for one in plans)
    known = f"{sum(hours):.1f} {suite.device.name} hours, disk: {sum(disk) / GB:.1f} GB" if hours else "hours: ?"
    unknown = "" if len(hours) == len(plans) else f" (without {len(plans) - len(hours)} rows: see below)"
    lines.append(
        f"{sum(one.runs for one in plans)} runs, {sum(one.done for one in plans)} done; to go: {known}{unknown}, "
        f"{calls} judge calls. At most: stages and evaluations that runs have in common are made and kept once; while "
        "a stage trains, two checkpoints with the optimizer's state are kept in addition."
    )
    lines.append(
        f"hours: {OPERATIONS} operations per parameter and token, {OPERATIONS + 2} with checkpointing, at "
        f"{suite.device.utilisation:.0%} of {suite.device.teraflops:g} TFLOP/s (experiments/definitions/suites), "
        f"{CHARACTERS_PER_TOKEN} characters per token; evaluation is not in them, "
        "and GRPO's generation counts by its operations, though it takes longer"
    )
    uncounted = ", ".join(dict.fromkeys(name for one in plans for name in one.uncounted))
    if uncounted:
        lines.append(
            f"judge calls: without {uncounted}, whose number of rows is not published, and without second asks"
        )
    if any(one.assumed for one in plans):
        lines.append(
            "~: rests on rows that are not built yet: as many as python -m ogpsa.data build writes, each of "
            f"{suite.row_tokens} tokens (row_tokens in experiments/definitions/suites)"
        )
    return "\n".join([*lines, *dict.fromkeys(problem for one in plans for problem in one.problems)])


def _row_plan(row: str, tasks: Sequence[Task], suite: Suite) -> RowPlan:
    from eval.judging.reward import JUDGES
    from ogpsa.data.rows import check_sizes, load_data
    from ogpsa.preflight.memory import shape_of
    from ogpsa.preflight.report import count, fit, meta_model

    config = tasks[0].point.config
    problems = Problems()
    shape = data = None
    with problems.kept():
        shape = shape_of(meta_model(config))
    assumed = False
    try:
        data = load_data(config)
    except UserError as error:
        problems.found += error.problems
        data = stand_in(config, suite.row_tokens)
        assumed = data is not None
    with problems.kept():
        if assumed and data is not None:
            check_sizes(config, data.safety, data.reference_sets)
    counts = [
        count(stage, config.method.projection(stage.name), data, config.model.gradient_checkpointing, suite.devices)
        for stage in config.stages
        if data is not None
    ]
    samples = sum(one.samples for one in counts)
    references = sum(one.reference_samples for one in counts)
    calls, uncounted = _judge_calls(config)
    memory = fit(config, suite.devices, suite.device.memory_gb, JUDGES) if shape is not None else None
    return RowPlan(
        row,
        runs=len(tasks),
        done=sum(task.done for task in tasks),
        steps=tuple(one.steps for one in counts),
        reference_share=references / (references + samples) if counts else None,
        hours=_hours(config, shape, sum(one.characters for one in counts), suite) if shape and counts else None,
        peak=memory.peak if memory else None,
        advice=memory.text if memory else "",
        disk=4.0 * shape.parameters * _checkpoints(config) if shape else None,
        judge_calls=calls + _reward_calls(config, counts),
        uncounted=tuple(uncounted),
        assumed=assumed,
        problems=tuple(problems.found),
    )


def stand_in(config: Config, row_tokens: int | None) -> "Data | None":
    """Rows of ``row_tokens`` tokens, as many as our builders write, for a run whose files are not there yet.

    Returns:
        None where no file is missing, or one is of no builder, so that nobody knows how many rows it will hold.
    """
    from ogpsa.data.builders.settings import SCHEMAS, load_settings
    from ogpsa.data.rows import Data, all_uses

    files = config.data
    if row_tokens is None or not isinstance(files, FileData):
        return None
    sizes = {
        str(Path(settings.output) / f"{part}.jsonl"): number
        for settings in map(load_settings, SCHEMAS)
        for part, number in settings.sizes().items()
    }
    half = "x" * (row_tokens * CHARACTERS_PER_TOKEN // 2)
    row = {"prompt": half, "chosen": half, "rejected": half}
    safety = [row] * sizes.get(files.safety, 0)
    uses = all_uses(config, len(safety))
    read = {files.safety, *(files.reference_sets[use.name] for _, use in uses)}
    if not read <= sizes.keys() or all(Path(file).is_file() for file in read):
        return None
    sets = {use.name: [row] * sizes[files.reference_sets[use.name]] for _, use in uses}
    general: dict[StageName, list[dict[str, Any]]] = {}
    for stage, use in uses:
        if use.trained_on:
            general.setdefault(stage, []).extend([row] * use.rows)
    return Data(safety, sets, general=general)


def _hours(config: Config, shape: "ModelShape", characters: float, suite: Suite) -> float:
    operations = OPERATIONS + 2 * config.model.gradient_checkpointing
    work = operations * shape.parameters * characters / CHARACTERS_PER_TOKEN
    return work / (suite.device.teraflops * 1e12 * suite.device.utilisation) / 3600


def _checkpoints(config: Config) -> int:
    return config.method.results([stage.name for stage in config.stages])


def _judge_calls(config: Config) -> tuple[int, list[str]]:
    """Of the evaluations of one run's checkpoints, the untuned model's left out.

    Returns:
        The calls, and the benchmarks that are not in them, since nobody says how many rows these have.
    """
    from eval.benchmarks.definition import OWN_METRIC
    from eval.judging.judge import endpoint_judges
    from eval.scores.groups import check_groups

    calls, uncounted = 0, list[str]()
    for benchmark in check_groups(config.eval):
        if benchmark.judge != OWN_METRIC and benchmark.source is not None:
            asked = endpoint_judges(benchmark.judge, config.eval.judge)
            rows = min(filter(None, (config.eval.rows_of(benchmark.name), benchmark.source.count)), default=None)
            calls += asked * (rows or 0)
            uncounted += [benchmark.name] if asked and rows is None else []
    return _checkpoints(config) * calls, uncounted


def _reward_calls(config: Config, counts: Sequence["Counts"]) -> int:
    """Of the completions of one run: at most, since a reward may ask a judge about some of them alone."""
    from eval.judging.judge import endpoint_judges

    if config.reward is None:
        return 0
    completions = sum(one.samples for stage, one in zip(config.stages, counts, strict=False) if stage.name == "grpo")
    return completions * sum(endpoint_judges(name, config.eval.judge) for name in config.reward.judges())


def _cells(one: RowPlan, device: str) -> dict[str, str]:
    about = "~" if one.assumed else ""
    return {
        "row": one.row,
        "runs": f"{one.done}/{one.runs}",
        "steps": about + " + ".join(map(str, one.steps)) if one.steps else "?",
        "reference rows": "?" if one.reference_share is None else f"{about}{one.reference_share:.1%}",
        f"{device} hours per run": "?" if one.hours is None else f"{about}{one.hours:.2g}",
        "GB per device": "?" if one.peak is None else f"{one.peak / GB:.3g}",
        "": one.advice,
    }
