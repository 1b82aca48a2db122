"""A run along one trajectory for each noise: training, its prediction, or its limit."""

# Greek letters and typographic signs are meant

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from zeroloss.report import _sentences, _views
from zeroloss.report._chart import (
    STYLES,
    Axis,
    Entry,
    Figure,
    Panel,
    Series,
    Style,
    in_rows,
    time_axis,
    with_error,
)
from zeroloss.report._comparison import ROUNDING
from zeroloss.report._page import Card, Page, Table
from zeroloss.report._sentences import TRAJECTORIES
from zeroloss.report._text import greek, joined, label_of, number, sentence_start
from zeroloss.runs import ends, noises_of, over_replicas

_LEVELS = (0.05, 0.95)
_FEWEST = 8  # replicas, to show quantiles of
_QUESTIONS = {
    "descend": "Where does training with noise go once the loss is zero?",
    "predict": "Where does training with noise go, at its own step size and noise, without running it?",
    "limit": "Where does training with noise tend to, as step size and noise go to zero?",
}


def trajectories(results: xr.DataTree) -> dict[str, xr.Dataset]:
    """The trajectory of each noise, in their order."""
    return {
        noise: results.children[noise].to_dataset(inherit=False)
        for noise in noises_of(results)
        if noise in results.children
    }


def figures(config: Mapping[str, Any], results: xr.DataTree) -> list[Figure]:
    """A figure for each quantity that is not zero throughout, with a panel for each noise."""
    kind, paths = TRAJECTORIES[str(config["command"])], trajectories(results)
    style = replace(STYLES[kind], dash="solid")
    runs = max((path.sizes.get("replica", 1) for path in paths.values()), default=1)
    shown = kind if runs == 1 else f"{kind}, mean of {runs} {'runs' if kind == 'training' else 'paths'}"
    legend = [Entry("mean", shown, [style])]
    if runs > 1:
        legend = [Entry("mean", f"{shown} ± 2 standard errors", [style.area(), style])]
    if runs >= _FEWEST:
        legend.append(Entry("spread", "5 and 95 % of them", [style.thin()]))
    found = []
    for quantity in dict.fromkeys(name for path in paths.values() for name in ends(path)):
        having = {noise: path for noise, path in paths.items() if quantity in path}
        if all(np.abs(path[quantity].values).max() <= ROUNDING for path in having.values()):
            continue
        panels = [_panel(noise, quantity, path, style) for noise, path in having.items()]
        heading, title = sentence_start(label_of(quantity)), str(config.get("description", ""))
        name = f"{len(found) + 1:02d}_{heading.lower()}"
        found.append(Figure(name, heading, in_rows(panels), legend, title))
    return found


def _panel(noise: str, quantity: str, path: xr.Dataset, style: Style) -> Panel:
    x, label = path["time"].values.astype(float), label_of(quantity)
    each, mean, error = over_replicas(path[quantity])
    series = []
    if len(each) >= _FEWEST:
        quantiles = np.quantile(each, _LEVELS, axis=0)
        series += [Series(x, values, style.thin(), "spread") for values in quantiles]
    series += with_error(Series(x, mean, style, "mean", "%{y:.4~g}"), error)
    time, header = time_axis(str(path["time"].attrs.get("units", "")))
    description = f"{label} under {noise}: from {number(mean[0])} to {number(mean[-1])}."
    return Panel(noise, description, series, time, Axis(label), header=header)


def page(config: Mapping[str, Any], results: xr.DataTree) -> Page:
    """The page of a training, a prediction, or a limit."""
    command, paths = str(config["command"]), trajectories(results)
    kind, noises = TRAJECTORIES[command], list(paths)
    options = {
        "step_size": "step size {:.3g} / λ_max",
        "momentum": "momentum {:g}",
        "weight_decay": "weight decay {:g}",
    }
    setup = [text.format(config[name]) for name, text in options.items() if config.get(name)]
    return Page(
        kind=command,
        title=f"{config.get('problem', 'a run')}: {kind}",
        question=_QUESTIONS[command],
        setup=joined([str(config.get("description", "")), *setup]),
        headline=_sentences.unfinished(config, results),
        cards=[
            Card(
                noise,
                path.attrs.get("verdict_name", ""),
                _sentences.trajectory(config, noise, path),
                greek(str(path.attrs.get("verdict", ""))),
            )
            for noise, path in paths.items()
        ],
        table=Table("Numbers", noises, [("", _sentences.trajectory_table(paths))]),
        heading=f"{kind.capitalize()} for each noise",
        figures=[
            *_views.figures(noises, results, ("zero_loss_set", "function"), kind),
            *figures(config, results),
            *_views.figures(noises, results, ("spectrum",), kind),
        ],
    )
