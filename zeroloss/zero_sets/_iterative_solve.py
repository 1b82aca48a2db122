"""A linear system by iteration; a solution that was not found is NaN."""

from typing import Any

import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array


def solve(
    operator: lx.AbstractLinearOperator,
    vector: Array,
    solver: lx.AbstractLinearSolver,
    options: dict[str, Any] | None = None,
) -> tuple[Array, Array]:
    """The solution, NaN where it has not been found, and the iterations."""
    solution = lx.linear_solve(operator, vector, solver, options=options, throw=False)
    is_found = solution.result == lx.RESULTS.successful
    return jnp.where(is_found, solution.value, jnp.nan), jnp.asarray(solution.stats["num_steps"])
