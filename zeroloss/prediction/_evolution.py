"""The mean path of training and the ensembles around it, followed through the times saved."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from zeroloss._checkpoint import SavedArrays
from zeroloss._compilation import compiled
from zeroloss._pytrees import Vector, flatten
from zeroloss.dynamics import AbstractEvolution
from zeroloss.prediction._averages import ExactAverage
from zeroloss.prediction._ensemble import fluctuations
from zeroloss.prediction._integrator import Integrator, IntegratorState, PathState
from zeroloss.prediction._mean_path import MeanPath, State
from zeroloss.prediction._snapshots import MOST_PAIRS, EnsembleSample, Snapshot, item_of
from zeroloss.prediction._tolerance import Tolerance
from zeroloss.prediction._truncation import truncation
from zeroloss.systems import Scalar

PAIRS = 4
"""The pairs of runs that are added to an ensemble at a time."""

ENSEMBLE_COARSENESS = 4.0
"""The tolerance of an ensemble, relative to that of the mean path."""

_ORDER = 0.75  # of the integration's error in its tolerance: 1 in theory, 0.7 to 0.9 where it was measured
_LOSS_DRAWS, _RUN_LOSS_DRAWS = 512, 64
_FLUCTUATIONS = 16  # draws of single runs, at least, that observables are averaged over
_CHECKS = 8  # times at which the terms that the recursion leaves out are computed


class PredictionInputs(NamedTuple):
    """What all parts of a prediction share.

    - `times`: training steps.
    - `measure`: measures a batch of parameters; None where the result is a set of single runs, whose losses
      and observables nobody averages.
    - `facts`: for checkpoints.
    """

    mean_path: MeanPath
    start: Vector
    times: np.ndarray
    tolerance: Tolerance
    key: Key[Array, ""]
    measure: Callable[[np.ndarray], dict[str, np.ndarray]] | None
    facts: Callable[[], dict[str, Any]]

    def integrator(self, mean_path: MeanPath, coarser: float, key: Key[Array, ""], pairs: int) -> Integrator:
        """An integrator of a mean path from the start, with a `coarser` tolerance."""
        rtol, max_gradients = coarser * self.tolerance.rtol, self.tolerance.max_gradients
        return Integrator(mean_path, self.start, rtol, max_gradients, key, pairs)


class MeanEvolution(AbstractEvolution[tuple[IntegratorState, ...]]):
    """A mean path and an ensemble of `pairs` of runs around it; saves a `Snapshot` at each time.

    Where averages have to be sampled the ensemble may take them to second order in the noise (`for_runs`). It
    is `coarser` times less exact than the mean path. Where the limit is stochastic, the ensemble is all there
    is.
    """

    name = "prediction"

    def __init__(self, setup: PredictionInputs, pairs: int, coarser: float):
        mean_path, key = setup.mean_path, setup.key
        self._setup, self._for_runs, self._coarser = setup, for_runs(mean_path), coarser
        self._checked = set(np.linspace(0, len(setup.times) - 1, _CHECKS).round().astype(int))
        # The indices of three integrators that may be the same: the fine mean path, the ensemble, and the
        # mean path whose difference to that of the ensemble shows the error of the integration.
        self._ensemble_index = self._error_index = 0
        self._integrators = [setup.integrator(mean_path, 1.0, key, pairs if mean_path.stochastic else 0)]
        if not mean_path.stochastic:
            self._integrators.append(setup.integrator(self._for_runs, coarser, key, pairs))
            self._ensemble_index = 1
            if self._for_runs is not mean_path:
                self._integrators.append(setup.integrator(self._for_runs, 1.0, key, 0))
                self._error_index = 2

    def start(self) -> tuple[IntegratorState, ...]:
        return tuple(each.start() for each in self._integrators)

    def position(self, state: tuple[IntegratorState, ...]) -> float:
        return float(min(each.path.step for each in state))

    def advance(
        self, state: tuple[IntegratorState, ...], target: float, chunk: int
    ) -> tuple[IntegratorState, ...]:
        late = next(index for index, each in enumerate(state) if each.path.step < target)
        advanced = self._integrators[late].advance(state[late], int(target))
        return (*state[:late], advanced, *state[late + 1 :])

    def item(self, state: tuple[IntegratorState, ...], time: float) -> SavedArrays:
        fine, around, compared = (state[index].path for index in (0, self._ensemble_index, self._error_index))
        mean = fine.mean
        compared_mean = mean if compared is fine else compared.mean
        gap = float(jnp.linalg.norm(compared_mean.w - around.states.w[0]))
        left_out, excess = np.full_like(self._setup.start, np.nan), np.nan
        index = int(np.searchsorted(self._setup.times, time))
        if index in self._checked:
            key = jax.random.fold_in(self._setup.key, index)
            left_out, excess = truncation(self._setup.mean_path, mean, jnp.asarray(fine.step_size), key)
        ensemble, share = sample_of(self._setup, around), 1 / (self._coarser**_ORDER - 1)
        losses, measured, integration_of = {}, {}, {}
        if self._setup.measure is not None:
            losses = jax.tree.map(np.asarray, _losses(self._setup.mean_path, mean, self._setup.key))
            both = self._setup.measure(np.stack([mean.w, compared_mean.w]))
            measured = {name: values[0] for name, values in both.items()}
            finely = {name: values[1] for name, values in both.items()}
            finely |= jax.tree.map(np.asarray, _losses(self._for_runs, compared_mean, self._setup.key))
            coarsely = ensemble.mean_measured | ensemble.mean_losses
            integration_of = {name: share * (finely[name] - coarsely[name]) for name in finely}
        return item_of(
            Snapshot(
                step=np.asarray(fine.step),
                mean=np.asarray(mean.w),
                losses=losses,
                measured=measured,
                variance=np.asarray(fine.variance, float),
                left_out=np.asarray(left_out, float),
                excess=np.asarray(excess, float),
                ensemble=ensemble,
                integration=np.asarray(gap * share, float),
                integration_of=integration_of,
            )
        )

    def facts(self) -> dict[str, Any]:
        return self._setup.facts()


class EnsembleEvolution(AbstractEvolution[IntegratorState]):
    """More runs around a mean path; saves an `EnsembleSample` at each time. `runs_before` there were."""

    def __init__(self, setup: PredictionInputs, key: Key[Array, ""], runs_before: int):
        self.name = (
            f"spread of the runs, part {runs_before // (2 * PAIRS) + 1} of at most {MOST_PAIRS // PAIRS}"
        )
        self._setup, self._runs_before = setup, runs_before
        self._integrator = setup.integrator(for_runs(setup.mean_path), ENSEMBLE_COARSENESS, key, PAIRS)

    def start(self) -> IntegratorState:
        return self._integrator.start()

    def position(self, state: IntegratorState) -> float:
        return float(state.path.step)

    def advance(self, state: IntegratorState, target: float, chunk: int) -> IntegratorState:
        return self._integrator.advance(state, int(target))

    def item(self, state: IntegratorState, time: float) -> SavedArrays:
        return item_of(sample_of(self._setup, state.path, self._runs_before))

    def facts(self) -> dict[str, Any]:
        return self._setup.facts()


def sample_of(setup: PredictionInputs, at: PathState, runs_before: int = 0) -> EnsembleSample:
    """The ensemble at a time saved, with draws of fluctuations around its runs."""
    key = jax.random.fold_in(setup.key, at.step % 2**32)
    key = jax.random.fold_in(key, runs_before) if runs_before else key
    runs = at.states.w.shape[0] - 1
    draws = 1 if setup.measure is None else max(1, _FLUCTUATIONS // runs)
    keys = jnp.stack([jax.random.fold_in(key, draw) for draw in range(draws)])
    paths, normal, drawn = jax.device_get(_scattered(setup.mean_path, at.states, keys))
    losses, mean_measured, runs_measured, drawn_measured = {}, {}, {}, {}
    if setup.measure is not None:
        losses = jax.device_get(_losses_of_all(for_runs(setup.mean_path), at.states, setup.key))
        measured = setup.measure(np.concatenate([paths, drawn.reshape(runs * draws, -1)]))
        mean_measured = {name: values[0] for name, values in measured.items()}
        runs_measured = {name: values[1 : 1 + runs] for name, values in measured.items()}
        drawn_measured = {name: values[1 + runs :].reshape(runs, draws) for name, values in measured.items()}
    return EnsembleSample(
        mean=paths[0],
        mean_losses={name: values[0] for name, values in losses.items()},
        mean_measured=mean_measured,
        runs=paths[1:],
        drawn=drawn[:, 0],
        losses={name: values[1:] for name, values in losses.items()},
        normal=normal,
        runs_measured=runs_measured,
        drawn_measured=drawn_measured,
    )


def for_runs(mean_path: MeanPath) -> MeanPath:
    """The mean path that the runs of an ensemble follow.

    Its averages are taken to second order in the noise, which is quiet, and only differences between runs
    count. The second order of cross-entropy in strong noise leads elsewhere, or diverges: where the curvature
    of the loss changes with the outputs, all runs take the averages of the mean path, with the same draws.
    """
    if isinstance(mean_path.average, ExactAverage) or not mean_path.expansion.has_constant_curvature:
        return mean_path
    exact = ExactAverage(mean_path.average.expansion, mean_path.average.sigma)
    return eqx.tree_at(lambda path: path.average, mean_path, exact)


@compiled
def _losses(mean_path: MeanPath, state: State, key: Key[Array, ""]) -> dict[str, Scalar]:
    return _losses_from(mean_path, state, key, _LOSS_DRAWS)


def _losses_from(mean_path: MeanPath, state: State, key: Key[Array, ""], draws: int) -> dict[str, Scalar]:
    averaged = mean_path.average.at(state.w, state.spectrum, key, jnp.asarray(draws))
    return mean_path.losses(state, averaged.loss)


@compiled
def _losses_of_all(mean_path: MeanPath, states: State, key: Key[Array, ""]) -> dict[str, Array]:
    return jax.lax.map(lambda state: _losses_from(mean_path, state, key, _RUN_LOSS_DRAWS), states)


@compiled
def _scattered(
    mean_path: MeanPath, states: State, keys: Key[Array, " draws"]
) -> tuple[Float[Array, "paths parameters"], Float[Array, " runs"], Float[Array, "runs draws parameters"]]:
    """The parameters of all paths, the trace of each run's covariance, and draws around each run."""
    system, unravel = mean_path.expansion.system, mean_path.expansion.zero_set.unravel
    pairs = states.w.shape[0] // 2
    runs = jax.tree.map(lambda leaf: leaf[1:], states)
    signs = jnp.repeat(jnp.array([1.0, -1.0]), pairs)

    def one(state: State, key: Key[Array, ""], sign: Scalar) -> Vector:
        moved = state.spectrum.embed(fluctuations(state, key, 1)[0])
        perturbation = system.perturbation(unravel(state.w), key)  # part of what training reports
        if perturbation is not None:
            moved = moved + flatten(perturbation)[0]
        return state.w + sign * moved

    def draw(key: Key[Array, ""]) -> Float[Array, "runs parameters"]:
        own = jax.random.split(key, pairs)
        return jax.vmap(one)(runs, jnp.concatenate([own, own]), signs)

    normal = jnp.trace(runs.covariance, axis1=1, axis2=2)
    return states.w, normal, jnp.swapaxes(jax.lax.map(draw, keys), 0, 1)
