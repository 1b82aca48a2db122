"""The prediction of a real training run, at its own step size and noise (docs/prediction.md)."""

import contextlib
import dataclasses
import logging
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from zeroloss._arguments import positive_integer
from zeroloss._checkpoint import NO_CHECKPOINT, Checkpoint, SavedArrays, digest, facts_of
from zeroloss._compilation import compiled_once
from zeroloss._progress import announce
from zeroloss._pytrees import Vector, flatten, refuse_tracing, require_float64
from zeroloss.drifts import AbstractExpansion, expand, expand_at
from zeroloss.dynamics import Observables, Recorder, Saves, Trajectory, as_saves, drive
from zeroloss.errors import (
    AccuracyWarning,
    BudgetError,
    InputError,
    IntegrationError,
    LossError,
    NotReachedError,
    RankError,
    StabilityError,
)
from zeroloss.noise import SampledLabels
from zeroloss.optimizers import SGD, StepSize, as_optimizer
from zeroloss.prediction._averages import average
from zeroloss.prediction._evolution import (
    ENSEMBLE_COARSENESS,
    PAIRS,
    EnsembleEvolution,
    MeanEvolution,
    PredictionInputs,
)
from zeroloss.prediction._higher_orders import higher_orders
from zeroloss.prediction._integrator import expected_gradients
from zeroloss.prediction._mean_path import MeanPath
from zeroloss.prediction._snapshots import (
    MOST_PAIRS,
    Snapshot,
    ensemble_of,
    mean,
    scatters,
    snapshot_of,
    spread_matters,
)
from zeroloss.prediction._tolerance import Tolerance, as_tolerance
from zeroloss.prediction._uncertainty import check_spread, uncertainty
from zeroloss.systems import AbstractSystem, Scalar
from zeroloss.zero_sets import largest_eigenvalue, locate, looks_smooth, project, switched, zero_set_of

_SMALL_FOR_LABELS = 0.1  # alpha lambda_max
_PROBE_COARSENESS = 16.0  # the tolerance of the runs that show whether spread matters
_RUNS_FOR_A_MEAN = 32  # of training, that show its mean about as well as a prediction does
_STOCHASTIC = 1e-8  # share of the noise's variance along the set
_LOG = logging.getLogger(__name__)


def predict(
    system: AbstractSystem,
    params: PyTree,
    step_size: StepSize,
    steps: int | Saves,
    *,
    rtol: float | Tolerance = 1e-3,
    key: Key[Array, ""] | None = None,
    replicas: int | None = None,
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> Trajectory:
    """Predict training at its own step size and noise, both time scales together.

    The mean w and the covariance C of the iterates follow the recursion of training averaged over the noise,

        w <- w - alpha (grad L_bar(w) + 1/2 T[C]),
        C <- (I - alpha H) C (I - alpha H) + alpha^2 sigma^2 Sigma,

    with L_bar(w) = E L_hat(w, eta) at the sigma of the system, and with minibatches their random Hessian
    (theory.md, section 5; docs/prediction.md), many training steps at a time, from any start: the fast phase,
    down to the zero-loss set, is part of the prediction. A small ensemble around that mean path is displaced
    along the set as training runs are. It shows how the spread of the runs changes their mean.

    **Arguments:**

    - `system`, `params`: a system and any start.
    - `step_size`, `steps`, `checkpoint`: as in `zeroloss.descend`: `step_size` may be a schedule or an
      optimizer, `steps` a `zeroloss.Saves`.
    - `rtol`: the relative accuracy of the integrator; or a `zeroloss.Tolerance`, which also bounds the cost.
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
    averages over the noise. First 8 runs of a quarter as many steps tell whether their spread moves their
    mean. If it does, an ensemble of 8 runs of half as many is enlarged, up to 32, until its mean is known
    to 0.2 percent of the way; or there are `replicas` runs. A sampled average takes at least 64 draws, and as
    many as keep the error of sampling at half a percent, unless they cost more than a hundredth of what is
    left of `max_gradients`. Memory: three m x m matrices, and J, or its factors, for every run; and two
    sets of parameters of every run for every time saved.
    """
    saves, tolerance = as_saves(steps), as_tolerance(rtol)
    times = saves.steps()
    replicas = None if replicas is None else positive_integer("replicas", replicas)
    require_float64("predict")
    refuse_tracing((system, params, step_size), "predict")
    optimizer = as_optimizer(step_size)
    system.check(params)
    _check_observables(saves.observables, params)
    optimizer.check_stability(largest_eigenvalue(system, params), int(times[-1]))
    warn_of_drawn_labels(system, optimizer.size(0), largest_eigenvalue(system, params))
    mean_path, start = mean_path_of(system, params, optimizer)
    if mean_path.stochastic and replicas is None:
        raise InputError(
            "this noise has a part along the zero-loss set, so that single runs do not stay near their mean: "
            "pass replicas=, and take means and quantiles over them."
        )
    _check_mean_square(mean_path, start, optimizer)
    _announce(mean_path, int(times[-1]))
    key = jax.random.key(0) if key is None else key
    measured = expand_at(system, mean_path.expansion.zero_set, start)
    batch = Recorder(measured, saves.observables, times, batched=True)

    def facts() -> dict[str, Any]:
        return facts_of(
            system, start, times, steps=int(times[-1]), replicas=replicas or 0, rtol=tolerance.rtol,
            max_gradients=float(tolerance.max_gradients), key=digest(key),
            observables=",".join(sorted(saves.observables)), **optimizer.facts(times),
        )  # fmt: skip

    setup = PredictionInputs(
        mean_path, start, times, tolerance, key, batch.measure if replicas is None else None, facts
    )

    def trajectory(snapshots: list[Snapshot]) -> Trajectory:
        recorder = Recorder(measured, saves.observables, times, in_steps=True, batched=replicas is not None)
        if replicas is None:
            items = [recorder.item(*mean(snapshot)) for snapshot in snapshots]
        else:
            items = [
                recorder.item(jnp.asarray(each.ensemble.drawn + each.shift)[:replicas]) for each in snapshots
            ]
        estimate = uncertainty(start, snapshots, batch.measure)
        crossed = None
        if mean_path.kinked:
            path = np.stack([np.asarray(snapshot.mean) for snapshot in snapshots])
            crossed = switched(mean_path.expansion.zero_set, start, path)
        return dataclasses.replace(recorder.trajectory(items), uncertainty=estimate, switched=crossed)

    items: list[SavedArrays] = []
    more: list[list[SavedArrays]] = []
    try:
        with checkpoint.open():
            if replicas is not None:
                drive(
                    MeanEvolution(setup, (replicas + 1) // 2, ENSEMBLE_COARSENESS),
                    times,
                    checkpoint / "mean",
                    items,
                )
            else:
                drive(MeanEvolution(setup, PAIRS, _PROBE_COARSENESS), times, checkpoint / "mean", items)
                _add_runs(setup, items, more, checkpoint)
    except (IntegrationError, StabilityError) as error:
        error.path = trajectory(_snapshots(items, more)) if items else None
        raise
    snapshots = _snapshots(items, more)
    found = trajectory(snapshots)
    if replicas is None:
        check_spread(start, snapshots, found, int(times[-1]))
    return found


def _snapshots(items: list[SavedArrays], more: list[list[SavedArrays]]) -> list[Snapshot]:
    """The snapshots of a mean path, with the runs of `more` ensembles in place of those of the probe."""
    snapshots = [snapshot_of(item) for item in items]
    for number, ensemble in enumerate(more):
        snapshots = [
            snapshot._replace(ensemble=snapshot.ensemble.joined(runs) if number > 0 else runs)
            for snapshot, runs in zip(snapshots, map(ensemble_of, ensemble), strict=True)
        ]
    return snapshots


def _add_runs(
    setup: PredictionInputs, items: list[SavedArrays], more: list[list[SavedArrays]], checkpoint: Checkpoint
) -> None:
    """Where the spread of the runs moves their mean, add ensembles to `more` until the mean is sharp."""
    if not spread_matters(setup.start, _snapshots(items, more)):
        return
    key = setup.key
    for number in range(MOST_PAIRS // PAIRS):
        key = jax.random.fold_in(key, 1)
        evolution = EnsembleEvolution(setup, key, 2 * PAIRS * number)
        try:
            more.append(drive(evolution, setup.times, checkpoint / f"ensemble_{number}"))
        except BudgetError:  # a mean that is known less well is a better answer than none
            return
        if not scatters(setup.start, _snapshots(items, more)):
            return


def mean_path_of(system: AbstractSystem, params: PyTree, optimizer: SGD) -> tuple[MeanPath, Vector]:
    """The mean of training a system, and its start as a flat vector.

    Two things are decided at the point of the set that `params` leads to: how many eigenvalues of the Hessian
    are normal to the set, and whether the noise has a part along it. Beside the set the answers differ:
    weight noise is H eta to first order, which is normal to the set on it, but H has full rank beside it.
    """
    w, unravel = flatten(params)
    zero_set, on_set = zero_set_of(system, w, unravel), w
    if not zero_set.has_residuals:
        zero_set, on_set = locate(system, project(system, params))
    elif expand(system, zero_set).tangential_law(w) is not None:
        # Without a zero-loss set that is regular, the start has to do.
        with contextlib.suppress(NotReachedError, RankError, LossError):
            on_set = flatten(project(system, params))[0]
    expansion = expand(system, zero_set)
    averaged = average(expansion, w, system.noise_law(params).sigma)
    higher = higher_orders(expansion, w)
    along = _share_along_the_set(expansion, on_set)
    kinked = not looks_smooth(zero_set, on_set)
    return MeanPath(expansion, averaged, optimizer, higher, bool(along > _STOCHASTIC), kinked), w


def warn_of_drawn_labels(system: AbstractSystem, step_size: float, largest: float) -> None:
    """Warn where the noise of drawn labels, whose sigma is 1, is not small at this step size."""
    relative = step_size * largest
    drawn = any(isinstance(each, SampledLabels) for each in getattr(system, "injections", ()))
    if drawn and relative > _SMALL_FOR_LABELS:
        warnings.warn(
            f"labels drawn at every step are no small noise, and alpha lambda_max is {relative:.3g}. In "
            "simulations the limit was 6 percent off at 0.1, 20 at 0.4 and 46 at 0.8. Take a smaller step "
            "size, or compare with zeroloss.descend.",
            AccuracyWarning,
            stacklevel=3,
        )


def _check_observables(observables: Observables, params: PyTree) -> None:
    """Raise `InputError` for an observable that is not a number, which has no mean and error of its own."""
    for name, function in observables.items():
        shape = getattr(jax.eval_shape(function, params), "shape", ())
        if shape != ():
            raise InputError(
                f"the observable {name!r} must be a number to be predicted, but it has the shape {shape}. "
                "Predict its components, each under a name of its own."
            )


def _announce(mean_path: MeanPath, steps: int) -> None:
    """Say what a prediction will cost, and training in its place, in gradients."""
    one = expected_gradients(mean_path)
    # A probe of 16 times the tolerance takes a quarter of the steps, an ensemble of 4 times half of them.
    cost = one * (1 + (1 + 2 * PAIRS) / _PROBE_COARSENESS**0.5)
    most = cost + one * (MOST_PAIRS // PAIRS) * (1 + 2 * PAIRS) / ENSEMBLE_COARSENESS**0.5
    text = (
        f"predicting {steps:,} training steps takes some {cost:,.0f} gradients, up to {most:,.0f} where runs "
        f"scatter, beside compiling; training takes {steps:,} for each run"
    )
    if _RUNS_FOR_A_MEAN * steps < cost:
        text += f", so that zeroloss.descend with replicas={_RUNS_FOR_A_MEAN} is the faster way to the mean"
    _LOG.info(text)
    announce(text)


def _check_mean_square(mean_path: MeanPath, start: Vector, optimizer: SGD) -> None:
    """Raise `StabilityError` where minibatches make the fluctuations grow from the start."""
    size = optimizer.size(0)
    factor = float(_amplification(mean_path, start, jnp.asarray(size)))
    if factor >= 1:
        raise StabilityError(
            f"where training starts, step_size {size:.6g} is unstable in mean square: the random Hessian of "
            f"the minibatches multiplies the variance of the iterates by {factor:.3g} while it relaxes, and "
            "that must be below 1. Single runs then scatter too widely for their mean to be predicted. Take "
            "a smaller step size or larger batches, or run zeroloss.descend with replicas=."
        )


@compiled_once
def _amplification(mean_path: MeanPath, w: Vector, step_size: Scalar) -> Scalar:
    return mean_path.amplification(w, step_size)


@compiled_once
def _share_along_the_set(expansion: AbstractExpansion, w: Vector) -> Scalar:
    """Tr P_T Sigma P_T / tr Sigma at a point of the set."""
    if expansion.tangential_law(w) is None:
        return jnp.zeros(())
    total = expansion.total_variance(w)
    along = expansion.tangential_variance(w, expansion.zero_set.spaces(w))
    return along / jnp.where(total > 0, total, 1.0)
