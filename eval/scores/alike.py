"""Two evaluations, A and B: a command's arguments for them, and whether they measure the same."""

from argparse import ArgumentParser
from pathlib import Path

from eval.scores.artefacts import Artefacts, Instrument
from ogpsa.utils.errors import UserError


def add_sides(parser: ArgumentParser) -> None:
    """The two arguments, ``a`` and ``b``."""
    for side in ("A", "B"):
        parser.add_argument(side.lower(), metavar=side, type=Path, help="folder of an evaluation, or a run's directory")


def shared_benchmarks(a: Artefacts, b: Artefacts) -> list[str]:
    """The single benchmarks, no composites, that are in both."""
    return [name for name in a.benchmarks if name in b.benchmarks and a.parts(name) == [name] == b.parts(name)]


def check_items(a: Artefacts, b: Artefacts, name: str) -> None:
    """Refuse a benchmark if the two differ in its items, data or metric.

    Raises:
        UserError: names what differs, on both sides.
    """
    ids_a, ids_b = ([row["id"] for row in side.verdicts(name)] for side in (a, b))
    only_a, only_b = (sorted(set(first) - set(second)) for first, second in ((ids_a, ids_b), (ids_b, ids_a)))
    if only_a or only_b:
        told = [f"{len(only)} only in {side} ({only[0]}, …)" for side, only in (("A", only_a), ("B", only_b)) if only]
        raise UserError(f"{name}: not the same items: {len(ids_a)} in A, {len(ids_b)} in B; {', '.join(told)}")
    data_a, data_b = a.instrument(name).data, b.instrument(name).data
    if data_a != data_b:
        raise UserError(f"{name}: not the same data: data_hash {data_a} in A, {data_b} in B")
    metric_a, metric_b = a.benchmarks[name]["metric"], b.benchmarks[name]["metric"]
    if metric_a != metric_b:
        raise UserError(f"{name}: not the same metric: {metric_a} in A, {metric_b} in B")


def differing(one: Instrument, other: Instrument) -> list[str]:
    """Differences between the two sides' judges and tasks, both named; empty where they were asked and judged alike."""
    told = []
    if (one.judge, one.judge_version) != (other.judge, other.judge_version):
        told = _pair("judge", _judge(one), _judge(other))
        if one.judge == other.judge:
            told += _pair("prompt_hash", one.prompt, other.prompt)
        # The version of a task's own metric is that of the task.
        told = told or _pair(f"{one.judge} of version", one.judge_version, other.judge_version)
    return told + _pair("task_hash", one.task, other.task)


def _pair(what: str, one: str | None, other: str | None) -> list[str]:
    return [f"{what} {one} in A, {other} in B"] if one != other else []


def _judge(one: Instrument) -> str:
    return f"{one.judge} ({one.judge_model})" if one.judge_model else str(one.judge)
