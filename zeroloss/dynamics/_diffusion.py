"""Stochastic limits: a stochastic differential equation on the zero-loss set (theory.md, section 2)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from zeroloss._checkpoint import SavedArrays, digest, facts_of
from zeroloss._compilation import compiled, compiled_once
from zeroloss._pytrees import Vector
from zeroloss.drifts import AbstractExpansion, second_drift
from zeroloss.dynamics._driver import AbstractEvolution
from zeroloss.dynamics._recorder import Recorder
from zeroloss.dynamics._trajectory import Trajectory
from zeroloss.errors import IntegrationError
from zeroloss.systems import Scalar
from zeroloss.zero_sets import ON_SET, norm_or_one, spectrum_of

_STEP = 0.03  # of |w|: what one time step moves by default
_LARGEST_RETRACTION = 0.9  # a step is too long where the retraction takes back more than this share of it


class Diffusion(AbstractEvolution["_State"]):
    """dW = P_T G dB + b(W) dt in an ensemble, as an evolution.

    Euler and Maruyama's step in the tangent space with P_T b, then a retraction along the normal space, which
    supplies the normal part of b (weak order one; Ciccotti, Lelievre and Vanden-Eijnden 2008). Steps
    come in pairs, and a second ensemble takes one step of twice the length on the same noise: the
    difference of the two is the estimate of the error.
    """

    name, unit = "limit", "slow time"
    first_chunk = 16

    def __init__(
        self,
        expansion: AbstractExpansion,
        start: Vector,
        times: np.ndarray,
        key: Key[Array, ""],
        replicas: int,
        dt: float | None,
        recorder: Recorder,
    ):
        self._expansion, self._start, self._times, self._recorder = expansion, start, times, recorder
        self._keys = jax.random.split(key, replicas)
        self._dt = float(_default_step(expansion, start)) if dt is None else dt
        self._largest = _largest_eigenvalue(expansion, start)

    def start(self) -> "_State":
        replicas = len(self._keys)
        w = jnp.tile(self._start, (replicas, 1))
        return _State(_Ensemble(w, w, jnp.full(replicas, jnp.inf), jnp.zeros(replicas, int)), 0, 0.0, -1, 0.0)

    def position(self, state: "_State") -> float:
        return state.t

    def advance(self, state: "_State", target: float, chunk: int) -> "_State":
        ensemble, done, t, pairs, h = state
        if pairs < 0:  # a new target
            pairs = int(np.ceil((target - t) / (2 * self._dt) - 1e-9))
            h = float((target - t) / (2 * max(pairs, 1)))
        count = min(chunk, pairs)
        if count > 0:
            begin, end = jnp.asarray(done), jnp.asarray(done + count)
            ensemble = _advance(
                self._expansion,
                ensemble,
                self._keys,
                begin,
                end,
                jnp.asarray(t),
                jnp.asarray(h),
                self._largest,
            )
            self._check(ensemble)
        done, pairs, t = done + count, pairs - count, t + 2 * h * count
        return (
            _State(ensemble, done, t, pairs, h) if pairs > 0 else _State(ensemble, done, float(target), -1, h)
        )

    def item(self, state: "_State", time: float) -> SavedArrays:
        fine, coarse = state.ensemble.fine, state.ensemble.coarse
        worst = float(_worst_residual(self._expansion, fine))
        if not worst <= ON_SET:
            raise IntegrationError(
                f"at t = {time:.6g} a replica could not be kept on the zero-loss set: its relative residual "
                f"is {worst:.3g}. Take a smaller dt."
            )
        return self._recorder.item_with_bias(
            *((fine, coarse) if self._recorder.batched else (fine[0], coarse[0]))
        )

    def facts(self) -> dict[str, Any]:
        return facts_of(
            self._expansion.system, self._start, self._times, t1=float(self._times[-1]),
            replicas=len(self._keys), dt=self._dt, keys=digest(self._keys),
        )  # fmt: skip

    def trajectory(self, items: list[SavedArrays]) -> Trajectory:
        return self._recorder.trajectory(items)

    def _check(self, ensemble: "_Ensemble") -> None:
        """Raise `IntegrationError` where a replica has failed."""
        failed = np.asarray(ensemble.failed_at)
        if not np.isfinite(failed).any():
            return
        first = int(np.argmin(failed))
        where = f"replica {first} of {len(failed)} at t = {failed[first]:.6g}"
        if int(ensemble.failure[first]) != _RANK:
            raise IntegrationError(
                f"{where}: the step left the zero-loss set too far to return to it. Take a smaller dt than "
                f"{self._dt:.3g}."
            )
        zero_set = self._expansion.zero_set
        raise IntegrationError(
            f"{where}: the Hessian no longer has rank {zero_set.rank}: an eigenvalue fell below "
            f"{zero_set.fall_tolerance:g} of the largest at the start. The path has left the region where "
            "the zero-loss set is a manifold of constant rank; it can be followed up to an earlier time."
        )


class _Ensemble(NamedTuple):
    """The replicas after single steps and after double steps; when and how one failed."""

    fine: Float[Array, "replicas parameters"]
    coarse: Float[Array, "replicas parameters"]
    failed_at: Float[Array, " replicas"]
    failure: Array


class _State(NamedTuple):
    """The ensemble after `done` pairs of steps, at time t.

    `pairs` more of step `h` lead to the next time saved; -1 where that time is not chosen yet.
    """

    ensemble: _Ensemble
    done: int
    t: float
    pairs: int
    h: float


_RANK, _LANDING = 1, 2


@compiled_once
def _largest_eigenvalue(expansion: AbstractExpansion, w: Vector) -> Scalar:
    return jnp.max(jnp.abs(spectrum_of(expansion.zero_set, w).eigenvalues))


@compiled
def _advance(
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
    retracted = jnp.linalg.norm(landed - w - move)
    missed = ~(retracted <= _LARGEST_RETRACTION * jnp.linalg.norm(move))  # also where it is not finite
    rank = jnp.sum(jnp.abs(spectrum.eigenvalues) > zero_set.fall_tolerance * largest)
    return landed, jnp.where(rank != zero_set.rank, _RANK, jnp.where(missed, _LANDING, 0))


@compiled_once
def _default_step(expansion: AbstractExpansion, w: Vector) -> Scalar:
    spectrum = spectrum_of(expansion.zero_set, w)
    reach = _STEP * norm_or_one(w)
    speed = jnp.linalg.norm(second_drift(expansion, w, spectrum))
    variance = expansion.tangential_variance(w, spectrum)
    return 1 / (speed / reach + variance / reach**2)


@compiled
def _worst_residual(expansion: AbstractExpansion, states: Float[Array, "replicas parameters"]) -> Scalar:
    return jnp.max(jax.lax.map(expansion.zero_set.relative_residual, states))
