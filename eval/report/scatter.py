"""The page's Pareto plot: where marks, intervals, ticks and the front lie in the viewBox of its SVG.

Drawn by the page's template rather than by matplotlib (``eval/pareto/plot.py``, the picture beside the tables): its
marks have hints and take the focus, their numbers name the rows of the table, and its colours follow the page's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

from eval.pareto.front import AXES
from eval.report.sections import TITLES, Cell, Checkpoint, Section
from eval.scores.statistics import Interval, pareto_front

WIDTH, HEIGHT = 480.0, 340.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 14.0, 12.0, 42.0
# Between the numbers of two points, and from a point to its number.
GAP, ASIDE = 22.0, 26.0


@dataclass(frozen=True)
class Mark:
    """A point of the plot, in the units of its viewBox.

    Attributes:
        x_ends, y_ends: its intervals.
        badge: where its number stands, beside it.
    """

    checkpoint: Checkpoint
    x: float
    y: float
    x_ends: tuple[float, float] | None
    y_ends: tuple[float, float] | None
    badge: tuple[float, float]
    hint: str


@dataclass(frozen=True)
class Plot:
    """Safety to the right, utility upwards; ``front`` is the path of the Pareto front."""

    marks: list[Mark]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    front: str
    legend: list[tuple[int, str]]


def plot(section: Section) -> Plot | None:
    """The section's Pareto plot; None where no checkpoint has both averages."""
    points = [(one, one.point) for one in section.checkpoints]
    shown = [(one, point) for one, point in points if point is not None]
    if not shown:
        return None
    x_range, y_range = (_limits([one.scores[axis] for one, _ in shown]) for axis in AXES)

    def right(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - x_range[0]) / (x_range[1] - x_range[0])

    def up(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - y_range[0]) / (y_range[1] - y_range[0])

    def ends(cell: Cell, scale: Callable[[float], float]) -> tuple[float, float] | None:
        return (scale(cell.interval.low), scale(cell.interval.high)) if cell.interval else None

    places = [(right(x), up(y)) for _, (x, y) in shown]
    marks = [
        Mark(one, x, y, ends(one.scores["safety"], right), ends(one.scores["utility"], up), badge, _hint(one))
        for (one, _), (x, y), badge in zip(shown, places, _badges(places), strict=True)
    ]
    corners = sorted({point for (_, point), on in zip(shown, pareto_front([p for _, p in shown]), strict=True) if on})
    path = f"M{LEFT:.1f},{up(corners[0][1]):.1f}"
    for (x, _), (_, below) in zip(corners, [*corners[1:], (0.0, y_range[0])], strict=True):
        path += f"H{right(x):.1f}V{up(below):.1f}"
    legend = {one.colour: one.pipeline for one, _ in shown if one.pipeline}
    return Plot(
        marks,
        [(right(value), text) for value, text in _ticks(*x_range)],
        [(up(value), text) for value, text in _ticks(*y_range)],
        path,
        sorted(legend.items()),
    )


def _badges(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Positions of the points' numbers: towards the middle of the plot, pushed apart where points are close."""
    columns: list[list[int]] = []
    for index in sorted(range(len(places)), key=lambda index: places[index]):
        if not columns or places[index][0] - places[columns[-1][0]][0] >= GAP:
            columns.append([])
        columns[-1].append(index)
    starts = [places[column[0]][0] for column in columns]
    aside = [x + ASIDE if x < WIDTH / 2 else x - ASIDE for x in starts]
    # In the middle, the columns of both sides may overlap.
    groups: list[list[tuple[float, int]]] = []
    for x, column in sorted(zip(aside, columns, strict=True)):
        if not groups or x - groups[-1][-1][0] >= GAP:
            groups.append([])
        groups[-1] += [(x, index) for index in column]
    found: dict[int, tuple[float, float]] = {}
    for group in groups:
        group.sort(key=lambda badge: (places[badge[1]][1], badge[1]))
        heights = _apart([places[index][1] for _, index in group])
        found |= {index: (x, y) for (x, index), y in zip(group, heights, strict=True)}
    return [found[index] for index in range(len(places))]


def _apart(wanted: Sequence[float]) -> list[float]:
    """The heights nearest to the wanted ones (in order) that are a gap apart and within the plot."""
    from scipy.optimize import isotonic_regression

    low, high = TOP + GAP / 2, HEIGHT - BOTTOM - GAP / 2
    gap = min(GAP, (high - low) / max(1, len(wanted) - 1))
    # Without the gaps, what is left is to be in order.
    level = isotonic_regression([y - position * gap for position, y in enumerate(wanted)]).x
    highest = high - (len(wanted) - 1) * gap
    return [min(max(one, low), highest) + position * gap for position, one in enumerate(level)]


def _limits(cells: Sequence[Cell]) -> tuple[float, float]:
    """The range of the intervals as far as scores can lie, and a margin that holds the marks."""
    ends = [end for cell in cells if cell.value is not None for end in _ends(cell, cell.value)]
    low, high = max(0.0, min(ends)), min(1.0, max(ends))
    margin = max(0.06 * (high - low), 0.01)
    return low - margin, high + margin


def _ends(cell: Cell, value: float) -> tuple[float, float]:
    return (cell.interval.low, cell.interval.high) if cell.interval else (value, value)


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """About five round numbers within a range of scores."""
    rough = (high - low) / 5
    power = 10 ** floor(log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    digits = max(1, -floor(log10(step) + 1e-9))
    values = [step * number for number in range(ceil(low / step), floor(high / step) + 1)]
    return [(value, f"{value:.{digits}f}") for value in values if -1e-9 <= value <= 1 + 1e-9]


def _hint(one: Checkpoint) -> str:
    """The text shown for a point under the pointer, line by line."""
    lines = [f"{one.mark}  {one.label}" + (f" · {one.pipeline}" if one.pipeline else "")]
    lines += [f"{TITLES[name]}  {_score(cell)}" for name, cell in one.scores.items() if cell.value is not None]
    if one.seeds > 1:
        lines.append(f"mean of {one.seeds} seeds")
    if one.gain and one.gain.percent is not None:
        lines.append(f"average gain  {signed(one.gain.percent, 1)}%")
    if one.sure:
        lines.append(f"on the front in {one.sure.on_front:.0%} of the resamples")
    return "\n".join(lines)


def _score(cell: Cell) -> str:
    return " ".join([f"{cell.value:.3f}", *([interval_text(cell.interval)] if cell.interval else [])])


def interval_text(interval: Interval) -> str:
    return f"[{interval.low:.3f}, {interval.high:.3f}]"


def signed(number: float, digits: int) -> str:
    """A change, with the sign that typographers use."""
    return f"{number:+.{digits}f}".replace("-", "−")
