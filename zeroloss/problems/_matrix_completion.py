"""Matrix completion with a two-layer linear network (Cavazza et al. 2018; Mianjy, Arora and Vidal 2018)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from zeroloss._arguments import integer_between
from zeroloss.noise import site
from zeroloss.problems._matrix_sensing import factored_problem, matrix_of_rank
from zeroloss.problems._problem import Problem
from zeroloss.systems import LeastSquares


def matrix_completion(
    rows: int = 8,
    columns: int = 8,
    rank: int = 1,
    width: int = 8,
    observed: int = 44,
    seed: int = 0,
) -> Problem:
    """A matrix of low rank, some of whose entries are observed, as a product U V^T.

    The hidden layer, the site `"hidden"`, has the units U_rh V_ch for the entry (r, c). Label and weight
    noise lead to the least nuclear norm of the completed matrix, with rows and columns weighted by the root
    of how often they are observed. Dropout on the hidden layer has Reg = 1/2N sum over the entries observed
    and over h of U_rh^2 V_ch^2; with all entries observed its least value is |M|_*^2 / (2 N width).

    **Arguments:**

    - `rows`, `columns`, `rank`: of the truth, scaled to have entries of mean square 1.
    - `width`: of the hidden layer, the number of columns of U and V.
    - `observed`: the number N of entries observed, at random but so that every row and column has one.
    - `seed`: for the choice of entries, the truth and the start, which is Gaussian with variance
      1 / sqrt(width).
    """
    truth = matrix_of_rank(rank, rows, columns, width, seed)
    rows, columns = truth.shape
    observed = integer_between("observed", observed, max(rows, columns), rows * columns)
    entries = _entries(rows, columns, observed, seed)
    problem = LeastSquares(model, entries, truth[entries])
    task = f"a {rows} x {columns} matrix of rank {int(rank)} from {observed} of its entries"
    return factored_problem("matrix_completion", task, problem, truth, width, seed)


def model(
    params: PyTree, inputs: tuple[Int[Array, " examples"], Int[Array, " examples"]]
) -> Float[Array, " examples"]:
    """(U V^T)_rc as the sum of the hidden units U_rh V_ch."""
    row, column = inputs
    return jnp.sum(site(params["left"][row] * params["right"][column], "hidden"), axis=-1)


def _entries(rows: int, columns: int, observed: int, seed: int) -> tuple[Array, Array]:
    """Rows and columns of the observed entries: one in every row and column first, the others at random."""
    rng = np.random.default_rng([seed, 1])
    longest = np.arange(max(rows, columns))
    first = rng.permutation(rows)[longest % rows] * columns + rng.permutation(columns)[longest % columns]
    others = rng.permutation(np.setdiff1d(np.arange(rows * columns), first))
    chosen = np.sort(np.concatenate([first, others[: observed - len(first)]]))
    return jnp.asarray(chosen // columns), jnp.asarray(chosen % columns)
