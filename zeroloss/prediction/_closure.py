"""What the mean and covariance of training leave out: a check on the prediction (docs/prediction.md)."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from zeroloss._pytrees import Vector, flatten
from zeroloss.prediction._averages import ExactAverage
from zeroloss.prediction._ensemble import fluctuations
from zeroloss.prediction._mean_path import MeanPath, State, relaxation
from zeroloss.prediction._recursion import decay
from zeroloss.systems import Scalar

_DRAWS = 64
_TINY = 1e-300


class Neglected(NamedTuple):
    """What is left out at a point of the path.

    - `displacement`: how far each training step is misjudged along the set.
    - `excess`: of the fluctuations' share of the loss, relative to what it is taken to be.
    """

    displacement: Vector
    excess: Scalar


@eqx.filter_jit
def neglected(mean_path: MeanPath, state: State, step_size: Scalar, key: Key[Array, ""]) -> Neglected:
    """An estimate of how far each training step is misjudged along the set, and the fluctuations.

    From draws z of the fluctuations and of the noise, for two things that the recursion takes to leading
    order. The force, whose average over z is grad L_bar + 1/2 T[C] and terms of fourth order; and the
    covariance of the gradient noise, which has the random Hessian (H_eta - H) z in it, taken with z and -z
    against the same noise at z = 0. Costs 64 times two averages and three gradients; the first part is left
    out where averages have to be sampled.
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

    # How much larger the fluctuations' share of the loss is with the noise as it was drawn.
    def added(each: tuple[Array, Key[Array, ""]]) -> Array:
        z, key = each
        return (noise(z, key) ** 2 + noise(-z, key) ** 2) / 2 - noise(0 * z, key) ** 2

    drawn = jnp.mean(jax.lax.map(added, (z, jax.random.split(to_eta, _DRAWS))), axis=0)
    # Beside the set the batches' own noise is part of what makes the fluctuations.
    still = expansion.excess_covariance(state.w, spectrum, 0 * state.covariance)
    batches = expansion.excess_covariance(state.w, spectrum, state.covariance) - still
    used = mean_path.average.sigma**2 * expansion.normal_covariance(state.w, spectrum) + still
    if higher is not None:
        used = used + higher.covariance(spectrum)
    law = decay(mean_path.optimizer, step_size, curvatures + mean_path.optimizer.weight_decay)
    share = jnp.diag(law.gain / jnp.where(law.rate > 0, law.rate, jnp.inf)) * spectrum.eigenvalues
    unexplained, made = (
        jnp.sum(share * (drawn - jnp.diag(batches))),
        jnp.sum(share * jnp.diag(used + batches)),
    )
    # Where nothing makes fluctuations, as at a start on the set under batches alone, nothing is misjudged.
    excess = jnp.where(made > _TINY, unexplained / jnp.maximum(made, _TINY), 0.0)
    turned = 0.5 * spectrum.tangent(zero_set.third_of_normal(state.w, spectrum, state.covariance))
    if not isinstance(mean_path.average, ExactAverage):
        halves = jnp.zeros((2, *state.w.shape))
    else:
        center = gradient(state.w)

        def curved(z: Array) -> Vector:
            moved = spectrum.embed(z)
            return (gradient(state.w + moved) + gradient(state.w - moved)) / 2 - center

        def missing(z: Array) -> Vector:
            expected = 0.5 * zero_set.third_of_normal(state.w, spectrum, z.T @ z / z.shape[0])
            return spectrum.tangent(jnp.mean(jax.lax.map(curved, z), axis=0) - expected)

        halves = jax.lax.map(missing, z.reshape(2, _DRAWS // 2, -1))
    first, second = halves + excess * turned
    # The draws scatter, the more at kinks; what two halves of them have in common does not.
    force, common = (first + second) / 2, jnp.sqrt(jnp.maximum(first @ second, 0.0))
    force = force * common / jnp.maximum(jnp.linalg.norm(force), _TINY)
    return Neglected(-step_size / (1 - mean_path.optimizer.momentum) * force, excess)
