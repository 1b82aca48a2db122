"""The limiting dynamics on the zero-loss set (theory.md, section 2)."""

from collections.abc import Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from zeroloss.dynamics.drift import first_drift, second_drift
from zeroloss.dynamics.expansion import AbstractExpansion, expand
from zeroloss.dynamics.path import Observables, Path, Recorder
from zeroloss.dynamics.regime import FAST, Regime, classify_at
from zeroloss.errors import InputError, IntegrationError, UnsupportedError
from zeroloss.manifold import locate
from zeroloss.manifold.locate import ON_SET
from zeroloss.progress import progress_bar
from zeroloss.pytrees import Vector, refuse_tracing
from zeroloss.system import AbstractSystem, Scalar

_MAX_STEPS = 10_000  # of the integrator, between two times saved
_POINTS = 6
_LARGEST_RTOL = 1e-2


def limit(
    system: AbstractSystem,
    point: PyTree,
    t1: float = 1.0,
    *,
    ts: Sequence[float] | np.ndarray | None = None,
    saves: int = 50,
    regime: Regime | None = None,
    observables: Observables | None = None,
    rtol: float = 1e-8,
    key: Key[Array, ""] | None = None,
    replicas: int | None = None,
    progress: bool = False,
) -> Path:
    """Follow the limit of training as step size and noise go to zero, on the slow time scale.

    Non-degenerate noise: dW/dt = -P_T grad Reg(W), t = alpha sigma^2 k. Degenerate noise:
    dW/dt = b(W), t = alpha^2 sigma^2 k. Trivial noise: the path stays where it is. k counts training steps.

    **Arguments:**

    - `system`, `point`: a system and a point of its zero-loss set.
    - `t1`: the slow time to follow it to, from 0.
    - `ts`: increasing slow times to save at; by default `saves` evenly spaced ones from 0 to `t1`.
    - `regime`: the verdict of `zeroloss.classify` if it is already known.
    - `observables`: functions of the parameters to measure at the times saved, by name.
    - `rtol`: relative accuracy of the integrator, Dormand-Prince 8(7) with retraction onto the set
      after every step, so that the loss stays zero to rounding.
    - `key`, `replicas`: for stochastic limits.
    - `progress`: whether to show a progress bar in a terminal.

    **Returns:** a `Path` in slow time; `time_scale` says which.

    **Raises:** `NotOnSetError`, `RankError`; `UnsupportedError` when the limit is stochastic;
    `IntegrationError`, with the path so far, when the set stops being a manifold of constant rank
    along the path, or the drift cannot be resolved.

    Costs 13 drifts and a few corrections per integrator step, d memory per time saved.
    """
    times = _times(t1, ts, saves)
    if not 0 < rtol <= _LARGEST_RTOL:
        raise InputError(f"rtol must lie in (0, {_LARGEST_RTOL:g}], got {rtol}.")
    refuse_tracing((system, point), "limit")
    manifold, start = locate(system, point)
    expansion = expand(system, manifold)
    if regime is None:
        regime = classify_at(expansion, start, jax.random.key(0) if key is None else key, _POINTS)
    if regime.stochastic:
        raise UnsupportedError(
            f"the limit of this noise is stochastic (measure of its diffusion {regime.diffusion:.3g}); this "
            "version follows deterministic limits only."
        )
    if replicas is not None:
        raise InputError("replicas make sense for a stochastic limit only, and this one is deterministic.")
    recorder = Recorder(expansion, observables)
    return _follow(expansion, start, times, regime, recorder, rtol, progress)


def _follow(
    expansion: AbstractExpansion,
    start: Vector,
    times: np.ndarray,
    regime: Regime,
    recorder: Recorder,
    rtol: float,
    progress: bool,
) -> Path:
    scale = regime.time_scale
    if scale is None:
        for _ in times:
            recorder.save(start)
        return recorder.path(times, None, None)
    fast, tolerance, end = scale == FAST, jnp.asarray(rtol), jnp.asarray(times[-1])
    state = _begin(expansion, fast, start, tolerance)
    with progress_bar("limit", float(times[-1]), progress) as show:
        for time in times:
            if time > 0:
                state = _advance(expansion, fast, state, jnp.asarray(time), end, tolerance)
            w, residual = _at_time(expansion, state, jnp.asarray(time))
            problem = _problem(expansion, state, float(time), float(residual))
            if problem is not None:
                so_far = recorder.path(times, None, scale) if recorder.started else None
                raise IntegrationError(problem, so_far)
            recorder.save(w)
            show(float(time))
    return recorder.path(times, None, scale)


class _State(eqx.Module):
    """Where the integrator stands: at t, having come from `t_before` in one step.

    `rank` is that of the Hessian at w: how many eigenvalues are above `rank_tolerance` times `largest`,
    the largest at the start.
    """

    t: Scalar
    t_before: Scalar
    dt: Scalar
    w: Vector
    dense_info: Any
    solver_state: Any
    controller_state: Any
    steps: Array
    largest: Scalar
    rank: Array


def _field(t: Any, w: Vector, args: tuple[AbstractExpansion, bool]) -> Vector:
    expansion, fast = args
    geometry = expansion.manifold.at(w)
    return first_drift(expansion, w, geometry) if fast else second_drift(expansion, w, geometry)


_TERM = diffrax.ODETerm(_field)
_SOLVER = diffrax.Dopri8()
_ERROR_ORDER = 8.0


def _controller(w: Vector, rtol: Scalar) -> diffrax.PIDController:
    typical = jnp.linalg.norm(w) / jnp.sqrt(w.shape[0])
    return diffrax.PIDController(rtol=rtol, atol=rtol * typical)  # pyright: ignore


@eqx.filter_jit
def _begin(expansion: AbstractExpansion, fast: bool, w: Vector, rtol: Scalar) -> _State:
    args = (expansion, fast)
    zero = jnp.zeros(())
    dt, controller_state = _controller(w, rtol).init(
        _TERM, zero, zero, w, None, args, _SOLVER.func, _ERROR_ORDER
    )
    dt = jnp.asarray(dt)
    solver_state = _SOLVER.init(_TERM, zero, dt, w, args)
    _, _, shapes, _, _ = eqx.filter_eval_shape(
        _SOLVER.step, _TERM, zero, dt, w, args, solver_state, made_jump=False
    )
    no_step = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    largest = jnp.max(jnp.abs(expansion.manifold.at(w).eigenvalues))
    rank = _rank(expansion, w, largest)
    return _State(zero, zero, dt, w, no_step, solver_state, controller_state, jnp.asarray(0), largest, rank)


def _rank(expansion: AbstractExpansion, w: Vector, largest: Scalar) -> Array:
    sizes = jnp.abs(expansion.manifold.at(w).eigenvalues)
    return jnp.sum(sizes > expansion.manifold.rank_tolerance * largest)


@eqx.filter_jit
def _advance(
    expansion: AbstractExpansion,
    fast: bool,
    state: _State,
    time: Scalar,
    end: Scalar,
    rtol: Scalar,
) -> _State:
    """Step until `time` is reached or passed, but never beyond `end`.

    Each accepted step ends with a retraction, which keeps the order (projection method; Hairer,
    Lubich and Wanner 2006, section IV.4).
    """
    args = (expansion, fast)

    def unfinished(state: _State) -> Array:
        regular = state.rank == expansion.manifold.rank
        return (state.t < time) & (state.steps < _MAX_STEPS) & regular

    def step(state: _State) -> _State:
        t_next = jnp.minimum(state.t + state.dt, end)
        candidate, error, dense_info, solver_state, _ = _SOLVER.step(
            _TERM, state.t, t_next, state.w, args, state.solver_state, made_jump=False
        )
        error = jnp.where(jnp.isfinite(error), error, jnp.inf)  # a step gone astray is rejected
        keep, new_t0, new_t1, _, controller_state, _ = _controller(state.w, rtol).adapt_step_size(
            state.t,
            t_next,
            state.w,
            candidate,
            args,
            error,
            _ERROR_ORDER,
            state.controller_state,
        )

        def accept() -> _State:
            w = expansion.manifold.retract(candidate)
            return _State(
                t=t_next,
                t_before=state.t,
                dt=jnp.asarray(new_t1 - new_t0),
                w=w,
                dense_info=dense_info,
                solver_state=solver_state,
                controller_state=controller_state,
                steps=state.steps + 1,
                largest=state.largest,
                rank=_rank(expansion, w, state.largest),
            )

        def reject() -> _State:
            shorter = (new_t1 - new_t0, controller_state, state.steps + 1)
            return eqx.tree_at(lambda s: (s.dt, s.controller_state, s.steps), state, shorter)

        return jax.lax.cond(keep, accept, reject)

    return jax.lax.while_loop(unfinished, step, eqx.tree_at(lambda s: s.steps, state, jnp.asarray(0)))


@eqx.filter_jit
def _at_time(expansion: AbstractExpansion, state: _State, time: Scalar) -> tuple[Vector, Scalar]:
    """The point of the set at `time`, within the last step; and its relative residual."""
    manifold = expansion.manifold
    interpolation = _SOLVER.interpolation_cls(t0=state.t_before, t1=state.t, **state.dense_info)
    inside = (time < state.t) & (state.t > state.t_before)
    w = jax.lax.cond(inside, lambda: manifold.retract(interpolation.evaluate(time)), lambda: state.w)
    return w, manifold.relative_residual(w)


def _problem(expansion: AbstractExpansion, state: _State, time: float, residual: float) -> str | None:
    manifold, t, rank = expansion.manifold, float(state.t), int(state.rank)
    if rank != manifold.rank:
        return (
            f"at t = {t:.6g} the Hessian has rank {rank}, having begun with {manifold.rank}: an eigenvalue "
            f"fell below {manifold.rank_tolerance:g} of the largest at the start. The path has left "
            "the region where the zero-loss set is a manifold of constant rank, perhaps towards a sparser "
            "solution; it can be followed up to an earlier time."
        )
    if t < time:
        return (
            f"the flow could not be followed past t = {t:.6g} (of {time:.6g}): {_MAX_STEPS} integrator steps "
            f"were used up and the last was {float(state.dt):.3g} long."
        )
    if not residual <= ON_SET:
        return (
            f"at t = {time:.6g} the path could not be kept on the zero-loss set: its relative residual is "
            f"{residual:.3g}."
        )
    return None


def _times(t1: float, ts: Sequence[float] | np.ndarray | None, saves: int) -> np.ndarray:
    if ts is None:
        if not (t1 > 0 and np.isfinite(t1)):
            raise InputError(f"t1 must be positive and finite, got {t1}.")
        if saves < 2:
            raise InputError(f"saves must be at least 2, got {saves}.")
        return np.linspace(0.0, t1, saves)
    times = np.asarray(ts, float)
    if times.ndim != 1 or times.size == 0 or not np.isfinite(times).all():
        raise InputError("ts must be a non-empty one-dimensional sequence of finite times.")
    if times[0] < 0 or (np.diff(times) <= 0).any():
        raise InputError(f"ts must be increasing and not negative, got {times}.")
    return times
