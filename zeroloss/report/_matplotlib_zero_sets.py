"""Charts as static figures: the same lines that the page shows, drawn by Matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from zeroloss.report._colors import LIMIT, MUTED, NOISES, PREDICTION, TRAINING, lighten, save
from zeroloss.report._line_charts import Chart, Group, Line

_COLUMNS = 4
_COLORS = {"training": TRAINING, "limit": LIMIT, "prediction": PREDICTION, "before": MUTED}
_DASHES = {"limit": (0, (4, 2.5)), "prediction": "-.", "before": ":"}
_MARKERS = "osD^vPX"


def write_stills(groups: Sequence[Group], title: str, folder: Path, format: str) -> list[Path]:
    """Draw each group into `folder` as a figure of its own; returns the files written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for index, group in enumerate(groups, start=1):
        name = "".join(c if c.isalnum() else "_" for c in group.heading.lower())
        written.append(save(_draw(group, title), folder / f"{index:02d}_{name}.{format}"))
    return written


def _draw(group: Group, title: str) -> Figure:
    columns = min(_COLUMNS, len(group.charts))
    rows = -(-len(group.charts) // columns)
    figure = Figure(figsize=(max(3.4 * columns, 5.0), 2.7 * rows + 0.9), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in list(grid.flat)[len(group.charts) :]:
        axes.set_visible(False)
    for axes, chart in zip(grid.flat, group.charts, strict=False):
        _chart(axes, chart)
    for row in grid:
        row[0].set_ylabel(group.heading, fontsize=9.5, parse_math=False)
    shown = {line.button: line for chart in group.charts for line in chart.lines if line.style != "none"}
    named = [entry for entry in group.entries if entry.shows in shown]
    handles = [_handle(shown[entry.shows]) for entry in named]
    names = [entry.name.replace("$", r"\$") for entry in named]
    if handles:
        figure.legend(
            handles, names, loc="outside lower center", ncols=min(len(handles), 4), frameon=False, fontsize=9
        )
    figure.suptitle(title, fontsize=10, color=MUTED, parse_math=False)
    return figure


def _chart(axes: Axes, chart: Chart) -> None:
    for line in chart.lines:
        style = _style(line)
        if line.points:
            error = None if line.error is None else 2 * line.error
            axes.errorbar(line.x, line.y, error, **style, linewidth=0, elinewidth=1.2, capsize=2)
            continue
        if line.error is not None:
            axes.fill_between(
                line.x, line.y - 2 * line.error, line.y + 2 * line.error, color=style["color"], alpha=0.25,
                linewidth=0,
            )  # fmt: skip
        axes.plot(line.x, line.y, **style)
    for axis in chart.logarithmic:
        (axes.set_xscale if axis == "x" else axes.set_yscale)("log")
    if chart.categories:
        axes.set_xticks(range(len(chart.categories)), chart.categories, rotation=20, parse_math=False)
    axes.set_xlabel(chart.x_title, fontsize=9.5, parse_math=False)
    axes.set_title(chart.strong, fontsize=9.5, fontweight="bold", parse_math=False)
    lighten(axes)


def _style(line: Line) -> dict[str, Any]:
    base, _, rest = line.style.partition("-")
    if base == "series":
        number, _, rest = rest.partition("-")
        index = int(number)
        color, marker = NOISES[index % len(NOISES)], _MARKERS[index % len(_MARKERS)]
    else:
        color, marker = _COLORS.get(base, MUTED), "o"
    if line.points:
        hollow = {"markerfacecolor": "none"} if rest.startswith("thin") else {}
        return {
            "color": color,
            "marker": "x" if rest.startswith("cross") else marker,
            "markersize": 4.5,
        } | hollow
    dashes = "--" if base == "series" and rest == "thin" else _DASHES.get(line.style, "-")
    return {"color": color, "linewidth": 0.9 if rest == "thin" else 1.8, "linestyle": dashes}


def _handle(line: Line) -> Line2D:
    handle = Line2D([], [], **_style(line))
    if line.points:
        handle.set_linestyle("none")
    return handle
