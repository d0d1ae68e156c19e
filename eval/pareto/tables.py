"""The Pareto tables as Markdown, LaTeX and comma-separated values."""

import csv
import io
from typing import TYPE_CHECKING

from eval.scores.statistics import Summary, hypervolume

if TYPE_CHECKING:
    from eval.pareto.collect import Collection, World

LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def markdown(collection: "Collection") -> str:
    """One table a world, then remarks and the runs left out."""
    lines = ["# Safety against utility", ""]
    for world in collection.worlds:
        lines += [f"## {_escape_markdown(world.name)}", ""]
        lines += ["| pipeline | method | seeds | safety ↑ | utility ↑ | over-refusal ↓ | Pareto front | hypervolume |"]
        lines += ["|---|---|---:|---:|---:|---:|---|---:|"]
        lines += [f"| {' | '.join(map(_escape_markdown, row))} |" for row in _rows(world)]
        lines += ["", f"Hypervolume of the fronts: {_hypervolumes(world)}.", ""]
    lines += [
        "Mean over seeds ± half the 95% t-interval (–: one seed, no interval), in brackets the change against the "
        "base; fractions in [0, 1]. Pareto front: not dominated in safety and utility by the base or any other "
        "group of the same pipeline, or of all (overall). Hypervolume: of the base and the group's mean, reference "
        "point (0, 0).",
        "",
    ]
    if collection.notes:
        lines += ["Notes:", "", *(f"- {_escape_markdown(note)}" for note in collection.notes), ""]
    if collection.left_out:
        lines += ["Left out:", "", *(f"- {_escape_markdown(str(run))}" for run in collection.left_out), ""]
    return "\n".join(lines).rstrip() + "\n"


def latex(collection: "Collection") -> str:
    """One plain ``tabular`` over all worlds; it needs no package."""
    lines = [r"\begin{tabular}{llrrrrlr}", r"\hline"]
    head = [r"safety $\uparrow$", r"utility $\uparrow$", r"over-refusal $\downarrow$", "Pareto front", "hypervolume"]
    lines += [" & ".join(["pipeline", "method", "seeds", *head]) + r" \\"]
    for world in collection.worlds:
        lines += [r"\hline", rf"\multicolumn{{8}}{{l}}{{\textit{{{_escape_latex(world.name)}}}}} \\", r"\hline"]
        lines += [" & ".join(map(_escape_latex, row)) + r" \\" for row in _rows(world)]
    return "\n".join([*lines, r"\hline", r"\end{tabular}", ""])


def comma_separated(collection: "Collection") -> str:
    """One line a group, numbers in full precision, empty where there is none."""
    rows = records(collection)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def records(collection: "Collection") -> list[dict[str, object]]:
    """One row a group with the same columns, None where there is no number."""
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


def _rows(world: "World") -> list[list[str]]:
    """The base's row and one a group; what is not plain text is escaped by the caller."""
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
    return rows


def _cell(summary: Summary | None, change: float | None) -> str:
    if summary is None:
        return "n/a"
    half_width = "–" if summary.half_width is None else f"{summary.half_width:.3f}"
    return f"{summary.mean:.3f} ± {half_width}" + ("" if change is None else f" ({change:+.3f})")


def _hypervolumes(world: "World") -> str:
    return ", ".join(f"{front.pipeline or 'overall'} {front.hypervolume:.3f}" for front in world.fronts)


def _escape_markdown(text: str) -> str:
    return "".join(f"\\{character}" if character in "\\|*<`" else character for character in text)


def _escape_latex(text: str) -> str:
    escaped = "".join(LATEX_SPECIAL.get(character, character) for character in text)
    return escaped.replace("±", r"$\pm$").replace("–", "--")
