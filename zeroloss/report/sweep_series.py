"""What a page shows of a sweep: every quantity at the end of its runs, over the axes of the grid."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from zeroloss.report.labels import label_of, sentence_start
from zeroloss.report.lines import MOST_SERIES, Chart, Group, Line
from zeroloss.report.markup import Entry
from zeroloss.report.notation import MISSING, number
from zeroloss.runs.grid import in_words
from zeroloss.runs.rows import plain, reading_order

SEED = "seed"

_ENDS = {
    "training": ("training", "error"),
    "prediction": ("prediction", ""),
    "limit": ("limit", "limit_error"),
}
_AXES = {"step_size": "step size, relative to 1 / λ_max", "horizon": "slow time at the end"}
_WIDE = 15.0  # last over first of an axis that is drawn by its logarithm


class Layout(NamedTuple):
    """How a grid is drawn: one axis across, one in colours, the others in panels; seeds are averaged."""

    across: str
    colours: str | None
    panels: tuple[str, ...]


def layout(table: xr.Dataset) -> Layout:
    """The numeric axis with most values goes across, the next short one that is no noise gets colours."""
    axes = [str(name) for name in table.dims if table.sizes[name] > 1 and name != SEED]
    if not axes:
        axes = [str(name) for name in table.dims if name != SEED] or [SEED]
    numeric = [name for name in axes if np.issubdtype(table[name].dtype, np.number)]
    across = max(numeric or axes, key=lambda name: table.sizes[name])
    rest = [name for name in axes if name != across]
    short = [name for name in rest if name != "noise" and table.sizes[name] <= MOST_SERIES]
    colours = short[0] if short else None
    panels = [str(name) for name in table.dims if name not in (across, colours, SEED)]
    return Layout(across, colours, tuple(panels))


def groups(table: xr.Dataset) -> list[Group]:
    """A group for each quantity that the runs measured, with a chart for every place on the panels' axes."""
    where, found = layout(table), []
    for quantity, parts in _quantities(table).items():
        charts, entries = [], {}
        for place in itertools.product(*(table[axis].values for axis in where.panels)):
            at = table.sel(dict(zip(where.panels, place, strict=True)))
            lines, named = _lines(at, quantity, parts, where)
            entries |= {entry.shows: entry for entry in named}
            if lines:
                charts.append(_chart(at, place, quantity, lines, where))
        if charts:
            found.append(
                Group(f"{sentence_start(label_of(quantity))}, at the end", list(entries.values()), charts)
            )
    return found


def cell_table(table: xr.Dataset) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The head and the lines of the table: for each cell and noise how it stands, and where it ends."""
    quantities = _quantities(table)
    head = [*(str(name) for name in table.dims), "status"]
    head += [label_of(quantity) for quantity in quantities]
    lines = []
    for index, place in enumerate(np.ndindex(*table.sizes.values())):
        at = table.isel(dict(zip(table.dims, place, strict=True)))
        row = [in_words(at[axis].item()) for axis in table.dims] + [str(at["status"].item())]
        for parts in quantities.values():
            value = at[next(iter(parts.values()))].item()
            row.append(f"{value:.4g}" if np.isfinite(value) else MISSING)
        lines.append((str(index), row))
    return head, lines


def cell_rows(table: xr.Dataset) -> list[dict[str, Any]]:
    """For each cell, and noise, all that is known of it; what is missing is None."""
    rows = []
    for place in np.ndindex(*table.sizes.values()):
        at = table.isel(dict(zip(table.dims, place, strict=True)))
        row = {str(name): plain(values.values[()]) for name, values in at.variables.items()}
        rows.append({name: None if value != value else value for name, value in row.items()})
    return rows


def failures(table: xr.Dataset) -> list[tuple[str, str]]:
    """The cells that failed, each with its reason."""
    found = []
    axes = table["status"].dims
    for place in np.ndindex(*table["status"].shape):
        at = table.isel(dict(zip(axes, place, strict=True)))
        if at["status"].item() == "failed":
            name = ", ".join(f"{axis}={in_words(at[axis].item())}" for axis in axes)
            found.append((name, str(at["reason"].item())))
    return found


def _quantities(table: xr.Dataset) -> dict[str, dict[str, str]]:
    """For each quantity the variables that hold it, by how they look: as training, prediction or limit."""
    names = [str(name) for name in table.data_vars]
    found: dict[str, dict[str, str]] = {}
    for name in names:
        for looks in _ENDS:
            quantity = name.removesuffix(f"_{looks}")
            if quantity != name and f"{quantity}_start" in names:
                found.setdefault(quantity, {})[looks] = name
        quantity = name.removesuffix("_end")
        if quantity != name and f"{quantity}_start" in names:
            found.setdefault(quantity, {})["training"] = name
    if not found:  # of studies, numbers without a start
        numeric = [name for name in names if np.issubdtype(table[name].dtype, np.number)]
        found = {name: {"training": name} for name in numeric if np.isfinite(table[name].values).any()}
    elif "distance" in names:
        found["distance"] = {"training": "distance"}
    # Every looks in the order of _ENDS, whatever the order on the disk.
    return {
        name: {looks: found[name][looks] for looks in _ENDS if looks in found[name]}
        for name in sorted(found, key=reading_order)
    }


def _lines(
    table: xr.Dataset, quantity: str, parts: Mapping[str, str], where: Layout
) -> tuple[list[Line], list[Entry]]:
    lines, entries = [], []
    values = [None] if where.colours is None else list(table[where.colours].values)
    for index, value in enumerate(values):
        at = table if where.colours is None else table.sel({where.colours: value})
        word = "" if where.colours is None else f"{where.colours} {in_words(plain(value))}"
        for looks, name in parts.items():
            x, mean, error = _mean(at, name, f"{quantity}_{_ENDS[looks][1]}", where.across)
            if not np.isfinite(mean).any():
                continue
            button = f"series-{index}" if word else looks
            drawn = (f"series-{index}" if word else looks) + ("-points" if looks == "training" else "")
            drawn += "-thin" if looks == "limit" and word else ""
            says = f"{looks} %{{y:.4~g}}"
            lines.append(Line(x, mean, drawn, button, says, error, points=looks == "training"))
            if not word:
                swatch = "dots" if looks == "training" else looks
                scatter = "" if error is None else " ± 2 standard errors"
                entries.append(Entry(button, swatch, f"{_NAMES[looks]}{scatter}"))
        if word:
            entries.append(Entry(f"series-{index}", f"series s{index}", word))
    return lines, entries


_NAMES = {"training": "runs", "prediction": "prediction", "limit": "limit"}


def _mean(
    table: xr.Dataset, name: str, error: str, across: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """A quantity over one axis: over seeds the mean and its standard error, else with that of its runs."""
    if across != SEED and table.sizes.get(SEED) == 1:
        table = table.isel({SEED: 0})
    x = table[across].values
    x = x.astype(float) if np.issubdtype(x.dtype, np.number) else np.arange(len(x), dtype=float)
    values = table[name]
    if SEED in values.dims and across != SEED:
        each = values.transpose(across, SEED).values.astype(float)
        kept = np.isfinite(each)
        count = kept.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(kept, each, 0).sum(axis=1) / count
            squares = np.where(kept, each - mean[:, None], 0) ** 2
            return x, mean, np.sqrt(squares.sum(axis=1) / (count - 1) / count)
    mean = values.values.astype(float)
    known = error in table and error.endswith("error")
    return x, mean, table[error].values.astype(float) if known else None


def _chart(table: xr.Dataset, place: Sequence[Any], quantity: str, lines: list[Line], where: Layout) -> Chart:
    x = table[where.across].values
    numeric = np.issubdtype(x.dtype, np.number)
    wide = numeric and x.min() > 0 and x.max() >= _WIDE * x.min()
    strong = ", ".join(
        in_words(plain(value)) if axis == "noise" else f"{axis} {in_words(plain(value))}"
        for axis, value in zip(where.panels, place, strict=True)
    )
    finite = [line.y[np.isfinite(line.y)] for line in lines]
    ends = np.concatenate(finite)
    description = (
        f"{label_of(quantity)} at the end over {where.across}{f', {strong}' if strong else ''}: from "
        f"{number(float(ends.min()))} to {number(float(ends.max()))}."
    )
    return Chart(
        strong or label_of(quantity), "", description, lines, _AXES.get(where.across, where.across),
        logarithmic="x" if wide else "", header="" if not numeric else "%{x:.4~g}",
        categories=() if numeric else [str(value) for value in x],
    )  # fmt: skip
