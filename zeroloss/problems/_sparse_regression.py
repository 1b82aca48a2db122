"""Sparse regression with a diagonal linear network (theory.md, section 6).

Woodworth et al. (2020) and Vaskevicius, Kanade and Rebeschini (2019) for the networks, Li, Wang and Arora
(2022) for label noise in them.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from zeroloss._arguments import integer_between, positive_integer
from zeroloss.problems._problem import Problem, noises_for
from zeroloss.systems import LeastSquares


def sparse_regression(
    dimension: int = 100, examples: int = 40, nonzeros: int = 5, signed: bool = False, seed: int = 0
) -> Problem:
    """Linear regression whose coefficients are v * v, or u * u - v * v: fewer examples than coefficients.

    Inputs are standard normal and the targets free of noise. tr H is 4 / N sum_ij x_ij^2 v_j^2, a weighted l1
    norm of the coefficients (with signs: at least that), so label and weight noise lead to the sparse
    solution of a linear program. Noise on the inputs leads to the least l2 norm instead, and DropConnect to
    a weighted one.

    **Arguments:**

    - `dimension`: number of coefficients.
    - `examples`: number of examples; at most `dimension` - 1, or there is nothing to choose from.
    - `nonzeros`: how many coefficients of the truth are not zero; each is between 1/2 and 3/2 in size.
    - `signed`: whether coefficients are u * u - v * v, of any sign, or v * v.
    - `seed`: for the inputs and the truth. Training starts with all parameters 1.
    """
    dimension = positive_integer("dimension", dimension)
    examples = integer_between("examples", examples, 1, dimension - 1)
    nonzeros = integer_between("nonzeros", nonzeros, 1, dimension)
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(examples, dimension))
    truth = np.zeros(dimension)
    truth[rng.choice(dimension, nonzeros, replace=False)] = rng.uniform(0.5, 1.5, nonzeros)
    ones = jnp.ones(dimension)
    if signed:
        truth *= rng.choice([-1.0, 1.0], dimension)
    target = jnp.asarray(truth)
    problem = LeastSquares(model, jnp.asarray(inputs), jnp.asarray(inputs @ truth))
    start = {"positive": ones, "negative": ones} if signed else {"positive": ones}
    return Problem(
        name="sparse_regression",
        problem=problem,
        start=start,
        observables={
            "distance_to_truth": eqx.Partial(distance_to_truth, target),
            "l1_norm": l1_norm,
        },
        noises=noises_for(problem, start),
        description=f"{nonzeros} nonzeros among {dimension} {'signed' if signed else 'positive'} "
        f"coefficients, {examples} examples, diagonal linear network",
        truth=target,
    )


def coefficients(params: PyTree) -> Float[Array, " dimension"]:
    """The regression coefficients: squared parameters, less those of the negative part if there is one."""
    positive = params["positive"] ** 2
    return positive - params["negative"] ** 2 if "negative" in params else positive


def distance_to_truth(truth: Float[Array, " dimension"], params: PyTree) -> Float[Array, ""]:
    """The distance of the coefficients to the truth, relative to the truth."""
    return jnp.linalg.norm(coefficients(params) - truth) / jnp.linalg.norm(truth)


def l1_norm(params: PyTree) -> Float[Array, ""]:
    """The sum of the absolute values of the coefficients."""
    return jnp.sum(jnp.abs(coefficients(params)))


def model(params: PyTree, inputs: Float[Array, "examples dimension"]) -> Float[Array, " examples"]:
    """<coefficients, x>."""
    return inputs @ coefficients(params)
