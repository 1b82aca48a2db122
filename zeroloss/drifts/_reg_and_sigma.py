"""The noise to second order: the regularizer Reg and the covariance Sigma (theory.md, section 1).

Both are taken at sigma = 1 of the system's reference noise, so they do not depend on sigma.
"""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from zeroloss._chunks import over_rows
from zeroloss._pytrees import Vector, flatten
from zeroloss.noise import AbstractInjection, AbstractLaw, Joint, LabelNoise, SampledLabels, is_zero
from zeroloss.systems import AbstractSystem, Examples, Scalar, SupervisedSystem
from zeroloss.zero_sets import (
    AbstractLeastSquaresZeroSet,
    AbstractSpaces,
    AbstractSpectrum,
    AbstractZeroSet,
    GramSpectrum,
)


class AbstractExpansion(eqx.Module):
    """Reg and Sigma of a system, as functions of the flat parameters."""

    system: eqx.AbstractVar[AbstractSystem]
    zero_set: eqx.AbstractVar[AbstractZeroSet]

    @property
    def has_constant_curvature(self) -> bool:
        """Whether T of theory.md, section 2, serves beside the set too, as with squares."""
        return True

    def around(self, w: Vector) -> "AbstractExpansion":
        """The same with `AbstractZeroSet.around`."""
        return self

    @abc.abstractmethod
    def regularizer(self, w: Vector) -> Scalar:
        """Reg(w) = 1/2 Laplacian_eta L_hat(w, 0); for least squares, its value on the set."""

    @abc.abstractmethod
    def magnitude(self, w: Vector) -> Scalar:
        """The size of Reg without cancellation, relative to which Reg counts as zero."""

    @abc.abstractmethod
    def normal_covariance(self, w: Vector, spectrum: Any) -> Float[Array, "q q"]:
        """Q^T Sigma Q, in the coordinates of `spectrum`, the spectrum of `zero_set` at w."""

    def hessian_multiple(self, w: Vector) -> Scalar | None:
        """The c with Sigma = c H on the set, where the kind of noise implies such a c; otherwise None."""
        return None

    def excess_covariance(
        self, w: Vector, spectrum: Any, fluctuations: Float[Array, "q q"]
    ) -> Float[Array, "q q"]:
        """The noise of minibatches beside the set, with iterates of covariance Q C Q^T around w.

        It is E[(H_B - H) C (H_B - H)] of the batch's random Hessian, and the batch noise of residuals that
        are not zero (theory.md, section 5). It does not scale with sigma.
        """
        return jnp.zeros_like(fluctuations)

    @abc.abstractmethod
    def tangential_law(self, w: Vector) -> AbstractLaw | None:
        """The law of the noises that may have a tangential part; None without such noise."""

    @abc.abstractmethod
    def factor(self, w: Vector) -> lx.AbstractLinearOperator:
        """G restricted to the noises of `tangential_law`, from flat standardized noise to flat parameters."""

    @abc.abstractmethod
    def total_variance(self, w: Vector) -> Scalar:
        """Tr Sigma."""

    def tangential_covariance(self, w: Vector, spectrum: AbstractSpectrum) -> Float[Array, "parameters q"]:
        """P_T Sigma Q: the covariance of the tangential with the normal part of the noise."""
        factor = self.factor(w)
        return spectrum.tangent(_columns(factor.mv, self.normal_factor(w, spectrum).T))

    def normal_factor(self, w: Vector, spectrum: AbstractSpectrum) -> Float[Array, "q noise"]:
        """Q^T G, for the noises of `tangential_law`."""
        return _columns(self.factor(w).T.mv, spectrum.basis).T

    def tangential_variance(self, w: Vector, spaces: AbstractSpaces) -> Scalar:
        """Tr P_T Sigma P_T."""
        if self.tangential_law(w) is None:
            return jnp.zeros(())
        factor = self.factor(w)

        def moved(direction: Array) -> Scalar:
            return jnp.sum(spaces.tangent(factor.mv(direction)) ** 2)

        return jnp.sum(_for_each(moved, factor.in_size()))


_BLOCK = 64
_LARGEST_FACTOR = 2**28  # bytes


class GeneralExpansion(AbstractExpansion):
    """For any noisy loss. Costs n gradients for Reg and for G, with n the number of noise components.

    G itself is kept, d x n, up to 256 MiB.
    """

    system: AbstractSystem
    zero_set: AbstractZeroSet

    def regularizer(self, w: Vector) -> Scalar:
        return 0.5 * jnp.sum(self._second_derivatives(w))

    def magnitude(self, w: Vector) -> Scalar:
        return 0.5 * jnp.sum(jnp.abs(self._second_derivatives(w)))

    def normal_covariance(self, w: Vector, spectrum: AbstractSpectrum) -> Float[Array, "q q"]:
        coordinates = self.normal_factor(w, spectrum)
        return coordinates @ coordinates.T

    def normal_factor(self, w: Vector, spectrum: AbstractSpectrum) -> Float[Array, "q noise"]:
        factor = self.factor(w)
        if isinstance(factor, lx.MatrixLinearOperator):
            return spectrum.coordinates(factor.as_matrix())
        return super().normal_factor(w, spectrum)

    def tangential_law(self, w: Vector) -> AbstractLaw:
        return self.system.noise_law(self.zero_set.unravel(w))

    def factor(self, w: Vector) -> lx.AbstractLinearOperator:
        zero, to_noise = _standardized(self.tangential_law(w))
        gradient = jax.grad(self._loss)

        def sensitivity(direction: Array) -> Vector:
            return jax.jvp(lambda xi: gradient(w, to_noise(xi)), (zero,), (direction,))[1]

        if w.nbytes * zero.size > _LARGEST_FACTOR:
            return lx.FunctionLinearOperator(sensitivity, jax.eval_shape(lambda: zero))
        return lx.MatrixLinearOperator(_columns(sensitivity, jnp.eye(zero.shape[0])))

    def total_variance(self, w: Vector) -> Scalar:
        factor = self.factor(w)
        return jnp.sum(_for_each(lambda direction: jnp.sum(factor.mv(direction) ** 2), factor.in_size()))

    def _second_derivatives(self, w: Vector) -> Float[Array, " noise"]:
        zero, to_noise = _standardized(self.tangential_law(w))

        def second(direction: Array) -> Scalar:
            def slope(xi: Array) -> Scalar:
                return jax.jvp(lambda xi: self._loss(w, to_noise(xi)), (xi,), (direction,))[1]

            return jax.jvp(slope, (zero,), (direction,))[1]

        return _for_each(second, zero.shape[0])

    def _loss(self, w: Vector, eta: PyTree) -> Scalar:
        return self.system.noisy_loss(self.zero_set.unravel(w), eta)


class LeastSquaresExpansion(AbstractExpansion):
    """For least squares (theory.md, section 3): everything from B = d_eta r, example by example.

    On the set the noise in the residuals gives G = J^T B / N, purely normal, with the covariance
    J^T S J / N^2, S = E[c c^T] o B B^T and c the minibatch counts. Noise on the gradient itself (a force)
    adds to it, and is the only noise that can move the parameters along the set.

    Costs one gradient per output and example for B, and m x m memory.
    """

    system: SupervisedSystem
    zero_set: AbstractLeastSquaresZeroSet

    @property
    def has_constant_curvature(self) -> bool:
        """Whether the curvature of the loss does not depend on the outputs, as that of squares."""
        return self.system.problem.loss_function.is_isotropic

    def around(self, w: Vector) -> "LeastSquaresExpansion":
        if self.has_constant_curvature:
            return self
        zero_set = self.zero_set.around(w)
        whitening = zero_set.problem.inputs.whitening
        system = eqx.tree_at(lambda system: system.problem.whitening, self.system, whitening)
        return LeastSquaresExpansion(system, zero_set)

    def regularizer(self, w: Vector) -> Scalar:
        own, shared = self.around(w)._sensitivities(w, lambda injection: not self._is_linear(injection))
        number = self.system.problem.number
        return sum(jnp.sum(block**2) for block in (*own, *shared)) / (2 * number) + jnp.zeros(())

    def magnitude(self, w: Vector) -> Scalar:
        return self.regularizer(w)

    def normal_covariance(self, w: Vector, spectrum: GramSpectrum) -> Float[Array, "q q"]:
        left = spectrum.jacobian_coordinates
        covariance = left @ self._residual_covariance(w) @ left.T / self.system.problem.number**2
        if self.tangential_law(w) is not None:
            coordinates = self.normal_factor(w, spectrum)
            covariance = covariance + coordinates @ coordinates.T
        return covariance

    def hessian_multiple(self, w: Vector) -> Scalar | None:
        # White noise in the residuals has the covariance s I, with batches or without, which gives
        # Sigma = s J^T J / N^2 = (s / N) H.
        if not self.system.injections or not all(map(self._is_white, self.system.injections)):
            return None
        law, number = self._law(w), self.system.problem.number
        ones = law.unit(jax.tree.map(jnp.ones_like, law.zeros(jnp.float64)))
        variance = jnp.zeros(())
        for injection, part, own in zip(self.system.injections, ones, law.laws, strict=True):
            if isinstance(injection, LabelNoise):
                variance = variance + jnp.ravel(part)[0] ** 2
            elif not is_zero(law.sigma):
                variance = variance + (own.sigma / law.sigma) ** 2
        minibatch = self.system.minibatch
        return variance / number * (1.0 if minibatch is None else minibatch.second_moments(number)[0])

    def _is_linear(self, injection: AbstractInjection) -> bool:
        """Whether the loss is linear in this noise, so that it adds nothing to Reg."""
        return injection.needs == "targets" and self.system.problem.loss_function.linear_in_targets

    def _is_white(self, injection: AbstractInjection) -> bool:
        """Whether this noise has a covariance in the residuals that is a multiple of the identity."""
        loss, weights = self.system.problem.loss_function, self.system.problem.weights
        if weights is not None:
            return False
        if isinstance(injection, LabelNoise):
            return injection.root is None and loss.is_isotropic
        return isinstance(injection, SampledLabels) and loss.fits_labels

    def excess_covariance(
        self, w: Vector, spectrum: GramSpectrum, fluctuations: Float[Array, "q q"]
    ) -> Float[Array, "q q"]:
        if self.system.minibatch is None:
            return jnp.zeros_like(fluctuations)
        params, number = self.zero_set.unravel(w), self.system.problem.number
        clean = self.system.residuals(params, self.system.problem.examples, self._law(w).zeros(jnp.float64))
        same, different = self.system.minibatch.second_moments(number)
        left, residuals = spectrum.jacobian_coordinates, clean.reshape(number, -1)
        # Q^T J^T (M o S) J Q of S = r r^T + J Q C Q^T J^T. The moments M of the counts have one value within
        # an example and another between examples. What all pairs share takes no product of m x m matrices,
        # because Q^T J^T J Q = N Lambda.
        per_example = left.reshape(len(left), number, -1)
        moved = (fluctuations @ left).reshape(per_example.shape)
        own = jnp.einsum("qik,qil->ikl", per_example, moved) + residuals[:, :, None] * residuals[:, None, :]
        within = jnp.einsum("qik,ikl->qil", per_example, own).reshape(left.shape) @ left.T
        force, scale = left @ residuals.reshape(-1), number * spectrum.eigenvalues
        between = jnp.outer(force, force) + scale[:, None] * fluctuations * scale
        return ((same - different) * within + (different - 1) * between) / number**2

    def tangential_law(self, w: Vector) -> Joint | None:
        force_injections = self.system.force_injections(self.zero_set.unravel(w))
        return (
            Joint(tuple(self._law(w).laws[index] for index in force_injections)) if force_injections else None
        )

    def factor(self, w: Vector) -> lx.AbstractLinearOperator:
        law, params, moving = self._law(w), self.zero_set.unravel(w), self.tangential_law(w)
        assert moving is not None
        zero, unravel = ravel_pytree(moving.zeros(jnp.float64))

        def force(xi: Array) -> Vector:
            parts = list(law.zeros(jnp.float64))
            for index, part in zip(self.system.force_injections(params), unravel(xi), strict=True):
                parts[index] = part
            return flatten(self.system.force(params, law.unit(tuple(parts))))[0]

        return lx.FunctionLinearOperator(
            lambda xi: jax.jvp(force, (zero,), (xi,))[1], jax.eval_shape(lambda: zero)
        )

    def total_variance(self, w: Vector) -> Scalar:
        jacobian = self.zero_set.jacobians.at(w)
        covariance = self._residual_covariance(w)
        variance = jnp.sum(covariance * jacobian.gram(jacobian)) / self.system.problem.number**2
        if self.tangential_law(w) is None:
            return variance
        factor = self.factor(w)

        def moved(direction: Array) -> Scalar:
            return jnp.sum(factor.mv(direction) ** 2)

        return variance + jnp.sum(_for_each(moved, factor.in_size()))

    def _law(self, w: Vector) -> Joint:
        return self.system.noise_law(self.zero_set.unravel(w))

    def _sensitivities(
        self, w: Vector, counts: Callable[[AbstractInjection], bool] = lambda injection: True
    ) -> tuple[list[Array], list[Array]]:
        """D r_i / d eta at eta = 0, `[N, k, noise]`, of the per-example and of the shared noises."""
        system, params = self.system, self.zero_set.unravel(w)
        if not system.injections:
            return [], []

        def of_one(example: Examples, eta: PyTree) -> PyTree:
            examples = jax.tree.map(lambda leaf: leaf[None], example)
            law = system.law_of(params, examples)

            def residual(xi: PyTree) -> Array:
                noise = law.unit(system.per_example(lambda leaf: leaf[None], xi))
                return system.residuals(params, examples, noise)[0].reshape(-1)

            return jax.jacrev(residual)(eta)

        axes = tuple(0 if part.per == "example" else None for part in system.injections)
        derivatives = jax.vmap(of_one, in_axes=(0, axes))(
            system.problem.examples, self._law(w).zeros(jnp.float64)
        )
        own: list[Array] = []
        shared: list[Array] = []
        force_injections = system.force_injections(params)
        for index, (injection, derivative) in enumerate(zip(system.injections, derivatives, strict=True)):
            if index in force_injections or not counts(injection):
                continue
            for leaf in jax.tree.leaves(derivative):
                block = leaf.reshape(*leaf.shape[:2], -1)
                (own if injection.per == "example" else shared).append(block)
        return own, shared

    def _residual_covariance(self, w: Vector) -> Float[Array, "residuals residuals"]:
        """S = E[c c^T] o B B^T."""
        own, shared = self._sensitivities(w)
        number, outputs = self.system.problem.number, self.zero_set.problem.targets.size
        covariance = jnp.zeros((outputs, outputs))
        for block in shared:
            flat = block.reshape(outputs, -1)
            covariance = covariance + flat @ flat.T
        moments = self._second_moments()
        covariance = covariance * moments
        for block in own:
            blocks = moments[0, 0] * jnp.einsum("ika,ila->ikl", block, block)
            covariance = covariance + jnp.einsum("ij,ikl->ikjl", jnp.eye(number), blocks).reshape(
                outputs, outputs
            )
        return covariance

    def own_covariance(self, w: Vector) -> Float[Array, "examples outputs outputs"]:
        """B_i B_i^T of the noise that each example draws for itself, without minibatches."""
        number = self.system.problem.number
        outputs = self.zero_set.problem.targets.size // number
        blocks = (jnp.einsum("ika,ila->ikl", block, block) for block in self._sensitivities(w)[0])
        return sum(blocks, jnp.zeros((number, outputs, outputs)))

    def squared_sensitivities(self, w: Vector, part: int) -> Float[Array, "examples noise"]:
        """|d r_i / d eta_j|^2 of the noise with this index, in all its leaves."""
        expansion = self.around(w)
        chosen = expansion.system.injections[part]
        own, shared = expansion._sensitivities(w, lambda injection: injection is chosen)
        return jnp.concatenate([jnp.sum(block**2, axis=1) for block in (*own, *shared)], axis=1)

    def _second_moments(self) -> Float[Array, "residuals residuals"]:
        """E[c c^T], the moments of the minibatch counts; ones without minibatches."""
        number, outputs = self.system.problem.number, self.zero_set.problem.targets.size
        minibatch = self.system.minibatch
        same, different = (1.0, 1.0) if minibatch is None else minibatch.second_moments(number)
        per_example = outputs // number
        is_same = jnp.kron(jnp.eye(number), jnp.ones((per_example, per_example)))
        return jnp.where(is_same > 0, same, different)


def expand(system: AbstractSystem, zero_set: AbstractZeroSet) -> AbstractExpansion:
    """The expansion of a system's noise around its zero-loss set."""
    system = system.with_scales_as_arrays()
    if isinstance(system, SupervisedSystem) and isinstance(zero_set, AbstractLeastSquaresZeroSet):
        return LeastSquaresExpansion(system, zero_set)
    return GeneralExpansion(system, zero_set)


def relative(value: Array, scale: Array) -> Array:
    """A value relative to a scale; 0 where the scale is 0."""
    return jnp.where(scale == 0, 0.0 * value, value / jnp.where(scale == 0, 1.0, scale))


def _for_each(function: Callable[[Array], Scalar], components: int) -> Float[Array, " components"]:
    """`function` of every standard unit vector, 64 at a time."""

    def of_one(index: Array) -> Scalar:
        return function(jax.nn.one_hot(index, components, dtype=jnp.float64))

    return over_rows(jax.vmap(of_one), jnp.arange(components), _BLOCK)


def _columns(function: Callable[[Array], Array], matrix: Float[Array, "into columns"]) -> Array:
    """The columns of `matrix`, each put through a linear `function`."""
    return jax.vmap(function, in_axes=1, out_axes=1)(matrix)


def _standardized(law: AbstractLaw) -> tuple[Array, Callable[[Array], PyTree]]:
    """Zero noise as a vector, and the function from standardized noise as a vector to noise at sigma = 1."""
    zero, unravel = ravel_pytree(law.zeros(jnp.float64))
    return zero, lambda xi: law.unit(unravel(xi))
