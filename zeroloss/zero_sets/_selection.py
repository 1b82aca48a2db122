"""Which way of computing a zero-loss set suits a problem."""

import logging
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import PyTree

from zeroloss._pytrees import Vector, in_float32
from zeroloss.errors import InputError
from zeroloss.jacobians import MAX_MEMORY, Structure, structure_of
from zeroloss.systems import AbstractSystem, LeastSquares
from zeroloss.zero_sets._dense import DenseZeroSet, is_small
from zeroloss.zero_sets._gram import GramZeroSet
from zeroloss.zero_sets._iterative_hessian import IterativeZeroSet
from zeroloss.zero_sets._zero_set import AbstractSpectrum, AbstractZeroSet, spectrum_at

_MOST_FACTORIZED = 20_000  # residuals; a float64 Gram matrix of them takes 3 GiB
_LARGEST_JACOBIAN = 2**20  # bytes, beyond which it is not formed
_LARGEST_HESSIAN = 2000  # parameters
_COLUMNS = (64, 256, 1024, 4096)  # tried for a basis of the normal space of more parameters
_LARGEST_BASIS = 2**30  # bytes
_LOG = logging.getLogger(__name__)


def zero_set_of(system: AbstractSystem, w: Vector, unravel: Callable[[Vector], PyTree]) -> AbstractZeroSet:
    """The zero-loss set of `system`: by Gram matrix for least squares, by Hessian otherwise.

    By the whole Hessian up to 2000 parameters, beyond by products with it.
    The Gram matrix comes from the Jacobian as a matrix up to 1 MiB of it, beyond from the structure of the
    model, and is not formed at all for more than 20,000 residuals, or as the problem's `spectrum` says. Logs
    which. Only the shape of w is used.
    """
    problem = system.clean_problem()
    if not isinstance(problem, LeastSquares):
        as_matrix = problem.geometry == "factorized" or w.size <= _LARGEST_HESSIAN
        if as_matrix and problem.geometry != "matrix-free":
            return DenseZeroSet(problem, unravel)
        return IterativeZeroSet(problem, unravel)
    residuals = problem.targets.size
    matrix_free = problem.geometry == "matrix-free" or (
        problem.geometry == "auto" and residuals > _MOST_FACTORIZED
    )
    size = residuals * w.size * w.dtype.itemsize
    is_mixed = problem.precision == "mixed"
    as_matrix = size <= _LARGEST_JACOBIAN and not matrix_free and not is_mixed
    structure = None if as_matrix else _structure(problem, unravel(w), problem.inputs)
    rough = _in_float32(problem, unravel(w)) if is_mixed else None
    _LOG.debug("a Jacobian of %d bytes: %s", size, structure.kinds if structure else "as a matrix")
    if matrix_free:
        _LOG.info("%d residuals: the zero-loss set is treated matrix-free, by iteration", residuals)
    return GramZeroSet(problem, unravel, structure=structure, matrix_free=matrix_free, rough=rough)


def _structure(problem: LeastSquares, params: PyTree, inputs: PyTree) -> Structure:
    budget = MAX_MEMORY if problem.max_memory is None else problem.max_memory
    return structure_of(problem.model, params, inputs, budget)


def _in_float32(problem: LeastSquares, params: PyTree) -> Structure:
    """The structure of the model with parameters and inputs in float32."""
    rough = _structure(problem, in_float32(params), in_float32(problem.inputs))
    if rough.maker.dtype != jnp.float32:
        raise InputError(
            f"with parameters and inputs in float32 the model still computes in {rough.maker.dtype}, so "
            'precision="mixed" would gain nothing: it closes over float64 arrays, or converts to float64. '
            "Pass arrays as inputs or params, or use numbers of Python."
        )
    return rough


def with_basis(zero_set: IterativeZeroSet, w: Vector) -> tuple[DenseZeroSet, AbstractSpectrum] | None:
    """The same set by a basis of its normal space, with that at w, where it is small enough to be wanted."""
    problem = zero_set.problem
    if problem.geometry == "matrix-free":
        return None
    for columns in _COLUMNS:
        if not is_small(columns, w) or columns * w.size * w.dtype.itemsize > _LARGEST_BASIS:
            break
        dense = DenseZeroSet(problem, zero_set.unravel, columns=columns)
        spectrum = spectrum_at(dense, w)
        rank = int(spectrum.codimension)
        if rank < columns:
            _LOG.debug("the Hessian of %d parameters has rank %d: by a basis of its range", w.size, rank)
            return dense, spectrum
    _LOG.info("%d parameters: the zero-loss set is treated matrix-free, by iteration", w.size)
    return None
