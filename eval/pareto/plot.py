"""The picture of the Pareto tables. Imports matplotlib: reach it only once there is something to draw."""

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from math import ceil
from pathlib import Path
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from eval.pareto.collection import Against, Collection, World
from eval.scores.statistics import Summary
from ogpsa.utils.files import write_atomically

# Okabe and Ito's palette, which colour-blind readers can tell apart; yellow is too light for a marker.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "p", "<", ">", "h", "d", "8")
BASE_COLOUR = "#666666"
FRONT_COLOUR = "#9A9A9A"
# Inches and dots per inch: 900 px wide where it is shown at half its resolution.
WIDTH = 9.0
DPI = 200
LEGEND_LINE = 0.21
CHARACTER = 0.068
HANDLE = 0.55
WRAP = 100

# Points across, so that all markers weigh about the same.
SIZES = {"*": 12, "P": 9, "X": 9, "d": 9}

Marker = tuple[str, bool]

# What a picture's name ends in, in W&B as well.
SUFFIXES: Mapping[Against, str] = {"utility": "", "over_refusal": "_over_refusal"}
HEIGHTS: Mapping[Against, str] = {
    "utility": "utility score (fraction, 0 to 1) →",
    "over_refusal": "harmless requests answered: 1 - over-refusal (0 to 1) →",
}


def draw(collection: Collection, against: Against = "utility") -> Figure | None:
    """One panel per world: a colour for each pipeline, a marker for each method variant, legends above and below.

    Groups without one of the two scores are not drawn, nor are worlds in which none has both. None where no world is
    left.
    """
    drawn = {world.name: [group for group in world.groups if group.point(against)] for world in collection.worlds}
    worlds = [world for world in collection.worlds if drawn[world.name]]
    if not worlds:
        return None
    pipelines = sorted({group.pipeline for groups in drawn.values() for group in groups})
    colours = dict(zip(pipelines, cycle(COLOURS)))
    labels = list(dict.fromkeys(group.label for groups in drawn.values() for group in groups))
    # The second time around, the markers are hollow.
    markers = dict(zip(labels, cycle((marker, solid) for solid in (True, False) for marker in MARKERS)))

    columns = min(2, len(worlds))
    rows = ceil(len(worlds) / columns)
    legend_columns = max(1, int(WIDTH / (HANDLE + CHARACTER * max(map(len, labels)))))
    wrapped = {label: fill(label, WRAP) for label in labels}
    legend_height = LEGEND_LINE * ceil(sum(text.count("\n") + 1 for text in wrapped.values()) / legend_columns)
    panel_height = 5.2 if columns == 1 else 4.4
    figure = Figure(
        figsize=(WIDTH, panel_height * rows + legend_height),
        dpi=DPI,
        layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.05),
    )
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for world, axes in zip(worlds, panels, strict=False):
        _draw_world(axes, world, against, colours, markers)
        axes.set_title(fill(world.name, 90 // columns), fontsize=10)
    for axes in panels[len(worlds) :]:
        axes.set_visible(False)

    lines = [
        *(Line2D([], [], color=colour, linewidth=5, label=name) for name, colour in colours.items()),
        Line2D([], [], color=FRONT_COLOUR, linewidth=1.2, label="Pareto front"),
        Line2D([], [], color=BASE_COLOUR, linewidth=1, linestyle="--", label="base"),
        Line2D([], [], color=BASE_COLOUR, linestyle="", marker="+", markersize=11, label="95% interval over seeds"),
    ]
    figure.legend(handles=lines, loc="outside upper center", ncols=len(lines), frameon=False, fontsize=9)
    shapes = [
        Line2D(
            [],
            [],
            color="black",
            linestyle="",
            marker=marker,
            markersize=SIZES.get(marker, 8),
            fillstyle="full" if solid else "none",
            label=wrapped[label],
        )
        for label, (marker, solid) in markers.items()
    ]
    figure.legend(handles=shapes, loc="outside lower center", ncols=legend_columns, frameon=False, fontsize=9)
    return figure


def _draw_world(
    axes: Axes, world: World, against: Against, colours: Mapping[str, str], markers: Mapping[str, Marker]
) -> None:
    base = world.base_point(against)
    drawn = [(group, *summaries) for group in world.groups if (summaries := group.summaries(against)) is not None]
    untuned = [] if base is None else [base]
    axes.set_xlim(*_limits([*((x, x) for x, _ in untuned), *(_ends(safety) for _, safety, _ in drawn)]))
    axes.set_ylim(*_limits([*((y, y) for _, y in untuned), *(_ends(height) for _, _, height in drawn)]))

    for x, y in untuned:
        axes.axvline(x, color=BASE_COLOUR, linewidth=1, linestyle="--", zorder=1)
        axes.axhline(y, color=BASE_COLOUR, linewidth=1, linestyle="--", zorder=1)
    front = world.fronts_of(against)[0]
    points = [(x.mean, y.mean) for group, x, y in drawn if (group.pipeline, group.label) in front.members]
    points += untuned if front.base_on_front else []
    points.sort()
    # Down to the axes: the steps bound what the front dominates.
    corners = [(axes.get_xlim()[0], points[0][1]), *points, (points[-1][0], axes.get_ylim()[0])]
    axes.plot(*zip(*corners, strict=True), drawstyle="steps-pre", color=FRONT_COLOUR, linewidth=1.2, zorder=2)

    for group, safety, height in drawn:
        marker, solid = markers[group.label]
        colour = colours[group.pipeline]
        axes.errorbar(
            safety.mean,
            height.mean,
            xerr=safety.half_width,
            yerr=height.half_width,
            color=colour,
            elinewidth=1.8,
            capsize=4,
            capthick=1.8,
            alpha=0.7,
            zorder=3,
        )
        axes.plot(
            safety.mean,
            height.mean,
            marker=marker,
            markersize=SIZES.get(marker, 8),
            markerfacecolor=colour if solid else "white",
            markeredgecolor="white" if solid else colour,
            markeredgewidth=0.7 if solid else 1.4,
            zorder=4,
        )
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        # No score lies beyond them, though the margin does.
        axis.set_ticks([tick for tick in axis.get_majorticklocs() if max(low, 0) <= tick <= min(high, 1)])
    axes.set_xlabel("safety score (fraction, 0 to 1) →")
    axes.set_ylabel(HEIGHTS[against])
    axes.grid(color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _ends(summary: Summary) -> tuple[float, float]:
    half_width = summary.half_width or 0.0
    return summary.mean - half_width, summary.mean + half_width


def _limits(intervals: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The range of all intervals as far as scores can lie, and a little margin."""
    low = max(0.0, min(low for low, _ in intervals))
    high = min(1.0, max(high for _, high in intervals))
    margin = max(0.05 * (high - low), 0.01)
    return low - margin, high + margin


def save(figure: Figure, path: Path) -> None:
    """Write a picture atomically, in the format of its suffix and undated, so that equal results are equal files."""
    picture = io.BytesIO()
    figure.savefig(picture, format=path.suffix[1:], metadata={"CreationDate": None} if path.suffix == ".pdf" else None)
    write_atomically(path, picture.getvalue())
