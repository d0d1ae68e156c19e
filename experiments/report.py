"""The tables of an experiment: ours, the published values, and paired comparisons, as far as it has run.

``report`` writes ``<name>.md``, ``.tex``, ``.csv`` and ``.json`` and, where the experiment has a figure and there is
something to draw, ``.png`` and ``.pdf``, a front's against over-refusal too (``<name>_over_refusal``). Numbers are in
percent, the paper's unit, but for losses, in nats per token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from experiments.community import community_tables
from experiments.comparisons import (
    AtLevel,
    Comparison,
    EqualSafety,
    Membership,
    at_levels,
    compare,
    compare_at_equal_distance,
    compare_at_equal_safety,
    compare_to_usual,
    equal_safety,
    front_membership,
)
from experiments.costs import Cost, costs
from experiments.execute import say_other_code
from experiments.kept import KeptRun, Record
from experiments.outcomes import BALANCED, SCORES, Row, published, read_rows
from experiments.paper_tables import (
    benchmark_tables,
    cost_tables,
    equal_safety_tables,
    front_tables,
    level_tables,
    loss_tables,
    over_refusal_tables,
    overlap_tables,
    rollout_tables,
    score_tables,
    strength_tables,
)
from experiments.rows import Experiment, Point
from ogpsa.utils.files import check_writable, write_atomically, write_json
from ogpsa.utils.table import Table, comma_separated, latex, markdown


def report(
    experiment: Experiment,
    suite: str,
    points: Sequence[Point],
    folder: Path,
    out: Path,
    kept: Mapping[str, Record] | None = None,
) -> list[Path]:
    """Write an experiment's tables and figure into ``out`` and print the Markdown.

    Args:
        folder: of the suite's runs.
        kept: records of runs, by name, for those that do not lie there.

    Returns:
        What was written.

    Raises:
        UserError: ``out`` cannot be written, or a result is damaged.
    """
    check_writable(out, "out")
    found = Findings.of(experiment, suite, points, folder, kept)
    tables = [*found.tables(experiment), *community_tables(experiment.name, suite)]
    provenance = _provenance(found.rows, len(points))
    text = (
        f"# {experiment.name}: {experiment.settings.title}\n\n"
        f"`python -m experiments run {experiment.name} suite={suite}`, then `report`: {provenance}\n\n"
        + "".join(map(markdown, tables)).rstrip()
        + "\n"
    )
    paths = {ending: out / f"{experiment.name}.{ending}" for ending in ("md", "tex", "csv", "json")}
    write_atomically(paths["md"], text)
    write_atomically(paths["tex"], latex(tables))
    write_atomically(paths["csv"], comma_separated(found.records()))
    write_json(paths["json"], {"experiment": experiment.name, "suite": suite} | found.details())
    pictures = _draw(experiment, found.rows, out)
    print(text, end="")
    results = [result for row in found.rows for result in [*row.results, *row.apart]]
    say_other_code((one.point, one.run.directory) for one in results if not isinstance(one.run, KeptRun))
    return [*paths.values(), *pictures]


@dataclass(frozen=True)
class Findings:
    """An experiment's results as far as it has run, and every comparison between them."""

    rows: list[Row]
    comparisons: list[Comparison]
    equal: list[EqualSafety]
    at_equal: list[Comparison]
    fronts: list[Membership]
    over_refusal_fronts: list[Membership]
    levels: list[AtLevel]
    spent: list[Cost]

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        suite: str,
        points: Sequence[Point],
        folder: Path,
        kept: Mapping[str, Record] | None,
    ) -> Self:
        """Read the points' runs in ``folder``, or what is kept of them, and compare them."""
        rows = read_rows(experiment, suite, points, folder, kept)
        equal = equal_safety(experiment, rows)
        return cls(
            rows,
            [*compare(experiment, rows), *compare_to_usual(experiment, rows), *compare_at_equal_distance(rows)],
            equal,
            compare_at_equal_safety(experiment, equal),
            front_membership(rows) if experiment.settings.figure == "front" else [],
            front_membership(rows, "over_refusal") if experiment.settings.figure == "front" else [],
            at_levels(experiment, rows),
            costs(experiment, suite, rows) if experiment.settings.costs else [],
        )

    def tables(self, experiment: Experiment) -> list[Table]:
        """The tables in the order in which they are printed."""
        return [
            *score_tables(experiment, self.rows, self.comparisons),
            *benchmark_tables(experiment, self.rows),
            *front_tables(self.fronts),
            *strength_tables(self.rows),
            *over_refusal_tables(self.rows if experiment.settings.figure == "front" else []),
            *front_tables(self.over_refusal_fronts, "over_refusal"),
            *level_tables(self.levels),
            *equal_safety_tables(self.equal, self.at_equal),
            *loss_tables(self.rows if experiment.settings.losses else []),
            *cost_tables(self.spent),
            *overlap_tables(self.rows if experiment.settings.overlap else []),
            *rollout_tables(self.rows),
        ]

    def records(self) -> list[dict[str, object]]:
        """The lines of the .csv file."""
        return [record for row in self.rows for record in _records(row, self.spent)]

    def details(self) -> dict[str, object]:
        """The content of the .json file: the records, each run's scores, and the comparisons."""
        return {
            "rows": self.records(),
            "runs": [
                {"run": one.run.directory.name, "row": row.name, "seed": one.point.seed, "strength": one.point.strength}
                | one.scores
                for row in self.rows
                for one in row.results
            ],
            "fronts": [
                {"row": one.row.name, "against": one.against, "mean": one.mean, "seeds": one.seeds}
                | {"strengths": one.strengths}
                for one in [*self.fronts, *self.over_refusal_fronts]
            ],
            "comparisons": [asdict(one) for one in self.comparisons],
            "equal_safety": [
                {"row": one.row.name, "seed": seed, "safety": one.safety[seed]}
                | (asdict(at) if at else {"utility": None})
                | {"over_refusal": one.over_refusal.get(seed)}
                for one in self.equal
                for seed, at in one.utility.items()
            ],
            "comparisons_at_equal_safety": [asdict(one) for one in self.at_equal],
            "levels": [
                {"row": one.row.name, "safety": one.safety, "over_refusal": one.over_refusal, "level": one.level}
                | {"common": one.common, "found": one.found, "against": asdict(one.against) if one.against else None}
                for one in self.levels
            ],
        }


def _provenance(rows: Sequence[Row], planned: int) -> str:
    """A line on the finished runs, their time and their code, and on those left out or of unknown beginning."""
    runs = [result.run for row in rows for result in row.results]
    if not runs:
        return "nothing has run."
    apart = [result.point.seed for row in rows for result in row.apart]
    seeds = ", ".join(map(str, sorted(set(apart))))
    hours = sum(run.seconds for run in runs) / 3600
    revisions = ", ".join(sorted({run.revision for run in runs}))
    kept = sum(isinstance(run, KeptRun) for run in runs)
    silent = sum(run.untuned is None for run in runs)
    return (
        f"{len(runs)} of {planned} runs are finished"
        + (f" ({kept} of them committed with the code, `kept=true`)" if kept else "")
        + f", {hours:.1f} hours of one worker in the sessions that finished them, by revision {revisions}"
        + (" (+: changed files)." if "+" in revisions else ".")
        + (
            f" {len(apart)} more began with another untuned model than most runs of their seed ({seeds}): left out."
            if apart
            else ""
        )
        + (f" {silent} do not say which untuned model they began with: taken as one model per seed." if silent else "")
    )


def _records(row: Row, spent: Sequence[Cost]) -> list[dict[str, object]]:
    """One per strength, with all benchmarks; None where there is no number."""
    records = []
    for strength in row.strengths:
        record: dict[str, object] = {"row": row.name, "group": row.group, "pipeline": row.pipeline, "label": row.label}
        record |= {"strength": strength, "seeds": len(row.by_seed(strength)), "planned": len(row.planned(strength))}
        moved = ["moved"] if row.summary("moved", strength) else []
        for name in (*SCORES, BALANCED, *moved, *row.benchmarks):
            summary = row.summary(name, strength)
            entry = published().get((row.name, name)) if strength == 1 else None
            record |= {name: summary.mean if summary else None}
            record |= {f"{name}_half_width": summary.half_width if summary else None}
            record |= {f"{name}_untuned": row.base.get(name)}
            record |= {f"{name}_published": entry.value if entry else None, f"{name}_tag": entry.tag if entry else None}
        for one in spent:
            # Times were measured where rows are compared.
            record |= one.numbers(measured=strength == row.strength) if one.row is row else {}
        records.append(record)
    return records


def _draw(experiment: Experiment, rows: Sequence[Row], out: Path) -> list[Path]:
    """Save what there is to draw, and return where."""
    if experiment.settings.figure == "none":
        return []
    from eval.pareto.plot import save
    from experiments.figures import draw, draw_over_refusal

    paths = []
    drawn = {
        experiment.name: draw(experiment, rows),
        f"{experiment.name}_over_refusal": draw_over_refusal(experiment, rows),
    }
    for name, figure in drawn.items():
        if figure is not None:
            paths += [out / f"{name}.png", out / f"{name}.pdf"]
            save(figure, paths[-2])
            save(figure, paths[-1])
    return paths
