"""Matrix decompositions that are safe in batches."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Float

WIDE = 1e-9
"""A spectrum wider than this, smallest over largest, is taken from singular values."""


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


eigh = one_by_one(_eigh)
"""Eigenvalues, from the smallest, and eigenvectors of a symmetric matrix."""

orthonormal = one_by_one(_orthonormal)
"""An orthonormal basis of the range of a matrix of full rank."""


@functools.cache
def squared_singular_values(rank: int | None) -> Callable[[Array], tuple[Array, Array]]:
    """A function from J, m x d, to the squares of its singular values, from the largest, and the vectors U.

    From K = J J^T, whose eigenvalues are lost below 1e-16 of the largest. Where the last of the first `rank`
    falls below WIDE, as towards a sparse solution, from J itself, good to the square of that.
    """

    def squares(jacobian: Array) -> tuple[Array, Array]:
        values, rotation = jnp.linalg.eigh(jacobian @ jacobian.T)
        values, rotation = values[::-1], rotation[:, ::-1]
        if rank is None or jacobian.shape[0] > jacobian.shape[1]:
            return values, rotation

        def from_singular_values() -> tuple[Array, Array]:
            left, singular, _ = jnp.linalg.svd(jacobian, full_matrices=False)
            return singular**2, left

        wide = values[rank - 1] < WIDE * values[0]
        return jax.lax.cond(wide, from_singular_values, lambda: (values, rotation))

    return one_by_one(squares)
