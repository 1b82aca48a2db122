"""A comparison: its rows, the curves of each quantity under each noise, its figures and its page."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from zeroloss.drifts import steps_per_unit
from zeroloss.report import _chart, _pictures, _sentences, _views
from zeroloss.report._chart import (
    FAINT,
    LIMIT,
    PREDICTION,
    TRAINING,
    Axis,
    Entry,
    Figure,
    Note,
    Panel,
    Series,
)
from zeroloss.report._page import Card, Page, Table
from zeroloss.report._text import UNCHANGED, greek, grouped, joined, label_of, number, sentence_start
from zeroloss.runs import over_replicas, plain

DISTANCE, LOSS = "distance", "loss"
LEVELS = (0.05, 0.25, 0.75, 0.95)
"""The quantiles that show the spread of a stochastic limit, and of training towards one."""

ROUNDING = 1e-12
"""Smaller absolute values are rounding."""

_IN_OVERVIEW = ("hessian_trace", "test_error")
_FACTS = ("half_steps", "half_of", "half_unknown")
_FAR = 1e6  # times the limit: a diverging training is drawn no further
_LARGEST = 1e100  # no axis can show more
_MARGIN = 0.06
_WIDE, _NARROW = LIMIT.area(0.09), LIMIT.area(0.14)
_QUESTION = (
    "What does the noise in a training recipe do once the loss is zero? This page shows where training "
    "drifts, how fast, and how well the limit and the prediction describe it."
)
_HINT = (
    "The panels of one quantity share their scale, except for Reg, which is another function for each noise, "
    "and the loss."
)

Row = Mapping[str, Any]


class Curve(NamedTuple):
    """Values over time.

    - `error`: the standard error of the mean, where an ensemble of `members` was averaged.
    - `quantiles`: of the ensemble at `LEVELS`, where the limit is stochastic.
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

    def finite(self) -> np.ndarray:
        """All values that are drawn of the curve and that an axis can show."""
        values = np.concatenate([self.low, self.high, *(() if self.quantiles is None else self.quantiles)])
        return values[np.abs(values) < _LARGEST]

    def within(self, size: float) -> "Curve":
        """The curve without values far larger than `size`: on their way to overflow they break a drawing."""
        inside = np.abs(self.y) <= _FAR * (size or 1.0)
        error, quantiles = (
            None if each is None else np.where(inside, each, np.nan) for each in (self.error, self.quantiles)
        )
        return self._replace(y=np.where(inside, self.y, np.nan), error=error, quantiles=quantiles)


@dataclass(frozen=True)
class Curves:
    """One quantity under one noise.

    - `training`; `reference`: the limit or, of the distance, the ensemble error; `prediction`, if any.
    - `time`: the axis of time. `end`: where it ends. `diverged`: where on it the training diverged.
    """

    noise: str
    quantity: str
    label: str
    time: Axis
    training: Curve
    reference: Curve
    prediction: Curve | None
    end: float
    diverged: float | None

    @property
    def all(self) -> list[Curve]:
        """All curves."""
        return [self.training, self.reference, *([] if self.prediction is None else [self.prediction])]

    @property
    def stochastic(self) -> bool:
        """Whether the limit is an ensemble, of an SDE."""
        return self.reference.quantiles is not None

    @property
    def constant(self) -> float | None:
        """The value of a quantity that does not change, up to rounding."""
        values = np.concatenate([curve.finite() for curve in self.all])
        if self.diverged is not None or not values.size:
            return None
        largest = np.abs(values).max()
        return float(values[-1]) if np.ptp(values) <= UNCHANGED * largest or largest <= ROUNDING else None

    def ends(self) -> tuple[float, float]:
        """The smallest and the largest value that an axis has to show."""
        training, reference = self.training.finite(), self.reference.finite()
        predicted = np.array([]) if self.prediction is None else self.prediction.finite()
        if self.diverged is not None and reference.size:
            # Of a diverging training, values within as much again of the limit; a distance up to 1.
            of_distance = self.quantity == DISTANCE
            low, high = (0.0, 1.0) if of_distance else (reference.min(), reference.max())
            room = 0.0 if of_distance else max(high - low, 0.2 * abs(high))
            training = training[(training >= low - room) & (training <= high + room)]
            reference = reference[reference <= 1.0] if of_distance else reference
        values = np.concatenate([reference, training, predicted])
        return (float(values.min()), float(values.max())) if values.size else (np.inf, -np.inf)


def comparison_rows(results: xr.DataTree) -> list[dict[str, Any]]:
    """The table of a comparison, one dictionary per noise; missing values are None.

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
        row |= _spreads(group, _sentences.measured([row]))
        rows.append(
            {name: None if value in (None, "") or value != value else value for name, value in row.items()}
        )
    return rows


def _spreads(group: xr.DataTree, quantities: Iterable[str]) -> dict[str, Any]:
    limit, training = group["limit"].to_dataset(), group["training_0"].to_dataset()
    if "replica" not in limit.sizes:
        return {}
    row: dict[str, Any] = {"stochastic": True, "limit_replicas": limit.sizes["replica"]}
    last = training.sizes["time"] - 1  # a training that diverged ends before the limit
    for name in quantities:
        with np.errstate(over="ignore", invalid="ignore"):
            paths, runs = (float(each[name].isel(time=last).values.std(ddof=1)) for each in (limit, training))
        row[f"{name}_limit_spread"], row[f"{name}_training_spread"] = paths, runs
        row[f"{name}_limit_error"] = paths / limit.sizes["replica"] ** 0.5
    return row


def time_axis(row: Row) -> Axis:
    """The axis of time for the noise of one row: slow time, or training steps where there is no drift."""
    scale = row["time_scale"]
    if not scale:
        return Axis("training steps k", whole=True)
    title = f"slow time t = {greek(scale).removeprefix('1/(').removesuffix(')')}k"
    return Axis(title, steps_per_unit=steps_per_unit(scale, row["step_size"], row["sigma"]))


def curves(results: xr.DataTree) -> dict[str, list[Curves]]:
    """For each quantity, and last for the distance, its curves under each noise that has it."""
    rows = comparison_rows(results)
    found = {
        quantity: [
            _measured(row, results, quantity) for row in rows if quantity in results[row["noise"]]["limit"]
        ]
        for quantity in [*_sentences.measured(rows), LOSS]
    }
    found[DISTANCE] = [_distance(row, results) for row in rows]
    return {quantity: each for quantity, each in found.items() if each}


def ranges(shown: Sequence[Curves]) -> list[tuple[float, float]]:
    """The ends of the vertical axis of each panel of one quantity.

    The panels share them, for the quantity starts from the same value under every noise; only Reg is another
    function for each noise, and the loss depends on its size.
    """
    if shown[0].quantity in ("regularizer", LOSS):
        return [_range([each]) for each in shown]
    return [_range(shown)] * len(shown)


def _range(shown: Sequence[Curves]) -> tuple[float, float]:
    low, high = (
        choose(ends)
        for choose, ends in zip((min, max), zip(*(each.ends() for each in shown), strict=True), strict=True)
    )
    if not np.isfinite(low):
        return 0.0, 1.0
    if high - low <= max(UNCHANGED * max(abs(low), abs(high)), ROUNDING):  # not zoomed on rounding
        half = 0.5 * abs(high) if abs(high) > ROUNDING else 1.0
        low, high = low - half, high + half
    if all(each.quantity == DISTANCE for each in shown):
        return -_MARGIN / 2 * high, high + _MARGIN * high
    room = _MARGIN * (high - low)
    return low - room, high + room


def _measured(row: Row, results: xr.DataTree, quantity: str) -> Curves:
    time, end, diverged, nodes = _parts(row, results)
    limit, training, predicted = nodes
    at = limit["time"].values if time.steps_per_unit else np.linspace(0, end, limit.sizes["time"])
    runs, stochastic = training.sizes.get("replica", 1), "replica" in limit[quantity].dims
    name = f"limit, mean of {limit.sizes['replica']} paths" if stochastic else "limit"
    reference = _curve(name, at, limit[quantity], stochastic)
    name = f"training, {f'mean of {runs} runs' if runs > 1 else 'one run'}"
    curve = _curve(name, _times(training, time), training[quantity], stochastic)
    if diverged is not None:
        curve = curve.within(float(np.abs(reference.y).max()))
    prediction = None
    if predicted is not None:
        values = over_replicas(predicted[quantity]).mean
        prediction = Curve("prediction", _times(predicted, time), values)
    return Curves(
        row["noise"], quantity, label_of(quantity), time, curve, reference, prediction, end, diverged
    )


def _distance(row: Row, results: xr.DataTree) -> Curves:
    time, end, diverged, (_, training, predicted) = _parts(row, results)
    label = "distance of training / " + ("travelled" if _sentences.of_the_way(row) else "|w|")

    def curve(name: str, node: xr.Dataset, column: str, bounded: bool) -> Curve:
        found = Curve(name, _times(node, time), node[column].values.astype(float))
        return found.within(1.0) if bounded else found

    distance = curve("distance to the limit", training, "distance", diverged is not None)
    error = curve("ensemble error", training, "distance_error", diverged is not None)
    prediction = (
        None if predicted is None else curve("distance to the prediction", predicted, "distance", True)
    )
    return Curves(row["noise"], DISTANCE, label, time, distance, error, prediction, end, diverged)


def _parts(row: Row, results: xr.DataTree) -> tuple[Axis, float, float | None, tuple[Any, Any, Any]]:
    """The axis of time, its end, where the training diverged, and limit, training and prediction."""
    time, step, group = time_axis(row), row.get("diverged_at"), results[row["noise"]]
    limit, training = group["limit"].to_dataset(), group["training_0"].to_dataset()
    predicted = group["prediction_0"].to_dataset() if "prediction_0" in group.children else None
    diverged = None if step is None else step / (time.steps_per_unit or 1.0)
    end = max(_times(training, time)[-1], diverged or 0.0)
    if time.steps_per_unit:  # a limit without drift has no time
        end = max(end, limit["time"].values[-1])
    return time, float(end), diverged, (limit, training, predicted)


def _times(node: Any, time: Axis) -> np.ndarray:
    return node["slow_time" if time.steps_per_unit else "time"].values.astype(float)


def _curve(name: str, x: np.ndarray, values: xr.DataArray, spread: bool) -> Curve:
    each, mean, error = over_replicas(values)
    with np.errstate(over="ignore", invalid="ignore"):  # a diverged training overflows
        quantiles = np.quantile(each, LEVELS, axis=0) if spread and len(each) > 1 else None
    return Curve(name, x, mean, error, quantiles, len(each))


def panel(shown: Curves, limits: tuple[float, float], verdict: str) -> Panel:
    """The panel of one quantity under one noise, between the `limits` of its vertical axis."""
    training, reference, time = shown.training, shown.reference, shown.time
    of_distance = shown.quantity == DISTANCE
    series: list[Series] = []
    if reference.quantiles is not None:
        lowest, low, high, highest = reference.quantiles
        series.append(_chart.band(reference.x, lowest, highest, _WIDE, "limit-spread"))
        series.append(_chart.band(reference.x, low, high, _NARROW, "limit-spread"))
    for curve, style in ((reference, LIMIT), (training, TRAINING)):
        if curve.error is not None:
            series.append(_chart.band(curve.x, curve.low, curve.high, style.area(), style.color))
    for index, values in enumerate(() if training.quantiles is None else training.quantiles):
        thin = replace(TRAINING.thin(), dash="dot" if index in (0, 3) else "solid")
        series.append(Series(training.x, values, thin, "training-spread"))
    names = (
        training.name if of_distance else "training",
        "mean of the limit" if shown.stochastic else reference.name,
        "" if shown.prediction is None else shown.prediction.name,
    )
    looks = (
        (TRAINING, "training"),
        (FAINT, "scatter") if of_distance else (LIMIT, "limit"),
        (PREDICTION, "prediction"),
    )
    for curve, name, (style, key) in zip(shown.all, names, looks, strict=False):
        series.append(_line(curve, name, style, key, time))
    notes = []
    if shown.constant is not None:
        below = shown.constant > sum(limits) / 2
        notes.append(
            Note(_constant_in_words(shown.constant), "muted", shown.constant, in_data=True, below=below)
        )
    if shown.diverged is not None:
        at = np.full(2, shown.diverged)
        series.append(Series(at, np.array(limits), replace(FAINT, color="alarm", dash="dashdot"), "training"))
        notes.append(Note("training diverged", "alarm", 0.98))
    unit = ", relative to |w|" if of_distance and shown.label.endswith("|w|") else ""
    return Panel(
        shown.noise, _description(shown), series, replace(time, range=(0.0, shown.end)),
        Axis(shown.label, limits), verdict + unit, notes,
        header="t = %{x:.3~g}" if time.steps_per_unit else "step %{x:,}",
    )  # fmt: skip


def _line(curve: Curve, name: str, style: _chart.Style, key: str, time: Axis) -> Series:
    """A curve that shows its values, errors and quantiles where the mouse is."""
    hover, details = f"{name} %{{y:.4~g}}", []
    if curve.error is not None:
        hover += " ± %{customdata[0]:.1g}"
        details = [2 * curve.error]
    if curve.quantiles is not None:
        first = len(details)
        hover += f", 5–95 %: %{{customdata[{first}]:.3~g}} to %{{customdata[{first + 1}]:.3~g}}"  # noqa: RUF001
        details += [curve.quantiles[0], curve.quantiles[-1]]
    if time.steps_per_unit and key == "training":
        hover += f"<br>at step %{{customdata[{len(details)}]:,}}"
        details.append(np.round(curve.x * time.steps_per_unit))
    return Series(curve.x, curve.y, style, key, hover, details)


def _constant_in_words(value: float) -> str:
    return "zero up to rounding" if 0 < abs(value) <= ROUNDING else f"constant at {number(value)}"


def _description(shown: Curves) -> str:
    over = "slow time" if shown.time.steps_per_unit else "training steps"
    text = f"{shown.label} under {shown.noise} over {over}: "
    if shown.diverged is not None:
        text += "training diverged; "
    if shown.constant is not None:
        return f"{text}{_constant_in_words(shown.constant)}."
    ends = (f"{curve.name} from {number(curve.y[0])} to {number(curve.y[-1])}" for curve in shown.all)
    return text + "; ".join(ends) + "."


def _legend(shown: Sequence[Curves]) -> list[Entry]:
    """The legend of panels of one quantity."""
    training = shown[0].training
    reference = next((each.reference for each in shown if each.stochastic), shown[0].reference)
    prediction = next((each.prediction.name for each in shown if each.prediction is not None), None)
    several = training.error is not None
    errors = " ± 2 standard errors"
    entries = [Entry("training", training.name + errors * several, [TRAINING.area()] * several + [TRAINING])]
    if prediction is not None:
        entries.append(Entry("prediction", prediction, [PREDICTION]))
    if shown[0].quantity == DISTANCE:
        return [*entries, Entry("scatter", reference.name, [FAINT])]
    if reference.quantiles is None:
        return [*entries, Entry("limit", reference.name, [LIMIT])]
    name = reference.name
    if not all(each.stochastic for each in shown):
        name = f"limit; where it is stochastic, mean of {reference.members} paths"
    return [
        *entries,
        Entry("training-spread", "5, 25, 75 and 95 % of the runs", [TRAINING.thin()]),
        Entry("limit", name + errors, [LIMIT.area(), LIMIT]),
        Entry("limit-spread", "5–95 % and 25–75 % of the limit's paths", [_WIDE, _NARROW]),  # noqa: RUF001
    ]


def _quantity_figure(shown: Sequence[Curves], verdicts: Mapping[str, str]) -> Figure:
    """One quantity under all noises."""
    panels = [
        panel(each, limits, verdicts[each.noise]) for each, limits in zip(shown, ranges(shown), strict=True)
    ]
    label = next((each.label for each in shown if not each.label.endswith("|w|")), shown[0].label)
    return Figure(shown[0].quantity, sentence_start(label), _chart.in_rows(panels, 3), _legend(shown))


def figures(config: Mapping[str, Any], results: xr.DataTree) -> list[Figure]:
    """The figures of the files.

    `overview` shows the trace of the Hessian, and the test error where there is one, for all noises. Where
    the problem has a picture, it follows; then each noise has a figure with every quantity.
    """
    shown, rows = curves(results), comparison_rows(results)
    verdicts = {row["noise"]: _sentences.verdict_in_words(row) for row in rows}
    chosen = [_quantity_figure(shown[name], verdicts) for name in _IN_OVERVIEW if name in shown]
    lines = [line for figure in chosen for line in figure.rows]
    if len(rows) == 1:
        lines = [[line[0] for line in lines]]
    found = [Figure("overview", "", lines, chosen[0].legend, str(config.get("description", "")))]
    picture = _pictures.picture(config, results)
    found += [] if picture is None else [picture]
    for row in rows:
        noise = row["noise"]
        own = [each for quantity in shown.values() for each in quantity if each.noise == noise]
        panels = [replace(panel(each, _range([each]), ""), title="") for each in own]
        legend = {entry.text: entry for each in own for entry in _legend([each])}
        scale = f", drift on {greek(row['time_scale'])} steps" if row["time_scale"] else ""
        found.append(
            Figure(
                noise,
                "",
                _chart.in_rows(panels, 2),
                list(legend.values()),
                f"{noise}: {verdicts[noise]}{scale}",
            )
        )
    return found


def page(config: Mapping[str, Any], results: xr.DataTree) -> Page:
    """The page of a comparison."""
    rows, strengths = comparison_rows(results), config.get("strengths") or {}
    noises = [row["noise"] for row in rows]
    steps = [time_axis(row).steps_per_unit for row in rows]
    verdicts = {row["noise"]: _sentences.verdict_in_words(row) for row in rows}
    relative = {row.get("step_size_relative") for row in rows} - {None}
    replicas = {row.get("replicas") for row in rows} - {None}
    return Page(
        kind="stochastic comparison" if any(row.get("stochastic") for row in rows) else "comparison",
        title=f"{config.get('problem', 'a run')}: what noise does at zero loss",
        question=_QUESTION,
        setup=joined(
            [
                str(config.get("description", "")),
                f"step size {relative.pop():.3g} / λ_max" if len(relative) == 1 else "",
                f"{replicas.pop():.0f} training runs for each noise" if len(replicas) == 1 else "",
            ]
        ),
        headline=joined(
            [_sentences.headline(rows, steps, strengths), _sentences.unfinished(config, results)], " "
        ),
        cards=[
            Card(
                row["noise"],
                row["verdict_name"],
                _sentences.comparison(row, unit, strengths),
                greek(row.get("verdict") or ""),
            )
            for row, unit in zip(rows, steps, strict=True)
        ],
        table=Table("Numbers", noises, grouped(_sentences.comparison_table(rows))),
        heading="Limit, prediction and training",
        hint=_HINT if len(rows) > 1 else "",
        figures=[
            *_views.figures(noises, results, ("zero_loss_set", "function")),
            *(_quantity_figure(shown, verdicts) for shown in curves(results).values()),
            *_views.figures(noises, results, ("spectrum",)),
        ],
    )
