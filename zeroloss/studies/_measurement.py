"""One measurement of a convergence study: an ensemble at one step size and one sigma."""

from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree

from zeroloss._checkpoint import NO_CHECKPOINT, Checkpoint, SavedArrays
from zeroloss._compilation import compiled, compiled_once
from zeroloss._pytrees import Vector
from zeroloss._tolerances import TINY
from zeroloss.drifts import (
    FAST,
    AbstractExpansion,
    TimeScale,
    Verdict,
    expand_at,
    first_drift,
    second_drift,
    steps_for,
)
from zeroloss.dynamics import (
    Saves,
    deterministic_limit,
    ensemble_of,
    flat_trajectories,
    stochastic_limit,
    train,
)
from zeroloss.errors import InputError, IntegrationError
from zeroloss.optimizers import SGD
from zeroloss.studies._fits import jackknife
from zeroloss.systems import AbstractSystem, Scalar
from zeroloss.zero_sets import AbstractSpectrum, locate, norm_or_one, spectrum_of

FROM, TO = 0.25, 1.0
"""Steps are counted while training goes from a quarter of the drift to all of it.

The first quarter is left out because the noise around the set takes a while to build up.
"""

_SAVES = 48
_BEYOND = 1.3  # how far to train, in units of what theory says the drift takes
_EXTENSIONS = 2
_DEGREE = 3
_PROGRESS, _PARAMS = "progress", "params"  # of an item


class Target(NamedTuple):
    """The drift that training is to make, from the limit.

    Progress is 0 at the start and 1 at the limit's point at slow time `t1`. For a deterministic limit it is
    the projection of the displacement on the displacement of the limit, and `size` is the length of the
    latter. For a stochastic limit it is the mean squared tangential displacement, and `size` is that of the
    limit. `share` is the fraction of t1 that the limit takes from progress FROM to TO.
    """

    start: Vector
    spectrum: AbstractSpectrum
    t1: float
    time_scale: TimeScale
    stochastic: bool
    displacement: Float[np.ndarray, " parameters"]
    size: float
    size_error: float
    share: float


def target_of(
    system: AbstractSystem,
    point: PyTree,
    verdict: Verdict,
    drift: float,
    key: Key[Array, ""],
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> Target:
    """How far the limit goes, `drift` |w| or so, in how much slow time."""
    assert verdict.time_scale is not None
    zero_set, w = locate(system, point)
    expansion = expand_at(system, zero_set, w)
    spectrum, speed, variance = _motion(expansion, w, verdict.time_scale == FAST)
    reach = drift * float(norm_or_one(w))
    if verdict.stochastic:
        t1 = reach**2 / float(variance)
        replicas = int(np.clip(2e5 / w.shape[0], 64, 4096))
        path = stochastic_limit(
            expansion, w, verdict, Saves(at=[t1]), key, replicas, dt=t1 / 64, checkpoint=checkpoint
        )
        moved = flat_trajectories(path.params, 2)[:, 0] - np.asarray(w)
        squares = np.sum(np.asarray(jax.vmap(spectrum.tangent)(jnp.asarray(moved))) ** 2, axis=-1)
        return Target(
            start=w,
            spectrum=spectrum,
            t1=t1,
            time_scale=verdict.time_scale,
            stochastic=True,
            displacement=np.zeros(0),
            size=float(squares.mean()),
            size_error=float(squares.std(ddof=1) / np.sqrt(replicas)),
            share=TO - FROM,
        )
    if float(speed) * float(norm_or_one(w)) <= 1e-10 * max(verdict.first, verdict.second):
        raise InputError(
            "the limit does not move from this start: it is a stationary point of the drift, though the "
            "noise is not trivial elsewhere on the set. Start somewhere else."
        )
    t1 = reach / float(speed)
    for _ in range(20):
        try:
            path = deterministic_limit(expansion, w, verdict, Saves(t1, count=33))
            break
        except IntegrationError:
            t1 /= 2
    else:
        raise InputError(f"the limit cannot be followed from this start even to t = {t1:.3g}.")
    moved = flat_trajectories(path.params, 1) - np.asarray(w)
    size = float(np.linalg.norm(moved[-1]))
    share = TO - float(np.interp(FROM, moved @ moved[-1] / size**2, path.ts / t1))
    return Target(w, spectrum, t1, verdict.time_scale, False, moved[-1], size, 0.0, share)


@compiled_once
def _motion(expansion: AbstractExpansion, w: Vector, fast: bool) -> tuple[Any, Scalar, Scalar]:
    spectrum = spectrum_of(expansion.zero_set, w)
    if fast:
        return spectrum, jnp.linalg.norm(first_drift(expansion, w, spectrum)), jnp.zeros(())
    speed = jnp.linalg.norm(second_drift(expansion, w, spectrum))
    return spectrum, speed, expansion.tangential_variance(w, spectrum)


class Measurement(NamedTuple):
    """How long training took for the drift at one step size and sigma, and how far from the limit it ended.

    - `steps`: how many steps it took from a quarter of the drift to all of it; `steps_error` is the standard
      error of its logarithm. NaN where training did not get there.
    - `theory`: the same from the limit's slow time.
    - `distance`: how far the ensemble is from the limit at the same slow time, relative to the drift, with
      the ensemble's own scatter taken out; `distance_error` its standard error. For a stochastic limit the
      relative difference of the mean square displacements.
    """

    step_size: float
    sigma: float
    replicas: int
    steps: float
    steps_error: float
    theory: float
    distance: float
    distance_error: float
    seconds: float
    total_steps: int


def measure(
    system: AbstractSystem,
    params: PyTree,
    target: Target,
    step_size: float,
    replicas: int,
    key: Key[Array, ""],
    checkpoint: Checkpoint = NO_CHECKPOINT,
) -> Measurement:
    """Train an ensemble until it has made the drift of `target`, and measure how long that took."""
    sigma = system.noise_law(params).sigma
    expected = max(steps_for(target.t1, target.time_scale, step_size, sigma), 1)
    began, trained, earlier = perf_counter(), 0, 0.0

    def item(w: Float[Array, "replicas parameters"]) -> SavedArrays:
        return {_PROGRESS: np.asarray(_progress(target, w)), _PARAMS: np.asarray(w)}

    def attempt(number: int, end: float) -> tuple[SavedArrays, float, float]:
        nonlocal trained, earlier
        stage = checkpoint / f"attempt_{number}"
        at = np.unique(np.append(np.linspace(0, end, _SAVES).round().astype(int), expected))
        ensemble, states = ensemble_of(system, params, SGD(step_size), replicas, key)
        items = train(ensemble, states, at, item, stage)
        trained, earlier = trained + int(at[-1]), earlier + stage.earlier_seconds
        made = np.stack([item[_PROGRESS] for item in items], axis=1)  # [replica, time]
        return items[int(np.searchsorted(at, expected))], *jackknife(
            made, lambda curve: np.log(_steps_between(at, curve))
        )

    end = _BEYOND * expected
    arrival, logarithm, error = attempt(0, end)
    for number in range(_EXTENSIONS):
        if np.isfinite(error):
            break
        end *= 2
        arrival, logarithm, error = attempt(1 + number, end)
    distance, distance_error = _distance(target, arrival)
    return Measurement(
        step_size=step_size,
        sigma=sigma,
        replicas=replicas,
        steps=float(np.exp(logarithm)) if np.isfinite(error) else float("nan"),
        steps_error=error,
        theory=expected * target.share,
        distance=distance,
        distance_error=distance_error,
        seconds=checkpoint.computed_once("seconds", lambda: earlier + perf_counter() - began),
        total_steps=trained,
    )


@compiled
def _progress(target: Target, states: Float[Array, "replicas parameters"]) -> Float[Array, " replicas"]:
    moved = states - target.start
    if target.stochastic:
        along = jax.lax.map(target.spectrum.tangent, moved)
        return jnp.sum(along**2, axis=-1) / target.size
    return moved @ jnp.asarray(target.displacement) / target.size**2


def _steps_between(at: np.ndarray, curve: np.ndarray) -> float:
    """Steps from progress FROM to TO on a smooth curve through the measurements."""
    scale = at[-1]
    fine = np.linspace(0, 1, 4001)
    smooth = np.polynomial.Polynomial.fit(at / scale, curve, _DEGREE)(fine)
    first = [np.argmax(smooth >= level) for level in (FROM, TO)]
    if smooth.max() < TO or first[0] == 0:
        return float("nan")
    crossings = [
        fine[i - 1] + (level - smooth[i - 1]) / (smooth[i] - smooth[i - 1]) * (fine[i] - fine[i - 1])
        for i, level in zip(first, (FROM, TO), strict=True)
    ]
    return float((crossings[1] - crossings[0]) * scale)


def _distance(target: Target, arrival: SavedArrays) -> tuple[float, float]:
    """Distance of the ensemble from the limit at t1, without its own scatter, and the standard error."""
    if target.stochastic:
        made = arrival[_PROGRESS]
        error = np.hypot(made.std(ddof=1) / np.sqrt(len(made)), target.size_error / target.size)
        return abs(float(made.mean()) - 1), float(error)
    gap = arrival[_PARAMS] - np.asarray(target.start) - target.displacement
    replicas = len(gap)
    scatter = gap.var(axis=0, ddof=1).sum() / replicas
    squared = float(np.sum(gap.mean(axis=0) ** 2) - scatter)
    along = gap @ gap.mean(axis=0) / max(np.linalg.norm(gap.mean(axis=0)), TINY)
    error = along.std(ddof=1) / np.sqrt(replicas)
    return float(np.sqrt(max(squared, 0.0))) / target.size, float(error) / target.size
