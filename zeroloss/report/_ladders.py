"""The ladders of a study: measured steps and distances at several step sizes, or at several sigmas."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from zeroloss.studies import Approach, Exponent

KINDS = ("step size", "sigma")

_ERRORS = 2.0  # standard errors in an error bar


class Points(NamedTuple):
    """Positive measurements with the ends of their error bars.

    Where `resolved` is False the measurement is zero within its error: `y`, `low` and `high` are then the
    upper end of its error bar.
    """

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    resolved: np.ndarray

    def only(self, which: np.ndarray) -> "Points":
        """The points where `which` holds."""
        return Points(*(each[which] for each in self))


class Ladder(NamedTuple):
    """Measurements that differ in one parameter only, from the coarsest; arrays are `[measurement]`.

    - `kind`: "step size" or "sigma"; `x`: its values. `step_sizes`: relative to 1 / lambda_max.
    - `steps`: for the drift; `steps_error`: the standard error of its logarithm; `theory`: of the limit.
    - `distance`: from the limit at the same slow time, relative to the drift, and its standard error.
    - `exponent`, `approach`: the fits, or None.
    """

    noise: str
    kind: str
    stochastic: bool
    x: np.ndarray
    step_sizes: np.ndarray
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
    def label(self) -> str:
        """The title of its axis."""
        return f"{self.kind if self.kind == 'step size' else 'noise scale'} {self.symbol}"

    @property
    def gap(self) -> np.ndarray:
        """The logarithm of steps over those of the limit; negative where training is faster."""
        return np.log(self.steps / self.theory)

    @property
    def measured_steps(self) -> Points:
        """Steps against the parameter."""
        factor = np.exp(_ERRORS * self.steps_error)
        return _positive(
            self.x, self.steps, self.steps / factor, self.steps * factor, np.isfinite(self.steps)
        )

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
        """The fitted power law, through the finest measurement, where it holds best."""
        if self.exponent is None:
            return None
        ends = self.x[[0, -1]]
        return ends, self.steps[-1] * (ends / self.x[-1]) ** -self.exponent.value

    @property
    def fitted_gap(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The size of the fitted remainder + constant * x^order."""
        if self.approach is None:
            return None
        order, relative = self.approach.order.value, self.x / self.x.max()
        powers, weights = relative**order, self.steps_error**-2.0
        # The best constant for the order and remainder of the best fit.
        constant = np.sum(weights * powers * (self.gap - self.approach.remainder)) / np.sum(
            weights * powers**2
        )
        fine = np.geomspace(relative.min(), 1.0, 60)
        return fine * self.x.max(), np.abs(self.approach.remainder + constant * fine**order)


class NoiseStudy(NamedTuple):
    """The study of one noise: its ladders, or for a trivial noise a `bound` on its effect.

    - `bound`: `distance`, `largest`, `steps`, `step_size` and `replicas` of `zeroloss.studies.Bound`.
    - `drift`: that training was to make, relative to |w|. `time_scale`: None without a drift.
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


def studies(config: Mapping[str, Any], results: xr.DataTree) -> list[NoiseStudy]:
    """The study of each noise of a run, in the order of its config."""
    asked = [name for name in config.get("noise") or () if name in results.children]
    others = [name for name in results.children if name not in asked]
    return [_study(name, results.children[name].to_dataset(inherit=False)) for name in [*asked, *others]]


def _study(noise: str, data: xr.Dataset) -> NoiseStudy:
    facts, scale = data.attrs, data.attrs.get("time_scale", "none")
    ladders = [_ladder(noise, kind, data) for kind in KINDS] if "steps" in data else []
    return NoiseStudy(
        noise=noise,
        verdict_name=str(facts.get("verdict_name", "")),
        verdict=str(facts.get("verdict", "")),
        time_scale=None if scale == "none" else str(scale),
        stochastic=bool(facts.get("stochastic", 0)),
        drift=float(facts.get("drift", 0.0)),
        choices=tuple(str(each) for each in facts.get("choices", ())),
        seconds=float(facts.get("seconds", 0.0)),
        ladders=tuple(ladder for ladder in ladders if ladder.x.size),
        bound={str(k).removeprefix("bound_"): facts[k] for k in facts if str(k).startswith("bound_")} or None,
    )


def _ladder(noise: str, kind: str, data: xr.Dataset) -> Ladder:
    measurements = data.isel(measurement=np.flatnonzero(data["ladder"].values == kind))
    prefix, columns = kind.replace(" ", "_"), {}
    for name in ("steps", "steps_error", "theory", "distance", "distance_error"):
        columns[name] = measurements[name].values.astype(float)
    columns["steps_error"] = np.maximum(columns["steps_error"], 1e-6)
    order = _exponent(data.attrs, f"{prefix}_order", measurements.sizes["measurement"])
    remainder = [float(data.attrs.get(f"{prefix}_{name}", 0.0)) for name in ("remainder", "remainder_error")]
    return Ladder(
        noise=noise,
        kind=kind,
        stochastic=bool(data.attrs.get("stochastic", 0)),
        x=measurements[prefix].values.astype(float),
        step_sizes=measurements["step_size_relative"].values.astype(float),
        exponent=_exponent(data.attrs, f"{prefix}_exponent", measurements.sizes["measurement"]),
        approach=None if order is None else Approach(order, *remainder),
        **columns,
    )


def _exponent(facts: Mapping[Any, Any], name: str, points: int) -> Exponent | None:
    if name not in facts:
        return None
    theory = facts.get(f"{name}_theory")
    half_width = float(facts[f"{name}_half_width"])
    return Exponent(float(facts[name]), half_width, None if theory is None else float(theory), points)


def _sizes(x: np.ndarray, values: np.ndarray, errors: np.ndarray) -> Points:
    size, half = np.abs(values), _ERRORS * errors
    resolved = size > half
    y = np.where(resolved, size, size + half)
    return _positive(x, y, np.where(resolved, size - half, y), np.where(resolved, size + half, y), resolved)


def _positive(*columns: np.ndarray) -> Points:
    points = Points(*columns)
    return points.only(
        np.isfinite(points.y) & (points.y > 0) & np.isfinite(points.low) & np.isfinite(points.high)
    )
