"""Matrix decompositions that are safe in batches."""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float

from zeroloss._tolerances import TINY

WIDE = 1e-9
"""If smallest / largest eigenvalue of K is below this, singular values of J replace the spectrum of K."""

_INVERSE_ITERATIONS = 2


def one_by_one(function: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """`function` of one array, mapped over a batch one element after the other on the CPU.

    There, LAPACK on a batch divides its work among the threads of the pool that it runs in, and two of them
    at a time can wait for each other for ever (seen with jaxlib 0.10). On a GPU batches stay batches.
    """

    @custom_vmap
    def mapped(array: Array) -> Any:
        return function(array)

    @mapped.def_vmap
    def batch(axis_size: int, in_batched: Any, arrays: Array) -> Any:
        def sequential(arrays: Array) -> Any:
            return jax.lax.map(mapped, arrays)

        results = jax.lax.platform_dependent(arrays, cpu=sequential, default=jax.vmap(function))
        return results, jax.tree.map(lambda _: True, results)

    return mapped


def _eigh(matrix: Float[Array, "n n"]) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors


def _orthonormal(matrix: Float[Array, "n k"]) -> Float[Array, "n k"]:
    return jnp.linalg.qr(matrix)[0]


cholesky = one_by_one(jnp.linalg.cholesky)
"""The lower triangular L with L L^T the symmetric matrix; NaN where it is not positive definite."""

eigh = one_by_one(_eigh)
"""Eigenvalues, from the smallest, and eigenvectors of a symmetric matrix."""

orthonormal = one_by_one(_orthonormal)
"""An orthonormal basis of the range of a matrix of full rank."""


def _squares(jacobian: Float[Array, "m d"], rank: int | None) -> tuple[Array, Array]:
    values, rotation = jnp.linalg.eigh(jacobian @ jacobian.T)
    values, rotation = values[::-1], rotation[:, ::-1]
    if rank is None or jacobian.shape[0] > jacobian.shape[1]:
        return values, rotation

    def from_singular_values() -> tuple[Array, Array]:
        left, singular, _ = jnp.linalg.svd(jacobian, full_matrices=False)
        return singular**2, left

    wide = values[rank - 1] < WIDE * values[0]
    return jax.lax.cond(wide, from_singular_values, lambda: (values, rotation))


@functools.cache
def squared_singular_values(rank: int | None) -> Callable[[Array], tuple[Array, Array]]:
    """A function from J, m x d, to the squares of its singular values, from the largest, and the vectors U.

    From K = J J^T, whose eigenvalues are lost below 1e-16 of the largest. Where the last of the first `rank`
    falls below WIDE, as towards a sparse solution, from J itself, good to the square of that.
    """
    return one_by_one(functools.partial(_squares, rank=rank))


class Inverse(eqx.Module):
    """K^+ of K = J J^T, m x m.

    `factor` is the Cholesky factor of K where `is_triangular`, and A with K^+ = A A^T elsewhere. Where it is
    triangular, the eigenvalues of K are at least of the order of `smallest`, which is not below WIDE of the
    largest.
    """

    factor: Float[Array, "m m"]
    is_triangular: Bool[Array, ""]
    smallest: Float[Array, ""]

    def mv(self, vector: Float[Array, " m"]) -> Float[Array, " m"]:
        """K^+ u, in O(m^2) operations."""
        return jax.lax.cond(
            self.is_triangular,
            lambda: jax.scipy.linalg.cho_solve((self.factor, True), vector),
            lambda: self.factor @ (self.factor.T @ vector),
        )


@functools.cache
def inverse_from_jacobian(rank: int | None, tolerance: float) -> Callable[[Array], Inverse]:
    """A function from J, m x d, to the pseudo-inverse of J J^T.

    Eigenvalues below `tolerance` of the largest are zero, unless J is of full `rank` m. Costs a product and a
    Cholesky factorization, where the spectrum is wider than WIDE some twenty times as much.
    """

    def inverse(jacobian: Float[Array, "m d"]) -> Inverse:
        return _inverse(jacobian @ jacobian.T, lambda: _squares(jacobian, rank), rank, tolerance)

    return one_by_one(inverse)


@functools.cache
def inverse_from_gram(rank: int | None, tolerance: float) -> Callable[[Array], Inverse]:
    """A function from K to its pseudo-inverse; otherwise as `inverse_from_jacobian`."""

    def inverse(gram: Float[Array, "m m"]) -> Inverse:
        def spectrum() -> tuple[Array, Array]:
            values, vectors = jnp.linalg.eigh(gram)
            return values[::-1], vectors[:, ::-1]

        return _inverse(gram, spectrum, rank, tolerance)

    return one_by_one(inverse)


def _inverse(
    gram: Float[Array, "m m"], spectrum: Callable[[], tuple[Array, Array]], rank: int | None, tolerance: float
) -> Inverse:
    lower = jnp.linalg.cholesky(gram)
    # Inverse iteration comes down on the smallest eigenvalue; where K has no factor, everything is NaN.
    vector = jax.random.normal(jax.random.key(0), gram.shape[:1], gram.dtype)
    length = jnp.ones((), gram.dtype)
    for _ in range(_INVERSE_ITERATIONS):
        vector = jax.scipy.linalg.cho_solve((lower, True), vector / jnp.linalg.norm(vector))
        length = jnp.linalg.norm(vector)
    narrow = 1 / length > WIDE * jnp.linalg.norm(gram)

    def root() -> Array:
        squares, rotation = spectrum()
        kept = (squares > tolerance * squares[0]) | (rank is not None)
        scale = jnp.sqrt(jnp.where(kept, jnp.maximum(squares, TINY), 1.0))
        return jnp.where(kept, rotation / scale, 0.0)

    return Inverse(jax.lax.cond(narrow, lambda: lower, root), narrow, 1 / length)


def power_iteration(product: Callable[[Array], Array], size: int) -> Array:
    """The largest eigenvalue, in size, of a symmetric matrix given by its products with vectors.

    To a relative 1e-6 of its change, with at most 1000 products.
    """

    def unfinished(state: tuple[Array, Array, Array, Array]) -> Array:
        _, before, now, count = state
        settled = (jnp.abs(now - before) <= 1e-6 * now) & (count > 1)
        return ~settled & (count < _POWER_ITERATIONS)

    def improve(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        vector, _, now, count = state
        image = product(vector)
        norm = jnp.linalg.norm(image)
        return image / jnp.where(norm > 0, norm, 1.0), now, norm, count + 1

    start = jax.random.normal(jax.random.key(0), (size,))
    start = (start / jnp.linalg.norm(start), jnp.zeros(()), jnp.ones(()), jnp.asarray(0))
    return jax.lax.while_loop(unfinished, improve, start)[2]


_POWER_ITERATIONS = 1000
