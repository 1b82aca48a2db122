"""The zero-loss set of any small loss, through the eigendecomposition of its d x d Hessian."""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from zeroloss.manifold.geometry import AbstractGeometry, AbstractManifold, length
from zeroloss.manifold.spectra import eigh, orthonormal, power_iteration
from zeroloss.pytrees import Vector
from zeroloss.system import LeastSquares, Loss, Scalar

_LARGEST_HESSIAN = 1000
_SMALL_RANK = 4  # times the rank at most d, for the Hessian never to be formed


class DenseGeometry(AbstractGeometry):
    """Q itself, d x q; where the rank is not fixed, d x d with zero columns for the tangent directions."""

    basis: Float[Array, "parameters q"]
    eigenvalues: Float[Array, " q"]
    is_normal: Bool[Array, " q"]

    def coordinates(self, vector: Float[Array, " parameters *more"]) -> Float[Array, " q *more"]:
        return self.basis.T @ vector

    def embed(self, coordinates: Float[Array, " q *more"]) -> Float[Array, " parameters *more"]:
        return self.basis @ coordinates

    @property
    def dimension(self) -> Array:
        return self.basis.shape[0] - self.codimension


class DenseManifold(AbstractManifold):
    """For up to a few thousand parameters.

    Deciding on the rank m costs a Hessian (d gradients), d x d memory and an O(d^3) decomposition. Once it is
    fixed, and small against d, a point costs 3 m Hessian-vector products, d x m memory and O(d m^2).
    """

    problem: Loss | LeastSquares
    unravel: Callable[[Vector], PyTree] = eqx.field(static=True)
    rank: int | None = eqx.field(static=True, default=None)
    rank_tolerance: ClassVar[float] = 1e-8
    fall_tolerance: ClassVar[float] = 1e-8

    def at(self, w: Vector) -> DenseGeometry:
        if self.rank is not None and _SMALL_RANK * self.rank <= w.shape[0]:
            return self._from_products(w, self.rank)
        eigenvalues, vectors = eigh(jax.hessian(self.loss)(w))
        order = jnp.argsort(-jnp.abs(eigenvalues))
        eigenvalues, vectors = eigenvalues[order], vectors[:, order]
        is_normal = self._is_normal(jnp.abs(eigenvalues))
        eigenvalues, vectors, is_normal = (
            each[..., : self.rank] for each in (eigenvalues, vectors, is_normal)
        )
        return DenseGeometry(
            jnp.where(is_normal, vectors, 0.0), jnp.where(is_normal, eigenvalues, 0.0), is_normal
        )

    def _from_products(self, w: Vector, rank: int) -> DenseGeometry:
        """The range of H from random vectors multiplied with it (Halko, Martinsson and Tropp 2011).

        On the set, where H has just this rank, exact to rounding; beside it a smooth continuation.
        """

        def times_hessian(vectors: Float[Array, "parameters rank"]) -> Float[Array, "parameters rank"]:
            _, product = jax.linearize(jax.grad(self.loss), w)
            return jax.vmap(product, in_axes=1, out_axes=1)(vectors)

        basis = jax.random.normal(jax.random.key(0), (w.shape[0], rank), w.dtype)
        for _ in range(2):
            basis = orthonormal(times_hessian(basis))
        projected = basis.T @ times_hessian(basis)
        eigenvalues, rotation = eigh((projected + projected.T) / 2)
        order = jnp.argsort(-jnp.abs(eigenvalues))
        return DenseGeometry(basis @ rotation[:, order], eigenvalues[order], jnp.ones(rank, bool))

    def largest(self, w: Vector) -> Scalar:
        """One Hessian up to 1000 parameters, beyond at most 1000 Hessian-vector products."""
        if w.shape[0] <= _LARGEST_HESSIAN:
            return jnp.max(jnp.abs(self.at(w).eigenvalues))
        gradient = jax.grad(self.loss)
        return power_iteration(lambda vector: jax.jvp(gradient, (w,), (vector,))[1], w.shape[0])

    def correction(self, w: Vector) -> Vector:
        return -self.at(w).pseudo_inverse(jax.grad(self.loss)(w))

    def third(
        self,
        w: Vector,
        left: Float[Array, "parameters columns"],
        right: Float[Array, "parameters columns"],
    ) -> Vector:
        def frozen_trace(w: Vector) -> Scalar:
            def product(vector: Vector) -> Vector:
                return jax.jvp(jax.grad(self.loss), (w,), (vector,))[1]

            return jnp.sum(left.T * jax.vmap(product)(right.T))

        return jax.grad(frozen_trace)(w)

    def third_of_normal(self, w: Vector, geometry: DenseGeometry, covariance: Float[Array, "q q"]) -> Vector:
        return self.third(w, geometry.basis @ covariance, geometry.basis)

    def acceleration(self, w: Vector, geometry: DenseGeometry, vector: Vector) -> Vector:
        column = vector[:, None]
        return -geometry.pseudo_inverse(self.third(w, column, column))

    def trace(self, w: Vector) -> Scalar:
        return jnp.trace(jax.hessian(self.loss)(w))

    def relative_residual(self, w: Vector) -> Scalar:
        # A loss known to machine precision has a square root known only to half of it, so distance
        # is judged by the Newton step, and the loss itself more coarsely.
        geometry = self.at(w)
        step = geometry.pseudo_inverse(jax.grad(self.loss)(w))
        scale = jnp.max(jnp.abs(geometry.eigenvalues)) * length(w) ** 2
        from_loss = jnp.sqrt(2 * jnp.abs(self.loss(w)) / jnp.where(scale > 0, scale, 1.0))
        return jnp.maximum(jnp.linalg.norm(step) / length(w), 1e-2 * from_loss)

    def _is_normal(self, sizes: Float[Array, " parameters"]) -> Bool[Array, " parameters"]:
        if self.rank is None:
            return sizes > self.rank_tolerance * sizes[0]
        return jnp.arange(sizes.shape[0]) < self.rank
