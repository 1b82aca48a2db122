"""The smallest interesting problem: L = (w_1 w_2 - 1)^2 / 2, zero on a hyperbola (theory.md, section 6)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from zeroloss.noise import LabelNoise, MiniBatch, WeightNoise
from zeroloss.problems.base import Problem
from zeroloss.system import LeastSquares


def hyperbola() -> Problem:
    """Two parameters, one residual w_1 w_2 - 1, start (2, 1/2). Label and weight noise in closed form."""
    return Problem(
        name="hyperbola",
        problem=LeastSquares(product, jnp.ones(1), jnp.ones(1)),
        start=jnp.array([2.0, 0.5]),
        observables={"log_ratio": lambda w: jnp.log(w[0] / w[1])},
        noises={
            "label": LabelNoise,
            "weight": WeightNoise,
            "minibatch": lambda size: MiniBatch(size, replace=True),  # there is one example
        },
        description="two parameters with product 1",
    )


def product(w: Float[Array, "2"], inputs: Float[Array, " examples"]) -> Float[Array, " examples"]:
    """The model w_1 w_2 x."""
    return w[0] * w[1] * inputs
