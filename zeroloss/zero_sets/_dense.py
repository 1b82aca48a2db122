"""The zero-loss set of any loss whose normal space is small, through the spectrum of its Hessian there."""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from zeroloss._linalg import eigh, orthonormal, power_iteration
from zeroloss._pytrees import Vector
from zeroloss.systems import LeastSquares, Loss, Scalar
from zeroloss.zero_sets._zero_set import AbstractSpectrum, AbstractZeroSet, newton_residual

_LARGEST_HESSIAN = 1000
_SMALL_RANK = 4  # times the rank at most d, for the Hessian never to be formed


class DenseSpectrum(AbstractSpectrum):
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


class DenseZeroSet(AbstractZeroSet):
    """For up to some thousand parameters, or any number where the rank q is some thousand at most.

    Deciding on the rank costs a Hessian (d gradients), d x d memory and an O(d^3) decomposition; or, with
    `columns` > q, 3 Hessian-vector products for each of as many random vectors. Once it is fixed, and small
    against d, a point costs 3 q products, d x q memory and O(d q^2).
    """

    problem: Loss | LeastSquares
    unravel: Callable[[Vector], PyTree] = eqx.field(static=True)
    rank: int | None = eqx.field(static=True, default=None)
    columns: int | None = eqx.field(static=True, default=None)
    rank_tolerance: ClassVar[float] = 1e-8
    fall_tolerance: ClassVar[float] = 1e-8

    def spectrum(self, w: Vector) -> DenseSpectrum:
        columns = self.columns if self.rank is None else self.rank
        if columns is not None and is_small(columns, w):
            return self._from_products(w, columns)
        eigenvalues, vectors = eigh(jax.hessian(self.loss)(w))
        order = jnp.argsort(-jnp.abs(eigenvalues))
        eigenvalues, vectors = eigenvalues[order], vectors[:, order]
        is_normal = self._is_normal(jnp.abs(eigenvalues))
        eigenvalues, vectors, is_normal = (
            each[..., : self.rank] for each in (eigenvalues, vectors, is_normal)
        )
        return DenseSpectrum(
            jnp.where(is_normal, vectors, 0.0), jnp.where(is_normal, eigenvalues, 0.0), is_normal
        )

    def _from_products(self, w: Vector, columns: int) -> DenseSpectrum:
        """The range of H from random vectors multiplied with it (Halko, Martinsson and Tropp 2011).

        On the set, where H has at most this rank, exact to rounding; beside it a smooth continuation.
        """
        basis = jax.random.normal(jax.random.key(0), (w.shape[0], columns), w.dtype)
        for _ in range(2):
            basis = orthonormal(self._times_hessian(w, basis))
        projected = basis.T @ self._times_hessian(w, basis)
        eigenvalues, rotation = eigh((projected + projected.T) / 2)
        order = jnp.argsort(-jnp.abs(eigenvalues))
        eigenvalues, basis = eigenvalues[order], basis @ rotation[:, order]
        is_normal = self._is_normal(jnp.abs(eigenvalues))
        return DenseSpectrum(
            jnp.where(is_normal, basis, 0.0), jnp.where(is_normal, eigenvalues, 0.0), is_normal
        )

    def _times_hessian(
        self, w: Vector, vectors: Float[Array, "parameters columns"]
    ) -> Float[Array, "parameters columns"]:
        return jax.vmap(self.product(w), in_axes=1, out_axes=1)(vectors)

    def largest(self, w: Vector) -> Scalar:
        """One Hessian up to 1000 parameters, beyond at most 1000 Hessian-vector products."""
        if w.shape[0] <= _LARGEST_HESSIAN:
            return jnp.max(jnp.abs(self.spectrum(w).eigenvalues))
        return power_iteration(self.product(w), w.shape[0])

    def correction(self, w: Vector) -> Vector:
        return -self.spectrum(w).pseudo_inverse(jax.grad(self.loss)(w))

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

    def third_of_normal(self, w: Vector, spectrum: DenseSpectrum, covariance: Float[Array, "q q"]) -> Vector:
        return self.third(w, spectrum.basis @ covariance, spectrum.basis)

    def acceleration(self, w: Vector, spectrum: DenseSpectrum, vector: Vector) -> Vector:
        column = vector[:, None]
        return -spectrum.pseudo_inverse(self.third(w, column, column))

    def trace(self, w: Vector) -> Scalar:
        if self.columns is None or self.rank is None:
            return jnp.trace(jax.hessian(self.loss)(w))
        # On the set tr H is that of its normal part, and changes with it along the set.
        basis = self._from_products(jax.lax.stop_gradient(w), self.rank).basis
        return jnp.sum(basis * self._times_hessian(w, basis))

    def relative_residual(self, w: Vector) -> Scalar:
        spectrum = self.spectrum(w)
        step = spectrum.pseudo_inverse(jax.grad(self.loss)(w))
        return newton_residual(w, self.loss(w), step, jnp.max(jnp.abs(spectrum.eigenvalues)))

    def _is_normal(self, sizes: Float[Array, " parameters"]) -> Bool[Array, " parameters"]:
        if self.rank is None:
            return sizes > self.rank_tolerance * sizes[0]
        return jnp.arange(sizes.shape[0]) < self.rank


def is_small(rank: int, w: Vector) -> bool:
    """Whether the range of a Hessian of this rank is found faster from products than from all of it."""
    return _SMALL_RANK * rank <= w.shape[0]
