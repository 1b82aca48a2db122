"""Interactive figures of a study: two for each ladder, as Plotly figures in plain JSON."""

# ruff: noqa: RUF001  # Greek letters and typographic signs are meant

from collections.abc import Sequence
from typing import Any

import numpy as np

from zeroloss.report._html import Entry
from zeroloss.report._plotly import HEIGHT, MARGIN, plain
from zeroloss.report._study_charts import Ladder, Points, log_ticks, log_window, tick_label
from zeroloss.report._study_sentences import slope_in_words


def plot_steps(ladder: Ladder) -> dict[str, Any]:
    """Steps to the drift along a ladder, with the fitted power law and the limit's."""
    data = [
        _curve(ladder.fitted_steps, "fit", "fit", ""),
        _curve((ladder.x, ladder.theory), "limit", "limit", "limit %{y:,.0f} steps"),
        _points(
            ladder.steps_taken,
            ladder,
            "points",
            "points",
            "%{y:,.0f} steps, %{customdata[0]} to %{customdata[1]}",
        ),
    ]
    points = ladder.steps_taken
    fitted, theory = slope_in_words(ladder)
    notes = [_note(fitted, "left", "bottom", "training"), _note(theory, "right", "top", "limit")]
    steps = log_window(points.low, points.high, ladder.theory)
    return _figure(ladder, data, steps, notes)


def plot_gap(ladder: Ladder) -> dict[str, Any]:
    """How far training is from the limit along a ladder: in steps, and in the space of parameters."""
    gaps, distances = ladder.gaps, ladder.distances
    value = "gap %{y:.2~g}, %{customdata[0]} to %{customdata[1]}"
    distance = "distance %{y:.2~g}, %{customdata[0]} to %{customdata[1]}"
    data = [
        _curve(ladder.fitted_gap, "fit", "fit", ""),
        _points(_chosen(distances, True), ladder, "distance", "distance", distance),
        _points(_chosen(distances, False), ladder, "distance-bound", "distance", "distance below %{y:.2~g}"),
        _points(_chosen(gaps, True), ladder, "points", "points", value),
        _points(_chosen(gaps, False), ladder, "points-bound", "points", "gap below %{y:.2~g}"),
    ]
    window = log_window(gaps.low, gaps.high, distances.low, distances.high)
    return _figure(ladder, data, window)


def steps_legend() -> list[Entry]:
    """The legend of `plot_steps`."""
    return [
        Entry("points", "dots", "training ± 2 standard errors"),
        Entry("fit", "training line thin", "power law of the fitted slope"),
        Entry("limit", "limit", "what the limit takes"),
    ]


def gap_legend(ladders: Sequence[Ladder]) -> list[Entry]:
    """The legend of `plot_gap` for the ladders of one noise."""
    entries = [Entry("points", "dots", "gap |log(steps / steps of the limit)|")]
    if any(ladder.approach is not None for ladder in ladders):
        entries.append(Entry("fit", "training line thin", "remainder + constant × power"))
    what = "mean square displacement" if any(each.stochastic for each in ladders) else "parameters"
    return [*entries, Entry("distance", "squares", f"distance of the {what} from the limit's")]


def _figure(
    ladder: Ladder,
    data: list[dict[str, Any] | None],
    window: tuple[float, float],
    notes: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    layout = {
        "height": HEIGHT,
        "margin": MARGIN,
        "hovermode": "closest",
        "uirevision": "keep",
        "xaxis": _axis(*log_window(ladder.x))
        | {"title": {"text": ladder.axis, "standoff": 8, "font": {"size": 12}}},
        "yaxis": _axis(*window),
        "annotations": [note for note in notes if note["text"]],
        "shapes": [],
    }
    return {"data": [trace for trace in data if trace is not None], "layout": layout}


def _axis(low: float, high: float) -> dict[str, Any]:
    """A logarithmic axis with given ticks, for Plotly's own are few or overlap."""
    ticks = log_ticks(low, high)
    return {
        "type": "log",
        "range": [float(np.log10(low)), float(np.log10(high))],
        "tickmode": "array",
        "tickvals": ticks,
        "ticktext": [tick_label(tick) for tick in ticks],
        "tickangle": 0,
        "nticks": 4,
        "tickformat": "~g",
    }


def _curve(
    curve: tuple[np.ndarray, np.ndarray] | None, style: str, button: str, template: str
) -> dict[str, Any] | None:
    if curve is None:
        return None
    x, y = curve
    hover = {"hovertemplate": f"{template}<extra></extra>"} if template else {"hoverinfo": "skip"}
    return _trace(style, button, "lines") | {"x": plain(x), "y": plain(y)} | hover


def _points(points: Points, ladder: Ladder, style: str, button: str, template: str) -> dict[str, Any] | None:
    if not points.x.size:
        return None
    trace = _trace(style, button, "markers") | {
        "x": points.x.tolist(),
        "y": points.y.tolist(),
        "customdata": [[f"{a:,.3g}", f"{b:,.3g}"] for a, b in zip(points.low, points.high, strict=True)],
        "hovertemplate": f"{ladder.symbol} = %{{x:.3~g}}<br>{template}<extra></extra>",
    }
    if points.resolved.all():
        trace["error_y"] = {
            "type": "data",
            "symmetric": False,
            "array": (points.high - points.y).tolist(),
            "arrayminus": (points.y - points.low).tolist(),
        }
    return trace


def _trace(style: str, button: str, mode: str) -> dict[str, Any]:
    return {"meta": style, "legendgroup": button, "type": "scatter", "mode": mode, "showlegend": False}


def _note(text: str, horizontally: str, vertically: str, color: str) -> dict[str, Any]:
    return {
        "text": text,
        "name": color,
        "xref": "paper",
        "yref": "paper",
        "x": 0.02 if horizontally == "left" else 0.98,
        "y": 0.03 if vertically == "bottom" else 0.97,
        "xanchor": horizontally,
        "yanchor": vertically,
        "showarrow": False,
    }


def _chosen(points: Points, resolved: bool) -> Points:
    return Points(*(each[points.resolved == resolved] for each in points))
