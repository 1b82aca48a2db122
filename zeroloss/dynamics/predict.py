"""What a real training run does, at its own step size and noise, without running it (docs/prediction.md)."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from zeroloss.dynamics.averages import ExactAverage, average
from zeroloss.dynamics.closure import neglected
from zeroloss.dynamics.expansion import expand
from zeroloss.dynamics.follow import Follower, Look
from zeroloss.dynamics.mean_path import MeanPath, State
from zeroloss.dynamics.optimizer import Optimizer, StepSize, optimizer
from zeroloss.dynamics.path import (
    Observables,
    Path,
    Recorder,
    Uncertainty,
    is_positive_integer,
    save_steps_of,
)
from zeroloss.dynamics.spread import fluctuations
from zeroloss.errors import InputError, IntegrationError
from zeroloss.manifold import GramManifold, largest_eigenvalue, locate, manifold_of, project
from zeroloss.progress import progress_bar
from zeroloss.pytrees import Vector, flatten, refuse_tracing, require_float64
from zeroloss.system import AbstractSystem, Scalar

_LARGEST_RTOL = 1e-2
_PROBED, _PROBE_COARSER = 2, 16.0  # pairs of runs, and their tolerance, that show whether spread matters
_NEGLIGIBLE = 5e-4  # effect of the spread on the mean, relative to the way made
_COARSER = 4.0  # tolerance of the ensemble where it does
_PAIRS = 4  # of runs that join it at a time
_MOST_PAIRS = 16
_SCATTER = 2e-3  # error of the ensemble's mean that is aimed at, relative to the way made
_STOCHASTIC = 1e-8  # share of the noise's variance along the set
_LOSS_DRAWS = 512
_LOOKS = 8  # at what is left out
_NEXT_ORDER = 0.5  # what the spread's effect on the mean leaves out, relative to itself


def predict(
    system: AbstractSystem,
    params: PyTree,
    step_size: StepSize,
    steps: int,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    saves: int = 50,
    save_steps: Sequence[int] | np.ndarray | None = None,
    observables: Observables | None = None,
    rtol: float = 1e-3,
    key: Key[Array, ""] | None = None,
    replicas: int | None = None,
    progress: bool = False,
) -> Path:
    """Predict training at its own step size and noise, both time scales together.

    The mean w and the covariance C of the iterates follow the recursion of training averaged over the noise,

        w <- w - alpha (grad L_bar(w) + 1/2 T[C]),    C <- (I - alpha H) C (I - alpha H) + alpha^2 Sigma,

    with L_bar(w) = E L_hat(w, eta) at the sigma of the system (theory.md, section 5; docs/prediction.md),
    many training steps at a time, from any start: the fast phase, down to the zero-loss set, is part of
    the prediction. Around that mean path a small ensemble is kicked along the set as training is, for
    what the spread of the runs makes of their mean.

    **Arguments:**

    - `system`, `params`: a system and any start.
    - `step_size`, `steps`, `momentum`, `nesterov`, `weight_decay`: those of the training, as in
      `zeroloss.descend`; `step_size` may be a schedule.
    - `saves`, `save_steps`, `observables`, `progress`: as in `zeroloss.descend`.
    - `rtol`: how far a step's end may move when it is corrected, relative to the way made, or to |w| / 10.
    - `key`: of the ensemble, and of averages over the noise where they have to be sampled, which is where the
      loss is not quadratic in it. By default a fixed one.
    - `replicas`: None for the mean of training; R for R draws of single runs, with a leading replica axis,
      made in antithetic pairs. Needed where the noise has a part along the zero-loss set (Langevin).

    **Returns:** a `Path` with `ts` counting training steps. Without replicas, `params` are the mean of
    training, and what is measured is its mean over training runs; `loss` is above zero by the
    fluctuations, and the noisy loss is among the observables, as "noisy_loss". `Path.uncertainty`
    estimates the error and the spread.

    **Raises:** `StabilityError` where a step size is beyond the stability limit (2 / lambda_max without
    momentum), at the start or along the way, or where minibatches make the fluctuations grow;
    `IntegrationError`, with the path so far; `InputError`, also for a stochastic limit without `replicas`.

    The cost does not depend on `steps`: 50 to 100 steps of the integrator, each of 2 geometries and 2
    averages over the noise. A quarter as many for each of 4 runs tell whether their spread moves their mean;
    if so, half as many for every run of an ensemble of 8, and of as many more, up to 32, as bring the
    error of their mean to 0.2 percent of the way; or of `replicas` runs. Sampled averages take 64 to
    4096 draws each, so that sampling errs by about half a percent. Memory: three m x m matrices, and J or
    what stands for it, for every run and every time saved.
    """
    times = save_steps_of(steps, saves, save_steps)
    if not 0 < rtol <= _LARGEST_RTOL:
        raise InputError(f"rtol must lie in (0, {_LARGEST_RTOL:g}], got {rtol}.")
    if replicas is not None and not is_positive_integer(replicas):
        raise InputError(f"replicas must be at least 1 or None, got {replicas}.")
    require_float64("predict")
    refuse_tracing((system, params, step_size), "predict")
    rule = optimizer(step_size, momentum, nesterov, weight_decay)
    system.check(params)
    rule.check_stability(largest_eigenvalue(system, params), steps)
    mean_path, start = mean_path_of(system, params, rule)
    if mean_path.stochastic and replicas is None:
        raise InputError(
            "this noise has a part along the zero-loss set, so that single runs do not stay near their mean: "
            "pass replicas=, and take means and quantiles over them."
        )
    key = jax.random.key(0) if key is None else key
    pairs, coarser = (_PROBED, _PROBE_COARSER) if replicas is None else ((replicas + 1) // 2, _COARSER)
    journey = _Journey(mean_path, start, rtol, key, pairs, coarser)
    sights: list[_Sight] = []

    def path() -> Path:
        recorder = Recorder(mean_path.expansion, observables, batched=replicas is not None)
        members = Recorder(mean_path.expansion, observables, batched=True)
        for sight in sights:
            if replicas is None:
                recorder.save(*_mean(mean_path, sight, members, key))
            else:
                recorder.save(_runs(mean_path, sight, key)[:replicas])
        return recorder.path(times, times, None)

    try:
        with progress_bar("prediction", float(times[-1]), progress) as show:
            for time in times:
                sights.append(journey.to(int(time)))
                show(float(time))
        if replicas is None and _spread_matters(start, sights):
            more, join = True, False
            while more:
                with progress_bar("spread of the runs", float(times[-1]), progress) as show:
                    sights = journey.with_ensemble(sights, join, show)
                more, join = _scatters(start, sights), True
    except IntegrationError as error:
        error.path = path() if sights else None
        raise
    uncertainty = _uncertainty(mean_path, start, sights, key)
    return eqx.tree_at(lambda path: path.uncertainty, path(), uncertainty, is_leaf=lambda x: x is None)


def mean_path_of(system: AbstractSystem, params: PyTree, rule: Optimizer) -> tuple[MeanPath, Vector]:
    """The mean of training a system, and its start as a flat vector.

    Beside the set a Hessian has full rank: how many of its eigenvalues are normal to the set is found on it.
    """
    w, unravel = flatten(params)
    manifold = manifold_of(system, w, unravel)
    if not isinstance(manifold, GramManifold):
        manifold = locate(system, project(system, params)).manifold
    expansion = expand(system, manifold)
    averaged = average(expansion, w, system.noise_law(params).sigma)
    along = float(_share_along_the_set(MeanPath(expansion, averaged, rule, False), w))
    return MeanPath(expansion, averaged, rule, along > _STOCHASTIC), w


class _Sight(eqx.Module):
    """What there is to see at a time saved.

    - `look`: at the mean path, followed finely.
    - `around`: at the ensemble and the mean path in its midst, followed coarsely.
    - `integration`: the error of the fine mean path, from that of a coarse one.
    """

    look: Look
    around: Look
    integration: float

    @property
    def shift(self) -> Vector:
        """From the coarse mean path to the fine one."""
        return self.look.mean.w - self.around.mean.w


class _Journey:
    """A mean path, and an ensemble around it.

    Where averages have to be sampled the ensemble takes them to second order in the noise, which is quiet:
    only differences between its runs count. Where the limit is stochastic, the ensemble is all there is.
    """

    def __init__(
        self,
        mean_path: MeanPath,
        start: Vector,
        rtol: float,
        key: Key[Array, ""],
        pairs: int,
        coarser: float,
    ):
        self._quiet, self._start, self._rtol, self._key = _quiet(mean_path), start, rtol, key
        sampled, stochastic = not isinstance(mean_path.average, ExactAverage), mean_path.stochastic
        own = Follower(mean_path, start, rtol, key, pairs if stochastic else 0)
        self._fine, self._coarser = own, coarser
        self._around = own if stochastic else Follower(self._quiet, start, coarser * rtol, key, pairs)
        self._compared = Follower(self._quiet, start, rtol, key) if sampled and not stochastic else own

    def to(self, step: int) -> _Sight:
        look, around, compared = (each.to(step) for each in (self._fine, self._around, self._compared))
        gap = float(jnp.linalg.norm(compared.mean.w - around.mean.w))
        return _Sight(look, around, gap / (self._coarser - 1))  # of second order

    def with_ensemble(self, sights: list[_Sight], join: bool, show: Callable[[float], Any]) -> list[_Sight]:
        """The same sights with a better ensemble, or with more runs that `join` the one there is."""
        self._key = jax.random.fold_in(self._key, 1)
        more = Follower(self._quiet, self._start, _COARSER * self._rtol, self._key, _PAIRS)

        def enlarged(sight: _Sight) -> _Sight:
            around = more.to(sight.look.step)
            if join:
                states = jax.tree.map(_joined, sight.around.states, around.states)
                around = around._replace(states=states)
            show(float(around.step))
            return _Sight(sight.look, around, sight.integration)

        return [enlarged(sight) for sight in sights]


def _joined(old: Array, new: Array) -> Array:
    """Two ensembles as one: the mean path, the runs kicked one way, and those kicked the opposite way."""
    first, second = len(old) // 2, len(new) // 2
    return jnp.concatenate([old[: 1 + first], new[1 : 1 + second], old[1 + first :], new[1 + second :]])


@eqx.filter_jit
def _share_along_the_set(mean_path: MeanPath, w: Vector) -> Scalar:
    expansion = mean_path.expansion
    total = expansion.total_variance(w)
    along = expansion.tangential_variance(w, expansion.manifold.spaces(w))
    return along / jnp.where(total > 0, total, 1.0)


def _quiet(mean_path: MeanPath) -> MeanPath:
    """With averages to second order in the noise, which need no sampling."""
    exact = ExactAverage(mean_path.average.expansion, mean_path.average.sigma)
    return eqx.tree_at(lambda path: path.average, mean_path, exact)


def _spread_matters(start: Vector, sights: list[_Sight]) -> bool:
    """Whether the spread of the runs moves their mean."""
    if sights[0].look is sights[0].around:
        return False

    def effect(sight: _Sight) -> float:
        shift, variance = _shift(sight)
        return float(np.sqrt(shift @ shift + variance))

    return max(map(effect, sights)) > _NEGLIGIBLE * _longest_way(start, sights)


def _scatters(start: Vector, sights: list[_Sight]) -> bool:
    """Whether more runs are called for, since the mean of those there are is not sharp."""
    if len(sights[-1].around.runs.w) >= 2 * _MOST_PAIRS:
        return False
    return max(_shift(sight)[1] for sight in sights) > (_SCATTER * _longest_way(start, sights)) ** 2


def _longest_way(start: Vector, sights: list[_Sight]) -> float:
    return max(float(jnp.linalg.norm(sight.look.mean.w - start)) for sight in sights)


def _mean(
    mean_path: MeanPath, sight: _Sight, members: Recorder, key: Key[Array, ""]
) -> tuple[Vector, dict[str, Any]]:
    """The mean of training and what is measured of it, corrected for the spread."""
    w = sight.look.mean.w + _correction(sight)[0]
    central = members.measure(jnp.stack([sight.look.mean.w, sight.around.mean.w]))
    scattered = members.measure(_runs(mean_path, sight, key) - sight.shift)
    known = {name: central[name][0] + scattered[name].mean() - central[name][1] for name in central}
    losses, inner, outer = _all_losses(mean_path, sight.look.mean, sight.around.states, key)
    spread = {name: outer[name].mean() - inner[name] for name in losses}
    return w, known | {name: losses[name] + spread[name] for name in losses}


@eqx.filter_jit
def _all_losses(
    mean_path: MeanPath, mean: State, around: State, key: Key[Array, ""]
) -> tuple[dict[str, Scalar], dict[str, Scalar], dict[str, Array]]:
    def losses(mean_path: MeanPath, state: State) -> dict[str, Scalar]:
        averaged = mean_path.average.at(state.w, state.geometry, key, jnp.asarray(_LOSS_DRAWS))
        return mean_path.losses(state, averaged.loss)

    quiet = _quiet(mean_path)  # only differences between the runs count
    ensemble = jax.lax.map(lambda state: losses(quiet, state), around)
    return (
        losses(mean_path, mean),
        {name: value[0] for name, value in ensemble.items()},
        {name: value[1:] for name, value in ensemble.items()},
    )


def _runs(mean_path: MeanPath, sight: _Sight, key: Key[Array, ""]) -> Float[Array, "runs parameters"]:
    """Draws of single runs: the ensemble, with fluctuations normal to the set."""
    return (
        _scattered(mean_path, sight.around.runs, jax.random.fold_in(key, sight.look.step % 2**32))
        + sight.shift
    )


@eqx.filter_jit
def _scattered(mean_path: MeanPath, runs: State, key: Key[Array, ""]) -> Float[Array, "runs parameters"]:
    system, unravel = mean_path.expansion.system, mean_path.expansion.manifold.unravel
    pairs = runs.w.shape[0] // 2
    keys = jax.random.split(key, pairs)
    signs = jnp.repeat(jnp.array([1.0, -1.0]), pairs)

    def one(state: State, key: Key[Array, ""], sign: Scalar) -> Vector:
        moved = state.geometry.embed(fluctuations(state, key, 1)[0])
        perturbation = system.perturbation(unravel(state.w), key)  # part of what training reports
        if perturbation is not None:
            moved = moved + flatten(perturbation)[0]
        return state.w + sign * moved

    return jax.vmap(one)(runs, jnp.concatenate([keys, keys]), signs)


def _correction(sight: _Sight) -> tuple[np.ndarray, float]:
    """What the spread adds to the mean, and the squared standard error of that.

    Shrunk by as much of its square as is due to its error (James and Stein 1961).
    """
    shift, variance = _shift(sight)
    squared = float(shift @ shift)
    return shift * (max(0.0, 1 - variance / squared) if squared > 0 else 0.0), variance


def _shift(sight: _Sight) -> tuple[np.ndarray, float]:
    """From the coarse mean path to the mean of the ensemble around it, and the squared error of that."""
    runs = np.asarray(sight.around.runs.w)
    pairs = len(runs) // 2
    middles = (runs[:pairs] + runs[pairs:]) / 2
    variance = float(middles.var(axis=0, ddof=1).sum()) / pairs if pairs > 1 else 0.0
    return middles.mean(axis=0) - np.asarray(sight.around.mean.w), variance


def _uncertainty(
    mean_path: MeanPath, start: Vector, sights: list[_Sight], key: Key[Array, ""]
) -> Uncertainty:
    count = len(sights)
    looked_at = np.unique(np.linspace(0, count - 1, _LOOKS).round().astype(int))
    gaps = [
        neglected(
            mean_path,
            sights[i].look.mean,
            jnp.asarray(sights[i].look.step_size),
            jax.random.fold_in(key, i),
        )
        for i in looked_at
    ]
    steps = np.array([sight.look.step for sight in sights])
    rate = np.interp(steps, steps[looked_at], np.array(gaps, float))
    left_out = rate[0] * steps[0] + np.append(0.0, np.cumsum(np.diff(steps) * (rate[1:] + rate[:-1]) / 2))
    rows = [_one_uncertainty(start, sight, gap) for sight, gap in zip(sights, left_out, strict=True)]
    return Uncertainty(*np.transpose(rows))


def _one_uncertainty(start: Vector, sight: _Sight, left_out: float) -> tuple[float, float, float, float]:
    way = float(np.linalg.norm(sight.look.mean.w - start))
    unit = way if way > 0 else 1.0
    runs = np.asarray(sight.around.runs.w)
    correction, variance = _correction(sight)
    normal = float(jnp.mean(jnp.trace(sight.around.runs.covariance, axis1=1, axis2=2)))
    along = np.mean(np.sum((runs - runs.mean(axis=0)) ** 2, axis=1))
    return (
        sight.integration / unit,
        sight.look.variance**0.5 / unit,
        float(np.hypot(np.sqrt(variance / 2 + _NEXT_ORDER**2 * correction @ correction), left_out)) / unit,
        float(np.sqrt(normal + along)) / unit,
    )
