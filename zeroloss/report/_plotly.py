"""Interactive figures: each panel as a Plotly figure in plain JSON. `page.js` gives it its colours."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from zeroloss.report._charts import DISTANCE, Curve, Panel
from zeroloss.report._html import Entry
from zeroloss.report._numbers import number

HEIGHT = 270
MARGIN = {"l": 62, "r": 26, "t": 10, "b": 46}
"""Of every figure on a page, in pixels."""


def plot(panel: Panel, limits: tuple[float, float]) -> dict[str, Any]:
    """`data` and `layout` for Plotly, safe for `json.dumps`.

    Every trace carries in `meta` how it looks, and in `legendgroup` the button that shows or hides it. No
    text from a run goes in, because Plotly reads some of it as HTML.
    """
    training, reference = panel.training, panel.reference
    word = training.name if panel.quantity == DISTANCE else "training"
    other = "mean of the limit" if panel.stochastic else reference.name
    at = "<br>at step %{customdata[3]:,}" if panel.axis.slow else ""
    data: list[dict[str, Any]] = []
    if reference.quantiles is not None:
        wide, narrow = _between(reference, 0, 3), _between(reference, 1, 2)
        data += [wide | _role("limit-wide", "limit-spread"), narrow | _role("limit-narrow", "limit-spread")]
    if reference.error is not None:
        data.append(band(reference.x, reference.low, reference.high) | _role("limit-band", "limit"))
    if training.error is not None:
        data.append(band(training.x, training.low, training.high) | _role("band", "training"))
    if training.quantiles is not None:
        data += [
            {"x": plain(training.x), "y": plain(each), "hoverinfo": "skip"}
            | _role("quantile-wide" if index in (0, 3) else "quantile-narrow", "training-spread")
            for index, each in enumerate(training.quantiles)
        ]
    data.append(_line(training, word, at, panel.axis.steps_per_unit) | _role("training", "training"))
    role = reference_role(panel)
    data.append(_line(reference, other, "", panel.axis.steps_per_unit) | _role(role, role))
    if panel.prediction is not None:
        line = _line(panel.prediction, panel.prediction.name, "", panel.axis.steps_per_unit)
        data.append(line | _role("prediction", "prediction"))
    for trace in data:
        trace |= {"type": "scatter", "mode": "lines", "showlegend": False}
    title, header = panel.axis.title, "step %{x:,}"
    if panel.axis.slow:
        header = "t = %{x:.3~g}"
        title += f" (1 is {number(panel.axis.steps_per_unit, 4)} steps)"
    layout = {
        "height": HEIGHT,
        "margin": MARGIN,
        "hovermode": "x unified",
        "uirevision": "keep",
        "xaxis": {
            "title": {"text": title, "standoff": 8, "font": {"size": 12}},
            "range": [0, panel.end],
            "nticks": 6,
            "unifiedhovertitle": {"text": header},
            "tickformat": "" if panel.axis.slow else ",",
        },
        "yaxis": {"range": list(limits), "nticks": 6, "tickformat": "~g"},
        "annotations": _annotations(panel, limits),
        "shapes": _shapes(panel),
    }
    figure = {"data": data, "layout": layout}
    if panel.axis.slow:
        figure["steps_per_unit"] = panel.axis.steps_per_unit
    return figure


def reference_role(panel: Panel) -> str:
    """What the second curve of a panel is: the `limit`, or the `scatter` of the ensemble."""
    return "scatter" if panel.quantity == DISTANCE else "limit"


def description(panel: Panel) -> str:
    """What the panel shows, for those who do not see it."""
    over = "slow time" if panel.axis.slow else "training steps"
    text = f"{panel.label} under {panel.noise} over {over}: "
    if panel.diverged is not None:
        text += "training diverged; "
    if panel.constant is not None:
        return text + panel.constant_in_words + "."
    ends = (f"{curve.name} from {number(curve.y[0])} to {number(curve.y[-1])}" for curve in panel.curves)
    return text + "; ".join(ends) + "."


def legend_entries(shown: Sequence[Panel]) -> list[Entry]:
    """The legend of the panels of one quantity."""
    training, role = shown[0].training, reference_role(shown[0])
    name = training.name + (" \u00b1 2 standard errors" if training.error is not None else "")
    spread = next((panel.reference for panel in shown if panel.stochastic), None)
    entries = [Entry("training", "training" if training.error is not None else "training line", name)]
    predicted = next((panel.prediction.name for panel in shown if panel.prediction is not None), None)
    if predicted is not None:
        entries.append(Entry("prediction", "prediction", predicted))
    if spread is None:
        return [*entries, Entry(role, role, shown[0].reference.name)]
    alone = all(panel.stochastic for panel in shown)
    name = spread.name if alone else f"limit; where it is stochastic, mean of {spread.members} paths"
    return [
        *entries,
        Entry("training-spread", "quantiles", "5, 25, 75 and 95 % of the runs, thin"),
        Entry(role, role, f"{name} \u00b1 2 standard errors"),
        Entry("limit-spread", "spread", "5\u201395 % and 25\u201375 % of the limit's paths"),
    ]


def _role(style: str, button: str) -> dict[str, Any]:
    return {"meta": style, "legendgroup": button}


def _line(curve: Curve, word: str, at: str, steps_per_unit: float) -> dict[str, Any]:
    """A curve that tells its values where the mouse is."""
    template, nothing = f"{word} %{{y:.4~g}}", np.zeros_like(curve.y)
    twice = nothing if curve.error is None else 2 * curve.error
    low, high = (nothing, nothing) if curve.quantiles is None else (curve.quantiles[0], curve.quantiles[-1])
    if curve.error is not None:
        template += " ± %{customdata[0]:.1g}"
    if curve.quantiles is not None:
        template += ", 5\u201395 %: %{customdata[1]:.3~g} to %{customdata[2]:.3~g}"
    steps = np.round(curve.x * steps_per_unit)
    told = zip(*(plain(each) for each in (twice, low, high, steps)), strict=True)
    return {
        "name": word,
        "x": plain(curve.x),
        "y": plain(curve.y),
        "customdata": [list(each) for each in told],
        "hovertemplate": f"{template}{at}<extra></extra>",
    }


def _between(curve: Curve, lower: int, upper: int) -> dict[str, Any]:
    assert curve.quantiles is not None
    return band(curve.x, curve.quantiles[lower], curve.quantiles[upper])


def band(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> dict[str, Any]:
    """What is filled between two curves."""
    kept = np.isfinite(low) & np.isfinite(high)
    x = x[kept]
    return {
        "x": plain(np.concatenate([x, x[::-1]])),
        "y": plain(np.concatenate([high[kept], low[kept][::-1]])),
        "fill": "toself",
        "hoverinfo": "skip",
        "line": {"width": 0},
    }


def _annotations(panel: Panel, limits: tuple[float, float]) -> list[dict[str, Any]]:
    common = {"xref": "paper", "x": 0.98, "xanchor": "right", "showarrow": False}
    notes = []
    if panel.constant is not None:
        below = panel.constant > sum(limits) / 2
        notes.append(
            common
            | {
                "text": panel.constant_in_words,
                "y": panel.constant,
                "yanchor": "top" if below else "bottom",
                "yshift": -4 if below else 4,
            }
        )
    if panel.diverged is not None:
        notes.append(common | {"text": "training diverged", "yref": "paper", "y": 0.98, "name": "alarm"})
    return notes


def _shapes(panel: Panel) -> list[dict[str, Any]]:
    if panel.diverged is None:
        return []
    return [{"type": "line", "x0": panel.diverged, "x1": panel.diverged, "yref": "paper", "y0": 0, "y1": 1}]


def plain(values: np.ndarray) -> list[float | None]:
    """Numbers for JSON, which knows no NaN; Plotly leaves a gap for null."""
    return [float(value) if np.isfinite(value) else None for value in values]
