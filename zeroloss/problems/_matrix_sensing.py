"""Matrix sensing with a two-layer linear network (Gunasekar et al. 2017; theory.md, section 6)."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from zeroloss._arguments import integer_between, positive_integer
from zeroloss.noise import site
from zeroloss.problems._problem import Problem, noises_for
from zeroloss.systems import LeastSquares


def matrix_sensing(
    rows: int = 8,
    columns: int = 8,
    rank: int = 1,
    width: int = 8,
    measurements: int = 36,
    seed: int = 0,
) -> Problem:
    """A matrix of low rank, known through <A_i, M> for some Gaussian matrices A_i, as a product U V^T.

    The hidden layer, the site `"hidden"`, has the units u_h^T A_i v_h. With S_R = sum_i A_i^T A_i / N and
    S_L = sum_i A_i A_i^T / N the trace of the Hessian is tr V^T S_R V + tr U^T S_L U, at least
    2 |S_L^(1/2) U V^T S_R^(1/2)|_*: label and weight noise lead to the least such nuclear norm.
    Noise on the inputs leads to the least Frobenius norm.

    **Arguments:**

    - `rows`, `columns`, `rank`: of the truth, scaled to have entries of mean square 1.
    - `width`: of the hidden layer, the number of columns of U and V.
    - `measurements`: the number N of examples, below rows * columns.
    - `seed`: for the measurements, the truth and the start, which is Gaussian with variance 1 / sqrt(width).
    """
    truth = matrix_of_rank(rank, rows, columns, width, seed)
    rows, columns = truth.shape
    measurements = integer_between("measurements", measurements, 1, rows * columns - 1)
    inputs = np.random.default_rng([seed, 1]).normal(size=(measurements, rows, columns))
    problem = LeastSquares(model, jnp.asarray(inputs), jnp.einsum("irc,rc->i", inputs, truth))
    task = f"a {rows} x {columns} matrix of rank {int(rank)} from {measurements} measurements"
    return factored_problem("matrix_sensing", task, problem, truth, width, seed)


def model(params: PyTree, inputs: Float[Array, "examples rows columns"]) -> Float[Array, " examples"]:
    """<A_i, U V^T> as the sum of the hidden units u_h^T A_i v_h."""
    units = jnp.einsum("irc,rh,ch->ih", inputs, params["left"], params["right"])
    return jnp.sum(site(units, "hidden"), axis=-1)


def product(params: PyTree) -> Float[Array, "rows columns"]:
    """U V^T."""
    return params["left"] @ params["right"].T


def matrix_of_rank(rank: int, rows: int, columns: int, width: int, seed: int) -> Float[Array, "rows columns"]:
    """A product of two Gaussian factors, scaled so that its entries have mean square 1.

    Raises `InputError` for sizes that are not positive integers, and for a rank above the number of rows, of
    columns, or of hidden units, `width`.
    """
    rows, columns = positive_integer("rows", rows), positive_integer("columns", columns)
    rank = integer_between("rank", rank, 1, min(rows, columns, positive_integer("width", width)))
    rng = np.random.default_rng([seed, 0])
    matrix = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))
    return jnp.asarray(matrix / np.sqrt(np.mean(matrix**2)))


def factored_problem(
    name: str,
    task: str,
    problem: LeastSquares,
    truth: Float[Array, "rows columns"],
    width: int,
    seed: int,
) -> Problem:
    """The problem of finding `truth` as U V^T, with factors of `width` columns."""
    rows, columns = truth.shape
    start = _initial_factors(rows, columns, int(width), seed)
    return Problem(
        name=name,
        problem=problem,
        start=start,
        observables={"distance_to_truth": eqx.Partial(_distance_to, truth), "nuclear_norm": _nuclear_norm},
        noises=noises_for(problem, start, replace=True),
        description=f"{task}, linear network of width {int(width)}",
        truth=truth,
    )


def _initial_factors(rows: int, columns: int, width: int, seed: int) -> dict[str, Array]:
    """Gaussian factors whose product has entries of variance 1."""
    left, right = jax.random.split(jax.random.key(seed))
    return {
        "left": jax.random.normal(left, (rows, width)) / width**0.25,
        "right": jax.random.normal(right, (columns, width)) / width**0.25,
    }


def _distance_to(truth: Float[Array, "rows columns"], params: PyTree) -> Float[Array, ""]:
    """The distance of U V^T to the truth, relative to the truth."""
    return jnp.linalg.norm(product(params) - truth) / jnp.linalg.norm(truth)


def _nuclear_norm(params: PyTree) -> Float[Array, ""]:
    return jnp.linalg.norm(product(params), "nuc")
