"""The scatter of single training runs along the zero-loss set (docs/prediction.md)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from zeroloss._compilation import compiled
from zeroloss._pytrees import Vector, flatten
from zeroloss.prediction._higher_orders import Excess
from zeroloss.prediction._mean_path import MeanPath, State, relaxation, scattered
from zeroloss.systems import Scalar

_SHARED, _OWN = 16, 4  # draws of the displacement for all runs together, and for each run


@compiled
def displacements_of_runs(
    mean_path: MeanPath,
    states: State,
    step_size: Scalar,
    steps: Int[Array, ""],
    key: Key[Array, ""],
    excess: Excess | None = None,
) -> Float[Array, "runs parameters"]:
    """Displacements of the runs of an ensemble along the set, like those of `steps` training steps.

    `states` holds the mean path first. The sum of the displacements of many training steps is Gaussian: some
    are drawn, and added with Gaussian weights, opposite ones for the two runs of a pair. Unless the limit is
    stochastic, the runs stay so near the mean path that the draws at the mean path serve all of them.
    """
    pairs = (states.w.shape[0] - 1) // 2
    to_draws, to_weights = jax.random.split(key)
    draws = _OWN if mean_path.stochastic else _SHARED
    weights = jax.random.normal(to_weights, (pairs, draws)) * jnp.sqrt(steps / (draws - 1))
    weights = jnp.concatenate([weights, -weights])
    if not mean_path.stochastic:
        center = jax.tree.map(lambda leaf: leaf[0], states)
        return weights @ draws_of_displacement(mean_path, center, step_size, to_draws, draws, excess)
    keys = jax.random.split(to_draws, pairs)

    def one(state: State, key: Key[Array, ""], weights: Array) -> Vector:
        return weights @ draws_of_displacement(mean_path, state, step_size, key, draws, excess)

    runs = jax.tree.map(lambda leaf: leaf[1:], states)
    return jax.vmap(one)(runs, jnp.concatenate([keys, keys]), weights)


def draws_of_displacement(
    mean_path: MeanPath,
    state: State,
    step_size: Scalar,
    key: Key[Array, ""],
    draws: int,
    excess: Excess | None = None,
) -> Float[Array, "draws parameters"]:
    """Draws of the displacement along the set by one training step, less their mean.

    Two terms move a run along the set, to second order in eta and in the fluctuation x = Q z of the iterate.
    The term P_T (grad L_hat(w + x, eta) - grad L(w + x)) is independent from step to step. The term 1/2 P_T
    T[x x^T] is correlated in time; the Poisson equation of z <- (1 - alpha Lambda) z - alpha xi replaces its
    sum by a sum of the independent increments T[-alpha (1 - alpha Lambda) z xi^T o 1/rate + 1/2 alpha^2 xi
    xi^T o 1/rate]. With momentum they are exact for slow modes. Costs three gradients, one clean gradient and
    one T[.] a draw.
    """
    expansion, spectrum = mean_path.expansion, state.spectrum
    system, zero_set = expansion.system, expansion.zero_set
    effective = mean_path.optimizer.effective(step_size)
    decayed = 1 - step_size * relaxation(spectrum, excess)
    rate = 1 - decayed[:, None] * decayed[None, :]
    inverse = jnp.where(rate > 0, 1 / jnp.where(rate > 0, rate, 1.0), 0.0)

    def noisy(w: Vector, key: Key[Array, ""]) -> Vector:
        return flatten(system.noisy_gradient(zero_set.unravel(w), key))[0]

    def one(key: Key[Array, ""], z: Array) -> Vector:
        there = state.w + spectrum.embed(z)
        clean = jax.grad(zero_set.loss)
        fresh = noisy(there, key) - clean(there)
        xi = spectrum.coordinates(noisy(state.w, key) - clean(state.w))
        mixed = jnp.outer(decayed * z, xi)
        weights = inverse * (-step_size * (mixed + mixed.T) / 2 + step_size**2 / 2 * jnp.outer(xi, xi))
        return fresh + zero_set.third_derivative_of_normal(state.w, spectrum, weights)

    to_eta, to_z = jax.random.split(key)
    total = jax.vmap(one)(jax.random.split(to_eta, draws), fluctuations(state, to_z, draws))
    total = spectrum.tangent(total.T).T
    return -effective * (total - total.mean(axis=0))


def fluctuations(state: State, key: Key[Array, ""], draws: int) -> Float[Array, "draws q"]:
    """Draws of the iterate around its mean, normal to the set, in the coordinates of the spectrum."""
    return scattered(state.spectrum, state.covariance, state.w, key, draws)
