"""The benchmarks that enter each average, and how each is scored."""

from eval.benchmarks.definition import OWN_METRIC, Benchmark, find_benchmarks
from eval.judging.judge import Metric, check_judge_settings, judge_files, load_judge
from ogpsa.config import Evaluation, JudgeSettings
from ogpsa.utils.errors import UserError, closest_match

AVERAGED: dict[str, tuple[Metric, ...]] = {
    "safety": ("refusal_rate", "goodness"), "utility": ("accuracy",), "over_refusal": ("refusal_rate",),
}  # fmt: skip


def scored_by(benchmark: Benchmark, settings: JudgeSettings) -> Metric:
    """Name of the mean of a benchmark's verdicts."""
    if benchmark.judge != OWN_METRIC:
        return load_judge(benchmark.judge, settings.dir).metric
    return "loss" if benchmark.measures_loss else "accuracy"


def check_groups(settings: Evaluation) -> list[Benchmark]:
    """The benchmarks of an evaluation, whose averages mean one thing each.

    Raises:
        UserError: as ``find_benchmarks``; there is no such judge, a benchmark's metric is not that of its average, or
            the parts of a composite are scored in different ways.
    """
    found = find_benchmarks(settings.benchmarks, settings.judges, settings.task_dir, settings.max_new_tokens)
    # Also for benchmarks that are not evaluated: an evaluation's limits stay when its groups are overridden.
    find_benchmarks(settings.limits, folder=settings.task_dir, key="eval.limits")
    check_judge_settings(settings.judge)
    _check_judges(found, settings)
    metrics = {benchmark.name: scored_by(benchmark, settings.judge) for benchmark in found}
    judges = {benchmark.name: benchmark.judge for benchmark in found}
    problems = []
    for group, names in settings.groups.items():
        for name in settings.parts(names):
            if group in AVERAGED and metrics[name] not in AVERAGED[group]:
                allowed = " and ".join(AVERAGED[group])
                problems.append(f"eval.{group}: '{name}' is scored by {metrics[name]}; {group} averages {allowed}")
    for name, parts in settings.composites.items():
        kinds = {(metrics[part], judges[part]) for part in parts if part in metrics}
        if len(kinds) > 1:
            ways = " and ".join(sorted(f"{metric} by {judge}" for metric, judge in kinds))
            problems.append(f"eval.composites.{name}: its parts are scored by {ways}; give them one judge")
    if not found:
        problems.append("eval: no benchmark is named; add one to safety, utility, over_refusal or reported")
    if problems:
        raise UserError(*problems)
    return found


def _check_judges(benchmarks: list[Benchmark], settings: Evaluation) -> None:
    """Refuse unknown judges, and a judge of responses for a benchmark without responses."""
    names = list(judge_files(settings.judge.dir))
    problems = [
        f"eval.judges.{name}: unknown judge '{judge}'; allowed: {', '.join(names)}{closest_match(judge, names)}"
        for name, judge in settings.judges.items()
        if judge not in names
    ]
    for benchmark in benchmarks:
        name, judge = benchmark.name, benchmark.judge
        if name not in settings.judges and judge not in (*names, OWN_METRIC):
            allowed = [*names, OWN_METRIC]
            problems.append(
                f"{benchmark.file}: metadata.judge: found '{judge}'; allowed: {', '.join(allowed)}"
                f"{closest_match(judge, allowed)}"
            )
        elif judge in names and not benchmark.generates:
            problems.append(f"eval.judges.{name}: '{judge}' reads responses, and '{name}' has none; leave it out")
    if problems:
        raise UserError(*problems)
