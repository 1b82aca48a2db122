"""What a report shows, taken out of a run: its table, and for each noise and quantity the curves."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from zeroloss.drifts._slow_time import slow_time
from zeroloss.report._labels import label_of, quantities
from zeroloss.report._numbers import greek, number
from zeroloss.runs._table import over_replicas, plain, reading_order

DISTANCE, LOSS = "distance", "loss"

LEVELS = (0.05, 0.25, 0.75, 0.95)
"""The quantiles that show how wide a stochastic limit is: a wide band and a narrow one."""

_FACTS = ("half_steps", "half_of", "half_unknown")
_UNCHANGED = 1e-6  # a relative change below this is rounding, and would only be seen by zooming
ROUNDING = 1e-12
"""What is smaller is zero."""

_FAR = 1e6
_BEYOND = 1e100  # what no axis can show
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
    """Values over time.

    - `error`: the standard error of the mean, where an ensemble was averaged.
    - `quantiles`: of the ensemble at `LEVELS`, where its spread is not only error: a stochastic limit and
      training towards one.
    - `members`: of the ensemble.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    error: np.ndarray | None = None
    quantiles: np.ndarray | None = None
    members: int = 1

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
    - `prediction`: where there is one; of the distance, that to it.
    - `end`: where the axis ends.
    - `diverged`: where on it a training run left the finite numbers.
    """

    noise: str
    quantity: str
    label: str
    axis: Axis
    training: Curve
    reference: Curve
    end: float
    diverged: float | None
    prediction: Curve | None = None

    @property
    def stochastic(self) -> bool:
        """Whether the limit is an ensemble: an SDE and not an ODE."""
        return self.reference.quantiles is not None

    @property
    def curves(self) -> list[Curve]:
        """All there are."""
        return [self.training, self.reference, *([] if self.prediction is None else [self.prediction])]

    @property
    def constant(self) -> float | None:
        """The value of a quantity that does not change, up to rounding."""
        values = _finite(np.concatenate([_all(curve) for curve in self.curves]))
        if self.diverged is not None or not values.size:
            return None
        still = np.ptp(values) <= _UNCHANGED * np.abs(values).max()
        return float(values[-1]) if still or np.abs(values).max() <= ROUNDING else None

    @property
    def constant_in_words(self) -> str:
        """What to write beside a constant."""
        if self.constant is None:
            return ""
        if 0 < abs(self.constant) <= ROUNDING:
            return "zero up to rounding"
        return f"constant at {number(self.constant)}"


def table_rows(results: xr.DataTree) -> list[dict[str, Any]]:
    """The table of a run, one dictionary per noise; what is missing is None.

    Where the limit is stochastic, `stochastic` is True and each quantity has the standard error of the
    limit's mean, `<name>_limit_error`, and standard deviations at the end, `<name>_limit_spread` and
    `<name>_training_spread`.
    """
    table = results.to_dataset()
    rows = []
    for index in range(table.sizes.get("noise", 0)):
        row = {str(name): plain(values.values[index]) for name, values in table.variables.items()}
        group = results.children[row["noise"]]
        row |= {name: group.attrs[name] for name in _FACTS if name in group.attrs}
        row |= _spreads(group, quantities(row))
        rows.append({name: None if _missing(value) else value for name, value in row.items()})
    return rows


def measured(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The quantities in a table with their labels, in the order in which people read them."""
    labels = quantities(dict.fromkeys(name for row in rows for name in row))
    return {name: labels[name] for name in sorted(labels, key=reading_order)}


def time_axis(row: Mapping[str, Any]) -> Axis:
    """Time as it is drawn for the noise of one row of the table."""
    scale = row["time_scale"]
    if not scale:
        return Axis(False, "k", 1.0)
    unit = 1 / float(slow_time(np.ones(1), scale, row["step_size"], row["sigma"])[0])
    return Axis(True, f"t = {greek(scale).removeprefix('1/(').removesuffix(')')}k", unit)


def panels(results: xr.DataTree) -> dict[str, list[Panel]]:
    """For each quantity, and last for the distance, a panel for each noise that has it."""
    rows = table_rows(results)
    labels = measured(rows) | {LOSS: label_of(LOSS)}
    found = {
        quantity: [
            _measured(row, results, quantity, label)
            for row in rows
            if quantity in results[row["noise"]]["limit"]
        ]
        for quantity, label in labels.items()
    }
    found[DISTANCE] = [_distance(row, results) for row in rows]
    return {quantity: each for quantity, each in found.items() if each}


def window(shown: Sequence[Panel]) -> tuple[float, float]:
    """Limits of a vertical axis on which all of `shown` are legible.

    A quantity that does not change gets an axis on which it visibly does not, and a training that
    diverges may leave the frame.
    """
    ends = [_ends(panel) for panel in shown]
    low, high = min(each[0] for each in ends), max(each[1] for each in ends)
    if not np.isfinite(low):
        return 0.0, 1.0
    if high - low <= max(_UNCHANGED * max(abs(low), abs(high)), ROUNDING):
        half = 0.5 * abs(high) if abs(high) > ROUNDING else 1.0
        low, high = low - half, high + half
    if all(panel.quantity == DISTANCE for panel in shown):
        return -_MARGIN / 2 * float(high), float(high + _MARGIN * high)
    room = _MARGIN * (high - low)
    return float(low - room), float(high + room)


def windows(shown: Sequence[Panel]) -> list[tuple[float, float]]:
    """An axis for each of the panels of one quantity.

    They share it, for the quantity starts from the same value under every noise; only Reg is
    another function for every noise, and the loss as large as the noise makes it.
    """
    if shown[0].quantity in ("regularizer", LOSS):
        return [window([panel]) for panel in shown]
    return [window(shown)] * len(shown)


def _measured(row: Mapping[str, Any], results: xr.DataTree, quantity: str, label: str) -> Panel:
    axis, end, diverged, limit, training = _parts(row, results)
    at = limit["time"].values if axis.slow else np.linspace(0, end, limit.sizes["time"])
    runs = training.sizes.get("replica", 1)
    average = f"mean of {runs} runs" if runs > 1 else "one run"
    stochastic = "replica" in limit[quantity].dims
    name = f"limit, mean of {limit.sizes['replica']} paths" if stochastic else "limit"
    reference = _curve(name, at, limit[quantity], stochastic)
    curve = _curve(f"training, {average}", _times(training, axis), training[quantity], stochastic)
    predicted = _prediction(row, results)
    if predicted is not None:
        values = predicted[quantity]
        if "replica" in values.dims:
            values = values.mean("replica")
        predicted = _curve("prediction", _times(predicted, axis), values, False)
    if diverged is not None:
        curve = _within(curve, float(np.abs(reference.y).max()))
    return Panel(row["noise"], quantity, label, axis, curve, reference, end, diverged, predicted)


def of_the_way(row: Mapping[str, Any]) -> bool:
    """Whether distances are relative to the way of the limit, and not to |w|."""
    return (row.get("distance_of") or ("way" if row.get("time_scale") else "|w|")) == "way"


def _distance(row: Mapping[str, Any], results: xr.DataTree) -> Panel:
    axis, end, diverged, _, training = _parts(row, results)
    label = "distance of training / " + ("travelled" if of_the_way(row) else "|w|")
    x = _times(training, axis)
    distance = Curve("distance to the limit", x, training["distance"].values.astype(float))
    error = Curve("ensemble error", x, training["distance_error"].values.astype(float))
    if diverged is not None:
        distance, error = _within(distance, 1.0), _within(error, 1.0)
    predicted = _prediction(row, results)
    if predicted is not None:
        there = predicted["distance"].values.astype(float)
        predicted = _within(Curve("distance to the prediction", _times(predicted, axis), there), 1.0)
    return Panel(row["noise"], DISTANCE, label, axis, distance, error, end, diverged, predicted)


def _prediction(row: Mapping[str, Any], results: xr.DataTree) -> xr.Dataset | None:
    group = results[row["noise"]]
    return group["prediction_0"].to_dataset() if "prediction_0" in group.children else None


def _parts(
    row: Mapping[str, Any], results: xr.DataTree
) -> tuple[Axis, float, float | None, xr.Dataset, xr.Dataset]:
    axis, step, group = time_axis(row), row.get("diverged_at"), results[row["noise"]]
    limit, training = group["limit"].to_dataset(), group["training_0"].to_dataset()
    diverged = None if step is None else step / axis.steps_per_unit
    end = max(_times(training, axis)[-1], diverged or 0.0)
    if axis.slow:  # elsewhere the limit has no time of its own
        end = max(end, limit["time"].values[-1])
    return axis, float(end), diverged, limit, training


def _within(curve: Curve, scale: float) -> Curve:
    # Values on their way to overflow would break the drawing; they lie far out of the frame.
    inside = np.abs(curve.y) <= _FAR * (scale or 1.0)
    error, quantiles = (
        None if each is None else np.where(inside, each, np.nan) for each in (curve.error, curve.quantiles)
    )
    return curve._replace(y=np.where(inside, curve.y, np.nan), error=error, quantiles=quantiles)


def _times(training: xr.Dataset, axis: Axis) -> np.ndarray:
    return training["slow_time" if axis.slow else "time"].values.astype(float)


def _curve(name: str, x: np.ndarray, values: xr.DataArray, spread: bool) -> Curve:
    each, mean, error = over_replicas(values)
    with np.errstate(over="ignore", invalid="ignore"):  # a diverged training overflows
        quantiles = np.quantile(each, LEVELS, axis=0) if spread and len(each) > 1 else None
    return Curve(name, x, mean, error, quantiles, len(each))


def _spreads(group: xr.DataTree, names: Iterable[str]) -> dict[str, Any]:
    limit, training = group["limit"].to_dataset(), group["training_0"].to_dataset()
    if "replica" not in limit.sizes:
        return {}
    row: dict[str, Any] = {"stochastic": True, "limit_replicas": limit.sizes["replica"]}
    last = training.sizes["time"] - 1  # a training that diverged ends before the limit
    for name in names:
        with np.errstate(over="ignore", invalid="ignore"):
            paths, made = (each[name].isel(time=last).values.std(ddof=1) for each in (limit, training))
        row[f"{name}_limit_spread"], row[f"{name}_training_spread"] = float(paths), float(made)
        row[f"{name}_limit_error"] = float(paths) / limit.sizes["replica"] ** 0.5
    return row


def _ends(panel: Panel) -> tuple[float, float]:
    reference, training = _finite(_all(panel.reference)), _finite(_all(panel.training))
    predicted = np.array([]) if panel.prediction is None else _finite(panel.prediction.y)
    if panel.diverged is not None and reference.size:
        # What a diverging training still has to do with the limit: within as much again of it, or,
        # for a distance, within the distance travelled.
        low, high = (0.0, 1.0) if panel.quantity == DISTANCE else (reference.min(), reference.max())
        room = 0.0 if panel.quantity == DISTANCE else max(high - low, 0.2 * abs(high))
        training = training[(training >= low - room) & (training <= high + room)]
        if panel.quantity == DISTANCE:
            reference = reference[reference <= 1.0]
    shown = np.concatenate([reference, training, predicted])
    return (float(shown.min()), float(shown.max())) if shown.size else (np.inf, -np.inf)


def _all(curve: Curve) -> np.ndarray:
    """Every value that is drawn of a curve."""
    drawn = [curve.low, curve.high] if curve.quantiles is None else [curve.low, curve.high, *curve.quantiles]
    return np.concatenate(drawn)


def _finite(values: np.ndarray) -> np.ndarray:
    return values[np.abs(values) < _BEYOND]


def _missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and value != value)
