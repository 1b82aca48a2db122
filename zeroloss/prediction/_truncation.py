"""The truncation error of the recursion for mean and covariance (docs/prediction.md)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from zeroloss._compilation import compiled
from zeroloss._pytrees import Vector, flatten
from zeroloss._tolerances import TINY
from zeroloss.prediction._averages import ExactAverage, fluctuation_force
from zeroloss.prediction._ensemble import fluctuations
from zeroloss.prediction._mean_path import MeanPath, State, relaxation
from zeroloss.prediction._recursion import decay_of
from zeroloss.systems import Scalar
from zeroloss.zero_sets import AbstractZeroSet

_DRAWS = 64


class Truncation(NamedTuple):
    """The error of the recursion in one training step at a point of the path.

    - `displacement`: the error of the displacement along the set.
    - `excess`: the relative error of the fluctuations' share of the loss.
    """

    displacement: Vector
    excess: Scalar


@compiled
def truncation(mean_path: MeanPath, state: State, step_size: Scalar, key: Key[Array, ""]) -> Truncation:
    """Estimate the truncation error of one training step, from draws z of the fluctuations and of the noise.

    The recursion takes two quantities to leading order. One is the force: its average over z is grad L_bar +
    1/2 T[C] plus terms of fourth order. The other is the covariance of the gradient noise: it contains the
    random Hessian (H_eta - H) z, which the draws at z and -z show against the same noise at z = 0. Costs 64
    times two averages and three gradients. The first error is not computed where averages have to be sampled.

    At kinks the force is an average itself. The fluctuations normal to the set at one point then leave the
    normal space of their neighbours, where other units are active; their covariance does not say so. The
    relative change of the Jacobian along them is taken as the relative error of the force.
    """
    expansion, spectrum = mean_path.expansion, state.spectrum
    system, zero_set = expansion.system, expansion.zero_set
    to_z, to_eta, unused = jax.random.split(key, 3)
    z = fluctuations(state, to_z, _DRAWS)

    def gradient(w: Vector) -> Vector:
        return mean_path.average.at(w, spectrum, unused, jnp.asarray(1)).gradient

    clean = jax.grad(zero_set.loss)(state.w)  # zero on the set alone
    higher = mean_path.excess_at(state, unused)
    curvatures = relaxation(spectrum, higher)

    def noise(z: Array, key: Key[Array, ""]) -> Array:
        params = zero_set.unravel(state.w + spectrum.embed(z))
        noisy = flatten(system.noisy_gradient(params, key))[0]
        return spectrum.coordinates(noisy - clean) - curvatures * z

    def added(each: tuple[Array, Key[Array, ""]]) -> Array:
        """The growth of the squared noise, per mode, by the fluctuation z."""
        z, key = each
        return (noise(z, key) ** 2 + noise(-z, key) ** 2) / 2 - noise(0 * z, key) ** 2

    drawn = jnp.mean(jax.lax.map(added, (z, jax.random.split(to_eta, _DRAWS))), axis=0)
    # Beside the set the noise of the batches at z = 0 also causes fluctuations.
    constant = expansion.excess_covariance(state.w, spectrum, 0 * state.covariance)
    batches = expansion.excess_covariance(state.w, spectrum, state.covariance) - constant
    used = mean_path.average.sigma**2 * expansion.normal_covariance(state.w, spectrum) + constant
    if higher is not None:
        used = used + higher.covariance(spectrum)
    decay = decay_of(mean_path.optimizer, step_size, curvatures + mean_path.optimizer.weight_decay)
    share = jnp.diag(decay.stationary) * spectrum.eigenvalues
    unexplained = jnp.sum(share * (drawn - jnp.diag(batches)))
    explained = jnp.sum(share * jnp.diag(used + batches))
    # Without fluctuations, as at a start on the set under batches alone, there is no error.
    excess = jnp.where(explained > TINY, unexplained / jnp.maximum(explained, TINY), 0.0)
    if mean_path.kinked:
        displacements = spectrum.embed(z.T).T
        second = spectrum.tangent(fluctuation_force(expansion, state.w, spectrum, displacements, None)[0])
        change = _change_of_jacobian(zero_set, state.w, displacements, unused)
        force = (jnp.abs(excess) + change) * second
        return Truncation(-mean_path.optimizer.effective(step_size) * force, excess)
    second = 0.5 * spectrum.tangent(zero_set.third_derivative_of_normal(state.w, spectrum, state.covariance))
    if not isinstance(mean_path.average, ExactAverage):
        halves = jnp.zeros((2, *state.w.shape))
    else:
        center = gradient(state.w)

        def curved(z: Array) -> Vector:
            moved = spectrum.embed(z)
            return (gradient(state.w + moved) + gradient(state.w - moved)) / 2 - center

        def missing(z: Array) -> Vector:
            expected = 0.5 * zero_set.third_derivative_of_normal(state.w, spectrum, z.T @ z / z.shape[0])
            return spectrum.tangent(jnp.mean(jax.lax.map(curved, z), axis=0) - expected)

        halves = jax.lax.map(missing, z.reshape(2, _DRAWS // 2, -1))
    one, other = halves + excess * second
    # The draws scatter, most at kinks. Only the component that both halves of the draws share is kept.
    force, common = (one + other) / 2, jnp.sqrt(jnp.maximum(one @ other, 0.0))
    force = force * common / jnp.maximum(jnp.linalg.norm(force), TINY)
    return Truncation(-mean_path.optimizer.effective(step_size) * force, excess)


def _change_of_jacobian(
    zero_set: AbstractZeroSet, w: Vector, displacements: Float[Array, "draws parameters"], key: Array
) -> Scalar:
    """The root mean square of |(H(w + x) - H(w)) v| / |H(w) v| over displacements x, for a random v.

    For least squares near the set it is about that of the Jacobian. A Hessian-vector product each.
    """
    v = jax.random.normal(key, w.shape, w.dtype)

    def product(w: Vector) -> Vector:
        return jax.jvp(jax.grad(zero_set.loss), (w,), (v,))[1]

    here = product(w)
    squares = jax.lax.map(lambda x: jnp.sum((product(w + x) - here) ** 2), displacements)
    return jnp.sqrt(jnp.mean(squares) / jnp.maximum(jnp.sum(here**2), TINY))
