"""Finding the zero-loss set, and making sure that a point is a good one."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from zeroloss._compilation import compiled, compiled_once
from zeroloss._memoized import memoized
from zeroloss._pytrees import Vector, flatten, is_traced, refuse_tracing, require_float64
from zeroloss._tolerances import NEWTON_ITERATIONS, ON_SET, PROJECTED
from zeroloss.errors import LossError, NotOnSetError, NotReachedError, RankError
from zeroloss.systems import AbstractSystem, Scalar, Supervised
from zeroloss.zero_sets._contradictions import contradiction, number, proof
from zeroloss.zero_sets._diagnosis import DescentPoint, diagnosis, endless_fall, no_descent
from zeroloss.zero_sets._regularity import check_smooth
from zeroloss.zero_sets._selection import zero_set_of
from zeroloss.zero_sets._zero_set import AbstractZeroSet, norm_or_one, spectrum_at

_FIRST_DESCENT = 200  # steps
_SHORT_JUMP = 0.02  # of |w|
_ROUNDED_LOSS = 1e-15  # a loss that is zero but for rounding, of terms of the order of one
_ROUNDING = 1e-13  # relative rise of the loss that rounding explains
_LEAST_CAUTION = 1e-6
_SMALL_LOSS = 1e-6  # of the loss at the start: Newton converges there, where there is a set to converge to
_FAILURES = 4  # attempts, after which `proof` is worth its cost


class Located(NamedTuple):
    """A checked point of the zero-loss set, with the set around it."""

    zero_set: AbstractZeroSet
    w: Vector


@memoized
def locate(system: AbstractSystem, point: PyTree) -> Located:
    """The zero-loss set around `point`, after checking that `point` is a regular point of it.

    Raises `NotOnSetError` when the loss at `point` is not zero and `RankError` when the set is not a
    manifold of constant rank there. Under tracing nothing can be checked, and the spectrum
    at every point decides the rank. Costs some ten gradients, and about ten eigendecompositions unless the
    residuals are independent.
    """
    require_float64("the geometry of the zero-loss set")
    system.check(point)
    w, unravel = flatten(point)
    problem = system.clean_problem()
    if isinstance(problem, Supervised):
        problem.check_minimum()
    zero_set = zero_set_of(system, w, unravel)
    if is_traced((system, point)):
        return Located(zero_set.for_tracing(), w)
    residual, loss, is_onto = _residual_loss_onto(zero_set, w)
    if not residual <= ON_SET:
        if not zero_set.has_residuals:  # at a kink there is a gradient, though the loss is zero
            check_smooth(zero_set, w)
        raise NotOnSetError(
            f"the point is not on the zero-loss set: its loss is {number(float(loss))}, its relative "
            f"residual {float(residual):.3g} (at most {ON_SET:g} is allowed). Call "
            "zeroloss.project(system, params) first."
        )
    check_smooth(zero_set, w)
    return Located(zero_set.with_checked_rank(w, bool(is_onto)), w)


def project(system: AbstractSystem, params: PyTree, *, max_steps: int = 20_000) -> PyTree:
    """A point of the zero-loss set near where gradient descent from `params` leads.

    Gradient descent on the clean loss, with step size 1 / largest eigenvalue, runs until
    (Gauss-)Newton converges and moves the parameters by less than 2 % of their norm; so the
    result approximates Phi(params), the limit of the gradient flow (theory.md, section 1). When
    `max_steps` are used up, a longer jump is accepted.

    **Returns:** params with float64 leaves and a relative residual of at most 1e-10.

    **Raises:** `NotReachedError` with the reason: equal inputs with unequal targets (before any step), a
    loss that falls for ever as the parameters grow, a linear model without a solution, or facts about the
    point reached; `RankError` when the set around that point is not a manifold of constant rank.

    Costs one gradient a step and a few Gram matrices (or Hessians) at each of about ten attempts.
    """
    require_float64("project")
    refuse_tracing((system, params), "project")
    system.check(params)
    w, unravel = flatten(params)
    zero_set = zero_set_of(system, w, unravel)
    problem = system.clean_problem()
    if isinstance(problem, Supervised):
        problem.check_minimum()
        _refuse(contradiction(problem, PROJECTED))
    taken, chunk, step_size_factor = 0, _FIRST_DESCENT, 1.0
    before, descent_history = w, []
    while True:
        found, moved, loss = _attempt(zero_set, w)
        if not descent_history:
            descent_history.append(DescentPoint(0, loss, float(jnp.linalg.norm(w))))
        exhausted = taken >= max_steps
        if found is not None and (moved <= _SHORT_JUMP or exhausted):
            _check_found(zero_set, found, before, descent_history)
            return unravel(found)
        if (
            found is None
            and descent_history[-1].loss <= _SMALL_LOSS * descent_history[0].loss
            and len(descent_history) > 1
        ):
            _refuse(endless_fall(zero_set, w, before, descent_history))
        elif found is None and len(descent_history) == _FAILURES:
            _refuse(proof(zero_set, w, PROJECTED))
        if exhausted:
            _refuse(
                proof(zero_set, w, PROJECTED)
                or endless_fall(zero_set, w, before, descent_history)
                or diagnosis(zero_set, w, descent_history, max_steps)
            )
        steps = min(chunk, max_steps - taken)
        candidate, loss, step_size_factor = _descend(
            zero_set, w, before, descent_history, steps, step_size_factor
        )
        stalled = bool(jnp.linalg.norm(candidate - w) <= 1e-14 * norm_or_one(w))
        before, w, taken, chunk = w, candidate, taken + steps, 2 * chunk
        descent_history.append(DescentPoint(taken, loss, float(jnp.linalg.norm(w))))
        if stalled:
            taken = max_steps


@memoized
def largest_eigenvalue(system: AbstractSystem, params: PyTree) -> float:
    """lambda_max of the Hessian at any params; with examples of J^T S J / N, the Hessian on the set.

    Costs one Gram matrix for least squares. Otherwise one Hessian up to 2000 parameters, and at most
    1000 Hessian-vector products (power iteration, to a relative 1e-6) beyond.
    """
    w, unravel = flatten(params)
    return float(_largest(zero_set_of(system, w, unravel), w))


@compiled_once
def _largest(zero_set: AbstractZeroSet, w: Vector) -> Scalar:
    return zero_set.around(w).largest(w)


@compiled_once
def _residual_loss_onto(zero_set: AbstractZeroSet, w: Vector) -> tuple[Scalar, Scalar, Bool[Array, ""]]:
    return zero_set.relative_residual(w), zero_set.loss(w), zero_set.is_onto(w)


def _attempt(zero_set: AbstractZeroSet, w: Vector) -> tuple[Vector | None, float, float]:
    """Newton from w: the point, None if it failed; its distance relative to |w|; the loss at w."""
    zero_set = zero_set.with_rank_beside(w)
    point, start, residual, step, loss = _newton(zero_set, w)
    failed = None, np.inf, float(start)
    # A difference of losses, such as cross-entropy less the entropy of its targets, keeps their rounding.
    is_lost = abs(loss) <= _ROUNDED_LOSS and step <= PROJECTED and residual <= ON_SET
    if not (residual <= PROJECTED or is_lost):
        return failed
    if zero_set.rank is not None:
        decided = spectrum_at(zero_set.with_rank(None), point).codimension
        if int(decided) != zero_set.rank:
            return failed
    return point, float(jnp.linalg.norm(point - w) / norm_or_one(w)), float(start)


def _refuse(why: str | None) -> None:
    """Raise `NotReachedError` where there is a reason."""
    if why is not None:
        raise NotReachedError(why)


def _check_found(
    zero_set: AbstractZeroSet, found: Vector, before: Vector, descent_history: Sequence[DescentPoint]
) -> None:
    """Raise an error unless `found` is a regular point of a set of zero loss."""
    try:
        check_smooth(zero_set, found)
        zero_set.with_checked_rank(found, bool(_residual_loss_onto(zero_set, found)[2]))
    except (LossError, RankError):  # also where all is lost to rounding, far out
        why = endless_fall(zero_set, found, before, descent_history)
        if why is None:
            raise
        raise NotReachedError(why) from None


@compiled_once
def _newton(zero_set: AbstractZeroSet, w: Vector) -> tuple[Vector, Scalar, Scalar, Scalar, Scalar]:
    """The point, the loss at w; the relative residual, the last step relative to |w| and the loss there."""
    # One further step after convergence costs little and gains the last digits.
    point = zero_set.retract(w, NEWTON_ITERATIONS)
    last = zero_set.correction(point)
    point = point + last
    finite = jnp.all(jnp.isfinite(point))
    end = jnp.where(finite, point, w)
    residual = jnp.where(finite, zero_set.relative_residual(end), jnp.inf)
    return point, zero_set.loss(w), residual, jnp.linalg.norm(last) / norm_or_one(w), zero_set.loss(end)


def _descend(
    zero_set: AbstractZeroSet,
    w: Vector,
    before: Vector,
    descent_history: Sequence[DescentPoint],
    steps: int,
    step_size_factor: float,
) -> tuple[Vector, float, float]:
    """The end of some steps of gradient descent, its loss, and the caution that made the loss fall.

    The step size is `step_size_factor` / largest eigenvalue. Raises `LossError` for a negative loss, and
    `NotReachedError` where small steps do not lower the loss either.
    """
    while True:
        end, *losses = _gradient_descent(zero_set, w, jnp.asarray(steps), jnp.asarray(step_size_factor))
        loss, after = map(float, losses)
        if after < -1e-12 * max(1.0, abs(loss)):
            raise LossError(
                f"the loss falls to {after:.6g} under gradient descent; a loss with a zero-loss set must "
                "be >= 0. Subtract its minimum first."
            )
        if after <= loss + _ROUNDING * abs(loss):
            return end, after, step_size_factor
        step_size_factor /= 2
        if step_size_factor < _LEAST_CAUTION:
            _refuse(
                endless_fall(zero_set, w, before, descent_history)
                or no_descent(zero_set, w, loss, after, step_size_factor)
            )


@compiled
def _gradient_descent(
    zero_set: AbstractZeroSet, w: Vector, steps: Array, step_size_factor: Scalar
) -> tuple[Vector, Scalar, Scalar]:
    """The end of the descent, and the losses before and after."""
    largest = zero_set.largest(w)
    step_size = step_size_factor / jnp.where(largest > 0, largest, 1.0)
    end = jax.lax.fori_loop(0, steps, lambda _, w: w - step_size * jax.grad(zero_set.loss)(w), w)
    return end, zero_set.loss(w), zero_set.loss(end)
