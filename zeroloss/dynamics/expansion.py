"""The noise to the order that matters: the regularizer Reg and the covariance Sigma (theory.md, section 1).

Both are taken at sigma = 1 of the system's reference noise, so they do not depend on sigma.
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from zeroloss.manifold import AbstractGeometry, AbstractManifold, GramGeometry, GramManifold
from zeroloss.pytrees import Vector
from zeroloss.system import AbstractSystem, LeastSquaresSystem, Scalar


class AbstractExpansion(eqx.Module):
    """Reg and Sigma of a system, as functions of the flat parameters."""

    system: eqx.AbstractVar[AbstractSystem]
    manifold: eqx.AbstractVar[AbstractManifold]

    @abc.abstractmethod
    def regularizer(self, w: Vector) -> Scalar:
        """Reg(w) = 1/2 Laplacian_eta L_hat(w, 0); for least squares, its value on the set."""

    @abc.abstractmethod
    def magnitude(self, w: Vector) -> Scalar:
        """What Reg could be without cancellation: the scale that Reg is judged by."""

    @abc.abstractmethod
    def normal_covariance(self, w: Vector, geometry: Any) -> Float[Array, "q q"]:
        """Q^T Sigma Q, in the coordinates of `geometry`, that of `manifold` at w."""

    @abc.abstractmethod
    def factor(self, w: Vector) -> Float[Array, "parameters noise"] | None:
        """G with Sigma = G G^T where it may have a tangential part; None where it has none."""

    @abc.abstractmethod
    def total_variance(self, w: Vector) -> Scalar:
        """Tr Sigma."""


class GeneralExpansion(AbstractExpansion):
    """For any noisy loss. Costs n gradients for Reg and for G, with n the number of noise components."""

    system: AbstractSystem
    manifold: AbstractManifold

    def regularizer(self, w: Vector) -> Scalar:
        return 0.5 * jnp.sum(self._second_derivatives(w))

    def magnitude(self, w: Vector) -> Scalar:
        return 0.5 * jnp.sum(jnp.abs(self._second_derivatives(w)))

    def normal_covariance(self, w: Vector, geometry: AbstractGeometry) -> Float[Array, "q q"]:
        coordinates = geometry.coordinates(self.factor(w))
        return coordinates @ coordinates.T

    def factor(self, w: Vector) -> Float[Array, "parameters noise"]:
        zero, to_noise = self._noise(w)
        gradient = jax.grad(self._loss)

        def sensitivity(direction: Array) -> Vector:
            return jax.jvp(lambda xi: gradient(w, to_noise(xi)), (zero,), (direction,))[1]

        return jax.vmap(sensitivity, out_axes=1)(jnp.eye(zero.shape[0]))

    def total_variance(self, w: Vector) -> Scalar:
        return jnp.sum(self.factor(w) ** 2)

    def _second_derivatives(self, w: Vector) -> Float[Array, " noise"]:
        zero, to_noise = self._noise(w)

        def second(direction: Array) -> Scalar:
            def slope(xi: Array) -> Scalar:
                return jax.jvp(lambda xi: self._loss(w, to_noise(xi)), (xi,), (direction,))[1]

            return jax.jvp(slope, (zero,), (direction,))[1]

        return jax.vmap(second)(jnp.eye(zero.shape[0]))

    def _loss(self, w: Vector, eta: PyTree) -> Scalar:
        return self.system.noisy_loss(self.manifold.unravel(w), eta)

    def _noise(self, w: Vector) -> tuple[Array, Any]:
        law = self.system.noise_law(self.manifold.unravel(w))
        zero, unravel = ravel_pytree(law.zeros(jnp.float64))
        return zero, lambda xi: law.unit(unravel(xi))


class LeastSquaresExpansion(AbstractExpansion):
    """For least squares (theory.md, section 3): everything from B = d_eta r, example by example.

    On the set G = J^T B / N, so the noise is purely normal: Sigma = J^T S J / N^2 with S = E[c c^T] o B B^T,
    c the minibatch counts. Costs one gradient per output and example for B, and m x m memory.
    """

    system: LeastSquaresSystem
    manifold: GramManifold

    def regularizer(self, w: Vector) -> Scalar:
        own, shared = self._sensitivities(w)
        number = self.system.problem.number
        return sum(jnp.sum(block**2) for block in (*own, *shared)) / (2 * number) + jnp.zeros(())

    def magnitude(self, w: Vector) -> Scalar:
        return self.regularizer(w)

    def normal_covariance(self, w: Vector, geometry: GramGeometry) -> Float[Array, "q q"]:
        left = geometry.jacobian_coordinates
        return left @ self._residual_covariance(w) @ left.T / self.system.problem.number**2

    def factor(self, w: Vector) -> None:
        return None

    def total_variance(self, w: Vector) -> Scalar:
        jacobian = self.manifold.jacobian(w)
        covariance = self._residual_covariance(w)
        return jnp.sum(covariance * (jacobian @ jacobian.T)) / self.system.problem.number**2

    def _sensitivities(self, w: Vector) -> tuple[list[Array], list[Array]]:
        """D r_i / d eta at eta = 0, `[N, k, noise]`, of the per-example and of the shared noises."""
        system, params = self.system, self.manifold.unravel(w)
        if not system.injections:
            return [], []
        law = system.noise_law(params)
        zero = law.zeros(jnp.float64)

        def of_one(inputs: Any, targets: Array, eta: PyTree) -> PyTree:
            inputs, targets = jax.tree.map(lambda leaf: leaf[None], (inputs, targets))

            def residual(xi: PyTree) -> Array:
                noise = system.per_example(lambda leaf: leaf[None], law.unit(xi))
                return system.residuals(params, inputs, targets, noise)[0].reshape(-1)

            return jax.jacrev(residual)(eta)

        axes = tuple(0 if part.per == "example" else None for part in system.injections)
        derivatives = jax.vmap(of_one, in_axes=(0, 0, axes))(
            system.problem.inputs, system.problem.targets, zero
        )
        own: list[Array] = []
        shared: list[Array] = []
        for injection, derivative in zip(system.injections, derivatives, strict=True):
            for leaf in jax.tree.leaves(derivative):
                block = leaf.reshape(*leaf.shape[:2], -1)
                (own if injection.per == "example" else shared).append(block)
        return own, shared

    def _residual_covariance(self, w: Vector) -> Float[Array, "residuals residuals"]:
        """S = E[c c^T] o B B^T."""
        own, shared = self._sensitivities(w)
        number, outputs = self.system.problem.number, self.system.problem.targets.size
        minibatch = self.system.minibatch
        same, different = (1.0, 1.0) if minibatch is None else minibatch.second_moments(number)
        covariance = jnp.zeros((outputs, outputs))
        for block in shared:
            flat = block.reshape(outputs, -1)
            covariance = covariance + flat @ flat.T
        per_example = outputs // number
        is_same = jnp.kron(jnp.eye(number), jnp.ones((per_example, per_example)))
        covariance = covariance * jnp.where(is_same > 0, same, different)
        for block in own:
            blocks = same * jnp.einsum("ika,ila->ikl", block, block)
            covariance = covariance + jnp.einsum("ij,ikl->ikjl", jnp.eye(number), blocks).reshape(
                outputs, outputs
            )
        return covariance


def expand(system: AbstractSystem, manifold: AbstractManifold) -> AbstractExpansion:
    """The expansion of a system's noise around its zero-loss set."""
    if isinstance(system, LeastSquaresSystem) and isinstance(manifold, GramManifold):
        return LeastSquaresExpansion(system, manifold)
    return GeneralExpansion(system, manifold)
