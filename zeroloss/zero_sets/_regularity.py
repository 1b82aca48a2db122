"""Whether a point of the zero-loss set is a regular one: a smooth loss, and a manifold of constant rank."""

from typing import NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from zeroloss._pytrees import Vector
from zeroloss.errors import LossError, PrecisionError, RankError
from zeroloss.systems import Scalar
from zeroloss.zero_sets._dense import DenseZeroSet
from zeroloss.zero_sets._gram import GramZeroSet
from zeroloss.zero_sets._iterative_hessian import IterativeZeroSet
from zeroloss.zero_sets._selection import with_basis
from zeroloss.zero_sets._zero_set import AbstractSpectrum, AbstractZeroSet, length, spectrum_at

ON_SET = 1e-8
"""Largest relative residual of a point that counts as being on the set."""

NEIGHBOUR_DISTANCES = (1e-2, 1e-3)
"""How far from a point, relative to |w|, its neighbours on the set are looked for."""

_NEIGHBOURS = 5
_SAMPLE = 16  # eigenvalues looked at where there is no spectrum
_ISOLATED = 1e-6
_LEFT = 1e-4


def with_checked_rank(zero_set: AbstractZeroSet, w: Vector, is_onto: bool) -> AbstractZeroSet:
    """`zero_set` with the rank at w fixed: that of all residuals, or one that some neighbours agree with."""
    size = w.shape[0]
    if isinstance(zero_set, GramZeroSet) and zero_set.rough is not None and not zero_set.matrix_free:
        _check_float32(zero_set, w, is_onto)
    if is_onto and isinstance(zero_set, GramZeroSet) and zero_set.problem.targets.size < size:
        return zero_set.with_rank(zero_set.problem.targets.size)
    if isinstance(zero_set, GramZeroSet) and zero_set.matrix_free:
        raise RankError(
            f"matrix-free, the Jacobian of the {zero_set.problem.targets.size} residuals by {size} "
            "parameters was not found to be of full rank: the residuals are redundant, or nearly so. "
            'zeroloss.LeastSquares(..., geometry="factorized") copes with a lower rank.'
        )
    if isinstance(zero_set, IterativeZeroSet):
        smaller = with_basis(zero_set, w)
        if smaller is None:
            _check_by_iteration(zero_set, w)
            return zero_set
        zero_set, spectrum = smaller
    else:
        spectrum = spectrum_at(zero_set, w)
    rank = int(spectrum.codimension)
    listing = _listing(spectrum)
    _check_signs(spectrum, rank)
    if rank == size:
        _refuse_isolated(f"the Hessian has full rank {rank}", listing)
    fixed = zero_set.with_rank(rank)
    _check_neighbours(fixed, zero_set, w, rank, listing)
    return fixed


def _check_float32(zero_set: GramZeroSet, w: Vector, is_onto: bool) -> None:
    """Raise `PrecisionError` where projections through float32 leave too much."""
    left = float(eqx.filter_jit(zero_set.left_normal)(w)) if is_onto else np.nan
    if not left <= _LEFT:
        share = "all" if np.isnan(left) else f"{left:.2g}"
        raise PrecisionError(
            'precision="mixed" does not serve here: the residuals are too nearly dependent for float32. '
            f"Projections leave {share} of the normal part of a vector, and may leave {_LEFT:g}. "
            'Use precision="float64".'
        )


def _check_signs(spectrum: AbstractSpectrum, rank: int) -> None:
    """Raise an error for a Hessian with negative curvature, or with none at all."""
    listing = _listing(spectrum)
    if float(jnp.min(spectrum.eigenvalues)) < 0:
        raise LossError(
            "the Hessian of the loss has a negative eigenvalue here: the loss is negative nearby, and "
            f"a loss with a zero-loss set must be >= 0. Spectrum: {listing}."
        )
    if rank == 0:
        raise RankError(
            "the Hessian of the loss vanishes at this point, so the zero-loss set is not a manifold with "
            f"a nondegenerate normal direction there. Spectrum: {listing}."
        )


def _refuse_isolated(reason: str, listing: str) -> NoReturn:
    raise RankError(
        f"the zero-loss set is an isolated point: {reason}, nothing can drift. Spectrum: {listing}."
    )


def _check_by_iteration(zero_set: IterativeZeroSet, w: Vector) -> None:
    """What can be checked of a regular point without its rank."""
    sample = DenseZeroSet(zero_set.problem, zero_set.unravel, columns=min(_SAMPLE, w.size))
    spectrum = spectrum_at(sample, w)
    _check_signs(spectrum, int(spectrum.codimension))
    share = float(_tangent_share(zero_set, w))
    listing = f"from {_listing(spectrum)} down"
    if np.isnan(share):
        raise RankError(
            "the projection onto the tangent space did not converge: the spectrum of the Hessian is too "
            f'wide for iteration. Pass geometry="factorized" where memory allows. Spectrum: {listing}.'
        )
    if share < _ISOLATED:
        _refuse_isolated("all directions are normal", listing)
    _check_neighbours(zero_set, zero_set, w, None, listing)


@eqx.filter_jit
def _tangent_share(zero_set: AbstractZeroSet, w: Vector) -> Scalar:
    """The length of the tangent part of a random unit vector."""
    direction = jax.random.normal(jax.random.key(0), w.shape, w.dtype)
    return jnp.linalg.norm(zero_set.spaces(w).tangent(direction)) / jnp.linalg.norm(direction)


def _check_neighbours(
    fixed: AbstractZeroSet, free: AbstractZeroSet, w: Vector, rank: int | None, listing: str
) -> None:
    """Raise `RankError` unless the tangent directions at w lead to points of the set, of the same rank.

    `fixed` and `free`: the set with its rank fixed, and with every point deciding. None for a `rank` unknown.
    """
    residuals = jnp.inf
    for distance in NEIGHBOUR_DISTANCES:
        points, residuals = neighbours(fixed, w, jax.random.key(0), _NEIGHBOURS, distance)
        if not bool(jnp.all(residuals <= ON_SET)):
            continue
        if rank is None:
            return
        ranks = {int(rank_at) for rank_at in _ranks(free, points)}
        if ranks == {rank}:
            return
        raise RankError(
            f"the Hessian has rank {rank} at this point but {sorted(ranks)} at points of the "
            f"zero-loss set within {distance:g} of it (relative to |w|): no manifold of constant rank. "
            f"Spectrum: {listing}."
        )
    known = f"rank {rank} of {w.size}" if rank is not None else f"{w.size} parameters"
    raise RankError(
        f"moving along the kernel of the Hessian ({known}) leaves the zero-loss set: the "
        f"smallest relative residual within {NEIGHBOUR_DISTANCES[-1]:g} is "
        f"{float(jnp.min(residuals)):.3g}. The set is no manifold of constant rank here. "
        f"Spectrum: {listing}."
    )


def neighbours(
    zero_set: AbstractZeroSet, w: Vector, key: Array, count: int, distance: float
) -> tuple[Float[Array, "count parameters"], Float[Array, " count"]]:
    """Points of the set around w: random tangent steps of `distance` |w|, retracted.

    **Returns:** the points, and their relative residuals.
    """
    return _neighbours(zero_set, w, jax.random.split(key, count), jnp.asarray(distance))


@eqx.filter_jit
def _neighbours(zero_set: AbstractZeroSet, w: Vector, keys: Array, distance: Scalar):
    spaces = zero_set.spaces(w)

    def one(key: Array) -> tuple[Vector, Scalar]:
        direction = spaces.tangent(jax.random.normal(key, w.shape, w.dtype))
        norm = jnp.linalg.norm(direction)
        step = distance * length(w) * direction / jnp.where(norm > 0, norm, 1.0)
        point = zero_set.retract(w + step)
        finite = jnp.all(jnp.isfinite(point))
        point = jnp.where(finite, point, w)
        too_far = jnp.linalg.norm(point - w) > 3 * distance * length(w)
        residual = zero_set.relative_residual(point)
        return point, jnp.where(finite & ~too_far, residual, jnp.inf)

    return jax.lax.map(one, keys)


def check_smooth(zero_set: AbstractZeroSet, w: Vector) -> None:
    """Raise `LossError` when the loss has no second derivative at w, as at the kink of a ReLU."""
    relative, coarse, fine = (float(value) for value in _mismatch(zero_set, w, jnp.asarray(_CLOSE)))
    is_rough = relative > _MISMATCH and not fine < coarse / 2  # of a smooth loss it would fall to a quarter
    if is_rough and not _is_rounding(zero_set, w, coarse):
        raise LossError(
            "the loss is not twice differentiable at the point, as at the kink of a ReLU or of an absolute "
            f"value: its Hessian differs by {relative:.2g} (relative) from differences of its gradient over "
            f"{_CLOSE:g} |w|. The theory needs a smooth loss; use a smooth activation (tanh, GELU), or "
            "another point, away from the kink."
        )


def looks_smooth(zero_set: AbstractZeroSet, w: Vector, key: Key[Array, ""] | None = None) -> bool:
    """Whether the loss has no kinks, as of ReLU units, around w. 65 Hessian-vector products."""
    return bool(_looks_smooth(zero_set, w, jax.random.key(0) if key is None else key))


@eqx.filter_jit
def _looks_smooth(zero_set: AbstractZeroSet, w: Vector, key: Array) -> Array:
    """Whether second differences of Hessian-vector products along a segment fall as they do where smooth.

    Halving the spacing quarters them; the jumps at kinks stay as they are.
    """
    direction = jax.random.normal(key, w.shape, w.dtype)
    direction = direction / jnp.linalg.norm(direction)

    def product(at: Scalar) -> Vector:
        return jax.jvp(jax.grad(zero_set.loss), (w + at * direction,), (direction,))[1]

    places = jnp.linspace(-1.0, 1.0, _PLACES) * _AROUND * length(w)
    products = jax.lax.map(product, places)

    def roughness(values: Float[Array, "places parameters"]) -> Scalar:
        return jnp.max(jnp.linalg.norm(values[2:] - 2 * values[1:-1] + values[:-2], axis=-1))

    coarse, fine = roughness(products[::2]), roughness(products)
    scale = jnp.max(jnp.linalg.norm(products, axis=-1))
    return ~(fine > coarse / _SMOOTH_RATIO) | ~(coarse > 1e-9 * scale)


_AROUND = 1e-2  # how far around the point kinks are looked for, relative to |w|
_PLACES = 65
_SMOOTH_RATIO = 2.5  # between 4, of a smooth loss, and 1, of one with kinks
_CLOSE = 1e-7  # relative to |w|
_FAR = 1e-5  # the same, where the rounding of a gradient counts a hundredth
_FAINT = 1e-4  # mismatch over that distance, of a jump that does not matter
_MISMATCH = 1e-6


def _is_rounding(zero_set: AbstractZeroSet, w: Vector, coarse: float) -> bool:
    """Whether the mismatch all but goes over a larger distance, as that by rounding does."""
    relative, far, _ = (float(value) for value in _mismatch(zero_set, w, jnp.asarray(_FAR)))
    return far <= coarse / 10 and relative <= _FAINT


@eqx.filter_jit
def _mismatch(zero_set: AbstractZeroSet, w: Vector, distance: Scalar) -> tuple[Scalar, Scalar, Scalar]:
    """How far the Hessian is from central differences of the gradient over `distance` |w|, and half of it.

    Relative and absolute over the former, absolute over the latter. Along one direction, in which every
    parameter moves, so that it crosses any kink at w. Some six gradients.
    """
    gradient = jax.grad(zero_set.loss)
    direction = jax.random.normal(jax.random.key(0), w.shape, w.dtype)
    direction = direction / jnp.linalg.norm(direction)
    product = jax.jvp(gradient, (w,), (direction,))[1]
    steps = distance * length(w) * jnp.array([1.0, -1.0, 0.5, -0.5])
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
def _ranks(zero_set: AbstractZeroSet, points: Float[Array, "count parameters"]) -> Array:
    return jax.lax.map(lambda w: zero_set.spectrum(w).codimension, points)


def _listing(spectrum: AbstractSpectrum) -> str:
    values = np.asarray(spectrum.eigenvalues)
    if len(values) <= 8:
        return "[" + ", ".join(f"{value:.3g}" for value in values) + "]"
    kept = values[np.asarray(spectrum.is_normal)]
    ends = [f"{value:.3g}" for value in (*kept[:3], *kept[-3:])]
    return f"[{', '.join(ends[:3])}, ..., {', '.join(ends[3:])}] and {len(values) - len(kept)} zeros"
