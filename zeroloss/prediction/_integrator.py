"""Following the mean of training: how many training steps at a time, and when to stop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from zeroloss._pytrees import Vector
from zeroloss.errors import BudgetError, InputError, IntegrationError, StabilityError
from zeroloss.prediction._averages import ExactAverage
from zeroloss.prediction._ensemble import pushes_of
from zeroloss.prediction._mean_path import MeanPath, Outcome, State
from zeroloss.zero_sets import length, looks_smooth

MOST_GRADIENTS = 1e6
"""The default bound on the cost of following a path, in gradients of the loss: one for a step of training."""

_LARGEST_RTOL = 1e-2
_MANY = 500  # steps of the integrator, after which it is asked whether kinks hold it up
_AT_KINKS = 1 / 200  # of the training steps made so far: the shortest step of the integrator then
_LARGEST_GROWTH, _LARGEST_SHRINK, _SAFETY = 5.0, 0.2, 0.9
_VARIATION = 0.25  # of a schedule's step size within one step of the integrator
_SAMPLING = 4e-3  # error of sampled averages that is aimed at, relative to the distance travelled
_STEPS_EXPECTED = 100
_FEWEST_DRAWS = 64
_LARGEST_SHARE = 0.01  # of what may still be spent, for the draws of one step
_GRADIENTS_A_DRAW = 4.0  # three, and an eighth of the draws twice more
_GRADIENTS_A_STEP = 60.0  # 2 geometries, 2 averages and 2 T[C]: docs/speed.md
_UNSETTLED = 0.1
_NEAR = 0.1  # |w|: on a shorter way errors need not be smaller still


class PathState(NamedTuple):
    """A path and its ensemble at a training step: their states, the step size, and sums up to this step.

    - `states`: with a leading axis: the mean path, then the runs of an ensemble around it.
    - `variance`: of the displacement, from sampled averages.
    - `first`, `second`: lengths of the way along the set made by the averaged loss, and by the fluctuations.
    """

    step: int
    step_size: float
    states: State
    variance: float
    first: float
    second: float

    @property
    def mean(self) -> State:
        """The mean path."""
        return jax.tree.map(lambda leaf: leaf[0], self.states)

    @property
    def runs(self) -> State:
        """The ensemble: runs kicked one way, then those kicked the opposite way."""
        return jax.tree.map(lambda leaf: leaf[1:], self.states)


def expected_gradients(mean_path: MeanPath) -> float:
    """The usual cost of following a path, in gradients of the loss: 100 steps with few draws."""
    return _STEPS_EXPECTED * _cost(mean_path, _FEWEST_DRAWS)


def _cost(mean_path: MeanPath, draws: int) -> float:
    """The cost of a step of the integrator for each path, in gradients of the loss, roughly."""
    sampled = 0.0 if isinstance(mean_path.average, ExactAverage) else _GRADIENTS_A_DRAW * draws
    return _GRADIENTS_A_STEP + sampled


def check_rtol(rtol: float) -> None:
    """Raise `InputError` unless a path can be followed to this relative tolerance."""
    if not 0 < rtol <= _LARGEST_RTOL:
        raise InputError(f"rtol must lie in (0, {_LARGEST_RTOL:g}], got {rtol}.")


def check_budget(max_gradients: float) -> None:
    """Raise `InputError` unless this is a number of gradients that may be spent."""
    if not max_gradients > 0:
        raise InputError(f"max_gradients must be positive, got {max_gradients}.")


class Integrator:
    """Follows a `MeanPath` from a start; `to` may be called with ever later training steps.

    With `pairs`, an ensemble goes along: each run is kicked along the set as training is, and one of each
    pair opposite to the other, so that the mean of all differs from the mean path only by what the spread
    makes of it.
    """

    def __init__(
        self,
        mean_path: MeanPath,
        start: Vector,
        rtol: float,
        key: Key[Array, ""],
        pairs: int = 0,
        most_gradients: float = MOST_GRADIENTS,
    ):
        self.mean_path, self.rtol, self.pairs = mean_path, rtol, pairs
        self._key, self._start = key, start
        self._steps, self._draws = 1, _FEWEST_DRAWS
        self._taken, self._spent, self._most = 0, 0.0, most_gradients
        self._attempts, self._has_kinks = 0, False
        states = _start(mean_path, start, 1 + 2 * pairs)
        self.now = PathState(0, mean_path.optimizer.size(0), states, 0.0, 0.0, 0.0)

    @property
    def snapshot(self) -> PyTree:
        """Everything on which the rest of the path depends."""
        return self.now, self._steps, self._draws, self._taken, self._spent, self._attempts, self._has_kinks

    def restore(self, snapshot: PyTree) -> None:
        """Restore the state saved by `snapshot`."""
        (
            self.now, self._steps, self._draws, self._taken, self._spent, self._attempts, self._has_kinks
        ) = snapshot  # fmt: skip

    @property
    def spent(self) -> float:
        """The cost of each path so far, in gradients of the loss, roughly."""
        return self._spent

    def to(self, target: int, report: Callable[[float], Any] = lambda _: None) -> PathState:
        """Advance to training step `target`. Raises `StabilityError` or `IntegrationError`."""
        while self.now.step < target:
            self.advance(target)
            report(float(self.now.step))
        return self.now

    def advance(self, target: int) -> PathState:
        """Take one step of the integrator, not beyond training step `target`; it may not get anywhere."""
        if self._spent >= self._most:
            raise BudgetError(
                f"the mean of training was followed to step {self.now.step:,} of {target:,}; then "
                f"max_gradients = {self._most:.3g} was used up. The last step of the integrator stood for "
                f"{self._steps:,} training steps and cost {_cost(self.mean_path, self._draws):,.0f} "
                "gradients. Raise max_gradients or rtol, or run the training: zeroloss.descend costs one "
                "gradient a step and replica.",
                None,
            )
        self._spent += _cost(self.mean_path, self._draws)
        self._attempts += 1
        if self._attempts % _MANY == 0 and not self._has_kinks:
            self._has_kinks = not looks_smooth(self.mean_path.expansion.zero_set, self.now.mean.w)
        steps, size = self._within_schedule(min(self._steps, target - self.now.step))
        key = jax.random.fold_in(self._key, self._taken)
        states, report = _step(self.mean_path, self.now.states, self._start, size, steps, key, self._draws)
        error = max(report.error / max(report.way, _NEAR), report.loss_error)
        finite = bool(report.finite) and np.isfinite(error)
        unstable = self._instability(report, size) if finite else None
        if unstable is not None and steps == 1:
            raise StabilityError(unstable)
        if not finite and steps == 1:
            raise IntegrationError(
                f"the prediction leaves the finite numbers at training step {self.now.step:,}: training "
                "diverges, or the noise is too large for its mean to be followed.",
                None,
            )
        finite = finite and unstable is None  # a trial of many steps may have led where training does not go
        # The force jumps at a kink, where an error estimate that expects derivatives shortens steps for ever.
        shortest = max(1, int(_AT_KINKS * self.now.step)) if self._has_kinks else 1
        accepted = finite and (error <= self.rtol or steps <= shortest)
        factor = _SAFETY * np.sqrt(self.rtol / max(error, 1e-30)) if finite else _LARGEST_SHRINK
        if accepted:
            self._taken += 1
            self.now = PathState(
                self.now.step + steps,
                size,
                states,
                self.now.variance + report.variance,
                self.now.first + report.first,
                self.now.second + report.second,
            )
            self._draws = int(max(_FEWEST_DRAWS, min(self._draws_needed(report), self._draws_affordable())))
        if not accepted or steps == self._steps or factor < 1:
            wanted = int(np.ceil(steps * np.clip(factor, _LARGEST_SHRINK, _LARGEST_GROWTH)))
            self._steps = max(shortest if finite else 1, wanted)
            if not accepted:
                self._steps = min(self._steps, max(1, steps - 1))
        return self.now

    def _draws_needed(self, report: "_Report") -> float:
        """So many that the sampling errors of all steps add up to a given share of the way made by them."""
        count = max(_STEPS_EXPECTED, self._taken)  # of steps like this one, at least
        moved = max(report.moved, report.way / count)
        return report.draw_variance / max(count * (_SAMPLING * moved) ** 2, 1e-300)

    def _draws_affordable(self) -> float:
        """So few that what is left to spend lasts; fewer draws are less exact, and say so in the variance."""
        return _LARGEST_SHARE * (self._most - self._spent) / _GRADIENTS_A_DRAW

    def _within_schedule(self, steps: int) -> tuple[int, float]:
        """At most `steps` steps of nearly equal step size, and their mean step size."""
        optimizer = self.mean_path.optimizer
        if not callable(optimizer.step_size):
            return steps, float(optimizer.step_size)
        while True:
            at = self.now.step + np.unique(np.linspace(0, steps - 1, 5).round().astype(int))
            sizes = optimizer.sizes(at)
            if steps == 1 or sizes.max() - sizes.min() <= _VARIATION * sizes.mean():
                weights = np.array([1, 4, 2, 4, 1]) / 12 if len(at) == 5 else np.full(len(at), 1 / len(at))
                return steps, float(weights @ sizes)
            steps = max(1, steps // 2)

    def _instability(self, report: "_Report", size: float) -> str | None:
        """Why training is not stable at the end of a step; None where it is."""
        step, sharpness = self.now.step, report.sharpness
        if sharpness >= 1:
            limit = float(self.mean_path.optimizer.stability_limit)
            return (
                f"at training step {step:,} step_size {size:.6g} is beyond the stability limit: step_size "
                f"times the largest eigenvalue of the Hessian is {sharpness * limit:.4g}, and must be below "
                f"{limit:.4g}. Training does not settle there. Take a smaller step size."
            )
        if report.unsettled > _UNSETTLED:
            return (
                f"at training step {step:,} and step_size {size:.6g} minibatches make the fluctuations of "
                "training grow from step to step: the random Hessian of the batches is unstable in mean "
                "square. Take a smaller step size or larger batches."
            )
        return None


@eqx.filter_jit
def _start(mean_path: MeanPath, w: Vector, count: int) -> State:
    return jax.tree.map(lambda leaf: jnp.tile(leaf, (count,) + (1,) * leaf.ndim), mean_path.start(w))


class _Report(NamedTuple):
    """What a step tells, in numbers: an `Outcome` of the mean path, in part the worst of all runs.

    - `finite`: whether all runs are.
    - `way`: the distance of the mean path from the start, relative to |w|.
    - `moved`: the length of this step along the set, relative to |w|.
    """

    finite: float
    way: float
    error: float
    loss_error: float
    variance: float
    first: float
    second: float
    sharpness: float
    unsettled: float
    draw_variance: float
    moved: float


def _step(
    mean_path: MeanPath,
    states: State,
    start: Vector,
    size: float,
    steps: int,
    key: Key[Array, ""],
    draws: int,
) -> tuple[State, _Report]:
    numbers = jnp.asarray(size), jnp.asarray(steps), jnp.asarray(draws)
    states, told = _step_compiled(mean_path, states, start, key, *numbers)
    return states, _Report(**{name: float(number) for name, number in jax.device_get(told).items()})


@eqx.filter_jit
def _step_compiled(
    mean_path: MeanPath,
    states: State,
    start: Vector,
    key: Key[Array, ""],
    size: Array,
    steps: Array,
    draws: Array,
) -> tuple[State, dict[str, Array]]:
    pairs = (states.w.shape[0] - 1) // 2
    center = jax.tree.map(lambda leaf: leaf[0], states)
    excess = mean_path.excess_at(center, key)
    if pairs == 0:
        stepped = mean_path.step(center, size, steps, key, draws, excess=excess)
        stepped = jax.tree.map(lambda leaf: leaf[None], stepped)
    else:
        pushes = pushes_of(mean_path, states, size, steps, jax.random.fold_in(key, 1), excess)
        pushes = jnp.concatenate([jnp.zeros_like(states.w[:1]), pushes])

        def step(each: tuple[State, Vector]) -> tuple[State, Outcome]:
            # Unless the limit is stochastic, runs stay so near the mean path that its excess does for all.
            near = mean_path.excess_at(each[0], key) if mean_path.stochastic else excess
            return mean_path.step(each[0], size, steps, key, draws, each[1], near)

        # One after the other is no slower on a CPU, and much faster to compile.
        stepped = jax.lax.platform_dependent(
            (states, pushes), cpu=lambda all: jax.lax.map(step, all), default=jax.vmap(step)
        )
    states, outcomes = stepped
    mean = jax.tree.map(lambda leaf: leaf[0], outcomes)
    return states, dict(
        finite=jnp.all(jnp.isfinite(states.w)),
        way=jnp.linalg.norm(states.w[0] - start) / length(states.w[0]),
        error=jnp.max(outcomes.error) if mean_path.stochastic else mean.error,
        loss_error=mean.loss_error,
        variance=mean.variance,
        first=jnp.linalg.norm(mean.first),
        second=jnp.linalg.norm(mean.second),
        sharpness=jnp.max(outcomes.sharpness),
        unsettled=jnp.max(outcomes.unsettled),
        draw_variance=mean.draw_variance / length(states.w[0]) ** 2,
        moved=jnp.linalg.norm(mean.first + mean.second) / length(states.w[0]),
    )
