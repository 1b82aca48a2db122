"""Finding the zero-loss set, and making sure that a point is a good one."""

import logging
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from zeroloss.errors import InputError, LossError, NotOnSetError, NotReachedError, RankError
from zeroloss.manifold.dense import DenseManifold, is_small
from zeroloss.manifold.geometry import AbstractGeometry, AbstractManifold, length
from zeroloss.manifold.gram import GramManifold
from zeroloss.manifold.krylov import KrylovManifold
from zeroloss.manifold.structure import MAX_MEMORY, Structure, structure_of
from zeroloss.pytrees import Vector, flatten, in_float32, is_traced, refuse_tracing, require_float64
from zeroloss.system import AbstractSystem, LeastSquares, Scalar

ON_SET = 1e-8
"""Largest relative residual of a point that counts as being on the set."""

PROJECTED = 1e-10
"""Largest relative residual of a point that `project` returns."""

NEIGHBOUR_DISTANCES = (1e-2, 1e-3)
"""How far from a point, relative to |w|, its neighbours on the set are looked for."""

_NEIGHBOURS = 5
_FIRST_DESCENT = 200
_NEWTON_ITERATIONS = 30
_SHORT_JUMP = 0.02
_MOST_FACTORIZED = 20_000  # residuals; a float64 Gram matrix of them takes 3 GiB
_LARGEST_JACOBIAN = 2**20  # bytes, beyond which it is not formed
_LARGEST_HESSIAN = 2000  # parameters
_COLUMNS = (64, 256, 1024, 4096)  # tried for a basis of the normal space of more parameters
_LARGEST_BASIS = 2**30  # bytes
_LOG = logging.getLogger(__name__)


def manifold_of(system: AbstractSystem, w: Vector, unravel: Callable[[Vector], PyTree]) -> AbstractManifold:
    """The zero-loss set of `system`: by Gram matrix for least squares, by Hessian otherwise.

    By the whole Hessian up to 2000 parameters, beyond by products with it.
    The Gram matrix comes from the Jacobian as a matrix up to 1 MiB of it, beyond from the structure of the
    model, and is not formed at all for more than 20,000 residuals, or as the problem's `geometry` says. Logs
    which. Only the shape of w is used.
    """
    problem = system.clean_problem()
    if not isinstance(problem, LeastSquares):
        as_matrix = problem.geometry == "factorized" or w.size <= _LARGEST_HESSIAN
        if as_matrix and problem.geometry != "matrix-free":
            return DenseManifold(problem, unravel)
        return KrylovManifold(problem, unravel)
    residuals = problem.targets.size
    matrix_free = problem.geometry == "matrix-free" or (
        problem.geometry == "auto" and residuals > _MOST_FACTORIZED
    )
    size = residuals * w.size * w.dtype.itemsize
    is_mixed = problem.precision == "mixed"
    as_matrix = size <= _LARGEST_JACOBIAN and not matrix_free and not is_mixed
    structure = None if as_matrix else _structure(problem, unravel(w), problem.inputs)
    rough = _in_float32(problem, unravel(w)) if is_mixed else None
    _LOG.debug("a Jacobian of %d bytes: %s", size, structure.kinds if structure else "as a matrix")
    if matrix_free:
        _LOG.info("%d residuals: the zero-loss set is treated matrix-free, by iteration", residuals)
    return GramManifold(problem, unravel, structure=structure, matrix_free=matrix_free, rough=rough)


def _structure(problem: LeastSquares, params: PyTree, inputs: PyTree) -> Structure:
    budget = MAX_MEMORY if problem.max_memory is None else problem.max_memory
    return structure_of(problem.model, params, inputs, budget)


def _in_float32(problem: LeastSquares, params: PyTree) -> Structure:
    """The structure of the model with parameters and inputs in float32."""
    rough = _structure(problem, in_float32(params), in_float32(problem.inputs))
    if rough.maker.dtype != jnp.float32:
        raise InputError(
            f"with parameters and inputs in float32 the model still computes in {rough.maker.dtype}, so "
            'precision="mixed" would gain nothing: it closes over float64 arrays, or converts to float64. '
            "Pass arrays as inputs or params, or use numbers of Python."
        )
    return rough


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
    _check_smooth(manifold, w)
    residual, loss, is_onto = _look(manifold, w)
    if not residual <= ON_SET:
        raise NotOnSetError(
            f"the point is not on the zero-loss set: its loss is {float(loss):.6g}, its relative "
            f"residual {float(residual):.3g} (at most {ON_SET:g} is allowed). Call "
            "zeroloss.project(system, params) first."
        )
    return Located(_with_checked_rank(manifold, w, bool(is_onto)), w)


def project(system: AbstractSystem, params: PyTree, *, max_steps: int = 20_000) -> PyTree:
    """A point of the zero-loss set near where gradient descent from `params` leads.

    Gradient descent on the clean loss, with step size 1 / largest eigenvalue, runs until
    (Gauss-)Newton converges and moves the parameters by less than 2 % of their norm; so the
    result approximates Phi(params), the limit of the gradient flow (theory.md, section 1). When
    `max_steps` are used up, a longer jump is accepted.

    **Returns:** params with float64 leaves and a relative residual of at most 1e-10.

    **Raises:** `NotReachedError`, with the loss it got to; `RankError` when what it reached is not
    a manifold of constant rank.

    Costs one gradient a step and a few Gram matrices (or Hessians) at each of about ten attempts.
    """
    require_float64("project")
    refuse_tracing((system, params), "project")
    system.check(params)
    w, unravel = flatten(params)
    manifold = manifold_of(system, w, unravel)
    taken, chunk, caution = 0, _FIRST_DESCENT, 1.0
    while True:
        found, moved = _attempt(manifold, w)
        exhausted = taken >= max_steps
        if found is not None and (moved <= _SHORT_JUMP or exhausted):
            _check_smooth(manifold, found)
            _with_checked_rank(manifold, found, bool(_look(manifold, found)[2]))
            return unravel(found)
        if exhausted:
            break
        candidate, before, after = _descend(manifold, w, min(chunk, max_steps - taken), caution)
        if after < -1e-12 * max(1.0, abs(before)):
            raise LossError(
                f"the loss falls to {after:.6g} under gradient descent; a loss with a zero-loss set must "
                "be >= 0. Subtract its minimum first."
            )
        if not after <= before:
            caution /= 2
            if caution < 1e-6:
                break
            continue
        stalled = bool(jnp.linalg.norm(candidate - w) <= 1e-14 * length(w))
        w, taken, chunk = candidate, taken + chunk, 2 * chunk
        if stalled:
            taken = max_steps
    raise NotReachedError(
        f"zero loss was not reached: after {min(taken, max_steps)} steps of gradient descent the loss is "
        f"{float(manifold.loss(w)):.6g} and Gauss-Newton does not bring it to zero. Either this loss has "
        "no zero-loss set near the start (more parameters or fewer examples give one), or more steps "
        "are needed (max_steps)."
    )


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


def neighbours(
    manifold: AbstractManifold, w: Vector, key: Array, count: int, distance: float
) -> tuple[Float[Array, "count parameters"], Float[Array, " count"]]:
    """Points of the set around w: random tangent steps of `distance` |w|, retracted.

    **Returns:** the points, and their relative residuals.
    """
    return _neighbours(manifold, w, jax.random.split(key, count), jnp.asarray(distance))


@eqx.filter_jit
def _neighbours(manifold: AbstractManifold, w: Vector, keys: Array, distance: Scalar):
    spaces = manifold.spaces(w)

    def one(key: Array) -> tuple[Vector, Scalar]:
        direction = spaces.tangent(jax.random.normal(key, w.shape, w.dtype))
        norm = jnp.linalg.norm(direction)
        step = distance * length(w) * direction / jnp.where(norm > 0, norm, 1.0)
        point = manifold.retract(w + step)
        finite = jnp.all(jnp.isfinite(point))
        point = jnp.where(finite, point, w)
        too_far = jnp.linalg.norm(point - w) > 3 * distance * length(w)
        residual = manifold.relative_residual(point)
        return point, jnp.where(finite & ~too_far, residual, jnp.inf)

    return jax.lax.map(one, keys)


@eqx.filter_jit
def _geometry(manifold: AbstractManifold, w: Vector) -> AbstractGeometry:
    return manifold.at(w)


@eqx.filter_jit
def _look(manifold: AbstractManifold, w: Vector) -> tuple[Scalar, Scalar, Bool[Array, ""]]:
    is_onto = manifold.is_onto(w) if isinstance(manifold, GramManifold) else jnp.asarray(False)
    return manifold.relative_residual(w), manifold.loss(w), is_onto


def _with_checked_rank(manifold: AbstractManifold, w: Vector, is_onto: bool) -> AbstractManifold:
    """`manifold` with the rank at w fixed: that of all residuals, or one that some neighbours agree with."""
    size = w.shape[0]
    if is_onto and isinstance(manifold, GramManifold) and manifold.problem.targets.size < size:
        return manifold.with_rank(manifold.problem.targets.size)
    if isinstance(manifold, GramManifold) and manifold.matrix_free:
        raise RankError(
            f"matrix-free, the Jacobian of the {manifold.problem.targets.size} residuals by {size} "
            "parameters was not found to be of full rank: the residuals are redundant, or nearly so. "
            'zeroloss.LeastSquares(..., geometry="factorized") copes with a lower rank.'
        )
    if isinstance(manifold, KrylovManifold):
        smaller = _with_basis(manifold, w)
        if smaller is None and float(_largest(manifold, w)) == 0:
            _refuse_flat("0")
        if smaller is None:
            _check_neighbours(manifold, manifold, w, None, "by iteration")
            return manifold
        manifold = smaller
    geometry = _geometry(manifold, w)
    rank = int(geometry.codimension)
    spectrum = _spectrum(geometry)
    if float(jnp.min(geometry.eigenvalues)) < 0:
        raise LossError(
            "the Hessian of the loss has a negative eigenvalue here: the loss is negative nearby, and "
            f"a loss with a zero-loss set must be >= 0. Spectrum: {spectrum}."
        )
    if rank == 0:
        _refuse_flat(spectrum)
    if rank == size:
        raise RankError(
            f"the zero-loss set is an isolated point: the Hessian has full rank {rank}, nothing can "
            f"drift. Spectrum: {spectrum}."
        )
    fixed = manifold.with_rank(rank)
    _check_neighbours(fixed, manifold, w, rank, spectrum)
    return fixed


def _refuse_flat(spectrum: str) -> NoReturn:
    raise RankError(
        "the Hessian of the loss vanishes at this point, so the zero-loss set is not a manifold with "
        f"a nondegenerate normal direction there. Spectrum: {spectrum}."
    )


def _with_basis(manifold: KrylovManifold, w: Vector) -> DenseManifold | None:
    """The same set by a basis of its normal space, where that is small enough to be wanted."""
    problem = manifold.problem
    if problem.geometry == "matrix-free":
        return None
    for columns in _COLUMNS:
        if not is_small(columns, w) or columns * w.size * w.dtype.itemsize > _LARGEST_BASIS:
            break
        dense = DenseManifold(problem, manifold.unravel, columns=columns)
        rank = int(_geometry(dense, w).codimension)
        if rank < columns:
            _LOG.debug("the Hessian of %d parameters has rank %d: by a basis of its range", w.size, rank)
            return dense
    _LOG.info("%d parameters: the zero-loss set is treated matrix-free, by iteration", w.size)
    return None


def _check_neighbours(
    fixed: AbstractManifold, free: AbstractManifold, w: Vector, rank: int | None, spectrum: str
) -> None:
    """Raise `RankError` unless the tangent directions at w lead to points of the set, of the same rank.

    `fixed` and `free`: the set with its rank fixed, and with every point deciding. None for a `rank` unknown.
    """
    residuals = jnp.inf
    for distance in NEIGHBOUR_DISTANCES:
        points, residuals = neighbours(fixed, w, jax.random.key(0), _NEIGHBOURS, distance)
        if not bool(jnp.all(residuals <= ON_SET)):
            continue
        ranks = {rank} if rank is None else {int(rank_at) for rank_at in _ranks(free, points)}
        if ranks == {rank}:
            return
        raise RankError(
            f"the Hessian has rank {rank} at this point but {sorted(map(str, ranks))} at points of the "
            f"zero-loss set within {distance:g} of it (relative to |w|): no manifold of constant rank. "
            f"Spectrum: {spectrum}."
        )
    known = f"rank {rank} of {w.size}" if rank is not None else f"{w.size} parameters"
    raise RankError(
        f"moving along the kernel of the Hessian ({known}) leaves the zero-loss set: the "
        f"smallest relative residual within {NEIGHBOUR_DISTANCES[-1]:g} is "
        f"{float(jnp.min(residuals)):.3g}. The set is no manifold of constant rank here. "
        f"Spectrum: {spectrum}."
    )


def _check_smooth(manifold: AbstractManifold, w: Vector) -> None:
    """Raise `LossError` when the loss has no second derivative at w, as at the kink of a ReLU."""
    relative, coarse, fine = (float(value) for value in _mismatch(manifold, w))
    if relative > _MISMATCH and not fine < coarse / 2:  # of a smooth loss it would fall to a quarter
        raise LossError(
            "the loss is not twice differentiable at the point, as at the kink of a ReLU or of an absolute "
            f"value: its Hessian differs by {relative:.2g} (relative) from differences of its gradient over "
            f"{_CLOSE:g} |w|. The theory needs a smooth loss; use a smooth activation (tanh, GELU), or "
            "another point, away from the kink."
        )


_CLOSE = 1e-7  # relative to |w|
_MISMATCH = 1e-6


@eqx.filter_jit
def _mismatch(manifold: AbstractManifold, w: Vector) -> tuple[Scalar, Scalar, Scalar]:
    """How far the Hessian is from central differences of the gradient over _CLOSE |w|, and over half of it.

    Relative and absolute over the former, absolute over the latter. Along one direction, in which every
    parameter moves, so that it crosses any kink at w. Some six gradients.
    """
    gradient = jax.grad(manifold.loss)
    direction = jax.random.normal(jax.random.key(0), w.shape, w.dtype)
    direction = direction / jnp.linalg.norm(direction)
    product = jax.jvp(gradient, (w,), (direction,))[1]
    steps = _CLOSE * length(w) * jnp.array([1.0, -1.0, 0.5, -0.5])
    ahead, behind, nearer_ahead, nearer_behind = jax.lax.map(
        lambda step: gradient(w + step * direction), steps
    )

    def difference(ahead: Vector, behind: Vector, step: Scalar) -> Scalar:
        gap = jnp.linalg.norm((ahead - behind) / (2 * step) - product)
        return jnp.where(jnp.isfinite(gap), gap, 0.0)

    coarse, fine = difference(ahead, behind, steps[0]), difference(nearer_ahead, nearer_behind, steps[2])
    scale = jnp.maximum(jnp.linalg.norm(product), coarse)
    return coarse / jnp.where(scale > 0, scale, 1.0), coarse, fine


@eqx.filter_jit
def _ranks(manifold: AbstractManifold, points: Float[Array, "count parameters"]) -> Array:
    return jax.lax.map(lambda w: manifold.at(w).codimension, points)


def _spectrum(geometry: AbstractGeometry) -> str:
    values = np.asarray(geometry.eigenvalues)
    if len(values) <= 8:
        return "[" + ", ".join(f"{value:.3g}" for value in values) + "]"
    kept = values[np.asarray(geometry.is_normal)]
    ends = [f"{value:.3g}" for value in (*kept[:3], *kept[-3:])]
    return f"[{', '.join(ends[:3])}, ..., {', '.join(ends[3:])}] and {len(values) - len(kept)} zeros"


def _attempt(manifold: AbstractManifold, w: Vector) -> tuple[Vector | None, float]:
    """Newton from w: the point reached and how far it is, relative to |w|; None if it failed."""
    if isinstance(manifold, DenseManifold):
        manifold = manifold.with_rank(_rank_by_gap(manifold, w))
    point, residual = _newton(manifold, w)
    if not residual <= PROJECTED:
        return None, np.inf
    decided = _geometry(manifold.with_rank(None), point).codimension if manifold.rank is not None else None
    if decided is not None and int(decided) != manifold.rank:
        return None, np.inf
    return point, float(jnp.linalg.norm(point - w) / length(w))


def _rank_by_gap(manifold: AbstractManifold, w: Vector) -> int:
    """The rank suggested by the widest gap in the spectrum of H beside the set."""
    every = manifold.with_rank(w.shape[0])
    sizes = np.abs(np.asarray(_geometry(every, w).eigenvalues))
    floor = 1e-14 * max(sizes[0], np.finfo(float).tiny)
    sizes = np.append(np.maximum(sizes, floor), floor)
    return int(np.argmax(sizes[:-1] / sizes[1:])) + 1


@eqx.filter_jit
def _newton(manifold: AbstractManifold, w: Vector) -> tuple[Vector, Scalar]:
    # One further step after convergence costs little and gains the last digits.
    point = manifold.retract(w, _NEWTON_ITERATIONS)
    point = point + manifold.correction(point)
    finite = jnp.all(jnp.isfinite(point))
    residual = manifold.relative_residual(jnp.where(finite, point, w))
    return point, jnp.where(finite, residual, jnp.inf)


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
