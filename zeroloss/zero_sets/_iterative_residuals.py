"""The zero-loss set of least squares by iteration, without an m x m matrix.

The normal space is spanned by the rows of J = dr/dw (theory.md, section 3).
"""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Bool, Float, PyTree

from zeroloss._linalg import cholesky, eigh, power_iteration
from zeroloss._pytrees import Vector, Vectors
from zeroloss._tolerances import FALL_OF_GRAM, MOST_ITERATIONS, RANK_OF_GRAM
from zeroloss.errors import RankError
from zeroloss.jacobians import Structure, StructuredJacobian, StructuredJacobians
from zeroloss.systems import LeastSquares, Scalar
from zeroloss.zero_sets._gram import AbstractLeastSquaresZeroSet
from zeroloss.zero_sets._iterative_solve import solve
from zeroloss.zero_sets._zero_set import AbstractSpaces, AbstractZeroSet, by_column

TOLERANCE = 1e-10
"""The |A^T r| / (|A| |r|) at which iterations stop, for the preconditioned A = J^T V L^-T."""

_ONTO = 1e-4
"""How well J must reach a random u to count as onto."""

_BLOCK_MEMORY = 2**31  # bytes, of the preconditioner of residuals
_RIDGE = 1e4  # times the rounding of the largest diagonal element, for a factor to exist
_MOST_CONDITION = 1e14  # after preconditioning


class OutputBlocks(eqx.Module):
    """Preconditions K = J J^T: the blocks of its outputs, in their principal axes.

    V are the eigenvectors of sum_i J_i J_i^T, k x k. After a rotation of every example's outputs by V, the
    diagonal of K holds the N x N matrices K_v of the scalars v^T f, v in V. Their Cholesky factors take k N^2
    memory, a k-th of the memory of K; beyond 2 GiB examples are divided into groups.
    """

    axes: Float[Array, "outputs outputs"]
    lower: Float[Array, "outputs groups size size"]
    number: int = eqx.field(static=True)

    def whiten(self, residuals: Float[Array, " residuals"]) -> Float[Array, " residuals"]:
        """L^-1 V^T u."""
        rotated = self.axes.T @ residuals.reshape(self.number, -1).T
        groups, size = self.lower.shape[1:3]
        padded = jnp.pad(rotated, ((0, 0), (0, groups * size - self.number))).reshape(-1, groups, size)
        solved = jax.scipy.linalg.solve_triangular(self.lower, padded[..., None], lower=True)
        return solved.reshape(-1, groups * size)[:, : self.number].reshape(-1)

    def whiten_transposed(self, whitened: Float[Array, " residuals"]) -> Float[Array, " residuals"]:
        """V L^-T z."""
        return jax.linear_transpose(self.whiten, whitened)(whitened)[0]


def output_blocks(jacobian: StructuredJacobian, memory: int = _BLOCK_MEMORY) -> OutputBlocks:
    """The preconditioner of K at a point. k Gram matrices of a single output each, k N^3 / 3 operations."""
    structure, factors = jacobian.structure, jacobian.factors
    ridge = _RIDGE * jnp.finfo(structure.maker.dtype).eps
    number = structure.number
    axes = eigh(jnp.sum(structure.block_diagonal(factors), axis=0))[1].astype(jnp.float64)
    size = max(1, min(number, memory // (8 * axes.shape[0] * number)))
    groups = -(-number // size)
    size = -(-number // groups)
    positions = jnp.arange(groups * size).reshape(groups, size)

    def factor(axis: Array, positions: Array) -> Array:
        examples = jax.tree.map(lambda leaf: leaf[jnp.minimum(positions, number - 1)], structure.inputs)
        gram = structure.gram_of_combination(factors.params, axis, examples).astype(jnp.float64)
        both = (positions < number)[:, None] & (positions < number)[None, :]
        gram = jnp.where(both, gram, jnp.eye(size))
        return cholesky(gram + ridge * jnp.max(jnp.diagonal(gram)) * jnp.eye(size))

    def of_axis(axis: Array) -> Array:
        return jax.lax.map(lambda positions: factor(axis, positions), positions)

    return OutputBlocks(axes, jax.lax.map(of_axis, axes.T), number)


class ResidualSpaces(AbstractSpaces):
    """P_N = J^T K^+ J by LSMR (Fong and Saunders 2011), preconditioned by `OutputBlocks`.

    An iteration costs a product with J, one with J^T and two with the preconditioner. A projection that has
    not converged after `MOST_ITERATIONS` is NaN.
    """

    jacobian: StructuredJacobian
    blocks: OutputBlocks
    tolerance: float = eqx.field(static=True, default=TOLERANCE)

    def normal(self, vector: Vectors) -> Vectors:
        return vector - self.tangent(vector)

    def tangent(self, vector: Vectors) -> Vectors:
        """P_T v, the residual of v as a combination of the rows of J."""
        return by_column(self._tangent, vector)

    def lift(self, residuals: Float[Array, " residuals"]) -> Float[Array, " parameters"]:
        """J^T K^+ u, the shortest v with J v = u."""
        shape = jax.ShapeDtypeStruct((self.jacobian.parameters,), jnp.float64)
        operator = lx.FunctionLinearOperator(lambda v: self.blocks.whiten(self.jacobian.mv(v)), shape)
        return _least_squares(operator, self.blocks.whiten(residuals), self.tolerance)[0]

    def iterations(self, vector: Vector) -> Array:
        """How many iterations P_T v takes."""
        return _least_squares(self._rows, vector, self.tolerance)[1]

    def _tangent(self, vector: Vector) -> Vector:
        return vector - self._rows.mv(_least_squares(self._rows, vector, self.tolerance)[0])

    @property
    def _rows(self) -> lx.AbstractLinearOperator:
        """J^T V L^-T: its columns span the normal space and are nearly orthonormal."""
        residuals = self.jacobian.structure.number * self.jacobian.structure.maker.outputs
        shape = jax.ShapeDtypeStruct((residuals,), jnp.float64)
        return lx.FunctionLinearOperator(lambda z: self.jacobian.rmv(self.blocks.whiten_transposed(z)), shape)


def _least_squares(
    operator: lx.AbstractLinearOperator, vector: Array, tolerance: float
) -> tuple[Array, Array]:
    """The shortest x with least |A x - b|, NaN where it has not been found, and the iterations."""
    solver = lx.LSMR(rtol=tolerance, atol=0.0, max_steps=MOST_ITERATIONS, conlim=_MOST_CONDITION)
    return solve(operator, vector, solver)


class IterativeGramZeroSet(AbstractLeastSquaresZeroSet):
    """For any number of independent residuals: K is never formed, and J has to be of full rank m.

    A projection costs some gradients for each of its iterations (`ResidualSpaces`). With `float32_structure`,
    of float32, the preconditioner comes from that structure.
    """

    problem: LeastSquares
    unravel: Callable[[Vector], PyTree] = eqx.field(static=True)
    rank: int | None = eqx.field(static=True, default=None)
    structure: Structure = eqx.field(kw_only=True)
    float32_structure: Structure | None = None
    rank_tolerance: ClassVar[float] = RANK_OF_GRAM
    fall_tolerance: ClassVar[float] = FALL_OF_GRAM
    has_spectrum: ClassVar[bool] = False

    def spaces(self, w: Vector) -> ResidualSpaces:
        jacobian = self._jacobian(w, self.structure)
        float32_structure = (
            jacobian if self.float32_structure is None else self._jacobian(w, self.float32_structure)
        )
        return ResidualSpaces(jacobian, output_blocks(float32_structure))

    def _jacobian(self, w: Vector, structure: Structure) -> StructuredJacobian:
        return StructuredJacobians(structure, self.unravel).at(w)

    def correction(self, w: Vector) -> Vector:
        return -self.spaces(w).lift(self.residuals(w).reshape(-1))

    def largest(self, w: Vector) -> Scalar:
        """By at most 1000 products with K."""
        jacobian = self.jacobians.at(w)
        square = power_iteration(lambda u: jacobian.mv(jacobian.rmv(u)), self.problem.targets.size)
        return square / self.problem.number

    def rank_above(self, w: Vector, floor: Scalar) -> Array:
        """All m: where the rank falls, iterations do not converge."""
        return jnp.asarray(self.problem.targets.size)

    def is_onto(self, w: Vector) -> Bool[Array, ""]:
        wanted = jax.random.normal(jax.random.key(0), (self.problem.targets.size,))
        missed = self.jacobians.at(w).mv(self.spaces(w).lift(wanted)) - wanted
        return jnp.linalg.norm(missed) <= _ONTO * jnp.linalg.norm(wanted)

    def with_checked_rank(self, w: Vector, is_onto: bool) -> AbstractZeroSet:
        residuals = self.problem.targets.size
        if is_onto and residuals < w.size:
            return self.with_rank(residuals)
        raise RankError(
            f"matrix-free, the Jacobian of the {residuals} residuals by {w.size} parameters was not found to "
            "be of full rank: the residuals are redundant, or nearly so. "
            'zeroloss.LeastSquares(..., geometry="factorized") copes with a lower rank.'
        )
