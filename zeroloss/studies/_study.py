"""Measures on which time scale training drifts, and how it approaches the limit."""

import dataclasses
from time import perf_counter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Key, PyTree

from zeroloss._checkpoint import NO_CHECKPOINT, Checkpoint
from zeroloss._pytrees import refuse_tracing
from zeroloss._tolerances import BOUND_STEPS
from zeroloss.drifts import Verdict, classify, power_of_step_size
from zeroloss.dynamics import ensemble_of, train
from zeroloss.errors import InputError
from zeroloss.optimizers import SGD
from zeroloss.studies._fits import Approach, Exponent, approach, power_law
from zeroloss.studies._measurement import Measurement, target_of
from zeroloss.studies._planner import FEWEST_MEASUREMENTS, LARGEST_STEP, PRIOR, Planner, seconds_for
from zeroloss.systems import AbstractSystem
from zeroloss.zero_sets import largest_eigenvalue, locate, norm_or_one, project, spectrum_at

_REPLICAS = 16  # that bound a trivial drift
_ONE_SIDED = 1.753  # 95 % of Student's t with 15 degrees of freedom


class Bound(eqx.Module):
    """How little a trivial noise moves training along the zero-loss set.

    - `distance`: upper 95 % confidence limit of the mean tangential displacement, relative to |w|.
    - `largest`: the largest of any replica.
    - `steps`, `step_size`, `replicas`: what was run.
    """

    distance: float
    largest: float
    steps: int
    step_size: float
    replicas: int

    def __str__(self) -> str:
        return (
            f"after {self.steps:,} steps of size {self.step_size:.3g} training has moved by less than "
            f"{self.distance:.1e} |w| along the set (95 % confidence, {self.replicas} runs)"
        )


class Study(eqx.Module):
    """What a ladder of step sizes, and one of sigmas, measured. `print` it, take `rows()`, or `to_xarray()`.

    - `noise`, `verdict`: the noise in words, and the verdict.
    - `drift`: how far the limit goes, relative to |w|, in the slow time `t1`.
    - `by_step_size`, `by_sigma`: the measurements of the two ladders, from the coarsest.
    - `step_size_exponent`: p in steps ~ alpha^-p for a fixed drift, in theory 1 or 2;
      `sigma_exponent`: q in steps ~ sigma^-q, in theory 2.
    - `step_size_approach`, `sigma_approach`: the order with which the gap to the limit, log(steps / steps of
      the limit), falls along each ladder, and the gap that remains at its end. None where the data do not
      determine the order.
    - `bound`: for a trivial noise, in place of all these.
    - `choices`: the choices made to keep to the budget, in sentences.
    """

    noise: str
    verdict: Verdict
    largest_eigenvalue: float
    seconds: float
    drift: float = 0.0
    t1: float = 0.0
    by_step_size: tuple[Measurement, ...] = ()
    by_sigma: tuple[Measurement, ...] = ()
    step_size_exponent: Exponent | None = None
    sigma_exponent: Exponent | None = None
    step_size_approach: Approach | None = None
    sigma_approach: Approach | None = None
    bound: Bound | None = None
    choices: tuple[str, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per measurement, with `ladder` saying which it is on."""
        return [
            {"ladder": ladder, "step_size_relative": measurement.step_size * self.largest_eigenvalue}
            | measurement._asdict()
            for ladder, measurements in (("step size", self.by_step_size), ("sigma", self.by_sigma))
            for measurement in measurements
        ]

    def to_xarray(self) -> xr.Dataset:
        """The measurements along the dimension `measurement`; exponents, bound and verdict as attributes."""
        rows = self.rows()
        names = [name for name in rows[0] if name != "ladder"] if rows else []
        data = {name: ("measurement", np.array([row[name] for row in rows])) for name in names}
        ladders = np.array([row["ladder"] for row in rows], dtype=object)
        attributes: dict[str, Any] = {
            "noise": self.noise,
            "verdict": str(self.verdict),
            "verdict_name": self.verdict.name,
            "time_scale": self.verdict.time_scale or "none",
            "stochastic": int(self.verdict.stochastic),
            "drift": self.drift,
            "t1": self.t1,
            "choices": list(self.choices),
            "seconds": self.seconds,
        }
        for ladder in ("step_size", "sigma"):
            fitted = getattr(self, f"{ladder}_approach")
            found = {"exponent": getattr(self, f"{ladder}_exponent")}
            if fitted is not None:
                found["order"] = fitted.order
                attributes[f"{ladder}_remainder"] = fitted.remainder
                attributes[f"{ladder}_remainder_error"] = fitted.remainder_error
            for name, exponent in found.items():
                if exponent is not None:
                    attributes[f"{ladder}_{name}"] = exponent.value
                    attributes[f"{ladder}_{name}_half_width"] = exponent.half_width
                    if exponent.theory is not None:
                        attributes[f"{ladder}_{name}_theory"] = exponent.theory
        if self.bound is not None:
            attributes |= {f"bound_{k}": v for k, v in dataclasses.asdict(self.bound).items()}
        return xr.Dataset(data, {"ladder": ("measurement", ladders)}, attributes)

    def __str__(self) -> str:
        lines = [f"{self.noise}: {self.verdict}"]
        if self.bound is not None:
            return "\n".join([*lines, f"  {self.bound}"])
        for label, found in (
            ("steps ~ step size^-p, p =", self.step_size_exponent),
            ("steps ~ sigma^-q, q =", self.sigma_exponent),
            ("gap to the limit ~ step size^r, r =", self.step_size_approach),
            ("gap to the limit ~ sigma^s, s =", self.sigma_approach),
        ):
            lines.append(f"  {label} {found if found is not None else 'not resolved'}")
        return "\n".join(lines + [f"  {choice}" for choice in self.choices])


def study(
    system: AbstractSystem,
    params: PyTree,
    *,
    key: Key[Array, ""],
    budget: float = 5.0,
    drift: float = 0.05,
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> Study:
    """Measure on which time scale training drifts, and how it approaches the limit.

    An ensemble is trained at each of a ladder of step sizes, and at each of a ladder of sigmas, until it has
    drifted as far as the limit does in a fixed slow time. Along each ladder the number of steps follows a
    power law, steps ~ alpha^-p sigma^-q; in theory p = 1 or 2 and q = 2 (theory.md, section 2). The exponents
    come with 95 % intervals from the scatter of the replicas, which allow for a leading correction to the
    power law. The order of the approach is the power with which the distance to the limit falls.

    **Arguments:**

    - `system`, `params`: a system and any start from which zero loss can be reached. The sigmas
      of its noise are the largest of the ladder.
    - `key`: for the training runs.
    - `budget`: minutes. Replicas and the length of the ladders are chosen to keep to it, from a pilot
      run; `Study.choices` says what was chosen.
    - `drift`: how far to drift, relative to |w|; for a stochastic limit the root mean square.
    - `checkpoint`: where to keep the state, so that the same call goes on after a crash; by default nowhere.
      It also holds the choices made by the clock: with the same choices the results are the same.

    **Returns:** a `Study`. For a trivial noise it holds a bound on the drift instead of exponents.

    **Raises:** the errors of `project`, `classify` and `limit`; `InputError` where the drift vanishes at the
    start, which is then a stationary point, and where the noise is too large for training to follow its
    limit at all.

    Costs what `budget` allows, or more where even the shortest ladder takes longer.
    """
    if not (budget > 0 and np.isfinite(budget)):
        raise InputError(f"budget must be a positive number of minutes, got {budget}.")
    if not 0 < drift <= 1:
        raise InputError(f"drift must lie in (0, 1], relative to |w|, got {drift}.")
    refuse_tracing((system, params), "study")
    with checkpoint.open():
        return _study(system, params, key, budget, drift, checkpoint)


def _study(
    system: AbstractSystem,
    params: PyTree,
    key: Key[Array, ""],
    budget: float,
    drift: float,
    checkpoint: Checkpoint,
) -> Study:
    began = perf_counter()
    point = project(system, params)
    verdict = classify(system, point)
    largest = largest_eigenvalue(system, point)
    common: dict[str, Any] = dict(noise=system.describe(), verdict=verdict, largest_eigenvalue=largest)
    pilot_key, limit_key, *keys = jax.random.split(key, 4)
    if verdict.time_scale is None:
        bound = _bound(system, point, LARGEST_STEP / largest, budget, pilot_key, checkpoint)
        seconds = checkpoint.computed_once("seconds", lambda: perf_counter() - began)
        return Study(**common, bound=bound, seconds=seconds)
    target = target_of(system, point, verdict, drift, limit_key, checkpoint / "limit")
    prepared = checkpoint.computed_once("preparation", lambda: perf_counter() - began)
    plan = Planner(system, point, target, largest, 60 * budget - prepared, checkpoint)
    plan.pilot(pilot_key)
    by_step_size = plan.ladder("step sizes", keys[0])
    by_sigma = plan.ladder("sigmas", keys[1])
    return Study(
        **common,
        drift=float(target.size**0.5 if verdict.stochastic else target.size)
        / float(norm_or_one(target.start)),
        t1=target.t1,
        by_step_size=by_step_size,
        by_sigma=by_sigma,
        step_size_exponent=_exponent(
            by_step_size,
            [measurement.step_size * largest for measurement in by_step_size],
            [measurement.step_size * largest for measurement in by_step_size],
            PRIOR["step sizes"],
            float(power_of_step_size(verdict.time_scale)),
        ),
        sigma_exponent=_exponent(
            by_sigma,
            [measurement.sigma for measurement in by_sigma],
            [(measurement.sigma / by_sigma[0].sigma) ** 2 for measurement in by_sigma],
            PRIOR["sigmas"],
            2.0,
        ),
        step_size_approach=_approach(
            by_step_size, [measurement.step_size for measurement in by_step_size], 1.0
        ),
        sigma_approach=_approach(by_sigma, [measurement.sigma for measurement in by_sigma], None),
        choices=tuple(plan.choices),
        seconds=60 * budget - plan.left,
    )


def _exponent(
    measurements: tuple[Measurement, ...],
    x: list[float],
    correction: list[float],
    prior: float,
    theory: float,
) -> Exponent | None:
    if len(measurements) < FEWEST_MEASUREMENTS:
        return None
    steps = np.log([measurement.steps for measurement in measurements])
    errors = np.maximum([measurement.steps_error for measurement in measurements], 1e-6)
    leading = np.array(correction)
    return power_law(
        np.array(x), steps, errors, corrections=(leading, leading**2), prior=prior, theory=theory, sign=-1
    )


def _approach(measurements: tuple[Measurement, ...], x: list[float], theory: float | None) -> Approach | None:
    gaps = np.array([np.log(measurement.steps / measurement.theory) for measurement in measurements])
    errors = np.maximum([measurement.steps_error for measurement in measurements], 1e-6)
    return approach(np.array(x), gaps, errors, theory=theory)


def _bound(
    system: AbstractSystem,
    point: PyTree,
    step_size: float,
    budget: float,
    key: Key[Array, ""],
    checkpoint: Checkpoint,
) -> Bound:
    """Train where theory says that nothing happens, and see how little does."""
    zero_set, w = locate(system, point)
    spectrum = spectrum_at(zero_set, w)
    ensemble, states = ensemble_of(system, point, SGD(step_size), _REPLICAS, key)

    def seconds_per_step() -> float:
        seconds_for(ensemble, states, 10)  # compiles
        return seconds_for(ensemble, states, 100)

    per_step = checkpoint.computed_once("seconds_per_step", seconds_per_step)
    steps = int(np.clip(60 * budget / 2 / per_step, 100, BOUND_STEPS))
    items = train(
        ensemble, states, np.array([steps]), lambda w: {"params": np.asarray(w)}, checkpoint / "bound"
    )
    moved = np.asarray(jax.vmap(spectrum.tangent)(jnp.asarray(items[-1]["params"]) - w))
    distances = np.linalg.norm(moved, axis=-1) / float(norm_or_one(w))
    upper = distances.mean() + _ONE_SIDED * distances.std(ddof=1) / np.sqrt(_REPLICAS)
    return Bound(float(upper), float(distances.max()), steps, step_size, _REPLICAS)
