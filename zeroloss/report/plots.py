"""Interactive figures: each panel as a Plotly figure in plain JSON. `page.js` gives it its colours."""

from typing import Any

import numpy as np

from zeroloss.report.notation import number
from zeroloss.report.series import DISTANCE, Curve, Panel

_HEIGHT = 270
_MARGIN = {"l": 62, "r": 26, "t": 10, "b": 46}


def plot(panel: Panel, limits: tuple[float, float]) -> dict[str, Any]:
    """`data` and `layout` for Plotly, safe for `json.dumps`.

    Every trace carries in `meta` what it is: `training`, its `band`, `limit` or `scatter`. No text from a run
    goes in, because Plotly reads some of it as HTML.
    """
    training, reference = panel.training, panel.reference
    word = "distance" if panel.quantity == DISTANCE else "training"
    steps = np.round(training.x * panel.axis.steps_per_unit)
    data: list[dict[str, Any]] = []
    if training.error is not None:
        data.append(_band(training))
    spread = " ± %{customdata[0]:.1g}" if training.error is not None else ""
    at = "<br>at step %{customdata[1]:,}" if panel.axis.slow else ""
    twice = np.zeros_like(training.y) if training.error is None else 2 * training.error
    data.append(
        {
            "meta": "training",
            "name": word,
            "x": _plain(training.x),
            "y": _plain(training.y),
            "customdata": [list(pair) for pair in zip(_plain(twice), _plain(steps), strict=True)],
            "hovertemplate": f"{word} %{{y:.4~g}}{spread}{at}<extra></extra>",
        }
    )
    data.append(
        {
            "meta": reference_role(panel),
            "name": reference.name,
            "x": _plain(reference.x),
            "y": _plain(reference.y),
            "hovertemplate": f"{reference.name} %{{y:.4~g}}<extra></extra>",
        }
    )
    for trace in data:
        trace |= {"type": "scatter", "mode": "lines", "showlegend": False}
    title, header = panel.axis.title, "step %{x:,}"
    if panel.axis.slow:
        header = "t = %{x:.3~g}"
        title += f" (1 is {number(panel.axis.steps_per_unit, 4)} steps)"
    layout = {
        "height": _HEIGHT,
        "margin": _MARGIN,
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
    return {"data": data, "layout": layout}


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
    return text + "; ".join(
        f"{name} from {number(curve.y[0])} to {number(curve.y[-1])}"
        for name, curve in ((panel.training.name, panel.training), (panel.reference.name, panel.reference))
    ) + "."  # fmt: skip


def _band(curve: Curve) -> dict[str, Any]:
    kept = np.isfinite(curve.low) & np.isfinite(curve.high)
    x = curve.x[kept]
    return {
        "meta": "band",
        "x": _plain(np.concatenate([x, x[::-1]])),
        "y": _plain(np.concatenate([curve.high[kept], curve.low[kept][::-1]])),
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


def _plain(values: np.ndarray) -> list[float | None]:
    # JSON knows no NaN; Plotly leaves a gap for null.
    return [float(value) if np.isfinite(value) else None for value in values]
