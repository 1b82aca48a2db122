"""What the mean and covariance of training leave out: a check on the prediction (docs/prediction.md)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from zeroloss.dynamics.averages import ExactAverage
from zeroloss.dynamics.mean_path import MeanPath, State
from zeroloss.dynamics.recursion import decay
from zeroloss.dynamics.spread import fluctuations
from zeroloss.manifold import GramGeometry
from zeroloss.pytrees import Vector, flatten
from zeroloss.system import Scalar

_DRAWS = 64
_TINY = 1e-300


@eqx.filter_jit
def neglected(mean_path: MeanPath, state: State, step_size: Scalar, key: Key[Array, ""]) -> Scalar:
    """An estimate of how far each training step is misjudged along the set.

    From draws z of the fluctuations and of the noise, for two things that the recursion takes to leading
    order. The force, whose average over z is grad L_bar + 1/2 T[C] and terms of fourth order; and the
    covariance of the gradient noise, which has the random Hessian (H_eta - H) z in it, taken with z and -z
    against the same noise at z = 0. Costs 64 times two averages and three gradients; the first part is left
    out where averages have to be sampled.
    """
    expansion, geometry = mean_path.expansion, state.geometry
    system, manifold = expansion.system, expansion.manifold
    to_z, to_eta, unused = jax.random.split(key, 3)
    z = fluctuations(state, to_z, _DRAWS)

    def gradient(w: Vector) -> Vector:
        return mean_path.average.at(w, geometry, unused, jnp.asarray(1)).gradient

    def noise(z: Array, key: Key[Array, ""]) -> Array:
        params = manifold.unravel(state.w + geometry.embed(z))
        noisy = flatten(system.noisy_gradient(params, key))[0]
        return geometry.coordinates(noisy) - geometry.eigenvalues * z

    # How much larger the fluctuations' share of the loss is with the noise as it was drawn.
    def added(each: tuple[Array, Key[Array, ""]]) -> Array:
        z, key = each
        return (noise(z, key) ** 2 + noise(-z, key) ** 2) / 2 - noise(0 * z, key) ** 2

    drawn = jnp.mean(jax.lax.map(added, (z, jax.random.split(to_eta, _DRAWS))), axis=0)
    used = mean_path.average.sigma**2 * expansion.normal_covariance(state.w, geometry)
    excess = mean_path.excess_at(state, unused)
    if excess is not None:
        assert isinstance(geometry, GramGeometry)
        used = used + excess.covariance(geometry)
    batches = expansion.excess_covariance(state.w, geometry, state.covariance)
    batches = batches - expansion.excess_covariance(state.w, geometry, 0 * state.covariance)
    law = decay(mean_path.optimizer, step_size, geometry.eigenvalues + mean_path.optimizer.weight_decay)
    share = jnp.diag(law.gain / jnp.where(law.rate > 0, law.rate, jnp.inf)) * geometry.eigenvalues
    missed = jnp.sum(share * (drawn - jnp.diag(batches))) / jnp.maximum(
        jnp.sum(share * jnp.diag(used)), 1e-300
    )
    turned = 0.5 * geometry.tangent(manifold.third_of_normal(state.w, geometry, state.covariance))
    if not isinstance(mean_path.average, ExactAverage):
        missing = jnp.zeros_like(state.w)
    else:
        center = gradient(state.w)

        def curved(z: Array) -> Vector:
            moved = geometry.embed(z)
            return (gradient(state.w + moved) + gradient(state.w - moved)) / 2 - center

        sampled = 0.5 * manifold.third_of_normal(state.w, geometry, z.T @ z / _DRAWS)
        missing = geometry.tangent(jnp.mean(jax.lax.map(curved, z), axis=0) - sampled)
    force = missing + missed * turned
    return step_size / (1 - mean_path.optimizer.momentum) * jnp.linalg.norm(force)
