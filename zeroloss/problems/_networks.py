"""A tanh network, for problems that train one."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from zeroloss.noise import site


def network(params: list[dict[str, Array]], inputs: Float[Array, "examples inputs"]) -> Array:
    """A tanh network: a number an example, or `[examples, outputs]`; layer i is the site `"hidden_i"`."""
    hidden = inputs
    for index, layer in enumerate(params[:-1]):
        hidden = site(jnp.tanh(hidden @ layer["weights"] + layer["biases"]), f"hidden_{index + 1}")
    outputs = hidden @ params[-1]["weights"] + params[-1]["biases"]
    return outputs[:, 0] if outputs.shape[-1] == 1 else outputs


def initial_parameters(sizes: Sequence[int], seed: int) -> list[dict[str, Array]]:
    """Gaussian weights of variance 1 / fan-in, and no biases; `sizes` from the inputs to the outputs."""
    keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
    return [
        {
            "weights": jax.random.normal(key, (into, out)) / jnp.sqrt(into),
            "biases": jnp.zeros(out),
        }
        for key, into, out in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def hidden_sites(widths: Sequence[int]) -> tuple[str, ...]:
    """The names of the hidden layers."""
    return tuple(f"hidden_{index + 1}" for index in range(len(widths)))


def wrong_signs(inputs: Array, targets: Array, params: PyTree) -> Float[Array, ""]:
    """The share of examples for which the single output has not the sign of the target."""
    return jnp.mean(network(params, inputs) * targets <= 0)


def wrong_classes(inputs: Array, labels: Array, params: PyTree) -> Float[Array, ""]:
    """The share of examples whose largest output is not that of their label."""
    return jnp.mean(jnp.argmax(network(params, inputs), axis=-1) != labels)


def mean_square(inputs: Array, targets: Array, params: PyTree) -> Float[Array, ""]:
    """The mean square of how far the single output is from the target."""
    return jnp.mean((network(params, inputs) - targets) ** 2)
