"""What a real training run does, at its own step size and noise, without running it (docs/prediction.md)."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from zeroloss.checkpoint import NOWHERE, Checkpoint, digest, facts_of
from zeroloss.dynamics.averages import ExactAverage, average
from zeroloss.dynamics.closure import neglected
from zeroloss.dynamics.expansion import expand
from zeroloss.dynamics.follow import Follower, Look, check_rtol
from zeroloss.dynamics.higher_orders import higher_orders
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
    checkpoint: Checkpoint = NOWHERE,
) -> Path:
    """Predict training at its own step size and noise, both time scales together.

    The mean w and the covariance C of the iterates follow the recursion of training averaged over the noise,

        w <- w - alpha (grad L_bar(w) + 1/2 T[C]),
        C <- (I - alpha H) C (I - alpha H) + alpha^2 sigma^2 Sigma,

    with L_bar(w) = E L_hat(w, eta) at the sigma of the system, and with minibatches their random Hessian
    (theory.md, section 5; docs/prediction.md), many training steps at a time, from any start: the fast phase,
    down to the zero-loss set, is part of the prediction. Around that mean path a small ensemble is kicked
    along the set as training is, for what the spread of the runs makes of their mean.

    **Arguments:**

    - `system`, `params`: a system and any start.
    - `step_size`, `steps`, `momentum`, `nesterov`, `weight_decay`: those of the training, as in
      `zeroloss.descend`; `step_size` may be a schedule.
    - `saves`, `save_steps`, `observables`, `progress`, `checkpoint`: as in `zeroloss.descend`.
    - `rtol`: by how much predictor and corrector may differ in a step of the integrator, relative to the
      distance travelled, or to |w| / 10 where that is larger.
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
    averages over the noise. First 4 runs of a quarter as many steps tell whether their spread moves their
    mean. If it does, an ensemble of 8 runs of half as many is enlarged, up to 32, until its mean is known
    to 0.2 percent of the way; or there are `replicas` runs. Sampled averages take 64 to
    4096 draws each, so that sampling errs by about half a percent. Memory: three m x m matrices, and J or
    what stands for it, for every run; and two sets of parameters of every run for every time saved.
    """
    times = save_steps_of(steps, saves, save_steps)
    check_rtol(rtol)
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
    journey = _Journey(mean_path, start, rtol, key, pairs, coarser, times, mean=replicas is None)

    def facts() -> dict[str, Any]:
        return facts_of(
            system, start, times, steps=int(times[-1]), replicas=replicas or 0, rtol=rtol, key=digest(key),
            **rule.facts(times),
        )  # fmt: skip

    def path() -> Path:
        recorder = Recorder(
            mean_path.expansion, observables, times, steps=times, batched=replicas is not None
        )
        members = Recorder(mean_path.expansion, observables, times, batched=True)
        for sight in journey.sights:
            if replicas is None:
                recorder.save(*_mean(sight, members))
            else:
                recorder.save(jnp.asarray(sight.crowd.drawn + sight.shift)[:replicas])
        return recorder.path()

    try:
        with checkpoint.open():
            with progress_bar("prediction", float(times[-1]), progress) as show:
                journey.look(show, checkpoint / "mean", facts)
            if replicas is None and _spread_matters(start, journey.sights):
                for number in itertools.count():
                    with progress_bar("spread of the runs", float(times[-1]), progress) as show:
                        journey.enlarge(number > 0, show, checkpoint / f"ensemble_{number}", facts)
                    if not _scatters(start, journey.sights):
                        break
    except IntegrationError as error:
        error.path = path() if journey.sights else None
        raise
    uncertainty = _uncertainty(start, journey.sights)
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
    higher = higher_orders(expansion, w)
    along = float(_share_along_the_set(MeanPath(expansion, averaged, rule, higher, False), w))
    return MeanPath(expansion, averaged, rule, higher, along > _STOCHASTIC), w


class _Crowd(NamedTuple):
    """What is kept of an ensemble and the mean path in its midst.

    - `mean`, `mean_losses`: of the mean path, with averages to second order in the noise.
    - `runs`: runs kicked one way, then those kicked the opposite way; `drawn` with fluctuations normal to
      the set, as draws of single runs; `losses` of each, `normal` the trace of its covariance.
    """

    mean: Float[np.ndarray, " parameters"]
    mean_losses: dict[str, np.ndarray]
    runs: Float[np.ndarray, "runs parameters"]
    drawn: Float[np.ndarray, "runs parameters"]
    losses: dict[str, np.ndarray]
    normal: Float[np.ndarray, " runs"]

    def joined(self, other: "_Crowd") -> "_Crowd":
        """With the runs of another ensemble."""
        first, second = len(self.runs) // 2, len(other.runs) // 2

        def join(old: np.ndarray, new: np.ndarray) -> np.ndarray:
            return np.concatenate([old[:first], new[:second], old[first:], new[second:]])

        return self._replace(
            runs=join(self.runs, other.runs),
            drawn=join(self.drawn, other.drawn),
            losses={name: join(values, other.losses[name]) for name, values in self.losses.items()},
            normal=join(self.normal, other.normal),
        )


class _Sight(NamedTuple):
    """What is kept of a time saved.

    - `step`, `mean`, `losses`, `variance`: of the mean path, followed finely.
    - `left_out`: how fast what the recursion leaves out adds up, or NaN where it was not looked at.
    - `crowd`: the ensemble and the mean path in its midst, followed coarsely.
    - `integration`: the error of the fine mean path, from that of a coarse one.
    """

    step: np.ndarray
    mean: Float[np.ndarray, " parameters"]
    losses: dict[str, np.ndarray]
    variance: np.ndarray
    left_out: np.ndarray
    crowd: _Crowd
    integration: np.ndarray

    @property
    def shift(self) -> np.ndarray:
        """From the coarse mean path to the fine one."""
        return self.mean - self.crowd.mean


class _Journey:
    """A mean path, and an ensemble around it, looked at from time to time.

    Where averages have to be sampled the ensemble takes them to second order in the noise, which is quiet:
    only differences between its runs count. Where the limit is stochastic, the ensemble is all there is.
    With `mean`, what the mean of training needs is looked at too.
    """

    def __init__(
        self,
        mean_path: MeanPath,
        start: Vector,
        rtol: float,
        key: Key[Array, ""],
        pairs: int,
        coarser: float,
        times: np.ndarray,
        *,
        mean: bool,
    ):
        self.sights: list[_Sight] = []
        self._mean_path, self._quiet, self._start, self._rtol = mean_path, _quiet(mean_path), start, rtol
        self._key = self._follower_key = key
        self._times, self._mean = times, mean
        self._looked_at = set(np.linspace(0, len(times) - 1, _LOOKS).round().astype(int))
        sampled, stochastic = not isinstance(mean_path.average, ExactAverage), mean_path.stochastic
        own = Follower(mean_path, start, rtol, key, pairs if stochastic else 0)
        self._fine, self._coarser = own, coarser
        self._around = own if stochastic else Follower(self._quiet, start, coarser * rtol, key, pairs)
        self._compared = Follower(self._quiet, start, rtol, key) if sampled and not stochastic else own

    def look(
        self, show: Callable[[float], Any], checkpoint: Checkpoint, facts: Callable[[], dict[str, Any]]
    ) -> None:
        """Follow the mean path and the ensemble to the end."""
        followers = list(dict.fromkeys((self._fine, self._around, self._compared)))

        def see(index: int) -> _Sight:
            fine, around, compared = (each.now for each in (self._fine, self._around, self._compared))
            gap = float(jnp.linalg.norm(compared.mean.w - around.mean.w))
            left_out = np.nan
            if index in self._looked_at:
                key = jax.random.fold_in(self._key, index)
                left_out = neglected(self._mean_path, fine.mean, jnp.asarray(fine.step_size), key)
            losses = _losses(self._mean_path, fine.mean, self._key) if self._mean else {}
            return _Sight(
                step=np.asarray(fine.step),
                mean=np.asarray(fine.mean.w),
                losses=jax.tree.map(np.asarray, losses),
                variance=np.asarray(fine.variance, float),
                left_out=np.asarray(left_out, float),
                crowd=self._crowd(around, 0),
                integration=np.asarray(gap / (self._coarser - 1), float),  # of second order
            )

        seen = _Seen(lambda: see(-1))
        try:
            self._follow(followers, see, seen, show, checkpoint, facts)
        finally:
            self.sights = seen.all()

    def enlarge(
        self,
        join: bool,
        show: Callable[[float], Any],
        checkpoint: Checkpoint,
        facts: Callable[[], dict[str, Any]],
    ) -> None:
        """Take a better ensemble, or more runs that `join` the one there is."""
        self._follower_key = jax.random.fold_in(self._follower_key, 1)
        more = Follower(self._quiet, self._start, _COARSER * self._rtol, self._follower_key, _PAIRS)
        part = len(self.sights[0].crowd.runs) if join else 0
        seen = _Seen(lambda: self._crowd(more.now, part))
        self._follow([more], lambda _: self._crowd(more.now, part), seen, show, checkpoint, facts)
        self.sights = [
            sight._replace(crowd=sight.crowd.joined(crowd) if join else crowd)
            for sight, crowd in zip(self.sights, seen.all(), strict=True)
        ]

    def _follow(
        self,
        followers: list[Follower],
        see: Callable[[int], Any],
        seen: "_Seen",
        show: Callable[[float], Any],
        checkpoint: Checkpoint,
        facts: Callable[[], dict[str, Any]],
    ) -> None:
        """Take the followers to all times, and have `seen` collect what there is to `see`."""
        begun = checkpoint.begin([each.snapshot for each in followers], seen, facts)
        for follower, snapshot in zip(followers, begun, strict=True):
            follower.restore(snapshot)

        def keep(last: bool = False) -> None:
            checkpoint.keep(lambda: [each.snapshot for each in followers], seen, last=last)

        def report(_: float) -> None:
            show(float(min(each.now.step for each in followers)))
            keep()

        for index, time in list(enumerate(self._times))[len(seen.items) :]:
            for follower in followers:
                follower.to(int(time), report)
            seen.add(see(index))
        keep(last=True)

    def _crowd(self, look: Look, part: int) -> _Crowd:
        key = jax.random.fold_in(self._key, look.step % 2**32)
        key = jax.random.fold_in(key, part) if part else key
        losses = _losses_of_all(self._quiet, look.states, self._key) if self._mean else {}
        return _Crowd(
            mean=np.asarray(look.mean.w),
            mean_losses={name: np.asarray(values[0]) for name, values in losses.items()},
            runs=np.asarray(look.runs.w),
            drawn=np.asarray(_scattered(self._mean_path, look.runs, key)),
            losses={name: np.asarray(values[1:]) for name, values in losses.items()},
            normal=np.asarray(jnp.trace(look.runs.covariance, axis1=1, axis2=2)),
        )


class _Seen:
    """Pytrees of arrays as a checkpoint keeps them; `example` makes one like those it brings back."""

    def __init__(self, example: Callable[[], Any]):
        self.items: list[dict[str, np.ndarray]] = []
        self._example = example

    def add(self, seen: Any) -> None:
        leaves, structure = jax.tree_util.tree_flatten_with_path(seen)
        self.items.append({jax.tree_util.keystr(where): leaf for where, leaf in leaves})
        self._example = lambda: jax.tree.unflatten(structure, [0] * len(leaves))

    def path(self) -> None:
        """There is none to look at before the end."""

    def all(self) -> list[Any]:
        """Everything, in the order it was seen."""
        if not self.items:
            return []
        leaves, structure = jax.tree_util.tree_flatten_with_path(self._example())
        names = [jax.tree_util.keystr(where) for where, _ in leaves]
        return [jax.tree.unflatten(structure, [item[name] for name in names]) for item in self.items]


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

    def effect(sight: _Sight) -> float:
        shift, variance = _shift(sight)
        return float(np.sqrt(shift @ shift + variance))

    return max(map(effect, sights)) > _NEGLIGIBLE * _longest_way(start, sights)


def _scatters(start: Vector, sights: list[_Sight]) -> bool:
    """Whether more runs are called for, since the mean of those there are is not sharp."""
    if len(sights[-1].crowd.runs) >= 2 * _MOST_PAIRS:
        return False
    return max(_shift(sight)[1] for sight in sights) > (_SCATTER * _longest_way(start, sights)) ** 2


def _longest_way(start: Vector, sights: list[_Sight]) -> float:
    return max(float(np.linalg.norm(sight.mean - start)) for sight in sights)


def _mean(sight: _Sight, members: Recorder) -> tuple[Vector, dict[str, Any]]:
    """The mean of training and what is measured of it, corrected for the spread."""
    crowd = sight.crowd
    central = members.measure(jnp.stack([sight.mean, crowd.mean]))
    scattered = members.measure(jnp.asarray(crowd.drawn))
    known = {name: central[name][0] + scattered[name].mean() - central[name][1] for name in central}
    losses = {
        name: sight.losses[name] + values.mean() - crowd.mean_losses[name]
        for name, values in crowd.losses.items()
    }
    return jnp.asarray(sight.mean + _correction(sight)[0]), known | losses


@eqx.filter_jit
def _losses(mean_path: MeanPath, state: State, key: Key[Array, ""]) -> dict[str, Scalar]:
    averaged = mean_path.average.at(state.w, state.geometry, key, jnp.asarray(_LOSS_DRAWS))
    return mean_path.losses(state, averaged.loss)


@eqx.filter_jit
def _losses_of_all(mean_path: MeanPath, states: State, key: Key[Array, ""]) -> dict[str, Array]:
    return jax.lax.map(lambda state: _losses(mean_path, state, key), states)


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
    runs = sight.crowd.runs
    pairs = len(runs) // 2
    middles = (runs[:pairs] + runs[pairs:]) / 2
    variance = float(middles.var(axis=0, ddof=1).sum()) / pairs if pairs > 1 else 0.0
    return middles.mean(axis=0) - sight.crowd.mean, variance


def _uncertainty(start: Vector, sights: list[_Sight]) -> Uncertainty:
    steps = np.array([sight.step for sight in sights], float)
    rates = np.array([sight.left_out for sight in sights])
    known = np.isfinite(rates)
    rate = np.interp(steps, steps[known], rates[known])
    left_out = rate[0] * steps[0] + np.append(0.0, np.cumsum(np.diff(steps) * (rate[1:] + rate[:-1]) / 2))
    rows = [_one_uncertainty(start, sight, gap) for sight, gap in zip(sights, left_out, strict=True)]
    return Uncertainty(*np.transpose(rows))


def _one_uncertainty(start: Vector, sight: _Sight, left_out: float) -> tuple[float, float, float, float]:
    way = float(np.linalg.norm(sight.mean - start))
    unit = way if way > 0 else 1.0
    runs = sight.crowd.runs
    correction, variance = _correction(sight)
    along = np.mean(np.sum((runs - runs.mean(axis=0)) ** 2, axis=1))
    return (
        float(sight.integration) / unit,
        float(sight.variance) ** 0.5 / unit,
        float(np.hypot(np.sqrt(variance / 2 + _NEXT_ORDER**2 * correction @ correction), left_out)) / unit,
        float(np.sqrt(sight.crowd.normal.mean() + along)) / unit,
    )
