"""Panels as Plotly figures in plain JSON. `page.js` replaces each "@role" by the colour of that role."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from zeroloss.report._chart import Axis, HeatMap, Note, Panel, Series, Style
from zeroloss.report._text import steps_in_words

_MARGIN = {"l": 62, "r": 26, "t": 10, "b": 46}
_LONGEST = 16  # characters of a tick label: Plotly gives a longer one all the room there is
_FONT = {"family": 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif', "size": 12, "color": "@muted"}


def plot(panel: Panel) -> dict[str, Any]:
    """`data` and `layout` of a panel, `frames` and `steps_per_unit` where there are any; JSON can hold all.

    Each trace has the key of its series as `legendgroup` and its colour role as `meta`.
    """
    figure: dict[str, Any] = {"data": [_trace(each) for each in panel.series], "layout": _layout(panel)}
    if panel.frames is not None:
        labels, y = list(panel.frames.labels), panel.frames.y.tolist()
        figure["frames"] = {"trace": panel.frames.series, "labels": labels, "y": y}
    if panel.x.steps_per_unit is not None:
        figure["steps_per_unit"] = panel.x.steps_per_unit
    return figure


def _layout(panel: Panel) -> dict[str, Any]:
    image = any(isinstance(each, HeatMap) for each in panel.series)
    solid = any(isinstance(each, Series) and each.z is not None for each in panel.series)
    layout: dict[str, Any] = {
        "height": panel.height,
        "margin": _MARGIN,
        "hovermode": "x unified" if panel.header else "closest",
        "uirevision": "keep",
        "paper_bgcolor": "@paper",
        "plot_bgcolor": "@paper",
        "font": _FONT,
        "hoverlabel": {"bgcolor": "@soft", "bordercolor": "@rule", "font": {"color": "@ink"}},
        "xaxis": _axis(panel.x),
        # The heading above names the quantity, except where both axes are of one kind.
        "yaxis": _axis(panel.y, titled=panel.equal),
        "annotations": [_annotation(note) for note in panel.notes],
    }
    if panel.header:
        layout["xaxis"]["unifiedhovertitle"] = {"text": panel.header}
    if panel.equal:
        layout["yaxis"]["scaleanchor"] = "x"
    if image:
        layout["yaxis"] |= {"autorange": "reversed", "visible": False}
        layout["xaxis"] |= {"visible": False, "constrain": "domain"}
    if solid:
        titles = {"xaxis": panel.x.title, "yaxis": panel.y.title, "zaxis": "w₃"}
        axes = {axis: _solid_axis(title) for axis, title in titles.items()}
        layout["scene"] = {**axes, "aspectmode": "data"}
    return layout


def _axis(axis: Axis, titled: bool = True) -> dict[str, Any]:
    title = axis.title
    if axis.steps_per_unit is not None:
        title += f" (1 is {steps_in_words(axis.steps_per_unit)} steps)"
    found: dict[str, Any] = {
        "title": {"text": title if titled else "", "standoff": 8, "font": {"size": 12}},
        "nticks": 6, "tickformat": "," if axis.whole else "~g", "automargin": False,
        "gridcolor": "@rule", "linecolor": "@muted", "showline": True, "zeroline": False,
        "ticks": "outside", "tickcolor": "@muted", "ticklen": 4, "spikecolor": "@muted", "spikethickness": 1,
    }  # fmt: skip
    if axis.log:
        found["type"] = "log"
        if axis.ticks is None:
            found |= {"dtick": 1, "exponentformat": "power", "tickformat": ""}
    if axis.range is not None:
        found["range"] = [float(end) for end in (np.log10(axis.range) if axis.log else axis.range)]
    if axis.ticks is not None:
        found |= {"tickmode": "array", "tickvals": [float(tick) for tick in axis.ticks], "tickangle": 0}
        found["ticktext"] = [_plain_text(label) for label in axis.labels]
    return found


def _solid_axis(title: str) -> dict[str, Any]:
    return {
        "title": {"text": title}, "nticks": 5, "gridcolor": "@rule", "color": "@muted",
        "backgroundcolor": "@paper", "showbackground": False, "zeroline": False,
    }  # fmt: skip


def _trace(series: Series | HeatMap) -> dict[str, Any]:
    if isinstance(series, HeatMap):
        scale = [[0, "@negative"], [0.5, "@paper"], [1, "@positive"]]
        return {
            "type": "heatmap", "z": [_finite(row) for row in series.values], "zmin": -series.bound,
            "zmax": series.bound, "colorscale": scale, "showscale": False, "hoverongaps": False,
            "hovertemplate": "row %{y}, column %{x}: %{z:.3~g}<extra></extra>", "legendgroup": "",
        }  # fmt: skip
    style, solid = series.style, series.z is not None
    modes = ["lines"] * (style.width > 0 or style.fill > 0) + ["markers"] * bool(style.marker)
    trace: dict[str, Any] = {
        "type": "scatter3d" if solid else "scatter",
        "mode": "+".join(modes),
        "x": _finite(series.x),
        "y": _finite(series.y),
        "meta": style.color,
        "legendgroup": series.key,
        "showlegend": False,
        "opacity": style.opacity,
        "line": {"color": f"@{style.color}", "width": style.width, "dash": style.dash},
    }
    trace |= {"hovertemplate": f"{series.hover}<extra></extra>"} if series.hover else {"hoverinfo": "skip"}
    if series.z is not None:  # WebGL draws lines thinner and markers larger, and no dashes
        trace["z"] = _finite(series.z)
        trace["line"] = {"color": f"@{style.color}", "width": 2.5 * style.width}
    if style.fill:
        trace |= {"fill": "toself", "fillcolor": f"@{style.color}/{style.fill}"}
    if style.marker:
        trace["marker"] = _marker(style, 0.6 if solid else 1.0)
    if series.details:
        trace["customdata"] = [list(each) for each in zip(*map(_detail, series.details), strict=True)]
    if series.low is not None and series.high is not None:
        trace["error_y"] = {
            "type": "data", "symmetric": False, "array": _finite(series.high - series.y),
            "arrayminus": _finite(series.y - series.low), "color": f"@{style.color}", "thickness": 1.5,
            "width": 3,
        }  # fmt: skip
    return trace


def _marker(style: Style, scale: float) -> dict[str, Any]:
    hollow = style.marker.endswith(("-open", "-thin"))
    line = {"color": f"@{style.color}", "width": 1.8 if hollow else 0}
    symbol = style.marker if scale == 1 else style.marker.removesuffix("-thin")  # which space does not have
    return {"symbol": symbol, "size": scale * style.size, "color": f"@{style.color}", "line": line}


def _annotation(note: Note) -> dict[str, Any]:
    found: dict[str, Any] = {
        "text": note.text, "font": {"color": f"@{note.color}"}, "bgcolor": "@paper", "showarrow": False,
        "xref": "paper", "x": 0.02 if note.left else 0.98, "xanchor": "left" if note.left else "right",
        "y": note.y, "yanchor": "top" if note.below else "bottom",
    }  # fmt: skip
    if note.in_data:
        return found | {"yshift": -4 if note.below else 4}
    return found | {"yref": "paper"}


def _plain_text(value: str) -> str:
    """Text of a run, where Plotly would read it as HTML."""
    return escape(value if len(value) <= _LONGEST else value[: _LONGEST - 1] + "…", quote=False)


def _detail(values: np.ndarray) -> Sequence[Any]:
    return _finite(values) if values.dtype.kind in "fiu" else values.tolist()


def _finite(values: np.ndarray) -> list[float | None]:
    """Numbers for JSON, which has no NaN; Plotly leaves a gap for null."""
    return [float(value) if np.isfinite(value) else None for value in values]
