"""Deterministic limits: an ordinary differential equation on the zero-loss set (theory.md, section 2)."""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from zeroloss._checkpoint import SavedArrays, facts_of
from zeroloss._compilation import compiled, compiled_once
from zeroloss._pytrees import Vector
from zeroloss.drifts import FAST, AbstractExpansion, TimeScale, first_drift, second_drift_of
from zeroloss.dynamics._driver import AbstractEvolution
from zeroloss.dynamics._recorder import Recorder
from zeroloss.dynamics._trajectory import Trajectory
from zeroloss.errors import IntegrationError
from zeroloss.systems import Scalar
from zeroloss.zero_sets import ON_SET, looks_smooth

_MAX_STEPS = 10_000  # of the integrator, between two times saved
_SHORTEST = 1e-14  # step, of the whole time
_SHORTEST_AT_KINKS = 1 / 2000  # step, of the whole time, where the loss has kinks
_RTOL_AT_KINKS = 1e-5


class Flow(AbstractEvolution["_State"]):
    """dW/dt = -P_T grad Reg(W), or dW/dt = b(W) on the slow scale, as an evolution.

    Dormand-Prince 8(7) with step size control, and a retraction after each step, which keeps the order
    (projection method; Hairer, Lubich and Wanner 2006, section IV.4). 13 drifts a step.

    Where the loss is not `smooth`, as with ReLU units, the drift jumps at kinks. A path may slide along one,
    where the drift points to it from both sides: it crosses the kink again and again, and on average follows
    a mixture of both drifts (Filippov). An error estimate that expects derivatives would shorten steps there
    without end. Steps are therefore no shorter than a 2000th of the whole time, and of second order (Heun; 2
    drifts). The error across a kink is of the order of a step. `coarser` makes all steps longer by this
    factor, to see the error.
    """

    name, unit = "limit", "slow time"

    def __init__(
        self,
        expansion: AbstractExpansion,
        start: Vector,
        times: np.ndarray,
        scale: TimeScale,
        rtol: float,
        smooth: bool,
        recorder: Recorder,
        coarser: float = 1.0,
    ):
        self._expansion, self._start, self._times, self._recorder = expansion, start, times, recorder
        self._end, self._method = jnp.asarray(times[-1]), _Method(scale == FAST, smooth)
        # The error of a second-order method falls with the square of the step.
        self._rtol = jnp.asarray(rtol if smooth else coarser**2 * max(rtol, _RTOL_AT_KINKS))
        self._shortest = self._end * (_SHORTEST if smooth else coarser * _SHORTEST_AT_KINKS)
        self._facts = dict(time_scale=scale, t1=float(times[-1]), rtol=rtol, smooth=smooth)

    def start(self) -> "_State":
        return _begin(self._expansion, self._method, self._start, self._end, self._shortest, self._rtol)

    def position(self, state: "_State") -> float:
        return float(state.t)

    def advance(self, state: "_State", target: float, chunk: int) -> "_State":
        time = jnp.asarray(target)
        state = _advance(self._expansion, self._method, state, time, self._end, self._shortest, self._rtol)
        problem = _problem(self._expansion, state, target)
        if problem is not None:
            whole = self._expansion.zero_set.rank in (None, int(state.rank))
            at_kink = self._method.smooth and whole and not looks_smooth(self._expansion.zero_set, state.w)
            raise (KinkError if at_kink else IntegrationError)(problem)
        return state

    def item(self, state: "_State", time: float) -> SavedArrays:
        w, residual = _at_time(self._expansion, self._method, state, jnp.asarray(time))
        if not float(residual) <= ON_SET:
            raise IntegrationError(
                f"at t = {time:.6g} the path could not be kept on the zero-loss set: its relative residual "
                f"is {float(residual):.3g}."
            )
        return self._recorder.item(w)

    def facts(self) -> dict[str, Any]:
        return facts_of(self._expansion.system, self._start, self._times, **self._facts)

    def trajectory(self, items: list[SavedArrays]) -> Trajectory:
        return self._recorder.trajectory(items)


class KinkError(IntegrationError):
    """The flow got stuck at a kink of a loss that looked smooth at the start."""


class _Method(NamedTuple):
    """Which drift is integrated, and by which solver."""

    fast: bool
    smooth: bool

    @property
    def solver(self) -> diffrax.AbstractAdaptiveSolver:
        return diffrax.Dopri8() if self.smooth else diffrax.Heun()

    @property
    def error_order(self) -> float:
        return 8.0 if self.smooth else 2.0

    def controller(self, w: Vector, shortest: Scalar, rtol: Scalar) -> diffrax.PIDController:
        typical = jnp.linalg.norm(w) / jnp.sqrt(w.shape[0])
        least = None if self.smooth else shortest
        return diffrax.PIDController(rtol=rtol, atol=rtol * typical, dtmin=least)  # pyright: ignore


class _State(eqx.Module):
    """The state of the integrator at time t, after a step from `t_before`.

    `rank` is the rank of the Hessian at w: the number of eigenvalues above `fall_tolerance` times `largest`,
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
    return first_drift(expansion, w, expansion.zero_set.spaces(w)) if fast else second_drift_of(expansion, w)


_TERM = diffrax.ODETerm(_field)


@compiled_once
def _begin(
    expansion: AbstractExpansion, method: _Method, w: Vector, end: Scalar, shortest: Scalar, rtol: Scalar
) -> _State:
    args, solver = (expansion, method.fast), method.solver
    zero = jnp.zeros(())
    # The final time is for controllers that look ahead; 0 leaves the first step to the tolerance.
    dt, controller_state = method.controller(w, shortest, rtol).init(
        _TERM, zero, zero, w, None, args, solver.func, method.error_order
    )
    dt = jnp.asarray(dt)
    solver_state = solver.init(_TERM, zero, dt, w, args)
    _, _, shapes, _, _ = eqx.filter_eval_shape(
        solver.step, _TERM, zero, dt, w, args, solver_state, made_jump=False
    )
    no_step = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    largest = expansion.zero_set.largest(w)
    rank = _rank(expansion, w, largest)
    return _State(zero, zero, dt, w, no_step, solver_state, controller_state, jnp.asarray(0), largest, rank)


def _rank(expansion: AbstractExpansion, w: Vector, largest: Scalar) -> Array:
    return expansion.zero_set.rank_above(w, expansion.zero_set.fall_tolerance * largest)


@compiled
def _advance(
    expansion: AbstractExpansion,
    method: _Method,
    state: _State,
    time: Scalar,
    end: Scalar,
    shortest: Scalar,
    rtol: Scalar,
) -> _State:
    """Step until `time` is reached or passed, but never beyond `end`."""
    args, solver = (expansion, method.fast), method.solver

    def unfinished(state: _State) -> Array:
        regular = (state.rank == expansion.zero_set.rank) | (expansion.zero_set.rank is None)
        return (state.t < time) & (state.steps < _MAX_STEPS) & regular & (state.dt > _SHORTEST * end)

    def step(state: _State) -> _State:
        t_next = jnp.minimum(state.t + state.dt, end)
        candidate, error, dense_info, solver_state, _ = solver.step(
            _TERM, state.t, t_next, state.w, args, state.solver_state, made_jump=False
        )
        error = jnp.asarray(error)
        error = jnp.where(jnp.isfinite(error), error, jnp.inf)  # a step gone astray is rejected
        controller = method.controller(state.w, shortest, rtol)
        keep, new_t0, new_t1, _, controller_state, _ = controller.adapt_step_size(
            state.t,
            t_next,
            state.w,
            candidate,
            args,
            error,
            method.error_order,
            state.controller_state,
        )

        keep = keep & jnp.all(jnp.isfinite(candidate))  # also where steps cannot become shorter

        def accept() -> _State:
            w = expansion.zero_set.retract(candidate)
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


@compiled_once
def _at_time(
    expansion: AbstractExpansion, method: _Method, state: _State, time: Scalar
) -> tuple[Vector, Scalar]:
    """The point of the set at `time`, within the last step; and its relative residual."""
    zero_set = expansion.zero_set
    interpolation = method.solver.interpolation_cls(t0=state.t_before, t1=state.t, **state.dense_info)
    inside = (time < state.t) & (state.t > state.t_before)
    w = jax.lax.cond(inside, lambda: zero_set.retract(interpolation.evaluate(time)), lambda: state.w)
    return w, zero_set.relative_residual(w)


def _problem(expansion: AbstractExpansion, state: _State, time: float) -> str | None:
    """Why the flow did not reach `time` as a path of constant rank; None where it did."""
    zero_set, t, rank = expansion.zero_set, float(state.t), int(state.rank)
    if zero_set.rank not in (None, rank):
        return (
            f"at t = {t:.6g} the Hessian has rank {rank}, having begun with {zero_set.rank}: an eigenvalue "
            f"fell below {zero_set.fall_tolerance:g} of the largest at the start. The path has left "
            "the region where the zero-loss set is a manifold of constant rank, perhaps towards a sparser "
            "solution; it can be followed up to an earlier time."
        )
    if t < time:
        return (
            f"the flow could not be followed past t = {t:.6g} (of {time:.6g}): after {int(state.steps)} "
            f"integrator steps, the next would be {float(state.dt):.3g} long."
        )
    return None
