"""A sweep: every quantity at the end of its runs over the axes of the grid, and all cells in a table."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from zeroloss.report._chart import (
    ENDS,
    LIMIT,
    MOST_SERIES,
    STYLES,
    Axis,
    Figure,
    Panel,
    Series,
    Style,
    in_rows,
    marker_of_series,
    style_of_series,
    tick_label,
)
from zeroloss.report._page import Card, Page, Table
from zeroloss.report._sentences import TRAJECTORIES
from zeroloss.report._text import MISSING, Lines, joined, label_of, number, sentence_start, unused_fields
from zeroloss.runs import in_words, plain, reading_order

SEED = "seed"

_ENDINGS = {"training": "error", "prediction": "", "limit": "limit_error"}
"""The endings of the columns of a comparison with the end of a quantity; and of its standard error."""

_MEASURED = ("_exponent", "_order")  # endings of the columns of a study
_MOST_PANELS = 60  # of a quantity
_MOST_ROWS, _MOST_FAILURES = 1000, 50  # on the page
_MOST_TICKS = 8
_AXES = {"step_size": "step size, relative to 1 / λ_max", "horizon": "slow time at the end"}
_WIDE = 15.0  # an axis whose ends have a larger ratio is logarithmic
_DOTS = ENDS | {"training": STYLES["training"].points()}


class Layout(NamedTuple):
    """The axes of a grid in a figure: one across, one in colours, others in panels; seeds are averaged."""

    across: str
    colors: str | None
    panels: tuple[str, ...]


class Column(NamedTuple):
    """The variable that holds a quantity, and the one with its standard error times `errors`."""

    name: str
    error: str
    errors: float = 1.0


def layout(table: xr.Dataset) -> Layout:
    """The numeric axis with most values goes across, the next short one that is not a noise gets colours."""
    axes = [str(name) for name in table.dims if table.sizes[name] > 1 and name != SEED]
    axes = axes or [str(name) for name in table.dims if name != SEED] or [SEED]
    numeric = [name for name in axes if _is_numeric(table[name])]
    across = max(numeric or axes, key=lambda name: table.sizes[name])
    rest = [name for name in axes if name not in (across, "noise") and table.sizes[name] <= MOST_SERIES]
    colors = rest[0] if rest else None
    panels = [str(name) for name in table.dims if name not in (across, colors, SEED)]
    return Layout(across, colors, tuple(panels))


def figures(config: Mapping[str, Any], results: xr.DataTree) -> list[Figure]:
    """A figure for each quantity that the runs measured, with a panel for each place on the panels' axes."""
    return figures_of(results.to_dataset().load())


def figures_of(table: xr.Dataset) -> list[Figure]:
    """The same of the table of a sweep. Of many places the first are drawn; `left_out` counts the others."""
    where, found = layout(table), []
    if _is_numeric(table[where.across]):
        table = table.sortby(where.across)
    for quantity, columns in _quantities(table).items():
        panels, texts = [], {}
        places = itertools.product(*(table[axis].values for axis in where.panels))
        for place in itertools.islice(places, _MOST_PANELS):
            at = table.sel(dict(zip(where.panels, place, strict=True)))
            series, named = _series(at, columns, where)
            texts |= named
            if series:
                panels.append(_panel(at, place, quantity, series, where))
        if panels:
            heading = f"{sentence_start(label_of(quantity))}{_when(table)}"
            name = f"{len(found) + 1:02d}_{heading.lower()}"
            found.append(Figure(name, heading, in_rows(panels), texts))
    return found


def left_out(table: xr.Dataset) -> int:
    """The number of places on the axes of the panels that `figures_of` does not draw."""
    return max(0, math.prod(table.sizes[axis] for axis in layout(table).panels) - _MOST_PANELS)


def cell_table(table: xr.Dataset) -> tuple[list[str], Lines]:
    """The head and the lines of the table: the status of each cell and noise, and where it ends."""
    quantities = _quantities(table)
    head = [*(str(name) for name in table.dims), "status", *map(label_of, quantities)]
    lines = []
    for at in _cells(table):
        row = [in_words(at[axis].item()) for axis in table.dims] + [str(at["status"].item())]
        for columns in quantities.values():
            value = at[next(iter(columns.values())).name].item()
            row.append(f"{value:.4g}" if np.isfinite(value) else MISSING)
        lines.append((str(at["folder"].item()).rpartition("/")[2], row))
    return head, lines


def cell_rows(table: xr.Dataset) -> list[dict[str, Any]]:
    """All columns of each cell, and noise; missing values are None."""
    rows = [
        {str(name): plain(values.values[()]) for name, values in at.variables.items()} for at in _cells(table)
    ]
    return [{name: None if value != value else value for name, value in row.items()} for row in rows]


def failures(table: xr.Dataset) -> list[tuple[str, str]]:
    """The cells that failed, each with its reason."""
    axes = table["status"].dims
    return [
        (", ".join(f"{axis}={in_words(at[axis].item())}" for axis in axes), str(at["reason"].item()))
        for at in _cells(table[["status", "reason"]])
        if at["status"].item() == "failed"
    ]


def _cells(table: xr.Dataset) -> list[xr.Dataset]:
    places = np.ndindex(*(table.sizes[axis] for axis in table.dims))
    return [table.isel(dict(zip(table.dims, place, strict=True))) for place in places]


def _is_numeric(values: xr.DataArray) -> bool:
    return np.issubdtype(values.dtype, np.number)


def _when(table: xr.Dataset) -> str:
    return "" if table.attrs.get("command") == "study" else ", at the end"


def _quantities(table: xr.Dataset) -> dict[str, dict[str, Column]]:
    """The columns that hold each quantity, by what they are: training, prediction or limit, in this order."""
    names = [str(name) for name in table.data_vars]
    command = str(table.attrs.get("command"))
    found: dict[str, dict[str, Column]] = {}
    for name in names:
        if command == "study" and name.endswith(_MEASURED):
            found[name] = {"training": Column(name, f"{name}_half_width", 2.0)}
        quantity, _, end = name.rpartition("_")
        if command != "study" and end in (*_ENDINGS, "end") and f"{quantity}_start" in names:
            kind = TRAJECTORIES.get(command, "training") if end == "end" else end
            found.setdefault(quantity, {})[kind] = Column(name, f"{quantity}_{_ENDINGS.get(end, 'error')}")
    if "distance" in names:
        found["distance"] = {"training": Column("distance", "distance_error")}
    return {
        name: {kind: found[name][kind] for kind in _ENDINGS if kind in found[name]}
        for name in sorted(found, key=reading_order)
    }


def _series(
    table: xr.Dataset, columns: Mapping[str, Column], where: Layout
) -> tuple[list[Series], dict[str, str]]:
    """What is drawn at one place, in colours where the layout has them, and the texts of its legend."""
    found, texts = [], {}
    values = [None] if where.colors is None else list(table[where.colors].values)
    names, errors = {kind: kind for kind in _ENDINGS}, " ± 2 standard errors"
    if table.attrs.get("command") == "study":
        names, errors = {"training": "measured, with its 95 % interval"}, ""
        if SEED in table.dims and where.across != SEED:
            names = {"training": "measured, mean over seeds ± 2 standard errors"}
    numeric = _is_numeric(table[where.across])
    for (index, value), (kind, column) in itertools.product(enumerate(values), columns.items()):
        x, mean, error = _mean(
            table if value is None else table.sel({where.colors: value}), column, where.across
        )
        count = np.isfinite(mean).sum()
        if not count:
            continue
        # A line would mean that there is something between two places.
        dots = kind == "training" or not numeric or count < 2
        if value is None:
            key, style = kind, (_DOTS if dots else STYLES)[kind]
            texts[key] = names[kind] + (errors if error is not None else "")
        else:
            key, style = f"series-{index}", _colored(index, kind, dots)
            texts[key] = f"{where.colors} {in_words(plain(value))}"
        if len(columns) == 1 and not dots:
            style = replace(style, marker=marker_of_series(index))
        low, high = (None, None) if error is None else (mean - 2 * error, mean + 2 * error)
        found.append(Series(x, mean, style, key, f"{names[kind]} %{{y:.4~g}}", low=low, high=high))
    return found, texts


def _colored(index: int, kind: str, dots: bool) -> Style:
    """Training, prediction and limit in the colour of one series: dots, crosses, hollow dots, or lines."""
    style, marker = style_of_series(index), marker_of_series(index)
    if not dots:
        return style if kind == "prediction" else replace(style, width=1.4, dash=LIMIT.dash)
    markers = {"training": (marker, 8), "prediction": ("x-thin", 9), "limit": (f"{marker}-open", 10)}
    return style.points(*markers[kind])


def _mean(table: xr.Dataset, column: Column, across: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """A quantity over one axis with its standard error: over seeds, or without seeds over its runs."""
    if across != SEED and table.sizes.get(SEED) == 1:
        table = table.isel({SEED: 0})
    x, values = table[across].values, table[column.name]
    x = x.astype(float) if _is_numeric(table[across]) else np.arange(len(x), dtype=float)
    if SEED in values.dims and across != SEED:
        each = values.astype(float).where(np.isfinite(values))
        count, mean = each.count(SEED), each.mean(SEED)
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = ((each - mean) ** 2).sum(SEED).values / (count.values - 1)
            return x, mean.values, np.sqrt(variance / count.values)
    mean = values.values.astype(float)
    error = table[column.error].values.astype(float) / column.errors if column.error in table else None
    return x, mean, error if error is not None and np.isfinite(error).any() else None


def _panel(
    table: xr.Dataset, place: Sequence[Any], quantity: str, series: Sequence[Series], where: Layout
) -> Panel:
    values, title = table[where.across].values, _AXES.get(where.across, where.across)
    x = Axis(title)
    if not _is_numeric(table[where.across]):
        x = Axis.categorical(title, [str(value) for value in values])
    elif values.min() > 0 and values.max() >= _WIDE * values.min():
        few = len(values) <= _MOST_TICKS
        ticks = [float(value) for value in values] if few else None
        x = Axis(title, log=True, ticks=ticks, labels=[tick_label(value) for value in ticks or ()])
    name = ", ".join(
        in_words(plain(value)) if axis == "noise" else f"{axis} {in_words(plain(value))}"
        for axis, value in zip(where.panels, place, strict=True)
    )
    ends = np.concatenate([each.y[np.isfinite(each.y)] for each in series])
    description = (
        f"{label_of(quantity)}{_when(table)} over {where.across}{f', {name}' if name else ''}: from "
        f"{number(float(ends.min()))} to {number(float(ends.max()))}."
    )
    header = "%{x:.4~g}" if _is_numeric(table[where.across]) else ""
    return Panel(name or label_of(quantity), description, series, x, Axis(label_of(quantity)), header=header)


def page(config: Mapping[str, Any], results: xr.DataTree) -> Page:
    """The page of a sweep."""
    table, cell, grid = results.to_dataset().load(), config.get("cell") or {}, config.get("grid") or {}
    command, (head, lines), failed = str(cell.get("command", "runs")), cell_table(table), failures(table)
    statuses = table["status"].values.ravel().astype(str)
    complete, more, seeds = int((statuses == "complete").sum()), left_out(table), table.sizes.get(SEED, 1)
    axes = ", ".join(f"{axis} ({len(values)})" for axis, values in grid.items())
    about = [f"The axes, with the number of their values: {axes}."]
    if seeds > 1:
        about.append(f"The figures show means over {seeds} seeds, with their standard errors.")
    rest = "" if complete == len(statuses) else "zeroloss resume goes on with the others."
    cards = [Card(f"{complete} of {len(statuses)} cells are complete", "", about, rest)]
    cards += [Card(name, "failed", [reason], "") for name, reason in failed[:_MOST_FAILURES]]
    if len(failed) > _MOST_FAILURES:
        cards.append(Card(f"... and {len(failed) - _MOST_FAILURES} more cells", "failed", [], ""))
    numbers = (
        "Cells" if len(lines) <= _MOST_ROWS else f"The first {_MOST_ROWS} of {len(lines)} rows of the cells"
    )
    return Page(
        kind=f"sweep of {command if command in ('compare', 'study') else 'trajectories'}",
        title=f"{cell.get('problem', 'a sweep')}: a sweep of {command}",
        setup=_setup(cell, grid, table),
        cards=cards,
        table=Table(numbers, head, [("", lines[:_MOST_ROWS])]),
        heading=f"Over {layout(table).across}",
        hint=f"The first panels; those of {more:,} more places are in the cells' own pages." if more else "",
        figures=figures_of(table),
        nothing="No cell is complete, so there is nothing to draw.",
    )


def _setup(cell: Mapping[str, Any], grid: Mapping[str, Any], table: xr.Dataset) -> str:
    """The options that all cells share."""
    stochastic = "stochastic" in table and bool((table["stochastic"].values == 1).any())
    hidden = {*grid, *unused_fields({**cell, **grid}, stochastic=stochastic)}
    parts = []
    for name in ("noise", "step_size", "steps", "horizon", "replicas", "momentum", "weight_decay"):
        value = cell.get(name)
        if value and name not in hidden:
            parts.append(f"{name.replace('_', ' ')} {', '.join(value) if isinstance(value, list) else value}")
    return joined(parts)
