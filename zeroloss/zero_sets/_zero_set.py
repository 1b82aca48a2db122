"""The two protocols of a zero-loss set: the set itself, and the spectrum of the Hessian at one of its points.

Everything here works on flat float64 vectors, in the order of `jax.flatten_util.ravel_pytree`.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from zeroloss._compilation import compiled_once
from zeroloss._linalg import power_iteration
from zeroloss._pytrees import Columns, Vector, Vectors
from zeroloss._tolerances import RETRACTION_ITERATIONS, RETRACTION_TOLERANCE
from zeroloss.errors import UnsupportedError
from zeroloss.systems import Loss, Scalar, Supervised

Coordinates = Float[Array, " q *more"]  # in the normal space


class AbstractSpaces(eqx.Module):
    """Normal space, range(H), and tangent space of the zero-loss set at a point."""

    @abc.abstractmethod
    def normal(self, vector: Vectors) -> Vectors:
        """P_N v, the part in range(H)."""

    def tangent(self, vector: Vectors) -> Vectors:
        """P_T v = v - P_N v. Projected twice, so that rounding leaves nothing normal behind."""
        once = vector - self.normal(vector)
        return once - self.normal(once)


class AbstractSpectrum(AbstractSpaces):
    """Normal and tangent space with the spectrum of the Hessian H.

    The normal space has an orthonormal basis Q of eigenvectors of H. Q has q columns, as many as the
    codimension or more: columns where `is_normal` is False are zero.
    """

    eigenvalues: eqx.AbstractVar[Float[Array, " q"]]
    is_normal: eqx.AbstractVar[Bool[Array, " q"]]

    @abc.abstractmethod
    def coordinates(self, vector: Vectors) -> Coordinates:
        """Q^T v."""

    @abc.abstractmethod
    def embed(self, coordinates: Coordinates) -> Vectors:
        """Q c."""

    @property
    def basis(self) -> Float[Array, "parameters q"]:
        """Q, which takes d x q memory."""
        return self.embed(jnp.eye(self.eigenvalues.shape[0]))

    def rotation_from(self, other: Any) -> Float[Array, "q q"]:
        """Q^T Q_other, which maps coordinates at another point close by to coordinates here."""
        return self.coordinates(other.basis)

    def normal(self, vector: Vectors) -> Vectors:
        return self.embed(self.coordinates(vector))

    def pseudo_inverse(self, vector: Vectors) -> Vectors:
        """H^+ v."""
        coordinates = self.coordinates(vector)
        return self.embed(self.inverses.reshape((-1,) + (1,) * (coordinates.ndim - 1)) * coordinates)

    @property
    def inverses(self) -> Float[Array, " q"]:
        """The eigenvalues of H^+ on the columns of Q."""
        return jnp.where(self.is_normal, 1 / jnp.where(self.is_normal, self.eigenvalues, 1.0), 0.0)

    def lyapunov(
        self, covariance: Float[Array, "q q"], step_size: Scalar | float = 0.0
    ) -> Float[Array, "q q"]:
        """Solve H C + C H - step_size * H C H = S on the normal space, in the coordinates of Q.

        With step_size 0 the Lyapunov equation of theory.md, section 2; otherwise the Stein equation
        of section 5, of the iteration itself.
        """
        row, column = self.eigenvalues[:, None], self.eigenvalues[None, :]
        both = self.is_normal[:, None] & self.is_normal[None, :]
        denominator = jnp.where(both, row + column - step_size * row * column, 1.0)
        return jnp.where(both, covariance / denominator, 0.0)

    @property
    def codimension(self) -> Array:
        """The rank of H, which is the codimension of the set."""
        return jnp.sum(self.is_normal)

    @property
    @abc.abstractmethod
    def dimension(self) -> Array:
        """The dimension of the set: parameters less codimension."""


class AbstractZeroSet(eqx.Module):
    """The zero-loss set of a problem, near points where its Hessian H has constant rank.

    - `rank`: the rank of H, fixed; None lets every point decide by its spectrum, which is right on the set
      but not beside it.
    - `rank_tolerance`: an eigenvalue counts as zero below this share of the largest.
    - `fall_tolerance`: a path of fixed rank stops when an eigenvalue is below this share of the largest
      eigenvalue at the start.
    - `has_residuals`: whether the loss is the mean of squared residuals, so that their Jacobian shows the
      normal space beside the set too, and the residuals show the distance to the set without a gradient of
      the loss.
    """

    problem: eqx.AbstractVar[Loss | Supervised]
    unravel: eqx.AbstractVar[Callable[[Vector], PyTree]]
    rank: eqx.AbstractVar[int | None]
    rank_tolerance: eqx.AbstractClassVar[float]
    fall_tolerance: eqx.AbstractClassVar[float]
    has_spectrum: eqx.AbstractClassVar[bool]
    has_residuals: ClassVar[bool] = False

    def loss(self, w: Vector) -> Scalar:
        """The clean loss."""
        return jnp.asarray(self.problem.loss(self.unravel(w)))

    def product(self, w: Vector) -> Callable[[Vector], Vector]:
        """The function from v to H(w) v."""
        return jax.linearize(jax.grad(self.loss), w)[1]

    @abc.abstractmethod
    def spaces(self, w: Vector) -> AbstractSpaces:
        """Normal and tangent space at a point of the set; beside the set, of the level set through the point.

        Costs less than `spectrum` where there is a way without it.
        """

    def spectrum(self, w: Vector) -> AbstractSpectrum | None:
        """The same with the spectrum of H; None for every w where `has_spectrum` is False."""
        return None

    @abc.abstractmethod
    def correction(self, w: Vector) -> Vector:
        """The (Gauss-)Newton step from w towards the set, in the normal space at w."""

    def retract(self, w: Vector, iterations: int = RETRACTION_ITERATIONS) -> Vector:
        """The point of the set that (Gauss-)Newton finds from w, a point near it.

        Differs from the nearest point by the square of the distance. Each iteration costs one
        `correction`; from a distance epsilon two are enough to reach epsilon^4.
        """

        def unfinished(state: tuple[Vector, Scalar, Array]) -> Array:
            _, relative_step, count = state
            return (relative_step > RETRACTION_TOLERANCE) & (count < iterations)

        def improve(state: tuple[Vector, Scalar, Array]) -> tuple[Vector, Scalar, Array]:
            w, _, count = state
            step = self.correction(w)
            return w + step, jnp.linalg.norm(step) / norm_or_one(w), count + 1

        start = (w, jnp.asarray(jnp.inf, w.dtype), jnp.asarray(0))
        return jax.lax.while_loop(unfinished, improve, start)[0]

    @abc.abstractmethod
    def relative_residual(self, w: Vector) -> Scalar:
        """How far from zero the loss is, free of units: a point counts as on the set up to `ON_SET`."""

    def largest(self, w: Vector) -> Scalar:
        """The largest eigenvalue of H, in size; here by at most 1000 products with H."""
        return power_iteration(self.product(w), w.shape[0])

    @abc.abstractmethod
    def rank_above(self, w: Vector, floor: Scalar) -> Array:
        """How many eigenvalues of H are larger than `floor` > 0 in size; a constant where that is unknown."""

    @abc.abstractmethod
    def trace(self, w: Vector) -> Scalar:
        """Tr H."""

    def trace_and_error(self, w: Vector) -> tuple[Scalar, Scalar | None]:
        """Tr H, and its standard error where it is estimated, None where it is exact."""
        return self.trace(w), None

    def third_derivative(self, w: Vector, left: Columns, right: Columns) -> Vector:
        """T[M]_i = d_i tr(M hess L), with M = left @ right.T frozen (theory.md, section 2).

        Implementations may leave out a part normal to the set; after P_T the result is exact.
        """

        def frozen_trace(w: Vector) -> Scalar:
            def product(vector: Vector) -> Vector:
                return jax.jvp(jax.grad(self.loss), (w,), (vector,))[1]

            return jnp.sum(left.T * jax.vmap(product)(right.T))

        return jax.grad(frozen_trace)(w)

    def third_derivative_of_normal(self, w: Vector, spectrum: Any, covariance: Float[Array, "q q"]) -> Vector:
        """T[Q C Q^T] with C symmetric, in the coordinates of the `spectrum` at w; like `third_derivative`."""
        return self.third_derivative(w, spectrum.embed(covariance), spectrum.basis)

    def acceleration(self, w: Vector, spectrum: Any, vector: Vector) -> Vector:
        """-H^+ T[v v^T] for tangent v: how a path on the set with velocity v bends into the normal space.

        The second fundamental form of the set, on (v, v).
        """
        column = vector[:, None]
        return -spectrum.pseudo_inverse(self.third_derivative(w, column, column))

    def with_rank(self, rank: int | None) -> "AbstractZeroSet":
        """The same set, with the rank of H fixed."""
        return dataclasses.replace(self, rank=rank)

    def with_rank_beside(self, w: Vector) -> "AbstractZeroSet":
        """The same set for Newton from a w beside it, with a rank where only that shows the normal space."""
        return self

    def is_onto(self, w: Vector) -> Bool[Array, ""]:
        """Whether the residuals are independent at w beyond doubt; False where there are none."""
        return jnp.asarray(False)

    @abc.abstractmethod
    def with_checked_rank(self, w: Vector, is_onto: bool) -> "AbstractZeroSet":
        """The set for work around w, a point on it: with the rank of H fixed where there is a spectrum.

        `is_onto`: the value of the method at w. Raises `RankError` or `LossError` where w is not a regular
        point.
        """

    def around(self, w: Vector) -> "AbstractZeroSet":
        """The same with the Hessian of the loss at the outputs at w, which may be far from the set.

        Everything else is about the set, where the Hessian is that at the outputs of least loss.
        """
        return self

    def for_tracing(self) -> "AbstractZeroSet":
        """The same set computed in a way that takes no decision on values, for traced points."""
        return self

    def matrix_name(self, w: Vector) -> str:
        """The matrix whose spectrum is meant, for messages."""
        return f"the Hessian of {w.shape[0]} parameters"


def spectrum_of(zero_set: AbstractZeroSet, w: Vector) -> AbstractSpectrum:
    """The spectrum of H at w. Raises `UnsupportedError` where the set is treated without one."""
    spectrum = zero_set.spectrum(w)
    if spectrum is None:
        raise UnsupportedError(
            f"this needs the spectrum of {zero_set.matrix_name(w)}, and the zero-loss set is treated "
            "matrix-free, by iteration. `project`, `classify` and `limit` do without it for noise that "
            "drifts on the fast scale, and for white label noise. Use fewer examples, or pass "
            'geometry="factorized" where memory allows.'
        )
    return spectrum


spectrum_at = compiled_once(spectrum_of)
"""`spectrum_of`, compiled."""


def norm_or_one(w: Vector) -> Scalar:
    """|w|, the unit in which distances between parameters are judged; 1 at the origin."""
    norm = jnp.linalg.norm(w)
    return jnp.where(norm > 0, norm, 1.0)


def newton_residual(w: Vector, loss: Scalar, step: Vector, largest: Scalar) -> Scalar:
    """The relative residual of a point with this loss, Newton step and largest eigenvalue of H.

    The square root of a loss has half of the digits of the loss. So the Newton step judges the distance, and
    the loss judges it more coarsely.
    """
    scale = largest * norm_or_one(w) ** 2
    from_loss = jnp.sqrt(2 * jnp.abs(loss) / jnp.where(scale > 0, scale, 1.0))
    return jnp.maximum(jnp.linalg.norm(step) / norm_or_one(w), 1e-2 * from_loss)


def by_column(function: Callable[[Vector], Vector], matrix: Array) -> Array:
    """Apply a linear function of vectors to a vector, or to the columns of a matrix one after the other."""
    if matrix.ndim == 1:
        return function(matrix)
    columns = matrix.reshape(matrix.shape[0], -1).T
    return jax.lax.map(function, columns).T.reshape(matrix.shape)
