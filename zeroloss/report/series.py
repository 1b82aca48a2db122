"""What a report shows, taken out of a run: its table, and for each noise and quantity two curves."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from zeroloss.report.labels import quantities
from zeroloss.report.notation import greek, number

DISTANCE = "distance"

_ORDER = ("regularizer", "hessian_trace", "test_error")
_UNCHANGED = 1e-6  # a relative change below this is rounding, and would only be seen by zooming
_ROUNDING = 1e-12
_MARGIN = 0.06


class Axis(NamedTuple):
    """Time as it is drawn for one noise: slow time, or training steps where there is none.

    - `symbol`: what the axis counts, t with its definition, or k.
    - `steps_per_unit`: training steps in one unit of it.
    """

    slow: bool
    symbol: str
    steps_per_unit: float

    @property
    def title(self) -> str:
        """The label of the axis."""
        return f"slow time {self.symbol}" if self.slow else "training steps k"


class Curve(NamedTuple):
    """Values over time, with the standard error of the mean where an ensemble was averaged."""

    name: str
    x: np.ndarray
    y: np.ndarray
    error: np.ndarray | None = None

    @property
    def low(self) -> np.ndarray:
        """The mean less two standard errors."""
        return self.y if self.error is None else self.y - 2 * self.error

    @property
    def high(self) -> np.ndarray:
        """The mean plus two standard errors."""
        return self.y if self.error is None else self.y + 2 * self.error


class Panel(NamedTuple):
    """One quantity under one noise.

    - `training`: the ensemble; `reference`: the limit, or the ensemble error of the distance.
    - `diverged`: where on the axis a training run left the finite numbers.
    """

    noise: str
    quantity: str
    label: str
    axis: Axis
    training: Curve
    reference: Curve
    diverged: float | None

    @property
    def constant(self) -> float | None:
        """The value of a quantity that does not change, up to rounding."""
        values = np.concatenate([self.training.y, self.reference.y])
        values = values[np.isfinite(values)]
        if self.diverged is not None or not values.size:
            return None
        still = np.ptp(values) <= _UNCHANGED * np.abs(values).max()
        return float(values[-1]) if still or np.abs(values).max() <= _ROUNDING else None

    @property
    def constant_in_words(self) -> str:
        """What to write beside a constant."""
        if self.constant is None:
            return ""
        if 0 < abs(self.constant) <= _ROUNDING:
            return "zero up to rounding"
        return f"constant at {number(self.constant)}"


def table_rows(results: xr.DataTree) -> list[dict[str, Any]]:
    """The table of a run, one dictionary per noise; what is missing is None."""
    table = results.to_dataset()
    rows = []
    for index in range(table.sizes["noise"]):
        row = {str(name): values.values[index].item() for name, values in table.variables.items()}
        rows.append({name: None if _missing(value) else value for name, value in row.items()})
    return rows


def measured(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The quantities in a table with their labels, in the order in which people read them."""
    labels = quantities(dict.fromkeys(name for row in rows for name in row))

    def rank(name: str) -> tuple[int, str]:  # what was read from disk comes in any order
        return (_ORDER.index(name) if name in _ORDER else len(_ORDER), name)

    return {name: labels[name] for name in sorted(labels, key=rank)}


def time_axis(row: Mapping[str, Any], results: xr.DataTree) -> Axis:
    """Time as it is drawn for the noise of one row of the table."""
    training = results[row["noise"]]["training_0"].to_dataset()
    if not row["time_scale"]:
        return Axis(False, "k", 1.0)
    inverse = greek(row["time_scale"]).removeprefix("1/(").removesuffix(")")
    # The last slow time may be the first, zero, when training diverged at once.
    steps, slow = training["time"].values, training["slow_time"].values
    return Axis(True, f"t = {inverse}k", float(steps[-1] / slow[-1]) if slow[-1] > 0 else np.nan)


def panels(results: xr.DataTree) -> dict[str, list[Panel]]:
    """For each quantity, and last for the distance, a panel for each noise that has it."""
    rows = table_rows(results)
    axes = {row["noise"]: time_axis(row, results) for row in rows}
    labels = measured(rows)
    found = {
        quantity: [
            _measured(row, results, axes[row["noise"]], quantity, label)
            for row in rows
            if quantity in results[row["noise"]]["limit"]
        ]
        for quantity, label in labels.items()
    }
    found[DISTANCE] = [_distance(row, results, axes[row["noise"]]) for row in rows]
    return {quantity: each for quantity, each in found.items() if each}


def window(shown: Sequence[Panel]) -> tuple[float, float]:
    """Limits of a vertical axis on which all of `shown` are legible.

    A quantity that does not change gets an axis on which it visibly does not, and a training that
    diverges may leave the frame.
    """
    low, high = np.inf, -np.inf
    for panel in shown:
        ends = _finite(panel.reference.y)
        if panel.diverged is None:
            ends = np.concatenate([ends, _finite(panel.training.low), _finite(panel.training.high)])
        if ends.size:
            low, high = min(low, ends.min()), max(high, ends.max())
    for panel in shown:
        if panel.diverged is not None:
            training = _finite(panel.training.y)
            room = max(high - low, 0.2 * abs(high)) if np.isfinite(low) else 1.0
            inside = training[(training >= low - room) & (training <= high + room)]
            if inside.size:
                low, high = min(low, inside.min()), max(high, inside.max())
    if not np.isfinite(low):
        return 0.0, 1.0
    if high - low <= max(_UNCHANGED * max(abs(low), abs(high)), _ROUNDING):
        half = 0.5 * abs(high) if abs(high) > _ROUNDING else 1.0
        low, high = low - half, high + half
    if all(panel.quantity == DISTANCE for panel in shown):
        return -_MARGIN / 2 * float(high), float(high + _MARGIN * high)
    room = _MARGIN * (high - low)
    return float(low - room), float(high + room)


def windows(shown: Sequence[Panel]) -> list[tuple[float, float]]:
    """An axis for each of the panels of one quantity.

    They share it, for the quantity starts from the same value under every noise; only Reg is
    another function for every noise.
    """
    if shown[0].quantity == "regularizer":
        return [window([panel]) for panel in shown]
    return [window(shown)] * len(shown)


def _measured(row: Mapping[str, Any], results: xr.DataTree, axis: Axis, quantity: str, label: str) -> Panel:
    group = results[row["noise"]]
    limit, training = group["limit"].to_dataset(), group["training_0"].to_dataset()
    x = _times(training, axis)
    at = limit["time"].values if axis.slow else np.linspace(x[0], x[-1], limit.sizes["time"])
    runs = training.sizes.get("replica", 1)
    average = f"mean of {runs} runs" if runs > 1 else "one run"
    return Panel(
        row["noise"], quantity, label, axis,
        _curve(f"training, {average}", x, training[quantity]),
        _curve("limit", at, limit[quantity]),
        _diverged(row, axis),
    )  # fmt: skip


def _distance(row: Mapping[str, Any], results: xr.DataTree, axis: Axis) -> Panel:
    training = results[row["noise"]]["training_0"].to_dataset()
    x = _times(training, axis)
    label = "distance limit-training / " + ("travelled" if axis.slow else "|w|")
    return Panel(
        row["noise"], DISTANCE, label, axis,
        Curve("distance", x, training["distance"].values),
        Curve("ensemble error", x, training["distance_error"].values),
        _diverged(row, axis),
    )  # fmt: skip


def _times(training: xr.Dataset, axis: Axis) -> np.ndarray:
    return training["slow_time" if axis.slow else "time"].values.astype(float)


def _curve(name: str, x: np.ndarray, values: xr.DataArray) -> Curve:
    if "replica" not in values.dims:
        return Curve(name, x, values.values.astype(float))
    each = values.transpose("replica", "time").values.astype(float)
    with np.errstate(over="ignore", invalid="ignore"):  # a diverged training overflows
        mean = each.mean(axis=0)
        error = each.std(axis=0, ddof=1) / np.sqrt(len(each)) if len(each) > 1 else None
    return Curve(name, x, mean, error)


def _diverged(row: Mapping[str, Any], axis: Axis) -> float | None:
    step = row.get("diverged_at")
    return None if step is None else step / axis.steps_per_unit


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and np.isnan(value))
