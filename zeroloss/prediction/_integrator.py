"""The integrator of the mean of training: how many training steps at a time, and when to stop."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from zeroloss._compilation import compiled, compiled_once
from zeroloss._pytrees import Vector
from zeroloss._tolerances import TINY
from zeroloss.errors import BudgetError, IntegrationError, StabilityError
from zeroloss.prediction._averages import ExactAverage
from zeroloss.prediction._ensemble import displacements_of_runs
from zeroloss.prediction._mean_path import MeanPath, Shared, State, StepReport
from zeroloss.zero_sets import looks_smooth, norm_or_one

_MANY = 500  # steps of the integrator, after which it is asked whether kinks hold it up
_AT_KINKS = 1 / 200  # of the training steps made so far: the shortest step of the integrator then
_LARGEST_GROWTH, _LARGEST_SHRINK, _SAFETY = 5.0, 0.2, 0.9
_PATIENCE = 1.3  # growth, with every single training step, of the number that was found to be too large
_VARIATION = 0.25  # of a schedule's step size within one step of the integrator
_SMALL = 0.1  # of the largest step size of a schedule: below that, it may vary more
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

    - `states`: with a leading axis: the mean path, then the runs of an ensemble around it, those displaced
      one way before those displaced the opposite way.
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
        return _first(self.states)


def expected_gradients(mean_path: MeanPath) -> float:
    """The usual cost of following a path, in gradients of the loss: 100 steps with few draws."""
    return _STEPS_EXPECTED * _cost(mean_path, _FEWEST_DRAWS)


def _cost(mean_path: MeanPath, draws: int) -> float:
    """The cost of a step of the integrator for each path, in gradients of the loss, roughly."""
    sampled = 0.0 if isinstance(mean_path.average, ExactAverage) else _GRADIENTS_A_DRAW * draws
    return _GRADIENTS_A_STEP + sampled


class IntegratorState(NamedTuple):
    """The state of an `Integrator`.

    - `path`: the path and its ensemble.
    - `steps`, `draws`: the number of training steps in the next step of the integrator, and its draws.
    - `taken`, `attempts`: steps of the integrator that were accepted, and all that were tried.
    - `spent`: the cost of each path so far, in gradients of the loss, roughly.
    - `has_kinks`: whether the loss was found to have kinks.
    - `ceiling`: the number of training steps that the next step of the integrator should not exceed.
    """

    path: PathState
    steps: int
    draws: int
    taken: int
    attempts: int
    spent: float
    has_kinks: bool
    ceiling: float


class Integrator:
    """Follows a `MeanPath` from a start, many training steps at a time.

    With `pairs`, an ensemble goes along: each run is pushed along the set as training is, and one of each
    pair opposite to the other, so that the mean of all differs from the mean path only by the effect of the
    spread.
    """

    def __init__(
        self,
        mean_path: MeanPath,
        start: Vector,
        rtol: float,
        max_gradients: float,
        key: Key[Array, ""],
        pairs: int = 0,
    ):
        self.mean_path = mean_path
        self._rtol, self._max_gradients = rtol, max_gradients
        self._start, self._key, self._pairs = start, key, pairs

    def start(self) -> IntegratorState:
        """The state at training step 0."""
        states = _start(self.mean_path, self._start, 1 + 2 * self._pairs)
        path = PathState(0, self.mean_path.optimizer.size(0), states, 0.0, 0.0, 0.0)
        return IntegratorState(path, 1, _FEWEST_DRAWS, 0, 0, 0.0, False, np.inf)

    def advance(self, state: IntegratorState, target: int) -> IntegratorState:
        """Try one step of the integrator, not beyond training step `target`.

        A step that is not accurate enough leaves the path as it is, and the next one is shorter. Raises
        `BudgetError`, `StabilityError` or `IntegrationError`.
        """
        path, rtol, most = state.path, self._rtol, self._max_gradients
        cost = _cost(self.mean_path, state.draws)
        if state.spent >= most:
            raise BudgetError(
                f"the mean of training was followed to step {path.step:,} of {target:,}; then "
                f"max_gradients = {most:.3g} was used up. The last step of the integrator covered "
                f"{state.steps:,} training steps and cost {cost:,.0f} "
                "gradients. Raise max_gradients or rtol, or run the training: zeroloss.descend costs one "
                "gradient a step and replica."
            )
        spent, attempts, has_kinks = state.spent + cost, state.attempts + 1, state.has_kinks
        if attempts % _MANY == 0 and not has_kinks:
            has_kinks = not looks_smooth(self.mean_path.expansion.zero_set, path.mean.w)
        steps, size = self._within_schedule(path.step, min(state.steps, target - path.step), target)
        key = jax.random.fold_in(self._key, state.taken)
        states, report = _step(self.mean_path, path.states, self._start, size, steps, key, state.draws)
        error = max(report.error / max(report.way, _NEAR), report.loss_error)
        finite = bool(report.finite) and np.isfinite(error)
        unstable = self._instability(path.step, report, size) if finite else None
        if unstable is not None and steps == 1:
            raise StabilityError(unstable)
        if not finite and steps == 1:
            raise IntegrationError(
                f"the prediction leaves the finite numbers at training step {path.step:,}: training "
                "diverges, or the noise is too large for its mean to be followed."
            )
        finite = finite and unstable is None  # a trial of many steps may have led where training does not go
        # The force jumps at a kink, where an error estimate that expects derivatives shortens steps for ever.
        shortest = max(1, int(_AT_KINKS * path.step)) if has_kinks else 1
        accepted = finite and (error <= rtol or steps <= shortest)
        factor = _SAFETY * np.sqrt(rtol / max(error, 1e-30)) if finite else _LARGEST_SHRINK
        taken, draws, following = state.taken, state.draws, state.steps
        if accepted:
            taken += 1
            path = PathState(
                path.step + steps,
                size,
                states,
                path.variance + report.variance,
                path.first + report.first,
                path.second + report.second,
            )
            needed, affordable = (
                _draws_needed(report, taken),
                _LARGEST_SHARE * (most - spent) / _GRADIENTS_A_DRAW,
            )
            draws = int(max(_FEWEST_DRAWS, min(needed, affordable)))
        ceiling = np.inf
        if not isinstance(self.mean_path.average, ExactAverage):
            # Attempts are dear where averages are sampled. A single training step has no error that would say
            # how many are possible: the last rejected attempt does.
            if not accepted:
                ceiling = steps * factor
            elif steps == 1:
                ceiling = state.ceiling * _PATIENCE
        if not accepted or steps == state.steps or factor < 1:
            wanted = int(np.ceil(steps * np.clip(factor, _LARGEST_SHRINK, _LARGEST_GROWTH)))
            following = max(shortest if finite else 1, int(min(wanted, max(1.0, ceiling))))
            if not accepted:
                following = min(following, max(1, steps - 1))
        return IntegratorState(path, following, draws, taken, attempts, spent, has_kinks, float(ceiling))

    def _within_schedule(self, step: int, steps: int, target: int) -> tuple[int, float]:
        """At most `steps` steps of nearly equal step size from `step` on, and their mean step size.

        Step sizes much smaller than the largest before `target` need not be equal: they move little.
        """
        optimizer = self.mean_path.optimizer
        if not callable(optimizer.step_size):
            return steps, float(optimizer.step_size)
        while True:
            at = step + np.unique(np.linspace(0, steps - 1, 5).round().astype(int))
            sizes = optimizer.sizes(at)
            variation = (sizes.max() - sizes.min()) / _VARIATION
            if (
                steps == 1
                or variation <= sizes.mean()
                or variation <= _SMALL * optimizer.largest(target)  # asked last: it evaluates the schedule
            ):
                weights = np.array([1, 4, 2, 4, 1]) / 12 if len(at) == 5 else np.full(len(at), 1 / len(at))
                return steps, float(weights @ sizes)
            steps = max(1, steps // 2)

    def _instability(self, step: int, report: "_StepNumbers", size: float) -> str | None:
        """Why training is not stable at the end of a step from `step` on; None where it is."""
        sharpness = report.sharpness
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


def _draws_needed(report: "_StepNumbers", taken: int) -> float:
    """So many that the sampling errors of all steps add up to `_SAMPLING` of the distance travelled."""
    count = max(_STEPS_EXPECTED, taken)  # of steps like this one, at least
    moved = max(report.moved, report.way / count)
    return report.draw_variance / max(count * (_SAMPLING * moved) ** 2, TINY)


@compiled_once
def _start(mean_path: MeanPath, w: Vector, count: int) -> State:
    return jax.tree.map(lambda leaf: jnp.tile(leaf, (count,) + (1,) * leaf.ndim), mean_path.start(w))


@compiled_once  # one program: slicing each array by itself takes longer than a step
def _first(states: State) -> State:
    return jax.tree.map(lambda leaf: leaf[0], states)


class _StepNumbers(NamedTuple):
    """The numbers of a step: the `StepReport` of the mean path, and in part the worst over all runs.

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
) -> tuple[State, _StepNumbers]:
    alpha, count, drawn = jnp.asarray(size), jnp.asarray(steps), jnp.asarray(draws)
    shared = _shared(mean_path, states, key, drawn)
    displacements = jnp.zeros((1, *start.shape))
    if states.w.shape[0] > 1:
        to_runs = jax.random.fold_in(key, 1)
        of_runs = displacements_of_runs(mean_path, states, alpha, count, to_runs, shared.excess)
        displacements = jnp.concatenate([displacements, of_runs])
    states, report = _step_compiled(
        mean_path, states, start, key, (alpha, count, drawn), displacements, shared
    )
    return states, _StepNumbers(**{name: float(number) for name, number in jax.device_get(report).items()})


@compiled
def _shared(mean_path: MeanPath, states: State, key: Key[Array, ""], draws: Array) -> Shared:
    """What all runs take from the mean path."""
    return mean_path.shared_at(_first(states), key, draws)


@compiled
def _step_compiled(
    mean_path: MeanPath,
    states: State,
    start: Vector,
    key: Key[Array, ""],
    numbers: tuple[Array, Array, Array],
    displacements: Float[Array, "paths parameters"],
    shared: Shared,
) -> tuple[State, dict[str, Array]]:
    size, steps, draws = numbers

    def step(each: tuple[State, Vector]) -> tuple[State, StepReport]:
        # Unless the limit is stochastic, runs stay so near the mean path that its excess does for all.
        excess = mean_path.excess_at(each[0], key) if mean_path.stochastic else shared.excess
        own = dataclasses.replace(shared, excess=excess)
        return mean_path.step(each[0], size, steps, key, own, each[1])

    # On a CPU a loop over the runs is as fast as a batch of them, and compiles much faster.
    ends, outcomes = jax.lax.platform_dependent(
        (states, displacements), cpu=lambda all: jax.lax.map(step, all), default=jax.vmap(step)
    )
    mean = jax.tree.map(lambda leaf: leaf[0], outcomes)
    length = norm_or_one(ends.w[0])
    return ends, dict(
        finite=jnp.all(jnp.isfinite(ends.w)),
        way=jnp.linalg.norm(ends.w[0] - start) / length,
        error=jnp.max(outcomes.error) if mean_path.stochastic else mean.error,
        loss_error=mean.loss_error,
        variance=mean.variance,
        first=jnp.linalg.norm(mean.first),
        second=jnp.linalg.norm(mean.second),
        sharpness=jnp.max(outcomes.sharpness),
        unsettled=jnp.max(outcomes.unsettled),
        draw_variance=mean.of_average * draws / length**2,
        moved=jnp.linalg.norm(mean.first + mean.second) / length,
    )
