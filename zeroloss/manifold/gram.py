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

from zeroloss.manifold.geometry import AbstractManifold, Geometry, length
from zeroloss.pytrees import Vector
from zeroloss.system import LeastSquares, Scalar

_TINY = 1e-300


class GramManifold(AbstractManifold):
    """Costs m per-example gradients and O(m^2 d + m^3) operations at every point, and m x d memory."""

    problem: LeastSquares
    unravel: Callable[[Vector], PyTree] = eqx.field(static=True)
    rank: int | None = eqx.field(static=True, default=None)
    rank_tolerance: ClassVar[float] = 1e-12

    def at(self, w: Vector) -> Geometry:
        return self._factorize(w)[0]

    def correction(self, w: Vector) -> Vector:
        _, rotation, squares, jacobian, is_normal = self._factorize(w)
        residual = self._residuals(w).reshape(-1)
        solved = jnp.where(is_normal, (rotation.T @ residual) / jnp.where(is_normal, squares, 1.0), 0.0)
        return -jacobian.T @ (rotation @ solved)

    def third(
        self,
        w: Vector,
        left: Float[Array, "parameters columns"],
        right: Float[Array, "parameters columns"],
    ) -> Vector:
        # d_w tr(J(w) M J(w)^T) / N with M frozen = d_w <J(w), J M + J M^T> / N. Row i of J(w) A_i^T is a
        # directional derivative of residual i: no m gradients, only m tangents. The part of T[M]
        # from the residuals' own Hessians is normal, J^T(...), and left out.
        jacobian = self.jacobian(w)
        directions = (jacobian @ left) @ right.T + (jacobian @ right) @ left.T
        directions = directions.reshape(*self.problem.targets.shape, -1)
        return jax.grad(self._directional_sum)(w, directions) / self.problem.number

    def trace(self, w: Vector) -> Scalar:
        return jnp.sum(self.jacobian(w) ** 2) / self.problem.number

    def relative_residual(self, w: Vector) -> Scalar:
        targets = jnp.linalg.norm(self.problem.targets.reshape(-1))
        scale = jnp.where(targets > 0, targets, jnp.linalg.norm(self.jacobian(w)) * length(w))
        residual = jnp.linalg.norm(self._residuals(w).reshape(-1))
        return residual / jnp.where(scale > 0, scale, 1.0)

    def jacobian(self, w: Vector) -> Float[Array, "residuals parameters"]:
        """J = dr/dw, example by example: N single-example gradients per output."""

        def one(inputs: Any) -> Array:
            return jax.jacrev(lambda w: self._outputs_of_one(w, inputs))(w)

        return jax.vmap(one)(self.problem.inputs).reshape(-1, w.shape[0])

    def _residuals(self, w: Vector) -> Array:
        return self.problem.model(self.unravel(w), self.problem.inputs) - self.problem.targets

    def _outputs_of_one(self, w: Vector, inputs: Any) -> Array:
        return self.problem.model(self.unravel(w), jax.tree.map(lambda leaf: leaf[None], inputs))[0]

    def _directional_sum(self, w: Vector, directions: Array) -> Scalar:
        """Sum over residuals of the derivative of each in a direction of its own."""

        def one(inputs: Any, direction: Array) -> Scalar:
            def along(single: Vector) -> Array:
                return jax.jvp(lambda w: self._outputs_of_one(w, inputs), (w,), (single,))[1]

            if direction.ndim == 1:
                return along(direction)
            return jnp.trace(jax.vmap(along)(direction))

        return jnp.sum(jax.vmap(one)(self.problem.inputs, directions))

    def _factorize(self, w: Vector) -> tuple[Geometry, Array, Array, Array, Bool[Array, " residuals"]]:
        jacobian = self.jacobian(w)
        squares, rotation = jnp.linalg.eigh(jacobian @ jacobian.T)
        squares, rotation = squares[::-1], rotation[:, ::-1]
        is_normal = self._is_normal(squares)
        singular_values = jnp.sqrt(jnp.where(is_normal, jnp.maximum(squares, _TINY), 1.0))
        basis = jnp.where(is_normal, (jacobian.T @ rotation) / singular_values, 0.0)
        eigenvalues = jnp.where(is_normal, squares / self.problem.number, 0.0)
        return Geometry(basis, eigenvalues, is_normal), rotation, squares, jacobian, is_normal

    def _is_normal(self, squares: Float[Array, " residuals"]) -> Bool[Array, " residuals"]:
        if self.rank is None:
            return squares > self.rank_tolerance * squares[0]
        return jnp.arange(squares.shape[0]) < self.rank
