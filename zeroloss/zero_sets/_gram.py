"""The zero-loss set of least squares, through the m x m Gram matrix of its residuals (theory.md, section 3).

With residuals r in R^m, m = examples x outputs, and J = dr/dw: H = J^T J / N on the set, and everything
follows from K = J J^T. Redundant residuals make K singular, which is harmless: its pseudo-inverse serves, at
a rank that the spectrum decides.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from zeroloss._compilation import compiled_once
from zeroloss._linalg import Inverse
from zeroloss._pytrees import Columns, Vector, Vectors
from zeroloss._tolerances import FALL_OF_GRAM, RANK_OF_GRAM, TINY
from zeroloss.errors import PrecisionError
from zeroloss.jacobians import (
    AbstractJacobian,
    AbstractJacobians,
    PerExampleJacobians,
    Structure,
    StructuredJacobians,
)
from zeroloss.systems import LeastSquares, Scalar, WhitenedLeastSquares
from zeroloss.zero_sets._regularity import with_rank_of
from zeroloss.zero_sets._zero_set import (
    AbstractSpaces,
    AbstractSpectrum,
    AbstractZeroSet,
    Coordinates,
    norm_or_one,
    spectrum_at,
)

_REFINED = 4
"""Projections in a row, with K^+ from float32: each takes away the normal part that the last one left."""

_LARGEST_NORMAL_SHARE = 1e-4
"""Share of the normal part of a vector that projections through float32 may leave."""

_TARGET_ROUNDING = 1e-14
"""The part of a residual that rounding hides, relative to the targets."""

_NEAR = 1e-4
"""How much the relative distance of a point to the set counts against its relative residual."""


class GramSpaces(AbstractSpaces):
    """P_N = J^T K^+ J. Two products with J and one solve for each projection.

    P_T takes `passes` of them: each takes away the normal part that the last one left, to the accuracy of J
    whatever the accuracy of K^+ (iterative refinement). Two against rounding; more where K^+ is rough.
    """

    jacobian: AbstractJacobian
    inverse: Inverse
    passes: int = eqx.field(static=True, default=2)

    def normal(self, vector: Vectors) -> Vectors:
        return vector - self.tangent(vector) if self.passes > 2 else self._once(vector)

    def tangent(self, vector: Vectors) -> Vectors:
        for _ in range(self.passes):
            vector = vector - self._once(vector)
        return vector

    def _once(self, vector: Vectors) -> Vectors:
        return self.lift(self.jacobian.mv(vector))

    def lift(self, residuals: Float[Array, " residuals *more"]) -> Vectors:
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

    def coordinates(self, vector: Vectors) -> Coordinates:
        return self.scaled_rotation.T @ self.jacobian.mv(vector)

    def embed(self, coordinates: Coordinates) -> Vectors:
        return self.jacobian.rmv(self.scaled_rotation @ coordinates)

    def lift(self, residuals: Float[Array, " residuals *more"]) -> Vectors:
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


class AbstractLeastSquaresZeroSet(AbstractZeroSet):
    """The zero-loss set of residuals R, shaped like the targets, through their Jacobian J.

    - `structure`: of the model, through which J is computed; None for J as a matrix.
    - `float32_structure`: the same in float32, for ||J||^2 and for the algebra of projections.
    """

    problem: eqx.AbstractVar[LeastSquares]
    structure: eqx.AbstractVar[Structure | None]
    float32_structure: eqx.AbstractVar[Structure | None]
    has_residuals: ClassVar[bool] = True

    @property
    def jacobians(self) -> AbstractJacobians:
        """J as a function of w."""
        if self.structure is None:
            return PerExampleJacobians(self.problem, self.unravel)
        return StructuredJacobians(self.structure, self.unravel)

    @property
    def rough_jacobians(self) -> AbstractJacobians:
        """J in float32 where there is a `float32_structure` structure."""
        return (
            self.jacobians
            if self.float32_structure is None
            else StructuredJacobians(self.float32_structure, self.unravel)
        )

    def around(self, w: Vector) -> Any:
        problem = self.problem
        if not isinstance(problem, WhitenedLeastSquares) or problem.original.loss_function.is_isotropic:
            return self
        original = problem.original
        outputs = original.model(self.unravel(w), original.inputs)
        whitening = original.loss_function.whitening(outputs, original.targets)
        examples = problem.inputs._replace(whitening=whitening)
        changed = eqx.tree_at(
            lambda problem: (problem.inputs, problem.targets),
            problem,
            (examples, examples.whitened(examples.minimum.outputs)),
        )
        found = eqx.tree_at(lambda zero_set: zero_set.problem, self, changed)
        if self.structure is None:
            return found
        return eqx.tree_at(lambda zero_set: zero_set.structure.inputs, found, examples)

    def residuals(self, w: Vector) -> Array:
        """R(w)."""
        return self.problem.model(self.unravel(w), self.problem.inputs) - self.problem.targets

    def third_derivative(self, w: Vector, left: Columns, right: Columns) -> Vector:
        # d_w tr(J(w) M J(w)^T) / N with M frozen = d_w <J(w), J M + J M^T> / N. The part of T[M] from
        # the Hessians of the residuals is normal, J^T(...), and left out.
        jacobian = self.jacobians.at(w)
        cotangents = jnp.concatenate([jacobian.mv(left), jacobian.mv(right)], axis=1)
        slope = self.jacobians.slope(w, cotangents, jnp.concatenate([right, left], axis=1))
        return slope / self.problem.number

    def trace(self, w: Vector) -> Scalar:
        return self.rough_jacobians.squared_norm(w) / self.problem.number

    def relative_residual(self, w: Vector) -> Scalar:
        targets = jnp.linalg.norm(self.problem.targets.reshape(-1))
        reach = jnp.sqrt(self.jacobians.squared_norm(w)) * norm_or_one(w)
        scale = jnp.where(targets > 0, targets, reach)
        residual = jnp.linalg.norm(self.residuals(w).reshape(-1))
        # No parameters within (residual / reach) |w| have residual zero, to first order. Saturated outputs
        # come close to their targets while the set stays as far away, or is nowhere.
        distance = (residual + _TARGET_ROUNDING * targets) / jnp.where(reach > 0, reach, jnp.inf)
        distance = jnp.where((reach > 0) | (targets == 0), distance, jnp.inf)
        return jnp.maximum(residual / jnp.where(scale > 0, scale, 1.0), _NEAR * distance)

    def matrix_name(self, w: Vector) -> str:
        return f"the {self.problem.targets.size} x {self.problem.targets.size} Gram matrix"


class GramZeroSet(AbstractLeastSquaresZeroSet):
    """For least squares with some thousand residuals: O(m^3) operations at every point, and the cost of K.

    `spectrum` takes an eigendecomposition; `spaces` takes a Cholesky factorization, twenty times less, unless
    the residuals are redundant.

    Without `structure` K takes m per-example gradients, m x d memory and O(m^2 d) operations; with it, some
    gradients for each output. With `float32_structure`, projections go through J of float32, with m x m
    algebra in float64; residuals, and so the set, and the spectrum of K stay in float64.
    """

    problem: LeastSquares
    unravel: Callable[[Vector], PyTree] = eqx.field(static=True)
    rank: int | None = eqx.field(static=True, default=None)
    structure: Structure | None = None
    float32_structure: Structure | None = None
    rank_tolerance: ClassVar[float] = RANK_OF_GRAM
    fall_tolerance: ClassVar[float] = FALL_OF_GRAM
    has_spectrum: ClassVar[bool] = True

    def spectrum(self, w: Vector) -> GramSpectrum:
        jacobian = self.jacobians.at(w)
        squares, rotation = jacobian.squares(self.rank)
        squares, rotation = squares[: self.rank], rotation[:, : self.rank]
        if self.rank is None:
            is_normal = squares > self.rank_tolerance * squares[0]
        else:
            is_normal = jnp.ones(squares.shape, bool)
        scale = jnp.sqrt(jnp.where(is_normal, jnp.maximum(squares, TINY), 1.0))
        return GramSpectrum(
            jacobian=jacobian,
            scaled_rotation=jnp.where(is_normal, rotation / scale, 0.0),
            squares=jnp.where(is_normal, squares, 0.0),
            eigenvalues=jnp.where(is_normal, squares / self.problem.number, 0.0),
            is_normal=is_normal,
            parameters=w.shape[0],
        )

    def spaces(self, w: Vector) -> GramSpaces | GramSpectrum:
        return self.spectrum(w) if self._is_redundant else self._from_inverse(w)

    @property
    def _is_redundant(self) -> bool:
        """Whether the rank is fixed below m, so that K has no Cholesky factor."""
        return self.rank is not None and self.rank < self.problem.targets.size

    def _from_inverse(self, w: Vector) -> GramSpaces:
        jacobian = self.rough_jacobians.at(w)
        inverse = jacobian.inverse(self.rank, self.rank_tolerance)
        return GramSpaces(jacobian, inverse, passes=2 if self.float32_structure is None else _REFINED)

    def correction(self, w: Vector) -> Vector:
        return -self.spaces(w).lift(self.residuals(w).reshape(-1))

    def is_onto(self, w: Vector) -> Bool[Array, ""]:
        return self.jacobians.at(w).inverse(None, self.rank_tolerance).is_triangular

    def with_checked_rank(self, w: Vector, is_onto: bool) -> AbstractZeroSet:
        if self.float32_structure is not None:
            self._check_float32(w, is_onto)
        if is_onto and self.problem.targets.size < w.size:
            return self.with_rank(self.problem.targets.size)
        return with_rank_of(self, w, spectrum_at(self, w))

    def _check_float32(self, w: Vector, is_onto: bool) -> None:
        """Raise `PrecisionError` where projections through float32 leave too much."""
        left = float(compiled_once(self.left_normal)(w)) if is_onto else math.nan
        if not left <= _LARGEST_NORMAL_SHARE:
            share = "all" if math.isnan(left) else f"{left:.2g}"
            raise PrecisionError(
                'precision="mixed" does not serve here: the residuals are too nearly dependent for float32. '
                f"Projections leave {share} of the normal part of a vector, and may leave "
                f"{_LARGEST_NORMAL_SHARE:g}. "
                'Use precision="float64".'
            )

    def left_normal(self, w: Vector) -> Scalar:
        """The share of the normal part of a random vector that P_T leaves: |J P_T v| / |J v|, in float64."""
        jacobian = self.jacobians.at(w)
        vector = jax.random.normal(jax.random.key(0), w.shape)
        left = jacobian.mv(self.spaces(w).tangent(vector))
        return jnp.linalg.norm(left) / jnp.linalg.norm(jacobian.mv(vector))

    def largest(self, w: Vector) -> Scalar:
        return self.spectrum(w).eigenvalues[0]

    def rank_above(self, w: Vector, floor: Scalar) -> Array:
        def counted() -> Array:
            return jnp.sum(self.spectrum(w).eigenvalues > floor)

        if self._is_redundant:
            return counted()
        inverse = self._from_inverse(w).inverse
        is_full = inverse.is_triangular & (inverse.smallest > self.problem.number * floor)
        return jax.lax.cond(is_full, lambda: jnp.asarray(self.problem.targets.size), counted)

    def third_derivative_of_normal(
        self, w: Vector, spectrum: GramSpectrum, covariance: Float[Array, "q q"]
    ) -> Vector:
        mixing = spectrum.jacobian_coordinates.T @ covariance @ spectrum.scaled_rotation.T
        return self.jacobians.slope_against(w, 2 * mixing, spectrum.jacobian) / self.problem.number

    def acceleration(self, w: Vector, spectrum: GramSpectrum, vector: Vector) -> Vector:
        def along(function: Callable[[Vector], Array], w: Vector) -> Array:
            return jax.jvp(function, (w,), (vector,))[1]

        return -spectrum.lift(along(lambda w: along(self.residuals, w), w).reshape(-1))  # v^T hess r_i v
