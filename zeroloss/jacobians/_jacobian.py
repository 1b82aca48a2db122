"""The Jacobian of the residuals, J = dr/dw, m x d: as a matrix, or through the structure of the model.

m is examples times outputs. A small J is fastest as a matrix; a large one need not be formed at all
(theory.md, section 7).
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from zeroloss._linalg import (
    Inverse,
    eigh,
    inverse_from_gram,
    inverse_from_jacobian,
    squared_singular_values,
)
from zeroloss._pytrees import Vector, in_type
from zeroloss.jacobians._structure import Factors, Structure
from zeroloss.systems import LeastSquares, Scalar

WIDE_FOR_FLOAT32 = 1e-6
"""In float32, an eigenvalue of K below this share of its norm is lost to rounding."""


class AbstractJacobian(eqx.Module):
    """J at one point."""

    @abc.abstractmethod
    def mv(self, vector: Float[Array, " parameters *more"]) -> Float[Array, " residuals *more"]:
        """J v, for a vector or for columns."""

    @abc.abstractmethod
    def rmv(self, cotangent: Float[Array, " residuals *more"]) -> Float[Array, " parameters *more"]:
        """J^T u, for a vector or for columns."""

    @abc.abstractmethod
    def gram(self, other: Any) -> Float[Array, "residuals residuals"]:
        """K(w, w0) = J J_0^T, with J_0 the Jacobian of the same model at another point."""

    @abc.abstractmethod
    def squares(self, rank: int | None) -> tuple[Float[Array, " residuals"], Array]:
        """The squared singular values, from the largest, and their vectors in the space of residuals.

        If the first `rank` span many orders of magnitude, they are computed as exactly as this class can.
        """

    @abc.abstractmethod
    def inverse(self, rank: int | None, tolerance: float) -> Inverse:
        """K^+, with K = J J^T of the given rank; if that is None, of the rank that `tolerance` decides."""


class AbstractJacobians(eqx.Module):
    """J as a function of the flat parameters."""

    @abc.abstractmethod
    def at(self, w: Vector) -> AbstractJacobian:
        """J(w)."""

    @abc.abstractmethod
    def squared_norm(self, w: Vector) -> Scalar:
        """||J||_F^2."""

    @abc.abstractmethod
    def slope(
        self,
        w: Vector,
        cotangents: Float[Array, "residuals columns"],
        vectors: Float[Array, "parameters columns"],
    ) -> Vector:
        """d_w sum_c u_c^T J(w) v_c, with the columns u_c and v_c constant."""

    @abc.abstractmethod
    def slope_against(self, w: Vector, weights: Float[Array, "residuals residuals"], other: Any) -> Vector:
        """d_w <B, J(w) J_0^T>, with B = `weights` and J_0 = `other` constant."""


class MatrixJacobian(AbstractJacobian):
    """J as a matrix."""

    matrix: Float[Array, "residuals parameters"]

    def mv(self, vector: Float[Array, " parameters *more"]) -> Float[Array, " residuals *more"]:
        return self.matrix @ vector

    def rmv(self, cotangent: Float[Array, " residuals *more"]) -> Float[Array, " parameters *more"]:
        return self.matrix.T @ cotangent

    def gram(self, other: "MatrixJacobian") -> Float[Array, "residuals residuals"]:
        return self.matrix @ other.matrix.T

    def squares(self, rank: int | None) -> tuple[Float[Array, " residuals"], Array]:
        return squared_singular_values(rank)(self.matrix)

    def inverse(self, rank: int | None, tolerance: float) -> Inverse:
        return inverse_from_jacobian(rank, tolerance)(self.matrix)


class PerExampleJacobians(AbstractJacobians):
    """J as a matrix, row by row: m single-example gradients, and m x d memory."""

    problem: LeastSquares
    unravel: Callable[[Vector], PyTree] = eqx.field(static=True)

    def at(self, w: Vector) -> MatrixJacobian:
        def one(inputs: Any) -> Array:
            return jax.jacrev(lambda w: self._outputs_of_one(w, inputs))(w)

        return MatrixJacobian(jax.vmap(one)(self.problem.inputs).reshape(-1, w.shape[0]))

    def squared_norm(self, w: Vector) -> Scalar:
        return jnp.sum(self.at(w).matrix ** 2)

    def slope(
        self,
        w: Vector,
        cotangents: Float[Array, "residuals columns"],
        vectors: Float[Array, "parameters columns"],
    ) -> Vector:
        return self._slope_along(w, cotangents @ vectors.T)

    def slope_against(
        self, w: Vector, weights: Float[Array, "residuals residuals"], other: MatrixJacobian
    ) -> Vector:
        return self._slope_along(w, weights @ other.matrix)

    def _slope_along(self, w: Vector, directions: Float[Array, "residuals parameters"]) -> Vector:
        """d_w <J(w), directions>. Each residual has one direction: m tangents instead of m gradients."""
        shaped = directions.reshape(*self.problem.targets.shape, -1)

        def one(w: Vector, inputs: Any, direction: Array) -> Scalar:
            def along(single: Vector) -> Array:
                return jax.jvp(lambda w: self._outputs_of_one(w, inputs), (w,), (single,))[1]

            return along(direction) if direction.ndim == 1 else jnp.trace(jax.vmap(along)(direction))

        def total(w: Vector) -> Scalar:
            return jnp.sum(jax.vmap(one, in_axes=(None, 0, 0))(w, self.problem.inputs, shaped))

        return jax.grad(total)(w)

    def _outputs_of_one(self, w: Vector, inputs: Any) -> Array:
        return self.problem.model(self.unravel(w), jax.tree.map(lambda leaf: leaf[None], inputs))[0]


class StructuredJacobian(AbstractJacobian):
    """J through the layers of the model, at the cost of some gradients (`Structure`).

    It computes in the precision in which the structure was analysed, and returns float64.
    """

    structure: Structure
    factors: Factors

    @property
    def parameters(self) -> int:
        """The number d of parameters."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.factors.params))

    def mv(self, vector: Float[Array, " parameters *more"]) -> Float[Array, " residuals *more"]:
        images = self.structure.mv(self.factors, vector.reshape(vector.shape[0], -1))
        return images.reshape(-1, *vector.shape[1:]).astype(jnp.float64)

    def rmv(self, cotangent: Float[Array, " residuals *more"]) -> Float[Array, " parameters *more"]:
        images = self.structure.rmv(self.factors, cotangent.reshape(cotangent.shape[0], -1))
        return images.reshape(-1, *cotangent.shape[1:]).astype(jnp.float64)

    def gram(self, other: "StructuredJacobian") -> Float[Array, "residuals residuals"]:
        return self.structure.gram(self.factors, other.factors).astype(jnp.float64)

    def squares(self, rank: int | None) -> tuple[Float[Array, " residuals"], Array]:
        """From K alone: good to 1e-16 of the largest."""
        values, vectors = eigh(self._square)
        return values[::-1], vectors[:, ::-1]

    def inverse(self, rank: int | None, tolerance: float) -> Inverse:
        """From K alone, as `squares`. NaN if K is float32 and its spectrum too wide for that."""
        square = self._square
        inverse = inverse_from_gram(rank, tolerance)(square)
        if self.structure.maker.dtype == jnp.float64:
            return inverse
        serves = inverse.is_triangular & (inverse.smallest > WIDE_FOR_FLOAT32 * jnp.linalg.norm(square))
        return dataclasses.replace(inverse, factor=jnp.where(serves, inverse.factor, jnp.nan))

    @property
    def _square(self) -> Float[Array, "residuals residuals"]:
        return self.structure.gram(self.factors).astype(jnp.float64)


class StructuredJacobians(AbstractJacobians):
    """J through the layers of the model: the memory of `Structure`, and m x m matrices."""

    structure: Structure
    unravel: Callable[[Vector], PyTree] = eqx.field(static=True)

    def at(self, w: Vector) -> StructuredJacobian:
        return StructuredJacobian(self.structure, self._factors(w))

    def squared_norm(self, w: Vector) -> Scalar:
        return jnp.sum(self.structure.squared_norms(self._factors(w)).astype(jnp.float64))

    def _factors(self, w: Vector) -> Factors:
        params = self.unravel(w)
        in_float64 = self.structure.maker.dtype == jnp.float64
        return self.structure.factors(params if in_float64 else in_type(params, jnp.float32))

    def slope(
        self,
        w: Vector,
        cotangents: Float[Array, "residuals columns"],
        vectors: Float[Array, "parameters columns"],
    ) -> Vector:
        return self.structure.slope(self.unravel(w), cotangents, vectors)

    def slope_against(
        self, w: Vector, weights: Float[Array, "residuals residuals"], other: StructuredJacobian
    ) -> Vector:
        def product(w: Vector) -> Scalar:
            factors = self.structure.factors(self.unravel(w))
            return jnp.sum(weights * self.structure.gram(factors, other.factors))

        return jax.grad(product)(w)
