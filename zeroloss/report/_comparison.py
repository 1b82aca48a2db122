"""A comparison: its rows, the curves of each quantity under each noise, its figures and its page."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
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
    Figure,
    Note,
    Panel,
    Series,
    Style,
)
from zeroloss.report._page import Card, Page, Table
from zeroloss.report._text import (
    ROUNDING,
    UNCHANGED,
    greek,
    grouped,
    joined,
    label_of,
    number,
    sentence_start,
)
from zeroloss.runs import over_replicas, plain

DISTANCE, LOSS = "distance", "loss"
LEVELS = (0.05, 0.25, 0.75, 0.95)
"""The quantiles that show the spread of a stochastic limit, and of training towards one."""

_IN_OVERVIEW = ("hessian_trace", "test_error")
_FACTS = ("half_steps", "half_of", "half_unknown")
_FAR = 1e6  # times the limit: a diverging training is drawn no further
_LARGEST = 1e100  # no axis can show more
_MARGIN = 0.06
_ERRORS = " ± 2 standard errors"
_HINT = (
    "The panels of one quantity share their scale, except for Reg, which is another function for each noise, "
    "and the loss."
)

Row = Mapping[str, Any]


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


class Curve(NamedTuple):
    """Values over time.

    - `key`, `style`: as in a `Series`. `name`: up to a comma it is shown before the values.
    - `error`: the standard error of the mean, where an ensemble was averaged.
    - `quantiles`: of the ensemble at `LEVELS`, where the limit is stochastic.
    """

    key: str
    style: Style
    name: str
    x: np.ndarray
    y: np.ndarray
    error: np.ndarray | None = None
    quantiles: np.ndarray | None = None

    def finite(self) -> np.ndarray:
        """All values that are drawn of the curve and that an axis can show."""
        around = 0.0 if self.error is None else 2 * self.error
        values = np.stack(
            [self.y - around, self.y + around, *(() if self.quantiles is None else self.quantiles)]
        )
        return values[np.abs(values) < _LARGEST]

    def within(self, size: float) -> "Curve":
        """The curve without values far larger than `size`: on their way to overflow they break a drawing."""
        inside = np.abs(self.y) <= _FAR * (size or 1.0)
        y, error, quantiles = (
            None if each is None else np.where(inside, each, np.nan)
            for each in (self.y, self.error, self.quantiles)
        )
        return self._replace(y=y, error=error, quantiles=quantiles)


class Curves(NamedTuple):
    """One quantity under one noise.

    - `all`: the training, the limit or, of the distance, the ensemble error, and the prediction, if any.
    - `time`: the axis of time. `diverged`: where on it the training diverged.
    """

    noise: str
    quantity: str
    label: str
    time: Axis
    diverged: float | None
    all: Sequence[Curve]

    @property
    def constant(self) -> float | None:
        """The value of a quantity that does not change, up to rounding."""
        values = np.concatenate([curve.finite() for curve in self.all])
        if self.diverged is not None or not values.size:
            return None
        largest = np.abs(values).max()
        return float(values[-1]) if np.ptp(values) <= UNCHANGED * largest or largest <= ROUNDING else None

    def shown(self) -> np.ndarray:
        """The values that an axis has to show."""
        training, reference, *predicted = (curve.finite() for curve in self.all)
        if self.diverged is not None and reference.size:
            # Of a diverging training, values within as much again of the limit; a distance up to 1.
            of_distance = self.quantity == DISTANCE
            low, high = (0.0, 1.0) if of_distance else (reference.min(), reference.max())
            room = 0.0 if of_distance else max(high - low, 0.2 * abs(high))
            training = training[(training >= low - room) & (training <= high + room)]
            reference = reference[reference <= 1.0] if of_distance else reference
        return np.concatenate([training, reference, *predicted])


def curves(results: xr.DataTree) -> dict[str, list[Curves]]:
    """For each quantity, and last for the distance, its curves under each noise that has it."""
    rows = comparison_rows(results)
    quantities = [*_sentences.measured(rows), LOSS, DISTANCE]
    found: dict[str, list[Curves]] = {quantity: [] for quantity in quantities}
    for row in rows:
        group, time, step = results[row["noise"]], time_axis(row), row.get("diverged_at")
        limit, training = group["limit"].to_dataset(), group["training_0"].to_dataset()
        predicted = group["prediction_0"].to_dataset() if "prediction_0" in group.children else None
        unit, clock = time.steps_per_unit, "slow_time" if time.steps_per_unit else "time"
        diverged = None if step is None else step / (unit or 1.0)
        end = max(training[clock].values[-1], diverged or 0.0)
        # A limit without drift has no time.
        end = float(max(end, limit["time"].values[-1]) if unit else end)
        at = limit["time"].values if unit else np.linspace(0, end, limit.sizes["time"])
        training, limit = training.assign_coords(at=training[clock]), limit.assign_coords(at=("time", at))
        predicted = None if predicted is None else predicted.assign_coords(at=predicted[clock])
        for quantity in quantities:
            if quantity == DISTANCE:
                label = "distance of training / " + ("travelled" if _sentences.of_the_way(row) else "|w|")
                drawn = _distances(training, predicted, diverged is not None)
            elif quantity in limit:
                label = label_of(quantity)
                drawn = _measured(quantity, training, limit, predicted)
                if diverged is not None:
                    drawn[0] = drawn[0].within(float(np.abs(drawn[1].y).max()))
            else:
                continue
            ranged = replace(time, range=(0.0, end))
            found[quantity].append(Curves(row["noise"], quantity, label, ranged, diverged, drawn))
    return {quantity: each for quantity, each in found.items() if each}


def _measured(
    quantity: str, training: xr.Dataset, limit: xr.Dataset, predicted: xr.Dataset | None
) -> list[Curve]:
    runs, paths = training.sizes.get("replica", 1), limit.sizes.get("replica", 1)
    stochastic = "replica" in limit[quantity].dims
    named = (
        (training, "training", TRAINING, f"training, {f'mean of {runs} runs' if runs > 1 else 'one run'}"),
        (limit, "limit", LIMIT, f"limit, mean of {paths} paths" if stochastic else "limit"),
        (predicted, "prediction", PREDICTION, "prediction"),
    )
    found = []
    for data, key, style, name in named:
        if data is not None:
            each, mean, error = over_replicas(data[quantity])
            with np.errstate(over="ignore", invalid="ignore"):  # a diverged training overflows
                spread = stochastic and len(each) > 1 and data is not predicted
                quantiles = np.quantile(each, LEVELS, axis=0) if spread else None
            error = None if data is predicted else error
            found.append(Curve(key, style, name, data["at"].values.astype(float), mean, error, quantiles))
    return found


def _distances(training: xr.Dataset, predicted: xr.Dataset | None, diverged: bool) -> list[Curve]:
    named = (
        (training, "distance", TRAINING, "distance to the limit"),
        (training, "distance_error", FAINT, "ensemble error"),
        (predicted, "distance", PREDICTION, "distance to the prediction"),
    )
    found = [
        Curve(name, style, name, data["at"].values.astype(float), data[column].values.astype(float))
        for data, column, style, name in named
        if data is not None
    ]
    return [each.within(1.0) if diverged or each.style == PREDICTION else each for each in found]


def ranges(shown: Sequence[Curves]) -> list[tuple[float, float]]:
    """The ends of the vertical axis of each panel of one quantity.

    The panels share them, for the quantity starts from the same value under every noise; only Reg is another
    function for each noise, and the loss depends on its size.
    """
    if shown[0].quantity in ("regularizer", LOSS):
        return [_range([each]) for each in shown]
    return [_range(shown)] * len(shown)


def _range(shown: Sequence[Curves]) -> tuple[float, float]:
    values = np.concatenate([each.shown() for each in shown])
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    if high - low <= max(UNCHANGED * max(abs(low), abs(high)), ROUNDING):  # not zoomed on rounding
        half = 0.5 * abs(high) if abs(high) > ROUNDING else 1.0
        low, high = low - half, high + half
    if all(each.quantity == DISTANCE for each in shown):
        return -_MARGIN / 2 * high, high + _MARGIN * high
    room = _MARGIN * (high - low)
    return low - room, high + room


def panel(shown: Curves, limits: tuple[float, float], verdict: str) -> Panel:
    """The panel of one quantity under one noise, between the `limits` of its vertical axis."""
    training, reference, *_ = shown.all
    series: list[Series] = []
    if reference.quantiles is not None:
        for first, opacity in ((0, 0.09), (1, 0.14)):
            low, high = reference.quantiles[[first, -1 - first]]
            series.append(_chart.band(reference.x, low, high, LIMIT.area(opacity), "limit-spread"))
    lines = [_chart.with_error(_line(curve, shown.time), curve.error) for curve in shown.all]
    series += [each for line in (lines[1], lines[0]) for each in line[:-1]]
    for index, values in enumerate(() if training.quantiles is None else training.quantiles):
        thin = replace(TRAINING.thin(), dash="dot" if index in (0, 3) else "solid")
        series.append(Series(training.x, values, thin, "training-spread"))
    series += [line[-1] for line in lines]
    constant, notes = shown.constant, []
    if constant is not None:
        below = constant > sum(limits) / 2
        notes.append(Note(_constant_in_words(constant), "muted", constant, in_data=True, below=below))
    if shown.diverged is not None:
        at, look = np.full(2, shown.diverged), replace(FAINT, color="alarm", dash="dashdot")
        series.append(Series(at, np.array(limits), look, ""))
        notes.append(Note("training diverged", "alarm", 0.98))
    unit = ", relative to |w|" if shown.quantity == DISTANCE and shown.label.endswith("|w|") else ""
    return Panel(
        shown.noise, _description(shown), series, shown.time, Axis(shown.label, limits), verdict + unit,
        notes, header="t = %{x:.3~g}" if shown.time.steps_per_unit else "step %{x:,}",
    )  # fmt: skip


def _line(curve: Curve, time: Axis) -> Series:
    """A curve that shows its values, errors and quantiles where the mouse is."""
    hover, details = f"{curve.name.partition(',')[0]} %{{y:.4~g}}", []
    if curve.error is not None:
        hover += " ± %{customdata[0]:.1g}"
        details = [2 * curve.error]
    if curve.quantiles is not None:
        first = len(details)
        hover += f", 5–95 %: %{{customdata[{first}]:.3~g}} to %{{customdata[{first + 1}]:.3~g}}"  # noqa: RUF001
        details += [curve.quantiles[0], curve.quantiles[-1]]
    if time.steps_per_unit and curve.style == TRAINING:
        hover += f"<br>at step %{{customdata[{len(details)}]:,}}"
        details.append(np.round(curve.x * time.steps_per_unit))
    return Series(curve.x, curve.y, curve.style, curve.key, hover, details)


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


def _texts(shown: Sequence[Curves]) -> dict[str, str]:
    """The texts of the legend of panels of one quantity, or of one noise."""
    texts: dict[str, str] = {}
    for curve in (curve for each in shown for curve in each.all):
        texts.setdefault(curve.key, curve.name + _ERRORS * (curve.error is not None))
    limits = [each.all[1] for each in shown if each.all[1].key == "limit"]
    stochastic = [limit for limit in limits if limit.quantiles is not None]
    if stochastic:
        every = len(stochastic) == len(limits)
        name = stochastic[0].name if every else stochastic[0].name.replace(",", "; where it is stochastic,")
        texts["training-spread"] = "5, 25, 75 and 95 % of the runs"
        texts["limit"] = name + _ERRORS
        texts["limit-spread"] = "5–95 % and 25–75 % of the limit's paths"  # noqa: RUF001
    return texts


def _quantity_figure(shown: Sequence[Curves], verdicts: Mapping[str, str]) -> Figure:
    """One quantity under all noises."""
    panels = [
        panel(each, limits, verdicts[each.noise]) for each, limits in zip(shown, ranges(shown), strict=True)
    ]
    label = next((each.label for each in shown if not each.label.endswith("|w|")), shown[0].label)
    return Figure(shown[0].quantity, sentence_start(label), _chart.in_rows(panels, 3), _texts(shown))


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
    found = [Figure("overview", "", lines, chosen[0].texts, str(config.get("description", "")))]
    picture = _pictures.picture(config, results)
    found += [] if picture is None else [picture]
    for row in rows:
        noise = row["noise"]
        own = [each for quantity in shown.values() for each in quantity if each.noise == noise]
        panels = [replace(panel(each, _range([each]), ""), title="") for each in own]
        scale = f", drift on {greek(row['time_scale'])} steps" if row["time_scale"] else ""
        title = f"{noise}: {verdicts[noise]}{scale}"
        found.append(Figure(noise, "", _chart.in_rows(panels, 2), _texts(own), title))
    return found


def page(config: Mapping[str, Any], results: xr.DataTree) -> Page:
    """The page of a comparison."""
    rows, strengths = comparison_rows(results), config.get("strengths") or {}
    noises = [row["noise"] for row in rows]
    steps = [time_axis(row).steps_per_unit for row in rows]
    verdicts = {row["noise"]: _sentences.verdict_in_words(row) for row in rows}
    relative = {row.get("step_size_relative") for row in rows} - {None}
    replicas = {row.get("replicas") for row in rows} - {None}
    setup = [
        str(config.get("description", "")),
        f"step size {relative.pop():.3g} / λ_max" if len(relative) == 1 else "",
        f"{replicas.pop():.0f} training runs for each noise" if len(replicas) == 1 else "",
    ]
    headline = [_sentences.headline(rows, steps, strengths), _sentences.unfinished(config, results)]
    return Page(
        kind="stochastic comparison" if any(row.get("stochastic") for row in rows) else "comparison",
        title=f"{config.get('problem', 'a run')}: what noise does at zero loss",
        setup=joined(setup),
        headline=joined(headline, " "),
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
