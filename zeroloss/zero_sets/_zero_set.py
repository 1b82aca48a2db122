"""The interface of the zero-loss set: the set as a whole, and its geometry at one of its points.

Everything here works on flat float64 vectors, in the order of `jax.flatten_util.ravel_pytree`.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from zeroloss._pytrees import Vector
from zeroloss.systems import LeastSquares, Loss, Scalar

RETRACTION_TOLERANCE = 1e-7
"""A correction below this, relative to |w|, is the last: the next would be of the order of its square."""

RETRACTION_ITERATIONS = 12


class AbstractSpaces(eqx.Module):
    """Normal space, range(H), and tangent space of the zero-loss set at a point."""

    @abc.abstractmethod
    def normal(self, vector: Float[Array, " parameters *more"]) -> Float[Array, " parameters *more"]:
        """P_N v, the part in range(H)."""

    def tangent(self, vector: Float[Array, " parameters *more"]) -> Float[Array, " parameters *more"]:
        """P_T v = v - P_N v. Projected twice, so that rounding leaves nothing normal behind."""
        once = vector - self.normal(vector)
        return once - self.normal(once)


class AbstractSpectrum(AbstractSpaces):
    """Normal and tangent space with the spectrum of the Hessian H.

    The normal space has an orthonormal basis Q of eigenvectors of H. It has q columns, as many as the
    codimension or more: those where `is_normal` is False are zero.
    """

    eigenvalues: eqx.AbstractVar[Float[Array, " q"]]
    is_normal: eqx.AbstractVar[Bool[Array, " q"]]

    @abc.abstractmethod
    def coordinates(self, vector: Float[Array, " parameters *more"]) -> Float[Array, " q *more"]:
        """Q^T v."""

    @abc.abstractmethod
    def embed(self, coordinates: Float[Array, " q *more"]) -> Float[Array, " parameters *more"]:
        """Q c."""

    def rotation_from(self, other: Any) -> Float[Array, "q q"]:
        """Q^T Q_other: from coordinates at a point close by to those here."""
        return self.coordinates(other.embed(jnp.eye(other.eigenvalues.shape[0])))

    def normal(self, vector: Float[Array, " parameters *more"]) -> Float[Array, " parameters *more"]:
        return self.embed(self.coordinates(vector))

    def pseudo_inverse(self, vector: Float[Array, " parameters *more"]) -> Float[Array, " parameters *more"]:
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
    """The zero-loss set of a problem, near points where its Hessian has constant rank.

    `rank` fixes that rank; None lets every point decide from its own spectrum, which is right on the
    set but not beside it. An eigenvalue counts as zero below `rank_tolerance` times the largest; along a
    path of fixed rank, the rank has fallen when one is below `fall_tolerance` times the largest at the
    start. Three classes compute it: `DenseZeroSet`, `GramZeroSet` and `IterativeZeroSet`.
    """

    problem: eqx.AbstractVar[Loss | LeastSquares]
    unravel: eqx.AbstractVar[Callable[[Vector], PyTree]]
    rank: eqx.AbstractVar[int | None]
    rank_tolerance: eqx.AbstractClassVar[float]
    fall_tolerance: eqx.AbstractClassVar[float]

    @abc.abstractmethod
    def spectrum(self, w: Vector) -> AbstractSpectrum:
        """The geometry at a point of the set (beside the set: of the level set through it)."""

    def spaces(self, w: Vector) -> AbstractSpaces:
        """What `spectrum` gives, less the spectrum, for less where there is a way."""
        return self.spectrum(w)

    def rank_above(self, w: Vector, floor: Scalar) -> Array:
        """How many eigenvalues of H are larger than `floor` > 0 in size."""
        return jnp.sum(jnp.abs(self.spectrum(w).eigenvalues) > floor)

    def largest(self, w: Vector) -> Scalar:
        """The largest eigenvalue of H, in size."""
        return jnp.max(jnp.abs(self.spectrum(w).eigenvalues))

    def product(self, w: Vector) -> Callable[[Vector], Vector]:
        """The function from v to H(w) v."""
        return jax.linearize(jax.grad(self.loss), w)[1]

    @property
    def has_spectrum(self) -> bool:
        """Whether there is `spectrum`, or `spaces` alone."""
        return True

    @abc.abstractmethod
    def correction(self, w: Vector) -> Vector:
        """The (Gauss-)Newton step from w towards the set, in the normal space at w."""

    @abc.abstractmethod
    def third(
        self,
        w: Vector,
        left: Float[Array, "parameters columns"],
        right: Float[Array, "parameters columns"],
    ) -> Vector:
        """T[M]_i = d_i tr(M hess L), with M = left @ right.T frozen (theory.md, section 2).

        Implementations may leave out a part normal to the set; what they give is exact after P_T.
        """

    @abc.abstractmethod
    def third_of_normal(self, w: Vector, spectrum: Any, covariance: Float[Array, "q q"]) -> Vector:
        """T[Q C Q^T] with C symmetric, in the coordinates of Q; like `third`."""

    @abc.abstractmethod
    def acceleration(self, w: Vector, spectrum: Any, vector: Vector) -> Vector:
        """-H^+ T[v v^T] for tangent v: how a path on the set with velocity v bends into the normal space.

        The second fundamental form of the set, on (v, v).
        """

    @abc.abstractmethod
    def trace(self, w: Vector) -> Scalar:
        """Tr H."""

    def trace_and_error(self, w: Vector) -> tuple[Scalar, Scalar | None]:
        """Tr H, and its standard error where it is estimated, None where it is exact."""
        return self.trace(w), None

    @abc.abstractmethod
    def relative_residual(self, w: Vector) -> Scalar:
        """How far from zero the loss is, free of units: below 1e-8 counts as being on the set."""

    def with_rank(self, rank: int | None) -> "AbstractZeroSet":
        """The same set, with the rank of H fixed."""
        return dataclasses.replace(self, rank=rank)

    def loss(self, w: Vector) -> Scalar:
        """The clean loss."""
        return jnp.asarray(self.problem.loss(self.unravel(w)))

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
            return w + step, jnp.linalg.norm(step) / length(w), count + 1

        start = (w, jnp.asarray(jnp.inf, w.dtype), jnp.asarray(0))
        return jax.lax.while_loop(unfinished, improve, start)[0]


def spectrum_of(zero_set: AbstractZeroSet, w: Vector) -> AbstractSpectrum:
    """The spectrum of the Hessian at w. Raises `UnsupportedError` where the set is treated without one."""
    return zero_set.spectrum(w)


spectrum_at = eqx.filter_jit(spectrum_of)
"""`spectrum_of`, compiled."""


def length(w: Vector) -> Scalar:
    """|w|, the unit in which distances between parameters are judged; 1 at the origin."""
    norm = jnp.linalg.norm(w)
    return jnp.where(norm > 0, norm, 1.0)


def newton_residual(w: Vector, loss: Scalar, step: Vector, largest: Scalar) -> Scalar:
    """The relative residual of a point with this loss, Newton step and largest eigenvalue of H.

    A loss known to machine precision has a square root known only to half of it, so distance is judged by the
    Newton step, and the loss itself more coarsely.
    """
    scale = largest * length(w) ** 2
    from_loss = jnp.sqrt(2 * jnp.abs(loss) / jnp.where(scale > 0, scale, 1.0))
    return jnp.maximum(jnp.linalg.norm(step) / length(w), 1e-2 * from_loss)


def by_column(function: Callable[[Vector], Vector], matrix: Array) -> Array:
    """A linear `function` of a vector applied to one, or to the columns of a matrix one after the other."""
    if matrix.ndim == 1:
        return function(matrix)
    columns = matrix.reshape(matrix.shape[0], -1).T
    return jax.lax.map(function, columns).T.reshape(matrix.shape)
