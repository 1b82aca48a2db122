"""What a page shows of a sweep: every quantity at the end of its runs, over the axes of the grid."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from zeroloss.report._html import Entry
from zeroloss.report._labels import label_of, sentence_start
from zeroloss.report._line_charts import MOST_SERIES, Chart, Group, Line
from zeroloss.report._numbers import MISSING, number
from zeroloss.report._trajectory_charts import WORDS
from zeroloss.runs._grid import in_words
from zeroloss.runs._table import plain, reading_order

SEED = "seed"

_ENDS = {
    "training": ("training", "error"),
    "prediction": ("prediction", ""),
    "limit": ("limit", "limit_error"),
}
"""How the columns of a comparison end that hold where a quantity ends, and its standard error."""

_MEASURED = ("_exponent", "_order")  # what those of a study end in
_MOST_CHARTS = 60  # of a quantity
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
    """A group for each quantity that the runs measured, with a chart for every place on the panels' axes.

    Of many places the first are drawn; `left_out` says how many are not.
    """
    where, found = layout(table), []
    if np.issubdtype(table[where.across].dtype, np.number):
        table = table.sortby(where.across)
    for quantity, parts in _quantities(table).items():
        charts, entries = [], {}
        for place in itertools.islice(_places(table, where), _MOST_CHARTS):
            at = table.sel(dict(zip(where.panels, place, strict=True)))
            lines, named = _lines(at, parts, where)
            entries |= {entry.shows: entry for entry in named}
            if lines:
                charts.append(_chart(at, place, quantity, lines, where))
        if charts:
            heading = f"{sentence_start(label_of(quantity))}{_when(table)}"
            found.append(Group(heading, list(entries.values()), charts))
    return found


def left_out(table: xr.Dataset) -> int:
    """How many places on the axes of the panels `groups` does not draw."""
    return max(0, math.prod(table.sizes[axis] for axis in layout(table).panels) - _MOST_CHARTS)


def _when(table: xr.Dataset) -> str:
    return "" if table.attrs.get("command") == "study" else ", at the end"


def _places(table: xr.Dataset, where: Layout) -> Iterator[tuple[Any, ...]]:
    return itertools.product(*(table[axis].values for axis in where.panels))


def cell_table(table: xr.Dataset) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The head and the lines of the table: for each cell and noise how it stands, and where it ends."""
    quantities = _quantities(table)
    head = [*(str(name) for name in table.dims), "status"]
    head += [label_of(quantity) for quantity in quantities]
    lines = []
    for place in np.ndindex(*table.sizes.values()):
        at = table.isel(dict(zip(table.dims, place, strict=True)))
        row = [in_words(at[axis].item()) for axis in table.dims] + [str(at["status"].item())]
        for parts in quantities.values():
            value = at[next(iter(parts.values())).name].item()
            row.append(f"{value:.4g}" if np.isfinite(value) else MISSING)
        lines.append((str(at["folder"].item()).rpartition("/")[2], row))
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


class _Part(NamedTuple):
    """The variable that holds a quantity, and the one with its standard error, or that many times it."""

    name: str
    error: str
    errors: float = 1.0


def _quantities(table: xr.Dataset) -> dict[str, dict[str, _Part]]:
    """For each quantity the variables that hold it, by how they look: as training, prediction or limit."""
    names = [str(name) for name in table.data_vars]
    command = str(table.attrs.get("command"))
    found: dict[str, dict[str, _Part]] = {}
    for name in names:
        if command == "study":
            if name.endswith(_MEASURED):
                found[name] = {"training": _Part(name, f"{name}_half_width", 2.0)}
            continue
        for style, (end, error) in _ENDS.items():
            quantity = name.removesuffix(f"_{end}")
            if quantity != name and f"{quantity}_start" in names:
                found.setdefault(quantity, {})[style] = _Part(name, f"{quantity}_{error}")
        quantity = name.removesuffix("_end")
        if quantity != name and f"{quantity}_start" in names:
            found[quantity] = {WORDS.get(command, "training"): _Part(name, f"{quantity}_error")}
    if "distance" in names:
        found["distance"] = {"training": _Part("distance", "distance_error")}
    # Every looks in the order of _ENDS, whatever the order on the disk.
    return {
        name: {style: found[name][style] for style in _ENDS if style in found[name]}
        for name in sorted(found, key=reading_order)
    }


def _lines(table: xr.Dataset, parts: Mapping[str, _Part], where: Layout) -> tuple[list[Line], list[Entry]]:
    lines, entries = [], []
    values = [None] if where.colours is None else list(table[where.colours].values)
    ordered = np.issubdtype(table[where.across].dtype, np.number)
    names = _NAMES
    if table.attrs.get("command") == "study":
        names = _STUDIED_BY_SEED if SEED in table.dims and where.across != SEED else _STUDIED
    for index, value in enumerate(values):
        at = table if where.colours is None else table.sel({where.colours: value})
        word = "" if where.colours is None else f"{where.colours} {in_words(plain(value))}"
        for style, part in parts.items():
            x, mean, error = _mean(at, part, where.across)
            if not np.isfinite(mean).any():
                continue
            # A line says that there is something between two places.
            points = style == "training" or not ordered or np.isfinite(mean).sum() < 2
            button = f"series-{index}" if word else style
            drawn = button
            if word and len(parts) > 1:
                drawn += {"limit": "-thin", "prediction": "-cross" if points else ""}.get(style, "")
            drawn += "-points" if points else ""
            says = f"{names[style]} %{{y:.4~g}}"
            lines.append(Line(x, mean, drawn, button, says, error, points=points, knots=len(parts) == 1))
            if not word:
                scatter = "" if error is None or names is not _NAMES else " ± 2 standard errors"
                entries.append(Entry(button, _DOTS[style] if points else style, f"{names[style]}{scatter}"))
        if word:
            entries.append(Entry(f"series-{index}", f"series s{index}", word))
    return lines, entries


_NAMES = {"training": "training", "prediction": "prediction", "limit": "limit"}
_STUDIED = {"training": "measured, with its 95 % interval"}
_STUDIED_BY_SEED = {"training": "measured, mean over seeds ± 2 standard errors"}
_DOTS = {"training": "dots", "prediction": "dots prediction-dots", "limit": "ink-dots"}


def _mean(table: xr.Dataset, part: _Part, across: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """A quantity over one axis: over seeds the mean and its standard error, else with that of its runs."""
    if across != SEED and table.sizes.get(SEED) == 1:
        table = table.isel({SEED: 0})
    x = table[across].values
    x = x.astype(float) if np.issubdtype(x.dtype, np.number) else np.arange(len(x), dtype=float)
    values = table[part.name]
    if SEED in values.dims and across != SEED:
        each = values.transpose(across, SEED).values.astype(float)
        kept = np.isfinite(each)
        count = kept.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = np.where(kept, each, 0).sum(axis=1) / count
            squares = np.where(kept, each - mean[:, None], 0) ** 2
            return x, mean, np.sqrt(squares.sum(axis=1) / (count - 1) / count)
    mean = values.values.astype(float)
    error = table[part.error].values.astype(float) / part.errors if part.error in table else np.array(np.nan)
    return x, mean, error if np.isfinite(error).any() else None


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
        f"{label_of(quantity)}{_when(table)} over {where.across}{f', {strong}' if strong else ''}: from "
        f"{number(float(ends.min()))} to {number(float(ends.max()))}."
    )
    return Chart(
        strong or label_of(quantity), "", description, lines, _AXES.get(where.across, where.across),
        logarithmic="x" if wide else "", header="" if not numeric else "%{x:.4~g}",
        categories=() if numeric else [str(value) for value in x],
    )  # fmt: skip
