"""A check, on draws from it, that a law written by a user is standardized."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from zeroloss._compilation import compiled_once
from zeroloss.errors import InputError

_DRAWS = 200_000  # numbers in all
_LARGEST_SIZE = 64  # components that are compared one by one
_STANDARD_ERRORS = 6.0
_HEAVY = 0.05  # share of the largest square in the sum of all, which tends to 0 with finite variance


def check_draws(law: Any) -> None:
    """Raise `InputError` unless draws of xi look standardized: mean 0, covariance I, finite variance."""
    name = type(law).__name__
    size = law.size
    if size == 0:
        return
    draws = np.asarray(_draw_many(law, max(_DRAWS // size, 1000)))
    if not np.isfinite(draws).all():
        raise InputError(f"the law {name} draws numbers that are not finite.")
    squares = np.sort((draws**2).ravel())
    if squares[-1] == 0:
        raise InputError(f"the law {name} has zero variance; xi must have variance 1.")
    share = float(squares[-1] / squares.sum())
    if share > _HEAVY and squares[-1] > 100:
        raise InputError(
            f"the law {name} seems to have infinite variance: of {squares.size:,} draws the largest alone "
            f"makes {100 * share:.0f} % of the sum of squares. Its variance must be 1."
        )
    _compare(name, "mean", draws, 0.0)
    _compare(name, "variance", draws**2, 1.0)
    some = draws[:, :_LARGEST_SIZE]
    for other in range(1, some.shape[1]):
        _compare(name, "covariance of two components", some[:, other:] * some[:, :-other], 0.0, each=True)
    one, two, both = (law.unit(_unravel(law, vector)) for vector in (draws[0], draws[1], draws[0] + draws[1]))
    for left, right, together in zip(*map(jax.tree.leaves, (one, two, both)), strict=True):
        if not np.allclose(left + right, together, rtol=1e-6, atol=1e-9):
            raise InputError(f"the law {name} has a `unit` that is not linear in xi.")


def _compare(name: str, quantity: str, values: np.ndarray, expected: float, each: bool = False) -> None:
    """Raise unless the mean of `values` is `expected`, for each component and, without `each`, overall."""
    groups = [values.reshape(-1, 1)] if not each else []
    for group in [*groups, values[:, :_LARGEST_SIZE]]:
        mean = group.mean(axis=0)
        error = group.std(axis=0) / np.sqrt(len(group)) + 1e-9
        worst = int(np.argmax(np.abs(mean - expected) / error))
        if abs(mean[worst] - expected) > _STANDARD_ERRORS * error[worst]:
            raise InputError(
                f"the law {name} is not standardized: the {quantity} of xi must be {expected:g}, but "
                f"{len(group):,} draws give {mean[worst]:.4g} +- {error[worst]:.1g}."
            )


@compiled_once
def _draw_many(law: Any, count: int) -> Float[Array, "count size"]:
    keys = jax.random.split(jax.random.key(0), count)
    return jax.vmap(lambda key: ravel_pytree(law.sample(key))[0])(keys)


def _unravel(law: Any, vector: np.ndarray) -> PyTree[Array]:
    return ravel_pytree(law.zeros())[1](jnp.asarray(vector))
