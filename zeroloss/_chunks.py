"""Functions of many rows, evaluated on as many at a time as memory allows."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def over_rows(function: Callable[[Any], Any], rows: PyTree, size: int) -> PyTree:
    """`function(rows)`, row by row along the leading axis of all arrays, on at most `size` rows at a time.

    Under reverse mode a part is computed again instead of stored, so that memory stays bounded there too;
    in one part, when everything fits, there is nothing to store.
    """
    number = jax.tree.leaves(rows)[0].shape[0]
    parts = -(-number // size)
    if parts <= 1:
        return function(rows)
    size = -(-number // parts)
    computed = jax.checkpoint(function)  # pyright: ignore[reportPrivateImportUsage]
    indices = jnp.minimum(jnp.arange(parts * size), number - 1).reshape(parts, size)  # the last repeats
    results = jax.lax.map(lambda index: computed(jax.tree.map(lambda leaf: leaf[index], rows)), indices)
    return jax.tree.map(lambda leaf: leaf.reshape(parts * size, *leaf.shape[2:])[:number], results)
