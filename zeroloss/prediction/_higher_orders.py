"""The terms of Sigma and of the Hessian beyond first order in the noise (docs/prediction.md).

To first order in eta the gradient is J^T (r + B eta) / N, with the covariance sigma^2 Sigma, and fluctuations
relax with H = J^T J / N. But J depends on eta as well. Dropout takes a unit out of J and B together; beside
the zero-loss set J(eta)^T r is noise too; and fluctuations relax with E[J(eta)^T J(eta)] / N.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from zeroloss._compilation import compiled_once
from zeroloss._pytrees import Vector
from zeroloss.drifts import AbstractExpansion, LeastSquaresExpansion
from zeroloss.jacobians import (
    AbstractJacobian,
    AbstractJacobians,
    PerExampleJacobians,
    StructuredJacobians,
    analyse,
)
from zeroloss.systems import Examples, LeastSquares, Scalar, SupervisedSystem
from zeroloss.zero_sets import spectrum_of

_DRAWS_OF_EXAMPLES = 1000  # of single examples, altogether
_FEWEST_DRAWS = 4  # of all examples
_DRAWS_OF_OUTPUT = 2  # of all examples, for each output: below that, eigenvalues scatter too much
_NONE = 1e-9  # higher orders below this share of the first are treated as zero
_ROUNDED = 1e-3
_NEAR = 1e-2  # |w|: the distance at which their size is measured


class Excess(eqx.Module):
    """The terms beyond first order in the noise at a point: J (...) J^T of each of two d x d matrices.

    - `noise`: Cov grad L_hat - sigma^2 Sigma.
    - `hessian`: (E[J(eta)^T J(eta)] - J^T J) / N.

    Its methods take the `GramSpectrum` at a point.
    """

    noise: Float[Array, "residuals residuals"]
    hessian: Float[Array, "residuals residuals"]

    def covariance(self, spectrum: Any) -> Float[Array, "q q"]:
        """The addition to the noise, in the coordinates of a spectrum close by."""
        return spectrum.scaled_rotation.T @ self.noise @ spectrum.scaled_rotation

    def curvatures(self, spectrum: Any) -> Float[Array, " q"]:
        """The addition to the Hessian, along each eigenvector of H."""
        return jnp.sum(spectrum.scaled_rotation * (self.hessian @ spectrum.scaled_rotation), axis=0)


_NoisyExamples = tuple[Examples, PyTree]
"""Examples, and the noise that each of them has for itself."""


class _NoisyOutputs(eqx.Module):
    """Whitened outputs of examples that hold their own noise; noise that examples share is zero."""

    system: SupervisedSystem

    def __call__(self, params: PyTree, examples: _NoisyExamples) -> Array:
        return self.system.outputs(params, examples[0], self._noise(params, examples))

    def residuals(self, params: PyTree, examples: _NoisyExamples) -> Array:
        """The residuals of the same examples."""
        return self.system.residuals(params, examples[0], self._noise(params, examples))

    def whitened(self, params: PyTree, own: PyTree) -> _NoisyExamples:
        """All examples with their own noise, and with B at their noisy outputs."""
        examples = self.system.problem.examples
        noise = self._noise(params, (examples, own))
        return jax.lax.stop_gradient(self.system.whitened_at(params, examples, noise)), own

    def _noise(self, params: PyTree, examples: _NoisyExamples) -> PyTree:
        zeros = self.system.law_of(params, examples[0]).zeros(jnp.float64)
        return tuple(zero if part is None else part for part, zero in zip(examples[1], zeros, strict=True))


class HigherOrders(eqx.Module):
    """Estimates `Excess` from draws of the noise of each example.

    The covariances of the examples' gradients add up, so that a few draws for each example are as good as N
    times as many of the whole gradient.
    """

    expansion: LeastSquaresExpansion
    model: _NoisyOutputs
    jacobians: AbstractJacobians

    def at(self, w: Vector, spectrum: Any, key: Key[Array, ""]) -> Excess:
        """An estimate at w, with `spectrum` there.

        The noise is sum_i Cov[Q^T J_i(eta)^T r_i(eta)] / N^2, with minibatches times E[c_i^2]. The first
        order has a known covariance and serves as a control variate, so that only the higher orders scatter.
        There are 1000 / N draws, at least 4, and at least 2 for each output. Each costs K(w, w0) and 10 m^3
        operations; m x m memory.
        """
        system, params = self.model.system, self.expansion.zero_set.unravel(w)
        number = system.problem.number
        outputs = self.expansion.zero_set.problem.targets.size // number
        draws = max(_FEWEST_DRAWS, _DRAWS_OF_OUTPUT * outputs, -(-_DRAWS_OF_EXAMPLES // number))
        law = system.noise_law(params)
        zero = self._own(law.zeros(jnp.float64))
        clean, rotation = self._jacobian(w, zero), spectrum.scaled_rotation.T
        rows = spectrum.jacobian_coordinates  # Q^T J^T

        def residuals(own: PyTree) -> Array:
            return self.model.residuals(params, self.model.whitened(params, own))

        def gradients(rows: Array, residuals: Array) -> Float[Array, "q examples"]:
            return jnp.einsum("qik,ik->qi", rows.reshape(-1, number, outputs), residuals.reshape(number, -1))

        mean = gradients(rows, residuals(zero))  # of the first order

        def add(total: list[Array], key: Key[Array, ""]) -> tuple[list[Array], None]:
            own = self._own(law.draw(key, jnp.float64))
            noisy_rows = rotation @ clean.gram(self._jacobian(w, own))  # Q^T J(eta)^T
            noisy = gradients(noisy_rows, residuals(own)) - mean
            first = gradients(rows, jax.jvp(residuals, (zero,), (own,))[1])
            added = [
                *(noisy, first, noisy @ noisy.T, first @ first.T, noisy_rows @ noisy_rows.T),
                *((noisy * first) @ (noisy * first).T, first**2 @ (first**2).T),
            ]
            return jax.tree.map(jnp.add, total, added), None

        start = [jnp.zeros_like(mean)] * 2 + [jnp.zeros((len(rows), len(rows)))] * 5
        sums, _ = jax.lax.scan(add, start, jax.random.split(key, draws))
        noisy, first, noisy_squares, first_squares, hessian, common, fourth = (each / draws for each in sums)
        blocks = law.sigma**2 * self.expansion.around(w).own_covariance(w)
        shaped = rows.reshape(-1, number, outputs)
        known = jnp.einsum("qik,ikl,pil->qp", shaped, blocks, shaped)
        share = common / jnp.where(fourth > 0, fourth, 1.0)
        drawn = (noisy_squares - noisy @ noisy.T) * draws / (draws - 1)
        drawn_first = (first_squares - first @ first.T) * draws / (draws - 1)
        noise = drawn - share * (drawn_first - known) - known
        weight = 1.0 if system.minibatch is None else system.minibatch.second_moments(number)[0]
        # As J (...) J^T, which does not depend on the basis and changes little from point to point.
        return Excess(
            rows.T @ (weight / number**2 * noise) @ rows,
            rows.T @ (hessian / number - jnp.diag(spectrum.eigenvalues)) @ rows,
        )

    def _own(self, eta: PyTree) -> PyTree:
        return _own(self.model.system, eta)

    def _jacobian(self, w: Vector, own: PyTree) -> AbstractJacobian:
        params = self.expansion.zero_set.unravel(w)
        return eqx.tree_at(_inputs, self.jacobians, self.model.whitened(params, own)).at(w)


def higher_orders(expansion: AbstractExpansion, w: Vector) -> HigherOrders | None:
    """`HigherOrders` of least squares where examples have noise of their own and J depends on it.

    None for all other systems, and where the Jacobian of the model does not fit into its memory.
    """
    if not isinstance(expansion, LeastSquaresExpansion):
        return None
    system, zero_set = expansion.system, expansion.zero_set
    if all(injection.per != "example" for injection in system.injections):
        return None
    model, params = _NoisyOutputs(system), zero_set.unravel(w)
    own = _own(system, system.noise_law(params).zeros(jnp.float64))
    examples = (system.problem.examples, own)
    if zero_set.structure is None:
        noisy = LeastSquares(model, examples, zero_set.problem.targets)
        jacobians: AbstractJacobians = PerExampleJacobians(noisy, zero_set.unravel)
    else:
        structure = analyse(model, params, examples, zero_set.structure.maker.max_memory)
        if not structure.fits:
            return None
        jacobians = StructuredJacobians(structure, zero_set.unravel)
    found = HigherOrders(expansion, model, jacobians)
    return found if _share(expansion, found, w) > _NONE else None


def _own(system: SupervisedSystem, eta: PyTree) -> PyTree:
    """The noises that each example draws for itself; None in place of the others."""
    pairs = zip(system.injections, eta, strict=True)
    return tuple(part if injection.per == "example" else None for injection, part in pairs)


def _inputs(jacobians: Any) -> PyTree:
    if isinstance(jacobians, PerExampleJacobians):
        return jacobians.problem.inputs
    return jacobians.structure.inputs


@compiled_once
def _share(expansion: LeastSquaresExpansion, found: HigherOrders, w: Vector) -> Scalar:
    """The size of the excess near w: of the noise relative to sigma^2 Sigma, of the Hessian relative to H."""
    zero_set = expansion.zero_set
    near = w + _NEAR * jnp.linalg.norm(w) * jax.random.normal(jax.random.key(0), w.shape) / w.size**0.5
    expansion = expansion.around(near)
    spectrum: Any = spectrum_of(expansion.zero_set, near)
    excess = found.at(near, spectrum, jax.random.key(1))
    sigma = expansion.system.noise_law(zero_set.unravel(near)).sigma
    noise = sigma**2 * expansion.normal_covariance(near, spectrum)

    # Rounding is that of ||J||^4, also where the noise is much smaller.
    rounding = _ROUNDED * zero_set.jacobians.squared_norm(near) ** 2

    def share(added: Array, to: Array) -> Scalar:
        rows = spectrum.jacobian_coordinates
        return jnp.linalg.norm(added) / (jnp.linalg.norm(rows.T @ to @ rows) + rounding)

    return share(excess.noise, noise) + share(excess.hessian, jnp.diag(spectrum.eigenvalues))
