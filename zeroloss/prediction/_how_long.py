"""How many training steps the effect of the noise takes."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from zeroloss._compilation import compiled, compiled_once
from zeroloss._progress import progress_bar, stage_indicator
from zeroloss._pytrees import Vector, flatten, refuse_tracing
from zeroloss.drifts import (
    FAST,
    AbstractExpansion,
    Verdict,
    classify,
    expand_at,
    first_drift,
    second_drift_of,
    steps_per_unit,
)
from zeroloss.errors import BudgetError, InputError, IntegrationError, UnsupportedError
from zeroloss.optimizers import StepSize, as_optimizer
from zeroloss.prediction._integrator import Integrator
from zeroloss.prediction._mean_path import MeanPath
from zeroloss.prediction._predict import mean_path_of, warn_of_drawn_labels
from zeroloss.prediction._tolerance import Tolerance, as_tolerance
from zeroloss.systems import AbstractSystem, Scalar
from zeroloss.zero_sets import largest_eigenvalue, locate, norm_or_one, project

_SETTLED = 0.01  # of the whole change, within the last doubling of the number of steps
_FEWEST = 100.0
_WARM_UP = 10_000  # training steps, among which a schedule has its largest step size
_REACH = 0.1  # |w|


class HowLong(eqx.Module):
    """How many training steps a quantity takes to reach a value. `print` it.

    - `steps`: training steps, interpolated.
    - `quantity`, `start`, `value`, `end`: what was followed; where it starts, the value asked for, and where
      it settles (NaN where a value was asked for, and it was followed no further).
    - `followed`: how many training steps were followed.
    - `settled`: whether the quantity had settled by then, or a value asked for was reached. If not, `end` is
      only where it was by then, and the steps to a fraction of the whole change may be more.
    - `first`, `second`: the shares of the two scales in the way along the set until then: of -grad L_bar,
      which takes 1 / (alpha sigma^2) steps, and of the fluctuations, which take 1 / (alpha^2 sigma^2).
    """

    steps: float
    quantity: str
    start: float
    value: float
    end: float
    first: float
    second: float
    followed: float
    settled: bool

    def __str__(self) -> str:
        ending = "" if np.isnan(self.end) else f", on the way to {self.end:.4g}"
        text = (
            f"{self.steps:,.0f} steps until {self.quantity} has gone from {self.start:.4g} to "
            f"{self.value:.4g}{ending}; {100 * self.first:.0f} % of the way by the first scale, "
            f"{100 * self.second:.0f} % by the second"
        )
        if self.settled:
            return text
        return (
            f"{text}. It was followed for {self.followed:,.0f} steps and had not settled: the whole change "
            "may be larger, and this fraction of it may take more steps"
        )


def how_long(
    system: AbstractSystem,
    params: PyTree,
    step_size: StepSize,
    *,
    of: str | Callable[[PyTree], Array] | None = None,
    fraction: float = 0.5,
    value: float | None = None,
    most_steps: int = 10**12,
    rtol: float | Tolerance = 1e-3,
) -> HowLong:
    """The number of training steps until the noise has done a fraction of what it will do.

    Follows the mean path of `zeroloss.predict`, without the ensemble.

    **Arguments:**

    - `system`, `params`, `step_size`: as in `zeroloss.predict`.
    - `of`: the quantity: "regularizer" (Reg), "hessian_trace" (tr H), "loss" (of the mean parameters), or a
      function of the parameters. By default the regularizer where the noise is non-degenerate, else tr H.
    - `fraction`: of the change from `params` to where the quantity settles, in (0, 1).
    - `value`: a value to reach, in the place of a fraction.
    - `most_steps`: the number of training steps after which to give up.
    - `rtol`: as in `zeroloss.predict`, a number or a `zeroloss.Tolerance`; with 1e-2 it is up to several
      times as fast, and good to 1 % or so. Where averages over the noise are sampled, as under weight noise,
      1 % is the accuracy at any `rtol`.

    **Returns:** a `HowLong`. A quantity has settled when two conditions hold: while the number of steps
    doubled, it changed by less than 1 % of its total change; and at least as many steps were followed as the
    limit, at its initial speed, needs for |w| / 10. Where it has not settled within `most_steps` and
    `max_gradients`, the answer is about the change until then, and `settled` is False.

    **Raises:** `InputError` where the noise is trivial, or a `value` is not reached within `most_steps`,
    `BudgetError` within `max_gradients`; `UnsupportedError` for a stochastic limit; what `project`,
    `classify` and `predict` raise.

    Costs what `predict` does, without the ensemble, and a classification.
    """
    if not 0 < fraction < 1:
        raise InputError(f"fraction must lie strictly between 0 and 1, got {fraction}.")
    tolerance = as_tolerance(rtol)
    refuse_tracing((system, params, step_size), "how_long")
    optimizer = as_optimizer(step_size)
    with stage_indicator() as set_stage:
        set_stage("projecting the start onto the zero-loss set")
        point = project(system, params)
        set_stage("deciding on which time scale the noise acts")
        verdict = classify(system, point)
    if verdict.time_scale is None:
        raise InputError(f"this noise does nothing on the zero-loss set, however long it takes: {verdict}.")
    if verdict.stochastic:
        raise UnsupportedError(f"this noise has no mean path to follow: {verdict}. Use zeroloss.predict.")
    optimizer.check_stability(largest_eigenvalue(system, params))
    warn_of_drawn_labels(system, optimizer.size(0), largest_eigenvalue(system, params))
    mean_path, start = mean_path_of(system, params, optimizer)
    if of is None:
        of = "regularizer" if verdict.time_scale == FAST else "hessian_trace"
    name, measure = _quantity(mean_path, start, of)
    beginning = float(measure(start))
    fewest = _steps_of_the_limit(system, point, verdict, optimizer.largest(_WARM_UP))
    most = tolerance.max_gradients
    integrator = Integrator(mean_path, start, tolerance.rtol, most, jax.random.key(0))
    state = integrator.start()
    steps, values, ways = [0], [beginning], [(0.0, 0.0)]
    with progress_bar(f"{name}, until it settles", most, "gradients") as show:
        while steps[-1] < most_steps:
            try:
                state = integrator.advance(state, most_steps)
            except BudgetError as error:
                if value is not None or values[-1] == beginning:
                    goal = "changed" if value is None else f"reached {value:.6g}"
                    raise BudgetError(
                        f"{name} has not {goal} yet: it went from {beginning:.6g} to {values[-1]:.6g}. "
                        f"{error}"
                    ) from error
                break
            except IntegrationError as error:
                raise IntegrationError(
                    f"{name} has not settled after {steps[-1]:,} steps, where it is {values[-1]:.6g}, and "
                    f"the path cannot be followed further: {error}"
                ) from error
            show(min(state.spent, most))
            if state.path.step == steps[-1]:
                continue
            steps.append(state.path.step)
            values.append(float(measure(state.path.states.w[0])))
            ways.append((state.path.first, state.path.second))
            if value is not None and (values[-1] - value) * (beginning - value) <= 0:
                return _crossing(name, beginning, value, float("nan"), steps, values, ways, True)
            if value is None and steps[-1] >= fewest and _has_settled(steps, values, beginning):
                target = beginning + fraction * (values[-1] - beginning)
                return _crossing(name, beginning, target, values[-1], steps, values, ways, True)
    if value is not None:
        raise InputError(
            f"{name} has not reached {value:.6g} within {most_steps:,} steps: it went from {beginning:.6g} "
            f"to {values[-1]:.6g}."
        )
    target = beginning + fraction * (values[-1] - beginning)
    return _crossing(name, beginning, target, values[-1], steps, values, ways, False)


def _quantity(
    mean_path: MeanPath, start: Vector, of: str | Callable[[PyTree], Array]
) -> tuple[str, Callable[[Array], Scalar]]:
    expansion = expand_at(mean_path.expansion.system, mean_path.expansion.zero_set, start)
    known: dict[str, Any] = {
        "regularizer": expansion.regularizer,
        "hessian_trace": expansion.zero_set.trace,
        "loss": expansion.zero_set.loss,
    }
    if callable(of):
        named = getattr(of, "func", of)  # what eqx.Partial has
        return getattr(named, "__name__", "the quantity"), compiled(
            lambda w: jnp.asarray(of(expansion.zero_set.unravel(w)))
        )
    if of not in known:
        raise InputError(
            f"of must be one of {', '.join(known)}, or a function of the parameters, got {of!r}."
        )
    return of, compiled(known[of])


def _steps_of_the_limit(system: AbstractSystem, point: PyTree, verdict: Verdict, step_size: float) -> float:
    """How many steps the limit takes for a tenth of |w|, at the speed at `point`."""
    if step_size == 0 or verdict.time_scale is None:
        return _FEWEST
    zero_set, w = locate(system, point)
    speed = float(_speed(expand_at(system, zero_set, w), w, verdict.time_scale == FAST))
    if speed == 0:
        return _FEWEST
    t = _REACH * float(norm_or_one(flatten(point)[0])) / speed
    sigma = system.noise_law(point).sigma
    return max(_FEWEST, t * steps_per_unit(verdict.time_scale, step_size, sigma))


@compiled_once
def _speed(expansion: AbstractExpansion, w: Vector, fast: bool) -> Scalar:
    drift = first_drift(expansion, w, expansion.zero_set.spaces(w)) if fast else second_drift_of(expansion, w)
    return jnp.linalg.norm(drift)


def _has_settled(steps: list[int], values: list[float], beginning: float) -> bool:
    half = float(np.interp(steps[-1] / 2, steps, values))
    changed = abs(values[-1] - beginning)
    return changed > 0 and abs(values[-1] - half) <= _SETTLED * changed


def _crossing(
    name: str,
    beginning: float,
    value: float,
    end: float,
    steps: list[int],
    values: list[float],
    ways: list[tuple[float, float]],
    settled: bool,
) -> HowLong:
    """The last time that the value is crossed on the way, by linear interpolation."""
    beyond = (np.array(values) - value) * (beginning - value) <= 0
    after = len(values) - int(np.argmin(beyond[::-1])) if not beyond.all() else 0
    if after == 0:
        at, (first, second) = 0.0, ways[0]
    else:
        before = after - 1
        share = (value - values[before]) / (values[after] - values[before])
        at = steps[before] + share * (steps[after] - steps[before])
        first, second = np.array(ways[before]) + share * (np.array(ways[after]) - np.array(ways[before]))
    whole = first + second
    shares = (float(first / whole), float(second / whole)) if whole > 0 else (0.0, 0.0)
    return HowLong(float(at), name, beginning, float(value), end, *shares, float(steps[-1]), settled)
