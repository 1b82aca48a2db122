"""Lines and points in one interactive figure, as Plotly's plain JSON. `page.js` gives them their colours."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from zeroloss.report._html import Board, Entry, section
from zeroloss.report._plotly import HEIGHT, MARGIN, band, plain

MOST_SERIES = 7
"""How many lines `page.js` can tell apart by colour."""

_LONGEST = 16
_MOST_TICKS = 8


class Line(NamedTuple):
    """Values against others.

    - `style`: how it is drawn; `page.js` knows the names. `button`: what in the legend shows or hides it.
    - `says`: what is said of it where the mouse is, a template of Plotly's; nothing where empty. No text from
      a run goes in, because Plotly reads some of it as HTML.
    - `error`: a standard error: two of them are a band around a line, and bars at points.
    - `points`: whether to draw points and no line; `knots`: whether to draw points on the line.
    - `z`: for a third dimension.
    """

    x: np.ndarray
    y: np.ndarray
    style: str
    button: str
    says: str = ""
    error: np.ndarray | None = None
    points: bool = False
    knots: bool = False
    z: np.ndarray | None = None


class Chart(NamedTuple):
    """Lines in one panel.

    - `strong` and `weak`: its caption; `description` is for who cannot see it.
    - `logarithmic`: the axes that are, such as "y".
    - `header`: of what is said where the mouse is, a template of Plotly's; with it all lines speak at once.
    - `categories`: what the values 0, 1, ... of x are called.
    """

    strong: str
    weak: str
    description: str
    lines: Sequence[Line]
    x_title: str
    y_title: str = ""
    logarithmic: str = ""
    header: str = ""
    categories: Sequence[str] = ()


class Group(NamedTuple):
    """Charts of one quantity, with the legend that they share."""

    heading: str
    entries: Sequence[Entry]
    charts: Sequence[Chart]


def sections(groups: Iterable[Group], board: Board) -> str:
    """The sections of a page for all `groups`."""
    return "\n".join(
        section(
            group.heading,
            group.entries,
            [
                board.panel(chart.strong, chart.weak, chart.description, figure(chart))
                for chart in group.charts
            ],
        )
        for group in groups
    )


def figure(chart: Chart, height: int = HEIGHT) -> dict[str, Any]:
    """A figure for `markup.Board`."""
    data = []
    for line in chart.lines:
        if line.error is not None and not line.points:
            shown = band(line.x, line.y - 2 * line.error, line.y + 2 * line.error)
            data.append(_trace(f"{line.style}-band", line) | shown)
        hover = {"hovertemplate": f"{line.says}<extra></extra>"} if line.says else {"hoverinfo": "skip"}
        trace = _trace(line.style, line) | {"x": plain(line.x), "y": plain(line.y)} | hover
        if line.points:
            trace["mode"] = "markers"
            if line.error is not None:
                trace["error_y"] = {"type": "data", "array": plain(2 * line.error)}
        elif line.knots:
            trace["mode"] = "lines+markers"
        if line.z is not None:
            trace |= {"type": "scatter3d", "z": plain(line.z)}
        data.append(trace)
    layout: dict[str, Any] = {
        "height": height,
        "margin": MARGIN,
        "hovermode": "x unified" if chart.header else "closest",
        "uirevision": "keep",
        "xaxis": {"title": {"text": chart.x_title, "standoff": 8, "font": {"size": 12}}, "nticks": 6},
        "yaxis": {"title": {"text": chart.y_title, "font": {"size": 12}}, "nticks": 6, "tickformat": "~g"},
        "annotations": [],
        "shapes": [],
    }
    if chart.header:
        layout["xaxis"]["unifiedhovertitle"] = {"text": chart.header}
    if chart.categories:
        layout["xaxis"] |= {
            "tickvals": list(range(len(chart.categories))),
            "ticktext": [_plain_text(each) for each in chart.categories],
            "range": [-0.5, len(chart.categories) - 0.5],
        }
    for axis in chart.logarithmic:
        layout[f"{axis}axis"] |= {"type": "log", "dtick": 1, "exponentformat": "power", "tickformat": ""}
    values = np.unique(
        np.concatenate([line.x for line in chart.lines if line.points and line.error is not None] or [[]])
    )
    if "x" in chart.logarithmic and 0 < len(values) <= _MOST_TICKS:
        layout["xaxis"] |= {
            "tickmode": "array",
            "tickvals": plain(values),
            "ticktext": [f"{v:.3g}" for v in values],
        }
    return {"data": data, "layout": layout}


def _plain_text(value: str) -> str:
    """Text of a run's where Plotly would read it as HTML, and would take all the room there is."""
    return escape(value if len(value) <= _LONGEST else value[: _LONGEST - 1] + "\u2026", quote=False)


def _trace(style: str, line: Line) -> dict[str, Any]:
    return {
        "meta": style,
        "legendgroup": line.button,
        "type": "scatter",
        "mode": "lines",
        "showlegend": False,
    }
