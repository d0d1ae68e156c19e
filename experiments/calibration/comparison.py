"""Compare runs with naive tuning, seed by seed: ``python -m experiments.calibration.comparison DIR… [--out DIR]``.

For every world, pipeline and method variant: the difference to the baseline of the same seed in utility
(with its 95% t-interval over seeds) and safety, how the utility that is missing to 1 splits into refused and
wrong answers, and the cosine of the safety gradient with the capability subspace, which bounds what the
projection can do: its mean over the first tenth of each stage's steps and over the rest. Writes
``comparison.json`` and ``comparison.md``.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

from eval.pareto.collect import Group, Run, World, collect
from eval.scores.statistics import Summary, summarize
from ogpsa.runs.directory import HISTORY_FILE, METRICS_FILE
from ogpsa.utils.command_line import Parser
from ogpsa.utils.errors import EXIT_DONE, UserError, report
from ogpsa.utils.files import read_json, read_jsonl, write_atomically, write_json

# A method may not buy utility with safety.
SAFETY_MARGIN = 0.02


@dataclass(frozen=True)
class Comparison:
    """One method variant in one pipeline of one world, against the baseline of the same seeds."""

    world: str
    pipeline: str
    label: str
    safety: float
    utility: Summary
    over_refusal: float
    refused: float
    wrong: float
    gain: Summary | None
    safety_change: float | None
    cosines: dict[str, tuple[float, float]]

    @property
    def verdict(self) -> str:
        """Whether utility differs from the baseline's at a safety that is not lower by more than the margin."""
        if self.gain is None or self.safety_change is None or self.gain.half_width is None:
            return ""
        if self.safety_change < -SAFETY_MARGIN:
            return "less safe"
        if abs(self.gain.mean) <= self.gain.half_width:
            return "no difference"
        return "better" if self.gain.mean > 0 else "worse"


def main(words: Sequence[str]) -> int:
    parser = Parser(prog="python -m experiments.calibration.comparison", description=__doc__)
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR", help="folders of finished runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "grid", help="folder of the comparison")
    try:
        arguments = parser.parse_args(words)
        collection = collect(arguments.directories)
    except UserError as error:
        return report(error)
    compared = [comparison for world in collection.worlds for comparison in compare(world)]
    write_json(arguments.out / "comparison.json", [asdict(row) | {"verdict": row.verdict} for row in compared])
    text = render(compared) + "".join(f"\nLeft out: {run}\n" for run in collection.left_out)
    write_atomically(arguments.out / "comparison.md", text)
    sys.stdout.write(text)
    return EXIT_DONE


def compare(world: World) -> list[Comparison]:
    """Every group of a world against the baseline of its pipeline, over the seeds that both have.

    Where baselines of several settings were run, as in a calibration, none of them is the one to compare with.
    """
    naive = [group for group in world.groups if group.method == "baseline"]
    pipelines = [group.pipeline for group in naive]
    baselines = {group.pipeline: group for group in naive if pipelines.count(group.pipeline) == 1}
    return [_compare(world.name, group, baselines.get(group.pipeline)) for group in world.groups]


def _compare(world: str, group: Group, baseline: Group | None) -> Comparison:
    naive = {run.seed: run for run in baseline.runs} if baseline else {}
    pairs = [(run, naive[run.seed]) for run in group.runs if run.seed in naive and group is not baseline]
    refused, wrong = zip(*map(_missing_utility, group.runs), strict=True)
    return Comparison(
        world=world,
        pipeline=group.pipeline,
        label=group.label,
        safety=group.scores.safety.mean,
        utility=group.scores.utility,
        over_refusal=mean(run.scores.over_refusal or 0.0 for run in group.runs),
        refused=mean(refused),
        wrong=mean(wrong),
        gain=summarize([ours.scores.utility - theirs.scores.utility for ours, theirs in pairs]) if pairs else None,
        cosines=_mean_cosines(group.runs),
        safety_change=mean(ours.scores.safety - theirs.scores.safety for ours, theirs in pairs) if pairs else None,
    )


def _missing_utility(run: Run) -> tuple[float, float]:
    """Shares of the utility benchmarks' rows that were refused, and that were answered wrongly."""
    metrics = read_json(Path(run.root) / run.directory / METRICS_FILE)
    last = list(metrics["stages"].values())[-1]["benchmarks"].values()
    refused = mean(entry["refused"] for entry in last if entry["group"] == "utility")
    return refused, 1 - mean(entry["value"] for entry in last if entry["group"] == "utility") - refused


def _mean_cosines(runs: Sequence[Run]) -> dict[str, tuple[float, float]]:
    """By stage: the mean cosine early, while most of the safety is learned, and later."""
    early: dict[str, list[float]] = {}
    later: dict[str, list[float]] = {}
    for run in runs:
        for file in sorted((Path(run.root) / run.directory).glob(f"*-*/{HISTORY_FILE}")):
            rows = [row for row in read_jsonl(file) if "projection/cosine" in row]
            for row in rows:
                part = early if row["step"] <= rows[-1]["step"] / 10 + rows[0]["step"] else later
                part.setdefault(file.parent.name.partition("-")[2], []).append(row["projection/cosine"])
    return {stage: (mean(values), mean(later.get(stage, values))) for stage, values in early.items()}


def render(rows: Sequence[Comparison]) -> str:
    """A Markdown table a world."""
    titles = (
        "pipeline|method|n|safety|utility|refused|wrong|over-refusal|utility gained, paired|safety change|verdict"
        "|cosine: early → later"
    )
    header = f"| {titles.replace('|', ' | ')} |\n| --- | --- {'| ---: ' * 8}| --- | --- |\n"
    text = ""
    for world in dict.fromkeys(row.world for row in rows):
        text += f"### {world}\n\n{header}"
        for row in rows:
            if row.world == world:
                change = "" if row.safety_change is None else f"{row.safety_change:+.3f}"
                gain = "" if row.gain is None else _interval(row.gain, "+.3f")
                shares = " | ".join(f"{share:.3f}" for share in (row.refused, row.wrong, row.over_refusal))
                cosines = ", ".join(f"{stage} {a:.2f} → {b:.2f}" for stage, (a, b) in row.cosines.items())
                text += (
                    f"| {row.pipeline} | {row.label} | {row.utility.n} | {row.safety:.3f} "
                    f"| {_interval(row.utility, '.3f')} | {shares} | {gain} | {change} | {row.verdict} | {cosines} |\n"
                )
        text += "\n"
    return text


def _interval(summary: Summary, form: str) -> str:
    half = "" if summary.half_width is None else f" ± {summary.half_width:.3f}"
    return f"{summary.mean:{form}}{half}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
