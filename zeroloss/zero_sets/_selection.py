"""Which way of computing a zero-loss set suits a problem."""

import logging
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import PyTree

from zeroloss._pytrees import Vector, in_type
from zeroloss._tolerances import LARGEST_HESSIAN
from zeroloss.errors import InputError
from zeroloss.jacobians import MAX_MEMORY, Structure, structure_of
from zeroloss.systems import AbstractSystem, LeastSquares, Supervised
from zeroloss.zero_sets._dense import DenseZeroSet
from zeroloss.zero_sets._gram import GramZeroSet
from zeroloss.zero_sets._iterative_hessian import IterativeZeroSet
from zeroloss.zero_sets._iterative_residuals import IterativeGramZeroSet
from zeroloss.zero_sets._zero_set import AbstractZeroSet

_MOST_FACTORIZED = 20_000  # residuals; a float64 Gram matrix of them takes 3 GiB
_LARGEST_JACOBIAN = 2**20  # bytes, beyond which it is not formed
_LOG = logging.getLogger(__name__)


def zero_set_of(system: AbstractSystem, w: Vector, unravel: Callable[[Vector], PyTree]) -> AbstractZeroSet:
    """The zero-loss set of `system`: by Gram matrix for least squares, by Hessian otherwise.

    Forms the whole Hessian up to `LARGEST_HESSIAN` parameters, and beyond takes products with it. The Gram
    matrix comes from the Jacobian as a matrix up to 1 MiB of it, and beyond from the structure of the model.
    It is not formed at all for more than 20,000 residuals. The problem's `geometry` overrules these numbers.
    Only the shape of w is used. Logs the choice.
    """
    problem = system.clean_problem()
    if not isinstance(problem, Supervised):
        factorized = problem.geometry == "auto" and w.size <= LARGEST_HESSIAN
        if factorized or problem.geometry == "factorized":
            return DenseZeroSet(problem, unravel)
        return IterativeZeroSet(problem, unravel)
    problem = problem.residual_problem
    residuals = problem.targets.size
    matrix_free = problem.geometry == "matrix-free" or (
        problem.geometry == "auto" and residuals > _MOST_FACTORIZED
    )
    float32_structure = _in_float32(problem, unravel(w)) if problem.precision == "mixed" else None
    size = residuals * w.size * w.dtype.itemsize
    if size <= _LARGEST_JACOBIAN and not matrix_free and float32_structure is None:
        _LOG.debug("a Jacobian of %d bytes: as a matrix", size)
        return GramZeroSet(problem, unravel)
    structure = _structure(problem, unravel(w), problem.inputs)
    _LOG.debug("a Jacobian of %d bytes: %s", size, structure.kinds)
    if matrix_free:
        _LOG.info("%d residuals: the zero-loss set is treated matrix-free, by iteration", residuals)
        return IterativeGramZeroSet(
            problem, unravel, structure=structure, float32_structure=float32_structure
        )
    return GramZeroSet(problem, unravel, structure=structure, float32_structure=float32_structure)


def _structure(problem: LeastSquares, params: PyTree, inputs: PyTree) -> Structure:
    budget = MAX_MEMORY if problem.max_memory is None else problem.max_memory
    return structure_of(problem.model, params, inputs, budget)


def _in_float32(problem: LeastSquares, params: PyTree) -> Structure:
    """The structure of the model with parameters and inputs in float32."""
    float32_structure = _structure(
        problem, in_type(params, jnp.float32), in_type(problem.inputs, jnp.float32)
    )
    if float32_structure.maker.dtype != jnp.float32:
        raise InputError(
            f"with parameters and inputs in float32 the model still computes in "
            f"{float32_structure.maker.dtype}, so "
            'precision="mixed" would gain nothing: the model closes over float64 arrays, or converts to '
            "float64. Pass arrays as inputs or params, or use Python numbers."
        )
    return float32_structure
