"""Small systems that several tests share."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import zeroloss as zl


def hyperbola_loss(w):
    return 0.5 * (w[0] * w[1] - 1) ** 2


HYPERBOLA_POINT = jnp.array([2.0, 0.5])


def network(params, inputs):
    """Two outputs, two sites, tanh: nothing is affine in the parameters."""
    hidden = zl.site(jnp.tanh(inputs @ params["a"]), "first")
    hidden = zl.site(jnp.tanh(hidden @ params["b"]), "second")
    return hidden @ params["c"]


def network_problem(examples=4, seed=0):
    keys = jax.random.split(jax.random.key(seed), 5)
    inputs = jax.random.normal(keys[0], (examples, 3))
    targets = jax.random.normal(keys[1], (examples, 2)) / 2
    params = {
        "a": jax.random.normal(keys[2], (3, 4)),
        "b": jax.random.normal(keys[3], (4, 3)) / 2,
        "c": jax.random.normal(keys[4], (3, 2)),
    }
    return zl.LeastSquares(network, inputs, targets), params


def flat_noisy_loss(system, point):
    """(noisy_loss(w, xi), w, n) in the flat form of reference.py, at sigma = 1."""
    w, unravel = ravel_pytree(point)
    law = system.noise_law(point)
    zero, unravel_noise = ravel_pytree(law.zeros())

    def noisy_loss(w, xi):
        return system.noisy_loss(unravel(w), law.unit(unravel_noise(xi)))

    return noisy_loss, w, len(zero)


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])
