"""The zero-loss set of least squares, through the m x m Gram matrix of its residuals (theory.md, section 3).

With residuals r in R^m, m = examples x outputs, and J = dr/dw: H = J^T J / N on the set, and everything
follows from K = J J^T. Redundant residuals make K singular, which is harmless: its pseudo-inverse at
a rank decided from the spectrum does the work.
"""

from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from zeroloss._linalg import TINY, Inverse, power_iteration
from zeroloss._pytrees import Vector
from zeroloss.errors import UnsupportedError
from zeroloss.jacobians import Structure
from zeroloss.jacobians._jacobian import (
    AbstractJacobian,
    AbstractJacobians,
    PerExampleJacobians,
    StructuredJacobian,
    StructuredJacobians,
)
from zeroloss.systems import LeastSquares, Scalar
from zeroloss.zero_sets._iterative_residuals import ResidualSpaces, output_blocks
from zeroloss.zero_sets._zero_set import AbstractSpaces, AbstractSpectrum, AbstractZeroSet, length

_REFINED = 4
"""Projections in a row, with K^+ from float32: what one leaves normal, the next takes away."""

_ONTO = 1e-4
"""How well J must reach a random u, when found by iteration, to count as onto."""

_LOST = 1e-14
"""Relative to the targets, what rounding hides of a residual."""

_NEAR = 1e-4
"""How much the relative distance of a point to the set counts against its relative residual."""


class GramSpaces(AbstractSpaces):
    """P_N = J^T K^+ J. Two products with J and one solve for each projection.

    `passes` of it for P_T: what one leaves normal, the next takes away, to the accuracy of J whatever that of
    K^+ (iterative refinement). Two, so that rounding leaves nothing; more where K^+ is rough.
    """

    jacobian: AbstractJacobian
    inverse: Inverse
    passes: int = eqx.field(static=True, default=2)

    def normal(self, vector: Float[Array, " parameters *more"]) -> Float[Array, " parameters *more"]:
        return vector - self.tangent(vector) if self.passes > 2 else self._once(vector)

    def tangent(self, vector: Float[Array, " parameters *more"]) -> Float[Array, " parameters *more"]:
        for _ in range(self.passes):
            vector = vector - self._once(vector)
        return vector

    def _once(self, vector: Float[Array, " parameters *more"]) -> Float[Array, " parameters *more"]:
        return self.lift(self.jacobian.mv(vector))

    def lift(self, residuals: Float[Array, " residuals *more"]) -> Float[Array, " parameters *more"]:
        """J^T K^+ u, the shortest v with J v = u."""
        return self.jacobian.rmv(self.inverse.mv(residuals))


class GramSpectrum(AbstractSpectrum):
    """Q = J^T A with A = U (N Lambda)^(-1/2), m x m; Q itself, d x m, is never formed.

    Projections cost two products with J and one with A.
    """

    jacobian: AbstractJacobian
    scaled_rotation: Float[Array, "residuals q"]
    squares: Float[Array, " q"]
    eigenvalues: Float[Array, " q"]
    is_normal: Bool[Array, " q"]
    parameters: int = eqx.field(static=True)

    def coordinates(self, vector: Float[Array, " parameters *more"]) -> Float[Array, " q *more"]:
        return self.scaled_rotation.T @ self.jacobian.mv(vector)

    def embed(self, coordinates: Float[Array, " q *more"]) -> Float[Array, " parameters *more"]:
        return self.jacobian.rmv(self.scaled_rotation @ coordinates)

    def lift(self, residuals: Float[Array, " residuals *more"]) -> Float[Array, " parameters *more"]:
        """J^T K^+ u, the shortest v with J v = u."""
        return self.embed(self.scaled_rotation.T @ residuals)

    def rotation_from(self, other: "GramSpectrum") -> Float[Array, "q q"]:
        return self.scaled_rotation.T @ self.jacobian.gram(other.jacobian) @ other.scaled_rotation

    @property
    def dimension(self) -> Array:
        return self.parameters - self.codimension

    @property
    def jacobian_coordinates(self) -> Float[Array, "q residuals"]:
        """Q^T J^T = (N Lambda)^(1/2) U^T."""
        return self.squares[:, None] * self.scaled_rotation.T


class GramZeroSet(AbstractZeroSet):
    """Costs O(m^3) operations at every point, and those of K.

    The former are an eigendecomposition, for `spaces` mostly a Cholesky factorization, twenty times less.

    Without `structure` K takes m per-example gradients, m x d memory and O(m^2 d) operations; with it, some
    gradients for each output.

    With a `rough` structure, of float32, projections and ||J||^2 go through that, with m x m algebra in
    float64; residuals, and so the set, and the spectrum of K stay in float64.

    With `matrix_free`, K is never formed, and there is no spectrum: projections are found by iteration
    (`ResidualSpaces`), some gradients each time, and J has to be of full rank m.
    """

    problem: LeastSquares
    unravel: Callable[[Vector], PyTree] = eqx.field(static=True)
    rank: int | None = eqx.field(static=True, default=None)
    structure: Structure | None = None
    matrix_free: bool = eqx.field(static=True, default=False)
    rough: Structure | None = None
    rank_tolerance: ClassVar[float] = 1e-12
    fall_tolerance: ClassVar[float] = 1e-20

    def spectrum(self, w: Vector) -> GramSpectrum:
        if self.matrix_free:
            raise UnsupportedError(
                f"this needs the spectrum of the {self.problem.targets.size} x {self.problem.targets.size} "
                "Gram matrix, and the problem is treated matrix-free. Of white label noise and of noise that "
                "drifts on the fast scale, `limit` does without. Use fewer examples, or "
                'zeroloss.LeastSquares(..., geometry="factorized") where memory allows.'
            )
        jacobian = self.jacobians.at(w)
        squares, rotation = jacobian.squares(self.rank)
        is_normal = self._is_normal(squares)
        squares, rotation, is_normal = (each[..., : self.rank] for each in (squares, rotation, is_normal))
        scale = jnp.sqrt(jnp.where(is_normal, jnp.maximum(squares, TINY), 1.0))
        return GramSpectrum(
            jacobian=jacobian,
            scaled_rotation=jnp.where(is_normal, rotation / scale, 0.0),
            squares=jnp.where(is_normal, squares, 0.0),
            eigenvalues=jnp.where(is_normal, squares / self.problem.number, 0.0),
            is_normal=is_normal,
            parameters=w.shape[0],
        )

    def spaces(self, w: Vector) -> GramSpaces | GramSpectrum | ResidualSpaces:
        if self.matrix_free:
            jacobian = self.jacobians.at(w)
            rough = jacobian if self.rough is None else self._rough_jacobians.at(w)
            assert isinstance(jacobian, StructuredJacobian) and isinstance(rough, StructuredJacobian)
            return ResidualSpaces(jacobian, output_blocks(rough))
        if self.rank is not None and self.rank < self.problem.targets.size:
            return self.spectrum(w)
        jacobian = self._rough_jacobians.at(w)
        inverse = jacobian.inverse(self.rank, self.rank_tolerance)
        return GramSpaces(jacobian, inverse, passes=2 if self.rough is None else _REFINED)

    def is_onto(self, w: Vector) -> Bool[Array, ""]:
        """Whether J has full rank m beyond doubt. The set then is a manifold of codimension m around w."""
        if self.matrix_free:
            wanted = jax.random.normal(jax.random.key(0), (self.problem.targets.size,))
            missed = self.jacobians.at(w).mv(self.spaces(w).lift(wanted)) - wanted
            return jnp.linalg.norm(missed) <= _ONTO * jnp.linalg.norm(wanted)
        return self.jacobians.at(w).inverse(None, self.rank_tolerance).is_triangular

    @property
    def has_spectrum(self) -> bool:
        return not self.matrix_free

    def largest(self, w: Vector) -> Scalar:
        if not self.matrix_free:
            return self.spectrum(w).eigenvalues[0]
        jacobian = self.jacobians.at(w)
        square = power_iteration(lambda u: jacobian.mv(jacobian.rmv(u)), self.problem.targets.size)
        return square / self.problem.number

    def rank_above(self, w: Vector, floor: Scalar) -> Array:
        """As far as iteration can tell: matrix-free, all m while it converges."""
        if self.matrix_free:
            return jnp.asarray(self.problem.targets.size)
        spaces = self.spaces(w)
        if isinstance(spaces, GramSpectrum):
            return jnp.sum(spaces.eigenvalues > floor)
        assert isinstance(spaces, GramSpaces)
        inverse = spaces.inverse
        return jax.lax.cond(
            inverse.is_triangular & (inverse.smallest > self.problem.number * floor),
            lambda: jnp.asarray(self.problem.targets.size),
            lambda: jnp.sum(self.spectrum(w).eigenvalues > floor),
        )

    def correction(self, w: Vector) -> Vector:
        return -self.spaces(w).lift(self.residuals(w).reshape(-1))

    def third(
        self,
        w: Vector,
        left: Float[Array, "parameters columns"],
        right: Float[Array, "parameters columns"],
    ) -> Vector:
        # d_w tr(J(w) M J(w)^T) / N with M frozen = d_w <J(w), J M + J M^T> / N. The part of T[M] from
        # the residuals' own Hessians is normal, J^T(...), and left out.
        jacobian = self.jacobians.at(w)
        cotangents = jnp.concatenate([jacobian.mv(left), jacobian.mv(right)], axis=1)
        slope = self.jacobians.slope(w, cotangents, jnp.concatenate([right, left], axis=1))
        return slope / self.problem.number

    def third_of_normal(self, w: Vector, spectrum: GramSpectrum, covariance: Float[Array, "q q"]) -> Vector:
        mixing = spectrum.jacobian_coordinates.T @ covariance @ spectrum.scaled_rotation.T
        return self.jacobians.slope_against(w, 2 * mixing, spectrum.jacobian) / self.problem.number

    def acceleration(self, w: Vector, spectrum: GramSpectrum, vector: Vector) -> Vector:
        def along(function: Callable[[Vector], Array], w: Vector) -> Array:
            return jax.jvp(function, (w,), (vector,))[1]

        return -spectrum.lift(along(lambda w: along(self.residuals, w), w).reshape(-1))  # v^T hess r_i v

    def left_normal(self, w: Vector) -> Scalar:
        """The share of the normal part of a random vector that P_T leaves: |J P_T v| / |J v|, in float64."""
        jacobian = self.jacobians.at(w)
        vector = jax.random.normal(jax.random.key(0), w.shape)
        left = jacobian.mv(self.spaces(w).tangent(vector))
        return jnp.linalg.norm(left) / jnp.linalg.norm(jacobian.mv(vector))

    def trace(self, w: Vector) -> Scalar:
        return self._rough_jacobians.squared_norm(w) / self.problem.number

    def relative_residual(self, w: Vector) -> Scalar:
        targets = jnp.linalg.norm(self.problem.targets.reshape(-1))
        reach = jnp.sqrt(self.jacobians.squared_norm(w)) * length(w)
        scale = jnp.where(targets > 0, targets, reach)
        residual = jnp.linalg.norm(self.residuals(w).reshape(-1))
        # No parameters within (residual / reach) |w| have residual zero, to first order. Saturated outputs
        # come close to their targets while the set stays as far away, or is nowhere.
        distance = (residual + _LOST * targets) / jnp.where(reach > 0, reach, jnp.inf)
        distance = jnp.where((reach > 0) | (targets == 0), distance, jnp.inf)
        return jnp.maximum(residual / jnp.where(scale > 0, scale, 1.0), _NEAR * distance)

    @property
    def jacobians(self) -> AbstractJacobians:
        """J as a function of w."""
        if self.structure is None:
            return PerExampleJacobians(self.problem, self.unravel)
        return StructuredJacobians(self.structure, self.unravel)

    @property
    def _rough_jacobians(self) -> AbstractJacobians:
        """Those of float32, where there are any."""
        return self.jacobians if self.rough is None else StructuredJacobians(self.rough, self.unravel)

    def residuals(self, w: Vector) -> Array:
        """R(w), shaped like the targets."""
        return self.problem.model(self.unravel(w), self.problem.inputs) - self.problem.targets

    def _is_normal(self, squares: Float[Array, " residuals"]) -> Bool[Array, " residuals"]:
        if self.rank is None:
            return squares > self.rank_tolerance * squares[0]
        return jnp.arange(squares.shape[0]) < self.rank
