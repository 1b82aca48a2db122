"""The zero-loss set of least squares, through the m x m Gram matrix of its residuals (theory.md, section 3).

With residuals r in R^m, m = examples x outputs, and J = dr/dw: H = J^T J / N on the set, and everything
follows from K = J J^T. Redundant residuals make K singular, which is harmless: its pseudo-inverse at
a rank decided from the spectrum does the work.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from zeroloss.manifold.geometry import AbstractGeometry, AbstractManifold, length
from zeroloss.manifold.spectra import squared_singular_values
from zeroloss.pytrees import Vector
from zeroloss.system import LeastSquares, Scalar

_TINY = 1e-300


class GramGeometry(AbstractGeometry):
    """Q = J^T A with A = U (N Lambda)^(-1/2), m x m; Q itself, d x m, is never formed.

    Projections cost two products with J and one with A.
    """

    jacobian: Float[Array, "residuals parameters"]
    scaled_rotation: Float[Array, "residuals q"]
    squares: Float[Array, " q"]
    eigenvalues: Float[Array, " q"]
    is_normal: Bool[Array, " q"]

    def coordinates(self, vector: Float[Array, " parameters *more"]) -> Float[Array, " q *more"]:
        return self.scaled_rotation.T @ (self.jacobian @ vector)

    def embed(self, coordinates: Float[Array, " q *more"]) -> Float[Array, " parameters *more"]:
        return self.jacobian.T @ (self.scaled_rotation @ coordinates)

    def rotation_from(self, other: "GramGeometry") -> Float[Array, "q q"]:
        return self.scaled_rotation.T @ (self.jacobian @ other.jacobian.T) @ other.scaled_rotation

    @property
    def dimension(self) -> Array:
        return self.jacobian.shape[1] - self.codimension

    @property
    def jacobian_coordinates(self) -> Float[Array, "q residuals"]:
        """Q^T J^T = (N Lambda)^(1/2) U^T."""
        return self.squares[:, None] * self.scaled_rotation.T


class GramManifold(AbstractManifold):
    """Costs m per-example gradients and O(m^2 d + m^3) operations at every point, and m x d memory."""

    problem: LeastSquares
    unravel: Callable[[Vector], PyTree] = eqx.field(static=True)
    rank: int | None = eqx.field(static=True, default=None)
    rank_tolerance: ClassVar[float] = 1e-12
    fall_tolerance: ClassVar[float] = 1e-20

    def at(self, w: Vector) -> GramGeometry:
        jacobian = self.jacobian(w)
        squares, rotation = squared_singular_values(self.rank)(jacobian)
        is_normal = self._is_normal(squares)
        squares, rotation, is_normal = (each[..., : self.rank] for each in (squares, rotation, is_normal))
        scale = jnp.sqrt(jnp.where(is_normal, jnp.maximum(squares, _TINY), 1.0))
        return GramGeometry(
            jacobian,
            jnp.where(is_normal, rotation / scale, 0.0),
            jnp.where(is_normal, squares, 0.0),
            jnp.where(is_normal, squares / self.problem.number, 0.0),
            is_normal,
        )

    def correction(self, w: Vector) -> Vector:
        geometry = self.at(w)  # -J^T K^+ r, with K^+ = A A^T
        return -geometry.embed(geometry.scaled_rotation.T @ self.residuals(w).reshape(-1))

    def third(
        self,
        w: Vector,
        left: Float[Array, "parameters columns"],
        right: Float[Array, "parameters columns"],
    ) -> Vector:
        # d_w tr(J(w) M J(w)^T) / N with M frozen = d_w <J(w), J M + J M^T> / N. The part of T[M] from
        # the residuals' own Hessians is normal, J^T(...), and left out.
        jacobian = self.jacobian(w)
        return self._slope_along(w, (jacobian @ left) @ right.T + (jacobian @ right) @ left.T)

    def third_of_normal(self, w: Vector, geometry: GramGeometry, covariance: Float[Array, "q q"]) -> Vector:
        mixing = geometry.jacobian_coordinates.T @ covariance @ geometry.scaled_rotation.T
        return self._slope_along(w, 2 * mixing @ geometry.jacobian)

    def acceleration(self, w: Vector, geometry: GramGeometry, vector: Vector) -> Vector:
        def along(function: Callable[[Vector], Array], w: Vector) -> Array:
            return jax.jvp(function, (w,), (vector,))[1]

        second = along(lambda w: along(self.residuals, w), w).reshape(-1)  # v^T hess r_i v
        return -geometry.embed(geometry.scaled_rotation.T @ second)

    def trace(self, w: Vector) -> Scalar:
        return jnp.sum(self.jacobian(w) ** 2) / self.problem.number

    def relative_residual(self, w: Vector) -> Scalar:
        targets = jnp.linalg.norm(self.problem.targets.reshape(-1))
        scale = jnp.where(targets > 0, targets, jnp.linalg.norm(self.jacobian(w)) * length(w))
        residual = jnp.linalg.norm(self.residuals(w).reshape(-1))
        return residual / jnp.where(scale > 0, scale, 1.0)

    def jacobian(self, w: Vector) -> Float[Array, "residuals parameters"]:
        """J = dr/dw, example by example: N single-example gradients per output."""

        def one(inputs: Any) -> Array:
            return jax.jacrev(lambda w: self._outputs_of_one(w, inputs))(w)

        return jax.vmap(one)(self.problem.inputs).reshape(-1, w.shape[0])

    def residuals(self, w: Vector) -> Array:
        """R(w), shaped like the targets."""
        return self.problem.model(self.unravel(w), self.problem.inputs) - self.problem.targets

    def _outputs_of_one(self, w: Vector, inputs: Any) -> Array:
        return self.problem.model(self.unravel(w), jax.tree.map(lambda leaf: leaf[None], inputs))[0]

    def _slope_along(self, w: Vector, directions: Float[Array, "residuals parameters"]) -> Vector:
        """d_w <J(w), directions> / N with the directions frozen.

        Each residual is differentiated along a direction of its own: no m gradients, only m tangents.
        """
        shaped = directions.reshape(*self.problem.targets.shape, -1)

        def one(w: Vector, inputs: Any, direction: Array) -> Scalar:
            def along(single: Vector) -> Array:
                return jax.jvp(lambda w: self._outputs_of_one(w, inputs), (w,), (single,))[1]

            return along(direction) if direction.ndim == 1 else jnp.trace(jax.vmap(along)(direction))

        def total(w: Vector) -> Scalar:
            each = jax.vmap(one, in_axes=(None, 0, 0))(w, self.problem.inputs, shaped)
            return jnp.sum(each) / self.problem.number

        return jax.grad(total)(w)

    def _is_normal(self, squares: Float[Array, " residuals"]) -> Bool[Array, " residuals"]:
        if self.rank is None:
            return squares > self.rank_tolerance * squares[0]
        return jnp.arange(squares.shape[0]) < self.rank
