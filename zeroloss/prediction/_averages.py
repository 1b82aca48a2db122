"""The loss averaged over the noise, L_bar(w) = E L_hat(w, eta) (theory.md, section 5; docs/prediction.md)."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from zeroloss._compilation import compiled_once
from zeroloss._pytrees import Vector, flatten
from zeroloss.drifts import AbstractExpansion
from zeroloss.systems import Scalar
from zeroloss.zero_sets import AbstractSpectrum

_BATCH = 32  # draws that are taken side by side

_QUADRATIC = 1e-9  # third difference in the noise, relative to the loss


class Averaged(eqx.Module):
    """L_bar, its gradient, and the summed variance of the gradient's tangential part from sampling."""

    loss: Scalar
    gradient: Vector
    variance: Scalar


class AbstractAverage(eqx.Module):
    """A way to average the loss over the noise."""

    expansion: eqx.AbstractVar[AbstractExpansion]
    sigma: eqx.AbstractVar[Scalar]

    @abc.abstractmethod
    def at(self, w: Vector, spectrum: AbstractSpectrum, key: Key[Array, ""], draws: Array) -> Averaged:
        """The average at w, with `spectrum` there; from about `draws` draws where sampled."""


class ExactAverage(AbstractAverage):
    """L_bar = L + sigma^2 Reg, where the loss is quadratic in the noise. The cost of grad Reg."""

    expansion: AbstractExpansion
    sigma: Scalar

    def at(self, w: Vector, spectrum: AbstractSpectrum, key: Key[Array, ""], draws: Array) -> Averaged:
        def average(w: Vector) -> Scalar:
            return self.expansion.zero_set.loss(w) + self.sigma**2 * self.expansion.regularizer(w)

        loss, gradient = jax.value_and_grad(average)(w)
        return Averaged(loss, gradient, jnp.zeros(()))


class SampledAverage(AbstractAverage):
    """The mean over draws of grad L_hat(w, eta) - d_eta grad L_hat(w, 0) eta.

    The second term has mean zero and is nearly all of the gradient's scatter, which is normal to the set.
    About three gradients a draw, memory for 32 of them.
    """

    expansion: AbstractExpansion
    sigma: Scalar

    def at(self, w: Vector, spectrum: AbstractSpectrum, key: Key[Array, ""], draws: Array) -> Averaged:
        system, params = self.expansion.system, self.expansion.zero_set.unravel(w)
        law = system.noise_law(params)
        zero = law.zeros(w.dtype)

        def loss_and_gradient(eta: PyTree) -> tuple[Scalar, Vector]:
            loss, gradient = jax.value_and_grad(system.noisy_loss)(params, eta)
            return loss, flatten(gradient)[0]

        def one(key: Key[Array, ""]) -> tuple[Scalar, Vector]:
            eta = law.draw(key, w.dtype)
            loss, gradient = loss_and_gradient(eta)
            _, (odd_loss, odd) = jax.jvp(loss_and_gradient, (zero,), (eta,))
            return loss - odd_loss, gradient - odd

        def add(index: Array, total: tuple[Scalar, Vector, Scalar]) -> tuple[Scalar, Vector, Scalar]:
            losses, gradients = jax.vmap(one)(jax.random.split(jax.random.fold_in(key, index), _BATCH))
            tangential = spectrum.tangent(gradients.T)
            return (
                total[0] + losses.sum(),
                total[1] + gradients.sum(axis=0),
                total[2] + jnp.sum(tangential**2),
            )

        start = (jnp.zeros(()), jnp.zeros_like(w), jnp.zeros(()))
        batches = (draws + _BATCH - 1) // _BATCH
        loss, gradient, squares = jax.lax.fori_loop(0, batches, add, start)
        draws = batches * _BATCH
        mean = gradient / draws
        variance = (squares / draws - jnp.sum(spectrum.tangent(mean) ** 2)) / (draws - 1)
        return Averaged(loss / draws, mean, jnp.maximum(variance, 0.0))


def fluctuation_force(
    expansion: AbstractExpansion,
    w: Vector,
    spectrum: AbstractSpectrum,
    displacements: Float[Array, "draws parameters"],
    key: Key[Array, ""] | None,
) -> tuple[Vector, Scalar]:
    """The mean of grad L_hat(w + x, eta) - grad L_hat(w, eta) over displacements x and their opposites.

    For small displacements of covariance C it is 1/2 of the third derivative of L_bar contracted with C.
    Three gradients a displacement, each with its own noise; without noise where `key` is None. Also returns
    the variance of the mean along the set, from the scatter of the draws.
    """
    system, unravel = expansion.system, expansion.zero_set.unravel
    law = system.noise_law(unravel(w))

    def one(x: Vector, key: Array) -> Vector:
        eta = law.zeros(w.dtype) if noiseless else law.draw(key, w.dtype)
        gradient = jax.grad(lambda w: system.noisy_loss(unravel(w), eta))
        return (gradient(w + x) + gradient(w - x)) / 2 - gradient(w)

    def of_batch(batch: tuple[Array, Array]) -> tuple[Vector, Scalar]:
        forces = jax.vmap(one)(*batch)
        return forces.sum(axis=0), jnp.sum(spectrum.tangent(forces.T) ** 2)

    noiseless, draws = key is None, len(displacements)
    keys = jax.random.split(jax.random.key(0) if key is None else key, draws).reshape(-1, min(draws, _BATCH))
    batches = displacements.reshape(*keys.shape, -1)
    sums, squares = jax.lax.map(of_batch, (batches, keys))
    mean = sums.sum(axis=0) / draws
    variance = (squares.sum() / draws - jnp.sum(spectrum.tangent(mean) ** 2)) / max(draws - 1, 1)
    return mean, jnp.maximum(variance, 0.0)


def average(expansion: AbstractExpansion, w: Vector, sigma: float) -> AbstractAverage:
    """The exact average where the loss is quadratic in the noise around w, else the sampled one."""
    exact = bool(_third_difference(expansion, w) <= _QUADRATIC)
    kind = ExactAverage if exact else SampledAverage
    return kind(expansion, jnp.asarray(sigma, float))


@compiled_once
def _third_difference(expansion: AbstractExpansion, w: Vector) -> Scalar:
    """Of L_hat in three random noises of size 1, relative to its size; at w and near it."""
    system, zero_set = expansion.system, expansion.zero_set
    law = system.noise_law(zero_set.unravel(w))
    keys = jax.random.split(jax.random.key(0), 4)
    a, b, c = (law.unit(law.sample(key, w.dtype)) for key in keys[:3])

    def at(w: Vector) -> Scalar:
        def loss(*noises: PyTree) -> Scalar:
            zero = law.zeros(w.dtype)
            eta = jax.tree.map(lambda zero, *leaves: sum(leaves, zero), zero, *noises)
            return system.noisy_loss(zero_set.unravel(w), eta)

        values = jnp.stack(
            [loss(a, b, c), -loss(a, b), -loss(a, c), -loss(b, c), loss(a), loss(b), loss(c), -loss()]
        )
        return jnp.abs(values.sum()) / jnp.max(jnp.abs(values))

    near = w + 1e-2 * jnp.linalg.norm(w) * jax.random.normal(keys[3], w.shape, w.dtype) / w.size**0.5
    return jnp.maximum(at(w), at(near))
