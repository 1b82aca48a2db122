"""Finding the zero-loss set, and making sure that a point is a good one."""

from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

from zeroloss._pytrees import Vector, flatten, is_traced, refuse_tracing, require_float64
from zeroloss.errors import LossError, NotOnSetError, NotReachedError, RankError
from zeroloss.systems import AbstractSystem, LeastSquares, Scalar
from zeroloss.zero_sets._dense import DenseZeroSet
from zeroloss.zero_sets._diagnosis import (
    Visit,
    contradiction,
    diagnosis,
    endless_fall,
    no_descent,
    number,
    proof,
)
from zeroloss.zero_sets._gram import GramZeroSet
from zeroloss.zero_sets._iterative_hessian import IterativeZeroSet
from zeroloss.zero_sets._regularity import ON_SET, check_smooth, with_checked_rank
from zeroloss.zero_sets._selection import zero_set_of
from zeroloss.zero_sets._zero_set import AbstractZeroSet, length, spectrum_at

PROJECTED = 1e-10
"""Largest relative residual of a point that `project` returns."""

_FIRST_DESCENT = 200
_NEWTON_ITERATIONS = 30
_SHORT_JUMP = 0.02
_LOST = 1e-15  # a loss of zero but for rounding, of terms of the order of one
_ROUNDING = 1e-13  # relative rise of the loss that rounding explains
_LEAST_CAUTION = 1e-6
_SMALL_LOSS = 1e-6  # of that at the start: Newton converges there, where there is a set to converge to
_FAILURES = 4  # attempts after which it is worth asking whether the set can exist


class Located(NamedTuple):
    """A checked point of the zero-loss set, with the set around it."""

    zero_set: AbstractZeroSet
    w: Vector


def locate(system: AbstractSystem, point: PyTree) -> Located:
    """The zero-loss set around `point`, after checking that `point` is a regular point of it.

    Raises `NotOnSetError` when the loss at `point` is not zero and `RankError` when the set is no
    manifold of constant rank there. Under tracing nothing can be checked, and every point decides on
    the rank by its own spectrum. Costs some ten gradients where the residuals are independent,
    otherwise about ten eigendecompositions beside.
    """
    require_float64("the geometry of the zero-loss set")
    system.check(point)
    w, unravel = flatten(point)
    zero_set = zero_set_of(system, w, unravel)
    if is_traced((system, point)):
        if isinstance(zero_set, IterativeZeroSet) and zero_set.problem.geometry == "auto":
            zero_set = DenseZeroSet(zero_set.problem, zero_set.unravel)
        return Located(zero_set, w)
    residual, loss, is_onto = _look(zero_set, w)
    if not residual <= ON_SET:
        if not isinstance(zero_set, GramZeroSet):  # at a kink there is a gradient, though the loss is zero
            check_smooth(zero_set, w)
        raise NotOnSetError(
            f"the point is not on the zero-loss set: its loss is {number(float(loss))}, its relative "
            f"residual {float(residual):.3g} (at most {ON_SET:g} is allowed). Call "
            "zeroloss.project(system, params) first."
        )
    check_smooth(zero_set, w)
    return Located(with_checked_rank(zero_set, w, bool(is_onto)), w)


def project(system: AbstractSystem, params: PyTree, *, max_steps: int = 20_000) -> PyTree:
    """A point of the zero-loss set near where gradient descent from `params` leads.

    Gradient descent on the clean loss, with step size 1 / largest eigenvalue, runs until
    (Gauss-)Newton converges and moves the parameters by less than 2 % of their norm; so the
    result approximates Phi(params), the limit of the gradient flow (theory.md, section 1). When
    `max_steps` are used up, a longer jump is accepted.

    **Returns:** params with float64 leaves and a relative residual of at most 1e-10.

    **Raises:** `NotReachedError`, which says why: equal inputs with unequal targets (before any step), a
    loss that falls for ever as the parameters grow, a linear model without a solution, or what the point
    reached shows; `RankError` when what it reached is not a manifold of constant rank.

    Costs one gradient a step and a few Gram matrices (or Hessians) at each of about ten attempts.
    """
    require_float64("project")
    refuse_tracing((system, params), "project")
    system.check(params)
    w, unravel = flatten(params)
    zero_set = zero_set_of(system, w, unravel)
    _refuse_contradiction(zero_set)
    taken, chunk, caution = 0, _FIRST_DESCENT, 1.0
    before, visits = w, []
    while True:
        found, moved = _attempt(zero_set, w)
        exhausted = taken >= max_steps
        if found is not None and (moved <= _SHORT_JUMP or exhausted):
            _check_found(zero_set, found, before, visits)
            return unravel(found)
        if found is None:
            _refuse_hopeless(zero_set, w, before, visits)
        if exhausted:
            break
        steps = min(chunk, max_steps - taken)
        candidate, loss, after = _descend(zero_set, w, steps, caution)
        if after < -1e-12 * max(1.0, abs(loss)):
            raise LossError(
                f"the loss falls to {after:.6g} under gradient descent; a loss with a zero-loss set must "
                "be >= 0. Subtract its minimum first."
            )
        if not after <= loss + _ROUNDING * abs(loss):
            caution /= 2
            if caution < _LEAST_CAUTION:
                why = endless_fall(zero_set, w, before, visits or [_start(zero_set, w)]) or no_descent(
                    zero_set, w, loss, after, caution
                )
                raise NotReachedError(why)
            continue
        stalled = bool(jnp.linalg.norm(candidate - w) <= 1e-14 * length(w))
        if not visits:
            visits.append(Visit(0, loss, float(jnp.linalg.norm(w))))
        before, w, taken, chunk = w, candidate, taken + steps, 2 * chunk
        visits.append(Visit(taken, after, float(jnp.linalg.norm(w))))
        if stalled:
            taken = max_steps
    visits = visits or [_start(zero_set, w)]
    message = (
        proof(zero_set, w, PROJECTED)
        or endless_fall(zero_set, w, before, visits)
        or diagnosis(zero_set, w, visits, max_steps)
    )
    raise NotReachedError(message)


def largest_eigenvalue(system: AbstractSystem, params: PyTree) -> float:
    """lambda_max of the Hessian at any params; for least squares of J^T J / N, which is it on the set.

    Costs one Gram matrix for least squares. Otherwise one Hessian up to 1000 parameters, and at most
    1000 Hessian-vector products (power iteration, to a relative 1e-6) beyond.
    """
    w, unravel = flatten(params)
    return float(_largest(zero_set_of(system, w, unravel), w))


@eqx.filter_jit
def _largest(zero_set: AbstractZeroSet, w: Vector) -> Scalar:
    return zero_set.largest(w)


@eqx.filter_jit
def _look(zero_set: AbstractZeroSet, w: Vector) -> tuple[Scalar, Scalar, Bool[Array, ""]]:
    is_onto = zero_set.is_onto(w) if isinstance(zero_set, GramZeroSet) else jnp.asarray(False)
    return zero_set.relative_residual(w), zero_set.loss(w), is_onto


def _attempt(zero_set: AbstractZeroSet, w: Vector) -> tuple[Vector | None, float]:
    """Newton from w: the point reached and how far it is, relative to |w|; None if it failed."""
    if isinstance(zero_set, DenseZeroSet):
        zero_set = zero_set.with_rank(_rank_by_gap(zero_set, w))
    point, residual, step, loss = _newton(zero_set, w)
    # A difference of losses, such as cross-entropy less the entropy of its targets, keeps their rounding.
    is_lost = abs(loss) <= _LOST and step <= PROJECTED and residual <= ON_SET
    if not (residual <= PROJECTED or is_lost):
        return None, np.inf
    decided = spectrum_at(zero_set.with_rank(None), point).codimension if zero_set.rank is not None else None
    if decided is not None and int(decided) != zero_set.rank:
        return None, np.inf
    return point, float(jnp.linalg.norm(point - w) / length(w))


def _refuse_contradiction(zero_set: AbstractZeroSet) -> None:
    """Raise `NotReachedError` where the data alone keep a least-squares loss from zero."""
    if isinstance(zero_set.problem, LeastSquares):
        why = contradiction(zero_set.problem, PROJECTED)
        if why is not None:
            raise NotReachedError(why)


def _refuse_hopeless(zero_set: AbstractZeroSet, w: Vector, before: Vector, visits: Sequence[Visit]) -> None:
    """Raise `NotReachedError` after failures that more steps of gradient descent cannot mend."""
    why = None
    if visits and visits[-1].loss <= _SMALL_LOSS * visits[0].loss:
        why = endless_fall(zero_set, w, before, visits)
    elif len(visits) == _FAILURES:
        why = proof(zero_set, w, PROJECTED)
    if why is not None:
        raise NotReachedError(why)


def _check_found(zero_set: AbstractZeroSet, found: Vector, before: Vector, visits: Sequence[Visit]) -> None:
    """Raise an error unless `found` is a regular point of a set of zero loss."""
    try:
        check_smooth(zero_set, found)
        with_checked_rank(zero_set, found, bool(_look(zero_set, found)[2]))
    except (LossError, RankError):  # also where all is lost to rounding, far out
        why = endless_fall(zero_set, found, before, visits or [_start(zero_set, before)])
        if why is None:
            raise
        raise NotReachedError(why) from None


def _start(zero_set: AbstractZeroSet, w: Vector) -> Visit:
    return Visit(0, float(_look(zero_set, w)[1]), float(jnp.linalg.norm(w)))


def _rank_by_gap(zero_set: AbstractZeroSet, w: Vector) -> int:
    """The rank suggested by the widest gap in the spectrum of H beside the set."""
    every = zero_set.with_rank(w.shape[0])
    sizes = np.abs(np.asarray(spectrum_at(every, w).eigenvalues))
    floor = 1e-14 * max(sizes[0], np.finfo(float).tiny)
    sizes = np.append(np.maximum(sizes, floor), floor)
    return int(np.argmax(sizes[:-1] / sizes[1:])) + 1


@eqx.filter_jit
def _newton(zero_set: AbstractZeroSet, w: Vector) -> tuple[Vector, Scalar, Scalar, Scalar]:
    """The point, its relative residual, the length of the last step relative to |w|, and its loss."""
    # One further step after convergence costs little and gains the last digits.
    point = zero_set.retract(w, _NEWTON_ITERATIONS)
    last = zero_set.correction(point)
    point = point + last
    finite = jnp.all(jnp.isfinite(point))
    end = jnp.where(finite, point, w)
    residual = jnp.where(finite, zero_set.relative_residual(end), jnp.inf)
    return point, residual, jnp.linalg.norm(last) / length(w), zero_set.loss(end)


def _descend(zero_set: AbstractZeroSet, w: Vector, steps: int, caution: float) -> tuple[Vector, float, float]:
    end, before, after = _gradient_descent(zero_set, w, jnp.asarray(steps), jnp.asarray(caution))
    return end, float(before), float(after)


@eqx.filter_jit
def _gradient_descent(
    zero_set: AbstractZeroSet, w: Vector, steps: Array, caution: Scalar
) -> tuple[Vector, Scalar, Scalar]:
    largest = zero_set.largest(w)
    step_size = caution / jnp.where(largest > 0, largest, 1.0)
    end = jax.lax.fori_loop(0, steps, lambda _, w: w - step_size * jax.grad(zero_set.loss)(w), w)
    return end, zero_set.loss(w), zero_set.loss(end)
