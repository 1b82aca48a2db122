"""What a report on a study shows, taken out of a run: for each noise its ladders, or a bound on its drift."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from zeroloss.studies._fits import Approach, Exponent

LADDERS = ("step size", "sigma")

_ERRORS = 2.0  # standard errors in an error bar
_TICKS = 5
_FAR = 1e100  # nothing measured is as large, or its inverse as small


class Points(NamedTuple):
    """Positive measurements on logarithmic axes.

    Where `resolved` is False the measurement is zero within its error: `y` is then the upper end of its error
    bar, and so are `low` and `high`.
    """

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    resolved: np.ndarray


class Ladder(NamedTuple):
    """The rungs that differ in one parameter only, from the coarsest.

    - `kind`: `"step size"` or `"sigma"`, and `x` its values; `step_sizes` relative to 1 / lambda_max.
    - `steps`: for the drift; `steps_error` is the standard error of the logarithm. `theory`: of the limit.
    - `distance`: from the limit at the same slow time, and its standard error.
    - `exponent`, `approach`: what was fitted, or None.
    """

    noise: str
    kind: str
    stochastic: bool
    x: np.ndarray
    step_sizes: np.ndarray
    replicas: np.ndarray
    steps: np.ndarray
    steps_error: np.ndarray
    theory: np.ndarray
    distance: np.ndarray
    distance_error: np.ndarray
    exponent: Exponent | None
    approach: Approach | None

    @property
    def symbol(self) -> str:
        """The letter of the parameter."""
        return "α" if self.kind == "step size" else "σ"  # noqa: RUF001

    @property
    def axis(self) -> str:
        """The label of its axis."""
        return f"{self.kind if self.kind == 'step size' else 'noise scale'} {self.symbol}"

    @property
    def gap(self) -> np.ndarray:
        """The logarithm of steps over those of the limit; negative where training is faster."""
        return np.log(self.steps / self.theory)

    @property
    def steps_taken(self) -> Points:
        """Steps against the parameter."""
        factor = np.exp(_ERRORS * self.steps_error)
        return _kept(self.x, self.steps, self.steps / factor, self.steps * factor, np.isfinite(self.steps))

    @property
    def gaps(self) -> Points:
        """The size of the gap against the parameter."""
        return _sizes(self.x, self.gap, self.steps_error)

    @property
    def distances(self) -> Points:
        """The distance from the limit against the parameter."""
        return _sizes(self.x, self.distance, self.distance_error)

    @property
    def fitted_steps(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The fitted power law, through the finest rung, where it holds best."""
        if self.exponent is None:
            return None
        ends = self.x[[0, -1]]
        return ends, self.steps[-1] * (ends / self.x[-1]) ** -self.exponent.value

    @property
    def fitted_gap(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The size of the fitted remainder + constant * x^order."""
        if self.approach is None:
            return None
        relative = self.x / self.x.max()
        powers, weights = relative**self.approach.order.value, self.steps_error**-2.0
        left = self.gap - self.approach.remainder
        # The best constant for this order and remainder, which are those of the best fit.
        constant = np.sum(weights * powers * left) / np.sum(weights * powers**2)
        fine = np.geomspace(relative.min(), 1.0, 60)
        return fine * self.x.max(), np.abs(
            self.approach.remainder + constant * fine**self.approach.order.value
        )


class Measured(NamedTuple):
    """What a study found for one noise: `ladders`, or for a trivial noise a `bound` on what it does.

    - `bound`: `distance`, `largest`, `steps`, `step_size` and `replicas` of `zeroloss.studies.Bound`.
    - `drift`: that training was to make, relative to |w|.
    - `time_scale`: None without a drift.
    """

    noise: str
    verdict_name: str
    verdict: str
    time_scale: str | None
    stochastic: bool
    drift: float
    choices: tuple[str, ...]
    seconds: float
    ladders: tuple[Ladder, ...]
    bound: dict[str, float] | None

    def ladder(self, kind: str) -> Ladder | None:
        """The ladder of step sizes or of sigmas, or None where there is none."""
        return next((ladder for ladder in self.ladders if ladder.kind == kind), None)


def studies(config: Mapping[str, Any], results: xr.DataTree) -> list[Measured]:
    """What was found for every noise of a run, in the order of its config."""
    asked = [name for name in config.get("noise") or () if name in results.children]
    others = [name for name in results.children if name not in asked]
    return [_measured(name, results.children[name].to_dataset(inherit=False)) for name in [*asked, *others]]


def log_window(*drawn: np.ndarray | None) -> tuple[float, float]:
    """Limits of a logarithmic axis with room around all positive values in `drawn`."""
    values = np.concatenate([np.ravel(each) for each in drawn if each is not None])
    values = values[(values > 1 / _FAR) & (values < _FAR)]
    if not values.size:
        return 0.1, 10.0
    low, high = np.log10(values.min()), np.log10(values.max())
    room = max(0.06 * (high - low), (0.5 - (high - low)) / 2, 0.02)
    return float(10 ** (low - room)), float(10 ** (high + room))


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between the limits of a logarithmic axis, at most five."""
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(high)))
    ticks: list[float] = []
    for within in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [mantissa * 10.0**power for power in range(first, last + 1) for mantissa in within]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= _TICKS:
            return ticks
    return ticks[:: -(-len(ticks) // _TICKS)]


def tick_label(value: float) -> str:
    """A round number as it is written on an axis."""
    return f"{value:,.0f}" if 1000 <= value < 1e7 else f"{value:.3g}"


def _measured(name: str, data: xr.Dataset) -> Measured:
    given = data.attrs
    bound = {key.removeprefix("bound_"): given[key] for key in given if str(key).startswith("bound_")}
    ladders = [_ladder(name, kind, data) for kind in LADDERS] if "steps" in data else []
    scale = given.get("time_scale", "none")
    return Measured(
        noise=name,
        verdict_name=str(given.get("verdict_name", "")),
        verdict=str(given.get("verdict", "")),
        time_scale=None if scale == "none" else str(scale),
        stochastic=bool(given.get("stochastic", 0)),
        drift=float(given.get("drift", 0.0)),
        choices=tuple(str(each) for each in given.get("choices", ())),
        seconds=float(given.get("seconds", 0.0)),
        ladders=tuple(ladder for ladder in ladders if ladder.x.size),
        bound=bound or None,
    )


def _ladder(name: str, kind: str, data: xr.Dataset) -> Ladder:
    rungs = data.isel(rung=np.flatnonzero(data["ladder"].values == kind))
    prefix, count = kind.replace(" ", "_"), rungs.sizes["rung"]
    exponent, order = (_exponent(data.attrs, f"{prefix}_{each}", count) for each in ("exponent", "order"))
    approach = None
    if order is not None:
        left = (float(data.attrs[f"{prefix}_{each}"]) for each in ("remainder", "remainder_error"))
        approach = Approach(order, *left)

    def column(variable: str) -> np.ndarray:
        return rungs[variable].values.astype(float)

    return Ladder(
        noise=name,
        kind=kind,
        stochastic=bool(data.attrs.get("stochastic", 0)),
        x=column(prefix),
        step_sizes=column("step_size_relative"),
        replicas=column("replicas"),
        steps=column("steps"),
        steps_error=np.maximum(column("steps_error"), 1e-6),
        theory=column("theory"),
        distance=column("distance"),
        distance_error=column("distance_error"),
        exponent=exponent,
        approach=approach,
    )


def _exponent(attributes: Mapping[Any, Any], name: str, points: int) -> Exponent | None:
    if name not in attributes:
        return None
    theory = attributes.get(f"{name}_theory")
    half_width = float(attributes[f"{name}_half_width"])
    return Exponent(float(attributes[name]), half_width, None if theory is None else float(theory), points)


def _sizes(x: np.ndarray, values: np.ndarray, errors: np.ndarray) -> Points:
    size, half = np.abs(values), _ERRORS * errors
    resolved = size > half
    y = np.where(resolved, size, size + half)
    return _kept(x, y, np.where(resolved, size - half, y), np.where(resolved, size + half, y), resolved)


def _kept(x: np.ndarray, y: np.ndarray, low: np.ndarray, high: np.ndarray, resolved: np.ndarray) -> Points:
    kept = np.isfinite(y) & (y > 0) & np.isfinite(low) & np.isfinite(high)
    return Points(*(each[kept] for each in (x, y, low, high, resolved)))
