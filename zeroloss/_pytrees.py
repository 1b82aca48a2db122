"""Parameters as pytrees outside, as flat float64 vectors inside."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, DTypeLike, Float, PyTree

from zeroloss.errors import InputError, PrecisionError, UnsupportedError

Vector = Float[Array, " parameters"]
Vectors = Float[Array, " parameters *more"]  # a vector, or columns of a matrix
Columns = Float[Array, "parameters columns"]


def require_float64(purpose: str) -> None:
    """Raise `PrecisionError` unless JAX computes in float64."""
    if not jax.config.read("jax_enable_x64"):
        raise PrecisionError(
            f"{purpose} needs float64, and JAX has it switched off: float32 resolves distances to "
            "the zero-loss set only to about 1e-7. Call "
            'jax.config.update("jax_enable_x64", True) before making any array, or set the '
            "environment variable JAX_ENABLE_X64=1."
        )


def flatten(params: PyTree) -> tuple[Vector, Callable[[Vector], PyTree]]:
    """`params` as one vector of JAX's widest float (float64 unless switched off), and the way back."""
    widest = jax.dtypes.canonicalize_dtype(jnp.float64)
    return ravel_pytree(jax.tree.map(lambda leaf: jnp.asarray(leaf, widest), params))


def in_type(tree: PyTree, real: DTypeLike) -> PyTree:
    """`tree` as arrays, the floating-point ones of type `real`."""

    def cast(leaf: Any) -> Array:
        leaf = jnp.asarray(leaf)
        return leaf.astype(real) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, tree)


def is_traced(tree: PyTree) -> bool:
    """Whether any leaf is a JAX tracer, so that its value cannot be looked at."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def refuse_tracing(tree: PyTree, verb: str) -> None:
    """Raise `UnsupportedError` under `jax.jit` or `jax.vmap`, for verbs that decide and loop on values."""
    if is_traced(tree):
        raise UnsupportedError(
            f"{verb} cannot run inside jax.jit or jax.vmap: it decides on values. It compiles its own inner "
            "loops; call it outside, or use zeroloss.drift and zeroloss.regularizer, which can run inside."
        )


def check_finite(tree: PyTree, what: str) -> None:
    """Raise `InputError` unless every leaf of `tree` is a finite real array."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    if not leaves:
        raise InputError(f"{what}: no arrays in it.")
    for path, leaf in leaves:
        where = what + jax.tree_util.keystr(path)
        if callable(leaf) or isinstance(leaf, (str, bytes)):
            raise InputError(
                f"{where} is {leaf!r}, not an array. Split it off first, for instance with "
                "equinox.partition(module, equinox.is_array)."
            )
        _check_leaf(leaf, where)


def check_parameters(params: PyTree) -> None:
    """Raise `InputError` unless `params` is a non-empty pytree of finite floating-point arrays."""
    check_finite(params, "params")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise InputError(
                f"params{jax.tree_util.keystr(path)} has dtype {jnp.result_type(leaf)}; "
                "parameters must be floating-point arrays."
            )


def _check_leaf(leaf: Any, where: str) -> None:
    if isinstance(leaf, Tracer):
        return
    values = np.asarray(leaf)
    if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
        values = np.asarray(jnp.asarray(leaf, jnp.float32))
    finite = np.isfinite(values)
    if not finite.all():
        first = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise InputError(
            f"{where} holds {int((~finite).sum())} NaN or infinite values of {values.size}, "
            f"the first at index {first}."
        )
