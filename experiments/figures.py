"""The figures of the experiments. Imports matplotlib: reach it only once there is something to draw."""

from collections.abc import Sequence
from math import log10

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from eval.pareto.plot import BASE_COLOUR, COLOURS, DPI, MARKERS, WIDTH
from experiments.outcomes import PIPELINES, Row, height, publication, published, reference_of
from experiments.rows import Experiment, setting
from ogpsa.config import StageName

PUBLISHED_COLOUR = "#B0B0B0"
CURVES = {"utility": "utility (%) ↑", "safety": "safety (%) ↑", "over_refusal": "over-refusal (%) ↓"}
HEIGHTS = {"utility": "utility (%) →", "over_refusal": "harmless requests answered (%) →"}
# Percent of both scores that the nearer view shows.
NEAR = (88.0, 100.5)
OTHER_MODEL = " of another model, not comparable"


def draw(experiment: Experiment, rows: Sequence[Row]) -> Figure | None:
    """The figure of what has run of the experiment; None where there is nothing to show."""
    run = [row for row in rows if row.by_seed()]
    if experiment.settings.figure == "front":
        return _front(experiment, rows, "utility")
    if experiment.settings.figure == "curve" and experiment.settings.axis is not None and run:
        return _curve(experiment, rows, experiment.settings.axis)
    if experiment.settings.figure == "overlap" and run:
        return _overlap(run)
    return None


def draw_over_refusal(experiment: Experiment, rows: Sequence[Row]) -> Figure | None:
    """A front's figure against over-refusal; None for other figures, and where nothing has run or none is measured."""
    measured = any("over_refusal" in result.scores for row in rows for result in row.results)
    return _front(experiment, rows, "over_refusal") if experiment.settings.figure == "front" and measured else None


def _figure(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.05))


def _front(experiment: Experiment, rows: Sequence[Row], against: str) -> Figure | None:
    """Safety and that score by part and pipeline, the published points in grey behind; ours once more, from near.

    In over-refusal's place stands the share that is answered, so that what is better lies up and to the right. Where
    rows are drawn in several parts, each has its own legend.
    """
    scores = ("safety", against)
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(experiment.panel(row.name), []).append(row)
    columns = [
        (title, pipeline)
        for title, part in parts.items()
        for pipeline in PIPELINES.values()
        if any(row.pipeline == pipeline for row in part)
    ]
    styles = {title: _style(list(dict.fromkeys(row.label for row in part))) for title, part in parts.items()}
    groups = list(dict.fromkeys(row.group for row in rows))
    comparable = all(row.comparable for row in rows)
    # The published points, of other benchmarks, leave little room for ours.
    shown = any((row.name, score) in published() for row in rows for score in scores[1:])
    near = shown and not comparable and any(row.by_seed() for row in rows)
    views = [(group, close) for group in groups for close in ((False, True) if near else (False,))]
    figure = _figure(3.4 * len(views) + 0.8)
    panels = figure.subplots(len(views), len(columns), squeeze=False)
    for line, (group, close) in zip(panels, views, strict=True):
        for axes, (part, pipeline) in zip(line, columns, strict=True):
            own = [row for row in parts[part] if row.place == (group, pipeline)]
            if not close:
                for row in own:
                    _draw_published(axes, row.name, styles[part][row.label][1], scores)
                # Its mark is in the legend where rows have published points, too.
                if own and shown:
                    _draw_published(axes, own[0].model, "x", scores)
            for row in own:
                _draw_row(axes, row, *styles[part][row.label], scores)
            base = next((row.base for row in own if row.base), {})
            if all(score in base for score in scores):
                axes.axvline(base["safety"], color=BASE_COLOUR, linewidth=1, linestyle="--", zorder=1)
                axes.axhline(height(against, base[against]), color=BASE_COLOUR, linewidth=1, linestyle="--", zorder=1)
            axes.set_xlim(NEAR if close else _within_percent(*axes.get_xlim()))
            axes.set_ylim(NEAR if close else _within_percent(*axes.get_ylim()))
            title = ", ".join(name for name in (group if len(groups) > 1 else "", pipeline, part) if name)
            _finish(axes, f"{title}, from near" if close else title)
            axes.set_xlabel("safety (%) →")
        line[0].set_ylabel(HEIGHTS[against])
    others = [Line2D([], [], color=BASE_COLOUR, linewidth=1, linestyle="--", label="untuned")]
    if shown:
        label = f"published{'' if comparable else OTHER_MODEL} (×: untuned)"
        others.append(Line2D([], [], color=PUBLISHED_COLOUR, linestyle="", marker="o", markersize=8, label=label))
    handles = {
        part: [
            Line2D([], [], color=colour, linestyle="", marker=marker, markersize=8, label=label)
            for label, (colour, marker) in style.items()
            if shown or any(row.label == label and row.results for row in parts[part])
        ]
        for part, style in styles.items()
    }
    if len(parts) == 1:
        _add_legend(figure, [*next(iter(handles.values())), *others])
    else:
        for axes, (part, _) in zip(panels[-1], columns, strict=True):
            axes.legend(handles=[*handles[part], *others], loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2,
                        frameon=False, fontsize=9)  # fmt: skip
    return figure


def _add_legend(figure: Figure, handles: Sequence[Artist]) -> None:
    """Below the panels, in as many columns, up to four, as the figure is wide enough for."""
    for columns in (4, 3, 2, 1):
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def _style(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each label: the paper's methods have the same in all figures, others get what is left."""
    fixed = list(publication().methods.values())
    places = {label: fixed.index(label) for label in labels if label in fixed}
    # One colour more than once is told apart by its markers.
    free = [place for place in range(len(labels) + len(fixed)) if place not in places.values()]
    others = [label for label in labels if label not in fixed]
    places |= dict(zip(others, free[: len(others)], strict=True))
    return {label: (COLOURS[places[label] % len(COLOURS)], MARKERS[places[label] % len(MARKERS)]) for label in labels}


def _draw_published(axes: Axes, row: str, marker: str, scores: Sequence[str]) -> None:
    points = [height(score, entry.value) for score in scores if (entry := published().get((row, score))) is not None]
    if len(points) == len(scores):
        axes.plot(*points, color=PUBLISHED_COLOUR, marker=marker, markersize=8, zorder=2)


def _draw_row(axes: Axes, row: Row, colour: str, marker: str, scores: Sequence[str]) -> None:
    """A row's means, one per strength; the one that is compared filled and with its intervals.

    A strength at which fewer seeds have run than at another is left out: the means would not be of the same.
    """
    points = []
    most = max((len(row.by_seed(strength)) for strength in row.strengths), default=0)
    for strength in (strength for strength in row.strengths if len(row.by_seed(strength)) == most):
        safety, other = (row.summary(score, strength) for score in scores)
        if safety is None or other is None:
            continue
        points.append((safety.mean, height(scores[1], other.mean)))
        own = strength == row.strength
        if own:
            axes.errorbar(*points[-1], xerr=safety.half_width, yerr=other.half_width, color=colour, elinewidth=1.5,
                          capsize=3, alpha=0.6, zorder=3)  # fmt: skip
        axes.plot(*points[-1], color=colour, marker=marker, markersize=8 if own else 5, zorder=4,
                  markerfacecolor=colour if own else "white")  # fmt: skip
    if len(points) > 1:
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=0.8, alpha=0.7, zorder=3)


def _curve(experiment: Experiment, rows: Sequence[Row], axis: str) -> Figure:
    """Scores over the key ``axis``; the reference row as a band."""
    settings = {row.name: setting(row.config, axis) for row in rows}
    # The reference has no place on the axis.
    placed = [row for row in rows if reference_of(row, experiment, rows) is not None and settings[row.name] is not None]
    numbers = sorted({float(text) for row in placed if (text := settings[row.name]) and _is_number(text)})
    places = {f"{number:g}": log10(number) for number in numbers}
    for text in dict.fromkeys(settings[row.name] or "" for row in placed):
        if not _is_number(text):
            places[text] = max(places.values(), default=0.0) + 0.5
    references = [row for row in rows if any(reference_of(other, experiment, rows) is row for other in placed)]
    figure = _figure(3.6)
    for axes, (score, title) in zip(figure.subplots(1, len(CURVES)), CURVES.items(), strict=True):
        for row in references:
            if (summary := row.summary(score)) is not None:
                half = summary.half_width or 0.0
                axes.axhspan(summary.mean - half, summary.mean + half, color=BASE_COLOUR, alpha=0.15, linewidth=0)
                axes.axhline(summary.mean, color=BASE_COLOUR, linewidth=1.2, linestyle="--", label=row.label)
        for index, group in enumerate(dict.fromkeys(row.group for row in placed)):
            points = [
                (places[text if not _is_number(text) else f"{float(text):g}"], summary)
                for row in placed
                if row.group == group and (text := settings[row.name]) and (summary := row.summary(score)) is not None
            ]
            points.sort(key=lambda point: point[0])
            if points:
                x, summaries = zip(*points, strict=True)
                means, halves = zip(*((one.mean, one.half_width or 0.0) for one in summaries), strict=True)
                axes.errorbar(x, means, yerr=halves, color=COLOURS[index], marker="o", markersize=5, capsize=3,
                              linewidth=1.2, label=group)  # fmt: skip
        axes.set_ylim(_within_percent(*axes.get_ylim()))
        axes.set_xticks(list(places.values()), list(places))
        axes.set_xlabel(axis)
        _finish(axes, title)
    handles, _ = axes.get_legend_handles_labels()
    _add_legend(figure, handles)
    return figure


def _within_percent(low: float, high: float) -> tuple[float, float]:
    """Limits no farther than percentages go, a little room around them, and not so near that noise fills the panel."""
    room = max(0.0, 5.0 - (high - low)) / 2
    return max(low - room, -3.0), min(high + room, 103.0)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def _overlap(rows: Sequence[Row]) -> Figure:
    """Cosine before and after, safety loss and reference loss over the steps; a column per stage."""
    stages = list(dict.fromkeys(stage.name for row in rows for stage in row.config.stages))
    several = len({row.pipeline for row in rows}) > 1
    titles = {"projection/cosine": "cosine with the subspace", "loss": "safety loss",
              "projection/reference_loss": "reference loss"}  # fmt: skip
    figure = _figure(2.3 * len(titles) + 0.6)
    panels = figure.subplots(len(titles), len(stages), squeeze=False, sharex="col")
    for line, (key, title) in zip(panels, titles.items(), strict=True):
        for axes, stage in zip(line, stages, strict=True):
            for index, row in enumerate(rows):
                _draw_course(axes, row, stage, key, COLOURS[index % len(COLOURS)])
                if key == "projection/cosine":
                    _draw_course(axes, row, stage, f"{key}_after", COLOURS[index % len(COLOURS)], "--")
            if key == "loss":
                axes.set_yscale("log")
            _finish(axes, f"{stage.upper()}: {title}")
    for axes in panels[-1]:
        axes.set_xlabel("optimizer step")
    handles = [Line2D([], [], color=COLOURS[index % len(COLOURS)],
                      label=f"{row.label}, {row.pipeline}" if several else row.label)
               for index, row in enumerate(rows)]  # fmt: skip
    handles.append(Line2D([], [], color="black", linestyle="--", label="cosine after projection"))
    _add_legend(figure, handles)
    return figure


def _draw_course(axes: Axes, row: Row, stage: StageName, key: str, colour: str, line: str = "-") -> None:
    if course := row.course(stage, key):
        axes.plot(*zip(*course, strict=True), color=colour, linewidth=1.2, linestyle=line)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.grid(color="#E6E6E6", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
