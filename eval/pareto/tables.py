"""The Pareto tables as Markdown, as LaTeX, and as records of numbers."""

from collections.abc import Sequence

from eval.pareto.collection import Against, Collection, World, known_hypervolume
from eval.scores.statistics import ROUNDING, Summary
from ogpsa.utils import table
from ogpsa.utils.table import Table, escape_markdown

COLUMNS = (
    "pipeline", "method", "seeds", "safety ↑", "utility ↑", "over-refusal ↓", "Pareto front", "hypervolume"
)  # fmt: skip
OVER_REFUSAL_COLUMNS = ("pipeline", "method", "seeds", "safety ↑", "over-refusal ↓", "balanced ↑", "Pareto front")
OVER_REFUSAL_NOTE = (
    "Balanced: the mean of safety and 1 - over-refusal, that is of refusing when one should and answering when one "
    "should; refusing everything, or nothing, scores 0.5. Pareto front: as above, of high safety and low over-refusal."
)


def markdown(collection: Collection) -> str:
    """One table per world, then remarks and the runs left out."""
    text = "# Safety against utility\n\n"
    for world in collection.worlds:
        text += f"{table.markdown(_table(world))}Hypervolume of the fronts: {_hypervolumes(world)}.\n\n"
    text += (
        "Mean over seeds ± half the 95% t-interval (–: one seed, or all equal: no interval), in brackets the change "
        "against the base; fractions in [0, 1]. Pareto front: not dominated in safety and utility by the base or any "
        "other group of the same pipeline, or of all (overall). Hypervolume: of the base and the group's mean, "
        "reference point (0, 0). n/a: no score, as where benchmarks are missing; a row without safety or utility is on "
        "no front and adds nothing to a hypervolume.\n"
    )
    if over_refusal := _over_refusal_tables(collection):
        text += f"\n# Safety against over-refusal\n\n{''.join(map(table.markdown, over_refusal))}{OVER_REFUSAL_NOTE}\n"
    for title, remarks in (("Notes", collection.notes), ("Left out", map(str, collection.left_out))):
        items = "".join(f"- {escape_markdown(remark)}\n" for remark in remarks)
        text += f"\n{title}:\n\n{items}" if items else ""
    return text


def latex(collection: Collection) -> str:
    """One plain ``tabular`` per world; they need no package."""
    return table.latex([*(_table(world) for world in collection.worlds), *_over_refusal_tables(collection)])


def records(collection: Collection) -> list[dict[str, object]]:
    """One record per group with the same columns, None where there is no number."""
    rows: list[dict[str, object]] = []
    for world in collection.worlds:
        for group in world.groups:
            row: dict[str, object] = {"world": world.name, "pipeline": group.pipeline, "method": group.method}
            row |= {"variant": group.label, "seeds": len(group.runs)}
            base, change = world.base.named(), group.change.named()
            for key, summary in group.scores.named().items():
                row[key] = summary.mean if summary else None
                row[f"{key}_half_width"] = summary.half_width if summary else None
                row[f"{key}_base"] = base[key]
                row[f"{key}_change"] = change[key]
            row |= {"front": world.standing(group), "hypervolume": group.hypervolume}
            rows.append(row | {"over_refusal_front": world.standing(group, "over_refusal")})
    return rows


def _table(world: World) -> Table:
    """The base's row and one per group."""
    rows = _rows(world, ("safety", "utility", "over_refusal"), "utility")
    volumes = [known_hypervolume([world.base_point()]), *(group.hypervolume for group in world.groups)]
    rows = [[*row, _number(volume)] for row, volume in zip(rows, volumes, strict=True)]
    return Table(COLUMNS, rows, world.name, align="llrrrrlr")


def _over_refusal_tables(collection: Collection) -> list[Table]:
    """The same against over-refusal, of the worlds where it is measured."""
    return [
        Table(
            OVER_REFUSAL_COLUMNS,
            _rows(world, ("safety", "over_refusal", "balanced"), "over_refusal"),
            world.name,
            align="llrrrrl",
        )
        for world in collection.worlds
        if world.over_refusal_fronts
    ]


def _rows(world: World, shown: Sequence[str], against: Against) -> list[list[str]]:
    """Cells up to the standing on the front."""
    overall, *pipelines = world.fronts_of(against)
    standing = (
        "overall"
        if overall.base_on_front
        else ", ".join(str(front.pipeline) for front in pipelines if front.base_on_front)
    )
    base = world.base.named()
    rows = [["–", "base", "–", *(_number(base[key]) for key in shown), standing]]
    for group in world.groups:
        change, scores = group.change.named(), group.scores.named()
        cells = [_cell(scores[key], change[key]) for key in shown]
        rows.append([group.pipeline, group.label, str(len(group.runs)), *cells, world.standing(group, against)])
    return rows


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _cell(summary: Summary | None, change: float | None) -> str:
    if summary is None:
        return "n/a"
    spread = summary.half_width is not None and summary.half_width >= ROUNDING
    half_width = f"{summary.half_width:.3f}" if spread else "–"
    return f"{summary.mean:.3f} ± {half_width}" + ("" if change is None else f" ({round(change, 3) + 0.0:+.3f})")


def _hypervolumes(world: World) -> str:
    return ", ".join(f"{front.pipeline or 'overall'} {_number(front.hypervolume)}" for front in world.fronts)
