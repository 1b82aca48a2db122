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
from zeroloss.zero_sets._dense import DenseManifold
from zeroloss.zero_sets._diagnosis import (
    Visit,
    contradiction,
    diagnosis,
    endless_fall,
    no_descent,
    number,
    proof,
)
from zeroloss.zero_sets._gram import GramManifold
from zeroloss.zero_sets._iterative_hessian import KrylovManifold
from zeroloss.zero_sets._regularity import ON_SET, check_smooth, with_checked_rank
from zeroloss.zero_sets._selection import geometry_at, manifold_of
from zeroloss.zero_sets._zero_set import AbstractManifold, length

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

    manifold: AbstractManifold
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
    manifold = manifold_of(system, w, unravel)
    if is_traced((system, point)):
        if isinstance(manifold, KrylovManifold) and manifold.problem.geometry == "auto":
            manifold = DenseManifold(manifold.problem, manifold.unravel)
        return Located(manifold, w)
    residual, loss, is_onto = _look(manifold, w)
    if not residual <= ON_SET:
        if not isinstance(manifold, GramManifold):  # at a kink there is a gradient, though the loss is zero
            check_smooth(manifold, w)
        raise NotOnSetError(
            f"the point is not on the zero-loss set: its loss is {number(float(loss))}, its relative "
            f"residual {float(residual):.3g} (at most {ON_SET:g} is allowed). Call "
            "zeroloss.project(system, params) first."
        )
    check_smooth(manifold, w)
    return Located(with_checked_rank(manifold, w, bool(is_onto)), w)


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
    manifold = manifold_of(system, w, unravel)
    _refuse_contradiction(manifold)
    taken, chunk, caution = 0, _FIRST_DESCENT, 1.0
    before, visits = w, []
    while True:
        found, moved = _attempt(manifold, w)
        exhausted = taken >= max_steps
        if found is not None and (moved <= _SHORT_JUMP or exhausted):
            _check_found(manifold, found, before, visits)
            return unravel(found)
        if found is None:
            _refuse_hopeless(manifold, w, before, visits)
        if exhausted:
            break
        steps = min(chunk, max_steps - taken)
        candidate, loss, after = _descend(manifold, w, steps, caution)
        if after < -1e-12 * max(1.0, abs(loss)):
            raise LossError(
                f"the loss falls to {after:.6g} under gradient descent; a loss with a zero-loss set must "
                "be >= 0. Subtract its minimum first."
            )
        if not after <= loss + _ROUNDING * abs(loss):
            caution /= 2
            if caution < _LEAST_CAUTION:
                why = endless_fall(manifold, w, before, visits or [_start(manifold, w)]) or no_descent(
                    manifold, w, loss, after, caution
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
    visits = visits or [_start(manifold, w)]
    message = (
        proof(manifold, w, PROJECTED)
        or endless_fall(manifold, w, before, visits)
        or diagnosis(manifold, w, visits, max_steps)
    )
    raise NotReachedError(message)


def largest_eigenvalue(system: AbstractSystem, params: PyTree) -> float:
    """lambda_max of the Hessian at any params; for least squares of J^T J / N, which is it on the set.

    Costs one Gram matrix for least squares. Otherwise one Hessian up to 1000 parameters, and at most
    1000 Hessian-vector products (power iteration, to a relative 1e-6) beyond.
    """
    w, unravel = flatten(params)
    return float(_largest(manifold_of(system, w, unravel), w))


@eqx.filter_jit
def _largest(manifold: AbstractManifold, w: Vector) -> Scalar:
    return manifold.largest(w)


@eqx.filter_jit
def _look(manifold: AbstractManifold, w: Vector) -> tuple[Scalar, Scalar, Bool[Array, ""]]:
    is_onto = manifold.is_onto(w) if isinstance(manifold, GramManifold) else jnp.asarray(False)
    return manifold.relative_residual(w), manifold.loss(w), is_onto


def _attempt(manifold: AbstractManifold, w: Vector) -> tuple[Vector | None, float]:
    """Newton from w: the point reached and how far it is, relative to |w|; None if it failed."""
    if isinstance(manifold, DenseManifold):
        manifold = manifold.with_rank(_rank_by_gap(manifold, w))
    point, residual, step, loss = _newton(manifold, w)
    # A difference of losses, such as cross-entropy less the entropy of its targets, keeps their rounding.
    is_lost = abs(loss) <= _LOST and step <= PROJECTED and residual <= ON_SET
    if not (residual <= PROJECTED or is_lost):
        return None, np.inf
    decided = geometry_at(manifold.with_rank(None), point).codimension if manifold.rank is not None else None
    if decided is not None and int(decided) != manifold.rank:
        return None, np.inf
    return point, float(jnp.linalg.norm(point - w) / length(w))


def _refuse_contradiction(manifold: AbstractManifold) -> None:
    """Raise `NotReachedError` where the data alone keep a least-squares loss from zero."""
    if isinstance(manifold.problem, LeastSquares):
        why = contradiction(manifold.problem, PROJECTED)
        if why is not None:
            raise NotReachedError(why)


def _refuse_hopeless(manifold: AbstractManifold, w: Vector, before: Vector, visits: Sequence[Visit]) -> None:
    """Raise `NotReachedError` after failures that more steps of gradient descent cannot mend."""
    why = None
    if visits and visits[-1].loss <= _SMALL_LOSS * visits[0].loss:
        why = endless_fall(manifold, w, before, visits)
    elif len(visits) == _FAILURES:
        why = proof(manifold, w, PROJECTED)
    if why is not None:
        raise NotReachedError(why)


def _check_found(manifold: AbstractManifold, found: Vector, before: Vector, visits: Sequence[Visit]) -> None:
    """Raise an error unless `found` is a regular point of a set of zero loss."""
    try:
        check_smooth(manifold, found)
        with_checked_rank(manifold, found, bool(_look(manifold, found)[2]))
    except (LossError, RankError):  # also where all is lost to rounding, far out
        why = endless_fall(manifold, found, before, visits or [_start(manifold, before)])
        if why is None:
            raise
        raise NotReachedError(why) from None


def _start(manifold: AbstractManifold, w: Vector) -> Visit:
    return Visit(0, float(_look(manifold, w)[1]), float(jnp.linalg.norm(w)))


def _rank_by_gap(manifold: AbstractManifold, w: Vector) -> int:
    """The rank suggested by the widest gap in the spectrum of H beside the set."""
    every = manifold.with_rank(w.shape[0])
    sizes = np.abs(np.asarray(geometry_at(every, w).eigenvalues))
    floor = 1e-14 * max(sizes[0], np.finfo(float).tiny)
    sizes = np.append(np.maximum(sizes, floor), floor)
    return int(np.argmax(sizes[:-1] / sizes[1:])) + 1


@eqx.filter_jit
def _newton(manifold: AbstractManifold, w: Vector) -> tuple[Vector, Scalar, Scalar, Scalar]:
    """The point, its relative residual, the length of the last step relative to |w|, and its loss."""
    # One further step after convergence costs little and gains the last digits.
    point = manifold.retract(w, _NEWTON_ITERATIONS)
    last = manifold.correction(point)
    point = point + last
    finite = jnp.all(jnp.isfinite(point))
    end = jnp.where(finite, point, w)
    residual = jnp.where(finite, manifold.relative_residual(end), jnp.inf)
    return point, residual, jnp.linalg.norm(last) / length(w), manifold.loss(end)


def _descend(
    manifold: AbstractManifold, w: Vector, steps: int, caution: float
) -> tuple[Vector, float, float]:
    end, before, after = _gradient_descent(manifold, w, jnp.asarray(steps), jnp.asarray(caution))
    return end, float(before), float(after)


@eqx.filter_jit
def _gradient_descent(
    manifold: AbstractManifold, w: Vector, steps: Array, caution: Scalar
) -> tuple[Vector, Scalar, Scalar]:
    largest = manifold.largest(w)
    step_size = caution / jnp.where(largest > 0, largest, 1.0)
    end = jax.lax.fori_loop(0, steps, lambda _, w: w - step_size * jax.grad(manifold.loss)(w), w)
    return end, manifold.loss(w), manifold.loss(end)
