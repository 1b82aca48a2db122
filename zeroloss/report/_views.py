"""The zero-loss set, the function learned and the spectrum of the Hessian, as a run has saved them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import xarray as xr

from zeroloss.report._chart import (
    ENDS,
    FAINT,
    LIMIT,
    START,
    STYLES,
    Axis,
    Figure,
    Frames,
    Panel,
    Series,
    Style,
    in_rows,
    path,
)
from zeroloss.report._text import greek, is_slow, number
from zeroloss.runs import FUNCTION, SET, SPECTRUM

_WIDE = 30.0  # a larger ratio of largest to smallest is drawn by its logarithm
_SET = replace(Style("muted").points("circle", 3), opacity=0.6)
_EXAMPLES = Style("limit").points("circle", 8)


def figures(
    noises: Sequence[str], results: xr.DataTree, views: Sequence[str], kind: str = "limit"
) -> list[Figure]:
    """A figure for each of `views` that the run has, with a panel for each noise.

    `kind` names the trajectories of runs with only one for each noise: training, prediction or limit.
    """
    found = []
    for view in views:
        heading, draw = _VIEWS[view]
        panels = []
        for noise in noises:
            group = results.children.get(noise)
            if group is None or view not in group.children:
                continue
            data = group.children[view].to_dataset(inherit=False).load()
            names = {name: str(name) for name in data.variables if str(name).startswith("path")}
            data = data.rename_vars({name: new.replace("path", kind, 1) for name, new in names.items()})
            nodes = {kind: group} | {name.removesuffix("_0"): node for name, node in group.children.items()}
            panel = draw(data, {name: node.sizes.get("replica", 1) for name, node in nodes.items()})
            panels.append(replace(panel, title=noise, description=f"{panel.description} under {noise}"))
        if panels:
            found.append(Figure(view, heading, in_rows(panels)))
    return found


def _spectrum(data: xr.Dataset, replicas: Mapping[str, int]) -> Panel:
    index = data["index"].values.astype(float)
    spectra = {str(where): data["eigenvalue"].sel(where=where).values for where in data["where"].values}
    styles = {"start": FAINT, "end": LIMIT} if len(index) > 1 else {"start": START, "end": LIMIT.points()}
    series = [
        Series(index, values, styles[where], f"at the {where}", f"{where} %{{y:.3~g}}")
        for where, values in spectra.items()
    ]
    finite = {where: values[np.isfinite(values)] for where, values in spectra.items()}
    sizes = np.concatenate(list(finite.values()))
    wide = bool(sizes.size and sizes.min() > 0 and sizes.max() > _WIDE * sizes.min())
    y = Axis("eigenvalue", log=wide)
    if not wide and sizes.size:
        y = Axis("eigenvalue", (min(0.0, 1.06 * float(sizes.min())), max(1.06 * float(sizes.max()), 1e-300)))
    few = len(index) < 6
    x = Axis(
        "number, from the largest", (0.5, len(index) + 0.5),
        ticks=list(index) if few else None, labels=[f"{each:.0f}" for each in index] if few else (),
    )  # fmt: skip
    parts = [
        f"{where}: {len(values)} from {number(values.max())} down to {number(values.min())}"
        if values.size
        else f"{where}: none"
        for where, values in finite.items()
    ]
    return Panel("", f"Eigenvalues of the Hessian, {'; '.join(parts)}", series, x, y, header="number %{x}")


def _function(data: xr.Dataset, replicas: Mapping[str, int]) -> Panel:
    x, units = data["x"].values, greek(str(data["at"].attrs.get("units", "")).removesuffix(" steps"))
    kind = next(name for name in STYLES if name in data)
    along, slow = data[kind].values, is_slow(units)
    times = [f"t = {number(t)}" if slow else f"step {t:,.0f}" for t in data["at"].values]
    series = [Series(x, along[0], FAINT, "start")]
    series += [
        Series(x, data[f"{name}_end"].values, STYLES[name].thin(), f"end of {name}")
        for name in STYLES
        if f"{name}_end" in data
    ]
    series.append(Series(x, along[0], STYLES[kind], f"{kind}, at the slider", "%{y:.3~g}"))
    series.append(Series(data["inputs"].values, data["targets"].values, _EXAMPLES, "examples", "%{y:.3~g}"))
    low, high = float(np.nanmin(along)), float(np.nanmax(along))
    room = 0.06 * (high - low)
    digits = 6 - math.floor(math.log10(high - low)) if high > low else 6
    return Panel(
        "", f"Values of the model over x, from {times[0]} to {times[-1]},", series,
        Axis("x", (float(x[0]), float(x[-1]))), Axis("f(x)", (low - room, high + room)),
        f"in {units}" if slow else "", header="x = %{x:.3~g}",
        frames=Frames(len(series) - 2, times, np.round(along, min(digits, 300))),
    )  # fmt: skip


def _zero_loss_set(data: xr.Dataset, replicas: Mapping[str, int]) -> Panel:
    points = data["point"].values
    series, subtitles = [path(points, _SET, "points of zero loss")], []
    names = [name for name in STYLES if name in data]
    place = "(%{x:.4~g}, %{y:.4~g}, %{z:.4~g})" if points.shape[1] == 3 else "(%{x:.4~g}, %{y:.4~g})"
    for name in names:
        ends, key = data[f"{name}_end"].values, f"{name}, and where it ends"
        several = len(ends) > 1
        style = STYLES[name].thin() if several else STYLES[name]
        series += [path(each, style, key) for each in data[name].values]
        series.append(path(ends, ENDS[name], key, f"{name} ends at {place}"))
        if several:
            total = max(replicas.get(name, 1), len(ends))
            all_ends = "all ends" if len(ends) == total else f"{len(ends)} ends"
            subtitles.append(f"{name}: {len(data[name])} of {total:,} paths, and {all_ends}")
    series.append(path(data[names[0]].values[:1, 0], START, "start", f"start {place}"))
    low, high = points.min(axis=0), points.max(axis=0)
    ranges = [(float(a - 0.03 * (b - a)), float(b + 0.03 * (b - a))) for a, b in zip(low, high, strict=True)]
    return Panel(
        "", f"{points.shape[1]} parameters: the set of zero loss, and the trajectories on it", series,
        Axis("w₁", ranges[0]), Axis("w₂", ranges[1]), "; ".join(subtitles), equal=True, height=380,
    )  # fmt: skip


_VIEWS: dict[str, tuple[str, Callable[[xr.Dataset, Mapping[str, int]], Panel]]] = {
    SET: ("The zero-loss set", _zero_loss_set),
    FUNCTION: ("The function learned, along the flow", _function),
    SPECTRUM: ("Spectrum of the Hessian on the normal space", _spectrum),
}
