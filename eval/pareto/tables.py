"""The Pareto tables as Markdown, as LaTeX, and as records of numbers."""

from eval.pareto.collection import Collection, World
from eval.scores.statistics import Summary, hypervolume
from ogpsa.utils import table
from ogpsa.utils.table import Table, escape_markdown

COLUMNS = (
    "pipeline", "method", "seeds", "safety ↑", "utility ↑", "over-refusal ↓", "Pareto front", "hypervolume"
)  # fmt: skip


def markdown(collection: Collection) -> str:
    """One table per world, then remarks and the runs left out."""
    text = "# Safety against utility\n\n"
    for world in collection.worlds:
        text += f"{table.markdown(_table(world))}Hypervolume of the fronts: {_hypervolumes(world)}.\n\n"
    text += (
        "Mean over seeds ± half the 95% t-interval (–: one seed, no interval), in brackets the change against the "
        "base; fractions in [0, 1]. Pareto front: not dominated in safety and utility by the base or any other "
        "group of the same pipeline, or of all (overall). Hypervolume: of the base and the group's mean, reference "
        "point (0, 0).\n"
    )
    for title, remarks in (("Notes", collection.notes), ("Left out", map(str, collection.left_out))):
        items = "".join(f"- {escape_markdown(remark)}\n" for remark in remarks)
        text += f"\n{title}:\n\n{items}" if items else ""
    return text


def latex(collection: Collection) -> str:
    """One plain ``tabular`` per world; they need no package."""
    return table.latex([_table(world) for world in collection.worlds])


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
            rows.append(row | {"front": world.standing(group), "hypervolume": group.hypervolume})
    return rows


def _table(world: World) -> Table:
    """The base's row and one per group."""
    overall, *pipelines = world.fronts
    standing = (
        "overall"
        if overall.base_on_front
        else ", ".join(str(front.pipeline) for front in pipelines if front.base_on_front)
    )
    cells = ["n/a" if value is None else f"{value:.3f}" for value in world.base.named().values()]
    base = hypervolume([(world.base.safety, world.base.utility)])
    rows = [["–", "base", "–", *cells, standing, f"{base:.3f}"]]
    for group in world.groups:
        change = group.change.named()
        cells = [_cell(summary, change[key]) for key, summary in group.scores.named().items()]
        row = [group.pipeline, group.label, str(len(group.runs)), *cells]
        rows.append([*row, world.standing(group), f"{group.hypervolume:.3f}"])
    return Table(COLUMNS, rows, world.name, align="llrrrrlr")


def _cell(summary: Summary | None, change: float | None) -> str:
    if summary is None:
        return "n/a"
    half_width = "–" if summary.half_width is None else f"{summary.half_width:.3f}"
    return f"{summary.mean:.3f} ± {half_width}" + ("" if change is None else f" ({change:+.3f})")


def _hypervolumes(world: World) -> str:
    return ", ".join(f"{front.pipeline or 'overall'} {front.hypervolume:.3f}" for front in world.fronts)
