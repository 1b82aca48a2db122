"""What else there is to see of a run: the zero-loss set, the function learned, the spectrum of the Hessian.

From what `zeroloss.runs._geometry` computed with the run; a section for each, with a panel for each noise.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from zeroloss.report._html import Board, Entry, section
from zeroloss.report._labels import is_slow
from zeroloss.report._line_charts import Chart, Line, figure
from zeroloss.report._numbers import greek, number
from zeroloss.runs._geometry import FUNCTION, SET, SPECTRUM

_TALL = 380
_WIDE = 30.0  # largest over smallest of what is drawn by its logarithm
_NAMES = {"limit": "limit", "prediction": "prediction", "training": "training"}


def scenes(
    noises: Sequence[str],
    results: xr.DataTree,
    board: Board,
    views: Sequence[str] = (SET, FUNCTION, SPECTRUM),
    of_paths: str = "limit",
) -> str:
    """The sections of a run for `views`, those it has. `of_paths` is what the only path of a noise is."""
    found = []
    for view in views:
        heading, draw = _SCENES[view]
        panels, entries = [], {}
        for noise in noises:
            group = results.children.get(noise)
            if group is None or view not in group.children:
                continue
            dataset = group.children[view].to_dataset(inherit=False).load()
            renamed = {
                name: str(name).replace("path", of_paths, 1)
                for name in dataset.variables
                if str(name).startswith("path")
            }
            chart, drawn, named = draw(dataset.rename_vars(renamed), _replicas(group, of_paths))
            said = f"{chart.description} under {noise}"
            panels.append(board.panel(noise, chart.weak, said, drawn))
            entries |= {entry.shows: entry for entry in named}
        if panels:
            found.append(section(heading, entries.values(), panels))
    return "\n".join(found)


_Drawn = tuple[Chart, dict[str, Any], list[Entry]]


def _replicas(group: xr.DataTree, of_paths: str) -> dict[str, int]:
    """Of how many replicas a path is, of a comparison each of its paths, by name."""
    nodes = {of_paths: group} | {name.removesuffix("_0"): node for name, node in group.children.items()}
    return {name: node.sizes.get("replica", 1) for name, node in nodes.items()}


def _spectrum(dataset: xr.Dataset, replicas: Mapping[str, int]) -> _Drawn:
    index = dataset["index"].values.astype(float)
    every = {str(where): dataset["eigenvalue"].sel(where=where).values for where in dataset["where"].values}
    single = len(index) == 1
    style = {"start": "start", "end": "limit-ends"} if single else {"start": "before", "end": "limit"}
    swatches = {"start": "start-dot", "end": "ink-dots"} if single else {"start": "scatter", "end": "limit"}
    lines = [
        Line(index, values, style[where], where, f"{where} %{{y:.3~g}}", points=single)
        for where, values in every.items()
    ]
    sizes = np.concatenate([values[np.isfinite(values)] for values in every.values()])
    wide = sizes.size and sizes.min() > 0 and sizes.max() > _WIDE * sizes.min()
    parts = [f"{where}: {_range(values)}" for where, values in every.items()]
    chart = Chart(
        "", "", f"Eigenvalues of the Hessian, {'; '.join(parts)}", lines, "number, from the largest",
        logarithmic="y" if wide else "", header="number %{x}",
    )  # fmt: skip
    drawn = figure(chart)
    drawn["layout"]["xaxis"]["range"] = [0.5, len(index) + 0.5]
    if len(index) < 6:
        drawn["layout"]["xaxis"]["dtick"] = 1
    if not wide:
        drawn["layout"]["yaxis"]["rangemode"] = "tozero"
    return chart, drawn, [Entry(where, swatches[where], f"at the {where}") for where in every]


def _range(values: np.ndarray) -> str:
    kept = values[np.isfinite(values)]
    return f"{len(kept)} from {number(kept.max())} down to {number(kept.min())}" if kept.size else "none"


def _function(dataset: xr.Dataset, replicas: Mapping[str, int]) -> _Drawn:
    x = dataset["x"].values
    main = next(name for name in _NAMES if name in dataset)
    along = dataset[main].values
    units = greek(str(dataset["at"].attrs.get("units", "")).removesuffix(" steps"))
    slow = is_slow(units)
    at = [f"t = {number(t)}" if slow else f"step {t:,.0f}" for t in dataset["at"].values]
    ends = [name for name in _NAMES if f"{name}_end" in dataset]
    lines = [Line(x, along[0], "before", "start")]
    lines += [Line(x, dataset[f"{name}_end"].values, f"{name}-thin", f"{name}-end") for name in ends]
    lines.append(Line(x, along[0], main, main, "%{y:.3~g}"))
    lines.append(
        Line(dataset["inputs"].values, dataset["targets"].values, "data", "data", "%{y:.3~g}", points=True)
    )
    description = f"What the model says of x, from {at[0]} to {at[-1]},"
    chart = Chart("", f"in {units}" if slow else "", description, lines, "x", header="x = %{x:.3~g}")
    drawn = figure(chart)
    low, high = float(np.nanmin(along)), float(np.nanmax(along))
    room = 0.06 * (high - low)
    drawn["layout"]["yaxis"]["range"] = [low - room, high + room]
    drawn["layout"]["xaxis"]["range"] = [float(x[0]), float(x[-1])]
    moving = next(i for i, trace in enumerate(drawn["data"]) if trace["meta"] == main)
    digits = 6 - math.floor(math.log10(high - low)) if high > low else 6
    drawn["frames"] = {"trace": moving, "labels": at, "y": np.round(along, min(digits, 300)).tolist()}
    entries = [
        Entry("data", "ink-dots", "examples"),
        Entry("start", "scatter", "start"),
        Entry(main, "training line" if main == "training" else main, f"{_NAMES[main]}, at the slider"),
        *(Entry(f"{name}-end", f"{name} thin", f"end of {_NAMES[name]}") for name in ends),
    ]
    return chart, drawn, entries


def _zero_loss_set(dataset: xr.Dataset, replicas: Mapping[str, int]) -> _Drawn:
    points = dataset["point"].values
    solid = points.shape[1] == 3
    lines = [_line(points, "set", "set", points=True)]
    entries, some = [Entry("set", "set-dots", "points of zero loss")], []
    for name, word in _NAMES.items():
        if name not in dataset:
            continue
        paths, ends = dataset[name].values, dataset[f"{name}_end"].values
        several = len(ends) > 1
        style = f"{name}-thin" if several else name
        lines += [_line(path, style, name) for path in paths]
        lines.append(_line(ends, f"{name}-ends", name, f"{word} ends at", points=True))
        if several:
            total = max(replicas.get(name, 1), len(ends))
            all_ends = "all ends" if len(ends) == total else f"{len(ends)} ends"
            some.append(f"{word}: {len(paths)} of {total:,} paths, and {all_ends}")
        swatch = "training line" if name == "training" else name
        entries.append(Entry(name, swatch, f"{word}, and where it ends"))
    first = next(dataset[name].values[:1, 0] for name in _NAMES if name in dataset)
    lines.append(_line(first, "start", "start", "start", points=True))
    entries.append(Entry("start", "start-dot", "start"))
    description = f"{points.shape[1]} parameters: the set of zero loss, and the paths on it"
    chart = Chart("", "; ".join(some), description, lines, "w<sub>1</sub>", "w<sub>2</sub>")
    drawn = figure(chart, _TALL)
    low, high = points.min(axis=0), points.max(axis=0)
    if solid:
        drawn["layout"]["scene"] = {
            f"{axis}axis": {"title": {"text": f"w<sub>{i + 1}</sub>"}, "nticks": 5}
            for i, axis in enumerate("xyz")
        } | {"aspectmode": "data"}
    else:
        drawn["layout"]["yaxis"] |= {"scaleanchor": "x", "range": _with_room(low[1], high[1])}
        drawn["layout"]["xaxis"]["range"] = _with_room(low[0], high[0])
    return chart, drawn, entries


def _line(values: np.ndarray, style: str, button: str, word: str = "", *, points: bool = False) -> Line:
    z = values[:, 2] if values.shape[1] == 3 else None
    says = f"{word} (%{{x:.4~g}}, %{{y:.4~g}}{', %{z:.4~g}' if z is not None else ''})" if word else ""
    return Line(values[:, 0], values[:, 1], style, button, says, points=points, z=z)


def _with_room(low: float, high: float) -> list[float]:
    room = 0.03 * (high - low)
    return [float(low - room), float(high + room)]


_SCENES: dict[str, tuple[str, Callable[[xr.Dataset, Mapping[str, int]], _Drawn]]] = {
    SET: ("The zero-loss set", _zero_loss_set),
    FUNCTION: ("The function learned, along the flow", _function),
    SPECTRUM: ("Spectrum of the Hessian on the normal space", _spectrum),
}
