"""The zero-loss set of any loss by iteration, from Hessian-vector products alone.

The normal space is the range of the Hessian H (theory.md, section 1).
"""

import logging
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, PyTree
from matfree import stochtrace

from zeroloss._compilation import compiled_once
from zeroloss._pytrees import Columns, Vector, Vectors
from zeroloss._tolerances import MOST_ITERATIONS, RANK_BY_ITERATION
from zeroloss.errors import RankError
from zeroloss.systems import Loss, Scalar, Supervised
from zeroloss.zero_sets._dense import DenseZeroSet, is_small
from zeroloss.zero_sets._iterative_solve import solve
from zeroloss.zero_sets._regularity import (
    check_curvature,
    listing,
    neighbours_on_set,
    refuse_isolated,
    with_rank_of,
)
from zeroloss.zero_sets._zero_set import (
    AbstractSpaces,
    AbstractZeroSet,
    by_column,
    newton_residual,
    norm_or_one,
    spectrum_at,
)

TOLERANCE = 1e-11
"""The |H (v - x)| / (lambda_max |v|) at which a projection x of v is done. Rounding allows little less."""

PROBES = 32
"""Random vectors for the trace of H outside the range of the preconditioner."""

_COLUMNS = 128  # of the preconditioner
_SMALLEST_SHARE = 1e-12  # of its eigenvalues, relative to the largest
_NEWTON_TOLERANCE = 1e-4
_BASIS_COLUMNS = (64, 256, 1024, 4096)  # tried for a basis of the normal space
_LARGEST_BASIS = 2**30  # bytes
_SAMPLE = 16  # eigenvalues that are checked where there is no basis
_ISOLATED = 1e-6  # share of a random vector that is tangent, below which the set is a point
_LOG = logging.getLogger(__name__)


class Nystrom(eqx.Module):
    """A randomized approximation U Lambda U^T of H from below, which preconditions H + s I.

    Frangella, Tropp and Udell 2023. Columns of U beyond the rank of H are zero.
    """

    basis: Columns
    eigenvalues: Float[Array, " columns"]

    @property
    def largest(self) -> Scalar:
        """The largest eigenvalue, a little below that of H; 1 where H vanishes."""
        return jnp.where(self.eigenvalues[0] > 0, self.eigenvalues[0], 1.0)

    def precondition(self, vector: Vector, shift: Scalar) -> Vector:
        """(lambda_q + s) U (Lambda + s)^-1 U^T v + (v - U U^T v), lambda_q the smallest eigenvalue.

        Maps the range of H to itself.
        """
        kept = self.eigenvalues > 0
        smallest = jnp.min(jnp.where(kept, self.eigenvalues, jnp.inf))
        factors = jnp.where(kept, (smallest + shift) / (self.eigenvalues + shift), 1.0)
        return vector + self.basis @ ((factors - 1) * (self.basis.T @ vector))


def nystrom(product: Callable[[Vector], Vector], size: int) -> Nystrom:
    """From 128 products with H, or an eighth of its size."""
    columns = max(1, min(_COLUMNS, size // 8))
    probes = jax.random.normal(jax.random.key(0), (size, columns))
    root = stochtrace.nystrom_eigh()(product, probes)[0]
    basis, singular, _ = jnp.linalg.svd(root, full_matrices=False)
    kept = singular**2 > _SMALLEST_SHARE * singular[0] ** 2
    return Nystrom(jnp.where(kept, basis, 0.0), jnp.where(kept, singular**2, 0.0))


class IterativeZeroSet(AbstractZeroSet):
    """For any number of parameters, and a normal space of any dimension.

    Neither that dimension nor the spectrum of H is computed. A projection, or a step of Newton, costs 128
    Hessian-vector products for a preconditioner and one for each iteration; a narrow spectrum takes few
    iterations. 1 kB of memory per parameter.
    """

    problem: Loss | Supervised
    unravel: Callable[[Vector], PyTree] = eqx.field(static=True)
    rank: int | None = eqx.field(static=True, default=None)
    rank_tolerance: ClassVar[float] = RANK_BY_ITERATION
    fall_tolerance: ClassVar[float] = RANK_BY_ITERATION
    has_spectrum: ClassVar[bool] = False

    def spaces(self, w: Vector) -> "HessianSpaces":
        """The spaces at the point of the set that Newton finds from w.

        Beside the set H is curved in tangent directions too, and nothing tells them from normal directions.
        """
        w = self.retract(w)
        w = w + self.correction(w)
        return HessianSpaces(self, w, nystrom(self.product(w), w.shape[0]))

    def correction(self, w: Vector) -> Vector:
        return self._newton(w)[0]

    def _newton(self, w: Vector) -> tuple[Vector, Scalar]:
        """-(H + s)^-1 grad L, with s = |grad L| / |w|, and the largest eigenvalue of H.

        Beside the set H has curvature of the order of s, of either sign, in directions that are tangent on
        it. With this shift Newton still converges quadratically (Li, Fukushima, Qi and Yamashita 2004).
        """
        gradient, product = jax.linearize(jax.grad(self.loss), w)
        preconditioner = nystrom(product, w.shape[0])
        size = jnp.linalg.norm(gradient)
        unit = gradient / jnp.where(size > 0, size, 1.0)
        step, _ = _conjugate_gradients(
            product, unit, preconditioner, size / norm_or_one(w), _NEWTON_TOLERANCE
        )
        return -size / preconditioner.largest * step, preconditioner.largest

    def trace(self, w: Vector) -> Scalar:
        return self.trace_and_error(w)[0]

    def trace_and_error(self, w: Vector) -> tuple[Scalar, Scalar]:
        """By Hutch++ (Meyer, Musco, Musco and Woodruff 2021), always with the same random vectors.

        The trace on the range of the preconditioner is exact; the trace outside of it is estimated.
        """
        product = self.product(w)
        basis = nystrom(product, w.shape[0]).basis
        inside = jnp.sum(basis * jax.vmap(product, in_axes=1, out_axes=1)(basis))

        def outside(vector: Vector) -> Vector:
            vector = vector - basis @ (basis.T @ vector)
            image = product(vector)
            return image - basis @ (basis.T @ image)

        estimate = stochtrace.estimator_monte_carlo_mean_and_sem(
            stochtrace.monte_carlo_trace(), sampler=stochtrace.sampler_signs(w, num=PROBES)
        )
        rest, error = estimate(outside, jax.random.key(1))
        return inside + rest, error

    def relative_residual(self, w: Vector) -> Scalar:
        return newton_residual(w, self.loss(w), *self._newton(w))

    def rank_above(self, w: Vector, floor: Scalar) -> Array:
        return jnp.asarray(0)

    def with_checked_rank(self, w: Vector, is_onto: bool) -> AbstractZeroSet:
        """By a basis of the normal space where that is small, else by iteration, with fewer checks."""
        if self.problem.geometry != "matrix-free":
            for columns in _BASIS_COLUMNS:
                if not is_small(columns, w) or columns * w.size * w.dtype.itemsize > _LARGEST_BASIS:
                    break
                dense = DenseZeroSet(self.problem, self.unravel, columns=columns)
                spectrum = spectrum_at(dense, w)
                rank = int(spectrum.codimension)
                if rank < columns:
                    _LOG.debug("Hessian of %d parameters, rank %d: by a basis of its range", w.size, rank)
                    return with_rank_of(dense, w, spectrum)
            _LOG.info("%d parameters: the zero-loss set is treated matrix-free, by iteration", w.size)
        self._check(w)
        return self

    def _check(self, w: Vector) -> None:
        """Raise `RankError` or `LossError` where w is seen not to be a regular point, without its rank."""
        sample = DenseZeroSet(self.problem, self.unravel, columns=min(_SAMPLE, w.size))
        spectrum = spectrum_at(sample, w)
        check_curvature(spectrum)
        share, shown = float(_tangent_share(self, w)), f"from {listing(spectrum)} down"
        if np.isnan(share):
            raise RankError(
                "the projection onto the tangent space did not converge: the spectrum of the Hessian is too "
                f'wide for iteration. Pass geometry="factorized" where memory allows. Spectrum: {shown}.'
            )
        if share < _ISOLATED:
            refuse_isolated("all directions are normal", shown)
        neighbours_on_set(self, w, f"{w.size} parameters", shown)

    def for_tracing(self) -> AbstractZeroSet:
        """Through the whole Hessian, unless the problem asks for iteration."""
        return DenseZeroSet(self.problem, self.unravel) if self.problem.geometry == "auto" else self


@compiled_once
def _tangent_share(zero_set: AbstractZeroSet, w: Vector) -> Scalar:
    """The length of the tangent part of a random unit vector."""
    direction = jax.random.normal(jax.random.key(0), w.shape, w.dtype)
    return jnp.linalg.norm(zero_set.spaces(w).tangent(direction)) / jnp.linalg.norm(direction)


class HessianSpaces(AbstractSpaces):
    """P_N v = H^+ H v by conjugate gradients, preconditioned by `Nystrom`.

    An iteration costs a Hessian-vector product. A projection that has not converged after `MOST_ITERATIONS`
    is NaN. Directions whose curvature is below 1e-11 of the largest count as tangent.
    """

    zero_set: IterativeZeroSet
    w: Vector
    preconditioner: Nystrom

    def normal(self, vector: Vectors) -> Vectors:
        return by_column(lambda column: self._normal(column)[0], vector)

    def tangent(self, vector: Vectors) -> Vectors:
        return vector - self.normal(vector)

    def iterations(self, vector: Vector) -> Array:
        """How many iterations P_N v takes."""
        return self._normal(vector)[1]

    def _normal(self, vector: Vector) -> tuple[Vector, Array]:
        product = self.zero_set.product(self.w)
        size = norm_or_one(vector)
        image = product(vector / size) / self.preconditioner.largest
        normal, count = _conjugate_gradients(product, image, self.preconditioner, jnp.zeros(()), TOLERANCE)
        return size * normal, count


def _conjugate_gradients(
    product: Callable[[Vector], Vector],
    vector: Vector,
    preconditioner: Nystrom,
    shift: Scalar,
    tolerance: float,
) -> tuple[Vector, Array]:
    """The x in the range with (H + s I) x = lambda_max v, NaN where it is not found, and the iterations."""
    structure = jax.ShapeDtypeStruct(vector.shape, vector.dtype)
    scale = preconditioner.largest

    def operator_of(function: Callable[[Vector], Vector]) -> lx.AbstractLinearOperator:
        return lx.FunctionLinearOperator(function, structure, lx.positive_semidefinite_tag)

    return solve(
        operator_of(lambda v: (product(v) + shift * v) / scale),
        vector,
        lx.CG(rtol=0.0, atol=tolerance, norm=lx.internal.two_norm, max_steps=MOST_ITERATIONS),
        {"preconditioner": operator_of(lambda v: preconditioner.precondition(v, shift))},
    )
