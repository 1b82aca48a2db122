"""Phase retrieval: the squares of fewer linear measurements than there are unknowns."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from zeroloss._arguments import integer_between, positive_integer
from zeroloss.problems._problem import Problem, noises_for
from zeroloss.systems import LeastSquares


def phase_retrieval(dimension: int = 20, measurements: int = 10, seed: int = 0) -> Problem:
    """f_i = (a_i^T w)^2, with Gaussian a_i of unit length on average.

    The zero-loss set is made of the affine spaces a_i^T w = s_i sqrt(y_i), one for every choice of signs s.
    The Hessian depends on s and y alone, so label and weight noise are trivial: they do nothing. DropConnect
    has Reg = (2/N) sum_j d_j w_j^2 with d_j = sum_i y_i a_ij^2; it leads to the least such norm on the
    space where it starts, D^-1 A^T (A D^-1 A^T)^-1 (s sqrt(y)).

    **Arguments:**

    - `dimension`: number of unknowns.
    - `measurements`: the number N of examples, at most `dimension` - 1.
    - `seed`: for the measurements, the truth, and the start, which are all Gaussian.
    """
    dimension = positive_integer("dimension", dimension)
    measurements = integer_between("measurements", measurements, 1, dimension - 1)
    rng = np.random.default_rng(seed)
    inputs = jnp.asarray(rng.normal(size=(measurements, dimension)) / np.sqrt(dimension))
    truth = jnp.asarray(rng.normal(size=dimension))
    problem = LeastSquares(model, inputs, model(truth, inputs))
    start = jax.random.normal(jax.random.key(seed), (dimension,))
    return Problem(
        name="phase_retrieval",
        problem=problem,
        start=start,
        observables={"norm": jnp.linalg.norm},
        noises=noises_for(problem, start, replace=True),
        description=f"phase retrieval of {dimension} unknowns from {measurements} measurements",
        truth=truth,
    )


def model(
    w: Float[Array, " dimension"], inputs: Float[Array, "examples dimension"]
) -> Float[Array, " examples"]:
    """(a_i^T w)^2."""
    return (inputs @ w) ** 2


def least_norm(
    w: Float[Array, " dimension"], inputs: Float[Array, "examples dimension"]
) -> Float[Array, " dimension"]:
    """The limit of DropConnect from w, a point of the zero-loss set, in closed form (`phase_retrieval`).

    **Arguments:**

    - `w`: only its measurements a_i^T w, with their signs, matter.
    - `inputs`: the a_i.
    """
    measured = inputs @ w
    weights = measured**2 @ inputs**2
    scaled = inputs / weights
    return scaled.T @ jnp.linalg.solve(scaled @ inputs.T, measured)
