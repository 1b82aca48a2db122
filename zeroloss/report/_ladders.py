"""The ladders of a study: measured steps and distances at several step sizes, or at several sigmas."""

# ruff: noqa: RUF001  # Greek letters are meant

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

from zeroloss.studies import Approach, Exponent

KINDS = ("step size", "sigma")

_ERRORS = 2.0  # standard errors in an error bar
_COLUMNS = ("steps", "steps_error", "theory", "distance", "distance_error")


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

    def positive(self) -> "Points":
        """The points that a logarithmic axis can show."""
        return self.only(np.isfinite(self.y) & (self.y > 0) & np.isfinite(self.low) & np.isfinite(self.high))


class Ladder(NamedTuple):
    """Measurements that differ in one parameter only, from the coarsest; arrays are `[measurement]`.

    - `kind`: "step size" or "sigma"; `x`: its values; `relative`: to 1 / lambda_max, or to the largest.
    - `steps`: for the drift; `steps_error`: the standard error of its logarithm; `theory`: of the limit.
    - `distance`: from the limit at the same slow time, relative to the drift, and its standard error.
    - `exponent`, `approach`: the fits, or None.
    """

    noise: str
    kind: str
    x: np.ndarray
    relative: np.ndarray
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
        return "α" if self.kind == "step size" else "σ"

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
        low, high = self.steps / factor, self.steps * factor
        return Points(self.x, self.steps, low, high, np.isfinite(self.steps)).positive()

    @property
    def gaps(self) -> Points:
        """The size of the gap against the parameter."""
        return self._sizes(self.gap, self.steps_error)

    @property
    def distances(self) -> Points:
        """The distance from the limit against the parameter."""
        return self._sizes(self.distance, self.distance_error)

    def _sizes(self, values: np.ndarray, errors: np.ndarray) -> Points:
        size, half = np.abs(values), _ERRORS * errors
        resolved = size > half
        y = np.where(resolved, size, size + half)
        shown = np.where(resolved, half, 0.0)
        return Points(self.x, y, y - shown, y + shown, resolved).positive()

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
        order, remainder = self.approach.order.value, self.approach.remainder
        powers, weights = (self.x / self.x.max()) ** order, self.steps_error**-2.0
        # The best constant for the order and remainder of the best fit.
        constant = np.sum(weights * powers * (self.gap - remainder)) / np.sum(weights * powers**2)
        fine = np.geomspace(self.x.min() / self.x.max(), 1.0, 60)
        return fine * self.x.max(), np.abs(remainder + constant * fine**order)


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
    facts = {str(name): value for name, value in data.attrs.items()}
    ladders = [_ladder(noise, kind, data, facts) for kind in KINDS] if "steps" in data else []
    scale = facts.get("time_scale", "none")
    return NoiseStudy(
        noise=noise,
        verdict_name=facts.get("verdict_name", ""),
        verdict=facts.get("verdict", ""),
        time_scale=None if scale == "none" else scale,
        stochastic=bool(facts.get("stochastic", 0)),
        drift=facts.get("drift", 0.0),
        choices=tuple(map(str, facts.get("choices", ()))),
        seconds=facts.get("seconds", 0.0),
        ladders=tuple(ladder for ladder in ladders if ladder.x.size),
        bound={k.removeprefix("bound_"): facts[k] for k in facts if k.startswith("bound_")} or None,
    )


def _ladder(noise: str, kind: str, data: xr.Dataset, facts: Mapping[str, Any]) -> Ladder:
    measurements = data.isel(measurement=np.flatnonzero(data["ladder"].values == kind)).astype(float)
    prefix, number = kind.replace(" ", "_"), measurements.sizes["measurement"]
    columns = {name: measurements[name].values for name in _COLUMNS}
    columns["steps_error"] = np.maximum(columns["steps_error"], 1e-6)
    x = measurements[prefix].values
    order = _exponent(facts, f"{prefix}_order", number)
    remainder = [float(facts.get(f"{prefix}_{name}", 0.0)) for name in ("remainder", "remainder_error")]
    return Ladder(
        noise=noise,
        kind=kind,
        x=x,
        relative=measurements["step_size_relative"].values if kind == "step size" else x / x.max(initial=0.0),
        exponent=_exponent(facts, f"{prefix}_exponent", number),
        approach=None if order is None else Approach(order, *remainder),
        **columns,
    )


def _exponent(facts: Mapping[str, Any], name: str, points: int) -> Exponent | None:
    if name not in facts:
        return None
    theory = facts.get(f"{name}_theory")
    half_width = float(facts[f"{name}_half_width"])
    return Exponent(float(facts[name]), half_width, None if theory is None else float(theory), points)
