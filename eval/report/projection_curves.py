"""The numbers that a run's projection logged, as one picture: ``python -m eval diagnostics RUN [--out FOLDER]``.

A column a stage and a row a number: share of the gradient's norm that was kept, cosine of the safety gradient
with the capability subspace before and after, share of the optimizer's step inside it, losses on the reference
sets, effective rank, age of the basis, seconds spent. Thin lines show the number for each layer group, if it is known.
Writes ``diagnostics.png`` and ``diagnostics.pdf`` into the run directory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ogpsa.runs.directory import HISTORY_FILE
from ogpsa.utils.command_line import Parser
from ogpsa.utils.errors import EXIT_DONE, UserError
from ogpsa.utils.files import check_writable, read_jsonl

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PREFIX = "projection/"
Row = dict[str, Any]


@dataclass(frozen=True)
class Panel:
    """One number, or several of a kind, against the optimizer step.

    Attributes:
        title: with the unit, if there is one.
        names: logged numbers, each with its label.
        groups: the number that is also logged for each layer group, or nothing.
        logarithmic: whether it spans orders of magnitude.
    """

    title: str
    names: dict[str, str]
    groups: str = ""
    logarithmic: bool = False


PANELS = (
    Panel("norm retained", {"norm_retained": "all"}, groups="norm_retained"),
    Panel("cosine with the subspace", {"cosine": "before"}, groups="cosine"),
    Panel("cosine after projection", {"cosine_after": "after"}, logarithmic=True),
    Panel("share of the optimizer's step inside", {"step_share": "all"}, groups="step_share"),
    Panel("loss on the reference sets", {}),
    Panel("effective rank", {"effective_rank": "rank"}),
    Panel("age of the basis (steps)", {"basis_age": "age"}),
    Panel("seconds", {"refresh_seconds": "a refresh", "projection_seconds": "a projection"}, logarithmic=True),
)


def read_history(run: Path) -> dict[str, list[Row]]:
    """The rows with the projection's numbers of each finished stage.

    Raises:
        UserError: the folder holds no finished stage that projected.
    """
    if not run.is_dir():
        raise UserError(f"{run}: no such folder; give a run directory")
    files = sorted(run.glob(f"*-*/{HISTORY_FILE}"))
    rows = {file.parent.name: [row for row in read_jsonl(file) if f"{PREFIX}effective_rank" in row] for file in files}
    stages = {name: found for name, found in rows.items() if found}
    if not stages:
        found = "no finished stage" if not files else f"no projection in {', '.join(rows)}"
        raise UserError(f"{run}: {found}; give the directory of a finished run with method=ogpsa")
    return stages


def draw(stages: dict[str, list[Row]]) -> "Figure":
    from matplotlib.figure import Figure

    from eval.pareto.plot import DPI

    width = 5.5 * len(stages)
    figure = Figure(figsize=(width, 2.2 * len(PANELS)), dpi=DPI, layout="constrained")
    axes = figure.subplots(len(PANELS), len(stages), squeeze=False, sharex="col")
    for column, (stage, rows) in enumerate(stages.items()):
        axes[0][column].set_title(stage)
        axes[-1][column].set_xlabel("optimizer step")
        for panel, place in zip(PANELS, axes[:, column], strict=True):
            _draw_panel(place, panel, rows)
    return figure


def _draw_panel(axes: "Axes", panel: Panel, rows: Sequence[Row]) -> None:
    from eval.pareto.plot import BASE_COLOUR, COLOURS

    names = sorted({name.removeprefix(PREFIX) for row in rows for name in row if name.startswith(PREFIX)})
    shown = dict(panel.names)
    if not shown:
        shown = {name: name.rpartition("/")[2] for name in names if name.startswith("reference_loss/")}
    groups = {name: name.partition("/")[0] for name in names if panel.groups and name.endswith(f"/{panel.groups}")}
    for index, (name, label) in enumerate([*groups.items(), *shown.items()]):
        points = [(row["step"], row[PREFIX + name]) for row in rows if PREFIX + name in row]
        if panel.logarithmic:
            points = [(step, value) for step, value in points if value > 0]
        thin = name in groups
        colour = COLOURS[index % len(COLOURS)] if thin or len(shown) > 1 else BASE_COLOUR
        axes.plot(*zip(*points, strict=True) if points else ([], []), label=label, color=colour,
                  linewidth=0.9 if thin else 1.8, marker="." if len(points) == 1 else None)  # fmt: skip
    if panel.logarithmic and axes.lines and any(len(line.get_xdata()) for line in axes.lines):  # type: ignore[arg-type]
        axes.set_yscale("log")
    axes.set_ylabel(panel.title, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    if len(axes.lines) > 1 or not panel.names:
        axes.legend(fontsize=6, ncols=2)


def main(words: Sequence[str]) -> int:
    """Write the picture, print its paths, and return the exit code."""
    from eval.pareto.plot import save

    parser = Parser(prog="python -m eval diagnostics", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="the directory of a finished run")
    parser.add_argument("--out", type=Path, help="folder of the picture (default: the run directory)")
    arguments = parser.parse_args(words)
    folder = arguments.out or arguments.run
    stages = read_history(arguments.run)
    check_writable(folder, "--out")
    figure = draw(stages)
    for kind in ("png", "pdf"):
        save(figure, folder / f"diagnostics.{kind}")
        print(folder / f"diagnostics.{kind}")
    return EXIT_DONE
