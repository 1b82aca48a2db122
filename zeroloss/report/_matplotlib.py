"""Figures as files for papers: PNG, PDF with text as text, and SVG."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure as Drawing
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from zeroloss._files import replacing
from zeroloss.report._chart import LIGHT, Axis, Figure, HeatMap, Note, Panel, Series, Style
from zeroloss.report._text import number

_POINT = 0.72  # points in a pixel
_DASHES: dict[str, Any] = {"solid": "-", "dash": (0, (4, 2.5)), "dot": ":", "dashdot": "-."}
_MARKERS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v", "cross": "P",
    "x": "X", "star": "*",
}  # fmt: skip
_COLORMAP = LinearSegmentedColormap.from_list("signed", [LIGHT[n] for n in ("negative", "paper", "positive")])
_THOUSANDS = FuncFormatter(lambda value, _: f"{value:,.0f}")
_ROUND_STEPS = [1, 2, 2.5, 5, 10]
_AS_TEXT: dict[Any, Any] = {"pdf.fonttype": 42, "svg.fonttype": "none"}


def save(figure: Figure, path: Path) -> Path:
    """Write a figure in the format that the suffix of `path` names; returns `path`."""
    with rc_context(_AS_TEXT):
        content = BytesIO()
        canvas = FigureCanvasAgg(draw(figure))
        canvas.print_figure(content, dpi=180, facecolor=LIGHT["paper"], format=path.suffix[1:])
    with replacing(path) as file:
        file.write(content.getvalue())
    return path


def draw(figure: Figure) -> Drawing:
    """A figure drawn by Matplotlib."""
    columns = max(map(len, figure.rows))
    width = 3.5 * columns if columns > 2 else 4.6 * columns
    heights = [max(panel.height for panel in row) / 100 for row in figure.rows]
    drawing = Drawing(figsize=(max(width, 5.0), sum(heights) + 1.0), layout="constrained")
    for line, row in enumerate(figure.rows):
        alike = len({panel.y.title for panel in row}) == 1
        for column, panel in enumerate(row):
            solid = any(isinstance(each, Series) and each.z is not None for each in panel.series)
            place = drawing.add_subplot(
                len(figure.rows), columns, line * columns + column + 1, projection="3d" if solid else None
            )
            _draw_panel(place, panel, first_row=line == 0, y_title=column == 0 or not alike)
    _legend(drawing, figure)
    drawing.suptitle(figure.title, fontsize=10, color=LIGHT["muted"], parse_math=False)
    return drawing


def _draw_panel(axes: Axes, panel: Panel, first_row: bool, y_title: bool) -> None:
    image = False
    for series in panel.series:
        if isinstance(series, HeatMap):
            axes.imshow(series.values, cmap=_COLORMAP, vmin=-series.bound, vmax=series.bound)
            image = True
        else:
            _draw_series(axes, series)
    title = "\n".join(filter(None, (panel.title, panel.subtitle)))
    small = max(map(len, (panel.title, panel.subtitle))) > 40
    axes.set_title(title, fontsize=8 if small else 10, fontweight="bold", parse_math=False, wrap=True)
    if image:
        axes.set_axis_off()
        return
    if panel.equal:
        axes.set_aspect("equal")
    _scale(axes, panel.x, "x")
    _scale(axes, panel.y, "y")
    axes.set_xlabel(panel.x.title, fontsize=9.5, parse_math=False)
    axes.set_ylabel(panel.y.title if y_title else "", fontsize=9.5, parse_math=False)
    for note in panel.notes:
        _annotate(axes, note)
    axes.grid(color=LIGHT["rule"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5, color=LIGHT["muted"], labelcolor=LIGHT["muted"])
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(LIGHT["muted"])
    if first_row and panel.x.steps_per_unit is not None:
        _steps_on_top(axes, panel.x.steps_per_unit)


def _draw_series(axes: Axes, series: Series) -> None:
    style = series.style
    where = [series.x, series.y] + ([] if series.z is None else [series.z])
    if style.fill:
        axes.fill(series.x, series.y, color=LIGHT[style.color], alpha=style.fill, linewidth=0)
    if series.low is not None and series.high is not None:
        ends = np.stack([series.y - series.low, series.high - series.y])
        axes.errorbar(
            series.x, series.y, ends, linestyle="none", ecolor=LIGHT[style.color], elinewidth=1.2, capsize=2
        )
    if style.width or style.marker:
        axes.plot(*where, **_look(style), label=series.key)


def _look(style: Style) -> dict[str, Any]:
    """How Matplotlib draws a line or markers of a style."""
    color, width = LIGHT[style.color], _POINT * style.width
    look: dict[str, Any] = {"color": color, "alpha": style.opacity, "linewidth": width}
    look["linestyle"] = _DASHES[style.dash] if style.width else "none"
    if style.marker:
        symbol = style.marker.removesuffix("-open")
        look |= {"marker": "x" if symbol == "x-thin" else _MARKERS[symbol], "markersize": _POINT * style.size}
        look["markerfacecolor"] = LIGHT["paper"] if style.marker.endswith("-open") else color
    return look


def _scale(axes: Axes, axis: Axis, name: str) -> None:
    """Set the scale, the ends and the ticks of the axis that has this name."""
    if axis.log:
        axes.set(**{f"{name}scale": "log"})
    if axis.range is not None:
        axes.set(**{f"{name}lim": axis.range})
    drawn = axes.xaxis if name == "x" else axes.yaxis
    if axis.ticks is not None:
        drawn.set_major_locator(FixedLocator(list(axis.ticks)))
        drawn.set_minor_locator(NullLocator())
        turned = 20 if name == "x" and sum(map(len, axis.labels)) > 60 else 0
        drawn.set_ticklabels(axis.labels, rotation=turned, parse_math=False)
    elif not axis.log:
        drawn.set_major_locator(MaxNLocator(5, steps=_ROUND_STEPS))
        if axis.whole:
            drawn.set_major_formatter(_THOUSANDS)


def _annotate(axes: Axes, note: Note) -> None:
    offset = (-8 if note.below else 8) if note.in_data else 0
    axes.annotate(
        note.text, (0.03 if note.left else 0.97, note.y), (0, offset), textcoords="offset points",
        xycoords=("axes fraction", "data" if note.in_data else "axes fraction"),
        ha="left" if note.left else "right", va="top" if note.below else "bottom", fontsize=9,
        color=LIGHT[note.color], parse_math=False,
        bbox={"facecolor": LIGHT["paper"], "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip


def _steps_on_top(axes: Axes, steps_per_unit: float) -> None:
    """Training steps on a second axis, above a panel over slow time."""

    def steps(t: Any) -> Any:
        return t * steps_per_unit

    def slow_time(k: Any) -> Any:
        return k / steps_per_unit

    top = axes.secondary_xaxis("top", functions=(steps, slow_time))
    top.set_xlabel(f"training steps k, {number(steps_per_unit, 4)} in 1", fontsize=8.5, color=LIGHT["muted"])
    top.xaxis.set_major_locator(MaxNLocator(4, steps=_ROUND_STEPS))
    top.xaxis.set_major_formatter(_THOUSANDS)
    top.tick_params(labelsize=8, color=LIGHT["muted"], labelcolor=LIGHT["muted"])
    top.spines["top"].set_color(LIGHT["muted"])


def _legend(drawing: Drawing, figure: Figure) -> None:
    """One legend below all panels."""
    handles: list[Any] = [tuple(map(_handle, entry.styles)) for entry in figure.legend]
    names = [entry.text.replace("$", r"\$") for entry in figure.legend]
    if handles:
        room = 16 * drawing.get_figwidth()  # characters in a line
        columns = max(1, min(len(names), int(room // (max(map(len, names)) + 8))))
        drawing.legend(
            handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=9,
            handler_map={tuple: HandlerTuple(ndivide=1)},
        )  # fmt: skip


def _handle(style: Style) -> Patch | Line2D:
    if style.fill and not style.width:
        return Patch(color=LIGHT[style.color], alpha=style.fill, linewidth=0)
    return Line2D([], [], **_look(style))
