"""Whether a point of the zero-loss set is regular: the loss is smooth, and the set a manifold around it."""

from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from zeroloss._compilation import compiled_once
from zeroloss._pytrees import Vector
from zeroloss._tolerances import ON_SET
from zeroloss.errors import LossError, RankError
from zeroloss.systems import Scalar
from zeroloss.zero_sets._zero_set import AbstractSpectrum, AbstractZeroSet, norm_or_one, spectrum_of

NEIGHBOUR_DISTANCES = (1e-2, 1e-3)
"""Distances from a point, relative to |w|, of its neighbours on the set."""

_NEIGHBOURS = 5

_AROUND = 1e-2  # half the length of the segment that is searched for kinks, relative to |w|
_PLACES = 65
_SMOOTH_RATIO = 2.5  # between 4, of a smooth loss, and 1, of one with kinks
_CLOSE = 1e-7  # relative to |w|
_LARGE_DISTANCE = 1e-5  # the same, where the rounding of a gradient counts a hundredth
_HARMLESS_MISMATCH = 1e-4  # mismatch over that distance, of a jump that does not matter
_MISMATCH = 1e-6


def with_rank_of(zero_set: AbstractZeroSet, w: Vector, spectrum: AbstractSpectrum) -> AbstractZeroSet:
    """`zero_set` with the rank of its `spectrum` at w, once the neighbours of w agree with that rank.

    Raises `LossError` for negative curvature and `RankError` where the set is not a manifold around w.
    """
    rank, shown = int(spectrum.codimension), listing(spectrum)
    check_curvature(spectrum)
    if rank == w.size:
        refuse_isolated(f"the Hessian has full rank {rank}", shown)
    fixed = zero_set.with_rank(rank)
    points, distance = neighbours_on_set(fixed, w, f"rank {rank} of {w.size}", shown)
    ranks = {int(rank_there) for rank_there in _ranks(zero_set, points)}
    if ranks != {rank}:
        raise RankError(
            f"the Hessian has rank {rank} at this point but {sorted(ranks)} at points of the zero-loss set "
            f"within {distance:g} of it (relative to |w|): no manifold of constant rank. Spectrum: {shown}."
        )
    return fixed


def check_curvature(spectrum: AbstractSpectrum) -> None:
    """Raise `LossError` for a Hessian with negative curvature, `RankError` for a Hessian of zero."""
    if float(jnp.min(spectrum.eigenvalues)) < 0:
        raise LossError(
            "the Hessian of the loss has a negative eigenvalue here: the loss is negative nearby, and "
            f"a loss with a zero-loss set must be >= 0. Spectrum: {listing(spectrum)}."
        )
    if int(spectrum.codimension) == 0:
        raise RankError(
            "the Hessian of the loss vanishes at this point, so the zero-loss set is not a manifold with "
            f"a nondegenerate normal direction there. Spectrum: {listing(spectrum)}."
        )


def refuse_isolated(reason: str, shown: str) -> NoReturn:
    """Raise `RankError` for a set that is a single point. `shown`: the spectrum as text."""
    raise RankError(
        f"the zero-loss set is an isolated point: {reason}, nothing can drift. Spectrum: {shown}."
    )


def neighbours_on_set(
    zero_set: AbstractZeroSet, w: Vector, known: str, shown: str
) -> tuple[Float[Array, "count parameters"], float]:
    """Points of the set around w, and their relative distance.

    Raises `RankError` where the tangent directions at w do not lead to any. `known` and `shown`: the rank and
    the spectrum as text.
    """
    residuals = jnp.inf
    for distance in NEIGHBOUR_DISTANCES:
        points, residuals = neighbours(zero_set, w, jax.random.key(0), _NEIGHBOURS, distance)
        if bool(jnp.all(residuals <= ON_SET)):
            return points, distance
    raise RankError(
        f"moving along the kernel of the Hessian ({known}) leaves the zero-loss set: the smallest relative "
        f"residual within {NEIGHBOUR_DISTANCES[-1]:g} is {float(jnp.min(residuals)):.3g}. The set is not a "
        f"manifold of constant rank here. Spectrum: {shown}."
    )


def neighbours(
    zero_set: AbstractZeroSet, w: Vector, key: Array, count: int, distance: float
) -> tuple[Float[Array, "count parameters"], Float[Array, " count"]]:
    """Points of the set around w: random tangent steps of `distance` |w|, retracted.

    **Returns:** the points, and their relative residuals.
    """
    return _neighbours(zero_set, w, jax.random.split(key, count), jnp.asarray(distance))


@compiled_once
def _neighbours(zero_set: AbstractZeroSet, w: Vector, keys: Array, distance: Scalar):
    spaces = zero_set.spaces(w)

    def one(key: Array) -> tuple[Vector, Scalar]:
        direction = spaces.tangent(jax.random.normal(key, w.shape, w.dtype))
        norm = jnp.linalg.norm(direction)
        step = distance * norm_or_one(w) * direction / jnp.where(norm > 0, norm, 1.0)
        point = zero_set.retract(w + step)
        finite = jnp.all(jnp.isfinite(point))
        point = jnp.where(finite, point, w)
        too_far = jnp.linalg.norm(point - w) > 3 * distance * norm_or_one(w)
        residual = zero_set.relative_residual(point)
        return point, jnp.where(finite & ~too_far, residual, jnp.inf)

    return jax.lax.map(one, keys)


def listing(spectrum: AbstractSpectrum) -> str:
    """The eigenvalues for a message: all of up to eight, else the ends of the list."""
    values = np.asarray(spectrum.eigenvalues)
    if len(values) <= 8:
        return "[" + ", ".join(f"{value:.3g}" for value in values) + "]"
    kept = values[np.asarray(spectrum.is_normal)]
    ends = [f"{value:.3g}" for value in (*kept[:3], *kept[-3:])]
    return f"[{', '.join(ends[:3])}, ..., {', '.join(ends[3:])}] and {len(values) - len(kept)} zeros"


@compiled_once
def _ranks(zero_set: AbstractZeroSet, points: Float[Array, "count parameters"]) -> Array:
    return jax.lax.map(lambda w: spectrum_of(zero_set, w).codimension, points)


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
    """Whether the loss is free of kinks, such as of ReLU units, around w. 65 Hessian-vector products."""
    return bool(_looks_smooth(zero_set, w, jax.random.key(0) if key is None else key))


@compiled_once
def _looks_smooth(zero_set: AbstractZeroSet, w: Vector, key: Array) -> Array:
    """Whether second differences of Hessian-vector products along a segment fall as they do where smooth.

    Halving the spacing quarters them; the jumps at kinks stay as they are.
    """
    direction = jax.random.normal(key, w.shape, w.dtype)
    direction = direction / jnp.linalg.norm(direction)

    def product(at: Scalar) -> Vector:
        return jax.jvp(jax.grad(zero_set.loss), (w + at * direction,), (direction,))[1]

    places = jnp.linspace(-1.0, 1.0, _PLACES) * _AROUND * norm_or_one(w)
    products = jax.lax.map(product, places)

    def roughness(values: Float[Array, "places parameters"]) -> Scalar:
        return jnp.max(jnp.linalg.norm(values[2:] - 2 * values[1:-1] + values[:-2], axis=-1))

    coarse, fine = roughness(products[::2]), roughness(products)
    scale = jnp.max(jnp.linalg.norm(products, axis=-1))
    return ~(fine > coarse / _SMOOTH_RATIO) | ~(coarse > 1e-9 * scale)


def _is_rounding(zero_set: AbstractZeroSet, w: Vector, coarse: float) -> bool:
    """Whether the mismatch nearly vanishes over a larger distance, as a mismatch by rounding does."""
    relative, far, _ = (float(value) for value in _mismatch(zero_set, w, jnp.asarray(_LARGE_DISTANCE)))
    return far <= coarse / 10 and relative <= _HARMLESS_MISMATCH


@compiled_once
def _mismatch(zero_set: AbstractZeroSet, w: Vector, distance: Scalar) -> tuple[Scalar, Scalar, Scalar]:
    """How far the Hessian is from central differences of the gradient over `distance` |w| and half of it.

    Returns the relative and the absolute mismatch over the whole distance, and the absolute one over half.
    The direction is random, so that every parameter moves and the line crosses any kink at w. Some six
    gradients.
    """
    gradient = jax.grad(zero_set.loss)
    direction = jax.random.normal(jax.random.key(0), w.shape, w.dtype)
    direction = direction / jnp.linalg.norm(direction)
    product = jax.jvp(gradient, (w,), (direction,))[1]
    steps = distance * norm_or_one(w) * jnp.array([1.0, -1.0, 0.5, -0.5])
    ahead, behind, nearer_ahead, nearer_behind = jax.lax.map(
        lambda step: gradient(w + step * direction), steps
    )

    def difference(ahead: Vector, behind: Vector, step: Scalar) -> Scalar:
        gap = jnp.linalg.norm((ahead - behind) / (2 * step) - product)
        return jnp.where(jnp.isfinite(gap), gap, 0.0)

    coarse, fine = difference(ahead, behind, steps[0]), difference(nearer_ahead, nearer_behind, steps[2])
    scale = jnp.maximum(jnp.linalg.norm(product), coarse)
    return coarse / jnp.where(scale > 0, scale, 1.0), coarse, fine
