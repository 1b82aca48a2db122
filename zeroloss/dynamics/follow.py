"""Following the mean of training: how many training steps at a time, and when to stop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from zeroloss.dynamics.mean_path import MeanPath, Outcome, State
from zeroloss.dynamics.spread import pushes_of
from zeroloss.errors import InputError, IntegrationError, StabilityError
from zeroloss.manifold import length
from zeroloss.pytrees import Vector

_MOST_STEPS = 20_000  # of the integrator
_LARGEST_RTOL = 1e-2
_LARGEST_GROWTH, _LARGEST_SHRINK, _SAFETY = 5.0, 0.2, 0.9
_VARIATION = 0.25  # of a schedule's step size within one step of the integrator
_SAMPLING = 4e-3  # error of sampled averages that is aimed at, relative to the distance travelled
_STEPS_EXPECTED = 100
_FEWEST_DRAWS, _MOST_DRAWS = 64, 4096
_UNSETTLED = 0.1
_LOSS = 10.0  # times as large an error is allowed in the expected loss
_NEAR = 0.1  # |w|: on a shorter way errors need not be smaller still


class Look(NamedTuple):
    """What there is to see at a training step: the states, the step size, and what has added up until then.

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


def check_rtol(rtol: float) -> None:
    """Raise `InputError` unless a path can be followed to this relative tolerance."""
    if not 0 < rtol <= _LARGEST_RTOL:
        raise InputError(f"rtol must lie in (0, {_LARGEST_RTOL:g}], got {rtol}.")


class Follower:
    """Follows a `MeanPath` from a start; `to` may be called with ever later training steps.

    With `pairs`, an ensemble goes along: each run is kicked along the set as training is, and one of each
    pair opposite to the other, so that the mean of all differs from the mean path only by what the spread
    makes of it.
    """

    def __init__(self, mean_path: MeanPath, start: Vector, rtol: float, key: Key[Array, ""], pairs: int = 0):
        self.mean_path, self.rtol, self.pairs = mean_path, rtol, pairs
        self._key, self._start = key, start
        self._steps, self._draws = 1, _FEWEST_DRAWS
        self._attempts = self._taken = 0
        states = _start(mean_path, start, 1 + 2 * pairs)
        self.now = Look(0, float(mean_path.optimizer.sizes(np.zeros(1, int))[0]), states, 0.0, 0.0, 0.0)

    @property
    def snapshot(self) -> PyTree:
        """All that the rest of the way depends on."""
        return self.now, self._steps, self._draws, self._attempts, self._taken

    def restore(self, snapshot: PyTree) -> None:
        """Stand where the follower stood of which this was the `snapshot`."""
        self.now, self._steps, self._draws, self._attempts, self._taken = snapshot

    def to(self, target: int, report: Callable[[float], Any] = lambda _: None) -> Look:
        """Advance to training step `target`. Raises `StabilityError` or `IntegrationError`."""
        while self.now.step < target:
            self.advance(target)
            report(float(self.now.step))
        return self.now

    def advance(self, target: int) -> Look:
        """Take one step of the integrator, not beyond training step `target`; it may not get anywhere."""
        self._attempts += 1
        if self._attempts > _MOST_STEPS:
            raise IntegrationError(
                f"the mean of training could not be followed past step {self.now.step:,} of {target:,}: "
                f"{_MOST_STEPS} steps of the integrator were used up, the last of {self._steps:,} training "
                "steps. Perhaps the noise is so large that the averaged loss has no minimum near the path.",
                None,
            )
        steps, size = self._within_schedule(min(self._steps, target - self.now.step))
        key = jax.random.fold_in(self._key, self._taken)
        states, report = _step(self.mean_path, self.now.states, self._start, size, steps, key, self._draws)
        error = max(report.error / max(report.way, _NEAR), report.loss_error / _LOSS)
        finite = bool(report.finite) and np.isfinite(error)
        if finite:
            self._check(report, size)
        elif steps == 1:
            raise IntegrationError(
                f"the prediction leaves the finite numbers at training step {self.now.step:,}: training "
                "diverges, or the noise is too large for its mean to be followed.",
                None,
            )
        accepted = finite and (error <= self.rtol or steps == 1)
        factor = _SAFETY * np.sqrt(self.rtol / max(error, 1e-30)) if finite else _LARGEST_SHRINK
        if accepted:
            self._taken += 1
            self.now = Look(
                self.now.step + steps,
                size,
                states,
                self.now.variance + report.variance,
                self.now.first + report.first,
                self.now.second + report.second,
            )
            needed = report.noise_to_signal / (_STEPS_EXPECTED * _SAMPLING**2)
            self._draws = int(np.clip(needed, _FEWEST_DRAWS, _MOST_DRAWS))
        if not accepted or steps == self._steps or factor < 1:
            self._steps = max(1, int(np.ceil(steps * np.clip(factor, _LARGEST_SHRINK, _LARGEST_GROWTH))))
            if not accepted:
                self._steps = min(self._steps, max(1, steps - 1))
        return self.now

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

    def _check(self, report: "_Report", size: float) -> None:
        step, sharpness = self.now.step, report.sharpness
        if sharpness >= 1:
            limit = float(self.mean_path.optimizer.stability_limit)
            raise StabilityError(
                f"at training step {step:,} step_size {size:.6g} is beyond the stability limit: step_size "
                f"times the largest eigenvalue of the Hessian is {sharpness * limit:.4g}, and must be below "
                f"{limit:.4g}. Training does not settle there. Take a smaller step size."
            )
        if report.unsettled > _UNSETTLED:
            raise StabilityError(
                f"at training step {step:,} and step_size {size:.6g} minibatches make the fluctuations of "
                "training grow from step to step: the random Hessian of the batches is unstable in mean "
                "square. Take a smaller step size or larger batches."
            )


@eqx.filter_jit
def _start(mean_path: MeanPath, w: Vector, count: int) -> State:
    return jax.tree.map(lambda leaf: jnp.tile(leaf, (count,) + (1,) * leaf.ndim), mean_path.start(w))


class _Report(NamedTuple):
    """What a step tells, in numbers: an `Outcome` of the mean path, in part the worst of all runs.

    - `finite`: whether all runs are.
    - `way`: the distance of the mean path from the start, relative to |w|.
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
    noise_to_signal: float


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
        noise_to_signal=mean.noise_to_signal,
    )
