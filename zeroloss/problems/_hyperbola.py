"""The smallest interesting problem: L = (w_1 w_2 - 1)^2 / 2, zero on a hyperbola (theory.md, section 6)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from zeroloss.problems._problem import Problem, noises_for
from zeroloss.systems import LeastSquares


def hyperbola() -> Problem:
    """Two parameters, one residual w_1 w_2 - 1, start (2, 1/2).

    Label noise, weight noise and Gaussian DropConnect in closed form: with w = (e^s, e^-s), sinh 2s decays
    exponentially under each of them.
    """
    problem, start = LeastSquares(product, jnp.ones(1), jnp.ones(1)), jnp.array([2.0, 0.5])
    return Problem(
        name="hyperbola",
        problem=problem,
        start=start,
        observables={"log_ratio": log_ratio},
        noises=noises_for(problem, start, replace=True),  # there is one example
        description="two parameters with product 1",
    )


def log_ratio(w: Float[Array, "2"]) -> Float[Array, ""]:
    """log(w_1 / w_2), which is 2 s at (e^s, e^-s)."""
    return jnp.log(w[0] / w[1])


def product(w: Float[Array, "2"], inputs: Float[Array, " examples"]) -> Float[Array, " examples"]:
    """The model w_1 w_2 x."""
    return w[0] * w[1] * inputs
