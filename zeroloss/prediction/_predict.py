"""What a real training run does, at its own step size and noise, without running it (docs/prediction.md)."""

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from zeroloss._checkpoint import NOWHERE, Checkpoint, digest, facts_of
from zeroloss._progress import messages, progress_bar
from zeroloss._pytrees import Vector, flatten, refuse_tracing, require_float64
from zeroloss.drifts._expansion import AbstractExpansion, expand
from zeroloss.dynamics._trajectory import (
    Observables,
    Recorder,
    Trajectory,
    Uncertainty,
    is_positive_integer,
    save_steps_of,
)
from zeroloss.errors import (
    BudgetError,
    InputError,
    IntegrationError,
    LossError,
    NotReachedError,
    RankError,
    SpreadError,
    StabilityError,
)
from zeroloss.optimizers import SGD, StepSize, as_optimizer
from zeroloss.prediction._averages import ExactAverage, average
from zeroloss.prediction._closure import neglected
from zeroloss.prediction._ensemble import fluctuations
from zeroloss.prediction._higher_orders import higher_orders
from zeroloss.prediction._integrator import (
    MOST_GRADIENTS,
    Integrator,
    PathState,
    check_budget,
    check_rtol,
    expected_gradients,
)
from zeroloss.prediction._mean_path import MeanPath, State
from zeroloss.systems import AbstractSystem, Scalar
from zeroloss.zero_sets import largest_eigenvalue, length, locate, project, zero_set_of

_PROBED, _PROBE_COARSER = 2, 16.0  # pairs of runs, and their tolerance, that show whether spread matters
_ORDER = 0.75  # of the integration's error in its tolerance: 1 in theory, 0.7 to 0.9 where it was measured
_NEGLIGIBLE = 5e-4  # effect of the spread on the mean, relative to the way made
_COARSER = 4.0  # tolerance of the ensemble where it does
_PAIRS = 4  # of runs that join it at a time
_MOST_PAIRS = 16
_SCATTER = 2e-3  # error of the ensemble's mean that is aimed at, relative to the way made
_SMALLEST_WAY = 1e-6  # |w|: of less there is nothing to predict
_RUNS_FOR_A_MEAN = 32  # of training, that show its mean about as well as a prediction does
_LOG = logging.getLogger(__name__)
_STOCHASTIC = 1e-8  # share of the noise's variance along the set
_LOSS_DRAWS = 512
_FLUCTUATIONS = 16  # draws of single runs, at least, that observables are averaged over
_UNRELIABLE, _WIDE = 0.05, 0.3  # shares of the way: errors and spreads beyond both are refused
_CHECKS = 8  # at what is left out
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
    max_gradients: float = MOST_GRADIENTS,
    key: Key[Array, ""] | None = None,
    replicas: int | None = None,
    progress: bool = False,
    checkpoint: Checkpoint = NOWHERE,
) -> Trajectory:
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
      `zeroloss.descend`; `step_size` may be a schedule or an optimizer, `zeroloss.SGD`.
    - `saves`, `save_steps`, `observables`, `progress`, `checkpoint`: as in `zeroloss.descend`.
    - `rtol`: by how much predictor and corrector may differ in a step of the integrator, relative to the
      distance travelled, or to |w| / 10 where that is larger.
    - `max_gradients`: the largest cost of a path, in gradients of the clean loss over all examples, as
      much as so many steps of training a single run. It is an estimate: a step of the integrator counts as
      60, a draw of a sampled average as 4. Algebra of m x m matrices is not counted. Each run of the ensemble
      may cost as much again.
    - `key`: of the ensemble, and of averages over the noise where they have to be sampled, which is where the
      loss is not quadratic in it. By default a fixed one.
    - `replicas`: None for the mean of training; R for R draws of single runs, with a leading replica axis,
      made in antithetic pairs. Needed where the noise has a part along the zero-loss set (Langevin).

    **Returns:** a `Trajectory` with `ts` counting training steps. Without replicas, `params` are the mean of
    training, and what is measured is its mean over training runs; `loss` is above zero by the
    fluctuations, and the noisy loss is among the observables, as "noisy_loss". `Trajectory.uncertainty`
    estimates the error and the spread.

    **Raises:** `StabilityError` where a step size is beyond the stability limit (2 / lambda_max without
    momentum), at the start or along the way, or where minibatches make the fluctuations grow;
    `IntegrationError`, with the path so far: `BudgetError` when `max_gradients` are used up, `SpreadError`,
    with the whole path, where single runs scatter so widely that their mean is not known to 5 percent of the
    way, as from a start off the set in batches of one. `InputError`, also for a stochastic limit without
    `replicas`.

    The cost does not depend on `steps`: 50 to 100 steps of the integrator, each of 2 geometries and 2
    averages over the noise. First 4 runs of a quarter as many steps tell whether their spread moves their
    mean. If it does, an ensemble of 8 runs of half as many is enlarged, up to 32, until its mean is known
    to 0.2 percent of the way; or there are `replicas` runs. A sampled average takes at least 64 draws, and as
    many as keep the error of sampling at half a percent, unless they cost more than a hundredth of what is
    left of `max_gradients`. Memory: three m x m matrices, and J or what stands for it, for every run; and two
    sets of parameters of every run for every time saved.
    """
    times = save_steps_of(steps, saves, save_steps)
    check_rtol(rtol)
    if replicas is not None and not is_positive_integer(replicas):
        raise InputError(f"replicas must be at least 1 or None, got {replicas}.")
    check_budget(max_gradients)
    require_float64("predict")
    refuse_tracing((system, params, step_size), "predict")
    rule = as_optimizer(step_size, momentum, nesterov, weight_decay)
    system.check(params)
    _check_observables(observables, params)
    rule.check_stability(largest_eigenvalue(system, params), steps)
    mean_path, start = mean_path_of(system, params, rule)
    if mean_path.stochastic and replicas is None:
        raise InputError(
            "this noise has a part along the zero-loss set, so that single runs do not stay near their mean: "
            "pass replicas=, and take means and quantiles over them."
        )
    _check_mean_square(mean_path, start, rule)
    key = jax.random.key(0) if key is None else key
    pairs, coarser = (_PROBED, _PROBE_COARSER) if replicas is None else ((replicas + 1) // 2, _COARSER)
    _announce(mean_path, steps, progress)
    members = Recorder(mean_path.expansion, observables, times, batched=True)
    evolution = _Evolution(
        mean_path, start, rtol, max_gradients, key, pairs, coarser, times,
        measure=members.measure if replicas is None else None,
    )  # fmt: skip

    def facts() -> dict[str, Any]:
        return facts_of(
            system, start, times, steps=int(times[-1]), replicas=replicas or 0, rtol=rtol,
            max_gradients=float(max_gradients), key=digest(key),
            observables=",".join(sorted(observables or ())), **rule.facts(times),
        )  # fmt: skip

    def path() -> Trajectory:
        recorder = Recorder(
            mean_path.expansion, observables, times, steps=times, batched=replicas is not None
        )
        for snapshot in evolution.snapshots:
            if replicas is None:
                recorder.save_measured(*_mean(snapshot))
            else:
                recorder.save(jnp.asarray(snapshot.ensemble.drawn + snapshot.shift)[:replicas])
        uncertainty = _uncertainty(start, evolution.snapshots, members.measure)
        return eqx.tree_at(lambda path: path.uncertainty, recorder.path(), uncertainty, is_leaf=_is_none)

    try:
        with checkpoint.open():
            with progress_bar("prediction", float(times[-1]), progress) as show:
                evolution.run(show, checkpoint / "mean", facts)
            if replicas is None and _spread_matters(start, evolution.snapshots):
                for number in range(_MOST_PAIRS // _PAIRS):
                    description = f"spread of the runs, part {number + 1} of at most {_MOST_PAIRS // _PAIRS}"
                    # A mean that is known less well is a better answer than none: the uncertainty tells.
                    with (
                        contextlib.suppress(BudgetError),
                        progress_bar(description, float(times[-1]), progress) as show,
                    ):
                        evolution.enlarge(number > 0, show, checkpoint / f"ensemble_{number}", facts)
                        if _scatters(start, evolution.snapshots):
                            continue
                    break
    except (IntegrationError, StabilityError) as error:
        error.path = path() if evolution.snapshots else None
        raise
    found = path()
    if replicas is None:
        _check_spread(start, evolution.snapshots, found, steps)
    return found


def mean_path_of(system: AbstractSystem, params: PyTree, rule: SGD) -> tuple[MeanPath, Vector]:
    """The mean of training a system, and its start as a flat vector.

    Two things are decided at the point of the set that `params` leads to: how many eigenvalues of the Hessian
    are normal to the set, and whether the noise has a part along it. Beside the set the answers differ:
    weight noise is H eta to first order, which is normal to the set on it, but H has full rank beside it.
    """
    w, unravel = flatten(params)
    zero_set, on_set = zero_set_of(system, w, unravel), w
    if not zero_set.has_residuals:
        zero_set, on_set = locate(system, project(system, params))
    elif expand(system, zero_set).moving_law(w) is not None:
        # Without a zero-loss set that is regular, the start has to do.
        with contextlib.suppress(NotReachedError, RankError, LossError):
            on_set = flatten(project(system, params))[0]
    expansion = expand(system, zero_set)
    averaged = average(expansion, w, system.noise_law(params).sigma)
    higher = higher_orders(expansion, w)
    along = _share_along_the_set(expansion, on_set)
    return MeanPath(expansion, averaged, rule, higher, bool(along > _STOCHASTIC)), w


class _Ensemble(NamedTuple):
    """An ensemble and the mean path in its midst, at a time saved.

    - `mean`, `mean_losses`, `mean_measured`: of the mean path, with averages to second order in the noise.
    - `runs`: runs kicked one way, then those kicked the opposite way; `drawn` with fluctuations normal to
      the set, as draws of single runs; `losses` of each, `normal` the trace of its covariance.
    - `runs_measured`: what is measured at `runs`; `drawn_measured` at draws of fluctuations around them, of
      which `drawn` are the first.
    """

    mean: Float[np.ndarray, " parameters"]
    mean_losses: dict[str, np.ndarray]
    mean_measured: dict[str, np.ndarray]
    runs: Float[np.ndarray, "runs parameters"]
    drawn: Float[np.ndarray, "runs parameters"]
    losses: dict[str, np.ndarray]
    normal: Float[np.ndarray, " runs"]
    runs_measured: dict[str, np.ndarray]
    drawn_measured: dict[str, np.ndarray]

    @property
    def variance_along(self) -> float:
        """The mean square distance of the runs from their mean, along the set."""
        return float(np.mean(np.sum((self.runs - self.runs.mean(axis=0)) ** 2, axis=1)))

    def joined(self, other: "_Ensemble") -> "_Ensemble":
        """With the runs of another ensemble."""
        first, second = len(self.runs) // 2, len(other.runs) // 2

        def join(old: np.ndarray, new: np.ndarray) -> np.ndarray:
            return np.concatenate([old[:first], new[:second], old[first:], new[second:]])

        def by_name(old: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: join(values, new[name]) for name, values in old.items()}

        return self._replace(
            runs=join(self.runs, other.runs),
            drawn=join(self.drawn, other.drawn),
            losses=by_name(self.losses, other.losses),
            normal=join(self.normal, other.normal),
            runs_measured=by_name(self.runs_measured, other.runs_measured),
            drawn_measured=by_name(self.drawn_measured, other.drawn_measured),
        )


class _Snapshot(NamedTuple):
    """The fine mean path and its ensemble at a time saved.

    - `step`, `mean`, `losses`, `measured`, `variance`: of the mean path, followed finely.
    - `left_out`: what the recursion leaves out of a training step, and `excess` of the fluctuations, or NaN
      where they were not computed.
    - `ensemble`: the ensemble and the mean path in its midst, followed coarsely.
    - `integration`: the error of the fine mean path, from that of a coarse one; `integration_of` what is
      measured on it, by name.
    """

    step: np.ndarray
    mean: Float[np.ndarray, " parameters"]
    losses: dict[str, np.ndarray]
    measured: dict[str, np.ndarray]
    variance: np.ndarray
    left_out: Float[np.ndarray, " parameters"]
    excess: np.ndarray
    ensemble: _Ensemble
    integration: np.ndarray
    integration_of: dict[str, np.ndarray]

    @property
    def shift(self) -> np.ndarray:
        """From the coarse mean path to the fine one."""
        return self.mean - self.ensemble.mean


class _Evolution:
    """A mean path and an ensemble around it, with snapshots at the times saved.

    Where averages have to be sampled the ensemble takes them to second order in the noise, which is quiet:
    only differences between its runs count. Where the limit is stochastic, the ensemble is all there is.
    With `measure`, snapshots have the losses and observables that the mean of training needs.
    """

    def __init__(
        self,
        mean_path: MeanPath,
        start: Vector,
        rtol: float,
        max_gradients: float,
        key: Key[Array, ""],
        pairs: int,
        coarser: float,
        times: np.ndarray,
        *,
        measure: Callable[[Array], dict[str, np.ndarray]] | None,
    ):
        self.snapshots: list[_Snapshot] = []
        self._mean_path, self._quiet, self._start, self._rtol = mean_path, _quiet(mean_path), start, rtol
        self._key = self._integrator_key = key
        self._times, self._measure, self._most = times, measure, max_gradients
        self._checked = set(np.linspace(0, len(times) - 1, _CHECKS).round().astype(int))
        sampled, stochastic = not isinstance(mean_path.average, ExactAverage), mean_path.stochastic
        own = Integrator(mean_path, start, rtol, key, pairs if stochastic else 0, self._most)
        self._fine, self._coarser = own, coarser
        self._around, self._compared = own, own
        if not stochastic:
            self._around = Integrator(self._quiet, start, coarser * rtol, key, pairs, self._most)
            if sampled:
                self._compared = Integrator(self._quiet, start, rtol, key, 0, self._most)

    def run(
        self, show: Callable[[float], Any], checkpoint: Checkpoint, facts: Callable[[], dict[str, Any]]
    ) -> None:
        """Follow the mean path and the ensemble to the end."""
        integrators = list(dict.fromkeys((self._fine, self._around, self._compared)))

        def snapshot_at(index: int) -> _Snapshot:
            fine, around, compared = (each.now for each in (self._fine, self._around, self._compared))
            gap = float(jnp.linalg.norm(compared.mean.w - around.mean.w))
            left_out, excess = np.full_like(self._start, np.nan), np.nan
            if index in self._checked:
                key = jax.random.fold_in(self._key, index)
                left_out, excess = neglected(self._mean_path, fine.mean, jnp.asarray(fine.step_size), key)
            ensemble, share = self._ensemble(around, 0), 1 / (self._coarser**_ORDER - 1)
            losses, measured, integration_of = {}, {}, {}
            if self._measure is not None:
                losses = jax.tree.map(np.asarray, _losses(self._mean_path, fine.mean, self._key))
                both = self._measure(jnp.stack([fine.mean.w, compared.mean.w]))
                measured = {name: values[0] for name, values in both.items()}
                finely = {name: values[1] for name, values in both.items()}
                finely |= jax.tree.map(np.asarray, _losses(self._quiet, compared.mean, self._key))
                coarsely = ensemble.mean_measured | ensemble.mean_losses
                integration_of = {name: share * (finely[name] - coarsely[name]) for name in finely}
            return _Snapshot(
                step=np.asarray(fine.step),
                mean=np.asarray(fine.mean.w),
                losses=losses,
                measured=measured,
                variance=np.asarray(fine.variance, float),
                left_out=np.asarray(left_out, float),
                excess=np.asarray(excess, float),
                ensemble=ensemble,
                integration=np.asarray(gap * share, float),
                integration_of=integration_of,
            )

        recorder = _PytreeRecorder(lambda: snapshot_at(-1))
        try:
            self._advance(integrators, snapshot_at, recorder, show, checkpoint, facts)
        finally:
            self.snapshots = recorder.all()

    def enlarge(
        self,
        join: bool,
        show: Callable[[float], Any],
        checkpoint: Checkpoint,
        facts: Callable[[], dict[str, Any]],
    ) -> None:
        """Take a better ensemble, or more runs that `join` the one there is."""
        self._integrator_key = jax.random.fold_in(self._integrator_key, 1)
        more = Integrator(
            self._quiet, self._start, _COARSER * self._rtol, self._integrator_key, _PAIRS, self._most
        )
        part = len(self.snapshots[0].ensemble.runs) if join else 0
        recorder = _PytreeRecorder(lambda: self._ensemble(more.now, part))
        self._advance([more], lambda _: self._ensemble(more.now, part), recorder, show, checkpoint, facts)
        self.snapshots = [
            snapshot._replace(ensemble=snapshot.ensemble.joined(ensemble) if join else ensemble)
            for snapshot, ensemble in zip(self.snapshots, recorder.all(), strict=True)
        ]

    def _advance(
        self,
        integrators: list[Integrator],
        snapshot_at: Callable[[int], Any],
        recorder: "_PytreeRecorder",
        show: Callable[[float], Any],
        checkpoint: Checkpoint,
        facts: Callable[[], dict[str, Any]],
    ) -> None:
        """Advance the integrators to all times, and record `snapshot_at` of each time."""
        begun = checkpoint.begin([each.snapshot for each in integrators], recorder, facts)
        for integrator, snapshot in zip(integrators, begun, strict=True):
            integrator.restore(snapshot)

        def keep(last: bool = False) -> None:
            checkpoint.keep(lambda: [each.snapshot for each in integrators], recorder, last=last)

        def report(_: float) -> None:
            show(float(min(each.now.step for each in integrators)))
            keep()

        for index, time in list(enumerate(self._times))[len(recorder.items) :]:
            for integrator in integrators:
                integrator.to(int(time), report)
            recorder.add(snapshot_at(index))
        keep(last=True)

    def _ensemble(self, at: PathState, part: int) -> _Ensemble:
        key = jax.random.fold_in(self._key, at.step % 2**32)
        key = jax.random.fold_in(key, part) if part else key
        runs, parameters = at.runs.w.shape
        draws = 1 if self._measure is None else max(1, _FLUCTUATIONS // runs)
        drawn = jnp.stack(
            [_scattered(self._mean_path, at.runs, jax.random.fold_in(key, draw)) for draw in range(draws)],
            axis=1,
        )
        losses, mean_measured, runs_measured, drawn_measured = {}, {}, {}, {}
        if self._measure is not None:
            losses = _losses_of_all(self._quiet, at.states, self._key)
            at_paths = self._measure(at.states.w)
            mean_measured = {name: values[0] for name, values in at_paths.items()}
            runs_measured = {name: values[1:] for name, values in at_paths.items()}
            at_draws = self._measure(drawn.reshape(-1, parameters))
            drawn_measured = {name: values.reshape(runs, draws) for name, values in at_draws.items()}
        return _Ensemble(
            mean=np.asarray(at.mean.w),
            mean_losses={name: np.asarray(values[0]) for name, values in losses.items()},
            mean_measured=mean_measured,
            runs=np.asarray(at.runs.w),
            drawn=np.asarray(drawn[:, 0]),
            losses={name: np.asarray(values[1:]) for name, values in losses.items()},
            normal=np.asarray(jnp.trace(at.runs.covariance, axis1=1, axis2=2)),
            runs_measured=runs_measured,
            drawn_measured=drawn_measured,
        )


class _PytreeRecorder:
    """Records pytrees of arrays for a checkpoint; `example` makes one with their structure."""

    def __init__(self, example: Callable[[], Any]):
        self.items: list[dict[str, np.ndarray]] = []
        self._example = example

    def add(self, tree: Any) -> None:
        leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
        self.items.append({jax.tree_util.keystr(where): leaf for where, leaf in leaves})
        self._example = lambda: jax.tree.unflatten(structure, [0] * len(leaves))

    def path(self) -> None:
        """None: a prediction has no path before the end."""

    def all(self) -> list[Any]:
        """All pytrees, in the order in which they were recorded."""
        if not self.items:
            return []
        leaves, structure = jax.tree_util.tree_flatten_with_path(self._example())
        names = [jax.tree_util.keystr(where) for where, _ in leaves]
        return [jax.tree.unflatten(structure, [item[name] for name in names]) for item in self.items]


def _is_none(value: object) -> bool:
    return value is None


def _check_observables(observables: Observables | None, params: PyTree) -> None:
    """Raise `InputError` for an observable that is not a number, which has no mean and error of its own."""
    for name, function in (observables or {}).items():
        shape = getattr(jax.eval_shape(function, params), "shape", ())
        if shape != ():
            raise InputError(
                f"the observable {name!r} must be a number to be predicted, but it has the shape {shape}. "
                "Predict its components, each under a name of its own."
            )


def _announce(mean_path: MeanPath, steps: int, shown: bool) -> None:
    """Say what a prediction will cost, and training in its place, in gradients."""
    one = expected_gradients(mean_path)
    # A probe of 16 times the tolerance takes a quarter of the steps, an ensemble of 4 times half of them.
    cost = one * (1 + (1 + 2 * _PROBED) / _PROBE_COARSER**0.5)
    most = cost + one * (_MOST_PAIRS // _PAIRS) * (1 + 2 * _PAIRS) / _COARSER**0.5
    text = (
        f"predicting {steps:,} training steps takes some {cost:,.0f} gradients, up to {most:,.0f} where runs "
        f"scatter, beside compiling; training takes {steps:,} for each run"
    )
    if _RUNS_FOR_A_MEAN * steps < cost:
        text += f", so that zeroloss.descend with replicas={_RUNS_FOR_A_MEAN} is the faster way to the mean"
    _LOG.info(text)
    if shown:
        messages.print(text, highlight=False)


def _check_spread(start: Vector, snapshots: list[_Snapshot], path: Trajectory, steps: int) -> None:
    """Raise `SpreadError` where the mean is not known well enough to be called a prediction."""
    assert path.uncertainty is not None
    ways = np.array([np.linalg.norm(snapshot.mean - start) for snapshot in snapshots])
    parts = (path.uncertainty.integration, path.uncertainty.sampling, path.uncertainty.model)
    errors = np.sqrt(np.nansum(np.square(parts), axis=0)) * ways  # of those that are known
    spreads = path.uncertainty.spread * ways
    longest = ways.max()
    refused = (errors > _UNRELIABLE * longest) & (spreads > _WIDE * longest)
    if not refused.any() or longest <= _SMALLEST_WAY * float(length(start)):
        return
    worst = int(np.argmax(np.where(refused, errors, 0.0)))
    scatter = spreads[worst] / longest
    raise SpreadError(
        f"the mean of training cannot be predicted to better than {100 * errors[worst] / longest:.0f} % of "
        f"its way at step {snapshots[worst].step:,}: single runs scatter by {100 * scatter:.0f} % of the way "
        "there, too widely for a mean path and small fluctuations around it. Take a smaller step size, less "
        f"noise or larger batches; or run zeroloss.descend with replicas=, {steps:,} gradients for each. The "
        "error's `path` has what was found.",
        path,
    )


def _check_mean_square(mean_path: MeanPath, start: Vector, rule: SGD) -> None:
    """Raise `StabilityError` where minibatches make the fluctuations grow from the start."""
    size = rule.size(0)
    factor = float(_amplification(mean_path, start, jnp.asarray(size)))
    if factor >= 1:
        raise StabilityError(
            f"where training starts, step_size {size:.6g} is unstable in mean square: the random Hessian of "
            f"the minibatches multiplies the variance of the iterates by {factor:.3g} while it relaxes, and "
            "that must be below 1. Single runs then scatter too widely for their mean to be predicted. Take "
            "a smaller step size or larger batches, or run zeroloss.descend with replicas=."
        )


@eqx.filter_jit
def _amplification(mean_path: MeanPath, w: Vector, step_size: Scalar) -> Scalar:
    return mean_path.amplification(w, step_size)


@eqx.filter_jit
def _share_along_the_set(expansion: AbstractExpansion, w: Vector) -> Scalar:
    """Tr P_T Sigma P_T / tr Sigma at a point of the set."""
    if expansion.moving_law(w) is None:
        return jnp.zeros(())
    total = expansion.total_variance(w)
    along = expansion.tangential_variance(w, expansion.zero_set.spaces(w))
    return along / jnp.where(total > 0, total, 1.0)


def _quiet(mean_path: MeanPath) -> MeanPath:
    """With averages to second order in the noise, which need no sampling."""
    exact = ExactAverage(mean_path.average.expansion, mean_path.average.sigma)
    return eqx.tree_at(lambda path: path.average, mean_path, exact)


def _spread_matters(start: Vector, snapshots: list[_Snapshot]) -> bool:
    """Whether the spread of the runs moves their mean."""

    def effect(snapshot: _Snapshot) -> float:
        shift, variance = _shift(snapshot)
        return float(np.sqrt(shift @ shift + variance))

    return max(map(effect, snapshots)) > _NEGLIGIBLE * _longest_way(start, snapshots)


def _scatters(start: Vector, snapshots: list[_Snapshot]) -> bool:
    """Whether more runs are called for, since the mean of those there are is not sharp."""
    if len(snapshots[-1].ensemble.runs) >= 2 * _MOST_PAIRS:
        return False
    return (
        max(_shift(snapshot)[1] for snapshot in snapshots) > (_SCATTER * _longest_way(start, snapshots)) ** 2
    )


def _longest_way(start: Vector, snapshots: list[_Snapshot]) -> float:
    return max(float(np.linalg.norm(snapshot.mean - start)) for snapshot in snapshots)


def _mean(snapshot: _Snapshot) -> tuple[Vector, dict[str, Any]]:
    """The mean of training and what is measured of it, corrected for the spread."""
    ensemble = snapshot.ensemble
    known = {
        name: snapshot.measured[name] + values.mean() - ensemble.mean_measured[name]
        for name, values in ensemble.drawn_measured.items()
    }
    losses = {
        name: snapshot.losses[name] + values.mean() - ensemble.mean_losses[name]
        for name, values in ensemble.losses.items()
    }
    return jnp.asarray(snapshot.mean + _correction(snapshot)[0]), known | losses


@eqx.filter_jit
def _losses(mean_path: MeanPath, state: State, key: Key[Array, ""]) -> dict[str, Scalar]:
    averaged = mean_path.average.at(state.w, state.spectrum, key, jnp.asarray(_LOSS_DRAWS))
    return mean_path.losses(state, averaged.loss)


@eqx.filter_jit
def _losses_of_all(mean_path: MeanPath, states: State, key: Key[Array, ""]) -> dict[str, Array]:
    return jax.lax.map(lambda state: _losses(mean_path, state, key), states)


@eqx.filter_jit
def _scattered(mean_path: MeanPath, runs: State, key: Key[Array, ""]) -> Float[Array, "runs parameters"]:
    system, unravel = mean_path.expansion.system, mean_path.expansion.zero_set.unravel
    pairs = runs.w.shape[0] // 2
    keys = jax.random.split(key, pairs)
    signs = jnp.repeat(jnp.array([1.0, -1.0]), pairs)

    def one(state: State, key: Key[Array, ""], sign: Scalar) -> Vector:
        moved = state.spectrum.embed(fluctuations(state, key, 1)[0])
        perturbation = system.perturbation(unravel(state.w), key)  # part of what training reports
        if perturbation is not None:
            moved = moved + flatten(perturbation)[0]
        return state.w + sign * moved

    return jax.vmap(one)(runs, jnp.concatenate([keys, keys]), signs)


def _correction(snapshot: _Snapshot) -> tuple[np.ndarray, float]:
    """What the spread adds to the mean, and the squared standard error of that.

    Shrunk by as much of its square as is due to its error (James and Stein 1961).
    """
    shift, variance = _shift(snapshot)
    squared = float(shift @ shift)
    return shift * (max(0.0, 1 - variance / squared) if squared > 0 else 0.0), variance


def _shift(snapshot: _Snapshot) -> tuple[np.ndarray, float]:
    """From the coarse mean path to the mean of the ensemble around it, and the squared error of that."""
    runs = snapshot.ensemble.runs
    pairs = len(runs) // 2
    middles = (runs[:pairs] + runs[pairs:]) / 2
    variance = float(middles.var(axis=0, ddof=1).sum()) / pairs if pairs > 1 else 0.0
    return middles.mean(axis=0) - snapshot.ensemble.mean, variance


def _uncertainty(
    start: Vector, snapshots: list[_Snapshot], measure: Callable[[Array], dict[str, np.ndarray]]
) -> Uncertainty:
    steps = np.array([snapshot.step for snapshot in snapshots], float)
    # What is wrong in one step is taken to be neither undone nor enlarged by later ones.
    moved = _added_up(steps, _interpolated(steps, np.array([snapshot.left_out for snapshot in snapshots])))
    excess = _interpolated(steps, np.array([snapshot.excess for snapshot in snapshots]))
    rows = [
        _one_uncertainty(start, snapshot, gap)
        for snapshot, gap in zip(snapshots, np.linalg.norm(moved, axis=1), strict=True)
    ]
    return Uncertainty(*np.transpose(rows), measured=_of_measured(snapshots, moved, excess, measure))


def _interpolated(steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`values`, `[time, ...]`, interpolated where they are not finite; all NaN where none are finite."""
    flat = values.reshape(len(values), -1)
    known = np.isfinite(flat).all(axis=1)
    if not known.any():
        return np.full_like(values, np.nan)
    columns = [np.interp(steps, steps[known], column[known]) for column in flat.T]
    return np.stack(columns, axis=1).reshape(values.shape)


def _added_up(steps: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """The sums of rates per step, from step 0 to each of `steps`; `[time, ...]`."""
    lengths = np.diff(steps).reshape((-1,) + (1,) * (rates.ndim - 1))
    added = np.cumsum(lengths * (rates[1:] + rates[:-1]) / 2, axis=0)
    return rates[:1] * steps[0] + np.concatenate([np.zeros_like(rates[:1]), added])


def _of_measured(
    snapshots: list[_Snapshot],
    moved: Float[np.ndarray, "time parameters"],
    excess: Float[np.ndarray, " time"],
    measure: Callable[[Array], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
    """The standard error of everything measured, in its own unit, at each time.

    `moved`: how far what is left out has moved the parameters.
    """
    if not snapshots[0].measured:
        return {}
    known = np.asarray(np.isfinite(moved).all(axis=1))
    means = np.array([snapshot.mean for snapshot in snapshots])
    displaced = measure(jnp.asarray(means + np.where(known.reshape(-1, 1), moved, 0.0)))
    names = [
        *snapshots[0].measured,
        *(name for name in snapshots[0].losses if name not in snapshots[0].measured),
    ]

    def errors(name: str) -> np.ndarray:
        source = "loss" if name == "noisy_loss" else name  # both move alike with the parameters
        found = [
            _one_error(snapshot, name, float(value - snapshot.measured[source]), float(factor))
            for snapshot, value, factor in zip(snapshots, displaced[source], excess, strict=True)
        ]
        return np.where(known, found, np.nan)

    return {name: errors(name) for name in names}


def _one_error(snapshot: _Snapshot, name: str, left_out: float, excess: float) -> float:
    """The standard error of one quantity at one time; `left_out`: what the terms left out do to it."""
    ensemble = snapshot.ensemble
    pairs = len(ensemble.runs) // 2
    if name in ensemble.losses:  # the mean over fluctuations is known there, up to their covariance
        coarse, at_runs = ensemble.mean_losses[name], ensemble.losses[name]
        drawn = at_runs[:, None]
        left_out = float(np.hypot(left_out, excess * (snapshot.losses["loss"] - snapshot.measured["loss"])))
    else:
        coarse, at_runs = ensemble.mean_measured[name], ensemble.runs_measured[name]
        drawn = ensemble.drawn_measured[name]
    spread = ensemble.variance_along**0.5
    # Errors of sampled averages point where the kicks of the runs do.
    sampling = at_runs.std() * float(snapshot.variance) ** 0.5 / spread if spread > 0 else 0.0
    # The parts of a pair's two values that are odd in its kicks and fluctuations cancel.
    even = (drawn[:pairs] + drawn[pairs:]) / 2
    between = even.mean(axis=1).std(ddof=1) / np.sqrt(pairs) if pairs > 1 else abs(even.mean() - coarse)
    within = even.std(ddof=1) / np.sqrt(even.size) if even.size > 1 else 0.0
    next_order = _NEXT_ORDER * (at_runs.mean() - coarse)
    parts = (sampling, max(between, within), next_order, snapshot.integration_of[name], left_out)
    return float(np.linalg.norm(np.array(parts, float)))


def _one_uncertainty(
    start: Vector, snapshot: _Snapshot, left_out: float
) -> tuple[float, float, float, float]:
    way = float(np.linalg.norm(snapshot.mean - start))
    unit = way if way > 0 else 1.0
    correction, variance = _correction(snapshot)
    return (
        float(snapshot.integration) / unit,
        float(snapshot.variance) ** 0.5 / unit,
        float(np.hypot(np.sqrt(variance / 2 + _NEXT_ORDER**2 * correction @ correction), left_out)) / unit,
        float(np.sqrt(snapshot.ensemble.normal.mean() + snapshot.ensemble.variance_along)) / unit,
    )
