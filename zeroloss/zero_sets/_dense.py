"""The zero-loss set of any loss whose normal space is small, through the spectrum of its Hessian there."""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from zeroloss._linalg import eigh, orthonormal
from zeroloss._pytrees import Columns, Vector, Vectors
from zeroloss._tolerances import LARGEST_HESSIAN, RANK_OF_HESSIAN
from zeroloss.systems import Loss, Scalar, Supervised
from zeroloss.zero_sets._regularity import with_rank_of
from zeroloss.zero_sets._zero_set import (
    AbstractSpectrum,
    AbstractZeroSet,
    Coordinates,
    newton_residual,
    spectrum_at,
)

_SMALL_RANK = 4  # a rank is small where so many times it is at most d


class DenseSpectrum(AbstractSpectrum):
    """Q itself, d x q; where the rank is not fixed, d x d with zero columns for the tangent directions."""

    vectors: Float[Array, "parameters q"]
    eigenvalues: Float[Array, " q"]
    is_normal: Bool[Array, " q"]

    def coordinates(self, vector: Vectors) -> Coordinates:
        return self.vectors.T @ vector

    def embed(self, coordinates: Coordinates) -> Vectors:
        return self.vectors @ coordinates

    @property
    def basis(self) -> Float[Array, "parameters q"]:
        return self.vectors

    @property
    def dimension(self) -> Array:
        return self.vectors.shape[0] - self.codimension


class DenseZeroSet(AbstractZeroSet):
    """For up to some thousand parameters, or any number where the rank q is some thousand at most.

    To decide the rank costs a Hessian (d gradients), d x d memory and an O(d^3) decomposition; or, with
    `columns` > q, 3 Hessian-vector products for each of `columns` random vectors. Once the rank is fixed, and
    small against d, a point costs 3 q products, d x q memory and O(d q^2).
    """

    problem: Loss | Supervised
    unravel: Callable[[Vector], PyTree] = eqx.field(static=True)
    rank: int | None = eqx.field(static=True, default=None)
    columns: int | None = eqx.field(static=True, default=None)
    rank_tolerance: ClassVar[float] = RANK_OF_HESSIAN
    fall_tolerance: ClassVar[float] = RANK_OF_HESSIAN
    has_spectrum: ClassVar[bool] = True

    def spectrum(self, w: Vector) -> DenseSpectrum:
        columns = self.columns if self.rank is None else self.rank
        if columns is not None and is_small(columns, w):
            return self._from_products(w, columns)
        return self._sorted(*eigh(jax.hessian(self.loss)(w)))

    def _from_products(self, w: Vector, columns: int) -> DenseSpectrum:
        """The range of H from random vectors multiplied with it (Halko, Martinsson and Tropp 2011).

        On the set, where H has at most this rank, exact to rounding; beside it a smooth continuation.
        """
        basis = jax.random.normal(jax.random.key(0), (w.shape[0], columns), w.dtype)
        for _ in range(2):
            basis = orthonormal(self._times_hessian(w, basis))
        projected = basis.T @ self._times_hessian(w, basis)
        eigenvalues, rotation = eigh((projected + projected.T) / 2)
        return self._sorted(eigenvalues, basis @ rotation)

    def _sorted(
        self, eigenvalues: Float[Array, " n"], vectors: Float[Array, "parameters n"]
    ) -> DenseSpectrum:
        """The spectrum of these eigenvectors, from the largest eigenvalue; zero columns for tangent ones."""
        order = jnp.argsort(-jnp.abs(eigenvalues))[: self.rank]
        eigenvalues, vectors = eigenvalues[order], vectors[:, order]
        sizes = jnp.abs(eigenvalues)
        if self.rank is None:
            is_normal = sizes > self.rank_tolerance * sizes[0]
        else:
            is_normal = jnp.ones(sizes.shape, bool)
        return DenseSpectrum(
            jnp.where(is_normal, vectors, 0.0), jnp.where(is_normal, eigenvalues, 0.0), is_normal
        )

    def _times_hessian(self, w: Vector, vectors: Columns) -> Columns:
        return jax.vmap(self.product(w), in_axes=1, out_axes=1)(vectors)

    def spaces(self, w: Vector) -> DenseSpectrum:
        return self.spectrum(w)

    def rank_above(self, w: Vector, floor: Scalar) -> Array:
        return jnp.sum(jnp.abs(self.spectrum(w).eigenvalues) > floor)

    def largest(self, w: Vector) -> Scalar:
        """One Hessian up to `LARGEST_HESSIAN` parameters, beyond at most 1000 Hessian-vector products."""
        if w.shape[0] > LARGEST_HESSIAN:
            return super().largest(w)
        return jnp.max(jnp.abs(self.spectrum(w).eigenvalues))

    def correction(self, w: Vector) -> Vector:
        return -self.spectrum(w).pseudo_inverse(jax.grad(self.loss)(w))

    def trace(self, w: Vector) -> Scalar:
        if self.columns is None or self.rank is None:
            return jnp.trace(jax.hessian(self.loss)(w))
        # On the set, H restricted to the normal space has the same trace, and the same slope of the trace.
        basis = self._from_products(jax.lax.stop_gradient(w), self.rank).vectors
        return jnp.sum(basis * self._times_hessian(w, basis))

    def relative_residual(self, w: Vector) -> Scalar:
        spectrum = self.spectrum(w)
        step = spectrum.pseudo_inverse(jax.grad(self.loss)(w))
        return newton_residual(w, self.loss(w), step, jnp.max(jnp.abs(spectrum.eigenvalues)))

    def with_rank_beside(self, w: Vector) -> AbstractZeroSet:
        """With the rank that the widest gap in the spectrum of H at w suggests."""
        every = spectrum_at(self.with_rank(w.shape[0]), w)
        sizes = np.abs(np.asarray(every.eigenvalues))
        floor = 1e-14 * max(sizes[0], np.finfo(float).tiny)
        sizes = np.append(np.maximum(sizes, floor), floor)
        return self.with_rank(int(np.argmax(sizes[:-1] / sizes[1:])) + 1)

    def with_checked_rank(self, w: Vector, is_onto: bool) -> AbstractZeroSet:
        return with_rank_of(self, w, spectrum_at(self, w))


def is_small(rank: int, w: Vector) -> bool:
    """Whether products find the range of a Hessian of this rank faster than its whole spectrum does."""
    return _SMALL_RANK * rank <= w.shape[0]
