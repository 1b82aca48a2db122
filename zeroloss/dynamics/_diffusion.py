"""Stochastic limits: a stochastic differential equation on the zero-loss set (theory.md, section 2)."""

import time
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from zeroloss._checkpoint import Checkpoint, digest, facts_of
from zeroloss._progress import progress_bar
from zeroloss._pytrees import Vector
from zeroloss.drifts._drift import second_drift
from zeroloss.drifts._expansion import AbstractExpansion
from zeroloss.dynamics._trajectory import Recorder, Trajectory
from zeroloss.errors import IntegrationError
from zeroloss.systems import Scalar
from zeroloss.zero_sets import ON_SET, length, spectrum_of

_STEP = 0.03  # of |w|: what one time step moves by default
_BACK = 0.9  # of a step: where the retraction takes back more, the step was too long
_FIRST_CHUNK = 16
_SECONDS_PER_CHUNK = 0.5


def diffuse(
    expansion: AbstractExpansion,
    start: Vector,
    times: np.ndarray,
    recorder: Recorder,
    key: Key[Array, ""],
    replicas: int,
    dt: float | None,
    progress: bool,
    checkpoint: Checkpoint,
) -> Trajectory:
    """Follow dW = P_T G dB + b(W) dt in an ensemble, saving at `times`.

    Euler and Maruyama's step in the tangent space with P_T b, then a retraction along the normal space, which
    supplies the normal part of b (weak order one; Ciccotti, Lelievre and Vanden-Eijnden 2008). Steps
    come in pairs, and a second ensemble takes one step of twice the length on the same noise: the
    difference of the two is the estimate of the error.
    """
    keys = jax.random.split(key, replicas)
    dt = float(_default_step(expansion, start)) if dt is None else dt
    states = jnp.tile(start, (replicas, 1))
    ensemble = _Ensemble(states, states, jnp.full(replicas, jnp.inf), jnp.zeros(replicas, int))
    largest = _largest_eigenvalue(expansion, start)
    chunk = _FIRST_CHUNK

    def facts() -> dict[str, Any]:
        t1 = float(times[-1])
        return facts_of(expansion.system, start, times, t1=t1, replicas=replicas, dt=dt, keys=digest(keys))

    with checkpoint.open(), progress_bar("limit", float(times[-1]), progress, "slow time") as show:
        # What has been done, in pairs of steps and in time, and the pairs that lead to the next time saved.
        state = checkpoint.begin((ensemble, 0, 0.0, -1, 0.0), recorder, facts)
        ensemble, done, t, pairs, h = state
        for target in times[len(recorder.items) :]:
            if pairs < 0:
                pairs = int(np.ceil((target - t) / (2 * dt) - 1e-9))
                h = float((target - t) / (2 * max(pairs, 1)))
            while pairs > 0:
                count = min(chunk, pairs)
                began = time.perf_counter()
                ensemble = _advance(expansion, ensemble, keys, done, count, t, h, largest)
                _check(expansion, ensemble, recorder, dt)
                if count == chunk and time.perf_counter() - began < _SECONDS_PER_CHUNK / 2:
                    chunk *= 2
                done, pairs, t = done + count, pairs - count, t + 2 * h * count
                show(t)
                checkpoint.keep(lambda: (ensemble, done, t, pairs, h), recorder)  # noqa: B023
            t, pairs = float(target), -1
            _check_on_set(expansion, ensemble, recorder, t)
            fine, coarse = ensemble.fine, ensemble.coarse
            recorder.save_with_bias(*((fine, coarse) if recorder.batched else (fine[0], coarse[0])))
        checkpoint.keep(lambda: (ensemble, done, t, pairs, h), recorder, last=True)
    return recorder.path()


class _Ensemble(NamedTuple):
    """Where the replicas stand, with single and with double steps; when and how one failed."""

    fine: Float[Array, "replicas parameters"]
    coarse: Float[Array, "replicas parameters"]
    failed_at: Float[Array, " replicas"]
    failure: Array


_RANK, _LANDING = 1, 2


def _advance(
    expansion: AbstractExpansion,
    ensemble: _Ensemble,
    keys: Key[Array, " replicas"],
    done: int,
    count: int,
    t: float,
    h: float,
    largest: Scalar,
) -> _Ensemble:
    begin, end = jnp.asarray(done), jnp.asarray(done + count)
    return _advance_compiled(expansion, ensemble, keys, begin, end, jnp.asarray(t), jnp.asarray(h), largest)


@eqx.filter_jit
def _largest_eigenvalue(expansion: AbstractExpansion, w: Vector) -> Scalar:
    return jnp.max(jnp.abs(spectrum_of(expansion.zero_set, w).eigenvalues))


@eqx.filter_jit
def _advance_compiled(
    expansion: AbstractExpansion,
    ensemble: _Ensemble,
    keys: Key[Array, " replicas"],
    begin: Array,
    end: Array,
    t: Scalar,
    h: Scalar,
    largest: Scalar,
) -> _Ensemble:
    """Pairs of steps `begin` to `end` of every replica: one compiled loop, whatever their number."""

    def one(replica: _Ensemble, key: Key[Array, ""]) -> _Ensemble:
        def pair(index: Array, replica: _Ensemble) -> _Ensemble:
            size = expansion.factor(replica.fine).in_size()
            first, second = jax.random.normal(jax.random.fold_in(key, index), (2, size))
            middle, failure = _step(expansion, replica.fine, h, first, largest)
            fine, later = _step(expansion, middle, h, second, largest)
            coarse, _ = _step(expansion, replica.coarse, 2 * h, (first + second) / jnp.sqrt(2.0), largest)
            failure = jnp.where(failure > 0, failure, later)
            new = (replica.failure == 0) & (failure > 0)
            return _Ensemble(
                fine,
                coarse,
                jnp.where(new, t + 2 * h * (index - begin), replica.failed_at),
                jnp.where(new, failure, replica.failure),
            )

        return jax.lax.fori_loop(begin, end, pair, replica)

    return jax.vmap(one)(ensemble, keys)


def _step(
    expansion: AbstractExpansion, w: Vector, h: Scalar, noise: Array, largest: Scalar
) -> tuple[Vector, Array]:
    """One step, and what went wrong in it: 0 for nothing."""
    zero_set, spectrum = expansion.zero_set, spectrum_of(expansion.zero_set, w)
    drift = second_drift(expansion, w, spectrum)
    move = h * drift + jnp.sqrt(h) * spectrum.tangent(expansion.factor(w).mv(noise))
    landed = zero_set.retract(w + move)
    back = jnp.linalg.norm(landed - w - move)
    missed = ~(back <= _BACK * jnp.linalg.norm(move))  # also where it is not finite
    rank = jnp.sum(jnp.abs(spectrum.eigenvalues) > zero_set.fall_tolerance * largest)
    return landed, jnp.where(rank != zero_set.rank, _RANK, jnp.where(missed, _LANDING, 0))


@eqx.filter_jit
def _default_step(expansion: AbstractExpansion, w: Vector) -> Scalar:
    spectrum = spectrum_of(expansion.zero_set, w)
    reach = _STEP * length(w)
    speed = jnp.linalg.norm(second_drift(expansion, w, spectrum))
    variance = expansion.tangential_variance(w, spectrum)
    return 1 / (speed / reach + variance / reach**2)


def _check(expansion: AbstractExpansion, ensemble: _Ensemble, recorder: Recorder, dt: float) -> None:
    failed = np.asarray(ensemble.failed_at)
    if not np.isfinite(failed).any():
        return
    first = int(np.argmin(failed))
    where = f"replica {first} of {len(failed)} at t = {failed[first]:.6g}"
    if int(ensemble.failure[first]) == _RANK:
        problem = (
            f"{where}: the Hessian no longer has rank {expansion.zero_set.rank}: an eigenvalue fell below "
            f"{expansion.zero_set.fall_tolerance:g} of the largest at the start. The path has left the "
            "region where the zero-loss set is a manifold of constant rank; it can be followed up to an "
            "earlier time."
        )
    else:
        problem = (
            f"{where}: the step left the zero-loss set too far to return to it. Take a smaller dt than "
            f"{dt:.3g}."
        )
    raise IntegrationError(problem, recorder.path() if recorder.started else None)


def _check_on_set(expansion: AbstractExpansion, ensemble: _Ensemble, recorder: Recorder, t: float) -> None:
    worst = float(_worst_residual(expansion, ensemble.fine))
    if not worst <= ON_SET:
        raise IntegrationError(
            f"at t = {t:.6g} a replica could not be kept on the zero-loss set: its relative residual is "
            f"{worst:.3g}. Take a smaller dt.",
            recorder.path() if recorder.started else None,
        )


@eqx.filter_jit
def _worst_residual(expansion: AbstractExpansion, states: Float[Array, "replicas parameters"]) -> Scalar:
    return jnp.max(jax.lax.map(expansion.zero_set.relative_residual, states))
